//! Filters of HTTPRoute and GRPCRoute to IR.
//!
//! The generated types have one filter type per place, with the same shape; all go through serde into HTTPRoute's own.

use std::sync::Arc;

use fieldgate_core::head::is_token;
use fieldgate_core::ir::{
    Cors, Filter, HeaderEdit, Match, Mirror, PathMatch, PathRewrite, Redirect, Rewrite,
};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestMirror, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectScheme as Scheme, HttpRouteRulesFiltersType as Type,
    HttpRouteRulesFiltersUrlRewrite,
};
use serde::Serialize;

use super::backends::BackendRef;

/// What is wrong with a filter: the field below it and the message.
pub(crate) type Problem = (String, String);

/// Any filter as HTTPRoute's.
pub(crate) fn common<F: Serialize>(filter: &F) -> Option<HttpRouteRulesFilters> {
    serde_json::to_value(filter).ok().and_then(|v| serde_json::from_value(v).ok())
}

/// One filter. `mirror` resolves a mirror's backend.
pub(crate) fn translate(
    filter: &HttpRouteRulesFilters,
    matches: &[Match],
    mirror: &mut dyn FnMut(&BackendRef<'_>) -> fieldgate_core::ir::BackendTarget,
) -> Result<Filter, Problem> {
    let missing = |field: &str| (String::new(), format!("the field \"{field}\" is missing"));
    match filter.r#type {
        Type::RequestHeaderModifier => {
            let edit =
                filter.request_header_modifier.as_ref().ok_or_else(|| missing("requestHeaderModifier"))?;
            Ok(Filter::RequestHeaders(Arc::new(edits(edit, "requestHeaderModifier")?)))
        }
        Type::ResponseHeaderModifier => {
            let edit =
                filter.response_header_modifier.as_ref().ok_or_else(|| missing("responseHeaderModifier"))?;
            Ok(Filter::ResponseHeaders(Arc::new(edits(edit, "responseHeaderModifier")?)))
        }
        Type::RequestRedirect => {
            let redirect = filter.request_redirect.as_ref().ok_or_else(|| missing("requestRedirect"))?;
            Ok(Filter::Redirect(Arc::new(redirect_of(redirect, matches)?)))
        }
        Type::UrlRewrite => {
            let rewrite = filter.url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
            Ok(Filter::Rewrite(Arc::new(rewrite_of(rewrite, matches)?)))
        }
        Type::RequestMirror => {
            let spec = filter.request_mirror.as_ref().ok_or_else(|| missing("requestMirror"))?;
            Ok(Filter::Mirror(Arc::new(mirror_of(spec, mirror)?)))
        }
        Type::Cors => {
            let cors = filter.cors.as_ref().ok_or_else(|| missing("cors"))?;
            let list = |v: &Option<Vec<String>>, lower: bool| {
                v.iter()
                    .flatten()
                    .map(|s| if lower { s.to_ascii_lowercase().into() } else { s.as_str().into() })
                    .collect()
            };
            Ok(Filter::Cors(Arc::new(Cors {
                allow_origins: list(&cors.allow_origins, true),
                allow_credentials: cors.allow_credentials.unwrap_or(false),
                allow_methods: list(&cors.allow_methods, false),
                allow_headers: list(&cors.allow_headers, false),
                expose_headers: list(&cors.expose_headers, false),
                max_age: cors.max_age.and_then(|a| u32::try_from(a).ok()).unwrap_or(5),
            })))
        }
        Type::ExtensionRef => Err(("extensionRef".into(), "no extension filters are known".into())),
        // A guard is an object of its own, which the rule makes.
        Type::ExternalAuth => Err((
            "externalAuth".into(),
            "external authorization is for rules, not for single backends".into(),
        )),
    }
}

/// Both header modifiers have this shape.
#[derive(serde::Deserialize)]
struct Edit {
    #[serde(default)]
    set: Vec<NameValue>,
    #[serde(default)]
    add: Vec<NameValue>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(serde::Deserialize)]
struct NameValue {
    name: String,
    value: String,
}

fn edits<E: Serialize>(edit: &E, field: &str) -> Result<HeaderEdit, Problem> {
    let edit: Edit = serde_json::to_value(edit)
        .and_then(serde_json::from_value)
        .map_err(|e| (field.to_owned(), e.to_string()))?;
    let pairs = |list: &[NameValue], part: &str| {
        list.iter()
            .enumerate()
            .map(|(at, pair)| {
                let place = format!("{field}.{part}[{at}]");
                let name = header_name(&pair.name).map_err(|m| (format!("{place}.name"), m))?;
                if pair.value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
                    return Err((
                        format!("{place}.value"),
                        "a header value cannot hold control characters".to_owned(),
                    ));
                }
                Ok((name, pair.value.as_str().into()))
            })
            .collect::<Result<Vec<_>, Problem>>()
    };
    Ok(HeaderEdit {
        set: pairs(&edit.set, "set")?,
        add: pairs(&edit.add, "add")?,
        remove: edit
            .remove
            .iter()
            .enumerate()
            .map(|(at, name)| header_name(name).map_err(|m| (format!("{field}.remove[{at}]"), m)))
            .collect::<Result<_, _>>()?,
    })
}

/// A field name that a filter may touch, in lower case. Framing is not a filter's business.
pub(crate) fn header_name(name: &str) -> Result<Arc<str>, String> {
    if !is_token(name) {
        return Err(format!("\"{name}\" is not a header name"));
    }
    let name = name.to_ascii_lowercase();
    if matches!(
        name.as_str(),
        "host" | "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te" | "keep-alive"
    ) {
        return Err(format!("the header \"{name}\" belongs to the connection and cannot be changed"));
    }
    Ok(name.into())
}

/// All path modifiers have this shape.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathModifier {
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

fn path<P: Serialize>(path: &P, matches: &[Match], field: &str) -> Result<PathRewrite, Problem> {
    let path: PathModifier = serde_json::to_value(path)
        .and_then(serde_json::from_value)
        .map_err(|e| (field.to_owned(), e.to_string()))?;
    let plain = |text: &str, part: &str| {
        let fits = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#')
            && (text.is_empty() || text.starts_with('/'));
        let message = || format!("\"{text}\" is not a path: it begins with / and has no spaces, ? or #");
        if fits { Ok(()) } else { Err((format!("{field}.{part}"), message())) }
    };
    match (path.replace_full_path, path.replace_prefix_match) {
        (Some(full), None) => {
            plain(&full, "replaceFullPath")?;
            Ok(PathRewrite::Full(full.into()))
        }
        (None, Some(prefix)) => {
            plain(&prefix, "replacePrefixMatch")?;
            if matches.iter().any(|m| !matches!(m.path, PathMatch::Prefix(_))) {
                return Err((
                    format!("{field}.replacePrefixMatch"),
                    "can only be used where every match of the rule is a PathPrefix".into(),
                ));
            }
            Ok(PathRewrite::Prefix(prefix.into()))
        }
        _ => Err((field.to_owned(), "needs replaceFullPath or replacePrefixMatch, as its type says".into())),
    }
}

fn redirect_of(
    redirect: &HttpRouteRulesFiltersRequestRedirect,
    matches: &[Match],
) -> Result<Redirect, Problem> {
    let status = redirect.status_code.unwrap_or(302);
    if ![301, 302, 303, 307, 308].contains(&status) {
        return Err((
            "requestRedirect.statusCode".into(),
            format!("{status} is not one of 301, 302, 303, 307, 308"),
        ));
    }
    Ok(Redirect {
        scheme: redirect.scheme.as_ref().map(|s| match s {
            Scheme::Http => "http".into(),
            Scheme::Https => "https".into(),
        }),
        hostname: redirect.hostname.as_deref().map(Into::into),
        path: redirect.path.as_ref().map(|p| path(p, matches, "requestRedirect.path")).transpose()?,
        port: redirect.port.map(|p| p as u16),
        status: status as u16,
    })
}

fn rewrite_of(rewrite: &HttpRouteRulesFiltersUrlRewrite, matches: &[Match]) -> Result<Rewrite, Problem> {
    Ok(Rewrite {
        hostname: rewrite.hostname.as_deref().map(Into::into),
        path: rewrite.path.as_ref().map(|p| path(p, matches, "urlRewrite.path")).transpose()?,
    })
}

fn mirror_of(
    spec: &HttpRouteRulesFiltersRequestMirror,
    resolve: &mut dyn FnMut(&BackendRef<'_>) -> fieldgate_core::ir::BackendTarget,
) -> Result<Mirror, Problem> {
    let (numerator, denominator) = match (spec.percent, &spec.fraction) {
        (Some(_), Some(_)) => {
            return Err(("requestMirror".into(), "percent and fraction cannot both be given".into()));
        }
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    };
    if numerator < 0 || denominator <= 0 || numerator > denominator {
        return Err(("requestMirror".into(), format!("{numerator}/{denominator} is not a share")));
    }
    let r = &spec.backend_ref;
    Ok(Mirror {
        backend: resolve(&BackendRef {
            group: r.group.as_deref(),
            kind: r.kind.as_deref(),
            namespace: r.namespace.as_deref(),
            name: &r.name,
            port: r.port,
        }),
        numerator: numerator as u32,
        denominator: denominator as u32,
    })
}
