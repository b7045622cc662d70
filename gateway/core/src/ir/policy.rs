//! Who may do what: AuthorizationPolicies as Istio means them.

use std::sync::Arc;

use super::{IpNet, ListenerKey, ObjectKey};

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
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyAction {
    /// Reported only.
    Audit,
    /// Refused if matched.
    Deny,
    /// Refused unless some ALLOW policy matches, if there are any.
    Allow,
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
    /// The peer of the connection.
    pub ip_blocks: Vec<IpNet>,
    /// Not the peer of the connection.
    pub not_ip_blocks: Vec<IpNet>,
    /// The client after X-Forwarded-For.
    pub remote_ip_blocks: Vec<IpNet>,
    /// Not the client.
    pub not_remote_ip_blocks: Vec<IpNet>,
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

/// Attributes that a gateway knows without JWT or mTLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionKey {
    /// `request.headers[name]`, name in lower case.
    RequestHeader(Arc<str>),
    /// `source.ip`
    SourceIp,
    /// `remote.ip`
    RemoteIp,
    /// `destination.ip`
    DestinationIp,
    /// `destination.port`
    DestinationPort,
    /// `connection.sni`
    Sni,
}

/// A value of a condition, of the type that its key has.
#[derive(Clone, Debug, PartialEq)]
pub enum ConditionValue {
    /// Text.
    String(StringMatch),
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
