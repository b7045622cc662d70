//! DestinationRules, localities and XBackendTrafficPolicies: what they do to pools.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{Balance, HashKind, Localities, Locality, Outlier, Pool, Protocol, SlowStart};

use super::pools::priorities;
use super::*;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: http, port: 80}, {name: http-more, port: 81}]}\n";

fn rule(name: &str, spec: &str) -> String {
    object("networking.istio.io/v1", "DestinationRule", name, spec)
}

/// A ServiceEntry of host `h.example` with one endpoint in each locality, from 10.0.0.1 on.
fn entry(localities: &[&str]) -> String {
    let one = |(i, l): (usize, &&str)| {
        let version = if i == 0 { "v1" } else { "v2" };
        format!("{{address: 10.0.0.{}, locality: {l}, labels: {{version: {version}}}}}", i + 1)
    };
    let endpoints: Vec<String> = localities.iter().enumerate().map(one).collect();
    object(
        "networking.istio.io/v1",
        "ServiceEntry",
        "e",
        &format!(
            "hosts: [h.example], ports: [{{number: 80, name: http, protocol: HTTP}}], resolution: STATIC, \
             endpoints: [{}]",
            endpoints.join(", ")
        ),
    )
}

fn found(own: Option<&str>, texts: &[&str], key: &str) -> Arc<Pool> {
    let mut configuration = Configuration::of_gateway_at(own.map(Locality::parse));
    let outcome = configuration.apply(files(texts));
    let pool = outcome.config.pools.values().find(|p| p.key.to_string() == key).cloned();
    pool.unwrap_or_else(|| panic!("no {key}: {:?}", outcome.diagnostics))
}

/// The last parts of addresses by priority.
fn order(own: &str, localities: &[&str], policy: &str) -> Vec<String> {
    let rule = rule("d", &format!("host: h.example, trafficPolicy: {{{policy}}}"));
    priorities(&found(Some(own), &[&entry(localities), &rule], "Hostname default/h.example:80"))
        .iter()
        .map(|p| p.replace(" 10.0.0.", " ").replace(":80", ""))
        .collect()
}

#[test]
fn connection_pools_and_balancers_are_those_of_istio() {
    let spec = "host: s, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 0s}, \
                minimumRingSize: 7}, warmup: {duration: 1.5s, minimumPercent: 20, aggression: 2}}, \
                connectionPool: {tcp: {maxConnections: 1, connectTimeout: 30ms, idleTimeout: 1h, \
                maxConnectionDuration: 2h}, http: {http1MaxPendingRequests: 2, http2MaxRequests: 3, \
                maxRequestsPerConnection: 4, maxRetries: 5, useClientProtocol: true}}, retryBudget: {percent: 30}}";
    let pool = found(None, &[SERVICE, &rule("d", spec)], "Service default/s:80");
    let Balance::RingHash { min_size: 7, by, .. } = &pool.balance else { panic!("{:?}", pool.balance) };
    let cookie = HashKind::Cookie { name: "c".into(), ttl: Some(Duration::ZERO), path: "/".into() };
    assert_eq!(by.sources[0].kind, cookie);
    let slow = SlowStart { window: Duration::from_millis(1500), aggression: 200, min_weight: 20 };
    assert_eq!(pool.spread.slow_start, Some(slow));
    let l = &pool.limits;
    assert_eq!((l.max_pool_connections, l.max_pending, l.max_requests), (1, 2, 3));
    assert_eq!((l.max_requests_per_connection, l.max_retries, l.retry_budget.percent), (4, 5, 30));
    assert_eq!((l.connect_timeout, l.idle_timeout), (Duration::from_millis(30), Duration::from_hours(1)));
    assert_eq!(l.max_connection_duration, Duration::from_hours(2));
    assert_eq!(pool.protocol, Protocol::Auto);
}

#[test]
fn outlier_detection_has_istios_defaults() {
    let spec = |outlier: &str| format!("host: s, trafficPolicy: {{outlierDetection: {{{outlier}}}}}");
    let pool = found(None, &[SERVICE, &rule("d", &spec(""))], "Service default/s:80");
    let default = Outlier { enforcing_success_rate: 0, ..Outlier::default() };
    assert_eq!(pool.outlier.as_deref(), Some(&default));
    assert_eq!(pool.spread.panic_threshold, 0);
    let written = "consecutive5xxErrors: 0, consecutiveGatewayErrors: 3, splitExternalLocalOriginErrors: true, \
                   consecutiveLocalOriginFailures: 2, baseEjectionTime: 10m, minHealthPercent: 40";
    let pool = found(None, &[SERVICE, &rule("d", &spec(written))], "Service default/s:80");
    let expected = Outlier {
        enforcing_consecutive_5xx: 0,
        consecutive_gateway_failure: 3,
        enforcing_consecutive_gateway_failure: 100,
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: 2,
        base_ejection_time: Duration::from_mins(10),
        max_ejection_time: Duration::from_mins(10),
        ..default
    };
    assert_eq!(pool.outlier.as_deref(), Some(&expected));
    assert_eq!(pool.spread.panic_threshold, 40);
}

#[test]
fn settings_of_a_port_inherit_nothing() {
    let spec = "host: s, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {}, \
                portLevelSettings: [{port: {number: 81}, loadBalancer: {simple: RANDOM}}]}";
    let texts = [SERVICE, &rule("d", spec)];
    let (first, second) =
        (found(None, &texts, "Service default/s:80"), found(None, &texts, "Service default/s:81"));
    assert_eq!((&first.balance, first.outlier.is_some()), (&Balance::RoundRobin, true));
    assert_eq!((&second.balance, second.outlier.is_some()), (&Balance::Random, false));
}

#[test]
fn the_rule_of_the_own_namespace_and_then_the_more_specific_host_counts() {
    let policy = |host: &str, n: u32| {
        format!("host: '{host}', trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {n}}}}}}}")
    };
    let all = [
        rule("istio-system/root", &policy("s.default.svc.cluster.local", 1)),
        rule("other/o", &policy("s.default.svc.cluster.local", 2)),
        rule("hidden/h", &format!("{}, exportTo: ['.']", policy("s.default.svc.cluster.local", 3))),
        rule("wild", &policy("*.svc.cluster.local", 4)),
        rule("narrower", &policy("*.default.svc.cluster.local", 5)),
        rule("exact", &policy("s", 6)),
        rule("later", &policy("s", 7)),
    ];
    let count = |names: &[usize]| {
        let texts: Vec<&str> = std::iter::once(SERVICE).chain(names.iter().map(|i| &*all[*i])).collect();
        found(None, &texts, "Service default/s:80").limits.max_pool_connections
    };
    assert_eq!(count(&[0, 1, 2, 3, 4, 5]), 6);
    assert_eq!(count(&[0, 1, 2, 3, 4]), 5);
    assert_eq!(count(&[0, 1, 2]), 1);
    assert_eq!(count(&[1, 2]), 2);
    assert_eq!(count(&[2]), u32::MAX);
    let texts = [SERVICE, &all[5], &all[6]];
    assert_eq!(problems(&texts), ["Conflicted spec.host"]);
    assert_eq!(conditions(&texts, "DestinationRule", "later"), ["/Accepted=false Conflicted"]);
}

#[test]
fn a_rule_reaches_the_pool_that_stands_for_its_host() {
    let rule = rule("d", "host: s, trafficPolicy: {loadBalancer: {simple: RANDOM}, outlierDetection: {}}");
    let pool = |rest: &str| {
        object("fieldgate.dev/v1alpha1", "Pool", "p", &format!("service: {{name: s, port: 80}}{rest}"))
    };
    let plain = found(None, &[SERVICE, &rule, &pool("")], "Pool default/p");
    assert_eq!((&plain.balance, plain.outlier.is_some()), (&Balance::Random, true));
    let own = pool(", loadBalancing: {policy: roundRobin}");
    let own = found(None, &[SERVICE, &rule, &own], "Pool default/p");
    assert_eq!(
        (&own.balance, own.outlier.is_some()),
        (&Balance::RoundRobin, true),
        "what it says itself wins"
    );
}

#[test]
fn a_subset_is_a_part_of_a_host() {
    let entry = entry(&["r/a", "r/b", "r/c"]);
    let rule = rule(
        "d",
        "host: h.example, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: new, labels: \
         {version: v2}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}}}]",
    );
    let pool = |subset: &str| {
        let spec = format!("hostname: {{name: h.example, port: 80, subset: {subset}}}");
        object("fieldgate.dev/v1alpha1", "Pool", "p", &spec)
    };
    let new = found(None, &[&entry, &rule, &pool("new")], "Pool default/p");
    assert_eq!(priorities(&new), ["0 10.0.0.2:80", "0 10.0.0.3:80"]);
    assert_eq!((&new.balance, new.limits.max_pool_connections), (&Balance::Random, 5));
    assert_eq!(problems(&[&entry, &rule, &pool("newer")]), ["BackendNotFound spec.hostname.subset"]);
    assert_eq!(problems(&[&entry, &pool("new")]), ["BackendNotFound spec.hostname.subset"]);
}

#[test]
fn what_is_near_comes_first_where_endpoints_are_ejected() {
    let there = ["r1/z1/s1", "r1/z1/s2", "r1/z2", "r2/z1", "r3/z1"];
    let own = "r1/z1/s1";
    let ejects = "outlierDetection: {}";
    assert_eq!(order(own, &there, ejects), ["0 1", "1 2", "2 3", "3 4", "3 5"]);
    let failover = "loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}";
    assert_eq!(order(own, &there, &format!("{ejects}, {failover}")), ["0 1", "1 2", "2 3", "4 4", "3 5"]);
    assert_eq!(order(own, &there, failover), ["0 1", "0 2", "0 3", "0 4", "0 5"], "nothing is seen to fail");
    let off = "loadBalancer: {localityLbSetting: {enabled: false}}";
    assert_eq!(order(own, &there, &format!("{ejects}, {off}")), ["0 1", "0 2", "0 3", "0 4", "0 5"]);
    let labels = "loadBalancer: {localityLbSetting: {failoverPriority: [topology.kubernetes.io/region, \
                  topology.kubernetes.io/zone]}}";
    assert_eq!(order(own, &there, &format!("{ejects}, {labels}")), ["0 1", "0 2", "1 3", "2 4", "2 5"]);
    assert_eq!(order("r9", &there[..2], ejects), ["0 1", "0 2"], "priorities have no gaps");
}

#[test]
fn shares_of_localities() {
    let rule = rule(
        "d",
        "host: h.example, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: 'r9/*', to: \
         {'*': 100}}, {from: r1/*, to: {'r1/z1/*': 80, 'r2/*': 20}}]}}}",
    );
    let entry = entry(&["r1/z1", "r1/z2", "r2/z1", "r2/z2"]);
    let pool = found(Some("r1/z1"), &[&entry, &rule], "Hostname default/h.example:80");
    let share = |l: &str, weight| (Locality::parse(l), weight);
    let expected = vec![share("r1/z1", 8000), share("r2/z1", 1000), share("r2/z2", 1000)];
    assert_eq!(pool.spread.localities, Localities::Weighted(expected));
    assert_eq!(
        problems(&[&entry, &rule]),
        ["UnsupportedValue spec.trafficPolicy.loadBalancer.localityLbSetting"],
        "without a place of its own"
    );
}

#[test]
fn a_service_may_ask_for_its_own_zone() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.0.0.1], zone: a}, {addresses: [10.0.0.2], zone: b}]\n";
    let by_field = SERVICE.replace("spec: {", "spec: {trafficDistribution: PreferClose, ");
    let by_annotation =
        SERVICE.replace("name: s}", "name: s, annotations: {service.kubernetes.io/topology-mode: Auto}}");
    for (service, field) in [(by_field, "spec.trafficDistribution"), (by_annotation, "metadata.annotations")]
    {
        let near = found(Some("r/b"), &[&service, slice], "Service default/s:80");
        assert_eq!(priorities(&near), ["1 10.0.0.1:80", "0 10.0.0.2:80"]);
        let elsewhere = found(Some("r/c"), &[&service, slice], "Service default/s:80");
        assert_eq!(priorities(&elsewhere), ["0 10.0.0.1:80", "0 10.0.0.2:80"]);
        assert_eq!(problems(&[&service, slice]), [format!("UnsupportedValue {field}")]);
    }
}

#[test]
fn retry_budgets_of_gateway_api() {
    let policy = |name: &str, percent: &str| {
        object(
            "gateway.networking.x-k8s.io/v1alpha1",
            "XBackendTrafficPolicy",
            name,
            &format!(
                "targetRefs: [{{group: '', kind: Service, name: s}}], retryConstraint: {{budget: {{{percent}}}}}"
            ),
        )
    };
    let texts = [SERVICE, &policy("a", "percent: 50"), &policy("b", "percent: 10, interval: 10s")];
    assert_eq!(found(None, &texts, "Service default/s:81").limits.retry_budget.percent, 50);
    assert_eq!(
        problems(&texts),
        ["Conflicted spec.targetRefs[0].name", "UnsupportedValue spec.retryConstraint.budget.interval"]
    );
    assert_eq!(conditions(&texts, "XBackendTrafficPolicy", "a"), ["/Accepted=true Accepted"]);
}
