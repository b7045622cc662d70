//! An AuthorizationPolicy decides as Istio's reference says, from the written document to the decision; one that cannot
//! be evaluated refuses everything, and never lets anything pass.

#![no_main]

use std::net::IpAddr;

use fieldgate_config::{Configuration, FileChange};
use fieldgate_core::ir::{Config, ConnectionFacts};
use fieldgate_core::{Method, RequestHead, Version};
use fieldgate_fuzz::input::Input;
use fieldgate_plugins::authz::Authorizer;
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const GATEWAY: &str = r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"edge"},
"spec":{"gatewayClassName":"fieldgate","listeners":[{"name":"web","protocol":"HTTP","port":8080}]}}"#;

const HOSTS: [&str; 6] = ["shop.example", "Shop.Example", "*.example", "shop*", "*", "shop.example:8080"];
const PATHS: [&str; 12] = [
    "/a",
    "/a/*",
    "*/b",
    "*",
    "/a/{*}",
    "/{**}",
    "/{*}/b",
    "/a/{**}/c",
    "/{*}/{**}",
    "/a*",
    "/a/{*}/",
    "/a/b*c",
];
const ASKED: [&str; 10] =
    ["/a", "/a/b", "/a/b/c", "/a//c", "/", "/a/", "/b?x=/a", "/a/%2F", "/a/b%2Fc/", "/a/x\"/c"];
const BLOCKS: [&str; 8] =
    ["10.0.0.0/8", "10.1.2.3", "10.1.2.3/24", "::/0", "0.0.0.0/0", "::1", "::ffff:10.1.2.3", "fe80::/10"];
const CLIENTS: [&str; 5] = ["10.1.2.3", "192.0.2.1", "::1", "::ffff:10.1.2.3", "fe80::1"];
const KEYS: [&str; 8] = [
    "request.headers[x-a]",
    "request.headers[X-A]",
    "source.ip",
    "remote.ip",
    "destination.port",
    "connection.sni",
    "destination.ip",
    "request.headers[:method]",
];
const VALUES: [&str; 6] = ["1", "1*", "*2", "*", "", "abc"];

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let action = input.one_of(&["ALLOW", "DENY"]);
    let rules: Vec<Value> = (0..=input.below(2)).map(|_| rule(&mut input)).collect();
    let spec = json!({"action": action, "rules": rules});
    let request = Request::new(&mut input);
    let outcome = outcome(&spec);
    let allowed = decide(&outcome.0, &request);
    if outcome.1 {
        assert!(!allowed, "refused, and does not close: {spec}");
        return;
    }
    let matched = rules.iter().any(|r| request.fits(r));
    assert_eq!(allowed, matched == (*action == *"ALLOW"), "{spec}\n{request:?}");
});

/// The configuration, and whether something is wrong with it.
fn outcome(spec: &Value) -> (Config, bool) {
    let object = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"}, "spec": spec});
    let file = |name: &str, text: String| FileChange { name: name.into(), text: Some(text) };
    let files = vec![file("g.json", GATEWAY.to_owned()), file("p.json", object.to_string())];
    let outcome = Configuration::default().apply(files);
    (outcome.config, !outcome.diagnostics.is_empty())
}

fn decide(config: &Config, request: &Request) -> bool {
    let policies: Vec<_> = config.policies.values().cloned().collect();
    assert!(!policies.is_empty() && policies.iter().all(|p| p.listeners.len() == 1));
    let facts = ConnectionFacts {
        peer: request.peer,
        client: request.client,
        local: (request.local, 8080).into(),
        sni: request.sni.as_deref(),
    };
    Authorizer::compile(&policies).decide(&request.head, &facts).allowed
}

fn rule(input: &mut Input<'_>) -> Value {
    let mut rule = json!({});
    if input.rarely(2) {
        let fields = ["ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"];
        rule["from"] =
            (0..=input.below(2)).map(|_| json!({"source": part(input, &fields, |_| &BLOCKS)})).collect();
    }
    if input.rarely(2) {
        let fields = ["paths", "notPaths", "hosts", "notHosts", "methods", "notMethods", "ports", "notPorts"];
        let known = |field: &str| -> &[&str] {
            match field.trim_start_matches("not").to_ascii_lowercase().as_str() {
                "paths" => &PATHS,
                "hosts" => &HOSTS,
                "methods" => &["GET", "POST", "G*", "*", "get"],
                _ => &["8080", "80", "08080"],
            }
        };
        rule["to"] =
            (0..=input.below(2)).map(|_| json!({"operation": part(input, &fields, known)})).collect();
    }
    if input.rarely(2) {
        rule["when"] = (0..=input.below(2))
            .map(|_| {
                let key = input.one_of(&KEYS);
                let known = |_: &str| -> &[&str] {
                    match key {
                        "destination.port" => &["8080", "80", "x"],
                        k if k.ends_with(".ip") => &BLOCKS,
                        _ => &VALUES,
                    }
                };
                let mut condition = part(input, &["values", "notValues"], known);
                condition["key"] = json!(key);
                condition
            })
            .collect();
    }
    rule
}

/// An object with one or two of the fields, each a list of one or two known values or of anything.
fn part<'k>(input: &mut Input<'_>, fields: &[&str], known: impl Fn(&str) -> &'k [&'k str]) -> Value {
    let mut part = json!({});
    for _ in 0..=input.below(2) {
        let field = input.one_of(fields);
        let list: Vec<String> = (0..=input.below(2))
            .map(|_| if input.rarely(4) { input.text() } else { input.one_of(known(field)).to_owned() })
            .collect();
        part[field] = json!(list);
    }
    part
}

#[derive(Debug)]
struct Request {
    head: RequestHead,
    peer: IpAddr,
    client: IpAddr,
    local: IpAddr,
    sni: Option<String>,
}

impl Request {
    fn new(input: &mut Input<'_>) -> Self {
        let mut head = RequestHead { version: Version::Http11, ..RequestHead::default() };
        head.method = Method::from_bytes(input.one_of(&["GET", "POST", "get"]).as_bytes());
        head.authority =
            input.one_of(&["shop.example", "x.example", "shop.example:8080", "example"]).to_owned();
        head.set_target(input.one_of(&ASKED));
        for _ in 0..input.below(3) {
            let value = if input.rarely(4) { input.line() } else { input.one_of(&VALUES).as_bytes() };
            head.headers.push(b"x-a", value);
        }
        let mut address = || input.one_of(&CLIENTS).parse().expect("an address");
        let (peer, client, local) = (address(), address(), address());
        let sni = input.rarely(2).then(|| input.one_of(&["shop.example", "1", "abc"]).to_owned());
        Self { head, peer, client, local, sni }
    }

    /// Istio's reference, read aloud: <https://istio.io/latest/docs/reference/config/security/authorization-policy/>.
    fn fits(&self, rule: &Value) -> bool {
        let any = |part: &str, inner: &str, fits: &dyn Fn(&Value) -> bool| {
            rule[part].as_array().is_none_or(|all| all.iter().any(|one| fits(&one[inner])))
        };
        any("from", "source", &|s| {
            in_blocks(self.peer, s, "ipBlocks", "notIpBlocks")
                && in_blocks(self.client, s, "remoteIpBlocks", "notRemoteIpBlocks")
        }) && any("to", "operation", &|o| {
            let fits = |yes: &str, no: &str, test: &dyn Fn(&str) -> bool| both(o, yes, no, test);
            let authority = self.head.authority.as_str();
            fits("hosts", "notHosts", &|p| pattern(&p.to_ascii_lowercase(), authority.as_bytes(), true))
                && fits("methods", "notMethods", &|p| pattern(p, self.head.method.as_str().as_bytes(), true))
                && fits("paths", "notPaths", &|p| path(p, self.head.path()))
                && fits("ports", "notPorts", &|p| p.parse() == Ok(8080))
        }) && rule["when"].as_array().is_none_or(|all| all.iter().all(|c| self.holds(c)))
    }

    fn holds(&self, condition: &Value) -> bool {
        let (yes, no) = ("values", "notValues");
        match condition["key"].as_str().unwrap_or_default() {
            "source.ip" => in_blocks(self.peer, condition, yes, no),
            "remote.ip" => in_blocks(self.client, condition, yes, no),
            "destination.ip" => in_blocks(self.local, condition, yes, no),
            "destination.port" => both(condition, yes, no, &|p| p.parse() == Ok(8080)),
            "connection.sni" => {
                let name = self.sni.as_deref().unwrap_or_default();
                both(condition, yes, no, &|p| pattern(p, name.as_bytes(), false))
            }
            "request.headers[:method]" => {
                both(condition, yes, no, &|p| pattern(p, self.head.method.as_str().as_bytes(), true))
            }
            // Each field of the name by itself.
            _ => both(condition, yes, no, &|p| self.head.headers.get_all("x-a").any(|v| pattern(p, v, true))),
        }
    }
}

/// Some of the one list, if there is one, and none of the other.
fn both(object: &Value, yes: &str, no: &str, test: &dyn Fn(&str) -> bool) -> bool {
    let list = |field: &str| object[field].as_array().cloned().unwrap_or_default();
    let any = |field: &str| list(field).iter().any(|p| test(p.as_str().unwrap_or_default()));
    (list(yes).is_empty() || any(yes)) && !any(no)
}

fn in_blocks(address: IpAddr, object: &Value, yes: &str, no: &str) -> bool {
    // A mapped IPv4 address is the IPv4 address.
    let address = address.to_canonical();
    both(object, yes, no, &|block| match block.parse::<IpNet>() {
        Ok(net) => net.contains(&address),
        Err(_) => block.parse() == Ok(address),
    })
}

/// Exact, prefix, suffix or presence.
fn pattern(pattern: &str, value: &[u8], empty_is_there: bool) -> bool {
    match (pattern, pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        ("*", ..) => empty_is_there || !value.is_empty(),
        (_, Some(suffix), _) => value.ends_with(suffix.as_bytes()),
        (_, _, Some(prefix)) => value.starts_with(prefix.as_bytes()),
        _ => value == pattern.as_bytes(),
    }
}

/// A path with its templates as a regular expression: `{*}` is one segment, `{**}` any number of them.
fn path(text: &str, path: &str) -> bool {
    if !text.contains("{*}") && !text.contains("{**}") {
        return pattern(text, path.as_bytes(), false);
    }
    let segment = r"[A-Za-z0-9\-._~%!$&'()*+,;:@=]";
    let escaped = regex::escape(text);
    let one =
        escaped.replace(r"\{\*\*\}", &format!("(?:{segment}|/)*")).replace(r"\{\*\}", &format!("{segment}+"));
    regex::Regex::new(&format!("^(?:{one})$")).is_ok_and(|r| r.is_match(path))
}
