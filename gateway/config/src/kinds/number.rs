//! Numbers with decimals in YAML that are whole numbers of a small unit inside.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::diagnostic::reason;
use crate::yaml::reject;

/// A number with up to two decimals, such as `1` or `1.5`: 150 hundredths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hundredths(pub u32);

/// A share in percent with up to four decimals, such as `50` or `0.01`: 100 millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

/// The largest that is read as hundredths.
const MAX: f64 = 1_000_000.0;

impl<'de> Deserialize<'de> for Hundredths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer, "a number such as 1 or 1.5", MAX, 100.0).map(Self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer, "a percentage such as 50 or 0.1", 100.0, 10_000.0).map(Self)
    }
}

fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    expecting: &'static str,
    max: f64,
    unit: f64,
) -> Result<u32, D::Error> {
    struct V(&'static str, f64, f64);
    impl Visitor<'_> for V {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_i64<E: Error>(self, n: i64) -> Result<u32, E> {
            self.visit_f64(n as f64)
        }

        fn visit_u64<E: Error>(self, n: u64) -> Result<u32, E> {
            self.visit_f64(n as f64)
        }

        fn visit_f64<E: Error>(self, n: f64) -> Result<u32, E> {
            let Self(expecting, max, unit) = self;
            let scaled = n * unit;
            if !(0.0..=max).contains(&n) {
                let message = format_args!("expected 0 to {max}, found {n}");
                return Err(reject(reason::OUT_OF_RANGE, message, expecting));
            }
            if (scaled - scaled.round()).abs() > 1e-6 {
                let message = format_args!("{n} has more decimals than are looked at");
                return Err(reject(reason::INVALID_VALUE, message, expecting));
            }
            Ok(scaled.round() as u32)
        }
    }
    deserializer.deserialize_any(V(expecting, max, unit))
}
