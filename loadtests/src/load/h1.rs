//! One HTTP/1.1 connection of the load client.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use super::Plan;
use super::client::{Answer, Extra, Stream, error_kind};

const MAX_HEADERS: usize = 128;

/// A connection and what has been read of it.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: Vec<u8>,
}

/// The bytes that all requests of a plan share.
pub(super) struct Template {
    head: Vec<u8>,
    body: Vec<u8>,
    is_head: bool,
}

impl Template {
    pub(super) fn new(plan: &Plan) -> Self {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", plan.method, plan.path, plan.host);
        for (name, value) in &plan.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if plan.body > 0 {
            head.push_str(&format!("content-length: {}\r\n", plan.body));
        }
        Self { head: head.into_bytes(), body: vec![b'.'; plan.body], is_head: plan.method == "HEAD" }
    }
}

/// How the end of an answer's body is known.
enum Framing {
    None,
    Counted(u64),
    Chunked,
    UntilClose,
}

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, input: BytesMut::with_capacity(16 * 1024), output: Vec::new() }
    }

    /// Whether the server has closed, asked between two requests.
    pub(super) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let stream = Pin::new(&mut self.stream);
        let mut stream = Some(stream);
        // Anything but "nothing to read yet" ends it: an end, an error, or an answer that nobody asked for.
        poll_fn(|cx| {
            let stream = stream.take().expect("polled once");
            Poll::Ready(stream.poll_read(cx, &mut buffer).is_ready())
        })
        .await
    }

    /// Sends one request and reads its answer to the end.
    pub(super) async fn exchange(&mut self, template: &Template, extra: &Extra) -> Answer {
        let mut answer = Answer::default();
        if let Err(error) = self.try_exchange(template, extra, &mut answer).await {
            answer.close = false;
            answer.error = match error.kind() {
                io::ErrorKind::UnexpectedEof if answer.status != 0 => "truncated",
                _ => error_kind(&error),
            };
        }
        answer
    }

    async fn try_exchange(
        &mut self,
        template: &Template,
        extra: &Extra,
        answer: &mut Answer,
    ) -> io::Result<()> {
        self.output.clear();
        self.output.extend_from_slice(&template.head);
        if let Some((name, value)) = &extra.header {
            for part in [name.as_str(), ": ", value, "\r\n"] {
                self.output.extend_from_slice(part.as_bytes());
            }
        }
        self.output.extend_from_slice(b"\r\n");
        self.output.extend_from_slice(&template.body);
        let written = self.stream.write_all(&self.output).await;
        // A server may answer and close before it has read the request; its answer is then what counts.
        match self.read_answer(template, answer).await {
            Err(_) if answer.status == 0 && written.is_err() => written,
            result => result,
        }
    }

    async fn read_answer(&mut self, template: &Template, answer: &mut Answer) -> io::Result<()> {
        let framing = loop {
            let framing = self.read_head(template.is_head, answer).await?;
            if answer.status >= 200 || answer.status == 101 {
                break framing;
            }
        };
        match framing {
            Framing::None => Ok(()),
            Framing::Counted(length) => self.skip(length).await,
            Framing::Chunked => self.skip_chunks().await,
            Framing::UntilClose => {
                answer.close = true;
                self.input.clear();
                while self.fill().await? > 0 {
                    self.input.clear();
                }
                Ok(())
            }
        }
    }

    async fn read_head(&mut self, is_head: bool, answer: &mut Answer) -> io::Result<Framing> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            let status =
                parsed.parse(&self.input).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            if let httparse::Status::Complete(length) = status {
                let framing = understand(&parsed, is_head, answer)?;
                self.input.advance(length);
                return Ok(framing);
            }
            self.fill_or_end().await?;
        }
    }

    async fn skip(&mut self, mut length: u64) -> io::Result<()> {
        loop {
            let taken = length.min(self.input.len() as u64);
            self.input.advance(taken as usize);
            length -= taken;
            if length == 0 {
                return Ok(());
            }
            self.fill_or_end().await?;
        }
    }

    async fn skip_chunks(&mut self) -> io::Result<()> {
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            match u64::from_str_radix(size, 16) {
                Ok(0) => break,
                Ok(size) => self.skip(size).await?,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            self.line().await?;
        }
        while !self.line().await?.is_empty() {}
        Ok(())
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
        self.input.reserve(16 * 1024);
        self.stream.read_buf(&mut self.input).await
    }

    async fn fill_or_end(&mut self) -> io::Result<()> {
        if self.fill().await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

fn understand(head: &httparse::Response<'_, '_>, is_head: bool, answer: &mut Answer) -> io::Result<Framing> {
    answer.status = head.code.unwrap_or_default();
    let mut framing = Framing::UntilClose;
    let mut close = head.version == Some(0);
    for header in head.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = String::from_utf8_lossy(header.value);
        if is("content-length") && !matches!(framing, Framing::Chunked) {
            let length = value.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            framing = Framing::Counted(length);
        } else if is("transfer-encoding") {
            framing = Framing::Chunked;
        } else if is("connection") {
            close = value.eq_ignore_ascii_case("close") || close && !value.eq_ignore_ascii_case("keep-alive");
        } else if is("x-backend") {
            answer.backend = value.into_owned();
        } else if is("set-cookie") {
            answer.set_cookies.push(value.into_owned());
        }
    }
    answer.close = close;
    // RFC 9112 section 6.3: these have no body, whatever they declare.
    let bodiless = is_head || answer.status < 200 || matches!(answer.status, 204 | 304);
    Ok(if bodiless { Framing::None } else { framing })
}
