//! Backends: which references hold, and what endpoints are behind them.

use fieldgate_core::ir::{BackendTarget, Endpoints, Protocol};

use super::*;

fn service(spec: &str) -> String {
    object("v1", "Service", "s", spec)
}

fn slice(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\n{rest}\n"
    )
}

/// The pools, with what is behind them.
fn pools(texts: &[&str]) -> Vec<String> {
    let config = config(texts);
    let ends = |e: &Endpoints| match e {
        Endpoints::Static(list) => list
            .iter()
            .map(|e| {
                let zone = e.zone().map_or(String::new(), |z| format!("@{z}"));
                format!("{}*{}{zone}{}", e.address, e.weight, if e.draining { "!" } else { "" })
            })
            .collect::<Vec<_>>(),
        Endpoints::Dns { names, .. } => names
            .iter()
            .map(|n| format!("{}:{}*{}", n.host, n.endpoint.address.port(), n.endpoint.weight))
            .collect(),
    };
    let line =
        |p: &std::sync::Arc<ir::Pool>| format!("{} {:?} {}", p.key, p.protocol, ends(&p.endpoints).join(" "));
    config.pools.values().map(line).collect()
}

#[test]
fn references_hold_or_say_why_not() {
    let table: &[(&str, &str, &str)] = &[
        ("name: s, port: 80", "Service default/s:80", "ResolvedRefs"),
        ("name: s, port: 81", "", "BackendNotFound"),
        ("name: t, port: 80", "", "BackendNotFound"),
        ("name: p, group: fieldgate.dev, kind: Pool", "Pool default/p", "ResolvedRefs"),
        ("name: q, group: fieldgate.dev, kind: Pool", "", "BackendNotFound"),
        ("name: p, kind: Pool", "", "InvalidKind"),
        (
            "name: old.example, group: networking.istio.io, kind: Hostname, port: 80",
            "Hostname default/old.example:80",
            "ResolvedRefs",
        ),
        ("name: old.example, group: networking.istio.io, kind: Hostname, port: 81", "", "BackendNotFound"),
        (
            "name: far.example, group: networking.istio.io, kind: Hostname, port: 80",
            "Hostname team/far.example:80",
            "ResolvedRefs",
        ),
        ("name: hidden.example, group: networking.istio.io, kind: Hostname, port: 80", "", "BackendNotFound"),
        ("name: far, namespace: team, group: fieldgate.dev, kind: Pool", "", "RefNotPermitted"),
        ("name: open, namespace: open, group: fieldgate.dev, kind: Pool", "Pool open/open", "ResolvedRefs"),
        ("name: other, namespace: open, group: fieldgate.dev, kind: Pool", "", "RefNotPermitted"),
    ];
    let entry = |name: &str, host: &str, rest: &str| {
        object(
            "networking.istio.io/v1",
            "ServiceEntry",
            name,
            &format!(
                "hosts: [{host}], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: DNS{rest}"
            ),
        )
    };
    for (reference, pool_key, reason) in table {
        let texts = [
            gateway(WEB),
            route(&format!("rules: [{{backendRefs: [{{{reference}}}]}}]")),
            service("ports: [{port: 80}]"),
            pool("p"),
            pool("team/far"),
            pool("open/open"),
            pool("open/other"),
            entry("e", "old.example", ""),
            entry("team/f", "far.example", ""),
            entry("team/h", "hidden.example", ", exportTo: ['.']"),
            grant("open", "HTTPRoute", "default", "{group: fieldgate.dev, kind: Pool, name: open}"),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let route = http_route(&texts);
        let found = match &route.rules[0].backends[0].target {
            BackendTarget::Pool(key) => key.to_string(),
            BackendTarget::Invalid(_) => String::new(),
        };
        assert_eq!(found, *pool_key, "{reference}");
        let conditions = conditions(&texts, "HTTPRoute", "r");
        let resolved = conditions.iter().find(|c| c.contains("ResolvedRefs=")).expect("a condition");
        assert!(resolved.ends_with(reason), "{reference}: {resolved}");
    }
}

#[test]
fn weights_are_kept() {
    let texts = [
        gateway(WEB),
        route(
            "rules: [{backendRefs: [{name: s, port: 80}, {name: s, port: 80, weight: 0}, {name: t, port: 80, weight: 7}]}, {}]",
        ),
        service("ports: [{port: 80}]"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let route = http_route(&texts);
    let weights: Vec<u32> = route.rules[0].backends.iter().map(|b| b.weight).collect();
    assert_eq!(weights, [1, 0, 7], "one that is missing keeps its share");
    assert!(route.rules[1].backends.is_empty());
}

#[test]
fn endpoints_are_those_that_serve() {
    let endpoint = |conditions: &str| {
        format!(
            "ports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.1], zone: a, conditions: {{{conditions}}}}}]"
        )
    };
    for (conditions, expected) in [
        ("", "10.0.0.1:8080*1@a"),
        ("ready: true", "10.0.0.1:8080*1@a"),
        ("ready: false", ""),
        ("ready: false, serving: true, terminating: true", "10.0.0.1:8080*1@a!"),
        ("ready: false, serving: false, terminating: true", ""),
        ("ready: false, serving: true", ""),
    ] {
        let texts =
            [service("ports: [{name: http, port: 80, targetPort: web}]"), slice("a", &endpoint(conditions))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(pools(&texts), [format!("Service default/s:80 Http1 {expected}")], "{conditions}");
    }
}

#[test]
fn ports_go_by_name() {
    let ends = "\nendpoints: [{addresses: [10.0.0.1]}]";
    for (port, slice_ports, expected) in [
        ("name: http, port: 80", "[{name: http, port: 8080}, {name: admin, port: 9}]", "10.0.0.1:8080*1"),
        ("name: http, port: 80", "[{name: admin, port: 9}]", ""),
        ("port: 80", "[{port: 8080}]", "10.0.0.1:8080*1"),
        ("name: http, port: 80", "[{port: 8080}]", "10.0.0.1:8080*1"),
        ("port: 80, targetPort: web", "[{name: web, port: 8080}]", "10.0.0.1:8080*1"),
    ] {
        let texts =
            [service(&format!("ports: [{{{port}}}]")), slice("a", &format!("ports: {slice_ports}{ends}"))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(pools(&texts), [format!("Service default/s:80 Http1 {expected}")], "{port} {slice_ports}");
    }
}

#[test]
fn protocols_are_stated_or_named() {
    for (port, protocol) in [
        ("port: 80", Protocol::Http1),
        ("name: http, port: 80", Protocol::Http1),
        ("name: http2, port: 80", Protocol::Http2),
        ("name: grpc-api, port: 80", Protocol::Http2),
        ("name: grpcs, port: 80", Protocol::Http1),
        ("name: web, port: 80, appProtocol: kubernetes.io/h2c", Protocol::Http2),
        ("name: grpc, port: 80, appProtocol: kubernetes.io/ws", Protocol::Http1),
        ("port: 80, appProtocol: grpc", Protocol::Http2),
    ] {
        let text = service(
            &format!("ports: [{{{port}}}, {{name: dns, port: 80, protocol: UDP}}]")
                .replace("[{port", "[{name: x, port"),
        );
        assert_eq!(pools(&[&text]), [format!("Service default/s:80 {protocol:?} ")], "{port}");
    }
}

#[test]
fn a_grpc_route_has_a_twin_of_its_own() {
    let grpc = object(
        "gateway.networking.k8s.io/v1",
        "GRPCRoute",
        "g",
        "parentRefs: [{name: edge}], rules: [{backendRefs: [{name: s, port: 80}]}]",
    );
    let texts = [gateway(WEB), service("ports: [{port: 80}]"), grpc, pool("p")];
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(
        pools(&texts),
        [
            "Pool default/p Http1 10.0.0.1:8080*1",
            "Service default/s:80 Http1 ",
            "Service (gRPC) default/s:80 Http2 "
        ]
    );
    let route = http_route(&texts);
    let BackendTarget::Pool(key) = &route.rules[0].backends[0].target else { panic!("resolved") };
    assert_eq!(key.object.kind, "Service (gRPC)");
    texts.remove(2);
    assert_eq!(pools(&texts).len(), 2, "nobody asks for it");
}

#[test]
fn an_external_name_is_looked_up() {
    let text = service("type: ExternalName, externalName: old.example, ports: [{port: 80}]");
    assert_eq!(pools(&[&text]), ["Service default/s:80 Http1 old.example:80*1"]);
}

#[test]
fn pools_of_all_three_forms() {
    let form = |spec: &str| object("fieldgate.dev/v1alpha1", "Pool", "p", spec);
    let backing = [
        service("ports: [{name: grpc, port: 80}]"),
        slice("a", "ports: [{name: grpc, port: 9}]\nendpoints: [{addresses: [10.0.0.1]}]"),
    ];
    for (spec, expected) in [
        (
            "endpoints: [{address: 10.0.0.1, port: 1, weight: 3, zone: z}, {address: '::1', port: 2, drain: true}, {address: 10.0.0.2, port: 3, weight: 0}]",
            "Http1 10.0.0.1:1*3@z [::1]:2*1! 10.0.0.2:3*1!",
        ),
        ("dns: {name: vms.example, port: 80}, protocol: auto", "Auto vms.example:80*1"),
        ("service: {name: s, port: 80}", "Http2 10.0.0.1:9*1"),
    ] {
        let text = form(spec);
        let texts = [text.as_str(), &backing[0], &backing[1]];
        assert_eq!(pools(&texts)[0], format!("Pool default/p {expected}"), "{spec}");
    }
    for (spec, reason) in [
        ("service: {name: s, port: 81}", "BackendNotFound spec.service.port"),
        ("service: {name: t, port: 80}", "BackendNotFound spec.service.name"),
        ("service: {name: s, port: 80, namespace: far}", "RefNotPermitted spec.service.namespace"),
    ] {
        let text = form(spec);
        assert_eq!(problems(&[&text, &backing[0], &backing[1]]), [reason], "{spec}");
    }
}

#[test]
fn service_entries_of_all_resolutions() {
    let entry = |rest: &str| {
        object("networking.istio.io/v1", "ServiceEntry", "e", &format!("hosts: [old.example], {rest}"))
    };
    let workload = |name: &str, rest: &str| object("networking.istio.io/v1", "WorkloadEntry", name, rest);
    let machines = [
        workload(
            "w1",
            "address: 10.0.0.1, labels: {app: old}, weight: 5, locality: eu/eu-1a/r1, ports: {http: 9000}",
        ),
        workload("w2", "address: 10.0.0.2, labels: {app: old}, weight: 0"),
        workload("w3", "address: 10.0.0.3, labels: {app: new}"),
        workload("far/w4", "address: 10.0.0.4, labels: {app: old}"),
    ];
    let http = "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]";
    for (rest, expected) in [
        (
            format!(
                "{http}, resolution: STATIC, endpoints: [{{address: 10.1.0.1}}, {{address: 10.1.0.2, ports: {{http: 7}}, weight: 2}}]"
            ),
            "Http1 10.1.0.1:8080*1 10.1.0.2:7*2",
        ),
        (
            format!("{http}, resolution: STATIC, workloadSelector: {{labels: {{app: old}}}}"),
            "Http1 10.0.0.1:9000*5@eu-1a 10.0.0.2:8080*1",
        ),
        (format!("{http}, resolution: DNS"), "Http1 old.example:8080*1"),
        (
            format!(
                "{http}, resolution: DNS_ROUND_ROBIN, endpoints: [{{address: a.example}}, {{address: b.example, weight: 2}}]"
            ),
            "Http1 a.example:8080*1 b.example:8080*2",
        ),
        (
            "ports: [{number: 80, name: x, protocol: GRPC}], resolution: DNS".to_owned(),
            "Http2 old.example:80*1",
        ),
    ] {
        let text = entry(&rest);
        let mut texts = vec![text.as_str()];
        texts.extend(machines.iter().map(String::as_str));
        assert_eq!(pools(&texts), [format!("Hostname default/old.example:80 {expected}")], "{rest}");
        assert_eq!(conditions(&texts, "ServiceEntry", "e"), ["/Accepted=true Accepted"]);
    }
    for (text, reason) in [
        (entry(http), "UnsupportedValue spec.resolution"),
        (
            entry("ports: [{number: 443, name: x, protocol: TLS}], resolution: DNS"),
            "UnsupportedProtocol spec.ports[0].protocol",
        ),
        (
            entry(&format!("{http}, resolution: DNS")).replace("old.example", "'*.example'"),
            "UnsupportedValue spec.hosts[0]",
        ),
        (
            entry(&format!("{http}, resolution: STATIC, endpoints: [{{address: a.example}}]")),
            "UnsupportedValue spec.endpoints[0].address",
        ),
    ] {
        assert_eq!(problems(&[&text]), [reason], "{text}");
    }
    let (older, newer) = (
        entry(&format!("{http}, resolution: DNS"))
            .replace("{name: e,", "{name: z, creationTimestamp: '2020-01-01T00:00:00Z',"),
        entry("ports: [{number: 80, name: x, protocol: GRPC}], resolution: DNS"),
    );
    assert_eq!(pools(&[&newer, &older]), ["Hostname default/old.example:80 Http1 old.example:8080*1"]);
    assert_eq!(conditions(&[&newer, &older], "ServiceEntry", "e"), ["/Accepted=false Conflicted"]);
}
