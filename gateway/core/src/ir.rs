//! The intermediate representation: what a configuration means, whatever language it came in.
//!
//! Sources (a directory, a cluster, xDS) are translated to this; `compile` turns it into a [`crate::Snapshot`]. Everything
//! is immutable and shared by `Arc`, and the big tables are persistent maps, so that a changed route costs what a route
//! costs. Equality is by value: an equal `Config` publishes nothing. There is no IO here and no Kubernetes vocabulary
//! beyond names.
//!
//! There may be a hundred thousand rules, so what each of them holds is kept small: lists that are mostly empty are one
//! word, and what is rare or shared is behind a pointer.

mod authentication;
mod guard;
mod policy;
mod pool;
mod tls;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use ipnet::IpNet;
use thin_vec::ThinVec;

pub use authentication::*;
pub use guard::*;
pub use policy::*;
pub use pool::*;
pub use tls::*;
pub use traffic::*;

use crate::identity::PeerIdentity;

/// A namespaced object's name, with its kind where several kinds share a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// `HTTPRoute`, `Pool`, `Service`, ...
    pub kind: &'static str,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The whole configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Listeners by key.
    pub listeners: OrdMap<ListenerKey, Arc<Listener>>,
    /// HTTPRoute and GRPCRoute objects by name.
    pub routes: OrdMap<ObjectKey, Arc<Route>>,
    /// Pools by key.
    pub pools: OrdMap<PoolKey, Arc<Pool>>,
    /// Authorization policies by name.
    pub policies: OrdMap<ObjectKey, Arc<Policy>>,
    /// Who may issue tokens, by name.
    pub authentications: OrdMap<ObjectKey, Arc<Authentication>>,
    /// Guards by name.
    pub guards: OrdMap<ObjectKey, Arc<Guard>>,
}

/// Which entries may differ from the configuration compiled before. A source that does not know says [`Touched::All`].
/// Naming too much costs time; naming too little is a bug of the source (a property test guards it).
#[derive(Clone, Debug, PartialEq)]
pub enum Touched {
    /// Compare everything.
    All,
    /// Only routes with these keys; any change of listeners, pools, policies, authentications
    /// and guards is found by comparison (there are few).
    Routes(Vec<ObjectKey>),
}

impl Touched {
    /// What either names.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Routes(mut keys), Self::Routes(more)) => {
                keys.extend(more);
                Self::Routes(keys)
            }
            _ => Self::All,
        }
    }
}

/// A Gateway's listener: `(gateway namespace, gateway name, section name)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    /// The Gateway's namespace.
    pub namespace: Arc<str>,
    /// The Gateway's name.
    pub gateway: Arc<str>,
    /// The listener's name in the Gateway.
    pub name: Arc<str>,
}

impl std::fmt::Display for ListenerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.gateway, self.name)
    }
}

/// One listener. Several listeners may share a port: they are told apart by host name (and by SNI on TLS).
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Its key.
    pub key: ListenerKey,
    /// Addresses to bind, already resolved; `[::]:port` means all interfaces of both families.
    pub addresses: Vec<SocketAddr>,
    /// Which host names it takes; `None` is all.
    pub hostname: Option<Hostname>,
    /// TLS, if the listener terminates it.
    pub tls: Option<Arc<ListenerTls>>,
    /// How much of X-Forwarded-For to believe and such.
    pub client: ClientTrust,
    /// Labels of the gateway workload, which AuthorizationPolicy selectors look at.
    pub labels: Arc<[(Arc<str>, Arc<str>)]>,
    /// Guards of all of its requests, before a route is looked for.
    pub guards: Arc<[Arc<GuardRef>]>,
}

/// How the client's address is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTrust {
    /// How many proxies in front of us append to X-Forwarded-For (Envoy: `xff_num_trusted_hops`).
    pub trusted_hops: u32,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ForwardedClientCert,
    /// What an element of ours says beside `By` and `Hash`.
    pub client_cert_details: ClientCertDetails,
}

/// A host name pattern in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hostname {
    /// `shop.example.com`
    Exact(Arc<str>),
    /// `*.example.com`, stored as `example.com`. Matches one or more labels in front (Gateway API).
    Wildcard(Arc<str>),
}

impl std::fmt::Display for Hostname {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(h) => f.write_str(h),
            Self::Wildcard(h) => write!(f, "*.{h}"),
        }
    }
}

impl Hostname {
    /// Whether a host (lower case, no port) fits.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(h) => **h == *host,
            Self::Wildcard(suffix) => {
                host.strip_suffix(&**suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }
}

/// One HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Its name.
    pub key: ObjectKey,
    /// Seconds since the epoch; older routes win ties (Gateway API). Objects without one count as newest.
    pub created: Option<i64>,
    /// To which listeners it is attached, and under which host names there (already intersected).
    pub attachments: Vec<Attachment>,
    /// Its rules in order.
    pub rules: Vec<Arc<Rule>>,
}

/// A route on a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The listener.
    pub listener: ListenerKey,
    /// The host names; `None` inside is "any host".
    pub hostnames: Vec<Option<Hostname>>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// `default/shop`, `default/shop/checkout` for a named rule, else `default/shop#1`: the rule's identity in logs, metrics
    /// and split state. A GRPCRoute's begins with `grpc:`, for an HTTPRoute may have its name.
    pub id: Arc<str>,
    /// What it takes; any one suffices. Never empty: a rule without matches has one that takes everything.
    pub matches: ThinVec<Match>,
    /// Filters in order.
    pub filters: ThinVec<Filter>,
    /// Where it sends.
    pub backends: ThinVec<Backend>,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// Retry.
    pub retry: Option<Arc<Retry>>,
    /// Stickiness.
    pub split: Option<Arc<SplitPolicy>>,
    /// Requests of one client stay at one endpoint.
    pub affinity: Option<Arc<Affinity>>,
    /// A GRPCRoute's rule: refusals are gRPC statuses.
    pub grpc: bool,
}

/// All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Arc<str>>,
    /// Header conditions; names in lower case, each name once.
    pub headers: ThinVec<(Arc<str>, ValueMatch)>,
    /// Query conditions, each name once.
    pub query: ThinVec<(Arc<str>, ValueMatch)>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// By path element: `/a` takes `/a` and `/a/b`, not `/ab`. Stored without a trailing `/` except for `/` itself.
    Prefix(Arc<str>),
    /// A regular expression that must match the whole path.
    Regex(Arc<str>),
}

impl Default for PathMatch {
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// Equal.
    Exact(Arc<str>),
    /// A regular expression that must match the whole value.
    Regex(Arc<str>),
}

/// What a rule does to a request or its response.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Changes request headers.
    RequestHeaders(Arc<HeaderEdit>),
    /// Changes response headers.
    ResponseHeaders(Arc<HeaderEdit>),
    /// Answers with a redirect.
    Redirect(Arc<Redirect>),
    /// Changes host or path.
    Rewrite(Arc<Rewrite>),
    /// Sends a copy elsewhere.
    Mirror(Arc<Mirror>),
    /// Cross-origin resource sharing.
    Cors(Arc<Cors>),
    /// Delays or refuses some requests on purpose.
    Fault(Arc<Fault>),
    /// Asks a guard.
    Guard(Arc<GuardRef>),
}

/// Header changes, applied in the order set, add, remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Replaced or added; names in lower case.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Added.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Removed.
    pub remove: Vec<Arc<str>>,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None` keeps the request's.
    pub scheme: Option<Arc<str>>,
    /// The host; `None` keeps the request's.
    pub hostname: Option<Arc<str>>,
    /// The path.
    pub path: Option<PathRewrite>,
    /// The port; `None` follows Gateway API: the scheme's well-known port if a scheme is given, else the listener's.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A rewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The new host.
    pub hostname: Option<Arc<str>>,
    /// The new path.
    pub path: Option<PathRewrite>,
}

/// How a path changes. The query is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path.
    Full(Arc<str>),
    /// The part that the prefix match took.
    Prefix(Arc<str>),
}

/// A mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where to.
    pub backend: BackendTarget,
    /// Which share: `numerator` of `denominator`.
    pub numerator: u32,
    /// See `numerator`; never 0.
    pub denominator: u32,
}

/// CORS as Gateway API has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `*`, `https://a.example`, `https://*.example`, in lower case.
    pub allow_origins: Vec<Arc<str>>,
    /// Whether credentials are allowed.
    pub allow_credentials: bool,
    /// Methods, or `*`.
    pub allow_methods: Vec<Arc<str>>,
    /// Request headers, or `*`.
    pub allow_headers: Vec<Arc<str>>,
    /// Response headers to expose, or `*`.
    pub expose_headers: Vec<Arc<str>>,
    /// Seconds that a preflight's answer may be kept.
    pub max_age: u32,
}

/// One weighted backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Where to.
    pub target: BackendTarget,
    /// Its share; 0 gets nothing.
    pub weight: u32,
    /// Filters for this backend only.
    pub filters: ThinVec<Filter>,
}

/// A backend, or why there is none. An invalid one keeps its share and answers 500 (Gateway API).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendTarget {
    /// A pool of the same configuration. Shared by all that name it.
    Pool(Arc<PoolKey>),
    /// Not usable; the text says why, for logs and `explain`.
    Invalid(Arc<str>),
}

/// A pool's identity: `Pool default/shop-vms`, `Service default/shop:80`, `Hostname default/shop.legacy:8080`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    /// The object behind it.
    pub object: ObjectKey,
    /// The port that tells pools of one Service apart; 0 for `Pool`.
    pub port: u16,
}

impl std::fmt::Display for PoolKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            0 => write!(f, "{}", self.object),
            port => write!(f, "{}:{port}", self.object),
        }
    }
}

/// Stickiness of a rule's split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPolicy {
    /// Its name, for `explain`.
    pub name: Arc<str>,
    /// By what; `None` when only `existing` is given.
    pub sticky: Option<Sticky>,
    /// Users who carry this cookie stay on that backend.
    pub existing: Option<ExistingSessions>,
}

/// What identifies a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// A request header.
    Header(Arc<str>),
    /// A cookie that the application sets.
    Cookie(Arc<str>),
    /// A cookie that the gateway sets.
    IssuedCookie {
        /// Its name.
        name: Arc<str>,
        /// `Max-Age`; `None` is a session cookie.
        ttl: Option<Duration>,
        /// `Path`.
        path: Arc<str>,
    },
    /// The client's address.
    Source,
}

/// "Existing sessions stay".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExistingSessions {
    /// The cookie that marks a session.
    pub cookie: Arc<str>,
    /// The index into the rule's backends on which such users stay.
    pub backend: usize,
}

/// Facts about a request that policies and splits look at and that are not in its head.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// The peer of the connection.
    pub peer: IpAddr,
    /// The client, after trusted X-Forwarded-For.
    pub client: IpAddr,
    /// Our address.
    pub local: SocketAddr,
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
    /// Who the peer has proved to be.
    pub identity: Option<&'a PeerIdentity>,
}
