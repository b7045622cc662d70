//! What the schema of a route's filters forbids. HTTPRoute's and GRPCRoute's filters, of rules and of backends, are
//! four sets of types that differ by name: each is brought into one view, and that is checked.

use super::check::{Checks, is_token};
use super::route::Target;
use crate::diagnostic::reason;

/// One filter of any kind of route.
pub(super) struct Filter<'a> {
    /// `RequestMirror`.
    pub type_name: &'static str,
    /// The field that belongs to the type: `requestMirror`.
    pub wanted: &'static str,
    /// Every field, with whether it is set.
    pub fields: Vec<(&'static str, bool)>,
    pub headers: [(&'static str, Option<Headers<'a>>); 2],
    pub mirror: Option<Mirror<'a>>,
    pub redirect: Option<Redirect<'a>>,
    pub rewrite_hostname: Option<&'a str>,
    pub paths: [(&'static str, Option<PathModifier>); 2],
    pub cors: Option<Cors<'a>>,
}

pub(super) struct Headers<'a> {
    pub set: Vec<(&'a str, &'a str)>,
    pub add: Vec<(&'a str, &'a str)>,
    pub remove: Vec<&'a str>,
}

pub(super) struct Mirror<'a> {
    pub percent: Option<i32>,
    pub fraction: Option<(i32, Option<i32>)>,
    pub target: Target<'a>,
}

pub(super) struct Redirect<'a> {
    pub port: Option<i32>,
    pub code: Option<i64>,
    pub hostname: Option<&'a str>,
}

pub(super) struct PathModifier {
    pub is_prefix: bool,
    pub full_set: bool,
    pub prefix_set: bool,
}

pub(super) struct Cors<'a> {
    pub origins: &'a [String],
    pub methods: &'a [String],
    pub headers: &'a [String],
    pub expose: &'a [String],
    pub max_age: Option<i32>,
}

macro_rules! header_view {
    ($modifier:expr) => {
        $modifier.as_ref().map(|m| $crate::kinds::filter::Headers {
            set: m.set.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str())).collect(),
            add: m.add.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str())).collect(),
            remove: m.remove.iter().flatten().map(String::as_str).collect(),
        })
    };
}

macro_rules! mirror_view {
    ($mirror:expr) => {
        $mirror.as_ref().map(|m| $crate::kinds::filter::Mirror {
            percent: m.percent,
            fraction: m.fraction.as_ref().map(|f| (f.numerator, f.denominator)),
            target: $crate::kinds::route::Target::new(
                m.backend_ref.group.as_deref(),
                m.backend_ref.kind.as_deref(),
                m.backend_ref.namespace.as_deref(),
                m.backend_ref.port,
            ),
        })
    };
}

macro_rules! path_view {
    ($path:expr) => {
        $path.as_ref().map(|p| $crate::kinds::filter::PathModifier {
            // The two types have the same two variants under different names.
            is_prefix: format!("{:?}", p.r#type) == "ReplacePrefixMatch",
            full_set: p.replace_full_path.is_some(),
            prefix_set: p.replace_prefix_match.is_some(),
        })
    };
}

/// The view of a filter of HTTPRoute.
macro_rules! http_filter {
    ($filter:expr, HttpRouteRules) => {
        http_filter!(@view $filter, gateway_api::experimental::httproutes::HttpRouteRulesFiltersType)
    };
    ($filter:expr, HttpRouteRulesBackendRefs) => {
        http_filter!(@view $filter, gateway_api::experimental::httproutes::HttpRouteRulesBackendRefsFiltersType)
    };
    (@view $filter:expr, $type:ty) => {{
        type Type = $type;
        let f = $filter;
        let (type_name, wanted) = match f.r#type {
            Type::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
            Type::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
            Type::RequestMirror => ("RequestMirror", "requestMirror"),
            Type::RequestRedirect => ("RequestRedirect", "requestRedirect"),
            Type::UrlRewrite => ("URLRewrite", "urlRewrite"),
            Type::Cors => ("CORS", "cors"),
            Type::ExternalAuth => ("ExternalAuth", "externalAuth"),
            Type::ExtensionRef => ("ExtensionRef", "extensionRef"),
        };
        let redirect = f.request_redirect.as_ref();
        let rewrite = f.url_rewrite.as_ref();
        $crate::kinds::filter::Filter {
            type_name,
            wanted,
            fields: vec![
                ("requestHeaderModifier", f.request_header_modifier.is_some()),
                ("responseHeaderModifier", f.response_header_modifier.is_some()),
                ("requestMirror", f.request_mirror.is_some()),
                ("requestRedirect", redirect.is_some()),
                ("urlRewrite", rewrite.is_some()),
                ("cors", f.cors.is_some()),
                ("externalAuth", f.external_auth.is_some()),
                ("extensionRef", f.extension_ref.is_some()),
            ],
            headers: [
                ("requestHeaderModifier", $crate::kinds::filter::header_view!(f.request_header_modifier)),
                ("responseHeaderModifier", $crate::kinds::filter::header_view!(f.response_header_modifier)),
            ],
            mirror: $crate::kinds::filter::mirror_view!(f.request_mirror),
            redirect: redirect.map(|r| $crate::kinds::filter::Redirect {
                port: r.port,
                code: r.status_code,
                hostname: r.hostname.as_deref(),
            }),
            rewrite_hostname: rewrite.and_then(|r| r.hostname.as_deref()),
            paths: [
                ("requestRedirect", redirect.and_then(|r| $crate::kinds::filter::path_view!(r.path))),
                ("urlRewrite", rewrite.and_then(|r| $crate::kinds::filter::path_view!(r.path))),
            ],
            cors: f.cors.as_ref().map(|c| $crate::kinds::filter::Cors {
                origins: c.allow_origins.as_deref().unwrap_or_default(),
                methods: c.allow_methods.as_deref().unwrap_or_default(),
                headers: c.allow_headers.as_deref().unwrap_or_default(),
                expose: c.expose_headers.as_deref().unwrap_or_default(),
                max_age: c.max_age,
            }),
        }
    }};
}

/// The view of a filter of GRPCRoute.
macro_rules! grpc_filter {
    ($filter:expr, GrpcRouteRules) => {
        grpc_filter!(@view $filter, gateway_api::experimental::grpcroutes::GrpcRouteRulesFiltersType)
    };
    ($filter:expr, GrpcRouteRulesBackendRefs) => {
        grpc_filter!(@view $filter, gateway_api::experimental::grpcroutes::GrpcRouteRulesBackendRefsFiltersType)
    };
    (@view $filter:expr, $type:ty) => {{
        type Type = $type;
        let f = $filter;
        let (type_name, wanted) = match f.r#type {
            Type::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
            Type::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
            Type::RequestMirror => ("RequestMirror", "requestMirror"),
            Type::ExtensionRef => ("ExtensionRef", "extensionRef"),
        };
        $crate::kinds::filter::Filter {
            type_name,
            wanted,
            fields: vec![
                ("requestHeaderModifier", f.request_header_modifier.is_some()),
                ("responseHeaderModifier", f.response_header_modifier.is_some()),
                ("requestMirror", f.request_mirror.is_some()),
                ("extensionRef", f.extension_ref.is_some()),
            ],
            headers: [
                ("requestHeaderModifier", $crate::kinds::filter::header_view!(f.request_header_modifier)),
                ("responseHeaderModifier", $crate::kinds::filter::header_view!(f.response_header_modifier)),
            ],
            mirror: $crate::kinds::filter::mirror_view!(f.request_mirror),
            redirect: None,
            rewrite_hostname: None,
            paths: [("requestRedirect", None), ("urlRewrite", None)],
            cors: None,
        }
    }};
}

pub(super) use {grpc_filter, header_view, http_filter, mirror_view, path_view};

/// Checks the filters of one rule or backend. `one_prefix`: the rule has one match, by path prefix.
pub(super) fn check_filters(at: &str, filters: &[Filter<'_>], one_prefix: bool, checks: &mut Checks<'_>) {
    checks.count(at, filters.len(), 16);
    for (k, filter) in filters.iter().enumerate() {
        let at = format!("{at}[{k}]");
        let repeats = !matches!(filter.type_name, "RequestMirror" | "ExtensionRef" | "ExternalAuth");
        if repeats && filters[..k].iter().any(|f| f.type_name == filter.type_name) {
            let message = format!("a second filter of type {}", filter.type_name);
            checks.error(&at, reason::CONFLICTING_FIELDS, message, Some("put all of it into one filter"));
        }
        let other = match filter.type_name {
            "RequestRedirect" => "URLRewrite",
            "URLRewrite" => "RequestRedirect",
            _ => "",
        };
        if filters[..k].iter().any(|f| f.type_name == other) {
            let message = "RequestRedirect and URLRewrite cannot be used together";
            checks.error(
                &at,
                reason::CONFLICTING_FIELDS,
                message,
                Some("a redirect is answered at once: remove one of the two"),
            );
        }
        check_fields(&at, filter, checks);
        check_content(&at, filter, one_prefix, checks);
    }
}

fn check_fields(at: &str, filter: &Filter<'_>, checks: &mut Checks<'_>) {
    let (name, wanted) = (filter.type_name, filter.wanted);
    for (field, set) in &filter.fields {
        if *field == wanted && !set {
            let message = format!("a filter of type {name} needs the field \"{wanted}\"");
            checks.error(at, reason::MISSING_FIELD, message, None);
        }
        if *field != wanted && *set {
            let message = format!("a filter of type {name} has no \"{field}\"");
            let hint = Some("each filter does one thing: write two filters");
            checks.error(&format!("{at}.{field}"), reason::CONFLICTING_FIELDS, message, hint);
        }
    }
}

fn check_content(at: &str, filter: &Filter<'_>, one_prefix: bool, checks: &mut Checks<'_>) {
    for (field, headers) in &filter.headers {
        if let Some(headers) = headers {
            check_headers(&format!("{at}.{field}"), headers, checks);
        }
    }
    for (field, path) in &filter.paths {
        if let Some(path) = path {
            check_path_modifier(&format!("{at}.{field}.path"), path, one_prefix, checks);
        }
    }
    if let Some(mirror) = &filter.mirror {
        check_mirror(&format!("{at}.requestMirror"), mirror, checks);
    }
    if let Some(redirect) = &filter.redirect {
        check_redirect(&format!("{at}.requestRedirect"), redirect, checks);
    }
    if let Some(hostname) = filter.rewrite_hostname {
        checks.hostname(&format!("{at}.urlRewrite.hostname"), hostname, false);
    }
    if let Some(cors) = &filter.cors {
        check_cors(&format!("{at}.cors"), cors, checks);
    }
}

fn check_headers(at: &str, headers: &Headers<'_>, checks: &mut Checks<'_>) {
    for (list, headers) in [("set", &headers.set), ("add", &headers.add)] {
        checks.count(format_args!("{at}.{list}"), headers.len(), 16);
        for (i, (name, value)) in headers.iter().enumerate() {
            check_header_name(&format!("{at}.{list}[{i}].name"), name, checks);
            if headers[..i].iter().any(|(n, _)| n == name) {
                let message = format!("\"{name}\" is listed twice");
                checks.error(&format!("{at}.{list}[{i}].name"), reason::INVALID_VALUE, message, None);
            }
            if !is_header_value(value) {
                bad_header_value(&format!("{at}.{list}[{i}].value"), checks);
            }
        }
    }
    checks.count(format_args!("{at}.remove"), headers.remove.len(), 16);
    for (i, name) in headers.remove.iter().enumerate() {
        check_header_name(&format!("{at}.remove[{i}]"), name, checks);
    }
}

fn check_header_name(field: &str, name: &str, checks: &mut Checks<'_>) {
    if is_token(name) {
        return;
    }
    let hint = if name.ends_with(':') { "leave out the colon" } else { "letters, digits and -_. only" };
    checks.error(field, reason::INVALID_VALUE, format!("\"{name}\" is not the name of a header"), Some(hint));
}

/// Printable ASCII, with single spaces or tabs only in between; at most 4,096.
pub(super) fn is_header_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let is_space = |b: u8| matches!(b, b' ' | b'\t');
    !bytes.is_empty()
        && bytes.len() <= 4096
        && bytes.iter().all(|b| is_space(*b) || b.is_ascii_graphic())
        && !is_space(bytes[0])
        && !is_space(bytes[bytes.len() - 1])
        && !bytes.windows(2).any(|w| is_space(w[0]) && is_space(w[1]))
}

pub(super) fn bad_header_value(field: &str, checks: &mut Checks<'_>) {
    checks.error(
        field,
        reason::INVALID_VALUE,
        "this is not the value of a header",
        Some("1 to 4096 printable ASCII characters, with single spaces in between; no line breaks"),
    );
}

fn check_path_modifier(at: &str, path: &PathModifier, one_prefix: bool, checks: &mut Checks<'_>) {
    let (name, wanted, other) = if path.is_prefix {
        ("ReplacePrefixMatch", "replacePrefixMatch", "replaceFullPath")
    } else {
        ("ReplaceFullPath", "replaceFullPath", "replacePrefixMatch")
    };
    let (wanted_set, other_set) =
        if path.is_prefix { (path.prefix_set, path.full_set) } else { (path.full_set, path.prefix_set) };
    if !wanted_set {
        let message = format!("a path of type {name} needs the field \"{wanted}\"");
        checks.error(at, reason::MISSING_FIELD, message, None);
    }
    if other_set {
        let message = format!("a path of type {name} has no \"{other}\"");
        checks.error(&format!("{at}.{other}"), reason::CONFLICTING_FIELDS, message, None);
    }
    if path.is_prefix && !one_prefix {
        checks.error(
            at,
            reason::CONFLICTING_FIELDS,
            "ReplacePrefixMatch needs a rule with exactly one match, of type PathPrefix",
            Some("write one rule for each prefix"),
        );
    }
}

fn check_mirror(at: &str, mirror: &Mirror<'_>, checks: &mut Checks<'_>) {
    if !mirror.target.is_fine() {
        mirror.target.check(&format!("{at}.backendRef"), checks);
    }
    if let Some(percent) = mirror.percent {
        checks.range(format_args!("{at}.percent"), percent, 0, 100);
    }
    let Some((numerator, denominator)) = mirror.fraction else { return };
    if mirror.percent.is_some() {
        let message = "percent and fraction cannot be used together";
        checks.error(
            &format!("{at}.fraction"),
            reason::CONFLICTING_FIELDS,
            message,
            Some("remove one of the two"),
        );
    }
    let denominator = denominator.unwrap_or(100);
    checks.range(format_args!("{at}.fraction.denominator"), denominator, 1, i64::from(i32::MAX));
    if numerator < 0 || numerator > denominator.max(1) {
        let message = format!("expected 0 to the denominator ({denominator}), found {numerator}");
        checks.error(&format!("{at}.fraction.numerator"), reason::OUT_OF_RANGE, message, None);
    }
}

fn check_redirect(at: &str, redirect: &Redirect<'_>, checks: &mut Checks<'_>) {
    if let Some(port) = redirect.port {
        checks.port(format_args!("{at}.port"), i64::from(port));
    }
    if let Some(code) = redirect.code.filter(|c| !matches!(c, 301 | 302 | 303 | 307 | 308)) {
        let message = format!("{code} is not a redirect; allowed: 301, 302, 303, 307 or 308");
        checks.error(&format!("{at}.statusCode"), reason::INVALID_VALUE, message, None);
    }
    if let Some(hostname) = redirect.hostname {
        checks.hostname(&format!("{at}.hostname"), hostname, false);
    }
}

const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"];

fn check_cors(at: &str, cors: &Cors<'_>, checks: &mut Checks<'_>) {
    for (list, values) in
        [("allowOrigins", cors.origins), ("allowMethods", cors.methods), ("allowHeaders", cors.headers)]
    {
        checks.count(format_args!("{at}.{list}"), values.len(), 64);
        if values.len() > 1 && values.iter().any(|v| v == "*") {
            let message = "\"*\" cannot stand beside other entries";
            checks.error(
                &format!("{at}.{list}"),
                reason::CONFLICTING_FIELDS,
                message,
                Some("it already stands for all of them"),
            );
        }
    }
    for (i, origin) in cors.origins.iter().enumerate().filter(|(_, o)| !is_origin(o)) {
        let message = format!("\"{origin}\" is not an origin");
        let hint = "scheme and host, without a path: https://shop.example.com or https://*.example.com";
        checks.error(&format!("{at}.allowOrigins[{i}]"), reason::INVALID_VALUE, message, Some(hint));
    }
    for (i, method) in cors.methods.iter().enumerate().filter(|(_, m)| !METHODS.contains(&m.as_str())) {
        let message =
            format!("\"{method}\" is not allowed here; allowed: {}", crate::diagnostic::one_of(&METHODS));
        let hint = crate::diagnostic::did_you_mean_hint(method, METHODS);
        checks.error(&format!("{at}.allowMethods[{i}]"), reason::INVALID_VALUE, message, hint.as_deref());
    }
    for (list, names) in [("allowHeaders", cors.headers), ("exposeHeaders", cors.expose)] {
        for (i, name) in names.iter().enumerate() {
            check_header_name(&format!("{at}.{list}[{i}]"), name, checks);
        }
    }
    if let Some(age) = cors.max_age {
        checks.range(format_args!("{at}.maxAge"), age, 1, i64::from(i32::MAX));
    }
}

/// `*`, or `http(s)://` with a host whose first label may be `*`, and perhaps a port.
fn is_origin(origin: &str) -> bool {
    if origin == "*" {
        return true;
    }
    let Some(rest) = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")) else {
        return false;
    };
    let (host, port) = rest.rsplit_once(':').map_or((rest, None), |(h, p)| (h, Some(p)));
    let host = if host == "*" { "a" } else { host.strip_prefix("*.").unwrap_or(host) };
    let is_host =
        host.split('.').all(|l| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    is_host && port.is_none_or(|p| (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()))
}
