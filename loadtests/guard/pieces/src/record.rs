//! What a request's outcome costs to count.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fieldgate::telemetry::{Outcome, Recorder, Stages, Telemetry};
use fieldgate_core::Headers;
use fieldgate_core::ir::{Balance, PathMatch};

use crate::Measure;
use crate::decisions::{listener_key, pool, rule};
use crate::heads::{SMALL, parsed};

pub fn pieces(measure: &mut Measure<'_>) {
    let recorder = Recorder::new(&Telemetry::new(), 0);
    let (listener, head, response) = (listener_key(), parsed(SMALL), Headers::new());
    let rule = Arc::new(rule("default/shop#0", PathMatch::default(), &[90, 10]));
    let pool = Arc::new(pool("shop-0", 1, Balance::default()));
    let address = |text: &str| text.parse().expect("an address");
    let outcome = Outcome {
        listener: &listener,
        rule: Some(&rule),
        backend: Some(0),
        pool: Some(&pool),
        upstream: Some(address("10.0.1.0:8080")),
        upstream_local: Some(address("10.0.0.9:40000")),
        head: &head,
        original_path: None,
        status: 200,
        response: Some(&response),
        grpc_status: None,
        flags: "-",
        details: "via_upstream",
        failure: None,
        started: Instant::now(),
        started_wall: SystemTime::UNIX_EPOCH,
        duration: Duration::from_millis(7),
        stages: Stages {
            first_byte: Some(Duration::from_millis(5)),
            body: Some(Duration::from_millis(2)),
            ..Stages::default()
        },
        bytes_received: 0,
        bytes_sent: 128,
        peer: address("192.0.2.17:50000"),
        local: address("192.0.2.1:80"),
        sni: None,
        generation: 1,
        attempts: 1,
    };
    measure("record/outcome", &mut || recorder.record(black_box(&outcome)));
}
