//! Edge rules: lists of addresses, sizes, methods, paths, and which header fields pass in either direction. What a rule
//! reads is known from the head alone; nobody is asked, and no body is looked at here: its limit is the server's to keep.

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Guard, Guarded, Verdict};
use fieldgate_core::head::split_port;
use fieldgate_core::ir::{self, EdgeRules, ObjectKey, StringMatch, StripPort};
use fieldgate_core::path::{self, Outcome, PathOptions};
use fieldgate_core::{HeaderId, Headers, RequestHead};
use rustc_hash::FxHashSet;

/// Makes the rules ready.
pub fn ready(guard: &Arc<ir::Guard>, rules: &EdgeRules) -> Arc<dyn Guard> {
    let allow = if rules.methods.is_empty() { String::new() } else { rules.methods.join(", ") };
    Arc::new(Edge {
        key: guard.key.clone(),
        allow,
        request_headers: rules.request_headers.as_deref().map(Names::new),
        rules: rules.clone(),
    })
}

/// Edge rules, ready. The lists of addresses are the configuration's own.
#[derive(Debug)]
struct Edge {
    key: ObjectKey,
    rules: EdgeRules,
    /// The methods as `Allow` has them.
    allow: String,
    request_headers: Option<Names>,
}

impl Guard for Edge {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn name(&self) -> &'static str {
        "edge"
    }

    fn begin(&self, request: &mut Guarded<'_>) -> Verdict {
        match self.judge(request) {
            Ok(()) => Verdict::Continue,
            Err(response) => Verdict::Respond(response),
        }
    }

    fn follows(&self) -> bool {
        self.rules.max_body.is_some()
            || self.request_headers.is_some()
            || !self.rules.response_headers.is_empty()
            || self.rules.transport_security.is_some()
    }

    fn body_limit(&self) -> Option<u64> {
        self.rules.max_body
    }

    fn send(&self, head: &mut RequestHead, from_client: usize) {
        if let Some(names) = &self.request_headers {
            head.headers.remove_before(from_client, |id, name| !is_needed(id, name) && !names.have(name));
            // Guards that take a cookie of theirs off write the others anew; they are the client's all the same.
            if !names.have(b"cookie") {
                head.headers.remove_id(HeaderId::Cookie);
            }
        }
    }

    fn receive(&self, https: bool, response: &mut Headers) {
        let missing = |response: &Headers, name: &str| response.get(name).is_none();
        for (name, value) in &self.rules.response_headers {
            if missing(response, name) {
                response.push(name.as_bytes(), value.as_bytes());
            }
        }
        // By plain HTTP it says nothing (RFC 6797 section 7.2).
        if let Some(value) = self.rules.transport_security.as_ref().filter(|_| https)
            && missing(response, "strict-transport-security")
        {
            response.push(b"strict-transport-security", value.as_bytes());
        }
    }
}

impl Edge {
    fn judge(&self, request: &mut Guarded<'_>) -> Result<(), Box<LocalResponse>> {
        let rules = &self.rules;
        let client = request.facts.client;
        if rules.allow.as_ref().is_some_and(|allow| !allow.contains(client)) || rules.deny.contains(client) {
            return Err(refusal(403, "edge_address_denied", "access from this address is denied\n"));
        }
        if rules.max_target.is_some_and(|max| written_length(request.head) > max as usize) {
            return Err(refusal(414, "edge_target_too_long", "path and query are too long\n"));
        }
        if let Some(options) = rules.paths {
            set_path(request.head, options)?;
        }
        if !rules.methods.is_empty() && !rules.methods.iter().any(|m| **m == *request.head.method.as_str()) {
            let mut response = refusal(405, "edge_method_not_allowed", "this method is not allowed\n");
            response.headers.push(("allow", self.allow.clone()));
            return Err(response);
        }
        if let (Some(max), Some(length)) = (rules.max_body, request.body_length)
            && length > max
        {
            return Err(refusal(413, "edge_body_too_large", "the body is too large\n"));
        }
        strip_port(request.head, rules.strip_port, request.facts.local.port());
        Ok(())
    }
}

/// Fields that the protocol, or the gateway itself, cannot do without; those of one connection go no further anyway.
fn is_needed(id: HeaderId, name: &[u8]) -> bool {
    id.is_hop_by_hop()
        || matches!(
            id,
            HeaderId::ContentLength
                | HeaderId::Expect
                | HeaderId::GrpcTimeout
                | HeaderId::Host
                | HeaderId::Te
                | HeaderId::Trailer
                | HeaderId::Via
                | HeaderId::XForwardedFor
                | HeaderId::XForwardedProto
                | HeaderId::XForwardedHost
                | HeaderId::XForwardedClientCert
                | HeaderId::XRequestId
                | HeaderId::OriginalPath
                | HeaderId::AttemptCount
        )
        || name.starts_with(b"grpc-")
        || name.starts_with(b"sec-websocket-")
}

fn written_length(head: &RequestHead) -> usize {
    let written = head.written_path.as_ref().map_or(0, |path| path.len());
    head.target.len() - head.path_len + written.max(head.path_len)
}

fn set_path(head: &mut RequestHead, options: PathOptions) -> Result<(), Box<LocalResponse>> {
    // `*` of OPTIONS is no path.
    if !head.target.starts_with('/') {
        return Ok(());
    }
    let written = head.written_path.take();
    let written = written.as_deref().unwrap_or(head.path());
    let merge = options.merge_slashes && written.contains("//");
    if !merge && !written.bytes().any(|b| matches!(b, b'%' | b'\\' | b'.')) {
        return Ok(());
    }
    let refused = || refusal(400, "path_normalization_failed", "this path is not allowed\n");
    let (path, redirected) = match path::with_options(written, options) {
        Outcome::Path(path) => (path, false),
        // A gRPC client follows no redirects.
        Outcome::Redirect(path) if !head.is_grpc() => (path, true),
        Outcome::Redirect(_) | Outcome::Refused => return Err(refused()),
    };
    let target = path + &head.target[head.path_len..];
    if redirected {
        let mut response = refusal(307, "path_normalization_redirect", "");
        response.headers.push(("location", absolute(head, &target)));
        return Err(response);
    }
    head.set_target(&target);
    Ok(())
}

/// With its host, since a path that begins with two slashes would be taken for another host's.
fn absolute(head: &RequestHead, target: &str) -> String {
    let scheme = if head.https { "https" } else { "http" };
    match head.authority.as_str() {
        "" => format!("/{}", target.trim_start_matches('/')),
        host => format!("{scheme}://{host}{target}"),
    }
}

fn strip_port(head: &mut RequestHead, what: StripPort, local: u16) {
    if what == StripPort::No {
        return;
    }
    let (host, port) = split_port(&head.authority);
    let end = host.len();
    if what == StripPort::Any || port == Some(local) {
        head.authority.truncate(end);
    }
}

fn refusal(status: u16, details: &'static str, body: &'static str) -> Box<LocalResponse> {
    Box::new(LocalResponse { status, headers: Vec::new(), body: Cow::Borrowed(body), flags: "-", details })
}

/// Names of header fields.
#[derive(Debug)]
struct Names {
    exact: FxHashSet<Box<[u8]>>,
    others: Vec<StringMatch>,
}

impl Names {
    fn new(patterns: &[StringMatch]) -> Self {
        let mut names = Self { exact: FxHashSet::default(), others: Vec::new() };
        for pattern in patterns {
            match pattern {
                StringMatch::Exact(name) => drop(names.exact.insert(name.as_bytes().into())),
                other => names.others.push(other.clone()),
            }
        }
        names
    }

    fn have(&self, name: &[u8]) -> bool {
        self.exact.contains(name)
            || self.others.iter().any(|pattern| match pattern {
                StringMatch::Prefix(start) => name.starts_with(start.as_bytes()),
                StringMatch::Suffix(end) => name.ends_with(end.as_bytes()),
                StringMatch::Present => true,
                // Templates are of paths; the others are known already.
                _ => false,
            })
    }
}

#[cfg(test)]
mod tests;
