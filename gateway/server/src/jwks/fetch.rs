//! One fetch of one document over HTTP. It keeps nothing between fetches: they are minutes apart.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use fieldgate_core::ir::RemoteJwks;
use fieldgate_plugins::jwt::{KeySet, MAX_DOCUMENT_BYTES};
use fieldgate_wire::tls::{ClientTls, Verification, server_name};
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Redirects that are followed for one document.
const MAX_REDIRECTS: usize = 3;

/// Bytes of an answer's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Where an OpenID provider says what it has (OpenID Connect Discovery 1.0 section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Why there are no keys. Fits after "cannot be fetched:".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(why.into()))
}

/// Fetches the document with the keys, after the one that names it where that is wanted.
pub(super) async fn keys(remote: &RemoteJwks) -> Result<(Bytes, KeySet), Failure> {
    let document = match tokio::time::timeout(remote.timeout, document(remote)).await {
        Ok(document) => document?,
        Err(_) => return failed(format!("no answer within {:?}", remote.timeout)),
    };
    match KeySet::parse(&document) {
        Ok(keys) => Ok((document, keys)),
        Err(why) => failed(format!("the answer is not a set of keys: {why}")),
    }
}

async fn document(remote: &RemoteJwks) -> Result<Bytes, Failure> {
    if !remote.discover {
        return get(&remote.uri, remote.roots.as_deref()).await;
    }
    let issuer = remote.uri.trim_end_matches('/');
    let found = get(&format!("{issuer}{DISCOVERY}"), remote.roots.as_deref()).await?;
    let found: serde_json::Value = match serde_json::from_slice(&found) {
        Ok(found) => found,
        Err(error) => return failed(format!("the discovery document is not JSON: {error}")),
    };
    // OpenID Connect Discovery 1.0 section 4.3: else whoever answers for one issuer could answer for another.
    let says = found["issuer"].as_str().unwrap_or_default();
    if says.trim_end_matches('/') != issuer {
        return failed("the discovery document is about another issuer");
    }
    let Some(uri) = found["jwks_uri"].as_str() else {
        return failed("the discovery document names no jwks_uri");
    };
    if issuer.starts_with("https://") && !uri.starts_with("https://") {
        return failed("the discovery document names a jwks_uri without TLS");
    }
    get(uri, remote.roots.as_deref()).await
}

async fn get(uri: &str, roots: Option<&[u8]>) -> Result<Bytes, Failure> {
    let mut uri: Uri = uri.parse().map_err(|error| Failure(format!("{uri} is not a URL: {error}")))?;
    for _ in 0..=MAX_REDIRECTS {
        let response = ask(&uri, roots).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return body(response.into_body()).await;
        }
        if !status.is_redirection() {
            return failed(format!("the answer is {status}"));
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        uri = redirected(&uri, location.unwrap_or_default())?;
    }
    failed(format!("there are more than {MAX_REDIRECTS} redirects"))
}

/// Where a redirect leads. Never from TLS to none: the keys would be whoever's is in between.
fn redirected(from: &Uri, location: &str) -> Result<Uri, Failure> {
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https"))
    } else {
        location.to_owned()
    };
    let Ok(to) = absolute.parse::<Uri>() else { return failed("it is redirected to what is not a URL") };
    match (from.scheme_str(), to.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(to),
        _ => failed("it is redirected to where there is no TLS"),
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

async fn ask(uri: &Uri, roots: Option<&[u8]>) -> Result<Response<Incoming>, Failure> {
    let stream = connect(uri, roots).await?;
    let broke = |error: hyper::Error| Failure(format!("the connection broke: {error}"));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broke)?;
    // It ends when the answer has been read, or is given up with all that holds it.
    let connection = tokio::spawn(connection);
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("fieldgate/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure(format!("{uri} cannot be asked for: {error}")))?;
    let response = sender.send_request(request).await.map_err(broke);
    if response.is_err() {
        connection.abort();
    }
    response
}

async fn connect(uri: &Uri, roots: Option<&[u8]>) -> Result<Box<dyn Socket>, Failure> {
    let Some(host) = uri.host() else { return failed("the URL has no host") };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((host, port))
        .await
        .map_err(|error| Failure(format!("cannot connect to {host}:{port}: {error}")))?;
    if !secure {
        return Ok(Box::new(tcp));
    }
    let config = match roots {
        Some(pem) => ClientTls::new(Verification::Roots(pem)).build().map_err(|e| Failure(e.to_string()))?,
        None => system_tls()?,
    };
    let name = server_name(host).map_err(|error| Failure(error.to_string()))?;
    let tls = TlsConnector::from(config).connect(name, tcp).await;
    let tls = tls.map_err(|error| Failure(format!("the TLS handshake with {host} failed: {error}")))?;
    Ok(Box::new(tls))
}

/// The authorities that the operating system believes, read once.
fn system_tls() -> Result<Arc<ClientConfig>, Failure> {
    static SYSTEM: OnceLock<Result<Arc<ClientConfig>, Failure>> = OnceLock::new();
    let read = || {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return failed(format!("the operating system has no certificate authorities{why}"));
        }
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| Failure(error.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
        Ok(Arc::new(config))
    };
    SYSTEM.get_or_init(read).clone()
}

async fn body(mut body: Incoming) -> Result<Bytes, Failure> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure(format!("the answer broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > MAX_DOCUMENT_BYTES {
            return failed(format!("the answer is longer than {MAX_DOCUMENT_BYTES} bytes"));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_never_leave_tls() {
        let check = |from: &str, location: &str, expected: Option<&str>| {
            let to = redirected(&from.parse().unwrap(), location).ok().map(|uri| uri.to_string());
            assert_eq!(to.as_deref(), expected, "{from} {location}");
        };
        check("https://a/x", "/keys?1", Some("https://a/keys?1"));
        check("https://a:8443/x", "/keys", Some("https://a:8443/keys"));
        check("https://a/x", "https://b/keys", Some("https://b/keys"));
        check("https://a/x", "http://a/keys", None);
        check("http://a/x", "http://b/keys", Some("http://b/keys"));
        check("http://a/x", "https://b/keys", Some("https://b/keys"));
        check("http://a/x", "file:///keys", None);
        check("http://a/x", "//b/keys", None);
        check("http://a/x", "", None);
    }
}
