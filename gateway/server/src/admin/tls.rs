//! TLS of the admin server: its certificate, the authority of its clients, and what a client's certificate says.
//!
//! Files that change are read again with the next connection; what cannot be read leaves the last good ones in use.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's chain, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authorities of clients, PEM.
    pub client_ca: PathBuf,
}

/// The names in a client's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// URIs.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// The subject's common name.
    pub common_name: Option<String>,
}

/// What TLS is made of at present.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Loaded>,
}

struct Loaded {
    written: [Option<SystemTime>; 3],
    config: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Self, String> {
        let written = files.written();
        let config = files.load()?;
        Ok(Self { files, current: Mutex::new(Loaded { written, config }) })
    }

    /// What the next connection is served with.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.files.written();
        if written != current.written {
            current.written = written;
            match self.files.load() {
                Ok(config) => {
                    current.config = config;
                    tracing::info!("the certificates of the admin server were read anew");
                }
                Err(message) => tracing::error!("{message}; the admin server goes on with the ones before"),
            }
        }
        Arc::clone(&current.config)
    }
}

impl TlsFiles {
    /// All paths.
    pub fn paths(&self) -> [&PathBuf; 3] {
        [&self.certificate, &self.key, &self.client_ca]
    }

    fn written(&self) -> [Option<SystemTime>; 3] {
        self.paths().map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
    }

    fn load(&self) -> Result<Arc<ServerConfig>, String> {
        let chain = certificates("--admin-tls-cert", &self.certificate)?;
        let flag = "--admin-tls-key";
        let key = PrivateKeyDer::from_pem_slice(&read(flag, &self.key)?).map_err(|error| {
            format!("{flag} {}: there is no private key in it: {error}", self.key.display())
        })?;
        let mut roots = RootCertStore::empty();
        let flag = "--admin-client-ca";
        for root in certificates(flag, &self.client_ca)? {
            roots.add(root).map_err(|error| format!("{flag} {}: {error}", self.client_ca.display()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| format!("{flag} {}: {error}", self.client_ca.display()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_client_cert_verifier(verifier).with_single_cert(chain, key))
            .map_err(|error| format!("--admin-tls-cert {}: {error}", self.certificate.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A client whose certificate was taken back would resume for as long as a ticket lasts.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

impl Names {
    /// From a certificate that was verified.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let mut names = Self::default();
        for name in certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .iter()
            .flat_map(|san| &san.value.general_names)
        {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => names.dns.push((*dns).to_owned()),
                _ => {}
            }
        }
        let common = certificate.subject().iter_common_name().next();
        names.common_name = common.and_then(|name| name.as_str().ok()).map(str::to_owned);
        Some(names)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.uris.first(), &self.common_name, self.dns.first()) {
            (Some(uri), ..) => f.write_str(uri),
            (None, Some(common), _) => write!(f, "CN={common}"),
            (None, None, Some(dns)) => write!(f, "DNS:{dns}"),
            (None, None, None) => f.write_str("a certificate without a name"),
        }
    }
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(flag, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(format!("{flag} {}: there is no certificate in it (PEM)", path.display())),
        Err(error) => Err(format!("{flag} {}: {error}", path.display())),
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| {
        format!(
            "{flag} {}: {error} (hint: the user that the gateway runs as must be able to read it)",
            path.display()
        )
    })
}
