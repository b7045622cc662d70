//! Routing against a naive oracle written from Gateway API's text, and incremental compiles against whole ones.

use std::sync::Arc;

use fieldgate_core::ir::{
    self, Attachment, Hostname, ListenerKey, Match, ObjectKey, PathMatch, Route, Rule, Touched, ValueMatch,
};
use fieldgate_core::{Method, RequestHead, Snapshot};
use proptest::prelude::*;

fn listener() -> ListenerKey {
    ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: "web".into() }
}

fn config(routes: &[Route]) -> ir::Config {
    let mut config = ir::Config::default();
    config.listeners.insert(
        listener(),
        Arc::new(ir::Listener {
            key: listener(),
            addresses: vec!["127.0.0.1:80".parse().unwrap()],
            hostname: None,
            tls: None,
            client: ir::ClientTrust::default(),
            labels: Arc::new([]),
            guards: [].into(),
        }),
    );
    for route in routes {
        config.routes.insert(route.key.clone(), Arc::new(route.clone()));
    }
    config
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: name.into() }
}

fn route(name: &str, created: Option<i64>, hosts: Vec<Option<Hostname>>, rules: Vec<Vec<Match>>) -> Route {
    let rules = rules.into_iter().enumerate().map(|(at, matches)| {
        Arc::new(Rule { id: format!("{name}#{at}").into(), matches: matches.into(), ..Rule::default() })
    });
    Route {
        key: key(name),
        created,
        attachments: vec![Attachment { listener: listener(), hostnames: hosts }],
        rules: rules.collect(),
    }
}

fn found(snapshot: &Snapshot, head: &RequestHead) -> Option<String> {
    let table = snapshot.address("127.0.0.1:80".parse().unwrap())?;
    Some(table.listener_for(head.host())?.route(head)?.rule.ir.id.to_string())
}

/// The winner by reading the specification aloud: no index, no early end.
fn oracle(routes: &[Route], head: &RequestHead) -> Option<String> {
    let fits_host = |h: &Option<Hostname>| h.as_ref().is_none_or(|h| h.matches(head.host()));
    let rank = |h: &Option<Hostname>| match h {
        Some(Hostname::Exact(h)) => (2, h.len()),
        Some(Hostname::Wildcard(h)) => (1, h.len()),
        None => (0, 0),
    };
    let hosts = || routes.iter().flat_map(|r| r.attachments[0].hostnames.iter().map(move |h| (r, h)));
    let best = hosts().filter(|(_, h)| fits_host(h)).map(|(_, h)| rank(h)).max()?;
    let mut winners = Vec::new();
    for (route, _) in hosts().filter(|(_, h)| fits_host(h) && rank(h) == best) {
        for (at, rule) in route.rules.iter().enumerate() {
            for (index, m) in rule.matches.iter().enumerate() {
                if let Some(path) = path_rank(&m.path, head.path())
                    && conditions(m, head)
                {
                    let order = (
                        path,
                        m.method.is_none(),
                        usize::MAX - m.headers.len(),
                        usize::MAX - m.query.len(),
                        route.created.unwrap_or(i64::MAX),
                        route.key.name.clone(),
                        at,
                        index,
                    );
                    winners.push((order, rule.id.to_string()));
                }
            }
        }
    }
    winners.into_iter().min().map(|(_, id)| id)
}

/// Exact, then prefix by length, then regular expression by length.
fn path_rank(wanted: &PathMatch, path: &str) -> Option<(u8, usize)> {
    match wanted {
        PathMatch::Exact(p) => (**p == *path).then_some((0, 0)),
        PathMatch::Prefix(p) => {
            let wanted: Vec<&str> = p.split('/').filter(|s| !s.is_empty()).collect();
            let given: Vec<&str> = path[1..].split('/').collect();
            given.starts_with(&wanted).then_some((1, usize::MAX - p.len()))
        }
        PathMatch::Regex(p) => {
            let regex = regex::Regex::new(&format!("^({p})$")).unwrap();
            regex.is_match(path).then_some((2, usize::MAX - p.len()))
        }
    }
}

fn conditions(m: &Match, head: &RequestHead) -> bool {
    let fits = |wanted: &ValueMatch, got: Option<String>| match wanted {
        ValueMatch::Exact(v) => got.is_some_and(|g| g == **v),
        ValueMatch::Regex(p) => {
            got.is_some_and(|g| regex::Regex::new(&format!("^({p})$")).unwrap().is_match(&g))
        }
    };
    let header = |name: &str| head.headers.get(name).map(|v| String::from_utf8_lossy(v).into_owned());
    let query = |name: &str| {
        let pairs = head.query()?.split('&').filter_map(|p| p.split_once('='));
        pairs.filter(|(n, _)| *n == name).map(|(_, v)| v.to_owned()).next()
    };
    m.method.as_ref().is_none_or(|w| **w == *head.method.as_str())
        && m.headers.iter().all(|(n, w)| fits(w, header(n)))
        && m.query.iter().all(|(n, w)| fits(w, query(n)))
}

fn hosts() -> impl Strategy<Value = Option<Hostname>> {
    prop_oneof![
        Just(None),
        prop::sample::select(vec!["a.example", "b.example", "x.a.example"])
            .prop_map(|h| Some(Hostname::Exact(h.into()))),
        prop::sample::select(vec!["example", "a.example"]).prop_map(|h| Some(Hostname::Wildcard(h.into()))),
    ]
}

fn paths() -> impl Strategy<Value = PathMatch> {
    let plain = prop::sample::select(vec!["/", "/a", "/a/b", "/a/b/c", "/ab", "/b"]);
    prop_oneof![
        plain.clone().prop_map(|p| PathMatch::Exact(p.into())),
        plain.prop_map(|p| PathMatch::Prefix(p.into())),
        prop::sample::select(vec!["/a.*", "/[ab]", "/.+"]).prop_map(|p| PathMatch::Regex(p.into())),
    ]
}

fn value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        prop::sample::select(vec!["1", "2"]).prop_map(|v| ValueMatch::Exact(v.into())),
        Just(ValueMatch::Regex("[0-9]".into())),
    ]
}

fn named(names: &'static [&'static str]) -> impl Strategy<Value = Vec<(Arc<str>, ValueMatch)>> {
    prop::collection::btree_map(prop::sample::select(names), value(), 0..2)
        .prop_map(|m| m.into_iter().map(|(n, v)| (n.into(), v)).collect())
}

fn matches() -> impl Strategy<Value = Match> {
    let method = prop::option::of(prop::sample::select(vec!["GET", "POST"]).prop_map(Arc::from));
    (paths(), method, named(&["x-a", "x-b"]), named(&["q", "r"])).prop_map(
        |(path, method, headers, query)| Match { path, method, headers: headers.into(), query: query.into() },
    )
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let rules = prop::collection::vec(prop::collection::vec(matches(), 1..3), 1..3);
    let hosts = prop::collection::hash_set(hosts(), 1..3);
    let one = (prop::option::of(0i64..3), hosts, rules);
    prop::collection::vec(one, 0..6).prop_map(|all| {
        let named = all.into_iter().enumerate();
        named
            .map(|(at, (created, hosts, rules))| {
                route(&format!("r{at}"), created, hosts.into_iter().collect(), rules)
            })
            .collect()
    })
}

fn requests() -> impl Strategy<Value = RequestHead> {
    let host = prop::sample::select(vec![
        "a.example",
        "b.example",
        "x.a.example",
        "y.x.a.example",
        "other",
        "a.example:80",
    ]);
    let target = prop::sample::select(vec![
        "/",
        "/a",
        "/a/",
        "/a/b",
        "/a/b/c/d",
        "/ab",
        "/b",
        "/a?q=1",
        "/a?r=2&q=x",
        "/a/b?q=1&r=1",
    ]);
    let header = prop::option::of(prop::sample::select(vec!["1", "2", "x"]));
    (host, target, any::<bool>(), header.clone(), header).prop_map(|(host, target, post, a, b)| {
        let mut head = RequestHead { authority: host.to_owned(), ..RequestHead::default() };
        head.method = if post { Method::Post } else { Method::Get };
        head.set_target(target);
        for (name, value) in [("x-a", a), ("x-b", b)] {
            if let Some(value) = value {
                head.headers.push(name.as_bytes(), value.as_bytes());
            }
        }
        head
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_index_agrees_with_the_specification(routes in routes(), heads in prop::collection::vec(requests(), 1..12)) {
        let snapshot = Snapshot::compile(None, config(&routes), &Touched::All, 1);
        for head in heads {
            prop_assert_eq!(found(&snapshot, &head), oracle(&routes, &head), "{:?}", head);
        }
    }

    #[test]
    fn changes_one_by_one_end_where_a_whole_compile_does(before in routes(), after in routes(), heads in prop::collection::vec(requests(), 1..12)) {
        let mut snapshot = Snapshot::compile(None, config(&before), &Touched::All, 1);
        let mut current = config(&before);
        for at in 0..before.len().max(after.len()) {
            let name = key(&format!("r{at}"));
            match after.get(at) {
                Some(route) => { current.routes.insert(name.clone(), Arc::new(route.clone())); }
                None => { current.routes.remove(&name); }
            }
            snapshot = Snapshot::compile(Some(&snapshot), current.clone(), &Touched::Routes(vec![name]), 2);
        }
        let mut slots: Vec<u32> = snapshot.rules().map(|r| r.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        prop_assert_eq!(slots.len(), snapshot.rules().count(), "no two rules share a slot");
        for head in heads {
            prop_assert_eq!(found(&snapshot, &head), oracle(&after, &head), "{:?}", head);
        }
    }
}

#[test]
fn what_is_not_touched_is_shared() {
    let all = |path: &str| vec![vec![Match { path: PathMatch::Prefix(path.into()), ..Match::default() }]];
    let (a, b) = (route("a", None, vec![None], all("/a")), route("b", None, vec![None], all("/b")));
    let first = Snapshot::compile(None, config(&[a.clone(), b.clone()]), &Touched::All, 1);
    let changed = route("b", None, vec![None], all("/c"));
    let second = Snapshot::compile(Some(&first), config(&[a, changed]), &Touched::All, 2);
    let rule = |s: &Snapshot, id: &str| s.rules().find(|r| *r.ir.id == *id).cloned().unwrap();
    assert!(Arc::ptr_eq(&rule(&first, "a#0"), &rule(&second, "a#0")));
    assert_eq!(rule(&first, "b#0").slot, rule(&second, "b#0").slot, "a rule's state survives its change");
}

#[test]
fn a_bad_route_keeps_its_last_good_version() {
    let regex = |p: &str| vec![vec![Match { path: PathMatch::Regex(p.into()), ..Match::default() }]];
    let mut head = RequestHead { authority: "x".into(), ..RequestHead::default() };
    head.set_target("/a");
    let first =
        Snapshot::compile(None, config(&[route("a", None, vec![None], regex("/a"))]), &Touched::All, 1);
    let second = Snapshot::compile(
        Some(&first),
        config(&[route("a", None, vec![None], regex("/(a"))]),
        &Touched::All,
        2,
    );
    assert_eq!(second.rejections.len(), 1);
    assert_eq!(second.rejections[0].field, "rules[0].matches[0].path.value");
    assert_eq!(found(&second, &head), Some("a#0".into()));
}

#[test]
fn a_path_of_slashes_costs_no_more_than_our_prefixes() {
    let deep = vec![vec![Match { path: PathMatch::Prefix("/a/b".into()), ..Match::default() }]];
    let snapshot = Snapshot::compile(None, config(&[route("a", None, vec![None], deep)]), &Touched::All, 1);
    let mut head = RequestHead { authority: "x".into(), ..RequestHead::default() };
    head.set_target(&format!("/a/b{}", "/".repeat(8000)));
    assert_eq!(found(&snapshot, &head), Some("a#0".into()));
}

#[test]
fn explain_says_why_not() {
    let m = |path: &str, headers: Vec<(Arc<str>, ValueMatch)>| Match {
        path: PathMatch::Prefix(path.into()),
        headers: headers.into(),
        ..Match::default()
    };
    let canary = vec![("x-canary".into(), ValueMatch::Exact("true".into()))];
    let all = route("a", None, vec![None], vec![vec![m("/a", canary)], vec![m("/", vec![])]]);
    let snapshot = Snapshot::compile(None, config(&[all]), &Touched::All, 1);
    let mut head = RequestHead { authority: "x".into(), ..RequestHead::default() };
    head.set_target("/a");
    let explanation = snapshot.listeners().next().unwrap().table.explain(&head);
    assert_eq!(&*explanation.winner.unwrap().rule.ir.id, "a#1");
    assert_eq!(explanation.others[0].why, "header x-canary: wants `true`, is not there");
}
