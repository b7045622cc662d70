//! HTTP/1.1 answers off a stream: head by head, and each body piece by piece.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

const MAX_HEADERS: usize = 128;
const PIECE: usize = 64 * 1024;

/// A stream and what has been read of it.
pub(crate) struct Reader<S> {
    pub(crate) stream: S,
    input: BytesMut,
    body: Body,
    /// What followed the last chunked body.
    pub(crate) trailers: Vec<(String, String)>,
}

/// Where a body stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Done,
    Counted(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, input: BytesMut::with_capacity(16 * 1024), body: Body::Done, trailers: Vec::new() }
    }

    /// The next head, as `understand` sees it. `is_head`: the request was HEAD.
    pub(crate) async fn head<T>(
        &mut self,
        is_head: bool,
        understand: impl Fn(&httparse::Response<'_, '_>) -> T,
    ) -> io::Result<T> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(length) = parsed.parse(&self.input).map_err(invalid)? {
                self.body = body_of(&parsed, is_head)?;
                self.trailers.clear();
                let understood = understand(&parsed);
                self.input.advance(length);
                return Ok(understood);
            }
            self.fill_or_end().await?;
        }
    }

    /// Whether the body ends with the connection.
    pub(crate) fn is_until_close(&self) -> bool {
        self.body == Body::UntilClose
    }

    /// The next piece of the body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.body {
                Body::Done | Body::Counted(0) => {
                    self.body = Body::Done;
                    return Ok(None);
                }
                Body::ChunkData(0) => self.body = Body::ChunkEnd,
                Body::Counted(left) => {
                    let piece = self.take(left).await?;
                    self.body = Body::Counted(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Body::ChunkData(left) => {
                    let piece = self.take(left).await?;
                    self.body = Body::ChunkData(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Body::ChunkSize => {
                    let line = self.line().await?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    self.body = match u64::from_str_radix(size, 16).map_err(invalid)? {
                        0 => Body::Trailers,
                        size => Body::ChunkData(size),
                    };
                }
                Body::ChunkEnd => {
                    self.line().await?;
                    self.body = Body::ChunkSize;
                }
                Body::Trailers => match self.line().await?.split_once(':') {
                    Some((name, value)) => {
                        self.trailers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
                    }
                    None => self.body = Body::Done,
                },
                Body::UntilClose => {
                    if self.input.is_empty() && self.fill().await? == 0 {
                        self.body = Body::Done;
                    } else {
                        return self.take(u64::MAX).await.map(Some);
                    }
                }
            }
        }
    }

    /// Up to so many bytes of what comes next.
    async fn take(&mut self, most: u64) -> io::Result<Bytes> {
        if self.input.is_empty() {
            self.fill_or_end().await?;
        }
        let taken = most.min(self.input.len() as u64) as usize;
        Ok(self.input.split_to(taken).freeze())
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
                let line = self.input.split_to(end + 1);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            self.fill_or_end().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.input.reserve(PIECE);
        self.stream.read_buf(&mut self.input).await
    }

    async fn fill_or_end(&mut self) -> io::Result<()> {
        if self.fill().await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// How the end of an answer's body is known (RFC 9112 section 6.3).
fn body_of(head: &httparse::Response<'_, '_>, is_head: bool) -> io::Result<Body> {
    let status = head.code.unwrap_or_default();
    if status != 101 && (is_head || status < 200 || matches!(status, 204 | 304)) {
        return Ok(Body::Done);
    }
    let mut body = Body::UntilClose;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Body::ChunkSize);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            body = Body::Counted(String::from_utf8_lossy(header.value).parse().map_err(invalid)?);
        }
    }
    Ok(body)
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
