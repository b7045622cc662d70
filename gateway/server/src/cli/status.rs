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
    out.push_str(&hardening(&status["hardening"]));
    let mut rows = vec![row(&["LISTENER", "ADDRESS", "STATE"])];
    for l in list(&status["listeners"]) {
        let state = [&l["error"], &l["tls_error"]].into_iter().find_map(Value::as_str).unwrap_or("listening");
        let names: Vec<_> = list(&l["listeners"]).filter_map(Value::as_str).collect();
        rows.push(row(&[&names.join(", "), string(&l["address"]), state]));
    }
    section(&mut out, rows);
    section(&mut out, certificate_rows(status));
    section(&mut out, split_rows(splits));
    section(&mut out, pool_rows(pools));
    out.push_str(&pool_notes(pools));
    out.push_str(&drained_and_away(status));
    for rejected in list(&status["rejected"]) {
        let field = |name: &str| string(&rejected[name]);
        out.push_str(&format!("\nrefused: {}: {}: {}\n", field("object"), field("field"), field("message")));
    }
    for d in list(&status["diagnostics"]) {
        out.push_str(&diagnostic(d));
    }
    out
}

/// What expires, the first to do so first.
fn certificate_rows(status: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![row(&["CERTIFICATE", "KIND", "SUBJECT", "EXPIRES"])];
    for c in list(&status["certificates"]) {
        let expires = match c["days"].as_i64().unwrap_or(0) {
            days @ ..0 => format!("{} days ago", -days),
            days => format!("in {days} days"),
        };
        let kind = string(&c["kind"]).replace('_', " ");
        rows.push(row(&[string(&c["origin"]), &kind, string(&c["subject"]), &expires]));
    }
    rows
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
        (false, false) if status["failing"] == true => "not ready by /healthcheck/fail",
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

/// Which controls the process has put on itself, and why others are missing.
fn hardening(of: &Value) -> String {
    let names = |active| {
        let of = list(&of["controls"]).filter(|control| control["active"] == active);
        of.map(|control| string(&control["name"])).collect::<Vec<_>>().join(", ")
    };
    let mut out = match of["mode"].as_str() {
        None => return String::new(),
        Some("off") => return "hardening off\n".to_owned(),
        Some(mode) => format!("hardening {mode}: {}\n", names(true)),
    };
    for missing in list(&of["controls"]).filter(|control| control["active"] == false) {
        out.push_str(&format!("  without {}: {}\n", string(&missing["name"]), string(&missing["detail"])));
    }
    out
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

/// Endpoints with their state. Columns that say nothing of any of them are left out.
pub(super) fn pool_rows(pools: &Value) -> Vec<Vec<String>> {
    let all: Vec<_> = list(pools).flat_map(|pool| list(&pool["endpoints"])).collect();
    let several = all.iter().any(|e| e["priority"].as_u64().unwrap_or(0) > 0);
    let placed = all.iter().any(|e| !string(&e["locality"]).is_empty());
    let secured = list(pools).any(|pool| tls(pool, &Value::Null) != "plain")
        || list(pools).any(|pool| list(&pool["endpoints"]).any(|e| tls(pool, e) != "plain"));
    let mut rows = Vec::new();
    let mut push = |cells: [&str; 8]| {
        let shown = [true, true, true, secured, several, placed, true, true];
        rows.push(
            cells.iter().zip(shown).filter(|(_, is)| *is).map(|(cell, _)| (*cell).to_owned()).collect(),
        );
    };
    push(["POOL", "ENDPOINT", "STATE", "TLS", "PRIORITY", "LOCALITY", "IN FLIGHT", "IDLE"]);
    for pool in list(pools) {
        if list(&pool["endpoints"]).next().is_none() {
            push([string(&pool["pool"]), "(none)", "", "", "", "", "", ""]);
        }
        for (index, e) in list(&pool["endpoints"]).enumerate() {
            let name = if index == 0 { string(&pool["pool"]) } else { "" };
            let number = |key: &str| e[key].as_u64().unwrap_or(0).to_string();
            push([
                name,
                string(&e["address"]),
                &state(e),
                tls(pool, e),
                &number("priority"),
                // Often only the zone is known.
                string(&e["locality"]).trim_start_matches('/'),
                &number("in_flight"),
                &number("idle_connections"),
            ]);
        }
    }
    rows
}

/// How an endpoint is connected to.
fn tls(pool: &Value, endpoint: &Value) -> &'static str {
    let said = if endpoint["tls"].is_null() { &pool["tls"] } else { &endpoint["tls"] };
    match string(said) {
        "" | "plain" => "plain",
        said if said.contains("closed: nobody is believed") => "closed",
        said if said.contains(", any certificate") => "TLS, unverified",
        _ => "TLS",
    }
}

/// `ejected for 12 s`, `draining, safe to remove`.
fn state(endpoint: &Value) -> String {
    let mut out = string(&endpoint["state"]).to_owned();
    match &*out {
        "ejected" => {
            let ms = endpoint["ejected_for_ms"].as_u64().unwrap_or(0);
            out.push_str(&format!(" for {} s", ms.div_ceil(1000)));
        }
        "draining" | "drained" if endpoint["safe_to_remove"] == true => out.push_str(", safe to remove"),
        "healthy" if endpoint["check_pending"] == true => out.push_str(", not checked yet"),
        _ => {}
    }
    out
}

/// Why active checks fail, and limits that are met: what nobody sees in a table.
pub(super) fn pool_notes(pools: &Value) -> String {
    let mut out = String::new();
    for pool in list(pools) {
        let name = string(&pool["pool"]);
        for e in list(&pool["endpoints"]) {
            if let Some(why) = e["check_failure"].as_str() {
                out.push_str(&format!("{name} {}: check failed: {why}\n", string(&e["address"])));
            }
        }
        for (what, of) in pool["limits"].as_object().into_iter().flatten() {
            let number = |key: &str| of[key].as_u64().unwrap_or(0);
            if number("refused") > 0 {
                let now = match of["limit"].as_u64() {
                    Some(limit) => format!("now {} of {limit}", number("now")),
                    None => "now without a limit".to_owned(),
                };
                out.push_str(&format!("{name}: {what} refused {} times, {now}\n", number("refused")));
            }
        }
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

/// Those in a pool are in its table.
fn drained_and_away(status: &Value) -> String {
    let mut out = String::new();
    for d in list(&status["drained"]).filter(|d| d["in_pool"] == false) {
        let (pool, address) = (string(&d["pool"]), string(&d["address"]));
        out.push_str(&format!("\ndrained, and not in its pool: {pool} {address}\n"));
    }
    out
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
            "certificates": [
                {"origin": "Secret a/tls", "kind": "certificate", "subject": "CN=a", "expires": 1, "days": -3},
                {"origin": "ConfigMap a/ca", "kind": "revocation_list", "subject": "CN=ca", "expires": 2, "days": 12}],
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

CERTIFICATE     KIND             SUBJECT  EXPIRES
Secret a/tls    certificate      CN=a     3 days ago
ConfigMap a/ca  revocation list  CN=ca    in 12 days

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

    #[test]
    fn states_of_endpoints_are_told_in_words() {
        let pools = json!([{"pool": "Pool a/vms", "limits": {"pending": {"now": 3, "limit": 4, "refused": 5}},
            "endpoints": [
            {"address": "10.0.0.1:80", "state": "ejected", "ejected_for_ms": 2100, "priority": 0, "locality": "eu/eu-1a",
                "in_flight": 1, "idle_connections": 2},
            {"address": "10.0.0.2:80", "state": "drained", "safe_to_remove": true, "priority": 1, "locality": null,
                "in_flight": 0, "idle_connections": 0},
            {"address": "10.0.0.3:80", "state": "unhealthy", "check_failure": "status 500, expected 200-299",
                "priority": 1, "in_flight": 0, "idle_connections": 0}]}]);
        let expected = "\
POOL        ENDPOINT     STATE                    PRIORITY  LOCALITY  IN FLIGHT  IDLE
Pool a/vms  10.0.0.1:80  ejected for 3 s          0         eu/eu-1a  1          2
            10.0.0.2:80  drained, safe to remove  1                   0          0
            10.0.0.3:80  unhealthy                1                   0          0
";
        assert_eq!(table(&pool_rows(&pools)), expected);
        let notes = "
Pool a/vms 10.0.0.3:80: check failed: status 500, expected 200-299
Pool a/vms: pending refused 5 times, now 3 of 4
";
        assert_eq!(pool_notes(&pools), notes);
        let status = json!({"drained": [
            {"pool": "Pool a/vms", "address": "10.0.0.2:80", "in_pool": true},
            {"pool": "Pool a/vms", "address": "10.0.0.9:80", "in_pool": false}]});
        assert_eq!(drained_and_away(&status), "\ndrained, and not in its pool: Pool a/vms 10.0.0.9:80\n");
    }
}
