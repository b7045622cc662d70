//! What the schemas of Gateway API's and Kubernetes' kinds forbid beyond types: the bounds, patterns and
//! combinations that the API server checks, so that no later layer meets them.

use gateway_api::experimental::gateways::GatewaySpec;
use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use gateway_api::experimental::httproutes::{
    HttpRouteRules, HttpRouteRulesMatches, HttpRouteRulesMatchesPathType, HttpRouteSpec,
};
use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::check::{Checks, dns_label, dns_name, is_token};
use super::duration::parse_gateway_duration;
use crate::diagnostic::reason;

/// The header names of a modifier with their places.
macro_rules! headers {
    ($modifier:expr) => {{
        let mut names: Vec<(String, &str)> = Vec::new();
        if let Some(m) = $modifier {
            names.extend(
                m.set.iter().flatten().enumerate().map(|(i, h)| (format!("set[{i}].name"), h.name.as_str())),
            );
            names.extend(
                m.add.iter().flatten().enumerate().map(|(i, h)| (format!("add[{i}].name"), h.name.as_str())),
            );
            names.extend(
                m.remove.iter().flatten().enumerate().map(|(i, h)| (format!("remove[{i}]"), h.as_str())),
            );
        }
        names
    }};
}
/// The type of a filter and the field that belongs to it: one and only one. The types of a rule's and of a
/// backend's filters differ by name only.
macro_rules! http_filter {
    ($filter:ident, $types:ident, $at:ident, $checks:ident) => {{
        use gateway_api::experimental::httproutes::$types as Type;
        let fields = [
            ("requestHeaderModifier", $filter.request_header_modifier.is_some()),
            ("responseHeaderModifier", $filter.response_header_modifier.is_some()),
            ("requestMirror", $filter.request_mirror.is_some()),
            ("requestRedirect", $filter.request_redirect.is_some()),
            ("urlRewrite", $filter.url_rewrite.is_some()),
            ("cors", $filter.cors.is_some()),
            ("externalAuth", $filter.external_auth.is_some()),
            ("extensionRef", $filter.extension_ref.is_some()),
        ];
        let (name, wanted) = match $filter.r#type {
            Type::RequestHeaderModifier => ("RequestHeaderModifier", "requestHeaderModifier"),
            Type::ResponseHeaderModifier => ("ResponseHeaderModifier", "responseHeaderModifier"),
            Type::RequestMirror => ("RequestMirror", "requestMirror"),
            Type::RequestRedirect => ("RequestRedirect", "requestRedirect"),
            Type::UrlRewrite => ("URLRewrite", "urlRewrite"),
            Type::Cors => ("CORS", "cors"),
            Type::ExternalAuth => ("ExternalAuth", "externalAuth"),
            Type::ExtensionRef => ("ExtensionRef", "extensionRef"),
        };
        filter_fields(&$at, name, wanted, &fields, $checks);
        for (which, modifier) in [
            ("requestHeaderModifier", headers!(&$filter.request_header_modifier)),
            ("responseHeaderModifier", headers!(&$filter.response_header_modifier)),
        ] {
            for (place, header) in modifier {
                if !is_token(header) {
                    header_name(&format!("{}.{which}.{place}", $at()), header, $checks);
                }
            }
        }
        if let Some(redirect) = &$filter.request_redirect {
            if let Some(port) = redirect.port {
                $checks.port(&format!("{}.requestRedirect.port", $at()), i64::from(port));
            }
            if let Some(code) = redirect.status_code
                && !matches!(code, 301 | 302 | 303 | 307 | 308)
            {
                let field = format!("{}.requestRedirect.statusCode", $at());
                $checks.error(
                    &field,
                    reason::INVALID_VALUE,
                    format!("{code} is not a redirect; allowed: 301, 302, 303, 307 or 308"),
                    None,
                );
            }
            if let Some(hostname) = &redirect.hostname {
                $checks.hostname(&format!("{}.requestRedirect.hostname", $at()), hostname, false);
            }
        }
        if let Some(hostname) = $filter.url_rewrite.as_ref().and_then(|r| r.hostname.as_ref()) {
            $checks.hostname(&format!("{}.urlRewrite.hostname", $at()), hostname, false);
        }
        if let Some(mirror) = &$filter.request_mirror {
            let field = format!("{}.requestMirror", $at());
            mirror_share(
                &field,
                mirror.percent,
                mirror.fraction.as_ref().map(|f| (f.numerator, f.denominator)),
                $checks,
            );
        }
    }};
}

pub(super) fn check_gateway(spec: &GatewaySpec, checks: &mut Checks<'_>) {
    if spec.listeners.is_empty() {
        checks.error("spec.listeners", reason::WRONG_COUNT, "at least one listener is needed", None);
    }
    checks.count("spec.listeners", spec.listeners.len(), 64);
    for (i, listener) in spec.listeners.iter().enumerate() {
        let at = format!("spec.listeners[{i}]");
        checks.port(&format!("{at}.port"), i64::from(listener.port));
        section_name(&format!("{at}.name"), &listener.name, checks);
        if let Some(earlier) = spec.listeners[..i].iter().position(|l| l.name == listener.name) {
            checks.error(
                &format!("{at}.name"),
                reason::INVALID_VALUE,
                format!("spec.listeners[{earlier}] already has the name \"{}\"", listener.name),
                Some("routes choose a listener by name: each needs its own"),
            );
        }
        if let Some(hostname) = &listener.hostname {
            checks.hostname(&format!("{at}.hostname"), hostname, true);
        }
        let terminates = matches!(listener.protocol.as_str(), "HTTPS" | "TLS");
        if listener.tls.is_some() && matches!(listener.protocol.as_str(), "HTTP" | "TCP" | "UDP") {
            checks.error(
                &format!("{at}.tls"),
                reason::CONFLICTING_FIELDS,
                format!("a listener of protocol {} has no tls", listener.protocol),
                Some("set protocol: HTTPS, or remove tls"),
            );
        }
        if listener.tls.is_none() && terminates {
            checks.error(
                &at,
                reason::MISSING_FIELD,
                format!("a listener of protocol {} needs tls", listener.protocol),
                Some("add tls: {certificateRefs: [{name: ...}]}"),
            );
        }
    }
}

pub(super) fn check_http_route(spec: &HttpRouteSpec, checks: &mut Checks<'_>) {
    hostnames(spec.hostnames.as_deref(), checks);
    for (i, parent) in spec.parent_refs.iter().flatten().enumerate() {
        if let Some(port) = parent.port {
            checks.port(&format!("spec.parentRefs[{i}].port"), i64::from(port));
        }
    }
    let rules = spec.rules.as_deref().unwrap_or_default();
    if spec.rules.as_ref().is_some_and(Vec::is_empty) {
        checks.error(
            "spec.rules",
            reason::WRONG_COUNT,
            "at least one rule is needed",
            Some("remove the field for one rule that matches everything"),
        );
    }
    checks.count("spec.rules", rules.len(), 16);
    for (i, rule) in rules.iter().enumerate() {
        check_http_rule(rule, i, checks);
        if let Some(name) = &rule.name {
            section_name(&format!("spec.rules[{i}].name"), name, checks);
            if rules[..i].iter().any(|r| r.name.as_ref() == Some(name)) {
                checks.error(
                    &format!("spec.rules[{i}].name"),
                    reason::INVALID_VALUE,
                    format!("another rule is already named \"{name}\""),
                    None,
                );
            }
        }
    }
}

fn check_http_rule(rule: &HttpRouteRules, i: usize, checks: &mut Checks<'_>) {
    for (j, matched) in rule.matches.iter().flatten().enumerate() {
        check_http_match(matched, i, j, checks);
    }
    checks.count(&format!("spec.rules[{i}].matches"), rule.matches.as_ref().map_or(0, Vec::len), 64);
    checks.count(&format!("spec.rules[{i}].backendRefs"), rule.backend_refs.as_ref().map_or(0, Vec::len), 16);
    for (j, backend) in rule.backend_refs.iter().flatten().enumerate() {
        backend_ref(i, j, backend.port, backend.weight, checks);
        for (k, filter) in backend.filters.iter().flatten().enumerate() {
            let at = || format!("spec.rules[{i}].backendRefs[{j}].filters[{k}]");
            http_filter!(filter, HttpRouteRulesBackendRefsFiltersType, at, checks);
        }
    }
    for (k, filter) in rule.filters.iter().flatten().enumerate() {
        let at = || format!("spec.rules[{i}].filters[{k}]");
        http_filter!(filter, HttpRouteRulesFiltersType, at, checks);
    }
    if let Some(timeouts) = &rule.timeouts {
        let request =
            duration(&format!("spec.rules[{i}].timeouts.request"), timeouts.request.as_deref(), checks);
        let backend = duration(
            &format!("spec.rules[{i}].timeouts.backendRequest"),
            timeouts.backend_request.as_deref(),
            checks,
        );
        if let (Some(request), Some(backend)) = (request, backend)
            && !request.is_zero()
            && backend > request
        {
            checks.error(
                &format!("spec.rules[{i}].timeouts.backendRequest"),
                reason::CONFLICTING_FIELDS,
                "backendRequest cannot be longer than request",
                Some("one request to a backend is a part of the whole request"),
            );
        }
    }
    if let Some(retry) = &rule.retry {
        duration(&format!("spec.rules[{i}].retry.backoff"), retry.backoff.as_deref(), checks);
        for (k, code) in retry.codes.iter().flatten().enumerate() {
            checks.range(&format!("spec.rules[{i}].retry.codes[{k}]"), *code, 400, 599);
        }
        if let Some(attempts) = retry.attempts {
            checks.range(&format!("spec.rules[{i}].retry.attempts"), attempts, 0, 1000);
        }
    }
}

fn check_http_match(matched: &HttpRouteRulesMatches, i: usize, j: usize, checks: &mut Checks<'_>) {
    if let Some(path) = &matched.path
        && let Some(value) = &path.value
        && !matches!(path.r#type, Some(HttpRouteRulesMatchesPathType::RegularExpression))
    {
        path_value(&format!("spec.rules[{i}].matches[{j}].path.value"), value, checks);
    }
    for (k, header) in matched.headers.iter().flatten().enumerate() {
        if !is_token(&header.name) {
            header_name(&format!("spec.rules[{i}].matches[{j}].headers[{k}].name"), &header.name, checks);
        }
    }
    for (k, query) in matched.query_params.iter().flatten().enumerate() {
        if query.name.is_empty() {
            let field = format!("spec.rules[{i}].matches[{j}].queryParams[{k}].name");
            checks.error(&field, reason::INVALID_VALUE, "a query parameter needs a name", None);
        }
    }
}

fn path_value(field: &str, value: &str, checks: &mut Checks<'_>) {
    let wrong = if !value.starts_with('/') {
        "does not begin with \"/\""
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
    } else if value.to_ascii_lowercase().contains("%2f") {
        "has an encoded slash (%2F)"
    } else {
        return;
    };
    let hint = if value.contains(['*', '^', '(']) {
        Some("for a pattern, set type: RegularExpression")
    } else {
        None
    };
    checks.error(field, reason::INVALID_VALUE, format!("the path \"{value}\" {wrong}"), hint);
}

fn filter_fields(
    at: &impl Fn() -> String,
    name: &str,
    wanted: &str,
    fields: &[(&str, bool)],
    checks: &mut Checks<'_>,
) {
    for (field, set) in fields {
        if *field == wanted && !set {
            let message = format!("a filter of type {name} needs the field \"{wanted}\"");
            checks.error(&at(), reason::MISSING_FIELD, message, None);
        }
        if *field != wanted && *set {
            checks.error(
                &format!("{}.{field}", at()),
                reason::CONFLICTING_FIELDS,
                format!("a filter of type {name} has no \"{field}\""),
                Some("each filter does one thing: write two filters"),
            );
        }
    }
}

fn mirror_share(
    field: &str,
    percent: Option<i32>,
    fraction: Option<(i32, Option<i32>)>,
    checks: &mut Checks<'_>,
) {
    if let Some(percent) = percent {
        checks.range(&format!("{field}.percent"), percent, 0, 100);
    }
    let Some((numerator, denominator)) = fraction else { return };
    if percent.is_some() {
        let message = "percent and fraction cannot be used together";
        checks.error(
            &format!("{field}.fraction"),
            reason::CONFLICTING_FIELDS,
            message,
            Some("remove one of the two"),
        );
    }
    let denominator = denominator.unwrap_or(100);
    checks.range(&format!("{field}.fraction.denominator"), denominator, 1, i64::from(i32::MAX));
    if numerator < 0 || numerator > denominator.max(1) {
        let message = format!("expected 0 to the denominator ({denominator}), found {numerator}");
        checks.error(&format!("{field}.fraction.numerator"), reason::OUT_OF_RANGE, message, None);
    }
}

pub(super) fn check_grpc_route(spec: &GrpcRouteSpec, checks: &mut Checks<'_>) {
    hostnames(spec.hostnames.as_deref(), checks);
    for (i, parent) in spec.parent_refs.iter().flatten().enumerate() {
        if let Some(port) = parent.port {
            checks.port(&format!("spec.parentRefs[{i}].port"), i64::from(port));
        }
    }
    checks.count("spec.rules", spec.rules.as_ref().map_or(0, Vec::len), 16);
    for (i, rule) in spec.rules.iter().flatten().enumerate() {
        for (j, backend) in rule.backend_refs.iter().flatten().enumerate() {
            backend_ref(i, j, backend.port, backend.weight, checks);
        }
        for (j, matched) in rule.matches.iter().flatten().enumerate() {
            if let Some(method) = &matched.method
                && method.method.is_none()
                && method.service.is_none()
            {
                let field = format!("spec.rules[{i}].matches[{j}].method");
                checks.error(
                    &field,
                    reason::MISSING_FIELD,
                    "neither service nor method is set",
                    Some("set at least one of them"),
                );
            }
            for (k, header) in matched.headers.iter().flatten().enumerate() {
                if !is_token(&header.name) {
                    header_name(
                        &format!("spec.rules[{i}].matches[{j}].headers[{k}].name"),
                        &header.name,
                        checks,
                    );
                }
            }
        }
    }
}

pub(super) fn check_reference_grant(spec: &ReferenceGrantSpec, checks: &mut Checks<'_>) {
    for (field, count) in [("spec.from", spec.from.len()), ("spec.to", spec.to.len())] {
        if count == 0 {
            checks.error(field, reason::WRONG_COUNT, "at least one entry is needed", None);
        }
    }
    for (i, from) in spec.from.iter().enumerate() {
        if let Err(why) = dns_label(&from.namespace) {
            let message = format!("\"{}\" is not a namespace: {why}", from.namespace);
            checks.error(&format!("spec.from[{i}].namespace"), reason::INVALID_NAME, message, None);
        }
    }
}

pub(super) fn check_service(spec: &ServiceSpec, checks: &mut Checks<'_>) {
    let ports = spec.ports.as_deref().unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        checks.port(&format!("spec.ports[{i}].port"), i64::from(port.port));
        if ports.len() > 1 && port.name.as_ref().is_none_or(String::is_empty) {
            let field = format!("spec.ports[{i}]");
            checks.error(
                &field,
                reason::MISSING_FIELD,
                "each of several ports needs a name",
                Some("add name: ..."),
            );
        }
        if let Some(name) = &port.name
            && ports[..i].iter().any(|p| p.name.as_ref() == Some(name))
        {
            let message = format!("another port is already named \"{name}\"");
            checks.error(&format!("spec.ports[{i}].name"), reason::INVALID_VALUE, message, None);
        }
    }
}

pub(super) fn check_endpoint_slice(slice: &EndpointSlice, checks: &mut Checks<'_>) {
    let types = ["IPv4", "IPv6", "FQDN"];
    if !types.contains(&slice.address_type.as_str()) {
        let message = format!(
            "\"{}\" is not allowed here; allowed: {}",
            slice.address_type,
            crate::diagnostic::one_of(&types)
        );
        let hint = crate::diagnostic::did_you_mean_hint(&slice.address_type, types);
        checks.error("addressType", reason::INVALID_VALUE, message, hint.as_deref());
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let fits = match slice.address_type.as_str() {
                "IPv4" => address.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => address.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !fits {
                let message = format!("\"{address}\" is not an {} address", slice.address_type);
                checks.error(&format!("endpoints[{i}].addresses[{j}]"), reason::INVALID_VALUE, message, None);
            }
        }
    }
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            checks.port(&format!("ports[{i}].port"), i64::from(number));
        }
    }
}

fn hostnames(hostnames: Option<&[String]>, checks: &mut Checks<'_>) {
    let hostnames = hostnames.unwrap_or_default();
    checks.count("spec.hostnames", hostnames.len(), 16);
    for (i, hostname) in hostnames.iter().enumerate() {
        // Built only for what is wrong: a hundred thousand routes come through here.
        let host = hostname.strip_prefix("*.").unwrap_or(hostname);
        if dns_name(host).is_err() || host.as_bytes().last().is_some_and(u8::is_ascii_digit) {
            checks.hostname(&format!("spec.hostnames[{i}]"), hostname, true);
        }
    }
}

fn backend_ref(rule: usize, backend: usize, port: Option<i32>, weight: Option<i32>, checks: &mut Checks<'_>) {
    if let Some(port) = port.filter(|p| !(1..=65535).contains(p)) {
        checks.port(&format!("spec.rules[{rule}].backendRefs[{backend}].port"), i64::from(port));
    }
    if let Some(weight) = weight.filter(|w| !(0..=1_000_000).contains(w)) {
        checks.range(&format!("spec.rules[{rule}].backendRefs[{backend}].weight"), weight, 0, 1_000_000);
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

fn section_name(field: &str, name: &str, checks: &mut Checks<'_>) {
    if let Err(why) = dns_name(name) {
        checks.error(field, reason::INVALID_NAME, format!("\"{name}\" is not a name: {why}"), None);
    }
}

fn header_name(field: &str, name: &str, checks: &mut Checks<'_>) {
    let hint = name.ends_with(':').then_some("leave out the colon");
    checks.error(field, reason::INVALID_VALUE, format!("\"{name}\" is not the name of a header"), hint);
}
