//! What an authorizer has decided, whatever protocol it was asked by.

use std::collections::BTreeSet;

use bytes::Bytes;
use fieldgate_core::guard::Answered;
use fieldgate_core::ir::StringMatch;
use fieldgate_core::{HeaderId, Headers};
use prost::Message;
use serde_json::{Map, Value};

use super::check::from_struct;
use super::fits;
use super::mutation::{Change, How, is_ours, read_query};
use super::proto::{CheckResponse, DeniedHttpResponse, HttpResponse, OkHttpResponse};
use crate::grpc;

/// How deep dynamic metadata may be nested.
const DEPTH: usize = 16;
/// An HTTP authorizer's list of request headers to take off.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

/// An authorizer's answer.
#[derive(Debug, PartialEq)]
pub enum Answer {
    Allowed(Box<Allowed>),
    Denied(Box<Denied>),
    /// It could not decide, or did not say what it has decided.
    Failed(String),
    /// It wants what must not be.
    Invalid(String),
}

/// The request may pass.
#[derive(Debug, Default, PartialEq)]
pub struct Allowed {
    pub request: Vec<Change>,
    pub remove: Vec<String>,
    pub response: Vec<Change>,
    pub query: Vec<(String, String)>,
    pub remove_query: Vec<String>,
    pub metadata: Option<Map<String, Value>>,
}

/// It may not.
#[derive(Debug, Default, PartialEq)]
pub struct Denied {
    /// 0 is for 403.
    pub status: u16,
    pub headers: Vec<Change>,
    pub body: String,
    pub metadata: Option<Map<String, Value>>,
}

/// Reads a gRPC answer.
pub fn of_grpc(answered: &Answered) -> Answer {
    let response = match grpc::message(answered) {
        Ok(message) => {
            CheckResponse::decode(message).map_err(|error| format!("an unreadable answer: {error}"))
        }
        Err(why) => Err(why),
    };
    match response {
        Ok(response) => of_response(response),
        Err(why) => Answer::Failed(why),
    }
}

fn of_response(response: CheckResponse) -> Answer {
    let CheckResponse { status, http_response, dynamic_metadata } = response;
    let code = status.unwrap_or_default().code;
    let metadata = |own: Option<prost_types::Struct>| -> Result<_, String> {
        let Some(fields) = own.or(dynamic_metadata).filter(|fields| !fields.fields.is_empty()) else {
            return Ok(None);
        };
        from_struct(fields, DEPTH).map(Some).ok_or_else(|| "dynamic metadata nested too deep".to_owned())
    };
    let read = match http_response {
        Some(HttpResponse::Error(_)) => return Answer::Failed("it says that it could not decide".into()),
        Some(HttpResponse::Ok(mut ok)) if code == 0 => {
            let own = ok.dynamic_metadata.take();
            metadata(own).and_then(|metadata| allowed(ok, metadata)).map(Answer::Allowed)
        }
        None | Some(HttpResponse::Denied(_)) if code == 0 => metadata(None)
            .map(|metadata| Answer::Allowed(Box::new(Allowed { metadata, ..Allowed::default() }))),
        Some(HttpResponse::Denied(said)) => {
            metadata(None).and_then(|metadata| denied(said, metadata)).map(Answer::Denied)
        }
        None | Some(HttpResponse::Ok(_)) => {
            metadata(None).map(|metadata| Answer::Denied(Box::new(Denied { metadata, ..Denied::default() })))
        }
    };
    read.unwrap_or_else(Answer::Invalid)
}

fn allowed(ok: OkHttpResponse, metadata: Option<Map<String, Value>>) -> Result<Box<Allowed>, String> {
    let read =
        |options: &[_], unsaid| options.iter().map(|o| Change::read(o, unsaid)).collect::<Result<_, _>>();
    Ok(Box::new(Allowed {
        request: read(&ok.headers, How::Set)?,
        response: read(&ok.response_headers_to_add, How::Append)?,
        remove: removable(ok.headers_to_remove),
        query: read_query(ok.query_parameters_to_set)?,
        remove_query: ok.query_parameters_to_remove,
        metadata,
    }))
}

fn denied(said: DeniedHttpResponse, metadata: Option<Map<String, Value>>) -> Result<Box<Denied>, String> {
    let code = said.status.unwrap_or_default().code;
    let status = match code {
        0 => 0,
        200..=599 => code as u16,
        _ => return Err(format!("the status {code}")),
    };
    // All of a response that has none yet: there is nothing to replace.
    let sent = said.headers.iter().filter(|option| option.header.as_ref().is_none_or(|h| !is_length(&h.key)));
    let headers = sent.map(|option| Change::read(option, How::Append)).collect::<Result<Vec<_>, _>>()?;
    let headers = headers.into_iter().map(|change| Change { how: How::Append, ..change }).collect();
    Ok(Box::new(Denied { status, headers, body: said.body, metadata }))
}

/// Of another message's body: the one that is sent has its own.
fn is_length(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
}

/// What must stay is left out, as in Envoy.
fn removable(names: Vec<String>) -> Vec<String> {
    let lower = names.into_iter().map(|name| name.trim().to_ascii_lowercase());
    lower
        .filter(|name| !name.is_empty() && !name.starts_with(':') && !is_ours(HeaderId::of(name.as_bytes())))
        .collect()
}

/// Which fields of an HTTP answer are for whom.
pub struct Lists<'a> {
    pub upstream: &'a [StringMatch],
    pub client_on_success: &'a [StringMatch],
    pub client_on_denied: &'a [StringMatch],
}

/// Reads an HTTP answer: 200 allows, 5xx is no answer, all else denies.
pub fn of_http(answered: &Answered, lists: &Lists<'_>) -> Answer {
    match answered.status {
        200 => {
            let removed = answered.headers.get_all(TO_REMOVE);
            let names = removed.flat_map(|list| list.split(|b| *b == b','));
            let remove = removable(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect());
            let request = select(&answered.headers, How::Set, |_, name| goes_upstream(lists.upstream, name));
            let response =
                select(&answered.headers, How::Append, |_, name| fits(lists.client_on_success, name));
            Answer::Allowed(Box::new(Allowed { request, remove, response, ..Allowed::default() }))
        }
        500..=599 => Answer::Failed(format!("HTTP status {}", answered.status)),
        status => {
            let headers = select(&answered.headers, How::Append, |_, name| {
                let always = matches!(name, b"location" | b"www-authenticate");
                always || lists.client_on_denied.is_empty() || fits(lists.client_on_denied, name)
            });
            let body = String::from_utf8_lossy(&answered.body).into_owned();
            Answer::Denied(Box::new(Denied { status, headers, body, metadata: None }))
        }
    }
}

/// Where all go upstream, those that are about the answer itself do not: they would be said of the client's request.
fn goes_upstream(patterns: &[StringMatch], name: &[u8]) -> bool {
    let of_answer = name.starts_with(b"content-") || matches!(name, b"date" | b"server" | b"vary" | b"etag");
    let named = |pattern: &&StringMatch| !of_answer || **pattern != StringMatch::Present;
    patterns.iter().filter(named).any(|pattern| fits(std::slice::from_ref(pattern), name))
}

/// Fields that are wanted. The first of a name is carried out as `how`, more of the same name are added. What was received
/// is sound; what is of the connection to the authorizer stays there.
fn select(headers: &Headers, how: How, wanted: impl Fn(HeaderId, &[u8]) -> bool) -> Vec<Change> {
    let mut seen = BTreeSet::new();
    let fields = headers.iter().filter(|(id, name, _)| !is_ours(*id) && wanted(*id, name));
    fields
        .filter_map(|(_, name, value)| {
            let name = std::str::from_utf8(name).ok()?;
            let how = if seen.insert(name.to_owned()) { how } else { How::Append };
            Change::new(name, Bytes::copy_from_slice(value), how).ok()
        })
        .collect()
}
