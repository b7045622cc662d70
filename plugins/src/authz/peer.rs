//! Names of a peer's certificate against patterns, read as the filters read them that istiod makes: every URI name, every
//! DNS name and the subject is tried (Envoy's `authenticated`). What a name proves is not asked here.

use fieldgate_core::identity::PeerIdentity;
use fieldgate_core::ir::{ServiceAccount, StringMatch};

use super::text::{Invalid, Star, Text};

const SCHEME: &str = "spiffe://";

/// The names of a peer; none without a certificate.
pub fn names(peer: Option<&PeerIdentity>) -> impl Iterator<Item = &str> {
    peer.into_iter().flat_map(|peer| {
        let subject = std::iter::once(&peer.subject);
        peer.uris.iter().chain(&peer.dns).chain(subject).map(|name| &**name)
    })
}

/// What may stand for a namespace in a name: whatever is between `/ns/` and the next slash.
pub fn namespaces(name: &str) -> impl Iterator<Item = &str> {
    behind(name, "/ns/").filter_map(|(_, rest)| rest.find('/').map(|end| &rest[..end]))
}

/// Where a part begins, and what is behind it; also where one overlaps another.
fn behind<'n>(name: &'n str, part: &'n str) -> impl Iterator<Item = (usize, &'n str)> {
    let begins = move |at: &usize| name.as_bytes()[*at..].starts_with(part.as_bytes());
    (0..name.len()).filter(begins).map(move |at| (at, &name[at + part.len()..]))
}

/// Some of these, unless there are none, and none of those.
#[derive(Debug, Default)]
pub struct Peers {
    some: Vec<Pattern>,
    none: Vec<Pattern>,
}

impl Peers {
    /// By whole names.
    pub fn principals(some: &[StringMatch], none: &[StringMatch]) -> Result<Self, Invalid> {
        let all = |list: &[StringMatch]| list.iter().map(Pattern::principal).collect::<Result<_, _>>();
        Ok(Self { some: all(some)?, none: all(none)? })
    }

    /// By namespaces.
    pub fn namespaces<T: AsRef<str>>(some: &[T], none: &[T]) -> Self {
        let all = |list: &[T]| list.iter().map(|text| Pattern::namespace(text.as_ref())).collect();
        Self { some: all(some), none: all(none) }
    }

    /// By service accounts.
    pub fn accounts(some: &[ServiceAccount], none: &[ServiceAccount]) -> Self {
        let all = |list: &[ServiceAccount]| list.iter().map(Pattern::account).collect();
        Self { some: all(some), none: all(none) }
    }

    /// By trust domains.
    pub fn trust_domains<T: AsRef<str>>(some: &[T], none: &[T]) -> Self {
        let all = |list: &[T]| list.iter().map(|text| Pattern::trust_domain(text.as_ref())).collect();
        Self { some: all(some), none: all(none) }
    }

    /// Whether a peer fits. One without a certificate has no name that could.
    pub fn matches(&self, peer: Option<&PeerIdentity>) -> bool {
        let any = |list: &[Pattern]| {
            !list.is_empty() && names(peer).any(|name| list.iter().any(|pattern| pattern.matches(name)))
        };
        (self.some.is_empty() || any(&self.some)) && !any(&self.none)
    }
}

#[derive(Debug)]
enum Pattern {
    Whole(Text),
    /// A SPIFFE identity that ends so.
    Ending(Box<str>),
    /// These, in this order, with anything between and around them.
    Within(Vec<Box<str>>),
    /// `/ns/N/`, `sa/NAME`.
    Account(Box<str>, Box<str>),
    /// What stands between `*`.
    TrustDomain(Vec<Box<str>>),
}

impl Pattern {
    fn principal(pattern: &StringMatch) -> Result<Self, Invalid> {
        let whole = |text: &str| format!("{SCHEME}{text}").into_bytes().into();
        Ok(match pattern {
            StringMatch::Exact(text) => Self::Whole(Text::Exact(whole(text))),
            StringMatch::Prefix(text) => Self::Whole(Text::Prefix(whole(text))),
            StringMatch::Suffix(text) => Self::Ending((&**text).into()),
            StringMatch::Present => Self::Whole(Text::Present),
            StringMatch::Template(_) => return Err(Invalid),
        })
    }

    fn namespace(text: &str) -> Self {
        Self::Within(format!("/ns/{text}/").split('*').map(Into::into).collect())
    }

    fn account(account: &ServiceAccount) -> Self {
        let ServiceAccount { namespace, name } = account;
        Self::Account(format!("/ns/{namespace}/").into(), format!("sa/{name}").into())
    }

    fn trust_domain(text: &str) -> Self {
        Self::TrustDomain(text.split('*').map(Into::into).collect())
    }

    fn matches(&self, name: &str) -> bool {
        let identity = || name.strip_prefix(SCHEME);
        match self {
            Self::Whole(text) => text.matches(name.as_bytes(), Star::NotEmpty),
            Self::Ending(end) => identity().is_some_and(|rest| rest.ends_with(&**end)),
            Self::Within(parts) => in_order(parts, name).is_some(),
            Self::Account(namespace, account) => {
                identity().is_some_and(|rest| is_account(rest, namespace, account))
            }
            Self::TrustDomain(parts) => identity()
                .and_then(|rest| rest.split_once('/'))
                .is_some_and(|(domain, _)| is_made_of(parts, domain)),
        }
    }
}

/// What is left behind the last of the parts.
fn in_order<'n>(parts: &[Box<str>], name: &'n str) -> Option<&'n str> {
    parts.iter().try_fold(name, |rest, part| rest.find(&**part).map(|at| &rest[at + part.len()..]))
}

/// `parts` with anything between them, and nothing around.
fn is_made_of(parts: &[Box<str>], text: &str) -> bool {
    let [first, between @ .., last] = parts else { return parts.first().is_some_and(|only| **only == *text) };
    text.strip_prefix(&**first)
        .and_then(|rest| rest.strip_suffix(&**last))
        .is_some_and(|middle| in_order(between, middle).is_some())
}

/// `DOMAIN/ns/N/sa/NAME`, where other pairs may stand before `/ns/`, between the two, and at the end.
fn is_account(identity: &str, namespace: &str, account: &str) -> bool {
    let is_end = |rest: &str| rest.is_empty() || rest.len() > 1 && rest.starts_with('/');
    let named = |rest: &str| rest.strip_prefix(account).is_some_and(is_end);
    let later = |rest: &str| behind(rest, "/").any(|(at, rest)| at > 0 && named(rest));
    behind(identity, namespace).any(|(at, rest)| at > 0 && (named(rest) || later(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use regex::Regex;

    fn peer(uri: &str) -> PeerIdentity {
        PeerIdentity { uris: vec![uri.into()], ..PeerIdentity::default() }
    }

    fn account(namespace: &str, name: &str) -> ServiceAccount {
        ServiceAccount { namespace: namespace.into(), name: name.into() }
    }

    #[test]
    fn every_name_is_tried() {
        let peer = PeerIdentity {
            uris: vec!["spiffe://td/ns/a/sa/b".into(), "spiffe://td/ns/c/sa/d".into()],
            dns: vec!["host.example".into()],
            subject: "CN=web".into(),
            ..PeerIdentity::default()
        };
        let exact = |text: &str| Peers::principals(&[StringMatch::Exact(text.into())], &[]).unwrap();
        assert!(exact("td/ns/c/sa/d").matches(Some(&peer)));
        // Only SPIFFE identities are written without their scheme.
        assert!(!exact("host.example").matches(Some(&peer)));
        let any = Peers::principals(&[StringMatch::Present], &[]).unwrap();
        assert!(any.matches(Some(&PeerIdentity { uris: Vec::new(), ..peer.clone() })));
        assert!(!any.matches(Some(&PeerIdentity::default())) && !any.matches(None));
        let nobody = Peers::principals(&[], &[StringMatch::Present]).unwrap();
        assert!(nobody.matches(None) && !nobody.matches(Some(&peer)));
    }

    #[test]
    fn trust_domains() {
        let fits = |pattern: &str, uri: &str| Peers::trust_domains(&[pattern], &[]).matches(Some(&peer(uri)));
        assert!(
            fits("td", "spiffe://td/ns/a/sa/b")
                && !fits("td", "spiffe://td2/x")
                && !fits("td", "spiffe://td")
        );
        assert!(fits("bad*", "spiffe://bad.example/x") && !fits("bad*", "spiffe://a/bad/x"));
        assert!(
            fits("*d", "spiffe://td/x") && fits("t*d", "spiffe://td/x") && !fits("td*d", "spiffe://td/x")
        );
        assert!(fits("*", "spiffe://x/y") && !fits("td", "https://td/x"));
    }

    /// Names made of the parts of identities, in any order.
    fn name() -> impl Strategy<Value = String> {
        let parts = ["td", "/", "/ns/", "a", "b", "/ns/a/", "/sa/", "sa/b", "sa/", "/ns", "x", "ns/a"];
        prop::collection::vec(prop::sample::select(parts.to_vec()), 0..8)
            .prop_map(|parts| format!("spiffe://{}", parts.concat()))
    }

    proptest! {
        /// The expressions that istiod writes.
        #[test]
        fn as_the_regular_expressions(name in name()) {
            let full = |regex: &str| Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(&name);
            let peer = peer(&name);
            prop_assert_eq!(
                Peers::accounts(&[account("a", "b")], &[]).matches(Some(&peer)),
                full("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?"), "{}", name
            );
            for (pattern, regex) in [("a", ".*/ns/a/.*"), ("a*b", ".*/ns/a.*b/.*"), ("*", ".*/ns/.*/.*")] {
                let ours = Peers::namespaces(&[pattern], &[]).matches(Some(&peer));
                prop_assert_eq!(ours, full(regex), "{} {}", pattern, name);
            }
        }
    }
}
