//! `EdgePolicy` of the group `fieldgate.dev/v1alpha1`: what no request may be, and which fields pass in either direction.

use serde::Deserialize;

use super::check::{Checks, is_token};
use super::fieldgate::TargetRef;
use super::guard::check_targets;
use crate::diagnostic::reason;

/// What no request may be, and which fields pass in either direction.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgePolicySpec {
    /// Gateways, listeners, routes, rules.
    pub target_refs: Vec<TargetRef>,
    /// Which clients may come.
    pub addresses: Option<AddressesSpec>,
    /// How much may come.
    pub limits: Option<SizesSpec>,
    /// Methods that are taken; all without it.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Request headers that go upstream; all without it.
    pub request_headers: Option<RequestHeadersSpec>,
    /// Headers that responses get unless they have them; none without it.
    pub security_headers: Option<SecurityHeadersSpec>,
    /// What becomes of paths. Only for what is attached to Gateways.
    pub paths: Option<PathsSpec>,
    /// What becomes of the port that a request's host names; `Keep`.
    #[serde(default)]
    pub host_port: HostPort,
}

/// Which clients may come, by their addresses (after trusted X-Forwarded-For).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressesSpec {
    /// Those that may; all without this and `allowFrom`.
    pub allow: Option<Vec<String>>,
    /// More of them.
    pub allow_from: Vec<AddressListRef>,
    /// Those that may not, though they are allowed.
    pub deny: Vec<String>,
    /// More of them.
    pub deny_from: Vec<AddressListRef>,
}

/// A list of addresses in a ConfigMap of the policy's namespace: one prefix a line, `#` begins a comment.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressListRef {
    /// The ConfigMap.
    pub config_map: String,
    /// The key in it.
    pub key: String,
}

/// How much may come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SizesSpec {
    /// Bytes of a body.
    pub body_bytes: Option<u64>,
    /// Bytes of path and query.
    pub target_bytes: Option<u32>,
}

/// Request headers that go upstream.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestHeadersSpec {
    /// Their names: `x-user`, `x-app-*`, `*-id`.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Whether those that most applications need are among them; true.
    pub defaults: Option<bool>,
}

/// Headers that tell browsers to be careful.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityHeadersSpec {
    /// `x-frame-options`; `SAMEORIGIN`. Empty leaves it out, as with all below.
    pub frame_options: Option<String>,
    /// `referrer-policy`; `strict-origin-when-cross-origin`.
    pub referrer_policy: Option<String>,
    /// `strict-transport-security`, sent by TLS only; `max-age=31536000`.
    pub strict_transport_security: Option<String>,
    /// `content-security-policy`; none.
    pub content_security_policy: Option<String>,
    /// `permissions-policy`; none.
    pub permissions_policy: Option<String>,
}

/// What becomes of paths, in Envoy's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathsSpec {
    /// Whether dot segments are removed and needless escapes decoded; true.
    pub normalize: Option<bool>,
    /// Whether `//` becomes `/`; false.
    #[serde(default)]
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C`; `KeepUnchanged`.
    #[serde(default)]
    pub escaped_slashes: EscapedSlashesSpec,
    /// Whether the digits of escapes are put into upper case; false.
    #[serde(default)]
    pub upper_case_escapes: bool,
}

/// What becomes of `%2F` and `%5C`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum EscapedSlashesSpec {
    #[default]
    KeepUnchanged,
    RejectRequest,
    UnescapeAndForward,
    UnescapeAndRedirect,
}

/// What becomes of the port that a request's host names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum HostPort {
    /// It stays.
    #[default]
    Keep,
    /// It is taken off where it is the one that the request came to.
    StripMatching,
    /// It is taken off.
    Strip,
}

/// Prefixes that are written in a policy itself.
const MAX_INLINE: usize = 10_000;
/// Lists that a policy refers to.
const MAX_LISTS: usize = 16;
/// Methods, and names of headers.
const MAX_NAMES: usize = 256;

pub(super) fn check_edge_policy(spec: &EdgePolicySpec, checks: &mut Checks<'_>) {
    check_targets(&spec.target_refs, "EdgePolicy", checks);
    if let Some(addresses) = &spec.addresses {
        check_addresses(addresses, checks);
    }
    checks.count("spec.methods", spec.methods.len(), MAX_NAMES);
    for (i, method) in spec.methods.iter().enumerate() {
        checks.token(&format!("spec.methods[{i}]"), method, "a method");
    }
    if let Some(limits) = &spec.limits
        && limits.target_bytes == Some(0)
    {
        let hint = Some("remove the field for no limit");
        checks.error("spec.limits.targetBytes", reason::OUT_OF_RANGE, "expected more than 0", hint);
    }
    let names = spec.request_headers.iter().flat_map(|h| &h.allow);
    for (i, name) in names.enumerate() {
        let bare = name.strip_suffix('*').or_else(|| name.strip_prefix('*')).unwrap_or(name);
        if !bare.is_empty() && !is_token(bare) {
            let message = format!("\"{name}\" is not the name of a header");
            let hint = Some("such as x-user, x-app-* or *-id");
            checks.error(&format!("spec.requestHeaders.allow[{i}]"), reason::INVALID_VALUE, message, hint);
        }
    }
    checks.count(
        "spec.requestHeaders.allow",
        spec.request_headers.as_ref().map_or(0, |h| h.allow.len()),
        MAX_NAMES,
    );
    if let Some(headers) = &spec.security_headers {
        for (name, value) in headers.values() {
            if value.bytes().any(|b| b.is_ascii_control()) {
                let message = "a header value cannot hold control characters";
                checks.error(&format!("spec.securityHeaders.{name}"), reason::INVALID_VALUE, message, None);
            }
        }
    }
    if let (Some(_), Some(i)) = (spec.paths, spec.target_refs.iter().position(|t| t.kind != "Gateway")) {
        let message = "a route is found by its path, which a policy of the route is too late to change";
        let hint = Some("a policy of its own for paths, attached to the Gateway");
        checks.error(&format!("spec.targetRefs[{i}]"), reason::CONFLICTING_FIELDS, message, hint);
    }
}

fn check_addresses(addresses: &AddressesSpec, checks: &mut Checks<'_>) {
    let at = "spec.addresses";
    checks.count(format_args!("{at}.allow"), addresses.allow.as_ref().map_or(0, Vec::len), MAX_INLINE);
    checks.count(format_args!("{at}.deny"), addresses.deny.len(), MAX_INLINE);
    checks.count(format_args!("{at}.allowFrom"), addresses.allow_from.len(), MAX_LISTS);
    checks.count(format_args!("{at}.denyFrom"), addresses.deny_from.len(), MAX_LISTS);
}

impl SecurityHeadersSpec {
    fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("frameOptions", &self.frame_options),
            ("referrerPolicy", &self.referrer_policy),
            ("strictTransportSecurity", &self.strict_transport_security),
            ("contentSecurityPolicy", &self.content_security_policy),
            ("permissionsPolicy", &self.permissions_policy),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}
