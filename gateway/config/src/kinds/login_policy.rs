//! `LoginPolicy` of the group `fieldgate.dev/v1alpha1`: how users prove who they are.

use serde::Deserialize;

use super::check::Checks;
use super::duration::Duration;
use super::fieldgate::TargetRef;
use super::guard::{ServiceRef, check_service, check_targets};
use crate::diagnostic::reason;

/// How users prove who they are. At least one of `apiKeys`, `basic` and `oidc` is set; they are tried in that order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoginPolicySpec {
    /// Gateways, listeners, routes, rules.
    pub target_refs: Vec<TargetRef>,
    /// By a key.
    pub api_keys: Option<ApiKeysSpec>,
    /// By a password (RFC 7617).
    pub basic: Option<BasicSpec>,
    /// In a browser, at an OpenID provider.
    pub oidc: Option<OidcSpec>,
    /// The request header that tells the upstream who it is. One that a client sends is taken off.
    pub user_header: Option<String>,
}

/// A Secret of the policy's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SecretRef {
    /// Its name.
    pub name: String,
    /// The key in it, where one is meant.
    pub key: Option<String>,
}

/// By a key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeysSpec {
    /// Headers in which a key may be; `x-api-key` if none of the three lists has any.
    #[serde(default)]
    pub headers: Vec<String>,
    /// Query parameters in which a key may be.
    #[serde(default)]
    pub params: Vec<String>,
    /// Cookies in which a key may be.
    #[serde(default)]
    pub cookies: Vec<String>,
    /// One entry for each client: its name, and its key.
    pub secret_ref: SecretRef,
    /// Whether the key goes upstream; false.
    #[serde(default)]
    pub forward: bool,
}

/// By a password.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BasicSpec {
    /// What browsers show; the policy's name.
    pub realm: Option<String>,
    /// An htpasswd file, under the key `.htpasswd` without another: bcrypt, argon2 or `{SHA}`.
    pub secret_ref: SecretRef,
    /// Whether the header goes upstream; false.
    #[serde(default)]
    pub forward: bool,
}

/// In a browser, at an OpenID provider: authorization code with PKCE.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OidcSpec {
    /// As its tokens name it.
    pub issuer: String,
    /// Where browsers log in.
    pub authorization_endpoint: String,
    /// Where codes are exchanged.
    pub token_endpoint: String,
    /// What answers at the token endpoint.
    pub backend_ref: ServiceRef,
    /// Where browsers log out at the provider.
    pub end_session_endpoint: Option<String>,
    /// Where its keys are; without this and `jwks`, its discovery document says so.
    pub jwks_uri: Option<String>,
    /// Its keys.
    pub jwks: Option<String>,
    /// Our name there.
    pub client_id: String,
    /// Our secret there, under the key `client-secret` without another; without this we are a public client.
    pub client_secret_ref: Option<SecretRef>,
    /// Scopes beside `openid`.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Under the key `current` 32 bytes or more, with which cookies are encrypted; under `previous` those before.
    pub cookie_secret_ref: SecretRef,
    /// The name of cookies; `fieldgate-session`.
    pub cookie_name: Option<String>,
    /// Hosts that share the session; the host alone without it.
    pub cookie_domain: Option<String>,
    /// Where the provider sends browsers back; `/oauth2/callback`.
    pub callback_path: Option<String>,
    /// What ends a session; `/oauth2/logout`.
    pub logout_path: Option<String>,
    /// Where a browser goes then; `/`.
    pub after_logout: Option<String>,
    /// How long a session lives without being refreshed; 1h.
    pub session: Option<Duration>,
    /// The claim that names the user; `sub`.
    pub user_claim: Option<String>,
    /// Scheme and host that browsers see, where that is not what requests come with.
    pub external_url: Option<String>,
    /// Whether the access token goes upstream as a bearer token; false.
    #[serde(default)]
    pub forward_access_token: bool,
    /// Paths that need no login: as they are, `/public/*`, or a template.
    #[serde(default)]
    pub pass_through: Vec<String>,
}

/// Places of keys, scopes, paths.
const MAX_NAMES: usize = 64;
/// Before browsers and providers forget.
const MAX_SESSION: std::time::Duration = std::time::Duration::from_hours(24 * 30);

pub(super) fn check_login_policy(spec: &LoginPolicySpec, checks: &mut Checks<'_>) {
    check_targets(&spec.target_refs, "LoginPolicy", checks);
    if spec.api_keys.is_none() && spec.basic.is_none() && spec.oidc.is_none() {
        let message = "none of apiKeys, basic and oidc is set";
        checks.error("spec", reason::MISSING_FIELD, message, Some("set one of them"));
    }
    if let Some(header) = &spec.user_header {
        check_header("spec.userHeader", header, checks);
    }
    if let Some(keys) = &spec.api_keys {
        for (list, names) in
            [("headers", &keys.headers), ("params", &keys.params), ("cookies", &keys.cookies)]
        {
            checks.count(format_args!("spec.apiKeys.{list}"), names.len(), MAX_NAMES);
        }
        for (i, name) in keys.headers.iter().enumerate() {
            check_header(&format!("spec.apiKeys.headers[{i}]"), name, checks);
        }
        for (i, name) in keys.cookies.iter().enumerate() {
            checks.token(&format!("spec.apiKeys.cookies[{i}]"), name, "the name of a cookie");
        }
    }
    if let Some(oidc) = &spec.oidc {
        check_oidc(oidc, checks);
    }
}

fn check_header(field: &str, name: &str, checks: &mut Checks<'_>) {
    checks.token(field, name, "the name of a header");
    if matches!(
        name.to_ascii_lowercase().as_str(),
        "host" | "content-length" | "transfer-encoding" | "connection" | "cookie" | "te" | "upgrade"
    ) {
        let message = format!("the header \"{name}\" is the protocol's own");
        checks.error(field, reason::INVALID_VALUE, message, Some("such as x-user"));
    }
}

fn check_oidc(oidc: &OidcSpec, checks: &mut Checks<'_>) {
    let at = "spec.oidc";
    check_service(&oidc.backend_ref, &format!("{at}.backendRef"), checks);
    let urls = [
        ("issuer", Some(&oidc.issuer)),
        ("authorizationEndpoint", Some(&oidc.authorization_endpoint)),
        ("tokenEndpoint", Some(&oidc.token_endpoint)),
        ("endSessionEndpoint", oidc.end_session_endpoint.as_ref()),
        ("jwksUri", oidc.jwks_uri.as_ref()),
        ("externalUrl", oidc.external_url.as_ref()),
    ];
    for (field, url) in urls.into_iter().filter_map(|(field, url)| Some((field, url?))) {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/'))
            || !url.bytes().all(|b| b.is_ascii_graphic())
            || url.contains('#')
        {
            let message = format!("\"{url}\" is not a URL");
            checks.error(
                &format!("{at}.{field}"),
                reason::INVALID_VALUE,
                message,
                Some("https://id.example/..."),
            );
        }
    }
    if oidc.jwks.is_some() && oidc.jwks_uri.is_some() {
        let hint = Some("remove one of the two");
        checks.error(
            &format!("{at}.jwks"),
            reason::CONFLICTING_FIELDS,
            "jwksUri says where the keys are",
            hint,
        );
    }
    if let Some(url) = &oidc.external_url
        && url.trim_end_matches('/').splitn(4, '/').count() > 3
    {
        let message = "scheme and host are all there is to it";
        checks.error(
            &format!("{at}.externalUrl"),
            reason::INVALID_VALUE,
            message,
            Some("https://shop.example"),
        );
    }
    let paths = [
        ("callbackPath", oidc.callback_path.as_ref()),
        ("logoutPath", oidc.logout_path.as_ref()),
        ("afterLogout", oidc.after_logout.as_ref()),
    ];
    for (field, path) in paths.into_iter().filter_map(|(field, path)| Some((field, path?))) {
        // Two slashes begin the name of another host.
        let plain = path.bytes().all(|b| b.is_ascii_graphic() && !b"\\#".contains(&b));
        if !path.starts_with('/') || path.starts_with("//") || !plain {
            let message = format!("\"{path}\" is not a path of this host");
            checks.error(
                &format!("{at}.{field}"),
                reason::INVALID_VALUE,
                message,
                Some("it begins with one /"),
            );
        }
    }
    if let Some(name) = &oidc.cookie_name {
        checks.token(&format!("{at}.cookieName"), name, "the name of a cookie");
    }
    if let Some(domain) = &oidc.cookie_domain {
        checks.hostname(&format!("{at}.cookieDomain"), domain, false);
    }
    checks.positive(&format!("{at}.session"), oidc.session);
    if oidc.session.is_some_and(|session| session.0 > MAX_SESSION) {
        checks.error(&format!("{at}.session"), reason::OUT_OF_RANGE, "expected at most 30 days", None);
    }
    checks.count(format_args!("{at}.scopes"), oidc.scopes.len(), MAX_NAMES);
    checks.count(format_args!("{at}.passThrough"), oidc.pass_through.len(), MAX_NAMES);
}
