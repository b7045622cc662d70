//! What clients are told: refusals, and how much is left.

use std::borrow::Cow;
use std::fmt::Write as _;

use fieldgate_core::Headers;
use fieldgate_core::filter::LocalResponse;

const LIMIT: &str = "x-ratelimit-limit";
const REMAINING: &str = "x-ratelimit-remaining";
const RESET: &str = "x-ratelimit-reset";

/// A refusal, as Envoy makes it. `wait`: seconds. To gRPC, 429 is UNAVAILABLE unless `exhausted` is asked for.
pub(super) fn refusal(
    status: u16,
    exhausted: bool,
    wait: Option<u64>,
    body: Option<String>,
    details: &'static str,
) -> LocalResponse {
    let mut headers = vec![("x-envoy-ratelimited", "true".to_owned())];
    if let Some(wait) = wait {
        headers.push(("retry-after", wait.max(1).to_string()));
    }
    let body = body.map_or(Cow::Borrowed(details), Cow::Owned);
    if !exhausted {
        return LocalResponse { status, headers, body, flags: "RL", details };
    }
    headers.push(("content-type", "application/grpc".to_owned()));
    headers.push(("grpc-status", "8".to_owned()));
    headers.push(("grpc-message", details.to_owned()));
    LocalResponse { status: 200, headers, body: Cow::Borrowed(""), flags: "RL", details }
}

/// Nobody answered, and nothing passes without an answer.
pub(super) fn service_error() -> LocalResponse {
    LocalResponse {
        status: 500,
        headers: Vec::new(),
        body: Cow::Borrowed("the rate limit service does not answer\n"),
        flags: "RLSE",
        details: "rate_limiter_error",
    }
}

/// `x-ratelimit-*`: the tightest limit, and what all of them are (draft-polli-ratelimit-headers-03, as Envoy writes it).
#[derive(Debug)]
pub(super) struct Told {
    pub limit: u64,
    pub left: u64,
    /// Seconds.
    pub reset: u64,
    /// `, 10;w=60;name="per-user"`, for each.
    pub policies: String,
}

impl Told {
    /// Adds a limit: so many in so many seconds. What is shorter than a second cannot be said.
    pub fn policy(&mut self, requests: u64, seconds: u64, name: &str) {
        if seconds > 0 {
            let _ = write!(self.policies, ", {requests};w={seconds}");
            // A quote would end the name early, and what a service calls its limits is its own matter.
            if !name.is_empty() && name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\')
            {
                let _ = write!(self.policies, ";name=\"{name}\"");
            }
        }
    }

    /// Writes it, beside what other limits have told of the same request.
    pub fn tell(mut self, headers: &mut Headers) {
        let number = |value: Option<&[u8]>| std::str::from_utf8(value?).ok()?.parse::<u64>().ok();
        if let Some(left) = number(headers.get(REMAINING)) {
            let before = headers.get(LIMIT).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            let (limit, policies) = before.split_once(',').unwrap_or((&before, ""));
            if !policies.is_empty() {
                self.policies.insert_str(0, &format!(",{policies}"));
            }
            if left <= self.left {
                self.left = left;
                self.limit = limit.parse().unwrap_or(self.limit);
                self.reset = number(headers.get(RESET)).unwrap_or(self.reset);
            }
        }
        headers.set(LIMIT, format!("{}{}", self.limit, self.policies).as_bytes());
        headers.set(REMAINING, self.left.to_string().as_bytes());
        headers.set(RESET, self.reset.to_string().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(limit: u64, left: u64, reset: u64, policies: &[(u64, u64, &str)]) -> Told {
        let mut told = Told { limit, left, reset, policies: String::new() };
        for (requests, seconds, name) in policies {
            told.policy(*requests, *seconds, name);
        }
        told
    }

    fn check(tell: Vec<Told>, expected: [&str; 3]) {
        let mut headers = Headers::new();
        for told in tell {
            told.tell(&mut headers);
        }
        let found = [LIMIT, REMAINING, RESET]
            .map(|name| String::from_utf8_lossy(headers.get(name).unwrap_or_default()).into_owned());
        assert_eq!((found.each_ref().map(String::as_str), headers.len()), (expected, 3));
    }

    #[test]
    fn the_tightest_limit_is_told_and_what_all_of_them_are() {
        let minute = || told(10, 4, 7, &[(10, 60, "a")]);
        check(vec![minute()], ["10, 10;w=60;name=\"a\"", "4", "7"]);
        let hour = || told(100, 3, 99, &[(100, 3600, "b")]);
        check(vec![minute(), hour()], ["100, 10;w=60;name=\"a\", 100;w=3600;name=\"b\"", "3", "99"]);
        check(vec![hour(), minute()], ["100, 100;w=3600;name=\"b\", 10;w=60;name=\"a\"", "3", "99"]);
        check(vec![told(5, 1, 1, &[(5, 0, "c")])], ["5", "1", "1"]);
        check(vec![told(5, 1, 1, &[(5, 1, "a\"b\r\n")])], ["5, 5;w=1", "1", "1"]);
    }

    #[test]
    fn refusals_say_when_to_come_again() {
        let plain = refusal(429, false, Some(0), None, "local_rate_limited");
        assert_eq!((plain.status, plain.flags, &*plain.body), (429, "RL", "local_rate_limited"));
        let retry_after = ("retry-after", "1".to_owned());
        assert!(plain.headers.contains(&retry_after), "at least a second");
        let grpc = refusal(429, true, None, None, "local_rate_limited");
        assert!(grpc.status == 200 && grpc.headers.contains(&("grpc-status", "8".to_owned())));
    }
}
