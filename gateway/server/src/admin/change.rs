//! `PUT` and `DELETE` below `/api/v1/objects`: who may change objects, and how it is asked and answered.
//!
//! A change is taken only where the operator has allowed it, from whoever has the role for it (`access`), and never from a
//! web page: a browser must ask before it sends these types of content, and is never granted it. What a change does is
//! `control::change`'s.

use std::time::Duration;

use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use serde_json::json;

use fieldgate_config::kinds::Kind;
use fieldgate_core::ir::ObjectKey;

use super::{Answer, not_allowed, with_type};
use crate::audit::{self, Who};
use crate::control::{AdminState, ApiWrite, Changed, Refused, What, Why};

/// Where objects are.
pub(super) const OBJECTS: &str = "/api/v1/objects";

/// Bytes of a body. A thousand objects are less.
const MAX_BODY: usize = 4 << 20;
/// How long a body may take: as long as one is awaited, others may have no connection.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A request that is not even tried: status and why.
pub(super) type Bad = (StatusCode, String);

/// Whether a request is one for this module.
pub(super) fn is_change<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let below = path.strip_prefix(OBJECTS).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below && !(path == OBJECTS && matches!(*request.method(), Method::GET | Method::HEAD))
}

/// Makes the change that is asked for.
pub(super) async fn answer<B>(state: &AdminState, who: &Who, request: Request<B>) -> Answer
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let allowed = if request.uri().path() == OBJECTS { "GET, HEAD, PUT" } else { "DELETE" };
    let fits = match *request.method() {
        Method::PUT => request.uri().path() == OBJECTS,
        Method::DELETE => request.uri().path() != OBJECTS,
        _ => false,
    };
    if !fits {
        return not_allowed(allowed);
    }
    let line = format!("{} {}", request.method(), request.uri().path());
    let asked = match asked(state, request).await {
        Ok(asked) => asked,
        Err((status, message)) => {
            tracing::warn!(%who, %status, "a change by the admin API is refused: {message}");
            let outcome = audit::Outcome::Refused(message.clone());
            state.audit.record("change", who, json!({"asked": line}), &outcome);
            return told(status, &json!({"error": message}));
        }
    };
    let (if_generation, what) = asked;
    match state.control.change(who.clone(), if_generation, what).await {
        Some(Ok(changed)) => made(&changed),
        Some(Err(refused)) => not_made(&refused),
        None => told(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": "the gateway ends"})),
    }
}

async fn asked<B>(state: &AdminState, request: Request<B>) -> Result<(Option<u64>, What), Bad>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    may_change(state.api_write)?;
    let if_generation = if_match(request.headers())?;
    if *request.method() == Method::DELETE {
        return Ok((if_generation, What::Delete(key(request.uri().path())?)));
    }
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !matches!(&*kind, "application/yaml" | "application/json") {
        let message = "send the objects with Content-Type: application/yaml or application/json";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message.to_owned()));
    }
    let too_large = || {
        let message = format!("the body is larger than {} MiB (hint: send it in parts)", MAX_BODY >> 20);
        (StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let late = |_| (StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned());
    let body = tokio::time::timeout(BODY_TIME, body).await.map_err(late)?.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            (StatusCode::BAD_REQUEST, format!("the body did not arrive whole: {error}"))
        }
    })?;
    let text = String::from_utf8(body.to_bytes().into())
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("the body is not UTF-8: {error}")))?;
    Ok((if_generation, What::Put(text)))
}

/// Whether the admin server changes objects at all.
pub(super) fn may_change(api_write: ApiWrite) -> Result<(), Bad> {
    if api_write == ApiWrite::Off {
        let message = "nothing can be changed here (hint: start the gateway with --api-write)";
        return Err((StatusCode::FORBIDDEN, message.to_owned()));
    }
    Ok(())
}

/// `If-Match: "12"`: only if generation 12 is in force.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Bad> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.trim_matches('"').parse();
    number.map(Some).map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            "If-Match is a generation, as /api/v1/status tells it: If-Match: \"12\"".to_owned(),
        )
    })
}

/// `/api/v1/objects/HTTPRoute/default/shop`; the namespace of a kind without any is `-`.
fn key(path: &str) -> Result<ObjectKey, Bad> {
    let parts: Vec<&str> = path[OBJECTS.len()..].trim_start_matches('/').split('/').collect();
    let [kind, namespace, name] = parts[..] else {
        let message = "name an object: DELETE /api/v1/objects/{kind}/{namespace}/{name}";
        return Err((StatusCode::NOT_FOUND, message.to_owned()));
    };
    let Some(kind) = Kind::from_name(kind) else {
        let kinds: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        let message = format!("there is no kind {kind:?} (hint: {})", kinds.join(", "));
        return Err((StatusCode::NOT_FOUND, message));
    };
    let namespace = if kind.is_namespaced() { namespace } else { "" };
    Ok(ObjectKey { kind: kind.as_str(), namespace: namespace.into(), name: name.into() })
}

fn made(changed: &Changed) -> Answer {
    let objects = changed.objects.iter().map(|(key, verb, file)| {
        json!({"kind": key.kind, "namespace": &*key.namespace, "name": &*key.name, "result": verb, "file": &**file})
    });
    let body = json!({
        "generation": changed.generation,
        "published": changed.published,
        "objects": objects.collect::<Vec<_>>(),
        "statuses": changed.statuses,
        "diagnostics": with_text(&changed.diagnostics),
    });
    // Until a name is looked up for the first time, the generation before is in force.
    let status = if changed.published { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut answer = told(status, &body);
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", changed.generation)) {
        answer.headers_mut().insert(ETAG, tag);
    }
    answer
}

fn not_made(refused: &Refused) -> Answer {
    let status = match refused.why {
        Why::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        Why::NotFound => StatusCode::NOT_FOUND,
        Why::Conflict => StatusCode::CONFLICT,
        Why::Stale => StatusCode::PRECONDITION_FAILED,
        Why::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    told(status, &json!({"error": refused.message, "diagnostics": with_text(&refused.diagnostics)}))
}

/// Each with the text that `fieldgate check` prints.
fn with_text(diagnostics: &[fieldgate_config::Diagnostic]) -> Vec<serde_json::Value> {
    let row = |diagnostic: &fieldgate_config::Diagnostic| {
        let mut value = json!(diagnostic);
        value["text"] = json!(diagnostic.to_string());
        value
    };
    diagnostics.iter().map(row).collect()
}

pub(super) fn told(status: StatusCode, value: &serde_json::Value) -> Answer {
    with_type(status, "application/json", format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_by_path() {
        let text = |path| key(path).map(|key| key.to_string()).map_err(|(status, _)| status);
        assert_eq!(text("/api/v1/objects/Pool/prod/vms"), Ok("Pool prod/vms".to_owned()));
        assert_eq!(text("/api/v1/objects/Namespace/-/prod"), Ok("Namespace /prod".to_owned()));
        for wrong in ["/api/v1/objects/Pool/vms", "/api/v1/objects/Nope/a/b", "/api/v1/objects/Pool/a/b/c"] {
            assert_eq!(text(wrong), Err(StatusCode::NOT_FOUND), "{wrong}");
        }
    }

    #[test]
    fn a_generation_may_be_demanded() {
        let of = |text: &'static str| {
            let headers = HeaderMap::from_iter([(IF_MATCH, HeaderValue::from_static(text))]);
            if_match(&headers).map_err(|(status, _)| status)
        };
        assert_eq!((of("\"12\""), of("12"), of("*")), (Ok(Some(12)), Ok(Some(12)), Ok(None)));
        assert_eq!(of("\"x\""), Err(StatusCode::BAD_REQUEST));
    }
}
