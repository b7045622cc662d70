//! What compiling, changing and looking up cost with few and many routes:
//! `cargo run --release -p fieldgate-core --example route_scale`.

use std::sync::Arc;
use std::time::Instant;

use fieldgate_core::ir::{
    self, Attachment, Hostname, ListenerKey, Match, ObjectKey, PathMatch, Route, Rule, Touched,
};
use fieldgate_core::{RequestHead, Snapshot};
use thin_vec::{ThinVec, thin_vec};

/// Changes that are timed, one compile each.
const CHANGES: usize = 200;

/// Lookups that are timed.
const LOOKUPS: usize = 200_000;

fn main() {
    println!(
        "{:<20} {:>8} {:>11} {:>14} {:>10} {:>17} {:>20}",
        "", "routes", "compile ms", "bytes a route", "change us", "ns, ten are asked", "ns, thousand are"
    );
    // Kept, so that memory that one gives back is not what the next grows into.
    let mut kept = Vec::new();
    for count in [10, 1_000, 100_000] {
        kept.push(measure("on one host", count, |_| "shop.example".into()));
        kept.push(measure("ten on each host", count, |n| format!("h{}.example", n / 10)));
        kept.push(measure("one on each host", count, |n| format!("h{n}.example")));
    }
}

fn measure(title: &str, count: usize, host: fn(usize) -> String) -> Snapshot {
    let mut config = config(count, host);
    let resident = resident_bytes();
    let begun = Instant::now();
    let first = Snapshot::compile(None, config.clone(), &Touched::All, 1);
    let compile = begun.elapsed().as_secs_f64() * 1e3;
    // With few routes the figure would be that of the allocator's chunks.
    let grown = resident_bytes().zip(resident).filter(|_| count >= 100_000);
    let bytes =
        grown.map_or_else(|| "-".to_owned(), |(now, then)| (now.saturating_sub(then) / count).to_string());

    let mut snapshot = first.clone();
    let begun = Instant::now();
    for change in 0..CHANGES {
        // The same path with one condition more, so that lookups below still find it.
        let changed = route(change % count, host, Some("GET"));
        let key = changed.key.clone();
        config.routes.insert(key.clone(), Arc::new(changed));
        snapshot = Snapshot::compile(Some(&snapshot), config.clone(), &Touched::Routes(vec![key]), 2);
    }
    let change = begun.elapsed().as_secs_f64() * 1e6 / CHANGES as f64;
    let (ten, thousand) = (lookup(&snapshot, count, 10, host), lookup(&snapshot, count, 1000, host));
    println!(
        "{title:<20} {count:>8} {compile:>11.1} {bytes:>14} {change:>10.1} {ten:>17.0} {thousand:>20.0}"
    );
    first
}

/// Nanoseconds of one lookup, when so many routes get requests: with many, the processor's caches decide.
fn lookup(snapshot: &Snapshot, count: usize, asked: usize, host: fn(usize) -> String) -> f64 {
    let heads: Vec<RequestHead> = (0..asked)
        .map(|at| {
            let n = (at * 7919) % count;
            let mut head = RequestHead { authority: host(n), ..RequestHead::default() };
            head.set_target(&format!("/api/v1/service-{n}/items?page=2"));
            head
        })
        .collect();
    let listener = snapshot.listeners().next().expect("one listener");
    let begun = Instant::now();
    let mut found = 0;
    for _ in 0..LOOKUPS / asked {
        found += heads.iter().filter(|h| std::hint::black_box(listener.route(h)).is_some()).count();
    }
    let each = begun.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64;
    assert_eq!(found, LOOKUPS, "every request has a route");
    each
}

fn config(count: usize, host: fn(usize) -> String) -> ir::Config {
    let mut config = ir::Config::default();
    config.listeners.insert(
        key(),
        Arc::new(ir::Listener {
            key: key(),
            addresses: vec!["127.0.0.1:80".parse().expect("an address")],
            hostname: None,
            tls: None,
            client: ir::ClientTrust::default(),
            labels: Arc::new([]),
            guards: [].into(),
        }),
    );
    for n in 0..count {
        let route = route(n, host, None);
        config.routes.insert(route.key.clone(), Arc::new(route));
    }
    config
}

fn key() -> ListenerKey {
    ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: "web".into() }
}

/// One rule, two weighted backends that many routes share.
fn route(n: usize, host: fn(usize) -> String, method: Option<&str>) -> Route {
    let pool = |kind, n: usize| ir::Backend {
        target: ir::BackendTarget::Pool(Arc::new(ir::PoolKey {
            object: ObjectKey { kind, namespace: "default".into(), name: format!("s{}", n % 100).into() },
            port: 80,
        })),
        weight: 1,
        filters: ThinVec::new(),
    };
    let path = PathMatch::Prefix(format!("/api/v1/service-{n}").into());
    let rule = Rule {
        id: format!("default/r{n}#0").into(),
        matches: thin_vec![Match { path, method: method.map(Arc::from), ..Match::default() }],
        filters: ThinVec::new(),
        backends: thin_vec![pool("Pool", n), pool("Service", n)],
        ..Rule::default()
    };
    Route {
        key: ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: format!("r{n}").into() },
        created: None,
        attachments: vec![Attachment {
            listener: key(),
            hostnames: vec![Some(Hostname::Exact(host(n).into()))],
        }],
        rules: vec![Arc::new(rule)],
    }
}

/// What the process holds in memory, where the system tells.
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok()? * 1024)
}
