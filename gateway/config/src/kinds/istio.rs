//! Istio's kinds, as its API publishes them: `ServiceEntry`, `WorkloadEntry`, `AuthorizationPolicy`.
//!
//! Every published field is here, also those which a later layer refuses: a field that is read can be refused with
//! its reason, one that is skipped widens a policy in silence.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Checks;
use crate::diagnostic::reason;

/// A service outside of the mesh, or on machines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// The names it goes by.
    pub hosts: Vec<String>,
    /// Virtual addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// The ports.
    #[serde(default)]
    pub ports: Vec<ServiceEntryPort>,
    /// Inside or outside of the mesh.
    #[serde(default)]
    pub location: ServiceEntryLocation,
    /// How the endpoints are found.
    #[serde(default)]
    pub resolution: ServiceEntryResolution,
    /// The endpoints, written out.
    #[serde(default)]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// The endpoints, by the labels of WorkloadEntries.
    pub workload_selector: Option<WorkloadSelector>,
    /// The namespaces that see it.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// The names in the endpoints' certificates.
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryPort {
    /// The port that clients name.
    pub number: u32,
    /// `HTTP`, `HTTP2`, `GRPC`, ...
    pub protocol: Option<String>,
    /// The name that endpoints refer to.
    pub name: String,
    /// The endpoints' port, `number` without it.
    pub target_port: Option<u32>,
}

/// Where a ServiceEntry's service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryLocation {
    /// Outside of the mesh.
    #[default]
    MeshExternal,
    /// Inside of the mesh.
    MeshInternal,
}

/// How a ServiceEntry's endpoints are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryResolution {
    /// The client resolves.
    #[default]
    None,
    /// Written out, or by selector.
    Static,
    /// By DNS; every address is an endpoint.
    Dns,
    /// By DNS; only the first address is used.
    DnsRoundRobin,
    /// By DNS at the time of the request, for wildcard hosts.
    DynamicDns,
}

/// The labels that choose workloads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// All of them must be there.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A machine; also an endpoint of a ServiceEntry.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// An IP address, a DNS name, or `unix:///path`.
    pub address: Option<String>,
    /// Ports by the service's port name.
    #[serde(default)]
    pub ports: BTreeMap<String, u32>,
    /// What a selector sees.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The network it is in.
    pub network: Option<String>,
    /// `region/zone/subzone`.
    pub locality: Option<String>,
    /// Its share among the others.
    pub weight: Option<u32>,
    /// The identity it runs as.
    pub service_account: Option<String>,
}

/// Who may do what.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads, by label.
    pub selector: Option<PolicySelector>,
    /// The older form of `targetRefs`.
    pub target_ref: Option<PolicyTargetRef>,
    /// What it is attached to.
    #[serde(default)]
    pub target_refs: Vec<PolicyTargetRef>,
    /// Any of them matches. No rule at all matches nothing.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// What happens on a match.
    #[serde(default)]
    pub action: Action,
    /// The extension of `CUSTOM`.
    pub provider: Option<ExtensionProvider>,
}

/// The workloads that a policy is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySelector {
    /// All of them must be there.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PolicyTargetRef {
    /// The kind's group.
    pub group: Option<String>,
    /// The kind.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Its namespace; only the policy's own is allowed.
    pub namespace: Option<String>,
}

/// What happens on a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Let it through.
    #[default]
    Allow,
    /// Refuse it.
    Deny,
    /// Mark it for the log.
    Audit,
    /// Ask an extension.
    Custom,
}

/// The extension that `CUSTOM` asks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ExtensionProvider {
    /// Its name.
    pub name: Option<String>,
}

/// All of the parts that are there must match; an empty rule matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Rule {
    /// Any of them.
    #[serde(default)]
    pub from: Vec<From>,
    /// Any of them.
    #[serde(default)]
    pub to: Vec<To>,
    /// All of them.
    #[serde(default)]
    pub when: Vec<Condition>,
}

/// A source in its wrapper.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct From {
    /// The source.
    pub source: Source,
}

/// Who asks; all of the fields that are there must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// Peer identities.
    pub principals: Vec<String>,
    /// None of these peer identities.
    pub not_principals: Vec<String>,
    /// `issuer/subject` of a JWT.
    pub request_principals: Vec<String>,
    /// None of these.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the peer.
    pub namespaces: Vec<String>,
    /// None of these.
    pub not_namespaces: Vec<String>,
    /// Service accounts of the peer.
    pub service_accounts: Vec<String>,
    /// None of these.
    pub not_service_accounts: Vec<String>,
    /// Trust domains of the peer.
    pub trust_domains: Vec<String>,
    /// None of these.
    pub not_trust_domains: Vec<String>,
    /// The peer's address.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// The client's address, behind trusted hops.
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<String>,
}

/// An operation in its wrapper.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct To {
    /// The operation.
    pub operation: Operation,
}

/// What is asked for; all of the fields that are there must match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Operation {
    /// Hosts.
    pub hosts: Vec<String>,
    /// None of these.
    pub not_hosts: Vec<String>,
    /// Ports, as text.
    pub ports: Vec<String>,
    /// None of these.
    pub not_ports: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// None of these.
    pub not_methods: Vec<String>,
    /// Paths.
    pub paths: Vec<String>,
    /// None of these.
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The attribute.
    pub key: String,
    /// Any of these.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default)]
    pub not_values: Vec<String>,
}

pub(super) fn check_service_entry(spec: &ServiceEntrySpec, checks: &mut Checks<'_>) {
    if spec.hosts.is_empty() {
        checks.error("spec.hosts", reason::WRONG_COUNT, "at least one host is needed", None);
    }
    if spec.workload_selector.is_some() && !spec.endpoints.is_empty() {
        checks.error(
            "spec.workloadSelector",
            reason::CONFLICTING_FIELDS,
            "workloadSelector and endpoints cannot be used together",
            Some("remove one of the two"),
        );
    }
    for (i, port) in spec.ports.iter().enumerate() {
        checks.port(format_args!("spec.ports[{i}].number"), i64::from(port.number));
        if let Some(target) = port.target_port {
            checks.port(format_args!("spec.ports[{i}].targetPort"), i64::from(target));
        }
        if spec.ports[..i].iter().any(|p| p.name == port.name) {
            checks.error(
                &format!("spec.ports[{i}].name"),
                reason::INVALID_VALUE,
                format!("another port is already named \"{}\"", port.name),
                None,
            );
        }
    }
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        check_workload(endpoint, &format!("spec.endpoints[{i}]"), checks);
    }
}

pub(super) fn check_workload(spec: &WorkloadEntrySpec, at: &str, checks: &mut Checks<'_>) {
    if spec.address.as_ref().is_none_or(String::is_empty) && spec.network.is_none() {
        checks.error(at, reason::MISSING_FIELD, "the required field \"address\" is missing", None);
    }
    for (name, port) in &spec.ports {
        checks.port(format_args!("{at}.ports.{name}"), i64::from(*port));
    }
}

/// What a policy of Istio's is for is said in one of three ways.
pub(super) fn check_scope(
    selector: bool,
    target_ref: bool,
    target_refs: &[PolicyTargetRef],
    checks: &mut Checks<'_>,
) {
    if target_ref && !target_refs.is_empty() {
        checks.error(
            "spec.targetRef",
            reason::CONFLICTING_FIELDS,
            "targetRef and targetRefs cannot be used together",
            Some("move the target into targetRefs"),
        );
    }
    if selector && (target_ref || !target_refs.is_empty()) {
        checks.error(
            "spec.selector",
            reason::CONFLICTING_FIELDS,
            "selector and targetRefs cannot be used together",
            Some("remove one of the two"),
        );
    }
}

pub(super) fn check_authorization_policy(spec: &AuthorizationPolicySpec, checks: &mut Checks<'_>) {
    check_scope(spec.selector.is_some(), spec.target_ref.is_some(), &spec.target_refs, checks);
    if spec.action == Action::Deny && spec.rules.is_empty() {
        checks.error(
            "spec",
            reason::MISSING_FIELD,
            "a DENY policy without rules never denies anything",
            Some("to deny every request, write one empty rule: rules: [{}]"),
        );
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        // Not written means "whatever"; written and empty was meant to say something.
        for part in ["from", "to", "when"] {
            let field = format!("spec.rules[{i}].{part}");
            if checks.is_empty_list(&field) {
                let hint = Some("remove the field to match whatever it is");
                checks.error(&field, reason::WRONG_COUNT, "at least one entry is needed", hint);
            }
        }
        for (j, from) in rule.from.iter().enumerate() {
            if from.source == Source::default() {
                needs_a_field(&format!("spec.rules[{i}].from[{j}].source"), "source", checks);
            }
        }
        for (j, to) in rule.to.iter().enumerate() {
            if to.operation == Operation::default() {
                needs_a_field(&format!("spec.rules[{i}].to[{j}].operation"), "operation", checks);
            }
        }
        for (j, condition) in rule.when.iter().enumerate() {
            if condition.values.is_empty() && condition.not_values.is_empty() {
                checks.error(
                    &format!("spec.rules[{i}].when[{j}]"),
                    reason::MISSING_FIELD,
                    "neither values nor notValues is set",
                    Some("a condition without values matches nothing that can be meant"),
                );
            }
        }
    }
}

fn needs_a_field(field: &str, what: &str, checks: &mut Checks<'_>) {
    let message = format!("at least one field of {what} must be set");
    checks.error(field, reason::MISSING_FIELD, message, Some("an empty one would match everything"));
}
