//! Thresholds by themselves, and checks against real endpoints.

use std::sync::atomic::{AtomicU16, Ordering};

use fieldgate_core::ir::{Config, Endpoint, Endpoints, HealthKind, ObjectKey, Pool, Touched};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

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
    let mut state = true;
    let seen: String = results
        .chars()
        .map(|result| {
            state = tally.count(state, result == '+', &settings);
            if state { '+' } else { '-' }
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
            stream
                .write_all(format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n").as_bytes())
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

fn config(address: SocketAddr, health: Option<HealthCheck>) -> Config {
    let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "vms".into() };
    let key = PoolKey { object, port: 0 };
    let endpoints = Endpoints::Static(vec![Endpoint::new(address)]);
    let pool = Pool { health: health.map(Arc::new), ..Pool::of(key.clone(), endpoints) };
    Config { pools: [(key, Arc::new(pool))].into_iter().collect(), ..Config::default() }
}

fn state(snapshot: &Snapshot) -> Arc<EndpointState> {
    Arc::clone(&snapshot.pools().next().unwrap().endpoints[0].state)
}

#[tokio::test]
async fn an_endpoint_is_marked_as_it_answers_and_keeps_its_mark_over_reloads() {
    let status = Arc::new(AtomicU16::new(503));
    let (address, mut requests) = endpoint(Arc::clone(&status)).await;
    let mut checks = Checks::default();
    let first = Snapshot::compile(None, config(address, Some(settings(1, 1))), &Touched::All, 1);
    checks.reconcile(&first);
    judged(&mut requests).await;
    assert!(!state(&first).is_healthy());

    let task = checks.running.values().next().unwrap().task.id();
    let second = Snapshot::compile(Some(&first), config(address, Some(settings(1, 1))), &Touched::All, 2);
    checks.reconcile(&second);
    assert!(!state(&second).is_healthy());
    assert_eq!(checks.running.values().next().unwrap().task.id(), task, "an equal check goes on");

    status.store(200, Ordering::Relaxed);
    judged(&mut requests).await;
    assert!(state(&second).is_healthy());
}

#[tokio::test]
async fn an_endpoint_without_its_check_is_taken_for_healthy() {
    let (address, mut requests) = endpoint(Arc::new(AtomicU16::new(503))).await;
    let mut checks = Checks::default();
    let checked = Snapshot::compile(None, config(address, Some(settings(1, 1))), &Touched::All, 1);
    checks.reconcile(&checked);
    judged(&mut requests).await;
    let unchecked = Snapshot::compile(Some(&checked), config(address, None), &Touched::All, 2);
    checks.reconcile(&unchecked);
    assert!(checks.is_empty());
    assert!(state(&unchecked).is_healthy());
}
