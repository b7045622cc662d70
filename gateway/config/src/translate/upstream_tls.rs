//! TLS towards endpoints: from what Pools, DestinationRules and BackendTLSPolicies name to what pools have of it.
//!
//! What cannot be read closes the pool: [`nobody`] is believed then, and nothing is sent in the clear.

use std::sync::Arc;

use fieldgate_core::ir::{
    Certificate, Config, Endpoint, EndpointTls, Endpoints, ObjectKey, PemBundle, Pool, PoolTls, ServerTrust,
    StringMatch,
};
use k8s_openapi::api::core::v1::Secret;

use super::Objects;
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::destination_rule::{Tls as RuleTls, TlsMode};
use crate::kinds::pool_tls::{PoolTls as PoolTlsSpec, PoolTlsMode};
use crate::kinds::{Kind, Spec};

/// What meshes of Istio speak inside of TLS between workloads, before what everybody speaks.
const ISTIO_ALPN: [&str; 5] = ["istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"];

/// What the gateway is known by in its mesh, from files that the mesh's agent writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its certificate.
    pub certificate: Arc<Certificate>,
    /// The mesh's authorities.
    pub roots: Arc<PemBundle>,
}

/// Why a reference does not hold: where, within what names it; what; and what to do about it.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}

/// Where what is named is looked up.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub objects: &'a Objects,
    pub namespace: &'a str,
    pub workload: Option<&'a Workload>,
}

/// Nobody is believed: no connection is made.
pub(crate) fn nobody() -> ServerTrust {
    ServerTrust::Roots { roots: Vec::new(), revoked: Vec::new() }
}

/// Closes the pools that a BackendTLSPolicy may be for, where nothing else says how they are connected to.
pub(crate) fn close(config: &mut Config, may_be_for: impl Fn(&ObjectKey) -> bool) {
    let kinds =
        [("Service", "Service"), ("Service (gRPC)", "Service"), ("Pool", "Pool"), ("Pool (gRPC)", "Pool")];
    let is_meant = |pool: &Pool| {
        let kind = kinds.iter().find(|(kind, _)| *kind == pool.key.object.kind);
        kind.is_some_and(|(_, kind)| may_be_for(&ObjectKey { kind, ..pool.key.object.clone() }))
    };
    let open = config.pools.values().filter(|pool| pool.tls.is_none() && is_meant(pool));
    for pool in open.cloned().collect::<Vec<_>>() {
        let tls = Some(Arc::new(closed("a BackendTLSPolicy that cannot be read".into())));
        config.pools.insert(pool.key.clone(), Arc::new(Pool { tls, ..Pool::clone(&pool) }));
    }
}

/// A pool's TLS that lets nothing through.
pub(crate) fn closed(origin: Arc<str>) -> PoolTls {
    PoolTls { origin, trust: nobody(), sni: None, names: Vec::new(), identity: None, alpn: Vec::new() }
}

impl Place<'_> {
    /// As a Pool says it. With trouble, it is closed.
    pub fn pool(&self, origin: &Arc<str>, spec: &PoolTlsSpec) -> Result<PoolTls, Trouble> {
        let names = spec.subject_alt_names.iter().map(|name| StringMatch::Exact(name.as_str().into()));
        let mut tls = PoolTls {
            sni: spec.sni.as_deref().map(Into::into),
            names: names.collect(),
            alpn: spec.alpn.iter().map(|name| name.as_str().into()).collect(),
            ..closed(origin.clone())
        };
        if spec.mode == PoolTlsMode::IstioMutual {
            self.as_workload(&mut tls)?;
            return Ok(tls);
        }
        tls.trust = if spec.insecure_skip_verify {
            ServerTrust::Anybody
        } else if let Some(refs) = &spec.ca_certificate_refs {
            let (mut roots, mut revoked) = (Vec::new(), Vec::new());
            for (i, reference) in refs.iter().enumerate() {
                let kind = reference.kind.as_deref().unwrap_or("Secret");
                let found = self.authorities(kind, &reference.name);
                let (root, list) = found.map_err(|t| t.below(&format!(".caCertificateRefs[{i}]")))?;
                roots.push(root);
                revoked.extend(list);
            }
            ServerTrust::Roots { roots, revoked }
        } else {
            ServerTrust::System
        };
        if let Some(reference) = &spec.client_certificate_ref {
            let found = self.certificate(&reference.name, &[("tls.crt", "tls.key")]);
            tls.identity = Some(found.map_err(|t| t.below(".clientCertificateRef"))?);
        }
        Ok(tls)
    }

    /// The gateway as a workload of a mesh (`ISTIO_MUTUAL`).
    pub fn as_workload(&self, tls: &mut PoolTls) -> Result<(), Trouble> {
        let Some(workload) = self.workload else {
            return Err(Trouble {
                field: ".mode".to_owned(),
                message: "the gateway has no workload certificate".to_owned(),
                hint: Some(
                    "start it with --workload-certificate DIR, where the mesh's agent writes".to_owned(),
                ),
            });
        };
        tls.trust = ServerTrust::Roots { roots: vec![workload.roots.clone()], revoked: Vec::new() };
        tls.identity = Some(workload.certificate.clone());
        if tls.names.is_empty() {
            // Any workload of the mesh: its name for a server is none of DNS.
            tls.names.push(StringMatch::Prefix("spiffe://".into()));
        }
        if tls.alpn.is_empty() {
            tls.alpn = ISTIO_ALPN.iter().map(|name| Arc::from(*name)).collect();
        }
        Ok(())
    }

    /// As a DestinationRule says it; nothing is plain. Its Secrets are laid out as Istio's gateways want them.
    pub fn rule(&self, origin: &Arc<str>, spec: &RuleTls) -> Result<Option<PoolTls>, Trouble> {
        let names = spec.subject_alt_names.iter().map(|name| StringMatch::Exact(name.as_str().into()));
        let mut tls = PoolTls {
            sni: spec.sni.as_deref().filter(|sni| !sni.is_empty()).map(Into::into),
            names: names.collect(),
            ..closed(origin.clone())
        };
        let on_disk = [
            (".caCertificates", &spec.ca_certificates),
            (".clientCertificate", &spec.client_certificate),
            (".privateKey", &spec.private_key),
            (".caCrl", &spec.ca_crl),
        ];
        if spec.mode != TlsMode::Disable
            && let Some((field, _)) =
                on_disk.iter().find(|(_, path)| path.as_ref().is_some_and(|p| !p.is_empty()))
        {
            return Err(Trouble {
                field: (*field).to_owned(),
                message: "paths on the gateway's disk are not read".to_owned(),
                hint: Some("put it into a Secret, and name that in credentialName".to_owned()),
            });
        }
        let credential = spec.credential_name.as_deref().map(|name| name.trim_start_matches("kubernetes://"));
        match spec.mode {
            TlsMode::Disable => return Ok(None),
            TlsMode::IstioMutual => {
                self.as_workload(&mut tls)?;
                return Ok(Some(tls));
            }
            TlsMode::Simple => {}
            TlsMode::Mutual => {
                let Some(name) = credential else {
                    return Err(Trouble {
                        field: String::new(),
                        message: "MUTUAL needs a client certificate".to_owned(),
                        hint: Some("name its Secret in credentialName".to_owned()),
                    });
                };
                let found = self.certificate(name, &[("tls.crt", "tls.key"), ("cert", "key")]);
                tls.identity = Some(found.map_err(|t| Trouble { field: ".credentialName".to_owned(), ..t })?);
            }
        }
        tls.trust = if spec.insecure_skip_verify == Some(true) {
            ServerTrust::Anybody
        } else if let Some(name) = credential {
            let (root, list) =
                self.credential(name).map_err(|t| Trouble { field: ".credentialName".to_owned(), ..t })?;
            ServerTrust::Roots { roots: vec![root], revoked: list.into_iter().collect() }
        } else {
            ServerTrust::System
        };
        Ok(Some(tls))
    }

    /// Authorities of a credential: in the Secret itself, or in that with `-cacert` behind its name.
    fn credential(&self, name: &str) -> Result<(Arc<PemBundle>, Option<Arc<PemBundle>>), Trouble> {
        let beside = format!("{name}-cacert");
        if self.objects.get(Kind::Secret, self.namespace, &beside).is_some() {
            return self.authorities("Secret", &beside);
        }
        self.authorities("Secret", name)
    }

    /// Authorities in `ca.crt` of a Secret or ConfigMap, with the revocation lists in `ca.crl` if there are any.
    pub fn authorities(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<(Arc<PemBundle>, Option<Arc<PemBundle>>), Trouble> {
        let origin: Arc<str> = format!("{kind} {}/{name}", self.namespace).into();
        let kind = if kind == "ConfigMap" { Kind::ConfigMap } else { Kind::Secret };
        let object = self.find(kind, name)?;
        let read = |key: &str| match &object.spec {
            Spec::Secret(secret) => of_secret(secret, key),
            Spec::ConfigMap(map) => map.data.as_ref()?.get(key).map(String::as_bytes),
            _ => None,
        };
        let part = |key: &str, marker: &str| {
            read(key).filter(|pem| memchr::memmem::find(pem, marker.as_bytes()).is_some())
        };
        let bundle = |pem: &[u8]| Arc::new(PemBundle { origin: origin.clone(), pem: pem.into() });
        let marker = "-----BEGIN CERTIFICATE-----";
        // Istio's generic Secrets call it `cacert`.
        let Some(roots) = part("ca.crt", marker).or_else(|| part("cacert", marker)) else {
            return Err(Trouble {
                field: ".name".to_owned(),
                message: format!("{origin} has no certificate in ca.crt"),
                hint: Some("a certificate in PEM begins with -----BEGIN CERTIFICATE-----".to_owned()),
            });
        };
        let lists = match read("ca.crl") {
            None | Some([]) => None,
            Some(_) => match part("ca.crl", "-----BEGIN X509 CRL-----") {
                Some(pem) => Some(bundle(pem)),
                None => {
                    return Err(Trouble {
                        field: ".name".to_owned(),
                        message: format!("{origin} has a ca.crl without PEM"),
                        hint: Some(
                            "a revocation list in PEM begins with -----BEGIN X509 CRL-----".to_owned(),
                        ),
                    });
                }
            },
        };
        Ok((bundle(roots), lists))
    }

    /// A certificate with its key, of a Secret that has one of these pairs of keys.
    pub fn certificate(&self, name: &str, pairs: &[(&str, &str)]) -> Result<Arc<Certificate>, Trouble> {
        let object = self.find(Kind::Secret, name)?;
        let origin: Arc<str> = format!("Secret {}/{name}", self.namespace).into();
        let Spec::Secret(secret) = &object.spec else { return Err(missing(&origin)) };
        let found = pairs.iter().find_map(|(chain, key)| {
            let part = |key: &str, marker: &str| {
                of_secret(secret, key).filter(|pem| memchr::memmem::find(pem, marker.as_bytes()).is_some())
            };
            Some((part(chain, "-----BEGIN CERTIFICATE-----")?, part(key, "PRIVATE KEY-----")?))
        });
        let Some((chain, key)) = found else {
            let keys: Vec<_> = pairs.iter().map(|(chain, key)| format!("{chain} and {key}")).collect();
            return Err(Trouble {
                field: ".name".to_owned(),
                message: format!("{origin} has no certificate with its key in PEM, in {}", keys.join(" or ")),
                hint: Some("it should be of type kubernetes.io/tls".to_owned()),
            });
        };
        Ok(Arc::new(Certificate { origin, chain_pem: chain.into(), key_pem: key.into() }))
    }

    fn find(&self, kind: Kind, name: &str) -> Result<&Arc<Object>, Trouble> {
        self.objects.get(kind, self.namespace, name).ok_or_else(|| {
            let names = self.objects.names(kind, self.namespace);
            let hint = did_you_mean_hint(name, names.iter().map(String::as_str));
            let message = format!("there is no {kind} {}/{name}", self.namespace);
            Trouble { field: ".name".to_owned(), message, hint }
        })
    }
}

impl Trouble {
    fn below(mut self, at: &str) -> Self {
        self.field.insert_str(0, at);
        self
    }
}

fn missing(origin: &str) -> Trouble {
    Trouble { field: ".name".to_owned(), message: format!("there is no {origin}"), hint: None }
}

fn of_secret<'s>(secret: &'s Secret, key: &str) -> Option<&'s [u8]> {
    secret.data.as_ref()?.get(key).map(|bytes| &bytes.0[..])
}

/// Forgets which endpoints have no part in the mesh's TLS: it is not the mesh's.
pub(crate) fn without_exceptions(endpoints: &mut Endpoints) {
    let (fixed, names) = match endpoints {
        Endpoints::Static(fixed) => (fixed, &mut [][..]),
        Endpoints::Dns { fixed, names } => (fixed, &mut names[..]),
    };
    for endpoint in fixed.iter_mut().chain(names.iter_mut().map(|name| &mut name.endpoint)) {
        if endpoint.tls == EndpointTls::Plain {
            endpoint.tls = EndpointTls::AsPool;
        }
    }
}

/// An endpoint of a pool with this TLS, as one of another pool with that.
pub(crate) fn moved(endpoint: &mut Endpoint, from: Option<&Arc<PoolTls>>, to: Option<&Arc<PoolTls>>) {
    if endpoint.tls == EndpointTls::AsPool && from != to {
        endpoint.tls = from.map_or(EndpointTls::Plain, |tls| EndpointTls::Own(tls.clone()));
    }
}
