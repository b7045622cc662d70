//! Durations as Gateway API writes them (GEP-2257): `500ms`, `2s`, `1m30s`. No floats, no bare numbers.

use std::fmt;
use std::time::Duration as StdDuration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::diagnostic::reason;
use crate::yaml::reject;

/// A duration of one of our own kinds. Beyond Gateway API's units it takes `d`: a cookie lives for days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(pub StdDuration);

/// Why a text is not a duration: the message and the hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotADuration {
    /// What is wrong.
    pub message: String,
    /// What to write.
    pub hint: String,
}

const HINT: &str = "write a whole number with a unit: 500ms, 2s, 1m30s";

/// Parses a duration of Gateway API: one to four numbers of up to five digits, each with `h`, `m`, `s` or `ms`.
pub fn parse_gateway_duration(text: &str) -> Result<StdDuration, NotADuration> {
    parse(text, false)
}

fn parse(text: &str, days: bool) -> Result<StdDuration, NotADuration> {
    let wrong = |message: String, hint: String| Err(NotADuration { message, hint });
    let mut rest = text;
    let mut total = StdDuration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| i + digits);
        let (number, unit) = (&rest[..digits], &rest[digits..unit_end]);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" if days => 86_400_000,
            _ => return wrong(format!("\"{text}\" is not a duration"), hint_for(text)),
        };
        parts += 1;
        if number.is_empty() || number.len() > 5 || parts > 4 {
            return wrong(
                format!("\"{text}\" is not a duration"),
                "at most four numbers, each of one to five digits with a unit".to_owned(),
            );
        }
        total += StdDuration::from_millis(number.parse::<u64>().unwrap_or(0) * millis);
        rest = &rest[unit_end..];
    }
    if parts == 0 {
        return wrong("an empty text is not a duration".to_owned(), HINT.to_owned());
    }
    Ok(total)
}

fn hint_for(text: &str) -> String {
    if let Ok(seconds) = text.parse::<u32>() {
        return format!("write {seconds}s or {seconds}ms");
    }
    if let Some(Ok(seconds)) = text.strip_suffix('s').map(str::parse::<f64>)
        && seconds > 0.0
        && seconds < 90_000.0
    {
        return format!("there are no fractions: write {}ms", (seconds * 1000.0).round() as u64);
    }
    HINT.to_owned()
}

/// A duration as Go and Istio write it: fractions and `us` are allowed, and the millisecond is the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub StdDuration);

fn parse_go(text: &str) -> Option<StdDuration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let unit_end = rest[number..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| i + number);
        let unit = match &rest[number..unit_end] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += rest[..number].parse::<f64>().ok()? * unit;
        rest = &rest[unit_end..];
    }
    // Ten years is beyond anything that is meant.
    let sane = !text.is_empty() && seconds < 315_360_000.0;
    sane.then(|| StdDuration::from_millis((seconds * 1000.0).round() as u64))
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 500ms, 2.5s or 1m30s")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<GoDuration, E> {
                let wrong = || {
                    let message = format!("\"{text}\" is not a duration");
                    reject(
                        reason::INVALID_DURATION,
                        message,
                        "write a number with a unit: 500ms, 2.5s, 1m30s",
                    )
                };
                parse_go(text).map(GoDuration).ok_or_else(wrong)
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<GoDuration, E> {
                let message = format_args!("the number {n} is not a duration");
                Err(reject(reason::INVALID_DURATION, message, hint_for(&n.to_string())))
            }
        }
        deserializer.deserialize_any(V)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 500ms, 2s or 1m30s")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
                match parse(text, true) {
                    Ok(duration) => Ok(Duration(duration)),
                    Err(e) => Err(reject(reason::INVALID_DURATION, e.message, e.hint)),
                }
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<Duration, E> {
                Err(reject(
                    reason::INVALID_DURATION,
                    format_args!("the number {n} is not a duration"),
                    hint_for(&n.to_string()),
                ))
            }

            fn visit_f64<E: Error>(self, n: f64) -> Result<Duration, E> {
                Err(reject(reason::INVALID_DURATION, format_args!("the number {n} is not a duration"), HINT))
            }
        }
        deserializer.deserialize_any(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gateway_api_allows() {
        for (text, millis) in [
            ("500ms", Some(500)),
            ("2s", Some(2000)),
            ("1m30s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("0s", Some(0)),
            ("99999h", Some(359_996_400_000)),
        ] {
            assert_eq!(parse_gateway_duration(text).ok().map(|d| d.as_millis() as u64), millis, "{text}");
        }
        for text in ["", "5", "1.5s", "s", "100000s", "1d", "1s1s1s1s1s", "-1s", "1 s", "1us", "٣s"] {
            assert!(parse_gateway_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse("30d", true).unwrap().as_secs(), 30 * 86_400);
        for (text, millis) in
            [("1.5s", Some(1500)), ("1h", Some(3_600_000)), ("1m0.5s", Some(60_500)), ("5", None), ("", None)]
        {
            assert_eq!(parse_go(text).map(|d| d.as_millis() as u64), millis, "{text}");
        }
        assert_eq!(hint_for("1.5s"), "there are no fractions: write 1500ms");
    }
}
