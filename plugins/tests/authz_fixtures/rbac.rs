//! Envoy's RBAC filter, read literally from the generated filters and evaluated by regular expressions where it does.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use regex::Regex;

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
}

pub fn decide(filters: &[Yaml], keep: Keep, request: &Request) -> Verdict {
    let mut verdict = Verdict { allowed: true, ..Verdict::default() };
    for filter in filters {
        let config = filter.at("typedConfig");
        if let Some(shadow) = config.get("shadowRules") {
            let matched = first_policy(shadow, keep, request);
            match shadow.at("action").text() {
                Some("DENY") => verdict.dry_run_deny = matched,
                None => verdict.dry_run_allow = matched,
                other => panic!("{other:?}"),
            }
        }
        let Some(rules) = config.get("rules") else { continue };
        let matched = first_policy(rules, keep, request);
        match rules.at("action").text() {
            Some("LOG") => verdict.logged = matched,
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
    let children = |list: &str| -> Option<Vec<bool>> {
        let kept: Vec<bool> =
            value.at(list).items().iter().filter_map(|m| evaluate(m, keep, request)).collect();
        (!kept.is_empty()).then_some(kept)
    };
    let all = |kept: Vec<bool>| kept.into_iter().all(|b| b);
    let some = |kept: Vec<bool>| kept.into_iter().any(|b| b);
    let kept = |kind: Kind, matches: Option<bool>| matches.filter(|_| keep.kind(kind));
    match &**name {
        "any" => Some(true),
        "andRules" => children("rules").map(all),
        "andIds" => children("ids").map(all),
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
        // What needs JWT or mTLS.
        "authenticated" | "metadata" => None,
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
