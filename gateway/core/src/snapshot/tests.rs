//! Sharing, slots, last good versions and listeners; the routes themselves are tested in `route`.

use thin_vec::thin_vec;

use super::*;
use crate::ir::{Match, PathMatch};
use crate::route::samples::{
    backend, config, get, listener, listener_key, pool, pool_key, prefix, route, route_key, rule,
};

fn from_scratch(config: &ir::Config) -> Snapshot {
    Snapshot::compile(None, config.clone(), &Touched::All, 1)
}

fn after(prev: &Snapshot, config: &ir::Config, touched: &[&str]) -> Snapshot {
    let keys = touched.iter().map(|name| route_key(name)).collect();
    Snapshot::compile(Some(prev), config.clone(), &Touched::Routes(keys), prev.generation + 1)
}

fn web(snapshot: &Snapshot) -> &Arc<CompiledListener> {
    snapshot.listeners().find(|l| l.ir.key == listener_key("web")).unwrap()
}

fn taken(snapshot: &Snapshot, target: &str) -> Option<String> {
    web(snapshot).route(&get("h", target)).map(|e| e.rule.route.name.to_string())
}

fn slot(snapshot: &Snapshot, id: &str) -> u32 {
    snapshot.rules().find(|r| *r.ir.id == *id).unwrap().slot
}

fn regex(pattern: &str) -> Match {
    Match { path: PathMatch::Regex(pattern.into()), ..Match::default() }
}

fn policy(name: &str, action: ir::PolicyAction, listeners: &[&str]) -> Arc<ir::Policy> {
    let key = ObjectKey { kind: "AuthorizationPolicy", namespace: "default".into(), name: name.into() };
    let listeners = listeners.iter().map(|l| listener_key(l)).collect();
    let closed = ir::Policy::closed(key, listeners);
    Arc::new(ir::Policy { action, rules: Vec::new(), ..closed })
}

#[test]
fn what_did_not_change_is_shared() {
    let mut now = config([route("a", &[], vec![prefix("/a")]), route("b", &[], vec![prefix("/b")])]);
    now.listeners.insert(listener_key("admin"), listener("admin", None, 81));
    let first = from_scratch(&now);
    now.routes.insert(route_key("b"), route("b", &[], vec![prefix("/c")]));
    let second = after(&first, &now, &["b"]);
    let same =
        |name| Arc::ptr_eq(first.route(&route_key(name)).unwrap(), second.route(&route_key(name)).unwrap());
    assert!(same("a") && !same("b"));
    let address = |s: &Snapshot, port: u16| s.address(([127, 0, 0, 1], port).into()).unwrap().clone();
    assert!(Arc::ptr_eq(&address(&first, 81), &address(&second, 81)));
    assert!(!Arc::ptr_eq(&address(&first, 80), &address(&second, 80)));
    assert_eq!((taken(&second, "/b"), taken(&second, "/c")), (None, Some("b".into())));
    assert_eq!((taken(&first, "/b"), taken(&first, "/c")), (Some("b".into()), None));
}

#[test]
fn an_equal_configuration_shares_everything() {
    let make = || config([route("a", &[], vec![prefix("/a")])]);
    let first = from_scratch(&make());
    let second = Snapshot::compile(Some(&first), make(), &Touched::All, 2);
    assert!(Arc::ptr_eq(web(&first), web(&second)));
    assert!(first.addresses().zip(second.addresses()).all(|(a, b)| Arc::ptr_eq(a, b)));
    assert!(first.pools().zip(second.pools()).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn a_change_of_endpoints_touches_no_route() {
    let mut now = config([route("a", &[], vec![prefix("/a")])]);
    let first = from_scratch(&now);
    now.pools.insert(pool_key("p"), pool("p", &[9000, 9001]));
    let second = after(&first, &now, &[]);
    assert!(Arc::ptr_eq(web(&first), web(&second)));
    let slot = second.pool_slot(&pool_key("p")).unwrap();
    let (old, new) = (first.pool(slot).unwrap(), second.pool(slot).unwrap());
    assert_eq!((old.endpoints.len(), new.endpoints.len()), (1, 2));
    assert!(Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[0].state));
}

#[test]
fn a_bad_route_is_refused_alone_and_its_last_good_version_stays() {
    let mut now = config([route("a", &[], vec![prefix("/a"), regex("/good")])]);
    let first = from_scratch(&now);
    now.routes.insert(route_key("a"), route("a", &[], vec![prefix("/new"), regex("/(bad")]));
    now.routes.insert(route_key("b"), route("b", &[], vec![prefix("/b")]));
    now.routes.insert(route_key("c"), route("c", &[], vec![regex("/(never good")]));
    let second = after(&first, &now, &["a", "b", "c"]);
    let refused: Vec<_> = second.rejections.iter().map(|r| (r.object.to_string(), &*r.field)).collect();
    assert_eq!(
        refused,
        [
            ("HTTPRoute default/a".into(), "rules[1].matches[0].path.value"),
            ("HTTPRoute default/c".into(), "rules[0].matches[0].path.value")
        ]
    );
    for (target, expected) in
        [("/a", Some("a")), ("/good", Some("a")), ("/new", None), ("/b", Some("b")), ("/c", None)]
    {
        assert_eq!(taken(&second, target).as_deref(), expected, "{target}");
    }
    // A version that was never in force is not in the way of the next.
    now.routes.insert(route_key("a"), route("a", &[], vec![prefix("/new")]));
    let third = after(&second, &now, &["a"]);
    assert_eq!(third.rejections, []);
    assert_eq!((taken(&third, "/a"), taken(&third, "/new")), (None, Some("a".into())));
}

#[test]
fn a_refused_route_takes_no_slots() {
    let mut now = config([route("a", &[], vec![prefix("/a")])]);
    let mut snapshot = from_scratch(&now);
    for n in 0..50 {
        now.routes.insert(route_key("a"), route("a", &[], vec![prefix("/a"), regex(&format!("/({n}"))]));
        snapshot = after(&snapshot, &now, &["a"]);
    }
    assert_eq!(snapshot.rule_slots.high_water(), 1);
    now.routes.remove(&route_key("a"));
    now.pools.clear();
    snapshot = after(&snapshot, &now, &["a"]);
    assert_eq!(snapshot.pool_slot(&pool_key("p")), None);
}

#[test]
fn slots_stay_with_their_rules_and_are_used_again() {
    let mut now = config(["a", "b", "c"].map(|n| route(n, &[], vec![prefix("/"), prefix(&format!("/{n}"))])));
    let first = from_scratch(&now);
    assert_eq!(first.rule_slots.high_water(), 6);
    let freed = [slot(&first, "default/b#0"), slot(&first, "default/b#1")];
    now.routes.remove(&route_key("b"));
    now.routes.insert(route_key("c"), route("c", &[], vec![prefix("/other"), prefix("/more")]));
    let second = after(&first, &now, &["b", "c"]);
    for id in ["default/a#0", "default/a#1", "default/c#0", "default/c#1"] {
        assert_eq!(slot(&first, id), slot(&second, id), "{id}");
    }
    now.routes.insert(route_key("d"), route("d", &[], vec![prefix("/d"), prefix("/e")]));
    let third = after(&second, &now, &["d"]);
    assert_eq!(third.rule_slots.high_water(), 6);
    assert!(freed.contains(&slot(&third, "default/d#0")) && freed.contains(&slot(&third, "default/d#1")));
}

#[test]
fn routes_of_two_kinds_with_one_name_have_a_slot_each() {
    let http = route("a", &[], vec![prefix("/a")]);
    let key = ObjectKey { kind: "GRPCRoute", ..route_key("a") };
    let grpc = Arc::new(ir::Route { key, ..(*http).clone() });
    let snapshot = from_scratch(&config([http, grpc]));
    let slots: Vec<u32> = snapshot.rules().map(|r| r.slot).collect();
    assert_eq!(slots.len(), 2);
    assert_ne!(slots[0], slots[1]);
}

#[test]
fn a_missing_pool_has_a_slot_that_it_gets_when_it_comes() {
    let mut now = config([route("a", &[], vec![prefix("/a")])]);
    let known = now.pools.remove(&pool_key("p")).unwrap();
    let first = from_scratch(&now);
    let named = |s: &Snapshot| s.rules().next().unwrap().backends[0].pool.clone().unwrap();
    assert!(first.pool(named(&first)).is_none());
    now.pools.insert(pool_key("p"), known);
    now.pools.insert(pool_key("q"), pool("q", &[9002]));
    let second = after(&first, &now, &[]);
    assert_eq!(named(&first), named(&second));
    assert_eq!(second.pool(named(&second)).unwrap().ir.key, pool_key("p"));
    now.pools.remove(&pool_key("p"));
    let third = after(&second, &now, &[]);
    assert!(third.pool(named(&third)).is_none());
    assert_eq!(third.pools().count(), 1);
}

#[test]
fn mirrors_and_backends_hold_their_pools_slots() {
    let mirror = |name| {
        let target = BackendTarget::Pool(pool_key(name).into());
        Filter::Mirror(Arc::new(ir::Mirror { backend: target, numerator: 1, denominator: 1 }))
    };
    let mut mirrored = (*rule("default/a#0", vec![prefix("/a")])).clone();
    mirrored.filters = thin_vec![mirror("m1")];
    mirrored.backends[0].filters = thin_vec![mirror("m2")];
    mirrored.backends.push(backend("p2", 0));
    let with = |rule: ir::Rule| {
        let route = route("a", &[], vec![]);
        Arc::new(ir::Route { rules: vec![Arc::new(rule)], ..(*route).clone() })
    };
    let mut now = config([with(mirrored)]);
    let first = from_scratch(&now);
    let slots: Vec<_> =
        ["p", "p2", "m1", "m2"].iter().map(|n| first.pool_slot(&pool_key(n)).unwrap()).collect();
    assert_eq!(std::collections::BTreeSet::from_iter(&slots).len(), 4);
    let rule = first.rules().next().unwrap();
    let compiled = |m: &CompiledMirror| (m.pool.clone(), m.place);
    assert_eq!(rule.mirrors.iter().map(compiled).collect::<Vec<_>>(), [(Ok(slots[2]), 0)]);
    assert_eq!(rule.backends[0].mirrors.iter().map(compiled).collect::<Vec<_>>(), [(Ok(slots[3]), 1)]);
    assert!(rule.backends[1].mirrors.is_empty());
    now.routes.insert(route_key("a"), route("a", &[], vec![prefix("/a")]));
    let second = after(&first, &now, &["a"]);
    let held = ["p", "p2", "m1", "m2"].map(|n| second.pool_slot(&pool_key(n)).is_some());
    assert_eq!(held, [true, false, false, false]);
}

#[test]
fn without_a_snapshot_before_everything_is_touched() {
    let now = config([route("a", &[], vec![prefix("/a")])]);
    let snapshot = Snapshot::compile(None, now, &Touched::Routes(Vec::new()), 7);
    assert_eq!((snapshot.generation, taken(&snapshot, "/a")), (7, Some("a".into())));
}

#[test]
fn a_listener_that_is_new_or_back_has_all_its_routes() {
    let mut now = config([route("a", &[], vec![prefix("/a")])]);
    let listener = now.listeners.remove(&listener_key("web")).unwrap();
    let first = from_scratch(&now);
    assert_eq!(first.addresses().count(), 0);
    now.listeners.insert(listener_key("web"), listener);
    now.routes.insert(route_key("b"), route("b", &[], vec![prefix("/b")]));
    let second = after(&first, &now, &["b"]);
    assert_eq!((taken(&second, "/a"), taken(&second, "/b")), (Some("a".into()), Some("b".into())));
    assert_eq!(web(&second).table.len(), 2);
}

#[test]
fn the_most_specific_listener_takes_a_host() {
    let mut now = config([]);
    for (name, hostname) in [
        ("web", None),
        ("short", Some("*.example")),
        ("long", Some("*.shop.example")),
        ("exact", Some("a.shop.example")),
        ("z-same", Some("a.shop.example")),
    ] {
        now.listeners.insert(listener_key(name), listener(name, hostname, 80));
    }
    let snapshot = from_scratch(&now);
    let table = snapshot.addresses().next().unwrap();
    for (host, expected) in [
        ("a.shop.example", "exact"),
        ("b.shop.example", "long"),
        ("x.b.shop.example", "long"),
        ("shop.example", "short"),
        ("example", "web"),
        (".example", "web"),
        ("", "web"),
    ] {
        assert_eq!(&*table.listener_for(host).unwrap().ir.key.name, expected, "{host}");
        // As the plain reading of the list has it.
        let first = table.listeners.iter().find(|l| l.ir.hostname.as_ref().is_none_or(|h| h.matches(host)));
        assert_eq!(&*first.unwrap().ir.key.name, expected, "{host}");
    }
    now.listeners.remove(&listener_key("web"));
    let snapshot = from_scratch(&now);
    assert!(snapshot.addresses().next().unwrap().listener_for("org").is_none());
}

#[test]
fn policies_are_sorted_and_known_by_listener() {
    use ir::PolicyAction::{Allow, Audit, Deny};
    let mut now = config([route("a", &[], vec![prefix("/a")])]);
    now.listeners.insert(listener_key("admin"), listener("admin", None, 81));
    for p in [
        policy("1", Allow, &["web", "web"]),
        policy("2", Deny, &["web", "admin"]),
        policy("3", Audit, &["web"]),
        policy("4", Deny, &["web"]),
    ] {
        now.policies.insert(p.key.clone(), p);
    }
    let names = |l: &CompiledListener| l.policies.iter().map(|p| &*p.key.name).collect::<String>();
    let first = from_scratch(&now);
    assert_eq!(names(web(&first)), "3241");
    let changed = policy("1", Deny, &["admin"]);
    now.policies.insert(changed.key.clone(), changed);
    let second = after(&first, &now, &[]);
    assert_eq!(names(web(&second)), "324");
    assert_eq!(names(second.listeners().next().unwrap()), "12");
    assert_eq!(taken(&second, "/a").as_deref(), Some("a"));
    // A change elsewhere keeps the list itself.
    now.routes.insert(route_key("b"), route("b", &[], vec![prefix("/b")]));
    let third = after(&second, &now, &["b"]);
    assert!(Arc::ptr_eq(&web(&second).policies, &web(&third).policies));
}
