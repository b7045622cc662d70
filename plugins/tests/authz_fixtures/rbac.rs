//! Envoy's RBAC filter, read literally from the generated filters and evaluated by regular expressions where it does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;
use serde_json::Value;

use crate::requests::Request;
use crate::yaml::Yaml;
use crate::{Keep, Kind};

/// What a chain of filters makes of a request; policies by id.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    pub allowed: bool,
    pub matched: Option<String>,
    pub logged: Option<String>,
    pub dry_run_deny: Option<String>,
    pub dry_run_allow: Option<String>,
    /// Of CUSTOM policies.
    pub asked: Vec<String>,
}

const BAD: &str = "-deny-due-to-bad-CUSTOM-action";

pub fn decide(filters: &[Yaml], keep: Keep, request: &Request) -> Verdict {
    let mut verdict = Verdict { allowed: true, ..Verdict::default() };
    for filter in filters {
        let config = filter.at("typedConfig");
        if filter.at("name").text().is_some_and(|name| name.ends_with("ext_authz")) {
            continue;
        }
        if let Some(shadow) = config.get("shadowRules") {
            let matched = first_policy(shadow, keep, request);
            match shadow.at("action").text() {
                Some("DENY") if config.at("shadowRulesStatPrefix").text() == Some("istio_ext_authz_") => {
                    verdict.asked.extend(matched);
                }
                Some("DENY") => verdict.dry_run_deny = matched,
                None => verdict.dry_run_allow = matched,
                other => panic!("{other:?}"),
            }
        }
        let Some(rules) = config.get("rules") else { continue };
        let matched = first_policy(rules, keep, request);
        match rules.at("action").text() {
            Some("LOG") => verdict.logged = matched,
            // What istiod makes of CUSTOM where the provider is no good.
            Some("DENY") if matched.as_ref().is_some_and(|id| id.ends_with(BAD)) => {
                verdict.asked.extend(matched.map(|id| id.trim_end_matches(BAD).to_owned()));
            }
            Some("DENY") if matched.is_some() => return Verdict { allowed: false, matched, ..verdict },
            Some("DENY") => {}
            None => {
                verdict.allowed = matched.is_some();
                verdict.matched = matched;
            }
            other => panic!("{other:?}"),
        }
    }
    verdict
}

/// Envoy keeps policies in a map ordered by id.
fn first_policy(rules: &Yaml, keep: Keep, request: &Request) -> Option<String> {
    let any = |matchers: &Yaml| matchers.items().iter().any(|m| evaluate(m, keep, request).unwrap_or(true));
    let matching = rules
        .at("policies")
        .entries()
        .iter()
        .filter(|(_, policy)| any(policy.at("permissions")) && any(policy.at("principals")));
    matching.map(|(id, _)| id.clone()).min()
}

/// `None` if nothing of the matcher is kept.
fn evaluate(matcher: &Yaml, keep: Keep, request: &Request) -> Option<bool> {
    let (name, value) = &matcher.entries()[0];
    let children_of = |list: &str, keep: Keep| -> Option<Vec<bool>> {
        let kept: Vec<bool> =
            value.at(list).items().iter().filter_map(|m| evaluate(m, keep, request)).collect();
        (!kept.is_empty()).then_some(kept)
    };
    let children = |list: &str| children_of(list, keep);
    let all = |kept: Vec<bool>| kept.into_iter().all(|b| b);
    let some = |kept: Vec<bool>| kept.into_iter().any(|b| b);
    let kept = |kind: Kind, matches: Option<bool>| matches.filter(|_| keep.kind(kind));
    match &**name {
        "any" => Some(true),
        "andRules" => children("rules").map(all),
        "andIds" => match bearer(value.at("ids").items()) {
            Some(any) if any && !keep.star => None,
            Some(_) => children_of("ids", Keep { star: true, ..keep }).map(all),
            None => children("ids").map(all),
        },
        "orRules" => children("rules").map(some),
        "orIds" => children("ids").map(some),
        "notRule" | "notId" => evaluate(value, keep, request).map(|b| !b),
        "header" => header(value, keep, request),
        "urlPath" => kept(Kind::Path, string(value.at("path"), keep, request.head.path())),
        "uriTemplate" => kept(Kind::Path, Some(template(value.at("typedConfig.pathTemplate"), request))),
        "requestedServerName" => {
            kept(Kind::ServerName, string(value, keep, request.server_name.as_deref().unwrap_or("")))
        }
        "destinationPort" => {
            kept(Kind::Port, Some(value.text().unwrap() == request.local.port().to_string()))
        }
        "destinationIp" => kept(Kind::Local, Some(within(value, request.local.ip()))),
        "directRemoteIp" => kept(Kind::Peer, Some(within(value, request.peer))),
        "remoteIp" => kept(Kind::Client, Some(within(value, request.client))),
        "authenticated" => kept(Kind::Identity, authenticated(value.at("principalName"), keep, request)),
        "metadata" => metadata(value, keep, request),
        other => panic!("unknown matcher {other}"),
    }
}

/// Whether these are issuer and subject of a token, and if so, whether any do.
fn bearer(ids: &[Yaml]) -> Option<bool> {
    let [issuer, subject] = ids else { return None };
    let claim = |id: &Yaml, name: &str| -> Option<bool> {
        let [_, last] = id.at("metadata.path").items() else { return None };
        let text = id.at("metadata.value.stringMatch");
        (last.at("key").text() == Some(name) && !text.entries().is_empty())
            .then(|| text.at("safeRegex.regex").text() == Some(".+"))
    };
    Some(claim(issuer, "iss")? && claim(subject, "sub")?)
}

/// True if any name of the peer's certificate matches.
fn authenticated(name: &Yaml, keep: Keep, request: &Request) -> Option<bool> {
    if !keep.star && name.at("safeRegex.regex").text() == Some(".*/ns/.*/.*") {
        return None;
    }
    let names = request.identity.iter().flat_map(|peer| {
        peer.uris.iter().chain(&peer.dns).chain(std::iter::once(&peer.subject)).map(|name| &**name)
    });
    string(name, keep, "")?;
    Some(names.into_iter().any(|value| string(name, keep, value) == Some(true)))
}

fn metadata(matcher: &Yaml, keep: Keep, request: &Request) -> Option<bool> {
    let mut path = matcher.at("path").items().iter().map(|part| part.at("key").text().unwrap());
    let (kind, mut value) = match matcher.at("filter").text().unwrap() {
        "envoy.filters.http.jwt_authn" => {
            assert_eq!(path.next(), Some("payload"));
            let first = path.next().unwrap();
            (Kind::Token, request.metadata.tokens.first().and_then(|token| token.claims.get(first)))
        }
        filter => {
            let filter = filter.replace(".a.b", ".http.ext_authz");
            let of_filter = request.metadata.dynamic.get(&filter);
            (Kind::Metadata, of_filter.and_then(|values| values.get(path.next().unwrap())))
        }
    };
    for name in path {
        value = value.and_then(|value| value.get(name));
    }
    if !keep.kind(kind) {
        return None;
    }
    value_matches(matcher.at("value"), keep, value)
}

/// A value that is missing is of no type.
fn value_matches(matcher: &Yaml, keep: Keep, value: Option<&Value>) -> Option<bool> {
    let (name, inner) = &matcher.entries()[0];
    match &**name {
        "stringMatch" => {
            string(inner, keep, "")?;
            Some(value.and_then(Value::as_str).is_some_and(|text| string(inner, keep, text) == Some(true)))
        }
        "orMatch" => {
            let all = inner.at("valueMatchers").items().iter();
            let kept: Vec<bool> = all.filter_map(|m| value_matches(m, keep, value)).collect();
            (!kept.is_empty()).then(|| kept.into_iter().any(|b| b))
        }
        "listMatch" => {
            let one = inner.at("oneOf");
            value_matches(one, keep, None)?;
            let items = value.and_then(Value::as_array).into_iter().flatten();
            Some(items.into_iter().any(|item| value_matches(one, keep, Some(item)) == Some(true)))
        }
        other => panic!("unknown matcher {other}"),
    }
}

/// True if any of the header's fields matches.
fn header(matcher: &Yaml, keep: Keep, request: &Request) -> Option<bool> {
    let name = matcher.at("name").text().unwrap();
    let (kind, values) = match name {
        ":authority" => (Kind::Host, vec![request.head.authority.clone()]),
        ":method" => (Kind::Method, vec![request.head.method.as_str().to_owned()]),
        _ => {
            let name = name.to_ascii_lowercase();
            (
                Kind::Header,
                request
                    .head
                    .headers
                    .get_all(&name)
                    .map(|v| String::from_utf8_lossy(v).into_owned())
                    .collect(),
            )
        }
    };
    if !keep.kind(kind) {
        return None;
    }
    if matcher.get("presentMatch").is_some() {
        return keep.star.then_some(!values.is_empty());
    }
    let matches = |value: &String| match matcher.at("safeRegexMatch.regex").text() {
        Some(regex) => full_match(regex, value),
        None => string(matcher.at("stringMatch"), keep, value).unwrap(),
    };
    Some(values.iter().any(matches))
}

fn string(matcher: &Yaml, keep: Keep, value: &str) -> Option<bool> {
    let ignore_case = matcher.at("ignoreCase").text() == Some("true");
    let fold = |text: &str| if ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let value = fold(value);
    let text = |field: &str| matcher.at(field).text().map(fold);
    if let Some(exact) = text("exact") {
        Some(value == exact)
    } else if let Some(prefix) = text("prefix") {
        Some(value.starts_with(&prefix))
    } else if let Some(suffix) = text("suffix") {
        Some(value.ends_with(&suffix))
    } else {
        let regex = matcher.at("safeRegex.regex").text().unwrap();
        (keep.star || regex != ".+").then(|| full_match(regex, &value))
    }
}

fn full_match(regex: &str, value: &str) -> bool {
    thread_local!(static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default());
    COMPILED.with_borrow_mut(|compiled| {
        let new = || Regex::new(&format!("^(?:{regex})$")).unwrap();
        compiled.entry(regex.to_owned()).or_insert_with(new).is_match(value)
    })
}

/// By the expression that Envoy's documentation describes; the fixtures' templates have no special characters.
fn template(template: &Yaml, request: &Request) -> bool {
    const ONE: &str = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=]+";
    const MANY: &str = r"[a-zA-Z0-9\-._~%!$&'()*+,;:@=/]*";
    let segments = template.text().unwrap().split('/').map(|segment| match segment {
        "*" => ONE,
        "**" => MANY,
        literal => literal,
    });
    full_match(&segments.collect::<Vec<_>>().join("/"), request.head.path())
}

fn within(range: &Yaml, address: IpAddr) -> bool {
    let prefix: IpAddr = range.at("addressPrefix").text().unwrap().parse().unwrap();
    let len = range.at("prefixLen").text().unwrap().parse().unwrap();
    IpNet::new(prefix, len).unwrap().contains(&address)
}
