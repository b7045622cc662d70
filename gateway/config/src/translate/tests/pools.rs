//! Pools: what is written and what comes of it; priorities, fallback, checks.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    Balance, EndpointTls, Endpoints, HashFunction, HashKind, HealthKind, Localities, Locality, Pool,
    ServerTrust, SlowStart,
};

use super::*;

fn api(name: &str, spec: &str) -> String {
    object("fieldgate.dev/v1alpha1", "Pool", name, spec)
}

/// A Pool `p` with one endpoint and this beside it.
fn one(spec: &str) -> String {
    api("p", &format!("endpoints: [{{address: 10.0.0.1, port: 80}}], {spec}"))
}

fn found(texts: &[&str], key: &str) -> Arc<Pool> {
    let config = config(texts);
    let pool = config.pools.values().find(|p| p.key.to_string() == key).cloned();
    pool.unwrap_or_else(|| panic!("no {key}: {:?}", problems(texts)))
}

/// `priority address` of all endpoints, names included.
pub(super) fn priorities(pool: &Pool) -> Vec<String> {
    let (fixed, names) = match &pool.endpoints {
        Endpoints::Static(fixed) => (fixed, &[][..]),
        Endpoints::Dns { fixed, names } => (fixed, &names[..]),
    };
    let fixed = fixed.iter().map(|e| format!("{} {}", e.priority, e.address));
    let names =
        names.iter().map(|n| format!("{} {}:{}", n.endpoint.priority, n.host, n.endpoint.address.port()));
    fixed.chain(names).collect()
}

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: http, port: 80}]}\n";
const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, labels: {kubernetes.io/service-name: s}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.1.0.1]}]\n";
const ENTRY: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: {hosts: [old.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}\n";

#[test]
fn endpoints_say_where_they_stand_and_when_they_are_used() {
    let text = api(
        "p",
        "endpoints: [{address: 10.0.0.1, port: 80, locality: {region: r, zone: z, subzone: s}, hashKey: a}, \
         {address: 10.0.0.2, port: 80, zone: y, priority: 7, degraded: true}]",
    );
    let pool = found(&[&text], "Pool default/p");
    let Endpoints::Static(endpoints) = &pool.endpoints else { panic!("{pool:?}") };
    assert_eq!(endpoints[0].locality.as_deref(), Some(&Locality::parse("r/z/s")));
    assert_eq!(endpoints[0].hash_key.as_deref(), Some("a"));
    assert_eq!(endpoints[1].locality.as_deref(), Some(&Locality::of_zone("y")));
    assert_eq!((endpoints[1].priority, endpoints[1].degraded), (1, true), "priorities have no gaps");
}

#[test]
fn every_policy_is_translated() {
    let balance =
        |spec: &str| found(&[&one(&format!("loadBalancing: {{{spec}}}"))], "Pool default/p").balance.clone();
    assert_eq!(balance("panicThreshold: 10"), Balance::default());
    assert_eq!(
        balance("leastRequest: {choices: 3, activeRequestBias: 0.5}"),
        Balance::LeastRequest { choices: 3, bias: 50 }
    );
    assert_eq!(balance("policy: peakEwma"), Balance::PeakEwma { decay: Duration::from_secs(10) });
    let ring = balance(
        "policy: ringHash, ringHash: {hashFunction: murmurHash2, maximumRingSize: 100}, balanceFactor: 150, \
         hash: [{header: X-User, terminal: true}, {cookie: {name: c, ttl: 0s}}, {source: {}}, {query: q}]",
    );
    let Balance::RingHash { function, min_size, max_size, by } = ring else { panic!("{ring:?}") };
    assert_eq!((function, min_size, max_size), (HashFunction::Murmur2, 100, 100));
    assert_eq!(by.balance_factor, 150);
    let kinds: Vec<_> = by.sources.iter().map(|s| (s.kind.clone(), s.terminal)).collect();
    let cookie = HashKind::Cookie { name: "c".into(), ttl: Some(Duration::ZERO), path: "/".into() };
    let expected = [
        (HashKind::Header("x-user".into()), true),
        (cookie, false),
        (HashKind::Source, false),
        (HashKind::Query("q".into()), false),
    ];
    assert_eq!(kinds, expected);
    let maglev = balance("policy: maglev, hash: [{source: {}}]");
    assert!(matches!(maglev, Balance::Maglev { table_size: 65_537, .. }), "{maglev:?}");
}

#[test]
fn what_is_not_written_has_its_default() {
    let text = one(
        "loadBalancing: {slowStart: {window: 30s, aggression: 1.5}, failInPanic: true, overprovisioningFactor: 200, \
         localities: {weights: {r/a: 3, r/b: 1}}}, outlierDetection: {consecutive5xx: 3, baseEjectionTime: 10m}, \
         maxConnectionsPerEndpoint: 9, limits: {maxConnections: 1, maxPendingRequests: 2, maxRequests: 3, \
         maxRequestsPerEndpoint: 4, maxRetries: 0, maxRequestsPerConnection: 6, maxConnectionDuration: 7s, \
         queueTimeout: 8s, retryBudget: {percent: 50}, adaptiveConcurrency: {percentile: 90}, \
         admissionControl: {aggression: 2}}",
    );
    let pool = found(&[&text], "Pool default/p");
    let slow = SlowStart { window: Duration::from_secs(30), aggression: 150, min_weight: 10 };
    assert_eq!(pool.spread.slow_start, Some(slow));
    assert_eq!(
        (pool.spread.fail_in_panic, pool.spread.overprovisioning, pool.spread.panic_threshold),
        (true, 200, 50)
    );
    let weights = vec![(Locality::parse("r/a"), 3), (Locality::parse("r/b"), 1)];
    assert_eq!(pool.spread.localities, Localities::Weighted(weights));
    let outlier = pool.outlier.as_deref().expect("an outlier detection");
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_gateway_failure), (3, 5));
    assert_eq!(outlier.max_ejection_time, Duration::from_mins(10), "never shorter than the base");
    let l = &pool.limits;
    let numbers = (l.max_connections, l.max_pool_connections, l.max_pending, l.max_requests);
    assert_eq!(numbers, (9, 1, 2, 3));
    assert_eq!((l.max_requests_per_endpoint, l.max_retries, l.max_requests_per_connection), (4, 0, 6));
    assert_eq!(l.max_connection_duration, Duration::from_secs(7));
    assert_eq!(l.queue_timeout, Some(Duration::from_secs(8)));
    assert_eq!((l.retry_budget.percent, l.retry_budget.min), (50, 3));
    let adaptive = l.adaptive.as_deref().expect("adaptive concurrency");
    assert_eq!((adaptive.percentile, adaptive.max_concurrency), (90, 1000));
    let admission = l.admission.as_deref().expect("admission control");
    assert_eq!((admission.aggression, admission.threshold), (200, 95));
}

#[test]
fn zone_awareness_needs_to_know_the_own_zone() {
    let text = one("loadBalancing: {zoneAware: {percent: 50}}");
    assert_eq!(problems(&[&text]), ["UnsupportedValue spec.loadBalancing.zoneAware"]);
    let mut there = Configuration::of_gateway_at(Some(Locality::parse("r/z")));
    let outcome = there.apply(files(&[&text]));
    assert_eq!(outcome.diagnostics, []);
    let pool = outcome.config.pools.values().next().expect("a pool").clone();
    let expected = Localities::ZoneAware { own: Locality::parse("r/z"), min_endpoints: 6, enabled: 50 };
    assert_eq!(pool.spread.localities, expected);
}

#[test]
fn what_is_fallen_back_to_comes_after_the_own_endpoints() {
    let texts = [
        api(
            "vms",
            "endpoints: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80, priority: 1}], fallback: [\
             {name: s, port: 80}, {group: fieldgate.dev, kind: Pool, name: last}]",
        ),
        api(
            "last",
            "endpoints: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.9, port: 80}], fallback: [\
             {group: networking.istio.io, kind: Hostname, name: old.example, port: 80}]",
        ),
        SERVICE.to_owned(),
        SLICE.to_owned(),
        ENTRY.to_owned(),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(problems(&texts), [""; 0]);
    assert_eq!(
        priorities(&found(&texts, "Pool default/vms")),
        ["0 10.0.0.1:80", "1 10.0.0.2:80", "2 10.1.0.1:8080", "3 10.0.0.9:80", "4 old.example:80"],
        "an endpoint that is there twice counts where it comes first"
    );
    assert_eq!(
        conditions(&texts, "Pool", "vms"),
        ["/Accepted=true Accepted", "/ResolvedRefs=true ResolvedRefs"]
    );
    // Without ready pods the next takes their place.
    let without_pods: Vec<&str> = texts.iter().copied().filter(|t| *t != SLICE).collect();
    let left = priorities(&found(&without_pods, "Pool default/vms"));
    assert_eq!(left, ["0 10.0.0.1:80", "1 10.0.0.2:80", "2 10.0.0.9:80", "3 old.example:80"]);
}

#[test]
fn a_fallback_that_does_not_hold_is_left_out() {
    let fallback = |entry: &str| one(&format!("fallback: [{{{entry}}}]"));
    let pool = "group: fieldgate.dev, kind: Pool";
    for (entry, expected) in [
        ("name: t, port: 80".to_owned(), "BackendNotFound spec.fallback[0].name"),
        ("name: s, port: 81".to_owned(), "BackendNotFound spec.fallback[0].port"),
        ("name: s, port: 80, namespace: b".to_owned(), "RefNotPermitted spec.fallback[0].namespace"),
        (format!("{pool}, name: q"), "BackendNotFound spec.fallback[0].name"),
        (format!("{pool}, name: h2"), "UnsupportedProtocol spec.fallback[0]"),
        (format!("{pool}, name: p"), "Cycle spec.fallback[0]"),
    ] {
        let h2 = api("h2", "endpoints: [{address: 10.0.0.2, port: 80}], protocol: http2");
        let texts = [&*fallback(&entry), SERVICE, &h2];
        assert_eq!(problems(&texts), [expected], "{entry}");
        assert_eq!(priorities(&found(&texts, "Pool default/p")), ["0 10.0.0.1:80"], "{entry}");
        let reason = expected.split(' ').next().expect("a reason");
        let conditions = conditions(&texts, "Pool", "p");
        assert_eq!(
            conditions,
            ["/Accepted=true Accepted".to_owned(), format!("/ResolvedRefs=false {reason}")]
        );
    }
}

#[test]
fn pools_that_fall_back_to_each_other_are_cut_apart() {
    let next = |name: &str, address: &str, to: &str| {
        api(
            name,
            &format!(
                "endpoints: [{{address: {address}, port: 80}}], \
                 fallback: [{{group: fieldgate.dev, kind: Pool, name: {to}}}]"
            ),
        )
    };
    let texts = [next("a", "10.0.0.1", "b"), next("b", "10.0.0.2", "c"), next("c", "10.0.0.3", "b")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let said = configuration(&texts).diagnostics();
    let messages: Vec<_> = said.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "falls back to itself: Pool default/b -> Pool default/c -> Pool default/b",
            "falls back to itself: Pool default/c -> Pool default/b -> Pool default/c",
        ]
    );
    assert_eq!(priorities(&found(&texts, "Pool default/a")), ["0 10.0.0.1:80", "1 10.0.0.2:80"]);
}

#[test]
fn a_reference_across_namespaces_needs_a_grant() {
    let text = one("fallback: [{group: fieldgate.dev, kind: Pool, name: q, namespace: b}]");
    let other = api("b/q", "endpoints: [{address: 10.0.0.2, port: 80}]");
    let grant = object(
        "gateway.networking.k8s.io/v1",
        "ReferenceGrant",
        "b/g",
        "from: [{group: fieldgate.dev, kind: Pool, namespace: default}], to: [{group: fieldgate.dev, kind: Pool}]",
    );
    assert_eq!(problems(&[&text, &other]), ["RefNotPermitted spec.fallback[0].namespace"]);
    let texts = [&*text, &other, &grant];
    assert_eq!(priorities(&found(&texts, "Pool default/p")), ["0 10.0.0.1:80", "1 10.0.0.2:80"]);
}

#[test]
fn a_pool_may_stand_for_a_host() {
    let text = api("p", "hostname: {name: old.example, port: 80}, protocol: auto");
    let pool = found(&[&text, ENTRY], "Pool default/p");
    assert_eq!(priorities(&pool), ["0 old.example:80"]);
    assert_eq!(&*pool.service.host, "p.default.pool.fieldgate");
    let text = text.replace("port: 80", "port: 81");
    assert_eq!(problems(&[&text, ENTRY]), ["BackendNotFound spec.hostname.port"]);
}

#[test]
fn checks_by_grpc_and_over_tls() {
    let secret = |data: &str| {
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: ca}}\nstringData: {{ca.crt: \"{data}\"}}\n")
    };
    let text = one("healthCheck: {grpc: {service: shop}, port: 9000, \
         tls: {serverName: shop.example, caCertificateRefs: [{name: ca}]}}");
    let pem = "-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\\n";
    let pool = found(&[&text, &secret(pem)], "Pool default/p");
    let health = pool.health.as_deref().expect("a check");
    assert_eq!(health.kind, HealthKind::Grpc { service: "shop".into(), authority: None });
    assert_eq!(health.port, Some(9000));
    let tls = health.tls.as_deref().expect("TLS");
    assert_eq!(tls.server_name.as_deref(), Some("shop.example"));
    assert!(tls.ca_pem.as_deref().expect("authorities").starts_with(b"-----BEGIN"));

    for secret in [None, Some(secret("nothing"))] {
        let texts: Vec<&str> = std::iter::once(&*text).chain(secret.as_deref()).collect();
        let expected = ["InvalidCertificateRef spec.healthCheck.tls.caCertificateRefs[0].name"];
        assert_eq!(problems(&texts), expected);
        assert!(found(&texts, "Pool default/p").health.is_none(), "endpoints stay usable");
    }
    let any = one("healthCheck: {tcp: {}, tls: {insecureSkipVerify: true}}");
    let pool = found(&[&any], "Pool default/p");
    assert_eq!(pool.health.as_deref().and_then(|h| h.tls.clone()).expect("TLS").ca_pem, None);
}

#[test]
fn weights_of_localities_leave_the_fallback_its_share() {
    let text = api(
        "p",
        "endpoints: [{address: 10.0.0.1, port: 80, zone: a}, {address: 10.0.0.2, port: 80, zone: b}], \
         loadBalancing: {localities: {weights: {r/a: 1}}}, fallback: [{group: fieldgate.dev, kind: Pool, name: q}]",
    )
    .replace("zone: a", "locality: {region: r, zone: a}");
    let other = api(
        "q",
        "endpoints: [{address: 10.0.0.3, port: 80, weight: 2, locality: {region: r, zone: c}}, \
         {address: 10.0.0.4, port: 80, weight: 3, locality: {region: r, zone: c}}]",
    );
    let pool = found(&[&text, &other], "Pool default/p");
    let weights = vec![(Locality::parse("r/a"), 1), (Locality::parse("r/c"), 5)];
    assert_eq!(pool.spread.localities, Localities::Weighted(weights), "own zone b has none, as written");
}

pub(super) const PEM: &str = "-----BEGIN CERTIFICATE-----\\nAAAA\\n-----END CERTIFICATE-----\\n";
pub(super) const KEY: &str = "-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----\\n";

pub(super) fn with_data(kind: &str, name: &str, data: &[(&str, &str)]) -> String {
    let field = if kind == "Secret" { "stringData" } else { "data" };
    let data: Vec<_> = data.iter().map(|(key, text)| format!("{key}: \"{text}\"")).collect();
    format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\n{field}: {{{}}}\n", data.join(", "))
}

#[test]
fn tls_says_whom_to_believe_and_what_to_show() {
    let ca = with_data("ConfigMap", "ca", &[("ca.crt", PEM)]);
    let own = with_data("Secret", "own", &[("tls.crt", PEM), ("tls.key", KEY)]);
    let text = one("tls: {mode: mutual, caCertificateRefs: [{kind: ConfigMap, name: ca}], sni: a.example, \
         subjectAltNames: ['spiffe://td/x'], clientCertificateRef: {name: own}, alpn: [http/1.1]}");
    let tls = found(&[&text, &ca, &own], "Pool default/p").tls.clone().unwrap();
    let ServerTrust::Roots { roots, revoked } = &tls.trust else { panic!("{tls:?}") };
    assert_eq!((&*roots[0].origin, revoked.len()), ("ConfigMap default/ca", 0));
    assert_eq!((tls.sni.as_deref(), tls.names.len(), tls.alpn.len()), (Some("a.example"), 1, 1));
    assert_eq!(&*tls.identity.as_ref().unwrap().origin, "Secret default/own");
    assert_eq!(&*tls.origin, "Pool default/p");

    let tls = |text: &str| found(&[text], "Pool default/p").tls.clone().unwrap();
    assert_eq!(tls(&one("tls: {}")).trust, ServerTrust::System);
    assert_eq!(tls(&one("tls: {insecureSkipVerify: true}")).trust, ServerTrust::Anybody);
}

#[test]
fn tls_that_cannot_be_had_closes_the_pool() {
    let nobody = ServerTrust::Roots { roots: Vec::new(), revoked: Vec::new() };
    let empty = with_data("Secret", "empty", &[("ca.crt", "x")]);
    for (tls, said) in [
        ("{caCertificateRefs: [{name: none}]}", "InvalidCertificateRef spec.tls.caCertificateRefs[0].name"),
        ("{caCertificateRefs: [{name: empty}]}", "InvalidCertificateRef spec.tls.caCertificateRefs[0].name"),
        (
            "{mode: mutual, clientCertificateRef: {name: none}}",
            "InvalidCertificateRef spec.tls.clientCertificateRef.name",
        ),
        ("{mode: istioMutual}", "InvalidCertificateRef spec.tls.mode"),
    ] {
        let text = one(&format!("tls: {tls}"));
        let pool = found(&[&text, &empty], "Pool default/p");
        assert_eq!(pool.tls.as_ref().map(|tls| &tls.trust), Some(&nobody), "{tls}");
        let problems = problems(&[&text, &empty]);
        assert!(problems.iter().any(|problem| problem.contains(said)), "{tls}: {problems:?}");
    }
    for (tls, said) in [
        ("{mode: mutual}", "MissingField spec.tls"),
        ("{system: true, insecureSkipVerify: true}", "ConflictingFields spec.tls.insecureSkipVerify"),
        ("{mode: istioMutual, system: true}", "ConflictingFields spec.tls.system"),
        ("{verify: false}", "UnknownField spec.tls.verify"),
    ] {
        let problems = problems(&[&one(&format!("tls: {tls}"))]);
        assert!(problems.iter().any(|problem| problem.contains(said)), "{tls}: {problems:?}");
    }
}

#[test]
fn endpoints_may_have_tls_of_their_own_and_keep_it_in_other_pools() {
    let text = api(
        "p",
        "endpoints: [{address: 10.0.0.1, port: 80, tls: disable}, {address: 10.0.0.2, port: 80, tls: {sni: b.example}}, \
         {address: 10.0.0.3, port: 80}], tls: {}, fallback: [{kind: Pool, group: fieldgate.dev, name: plain}]",
    );
    let plain = api(
        "plain",
        "endpoints: [{address: 10.0.0.4, port: 80}], fallback: [{kind: Pool, group: fieldgate.dev, name: secure}]",
    );
    let secure = api("secure", "endpoints: [{address: 10.0.0.5, port: 80}], tls: {sni: c.example}");
    let ways = |name: &str| {
        let pool = found(&[&text, &plain, &secure], name);
        let Endpoints::Static(endpoints) = &pool.endpoints else { panic!("{pool:?}") };
        let way = |tls: &EndpointTls| match tls {
            EndpointTls::AsPool => "as pool".to_owned(),
            EndpointTls::Plain => "plain".to_owned(),
            EndpointTls::Own(own) => own.sni.as_deref().unwrap_or("-").to_owned(),
        };
        endpoints.iter().map(|e| way(&e.tls)).collect::<Vec<_>>()
    };
    assert_eq!(ways("Pool default/p"), ["plain", "b.example", "as pool", "plain", "c.example"]);
    assert_eq!(ways("Pool default/plain"), ["as pool", "c.example"]);
    assert!(problems(&[&api("q", "endpoints: [{address: 10.0.0.1, port: 80, tls: {sni: '*'}}]")]).len() == 1);
}
