//! Small configurations for tests.

use std::sync::Arc;

use imbl::OrdMap;
use thin_vec::{ThinVec, thin_vec};

use crate::head::{Method, RequestHead};
use crate::ir::{self, Hostname, ListenerKey, Match, ObjectKey, PathMatch, PoolKey, ValueMatch};

pub(crate) fn listener_key(name: &str) -> ListenerKey {
    ListenerKey { namespace: "infra".into(), gateway: "edge".into(), name: name.into() }
}

pub(crate) fn listener(name: &str, hostname: Option<&str>, port: u16) -> Arc<ir::Listener> {
    Arc::new(ir::Listener {
        key: listener_key(name),
        addresses: vec![([127, 0, 0, 1], port).into()],
        hostname: hostname.map(host),
        tls: None,
        client: ir::ClientTrust::default(),
        labels: Arc::from([]),
        guards: [].into(),
    })
}

pub(crate) fn host(text: &str) -> Hostname {
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.into()),
        None => Hostname::Exact(text.into()),
    }
}

pub(crate) fn route_key(name: &str) -> ObjectKey {
    ObjectKey { kind: "HTTPRoute", namespace: "default".into(), name: name.into() }
}

pub(crate) fn pool_key(name: &str) -> PoolKey {
    PoolKey { object: ObjectKey { kind: "Pool", namespace: "default".into(), name: name.into() }, port: 0 }
}

pub(crate) fn pool(name: &str, ports: &[u16]) -> Arc<ir::Pool> {
    let endpoint = |port: &u16| ir::Endpoint::new(([127, 0, 0, 1], *port).into());
    let endpoints = ir::Endpoints::Static(ports.iter().map(endpoint).collect());
    Arc::new(ir::Pool { balance: ir::Balance::RoundRobin, ..ir::Pool::of(pool_key(name), endpoints) })
}

pub(crate) fn backend(pool: &str, weight: u32) -> ir::Backend {
    ir::Backend { target: ir::BackendTarget::Pool(pool_key(pool).into()), weight, filters: ThinVec::new() }
}

/// A rule with these matches and one backend, the pool `p`.
pub(crate) fn rule(id: &str, matches: impl Into<ThinVec<Match>>) -> Arc<ir::Rule> {
    Arc::new(ir::Rule {
        id: id.into(),
        matches: matches.into(),
        backends: thin_vec![backend("p", 1)],
        ..ir::Rule::default()
    })
}

/// A route on the listener `web` with one rule for each match.
pub(crate) fn route(name: &str, hosts: &[&str], matches: Vec<Match>) -> Arc<ir::Route> {
    let rules = matches.into_iter().enumerate().map(|(at, m)| rule(&format!("default/{name}#{at}"), vec![m]));
    let hostnames = if hosts.is_empty() { vec![None] } else { hosts.iter().map(|h| Some(host(h))).collect() };
    Arc::new(ir::Route {
        key: route_key(name),
        created: None,
        attachments: vec![ir::Attachment { listener: listener_key("web"), hostnames }],
        rules: rules.collect(),
    })
}

pub(crate) fn prefix(path: &str) -> Match {
    Match { path: PathMatch::Prefix(path.into()), ..Match::default() }
}

pub(crate) fn with_header(matched: Match, name: &str, value: &str) -> Match {
    let mut matched = matched;
    matched.headers.push((name.into(), ValueMatch::Exact(value.into())));
    matched
}

/// The listener `web` on port 80, the pool `p` and these routes.
pub(crate) fn config(routes: impl IntoIterator<Item = Arc<ir::Route>>) -> ir::Config {
    ir::Config {
        listeners: OrdMap::from_iter([(listener_key("web"), listener("web", None, 80))]),
        routes: routes.into_iter().map(|r| (r.key.clone(), r)).collect(),
        pools: OrdMap::from_iter([(pool_key("p"), pool("p", &[9000]))]),
        ..ir::Config::default()
    }
}

pub(crate) fn get(authority: &str, target: &str) -> RequestHead {
    let mut head = RequestHead { method: Method::Get, authority: authority.into(), ..RequestHead::default() };
    head.set_target(target);
    head
}
