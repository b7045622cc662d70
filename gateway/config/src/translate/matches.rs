//! Matches of HTTPRoute and GRPCRoute to IR: paths, headers, queries, and whether regular expressions are any.

use std::sync::Arc;

use fieldgate_core::ir::{Match, PathMatch, ValueMatch};
use gateway_api::experimental::grpcroutes::{
    GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeadersType as GrpcHeaderType,
    GrpcRouteRulesMatchesMethodType as GrpcType,
};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesMatches, HttpRouteRulesMatchesHeadersType as HeaderType,
    HttpRouteRulesMatchesPathType as PathType, HttpRouteRulesMatchesQueryParamsType as QueryType,
};

use super::filters;

/// Longest regular expression.
const MAX_REGEX: usize = 1024;

pub(crate) fn http(list: &[HttpRouteRulesMatches]) -> Result<Vec<Match>, filters::Problem> {
    if list.is_empty() {
        return Ok(vec![Match::default()]);
    }
    list.iter().enumerate().map(|(at, m)| one_match(m).map_err(|(f, e)| (format!("[{at}].{f}"), e))).collect()
}

fn one_match(m: &HttpRouteRulesMatches) -> Result<Match, filters::Problem> {
    let path = match &m.path {
        None => PathMatch::default(),
        Some(path) => {
            let value = path.value.as_deref().unwrap_or("/");
            match path.r#type.as_ref().unwrap_or(&PathType::PathPrefix) {
                PathType::Exact => PathMatch::Exact(plain_path(value)?.into()),
                PathType::PathPrefix => {
                    let trimmed = plain_path(value)?.trim_end_matches('/');
                    PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
                }
                PathType::RegularExpression => PathMatch::Regex(regex(value, "path.value")?),
            }
        }
    };
    let mut headers: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for (at, h) in m.headers.iter().flatten().enumerate() {
        let name = h.name.to_ascii_lowercase();
        if headers.iter().any(|(n, _)| **n == *name) {
            // Only the first of a name counts (HTTPHeaderMatch.name).
            continue;
        }
        let value = match h.r#type.as_ref().unwrap_or(&HeaderType::Exact) {
            HeaderType::Exact => ValueMatch::Exact(h.value.as_str().into()),
            HeaderType::RegularExpression => {
                ValueMatch::Regex(regex(&h.value, &format!("headers[{at}].value"))?)
            }
        };
        headers.push((name.into(), value));
    }
    let mut query: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for (at, q) in m.query_params.iter().flatten().enumerate() {
        if query.iter().any(|(n, _)| **n == *q.name) {
            continue;
        }
        let value = match q.r#type.as_ref().unwrap_or(&QueryType::Exact) {
            QueryType::Exact => ValueMatch::Exact(q.value.as_str().into()),
            QueryType::RegularExpression => {
                ValueMatch::Regex(regex(&q.value, &format!("queryParams[{at}].value"))?)
            }
        };
        query.push((q.name.as_str().into(), value));
    }
    let method = m.method.as_ref().and_then(|m| {
        let text = serde_json::to_value(m).ok()?;
        text.as_str().map(Arc::from)
    });
    Ok(Match { path, method, headers, query })
}

/// What HTTPPathMatch allows in exact and prefix paths; anything else could never match a canonical path.
fn plain_path(path: &str) -> Result<&str, filters::Problem> {
    let problem = |message: &str| Err(("path.value".to_owned(), format!("\"{path}\" {message}")));
    if !path.starts_with('/') {
        return problem("does not begin with /");
    }
    if path.contains("//") || path.split('/').any(|s| s == "." || s == "..") {
        return problem("holds an empty or dot segment, which a request's path never has");
    }
    if path.contains(['?', '#']) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return problem("holds a character that no path has");
    }
    Ok(path)
}

fn regex(pattern: &str, field: &str) -> Result<Arc<str>, filters::Problem> {
    if pattern.len() > MAX_REGEX {
        return Err((field.to_owned(), format!("a regular expression of more than {MAX_REGEX} bytes")));
    }
    // As it will be compiled, so that `a)(b` is found out.
    match regex::Regex::new(pattern).and_then(|_| regex::Regex::new(&format!("^(?:{pattern})$"))) {
        Ok(_) => Ok(pattern.into()),
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            let message = match marked_column(&text) {
                Some(column) => {
                    format!("\"{pattern}\" is not a regular expression: {last}, at its character {column}")
                }
                None => format!("\"{pattern}\" is not a regular expression: {last}"),
            };
            Err((field.to_owned(), message))
        }
    }
}

/// Where the message of the regex crate has its caret below the pattern, from 1.
fn marked_column(text: &str) -> Option<usize> {
    let marks = text.lines().find(|l| l.contains('^') && l.chars().all(|c| c == ' ' || c == '^'))?;
    Some(marks.find('^')? + 1 - 4)
}

pub(crate) fn grpc(list: &[GrpcRouteRulesMatches]) -> Result<Vec<Match>, filters::Problem> {
    if list.is_empty() {
        return Ok(vec![Match::default()]);
    }
    let one = |(at, m): (usize, &GrpcRouteRulesMatches)| -> Result<Match, filters::Problem> {
        let path = match &m.method {
            None => PathMatch::default(),
            Some(method) => {
                let service = method.service.as_deref().filter(|s| !s.is_empty());
                let name = method.method.as_deref().filter(|s| !s.is_empty());
                match (method.r#type.as_ref().unwrap_or(&GrpcType::Exact), service, name) {
                    (_, None, None) => PathMatch::default(),
                    (GrpcType::Exact, Some(s), Some(n)) => PathMatch::Exact(format!("/{s}/{n}").into()),
                    (GrpcType::Exact, Some(s), None) => PathMatch::Prefix(format!("/{s}").into()),
                    (GrpcType::Exact, None, Some(n)) => {
                        PathMatch::Regex(format!("/[^/]+/{}", regex::escape(n)).into())
                    }
                    (GrpcType::RegularExpression, s, n) => {
                        let part = |text: Option<&str>| {
                            text.map_or_else(|| "[^/]+".to_owned(), |t| format!("(?:{t})"))
                        };
                        for (text, field) in [(s, "service"), (n, "method")] {
                            regex(text.unwrap_or_default(), &format!("[{at}].method.{field}"))?;
                        }
                        PathMatch::Regex(format!("/{}/{}", part(s), part(n)).into())
                    }
                }
            }
        };
        let mut headers: Vec<(Arc<str>, ValueMatch)> = Vec::new();
        for (index, h) in m.headers.iter().flatten().enumerate() {
            let name = h.name.to_ascii_lowercase();
            if headers.iter().any(|(n, _)| **n == *name) {
                continue;
            }
            let value = match h.r#type {
                Some(GrpcHeaderType::RegularExpression) => {
                    ValueMatch::Regex(regex(&h.value, &format!("[{at}].headers[{index}].value"))?)
                }
                _ => ValueMatch::Exact(h.value.as_str().into()),
            };
            headers.push((name.into(), value));
        }
        Ok(Match { path, method: None, headers, query: Vec::new() })
    };
    list.iter().enumerate().map(one).collect()
}
