//! `spec.tls` of a `Pool`, as it is written, and what is forbidden in it beyond types.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::check::Checks;
use super::pool::PoolSpec;
use super::pool_health::CertificateRef;
use crate::diagnostic::reason;

/// TLS towards endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolTls {
    /// Who shows a certificate.
    pub mode: PoolTlsMode,
    /// Secrets or ConfigMaps with authorities, in `ca.crt`; revocation lists in `ca.crl`.
    pub ca_certificate_refs: Option<Vec<CertificateRef>>,
    /// The authorities of the operating system; so it is without any of the other two, too.
    pub system: bool,
    /// Any certificate will do.
    pub insecure_skip_verify: bool,
    /// The server name; the request's host without it.
    pub sni: Option<String>,
    /// One of these must be in the certificate; without any the server name must.
    pub subject_alt_names: Vec<String>,
    /// A Secret of type `kubernetes.io/tls` with the gateway's own certificate.
    pub client_certificate_ref: Option<CertificateRef>,
    /// Protocols to offer, best first; what the pool speaks without it.
    pub alpn: Vec<String>,
}

/// Who shows a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolTlsMode {
    /// The endpoint.
    #[default]
    Simple,
    /// Both; the gateway that of `clientCertificateRef`.
    Mutual,
    /// Both; the gateway that of its workload, by the mesh's authorities.
    IstioMutual,
}

/// TLS towards one endpoint, where that is not the pool's.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolEndpointTls {
    /// `disable`: none.
    Disable,
    /// Its own.
    Own(Box<PoolTls>),
}

impl<'de> Deserialize<'de> for PoolEndpointTls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = PoolEndpointTls;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"disable\", or a mapping as spec.tls")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PoolEndpointTls, E> {
                match text {
                    "disable" => Ok(PoolEndpointTls::Disable),
                    _ => Err(crate::yaml::reject(
                        reason::INVALID_VALUE,
                        format_args!("\"{text}\" is not allowed here"),
                        "write disable, or a mapping as spec.tls",
                    )),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PoolEndpointTls, A::Error> {
                let own = PoolTls::deserialize(MapAccessDeserializer::new(map))?;
                Ok(PoolEndpointTls::Own(Box::new(own)))
            }
        }
        deserializer.deserialize_any(V)
    }
}

pub(super) fn check(spec: &PoolSpec, checks: &mut Checks<'_>) {
    if let Some(tls) = &spec.tls {
        check_tls(tls, "spec.tls", checks);
    }
    for (i, endpoint) in spec.endpoints.iter().flatten().enumerate() {
        let at = format!("spec.endpoints[{i}].tls");
        match &endpoint.tls {
            Some(PoolEndpointTls::Own(tls)) => check_tls(tls, &at, checks),
            Some(PoolEndpointTls::Disable) if spec.tls.is_none() && spec.hostname.is_none() => {
                let hint = Some("remove it: without spec.tls connections are plain");
                checks.error(&at, reason::CONFLICTING_FIELDS, "the pool has no TLS to disable", hint);
            }
            _ => {}
        }
    }
}

fn check_tls(tls: &PoolTls, at: &str, checks: &mut Checks<'_>) {
    let refs = tls.ca_certificate_refs.as_deref();
    let trust = [
        ("caCertificateRefs", refs.is_some()),
        ("system", tls.system),
        ("insecureSkipVerify", tls.insecure_skip_verify),
    ];
    let given: Vec<&str> = trust.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if let [_, second, ..] = given[..] {
        let message = format!("{} cannot be used together", given.join(" and "));
        checks.error(
            &format!("{at}.{second}"),
            reason::CONFLICTING_FIELDS,
            message,
            Some("keep one of them"),
        );
    }
    if refs.is_some_and(<[_]>::is_empty) {
        let field = format!("{at}.caCertificateRefs");
        checks.error(&field, reason::WRONG_COUNT, "at least one Secret or ConfigMap is needed", None);
    }
    for (i, reference) in refs.unwrap_or_default().iter().enumerate() {
        of_kind(reference, &["Secret", "ConfigMap"], &format!("{at}.caCertificateRefs[{i}]"), checks);
    }
    let client = tls.client_certificate_ref.as_ref();
    if let Some(reference) = client {
        of_kind(reference, &["Secret"], &format!("{at}.clientCertificateRef"), checks);
    }
    let field = format!("{at}.clientCertificateRef");
    match (tls.mode, client.is_some()) {
        (PoolTlsMode::Mutual, false) => {
            let hint = Some("name a Secret of type kubernetes.io/tls, or use mode: simple");
            checks.error(at, reason::MISSING_FIELD, "mode mutual needs clientCertificateRef", hint);
        }
        (PoolTlsMode::Simple, true) => {
            let hint = Some("use mode: mutual");
            checks.error(&field, reason::CONFLICTING_FIELDS, "mode simple shows no certificate", hint);
        }
        (PoolTlsMode::IstioMutual, true) => {
            let message = "mode istioMutual shows the gateway's workload certificate";
            checks.error(&field, reason::CONFLICTING_FIELDS, message, Some("use mode: mutual"));
        }
        _ => {}
    }
    if tls.mode == PoolTlsMode::IstioMutual
        && let Some(name) = given.first()
    {
        let message = "mode istioMutual believes the mesh's authorities";
        checks.error(&format!("{at}.{name}"), reason::CONFLICTING_FIELDS, message, Some("use mode: mutual"));
    }
    if let Some(sni) = &tls.sni {
        checks.hostname(&format!("{at}.sni"), sni, false);
    }
    for (i, name) in tls.subject_alt_names.iter().enumerate() {
        if name.is_empty() {
            checks.error(
                &format!("{at}.subjectAltNames[{i}]"),
                reason::INVALID_VALUE,
                "the name is empty",
                None,
            );
        }
    }
    for (i, name) in tls.alpn.iter().enumerate() {
        if name.is_empty() || name.len() > 255 {
            let message = "a protocol's name has 1 to 255 bytes";
            checks.error(&format!("{at}.alpn[{i}]"), reason::INVALID_VALUE, message, Some("h2, http/1.1"));
        }
    }
}

fn of_kind(reference: &CertificateRef, kinds: &[&str], at: &str, checks: &mut Checks<'_>) {
    let group = reference.group.as_deref().unwrap_or("");
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if !group.is_empty() || !kinds.contains(&kind) {
        let message = format!("certificates cannot be in a {kind} of group \"{group}\"");
        checks.error(at, reason::INVALID_VALUE, message, Some(&format!("name a {}", kinds.join(" or a "))));
    }
}
