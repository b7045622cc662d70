//! Which texts may mean an AuthorizationPolicy that nobody can read, and which RequestAuthentications nobody can.
//!
//! A policy that is not read must not open a door, so a text counts by its look where it cannot be parsed. What follows
//! from that is not decided here.

use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Location, ObjectRef, did_you_mean, reason};
use crate::document::{Chunk, DEFAULT_NAMESPACE, Finding, Item, ObjectKey};
use crate::kinds::Kind;
use crate::kinds::check::dns_label;
use crate::translate::ROOT_NAMESPACE;

const POLICY: &str = Kind::AuthorizationPolicy.as_str();
const AUTHENTICATION: &str = Kind::RequestAuthentication.as_str();

/// A policy, or by its key a RequestAuthentication, without a version that could be in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnreadPolicy {
    /// Its name; in the root namespace where nobody can tell which namespace it is about.
    pub key: ObjectKey,
    /// Where the text is, if it is a policy only by its look.
    pub text: Option<Location>,
}

impl UnreadPolicy {
    /// Says what a text that may be a policy does, as nothing else says it.
    pub fn diagnostic(&self) -> Option<Diagnostic> {
        let place = self.text.clone()?;
        let gateways = match &*self.key.namespace {
            ROOT_NAMESPACE => "all gateways".to_owned(),
            namespace => format!("the gateways of namespace {namespace}"),
        };
        let message = format!(
            "this text cannot be read and may mean an {POLICY}: until it can, {gateways} refuse every request"
        );
        let error = Diagnostic::error(reason::UNREADABLE_POLICY, place, message);
        Some(error.hint("mend the text, or remove it"))
    }
}

/// A text that may mean a BackendTLSPolicy. Whatever it is for is named in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnreadBackendTls {
    namespaces: Vec<Arc<str>>,
    text: String,
}

impl UnreadBackendTls {
    /// Whether it may be for an object: closed by mistake is better than open by mistake.
    pub fn may_be_for(&self, object: &ObjectKey) -> bool {
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        self.namespaces.iter().any(|ns| *ns == object.namespace || **ns == *ROOT_NAMESPACE)
            && self.text.split(|c| !of_name(c)).any(|word| word == &*object.name)
    }
}

/// Such a text, if a chunk is one.
pub(crate) fn backend_tls(
    chunk: &Chunk,
    inherited: &[ObjectKey],
    in_force: &dyn Fn(&ObjectKey) -> bool,
) -> Option<UnreadBackendTls> {
    const KIND: &str = Kind::BackendTlsPolicy.as_str();
    let text = chunk.source.text();
    if inherited.iter().any(|key| key.kind == KIND)
        || !text.to_ascii_lowercase().contains(&KIND.to_ascii_lowercase())
    {
        return None;
    }
    let unread = |item: &Item| {
        item.object.is_none()
            && item.key.as_ref().is_none_or(|key| key.kind == KIND && !in_force(key))
            && item.findings.iter().any(Finding::is_error)
    };
    let found = chunk.broken || chunk.items.iter().any(unread);
    found.then(|| UnreadBackendTls { namespaces: namespaces(text), text: text.to_owned() })
}

/// Whether objects of a kind guard what they are attached to: without a version in force, one lets in what it was to keep
/// out.
pub(crate) fn is_guard(kind: &str) -> bool {
    [Kind::EdgePolicy, Kind::LoginPolicy, Kind::ExternalAuthorizer].iter().any(|guard| guard.as_str() == kind)
}

/// Adds what a chunk holds of such policies. `inherited` are objects that it may still mean and that are in force;
/// `in_force` tells whether a version of an object is.
pub(crate) fn in_chunk(
    chunk: &Chunk,
    inherited: &[ObjectKey],
    in_force: &dyn Fn(&ObjectKey) -> bool,
    out: &mut Vec<UnreadPolicy>,
) {
    let is_policy = |key: &&ObjectKey| key.kind == POLICY;
    let without_object = chunk.items.iter().filter(|i| i.object.is_none()).filter_map(|i| i.key.as_ref());
    let named: Vec<&ObjectKey> = without_object.clone().filter(is_policy).collect();
    let others = without_object.filter(|key| key.kind == AUTHENTICATION || is_guard(key.kind));
    let lost = named.iter().copied().chain(others).filter(|key| !in_force(key));
    out.extend(lost.map(|key| UnreadPolicy { key: key.clone(), text: None }));
    if inherited.iter().any(|key| key.kind == POLICY) {
        // The last good version of what was in its place.
        return;
    }
    if chunk.broken {
        if named.is_empty() && is_mentioned(chunk.source.text()) {
            out.extend(namespaces(chunk.source.text()).into_iter().map(|ns| by_look(chunk, ns)));
        }
        return;
    }
    for item in chunk.items.iter().filter(|i| i.key.is_none()) {
        out.extend(of_item(chunk, item));
    }
}

/// A document that can be parsed, without a name that could be its object's.
fn of_item(chunk: &Chunk, item: &Item) -> Vec<UnreadPolicy> {
    let Some(error) = item.findings.iter().find(|f| f.is_error()) else { return Vec::new() };
    let Finding { object: Some(ObjectRef { kind, namespace, name }), .. } = error else {
        // Not even a mapping: as good as broken.
        let text = chunk.source.text();
        let namespaces = if is_mentioned(text) { namespaces(text) } else { Vec::new() };
        return namespaces.into_iter().map(|ns| by_look(chunk, ns)).collect();
    };
    let kindless = kind.starts_with('(') && is_mentioned(chunk.source.text());
    let misspelt = did_you_mean(kind, Kind::ALL.iter().copied().map(Kind::as_str)) == Some(POLICY);
    if kind != POLICY && !misspelt && !kindless {
        return Vec::new();
    }
    let namespace = match namespace.as_str() {
        "" => DEFAULT_NAMESPACE,
        readable if dns_label(readable).is_ok() => readable,
        _ => ROOT_NAMESPACE,
    };
    if kind == POLICY {
        let key = ObjectKey { kind: POLICY, namespace: namespace.into(), name: name.as_str().into() };
        return vec![UnreadPolicy { key, text: None }];
    }
    vec![by_look(chunk, namespace.into())]
}

fn by_look(chunk: &Chunk, namespace: Arc<str>) -> UnreadPolicy {
    let place = chunk.source.location(1, 1);
    let file = place.file.rsplit('/').next().unwrap_or_default();
    let name = format!("unreadable:{file}:{}", place.line).into();
    UnreadPolicy { key: ObjectKey { kind: POLICY, namespace, name }, text: Some(place) }
}

fn is_mentioned(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let of_the_group = || {
        text.contains("security.istio.io")
            && !text.contains("requestauthentication")
            && !text.contains("peerauthentication")
    };
    text.contains("authorizationpolicy") || of_the_group()
}

/// The namespaces that a text names; the root namespace, which is all of them, if one of them is not readable.
fn namespaces(text: &str) -> Vec<Arc<str>> {
    const FIELD: &str = "namespace";
    let mut found: Vec<Arc<str>> = Vec::new();
    for (at, _) in text.match_indices(FIELD) {
        let rest = text[at + FIELD.len()..].trim_start_matches(['"', '\'']).trim_start_matches(' ');
        let Some(value) = rest.strip_prefix(':') else { continue };
        let value = value.trim_start_matches([' ', '"', '\'']);
        let end = value.find([',', '}', '\n', '\r', '"', '\'', ' ', '#']).unwrap_or(value.len());
        if dns_label(&value[..end]).is_err() {
            return vec![ROOT_NAMESPACE.into()];
        }
        found.push(value[..end].into());
    }
    if found.is_empty() {
        found.push(DEFAULT_NAMESPACE.into());
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `namespace/name` of what a text may mean, `*` for a policy by its look.
    fn check(text: &str, expected: &[&str]) {
        let chunk = Chunk::parse("dir/p.yaml".into(), text, 3);
        let mut found = Vec::new();
        in_chunk(&chunk, &[], &|_| false, &mut found);
        let told: Vec<_> = found
            .iter()
            .map(|u| {
                format!("{}/{}{}", u.key.namespace, u.key.name, if u.text.is_some() { " *" } else { "" })
            })
            .collect();
        assert_eq!(told, expected, "{text}");
    }

    #[test]
    fn texts_are_told_by_their_look() {
        let by_look = |ns: &str| format!("{ns}/unreadable:p.yaml:3 *");
        let (default, all) = (by_look("default"), by_look(ROOT_NAMESPACE));
        check("kind: [AuthorizationPolicy\n", &[&default]);
        check("apiVersion: security.istio.io/v1\nkind: [\n", &[&default]);
        check("apiVersion: security.istio.io/v1\nkind: [PeerAuthentication\n", &[]);
        check(
            "{\"kind\": \"AuthorizationPolicy\", \"metadata\": {\"namespace\": \"prod\"",
            &[&by_look("prod")],
        );
        check("kind: [AuthorizationPolicy\nnamespace: {{ .Values.ns }}\n", &[&all]);
        check("kind: [AuthorizationPolicy\n namespace:\n", &[&all]);
        check("- AuthorizationPolicy\n", &[&default]);
        check("kind: [HTTPRoute\n", &[]);
    }

    #[test]
    fn documents_are_told_by_what_they_say() {
        let head = "apiVersion: security.istio.io/v1\nmetadata: {name: p, namespace: a}\n";
        check(&format!("{head}kind: AuthorizationPolcy\n"), &["a/unreadable:p.yaml:3 *"]);
        check(&format!("{head}kidn: AuthorizationPolicy\n"), &["a/unreadable:p.yaml:3 *"]);
        check(&format!("{head}kind: AuthorizationPolicy\nspec: {{ruels: []}}\n"), &["a/p"]);
        check(&format!("{head}kind: AuthorizationPolicy\nspec: {{ruels: [\n"), &["a/p"]);
        check(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: P}\n",
            &["default/P"],
        );
        check(&format!("{head}kind: RequestAuthentication\nspec: {{jwtRuels: []}}\n"), &["a/p"]);
        check(&format!("{head}kind: RequestAuthentication\nspec: {{jwtRules: []}}\n"), &[]);
        // One of two objects in a text that has lost its separator, wherever in it the text breaks.
        let second = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: [\n";
        check(&format!("{head}kind: AuthorizationPolicy\n{second}"), &["a/p"]);
        check("apiVersion: v1\nkind: Servcie\nmetadata: {name: AuthorizationPolicy}\n", &[]);
    }
}
