//! What DestinationRules and BackendTLSPolicies say of TLS towards endpoints.

use std::sync::Arc;

use fieldgate_core::ir::{
    Certificate, EndpointTls, Endpoints, PemBundle, Pool, PoolTls, ServerTrust, StringMatch,
};

use super::pools::{KEY, PEM, with_data};
use super::*;
use crate::Workload;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{name: http, port: 80}, {name: more, port: 81}]}\n";
const NOBODY: ServerTrust = ServerTrust::Roots { roots: Vec::new(), revoked: Vec::new() };

fn rule(policy: &str) -> String {
    let spec = format!("host: s, trafficPolicy: {{{policy}}}");
    object("networking.istio.io/v1", "DestinationRule", "d", &spec)
}

fn policy(name: &str, spec: &str) -> String {
    object("gateway.networking.k8s.io/v1", "BackendTLSPolicy", name, spec)
}

fn pool_of(config: &ir::Config, key: &str) -> Arc<Pool> {
    config
        .pools
        .values()
        .find(|pool| pool.key.to_string() == key)
        .cloned()
        .unwrap_or_else(|| panic!("no {key}"))
}

fn tls_of(texts: &[&str], key: &str) -> Option<Arc<PoolTls>> {
    pool_of(&config(texts), key).tls.clone()
}

fn roots(tls: &PoolTls) -> Vec<String> {
    let ServerTrust::Roots { roots, .. } = &tls.trust else { panic!("{tls:?}") };
    roots.iter().map(|root| root.origin.to_string()).collect()
}

#[test]
fn rules_have_istios_modes_and_credentials() {
    let secrets = [
        with_data("Secret", "one", &[("tls.crt", PEM), ("tls.key", KEY), ("ca.crt", PEM)]),
        with_data("Secret", "two", &[("cert", PEM), ("key", KEY), ("cacert", PEM)]),
        with_data("Secret", "three", &[("tls.crt", PEM), ("tls.key", KEY)]),
        with_data("Secret", "three-cacert", &[("ca.crt", PEM)]),
        with_data("Secret", "four", &[("tls.crt", PEM), ("tls.key", KEY)]),
    ];
    let tls = |text: &str| {
        let rule = rule(&format!("tls: {{{text}}}"));
        let mut texts: Vec<&str> = secrets.iter().map(String::as_str).collect();
        texts.extend([SERVICE, &rule]);
        (tls_of(&texts, "Service default/s:80"), problems(&texts))
    };
    for (name, authority) in [("one", "one"), ("two", "two"), ("three", "three-cacert")] {
        let (found, problems) = tls(&format!("mode: MUTUAL, credentialName: {name}, sni: a.example"));
        let found = found.unwrap();
        assert_eq!(roots(&found), [format!("Secret default/{authority}")], "{problems:?}");
        assert_eq!(found.identity.as_ref().unwrap().origin, format!("Secret default/{name}").into());
        assert_eq!((found.sni.as_deref(), found.names.len(), problems.len()), (Some("a.example"), 0, 0));
    }
    let (found, _) = tls("mode: SIMPLE, subjectAltNames: [b.example]");
    let found = found.unwrap();
    assert_eq!((&found.trust, &found.sni), (&ServerTrust::System, &None));
    assert_eq!(found.names, [StringMatch::Exact("b.example".into())]);
    assert_eq!(tls("mode: SIMPLE, insecureSkipVerify: true").0.unwrap().trust, ServerTrust::Anybody);
    assert_eq!(tls("mode: DISABLE"), (None, Vec::new()));

    let at = |field: &str| vec![format!("InvalidCertificateRef spec.trafficPolicy.tls{field}")];
    for (text, field) in [
        ("mode: MUTUAL", ""),
        ("mode: MUTUAL, credentialName: none", ".credentialName"),
        ("mode: MUTUAL, credentialName: four", ".credentialName"),
        ("mode: SIMPLE, caCertificates: /etc/ca.pem", ".caCertificates"),
        ("mode: ISTIO_MUTUAL", ".mode"),
    ] {
        let (found, problems) = tls(text);
        assert_eq!((&found.unwrap().trust, problems), (&NOBODY, at(field)), "{text}");
    }
}

#[test]
fn a_port_has_what_is_said_of_it_and_nothing_else() {
    let rule = rule(
        "tls: {mode: SIMPLE, sni: a.example}, portLevelSettings: [{port: {number: 81}, tls: {mode: DISABLE}}]",
    );
    let texts = [SERVICE, &rule];
    assert_eq!(tls_of(&texts, "Service default/s:80").unwrap().sni.as_deref(), Some("a.example"));
    assert_eq!(tls_of(&texts, "Service default/s:81"), None);
}

fn workload() -> Workload {
    let origin: Arc<str> = "the workload certificate".into();
    let pem: Arc<[u8]> = PEM.as_bytes().into();
    let certificate =
        Certificate { origin: origin.clone(), chain_pem: pem.clone(), key_pem: KEY.as_bytes().into() };
    Workload { certificate: Arc::new(certificate), roots: Arc::new(PemBundle { origin, pem }) }
}

#[test]
fn in_a_mesh_the_gateway_is_a_workload_and_endpoints_may_stay_out_of_it() {
    let entry = object(
        "networking.istio.io/v1",
        "ServiceEntry",
        "e",
        "hosts: [h.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: \
         [{address: 10.0.0.1, labels: {security.istio.io/tlsMode: istio}}, {address: 10.0.0.2, labels: \
         {security.istio.io/tlsMode: disabled}}, {address: 10.0.0.3}]",
    );
    let rule = |mode: &str| {
        let spec = format!("host: h.example, trafficPolicy: {{tls: {{mode: {mode}}}}}");
        object("networking.istio.io/v1", "DestinationRule", "d", &spec)
    };
    let ways = |pool: &Pool| {
        let Endpoints::Static(endpoints) = &pool.endpoints else { panic!("{pool:?}") };
        endpoints.iter().map(|endpoint| endpoint.tls == EndpointTls::Plain).collect::<Vec<_>>()
    };
    let mut configuration = Configuration::default();
    let key = "Hostname default/h.example:80";
    let before = configuration.apply(files(&[&entry, &rule("ISTIO_MUTUAL")]));
    assert_eq!(pool_of(&before.config, key).tls.as_ref().unwrap().trust, NOBODY);

    configuration.set_workload(Some(workload()));
    let after = configuration.apply(Vec::new());
    assert!(after.changed && after.diagnostics.is_empty(), "{:?}", after.diagnostics);
    let pool = pool_of(&after.config, key);
    let tls = pool.tls.as_ref().unwrap();
    assert_eq!(tls.sni.as_deref(), Some("outbound_.80_._.h.example"));
    assert_eq!(tls.names, [StringMatch::Prefix("spiffe://".into())]);
    assert!(tls.identity.is_some() && tls.alpn.iter().any(|name| **name == *"istio-http/1.1"));
    assert_eq!(ways(&pool), [false, true, false]);
    assert!(!configuration.apply(Vec::new()).changed);

    // Which endpoints take part in the mesh's TLS is of no interest to other TLS.
    assert_eq!(ways(&pool_of(&config(&[&entry, &rule("SIMPLE")]), key)), [false; 3]);
}

#[test]
fn a_service_entry_names_whom_it_expects() {
    let entry = object(
        "networking.istio.io/v1",
        "ServiceEntry",
        "e",
        "hosts: [h.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS, \
         subjectAltNames: ['spiffe://td/x']",
    );
    let rule = |more: &str| {
        let spec = format!("host: h.example, trafficPolicy: {{tls: {{mode: SIMPLE{more}}}}}");
        object("networking.istio.io/v1", "DestinationRule", "d", &spec)
    };
    let names = |rule: &str| tls_of(&[&entry, rule], "Hostname default/h.example:80").unwrap().names.clone();
    assert_eq!(names(&rule("")), [StringMatch::Exact("spiffe://td/x".into())]);
    assert_eq!(names(&rule(", subjectAltNames: [y]")), [StringMatch::Exact("y".into())]);
}

const TARGET: &str = "targetRefs: [{group: '', kind: Service, name: s}]";

#[test]
fn policies_say_whom_to_believe_behind_a_service() {
    let ca = with_data("ConfigMap", "ca", &[("ca.crt", PEM)]);
    let whole = policy(
        "a",
        &format!(
            "{TARGET}, validation: {{caCertificateRefs: [{{group: '', kind: ConfigMap, name: ca}}], hostname: a.example, \
             subjectAltNames: [{{type: URI, uri: 'spiffe://td/x'}}, {{type: Hostname, hostname: b.example}}]}}"
        ),
    );
    let port = policy(
        "b",
        "targetRefs: [{group: '', kind: Service, name: s, sectionName: more}], \
         validation: {wellKnownCACertificates: System, hostname: c.example}",
    );
    // A policy goes before a rule.
    let rule = rule("tls: {mode: SIMPLE, sni: r.example}");
    let texts = [SERVICE, &ca, &whole, &port, &rule];
    let tls = tls_of(&texts, "Service default/s:80").unwrap();
    assert_eq!(
        (tls.sni.as_deref(), roots(&tls)),
        (Some("a.example"), vec!["ConfigMap default/ca".to_owned()])
    );
    let names = ["spiffe://td/x", "b.example"].map(|name| StringMatch::Exact(name.into()));
    assert_eq!(tls.names, names);
    let tls = tls_of(&texts, "Service default/s:81").unwrap();
    assert_eq!((tls.sni.as_deref(), &tls.trust), (Some("c.example"), &ServerTrust::System));
    assert_eq!(problems(&texts), [""; 0]);
    let good = ["/ResolvedRefs=true ResolvedRefs", "/Accepted=true Accepted"];
    assert_eq!(conditions(&texts, "BackendTLSPolicy", "a"), good);
}

#[test]
fn a_policy_that_cannot_be_had_closes_what_it_is_for() {
    let ca = with_data("ConfigMap", "ca", &[("ca.crt", PEM)]);
    let named = |name: &str, service: &str, refs: &str| {
        let target = TARGET.replace("name: s", &format!("name: {service}"));
        policy(name, &format!("{target}, validation: {{caCertificateRefs: [{refs}], hostname: a.example}}"))
    };
    let with = |refs: &str| named("a", "s", refs);
    let good = "{group: '', kind: ConfigMap, name: ca}";
    let lost = "{group: '', kind: ConfigMap, name: none}";
    let odd = "{group: x.example, kind: Thing, name: ca}";
    for (refs, said) in [
        (lost, ["/ResolvedRefs=false InvalidCACertificateRef", "/Accepted=false NoValidCACertificate"]),
        (odd, ["/ResolvedRefs=false InvalidKind", "/Accepted=false NoValidCACertificate"]),
        (
            &format!("{good}, {lost}"),
            ["/ResolvedRefs=false InvalidCACertificateRef", "/Accepted=true Accepted"],
        ),
    ] {
        let text = with(refs);
        let texts = [SERVICE, &ca, &text];
        assert_eq!(conditions(&texts, "BackendTLSPolicy", "a"), said);
        let closed = tls_of(&texts, "Service default/s:80").unwrap().trust == NOBODY;
        assert_eq!(closed, said[1].contains("false"), "{refs}");
    }
    let second = named("b", "s", good);
    let texts = [SERVICE, &ca, &with(good), &second];
    assert_eq!(conditions(&texts, "BackendTLSPolicy", "b")[1], "/Accepted=false Conflicted");
    let stray = named("a", "t", good);
    assert_eq!(
        conditions(&[SERVICE, &ca, &stray], "BackendTLSPolicy", "a")[1],
        "/Accepted=false TargetNotFound"
    );
}

#[test]
fn a_policy_that_cannot_be_read_closes_what_it_may_be_for() {
    let bad = policy("a", &format!("{TARGET}, validation: {{hostname: a.example}}"));
    let broken = bad.replace("hostname: a.example}", "hostname: [");
    let other = SERVICE.replace("name: s}", "name: other}");
    for text in [&bad, &broken] {
        let mut configuration = Configuration::default();
        let outcome = configuration.apply(files(&[SERVICE, &other, text]));
        let trust = |key| pool_of(&outcome.config, key).tls.as_ref().map(|tls| tls.trust.clone());
        assert_eq!(
            (trust("Service default/s:80"), trust("Service default/other:80")),
            (Some(NOBODY), None),
            "{text}"
        );
    }
    assert_eq!(tls_of(&[SERVICE, &other], "Service default/s:80"), None);
}
