//! Listeners: protocols, addresses, certificates, conflicts, who may attach.

use super::*;

fn listeners(texts: &[&str]) -> Vec<String> {
    let config = config(texts);
    config
        .listeners
        .values()
        .map(|l| {
            let addresses: Vec<String> = l.addresses.iter().map(ToString::to_string).collect();
            let host = l.hostname.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
            let tls =
                l.tls.as_ref().map_or(String::new(), |t| format!(" {} certificates", t.certificates.len()));
            format!("{}/{} {} {host}{tls}", l.key.gateway, l.key.name, addresses.join(","))
        })
        .collect()
}

fn secret(name: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\ntype: kubernetes.io/tls\nstringData: {{tls.crt: '-----BEGIN CERTIFICATE-----', tls.key: '-----BEGIN PRIVATE KEY-----'}}\n"
    )
}

const NO_LINES: &[&str] = &[];

#[test]
fn plain_listeners_bind_all_interfaces() {
    let text = gateway(
        "{name: web, protocol: HTTP, port: 80}, {name: shop, protocol: HTTP, port: 80, hostname: '*.Shop.example'}",
    );
    let text = text.replace("Shop", "shop");
    assert_eq!(listeners(&[&text]), ["edge/shop [::]:80 *.shop.example", "edge/web [::]:80 any"]);
}

#[test]
fn addresses_are_those_to_bind() {
    let text = gateway(WEB).replace(
        "listeners:",
        "addresses: [{value: 127.0.0.1}, {type: IPAddress, value: '::1'}], listeners:",
    );
    assert_eq!(listeners(&[&text]), ["edge/web 127.0.0.1:80,[::1]:80 any"]);
    let named = text.replace("{value: 127.0.0.1}", "{type: Hostname, value: a.example}");
    assert_eq!(listeners(&[&named]), ["edge/web [::1]:80 any"]);
    assert_eq!(problems(&[&named]), ["UnsupportedAddress spec.addresses[0].type"]);
    let nothing =
        gateway(WEB).replace("listeners:", "addresses: [{type: Hostname, value: a.example}], listeners:");
    assert_eq!(listeners(&[&nothing]), NO_LINES, "never all interfaces in place of an address that is none");
    assert_eq!(
        conditions(&[&nothing], "Gateway", "edge"),
        ["/Accepted=false UnsupportedAddress", "/Programmed=false Invalid"]
    );
}

#[test]
fn certificates_spoil_their_own_listener_only() {
    let tls = |reference: &str| {
        gateway(&format!(
            "{WEB}, {{name: tls, protocol: HTTPS, port: 443, tls: {{certificateRefs: [{{{reference}}}]}}}}"
        ))
    };
    let table: &[(&str, &[&str], &str)] = &[
        ("name: ok", &["edge/tls [::]:443 any 1 certificates", "edge/web [::]:80 any"], ""),
        ("name: gone", &["edge/web [::]:80 any"], "tls/ResolvedRefs=false InvalidCertificateRef"),
        ("name: far, namespace: vault", &["edge/web [::]:80 any"], "tls/ResolvedRefs=false RefNotPermitted"),
        (
            "name: ok, kind: ConfigMap",
            &["edge/web [::]:80 any"],
            "tls/ResolvedRefs=false InvalidCertificateRef",
        ),
    ];
    for (reference, expected, condition) in table {
        let texts = [tls(reference), secret("ok"), secret("vault/far")];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(listeners(&texts), *expected, "{reference}");
        let found = conditions(&texts, "Gateway", "edge");
        assert!(condition.is_empty() || found.iter().any(|c| c == condition), "{reference}: {found:?}");
    }
    let texts = [
        tls("name: far, namespace: vault"),
        secret("vault/far"),
        grant("vault", "Gateway", "default", "{group: '', kind: Secret, name: far}"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(listeners(&texts).len(), 2, "granted");
    let broken = secret("ok").replace("-----BEGIN CERTIFICATE-----", "oops");
    assert_eq!(listeners(&[&tls("name: ok"), &broken]).len(), 1, "no PEM");
}

#[test]
fn conflicts_are_the_newcomers() {
    let table: &[(&str, &str, &str)] = &[
        ("protocol: HTTP, port: 80", "protocol: HTTP, port: 80", "HostnameConflict"),
        (
            "protocol: HTTP, port: 80, hostname: a.example",
            "protocol: HTTP, port: 80, hostname: a.example",
            "HostnameConflict",
        ),
        (
            "protocol: HTTP, port: 80, hostname: a.example",
            "protocol: HTTP, port: 80, hostname: '*.example'",
            "",
        ),
        ("protocol: HTTP, port: 80", "protocol: HTTP, port: 81", ""),
        (
            "protocol: HTTP, port: 80",
            "protocol: HTTPS, port: 80, tls: {certificateRefs: [{name: ok}]}",
            "ProtocolConflict",
        ),
    ];
    for (a, b, conflict) in table {
        let later = gateway(&format!("{{name: b, {b}}}")).replace("name: edge", "name: later");
        let texts = [gateway(&format!("{{name: a, {a}}}")), later, secret("ok")];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut found = conditions(&texts, "Gateway", "edge");
        found.extend(conditions(&texts, "Gateway", "later"));
        assert!(found.contains(&"a/Conflicted=false NoConflicts".to_owned()), "{a} {b}: {found:?}");
        let expected = if conflict.is_empty() {
            "b/Conflicted=false NoConflicts".to_owned()
        } else {
            format!("b/Conflicted=true {conflict}")
        };
        assert!(found.contains(&expected), "{a} {b}: {found:?}");
    }
}

#[test]
fn what_is_not_served_is_refused() {
    for (listener, reason) in [
        ("protocol: TCP, port: 80", "a/Accepted=false UnsupportedProtocol"),
        ("protocol: TLS, port: 443, tls: {mode: Passthrough}", "a/Accepted=false UnsupportedProtocol"),
        (
            "protocol: HTTP, port: 80, allowedRoutes: {kinds: [{kind: TCPRoute}]}",
            "a/ResolvedRefs=false InvalidRouteKinds",
        ),
    ] {
        let text = gateway(&format!("{{name: a, {listener}}}"));
        let found = conditions(&[&text], "Gateway", "edge");
        assert!(found.contains(&reason.to_owned()), "{listener}: {found:?}");
    }
}

#[test]
fn a_listener_that_should_ask_for_certificates_is_not_opened_without() {
    let frontend = "tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]}}}}, listeners:";
    let text = gateway("{name: tls, protocol: HTTPS, port: 443, tls: {certificateRefs: [{name: ok}]}}");
    let asking = text.replace("listeners:", frontend);
    assert_eq!(listeners(&[&text, &secret("ok")]).len(), 1);
    // It keeps its names, for another listener that takes them may ask for less; but it has no authority to believe.
    assert_eq!(listeners(&[&asking, &secret("ok")]).len(), 1);
    let place = "spec.tls.frontend.default.validation.caCertificateRefs[0]";
    assert_eq!(problems(&[&asking, &secret("ok")]), [format!("InvalidCACertificateRef {place}")]);
    let found = conditions(&[&asking, &secret("ok")], "Gateway", "edge");
    for condition in [
        "tls/Accepted=false NoValidCACertificate",
        "tls/ResolvedRefs=false InvalidCACertificateRef",
        "tls/Programmed=false Invalid",
    ] {
        assert!(found.contains(&condition.to_owned()), "{condition}: {found:?}");
    }
}

#[test]
fn other_classes_are_left_alone() {
    let text = gateway(WEB).replace("fieldgate", "istio");
    assert_eq!(listeners(&[&text]), NO_LINES);
    assert_eq!(
        problems(&[&text, &route("rules: []").replace("rules: []", "hostnames: [a.example]")]),
        ["OtherGatewayClass spec.gatewayClassName"]
    );
}

#[test]
fn trust_and_labels_come_from_the_gateway() {
    let text = gateway(WEB).replace(
        "{name: edge}",
        "{name: edge, labels: {tier: front}, annotations: {fieldgate.dev/trusted-hops: '2'}}",
    );
    let config = config(&[&text]);
    let listener = config.listeners.values().next().expect("a listener");
    assert_eq!(listener.client.trusted_hops, 2);
    let labels: Vec<String> = listener.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["tier=front", "gateway.networking.k8s.io/gateway-name=edge"]);
    let wrong = text.replace("'2'", "'two'");
    assert_eq!(problems(&[&wrong]), ["InvalidValue metadata.annotations"]);
}

#[test]
fn attached_routes_are_counted_per_listener() {
    let texts = [
        gateway(
            "{name: a, protocol: HTTP, port: 80}, {name: b, protocol: HTTP, port: 81, allowedRoutes: {kinds: [{kind: GRPCRoute}]}}",
        ),
        route("hostnames: [a.example]"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let found = configuration(&texts).listener_statuses();
    let found: Vec<_> =
        found.iter().map(|l| (l.listener.as_str(), l.attached_routes, l.supported_kinds.clone())).collect();
    assert_eq!(found, [("a", 1, vec!["HTTPRoute", "GRPCRoute"]), ("b", 0, vec!["GRPCRoute"])]);
}

/// A certificate is its listener's business only, and a listener is nobody else's.
#[test]
fn a_change_of_a_secret_or_a_listener_touches_no_other_listener() {
    let secret = |name: &str, version: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: '-----BEGIN CERTIFICATE-----{version}'\n  tls.key: '-----BEGIN PRIVATE KEY-----'\n"
        )
    };
    let tls = |name: &str, port: u16| {
        format!(
            "{{name: {name}, protocol: HTTPS, port: {port}, tls: {{certificateRefs: [{{name: {name}}}]}}}}"
        )
    };
    let (a, b) = (tls("a", 443), tls("b", 444));
    let texts =
        [gateway(&format!("{WEB}, {a}, {b}")), secret("a", "1"), secret("b", "1"), route("rules: [{}]")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut configuration = configuration(&texts);
    let mut before = configuration.apply(Vec::new()).config;
    let mut change = |file: &str, text: String| {
        let after = configuration.apply(vec![FileChange { name: file.into(), text: Some(text) }]).config;
        let mut differ: Vec<String> = Vec::new();
        for (key, listener) in &after.listeners {
            if before.listeners.get(key).is_none_or(|old| !std::sync::Arc::ptr_eq(old, listener)) {
                differ.push(format!("+{}", key.name));
            }
        }
        differ.extend(
            before
                .listeners
                .keys()
                .filter(|k| !after.listeners.contains_key(*k))
                .map(|k| format!("-{}", k.name)),
        );
        before = after;
        differ.join(" ")
    };
    assert_eq!(change("1.yaml", secret("a", "2")), "+a");
    assert_eq!(change("2.yaml", secret("b", "2")), "+b");
    assert_eq!(change("2.yaml", secret("b", "2") + "# words\n"), "");
    assert_eq!(change("0.yaml", gateway(&format!("{WEB}, {b}"))), "-a");
    assert_eq!(change("1.yaml", secret("a", "3")), "");
    assert_eq!(change("0.yaml", gateway(&format!("{WEB}, {a}, {b}"))), "+a");
}
