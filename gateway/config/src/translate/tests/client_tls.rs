//! What listeners ask of clients: from documents to rules, and closed doors where they cannot be understood.

use super::*;

const PEM: &str = "-----BEGIN CERTIFICATE-----";
const LIST: &str = "-----BEGIN X509 CRL-----";

fn data(kind: &str, name: &str, key: &str, value: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let field = if kind == "Secret" { "stringData" } else { "data" };
    format!(
        "apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{field}: {{{key}: '{value}'}}\n"
    )
}

fn secret(more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: ok}}\ntype: kubernetes.io/tls\n\
         stringData: {{tls.crt: '{PEM}', tls.key: '-----BEGIN PRIVATE KEY-----'{more}}}\n"
    )
}

/// Gateway `edge` with HTTPS listener `a` of these options.
fn edge(options: &str) -> String {
    gateway(&format!(
        "{{name: a, protocol: HTTPS, port: 443, tls: {{certificateRefs: [{{name: ok}}], options: {{{options}}}}}}}"
    ))
}

fn frontend(text: &str, frontend: &str) -> String {
    text.replace("listeners:", &format!("tls: {{frontend: {frontend}}}, listeners:"))
}

fn with(texts: &[&str]) -> Vec<String> {
    let common = [
        secret(""),
        data("ConfigMap", "ca", "ca.crt", PEM),
        data("Secret", "ca2", "ca.crt", PEM),
        data("ConfigMap", "crl", "ca.crl", LIST),
    ];
    texts.iter().map(|text| (*text).to_owned()).chain(common).collect()
}

fn listener(texts: &[&str]) -> ir::Listener {
    let texts = with(texts);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let (_, listener) = config.listeners.iter().next().expect("a listener");
    (**listener).clone()
}

/// `mode [authorities] [lists] [names] [domains]`, or `nothing`.
fn asked(texts: &[&str]) -> String {
    let listener = listener(texts);
    let Some(clients) = listener.tls.as_ref().and_then(|tls| tls.clients.clone()) else {
        return "nothing".into();
    };
    let origins = |list: &[std::sync::Arc<ir::PemBundle>]| {
        list.iter().map(|b| b.origin.to_string()).collect::<Vec<_>>()
    };
    format!(
        "{:?} {:?} {:?} {:?} {:?}",
        clients.mode,
        origins(&clients.roots),
        origins(&clients.revoked),
        clients.names,
        clients.trust_domains
    )
}

fn said(texts: &[&str]) -> Vec<String> {
    let texts = with(texts);
    problems(&texts.iter().map(String::as_str).collect::<Vec<_>>())
}

const CLOSED: &str = "Required [] [] [] []";

#[test]
fn options_ask_for_what_the_api_lacks() {
    let of = |options: &str| asked(&[&edge(options)]);
    assert_eq!(of(""), "nothing");
    assert_eq!(of("fieldgate.dev/client-ca: ca"), "Required [\"ConfigMap default/ca\"] [] [] []");
    assert_eq!(
        of(
            "fieldgate.dev/client-ca: 'ConfigMap/ca, Secret/ca2', fieldgate.dev/client-certificates: optional, \
            fieldgate.dev/client-crl: crl, fieldgate.dev/client-names: 'a*, *b, c, *', fieldgate.dev/trust-domains: 'x, y'"
        ),
        "Optional [\"ConfigMap default/ca\", \"Secret default/ca2\"] [\"ConfigMap default/crl\"] \
         [Prefix(\"a\"), Suffix(\"b\"), Exact(\"c\"), Present] [\"x\", \"y\"]"
    );
    assert_eq!(said(&[&edge("fieldgate.dev/client-ca: ca")]), Vec::<String>::new());
}

#[test]
fn the_gateway_asks_by_default_and_by_port() {
    let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}]";
    let of = |text: &str| asked(&[&frontend(&edge(""), text)]);
    let required = "Required [\"ConfigMap default/ca\"] [] [] []";
    let unverified = "Unverified [\"ConfigMap default/ca\"] [] [] []";
    assert_eq!(of(&format!("{{default: {{validation: {{{refs}}}}}}}")), required);
    assert_eq!(
        of(&format!("{{default: {{validation: {{{refs}, mode: AllowInsecureFallback}}}}}}")),
        unverified
    );
    let own = |port: u16, tls: &str| {
        format!("{{default: {{validation: {{{refs}}}}}, perPort: [{{port: {port}, tls: {tls}}}]}}")
    };
    assert_eq!(of(&own(443, "{}")), "nothing");
    assert_eq!(of(&own(444, "{}")), required);
    assert_eq!(
        of(&own(443, &format!("{{validation: {{{refs}, mode: AllowInsecureFallback}}}}"))),
        unverified
    );
    // The listener has the last word on how, and names more authorities.
    let text = frontend(
        &edge("fieldgate.dev/client-ca: ca2, fieldgate.dev/client-certificates: optional"),
        &format!("{{default: {{validation: {{{refs}}}}}}}"),
    );
    assert_eq!(asked(&[&text]), "Optional [\"ConfigMap default/ca\", \"Secret default/ca2\"] [] [] []");
}

#[test]
fn istios_modes_take_authorities_from_beside_the_certificate() {
    let of = |mode: &str, more: &[&str]| {
        let text = edge(&format!("gateway.istio.io/tls-terminate-mode: {mode}"));
        asked(&[&[&*text], more].concat())
    };
    assert_eq!(of("SIMPLE", &[]), "nothing");
    assert_eq!(of("MUTUAL", &[]), CLOSED);
    let own = secret(&format!(", ca.crt: '{PEM}', ca.crl: '{LIST}'"));
    assert_eq!(
        of("OPTIONAL_MUTUAL", &[&own]),
        "Optional [\"Secret default/ok\"] [\"Secret default/ok\"] [] []"
    );
    let beside = data("Secret", "ok-cacert", "cacert", PEM);
    assert_eq!(of("MUTUAL", &[&beside]), "Required [\"Secret default/ok-cacert\"] [] [] []");
    assert_eq!(of("ISTIO_MUTUAL", &[]), CLOSED);
}

#[test]
fn what_is_not_understood_closes_the_listener() {
    for (options, reason) in [
        ("fieldgate.dev/client-ca: nowhere", "InvalidCACertificateRef"),
        ("fieldgate.dev/client-ca: crl", "InvalidCACertificateRef"),
        ("fieldgate.dev/client-ca: Pod/ca", "UnsupportedValue"),
        ("fieldgate.dev/client-ca: ca, fieldgate.dev/client-crl: nowhere", "InvalidCACertificateRef"),
        ("fieldgate.dev/client-ca: ca, fieldgate.dev/client-crl: ca", "InvalidCACertificateRef"),
        ("fieldgate.dev/client-ca: ca, fieldgate.dev/client-certificates: maybe", "UnsupportedValue"),
        ("fieldgate.dev/client-ca: ca, fieldgate.dev/client-names: ' , '", "UnsupportedValue"),
        ("fieldgate.dev/client-ca: ca, fieldgate.dev/trust-domains: 'spiffe://td'", "UnsupportedValue"),
        ("fieldgate.dev/client-certificates: required", "NoValidCACertificate"),
        ("fieldgate.dev/client-names: a", "UnsupportedValue"),
        ("fieldgate.dev/client-certificate: required", "UnsupportedValue"),
        ("fieldgate.dev/min-tls-version: '1.4'", "UnsupportedValue"),
    ] {
        let text = edge(options);
        assert_eq!(asked(&[&text]), CLOSED, "{options}");
        assert_eq!(said(&[&text]), [format!("{reason} spec.listeners[0].tls.options")], "{options}");
        let texts = with(&[&text]);
        let found = conditions(&texts.iter().map(String::as_str).collect::<Vec<_>>(), "Gateway", "edge");
        assert!(found.contains(&"a/Programmed=false Invalid".to_owned()), "{options}: {found:?}");
    }
}

#[test]
fn one_authority_of_several_is_enough() {
    let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: nowhere}, {group: '', kind: ConfigMap, name: ca}]";
    let text = frontend(&edge(""), &format!("{{default: {{validation: {{{refs}}}}}}}"));
    assert_eq!(asked(&[&text]), "Required [\"ConfigMap default/ca\"] [] [] []");
    let texts = with(&[&text]);
    let found = conditions(&texts.iter().map(String::as_str).collect::<Vec<_>>(), "Gateway", "edge");
    for condition in [
        "a/Accepted=true Accepted",
        "a/Programmed=true Programmed",
        "a/ResolvedRefs=false InvalidCACertificateRef",
    ] {
        assert!(found.contains(&condition.to_owned()), "{condition}: {found:?}");
    }
}

#[test]
fn references_across_namespaces_need_a_grant() {
    let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: far, namespace: vault}]";
    let text = frontend(&edge(""), &format!("{{default: {{validation: {{{refs}}}}}}}"));
    let far = data("ConfigMap", "vault/far", "ca.crt", PEM);
    assert_eq!(asked(&[&text, &far]), CLOSED);
    let place = "spec.tls.frontend.default.validation.caCertificateRefs[0]";
    assert_eq!(said(&[&text, &far]), [format!("RefNotPermitted {place}")]);
    let grant = grant("vault", "Gateway", "default", "{group: '', kind: ConfigMap, name: far}");
    assert_eq!(asked(&[&text, &far, &grant]), "Required [\"ConfigMap vault/far\"] [] [] []");
    let other = text.replace("group: '', kind: ConfigMap", "group: x.io, kind: Vault");
    assert_eq!(said(&[&other]), [format!("InvalidCACertificateKind {place}")]);
}

#[test]
fn a_listener_without_a_certificate_keeps_its_names_if_it_asks_for_one() {
    let text = edge("fieldgate.dev/client-ca: ca").replace("name: ok", "name: gone");
    assert_eq!(listener(&[&text]).tls.unwrap().certificates.len(), 0);
    assert_eq!(said(&[&text]), ["InvalidCertificateRef spec.listeners[0].tls.certificateRefs[0].name"]);
}

#[test]
fn what_backends_are_told_is_the_listeners_or_the_gateways_to_say() {
    use ir::ForwardedClientCert::*;
    let told = |text: &str| listener(&[text]).client.client_cert;
    let ca = "fieldgate.dev/client-ca: ca";
    assert_eq!(told(&edge("")), Sanitize);
    assert_eq!(told(&edge(ca)), SanitizeSet);
    for (text, mode) in [
        ("sanitize", Sanitize),
        ("forward-only", ForwardOnly),
        ("APPEND_FORWARD", AppendForward),
        ("sanitize-set", SanitizeSet),
        ("always-forward-only", AlwaysForwardOnly),
        ("whatever", Sanitize),
    ] {
        assert_eq!(told(&edge(&format!("{ca}, fieldgate.dev/forward-client-cert: {text}"))), mode);
    }
    let annotated = gateway(WEB).replace(
        "{name: edge}",
        "{name: edge, annotations: {fieldgate.dev/forward-client-cert: always-forward-only}}",
    );
    assert_eq!(told(&annotated), AlwaysForwardOnly);
    let details = |text: &str| {
        let option = format!("{ca}, fieldgate.dev/forward-client-cert-details: '{text}'");
        let of = listener(&[&edge(&option)]).client.client_cert_details;
        [of.cert, of.chain, of.subject, of.uri, of.dns]
    };
    assert_eq!(details("none"), [false; 5]);
    assert_eq!(details("cert, Chain,dns"), [true, true, false, false, true]);
    assert_eq!(listener(&[&edge(ca)]).client.client_cert_details, ir::ClientCertDetails::default());
}

#[test]
fn a_changed_authority_changes_the_listener() {
    let texts = with(&[&edge("fieldgate.dev/client-ca: ca")]);
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut configuration = configuration(&texts);
    let before = configuration.apply(Vec::new()).config;
    let at = texts.iter().position(|text| text.contains("kind: ConfigMap\nmetadata: {name: ca,")).unwrap();
    let text = Some(texts[at].replace(PEM, "-----BEGIN CERTIFICATE-----2"));
    let outcome = configuration.apply(vec![FileChange { name: format!("{at}.yaml").into(), text }]);
    assert!(outcome.changed);
    assert!(!outcome.config.listeners.ptr_eq(&before.listeners));
}
