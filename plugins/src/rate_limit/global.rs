//! Envoy's rate limit service: what it is asked, and what its answer means.

use std::sync::Arc;

use fieldgate_core::guard::{Answered, Callout, Guarded, NoAnswer};
use fieldgate_core::head::is_token;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{DescriptorEntry, GlobalLimit};
use fieldgate_core::{HeaderId, Headers};
use prost::Message;

use super::answer::Told;
use super::key::Value;
use super::proto::{
    Code, Descriptor, Entry, HeaderValue, RateLimitRequest, RateLimitResponse, SHOULD_RATE_LIMIT, Status,
    json,
};
use crate::grpc;

/// Where Envoy's filter keeps what the service tells.
const NAMESPACE: &str = "envoy.filters.http.ratelimit";

/// Bytes that an answer may have.
const ANSWER_LIMIT: usize = 64 * 1024;

/// The service, ready to be asked.
#[derive(Debug)]
pub(super) struct Global {
    ir: Arc<GlobalLimit>,
    pub fail_open: bool,
}

/// What the service said.
pub(super) struct Answer(RateLimitResponse);

impl Global {
    pub fn new(ir: &Arc<GlobalLimit>) -> Self {
        Self { ir: ir.clone(), fail_open: ir.fail_open }
    }

    /// The question; `None` if the request has nothing that the service could count.
    pub fn ask(&self, request: &Guarded<'_>) -> Option<Callout> {
        let descriptors = descriptors(&self.ir, request);
        if descriptors.is_empty() {
            return None;
        }
        let domain = self.ir.domain.to_string();
        let message = RateLimitRequest { domain, descriptors, hits_addend: 0 }.encode_to_vec();
        Some(grpc::call(&self.ir.pool, None, SHOULD_RATE_LIMIT, &message, self.ir.timeout, ANSWER_LIMIT))
    }
}

/// What a request has of the descriptors.
pub(super) fn descriptors(ir: &GlobalLimit, request: &Guarded<'_>) -> Vec<Descriptor> {
    ir.descriptors.iter().filter_map(|entries| descriptor(entries, request)).collect()
}

/// One that lacks a part is left out, as Envoy does it.
fn descriptor(entries: &[DescriptorEntry], request: &Guarded<'_>) -> Option<Descriptor> {
    let entry = |entry: &DescriptorEntry| match entry {
        DescriptorEntry::Generic(key, value) => {
            Some(Entry { key: key.to_string(), value: value.to_string() })
        }
        DescriptorEntry::Of(key, of) => {
            let value = Value::of(of, request)?.into_text();
            // The service takes no empty values.
            (!value.is_empty()).then(|| Entry { key: key.to_string(), value })
        }
    };
    Some(Descriptor { entries: entries.iter().map(entry).collect::<Option<_>>()? })
}

impl Answer {
    /// `None` if the service did not say anything that can be understood.
    pub fn read(answer: Result<Answered, NoAnswer>) -> Option<Self> {
        let message = grpc::message(&answer.ok()?).ok()?;
        let response = RateLimitResponse::decode(message).ok()?;
        (response.overall_code() != Code::Unknown).then_some(Self(response))
    }

    pub fn over_limit(&self) -> bool {
        self.0.overall_code() == Code::OverLimit
    }

    /// Adds what the service wants to be known of the request.
    pub fn learn(&self, metadata: &mut Metadata) {
        if let Some(told) = self.0.dynamic_metadata.clone() {
            metadata.dynamic.insert(NAMESPACE.to_owned(), json(told).into());
        }
    }

    /// What goes to the upstream, and to the client with its response.
    pub fn pass(&self, request: &mut Guarded<'_>) {
        add(&self.0.request_headers_to_add, &mut request.head.headers);
        add(&self.0.response_headers_to_add, request.response_headers);
    }

    /// What goes to the client with a refusal.
    pub fn refuse(&self, headers: &mut Headers) {
        add(&self.0.response_headers_to_add, headers);
    }

    pub fn body(&self) -> Option<String> {
        let body = &self.0.raw_body;
        (!body.is_empty()).then(|| String::from_utf8_lossy(body).into_owned())
    }

    /// Seconds until the request would fit, if the service says so.
    pub fn wait(&self) -> Option<u64> {
        // The service has its own, which would be there twice.
        if self.0.response_headers_to_add.iter().any(|h| h.key.eq_ignore_ascii_case("retry-after")) {
            return None;
        }
        let over = self.0.statuses.iter().filter(|status| status.code() == Code::OverLimit);
        over.filter_map(seconds_until_reset).max()
    }

    /// `None` if no limit was found for any descriptor.
    pub fn told(&self) -> Option<Told> {
        let limited: Vec<_> =
            self.0.statuses.iter().filter_map(|s| Some((s, s.current_limit.as_ref()?))).collect();
        let (tightest, limit) = limited.iter().min_by_key(|(status, _)| status.limit_remaining)?;
        let mut told = Told {
            limit: limit.requests_per_unit.into(),
            left: tightest.limit_remaining.into(),
            reset: seconds_until_reset(tightest).unwrap_or_default(),
            policies: String::new(),
        };
        for (_, limit) in &limited {
            told.policy(limit.requests_per_unit.into(), seconds_in(limit.unit), &limit.name);
        }
        Some(told)
    }
}

fn seconds_until_reset(status: &Status) -> Option<u64> {
    u64::try_from(status.duration_until_reset.as_ref()?.seconds).ok()
}

/// Months and years have no fixed length; Envoy's service reckons with these.
fn seconds_in(unit: i32) -> u64 {
    match unit {
        1 => 1,
        2 => 60,
        3 => 3_600,
        4 => 86_400,
        5 => 30 * 86_400,
        6 => 365 * 86_400,
        _ => 0,
    }
}

/// What a service names must not break a message apart, or change whose it is.
fn add(headers: &[HeaderValue], to: &mut Headers) {
    for header in headers {
        let name = header.key.to_ascii_lowercase();
        let value = if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        let id = HeaderId::of(name.as_bytes());
        let framing = id.is_hop_by_hop() || matches!(id, HeaderId::ContentLength | HeaderId::Host);
        let sound = is_token(&name) && value.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f));
        if sound && !framing {
            to.push(name.as_bytes(), value.trim_ascii());
        }
    }
}
