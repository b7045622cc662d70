//! One HTTP/1.1 connection of the load client.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::Plan;
use super::client::{Answer, Extra, Stream, error_kind};
use super::reader::Reader;

/// A connection that requests follow each other on.
pub(super) struct Connection {
    reader: Reader<Box<dyn Stream>>,
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

impl Connection {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { reader: Reader::new(stream), output: Vec::new() }
    }

    /// Whether the server has closed, asked between two requests.
    pub(super) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let stream = Pin::new(&mut self.reader.stream);
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
        let written = self.reader.stream.write_all(&self.output).await;
        // A server may answer and close before it has read the request; its answer is then what counts.
        match self.read_answer(template, answer).await {
            Err(_) if answer.status == 0 && written.is_err() => written,
            result => result,
        }
    }

    async fn read_answer(&mut self, template: &Template, answer: &mut Answer) -> io::Result<()> {
        loop {
            *answer = self.reader.head(template.is_head, understand).await?;
            if answer.status >= 200 {
                break;
            }
        }
        answer.close |= self.reader.is_until_close();
        while self.reader.piece().await?.is_some() {}
        Ok(())
    }
}

fn understand(head: &httparse::Response<'_, '_>) -> Answer {
    let mut answer = Answer { status: head.code.unwrap_or_default(), ..Answer::default() };
    answer.close = head.version == Some(0);
    for header in head.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = String::from_utf8_lossy(header.value);
        if is("connection") {
            answer.close = value.eq_ignore_ascii_case("close")
                || answer.close && !value.eq_ignore_ascii_case("keep-alive");
        } else if is("x-backend") {
            answer.backend = value.into_owned();
        } else if is("set-cookie") {
            answer.set_cookies.push(value.into_owned());
        } else if is("retry-after") {
            answer.retry_after = value.parse().ok();
        }
    }
    answer
}
