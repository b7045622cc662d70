//! A request to test with.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fieldgate_core::ir::*;
use fieldgate_core::{Headers, RequestHead};

use super::outcome::{Outcome, Stages};

pub(super) struct Sample {
    pub(super) listener: ListenerKey,
    pub(super) rule: Arc<Rule>,
    pub(super) pool: Arc<Pool>,
    pub(super) head: RequestHead,
    pub(super) response: Headers,
}

impl Default for Sample {
    fn default() -> Self {
        let key = PoolKey {
            object: ObjectKey { kind: "Service", namespace: "default".into(), name: "shop".into() },
            port: 80,
        };
        let backend = |target| Backend { target, weight: 1, filters: [].into() };
        let rule = Rule {
            id: "default/shop#1".into(),
            matches: [Match::default()].into(),
            backends: [
                backend(BackendTarget::Pool(Arc::new(key.clone()))),
                backend(BackendTarget::Invalid("gone".into())),
            ]
            .into(),
            ..Rule::default()
        };
        let pool = Pool {
            service: ServiceIdentity {
                host: "shop.default.svc.cluster.local".into(),
                name: "shop".into(),
                namespace: "default".into(),
                workload: "shop-v1".into(),
                app: "shop".into(),
                version: "v1".into(),
            },
            ..Pool::of(key, Endpoints::Static(vec![]))
        };
        let mut head = RequestHead { authority: "shop.example".to_owned(), ..RequestHead::default() };
        head.set_target("/new?q=1");
        head.headers.push(b"user-agent", b"curl \"8\"");
        head.headers.push(b"x-request-id", b"id-1");
        let mut response = Headers::new();
        response.push(b"x-envoy-upstream-service-time", b"6");
        Self {
            listener: ListenerKey {
                namespace: "default".into(),
                gateway: "edge".into(),
                name: "http".into(),
            },
            rule: Arc::new(rule),
            pool: Arc::new(pool),
            head,
            response,
        }
    }
}

impl Sample {
    pub(super) fn outcome(&self) -> Outcome<'_> {
        Outcome {
            listener: &self.listener,
            rule: Some(&self.rule),
            backend: Some(0),
            pool: Some(&self.pool),
            upstream: Some("10.0.0.1:8080".parse().unwrap()),
            upstream_local: Some("10.0.0.9:40000".parse().unwrap()),
            head: &self.head,
            original_path: Some("/old?q=1"),
            status: 200,
            response: Some(&self.response),
            grpc_status: None,
            flags: "-",
            details: "via_upstream",
            failure: None,
            started: Instant::now(),
            started_wall: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            duration: Duration::from_millis(7),
            stages: Stages { connect: Some(Duration::from_millis(1)), ..Stages::default() },
            bytes_received: 5,
            bytes_sent: 128,
            peer: "192.0.2.1:50000".parse().unwrap(),
            local: "192.0.2.2:80".parse().unwrap(),
            sni: None,
            generation: 3,
            attempts: 1,
        }
    }
}
