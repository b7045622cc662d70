//! Many connections that are opened, asked for one thing or nothing, and then held.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use fieldgate_loadtests::rig::certificates;
use h2::client::SendRequest;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::context::ensure;
use crate::scale::proxies::Certificate;
use crate::scale::table;

/// Connections that are opened at once.
const AT_ONCE: usize = 32;
/// Connections from one source address: well below the ports that an address has.
const PER_SOURCE: usize = 10_000;
const HEAD: usize = 16 * 1024;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Plain,
    Tls,
    Http2,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::Http2 => "h2",
        }
    }

    pub fn about(self) -> &'static str {
        match self {
            Self::Plain => "HTTP/1.1 plain",
            Self::Tls => "HTTP/1.1 over TLS",
            Self::Http2 => "HTTP/2 over TLS",
        }
    }
}

/// Opens connections to one proxy.
#[derive(Clone)]
pub struct Client {
    protocol: Protocol,
    address: SocketAddr,
    tls: TlsConnector,
    name: ServerName<'static>,
}

/// A connection that is held.
pub enum Held {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// The connection ends with its last sender.
    Http2 {
        _sender: SendRequest<Bytes>,
        driver: JoinHandle<()>,
    },
}

impl Client {
    pub fn new(protocol: Protocol, address: SocketAddr, certificate: &Certificate) -> Result<Self, String> {
        let mut config = certificates::trusting(&certificate.authority.file, rustls::DEFAULT_VERSIONS)?;
        // Each is another client's: none has a session from before.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = match protocol {
            Protocol::Http2 => vec![b"h2".to_vec()],
            Protocol::Plain | Protocol::Tls => vec![b"http/1.1".to_vec()],
        };
        let name = ServerName::try_from(Certificate::HOST).map_err(|error| error.to_string())?;
        Ok(Self { protocol, address, tls: TlsConnector::from(Arc::new(config)), name })
    }

    /// Opens so many connections, with one request and its answer on each if that is wanted.
    pub async fn open(&self, count: usize, requests: bool) -> Result<Vec<Held>, String> {
        let mut tasks = JoinSet::new();
        for part in 0..AT_ONCE {
            let client = self.clone();
            tasks.spawn(async move {
                let mut held = Vec::new();
                for number in (part..count).step_by(AT_ONCE) {
                    let connection = client.open_one(number, requests).await;
                    held.push(connection.map_err(|error| format!("connection {number}: {error}"))?);
                }
                Ok::<_, String>(held)
            });
        }
        let mut all = Vec::with_capacity(count);
        while let Some(part) = tasks.join_next().await {
            all.extend(part.map_err(|error| error.to_string())??);
        }
        Ok(all)
    }

    async fn open_one(&self, number: usize, requests: bool) -> Result<Held, String> {
        let mut tcp = self.connect(number).await.map_err(|error| error.to_string())?;
        if self.protocol == Protocol::Plain {
            if requests {
                http1(&mut tcp).await?;
            }
            return Ok(Held::Plain(tcp));
        }
        let tls = self.tls.connect(self.name.clone(), tcp).await;
        let mut tls = Box::new(tls.map_err(|error| error.to_string())?);
        if self.protocol == Protocol::Tls {
            if requests {
                http1(&mut tls).await?;
            }
            return Ok(Held::Tls(tls));
        }
        ensure(tls.get_ref().1.alpn_protocol() == Some(b"h2"), || "HTTP/2 was not agreed to".to_owned())?;
        let (sender, connection) = h2::client::handshake(tls).await.map_err(|error| error.to_string())?;
        let driver = tokio::spawn(async move {
            // How it ends is seen by that it does.
            let _ = connection.await;
        });
        if requests {
            http2(sender.clone()).await.map_err(|error| error.to_string())?;
        }
        Ok(Held::Http2 { _sender: sender, driver })
    }

    /// Further connections come from further loopback addresses, so that ports do not run short.
    async fn connect(&self, number: usize) -> io::Result<TcpStream> {
        let source = Ipv4Addr::new(127, 0, 0, 1 + (number / PER_SOURCE) as u8);
        let socket = TcpSocket::new_v4()?;
        if !source.eq(&Ipv4Addr::LOCALHOST) {
            socket.bind((source, 0).into())?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

impl Held {
    /// Whether the server has left it open. What it said of its own, as session tickets, is read away.
    pub fn is_open(&mut self) -> bool {
        let tcp = match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
            Self::Http2 { driver, .. } => return !driver.is_finished(),
        };
        let mut buffer = [0; HEAD];
        loop {
            match tcp.try_read(&mut buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// A request for the first route, and its answer.
async fn http1(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), String> {
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", table::path(0), table::host(0));
    stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    loop {
        let count = stream.read_buf(&mut bytes).await.map_err(|error| error.to_string())?;
        ensure(count > 0 && bytes.len() < HEAD, || "closed within the answer".to_owned())?;
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(&bytes).map_err(|error| error.to_string())?
        else {
            continue;
        };
        ensure(head.code == Some(200), || format!("status {}", head.code.unwrap_or_default()))?;
        let body = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body = body.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
        let body = body.ok_or("an answer of unknown length")?;
        if bytes.len() >= length + body {
            return Ok(());
        }
    }
}

async fn http2(sender: SendRequest<Bytes>) -> Result<(), h2::Error> {
    let mut sender = sender.ready().await?;
    let request = http::Request::get(format!("https://{}{}", table::host(0), table::path(0)));
    let request = request.body(()).expect("host and path are valid");
    let (response, _) = sender.send_request(request, true)?;
    let mut body = response.await?.into_body();
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece?.len())?;
    }
    Ok(())
}
