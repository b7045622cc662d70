//! What the schemas of HTTPRoute and GRPCRoute (Gateway API 1.6) forbid beyond types: the bounds, patterns and
//! combinations that the API server checks, so that no later layer meets them.

use gateway_api::experimental::grpcroutes::{
    GrpcRouteParentRefs, GrpcRouteRules, GrpcRouteRulesSessionPersistence,
    GrpcRouteRulesSessionPersistenceCookieConfigLifetimeType as GrpcLifetime,
    GrpcRouteRulesSessionPersistenceType as GrpcSessionType, GrpcRouteSpec,
};
use gateway_api::experimental::httproutes::{
    HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType,
    HttpRouteRulesMatchesPathType, HttpRouteRulesSessionPersistence,
    HttpRouteRulesSessionPersistenceCookieConfigLifetimeType as HttpLifetime,
    HttpRouteRulesSessionPersistenceType as HttpSessionType, HttpRouteSpec,
};

use super::check::{Checks, dns_label, dns_name, is_token};
use super::duration::parse_gateway_duration;
use super::filter::{Filter, check_filters, grpc_filter, http_filter};
use crate::diagnostic::reason;

/// Over all rules of a route.
const MAX_MATCHES: usize = 128;

pub(super) fn check_http_route(spec: &HttpRouteSpec, checks: &mut Checks<'_>) {
    check_hostnames(spec.hostnames.as_deref(), checks);
    check_parents(&spec.parent_refs.iter().flatten().map(Parent::from).collect::<Vec<_>>(), checks);
    if spec.rules.as_ref().is_some_and(Vec::is_empty) {
        let hint = Some("remove the field for one rule that matches everything");
        checks.error("spec.rules", reason::WRONG_COUNT, "at least one rule is needed", hint);
    }
    let rules = spec.rules.as_deref().unwrap_or_default();
    check_rules(rules.iter().map(|r| (r.name.as_deref(), r.matches.as_ref().map_or(0, Vec::len))), checks);
    for (i, rule) in rules.iter().enumerate() {
        check_http_rule(rule, i, checks);
    }
}

pub(super) fn check_grpc_route(spec: &GrpcRouteSpec, checks: &mut Checks<'_>) {
    check_hostnames(spec.hostnames.as_deref(), checks);
    check_parents(&spec.parent_refs.iter().flatten().map(Parent::from).collect::<Vec<_>>(), checks);
    let rules = spec.rules.as_deref().unwrap_or_default();
    check_rules(rules.iter().map(|r| (r.name.as_deref(), r.matches.as_ref().map_or(0, Vec::len))), checks);
    for (i, rule) in rules.iter().enumerate() {
        check_grpc_rule(rule, i, checks);
    }
}

fn check_http_rule(rule: &HttpRouteRules, i: usize, checks: &mut Checks<'_>) {
    for (j, matched) in rule.matches.iter().flatten().enumerate() {
        check_http_match(matched, i, j, checks);
    }
    checks.count(
        format_args!("spec.rules[{i}].backendRefs"),
        rule.backend_refs.as_ref().map_or(0, Vec::len),
        16,
    );
    let one_prefix = matches_one_prefix(rule);
    for (j, backend) in rule.backend_refs.iter().flatten().enumerate() {
        let target = Target::new(
            backend.group.as_deref(),
            backend.kind.as_deref(),
            backend.namespace.as_deref(),
            backend.port,
        );
        check_backend(i, j, &target, backend.weight, checks);
        if let Some(filters) = &backend.filters {
            let filters: Vec<Filter<'_>> =
                filters.iter().map(|f| http_filter!(f, HttpRouteRulesBackendRefs)).collect();
            check_filters(&format!("spec.rules[{i}].backendRefs[{j}].filters"), &filters, one_prefix, checks);
        }
    }
    if let Some(filters) = &rule.filters {
        let filters: Vec<Filter<'_>> = filters.iter().map(|f| http_filter!(f, HttpRouteRules)).collect();
        check_filters(&format!("spec.rules[{i}].filters"), &filters, one_prefix, checks);
        let redirect = filters.iter().position(|f| f.type_name == "RequestRedirect");
        if let Some(k) = redirect
            && rule.backend_refs.as_ref().is_some_and(|b| !b.is_empty())
        {
            checks.error(
                &format!("spec.rules[{i}].filters[{k}]"),
                reason::CONFLICTING_FIELDS,
                "a rule that redirects cannot have backendRefs",
                Some("a redirect is answered at once: remove the backendRefs, or use two rules"),
            );
        }
    }
    check_timeouts(rule, i, checks);
    check_retry(rule, i, checks);
    if let Some(session) = &rule.session_persistence {
        Session::from(session).check(&format!("spec.rules[{i}].sessionPersistence"), checks);
    }
}

/// A sessionPersistence, of either kind of route.
struct Session<'a> {
    name: Option<&'a str>,
    by_header: bool,
    cookie_config: bool,
    permanent: bool,
    absolute: Option<&'a str>,
    idle: Option<&'a str>,
}

macro_rules! session {
    ($type:ident, $kind:ident, $lifetime:ident) => {
        impl<'a> From<&'a $type> for Session<'a> {
            fn from(s: &'a $type) -> Self {
                let lifetime = s.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_ref());
                Self {
                    name: s.session_name.as_deref(),
                    by_header: matches!(s.r#type, Some($kind::Header)),
                    cookie_config: s.cookie_config.is_some(),
                    permanent: matches!(lifetime, Some($lifetime::Permanent)),
                    absolute: s.absolute_timeout.as_deref(),
                    idle: s.idle_timeout.as_deref(),
                }
            }
        }
    };
}
session!(HttpRouteRulesSessionPersistence, HttpSessionType, HttpLifetime);
session!(GrpcRouteRulesSessionPersistence, GrpcSessionType, GrpcLifetime);

impl Session<'_> {
    fn check(&self, at: &str, checks: &mut Checks<'_>) {
        duration(&format!("{at}.absoluteTimeout"), self.absolute, checks);
        duration(&format!("{at}.idleTimeout"), self.idle, checks);
        if let Some(name) = self.name {
            let what = if self.by_header { "the name of a header" } else { "the name of a cookie" };
            checks.token(&format!("{at}.sessionName"), name, what);
            checks.count(format_args!("{at}.sessionName"), name.len(), 128);
        }
        if self.by_header && self.cookie_config {
            let message = "cookieConfig says nothing of a session by header";
            let hint = Some("remove it, or set type: Cookie");
            checks.error(&format!("{at}.cookieConfig"), reason::CONFLICTING_FIELDS, message, hint);
        }
        if self.permanent && self.absolute.is_none() {
            let message = "a permanent cookie needs an absoluteTimeout";
            checks.error(at, reason::MISSING_FIELD, message, Some("add absoluteTimeout: 24h"));
        }
    }
}

/// What `replacePrefixMatch` replaces must be known.
fn matches_one_prefix(rule: &HttpRouteRules) -> bool {
    match rule.matches.as_deref() {
        // Without matches, the rule matches the prefix "/".
        None | Some([]) => true,
        Some([only]) => only
            .path
            .as_ref()
            .is_none_or(|p| matches!(p.r#type, None | Some(HttpRouteRulesMatchesPathType::PathPrefix))),
        Some(_) => false,
    }
}

fn check_timeouts(rule: &HttpRouteRules, i: usize, checks: &mut Checks<'_>) {
    let Some(timeouts) = &rule.timeouts else { return };
    let at = |name: &str| format!("spec.rules[{i}].timeouts.{name}");
    let request = duration(&at("request"), timeouts.request.as_deref(), checks);
    let backend = duration(&at("backendRequest"), timeouts.backend_request.as_deref(), checks);
    if let (Some(request), Some(backend)) = (request, backend)
        && !request.is_zero()
        && backend > request
    {
        checks.error(
            &at("backendRequest"),
            reason::CONFLICTING_FIELDS,
            "backendRequest cannot be longer than request",
            Some("one request to a backend is a part of the whole request"),
        );
    }
}

fn check_retry(rule: &HttpRouteRules, i: usize, checks: &mut Checks<'_>) {
    let Some(retry) = &rule.retry else { return };
    duration(&format!("spec.rules[{i}].retry.backoff"), retry.backoff.as_deref(), checks);
    let codes = retry.codes.as_deref().unwrap_or_default();
    for (k, code) in codes.iter().enumerate() {
        let field = format!("spec.rules[{i}].retry.codes[{k}]");
        checks.range(&field, *code, 400, 599);
        if codes[..k].contains(code) {
            checks.error(&field, reason::INVALID_VALUE, format!("{code} is listed twice"), None);
        }
    }
    if let Some(attempts) = retry.attempts {
        checks.range(format_args!("spec.rules[{i}].retry.attempts"), attempts, 1, i64::from(i32::MAX));
    }
}

fn check_http_match(matched: &HttpRouteRulesMatches, i: usize, j: usize, checks: &mut Checks<'_>) {
    let at = || format!("spec.rules[{i}].matches[{j}]");
    if let Some(path) = &matched.path
        && let Some(value) = &path.value
        && !matches!(path.r#type, Some(HttpRouteRulesMatchesPathType::RegularExpression))
    {
        check_path(value, &|| format!("{}.path.value", at()), checks);
    }
    let headers = matched.headers.as_deref().unwrap_or_default();
    check_names("headers", headers.iter().map(|h| h.name.as_str()), &at, checks);
    for (k, header) in headers.iter().enumerate() {
        let is_regex = matches!(header.r#type, Some(HttpRouteRulesMatchesHeadersType::RegularExpression));
        if !is_regex && !super::filter::is_header_value(&header.value) {
            super::filter::bad_header_value(&format!("{}.headers[{k}].value", at()), checks);
        }
    }
    let query = matched.query_params.as_deref().unwrap_or_default();
    check_names("queryParams", query.iter().map(|q| q.name.as_str()), &at, checks);
}

fn check_grpc_rule(rule: &GrpcRouteRules, i: usize, checks: &mut Checks<'_>) {
    checks.count(
        format_args!("spec.rules[{i}].backendRefs"),
        rule.backend_refs.as_ref().map_or(0, Vec::len),
        16,
    );
    for (j, backend) in rule.backend_refs.iter().flatten().enumerate() {
        let target = Target::new(
            backend.group.as_deref(),
            backend.kind.as_deref(),
            backend.namespace.as_deref(),
            backend.port,
        );
        check_backend(i, j, &target, backend.weight, checks);
        if let Some(filters) = &backend.filters {
            let filters: Vec<Filter<'_>> =
                filters.iter().map(|f| grpc_filter!(f, GrpcRouteRulesBackendRefs)).collect();
            check_filters(&format!("spec.rules[{i}].backendRefs[{j}].filters"), &filters, true, checks);
        }
    }
    if let Some(filters) = &rule.filters {
        let filters: Vec<Filter<'_>> = filters.iter().map(|f| grpc_filter!(f, GrpcRouteRules)).collect();
        check_filters(&format!("spec.rules[{i}].filters"), &filters, true, checks);
    }
    if let Some(session) = &rule.session_persistence {
        Session::from(session).check(&format!("spec.rules[{i}].sessionPersistence"), checks);
    }
    for (j, matched) in rule.matches.iter().flatten().enumerate() {
        let at = || format!("spec.rules[{i}].matches[{j}]");
        if let Some(method) = &matched.method
            && method.method.is_none()
            && method.service.is_none()
        {
            let field = format!("{}.method", at());
            checks.error(
                &field,
                reason::MISSING_FIELD,
                "neither service nor method is set",
                Some("set at least one of them"),
            );
        }
        let headers = matched.headers.as_deref().unwrap_or_default();
        check_names("headers", headers.iter().map(|h| h.name.as_str()), &at, checks);
    }
}

/// The names of one match's headers or query parameters.
fn check_names<'a>(
    list: &str,
    names: impl ExactSizeIterator<Item = &'a str> + Clone,
    at: &impl Fn() -> String,
    checks: &mut Checks<'_>,
) {
    if names.len() == 0 {
        return;
    }
    checks.count(format_args!("{}.{list}", at()), names.len(), 16);
    for (k, name) in names.clone().enumerate() {
        let field = || format!("{}.{list}[{k}].name", at());
        if !is_token(name) {
            let what = if list == "headers" { "a header" } else { "a query parameter" };
            checks.error(
                &field(),
                reason::INVALID_VALUE,
                format!("\"{name}\" is not the name of {what}"),
                None,
            );
        }
        if names.clone().take(k).any(|n| n == name) {
            let message = format!("\"{name}\" is listed twice: one value cannot match both");
            checks.error(
                &field(),
                reason::INVALID_VALUE,
                message,
                Some("use two matches for \"either, or\""),
            );
        }
    }
}

fn check_path(value: &str, field: &impl Fn() -> String, checks: &mut Checks<'_>) {
    let wrong = if !value.starts_with('/') {
        "does not begin with \"/\""
    } else if value.len() > 1024 {
        "is longer than 1024 characters"
    } else if value.contains("//") {
        "has an empty segment (//)"
    } else if value.contains("/./")
        || value.contains("/../")
        || value.ends_with("/..")
        || value.ends_with("/.")
    {
        "has a relative segment (. or ..)"
    } else if value.contains('#') {
        "has a fragment (#)"
    } else if value.contains('?') {
        "has a query (?)"
    } else if value.contains("%2f") || value.contains("%2F") {
        "has an encoded slash (%2F)"
    } else if !is_path(value) {
        "has a character that a path cannot have"
    } else {
        return;
    };
    let hint = if value.contains(['*', '^', '(', '[']) {
        Some("for a pattern, set type: RegularExpression")
    } else if value.contains('?') {
        Some("match query parameters by queryParams")
    } else if !value.is_ascii() || value.contains(' ') {
        Some("percent-encode it: a space is %20")
    } else {
        None
    };
    checks.error(&field(), reason::INVALID_VALUE, format!("the path \"{value}\" {wrong}"), hint);
}

/// `pchar` of RFC 3986 and `/`.
fn is_path(value: &str) -> bool {
    let bytes = value.as_bytes();
    bytes.iter().enumerate().all(|(i, b)| match b {
        b'%' => bytes.get(i + 1..i + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)),
        b => b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(b),
    })
}

fn check_rules<'a>(
    rules: impl ExactSizeIterator<Item = (Option<&'a str>, usize)> + Clone,
    checks: &mut Checks<'_>,
) {
    checks.count("spec.rules", rules.len(), 16);
    let total: usize = rules.clone().map(|(_, matches)| matches).sum();
    if total > MAX_MATCHES {
        let message =
            format!("at most {MAX_MATCHES} matches are allowed in all rules together, found {total}");
        checks.error("spec.rules", reason::WRONG_COUNT, message, Some("use several routes"));
    }
    for (i, (name, matches)) in rules.clone().enumerate() {
        if matches > 64 {
            checks.count(format_args!("spec.rules[{i}].matches"), matches, 64);
        }
        let Some(name) = name else { continue };
        check_section(&format!("spec.rules[{i}].name"), name, checks);
        if rules.clone().take(i).any(|(n, _)| n == Some(name)) {
            let message = format!("another rule is already named \"{name}\"");
            checks.error(&format!("spec.rules[{i}].name"), reason::INVALID_VALUE, message, None);
        }
    }
}

/// A parentRef, of either kind of route.
#[derive(PartialEq)]
struct Parent<'a> {
    group: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: &'a str,
    section: Option<&'a str>,
    port: Option<i32>,
}

macro_rules! parent {
    ($type:ident) => {
        impl<'a> From<&'a $type> for Parent<'a> {
            fn from(p: &'a $type) -> Self {
                Self {
                    group: p.group.as_deref(),
                    kind: p.kind.as_deref(),
                    namespace: p.namespace.as_deref(),
                    name: &p.name,
                    section: p.section_name.as_deref(),
                    port: p.port,
                }
            }
        }
    };
}
parent!(HttpRouteParentRefs);
parent!(GrpcRouteParentRefs);

impl Parent<'_> {
    fn is_same_object(&self, other: &Self) -> bool {
        (self.group, self.kind, self.namespace, self.name)
            == (other.group, other.kind, other.namespace, other.name)
    }

    fn is_whole(&self) -> bool {
        self.section.is_none() && self.port.is_none()
    }
}

fn check_parents(parents: &[Parent<'_>], checks: &mut Checks<'_>) {
    checks.count("spec.parentRefs", parents.len(), 32);
    for (i, parent) in parents.iter().enumerate() {
        let at = |field: &str| format!("spec.parentRefs[{i}].{field}");
        if let Some(port) = parent.port {
            checks.port(at("port"), i64::from(port));
        }
        if let Some(section) = parent.section {
            check_section(&at("sectionName"), section, checks);
        }
        if let Some(namespace) = parent.namespace {
            check_namespace(&at("namespace"), namespace, checks);
        }
        let clash = parents[..i]
            .iter()
            .find(|p| p.is_same_object(parent) && (*p == parent || p.is_whole() || parent.is_whole()));
        if clash.is_some() {
            checks.error(
                &format!("spec.parentRefs[{i}]"),
                reason::CONFLICTING_FIELDS,
                format!("\"{}\" is already a parent, and the two cannot be told apart", parent.name),
                Some("give each its own sectionName or port, or remove one"),
            );
        }
    }
}

/// What a backendRef names.
pub(super) struct Target<'a> {
    is_service: bool,
    namespace: Option<&'a str>,
    port: Option<i32>,
}

impl<'a> Target<'a> {
    pub(super) fn new(
        group: Option<&str>,
        kind: Option<&str>,
        namespace: Option<&'a str>,
        port: Option<i32>,
    ) -> Self {
        let is_service = matches!(group, None | Some("")) && matches!(kind, None | Some("Service"));
        Self { is_service, namespace, port }
    }

    pub(super) fn is_fine(&self) -> bool {
        self.port.map_or(!self.is_service, |p| (1..=65535).contains(&p))
            && self.namespace.is_none_or(|n| dns_label(n).is_ok())
    }

    /// Says what is wrong with a target that is not fine.
    pub(super) fn check(&self, at: &str, checks: &mut Checks<'_>) {
        match self.port {
            Some(port) => checks.port(format_args!("{at}.port"), i64::from(port)),
            None if self.is_service => {
                checks.error(
                    at,
                    reason::MISSING_FIELD,
                    "a reference to a Service needs a port",
                    Some("add port: ..."),
                );
            }
            None => {}
        }
        if let Some(namespace) = self.namespace {
            check_namespace(&format!("{at}.namespace"), namespace, checks);
        }
    }
}

fn check_backend(
    rule: usize,
    backend: usize,
    target: &Target<'_>,
    weight: Option<i32>,
    checks: &mut Checks<'_>,
) {
    let at = || format!("spec.rules[{rule}].backendRefs[{backend}]");
    // Paths are built only for what is wrong: a hundred thousand routes come through here.
    if !target.is_fine() {
        target.check(&at(), checks);
    }
    if let Some(weight) = weight.filter(|w| !(0..=1_000_000).contains(w)) {
        checks.range(format_args!("{}.weight", at()), weight, 0, 1_000_000);
    }
}

fn check_hostnames(hostnames: Option<&[String]>, checks: &mut Checks<'_>) {
    let hostnames = hostnames.unwrap_or_default();
    checks.count("spec.hostnames", hostnames.len(), 16);
    for (i, hostname) in hostnames.iter().enumerate() {
        let host = hostname.strip_prefix("*.").unwrap_or(hostname);
        if dns_name(host).is_err() || host.as_bytes().last().is_some_and(u8::is_ascii_digit) {
            checks.hostname(&format!("spec.hostnames[{i}]"), hostname, true);
        }
    }
}

fn duration(field: &str, text: Option<&str>, checks: &mut Checks<'_>) -> Option<std::time::Duration> {
    match parse_gateway_duration(text?) {
        Ok(duration) => Some(duration),
        Err(e) => {
            checks.error(field, reason::INVALID_DURATION, e.message, Some(&e.hint));
            None
        }
    }
}

pub(super) fn check_section(field: &str, name: &str, checks: &mut Checks<'_>) {
    if let Err(why) = dns_name(name) {
        checks.error(field, reason::INVALID_NAME, format!("\"{name}\" is not a name: {why}"), None);
    }
}

pub(super) fn check_namespace(field: &str, namespace: &str, checks: &mut Checks<'_>) {
    if let Err(why) = dns_label(namespace) {
        checks.error(field, reason::INVALID_NAME, format!("\"{namespace}\" is not a namespace: {why}"), None);
    }
}
