//! Istio's `RequestAuthentication`: whose tokens are taken.

use serde::Deserialize;

use super::check::{Checks, is_token};
use super::duration::GoDuration;
use super::istio::{PolicySelector, PolicyTargetRef, check_scope};
use crate::diagnostic::reason;

/// Whose tokens are taken.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAuthenticationSpec {
    /// The workloads, by label.
    pub selector: Option<PolicySelector>,
    /// The older form of `targetRefs`.
    pub target_ref: Option<PolicyTargetRef>,
    /// What it is attached to.
    #[serde(default)]
    pub target_refs: Vec<PolicyTargetRef>,
    /// Issuers.
    #[serde(default)]
    pub jwt_rules: Vec<JwtRuleSpec>,
}

/// An issuer.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRuleSpec {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// Any one must be among a token's `aud`.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Where its keys are fetched; without it and without `jwks`, where the issuer's discovery document says.
    pub jwks_uri: Option<String>,
    /// Its keys, written out.
    pub jwks: Option<String>,
    /// Headers that have tokens.
    #[serde(default)]
    pub from_headers: Vec<JwtHeader>,
    /// Query parameters that have tokens.
    #[serde(default)]
    pub from_params: Vec<String>,
    /// Cookies that have tokens.
    #[serde(default)]
    pub from_cookies: Vec<String>,
    /// The header in which the payload goes upstream.
    pub output_payload_to_header: Option<String>,
    /// Whether the token goes upstream.
    #[serde(default)]
    pub forward_original_token: bool,
    /// Claims that go upstream as headers.
    #[serde(default)]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
    /// How long a fetch of keys may take; 5s.
    pub timeout: Option<GoDuration>,
    /// Claims that policies see as lists.
    #[serde(default)]
    pub space_delimited_claims: Vec<String>,
}

/// A header that has tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct JwtHeader {
    /// Its name.
    pub name: String,
    /// What stands before the token.
    #[serde(default)]
    pub prefix: String,
}

/// A claim that goes upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct ClaimToHeader {
    /// The header.
    pub header: String,
    /// The claim; dots lead into objects.
    pub claim: String,
}

/// Headers that mean something to the gateway or to HTTP itself: a token's payload or claim must not stand there.
const RESERVED: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "expect", "cookie"];

pub(super) fn check_request_authentication(spec: &RequestAuthenticationSpec, checks: &mut Checks<'_>) {
    check_scope(spec.selector.is_some(), spec.target_ref.is_some(), &spec.target_refs, checks);
    for (at, rule) in spec.jwt_rules.iter().enumerate() {
        check_rule(rule, &format!("spec.jwtRules[{at}]"), checks);
    }
}

fn check_rule(rule: &JwtRuleSpec, place: &str, checks: &mut Checks<'_>) {
    if rule.issuer.is_empty() {
        let hint = Some("the iss of the tokens, as the issuer writes it");
        checks.error(&format!("{place}.issuer"), reason::INVALID_VALUE, "an issuer has a name", hint);
    }
    if rule.jwks.is_some() && rule.jwks_uri.is_some() {
        checks.error(
            &format!("{place}.jwks"),
            reason::CONFLICTING_FIELDS,
            "jwks and jwksUri cannot be used together",
            Some("remove one of the two"),
        );
    }
    if rule.timeout.is_some_and(|timeout| timeout.0.is_zero()) {
        let hint = Some("remove the field for its default");
        checks.error(&format!("{place}.timeout"), reason::OUT_OF_RANGE, "expected more than 0", hint);
    }
    for (i, header) in rule.from_headers.iter().enumerate() {
        checks.token(&format!("{place}.fromHeaders[{i}].name"), &header.name, "a header's name");
    }
    for (i, cookie) in rule.from_cookies.iter().enumerate() {
        checks.token(&format!("{place}.fromCookies[{i}]"), cookie, "a cookie's name");
    }
    let lists = [
        ("audiences", &rule.audiences),
        ("fromParams", &rule.from_params),
        ("spaceDelimitedClaims", &rule.space_delimited_claims),
    ];
    for (field, list) in lists {
        for i in (0..list.len()).filter(|i| list[*i].is_empty()) {
            let message = "an empty text is not allowed here";
            checks.error(&format!("{place}.{field}[{i}]"), reason::INVALID_VALUE, message, None);
        }
    }
    if let Some(header) = &rule.output_payload_to_header {
        check_output(&format!("{place}.outputPayloadToHeader"), header, checks);
    }
    for (i, output) in rule.output_claim_to_headers.iter().enumerate() {
        let place = format!("{place}.outputClaimToHeaders[{i}]");
        check_output(&format!("{place}.header"), &output.header, checks);
        if output.claim.split('.').any(str::is_empty) {
            let message = format!("\"{}\" is not the path of a claim", output.claim);
            let hint = Some("names of claims with a dot between them");
            checks.error(&format!("{place}.claim"), reason::INVALID_VALUE, message, hint);
        }
    }
}

fn check_output(field: &str, header: &str, checks: &mut Checks<'_>) {
    checks.token(field, header, "a header's name");
    if is_token(header) && RESERVED.iter().any(|reserved| header.eq_ignore_ascii_case(reserved)) {
        let message = format!("{header} is a header that HTTP needs for itself");
        checks.error(field, reason::INVALID_VALUE, message, Some("choose a name beginning with x-"));
    }
}
