//! Istio's rules, read naively: texts as they are written, regular expressions as istiod writes them, no preparation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

use crate::{Asked, Field, Written, WrittenRule};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    pub(crate) audited: bool,
    pub(crate) shadow_deny: Option<bool>,
    pub(crate) shadow_allow: Option<bool>,
}

pub(crate) struct Oracle<'a> {
    pub(crate) policies: &'a [Written],
    /// Whether it is about connections.
    pub(crate) tcp: bool,
}

/// What a field says; `None` if it can only be asked of HTTP and this is not.
type Answer = Option<bool>;

impl Oracle<'_> {
    pub fn decide(&self, asked: &Asked) -> Verdict {
        let of = |action: &str, dry_run: bool| -> Vec<&Written> {
            self.policies.iter().filter(|p| p.action == action && p.dry_run == dry_run).collect()
        };
        let any =
            |policies: &[&Written]| policies.iter().any(|p| p.rules.iter().any(|r| self.rule(p, r, asked)));
        let denied = any(&of("DENY", false));
        let allow = of("ALLOW", false);
        let (trial_deny, trial_allow) = (of("DENY", true), of("ALLOW", true));
        Verdict {
            allowed: !denied && (allow.is_empty() || any(&allow)),
            audited: any(&of("AUDIT", false)),
            shadow_deny: (!trial_deny.is_empty()).then(|| !any(&trial_deny)),
            // A filter that refused leaves nothing to the next.
            shadow_allow: (!trial_allow.is_empty() && !denied).then(|| any(&trial_allow)),
        }
    }

    fn rule(&self, policy: &Written, rule: &WrittenRule, asked: &Asked) -> bool {
        let allow = policy.action == "ALLOW";
        let parts = |list: &[Vec<Field>], of: &dyn Fn(&str, &str) -> Answer| -> Option<bool> {
            let mut some = list.is_empty();
            for fields in list {
                let mut all = true;
                for (name, texts) in fields {
                    match Self::field(name, texts, of) {
                        Some(fits) => all &= fits,
                        None if allow => return None,
                        None => {}
                    }
                }
                some |= all;
            }
            Some(some)
        };
        let from = parts(&rule.from, &|name, text| self.attribute(name, text, asked));
        let to = parts(&rule.to, &|name, text| self.attribute(name, text, asked));
        let mut when = true;
        for (key, values, not) in &rule.when {
            for (texts, positive) in [(values, true), (not, false)] {
                if texts.is_empty() {
                    continue;
                }
                let fits: Option<Vec<bool>> =
                    texts.iter().map(|text| self.attribute(key, text, asked)).collect();
                match fits {
                    Some(fits) => when &= fits.contains(&true) == positive,
                    None if allow => return false,
                    None => {}
                }
            }
        }
        from == Some(true) && to == Some(true) && when
    }

    fn field(name: &str, texts: &[&str], of: &dyn Fn(&str, &str) -> Answer) -> Answer {
        let negated =
            name.strip_prefix("not").map(|rest| format!("{}{}", rest[..1].to_lowercase(), &rest[1..]));
        let plain = negated.as_deref().unwrap_or(name);
        let fits: Option<Vec<bool>> = texts.iter().map(|text| of(plain, text)).collect();
        Some(fits?.contains(&true) == negated.is_none())
    }

    fn attribute(&self, name: &str, text: &str, asked: &Asked) -> Answer {
        let http = |fits: bool| (!self.tcp).then_some(fits);
        let claim = |path: &[&str]| {
            let value = path.iter().try_fold(asked.token.as_ref()?, |value, name| value.get(name))?;
            Some(value.clone())
        };
        Some(match name {
            "ipBlocks" | "source.ip" => within(text, asked.peer),
            "remoteIpBlocks" | "remote.ip" => within(text, asked.client),
            "destination.ip" => within(text, "10.1.2.3"),
            "ports" | "destination.port" => text == asked.port.to_string(),
            "connection.sni" => pattern(text, asked.sni.unwrap_or(""), true),
            "principals" | "source.principal" => asked.uri.is_some_and(|uri| match text {
                "*" => true,
                _ => uri.strip_prefix("spiffe://").is_some_and(|rest| pattern(text, rest, true)),
            }),
            "namespaces" | "source.namespace" => {
                full(&format!(".*/ns/{}/.*", text.replace('*', ".*")), asked.uri.unwrap_or(""))
            }
            "trustDomains" => {
                let regex = format!("spiffe://{}/.*", text.replace('.', r"\.").replace('*', "[^/]*"));
                full(&regex, asked.uri.unwrap_or(""))
            }
            "serviceAccounts" | "source.serviceAccount" => {
                let (namespace, account) = text.split_once('/').unwrap_or(("a", text));
                let regex = format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?");
                full(&regex, asked.uri.unwrap_or(""))
            }
            "requestPrincipals" | "request.auth.principal" => {
                return http(bearer(text, asked.token.as_ref()));
            }
            "request.auth.audiences" => return http(value(text, claim(&["aud"]))),
            "request.auth.presenter" => return http(value(text, claim(&["azp"]))),
            "request.auth.claims[groups]" => return http(value(text, claim(&["groups"]))),
            "request.auth.claims[nested][deep]" => return http(value(text, claim(&["nested", "deep"]))),
            "request.auth.claims[scope]" => {
                let words = claim(&["scope"]).map(|value| match value.as_str() {
                    Some(words) => words.split_whitespace().map(Value::from).collect(),
                    None => value,
                });
                return http(value(text, words));
            }
            "request.headers[X-H]" => return http(asked.header.is_some_and(|v| pattern(text, v, false))),
            "hosts" => return http(pattern(&text.to_lowercase(), asked.host, false)),
            "methods" => return http(pattern(text, asked.method, false)),
            "paths" => {
                let path = asked.path.split('?').next().unwrap();
                return http(if text.contains('{') {
                    full(&text.replace("{**}", "[^?\"|]*").replace("{*}", "[^/?\"|]+"), path)
                } else {
                    pattern(text, path, true)
                });
            }
            other => panic!("{other}"),
        })
    }
}

fn within(block: &str, address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    block
        .parse::<IpNet>()
        .unwrap_or_else(|_| IpNet::from(block.parse::<IpAddr>().unwrap()))
        .contains(&address)
}

/// `*` is anything; whether an empty text is, too, is not the same for all attributes.
fn pattern(pattern: &str, text: &str, not_empty: bool) -> bool {
    if pattern == "*" {
        return !not_empty || !text.is_empty();
    }
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => text == pattern,
    }
}

fn value(text: &str, value: Option<Value>) -> bool {
    match value {
        Some(Value::String(value)) => pattern(text, &value, true),
        Some(Value::Array(items)) => items.iter().any(|i| i.as_str().is_some_and(|i| pattern(text, i, true))),
        _ => false,
    }
}

/// `issuer/subject`; the issuer may have slashes.
fn bearer(text: &str, token: Option<&Value>) -> bool {
    let Some(token) = token else { return false };
    let (Some(iss), Some(sub)) = (token["iss"].as_str(), token["sub"].as_str()) else { return false };
    if text == "*" {
        return !iss.is_empty() && !sub.is_empty();
    }
    match text.rsplit_once('/') {
        Some((issuer, subject)) if text.starts_with('*') => pattern(issuer, iss, true) && sub == subject,
        Some((issuer, subject)) => iss == issuer && pattern(subject, sub, true),
        None if text.starts_with('*') => !iss.is_empty() && pattern(text, sub, true),
        None if text.ends_with('*') => pattern(text, iss, true) && !sub.is_empty(),
        None => iss == text && sub.is_empty(),
    }
}

fn full(regex: &str, text: &str) -> bool {
    thread_local!(static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default());
    COMPILED.with_borrow_mut(|compiled| {
        let new = || Regex::new(&format!("^(?:{regex})$")).unwrap();
        compiled.entry(regex.to_owned()).or_insert_with(new).is_match(text)
    })
}
