//! What no request may be, and who may come: EdgePolicies, API keys and passwords, asked for by curl over every protocol.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fieldgate_loadtests::rig::{Scripted, config, wait};

use crate::context::{Context, Figures, Outcome, ensure};
use crate::edge::{Edge, Way};

/// bcrypt and SHA-1 of "s3cret".
const USERS: &str = "alice:$2b$10$DSNpxHb5QEMuScgWqY04ne6Sj7kl1G1SApebJkBPKK3PA3mJQvvpO\nbob:{SHA}/vNB+F2HQ559kaLUZbmHHvZrXpg=";
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let shop = Scripted::good("shop")?;
    stage.config.write("pool", &config::pool("shop", &[shop.address], "http1"))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    // It reads what it is sent, where the other answers at once.
    let _pools = stage.pools(&["sink"])?;
    let upload =
        config::route_with_rule("upload", &[("sink", 1)], "    matches: [{path: {value: /upload}}]\n");
    stage.config.write("upload", &upload)?;
    stage.config.write("edge", &edge_policy(""))?;
    let _gateway = stage.gateway(&context.options())?;
    let ways = edge.ways();
    let mut figures = Figures::default();
    let long = "x".repeat(200);
    let body = stage.path().join("body");
    std::fs::write(&body, vec![b'.'; 5000]).map_err(|error| error.to_string())?;
    let file = format!("@{}", body.display());
    for way in &ways {
        let ask = |more: &[&str], target: &str| curl(way, more, target, stage.path());
        for (more, target, status) in [
            (&[][..], "/a", 200),
            (&["-X", "DELETE"], "/a", 405),
            (&[], &*format!("/{long}"), 414),
            (&["--data-binary", &file], "/", 413),
            // Its length is not announced: it is cut while it streams.
            (&["-H", "transfer-encoding: chunked", "-H", "expect:", "--data-binary", &file], "/upload", 413),
            (&["--data-binary", "small"], "/", 200),
            (&["--path-as-is"], "/a%2f../b", 307),
        ] {
            let answer = ask(more, target)?;
            ensure(answer.status == status, || format!("{} {more:?}: {answer:?}, not {status}", way.name))?;
            let secured = answer.head.to_ascii_lowercase().contains("x-content-type-options: nosniff");
            ensure(secured, || format!("{} {more:?}: without security headers: {answer:?}", way.name))?;
            let hsts = answer.head.to_ascii_lowercase().contains("strict-transport-security");
            ensure(hsts == way.base.starts_with("https"), || format!("{}: HSTS: {answer:?}", way.name))?;
        }
        let before = shop.received().len();
        ask(&["-H", "x-secret: 1", "-H", "x-app-a: 1", "-H", "accept: a/b"], "/seen")?;
        let seen = &shop.received()[before];
        let has = |name: &str| seen.head.to_ascii_lowercase().contains(&format!("\n{name}:"));
        ensure(!has("x-secret") && has("x-app-a") && has("accept") && has("x-request-id"), || {
            format!("{}: what went upstream: {}", way.name, seen.head)
        })?;
    }
    let short = shop.received().iter().all(|request| request.body.len() < 1000);
    ensure(short, || "an upstream saw a body that was too long to its end".to_owned())?;
    figures.add(
        "405, 413 with and without a length, 414, paths, header fields in both directions: by all protocols",
    );

    figures.add(lists(&stage.config, &ways[0], stage.path())?);
    figures.add(credentials(&stage.config, &ways[2], stage.path())?);
    Ok(figures)
}

/// A list of many prefixes comes into force, and goes, without a restart.
fn lists(config: &config::ConfigDir, way: &Way, directory: &Path) -> Result<String, String> {
    let mut list = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\ndata:\n  list: |\n".to_owned();
    for n in 0..100_000_u32 {
        let _ = writeln!(list, "    10.{}.{}.{}  # one of many", n >> 15, (n >> 7) & 255, (n << 1) & 255);
    }
    config.write("list", &list)?;
    config.write("edge", &edge_policy("  addresses: {denyFrom: [{configMap: bad, key: list}]}\n"))?;
    let status = || curl(way, &[], "/", directory).map(|answer| answer.status).unwrap_or_default();
    let becomes =
        |wanted: u16, what: &str| wait::until(PATIENCE, what, || (status() == wanted).then_some(()));
    ensure(status() == 200, || "a list of others keeps us out".to_owned())?;
    config.write("list", &(list.clone() + "    127.0.0.0/8\n"))?;
    becomes(403, "the list to keep us out")?;
    config.write("list", &(list.clone() + "    127.0.0.300\n"))?;
    config.write("edge", &edge_policy("  addresses: {denyFrom: [{configMap: gone, key: list}]}\n"))?;
    becomes(500, "a list that is not there to close the gateway")?;
    config.write("list", &list)?;
    config.write("edge", &edge_policy("  addresses: {denyFrom: [{configMap: bad, key: list}]}\n"))?;
    becomes(200, "the list to let us in")?;
    Ok("a list of 100,000 prefixes was changed and obeyed; one that is not there lets nobody in".into())
}

fn credentials(config: &config::ConfigDir, way: &Way, directory: &Path) -> Result<String, String> {
    let users = USERS.lines().fold(String::new(), |text, line| text + "    " + line + "\n");
    config.write(
        "login",
        &format!(
            "apiVersion: v1
kind: Secret
metadata: {{name: users}}
stringData:
  .htpasswd: |
{users}---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
stringData: {{robot: a-key-of-a-robot}}
---
apiVersion: fieldgate.dev/v1alpha1
kind: LoginPolicy
metadata: {{name: login}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: shop}}]
  userHeader: x-app-user
  apiKeys: {{headers: [x-api-key], params: [key], secretRef: {{name: keys}}}}
  basic: {{realm: shop, secretRef: {{name: users}}}}
"
        ),
    )?;
    wait::until(PATIENCE, "the login to be asked for", || {
        curl(way, &[], "/", directory).ok().filter(|answer| answer.status == 401)
    })?;
    for (more, target, status) in [
        (&["-u", "alice:s3cret"][..], "/", 200),
        (&["-u", "alice:s3cret"], "/", 200),
        (&["-u", "bob:s3cret"], "/", 200),
        (&["-u", "alice:wrong"], "/", 401),
        (&["-u", "nobody:s3cret"], "/", 401),
        (&["-H", "x-api-key: a-key-of-a-robot"], "/", 200),
        (&[], "/?key=a-key-of-a-robot", 200),
        (&["-H", "x-api-key: another"], "/", 401),
    ] {
        let answer = curl(way, more, target, directory)?;
        ensure(answer.status == status, || format!("{more:?} {target}: {answer:?}, not {status}"))?;
    }
    Ok("passwords (bcrypt, SHA-1) and API keys let in who they should".into())
}

/// One for the Gateway, with more lines of its spec.
fn edge_policy(more: &str) -> String {
    format!(
        "apiVersion: fieldgate.dev/v1alpha1
kind: EdgePolicy
metadata: {{name: edge}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]
  limits: {{bodyBytes: 1000, targetBytes: 100}}
  methods: [GET, POST]
  requestHeaders: {{allow: [x-app-*]}}
  securityHeaders: {{}}
  paths: {{escapedSlashes: UnescapeAndRedirect, mergeSlashes: true}}
{more}"
    )
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
}

fn curl(way: &Way, more: &[&str], target: &str, directory: &Path) -> Result<Answer, String> {
    let head = directory.join("head");
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-D"])
        .arg(&head)
        .args(&way.curl)
        .args(more)
        .arg(format!("{}{target}", way.base))
        .output()
        .map_err(|error| format!("curl: {error}"))?;
    let status = String::from_utf8_lossy(&output.stdout).parse().unwrap_or_default();
    if status == 0 {
        return Err(format!("curl {target}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let head = std::fs::read_to_string(head).map_err(|error| error.to_string())?;
    Ok(Answer { status, head })
}
