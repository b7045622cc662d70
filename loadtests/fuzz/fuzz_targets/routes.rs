//! Any routes and any request: the index finds what reading Gateway API aloud finds, also after changes one by one, and
//! `explain` agrees with it.

#![no_main]

use std::sync::Arc;

use fieldgate_core::ir::{
    Attachment, ClientTrust, Config, Hostname, Listener, ListenerKey, Match, ObjectKey, PathMatch, Route,
    Rule, Timeouts, Touched, ValueMatch,
};
use fieldgate_core::{Method, RequestHead, Snapshot};
use fieldgate_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;
use regex::Regex;

const HOSTS: [&str; 6] = ["a.example", "b.example", "x.a.example", "example", "y.x.a.example", "com"];
const PATHS: [&str; 10] = ["/", "/a", "/a/b", "/a/b/c", "/ab", "/b", "/a//b", "/%2F", "/a.b", "/a/b/c/d/e/f"];
const PATTERNS: [&str; 8] = ["/a.*", "/[ab]", "/.+", ".*", "/a|/b", "(?i)/A", "(?x) /a # x", "a)|(b"];

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let before: Vec<Route> = (0..input.below(6)).map(|at| route(&mut input, at)).collect();
    let after: Vec<Route> = (0..input.below(6)).map(|at| route(&mut input, at)).collect();
    let mut snapshot = Snapshot::compile(None, config(&before), &Touched::All, 1);
    let mut current = config(&before);
    let mut in_force = compiled(&[], &before);
    let heads: Vec<RequestHead> = (0..4).map(|_| request(&mut input)).collect();
    check(&snapshot, &in_force, &heads);
    for at in 0..before.len().max(after.len()) {
        match after.get(at) {
            Some(route) => drop(current.routes.insert(key(at), Arc::new(route.clone()))),
            None => drop(current.routes.remove(&key(at))),
        }
        snapshot = Snapshot::compile(Some(&snapshot), current.clone(), &Touched::Routes(vec![key(at)]), 2);
    }
    in_force = compiled(&in_force, &after);
    check(&snapshot, &in_force, &heads);
    let mut slots: Vec<u32> = snapshot.rules().map(|r| r.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), snapshot.rules().count(), "no two rules share a slot");
});

fn check(snapshot: &Snapshot, routes: &[Route], heads: &[RequestHead]) {
    for head in heads {
        let table = snapshot.address(([127, 0, 0, 1], 80).into()).expect("a listener");
        let listener = table.listener_for(head.host()).expect("it takes any host");
        let found = listener.route(head);
        let id = found.map(|e| e.rule.ir.id.to_string());
        assert_eq!(id, oracle(routes, head), "{head:?}\n{routes:#?}");
        let explained = listener.table.explain(head);
        assert_eq!(explained.winner.map(|e| e.rule.ir.id.to_string()), id);
        assert!(explained.others.iter().all(|o| !o.why.is_empty()));
        if let Some(entry) = found {
            assert!(entry.prefix_len <= head.path().len());
        }
    }
}

/// The routes in force: one with a bad expression keeps its last good version.
fn compiled(before: &[Route], now: &[Route]) -> Vec<Route> {
    let good = |route: &&Route| {
        route.rules.iter().flat_map(|r| &r.matches).all(|m| {
            let values = m.headers.iter().chain(&m.query).map(|(_, v)| v);
            let path = match &m.path {
                PathMatch::Regex(p) => Some(p),
                _ => None,
            };
            let patterns = values.filter_map(|v| match v {
                ValueMatch::Regex(p) => Some(p),
                ValueMatch::Exact(_) => None,
            });
            path.into_iter().chain(patterns).all(|p| whole(p).is_some())
        })
    };
    let last = |route: &Route| before.iter().find(|b| b.key == route.key).cloned();
    now.iter().filter_map(|route| if good(&route) { Some(route.clone()) } else { last(route) }).collect()
}

/// The winner by reading the specification aloud: no index, no early end.
fn oracle(routes: &[Route], head: &RequestHead) -> Option<String> {
    let fits = |h: &Option<Hostname>| h.as_ref().is_none_or(|h| host_fits(h, head.host()));
    let rank = |h: &Option<Hostname>| match h {
        Some(Hostname::Exact(h)) => (2, h.len()),
        Some(Hostname::Wildcard(h)) => (1, h.len()),
        None => (0, 0),
    };
    let hosts = || routes.iter().flat_map(|r| r.attachments[0].hostnames.iter().map(move |h| (r, h)));
    let usable = |r: &Route| r.rules.iter().any(|rule| !rule.matches.is_empty());
    let best = hosts().filter(|(r, h)| fits(h) && usable(r)).map(|(_, h)| rank(h)).max()?;
    let mut winners = Vec::new();
    for (route, _) in hosts().filter(|(_, h)| fits(h) && rank(h) == best) {
        for (at, rule) in route.rules.iter().enumerate() {
            for (index, m) in rule.matches.iter().enumerate() {
                let Some(path) = path_rank(&m.path, head.path()).filter(|_| conditions(m, head)) else {
                    continue;
                };
                let counts = (m.method.is_none(), usize::MAX - m.headers.len(), usize::MAX - m.query.len());
                let age = (route.created.unwrap_or(i64::MAX), route.key.name.clone());
                winners.push(((path, counts, age, at, index), rule.id.to_string()));
            }
        }
    }
    winners.into_iter().min().map(|(_, id)| id)
}

fn host_fits(pattern: &Hostname, host: &str) -> bool {
    match pattern {
        Hostname::Exact(name) => **name == *host,
        Hostname::Wildcard(name) => {
            host.strip_suffix(&format!(".{name}")).is_some_and(|label| !label.is_empty())
        }
    }
}

/// Exact, then prefix by length, then regular expression by length.
fn path_rank(wanted: &PathMatch, path: &str) -> Option<(u8, usize)> {
    match wanted {
        PathMatch::Exact(p) => (**p == *path).then_some((0, 0)),
        PathMatch::Prefix(p) if &**p == "/" => Some((1, usize::MAX - 1)),
        PathMatch::Prefix(p) => {
            let wanted: Vec<&str> = p.split('/').collect();
            let given: Vec<&str> = path.split('/').collect();
            given.starts_with(&wanted).then_some((1, usize::MAX - p.len()))
        }
        PathMatch::Regex(p) => whole(p)?.is_match(path).then_some((2, usize::MAX - p.len())),
    }
}

fn conditions(m: &Match, head: &RequestHead) -> bool {
    let fits = |wanted: &ValueMatch, got: Option<Vec<u8>>| match (wanted, got) {
        (_, None) => false,
        (ValueMatch::Exact(v), Some(got)) => got == v.as_bytes(),
        (ValueMatch::Regex(p), Some(got)) => {
            String::from_utf8(got).is_ok_and(|got| whole(p).is_some_and(|r| r.is_match(&got)))
        }
    };
    let header = |name: &str| {
        let all: Vec<&[u8]> = head.headers.get_all(name).collect();
        (!all.is_empty()).then(|| all.join(&b","[..]))
    };
    let query = |name: &str| {
        let mut pairs = head.query()?.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        pairs.find(|(n, _)| *n == name).map(|(_, v)| v.as_bytes().to_vec())
    };
    m.method.as_ref().is_none_or(|w| **w == *head.method.as_str())
        && m.headers.iter().all(|(n, w)| fits(w, header(n)))
        && m.query.iter().all(|(n, w)| fits(w, query(n)))
}

/// The expression for the whole text; the end of a comment must not be the end of the group.
fn whole(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()?;
    Regex::new(&format!(r"\A(?:{pattern})\z")).or_else(|_| Regex::new(&format!("\\A(?:{pattern}\n)\\z"))).ok()
}

fn config(routes: &[Route]) -> Config {
    let mut config = Config::default();
    let listener = Listener {
        key: listener(),
        addresses: vec![([127, 0, 0, 1], 80).into()],
        hostname: None,
        tls: None,
        client: ClientTrust::default(),
        labels: Arc::new([]),
    };
    config.listeners.insert(listener.key.clone(), Arc::new(listener));
    for route in routes {
        config.routes.insert(route.key.clone(), Arc::new(route.clone()));
    }
    config
}

fn listener() -> ListenerKey {
    ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: "web".into() }
}

fn key(at: usize) -> ObjectKey {
    ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: format!("r{at}").into() }
}

fn route(input: &mut Input<'_>, at: usize) -> Route {
    let mut hostnames: Vec<Option<Hostname>> = Vec::new();
    for _ in 0..=input.below(3) {
        let name: Arc<str> = input.one_of(&HOSTS).into();
        let host = match input.below(3) {
            0 => None,
            1 => Some(Hostname::Exact(name)),
            _ => Some(Hostname::Wildcard(name)),
        };
        if !hostnames.contains(&host) {
            hostnames.push(host);
        }
    }
    let created = input.rarely(2).then(|| input.below(3) as i64);
    let rules = (0..=input.below(3)).map(|rule| {
        Arc::new(Rule {
            id: format!("r{at}#{rule}").into(),
            matches: (0..=input.below(3)).map(|_| one_match(input)).collect(),
            ..Rule::default()
        })
    });
    let rules = rules.collect();
    Route { key: key(at), created, attachments: vec![Attachment { listener: listener(), hostnames }], rules }
}

fn one_match(input: &mut Input<'_>) -> Match {
    let path = match input.below(4) {
        0 => PathMatch::Exact(path(input).into()),
        1 | 2 => {
            let path = path(input);
            let trimmed = path.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
        }
        _ => PathMatch::Regex(pattern(input).into()),
    };
    let method = input.rarely(3).then(|| input.one_of(&["GET", "POST"]).into());
    let mut named = |names: [&str; 2]| -> Vec<(Arc<str>, ValueMatch)> {
        let mut all = Vec::new();
        for name in names {
            if input.rarely(4) {
                let value = if input.rarely(3) {
                    ValueMatch::Regex(pattern(input).into())
                } else {
                    ValueMatch::Exact(input.one_of(&["1", "2", "1,2", ""]).into())
                };
                all.push((name.into(), value));
            }
        }
        all
    };
    let (headers, query) = (named(["x-a", "x-b"]), named(["q", "r"]));
    Match { path, method, headers, query }
}

fn path(input: &mut Input<'_>) -> String {
    if input.rarely(4) { format!("/{}", input.text()) } else { input.one_of(&PATHS).to_owned() }
}

/// Bounded, so that the time goes into matching and not into compiling.
fn pattern(input: &mut Input<'_>) -> String {
    if input.rarely(4) { input.text().chars().take(16).collect() } else { input.one_of(&PATTERNS).to_owned() }
}

fn request(input: &mut Input<'_>) -> RequestHead {
    let host = if input.rarely(6) { input.text() } else { input.one_of(&HOSTS).to_owned() };
    let mut head = RequestHead { authority: host, ..RequestHead::default() };
    head.method = Method::from_bytes(input.one_of(&["GET", "POST", "HEAD"]).as_bytes());
    let query = ["", "?q=1", "?r=2&q=x&q=1", "?q", "?&=&r="];
    head.set_target(&format!("{}{}", path(input), input.one_of(&query)));
    for _ in 0..input.below(3) {
        let name = input.one_of(&["x-a", "X-B"]);
        let value = if input.rarely(4) { input.line() } else { input.one_of(&["1", "2", ""]).as_bytes() };
        head.headers.push(name.as_bytes(), value);
    }
    head
}
