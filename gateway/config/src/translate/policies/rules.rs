//! The rules of an AuthorizationPolicy to IR. What cannot be evaluated is a problem of the whole policy; what becomes of it
//! then is not decided here.

use std::sync::Arc;

use fieldgate_core::ir::{
    ConditionKey, ConditionValue, PolicyCondition, PolicyOperation, PolicyRule, PolicySource, ServiceAccount,
    StringMatch,
};
use ipnet::IpNet;

use super::principals::{TrustDomains, request_principal, service_account};
use crate::kinds::istio::{AuthorizationPolicySpec, Condition, Operation, Source};

/// What cannot be translated: reason, field, message.
pub(super) type Problem = (&'static str, String, String);

/// Filters whose dynamic metadata this gateway knows.
const FILTERS: [&str; 2] = ["envoy.filters.http.ext_authz", "envoy.filters.http.jwt_authn"];

/// What rules are read with.
pub(super) struct Around<'a> {
    /// The policy's namespace.
    pub namespace: &'a str,
    pub trust_domains: &'a TrustDomains,
}

pub(super) fn rules(spec: &AuthorizationPolicySpec, around: &Around<'_>) -> Result<Vec<PolicyRule>, Problem> {
    let mut rules = Vec::new();
    for (at, rule) in spec.rules.iter().enumerate() {
        let place = format!("spec.rules[{at}]");
        let mut translated = PolicyRule::default();
        for (i, from) in rule.from.iter().enumerate() {
            translated.from.push(around.source(&from.source, &format!("{place}.from[{i}].source"))?);
        }
        for (i, to) in rule.to.iter().enumerate() {
            translated.to.push(operation(&to.operation, &format!("{place}.to[{i}].operation"))?);
        }
        for (i, when) in rule.when.iter().enumerate() {
            translated.when.push(around.condition(when, &format!("{place}.when[{i}]"))?);
        }
        rules.push(translated);
    }
    Ok(rules)
}

impl Around<'_> {
    fn source(&self, s: &Source, place: &str) -> Result<PolicySource, Problem> {
        for (field, list) in [
            ("principals", &s.principals),
            ("notPrincipals", &s.not_principals),
            ("requestPrincipals", &s.request_principals),
            ("notRequestPrincipals", &s.not_request_principals),
            ("namespaces", &s.namespaces),
            ("notNamespaces", &s.not_namespaces),
            ("trustDomains", &s.trust_domains),
            ("notTrustDomains", &s.not_trust_domains),
        ] {
            not_empty(list, place, field)?;
        }
        let by_name = [&s.principals, &s.not_principals, &s.namespaces, &s.not_namespaces];
        let by_account = [&s.service_accounts, &s.not_service_accounts];
        if by_name.iter().any(|list| !list.is_empty()) && by_account.iter().any(|list| !list.is_empty()) {
            let message = "serviceAccounts cannot stand beside principals or namespaces: they name both";
            return Err(("InvalidValue", format!("{place}.serviceAccounts"), message.into()));
        }
        let bearers = |list: &[String]| list.iter().map(|text| request_principal(text)).collect();
        let names = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
        let translated = PolicySource {
            principals: self.trust_domains.principals(&s.principals),
            not_principals: self.trust_domains.principals(&s.not_principals),
            request_principals: bearers(&s.request_principals),
            not_request_principals: bearers(&s.not_request_principals),
            namespaces: names(&s.namespaces),
            not_namespaces: names(&s.not_namespaces),
            service_accounts: self.accounts(&s.service_accounts, place, "serviceAccounts")?,
            not_service_accounts: self.accounts(&s.not_service_accounts, place, "notServiceAccounts")?,
            trust_domains: self.trust_domains.domains(&s.trust_domains),
            not_trust_domains: self.trust_domains.domains(&s.not_trust_domains),
            ip_blocks: blocks(&s.ip_blocks, place, "ipBlocks")?,
            not_ip_blocks: blocks(&s.not_ip_blocks, place, "notIpBlocks")?,
            remote_ip_blocks: blocks(&s.remote_ip_blocks, place, "remoteIpBlocks")?,
            not_remote_ip_blocks: blocks(&s.not_remote_ip_blocks, place, "notRemoteIpBlocks")?,
        };
        if translated == PolicySource::default() {
            return Err((
                "InvalidValue",
                place.to_owned(),
                "a source without conditions is not allowed".into(),
            ));
        }
        Ok(translated)
    }

    fn accounts(&self, list: &[String], place: &str, field: &str) -> Result<Vec<ServiceAccount>, Problem> {
        let parse = |(at, text): (usize, &String)| {
            service_account(text, self.namespace).map_err(|why| {
                ("InvalidValue", format!("{place}.{field}[{at}]"), format!("\"{text}\": {why}"))
            })
        };
        list.iter().enumerate().map(parse).collect()
    }

    fn condition(&self, c: &Condition, place: &str) -> Result<PolicyCondition, Problem> {
        if c.values.is_empty() && c.not_values.is_empty() {
            return Err(("InvalidValue", place.to_owned(), "values or notValues are needed".into()));
        }
        let key = key(&c.key).map_err(|message| ("UnsupportedValue", format!("{place}.key"), message))?;
        let values = self.values(&key, &c.values, place, "values")?;
        let not_values = self.values(&key, &c.not_values, place, "notValues")?;
        Ok(PolicyCondition { key, values, not_values })
    }

    fn values(
        &self,
        key: &ConditionKey,
        list: &[String],
        place: &str,
        field: &str,
    ) -> Result<Vec<ConditionValue>, Problem> {
        let strings = || list.iter().map(|s| ConditionValue::String(string(s)));
        let names = |list: Vec<Arc<str>>| list.into_iter().map(ConditionValue::Name).collect();
        Ok(match key {
            ConditionKey::SourceIp | ConditionKey::RemoteIp | ConditionKey::DestinationIp => {
                blocks(list, place, field)?.into_iter().map(ConditionValue::Ip).collect()
            }
            ConditionKey::DestinationPort => {
                ports(list, place, field)?.into_iter().map(ConditionValue::Port).collect()
            }
            ConditionKey::RequestHeader(_) | ConditionKey::Sni | ConditionKey::Claim(_) => {
                strings().collect()
            }
            ConditionKey::SourcePrincipal => {
                self.trust_domains.principals(list).into_iter().map(ConditionValue::String).collect()
            }
            ConditionKey::SourceNamespace => names(list.iter().map(|text| text.as_str().into()).collect()),
            ConditionKey::SourceTrustDomain => names(self.trust_domains.domains(list)),
            ConditionKey::SourceServiceAccount => {
                self.accounts(list, place, field)?.into_iter().map(ConditionValue::Account).collect()
            }
            ConditionKey::RequestPrincipal => {
                list.iter().map(|text| ConditionValue::Bearer(request_principal(text))).collect()
            }
            ConditionKey::Metadata(..) => list.iter().map(|text| metadata(text)).collect(),
        })
    }
}

/// The attribute that a condition looks at.
fn key(text: &str) -> Result<ConditionKey, String> {
    let claim = |name: &str| ConditionKey::Claim(vec![name.into()]);
    Ok(match text {
        "source.ip" => ConditionKey::SourceIp,
        "remote.ip" => ConditionKey::RemoteIp,
        "source.namespace" => ConditionKey::SourceNamespace,
        "source.serviceAccount" => ConditionKey::SourceServiceAccount,
        "source.principal" => ConditionKey::SourcePrincipal,
        "source.trustDomain" => ConditionKey::SourceTrustDomain,
        "request.auth.principal" => ConditionKey::RequestPrincipal,
        "request.auth.audiences" => claim("aud"),
        "request.auth.presenter" => claim("azp"),
        "destination.ip" => ConditionKey::DestinationIp,
        "destination.port" => ConditionKey::DestinationPort,
        "connection.sni" => ConditionKey::Sni,
        other => {
            if let Some(path) = other.strip_prefix("request.auth.claims").and_then(brackets) {
                return Ok(ConditionKey::Claim(path.into_iter().map(Into::into).collect()));
            }
            if let Some(Some([name])) =
                other.strip_prefix("request.headers").map(brackets).as_ref().map(Option::as_deref)
            {
                return Ok(ConditionKey::RequestHeader(name.to_ascii_lowercase().into()));
            }
            let of_filter = other.strip_prefix("experimental.").and_then(|rest| rest.split_once('['));
            if let Some((filter, key)) = of_filter.filter(|(filter, _)| filter.starts_with("envoy.filters."))
            {
                if FILTERS.contains(&filter) {
                    let key = key.strip_suffix(']').unwrap_or(key);
                    return Ok(ConditionKey::Metadata(filter.into(), key.into()));
                }
                let known = FILTERS.join(" and ");
                return Err(format!("nothing here is known of \"{filter}\"; metadata is of {known}"));
            }
            return Err(format!("there is no condition \"{other}\""));
        }
    })
}

/// `[a][b]`
fn brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let parts: Vec<_> = inner.split("][").collect();
    parts.iter().all(|part| !part.is_empty() && !part.contains(['[', ']'])).then_some(parts)
}

/// `[text]` is one of a list.
fn metadata(text: &str) -> ConditionValue {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(_) => ConditionValue::InList(string(text.trim_matches(['[', ']']))),
        None => ConditionValue::String(string(text)),
    }
}

/// An empty text matches nothing that could be meant.
fn not_empty(list: &[String], place: &str, field: &str) -> Result<(), Problem> {
    match list.iter().position(String::is_empty) {
        Some(at) => {
            Err(("InvalidValue", format!("{place}.{field}[{at}]"), "an empty text fits nothing".into()))
        }
        None => Ok(()),
    }
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
    let strings = |list: &[String], field: &str| -> Result<Vec<StringMatch>, Problem> {
        not_empty(list, place, field)?;
        Ok(list.iter().map(|s| string(s)).collect())
    };
    let translated = PolicyOperation {
        hosts: strings(&o.hosts, "hosts")?,
        not_hosts: strings(&o.not_hosts, "notHosts")?,
        ports: ports(&o.ports, place, "ports")?,
        not_ports: ports(&o.not_ports, place, "notPorts")?,
        methods: strings(&o.methods, "methods")?,
        not_methods: strings(&o.not_methods, "notMethods")?,
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

/// Istio's notation of a text.
pub(crate) fn string(text: &str) -> StringMatch {
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

pub(crate) fn paths(list: &[String], place: &str, field: &str) -> Result<Vec<StringMatch>, Problem> {
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
    not_empty(list, place, field)?;
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
