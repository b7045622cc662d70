//! The flags of `fieldgate run` that limit the gateway itself.

use std::time::Duration;

use clap::Args;

use super::duration;
use crate::overload::{self, Limits};

/// The gateway's own limits.
#[derive(Args)]
pub(super) struct OverloadArgs {
    /// Connections that clients may hold open; more are reset. `off`: any number. By default three quarters of the files
    /// that the process may open.
    #[arg(long, value_name = "N", value_parser = count)]
    max_connections: Option<Limit<usize>>,
    /// The same per listening address.
    #[arg(long, value_name = "N", default_value = "off", value_parser = count)]
    max_connections_per_address: Limit<usize>,
    /// The same per source: an IPv4 address, or an IPv6 /64. Not for a gateway behind another proxy, whose connections all
    /// have one source.
    #[arg(long, value_name = "N", default_value = "off", value_parser = count)]
    max_connections_per_source: Limit<usize>,
    /// Resident memory: at 85 % of it new requests and connections are refused, at 95 % idle connections are closed. `off`:
    /// any. By default what the control group allows.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_memory: Option<Limit<u64>>,
    /// How long requests may wait for a worker before some of them are refused with 503, so that the others do not
    /// wait longer. `off`: any time.
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = delay)]
    max_delay: Limit<Duration>,
    /// A source that floods three times in a minute may open two connections per second, until a minute without. Not for
    /// a gateway behind another proxy, whose connections all have one source; where `trusted-hops` says that there is one, it
    /// is off by itself.
    #[arg(long, value_name = "on|off", default_value = "on", action = clap::ArgAction::Set, value_parser = on_or_off)]
    hold_back_floods: bool,
}

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit<T>(Option<T>);

impl OverloadArgs {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            connections: self.max_connections.map_or_else(overload::default_connections, |limit| limit.0),
            per_address: self.max_connections_per_address.0,
            per_source: self.max_connections_per_source.0,
            memory: self.max_memory.map_or_else(overload::limit_of_cgroup, |limit| limit.0),
            delay: self.max_delay.0,
            hold_back_floods: self.hold_back_floods,
        }
    }
}

fn count(text: &str) -> Result<Limit<usize>, String> {
    if text == "off" {
        return Ok(Limit(None));
    }
    match text.parse() {
        Ok(number) if number > 0 => Ok(Limit(Some(number))),
        _ => Err("write a number above 0, or `off`".to_owned()),
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("write `on` or `off`".to_owned()),
    }
}

fn delay(text: &str) -> Result<Limit<Duration>, String> {
    if text == "off" {
        return Ok(Limit(None));
    }
    match duration(text)? {
        // The clock that measures it has ticks of a millisecond.
        delay if delay >= Duration::from_millis(10) => Ok(Limit(Some(delay))),
        _ => Err("10ms is the least; or `off`".to_owned()),
    }
}

fn size(text: &str) -> Result<Limit<u64>, String> {
    const WRITE: &str = "write a size: 512MiB, 4GiB, or `off`";
    if text == "off" {
        return Ok(Limit(None));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(WRITE.to_owned()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        // Less than the gateway takes by itself.
        Some(bytes) if bytes >= 32 << 20 => Ok(Limit(Some(bytes))),
        Some(_) => Err("32MiB is the least".to_owned()),
        None => Err(WRITE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(count("7"), Ok(Limit(Some(7))));
        assert_eq!(count("off"), Ok(Limit(None)));
        assert!(count("0").is_err() && count("-1").is_err() && count("many").is_err());
        assert_eq!(size("32MiB"), Ok(Limit(Some(32 << 20))));
        assert_eq!(size("2GiB"), Ok(Limit(Some(2 << 30))));
        assert_eq!(size("off"), Ok(Limit(None)));
        for bad in ["", "5", "1MiB", "MiB", "2GB", "99999999999999999999GiB", "999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(delay("250ms"), Ok(Limit(Some(Duration::from_millis(250)))));
        assert!(delay("5ms").is_err() && delay("100").is_err());
    }
}
