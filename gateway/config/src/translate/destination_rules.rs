//! Istio's DestinationRules to IR: which rule is for which host, and what it does to the host's pools.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    Balance, HashBy, HashFunction, HashKind, HashSource, Locality, Outlier, Pool, PoolTls, Protocol,
    SlowStart, StringMatch,
};

use super::pool_traffic::{RING_MAX, RING_MIN, TABLE};
use super::upstream_tls::{Place, Trouble, Workload, closed, without_exceptions};
use super::{Notes, NotesOf, Objects, ROOT_NAMESPACE, localities};
use crate::document::Object;
use crate::kinds::destination_rule::{
    ConnectionPool, ConsistentHash, DestinationRuleSpec, H2Upgrade, LoadBalancer, OutlierDetection,
    RetryBudget, Simple, Subset, Tls, TlsMode, TrafficPolicy,
};
use crate::kinds::duration::GoDuration;
use crate::kinds::{Kind, Spec};

/// The rules that are in force, the older first.
#[derive(Default)]
pub(crate) struct DestinationRules<'o>(Vec<Rule<'o>>);

pub(crate) struct Rule<'o> {
    object: &'o Arc<Object>,
    spec: &'o DestinationRuleSpec,
    /// In full, or a pattern that begins with `*`.
    host: String,
    /// What each `tls` in it comes to.
    tls: Vec<(&'o Tls, Option<Arc<PoolTls>>)>,
}

/// What holds for one port.
#[derive(Clone, Copy, Default)]
struct Settings<'o> {
    balancer: Option<&'o LoadBalancer>,
    connections: Option<&'o ConnectionPool>,
    outlier: Option<&'o OutlierDetection>,
    retry_budget: Option<&'o RetryBudget>,
    tls: Option<&'o Tls>,
}

impl<'o> DestinationRules<'o> {
    pub fn of(
        objects: &'o Objects,
        own: Option<&Locality>,
        workload: Option<&Workload>,
        notes: &mut NotesOf,
    ) -> Self {
        let mut all = Self::default();
        for object in objects.by_age(Kind::DestinationRule) {
            let Spec::DestinationRule(spec) = &object.spec else { continue };
            let host = full_host(&spec.host, &object.namespace);
            let mut rule = Rule { object, spec, host, tls: Vec::new() };
            let note = notes.entry(object.key()).or_default();
            let same = |r: &&Rule<'_>| r.host == rule.host && r.object.namespace == object.namespace;
            if let Some(other) = all.0.iter().find(same) {
                let message =
                    format!("DestinationRule {} is for the same host and comes first", other.object.name);
                note.condition("Accepted", false, "Conflicted", message.clone());
                let error = object.error("Conflicted", "spec.host", message);
                note.diagnostics
                    .push(error.hint("put all of it in one; the older counts, then the first by name"));
                continue;
            }
            warn_of_ignored(&rule, own, &mut |field, message, hint| {
                note.diagnostics.push(object.warning("UnsupportedValue", field, message).hint(hint));
            });
            note.condition("Accepted", true, "Accepted", "");
            let place = Place { objects, namespace: &object.namespace, workload };
            rule.tls = tls_of(object, spec, place, note);
            if spec.workload_selector.is_none() {
                all.0.push(rule);
            }
        }
        all
    }

    /// The rule for a host that is defined in this namespace. A rule of that namespace goes before one of the root
    /// namespace, and that before others; then the more specific host counts.
    pub fn find(&self, host: &str, namespace: &str) -> Option<&Rule<'o>> {
        let seen = self.0.iter().filter(|r| r.is_for(host) && r.is_seen_from(namespace));
        seen.min_by_key(|r| {
            let place = match &*r.object.namespace {
                own if own == namespace => 0u8,
                root if root == ROOT_NAMESPACE => 1,
                _ => 2,
            };
            (place, r.host.starts_with('*'), std::cmp::Reverse(r.host.len()))
        })
    }

    /// Puts on a pool what the rule for its host says. `names` are those that the host's own definition has.
    pub fn apply(&self, pool: &mut Pool, own: Option<&Locality>, names: &[String]) {
        let host = pool.service.host.clone();
        if let Some(rule) = self.find(&host, &pool.key.object.namespace) {
            let settings = rule.settings(None, pool.key.port);
            settings.apply(pool, own);
            rule.apply_tls(settings.tls, None, names, pool);
        }
    }

    /// Says which rules name a host that is not there.
    pub fn note_lost<'p>(&self, pools: impl Iterator<Item = &'p Pool>, notes: &mut NotesOf) {
        let hosts: BTreeSet<Arc<str>> = pools.map(|p| p.service.host.clone()).collect();
        for rule in self.0.iter().filter(|r| !r.host.starts_with('*') && !hosts.contains(&*r.host)) {
            let message = format!("there is no Service or ServiceEntry of host {}", rule.host);
            let hint = crate::diagnostic::did_you_mean_hint(&rule.host, hosts.iter().map(|h| &**h));
            let mut warning = rule.object.warning("TargetNotFound", "spec.host", message);
            warning.hint = hint;
            notes.entry(rule.object.key()).or_default().diagnostics.push(warning);
        }
    }
}

impl<'o> Rule<'o> {
    pub fn name(&self) -> String {
        self.object.key().to_string()
    }

    pub fn subsets(&self) -> &'o [Subset] {
        &self.spec.subsets
    }

    /// Puts on a pool of a subset what holds for it.
    pub fn apply_to_subset(&self, subset: &Subset, pool: &mut Pool, port: u16, own: Option<&Locality>) {
        let settings = self.settings(subset.traffic_policy.as_ref(), port);
        settings.apply(pool, own);
        self.apply_tls(settings.tls, Some(subset), &[], pool);
    }

    fn apply_tls(&self, tls: Option<&Tls>, subset: Option<&Subset>, names: &[String], pool: &mut Pool) {
        let Some(spec) = tls else { return };
        let ready = self.tls.iter().find(|(of, _)| std::ptr::eq(*of, spec)).and_then(|(_, tls)| tls.clone());
        let mesh = spec.mode == TlsMode::IstioMutual;
        if !mesh {
            without_exceptions(&mut pool.endpoints);
        }
        pool.tls = ready.map(|tls| {
            let known = spec.subject_alt_names.is_empty() && !names.is_empty();
            let named = mesh && tls.sni.is_none();
            if !known && !named {
                return tls;
            }
            let mut tls = PoolTls::clone(&tls);
            if known {
                tls.names = names.iter().map(|name| StringMatch::Exact(name.as_str().into())).collect();
            }
            if named {
                // As istiod names its clusters.
                let subset = subset.map_or("", |subset| &subset.name);
                let (port, host) = (pool.key.port, &pool.service.host);
                tls.sni = Some(format!("outbound_.{port}_.{subset}_.{host}").into());
            }
            Arc::new(tls)
        });
    }

    fn is_for(&self, host: &str) -> bool {
        match self.host.strip_prefix('*') {
            Some(end) => host.ends_with(end),
            None => self.host == host,
        }
    }

    fn is_seen_from(&self, namespace: &str) -> bool {
        let exported = &self.spec.export_to;
        let own = *self.object.namespace == *namespace;
        own || exported.is_empty() || exported.iter().any(|e| e == "*" || e == namespace)
    }

    fn settings<'s>(&'s self, subset: Option<&'s TrafficPolicy>, port: u16) -> Settings<'s> {
        let mut settings = Settings::default();
        for policy in self.spec.traffic_policy.as_ref().into_iter().chain(subset) {
            settings.balancer = policy.load_balancer.as_ref().or(settings.balancer);
            settings.connections = policy.connection_pool.as_ref().or(settings.connections);
            settings.outlier = policy.outlier_detection.as_ref().or(settings.outlier);
            settings.retry_budget = policy.retry_budget.as_ref().or(settings.retry_budget);
            settings.tls = policy.tls.as_ref().or(settings.tls);
            // Istio: settings of a port inherit nothing.
            if let Some(p) = policy.port_level_settings.iter().find(|p| p.port.number == u32::from(port)) {
                settings.balancer = p.load_balancer.as_ref();
                settings.connections = p.connection_pool.as_ref();
                settings.outlier = p.outlier_detection.as_ref();
                settings.tls = p.tls.as_ref();
            }
        }
        settings
    }
}

/// What each `tls` of a rule comes to. What cannot be had closes the pools that it is for.
fn tls_of<'o>(
    object: &Object,
    spec: &'o DestinationRuleSpec,
    place: Place<'_>,
    note: &mut Notes,
) -> Vec<(&'o Tls, Option<Arc<PoolTls>>)> {
    let origin: Arc<str> = object.key().to_string().into();
    let whole = spec.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), policy));
    let subsets = spec.subsets.iter().enumerate().filter_map(|(i, subset)| {
        Some((format!("spec.subsets[{i}].trafficPolicy"), subset.traffic_policy.as_ref()?))
    });
    let all = whole.chain(subsets).flat_map(|(at, policy)| {
        let ports = policy.port_level_settings.iter().enumerate();
        let ports = ports.map(|(i, p)| (format!("{at}.portLevelSettings[{i}].tls"), p.tls.as_ref()));
        let mut found: Vec<_> = ports.collect();
        found.push((format!("{at}.tls"), policy.tls.as_ref()));
        found
    });
    let ready = all.filter_map(|(at, tls)| Some((at, tls?))).map(|(at, tls)| {
        let tls_or_none = place.rule(&origin, tls).unwrap_or_else(|Trouble { field, message, hint }| {
            let message = format!("{message}; no connection is made to endpoints that it is for");
            let mut error = object.error("InvalidCertificateRef", &format!("{at}{field}"), message);
            error.hint = hint;
            note.diagnostics.push(error);
            Some(closed(origin.clone()))
        });
        (tls, tls_or_none.map(Arc::new))
    });
    ready.collect()
}

/// A name without dots is one of the rule's namespace.
fn full_host(host: &str, namespace: &str) -> String {
    if host.contains(['.', '*']) { host.to_owned() } else { format!("{host}.{namespace}.svc.cluster.local") }
}

impl Settings<'_> {
    fn apply(&self, pool: &mut Pool, own: Option<&Locality>) {
        if let Some(balancer) = self.balancer {
            balance(balancer, pool);
        }
        if let Some(connections) = self.connections {
            limits(connections, pool);
        }
        if let Some(outlier) = self.outlier {
            pool.outlier = Some(Arc::new(ejection(outlier)));
            // Istio: no panic unless it is asked for.
            pool.spread.panic_threshold = outlier.min_health_percent.unwrap_or(0);
        }
        if let Some(budget) = self.retry_budget {
            let limit = &mut pool.limits.retry_budget;
            limit.percent = budget.percent.map_or(limit.percent, |p| (p.0 / 100).min(100));
            limit.min = budget.min_retry_concurrency.unwrap_or(limit.min);
        }
        if let Some(own) = own {
            let setting = self.balancer.and_then(|b| b.locality_lb_setting.as_ref());
            localities::apply(setting, self.outlier.is_some(), own, pool);
        }
    }
}

fn balance(spec: &LoadBalancer, pool: &mut Pool) {
    match spec.simple {
        None | Some(Simple::Passthrough) => {}
        Some(Simple::RoundRobin) => pool.balance = Balance::RoundRobin,
        Some(Simple::Random) => pool.balance = Balance::Random,
        Some(Simple::LeastRequest | Simple::LeastConn | Simple::Unspecified) => {
            pool.balance = Balance::default();
        }
    }
    if let Some(hash) = &spec.consistent_hash {
        pool.balance = consistent_hash(hash);
    }
    let warmup = spec.warmup.as_ref();
    let window = warmup.map(|w| w.duration).or(spec.warmup_duration_secs);
    if let Some(window) = window.filter(|w| !w.0.is_zero()) {
        pool.spread.slow_start = Some(SlowStart {
            window: window.0,
            aggression: warmup.and_then(|w| w.aggression).map_or(100, |a| a.0.max(1)),
            min_weight: warmup.and_then(|w| w.minimum_percent).map_or(10, |p| (p.0 / 100).clamp(1, 100)),
        });
    }
}

fn consistent_hash(spec: &ConsistentHash) -> Balance {
    let kind = if let Some(name) = &spec.http_header_name {
        HashKind::Header(name.to_ascii_lowercase().into())
    } else if let Some(cookie) = &spec.http_cookie {
        HashKind::Cookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl.map(|d| d.0),
            path: cookie.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/").into(),
        }
    } else if let Some(name) = &spec.http_query_parameter_name {
        HashKind::Query(name.as_str().into())
    } else {
        HashKind::Source
    };
    let sources = vec![HashSource { kind, terminal: false }];
    let by = Arc::new(HashBy { sources, balance_factor: 0 });
    if let Some(maglev) = spec.maglev {
        return Balance::Maglev { table_size: given(maglev.table_size).unwrap_or(TABLE), by };
    }
    let size = spec.ring_hash.and_then(|r| r.minimum_ring_size).or(spec.minimum_ring_size);
    Balance::RingHash {
        function: HashFunction::XxHash,
        min_size: given(size).unwrap_or(RING_MIN),
        max_size: RING_MAX,
        by,
    }
}

/// Zero is what protobuf makes of a number that is not written.
fn given(number: Option<u32>) -> Option<u32> {
    number.filter(|n| *n > 0)
}

fn given_time(time: Option<GoDuration>) -> Option<Duration> {
    time.map(|t| t.0).filter(|t| !t.is_zero())
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn limits(spec: &ConnectionPool, pool: &mut Pool) {
    let limits = &mut pool.limits;
    if let Some(tcp) = &spec.tcp {
        set(&mut limits.max_pool_connections, given(tcp.max_connections));
        set(&mut limits.connect_timeout, given_time(tcp.connect_timeout));
        set(&mut limits.idle_timeout, given_time(tcp.idle_timeout));
        set(&mut limits.max_connection_duration, given_time(tcp.max_connection_duration));
    }
    let Some(http) = &spec.http else { return };
    set(&mut limits.max_pending, given(http.http1_max_pending_requests));
    set(&mut limits.max_requests, given(http.http2_max_requests));
    set(&mut limits.max_requests_per_connection, given(http.max_requests_per_connection));
    set(&mut limits.max_retries, given(http.max_retries));
    set(&mut limits.idle_timeout, given_time(http.idle_timeout));
    if http.use_client_protocol == Some(true) {
        pool.protocol = Protocol::Auto;
    } else if http.h2_upgrade_policy == Some(H2Upgrade::Upgrade) {
        pool.protocol = Protocol::Http2;
    }
}

/// Istio's names and defaults: success rates are not looked at, and 0 switches a count off.
fn ejection(spec: &OutlierDetection) -> Outlier {
    let mut o = Outlier { enforcing_success_rate: 0, ..Outlier::default() };
    let mut count = |value: Option<u32>, limit: fn(&mut Outlier) -> (&mut u32, &mut u32)| {
        let Some(value) = value else { return };
        let (number, enforcing) = limit(&mut o);
        set(number, given(Some(value)));
        *enforcing = if value > 0 { 100 } else { 0 };
    };
    count(spec.consecutive_5xx_errors, |o| (&mut o.consecutive_5xx, &mut o.enforcing_consecutive_5xx));
    count(spec.consecutive_gateway_errors, |o| {
        (&mut o.consecutive_gateway_failure, &mut o.enforcing_consecutive_gateway_failure)
    });
    if spec.split_external_local_origin_errors == Some(true) {
        count(spec.consecutive_local_origin_failures.filter(|n| *n > 0), |o| {
            (&mut o.consecutive_local_origin_failure, &mut o.enforcing_consecutive_local_origin_failure)
        });
        o.split_external_local_origin_errors = true;
    }
    set(&mut o.interval, given_time(spec.interval));
    set(&mut o.base_ejection_time, given_time(spec.base_ejection_time));
    o.max_ejection_time = o.max_ejection_time.max(o.base_ejection_time);
    set(&mut o.max_ejection_percent, given(spec.max_ejection_percent));
    o
}

/// Takes a warning: field, message, hint.
type Warn<'w> = dyn FnMut(&str, &str, &str) + 'w;

/// Fields whose author expects something that does not happen.
fn warn_of_ignored(rule: &Rule<'_>, own: Option<&Locality>, warn: &mut Warn<'_>) {
    if rule.spec.workload_selector.is_some() {
        let message = "a gateway is none of the workloads that this rule is for: it has no effect";
        warn("spec.workloadSelector", message, "write a rule without workloadSelector for the gateway");
        return;
    }
    let whole = rule.spec.traffic_policy.as_ref().map(|p| ("spec.trafficPolicy".to_owned(), p));
    let of_subset = |(i, s): (usize, &'_ Subset)| {
        let at = format!("spec.subsets[{i}].trafficPolicy");
        s.traffic_policy.clone().map(|p| (at, p))
    };
    let subsets: Vec<_> = rule.spec.subsets.iter().enumerate().filter_map(of_subset).collect();
    for (at, policy) in whole.into_iter().chain(subsets.iter().map(|(at, p)| (at.clone(), p))) {
        warn_of_policy(policy, &at, own, warn);
    }
}

fn warn_of_policy(policy: &TrafficPolicy, at: &str, own: Option<&Locality>, warn: &mut Warn<'_>) {
    if policy.tunnel.is_some() {
        let message = "endpoints are connected to directly: this field has no effect";
        warn(&format!("{at}.tunnel"), message, "endpoints must be reachable from here");
    }
    if policy.proxy_protocol.is_some() {
        let message = "the PROXY protocol is not spoken: this field has no effect";
        warn(&format!("{at}.proxyProtocol"), message, "the client's address is in x-forwarded-for");
    }
    let ports = policy.port_level_settings.iter().enumerate().map(|(i, p)| {
        let (lb, pool, outlier) = (&p.load_balancer, &p.connection_pool, &p.outlier_detection);
        (format!("{at}.portLevelSettings[{i}]"), lb, pool, outlier)
    });
    let (lb, pool, outlier) = (&policy.load_balancer, &policy.connection_pool, &policy.outlier_detection);
    let whole = std::iter::once((at.to_owned(), lb, pool, outlier));
    for (at, balancer, connections, outlier) in whole.chain(ports) {
        if let Some(connections) = connections {
            warn_of_connections(connections, &format!("{at}.connectionPool"), warn);
        }
        if let Some(balancer) = balancer {
            warn_of_balancer(balancer, outlier.is_some(), &format!("{at}.loadBalancer"), own, warn);
        }
        if outlier.as_ref().is_some_and(|o| o.consecutive_errors.is_some()) {
            let message = "this field is no longer Istio's and has no effect";
            let field = format!("{at}.outlierDetection.consecutiveErrors");
            warn(&field, message, "write consecutive5xxErrors or consecutiveGatewayErrors");
        }
    }
}

fn warn_of_connections(spec: &ConnectionPool, at: &str, warn: &mut Warn<'_>) {
    if spec.tcp.as_ref().is_some_and(|t| t.tcp_keepalive.is_some()) {
        let message = "probes of kept connections are the system's: this field has no effect";
        warn(&format!("{at}.tcp.tcpKeepalive"), message, "idleTimeout closes connections that are not used");
    }
    if spec.http.as_ref().is_some_and(|h| given(h.max_concurrent_streams).is_some()) {
        let message =
            "a connection has the streams that the endpoint allows, to 100: this field has no effect";
        warn(
            &format!("{at}.http.maxConcurrentStreams"),
            message,
            "http2MaxRequests limits requests in flight",
        );
    }
}

fn warn_of_balancer(
    spec: &LoadBalancer,
    ejects: bool,
    at: &str,
    own: Option<&Locality>,
    warn: &mut Warn<'_>,
) {
    if spec.simple == Some(Simple::Passthrough) {
        let message = "a gateway has no address of the client's choice to pass on: PASSTHROUGH has no effect";
        warn(&format!("{at}.simple"), message, "LEAST_REQUEST is used");
    }
    let Some(setting) = &spec.locality_lb_setting else { return };
    let at = format!("{at}.localityLbSetting");
    if own.is_none() && setting.enabled != Some(false) {
        let message = "the gateway does not know where it stands: this field has no effect";
        warn(&at, message, "start it with --locality region/zone/subzone");
        return;
    }
    let fails_over = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
    if fails_over && !ejects {
        let message = "without outlierDetection nothing is seen to fail: failover has no effect";
        warn(&at, message, "add outlierDetection beside loadBalancer");
    }
    for (i, label) in setting.failover_priority.iter().enumerate() {
        if localities::part_of_label(label).is_none() {
            let message = "labels of the gateway and of pods are not known: the list ends before this one";
            let hint =
                "topology.kubernetes.io/region, topology.kubernetes.io/zone, topology.istio.io/subzone";
            warn(&format!("{at}.failoverPriority[{i}]"), message, hint);
            break;
        }
    }
}
