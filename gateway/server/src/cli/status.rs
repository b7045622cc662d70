//! `fieldgate status`

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::get_json;
use super::{DEFAULT_ADMIN, table};

/// Show what a running gateway does: configuration, listeners, splits, pools.
#[derive(Args)]
#[command(after_help = "Exits with 1 if the gateway is not ready or refuses an object.

Examples:
  fieldgate status
  fieldgate status --admin 10.0.0.5:15000 --json | jq .status.generation")]
pub(super) struct Status {
    /// The gateway's admin address.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// JSON for programs.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let get = |what: &str| get_json(self.admin, &format!("/api/v1/{what}"));
        let (status, splits, pools) = (get("status")?, get("splits")?, get("pools")?);
        if self.json {
            println!("{:#}", serde_json::json!({"status": status, "splits": splits, "pools": pools}));
        } else {
            print!("{}", text(&status, &splits, &pools));
        }
        let errors = list(&status["diagnostics"]).any(|d| d["severity"] == "error");
        let good = status["ready"] == true && !errors && list(&status["rejected"]).next().is_none();
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The page that is printed.
fn text(status: &Value, splits: &Value, pools: &Value) -> String {
    let mut out = summary(status);
    let mut rows = vec![row(&["LISTENER", "ADDRESS", "STATE"])];
    for l in list(&status["listeners"]) {
        let state = [&l["error"], &l["tls_error"]].into_iter().find_map(Value::as_str).unwrap_or("listening");
        let names: Vec<_> = list(&l["listeners"]).filter_map(Value::as_str).collect();
        rows.push(row(&[&names.join(", "), string(&l["address"]), state]));
    }
    section(&mut out, rows);
    section(&mut out, split_rows(splits));
    section(&mut out, pool_rows(pools));
    for rejected in list(&status["rejected"]) {
        let field = |name: &str| string(&rejected[name]);
        out.push_str(&format!("\nrefused: {}: {}: {}\n", field("object"), field("field"), field("message")));
    }
    for d in list(&status["diagnostics"]) {
        out.push_str(&diagnostic(d));
    }
    out
}

/// As the log has it, without the line of the file.
fn diagnostic(d: &Value) -> String {
    let at = &d["location"];
    let place = format!("{}:{}:{}", string(&at["file"]), at["line"], at["column"]);
    let mut out = format!("\n{}: {place}: ", string(&d["severity"]));
    let object = &d["object"];
    if object.is_object() {
        let part = |name: &str| string(&object[name]);
        out.push_str(&format!("{} {}/{}: ", part("kind"), part("namespace"), part("name")));
    }
    if let Some(field) = d["field"].as_str() {
        out.push_str(&format!("{field}: "));
    }
    out.push_str(&format!("{}\n", string(&d["message"])));
    if let Some(hint) = d["hint"].as_str() {
        out.push_str(&format!("  hint: {hint}\n"));
    }
    if d["last_good_in_use"] == true {
        out.push_str("  note: the last good version of this object is still in use\n");
    }
    out
}

/// Two lines at the top of `status` and `top`.
pub(super) fn summary(status: &Value) -> String {
    let state = match (status["draining"] == true, status["ready"] == true) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    format!(
        "fieldgate {}  {state}  up {} s  {} workers  generation {}\n\
         {} connections  {} requests in flight  {} routes  {} pools  {} policies\n",
        string(&status["version"]),
        status["uptime_seconds"],
        status["workers"],
        status["generation"],
        status["connections"],
        status["requests_in_flight"],
        status["routes"],
        status["pools"],
        status["policies"],
    )
}

/// Desired and achieved shares.
pub(super) fn split_rows(splits: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["SPLIT", "BACKEND", "WEIGHT", "DESIRED", "ACHIEVED", "REQUESTS"])];
    for rule in list(splits) {
        for (index, b) in list(&rule["backends"]).enumerate() {
            let name = if index == 0 { string(&rule["rule"]) } else { "" };
            rows.push(row(&[
                name,
                string(&b["backend"]),
                &b["weight"].to_string(),
                &percent(b["desired"].as_f64().unwrap_or(0.0)),
                &percent(b["achieved"].as_f64().unwrap_or(0.0)),
                &b["requests"].to_string(),
            ]));
        }
    }
    rows
}

/// Endpoints with their state.
pub(super) fn pool_rows(pools: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["POOL", "ENDPOINT", "STATE", "IN FLIGHT", "IDLE"])];
    for pool in list(pools) {
        if list(&pool["endpoints"]).next().is_none() {
            rows.push(row(&[string(&pool["pool"]), "(none)"]));
        }
        for (index, e) in list(&pool["endpoints"]).enumerate() {
            let name = if index == 0 { string(&pool["pool"]) } else { "" };
            let (in_flight, idle) = (e["in_flight"].to_string(), e["idle_connections"].to_string());
            rows.push(row(&[name, string(&e["address"]), string(&e["state"]), &in_flight, &idle]));
        }
    }
    rows
}

fn section(out: &mut String, rows: Vec<Vec<String>>) {
    if rows.len() > 1 {
        out.push('\n');
        out.push_str(&table(&rows));
    }
}

/// `12.50 %`
pub(super) fn percent(ratio: f64) -> String {
    format!("{:.2} %", ratio * 100.0)
}

/// The members of an array; none of anything else.
pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The text of a string; nothing of anything else.
pub(super) fn string(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_shows_what_matters() {
        let status = json!({
            "version": "1", "ready": true, "draining": false, "uptime_seconds": 5, "workers": 2, "generation": 3,
            "connections": 4, "requests_in_flight": 1, "routes": 1, "pools": 1, "policies": 0,
            "listeners": [{"address": "0.0.0.0:80", "listeners": ["a/b/c"], "error": null, "tls_error": "no certificate"}],
            "rejected": [{"object": "HTTPRoute a/b", "field": "rules[0]", "message": "bad"}],
            "diagnostics": [{"severity": "error", "message": "m", "hint": "h", "field": "spec.x", "last_good_in_use": true,
                "object": {"kind": "K", "namespace": "a", "name": "b"},
                "location": {"file": "f", "line": 1, "column": 2}}],
        });
        let splits = json!([{"rule": "a/shop#0", "backends": [
            {"backend": "Pool a/vms", "weight": 90, "desired": 0.9, "achieved": 0.8999, "requests": 900}]}]);
        let pools = json!([{"pool": "Pool a/vms", "endpoints": [
            {"address": "10.0.0.1:80", "state": "healthy", "in_flight": 1, "idle_connections": 2}]},
            {"pool": "Pool a/none", "endpoints": []}]);
        let expected = "\
fieldgate 1  ready  up 5 s  2 workers  generation 3
4 connections  1 requests in flight  1 routes  1 pools  0 policies

LISTENER  ADDRESS     STATE
a/b/c     0.0.0.0:80  no certificate

SPLIT     BACKEND     WEIGHT  DESIRED  ACHIEVED  REQUESTS
a/shop#0  Pool a/vms  90      90.00 %  89.99 %   900

POOL         ENDPOINT     STATE    IN FLIGHT  IDLE
Pool a/vms   10.0.0.1:80  healthy  1          2
Pool a/none  (none)

refused: HTTPRoute a/b: rules[0]: bad

error: f:1:2: K a/b: spec.x: m
  hint: h
  note: the last good version of this object is still in use
";
        assert_eq!(text(&status, &splits, &pools), expected);
    }
}
