//! Which backend of a rule gets a request: exact weights, sticky users, sessions that stay.
//!
//! Without a policy, and for requests that carry no key, backends take turns in a deterministic [`sequence`] whose counts
//! are exact to less than one request at every moment. With a policy, a user is placed by [`rendezvous`] hashing of a
//! key, which is the same in every worker, process and machine and moves as few users as possible when weights change.
//! Nothing here knows about endpoints or health: a share belongs to a backend however many endpoints it has.

pub mod hash;
pub mod rendezvous;
pub mod sequence;

use std::net::IpAddr;
use std::sync::Arc;

use crate::head::RequestHead;
use crate::ir;
use rendezvous::Rendezvous;
use sequence::{Sequence, SequenceState};

/// A rule's split, ready to choose.
#[derive(Clone, Debug)]
pub struct CompiledSplit {
    sequence: Sequence,
    /// Only with a policy that is sticky.
    rendezvous: Option<Rendezvous>,
    policy: Option<Arc<ir::SplitPolicy>>,
    /// The backend on which existing sessions stay, if it is there and usable.
    stay_on: Option<usize>,
    /// The only backend that can get anything and needs no look at the request.
    only: Option<usize>,
    backends: usize,
    fingerprint: u64,
}

/// What a worker remembers for a rule. Belongs to the rule's slot: it starts anew by itself when it meets a split with
/// other backends or weights, and goes on where it was when a reload changed neither.
#[derive(Clone, Debug, Default)]
pub struct SplitState {
    fingerprint: u64,
    sequence: SequenceState,
}

/// The choice for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The index into the rule's backends.
    pub backend: usize,
    /// The value of a `Set-Cookie` field to add to the response.
    pub issue_cookie: Option<String>,
    /// Why this backend.
    pub why: Why,
}

/// Why a backend was chosen, for logs and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// No other one has a weight.
    Only,
    /// It was its turn.
    Weighted,
    /// The user's key belongs to it.
    Sticky,
    /// The request carries the cookie of a session that stays.
    ExistingSession,
}

impl Why {
    /// As `explain` and access logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Only => "only",
            Self::Weighted => "weighted",
            Self::Sticky => "sticky",
            Self::ExistingSession => "existing-session",
        }
    }
}

impl CompiledSplit {
    /// Prepares the split of the rule `rule_id`, whose name is the salt: the same user falls differently in each rule.
    ///
    /// Users keep their side as long as the rule keeps its id and the backends keep their names; their order means
    /// nothing. An unnamed rule's id holds its position, so give rules names if others may be inserted before them.
    pub fn new(backends: &[ir::Backend], policy: Option<Arc<ir::SplitPolicy>>, rule_id: &str) -> Self {
        let weights = || backends.iter().map(|b| b.weight);
        let sequence = Sequence::new(weights());
        let names = identities(backends);
        let sticky = policy.as_ref().is_some_and(|p| p.sticky.is_some()) && backends.len() > 1;
        let rendezvous =
            sticky.then(|| Rendezvous::new(rule_id, names.iter().map(String::as_str).zip(weights())));
        let stay_on = policy
            .as_ref()
            .and_then(|p| p.existing.as_ref())
            .map(|e| e.backend)
            .filter(|b| matches!(backends.get(*b).map(|b| &b.target), Some(ir::BackendTarget::Pool(_))));
        let only = sequence.only().filter(|only| rendezvous.is_none() && stay_on.is_none_or(|s| s == *only));
        let fingerprint = fingerprint(rule_id, &names, weights());
        Self { sequence, rendezvous, policy, stay_on, only, backends: backends.len(), fingerprint }
    }

    /// Chooses a backend; `None` if no backend has a weight (Gateway API: such a rule answers 500).
    ///
    /// First the session that stays, then the user's key, then the sequence. A session stays even on a backend whose
    /// weight has become 0, for that is when it matters; only when all weights are 0 is the rule off for everybody.
    /// `random` is used only as the id in a newly issued cookie.
    pub fn choose(
        &self,
        state: &mut SplitState,
        head: &RequestHead,
        client: IpAddr,
        random: u64,
    ) -> Option<Choice> {
        if let Some(backend) = self.only {
            return Some(Choice { backend, issue_cookie: None, why: Why::Only });
        }
        if self.sequence.is_empty() {
            return None;
        }
        if let Some(policy) = &self.policy {
            if let (Some(backend), Some(existing)) = (self.stay_on, &policy.existing)
                && head.cookie(&existing.cookie).is_some_and(|v| !v.is_empty())
            {
                return Some(Choice { backend, issue_cookie: None, why: Why::ExistingSession });
            }
            if let (Some(rendezvous), Some(sticky)) = (&self.rendezvous, &policy.sticky)
                && let Some(choice) = by_key(rendezvous, sticky, head, client, random)
            {
                return Some(choice);
            }
        }
        if state.fingerprint != self.fingerprint {
            *state = SplitState { fingerprint: self.fingerprint, sequence: SequenceState::default() };
        }
        let backend = self.sequence.next(&mut state.sequence)?;
        let why = if self.sequence.only().is_some() { Why::Only } else { Why::Weighted };
        Some(Choice { backend, issue_cookie: None, why })
    }

    /// The share of each backend that is wanted: its weight and the sum of all. The sum is 0 if the rule is off.
    pub fn desired(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        (0..self.backends).map(|i| (self.sequence.weight(i), self.sequence.total()))
    }

    /// The policy, for `explain`.
    pub fn policy(&self) -> Option<&Arc<ir::SplitPolicy>> {
        self.policy.as_ref()
    }
}

fn by_key(
    rendezvous: &Rendezvous,
    sticky: &ir::Sticky,
    head: &RequestHead,
    client: IpAddr,
    random: u64,
) -> Option<Choice> {
    let place = |key: &[u8]| {
        // An empty value identifies nobody.
        let backend = rendezvous.place(key).filter(|_| !key.is_empty())?;
        Some(Choice { backend, issue_cookie: None, why: Why::Sticky })
    };
    match sticky {
        ir::Sticky::Header(name) => place(head.headers.get(name)?),
        ir::Sticky::Cookie(name) => place(head.cookie(name)?),
        ir::Sticky::Source => match client.to_canonical() {
            IpAddr::V4(a) => place(&a.octets()),
            IpAddr::V6(a) => place(&a.octets()),
        },
        ir::Sticky::IssuedCookie { name, ttl, path } => {
            if let Some(choice) = head.cookie(name).and_then(place) {
                return Some(choice);
            }
            let id = format!("{random:016x}");
            let choice = place(id.as_bytes())?;
            let mut cookie = format!("{name}={id}; Path={path}");
            if let Some(ttl) = ttl {
                cookie.push_str(&format!("; Max-Age={}", ttl.as_secs()));
            }
            cookie.push_str("; HttpOnly; SameSite=Lax");
            if head.https {
                cookie.push_str("; Secure");
            }
            Some(Choice { issue_cookie: Some(cookie), ..choice })
        }
    }
}

/// What a backend is called in hashes: its target. A target that is named twice gets a number from the second time on.
fn identities(backends: &[ir::Backend]) -> Vec<String> {
    let mut names: Vec<String> = Vec::with_capacity(backends.len());
    for (at, backend) in backends.iter().enumerate() {
        let mut name = match &backend.target {
            ir::BackendTarget::Pool(key) => key.to_string(),
            ir::BackendTarget::Invalid(why) => format!("invalid: {why}"),
        };
        let before = backends[..at].iter().filter(|b| b.target == backend.target).count();
        if before > 0 {
            name.push_str(&format!(" ({})", before + 1));
        }
        names.push(name);
    }
    names
}

fn fingerprint(rule_id: &str, names: &[String], weights: impl Iterator<Item = u32>) -> u64 {
    let seed = hash::xxh64(rule_id.as_bytes(), 0);
    names
        .iter()
        .zip(weights)
        .fold(seed, |h, (name, weight)| hash::xxh64(&weight.to_le_bytes(), hash::xxh64(name.as_bytes(), h)))
}
