//! Clients that show who they are, by OpenSSL: who is let in, who is not and why, what backends are told, and what of it
//! outlives a change of authorities and certificates.

mod party;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_loadtests::rig::{Gateway, Scripted, config, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::Edge;
use party::{Met, Shown, Signer, Target, lives, uri};

/// Each with other demands.
const HOSTS: [&str; 6] =
    ["must.test", "named.test", "domain.test", "optional.test", "fallback.test", "broken.test"];
const SOON: Duration = Duration::from_secs(10);

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    for part in [who_is_let_in, frontend, resumption, forwarding, misdirected, rotation] {
        figures.add(part(context)?);
    }
    Ok(figures)
}

/// A gateway whose listeners have demands, and a backend that remembers what it is told.
struct Play {
    stage: Stage,
    edge: Edge,
    backend: Scripted,
    gateway: Gateway,
    ours: Signer,
    good: Shown,
}

impl Play {
    fn new(context: &Context, listeners: &str, more: &[(&str, String)]) -> Result<Self, String> {
        let stage = context.stage()?;
        let mut hosts = HOSTS.to_vec();
        hosts.extend(["open.test", "other.test"]);
        let edge = Edge::for_hosts(&stage, &hosts)?;
        let backend = Scripted::good("good")?;
        let ours = Signer::new("ours")?;
        let good = ours.issue(stage.path(), "web", |_| Ok(()))?;
        stage.config.write("gateway", &gateway(edge.tls, listeners))?;
        stage.config.write("pool", &config::pool("shop", &[backend.address], "http1"))?;
        stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
        stage.config.write("ours", &config_map("ours", "ca.crt", &ours.pem))?;
        stage.config.write("revoked", &config_map("revoked", "ca.crl", &ours.list(&[66])?))?;
        for (name, text) in more {
            stage.config.write(name, text)?;
        }
        let gateway = stage.gateway(&context.options())?;
        Ok(Self { stage, edge, backend, gateway, ours, good })
    }

    fn target(&self) -> Target<'_> {
        Target { address: self.edge.tls, ca: &self.edge.authority.file }
    }

    /// `x-forwarded-client-cert` as the backend saw it last, and in how many fields.
    fn told(&self) -> Result<(String, usize), String> {
        let received = self.backend.received();
        let head = &received.last().ok_or("the backend got nothing")?.head;
        let fields: Vec<_> = head
            .lines()
            .filter_map(|line| {
                line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case("x-forwarded-client-cert"))
            })
            .map(|(_, value)| value.trim().to_owned())
            .collect();
        Ok((fields.join("\n"), fields.len()))
    }

    /// Refusals with this reason so far.
    fn refused(&self, reason: &str) -> Result<f64, String> {
        self.gateway.metric("fieldgate_client_certificates_refused_total", &format!("reason=\"{reason}\""))
    }
}

fn gateway(address: SocketAddr, listeners: &str) -> String {
    let (ip, port) = (address.ip(), address.port());
    let head = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: fieldgate
  addresses: [{{type: IPAddress, value: {ip}}}]
  listeners:
"
    );
    head + &listeners.replace("PORT", &port.to_string())
}

/// A listener for one host name; `options` are lines of its own.
fn listener(host: &str, options: &[&str]) -> String {
    let name = host.split('.').next().unwrap_or(host);
    let mut text = format!(
        "  - name: {name}\n    hostname: {host}\n    port: PORT\n    protocol: HTTPS\n    tls:\n      \
         certificateRefs: [{{name: shop}}]\n"
    );
    if !options.is_empty() {
        text.push_str("      options:\n");
    }
    for option in options {
        let _ = writeln!(text, "        {option}");
    }
    text
}

const OURS: &str = "fieldgate.dev/client-ca: ConfigMap/ours";

fn config_map(name: &str, key: &str, value: &str) -> String {
    let indented: String = value.lines().fold(String::new(), |text, line| text + "    " + line + "\n");
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata:\n  {key}: |\n{indented}")
}

/// Every kind of certificate at every kind of listener, by TLS 1.2 and 1.3.
fn who_is_let_in(context: &Context) -> Result<String, String> {
    let listeners = [
        listener("must.test", &[OURS, "fieldgate.dev/client-crl: revoked"]),
        listener(
            "named.test",
            &[OURS, "fieldgate.dev/client-names: 'spiffe://td.test/ns/shop/*, *.shop.test'"],
        ),
        listener("domain.test", &[OURS, "fieldgate.dev/trust-domains: td.test"]),
        listener("optional.test", &[OURS, "fieldgate.dev/client-certificates: optional"]),
        listener("fallback.test", &[OURS, "fieldgate.dev/client-certificates: unverified"]),
        listener("broken.test", &["fieldgate.dev/client-ca: ConfigMap/nowhere"]),
        listener("open.test", &[]),
    ];
    let play = Play::new(context, &listeners.concat(), &[])?;
    let dir = play.stage.path();
    let issue = |name: &str, change: &dyn Fn(&mut rcgen::CertificateParams) -> Result<(), String>| {
        play.ours.issue(dir, name, change)
    };
    let expired = issue("expired", &|params| lives(params, -9, -1))?;
    let early = issue("early", &|params| lives(params, 1, 9))?;
    let revoked = issue("revoked", &|params| {
        params.serial_number = Some(66.into());
        Ok(())
    })?;
    let elsewhere = issue("elsewhere", &|params| {
        params.subject_alt_names.clear();
        uri(params, "spiffe://else.test/ns/other/sa/web")
    })?;
    let for_servers = issue("for-servers", &|params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        Ok(())
    })?;
    let stranger = Signer::new("stranger")?.issue(dir, "stranger", |_| Ok(()))?;
    let forged = Signer::new("ours")?.issue(dir, "forged", |_| Ok(()))?;
    let alone = Shown::alone(dir)?;
    let good = &play.good;
    // Host, what is shown, what comes of it: 200 with or without an identity, or a refusal.
    let cases: &[(&str, Option<&Shown>, &str)] = &[
        ("must.test", Some(good), "known"),
        ("must.test", None, "no_certificate"),
        ("must.test", Some(&expired), "expired"),
        ("must.test", Some(&early), "not_yet_valid"),
        ("must.test", Some(&revoked), "revoked"),
        ("must.test", Some(&stranger), "unknown_authority"),
        ("must.test", Some(&alone), "self_signed"),
        ("must.test", Some(&forged), "bad_signature"),
        ("must.test", Some(&for_servers), "wrong_key_usage"),
        ("named.test", Some(good), "known"),
        ("named.test", Some(&elsewhere), "wrong_name"),
        ("domain.test", Some(good), "known"),
        ("domain.test", Some(&elsewhere), "wrong_trust_domain"),
        ("optional.test", Some(good), "known"),
        ("optional.test", None, "unknown"),
        ("optional.test", Some(&expired), "expired"),
        ("fallback.test", Some(good), "known"),
        ("fallback.test", None, "unknown"),
        ("fallback.test", Some(&stranger), "unknown"),
        ("fallback.test", Some(&alone), "unknown"),
        ("broken.test", Some(good), "closed"),
        ("open.test", Some(good), "unknown"),
        ("open.test", None, "unknown"),
    ];
    let mut wrong = String::new();
    for (host, shown, expected) in cases {
        for flags in [&["--tls-max", "1.2"][..], &["--tlsv1.3"], &["--http1.1"]] {
            let before = play.refused(expected)?;
            let requests = play.backend.received().len();
            let met = play.target().get(host, *shown, flags)?;
            let arrived = play.backend.received().len() > requests;
            let seen = describe(&play, &met, arrived, expected, before)?;
            if seen != *expected {
                let what = shown.map_or("nothing".into(), |shown| shown.certificate.display().to_string());
                let _ = writeln!(
                    wrong,
                    "{host}, {flags:?}, {what}: wanted {expected}, saw {seen} ({})",
                    met.error
                );
            }
        }
    }
    ensure(wrong.is_empty(), || wrong)?;
    let log = play.gateway.process.log();
    for reason in cases.iter().map(|case| case.2).filter(|e| !matches!(*e, "known" | "unknown" | "closed")) {
        let line = format!("reason=\"{reason}\"");
        ensure(log.contains(&line), || format!("{line} is not in the log:\n{log}"))?;
    }
    ensure(log.contains("listener default/edge/broken: clients cannot be judged"), || log.clone())?;
    Ok(format!(
        "{} certificates at {} listeners, by TLS 1.2 and 1.3, as h1 and h2",
        cases.len(),
        HOSTS.len() + 1
    ))
}

/// `known`, `unknown`, `closed`, or the reason that was expected, if it was counted once more.
fn describe(play: &Play, met: &Met, arrived: bool, expected: &str, before: f64) -> Result<String, String> {
    if met.status == "200" {
        let known = play.told()?.0.contains("URI=spiffe://td.test/ns/shop/sa/web");
        return Ok(if known { "known" } else { "unknown" }.to_owned());
    }
    ensure(!arrived, || "a request of a client that was refused reached the backend".to_owned())?;
    if expected == "closed" {
        return Ok(if met.status == "000" { "closed".to_owned() } else { format!("status {}", met.status) });
    }
    let counted = wait::until_true(SOON, expected, || play.refused(expected).is_ok_and(|now| now > before));
    Ok(if counted.is_ok() { expected.to_owned() } else { format!("status {:?}", met.status) })
}

/// Gateway API's own way, by default and by port.
fn frontend(context: &Context) -> Result<String, String> {
    let play = Play::new(context, &listener("must.test", &[]), &[])?;
    let (second, third) = (ports::free(), ports::free());
    let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ours}]";
    let ports = format!(
        "  tls:\n    frontend:\n      default: {{validation: {{{refs}}}}}\n      perPort:\n      - port: {}\n        \
         tls: {{validation: {{{refs}, mode: AllowInsecureFallback}}}}\n      - {{port: {}, tls: {{}}}}\n  listeners:\n",
        second.port(),
        third.port()
    );
    let all = [listener("must.test", &[]), listener("fallback.test", &[]), listener("open.test", &[])];
    let mut text = String::new();
    for (listener, port) in all.iter().zip([play.edge.tls, second, third]) {
        text.push_str(&listener.replace("PORT", &port.port().to_string()));
    }
    let text = gateway(play.edge.tls, &text).replace("  listeners:\n", &ports);
    play.gateway.change(|| play.stage.config.write("gateway", &text))?;
    for (address, host, with, without) in [
        (play.edge.tls, "must.test", "200", "000"),
        (second, "fallback.test", "200", "200"),
        (third, "open.test", "200", "200"),
    ] {
        let target = Target { address, ca: &play.edge.authority.file };
        let asked = || target.get(host, None, &[]).is_ok_and(|met| met.status == without);
        wait::until_true(SOON, &format!("{host} to be served"), asked)?;
        let met = target.get(host, Some(&play.good), &[])?;
        ensure(met.status == with, || format!("{host}: {} {}", met.status, met.error))?;
    }
    Ok("spec.tls.frontend by default and by port".into())
}

/// A session that goes on has the identity of the one before.
fn resumption(context: &Context) -> Result<String, String> {
    let play = Play::new(context, &listener("must.test", &[OURS]), &[])?;
    let session = play.stage.path().join("session.pem").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut first =
            play.target().stay("must.test", Some(&play.good), &[version, "-sess_out", &session])?;
        ensure(first.get()? == 200, || "not let in".to_owned())?;
        let told = play.told()?;
        drop(first);
        // Only by the session: nothing is shown this time.
        let mut second = play.target().stay("must.test", None, &[version, "-sess_in", &session])?;
        let status = second.get().map_err(|error| format!("{version}: not resumed: {error}"))?;
        ensure(status == 200, || format!("{version}: {status}"))?;
        let again = play.told()?;
        ensure(again == told && told.0.contains("URI=spiffe://td.test/ns/shop/sa/web"), || {
            format!("{version}: {told:?}, then {again:?}")
        })?;
    }
    Ok("sessions of TLS 1.2 and 1.3 keep the identity".into())
}

/// `x-forwarded-client-cert` in all five ways.
fn forwarding(context: &Context) -> Result<String, String> {
    const SENT: &str = "By=spiffe://before;Hash=00;URI=spiffe://client";
    let details = "fieldgate.dev/forward-client-cert-details: 'subject, uri'";
    let ways = ["sanitize", "forward-only", "append-forward", "sanitize-set", "always-forward-only"];
    let mut seen = String::new();
    for way in ways {
        let option = format!("fieldgate.dev/forward-client-cert: {way}");
        let options = [OURS, details, "fieldgate.dev/client-certificates: optional", &option];
        let play = Play::new(context, &listener("optional.test", &options), &[])?;
        let field = format!("x-forwarded-client-cert: {SENT}");
        let hash = openssl_hash(&play.good)?;
        let own = format!("Hash={hash};Subject=\"CN=web,O=Shop\";URI=spiffe://td.test/ns/shop/sa/web");
        for (shown, expected) in [
            (None, if way == "always-forward-only" { SENT.to_owned() } else { String::new() }),
            (
                Some(&play.good),
                match way {
                    "sanitize" => String::new(),
                    "append-forward" => format!("{SENT},{own}"),
                    "sanitize-set" => own.clone(),
                    _ => SENT.to_owned(),
                },
            ),
        ] {
            for protocol in ["--http1.1", "--http2"] {
                let met = play.target().get("optional.test", shown, &[protocol, "-H", &field])?;
                ensure(met.status == "200", || format!("{way}: {} {}", met.status, met.error))?;
                let (told, fields) = play.told()?;
                ensure(told == expected && fields < 2, || {
                    format!("{way}, {protocol}: {told:?}, not {expected:?}")
                })?;
            }
        }
        let _ = write!(seen, "{}{way}", if seen.is_empty() { "" } else { ", " });
    }
    Ok(format!("x-forwarded-client-cert by {seen}"))
}

/// OpenSSL's opinion of a certificate's SHA-256.
fn openssl_hash(shown: &Shown) -> Result<String, String> {
    let mut command = std::process::Command::new("openssl");
    command.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(&shown.certificate);
    let output = command.output().map_err(|error| format!("openssl: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let hash = text.split('=').nth(1).ok_or_else(|| format!("no fingerprint in {text:?}"))?;
    Ok(hash.trim().replace(':', "").to_ascii_lowercase())
}

/// Who was let in by one listener does not get to another by the name in a request.
fn misdirected(context: &Context) -> Result<String, String> {
    let listeners = [
        listener("open.test", &[]),
        listener("must.test", &[OURS]),
        listener("other.test", &[OURS]),
        any_host(),
    ];
    let play = Play::new(context, &listeners.concat(), &[])?;
    for (asked, shown, wanted, expected) in [
        ("open.test", None, "open.test", 200),
        ("open.test", None, "must.test", 421),
        ("must.test", Some(&play.good), "must.test", 200),
        ("must.test", Some(&play.good), "open.test", 421),
        ("must.test", Some(&play.good), "other.test", 421),
        // No name in the handshake: it was for the listener of every host.
        ("", None, "somewhere.test", 200),
        ("", None, "must.test", 421),
    ] {
        let mut client = if asked.is_empty() {
            play.target().stay_unnamed()?
        } else {
            play.target().stay(asked, shown, &[])?
        };
        let status = client.get_from(wanted)?;
        ensure(status == expected, || format!("{asked:?} then {wanted}: {status}, not {expected}"))?;
        // Who is misdirected is sent away, and not kept where every answer would be the same.
        let goes_on = client.get_from(wanted).is_ok();
        ensure(goes_on == (status == 200), || format!("{asked:?} then {wanted}: goes on: {goes_on}"))?;
    }
    Ok("a request for another listener's host is misdirected, with a server name and without".into())
}

fn any_host() -> String {
    "  - name: any\n    port: PORT\n    protocol: HTTPS\n    tls: {certificateRefs: [{name: shop}]}\n"
        .to_owned()
}

/// Authorities and certificates change under open connections.
fn rotation(context: &Context) -> Result<String, String> {
    let play = Play::new(context, &listener("must.test", &[OURS, "fieldgate.dev/client-crl: revoked"]), &[])?;
    let mut old = play.target().stay("must.test", Some(&play.good), &[])?;
    ensure(old.get()? == 200, || "not let in".to_owned())?;

    let theirs = Signer::new("theirs")?;
    let other = theirs.issue(play.stage.path(), "other", |_| Ok(()))?;
    play.gateway.change(|| {
        play.stage.config.write("revoked", &config_map("revoked", "ca.crl", &theirs.list(&[])?))?;
        play.stage.config.write("ours", &config_map("ours", "ca.crt", &theirs.pem))
    })?;
    let believed = || play.target().get("must.test", Some(&other), &[]).is_ok_and(|met| met.status == "200");
    wait::until_true(SOON, "the new authority to be believed", believed)?;
    let met = play.target().get("must.test", Some(&play.good), &[])?;
    ensure(met.status == "000", || format!("the old authority is still believed: {}", met.status))?;
    ensure(old.get()? == 200, || "the connection of before was dropped".to_owned())?;

    let certificate = play.edge.authority.issue(&["must.test"])?;
    play.gateway.change(|| play.stage.config.write("secret", &config::secret("shop", &certificate)))?;
    let mut new = play.target().stay("must.test", Some(&other), &[])?;
    ensure(new.get()? == 200 && old.get()? == 200, || "a new certificate broke a connection".to_owned())?;

    // A revoked client keeps its connection, and gets no other.
    play.gateway.change(|| {
        let serial = serial_of(&other)?;
        play.stage.config.write("revoked", &config_map("revoked", "ca.crl", &theirs.list_bytes(&serial)?))
    })?;
    let before = play.refused("revoked")?;
    let met = play.target().get("must.test", Some(&other), &[])?;
    ensure(met.status == "000", || format!("a revoked client is let in: {}", met.status))?;
    wait::until_true(SOON, "the refusal to be counted", || {
        play.refused("revoked").is_ok_and(|n| n > before)
    })?;
    ensure(new.get()? == 200, || "the connection of before was dropped".to_owned())?;

    // Without an authority nobody is let in.
    play.gateway.change(|| play.stage.config.remove("ours"))?;
    let met = play.target().get("must.test", Some(&other), &[])?;
    ensure(met.status == "000", || format!("let in without an authority: {}", met.status))?;
    let expires =
        play.gateway.metric("fieldgate_certificate_expiry_timestamp_seconds", "kind=\"certificate\"")?;
    ensure(expires > 1e9, || format!("the certificate expires at {expires}"))?;
    Ok("authorities, certificates and revocation lists change, connections of before go on".into())
}

fn serial_of(shown: &Shown) -> Result<Vec<u8>, String> {
    let mut command = std::process::Command::new("openssl");
    let output = command.args(["x509", "-noout", "-serial", "-in"]).arg(&shown.certificate).output();
    let text = String::from_utf8_lossy(&output.map_err(|error| error.to_string())?.stdout).into_owned();
    let hex = text.trim().split('=').nth(1).ok_or_else(|| format!("no serial in {text:?}"))?.to_owned();
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).map_err(|error| error.to_string());
    (0..hex.len() / 2).map(|at| pair(at * 2)).collect()
}
