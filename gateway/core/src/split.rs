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
    fingerprint: u64,
    turns: Turns,
}

/// Most rules have one backend and no policy, and there may be very many of them.
#[derive(Clone, Debug)]
enum Turns {
    /// The weight of the only backend.
    One(u32),
    Several(Box<Several>),
}

#[derive(Clone, Debug)]
struct Several {
    sequence: Sequence,
    /// Only with a policy that is sticky.
    rendezvous: Option<Rendezvous>,
    policy: Option<Arc<ir::SplitPolicy>>,
    /// The backend on which existing sessions stay, if it is there and usable.
    stay_on: Option<usize>,
    /// The only backend that can get anything and needs no look at the request.
    only: Option<usize>,
    backends: usize,
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
        let names = identities(backends);
        let fingerprint = fingerprint(rule_id, &names, weights());
        if let ([only], None) = (backends, &policy) {
            return Self { fingerprint, turns: Turns::One(only.weight) };
        }
        let sequence = Sequence::new(weights());
        let sticky = policy.as_ref().is_some_and(|p| p.sticky.is_some()) && backends.len() > 1;
        let rendezvous =
            sticky.then(|| Rendezvous::new(rule_id, names.iter().map(String::as_str).zip(weights())));
        let stay_on = policy
            .as_ref()
            .and_then(|p| p.existing.as_ref())
            .map(|e| e.backend)
            .filter(|b| matches!(backends.get(*b).map(|b| &b.target), Some(ir::BackendTarget::Pool(_))));
        let only = sequence.only().filter(|only| rendezvous.is_none() && stay_on.is_none_or(|s| s == *only));
        let several = Several { sequence, rendezvous, policy, stay_on, only, backends: backends.len() };
        Self { fingerprint, turns: Turns::Several(Box::new(several)) }
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
        let only = |backend| Some(Choice { backend, issue_cookie: None, why: Why::Only });
        let split = match &self.turns {
            Turns::One(0) => return None,
            Turns::One(_) => return only(0),
            Turns::Several(split) => split,
        };
        if let Some(backend) = split.only {
            return only(backend);
        }
        if split.sequence.is_empty() {
            return None;
        }
        if let Some(policy) = &split.policy {
            if let (Some(backend), Some(existing)) = (split.stay_on, &policy.existing)
                && head.cookie(&existing.cookie).is_some_and(|v| !v.is_empty())
            {
                return Some(Choice { backend, issue_cookie: None, why: Why::ExistingSession });
            }
            if let (Some(rendezvous), Some(sticky)) = (&split.rendezvous, &policy.sticky)
                && let Some(choice) = by_key(rendezvous, sticky, head, client, random)
            {
                return Some(choice);
            }
        }
        if state.fingerprint != self.fingerprint {
            *state = SplitState { fingerprint: self.fingerprint, sequence: SequenceState::default() };
        }
        let backend = split.sequence.next(&mut state.sequence)?;
        let why = if split.sequence.only().is_some() { Why::Only } else { Why::Weighted };
        Some(Choice { backend, issue_cookie: None, why })
    }

    /// Tells this split from one with other backends or weights, or of another rule.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The share of each backend that is wanted: its weight and the sum of all. The sum is 0 if the rule is off.
    pub fn desired(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let backends = match &self.turns {
            Turns::One(_) => 1,
            Turns::Several(split) => split.backends,
        };
        (0..backends).map(|i| match &self.turns {
            Turns::One(weight) => (*weight, u64::from(*weight)),
            Turns::Several(split) => (split.sequence.weight(i), split.sequence.total()),
        })
    }

    /// The policy, for `explain`.
    pub fn policy(&self) -> Option<&Arc<ir::SplitPolicy>> {
        match &self.turns {
            Turns::One(_) => None,
            Turns::Several(split) => split.policy.as_ref(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use thin_vec::ThinVec;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    fn backend(name: &str, weight: u32) -> ir::Backend {
        let object = ir::ObjectKey { kind: "Pool", namespace: "default".into(), name: name.into() };
        let target = ir::BackendTarget::Pool(ir::PoolKey { object, port: 0 }.into());
        ir::Backend { target, weight, filters: ThinVec::new() }
    }

    fn policy(sticky: Option<ir::Sticky>, stay: Option<usize>) -> Option<Arc<ir::SplitPolicy>> {
        let existing = stay.map(|backend| ir::ExistingSessions { cookie: "JSESSIONID".into(), backend });
        Some(Arc::new(ir::SplitPolicy { name: "p".into(), sticky, existing }))
    }

    fn request(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn choose(split: &CompiledSplit, fields: &[(&str, &str)]) -> Option<Choice> {
        split.choose(&mut SplitState::default(), &request(fields), CLIENT, 0xabc)
    }

    fn chosen(backend: usize, why: Why) -> Option<Choice> {
        Some(Choice { backend, issue_cookie: None, why })
    }

    #[test]
    fn one_backend_with_weight_is_the_only_one() {
        let split = CompiledSplit::new(&[backend("a", 0), backend("b", 3)], None, "r");
        assert_eq!(choose(&split, &[]), chosen(1, Why::Only));
        assert_eq!(split.desired().collect::<Vec<_>>(), [(0, 3), (3, 3)]);
    }

    #[test]
    fn without_weights_the_rule_is_off() {
        let off = [backend("a", 0), backend("b", 0)];
        let split = CompiledSplit::new(&off, policy(Some(ir::Sticky::Source), Some(0)), "r");
        assert_eq!(choose(&split, &[("cookie", "JSESSIONID=1")]), None);
        assert_eq!(choose(&CompiledSplit::new(&[], None, "r"), &[]), None);
    }

    #[test]
    fn the_position_survives_a_reload_that_changes_neither_weights_nor_backends() {
        let make = |a, b| CompiledSplit::new(&[backend("a", a), backend("b", b)], None, "r");
        let mut state = SplitState::default();
        let mut next =
            |split: &CompiledSplit| split.choose(&mut state, &request(&[]), CLIENT, 0).unwrap().backend;
        let turns: Vec<_> = (0..7).map(|_| next(&make(4, 1))).collect();
        assert_eq!(turns, [0, 0, 1, 0, 0, 0, 0]);
        // Other weights begin anew; the second of 1/4 comes first.
        assert_eq!((next(&make(1, 4)), next(&make(1, 4))), (1, 1));
    }

    #[test]
    fn a_key_places_and_its_absence_takes_turns() {
        let backends = [backend("a", 50), backend("b", 50)];
        let header =
            CompiledSplit::new(&backends, policy(Some(ir::Sticky::Header("x-user".into())), None), "r");
        let cookie =
            CompiledSplit::new(&backends, policy(Some(ir::Sticky::Cookie("user".into())), None), "r");
        for user in ["ann", "bob", "carol", "dave"] {
            let by_header = choose(&header, &[("x-user", user)]).unwrap();
            let by_cookie = choose(&cookie, &[("cookie", &format!("a=b; user={user}"))]).unwrap();
            assert_eq!(by_header, by_cookie);
            assert_eq!(by_header.why, Why::Sticky);
        }
        let mut state = SplitState::default();
        for turn in [0, 1, 0, 1] {
            for split in [&header, &cookie] {
                let mut copy = state.clone();
                assert_eq!(
                    split.choose(&mut copy, &request(&[("x-user", "")]), CLIENT, 0),
                    chosen(turn, Why::Weighted)
                );
            }
            header.choose(&mut state, &request(&[]), CLIENT, 0);
        }
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let split = CompiledSplit::new(
            &[backend("a", 1), backend("b", 1)],
            policy(Some(ir::Sticky::Source), None),
            "r",
        );
        for last in 0..32 {
            let v4 = Ipv4Addr::new(192, 0, 2, last);
            let place = |client| split.choose(&mut SplitState::default(), &request(&[]), client, 0).unwrap();
            assert_eq!(place(v4.into()), place(v4.to_ipv6_mapped().into()));
        }
    }

    fn issued(ttl: Option<u64>) -> CompiledSplit {
        let ttl = ttl.map(Duration::from_secs);
        let sticky = ir::Sticky::IssuedCookie { name: "fg-shop".into(), ttl, path: "/".into() };
        CompiledSplit::new(&[backend("a", 50), backend("b", 50)], policy(Some(sticky), None), "r")
    }

    #[test]
    fn an_issued_cookie_brings_its_user_back() {
        for random in 0..64u64 {
            let mut state = SplitState::default();
            let first = issued(None).choose(&mut state, &request(&[]), CLIENT, random).unwrap();
            assert_eq!(first.why, Why::Sticky);
            let cookie = first.issue_cookie.unwrap();
            let pair = cookie.split(';').next().unwrap();
            assert_eq!(choose(&issued(None), &[("cookie", pair)]), chosen(first.backend, Why::Sticky));
        }
    }

    #[test]
    fn attributes_of_the_issued_cookie() {
        let mut head = request(&[]);
        let cookie = |split: CompiledSplit, head: &RequestHead| {
            split.choose(&mut SplitState::default(), head, CLIENT, 0xabc).unwrap().issue_cookie.unwrap()
        };
        assert_eq!(cookie(issued(None), &head), "fg-shop=0000000000000abc; Path=/; HttpOnly; SameSite=Lax");
        head.https = true;
        assert_eq!(
            cookie(issued(Some(60)), &head),
            "fg-shop=0000000000000abc; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure"
        );
    }

    #[test]
    fn existing_sessions_stay_even_at_weight_zero() {
        let backends = [backend("vms", 0), backend("pods", 100)];
        let split = CompiledSplit::new(&backends, policy(None, Some(0)), "r");
        assert_eq!(choose(&split, &[("cookie", "JSESSIONID=1")]), chosen(0, Why::ExistingSession));
        assert_eq!(choose(&split, &[("cookie", "other=1")]), chosen(1, Why::Only));
        assert_eq!(choose(&split, &[("cookie", "JSESSIONID=")]), chosen(1, Why::Only));
    }

    #[test]
    fn sessions_do_not_stay_on_what_is_not_usable() {
        let mut backends = [backend("vms", 0), backend("pods", 100)];
        backends[0].target = ir::BackendTarget::Invalid("no such pool".into());
        for stay in [0, 7] {
            let split = CompiledSplit::new(&backends, policy(None, Some(stay)), "r");
            assert_eq!(choose(&split, &[("cookie", "JSESSIONID=1")]), chosen(1, Why::Only));
        }
    }

    #[test]
    fn a_target_named_twice_is_two_backends() {
        let twice = [backend("a", 1), backend("a", 1)];
        let split = CompiledSplit::new(&twice, policy(Some(ir::Sticky::Header("u".into())), None), "r");
        let places: Vec<_> =
            (0..64).map(|u| choose(&split, &[("u", &u.to_string())]).unwrap().backend).collect();
        assert!(places.contains(&0) && places.contains(&1));
    }
}
