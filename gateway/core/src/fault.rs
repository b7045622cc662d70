//! Faults on purpose: whether a request is delayed or refused (Envoy's fault filter).

use std::sync::OnceLock;
use std::time::Duration;

use regex::Regex;

use crate::head::RequestHead;
use crate::ir::{Fault, FaultAnswer, ValueMatch};

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
    if !fault.headers.is_empty() && !fault.patterns.fit(fault, head) {
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

/// The expressions of a fault, compiled once. They say nothing that the fault does not, so all are equal.
#[derive(Debug, Default)]
pub struct Patterns(OnceLock<Vec<Option<Regex>>>);

impl Clone for Patterns {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Patterns {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Patterns {}

impl Patterns {
    fn fit(&self, fault: &Fault, head: &RequestHead) -> bool {
        let compiled =
            self.0.get_or_init(|| fault.headers.iter().map(|(_, wanted)| pattern(wanted)).collect());
        fault.headers.iter().zip(compiled).all(|((name, wanted), pattern)| {
            let mut values = head.headers.get_all(name);
            match (wanted, pattern) {
                (ValueMatch::Exact(text), _) => values.any(|value| value == text.as_bytes()),
                (ValueMatch::Regex(_), Some(regex)) => {
                    values.any(|value| std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)))
                }
                // One that does not compile is refused by the source; here it fits nothing.
                (ValueMatch::Regex(_), None) => false,
            }
        })
    }
}

/// An expression must fit the whole value.
fn pattern(wanted: &ValueMatch) -> Option<Regex> {
    match wanted {
        ValueMatch::Exact(_) => None,
        ValueMatch::Regex(text) => Regex::new(&format!("^(?:{text})$")).ok(),
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
        let exact = |text: &str| ValueMatch::Exact(text.into());
        let headers = vec![
            ("x-a".into(), exact("1")),
            ("x-b".into(), exact("2")),
            ("x-c".into(), ValueMatch::Regex("3+".into())),
        ];
        let fault = Fault { headers, abort: always, ..Fault::default() };
        for (fields, hit) in [
            (&[("x-a", "1"), ("x-b", "2"), ("x-c", "33")][..], true),
            (&[("x-a", "0"), ("x-a", "1"), ("x-b", "2"), ("x-c", "3")], true),
            (&[("x-a", "1"), ("x-c", "3")], false),
            (&[("x-a", "1"), ("x-b", "22"), ("x-c", "3")], false),
            (&[("x-a", "1"), ("x-b", "2"), ("x-c", "34")], false),
        ] {
            assert_eq!(decide(&fault, &head(fields), &mut || u64::MAX).abort.is_some(), hit, "{fields:?}");
        }
        let never = Fault { abort: Some((0, FaultAnswer::Status(500))), ..Fault::default() };
        assert_eq!(decide(&never, &head(&[]), &mut || 0), FaultDecision::default());
    }
}
