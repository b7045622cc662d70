//! `fieldgate drain` and `fieldgate undrain`

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::status::{list, string};
use super::{DEFAULT_ADMIN, client, duration};

/// How often it is asked what is left.
const EVERY: Duration = Duration::from_millis(500);

/// Take an endpoint out of service: no new requests, those in flight finish.
#[derive(Args)]
#[command(
    after_help = "The gateway must run with --api-write. Exits with 1 if there is no such endpoint, or if requests are
left when the time of --wait is over. A drain outlasts reloads and upgrades but not a restart: `drain: true` in the Pool does.

Examples:
  fieldgate drain shop-vms 10.0.1.11:8080
  fieldgate drain shop-vms 10.0.1.11:8080 --wait 5m && ssh 10.0.1.11 sudo reboot
  fieldgate drain service/shop:8080 10.1.2.3:8080 -n prod
  fieldgate drain hostname/shop.legacy:443 10.0.1.11:443"
)]
pub(super) struct Drain {
    #[command(flatten)]
    of: Of,
    /// Wait until it can be removed, at most so long.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    wait: Option<Duration>,
}

/// Put an endpoint back into service.
#[derive(Args)]
#[command(after_help = "The gateway must run with --api-write. Exits with 1 if there is no such endpoint.

Examples:
  fieldgate undrain shop-vms 10.0.1.11:8080")]
pub(super) struct Undrain {
    #[command(flatten)]
    of: Of,
}

/// Which endpoint.
#[derive(Args)]
struct Of {
    /// Its pool: NAME of a Pool, service/NAME:PORT or hostname/NAME:PORT.
    pool: String,
    /// Its address and port.
    #[arg(value_parser = address)]
    address: SocketAddr,
    /// The pool's namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// The gateway's admin address.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write address and port: 10.0.1.11:8080 or [fd00::1]:8080".to_owned())
}

impl Drain {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let Some(answer) = self.of.order("drain")? else { return Ok(ExitCode::FAILURE) };
        let already = if answer["changed"] == true { "" } else { " already" };
        let Of { pool, address, .. } = &self.of;
        println!("{pool} {address} gets no new requests{already}; {}", left(&answer));
        match self.wait {
            None => Ok(ExitCode::SUCCESS),
            Some(wait) => self.of.wait(Instant::now() + wait, &answer),
        }
    }
}

impl Undrain {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let Some(answer) = self.of.order("undrain")? else { return Ok(ExitCode::FAILURE) };
        let Of { pool, address, .. } = &self.of;
        let before = if answer["changed"] == true { "" } else { ", as before" };
        println!("{pool} {address} is in service{before}, as far as its configuration and its checks let it");
        Ok(ExitCode::SUCCESS)
    }
}

impl Of {
    fn pool_path(&self) -> String {
        let [namespace, pool] = [&self.namespace, &self.pool].map(|part| client::encode(part));
        format!("/api/v1/pools/{namespace}/{pool}")
    }

    /// `None` if it is refused, which has been said.
    fn order(&self, what: &str) -> Result<Option<Value>, String> {
        let address = client::encode(&self.address.to_string());
        let path = format!("{}/endpoints/{address}/{what}", self.pool_path());
        let (status, answer) = client::change(self.admin, "POST", &path, "", None)?;
        if status == 200 {
            return Ok(Some(answer));
        }
        eprintln!("fieldgate: {}", string(&answer["error"]));
        Ok(None)
    }

    /// Tells what is left whenever that changes.
    fn wait(&self, deadline: Instant, first: &Value) -> Result<ExitCode, String> {
        let mut told = left(first);
        let mut now = Left::of(first);
        loop {
            if now.safe {
                println!("safe to remove");
                return Ok(ExitCode::SUCCESS);
            }
            let pause = deadline.saturating_duration_since(Instant::now()).min(EVERY);
            if pause.is_zero() {
                eprintln!("fieldgate: {} {} is not safe to remove: {told}", self.pool, self.address);
                return Ok(ExitCode::FAILURE);
            }
            std::thread::sleep(pause);
            let pools = client::get_json(self.admin, &self.pool_path())?;
            let Some(seen) = Left::in_pools(&pools, self.address) else {
                eprintln!(
                    "fieldgate: {} has left {}: what is in flight there is counted no more",
                    self.address, self.pool
                );
                return Ok(ExitCode::FAILURE);
            };
            now = seen;
            let text = now.to_string();
            if text != told && !now.safe {
                println!("{text}");
            }
            told = text;
        }
    }
}

/// What an endpoint still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    in_flight: u64,
    safe: bool,
}

impl Left {
    fn of(value: &Value) -> Self {
        Self { in_flight: value["in_flight"].as_u64().unwrap_or(0), safe: value["safe_to_remove"] == true }
    }

    /// Over all pools of a name; `None` if none has the address.
    fn in_pools(pools: &Value, address: SocketAddr) -> Option<Self> {
        let address = address.to_string();
        let endpoints = list(pools).flat_map(|pool| list(&pool["endpoints"]));
        endpoints
            .filter(|e| string(&e["address"]) == address)
            .map(Self::of)
            .reduce(|a, b| Self { in_flight: a.in_flight + b.in_flight, safe: a.safe && b.safe })
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.in_flight {
            1 => write!(f, "1 request in flight"),
            n => write!(f, "{n} requests in flight"),
        }
    }
}

fn left(answer: &Value) -> String {
    Left::of(answer).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_left_is_summed_up_over_pools_of_a_name() {
        let endpoint = |address: &str, in_flight: u64, safe: bool| json!({"address": address, "in_flight": in_flight, "safe_to_remove": safe});
        let pools = json!([
            {"endpoints": [endpoint("10.0.0.1:80", 0, true), endpoint("10.0.0.2:80", 5, false)]},
            {"endpoints": [endpoint("10.0.0.1:80", 1, false)]},
        ]);
        let left = Left::in_pools(&pools, ([10, 0, 0, 1], 80).into()).unwrap();
        assert_eq!(left, Left { in_flight: 1, safe: false });
        assert_eq!(left.to_string(), "1 request in flight");
        assert_eq!(Left::in_pools(&pools, ([10, 0, 0, 3], 80).into()), None);
    }
}
