//! Who may do what: AuthorizationPolicies as Istio means them.

use std::sync::Arc;

use super::{GuardRef, IpNet, ListenerKey, ObjectKey};

/// An AuthorizationPolicy that applies to listeners. Semantics: Istio's.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub key: ObjectKey,
    /// What it does.
    pub action: PolicyAction,
    /// `istio.io/dry-run: "true"`: evaluated and reported, not enforced.
    pub dry_run: bool,
    /// To which listeners it applies.
    pub listeners: Vec<ListenerKey>,
    /// Any one suffices. None at all never matches (so ALLOW without rules denies all).
    pub rules: Vec<PolicyRule>,
    /// CUSTOM: who is asked about a request that matches. One that is not there refuses.
    pub provider: Option<Arc<GuardRef>>,
    /// A CEL expression that must hold too, whichever rule it is.
    pub cel: Option<Arc<str>>,
}

impl Policy {
    /// A policy that refuses everything: what becomes of one that cannot be understood.
    pub fn closed(key: ObjectKey, listeners: Vec<ListenerKey>) -> Self {
        Self {
            key,
            action: PolicyAction::Deny,
            dry_run: false,
            listeners,
            rules: vec![PolicyRule::default()],
            provider: None,
            cel: None,
        }
    }
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyAction {
    /// A provider decides about what is matched.
    Custom,
    /// Reported only.
    Audit,
    /// Refused if matched.
    Deny,
    /// Refused unless some ALLOW policy matches, if there are any.
    Allow,
}

impl PolicyAction {
    /// As Istio writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Custom => "CUSTOM",
            Self::Audit => "AUDIT",
            Self::Deny => "DENY",
            Self::Allow => "ALLOW",
        }
    }
}

/// All three parts must hold; an empty part holds always.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyRule {
    /// Any one suffices.
    pub from: Vec<PolicySource>,
    /// Any one suffices.
    pub to: Vec<PolicyOperation>,
    /// All must hold.
    pub when: Vec<PolicyCondition>,
}

/// Where a request comes from; every non-empty field must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicySource {
    /// Names of the peer's certificate: SPIFFE identities without their scheme. `Present` is any name.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// `iss/sub` of a token.
    pub request_principals: Vec<RequestPrincipal>,
    /// None of these.
    pub not_request_principals: Vec<RequestPrincipal>,
    /// Namespaces of the peer's identity; `*` stands for any characters.
    pub namespaces: Vec<Arc<str>>,
    /// None of these.
    pub not_namespaces: Vec<Arc<str>>,
    /// Service accounts of the peer's identity.
    pub service_accounts: Vec<ServiceAccount>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccount>,
    /// Trust domains of the peer's identity; `*` stands for any characters but `/`.
    pub trust_domains: Vec<Arc<str>>,
    /// None of these.
    pub not_trust_domains: Vec<Arc<str>>,
    /// The peer of the connection.
    pub ip_blocks: Vec<IpNet>,
    /// Not the peer of the connection.
    pub not_ip_blocks: Vec<IpNet>,
    /// The client after X-Forwarded-For.
    pub remote_ip_blocks: Vec<IpNet>,
    /// Not the client.
    pub not_remote_ip_blocks: Vec<IpNet>,
}

/// A service account by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// The bearer of a token. Both must be there and fit; `Present` is anything but an empty text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPrincipal {
    /// `iss`.
    pub issuer: StringMatch,
    /// `sub`.
    pub subject: StringMatch,
}

/// What is asked for; every non-empty field must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOperation {
    /// Hosts, any one, without regard to case.
    pub hosts: Vec<StringMatch>,
    /// None of these.
    pub not_hosts: Vec<StringMatch>,
    /// Ports of the listener.
    pub ports: Vec<u16>,
    /// None of these.
    pub not_ports: Vec<u16>,
    /// Methods.
    pub methods: Vec<StringMatch>,
    /// None of these.
    pub not_methods: Vec<StringMatch>,
    /// Paths without the query.
    pub paths: Vec<StringMatch>,
    /// None of these.
    pub not_paths: Vec<StringMatch>,
}

/// One `when`: some of `values` (if any) and none of `not_values`.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyCondition {
    /// The attribute.
    pub key: ConditionKey,
    /// Any one.
    pub values: Vec<ConditionValue>,
    /// None of these.
    pub not_values: Vec<ConditionValue>,
}

/// What a condition looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    /// `request.headers[name]`, name in lower case.
    RequestHeader(Arc<str>),
    /// `source.ip`
    SourceIp,
    /// `remote.ip`
    RemoteIp,
    /// `source.namespace`
    SourceNamespace,
    /// `source.serviceAccount`
    SourceServiceAccount,
    /// `source.principal`
    SourcePrincipal,
    /// `source.trustDomain`
    SourceTrustDomain,
    /// `request.auth.principal`
    RequestPrincipal,
    /// `request.auth.claims[a][b]`; `request.auth.audiences` is the claim `aud`, `request.auth.presenter` is `azp`.
    Claim(Vec<Arc<str>>),
    /// `destination.ip`
    DestinationIp,
    /// `destination.port`
    DestinationPort,
    /// `connection.sni`
    Sni,
    /// `experimental.envoy.filters.a[key]`: dynamic metadata, by the filter's name and the key.
    Metadata(Arc<str>, Arc<str>),
}

/// A value of a condition, of the type that its key has.
#[derive(Clone, Debug, PartialEq)]
pub enum ConditionValue {
    /// Text, or a text of dynamic metadata, a token, or a principal.
    String(StringMatch),
    /// One of a list of texts in dynamic metadata.
    InList(StringMatch),
    /// A namespace or trust domain, see [`PolicySource`].
    Name(Arc<str>),
    /// A service account.
    Account(ServiceAccount),
    /// The bearer of a token.
    Bearer(RequestPrincipal),
    /// An address range.
    Ip(IpNet),
    /// A port.
    Port(u16),
}

/// Istio's string patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// `abc*`
    Prefix(Arc<str>),
    /// `*abc`
    Suffix(Arc<str>),
    /// `*`: there, and not empty.
    Present,
    /// A path template with `{*}` and `{**}`.
    Template(Arc<str>),
}
