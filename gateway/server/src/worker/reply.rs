//! The head of an answer to what the gateway asks for itself: a copy for a mirror, a guard's question. Answers that a client
//! waits for are the exchange's, which also passes on what comes before them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use fieldgate_core::Headers;
use fieldgate_wire::h1::{BodyKind, HeadLimits, Malformed, parse_response};
use h2::client::ResponseFuture;

use super::side::{Side, SideError, fill_headers};

/// An answer that is waited for.
pub struct Reply {
    /// HTTP/2: what brings it.
    response: Option<ResponseFuture>,
    /// HTTP/1: it answers HEAD, and has no body whatever it says.
    head_only: bool,
    /// Whether any byte came back.
    pub any: bool,
}

impl Reply {
    /// Nothing has come yet.
    pub fn new(response: Option<ResponseFuture>, head_only: bool) -> Self {
        Self { response, head_only, any: false }
    }

    /// Its status, and whether the connection can be used again once its body was read. `fields` gets its header fields.
    pub fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        side: &mut Side,
        mut fields: Option<&mut Headers>,
    ) -> Poll<Result<(u16, bool), SideError>> {
        match side {
            Side::H1(side) => loop {
                if !side.input.is_empty() {
                    self.any = true;
                    // An interim answer, or a part of this one, may have left some.
                    if let Some(fields) = &mut fields {
                        fields.clear();
                    }
                    let parsed =
                        parse_response(side.input.filled(), HeadLimits::default(), |name, value| {
                            if let Some(fields) = &mut fields {
                                fields.push(name, value);
                            }
                        })?;
                    if let Some(parsed) = parsed {
                        side.input.consume(parsed.len);
                        match parsed.status {
                            101 => return Poll::Ready(Err(Malformed::Syntax.into())),
                            100..200 => continue,
                            _ => {}
                        }
                        side.expect_body(if self.head_only { BodyKind::None } else { parsed.body });
                        return Poll::Ready(Ok((parsed.status, parsed.keep_alive)));
                    }
                }
                if ready!(side.poll_read_more(cx))? == 0 {
                    return Poll::Ready(Err(SideError::Io(std::io::ErrorKind::UnexpectedEof.into())));
                }
            },
            Side::H2(side) => {
                let Some(response) = &mut self.response else { return Poll::Pending };
                while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {}
                let (parts, recv) = ready!(Pin::new(response).poll(cx))?.into_parts();
                self.any = true;
                self.response = None;
                side.recv = Some(recv);
                if let Some(fields) = fields {
                    fill_headers(fields, &parts.headers);
                }
                Poll::Ready(Ok((parts.status.as_u16(), false)))
            }
        }
    }
}
