//! Route lookup in small and large tables. A table must cost what its depth costs, not what its size does.

use std::hint::black_box;
use std::sync::Arc;

use fieldgate_core::ir::{self, Attachment, Hostname, ListenerKey, ObjectKey};
use fieldgate_core::{RequestHead, Snapshot};

use crate::Measure;
use crate::decisions::{listener_key, rule};

/// Requests of a run, each for another route.
const ASKED: usize = 10;

pub fn pieces(measure: &mut Measure<'_>) {
    for (name, count) in [("route/10", 10), ("route/1000", 1_000), ("route/100000", 100_000)] {
        let snapshot = Snapshot::compile(None, config(count), &ir::Touched::All, 1);
        let listener = snapshot.listeners().next().expect("one listener");
        let heads: Vec<RequestHead> = (0..ASKED).map(|at| head((at * 7919) % count)).collect();
        let mut turn = 0;
        measure(name, &mut || {
            turn = (turn + 1) % ASKED;
            assert!(listener.route(black_box(&heads[turn])).is_some());
        });
    }
}

fn head(route: usize) -> RequestHead {
    let mut head = RequestHead { authority: host(route), ..RequestHead::default() };
    head.set_target(&format!("/api/v1/service-{route}/items?page=2"));
    head
}

/// Ten routes on each host.
fn host(route: usize) -> String {
    format!("h{}.example.com", route / 10)
}

fn config(count: usize) -> ir::Config {
    let mut config = ir::Config::default();
    let listener = ir::Listener {
        key: listener_key(),
        addresses: vec!["127.0.0.1:80".parse().expect("an address")],
        hostname: None,
        tls: None,
        client: ir::ClientTrust::default(),
        labels: Arc::new([]),
        guards: [].into(),
    };
    config.listeners.insert(listener.key.clone(), Arc::new(listener));
    for n in 0..count {
        let route = route(n, &listener_key());
        config.routes.insert(route.key.clone(), Arc::new(route));
    }
    config
}

fn route(n: usize, listener: &ListenerKey) -> ir::Route {
    let path = ir::PathMatch::Prefix(format!("/api/v1/service-{n}").into());
    ir::Route {
        key: ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: format!("r{n}").into() },
        created: None,
        attachments: vec![Attachment {
            listener: listener.clone(),
            hostnames: vec![Some(Hostname::Exact(host(n).into()))],
        }],
        rules: vec![Arc::new(rule(&format!("default/r{n}#0"), path, &[1]))],
    }
}
