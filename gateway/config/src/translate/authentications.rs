//! RequestAuthentication to IR, failing closed: tokens of an issuer whose keys cannot be had are refused. Keys themselves are
//! not read here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{Authentication, Jwks, JwtRule, ListenerKey, ObjectKey, RemoteJwks, TokenPlace};

use super::gateways::Gateways;
use super::{Notes, Objects, targets};
use crate::document::Object;
use crate::kinds::request_authentication::{JwtRuleSpec, RequestAuthenticationSpec};
use crate::kinds::{Kind, Spec};

/// How long fetched keys are good. A token that names a key which is not there is a reason to look earlier.
const REFRESH: Duration = Duration::from_mins(5);

/// Istio's.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Envoy's.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// What cannot be translated: field below the rule, message, hint.
type Problem = (&'static str, String, &'static str);

pub(super) fn translate(
    objects: &Objects,
    gateways: &Gateways,
    notes: &mut BTreeMap<ObjectKey, Notes>,
) -> BTreeMap<ObjectKey, Authentication> {
    let mut authentications = BTreeMap::new();
    for object in objects.of(Kind::RequestAuthentication) {
        let Spec::RequestAuthentication(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        authentications.insert(object.key(), one(object, spec, gateways, note));
    }
    authentications
}

/// What stands for an object that nobody can read: no token passes where tokens are by default, unless another object
/// knows its issuer.
pub(crate) fn closed(key: &ObjectKey, listeners: Vec<ListenerKey>) -> Authentication {
    let rule = translated(&JwtRuleSpec::default(), Jwks::Inline("".into()));
    Authentication { key: key.clone(), listeners, rules: vec![Arc::new(rule)] }
}

fn one(
    object: &Object,
    spec: &RequestAuthenticationSpec,
    gateways: &Gateways,
    note: &mut Notes,
) -> Authentication {
    let scope = targets::Scope {
        selector: spec.selector.as_ref(),
        target_ref: spec.target_ref.as_ref(),
        target_refs: &spec.target_refs,
    };
    let listeners = targets::listeners(object, &scope, gateways, note);
    let mut rules = Vec::new();
    for (at, rule) in spec.jwt_rules.iter().enumerate() {
        let (keys, problem) = keys(rule);
        if let Some((field, message, hint)) = problem {
            if note.conditions.is_empty() {
                note.condition("Accepted", false, "InvalidValue", message.clone());
            }
            let error = object.error("InvalidValue", &format!("spec.jwtRules[{at}].{field}"), message);
            let until = "until this is resolved, every token of this issuer is refused";
            note.diagnostics.push(error.hint(format!("{hint}; {until}")));
        }
        if !rule.space_delimited_claims.is_empty() {
            let field = format!("spec.jwtRules[{at}].spaceDelimitedClaims");
            let message = "claims with spaces are lists to policies only where they are scope or permission";
            let error = object.error("UnsupportedValue", &field, message);
            note.diagnostics.push(error.hint("remove the field"));
        }
        rules.push(Arc::new(translated(rule, keys)));
    }
    if note.conditions.is_empty() {
        note.condition("Accepted", true, "Accepted", "");
    }
    Authentication { key: object.key(), listeners, rules }
}

fn translated(rule: &JwtRuleSpec, keys: Jwks) -> JwtRule {
    let lower = |name: &str| Arc::<str>::from(name.to_ascii_lowercase());
    let headers = rule.from_headers.iter().map(|h| TokenPlace::Header(lower(&h.name), (*h.prefix).into()));
    let params = rule.from_params.iter().map(|name| TokenPlace::Param((**name).into()));
    let cookies = rule.from_cookies.iter().map(|name| TokenPlace::Cookie((**name).into()));
    let mut from: Vec<TokenPlace> = headers.chain(params).chain(cookies).collect();
    if from.is_empty() {
        from.push(TokenPlace::Header("authorization".into(), "Bearer ".into()));
        from.push(TokenPlace::Param("access_token".into()));
    }
    let claims = rule.output_claim_to_headers.iter();
    JwtRule {
        issuer: (*rule.issuer).into(),
        audiences: rule.audiences.iter().map(|audience| (**audience).into()).collect(),
        keys,
        from,
        forward: rule.forward_original_token,
        payload_header: rule.output_payload_to_header.as_deref().map(lower),
        claim_headers: claims
            .map(|output| (lower(&output.header), output.claim.split('.').map(Arc::from).collect()))
            .collect(),
        clock_skew: CLOCK_SKEW,
    }
}

/// Where the keys are. With a problem they are none that any token can pass.
fn keys(rule: &JwtRuleSpec) -> (Jwks, Option<Problem>) {
    if let Some(document) = &rule.jwks {
        return (Jwks::Inline((**document).into()), not_keys(document));
    }
    let (field, discover, uri) = match &rule.jwks_uri {
        Some(uri) => ("jwksUri", false, uri),
        None => ("issuer", true, &rule.issuer),
    };
    match not_a_url(uri) {
        None => {
            let timeout = rule.timeout.map_or(TIMEOUT, |timeout| timeout.0);
            let remote = RemoteJwks { uri: (**uri).into(), discover, refresh: REFRESH, timeout, roots: None };
            (Jwks::Remote(Arc::new(remote)), None)
        }
        Some(why) if discover => {
            let message = format!("without jwksUri and jwks the issuer is asked for its keys, but {why}");
            (Jwks::Inline("".into()), Some((field, message, "write jwksUri or jwks")))
        }
        Some(why) => (Jwks::Inline("".into()), Some((field, why, "write a URL: https://host/path"))),
    }
}

/// Whether a key can be used is known when it is read; here only that the text is what it should be.
fn not_keys(document: &str) -> Option<Problem> {
    let list = serde_json::from_str::<serde_json::Value>(document);
    let why = match &list {
        Err(error) => format!("it is not JSON: {error}"),
        Ok(list) => match list.get("keys").map(serde_json::Value::as_array) {
            Some(Some(keys)) if keys.is_empty() => "it has no key".to_owned(),
            Some(Some(_)) => return None,
            _ => "it has no list \"keys\"".to_owned(),
        },
    };
    Some(("jwks", format!("this is not a set of keys: {why}"), "write a JSON Web Key Set (RFC 7517)"))
}

/// Why a text is no URL that keys are fetched from.
fn not_a_url(text: &str) -> Option<String> {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return Some(format!("\"{text}\" does not begin with https:// or http://"));
    };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let odd = |byte: u8| byte <= b' ' || byte >= 0x7f || b"\"<>\\^`{|}#".contains(&byte);
    if host.is_empty() || text.len() > 2048 || host.contains('@') || text.bytes().any(odd) {
        return Some(format!("\"{text}\" is not a URL without user and fragment"));
    }
    None
}
