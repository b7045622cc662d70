//! A certificate authority for one run, and certificates by it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// An authority and the file that clients trust it by.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its certificate as a PEM file.
    pub file: PathBuf,
}

/// A certificate with its key, both PEM.
pub struct Certified {
    /// Certificate chain.
    pub certificate: String,
    /// Private key.
    pub key: String,
}

impl Certified {
    /// Writes both into a directory: the certificate's file and the key's.
    pub fn write(&self, directory: &Path, name: &str) -> Result<(PathBuf, PathBuf), String> {
        let files = (directory.join(format!("{name}.pem")), directory.join(format!("{name}.key")));
        for (file, text) in [(&files.0, &self.certificate), (&files.1, &self.key)] {
            std::fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(files)
    }

    /// The certificate as a handshake shows it.
    pub fn der(&self) -> Result<Vec<u8>, String> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes());
        der.map(|der| der.to_vec()).map_err(|error| error.to_string())
    }
}

impl Authority {
    /// A new authority; its certificate is written to `directory`.
    pub fn new(directory: &Path) -> Result<Self, String> {
        Self::named("Fieldgate scenarios", directory)
    }

    /// As [`Authority::new`], of another name.
    pub fn named(name: &str, directory: &Path) -> Result<Self, String> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(|error| error.to_string())?;
        let file = directory.join("ca.pem");
        std::fs::write(&file, issuer.pem()).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(Self { issuer, file })
    }

    /// A client's certificate with this URI name.
    pub fn issue_client(&self, uri: &str) -> Result<Certified, String> {
        let mut params = CertificateParams::default();
        let uri = uri.try_into().map_err(|error| format!("{uri}: {error}"))?;
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        Ok(Certified { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A server certificate for these names, each call another.
    pub fn issue(&self, names: &[&str]) -> Result<Certified, String> {
        self.issue_with(names, |_| {})
    }

    /// One that was good in 2020 only.
    pub fn issue_expired(&self, names: &[&str]) -> Result<Certified, String> {
        self.issue_with(names, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        })
    }

    fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Certified, String> {
        let (uris, names): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).map_err(|error| error.to_string())?;
        for uri in uris {
            let uri = uri.try_into().map_err(|_| format!("{uri}: no URI for a certificate"))?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        change(&mut params);
        let key = KeyPair::generate().map_err(|error| error.to_string())?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| error.to_string())?;
        Ok(Certified { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// A client that trusts the authorities of a PEM file, and has a session from nowhere yet.
pub fn trusting(
    authorities: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, String> {
    client(authorities, versions, None)
}

/// The same, that shows a certificate, by the PEM files of its chain and its key.
pub fn client(
    authorities: &Path,
    versions: &[&'static SupportedProtocolVersion],
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, String> {
    let at = |error: String| format!("{}: {error}", authorities.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authorities).map_err(|error| at(error.to_string()))? {
        let certificate = certificate.map_err(|error| at(error.to_string()))?;
        roots.add(certificate).map_err(|error| at(error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let builder = builder.map_err(|error| error.to_string())?;
    let builder = builder.with_root_certificates(roots);
    let Some((chain, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let at = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(chain).map_err(|error| at(chain, &error))?.collect();
    let chain = chain.map_err(|error| error.to_string())?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| at(key, &error))?;
    builder.with_client_auth_cert(chain, secret).map_err(|error| at(key, &error))
}
