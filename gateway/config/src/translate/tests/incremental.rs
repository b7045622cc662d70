//! However a state is reached, it is the state that a translation from scratch gives; and what did not change stays
//! where it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir;
use proptest::prelude::*;

use super::{WEB, files, gateway, grant, object, pool, route};
use crate::{Configuration, FileChange};

/// Files, each in the versions that it may have.
fn versions() -> Vec<Vec<String>> {
    let gw = |spec: &str| {
        object(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            "edge",
            &format!("gatewayClassName: fieldgate, {spec}"),
        )
    };
    let http = |name: &str, spec: &str| object("gateway.networking.k8s.io/v1", "HTTPRoute", name, spec);
    let grpc = |spec: &str| object("gateway.networking.k8s.io/v1", "GRPCRoute", "g", spec);
    let split = |name: &str, spec: &str| {
        object(
            "fieldgate.dev/v1alpha1",
            "SplitPolicy",
            name,
            &format!("targetRef: {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: a{spec}"),
        )
    };
    let rule = |spec: &str| object("networking.istio.io/v1", "DestinationRule", "d", spec);
    let traffic = |spec: &str| {
        let target = "targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: a";
        object("fieldgate.dev/v1alpha1", "TrafficPolicy", "t", &format!("{target}{spec}"))
    };
    let limits = |targets: &str, spec: &str| {
        let one = "group: gateway.networking.k8s.io, kind";
        let targets = targets.replace("KIND", one);
        let limit = "{name: l, rate: {requests: 1, per: 1s}}";
        let spec = format!("targetRefs: [{targets}], limits: [{limit}]{spec}");
        object("fieldgate.dev/v1alpha1", "RateLimitPolicy", "l", &spec)
    };
    let asked = |port: u16| {
        format!(
            ", global: {{failOpen: false, backendRef: {{name: s, port: {port}}}, domain: d, descriptors: [{{entries: [{{key: a, value: b}}]}}]}}"
        )
    };
    let slice = |address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s1, labels: {{kubernetes.io/service-name: s}}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints: [{{addresses: [{address}]}}]\n"
        )
    };
    let namespace = |labels: &str| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: team, labels: {{{labels}}}}}\n")
    };
    let policy = |spec: &str| object("security.istio.io/v1", "AuthorizationPolicy", "p", spec);
    let tokens = |spec: &str| object("security.istio.io/v1", "RequestAuthentication", "t", spec);
    let entry = |name: &str, spec: &str| {
        object(
            "networking.istio.io/v1",
            "ServiceEntry",
            name,
            &format!("hosts: [old.example], ports: [{{number: 80, name: http{spec}"),
        )
    };
    let secret = |crt: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls}}\ntype: kubernetes.io/tls\nstringData: {{tls.crt: '{crt}', tls.key: '-----BEGIN PRIVATE KEY-----'}}\n"
        )
    };
    let selector = "allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {open: 'yes'}}}}";
    vec![
        vec![
            gw(&format!("listeners: [{WEB}]")),
            gw(&format!("listeners: [{{name: web, protocol: HTTP, port: 80, {selector}}}]")),
            gw(
                "listeners: [{name: web, protocol: HTTP, port: 80, hostname: '*.example', allowedRoutes: {namespaces: {from: All}}}, {name: tls, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: tls}]}}]",
            ),
            gateway("{name: web, protocol: TCP, port: 80}"),
            gateway(WEB).replace("fieldgate", "other"),
        ],
        vec![secret("-----BEGIN CERTIFICATE-----1"), secret("-----BEGIN CERTIFICATE-----2"), secret("none")],
        vec![
            http(
                "a",
                "parentRefs: [{name: edge}], hostnames: [a.example], rules: [{name: x, backendRefs: [{name: s, port: 80, weight: 9}, {group: fieldgate.dev, kind: Pool, name: p}]}]",
            ),
            http(
                "a",
                "parentRefs: [{name: edge, sectionName: tls}], rules: [{backendRefs: [{name: s, port: 81}]}]",
            ),
            http(
                "a",
                "parentRefs: [{name: edge}], rules: [{name: x, backendRefs: [{group: networking.istio.io, kind: Hostname, name: old.example, port: 80}]}, {filters: [{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}]}]",
            ),
        ],
        vec![
            http(
                "team/b",
                "parentRefs: [{name: edge, namespace: default}], hostnames: [b.example], rules: [{backendRefs: [{name: s, namespace: default, port: 80}]}]",
            ),
            http("team/b", "parentRefs: [{name: edge}]"),
        ],
        vec![
            grpc(
                "parentRefs: [{name: edge}], rules: [{backendRefs: [{group: fieldgate.dev, kind: Pool, name: p}]}]",
            ),
            grpc(
                "parentRefs: [{name: edge}], rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: old.example, port: 80}]}]",
            ),
        ],
        vec![grant("default", "HTTPRoute", "team", "{group: '', kind: Service}")],
        vec![namespace("open: 'yes'"), namespace("open: 'no'")],
        vec![
            object("v1", "Service", "s", "ports: [{name: http, port: 80}]"),
            object("v1", "Service", "s", "ports: [{name: http, port: 81}]"),
        ],
        vec![slice("10.0.0.1"), slice("10.0.0.2")],
        vec![
            pool("p"),
            pool("p").replace("10.0.0.1", "10.0.0.2"),
            object("fieldgate.dev/v1alpha1", "Pool", "p", "service: {name: s, port: 80}"),
            object(
                "fieldgate.dev/v1alpha1",
                "Pool",
                "p",
                "hostname: {name: old.example, port: 80, subset: v}, fallback: [{name: s, port: 80}], healthCheck: {tcp: {}, tls: {caCertificateRefs: [{name: tls}]}}",
            ),
        ],
        vec![
            entry("e", "}], resolution: STATIC, endpoints: [{address: 10.0.0.9}]"),
            entry("e", ", protocol: TLS}], resolution: DNS"),
            entry("e", "}], resolution: DNS, exportTo: ['.']"),
        ],
        vec![entry("team/f", "}], resolution: STATIC, workloadSelector: {labels: {app: f}}")],
        vec![
            object(
                "networking.istio.io/v1",
                "WorkloadEntry",
                "team/w",
                "address: 10.1.1.1, labels: {app: f}",
            ),
            object(
                "networking.istio.io/v1",
                "WorkloadEntry",
                "team/w",
                "address: 10.1.1.1, labels: {app: g}",
            ),
        ],
        vec![
            split("s1", "}, sticky: {source: {}}"),
            split("s1", ", sectionName: x}, sticky: {source: {}}, existingSessions: {cookie: c, stayOn: p}"),
        ],
        vec![split("s2", "}, sticky: {header: {name: x-user}}")],
        vec![
            policy("action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]"),
            policy("rules: [{from: [{source: {principals: [a]}}]}]"),
            policy(
                "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edgy}], rules: [{}]",
            ),
        ],
        vec![
            tokens("jwtRules: [{issuer: 'https://issuer.example'}]"),
            tokens("selector: {matchLabels: {tier: front}}, jwtRules: [{issuer: me}]"),
            tokens("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edgy}]"),
        ],
        vec![
            traffic("}, retry: {attempts: 3}"),
            traffic(", sectionName: x}, timeouts: {idle: 1s}, fault: {abort: {status: 503}}"),
        ],
        vec![
            rule("host: s, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}"),
            rule(
                "host: old.example, trafficPolicy: {outlierDetection: {}}, subsets: [{name: v, labels: {app: f}}]",
            ),
            rule("host: lost"),
        ],
        vec![object(
            "gateway.networking.x-k8s.io/v1alpha1",
            "XBackendTrafficPolicy",
            "x",
            "targetRefs: [{group: '', kind: Service, name: s}], retryConstraint: {budget: {percent: 7}}",
        )],
        vec![
            limits("{KIND: HTTPRoute, name: a}, {KIND: Gateway, name: edge, sectionName: tls}", ""),
            limits("{KIND: HTTPRoute, name: a, sectionName: x}, {KIND: Gateway, name: edge}", &asked(80)),
            limits("{KIND: GRPCRoute, name: g}, {KIND: Gateway, name: edgy}", &asked(81)),
        ],
        vec![gateway(WEB).replace("name: edge", "name: edgy, creationTimestamp: '2020-01-01T00:00:00Z'")],
    ]
}

fn everything_of(configuration: &Configuration) -> (Vec<String>, String, String) {
    (
        configuration.diagnostics().iter().map(ToString::to_string).collect(),
        format!("{:?}", configuration.statuses()),
        format!("{:?}", configuration.listener_statuses()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_way_to_a_state_gives_that_state(
        steps in proptest::collection::vec(
            proptest::collection::vec((0usize..21, proptest::option::weighted(0.8, 0usize..5)), 1..6),
            1..16,
        )
    ) {
        let versions = versions();
        let mut configuration = Configuration::default();
        let mut now: BTreeMap<String, FileChange> = BTreeMap::new();
        let mut before = ir::Config::default();
        for step in steps {
            let mut changes: BTreeMap<String, FileChange> = BTreeMap::new();
            for (file, version) in step {
                let name = format!("{file:02}.yaml");
                let text = version.map(|v| versions[file][v % versions[file].len()].clone());
                changes.insert(name.clone(), FileChange { name: name.as_str().into(), text });
            }
            now.extend(changes.clone());
            let outcome = configuration.apply(changes.into_values().collect());
            let mut scratch = Configuration::default();
            let from_scratch = scratch.apply(now.values().cloned().collect());
            prop_assert_eq!(&outcome.config, &from_scratch.config);
            prop_assert_eq!(everything_of(&configuration), everything_of(&scratch));
            prop_assert_eq!(outcome.changed, outcome.config != before);
            same_stays_and_other_is_named(&before, &outcome)?;
            before = outcome.config;
        }
    }
}

fn same_stays_and_other_is_named(before: &ir::Config, outcome: &crate::Outcome) -> Result<(), TestCaseError> {
    let ir::Touched::Routes(named) = &outcome.touched else {
        return Err(TestCaseError::fail("the translator knows what it touched"));
    };
    let after = &outcome.config;
    for key in before.routes.keys().chain(after.routes.keys()) {
        match (before.routes.get(key), after.routes.get(key)) {
            (Some(a), Some(b)) if a == b => prop_assert!(Arc::ptr_eq(a, b), "{} moved", key),
            _ => prop_assert!(named.contains(key), "{} is not named", key),
        }
    }
    for (key, pool) in &after.pools {
        let old = before.pools.get(key);
        prop_assert!(old.is_none_or(|o| o != pool || Arc::ptr_eq(o, pool)), "{} moved", key);
    }
    for (key, listener) in &after.listeners {
        let old = before.listeners.get(key);
        prop_assert!(old.is_none_or(|o| o != listener || Arc::ptr_eq(o, listener)), "{} moved", key);
    }
    Ok(())
}

/// The routes that are named are those that a change of one kind reaches.
#[test]
fn a_change_reaches_no_further_than_it_must() {
    let backends = "rules: [{backendRefs: [{group: fieldgate.dev, kind: Pool, name: p}]}]";
    let mut configuration = Configuration::default();
    let texts = [gateway(WEB), route(backends), pool("p"), route(backends).replace("name: r,", "name: q,")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    configuration.apply(files(&texts));
    let mut change = |file: &str, text: String| {
        let outcome = configuration.apply(vec![FileChange { name: file.into(), text: Some(text) }]);
        let ir::Touched::Routes(named) = outcome.touched else { panic!("the translator knows") };
        (outcome.changed, named.iter().map(|k| k.name.to_string()).collect::<Vec<_>>())
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(change("2.yaml", pool("p").replace("8080", "8081")), (true, none.clone()), "endpoints");
    assert_eq!(change("2.yaml", pool("p").replace("8080", "8081") + "# words\n"), (false, none.clone()));
    let weighted = route(backends).replace("name: p}", "name: p, weight: 2}");
    assert_eq!(change("1.yaml", weighted), (true, vec!["r".to_owned()]), "one route");
    let named = gateway("{name: web, protocol: HTTP, port: 80, hostname: a.example}");
    assert_eq!(change("0.yaml", named), (true, vec!["q".to_owned(), "r".to_owned()]), "the listener's name");
    let (changed, named) = change("2.yaml", pool("other"));
    assert_eq!((changed, named), (true, vec!["q".to_owned(), "r".to_owned()]), "the pool is gone");
}

/// What is said of an object keeps up with its text.
#[test]
fn places_move_with_their_texts() {
    let mut configuration = Configuration::default();
    let text = gateway(WEB) + "---\n" + &route("rules: [{backendRefs: [{name: none, port: 80}]}]");
    let mut place = |text: &str| {
        let file = FileChange { name: "f.yaml".into(), text: Some(text.to_owned()) };
        let outcome = configuration.apply(vec![file]);
        outcome.diagnostics.first().map(|d| (d.location.line, outcome.changed))
    };
    assert_eq!(place(&text), Some((9, true)));
    assert_eq!(place(&format!("# one\n# two\n---\n{text}")), Some((12, false)));
}
