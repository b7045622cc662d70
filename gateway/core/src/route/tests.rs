//! Tables against a linear oracle that is written from Gateway API's text and knows no index.

use std::cmp::Ordering;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::select;

use super::samples::{config, get, host, listener_key, prefix, route, rule, with_header};
use super::*;
use crate::Snapshot;
use crate::head::Method;
use crate::ir::{self, Attachment, Match, ObjectKey, Touched, ValueMatch};

/// Which match of which rule of which route.
type Found = (ObjectKey, usize, usize);

fn table(config: &ir::Config) -> Table {
    let snapshot = Snapshot::compile(None, config.clone(), &Touched::All, 1);
    assert_eq!(snapshot.rejections, []);
    table_of(&snapshot)
}

fn table_of(snapshot: &Snapshot) -> Table {
    let web = snapshot.listeners().find(|l| l.ir.key == listener_key("web"));
    web.map(|l| l.table.clone()).unwrap_or_default()
}

fn found(entry: &Arc<Entry>) -> Found {
    ((*entry.rule.route).clone(), entry.precedence.rule as usize, entry.precedence.matched as usize)
}

/// The route that takes a GET.
fn taken(table: &Table, authority: &str, target: &str) -> Option<String> {
    table.find(&get(authority, target)).map(|e| e.rule.route.name.to_string())
}

#[test]
fn the_most_specific_host_name_decides_alone() {
    let table = table(&config([
        route("exact", &["shop.example.com"], vec![prefix("/only")]),
        route("longer", &["*.shop.example.com"], vec![prefix("/")]),
        route("shorter", &["*.example.com"], vec![prefix("/")]),
        route("any", &[], vec![prefix("/")]),
    ]));
    for (authority, target, expected) in [
        ("shop.example.com", "/only", Some("exact")),
        ("shop.example.com:8080", "/only", Some("exact")),
        // No second chance under `*.example.com`.
        ("shop.example.com", "/other", None),
        ("a.shop.example.com", "/", Some("longer")),
        ("a.b.shop.example.com", "/", Some("longer")),
        ("other.example.com", "/", Some("shorter")),
        ("a.other.example.com", "/", Some("shorter")),
        // A wildcard stands for one label at least.
        ("example.com", "/", Some("any")),
        (".example.com", "/", Some("any")),
        ("example.org", "/", Some("any")),
        ("", "/", Some("any")),
    ] {
        assert_eq!(taken(&table, authority, target).as_deref(), expected, "{authority}{target}");
    }
}

#[test]
fn hosts_of_many_labels_are_found_by_the_wildcards_there_are() {
    for (host, most, expected) in [
        ("a.b.c", 9, vec!["b.c", "c"]),
        ("a.b.c", 2, vec!["b.c", "c"]),
        ("a.b.c", 1, vec!["c"]),
        (".b.c", 9, vec!["c"]),
        ("..c", 9, vec!["c"]),
        ("c", 9, vec![]),
        ("", 9, vec![]),
    ] {
        assert_eq!(wildcard_suffixes(host, most).collect::<Vec<_>>(), expected, "{host} {most}");
    }
}

#[test]
fn a_host_name_that_lost_its_last_route_hides_nothing() {
    let any = route("any", &["*.example.com"], vec![prefix("/")]);
    let mut both = config([any.clone(), route("exact", &["a.example.com"], vec![prefix("/")])]);
    let before = Snapshot::compile(None, both.clone(), &Touched::All, 1);
    assert_eq!(taken(&table_of(&before), "a.example.com", "/").as_deref(), Some("exact"));
    both.routes.remove(&super::samples::route_key("exact"));
    let after = Snapshot::compile(Some(&before), both, &Touched::All, 2);
    assert_eq!(taken(&table_of(&after), "a.example.com", "/").as_deref(), Some("any"));
}

#[test]
fn a_route_without_rules_takes_no_host_name() {
    let table = table(&config([
        route("empty", &["a.example.com"], vec![]),
        route("any", &["*.example.com"], vec![prefix("/")]),
    ]));
    assert_eq!(taken(&table, "a.example.com", "/").as_deref(), Some("any"));
}

#[test]
fn what_a_prefix_takes_of_the_path() {
    let exact = Match { path: PathMatch::Exact("/e".into()), ..Match::default() };
    let table = table(&config([route("r", &[], vec![prefix("/"), prefix("/a/b"), exact])]));
    for (target, expected) in [("/", 0), ("/x", 0), ("/a/b", 4), ("/a/b/c", 4), ("/e", 0)] {
        assert_eq!(table.find(&get("h", target)).unwrap().prefix_len, expected, "{target}");
    }
}

#[test]
fn explaining_a_request() {
    let winner = route("winner", &["shop.example"], vec![prefix("/a/b")]);
    let canary = with_header(prefix("/a/b"), "x-canary", "true");
    let near = route("near", &["shop.example"], vec![prefix("/a"), canary, prefix("/zzz")]);
    let hidden = route("hidden", &["*.example"], vec![prefix("/")]);
    let table = table(&config([winner, near, hidden]));

    let told = table.explain(&get("shop.example", "/a/b/c"));
    assert_eq!(told.host, Some(Some(host("shop.example"))));
    assert_eq!(&*told.winner.unwrap().rule.ir.id, "default/winner#0");
    let others: Vec<_> = told.others.iter().map(|m| (&*m.entry.rule.ir.id, &*m.why)).collect();
    assert_eq!(
        others,
        [
            ("default/near#0", "fits too, but loses: path prefix /a/b is more specific"),
            ("default/near#1", "header x-canary: wants `true`, is not there"),
            (
                "default/hidden#0",
                "fits, but under the host name `*.example`; only rules of the more specific `shop.example` are looked at"
            ),
            ("default/near#2", "path prefix /zzz does not take /a/b/c"),
        ]
    );

    let told = table.explain(&get("example.org", "/"));
    assert!(!told.host_found && told.winner.is_none() && told.others.is_empty());
    assert_eq!(told.hosts, ["*.example", "shop.example"]);
}

#[test]
fn ties_are_explained_and_the_nearest_come_first() {
    let twice = route("twice", &[], vec![prefix("/a"), prefix("/a")]);
    let far = (0..50).map(|n| prefix(&format!("/a-{n}"))).collect();
    let table = table(&config([twice, route("far", &[], far)]));
    let told = table.explain(&get("h", "/a"));
    assert_eq!(told.others.len(), 20);
    assert_eq!(told.others[0].why, "fits too, but loses to default/twice#0: it comes first in the route");
    assert!(told.others[1].why.starts_with("path prefix /a-"), "{}", told.others[1].why);
}

const SEGMENTS: [&str; 5] = ["/a", "/b", "/ab", "/", "/c"];
const HOSTS: [&str; 9] = ["x", "a.x", "b.x", "c.b.x", "d.c.b.x", ".x", ".b.x", "y", ""];

fn a_path() -> impl Strategy<Value = String> {
    prop::collection::vec(select(&SEGMENTS[..]), 1..5).prop_map(|segments| segments.concat())
}

fn a_path_match() -> impl Strategy<Value = PathMatch> {
    // Stored prefixes have no slash at the end.
    let prefix = a_path().prop_map(|p| match p.trim_end_matches('/') {
        "" => PathMatch::Prefix("/".into()),
        p => PathMatch::Prefix(p.into()),
    });
    prop_oneof![
        3 => prefix,
        2 => a_path().prop_map(|p| PathMatch::Exact(p.into())),
        1 => select(&["/a+", "/[ab]", "/.*", "/a|/b", "/(a|b)/c?", "//+"][..]).prop_map(|p| PathMatch::Regex(p.into())),
    ]
}

fn a_value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        select(&["1", "2", "1,2", ""][..]).prop_map(|v| ValueMatch::Exact(v.into())),
        select(&["1|2", "[12,]*", "1.*"][..]).prop_map(|v| ValueMatch::Regex(v.into())),
    ]
}

fn named_values(names: &'static [&'static str]) -> impl Strategy<Value = Vec<(Arc<str>, ValueMatch)>> {
    prop::collection::btree_map(select(names), a_value(), 0..3)
        .prop_map(|all| all.into_iter().map(|(n, v)| (n.into(), v)).collect())
}

fn a_match() -> impl Strategy<Value = Match> {
    let plain = a_path_match().prop_map(|path| Match { path, ..Match::default() });
    let rich = (
        a_path_match(),
        prop::option::of(select(&["GET", "POST"][..])),
        named_values(&["h1", "h2", "host"]),
        named_values(&["q1", "q2"]),
    )
        .prop_map(|(path, method, headers, query)| Match {
            path,
            method: method.map(Arc::from),
            headers: headers.into(),
            query: query.into(),
        });
    prop_oneof![plain, rich]
}

fn a_route() -> impl Strategy<Value = Arc<ir::Route>> {
    let hostnames = prop::collection::vec(
        select(&["x", "a.x", "b.x", "*.x", "*.b.x", "*.c.b.x", "*"][..])
            .prop_map(|h| (h != "*").then(|| host(h))),
        1..3,
    );
    let attachments = prop::collection::vec((select(&["web", "web", "admin"][..]), hostnames), 1..3);
    let rules = prop::collection::vec(prop::collection::vec(a_match(), 1..3), 0..4);
    (
        select(&["HTTPRoute", "GRPCRoute"][..]),
        select(&["n", "n-m", "o"][..]),
        select(&["r1", "r2", "r3", "r4", "r5", "r6", "r7"][..]),
        prop::option::of(0..3i64),
        attachments,
        rules,
    )
        .prop_map(|(kind, namespace, name, created, attachments, rules)| {
            let id = |at| format!("{namespace}/{name}#{at}");
            Arc::new(ir::Route {
                key: ObjectKey { kind, namespace: namespace.into(), name: name.into() },
                created,
                attachments: attachments
                    .into_iter()
                    .map(|(name, hostnames)| Attachment { listener: listener_key(name), hostnames })
                    .collect(),
                rules: rules.into_iter().enumerate().map(|(at, m)| rule(&id(at), m)).collect(),
            })
        })
}

fn a_request() -> impl Strategy<Value = RequestHead> {
    let fields = prop::collection::vec((select(&["h1", "h2"][..]), select(&["1", "2", ""][..])), 0..3);
    let query = prop::option::of(select(&["q1=1", "q1=2&q1=1", "q2=&q1=1", "q2", "q1=1%2C2", ""][..]));
    (select(&HOSTS[..]), a_path(), query, select(&["GET", "POST"][..]), fields).prop_map(
        |(host, path, query, method, fields)| {
            let target = query.map_or(path.clone(), |q| format!("{path}?{q}"));
            let mut head = get(host, &target);
            head.method = Method::from_bytes(method.as_bytes());
            for (name, value) in fields {
                head.headers.push(name.as_bytes(), value.as_bytes());
            }
            head
        },
    )
}

fn oracle(routes: &[Arc<ir::Route>], head: &RequestHead) -> Option<Found> {
    let web = listener_key("web");
    let attached = |route: &ir::Route| -> Vec<Option<Hostname>> {
        let here = route.attachments.iter().filter(|a| a.listener == web);
        here.flat_map(|a| a.hostnames.clone()).collect()
    };
    let specificity = |hostname: &Option<Hostname>| match hostname {
        Some(Hostname::Exact(_)) => (2, 0),
        Some(Hostname::Wildcard(h)) => (1, h.len()),
        None => (0, 0),
    };
    let chosen = routes
        .iter()
        .filter(|r| !r.rules.is_empty())
        .flat_map(|r| attached(r))
        .filter(|h| h.as_ref().is_none_or(|h| h.matches(&head.authority)))
        .max_by_key(specificity)?;
    let mut fitting = Vec::new();
    for route in routes.iter().filter(|r| attached(r).contains(&chosen)) {
        for (at, rule) in route.rules.iter().enumerate() {
            for (index, matched) in rule.matches.iter().enumerate() {
                if fits(matched, head) {
                    fitting.push((route, at, index, matched));
                }
            }
        }
    }
    fitting
        .into_iter()
        .min_by(|(r1, at1, index1, m1), (r2, at2, index2, m2)| {
            let text = |r: &ir::Route| format!("{}/{}", r.key.namespace, r.key.name);
            by_path(&m1.path, &m2.path)
                .then(m2.method.is_some().cmp(&m1.method.is_some()))
                .then(m2.headers.len().cmp(&m1.headers.len()))
                .then(m2.query.len().cmp(&m1.query.len()))
                .then(match (r1.created, r2.created) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    (a, b) => b.is_some().cmp(&a.is_some()),
                })
                .then(text(r1).cmp(&text(r2)))
                .then(r1.key.kind.cmp(r2.key.kind))
                .then(at1.cmp(at2))
                .then(index1.cmp(index2))
        })
        .map(|(route, at, index, _)| (route.key.clone(), at, index))
}

fn by_path(a: &PathMatch, b: &PathMatch) -> Ordering {
    match (a, b) {
        (PathMatch::Exact(_), PathMatch::Exact(_)) => Ordering::Equal,
        (PathMatch::Exact(_), _) | (PathMatch::Prefix(_), PathMatch::Regex(_)) => Ordering::Less,
        (_, PathMatch::Exact(_)) | (PathMatch::Regex(_), PathMatch::Prefix(_)) => Ordering::Greater,
        (PathMatch::Prefix(a), PathMatch::Prefix(b)) | (PathMatch::Regex(a), PathMatch::Regex(b)) => {
            b.len().cmp(&a.len())
        }
    }
}

fn fits(matched: &Match, head: &RequestHead) -> bool {
    let value_fits = |wanted: &ValueMatch, got: &str| match wanted {
        ValueMatch::Exact(v) => **v == *got,
        ValueMatch::Regex(p) => regex_fits(p, got),
    };
    let path = head.path();
    let path_fits = match &matched.path {
        PathMatch::Exact(p) => **p == *path,
        PathMatch::Prefix(p) => {
            let wanted: Vec<_> = p.split('/').skip(1).filter(|_| &**p != "/").collect();
            let got: Vec<_> = path.split('/').skip(1).collect();
            got.starts_with(&wanted)
        }
        PathMatch::Regex(p) => regex_fits(p, path),
    };
    let header = |name: &str| {
        if name == "host" {
            return (!head.authority.is_empty()).then(|| head.authority.clone());
        }
        let all: Vec<_> =
            head.headers.get_all(name).map(|v| String::from_utf8(v.to_vec()).unwrap()).collect();
        (!all.is_empty()).then(|| all.join(","))
    };
    let query = |name: &str| {
        let pairs = head.query()?.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        pairs.into_iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
    };
    path_fits
        && matched.method.as_ref().is_none_or(|m| **m == *head.method.as_str())
        && matched.headers.iter().all(|(n, v)| header(n).is_some_and(|got| value_fits(v, &got)))
        && matched.query.iter().all(|(n, v)| query(n).is_some_and(|got| value_fits(v, &got)))
}

fn regex_fits(pattern: &str, text: &str) -> bool {
    regex::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap().is_match(text)
}

proptest! {
    #[test]
    fn lookups_equal_the_oracle(
        routes in prop::collection::vec(a_route(), 1..20),
        requests in prop::collection::vec(a_request(), 1..20),
    ) {
        let config = config(routes);
        let routes: Vec<_> = config.routes.values().cloned().collect();
        let table = table(&config);
        for head in &requests {
            let expected = oracle(&routes, head);
            prop_assert_eq!(table.find(head).map(found), expected.clone(), "{:?}", head);
            prop_assert_eq!(table.explain(head).winner.as_ref().map(found), expected);
        }
    }

    #[test]
    fn edits_equal_a_build_from_scratch(
        first in prop::collection::vec(a_route(), 0..12),
        edits in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), a_route()), 1..24),
        requests in prop::collection::vec(a_request(), 1..12),
    ) {
        let mut config = config(first);
        let mut snapshot = Snapshot::compile(None, config.clone(), &Touched::All, 0);
        for (generation, (remove, all, toggle_listener, route)) in edits.into_iter().enumerate() {
            let key = route.key.clone();
            if remove { config.routes.remove(&key) } else { config.routes.insert(key.clone(), route) };
            if toggle_listener && generation % 4 == 0 {
                let web = super::samples::listener("web", None, 80);
                if config.listeners.remove(&web.key).is_none() {
                    config.listeners.insert(web.key.clone(), web);
                }
            }
            let touched = if all { Touched::All } else { Touched::Routes(vec![key]) };
            snapshot = Snapshot::compile(Some(&snapshot), config.clone(), &touched, generation as u64);
            let scratch = Snapshot::compile(None, config.clone(), &Touched::All, 0);
            let (edited, built) = (table_of(&snapshot), table_of(&scratch));
            prop_assert_eq!(edited.len(), built.len());
            prop_assert_eq!(edited.is_empty(), built.is_empty());
            for head in &requests {
                prop_assert_eq!(edited.find(head).map(found), built.find(head).map(found), "{:?}", head);
            }
        }
    }
}
