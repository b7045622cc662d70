//! Whether a try that failed is made again, and when: Envoy's `retry_on` conditions, back-off, `Retry-After`, and the
//! deadline that a gRPC client sends.
//!
//! How many tries a request has had, and whether its pool allows another, is known elsewhere.

use std::time::Duration;

use crate::head::{HeaderId, Headers};
use crate::ir::{Retry, RetryOn};

/// What went wrong with a try.
#[derive(Clone, Copy, Debug)]
pub enum Trouble<'a> {
    /// No connection could be opened.
    NoConnection,
    /// The connection or stream ended before a response's head.
    Reset {
        /// Nothing of the request was sent.
        before_request: bool,
        /// The peer says that it has not begun (RFC 9113 section 8.7).
        refused_stream: bool,
    },
    /// The time of the try was up.
    TryTimedOut,
    /// A response that may be one to replace.
    Response {
        /// Its status.
        status: u16,
        /// Its head.
        headers: &'a Headers,
        /// Whether the request is a gRPC call.
        grpc: bool,
    },
}

/// Tries that a request has without its route asking for them.
pub const UNASKED_TRIES: u32 = 3;

/// Whether a request may be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It may not.
    No,
    /// Its route would want it, but has had the tries that it allows.
    Exhausted,
    /// It may.
    Yes {
        /// Its route wants it; without that the same endpoint is not tried twice.
        asked: bool,
        /// An endpoint may have begun to work on it, so it counts against the pool's budget.
        budgeted: bool,
    },
}

/// Whether another try may follow this trouble, which is that of the last of `failed + 1` tries.
///
/// Never twice for what is not safe unless asked: what no endpoint has begun is tried elsewhere whatever the route says,
/// and so is what may be repeated (RFC 9110 section 9.2.2), but for a try whose time was up: a second one takes as long.
/// All else is repeated only where the route's own conditions want it.
pub fn repeat(policy: Option<&Retry>, trouble: &Trouble<'_>, idempotent: bool, failed: u32) -> Repeat {
    let asked = policy.filter(|policy| wants(policy, trouble));
    let (begun, unasked) = match trouble {
        Trouble::NoConnection => (false, true),
        Trouble::Reset { before_request, refused_stream } => {
            let begun = !before_request && !refused_stream;
            (begun, !begun || idempotent)
        }
        Trouble::TryTimedOut | Trouble::Response { .. } => (true, false),
    };
    let tries = asked.map_or(0, |policy| policy.attempts.saturating_add(1));
    if failed + 1 < tries.max(if unasked { UNASKED_TRIES } else { 0 }) {
        Repeat::Yes { asked: asked.is_some(), budgeted: begun }
    } else if asked.is_some() {
        Repeat::Exhausted
    } else {
        Repeat::No
    }
}

/// Whether the route wants another try after this.
pub fn wants(retry: &Retry, trouble: &Trouble<'_>) -> bool {
    let on = retry.on;
    // Envoy: "5xx" and "gateway-error" hold also where there is no response at all.
    let no_response = RetryOn::RESET.and(RetryOn::SERVER_ERROR).and(RetryOn::GATEWAY_ERROR);
    match *trouble {
        Trouble::NoConnection => on.has(no_response.and(RetryOn::CONNECT_FAILURE)),
        Trouble::Reset { before_request, refused_stream } => {
            on.has(no_response)
                || before_request && on.has(RetryOn::RESET_BEFORE_REQUEST)
                || refused_stream && on.has(RetryOn::REFUSED_STREAM)
        }
        Trouble::TryTimedOut => on.has(no_response),
        Trouble::Response { status, headers, grpc } => {
            wants_other_response(retry, status, headers) || grpc && wants_other_grpc(on, headers)
        }
    }
}

fn wants_other_response(retry: &Retry, status: u16, headers: &Headers) -> bool {
    let on = retry.on;
    // A rate limit is no failure: only who names it wants it tried again.
    if headers.get("x-envoy-ratelimited").is_some() {
        return on.has(RetryOn::RATE_LIMITED);
    }
    on.has(RetryOn::SERVER_ERROR) && (500..=599).contains(&status)
        || on.has(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&status)
        || on.has(RetryOn::RETRIABLE_4XX) && status == 409
        || on.has(RetryOn::STATUS_CODES) && retry.codes.contains(&status)
        || on.has(RetryOn::HEADERS) && retry.headers.iter().any(|name| headers.get(name).is_some())
}

/// Only a status in the head can be looked at in time: one in trailers comes after the response has begun.
fn wants_other_grpc(on: RetryOn, headers: &Headers) -> bool {
    let condition = match headers.get_id(HeaderId::GrpcStatus) {
        Some(b"1") => RetryOn::GRPC_CANCELLED,
        Some(b"4") => RetryOn::GRPC_DEADLINE_EXCEEDED,
        Some(b"8") => RetryOn::GRPC_RESOURCE_EXHAUSTED,
        Some(b"13") => RetryOn::GRPC_INTERNAL,
        Some(b"14") => RetryOn::GRPC_UNAVAILABLE,
        _ => return false,
    };
    on.has(condition)
}

/// How long to wait before the `nth` retry, from 1; `None` if the server asks for longer than the route allows.
/// `now` is in seconds since the epoch.
pub fn pause(retry: &Retry, nth: u32, response: Option<&Headers>, now: u64, random: u64) -> Option<Duration> {
    let asked = retry.retry_after.zip(response.and_then(|headers| asked_pause(headers, now)));
    match asked {
        Some((longest, asked)) => (asked <= longest).then_some(asked),
        None => Some(back_off(retry, nth, random)),
    }
}

/// A random time below `base * (2^nth - 1)`, and below `max`.
fn back_off(retry: &Retry, nth: u32, random: u64) -> Duration {
    let steps = (1_u64 << nth.min(20)) - 1;
    let base = retry.backoff.base.as_micros() as u64;
    let bound = base.saturating_mul(steps).min(retry.backoff.max.as_micros() as u64);
    Duration::from_micros(((u128::from(bound) * u128::from(random)) >> 64) as u64)
}

/// `Retry-After` (RFC 9110 section 10.2.3), or the seconds of `X-RateLimit-Reset`.
fn asked_pause(headers: &Headers, now: u64) -> Option<Duration> {
    let text = |name: &str| std::str::from_utf8(headers.get(name)?).ok().map(str::trim);
    let seconds = text("retry-after")
        .and_then(|value| value.parse().ok().or_else(|| Some(http_date(value)?.saturating_sub(now))))
        .or_else(|| text("x-ratelimit-reset")?.parse().ok())?;
    Some(Duration::from_secs(seconds))
}

/// Seconds since the epoch of `Sun, 06 Nov 1994 08:49:37 GMT`, the form that senders must use (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let month = parts.next().and_then(|name| MONTHS.iter().position(|m| *m == name))? as u64;
    let year: u64 = parts.next()?.parse().ok()?;
    let mut clock = parts.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if parts.next() != Some("GMT")
        || !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    // Days from the civil calendar, counted in years that begin in March.
    let (shifted_year, shifted_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * shifted_year + shifted_year / 4 - shifted_year / 100
        + shifted_year / 400
        + (153 * shifted_month + 2) / 5
        + day
        - 1;
    // The first of January 1970, counted so.
    const EPOCH: u64 = 719_468;
    Some((days - EPOCH) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// The time that a gRPC client gives a call: up to eight digits and a unit (gRPC over HTTP/2, `Timeout`).
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Backoff;

    fn on(words: &str) -> Retry {
        let on = words.split(',').filter_map(RetryOn::word).fold(RetryOn::default(), RetryOn::and);
        Retry { on, codes: vec![418], headers: vec!["x-again".into()], ..Retry::default() }
    }

    fn fields(lines: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in lines {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        headers
    }

    const RESET: Trouble<'_> = Trouble::Reset { before_request: false, refused_stream: false };

    #[test]
    fn what_had_no_response() {
        let unsent = Trouble::Reset { before_request: true, refused_stream: false };
        let refused = Trouble::Reset { before_request: false, refused_stream: true };
        for (words, connect, reset, unsent_too, refused_too, timed_out) in [
            ("5xx", true, true, true, true, true),
            ("gateway-error", true, true, true, true, true),
            ("reset", true, true, true, true, true),
            ("reset-before-request", false, false, true, false, false),
            ("connect-failure", true, false, false, false, false),
            ("refused-stream", false, false, false, true, false),
            ("retriable-status-codes,retriable-4xx,unavailable", false, false, false, false, false),
        ] {
            let retry = on(words);
            let seen = [&Trouble::NoConnection, &RESET, &unsent, &refused, &Trouble::TryTimedOut]
                .map(|trouble| wants(&retry, trouble));
            assert_eq!(seen, [connect, reset, unsent_too, refused_too, timed_out], "{words}");
        }
    }

    #[test]
    fn responses() {
        for (words, status, lines, grpc, expected) in [
            ("5xx", 500, &[][..], false, true),
            ("5xx", 599, &[], false, true),
            ("5xx", 499, &[], false, false),
            ("gateway-error", 500, &[], false, false),
            ("gateway-error", 504, &[], false, true),
            ("retriable-4xx", 409, &[], false, true),
            ("retriable-4xx", 404, &[], false, false),
            ("retriable-status-codes", 418, &[], false, true),
            ("5xx", 418, &[], false, false),
            ("retriable-headers", 200, &[("x-again", "")], false, true),
            ("5xx", 503, &[("x-envoy-ratelimited", "true")], false, false),
            ("envoy-ratelimited", 429, &[("x-envoy-ratelimited", "true")], false, true),
            ("envoy-ratelimited", 429, &[], false, false),
            ("unavailable", 200, &[("grpc-status", "14")], true, true),
            ("unavailable", 200, &[("grpc-status", "14")], false, false),
            ("cancelled", 200, &[("grpc-status", "1")], true, true),
            ("deadline-exceeded", 200, &[("grpc-status", "4")], true, true),
            ("resource-exhausted", 200, &[("grpc-status", "8")], true, true),
            ("internal", 200, &[("grpc-status", "13")], true, true),
            ("internal,unavailable", 200, &[("grpc-status", "0")], true, false),
            ("internal", 200, &[], true, false),
        ] {
            let headers = fields(lines);
            let trouble = Trouble::Response { status, headers: &headers, grpc };
            assert_eq!(wants(&on(words), &trouble), expected, "{words}: {status} {lines:?}");
        }
    }

    #[test]
    fn never_twice_for_what_is_not_safe_unless_asked() {
        let unsent = Trouble::Reset { before_request: true, refused_stream: false };
        let refused = Trouble::Reset { before_request: false, refused_stream: true };
        let headers = fields(&[]);
        let bad = Trouble::Response { status: 503, headers: &headers, grpc: false };
        let asking = Retry { attempts: 1, ..on("5xx") };
        let yes = |asked, budgeted| Repeat::Yes { asked, budgeted };
        for (policy, trouble, idempotent, failed, expected) in [
            (None, &Trouble::NoConnection, false, 0, yes(false, false)),
            (None, &Trouble::NoConnection, false, 1, yes(false, false)),
            (None, &Trouble::NoConnection, false, 2, Repeat::No),
            (None, &unsent, false, 0, yes(false, false)),
            (None, &refused, false, 0, yes(false, false)),
            (None, &RESET, false, 0, Repeat::No),
            (None, &RESET, true, 0, yes(false, true)),
            (None, &Trouble::TryTimedOut, true, 0, Repeat::No),
            (None, &bad, true, 0, Repeat::No),
            (Some(&asking), &RESET, false, 0, yes(true, true)),
            (Some(&asking), &Trouble::TryTimedOut, false, 0, yes(true, true)),
            (Some(&asking), &bad, false, 0, yes(true, true)),
            (Some(&asking), &bad, false, 1, Repeat::Exhausted),
            (Some(&asking), &RESET, true, 1, yes(true, true)),
            (Some(&asking), &Trouble::NoConnection, false, 2, Repeat::Exhausted),
            (Some(&on("connect-failure")), &RESET, false, 0, Repeat::No),
        ] {
            let got = repeat(policy, trouble, idempotent, failed);
            assert_eq!(got, expected, "{policy:?} {trouble:?} {idempotent} {failed}");
        }
    }

    #[test]
    fn pauses_grow_to_their_bound_and_are_spread_below_it() {
        let backoff = Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) };
        let retry = Retry { backoff, ..on("5xx") };
        for (nth, bound) in [(1, 25), (2, 75), (3, 175), (4, 250), (60, 250)] {
            let longest = pause(&retry, nth, None, 0, u64::MAX).unwrap();
            assert!(longest < Duration::from_millis(bound), "{nth}: {longest:?}");
            assert!(longest > Duration::from_millis(bound - 1), "{nth}: {longest:?}");
            assert_eq!(pause(&retry, nth, None, 0, 0), Some(Duration::ZERO));
        }
    }

    #[test]
    fn servers_say_when() {
        let retry = Retry { retry_after: Some(Duration::from_secs(10)), ..on("5xx") };
        let now = 784_111_777 - 5;
        for (lines, expected) in [
            (&[("retry-after", "7")][..], Some(7)),
            (&[("retry-after", "11")], None),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(5)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:40:00 GMT")], Some(0)),
            (&[("x-ratelimit-reset", "3")], Some(3)),
        ] {
            let seconds = pause(&retry, 1, Some(&fields(lines)), now, 0).map(|pause| pause.as_secs());
            assert_eq!(seconds, expected, "{lines:?}");
        }
        // Nobody is obeyed whom the route does not obey, and what is no time is none.
        let unwilling = on("5xx");
        let asked = fields(&[("retry-after", "7")]);
        assert!(pause(&unwilling, 1, Some(&asked), now, u64::MAX).unwrap() < Duration::from_secs(1));
        let senseless = fields(&[("retry-after", "soon")]);
        assert!(pause(&retry, 1, Some(&senseless), now, u64::MAX).unwrap() < Duration::from_secs(1));
    }

    #[test]
    fn dates() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Mon, 01 Mar 2100 00:00:00 GMT", Some(4_107_542_400)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
        ] {
            assert_eq!(http_date(text), expected, "{text}");
        }
    }

    #[test]
    fn timeouts_of_grpc() {
        for (text, expected) in [
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("3S", Some(Duration::from_secs(3))),
            ("300m", Some(Duration::from_millis(300))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("123456789m", None),
            ("m", None),
            ("", None),
            ("1s", None),
            ("-1m", None),
        ] {
            assert_eq!(grpc_timeout(text.as_bytes()), expected, "{text:?}");
        }
    }
}
