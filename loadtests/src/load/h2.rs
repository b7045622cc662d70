//! One HTTP/2 connection of the load client, shared by the workers of its streams.

use std::io;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Version};

use super::Plan;
use super::client::{Answer, Ended, Extra, Stream};

const WINDOW: u32 = 1024 * 1024;

/// Sends requests on a connection whose other half, the returned future, must be polled.
pub(super) async fn handshake(
    stream: Box<dyn Stream>,
) -> io::Result<(SendRequest<Bytes>, impl Future<Output = Result<(), h2::Error>>)> {
    h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(io::Error::other)
}

/// Whether a connection ended in good order.
pub(super) fn is_graceful(result: &Result<(), h2::Error>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR),
    }
}

/// Sends one request and reads its answer to the end. `sent` runs when the request is on its way; `Err` means that
/// the connection takes no more and nothing was sent.
pub(super) async fn exchange(
    connection: SendRequest<Bytes>,
    plan: &Plan,
    extra: &Extra,
    sent: impl FnOnce(),
) -> Result<Answer, Ended> {
    let mut connection = connection.ready().await.map_err(|error| ended(&error))?;
    let request = request(plan, extra);
    let (response, mut body) =
        connection.send_request(request, plan.body == 0).map_err(|error| ended(&error))?;
    sent();
    let mut answer = Answer::default();
    if plan.body > 0 {
        // An answer may come before the body is wanted; whether it was taken is then of no interest.
        let _ = body.send_data(vec![b'.'; plan.body].into(), true);
    }
    if let Err(error) = receive(response, &mut answer).await {
        answer.error = error_kind(&error, answer.status != 0);
    }
    Ok(answer)
}

fn request(plan: &Plan, extra: &Extra) -> Request<()> {
    let scheme = if plan.ca.is_some() { "https" } else { "http" };
    let mut request = Request::builder()
        .method(plan.method.as_str())
        .uri(format!("{scheme}://{}{}", plan.host, plan.path))
        .version(Version::HTTP_2);
    for (name, value) in plan.headers.iter().chain(&extra.header) {
        request = request.header(name, value);
    }
    request.body(()).expect("the plan's method, path and headers are valid")
}

async fn receive(response: h2::client::ResponseFuture, answer: &mut Answer) -> Result<(), h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    answer.status = head.status.as_u16();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    answer.backend = head.headers.get("x-backend").map(text).unwrap_or_default();
    answer.set_cookies = head.headers.get_all("set-cookie").iter().map(text).collect();
    answer.retry_after = head.headers.get("retry-after").map(text).and_then(|text| text.parse().ok());
    answer.grpc_status = grpc_status(&head.headers);
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece?.len())?;
    }
    let trailers = body.trailers().await?;
    answer.grpc_status = trailers.as_ref().and_then(grpc_status).or(answer.grpc_status);
    Ok(())
}

fn grpc_status(headers: &http::HeaderMap) -> Option<u16> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn ended(error: &h2::Error) -> Ended {
    if error.is_go_away() { Ended::GoAway } else { Ended::Closed }
}

fn error_kind(error: &h2::Error, head_seen: bool) -> &'static str {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => "refused-stream",
        _ if error.is_go_away() => "goaway",
        _ if error.is_reset() && head_seen => "truncated",
        _ if error.is_reset() => "reset",
        _ if error.is_io() => "closed",
        _ => "protocol",
    }
}
