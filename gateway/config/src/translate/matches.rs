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

use thin_vec::ThinVec;

use super::filters;

/// Longest regular expression.
const MAX_REGEX: usize = 1024;

/// Any text.
const ANY: &str = "(?s).*";

/// The matches of a rule, and what is wrong with them. A condition that cannot be understood stands there as the widest
/// that could be meant: nothing that the match was to take is lost to other rules, and its rank among them stays.
pub(crate) fn http(list: &[HttpRouteRulesMatches]) -> (Vec<Match>, Vec<filters::Problem>) {
    if list.is_empty() {
        return (vec![Match::default()], Vec::new());
    }
    let mut problems = Vec::new();
    // No longer than it must be: there are a hundred thousand of these.
    let mut matches = Vec::with_capacity(list.len());
    matches.extend(list.iter().enumerate().filter_map(|(at, m)| one_match(at, m, &mut problems)));
    (matches, problems)
}

fn one_match(at: usize, m: &HttpRouteRulesMatches, problems: &mut Vec<filters::Problem>) -> Option<Match> {
    let path = match &m.path {
        None => PathMatch::default(),
        Some(path) => {
            let value = path.value.as_deref().unwrap_or("/");
            let field = || format!("[{at}].path.value");
            let kind = path.r#type.as_ref().unwrap_or(&PathType::PathPrefix);
            match (kind, plain_path(value)) {
                (PathType::RegularExpression, _) => {
                    PathMatch::Regex(regex_or(value, field, || any_after(value), problems))
                }
                (PathType::Exact, Ok(())) => PathMatch::Exact(value.into()),
                (PathType::PathPrefix, Ok(())) => {
                    let trimmed = value.trim_end_matches('/');
                    PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
                }
                (_, Err(message)) => {
                    // No request has such a path, so that none is lost without the match.
                    problems.push((field(), message));
                    return None;
                }
            }
        }
    };
    let headers = m.headers.iter().flatten();
    let regex = |kind: &Option<HeaderType>| matches!(kind, Some(HeaderType::RegularExpression));
    let headers = header_matches(headers.map(|h| (&*h.name, &*h.value, regex(&h.r#type))), at, problems);
    let mut query: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for (index, q) in m.query_params.iter().flatten().enumerate() {
        if query.iter().any(|(n, _)| **n == *q.name) {
            continue;
        }
        let field = || format!("[{at}].queryParams[{index}].value");
        let is_regex = matches!(q.r#type, Some(QueryType::RegularExpression));
        query.push((q.name.as_str().into(), value(&q.value, is_regex, field, problems)));
    }
    let method = m.method.as_ref().and_then(|m| {
        let text = serde_json::to_value(m).ok()?;
        text.as_str().map(Arc::from)
    });
    Some(Match { path, method, headers: headers.into(), query: query.into() })
}

fn value(
    text: &str,
    is_regex: bool,
    field: impl Fn() -> String,
    problems: &mut Vec<filters::Problem>,
) -> ValueMatch {
    if is_regex {
        ValueMatch::Regex(regex_or(text, field, || ANY.into(), problems))
    } else {
        ValueMatch::Exact(text.into())
    }
}

/// Header matches of either kind of route, each as name, value, and whether that is a pattern. Only the first of a name
/// counts (HTTPHeaderMatch.name, GRPCHeaderMatch.name).
fn header_matches<'m>(
    matches: impl Iterator<Item = (&'m str, &'m str, bool)>,
    at: usize,
    problems: &mut Vec<filters::Problem>,
) -> Vec<(Arc<str>, ValueMatch)> {
    let mut headers: Vec<(Arc<str>, ValueMatch)> = Vec::new();
    for (index, (name, text, is_regex)) in matches.enumerate() {
        let name = name.to_ascii_lowercase();
        if headers.iter().any(|(n, _)| **n == *name) {
            continue;
        }
        let field = || format!("[{at}].headers[{index}].value");
        headers.push((name.into(), value(text, is_regex, field, problems)));
    }
    headers
}

/// What HTTPPathMatch allows in exact and prefix paths; anything else could never match a canonical path.
fn plain_path(path: &str) -> Result<(), String> {
    let problem = |message: &str| Err(format!("\"{path}\" {message}"));
    if !path.starts_with('/') {
        return problem("does not begin with /");
    }
    if path.contains("//") || path.split('/').any(|s| s == "." || s == "..") {
        return problem("holds an empty or dot segment, which a request's path never has");
    }
    if path.contains(['?', '#']) || !path.bytes().all(|b| b.is_ascii_graphic()) {
        return problem("holds a character that no path has");
    }
    Ok(())
}

/// The pattern, or what stands for it where it is none.
fn regex_or(
    pattern: &str,
    field: impl Fn() -> String,
    stand_in: impl Fn() -> Arc<str>,
    problems: &mut Vec<filters::Problem>,
) -> Arc<str> {
    match regex(pattern) {
        Ok(()) => pattern.into(),
        Err(message) => {
            problems.push((field(), message));
            stand_in()
        }
    }
}

/// Whatever begins with the text that a pattern must begin with.
fn any_after(pattern: &str) -> Arc<str> {
    let special = pattern.find(|c| r"\.+*?()|[]{}^$".contains(c)).unwrap_or(pattern.len());
    // Another branch may begin with anything.
    let literal = if pattern.contains('|') { "" } else { &pattern[..special] };
    let literal = match pattern[special..].chars().next() {
        // What is before these may be left out.
        Some('*' | '?' | '{') => literal.char_indices().next_back().map_or("", |(last, _)| &literal[..last]),
        _ => literal,
    };
    let longest = literal.char_indices().nth(MAX_REGEX / 4).map_or(literal, |(at, _)| &literal[..at]);
    format!("(?s){}.*", regex::escape(longest)).into()
}

/// Whether a pattern is one, within its bounds.
pub(crate) fn regex(pattern: &str) -> Result<(), String> {
    if pattern.len() > MAX_REGEX {
        return Err(format!("a regular expression of more than {MAX_REGEX} bytes"));
    }
    let Err(regex::Error::Syntax(text)) = regex::Regex::new(pattern) else {
        // As it will be compiled, within the bounds that hold there.
        return fieldgate_core::route::check_regex(pattern).map_err(|why| format!("\"{pattern}\": {why}"));
    };
    let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    Err(match marked_column(&text) {
        Some(column) => {
            format!("\"{pattern}\" is not a regular expression: {last}, at its character {column}")
        }
        None => format!("\"{pattern}\" is not a regular expression: {last}"),
    })
}

/// Where the message of the regex crate has its caret below the pattern, from 1.
fn marked_column(text: &str) -> Option<usize> {
    let marks = text.lines().find(|l| l.contains('^') && l.chars().all(|c| c == ' ' || c == '^'))?;
    Some(marks.find('^')? + 1 - 4)
}

/// As [`http`]: a gRPC method is a path.
pub(crate) fn grpc(list: &[GrpcRouteRulesMatches]) -> (Vec<Match>, Vec<filters::Problem>) {
    if list.is_empty() {
        return (vec![Match::default()], Vec::new());
    }
    let mut problems = Vec::new();
    let matches = list.iter().enumerate().map(|(at, m)| one_method(at, m, &mut problems)).collect();
    (matches, problems)
}

fn one_method(at: usize, m: &GrpcRouteRulesMatches, problems: &mut Vec<filters::Problem>) -> Match {
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
                    let mut part = |text: Option<&str>, part: &str| {
                        let Some(text) = text else { return "[^/]+".into() };
                        let field = || format!("[{at}].method.{part}");
                        let pattern = regex_or(text, field, || ANY.into(), problems);
                        format!("(?:{pattern})")
                    };
                    let service: String = part(s, "service");
                    PathMatch::Regex(format!("/{service}/{}", part(n, "method")).into())
                }
            }
        }
    };
    let headers = m.headers.iter().flatten();
    let regex = |kind: &Option<GrpcHeaderType>| matches!(kind, Some(GrpcHeaderType::RegularExpression));
    let headers = header_matches(headers.map(|h| (&*h.name, &*h.value, regex(&h.r#type))), at, problems);
    Match { path, method: None, headers: headers.into(), query: ThinVec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_a_pattern_takes_all_that_it_could_have_taken() {
        for (pattern, expected) in [
            ("/shop/(.*", "(?s)/shop/.*"),
            ("/shop[", "(?s)/shop.*"),
            ("/shops?(", "(?s)/shop.*"),
            ("/a+(", "(?s)/a.*"),
            ("/a(|/b", "(?s).*"),
            ("(?i)/a(", "(?s).*"),
            ("*", "(?s).*"),
            ("/a-b(", r"(?s)/a\-b.*"),
        ] {
            assert_eq!(&*any_after(pattern), expected, "{pattern}");
            assert!(regex(expected).is_ok(), "{expected}");
        }
        assert!(any_after(&"/x".repeat(5000)).len() < MAX_REGEX);
    }

    #[test]
    fn a_pattern_that_would_be_too_big_is_found_out_here() {
        let message = regex(r"(\w{200}){20}").unwrap_err();
        assert!(message.contains("takes more than"), "{message}");
    }
}
