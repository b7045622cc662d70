//! What a route says of its requests' fate: times, retries, affinity, faults.
//!
//! Rules hold these behind pointers; most have none of them.

use std::sync::Arc;
use std::time::Duration;

/// Timeouts of a rule; `None` is the default of the gateway, zero is "no limit".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's first byte to the response's last.
    pub request: Option<Duration>,
    /// One try at a backend, until the whole response head.
    pub backend_request: Option<Duration>,
    /// Without a byte moving on either side (Envoy: `idle_timeout` of a route); 5 minutes.
    pub idle: Option<Duration>,
}

/// Retries of a rule: Gateway API's `retry`, Envoy's `RetryPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// On what.
    pub on: RetryOn,
    /// Response statuses to retry, with [`RetryOn::STATUS_CODES`].
    pub codes: Vec<u16>,
    /// Response headers whose presence makes a response retriable, with [`RetryOn::HEADERS`]; names in lower case.
    pub headers: Vec<Arc<str>>,
    /// Bound of one try; beside [`Timeouts::backend_request`] the shorter holds.
    pub per_try_timeout: Option<Duration>,
    /// Pauses before retries.
    pub backoff: Backoff,
    /// A response's `Retry-After` is waited for, unless it asks for longer than this.
    pub retry_after: Option<Duration>,
    /// A second try while the first is still under way.
    pub hedge: Option<Hedge>,
    /// Request bodies up to so many bytes are kept for another try.
    pub body_limit: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 1,
            on: RetryOn::default(),
            codes: Vec::new(),
            headers: Vec::new(),
            per_try_timeout: None,
            backoff: Backoff::default(),
            retry_after: None,
            hedge: None,
            body_limit: 64 * 1024,
        }
    }
}

/// Envoy's `retry_on` and `retry_grpc_on` conditions, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetryOn(pub u32);

impl RetryOn {
    /// `5xx`: a status of 500 to 599, or no response at all (reset, timeout of a try).
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`: 502, 503, 504.
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`: no response at all.
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`: a reset before the request's head was sent.
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`: no connection.
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `envoy-ratelimited`: `x-envoy-ratelimited` in the response.
    pub const RATE_LIMITED: Self = Self(1 << 5);
    /// `retriable-4xx`: 409.
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// `refused-stream`: the peer says that it has not begun.
    pub const REFUSED_STREAM: Self = Self(1 << 7);
    /// `retriable-status-codes`: [`Retry::codes`].
    pub const STATUS_CODES: Self = Self(1 << 8);
    /// `retriable-headers`: [`Retry::headers`].
    pub const HEADERS: Self = Self(1 << 9);
    /// gRPC `cancelled`: status 1 in the response's head.
    pub const GRPC_CANCELLED: Self = Self(1 << 10);
    /// gRPC `deadline-exceeded`: 4.
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 11);
    /// gRPC `resource-exhausted`: 8.
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 12);
    /// gRPC `internal`: 13.
    pub const GRPC_INTERNAL: Self = Self(1 << 13);
    /// gRPC `unavailable`: 14.
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 14);

    /// Envoy's words, in the order of the bits.
    pub const WORDS: [(&'static str, Self); 15] = [
        ("5xx", Self::SERVER_ERROR),
        ("gateway-error", Self::GATEWAY_ERROR),
        ("reset", Self::RESET),
        ("reset-before-request", Self::RESET_BEFORE_REQUEST),
        ("connect-failure", Self::CONNECT_FAILURE),
        ("envoy-ratelimited", Self::RATE_LIMITED),
        ("retriable-4xx", Self::RETRIABLE_4XX),
        ("refused-stream", Self::REFUSED_STREAM),
        ("retriable-status-codes", Self::STATUS_CODES),
        ("retriable-headers", Self::HEADERS),
        ("cancelled", Self::GRPC_CANCELLED),
        ("deadline-exceeded", Self::GRPC_DEADLINE_EXCEEDED),
        ("resource-exhausted", Self::GRPC_RESOURCE_EXHAUSTED),
        ("internal", Self::GRPC_INTERNAL),
        ("unavailable", Self::GRPC_UNAVAILABLE),
    ];

    /// The condition that a word stands for.
    pub fn word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(w, _)| *w == word).map(|(_, on)| *on)
    }

    /// Whether any of these is among them.
    pub fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Display for RetryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = Self::WORDS.iter().filter(|(_, on)| self.has(*on)).map(|(w, _)| *w).collect();
        f.write_str(&words.join(","))
    }
}

/// Exponential back-off with full jitter: before retry `n`, from 1, a random time below `base * (2^n - 1)`, `max` at the
/// most (Envoy's `RetryBackOff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Zero is no pause.
    pub base: Duration,
    /// The longest; ten times the base where nothing is said.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// Hedged requests: another try without giving the first up; the first good response wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// When a try has had no response head for so long, another begins beside it.
    pub after: Duration,
    /// Tries under way at once, the first included.
    pub at_once: u32,
}

/// Requests of one client go to one endpoint, which a cookie or header of ours names (Envoy: stateful session; Gateway
/// API: `sessionPersistence`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Where the endpoint is named.
    pub carrier: AffinityCarrier,
    /// If the endpoint cannot have the request, it is refused with 503 and not sent to another.
    pub strict: bool,
}

/// What carries the endpoint's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AffinityCarrier {
    /// A cookie that the gateway sets.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// `Max-Age`; `None` is a session cookie.
        ttl: Option<Duration>,
        /// `Path`.
        path: Arc<str>,
    },
    /// A header of response and request; lower case.
    Header(Arc<str>),
}

/// Faults on purpose (Envoy's fault filter).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// All of these request headers must be there with these values; names in lower case.
    pub headers: Vec<(Arc<str>, super::ValueMatch)>,
    /// So many millionths of requests wait so long.
    pub delay: Option<(u32, Duration)>,
    /// So many millionths of requests get this answer.
    pub abort: Option<(u32, FaultAnswer)>,
    /// What the expressions among `headers` become when the first request asks.
    pub patterns: crate::fault::Patterns,
}

/// What an aborted request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAnswer {
    /// This status.
    Status(u16),
    /// 200 with this gRPC status.
    Grpc(u16),
}
