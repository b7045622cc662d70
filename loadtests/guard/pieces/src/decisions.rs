//! What is decided about a request besides its route: policies, filters, side of a split, endpoint.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, PoolState, Wish};
use fieldgate_core::filter::{edit_headers, rewrite};
use fieldgate_core::ir::{self, ConnectionFacts, ListenerKey, ObjectKey, PathMatch, PoolKey};
use fieldgate_core::split::{CompiledSplit, SplitState};
use fieldgate_plugins::authz::Authorizer;

use crate::Measure;
use crate::heads::{BROWSER, CLIENT, parsed};

pub fn pieces(measure: &mut Measure<'_>) {
    authorize(measure);
    filters(measure);
    split(measure);
    pick(measure);
}

pub fn listener_key() -> ListenerKey {
    ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: "web".into() }
}

/// A rule with a pool for each of these weights.
pub fn rule(id: &str, path: PathMatch, weights: &[u32]) -> ir::Rule {
    let backend = |(n, weight): (usize, &u32)| ir::Backend {
        target: ir::BackendTarget::Pool(pool_key(&format!("shop-{n}")).into()),
        weight: *weight,
        filters: Vec::new().into(),
    };
    ir::Rule {
        id: id.into(),
        matches: vec![ir::Match { path, ..ir::Match::default() }].into(),
        backends: weights.iter().enumerate().map(backend).collect(),
        ..ir::Rule::default()
    }
}

/// A pool of so many endpoints.
pub fn pool(name: &str, endpoints: u16, balance: ir::Balance) -> ir::Pool {
    let endpoint = |n: u16| ir::Endpoint::new(SocketAddr::from(([10, 0, 1, n as u8], 8080)));
    let endpoints = ir::Endpoints::Static((0..endpoints).map(endpoint).collect());
    let service = ir::ServiceIdentity {
        host: format!("{name}.default.svc.cluster.local").into(),
        name: name.into(),
        namespace: "default".into(),
        ..ir::ServiceIdentity::default()
    };
    ir::Pool { balance, service, ..ir::Pool::of(pool_key(name), endpoints) }
}

fn pool_key(name: &str) -> PoolKey {
    PoolKey { object: object("Pool", name), port: 0 }
}

fn object(kind: &'static str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: "default".into(), name: name.into() }
}

/// Policies that all have to be looked at and let the request pass.
fn authorize(measure: &mut Measure<'_>) {
    let head = parsed(BROWSER);
    let local = "192.0.2.1:80".parse().expect("an address");
    let facts = ConnectionFacts { peer: CLIENT, client: CLIENT, local, sni: None, identity: None };
    for (name, count) in [("authorize/1", 1), ("authorize/100", 100)] {
        let policies: Vec<_> = (0..count).map(|n| Arc::new(policy(n))).collect();
        let authorizer = Authorizer::compile(&policies);
        let metadata = fieldgate_core::identity::Metadata::default();
        measure(name, &mut || assert!(authorizer.decide(black_box(&head), &facts, &metadata).allowed));
    }
}

/// DENY of a tree of paths, of a method in it and of a range of addresses, in turn.
fn policy(n: usize) -> ir::Policy {
    let path = |text: String| {
        vec![ir::StringMatch::Exact(text.clone().into()), ir::StringMatch::Prefix((text + "/").into())]
    };
    let paths = path(format!("/admin-{n}"));
    let rule = match n % 3 {
        0 => ir::PolicyRule {
            to: vec![ir::PolicyOperation { paths, ..ir::PolicyOperation::default() }],
            ..ir::PolicyRule::default()
        },
        1 => ir::PolicyRule {
            to: vec![ir::PolicyOperation {
                methods: vec![ir::StringMatch::Exact("DELETE".into())],
                paths,
                ..ir::PolicyOperation::default()
            }],
            ..ir::PolicyRule::default()
        },
        _ => ir::PolicyRule {
            from: vec![ir::PolicySource {
                ip_blocks: vec![format!("10.{n}.0.0/16").parse().expect("a range")],
                ..ir::PolicySource::default()
            }],
            ..ir::PolicyRule::default()
        },
    };
    ir::Policy {
        key: object("AuthorizationPolicy", &format!("deny-{n}")),
        action: ir::PolicyAction::Deny,
        dry_run: false,
        listeners: vec![listener_key()],
        rules: vec![rule],
        provider: None,
        cel: None,
    }
}

fn filters(measure: &mut Measure<'_>) {
    let mut head = parsed(BROWSER);
    let edit = ir::HeaderEdit {
        set: vec![("x-stage".into(), "canary".into()), ("accept-language".into(), "en".into())],
        add: vec![("x-added".into(), "1".into())],
        // Also what was just added, so that the head does not grow.
        remove: vec!["dnt".into(), "x-added".into()],
    };
    measure("filter/headers", &mut || {
        head.headers.push(b"dnt", b"1");
        edit_headers(black_box(&edit), black_box(&mut head.headers));
    });
    let change = ir::Rewrite {
        hostname: Some("catalogue.internal".into()),
        path: Some(ir::PathRewrite::Prefix("/v2".into())),
    };
    let (prefix_len, target) = ("/catalogue".len(), head.target.clone());
    measure("filter/rewrite", &mut || {
        head.set_target(&target);
        rewrite(black_box(&change), prefix_len, black_box(&mut head));
    });
}

fn split(measure: &mut Measure<'_>) {
    let head = parsed(BROWSER);
    let backends = rule("default/shop#0", PathMatch::default(), &[90, 10]).backends;
    let sticky = ir::SplitPolicy {
        name: "shop".into(),
        sticky: Some(ir::Sticky::Cookie("user".into())),
        existing: None,
    };
    for (name, policy) in [("split/exact", None), ("split/sticky", Some(Arc::new(sticky)))] {
        let split = CompiledSplit::new(&backends, policy, "default/shop#0");
        let mut state = SplitState::default();
        measure(name, &mut || {
            assert!(split.choose(black_box(&mut state), black_box(&head), CLIENT, 7).is_some());
        });
    }
}

fn pick(measure: &mut Measure<'_>) {
    let hash_by = || Arc::<ir::HashBy>::default();
    let ring = ir::Balance::RingHash {
        function: ir::HashFunction::XxHash,
        min_size: 1024,
        max_size: 8_388_608,
        by: hash_by(),
    };
    for (name, balance) in [
        ("pick/round-robin", ir::Balance::RoundRobin),
        ("pick/least-request", ir::Balance::default()),
        ("pick/ring-hash", ring),
        ("pick/maglev", ir::Balance::Maglev { table_size: 65537, by: hash_by() }),
    ] {
        pick_from(measure, name, &CompiledPool::compile(None, Arc::new(pool("shop", 8, balance)), 0));
    }
    // Half of the first priority is down.
    let mut priorities = pool("shop", 8, ir::Balance::default());
    if let ir::Endpoints::Static(endpoints) = &mut priorities.endpoints {
        endpoints.iter_mut().skip(4).for_each(|endpoint| endpoint.priority = 1);
    }
    let priorities = CompiledPool::compile(None, Arc::new(priorities), 0);
    for endpoint in &priorities.endpoints[..2] {
        endpoint.state.set_healthy(false);
    }
    pick_from(measure, "pick/priorities", &priorities);
}

fn pick_from(measure: &mut Measure<'_>, name: &'static str, pool: &CompiledPool) {
    let mut state = PoolState::default();
    let mut random = 1_u64;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        random ^ (random >> 32)
    };
    let hash = pool.ir.balance.hash_by().map(|_| 0x9E37_79B9_7F4A_7C15);
    measure(name, &mut || {
        let wish = Wish { hash, ..Wish::default() };
        let at = pool.pick(black_box(&mut state), 1000, &mut draw, &wish).expect("all are there");
        state.started(at);
        state.finished(pool.endpoints[at].address());
    });
}
