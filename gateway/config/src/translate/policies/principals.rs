//! Names of peers and bearers of tokens, as policies write them. Trust domains are seen to here: an identity of one of the
//! gateway's own domains means the same account of all of them (istiod's trust domain aliases).

use std::sync::Arc;

use fieldgate_core::ir::{RequestPrincipal, ServiceAccount, StringMatch};

use super::rules::string;

/// What istiod takes for a pointer to the own trust domain, whatever that is called.
pub(crate) const DEFAULT: &str = "cluster.local";

/// The gateway's trust domain and its aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains(Vec<Arc<str>>);

impl Default for TrustDomains {
    fn default() -> Self {
        Self(vec![DEFAULT.into()])
    }
}

impl TrustDomains {
    /// The own one, and what else it was or is called.
    pub fn new(own: &str, aliases: &[impl AsRef<str>]) -> Self {
        Self(std::iter::once(own).chain(aliases.iter().map(AsRef::as_ref)).map(Into::into).collect())
    }

    /// Principals as they are to be matched: one that names an own domain stands for all own domains.
    pub(super) fn principals(&self, written: &[String]) -> Vec<StringMatch> {
        written.iter().flat_map(|principal| self.of(principal)).map(|text| string(&text)).collect()
    }

    fn of(&self, principal: &str) -> Vec<String> {
        let as_is = || vec![principal.to_owned()];
        // Only what has the form of an Istio identity has a trust domain.
        let Some((domain, rest)) = principal.split_once('/').filter(|(_, rest)| rest.split('/').count() == 4)
        else {
            return as_is();
        };
        let ours = domain == DEFAULT || self.0.iter().any(|own| may_mean(domain, own));
        if domain == "*" || !ours {
            return as_is();
        }
        let mut all: Vec<String> = Vec::new();
        for own in &self.0 {
            let fits = domain.strip_prefix('*').is_some_and(|end| own.ends_with(end));
            let new = if fits { principal.to_owned() } else { format!("{own}/{rest}") };
            if !all.contains(&new) {
                all.push(new);
            }
        }
        all
    }

    /// Trust domains as they are to be matched: an own one stands for all.
    pub(super) fn domains(&self, written: &[String]) -> Vec<Arc<str>> {
        let mut all: Vec<Arc<str>> = Vec::new();
        for domain in written {
            let own = self.0.iter().any(|own| **own == **domain);
            let these = if own { self.0.clone() } else { vec![domain.as_str().into()] };
            all.extend(these);
        }
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|domain| seen.insert(domain.clone()));
        all
    }
}

/// Either may be a pattern of the other.
fn may_mean(a: &str, b: &str) -> bool {
    let fits = |text: &str, pattern: &str| {
        pattern.strip_suffix('*').is_some_and(|start| text.starts_with(start))
            || pattern.strip_prefix('*').is_some_and(|end| text.ends_with(end))
    };
    a == b || fits(a, b) || fits(b, a)
}

/// `iss/sub`. The issuer may be a URL, so the last slash divides; without one, a `*` at either end leaves the other open.
pub(super) fn request_principal(text: &str) -> RequestPrincipal {
    let exact = |text: &str| StringMatch::Exact(text.into());
    let (issuer, subject) = match (text.rsplit_once('/'), text) {
        (_, "*") => (StringMatch::Present, StringMatch::Present),
        (Some((issuer, subject)), _) if text.starts_with('*') => {
            let issuer = if issuer == "*" {
                StringMatch::Present
            } else {
                StringMatch::Suffix(issuer.strip_prefix('*').unwrap_or(issuer).into())
            };
            (issuer, exact(subject))
        }
        (None, _) if text.starts_with('*') => (StringMatch::Present, StringMatch::Suffix(text[1..].into())),
        (Some((issuer, "*")), _) => (exact(issuer), StringMatch::Present),
        (Some((issuer, subject)), _) => (exact(issuer), prefix_or_exact(subject)),
        (None, _) if text.ends_with('*') => (prefix_or_exact(text), StringMatch::Present),
        (None, _) => (exact(text), exact("")),
    };
    RequestPrincipal { issuer, subject }
}

fn prefix_or_exact(text: &str) -> StringMatch {
    match text.strip_suffix('*') {
        Some(start) => StringMatch::Prefix(start.into()),
        None => StringMatch::Exact(text.into()),
    }
}

/// `name`, of the policy's namespace, or `namespace/name`. Its form is strict, as nothing else in it could be meant.
pub(super) fn service_account(text: &str, own_namespace: &str) -> Result<ServiceAccount, &'static str> {
    let (namespace, name) = text.split_once('/').unwrap_or((own_namespace, text));
    if text.contains('*') {
        Err("service accounts have no wildcards")
    } else if namespace.is_empty() || name.is_empty() || name.contains('/') {
        Err("a service account is written NAME or NAMESPACE/NAME")
    } else {
        Ok(ServiceAccount { namespace: namespace.into(), name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(own: &[&str], written: &str, expected: &[&str]) {
        assert_eq!(TrustDomains::new(own[0], &own[1..]).of(written), expected, "{own:?} {written}");
    }

    /// As istiod was seen to write them.
    #[test]
    fn own_trust_domains_are_one() {
        check(&["cluster.local"], "cluster.local/ns/a/sa/b", &["cluster.local/ns/a/sa/b"]);
        check(&["td"], "cluster.local/ns/a/sa/b", &["td/ns/a/sa/b"]);
        check(&["td", "cluster.local"], "td/ns/a/sa/b", &["td/ns/a/sa/b", "cluster.local/ns/a/sa/b"]);
        check(&["td", "old"], "other/ns/a/sa/b", &["other/ns/a/sa/b"]);
        check(&["td", "old"], "*/ns/a/sa/b", &["*/ns/a/sa/b"]);
        check(&["td", "old"], "old/ns/a/sa/b/c", &["old/ns/a/sa/b/c"]);
        check(&["td", "old"], "sa/b", &["sa/b"]);
        let wild = &["*-td/ns/a/sa/b", "other/ns/a/sa/b"];
        check(&["new-td", "old-td", "other"], "*-td/ns/a/sa/b", wild);
        let domains = TrustDomains::new("td", &["old"]);
        let written = ["old", "x", "td"].map(str::to_owned);
        assert_eq!(domains.domains(&written), ["td", "old", "x"].map(Arc::from));
    }

    #[test]
    fn bearers() {
        use StringMatch::{Exact, Prefix, Present, Suffix};
        for (text, issuer, subject) in [
            ("*", Present, Present),
            ("*/s", Present, Exact("s".into())),
            ("*i/s", Suffix("i".into()), Exact("s".into())),
            ("*s", Present, Suffix("s".into())),
            ("https://i/*", Exact("https://i".into()), Present),
            ("https://i/s*", Exact("https://i".into()), Prefix("s".into())),
            ("https://i/s", Exact("https://i".into()), Exact("s".into())),
            ("i*", Prefix("i".into()), Present),
            ("i", Exact("i".into()), Exact("".into())),
        ] {
            assert_eq!(request_principal(text), RequestPrincipal { issuer, subject }, "{text}");
        }
    }

    #[test]
    fn accounts() {
        let account = |text| service_account(text, "own").map(|a| format!("{}/{}", a.namespace, a.name));
        assert_eq!(account("a"), Ok("own/a".into()));
        assert_eq!(account("n/a"), Ok("n/a".into()));
        for bad in ["", "/a", "n/", "n/a/b", "a*"] {
            assert!(account(bad).is_err(), "{bad}");
        }
    }
}
