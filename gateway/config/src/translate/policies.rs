//! AuthorizationPolicy to IR, failing closed: what cannot be evaluated refuses everything that it might have refused.

mod principals;
mod rules;

use fieldgate_core::ir::{
    ConditionKey, ConditionValue, ObjectKey, Policy, PolicyAction, PolicyCondition, PolicyOperation,
    PolicyRule, PolicySource, StringMatch,
};
use ipnet::IpNet;

use super::gateways::Gateways;
use super::{Notes, Objects, targets};
use crate::kinds::istio::{Action, AuthorizationPolicySpec, Condition, Operation, Source};
use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{GuardRef, ListenerKey, ObjectKey, Policy, PolicyAction};

use super::gateways::{GROUP, Gateways, ListenerInfo};
use super::{Notes, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::istio::{Action, AuthorizationPolicySpec, PolicyTargetRef};
use crate::kinds::{Kind, Spec};

const DRY_RUN: &str = "istio.io/dry-run";
/// What `provider` of a CUSTOM policy names.
const PROVIDER: &str = "ExternalAuthorizer";

pub use principals::TrustDomains;
use rules::{Around, Problem};

/// The objects that providers are.
pub(crate) fn provider_kind() -> Option<Kind> {
    Kind::from_name(PROVIDER)
}

pub(crate) fn translate(
    objects: &Objects,
    gateways: &Gateways,
    trust_domains: &TrustDomains,
    notes: &mut BTreeMap<ObjectKey, Notes>,
) -> BTreeMap<ObjectKey, Policy> {
    let mut policies = BTreeMap::new();
    for object in objects.of(Kind::AuthorizationPolicy) {
        let Spec::AuthorizationPolicy(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        let scope = targets::Scope {
            selector: spec.selector.as_ref(),
            target_ref: spec.target_ref.as_ref(),
            target_refs: &spec.target_refs,
        };
        let listeners = targets::listeners(object, &scope, gateways, note);
        let dry_run = object.annotations.get(DRY_RUN).is_some_and(|v| v == "true");
        let listeners = targets(object, spec, gateways, note);
        let dry_run = object.annotations.get(DRY_RUN).is_some_and(|v| is_true(v));
        let action = match spec.action {
            Action::Allow => PolicyAction::Allow,
            Action::Custom => PolicyAction::Custom,
            Action::Deny => PolicyAction::Deny,
            Action::Audit => PolicyAction::Audit,
        };
        let around = Around { namespace: &object.namespace, trust_domains };
        let translated = rules::rules(spec, &around).and_then(|rules| {
            let named = (spec.action == Action::Custom).then(|| provider(object, spec, objects, note));
            Ok((rules, named.transpose()?))
        });
        let mut policy = Policy::closed(object.key(), listeners);
        match translated {
            Ok((rules, provider)) => {
                (policy.action, policy.dry_run) = (action, dry_run);
                (policy.rules, policy.provider) = (rules, provider);
                if note.conditions.is_empty() {
                    note.condition("Accepted", true, "Accepted", "");
                }
            }
            Err((reason, field, message)) => {
                note.conditions.clear();
                note.condition("Accepted", false, reason, message.clone());
                let error = object.error(reason, &field, message);
                // These two never refuse a request, so that nothing is opened by leaving them out.
                if dry_run || action == PolicyAction::Audit {
                    note.diagnostics.push(error.hint("until this is resolved, the policy reports nothing"));
                    continue;
                }
                note.diagnostics.push(
                    error.hint("until this is resolved, the policy refuses every request to its gateways"),
                );
            }
        }
        policies.insert(object.key(), policy);
    }
    policies
}

fn rules(spec: &AuthorizationPolicySpec) -> Result<Vec<PolicyRule>, Problem> {
    if spec.action == Action::Custom {
        return Err((
            "UnsupportedValue",
            "spec.action".into(),
            "CUSTOM policies are not supported yet".into(),
        ));
    }
    let mut rules = Vec::new();
    for (at, rule) in spec.rules.iter().enumerate() {
        let place = format!("spec.rules[{at}]");
        let mut translated = PolicyRule::default();
        for (i, from) in rule.from.iter().enumerate() {
            translated.from.push(source(&from.source, &format!("{place}.from[{i}].source"))?);
/// The listeners that a policy applies to. A target that is not there takes none of the others away.
fn targets(
    object: &Object,
    spec: &AuthorizationPolicySpec,
    gateways: &Gateways,
    note: &mut Notes,
) -> Vec<ListenerKey> {
    let root = *object.namespace == *ROOT;
    let single = spec.target_ref.iter().map(|t| ("spec.targetRef".to_owned(), t));
    let many = spec.target_refs.iter().enumerate().map(|(at, t)| (format!("spec.targetRefs[{at}]"), t));
    let refs: Vec<_> = single.chain(many).collect();
    if !refs.is_empty() {
        let mut listeners: Vec<ListenerKey> = Vec::new();
        for (place, target) in refs {
            match target_gateway(object, target, gateways) {
                Ok(infos) => listeners.extend(infos.iter().map(|i| i.key.clone())),
                Err((reason, field, message, hint)) => {
                    if note.conditions.is_empty() {
                        note.condition("Accepted", false, reason, message.clone());
                    }
                    let mut error = object.error(reason, &format!("{place}.{field}"), message);
                    error.hint = hint;
                    note.diagnostics.push(error);
                }
            }
        }
        listeners.sort();
        listeners.dedup();
        return listeners;
    }
    let selector = spec.selector.as_ref().map(|s| &s.match_labels);
    let selected =
        gateways.listeners.values().filter(|l| root || l.key.namespace == object.namespace).filter(|l| {
            selector
                .into_iter()
                .flatten()
                .all(|(k, v)| l.labels.iter().any(|(name, value)| **name == **k && **value == **v))
        });
    selected.map(|l| l.key.clone()).collect()
}

/// Why a target is none: reason, field, message, hint.
type NoTarget = (&'static str, &'static str, String, Option<String>);

fn target_gateway<'g>(
    object: &Object,
    target: &PolicyTargetRef,
    gateways: &'g Gateways,
) -> Result<&'g [ListenerInfo], NoTarget> {
    if target.kind != "Gateway" || target.group.as_deref() != Some(GROUP) {
        let group = target.group.as_deref().unwrap_or_default();
        let message =
            format!("a policy of this gateway cannot be attached to a {} of group \"{group}\"", target.kind);
        let hint = format!("kind: Gateway with group: {GROUP}");
        return Err(("InvalidKind", "kind", message, Some(hint)));
    }
    if target.namespace.as_deref().is_some_and(|n| *n != *object.namespace) {
        let message = "a policy can be attached to Gateways of its own namespace only".to_owned();
        return Err(("RefNotPermitted", "namespace", message, Some("move the policy there".into())));
    }
    gateways.of(&object.namespace, &target.name).ok_or_else(|| {
        let names = gateways.names(&object.namespace);
        let message = format!("there is no Gateway {}/{}", object.namespace, target.name);
        ("TargetNotFound", "name", message, did_you_mean_hint(&target.name, names.iter().map(String::as_str)))
    })
}

/// Who is asked. One that is not there is said, and refuses what the policy matches: that is for whoever asks to find.
fn provider(
    object: &Object,
    spec: &AuthorizationPolicySpec,
    objects: &Objects,
    note: &mut Notes,
) -> Result<Arc<GuardRef>, Problem> {
    let name = spec.provider.as_ref().and_then(|provider| provider.name.as_deref()).filter(|n| !n.is_empty());
    let Some(name) = name else {
        let message = "a CUSTOM policy needs the name of a provider";
        return Err(("InvalidValue", "spec.provider.name".into(), message.into()));
    };
    let key = |namespace: &str| ObjectKey { kind: PROVIDER, namespace: namespace.into(), name: name.into() };
    let is_there =
        |namespace: &str| provider_kind().is_some_and(|kind| objects.get(kind, namespace, name).is_some());
    let namespace = [&*object.namespace, ROOT].into_iter().find(|namespace| is_there(namespace));
    if namespace.is_none() {
        let own = &object.namespace;
        let message = format!("there is no {PROVIDER} {own}/{name}, nor {ROOT}/{name}");
        if note.conditions.is_empty() {
            note.condition("Accepted", false, "TargetNotFound", message.clone());
        }
        let error = object.error("TargetNotFound", "spec.provider.name", message);
        let hint = "until it is there, what the policy matches is refused";
        note.diagnostics.push(error.hint(hint));
    }
    Ok(Arc::new(GuardRef::new(key(namespace.unwrap_or(&object.namespace)))))
}

fn source(s: &Source, place: &str) -> Result<PolicySource, Problem> {
    let identities = [
        ("principals", &s.principals),
        ("notPrincipals", &s.not_principals),
        ("requestPrincipals", &s.request_principals),
        ("notRequestPrincipals", &s.not_request_principals),
        ("namespaces", &s.namespaces),
        ("notNamespaces", &s.not_namespaces),
        ("serviceAccounts", &s.service_accounts),
        ("notServiceAccounts", &s.not_service_accounts),
    ];
    if let Some((field, _)) = identities.iter().find(|(_, list)| !list.is_empty()) {
        let message = format!("{field} need client certificates or tokens, which are not evaluated yet");
        return Err(("UnsupportedValue", format!("{place}.{field}"), message));
    }
    let translated = PolicySource {
        ip_blocks: blocks(&s.ip_blocks, place, "ipBlocks")?,
        not_ip_blocks: blocks(&s.not_ip_blocks, place, "notIpBlocks")?,
        remote_ip_blocks: blocks(&s.remote_ip_blocks, place, "remoteIpBlocks")?,
        not_remote_ip_blocks: blocks(&s.not_remote_ip_blocks, place, "notRemoteIpBlocks")?,
    };
    if translated == PolicySource::default() {
        return Err(("InvalidValue", place.to_owned(), "a source without conditions is not allowed".into()));
    }
    Ok(translated)
}

fn blocks(list: &[String], place: &str, field: &str) -> Result<Vec<IpNet>, Problem> {
    let parse = |(at, text): (usize, &String)| {
        block(text).ok_or_else(|| {
            let message = format!("\"{text}\" is neither an IP address nor a CIDR range");
            ("InvalidValue", format!("{place}.{field}[{at}]"), message)
        })
    };
    list.iter().enumerate().map(parse).collect()
}

fn block(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
        .map(|n| n.trunc())
}

fn ports(list: &[String], place: &str, field: &str) -> Result<Vec<u16>, Problem> {
    let parse = |(at, text): (usize, &String)| {
        text.parse().map_err(|_| {
            ("InvalidValue", format!("{place}.{field}[{at}]"), format!("\"{text}\" is not a port"))
        })
    };
    list.iter().enumerate().map(parse).collect()
}

fn operation(o: &Operation, place: &str) -> Result<PolicyOperation, Problem> {
    let strings = |list: &[String]| list.iter().map(|s| string(s)).collect::<Vec<_>>();
    let translated = PolicyOperation {
        hosts: strings(&o.hosts),
        not_hosts: strings(&o.not_hosts),
        ports: ports(&o.ports, place, "ports")?,
        not_ports: ports(&o.not_ports, place, "notPorts")?,
        methods: strings(&o.methods),
        not_methods: strings(&o.not_methods),
        paths: paths(&o.paths, place, "paths")?,
        not_paths: paths(&o.not_paths, place, "notPaths")?,
    };
    if translated == PolicyOperation::default() {
        return Err((
            "InvalidValue",
            place.to_owned(),
            "an operation without conditions is not allowed".into(),
        ));
    }
    Ok(translated)
}

pub(super) fn string(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Present
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

pub(super) fn paths(list: &[String], place: &str, field: &str) -> Result<Vec<StringMatch>, Problem> {
    let parse = |(at, text): (usize, &String)| -> Result<StringMatch, Problem> {
        match template_problem(text) {
            None if is_template(text) => Ok(StringMatch::Template(text.as_str().into())),
            None => Ok(string(text)),
            Some(why) => Err((
                "InvalidValue",
                format!("{place}.{field}[{at}]"),
                format!("\"{text}\" is not a path template: {why}"),
            )),
        }
    };
    list.iter().enumerate().map(parse).collect()
}

fn is_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// What Istio's validation refuses (`CheckValidPathTemplate`).
fn template_problem(path: &str) -> Option<&'static str> {
    let literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
    let template = is_template(path);
    let mut after_many = false;
    for segment in path.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if after_many => return Some("{**} must be the last operator"),
            "{*}" => {}
            "{**}" => after_many = true,
            _ if segment.contains(['{', '}']) => {
                return Some("braces stand only in {*} and {**}, each a whole segment");
            }
            _ if template && (segment.is_empty() || !segment.bytes().all(literal)) => {
                return Some("each segment is {*}, {**} or plain text");
            }
            _ => {}
        }
    }
    None
}

fn condition(c: &Condition, place: &str) -> Result<PolicyCondition, Problem> {
    if c.values.is_empty() && c.not_values.is_empty() {
        return Err(("InvalidValue", place.to_owned(), "values or notValues are needed".into()));
    }
    let key = match c.key.as_str() {
        "source.ip" => ConditionKey::SourceIp,
        "remote.ip" => ConditionKey::RemoteIp,
        "destination.ip" => ConditionKey::DestinationIp,
        "destination.port" => ConditionKey::DestinationPort,
        "connection.sni" => ConditionKey::Sni,
        other => match other.strip_prefix("request.headers[").and_then(|r| r.strip_suffix(']')) {
            Some(name) if !name.is_empty() => ConditionKey::RequestHeader(name.to_ascii_lowercase().into()),
            _ => {
                let message = format!("the condition \"{other}\" cannot be evaluated yet");
                return Err(("UnsupportedValue", format!("{place}.key"), message));
            }
        },
    };
    let convert = |list: &[String], field: &str| -> Result<Vec<ConditionValue>, Problem> {
        Ok(match key {
            ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp => {
                blocks(list, place, field)?.into_iter().map(ConditionValue::Ip).collect()
            }
            ConditionKey::DestinationPort => {
                ports(list, place, field)?.into_iter().map(ConditionValue::Port).collect()
            }
            ConditionKey::RequestHeader(_) | ConditionKey::Sni => {
                list.iter().map(|s| ConditionValue::String(string(s))).collect()
            }
        })
    };
    let (values, not_values) = (convert(&c.values, "values")?, convert(&c.not_values, "notValues")?);
    Ok(PolicyCondition { key, values, not_values })
/// As Go reads it, which is how istiod does.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}
