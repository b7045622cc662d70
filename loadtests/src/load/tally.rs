//! The account of a load: each request by its outcome, each user by the backends it met.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::Histogram;

/// How a request ended. `error` is empty for a complete answer, whatever its status.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Outcome {
    /// Status code, 0 when no head arrived.
    pub status: u16,
    /// `x-backend` of the answer, empty when there was none.
    pub backend: String,
    /// What failed: `connect`, `reset`, `closed`, `truncated`, `timeout`, `protocol`, ...
    pub error: String,
}

/// What one user has met.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UserRecord {
    /// Requests answered.
    pub count: u64,
    /// Backends in the order met, each change written once.
    pub path: Vec<String>,
}

/// The account of a load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that went out (at least in part).
    pub sent: u64,
    /// Requests by outcome; their sum is `sent` once the load has ended.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// By user number.
    pub users: BTreeMap<usize, UserRecord>,
    /// Latencies of complete answers.
    pub latency: Histogram,
    /// Those of them with a status below 400.
    pub served: Histogram,
    /// Connections opened.
    pub connections: u64,
    /// Connections that could not be opened; the request that wanted one was not sent.
    pub connect_failures: BTreeMap<String, u64>,
    /// Answers that carried `connection: close`.
    pub close_seen: u64,
    /// HTTP/2 connections that ended by GOAWAY without an error.
    pub goaway_seen: u64,
    /// Connections that the server ended between two requests, in whatever way.
    pub ended: u64,
    /// Seconds from start to the account.
    pub seconds: f64,
}

impl Tally {
    /// Requests that failed, and connections that could not be opened.
    pub fn errors(&self) -> u64 {
        let failed: u64 = self.outcomes.iter().filter(|(o, _)| !o.error.is_empty()).map(|(_, n)| n).sum();
        failed + self.connect_failures.values().sum::<u64>()
    }

    /// Errors and answers of 400 and above.
    pub fn failures(&self) -> u64 {
        let refused: u64 =
            self.outcomes.iter().filter(|(o, _)| o.error.is_empty() && o.status >= 400).map(|(_, n)| n).sum();
        self.errors() + refused
    }

    /// Requests answered in full.
    pub fn completed(&self) -> u64 {
        self.outcomes.iter().filter(|(outcome, _)| outcome.error.is_empty()).map(|(_, count)| count).sum()
    }

    /// Complete answers with this status.
    pub fn status(&self, status: u16) -> u64 {
        self.outcomes.iter().filter(|(o, _)| o.error.is_empty() && o.status == status).map(|(_, n)| n).sum()
    }

    /// Complete answers by backend.
    pub fn backends(&self) -> BTreeMap<String, u64> {
        let mut backends = BTreeMap::new();
        for (outcome, count) in
            self.outcomes.iter().filter(|(o, _)| o.error.is_empty() && !o.backend.is_empty())
        {
            *backends.entry(outcome.backend.clone()).or_default() += count;
        }
        backends
    }

    /// Everything that went wrong, in one line; empty when nothing did.
    pub fn describe_failures(&self) -> String {
        let failed = self.outcomes.iter().filter(|(o, _)| !o.error.is_empty() || o.status >= 400);
        let mut parts: Vec<String> = failed
            .map(|(o, count)| match o.error.as_str() {
                "" => format!("{count} x status {}", o.status),
                error => format!("{count} x {error} (status {}, backend {:?})", o.status, o.backend),
            })
            .collect();
        parts
            .extend(self.connect_failures.iter().map(|(error, count)| format!("{count} x connect: {error}")));
        parts.join(", ")
    }

    /// What came after an earlier account of the same load, users apart.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut outcomes = self.outcomes.clone();
        for (outcome, count) in &earlier.outcomes {
            *outcomes.entry(outcome.clone()).or_default() -= count;
        }
        let mut connect_failures = self.connect_failures.clone();
        for (error, count) in &earlier.connect_failures {
            *connect_failures.entry(error.clone()).or_default() -= count;
        }
        Self {
            sent: self.sent - earlier.sent,
            outcomes,
            users: BTreeMap::new(),
            latency: self.latency.since(&earlier.latency),
            served: self.served.since(&earlier.served),
            connections: self.connections - earlier.connections,
            connect_failures,
            close_seen: self.close_seen - earlier.close_seen,
            goaway_seen: self.goaway_seen - earlier.goaway_seen,
            ended: self.ended - earlier.ended,
            seconds: self.seconds - earlier.seconds,
        }
    }

    /// Adds another's account to this one.
    pub fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.connections += other.connections;
        self.close_seen += other.close_seen;
        self.goaway_seen += other.goaway_seen;
        self.ended += other.ended;
        self.latency.merge(&other.latency);
        self.served.merge(&other.served);
        for (outcome, count) in &other.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += count;
        }
        for (error, count) in &other.connect_failures {
            *self.connect_failures.entry(error.clone()).or_default() += count;
        }
        // A user belongs to one worker, so no two accounts hold the same one.
        self.users.extend(other.users.iter().map(|(user, record)| (*user, record.clone())));
    }

    /// The account as JSON.
    pub fn report(&self) -> Value {
        let outcomes: Vec<Value> = self
            .outcomes
            .iter()
            .map(|(o, n)| json!({"status": o.status, "backend": o.backend, "error": o.error, "count": n}))
            .collect();
        let micros = |share| self.latency.percentile(share);
        json!({
            "sent": self.sent,
            "completed": self.completed(),
            "errors": self.errors(),
            "seconds": self.seconds,
            "requests_per_second": self.completed() as f64 / self.seconds.max(f64::EPSILON),
            "outcomes": outcomes,
            "backends": self.backends(),
            "users": self.users,
            "connections": self.connections,
            "connect_failures": self.connect_failures,
            "close_seen": self.close_seen,
            "goaway_seen": self.goaway_seen,
            "ended": self.ended,
            "latency_us": {"p50": micros(0.5), "p90": micros(0.9), "p99": micros(0.99), "p999": micros(0.999), "max": micros(1.0)},
        })
    }

    pub(super) fn record(&mut self, outcome: Outcome, user: Option<usize>, micros: std::time::Duration) {
        if outcome.error.is_empty() {
            self.latency.record(micros);
            if outcome.status < 400 {
                self.served.record(micros);
            }
            if let Some(user) = user {
                let record = self.users.entry(user).or_default();
                record.count += 1;
                if record.path.last() != Some(&outcome.backend) {
                    record.path.push(outcome.backend.clone());
                }
            }
        }
        *self.outcomes.entry(outcome).or_default() += 1;
    }
}
