//! What guards are: filters that pass a request on, answer it, or want to ask somebody first. They do no IO: a question is
//! handed to the server as a [`Callout`], and its answer is handed back.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::filter::LocalResponse;
use crate::head::{Headers, RequestHead};
use crate::identity::Metadata;
use crate::ir::{ConnectionFacts, ObjectKey, PoolKey, Rule};

/// A guard, ready to decide. One value serves all workers, so what it counts must be shared without locks.
///
/// `Any`, so that the next version of a guard can know its own kind again, and take over what it has counted.
pub trait Guard: std::any::Any + Send + Sync + std::fmt::Debug {
    /// The object that describes it.
    fn key(&self) -> &ObjectKey;

    /// What it is, for metrics and people: `ext_authz`, `rate_limit`, `login`, `edge`.
    fn name(&self) -> &'static str;

    /// Whether it follows a request that it let through: [`Guard::body_limit`], [`Guard::send`] and [`Guard::receive`]
    /// are asked only of those that do.
    fn follows(&self) -> bool {
        false
    }

    /// Bytes that the request's body may have, where its length is not announced.
    fn body_limit(&self) -> Option<u64> {
        None
    }

    /// Looks at the head once more, as it goes upstream. Fields that were there when [`Headers::byte_len`] was
    /// `from_client` are the client's own.
    fn send(&self, head: &mut RequestHead, from_client: usize) {
        let _ = (head, from_client);
    }

    /// Looks at the head of the response, whoever made it. `https`: the client hears it by TLS.
    fn receive(&self, https: bool, response: &mut Headers) {
        let _ = (https, response);
    }

    /// Whether it wants to know the rule of a request ([`Guarded::rule`]) even before routing. It is then told the one that
    /// would take the request as it is.
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Takes off what only it may set, from a request about which it is not asked, or not yet.
    fn not_asked(&self, head: &mut RequestHead) {
        let _ = head;
    }

    /// Looks at a request. It may change the head.
    fn begin(&self, request: &mut Guarded<'_>) -> Verdict;

    /// Goes on with the answer to what it asked. `step` is that of the question.
    fn resume(&self, request: &mut Guarded<'_>, step: u8, answer: Result<Answered, NoAnswer>) -> Verdict {
        let _ = (request, step, answer);
        Verdict::Continue
    }
}

/// What a guard says.
#[derive(Debug)]
pub enum Verdict {
    /// The request goes on.
    Continue,
    /// So it does, though nobody could say whether it may.
    FailOpen,
    /// It ends here.
    Respond(Box<LocalResponse>),
    /// Somebody is asked first.
    Ask(Box<Callout>),
    /// Something is computed first that takes too long for a worker. Few such things are computed at once, and few wait;
    /// beyond that it is [`NoAnswer::Unreachable`]. What comes out is [`Answered::body`].
    Work(Box<Work>),
}

/// See [`Verdict::Work`].
pub struct Work {
    /// What is to be done, on a thread that may take its time.
    pub job: Box<dyn FnOnce() -> Bytes + Send>,
    /// Handed back with the answer.
    pub step: u8,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("step", &self.step).finish_non_exhaustive()
    }
}

/// A request with what is known about it.
pub struct Guarded<'a> {
    /// The head, as it would go on.
    pub head: &'a mut RequestHead,
    /// The connection.
    pub facts: ConnectionFacts<'a>,
    /// The rule that took it; `None` before routing, unless the guard [looks ahead](Guard::looks_ahead).
    pub rule: Option<&'a Rule>,
    /// What guards before have learned.
    pub metadata: &'a mut Metadata,
    /// Fields that the response is to have, whoever makes it.
    pub response_headers: &'a mut Headers,
    /// Announced length of the body: `Some(0)` for none, `None` if it is not known.
    pub body_length: Option<u64>,
    /// A clock that only goes forward.
    pub now: Instant,
    /// The time of day.
    pub wall: SystemTime,
    /// Random numbers.
    pub random: &'a mut dyn FnMut() -> u64,
}

/// A question to another party.
#[derive(Clone, Debug)]
pub struct Callout {
    /// Whom.
    pub pool: Arc<PoolKey>,
    /// What. Its target is path and query; an authority that is empty becomes the pool's host; scheme and version mean
    /// nothing.
    pub head: RequestHead,
    /// The body.
    pub body: Bytes,
    /// How much of the client's body is wanted before: it is read, kept to be forwarded as it is, and given to
    /// [`Guard::resume`] by way of [`NoAnswer::Body`]; nobody is asked, and the guard asks again with what it then knows.
    /// `None` wants none, and asks.
    pub client_body: Option<BodyWish>,
    /// A gRPC call: the pool is spoken to by HTTP/2 whatever it says itself, and `te`, `content-type` and `grpc-timeout`
    /// are added. The body is a message in its frame.
    pub grpc: bool,
    /// How long it may take, connecting and trying again included.
    pub timeout: Duration,
    /// Bytes that an answer's body may have.
    pub limit: usize,
    /// Handed back with the answer.
    pub step: u8,
}

/// How much of a client's body a guard wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyWish {
    /// Bytes.
    pub limit: usize,
    /// Whether the first so many are enough; else a longer body is [`NoAnswer::BodyTooLong`].
    pub partial: bool,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// Its fields, trailers included.
    pub headers: Headers,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// There is no such pool, no endpoint, no connection, or it broke.
    Unreachable(String),
    /// Not in time.
    Timeout,
    /// Longer than the limit.
    TooLong,
    /// Nothing was asked yet: here is the client's body as far as it was wanted, and whether it is whole.
    Body(Bytes, bool),
    /// The client's body is longer than the guard takes.
    BodyTooLong,
}
