//! The process-wide side of metrics: every series there is, and their text at a scrape.
//!
//! Counters and gauges are those of the `metrics` crate in a recorder of our own (not the global one, so that several
//! gateways fit into one process). How many series there can be is bounded here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fieldgate_core::ir::{Pool, Rule};
use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::exposition::{Family, label_text};
use super::outcome::STAGES;
use super::series::{Bounds, Histogram};

/// Sets of Istio labels kept apart. What comes after is counted under the destination `overflow`.
pub(super) const MAX_ISTIO_SERIES: usize = 10_000;

/// Series of one `fieldgate_*` counter kept apart. What comes after shares one series with every label `overflow`.
const MAX_OWN_SERIES: usize = 20_000;

/// Envoy's default bounds, for milliseconds and bytes alike: Istio's dashboards expect them.
const ENVOY_BOUNDS: Bounds = &[
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

const STAGE_BOUNDS: Bounds = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

const UNKNOWN: &str = "unknown";

const COUNTERS: &[(&str, &str)] = &[
    ("istio_requests_total", "Requests that the gateway handled, with Istio's standard labels."),
    ("fieldgate_split_requests_total", "Requests that a rule with several backends sent to each of them."),
    ("fieldgate_downstream_connections_total", "Connections that clients opened, by listener."),
    ("fieldgate_upstream_retries_total", "Tries after the first, by pool."),
    ("fieldgate_upstream_retries_refused_total", "Requests that got no other try, by pool and reason."),
    ("fieldgate_upstream_hedges_total", "Tries begun beside one that was slow, by pool."),
    ("fieldgate_upstream_hedges_won_total", "Those of them that answered first, by pool."),
    ("fieldgate_upstream_refused_total", "Requests refused for the sake of a pool, by pool and reason."),
    ("fieldgate_upstream_ejections_total", "Endpoints found to be outliers, by pool and reason."),
    ("fieldgate_faults_injected_total", "Faults injected on purpose, by pool and fault."),
    ("fieldgate_mirror_requests_total", "Copies of requests for mirrors, by rule, pool and outcome."),
    ("fieldgate_access_log_dropped_total", "Access log lines dropped because the writer could not keep up."),
    ("fieldgate_jwt_requests_total", "Requests whose tokens were looked for, by what came of it."),
    (
        "fieldgate_jwt_tokens_total",
        "Good tokens, by whether their signature was checked before (hit) or then (miss).",
    ),
    ("fieldgate_authz_total", "Requests that matched an authorization policy, by policy and action."),
    ("fieldgate_guard_decisions_total", "What guards decided about requests, by guard, object and result."),
    (
        "fieldgate_client_certificates_refused_total",
        "Certificates of clients that were not believed, by listener and reason.",
    ),
    (
        "fieldgate_client_certificates_verified_total",
        "Connections whose client proved who it is, by listener.",
    ),
    (
        "fieldgate_connections_refused_total",
        "Connections broken off as soon as they were accepted, by reason.",
    ),
    ("fieldgate_requests_refused_total", "Requests refused because the gateway is overloaded, by reason."),
    ("fieldgate_http2_floods_total", "HTTP/2 connections ended because of a flood, by its kind."),
    ("fieldgate_file_shortages_total", "Times when there was no file for a new connection."),
];

const GAUGES: &[(&str, &str)] = &[
    ("fieldgate_downstream_connections_active", "Connections that clients hold open, by listener."),
    ("istio_build", "The version that is running; always 1."),
];

/// All metrics of a gateway.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    source: Vec<(&'static str, String)>,
    istio: Mutex<BTreeMap<String, Arc<IstioSeries>>>,
    own: Mutex<BTreeMap<&'static str, BTreeMap<String, Counter>>>,
    stages: [Histogram; STAGES.len()],
    /// Of guards that ask, by their labels.
    guard_seconds: Mutex<BTreeMap<String, Arc<Histogram>>>,
}

/// The series that one set of Istio's labels has.
pub(super) struct IstioSeries {
    pub(super) requests: Counter,
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

/// What Istio's labels are made of.
pub(super) struct IstioLabels<'a> {
    pub(super) pool: Option<&'a Pool>,
    pub(super) grpc: bool,
    pub(super) status: u16,
    pub(super) grpc_status: Option<u16>,
    pub(super) flags: &'static str,
}

impl Telemetry {
    /// Metrics that all stand at zero.
    pub fn new() -> Arc<Self> {
        let recorder = PrometheusBuilder::new().build_recorder();
        for (name, help) in COUNTERS.iter().copied() {
            recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
        }
        for (name, help) in GAUGES.iter().copied() {
            recorder.describe_gauge(KeyName::from_const_str(name), None, help.into());
        }
        let telemetry = Self {
            handle: recorder.handle(),
            recorder,
            source: source_labels(|name| std::env::var(name).ok()),
            istio: Mutex::default(),
            own: Mutex::default(),
            stages: std::array::from_fn(|_| Histogram::new(STAGE_BOUNDS, 1e-9)),
            guard_seconds: Mutex::default(),
        };
        telemetry
            .gauge("istio_build", &[("component", "proxy"), ("tag", env!("CARGO_PKG_VERSION"))])
            .set(1.0);
        let _zero = telemetry.access_log_dropped();
        Arc::new(telemetry)
    }

    /// Everything in Prometheus' text format. `extra` adds families that are read off the running configuration.
    pub fn render(&self, extra: impl FnOnce(&mut String)) -> String {
        let mut out = self.handle.render();
        self.render_histograms(&mut out);
        extra(&mut out);
        out
    }

    fn render_histograms(&self, out: &mut String) {
        let istio = lock(&self.istio);
        type Pick = fn(&IstioSeries) -> &Histogram;
        let families: [(&str, &str, Pick); 3] = [
            ("istio_request_duration_milliseconds", "Duration of requests in milliseconds.", |s| &s.duration),
            ("istio_request_bytes", "Size of request bodies in bytes.", |s| &s.request_bytes),
            ("istio_response_bytes", "Size of response bodies in bytes.", |s| &s.response_bytes),
        ];
        for (name, help, pick) in families {
            if istio.is_empty() {
                continue;
            }
            let mut family = Family::begin(out, name, "histogram", help);
            for (labels, series) in istio.iter() {
                family.histogram(labels, pick(series));
            }
        }
        let help = "Where the time of requests goes, in seconds.";
        let mut family = Family::begin(out, "fieldgate_request_stage_seconds", "histogram", help);
        for (stage, histogram) in STAGES.iter().zip(&self.stages) {
            family.histogram(&label_text([("stage", *stage)]), histogram);
        }
        let guards = lock(&self.guard_seconds);
        if !guards.is_empty() {
            let help = "How long those take whom guards ask, in seconds.";
            let mut family = Family::begin(out, "fieldgate_guard_seconds", "histogram", help);
            for (labels, histogram) in guards.iter() {
                family.histogram(labels, histogram);
            }
        }
    }

    /// The counter of access log lines that were dropped.
    pub(super) fn access_log_dropped(&self) -> Counter {
        self.counter("fieldgate_access_log_dropped_total", &[])
    }

    pub(super) fn stage(&self, index: usize) -> &Histogram {
        &self.stages[index]
    }

    /// The time of a guard's questions. The configuration bounds how many guards there are.
    pub(super) fn guard_seconds(&self, labels: &[(&'static str, String)]) -> Arc<Histogram> {
        let text = label_text(labels.iter().map(|(name, value)| (*name, value.as_str())));
        let mut guards = lock(&self.guard_seconds);
        guards.entry(text).or_insert_with(|| Arc::new(Histogram::new(STAGE_BOUNDS, 1e-9))).clone()
    }

    /// A counter of our own, bounded in the number of its series.
    pub(super) fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Counter {
        let mut own = lock(&self.own);
        let series = own.entry(name).or_default();
        let text = label_text(labels.iter().copied());
        if let Some(counter) = series.get(&text) {
            return counter.clone();
        }
        let full = series.len() >= MAX_OWN_SERIES;
        let labels =
            labels.iter().map(|(k, v)| Label::new(*k, if full { "overflow" } else { *v }.to_owned()));
        let key = Key::from_parts(name, labels.collect::<Vec<_>>());
        let counter = self.recorder.register_counter(&key, &METADATA);
        if !full {
            series.insert(text, counter.clone());
        }
        counter
    }

    /// A gauge. Only for labels whose number the configuration bounds.
    pub(super) fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        let labels: Vec<_> = labels.iter().map(|(k, v)| Label::new(*k, (*v).to_owned())).collect();
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    /// The split counter of a rule's backend.
    pub(super) fn split(&self, rule: &Rule, backend: usize) -> Counter {
        let labels =
            [("route", route_of(&rule.id)), ("rule", &rule.id), ("backend", &backend_name(rule, backend))];
        self.counter("fieldgate_split_requests_total", &labels)
    }

    /// The series for a set of Istio's labels.
    pub(super) fn istio(&self, of: &IstioLabels<'_>) -> Arc<IstioSeries> {
        let mut labels = self.istio_labels(of);
        let mut istio = lock(&self.istio);
        let mut text = label_text(labels.iter().map(|(k, v)| (*k, v.as_str())));
        if !istio.contains_key(&text) && istio.len() >= MAX_ISTIO_SERIES {
            for (name, value) in &mut labels {
                if name.starts_with("destination_") {
                    "overflow".clone_into(value);
                }
            }
            text = label_text(labels.iter().map(|(k, v)| (*k, v.as_str())));
        }
        let series = istio.entry(text).or_insert_with(|| {
            let labels = labels.into_iter().map(|(k, v)| Label::new(k, v)).collect::<Vec<_>>();
            let key = Key::from_parts("istio_requests_total", labels);
            Arc::new(IstioSeries {
                requests: self.recorder.register_counter(&key, &METADATA),
                duration: Histogram::new(ENVOY_BOUNDS, 1e-6),
                request_bytes: Histogram::new(ENVOY_BOUNDS, 1.0),
                response_bytes: Histogram::new(ENVOY_BOUNDS, 1.0),
            })
        });
        Arc::clone(series)
    }

    /// Istio's labels in Istio's order, as a gateway fills them (it reports as the source).
    fn istio_labels(&self, of: &IstioLabels<'_>) -> Vec<(&'static str, String)> {
        let service = of.pool.map(|pool| &pool.service);
        let get = |value: Option<&Arc<str>>| value.map_or(UNKNOWN, |v| v).to_owned();
        let workload = get(service.map(|s| &s.workload));
        let namespace = get(service.map(|s| &s.namespace));
        let app = get(service.map(|s| &s.app));
        let version = get(service.map(|s| &s.version));
        let revision = if version == UNKNOWN { "latest".to_owned() } else { version.clone() };
        let workload_namespace = if workload == UNKNOWN { UNKNOWN.to_owned() } else { namespace.clone() };
        let grpc_status = of.grpc_status.filter(|_| of.grpc).map_or_else(String::new, grpc_status_label);
        let mut labels = vec![("reporter", "source".to_owned())];
        labels.extend(self.source.iter().cloned());
        labels.extend([
            ("destination_workload", workload),
            ("destination_workload_namespace", workload_namespace),
            ("destination_principal", UNKNOWN.to_owned()),
            ("destination_app", app.clone()),
            ("destination_version", version),
            ("destination_service", get(service.map(|s| &s.host))),
            ("destination_canonical_service", app),
            ("destination_canonical_revision", revision),
            ("destination_service_name", get(service.map(|s| &s.name))),
            ("destination_service_namespace", namespace),
            ("destination_cluster", UNKNOWN.to_owned()),
            ("request_protocol", if of.grpc { "grpc" } else { "http" }.to_owned()),
            ("response_code", of.status.to_string()),
            ("grpc_response_status", grpc_status),
            ("response_flags", of.flags.to_owned()),
            // Istio says so on the source's side, whatever the connection is.
            ("connection_security_policy", UNKNOWN.to_owned()),
        ]);
        labels
    }
}

/// The route part of a rule's id: `default/shop` of `default/shop#1` and of `default/shop/checkout`.
pub fn route_of(rule_id: &str) -> &str {
    let end = rule_id.find('#').or_else(|| {
        let namespace = rule_id.find('/')?;
        rule_id[namespace + 1..].find('/').map(|at| namespace + 1 + at)
    });
    &rule_id[..end.unwrap_or(rule_id.len())]
}

/// How reports call a rule's backend: its pool, or `invalid`.
pub fn backend_name(rule: &Rule, backend: usize) -> String {
    use fieldgate_core::ir::BackendTarget::{Invalid, Pool};
    match rule.backends.get(backend).map(|b| &b.target) {
        Some(Pool(key)) => key.to_string(),
        Some(Invalid(_)) | None => "invalid".to_owned(),
    }
}

/// gRPC knows 17 codes; anything else would let an upstream create series.
fn grpc_status_label(status: u16) -> String {
    if status <= 16 { status.to_string() } else { "other".to_owned() }
}

/// The gateway itself, from the variables that Istio's injection sets.
fn source_labels(env: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let get = |name: &str| env(name).filter(|value| !value.is_empty());
    let workload = get("ISTIO_META_WORKLOAD_NAME").unwrap_or_else(|| "fieldgate".to_owned());
    let unknown = || UNKNOWN.to_owned();
    vec![
        ("source_workload", workload.clone()),
        ("source_canonical_service", get("CANONICAL_SERVICE").unwrap_or_else(|| workload.clone())),
        ("source_canonical_revision", get("CANONICAL_REVISION").unwrap_or_else(|| "latest".to_owned())),
        ("source_workload_namespace", get("POD_NAMESPACE").unwrap_or_else(unknown)),
        ("source_principal", unknown()),
        ("source_app", workload),
        ("source_version", unknown()),
        ("source_cluster", get("ISTIO_META_CLUSTER_ID").unwrap_or_else(unknown)),
    ]
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_rule_ids() {
        for (rule, route) in
            [("a/shop", "a/shop"), ("a/shop#1", "a/shop"), ("a/shop/checkout", "a/shop"), ("odd", "odd")]
        {
            assert_eq!(route_of(rule), route);
        }
    }

    #[test]
    fn labels_come_in_the_order_of_istio() {
        let telemetry = Telemetry::new();
        let of = IstioLabels { pool: None, grpc: false, status: 404, grpc_status: None, flags: "NR" };
        let names: Vec<_> = telemetry.istio_labels(&of).into_iter().map(|(name, _)| name).collect();
        let expected = "reporter source_workload source_canonical_service source_canonical_revision \
            source_workload_namespace source_principal source_app source_version source_cluster \
            destination_workload destination_workload_namespace destination_principal destination_app \
            destination_version destination_service destination_canonical_service \
            destination_canonical_revision destination_service_name destination_service_namespace \
            destination_cluster request_protocol response_code grpc_response_status response_flags \
            connection_security_policy";
        assert_eq!(names.join(" "), expected);
    }

    #[test]
    fn series_are_bounded() {
        let telemetry = Telemetry::new();
        for i in 0..MAX_OWN_SERIES + 50 {
            telemetry.counter("fieldgate_upstream_retries_total", &[("pool", &i.to_string())]).increment(1);
        }
        let text = telemetry.render(|_| ());
        let lines = text.lines().filter(|l| l.starts_with("fieldgate_upstream_retries_total")).count();
        assert_eq!(lines, MAX_OWN_SERIES + 1);
        assert!(text.contains("fieldgate_upstream_retries_total{pool=\"overflow\"} 50\n"));
    }
}
