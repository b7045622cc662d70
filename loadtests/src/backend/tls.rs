//! TLS of a backend, and the ways in which its handshakes go wrong.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Handshakes, Options, Transport};

/// Does the handshakes.
pub(super) struct Acceptor {
    tls: TlsAcceptor,
    handshakes: Handshakes,
}

impl Acceptor {
    /// As the options say; nothing without a certificate.
    pub(super) fn of(options: &Options) -> io::Result<Option<Self>> {
        let (Some(certificate), Some(key)) = (&options.certificate, &options.key) else { return Ok(None) };
        let handshakes = options.handshakes;
        Ok(Some(Self { tls: TlsAcceptor::from(Arc::new(configure(certificate, key)?)), handshakes }))
    }

    /// Nothing: there was never to be a connection.
    pub(super) async fn accept(&self, mut tcp: TcpStream) -> io::Result<Option<TlsStream<TcpStream>>> {
        match self.handshakes {
            Handshakes::Done => self.tls.accept(tcp).await.map(Some),
            Handshakes::Stalled => {
                let mut ignored = [0; 4096];
                while tcp.read(&mut ignored).await? > 0 {}
                Ok(None)
            }
            Handshakes::Reset => {
                tcp.readable().await?;
                // A zero linger makes the close a RST.
                socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))?;
                Ok(None)
            }
        }
    }
}

impl Transport for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

fn configure(certificate: &Path, key: &Path) -> io::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let chain = CertificateDer::pem_file_iter(certificate).map_err(io::Error::other)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    let built = builder.map_err(io::Error::other)?.with_no_client_auth().with_single_cert(chain, key);
    let mut config = built.map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
