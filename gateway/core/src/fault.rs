//! Faults on purpose: whether a request is delayed or refused (Envoy's fault filter).

use std::time::Duration;

use crate::head::RequestHead;
use crate::ir::{Fault, FaultAnswer};

/// What comes to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultDecision {
    /// It is held for so long.
    pub delay: Option<Duration>,
    /// It gets this answer, after the delay.
    pub abort: Option<FaultAnswer>,
}

/// Decides for one request. Delay and abort are drawn apart, so some requests have both.
pub fn decide(fault: &Fault, head: &RequestHead, random: &mut dyn FnMut() -> u64) -> FaultDecision {
    let has = |name: &str, wanted: &str| head.headers.get_all(name).any(|value| value == wanted.as_bytes());
    if !fault.headers.iter().all(|(name, wanted)| has(name, wanted)) {
        return FaultDecision::default();
    }
    let mut drawn = |millionths: u32| {
        let millionth = (u128::from(random()) * 1_000_000) >> 64;
        millionth < u128::from(millionths)
    };
    FaultDecision {
        delay: fault.delay.filter(|(share, _)| drawn(*share)).map(|(_, delay)| delay),
        abort: fault.abort.filter(|(share, _)| drawn(*share)).map(|(_, answer)| answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    #[test]
    fn shares_are_exact_over_all_draws() {
        let delay = Duration::from_millis(5);
        let fault = Fault {
            delay: Some((250_000, delay)),
            abort: Some((1_000, FaultAnswer::Status(503))),
            ..Fault::default()
        };
        let (mut delayed, mut aborted, mut drawn) = (0, 0, 0_u64);
        for _ in 0..10_000 {
            let decision = decide(&fault, &head(&[]), &mut || {
                drawn = drawn.wrapping_add(u64::MAX / 10_000);
                drawn
            });
            delayed += u32::from(decision.delay == Some(delay));
            aborted += u32::from(decision.abort == Some(FaultAnswer::Status(503)));
        }
        assert!((2_499..=2_501).contains(&delayed) && (9..=11).contains(&aborted), "{delayed} {aborted}");
    }

    #[test]
    fn all_headers_must_be_there() {
        let always = Some((1_000_000, FaultAnswer::Grpc(14)));
        let headers = vec![("x-a".into(), "1".into()), ("x-b".into(), "2".into())];
        let fault = Fault { headers, abort: always, ..Fault::default() };
        for (fields, hit) in [
            (&[("x-a", "1"), ("x-b", "2")][..], true),
            (&[("x-a", "0"), ("x-a", "1"), ("x-b", "2")], true),
            (&[("x-a", "1")], false),
            (&[("x-a", "1"), ("x-b", "22")], false),
        ] {
            assert_eq!(decide(&fault, &head(fields), &mut || u64::MAX).abort.is_some(), hit, "{fields:?}");
        }
        let never = Fault { abort: Some((0, FaultAnswer::Status(500))), ..Fault::default() };
        assert_eq!(decide(&never, &head(&[]), &mut || 0), FaultDecision::default());
    }
}
