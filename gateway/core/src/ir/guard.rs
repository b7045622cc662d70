//! Guards: what may refuse a request, or ask somebody about it, before it is forwarded. Each is an object of its own, to
//! which listeners and rules refer, so that one that changes is changed once.

use std::sync::Arc;
use std::time::Duration;

use super::{ObjectKey, PoolKey, StringMatch};
use crate::AddressSet;
use crate::path::PathOptions;

/// A guard's name where it is used. `id` is made of the key once, so that a request looks it up by a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardRef {
    /// The object.
    pub key: ObjectKey,
    /// See [`GuardRef::new`].
    pub id: u64,
}

impl GuardRef {
    /// FNV-1a of the key: the same in every process.
    pub fn new(key: ObjectKey) -> Self {
        let parts = [key.kind.as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()];
        let bytes = parts.into_iter().flat_map(|part| part.iter().chain(&[0xff]));
        let id = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { key, id }
    }
}

/// A guard.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Its name.
    pub key: ObjectKey,
    /// What it does.
    pub kind: GuardKind,
}

/// What guards there are, in the order in which they are asked where several apply. JWT is verified after `Login` and
/// authorization policies are asked after `ExtAuthz`.
#[derive(Clone, Debug, PartialEq)]
pub enum GuardKind {
    /// Lists of addresses, sizes, headers.
    Edge(Box<EdgeRules>),
    /// Users log in: API keys, passwords, OIDC.
    Login(Box<Login>),
    /// Another service decides.
    ExtAuthz(Box<ExtAuthz>),
    /// Only so many requests in a time.
    RateLimit(Box<RateLimit>),
}

/// What no request of a listener or route may be. Empty lists and `None` ask nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeRules {
    /// Clients (after trusted X-Forwarded-For) that may come; `None` lets all.
    pub allow: Option<Arc<AddressSet>>,
    /// Clients that may not, though `allow` has them.
    pub deny: Arc<AddressSet>,
    /// Bytes of a request's body. More: 413.
    pub max_body: Option<u64>,
    /// Bytes of path and query. More: 414.
    pub max_target: Option<u32>,
    /// Request headers that go upstream, beside those that the protocol and the gateway need; `None` lets all. Lower case.
    pub request_headers: Option<Arc<[StringMatch]>>,
    /// Methods that are taken; empty takes all. Others: 405.
    pub methods: Vec<Arc<str>>,
    /// Fields that a response gets unless it has them; names in lower case.
    pub response_headers: Vec<(Arc<str>, Arc<str>)>,
    /// `strict-transport-security`, for those who came by TLS.
    pub transport_security: Option<Arc<str>>,
    /// What becomes of paths; only before routing. `None` leaves the canonical form.
    pub paths: Option<PathOptions>,
    /// What becomes of the port that a request's host names.
    pub strip_port: StripPort,
}

/// What becomes of the port that a request's host names (Envoy's `strip_matching_host_port`, `strip_any_host_port`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StripPort {
    /// It stays.
    #[default]
    No,
    /// It is taken off where it is the port that the request came to.
    Matching,
    /// It is taken off.
    Any,
}

/// How users prove who they are. Those given are tried in this order: API key, basic, OIDC.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Login {
    /// Keys.
    pub api_keys: Option<ApiKeys>,
    /// Passwords.
    pub basic: Option<BasicAuth>,
    /// A browser's login at an OpenID provider.
    pub oidc: Option<Arc<Oidc>>,
    /// The request header, in lower case, that tells the upstream who it is. One that the client sent is taken off.
    pub user_header: Option<Arc<str>>,
}

/// A text that must not reach a log.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub Arc<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// API keys.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKeys {
    /// Headers in which a key may be, in lower case.
    pub headers: Vec<Arc<str>>,
    /// Query parameters in which a key may be.
    pub params: Vec<Arc<str>>,
    /// Cookies in which a key may be.
    pub cookies: Vec<Arc<str>>,
    /// Client names with their keys.
    pub keys: Vec<(Arc<str>, Secret)>,
    /// Whether the key is taken off before the request goes on.
    pub strip: bool,
}

/// Basic authentication (RFC 7617).
#[derive(Clone, Debug, PartialEq)]
pub struct BasicAuth {
    /// For `WWW-Authenticate`.
    pub realm: Arc<str>,
    /// Lines of an htpasswd file: `user:hash`, with `{SHA}`, bcrypt, or argon2 hashes.
    pub users: Vec<(Arc<str>, Secret)>,
    /// Whether the header is taken off before the request goes on.
    pub strip: bool,
}

/// OpenID Connect: authorization code with PKCE.
#[derive(Clone, Debug, PartialEq)]
pub struct Oidc {
    /// The issuer, as its tokens name it.
    pub issuer: Arc<str>,
    /// Where browsers are sent.
    pub authorization_endpoint: Arc<str>,
    /// Where codes are exchanged: the URL, and the pool that answers there.
    pub token_endpoint: (Arc<str>, Arc<PoolKey>),
    /// Where browsers are sent to end the provider's session.
    pub end_session_endpoint: Option<Arc<str>>,
    /// The keys of ID tokens.
    pub jwks: Jwks,
    /// Our name there.
    pub client_id: Arc<str>,
    /// Our secret there.
    pub client_secret: Secret,
    /// Scopes beside `openid`.
    pub scopes: Vec<Arc<str>>,
    /// The path to which the provider sends browsers back.
    pub callback_path: Arc<str>,
    /// The path that ends a session.
    pub logout_path: Arc<str>,
    /// Where a browser goes after that.
    pub after_logout: Arc<str>,
    /// What cookies are encrypted with: the first; those that were encrypted with another are still read. Each has 32
    /// bytes or more.
    pub cookie_secrets: Vec<Secret>,
    /// The name of cookies.
    pub cookie_name: Arc<str>,
    /// Their domain; `None` is the host alone.
    pub cookie_domain: Option<Arc<str>>,
    /// How long a session lives without being refreshed.
    pub session: Duration,
    /// The claim of the ID token that names the user.
    pub user_claim: Arc<str>,
    /// Scheme and host under which browsers know us, such as `https://shop.example`, where those of a request are not
    /// what browsers see; `None` takes those of the request.
    pub external_url: Option<Arc<str>>,
    /// Whether the access token goes upstream as `Authorization: Bearer`.
    pub forward_access_token: bool,
    /// Paths that need no login.
    pub pass_through: Vec<StringMatch>,
}

/// Where verification keys come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Jwks {
    /// The document itself.
    Inline(Arc<str>),
    /// Fetched, and fetched again.
    Remote(Arc<RemoteJwks>),
}

/// Keys that are fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteJwks {
    /// `https://issuer.example/keys`; for an OpenID issuer without a `jwksUri`, its discovery document is read first.
    pub uri: Arc<str>,
    /// Whether `uri` is the issuer, whose discovery document names the keys.
    pub discover: bool,
    /// How long keys are good without being fetched again.
    pub refresh: Duration,
    /// How long a fetch may take.
    pub timeout: Duration,
    /// Authorities to believe (PEM); `None` believes the operating system's.
    pub roots: Option<Arc<[u8]>>,
}

/// External authorization (Envoy's `ext_authz`, Istio's extension providers, Gateway API `ExternalAuth`).
#[derive(Clone, Debug, PartialEq)]
pub struct ExtAuthz {
    /// Where it is asked.
    pub pool: Arc<PoolKey>,
    /// How.
    pub protocol: ExtAuthzProtocol,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether a request passes when nobody answers.
    pub fail_open: bool,
    /// What the client hears when nobody answers and it may not pass.
    pub status_on_error: u16,
    /// Bytes of the body that are sent along; 0 sends none.
    pub body_limit: u32,
    /// Whether a longer body is sent in part; else it is refused with 413.
    pub partial_body: bool,
    /// Whether a body is sent as bytes (gRPC `raw_body`).
    pub raw_body: bool,
    /// Request headers that are sent along, in lower case patterns; for gRPC empty sends all.
    pub request_headers: Vec<StringMatch>,
    /// What else the service is told (gRPC `context_extensions`).
    pub context: Vec<(Arc<str>, Arc<str>)>,
    /// Whether the client's certificate is sent along.
    pub peer_certificate: bool,
    /// Request headers that only the authorizer may set: those of the client do not go upstream, whatever is answered.
    pub own_headers: Vec<StringMatch>,
    /// Whether a request that passes for want of an answer says so upstream (`x-envoy-auth-failure-mode-allowed`).
    pub fail_open_header: bool,
    /// Routes that it treats in another way, by the beginning of their rules' names: `default/shop`, `grpc:default/api`, or
    /// a whole name: `default/shop/checkout`.
    pub routes: Vec<(Arc<str>, ExtAuthzRoute)>,
}

/// How a route differs.
#[derive(Clone, Debug, PartialEq)]
pub enum ExtAuthzRoute {
    /// Nobody is asked about its requests.
    Off,
    /// What the service is told beside (or over) [`ExtAuthz::context`].
    Context(Vec<(Arc<str>, Arc<str>)>),
}

/// How an external authorizer is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum ExtAuthzProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`.
    Grpc {
        /// The authority; `None` is the pool's host.
        authority: Option<Arc<str>>,
    },
    /// A request like the client's, without its body.
    Http {
        /// Put before the path.
        path_prefix: Arc<str>,
        /// The host that the authorizer sees; `None` is the client's.
        authority: Option<Arc<str>>,
        /// Headers that are added.
        add: Vec<(Arc<str>, Arc<str>)>,
        /// Of an answer that lets the request pass: headers that go upstream, over the client's.
        upstream_headers: Vec<StringMatch>,
        /// Of an answer that lets the request pass: headers that go to the client.
        client_headers_on_success: Vec<StringMatch>,
        /// Of a refusal: headers that go to the client; empty sends all but those of the connection.
        client_headers_on_denied: Vec<StringMatch>,
    },
}

/// A rate limit.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// Each is counted by itself; a request must fit all of them.
    pub limits: Vec<Limit>,
    /// The service that counts for many gateways.
    pub global: Option<Arc<GlobalLimit>>,
    /// Counted and reported, but nothing is refused.
    pub shadow: bool,
    /// Whether `x-ratelimit-limit`, `-remaining`, `-reset` are sent (IETF draft 03, as Envoy's).
    pub headers: bool,
    /// What a refused client hears.
    pub status: u16,
    /// Whether a refused gRPC call ends with RESOURCE_EXHAUSTED; else with UNAVAILABLE, which 429 is to gRPC.
    pub resource_exhausted: bool,
}

/// A local limit: a bucket per value of `by`.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Its name in metrics.
    pub name: Arc<str>,
    /// Only requests that fit all of these count; empty counts all.
    pub when: Vec<LimitCondition>,
    /// What tells buckets apart; empty is one bucket for all.
    pub by: Vec<LimitKey>,
    /// Tokens that a full bucket has: what may come at once.
    pub burst: u32,
    /// Tokens that are added each `interval`.
    pub tokens: u32,
    /// See `tokens`.
    pub interval: Duration,
    /// Buckets that are kept at most; beyond them the fullest is forgotten, which is mostly one long unused.
    pub max_keys: u32,
}

/// What a request must be like to count.
#[derive(Clone, Debug, PartialEq)]
pub enum LimitCondition {
    /// A header, name in lower case.
    Header(Arc<str>, StringMatch),
    /// The path without its query.
    Path(StringMatch),
    /// The method.
    Method(Arc<str>),
}

/// What tells requests apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// A header's value, name in lower case. A request without it does not count.
    Header(Arc<str>),
    /// The client's address after trusted X-Forwarded-For; its prefix of so many bits, for IPv4 and IPv6.
    Client(u8, u8),
    /// The identity of the client's certificate.
    Principal,
    /// The user of a token (`iss/sub`) or login.
    User,
    /// A claim of a verified token.
    Claim(Vec<Arc<str>>),
    /// The route.
    Route,
    /// The host.
    Host,
    /// The path without its query.
    Path,
    /// The method.
    Method,
}

/// Envoy's rate limit service (`envoy.service.ratelimit.v3.RateLimitService`).
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalLimit {
    /// Where it is asked.
    pub pool: Arc<PoolKey>,
    /// The domain of its configuration.
    pub domain: Arc<str>,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether requests pass when it does not answer.
    pub fail_open: bool,
    /// Descriptors, each a list of entries; one that cannot be made of a request is left out.
    pub descriptors: Vec<Vec<DescriptorEntry>>,
}

/// An entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorEntry {
    /// Always the same.
    Generic(Arc<str>, Arc<str>),
    /// The key, and what its value is.
    Of(Arc<str>, LimitKey),
}
