//! EdgePolicies to IR.

use std::sync::Arc;

use fieldgate_core::ir::{EdgeRules, GuardKind, StringMatch, StripPort};
use fieldgate_core::path::{EscapedSlashes, PathOptions};

use super::Notes;
use super::address_lists::read;
use super::attached::Refusal;
use super::guards::Maker;
use super::policies::string;
use super::routes::Surroundings;
use crate::document::Object;
use crate::kinds::edge_policy::{
    EdgePolicySpec, EscapedSlashesSpec, HostPort, PathsSpec, RequestHeadersSpec, SecurityHeadersSpec,
};
use crate::kinds::{Kind, Spec};

/// How edge rules are made.
pub(crate) const MAKER: Maker = Maker { kind: Kind::EdgePolicy, targets, make };

/// What most applications need of a request, beside what the protocol and the gateway need.
const DEFAULT_HEADERS: &[&str] = &[
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "access-control-request-headers",
    "access-control-request-method",
    "authorization",
    "baggage",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
    "cookie",
    "date",
    "dnt",
    "forwarded",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-event-id",
    "origin",
    "pragma",
    "prefer",
    "priority",
    "range",
    "referer",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "x-requested-with",
];
const DEFAULT_PREFIXES: &[&str] = &["sec-ch-", "sec-fetch-"];

fn targets(spec: &Spec) -> &[crate::kinds::fieldgate::TargetRef] {
    match spec {
        Spec::EdgePolicy(spec) => &spec.target_refs,
        _ => &[],
    }
}

fn make(object: &Object, around: &Surroundings<'_>, _: &mut Notes) -> Result<GuardKind, Refusal> {
    let Spec::EdgePolicy(spec) = &object.spec else { unreachable!("it is made for its own kind") };
    let EdgePolicySpec {
        addresses,
        limits,
        methods,
        request_headers,
        security_headers,
        paths,
        host_port,
        ..
    } = &**spec;
    let mut rules = EdgeRules {
        max_body: limits.and_then(|l| l.body_bytes),
        max_target: limits.and_then(|l| l.target_bytes),
        request_headers: request_headers.as_ref().map(names),
        methods: methods.iter().map(|m| m.as_str().into()).collect(),
        paths: paths.map(options),
        strip_port: match host_port {
            HostPort::Keep => StripPort::No,
            HostPort::StripMatching => StripPort::Matching,
            HostPort::Strip => StripPort::Any,
        },
        ..EdgeRules::default()
    };
    if let Some(spec) = addresses {
        if spec.allow.is_some() || !spec.allow_from.is_empty() {
            let inline = spec.allow.as_deref().unwrap_or_default();
            rules.allow = Some(read(object, inline, &spec.allow_from, "spec.addresses.allow", around)?);
        }
        rules.deny = read(object, &spec.deny, &spec.deny_from, "spec.addresses.deny", around)?;
    }
    if let Some(spec) = security_headers {
        secure(spec, &mut rules);
    }
    Ok(GuardKind::Edge(Box::new(rules)))
}

fn names(spec: &RequestHeadersSpec) -> Arc<[StringMatch]> {
    let mut names: Vec<StringMatch> = spec.allow.iter().map(|n| string(&n.to_ascii_lowercase())).collect();
    if spec.defaults.unwrap_or(true) {
        names.extend(DEFAULT_HEADERS.iter().map(|n| StringMatch::Exact((*n).into())));
        names.extend(DEFAULT_PREFIXES.iter().map(|n| StringMatch::Prefix((*n).into())));
    }
    names.into()
}

fn secure(spec: &SecurityHeadersSpec, rules: &mut EdgeRules) {
    let or = |given: &Option<String>, default: &str| {
        let value = given.as_deref().unwrap_or(default);
        (!value.is_empty()).then(|| Arc::<str>::from(value))
    };
    let fields = [
        ("x-content-type-options", Some("nosniff".into())),
        ("x-frame-options", or(&spec.frame_options, "SAMEORIGIN")),
        ("referrer-policy", or(&spec.referrer_policy, "strict-origin-when-cross-origin")),
        ("content-security-policy", or(&spec.content_security_policy, "")),
        ("permissions-policy", or(&spec.permissions_policy, "")),
    ];
    rules.response_headers =
        fields.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect();
    rules.transport_security = or(&spec.strict_transport_security, "max-age=31536000");
}

fn options(spec: PathsSpec) -> PathOptions {
    PathOptions {
        as_written: spec.normalize == Some(false),
        merge_slashes: spec.merge_slashes,
        escaped_slashes: match spec.escaped_slashes {
            EscapedSlashesSpec::KeepUnchanged => EscapedSlashes::Keep,
            EscapedSlashesSpec::RejectRequest => EscapedSlashes::Reject,
            EscapedSlashesSpec::UnescapeAndForward => EscapedSlashes::Unescape,
            EscapedSlashesSpec::UnescapeAndRedirect => EscapedSlashes::Redirect,
        },
        upper_case_escapes: spec.upper_case_escapes,
    }
}
