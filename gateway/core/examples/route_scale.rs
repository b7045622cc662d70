//! What lookups and changes cost with few and many routes: `cargo run --release -p fieldgate-core --example route_scale`.

use std::sync::Arc;
use std::time::Instant;

use fieldgate_core::ir::{self, Attachment, Hostname, ListenerKey, Match, ObjectKey, PathMatch, Route, Rule, Touched};
use fieldgate_core::{RequestHead, Snapshot};

fn main() {
    println!("{:>8} {:>14} {:>16} {:>16} {:>18}", "routes", "compile ms", "one change us", "lookup ns", "lookup ns (hosts)");
    for count in [10, 1_000, 10_000, 100_000] {
        let one_host = config(count, 1);
        let begun = Instant::now();
        let mut snapshot = Snapshot::compile(None, one_host.clone(), &Touched::All, 1);
        let compile = begun.elapsed().as_secs_f64() * 1e3;
        let mut config_now = one_host;
        let begun = Instant::now();
        let changes = 200;
        for change in 0..changes {
            let changed = route(change % count, 1, &format!("/changed/{change}"));
            let key = changed.key.clone();
            config_now.routes.insert(key.clone(), Arc::new(changed));
            snapshot = Snapshot::compile(Some(&snapshot), config_now.clone(), &Touched::Routes(vec![key]), 2);
        }
        let change = begun.elapsed().as_secs_f64() * 1e6 / changes as f64;
        let many_hosts = Snapshot::compile(None, config(count, count / 10), &Touched::All, 1);
        println!(
            "{count:>8} {compile:>14.1} {change:>16.1} {:>16.0} {:>18.0}",
            lookup(&snapshot, count, 1),
            lookup(&many_hosts, count, count / 10)
        );
    }
}

fn lookup(snapshot: &Snapshot, count: usize, hosts: usize) -> f64 {
    let heads: Vec<RequestHead> = (0..1000)
        .map(|at| {
            let n = (at * 7919 + 201) % count;
            let mut head = RequestHead { authority: format!("h{}.example", n % hosts), ..RequestHead::default() };
            head.set_target(&format!("/api/v1/service-{n}/items"));
            head
        })
        .collect();
    let listener = snapshot.listeners().next().expect("one listener");
    let rounds = 500;
    let begun = Instant::now();
    let mut found = 0;
    for _ in 0..rounds {
        found += heads.iter().filter(|h| std::hint::black_box(listener.route(h)).is_some()).count();
    }
    assert!(found > 0);
    begun.elapsed().as_secs_f64() * 1e9 / (rounds * heads.len()) as f64
}

fn config(count: usize, hosts: usize) -> ir::Config {
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
        }),
    );
    for n in 0..count {
        let route = route(n, hosts, &format!("/api/v1/service-{n}"));
        config.routes.insert(route.key.clone(), Arc::new(route));
    }
    config
}

fn key() -> ListenerKey {
    ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: "web".into() }
}

fn route(n: usize, hosts: usize, path: &str) -> Route {
    let rule = Rule {
        id: format!("default/r{n}").into(),
        matches: vec![Match { path: PathMatch::Prefix(path.into()), ..Match::default() }],
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: ir::Timeouts::default(),
        retry: None,
        split: None,
        grpc: false,
    };
    Route {
        key: ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: format!("r{n}").into() },
        created: None,
        attachments: vec![Attachment {
            listener: key(),
            hostnames: vec![Some(Hostname::Exact(format!("h{}.example", n % hosts).into()))],
        }],
        rules: vec![Arc::new(rule)],
    }
}
