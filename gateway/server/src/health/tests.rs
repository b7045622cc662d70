//! Thresholds by themselves, and checks against real endpoints.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use fieldgate_core::ir::{
    Config, Endpoint, Endpoints, HealthKind, ObjectKey, Pool, PoolKey, Protocol, Touched,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::watch::Tally;
use super::*;

fn settings(healthy: u32, unhealthy: u32) -> HealthCheck {
    HealthCheck {
        interval: Duration::from_millis(1),
        jitter: Duration::from_millis(1),
        timeout: Duration::from_secs(20),
        healthy,
        unhealthy,
        port: None,
        tls: None,
        kind: HealthKind::Http {
            method: "GET".into(),
            path: "/".into(),
            host: None,
            expected: vec![(200, 299)],
        },
    }
}

/// `results` and `expected` are strings of `+` and `-`.
fn check(healthy: u32, unhealthy: u32, results: &str, expected: &str) {
    let settings = settings(healthy, unhealthy);
    let mut tally = Tally::default();
    let seen: String = results
        .chars()
        .map(|result| {
            tally.count(result == '+', &settings);
            if tally.verdict == Some(true) { '+' } else { '-' }
        })
        .collect();
    assert_eq!(seen, expected, "{results} with thresholds {healthy} and {unhealthy}");
}

#[test]
fn thresholds_need_results_in_a_row() {
    check(1, 1, "+-+", "+-+");
    check(2, 3, "+--+---", "++++++-");
    check(2, 3, "+---+-++", "+++----+");
}

#[test]
fn the_first_result_decides_alone() {
    check(2, 3, "-+-++", "----+");
    check(2, 3, "+", "+");
}

#[test]
fn jitter_stays_below_its_limit() {
    for _ in 0..100 {
        assert!(random_up_to(Duration::from_millis(7)) <= Duration::from_millis(7));
    }
    assert_eq!(random_up_to(Duration::ZERO), Duration::ZERO);
}

/// Answers every request with the current status, and reports each.
async fn endpoint(status: Arc<AtomicU16>) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    endpoint_with(status, Arc::default()).await
}

async fn endpoint_with(
    status: Arc<AtomicU16>,
    degraded: Arc<AtomicBool>,
) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            let status = status.load(Ordering::Relaxed);
            let more = if degraded.load(Ordering::Relaxed) { "X-Envoy-Degraded: 1\r\n" } else { "" };
            stream
                .write_all(format!("HTTP/1.1 {status} x\r\n{more}content-length: 0\r\n\r\n").as_bytes())
                .await
                .unwrap();
            asked.send(()).ok();
        }
    });
    (address, requests)
}

/// Checks of an endpoint follow each other: with the third request from now, two have been judged.
async fn judged(requests: &mut mpsc::UnboundedReceiver<()>) {
    while requests.try_recv().is_ok() {}
    for _ in 0..3 {
        requests.recv().await.unwrap();
    }
}

fn snapshot(
    before: Option<&Snapshot>,
    address: SocketAddr,
    pools: &[(&str, Option<HealthCheck>)],
) -> Snapshot {
    let pools = pools.iter().map(|(name, health)| {
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: (*name).into() };
        let key = PoolKey { object, port: 0 };
        let endpoints = Endpoints::Static(vec![Endpoint::new(address)]);
        let health = health.clone().map(Arc::new);
        (key.clone(), Arc::new(Pool { health, ..Pool::of(key, endpoints) }))
    });
    let config = Config { pools: pools.collect(), ..Config::default() };
    Snapshot::compile(before, config, &Touched::All, before.map_or(1, |before| before.generation + 1))
}

fn state(snapshot: &Snapshot) -> Arc<EndpointState> {
    state_in(snapshot, "vms")
}

fn state_in(snapshot: &Snapshot, name: &str) -> Arc<EndpointState> {
    let pool = snapshot.pools().find(|pool| &*pool.ir.key.object.name == name).unwrap();
    Arc::clone(&pool.endpoints[0].state)
}

fn tasks(checks: &Checks) -> Vec<tokio::task::Id> {
    checks.running.load().values().flatten().map(|check| check.task()).collect()
}

#[tokio::test]
async fn an_endpoint_is_marked_as_it_answers_and_keeps_its_mark_over_reloads() {
    let status = Arc::new(AtomicU16::new(503));
    let (address, mut requests) = endpoint(Arc::clone(&status)).await;
    let mut checks = Checks::default();
    let first = snapshot(None, address, &[("vms", Some(settings(1, 1)))]);
    checks.reconcile(&first);
    judged(&mut requests).await;
    assert!(!state(&first).is_healthy());
    let seen = checks.verdicts().of(&state(&first)).unwrap();
    let failure = Some("status 503, expected 200-299".to_owned());
    assert_eq!(seen, Verdict { pending: false, failure });

    let task = tasks(&checks);
    let second = snapshot(Some(&first), address, &[("vms", Some(settings(1, 1)))]);
    checks.reconcile(&second);
    assert!(!state(&second).is_healthy());
    assert_eq!(tasks(&checks), task, "an equal check goes on");

    status.store(200, Ordering::Relaxed);
    judged(&mut requests).await;
    assert!(state(&second).is_healthy());
    assert_eq!(checks.verdicts().of(&state(&second)), Some(Verdict::default()));
}

#[tokio::test]
async fn an_endpoint_without_its_check_is_taken_for_healthy() {
    let (address, mut requests) = endpoint(Arc::new(AtomicU16::new(503))).await;
    let mut checks = Checks::default();
    let checked = snapshot(None, address, &[("vms", Some(settings(1, 1)))]);
    checks.reconcile(&checked);
    judged(&mut requests).await;
    let unchecked = snapshot(Some(&checked), address, &[("vms", None)]);
    checks.reconcile(&unchecked);
    assert!(checks.is_empty());
    assert!(state(&unchecked).is_healthy());
    assert_eq!(checks.verdicts().of(&state(&unchecked)), None);
}

#[tokio::test]
async fn an_address_in_several_pools_is_checked_once_for_all() {
    let status = Arc::new(AtomicU16::new(503));
    let (address, mut requests) = endpoint(Arc::clone(&status)).await;
    let mut checks = Checks::default();
    let same = || Some(settings(1, 1));
    let first = snapshot(None, address, &[("vms", same()), ("canary", same())]);
    checks.reconcile(&first);
    judged(&mut requests).await;
    assert_eq!(checks.len(), 1);
    assert!(!state_in(&first, "vms").is_healthy() && !state_in(&first, "canary").is_healthy());

    // A third one hears at once what is known, by the check that goes on.
    let task = tasks(&checks);
    let second = snapshot(Some(&first), address, &[("vms", same()), ("canary", same()), ("late", same())]);
    checks.reconcile(&second);
    assert_eq!(tasks(&checks), task);
    assert!(!state_in(&second, "late").is_healthy());

    // One leaves the check: nothing is held against it any more, whatever the check says of the others.
    let third = snapshot(Some(&second), address, &[("vms", same()), ("canary", None), ("late", same())]);
    checks.reconcile(&third);
    assert_eq!(tasks(&checks), task);
    assert!(!state_in(&third, "vms").is_healthy() && state_in(&third, "canary").is_healthy());

    // Other settings are another check, and the verdict stands until that one has its own.
    let fourth = snapshot(Some(&third), address, &[("vms", Some(settings(1, 2))), ("late", same())]);
    checks.reconcile(&fourth);
    assert_eq!(checks.len(), 2);
    assert!(!state_in(&fourth, "vms").is_healthy());
}

#[tokio::test]
async fn an_answer_makes_the_endpoint_degraded_and_the_next_one_ends_that() {
    let degraded = Arc::new(AtomicBool::new(true));
    let (address, mut requests) = endpoint_with(Arc::new(AtomicU16::new(200)), Arc::clone(&degraded)).await;
    let mut checks = Checks::default();
    let snapshot = snapshot(None, address, &[("vms", Some(settings(1, 1)))]);
    checks.reconcile(&snapshot);
    judged(&mut requests).await;
    assert!(state(&snapshot).is_healthy() && state(&snapshot).is_degraded());
    degraded.store(false, Ordering::Relaxed);
    judged(&mut requests).await;
    assert!(!state(&snapshot).is_degraded());
}

#[tokio::test]
async fn a_check_that_passes_ends_an_ejection_where_outliers_are_detected() {
    let (address, mut requests) = endpoint(Arc::new(AtomicU16::new(200))).await;
    let config = |detected: &str| {
        let pools = ["detects", "does not"].map(|name| {
            let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: name.into() };
            let key = PoolKey { object, port: 0 };
            let mut pool = Pool::of(key.clone(), Endpoints::Static(vec![Endpoint::new(address)]));
            pool.health = Some(Arc::new(settings(1, 1)));
            pool.outlier = (name == detected).then(Arc::default);
            (key, Arc::new(pool))
        });
        Config { pools: pools.into_iter().collect(), ..Config::default() }
    };
    let mut checks = Checks::default();
    let snapshot = Snapshot::compile(None, config("detects"), &Touched::All, 1);
    checks.reconcile(&snapshot);
    judged(&mut requests).await;
    let [one, other] = ["detects", "does not"].map(|name| state_in(&snapshot, name));
    one.eject(0, 1_000_000);
    other.eject(0, 1_000_000);
    judged(&mut requests).await;
    assert_eq!((one.is_ejected(1), other.is_ejected(1)), (false, true));
}

#[test]
fn first_checks_are_spread_by_their_number() {
    let long = Duration::from_secs(5);
    assert_eq!(spread(1, long), Duration::from_millis(1), "a new endpoint does not wait");
    assert_eq!(spread(300, long), Duration::from_millis(300));
    assert_eq!(spread(100_000, long), Duration::from_secs(2));
    assert_eq!(spread(100_000, Duration::from_millis(500)), Duration::from_millis(500));
}

#[test]
fn checks_that_ask_the_same_are_equal_whatever_the_pool_speaks() {
    let of = |kind: &HealthKind, protocol| {
        Version::of(&HealthCheck { kind: kind.clone(), ..HealthCheck::default() }, protocol, false)
    };
    let grpc = HealthKind::Grpc { service: "".into(), authority: None };
    for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Auto] {
        assert_eq!(of(&HealthKind::Tcp, protocol), Version::One);
        assert_eq!(of(&grpc, protocol), Version::Two);
    }
    let http = settings(1, 1).kind;
    assert_eq!(of(&http, Protocol::Auto), Version::One);
    assert_eq!(of(&http, Protocol::Http2), Version::Two);
}
