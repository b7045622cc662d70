//! HTTPRoute and GRPCRoute to IR.
//!
//! A GRPCRoute is read as an HTTPRoute whose matches are paths of the form `/service/method`; the two kinds' generated
//! types have the same shapes otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{
    Attachment, Backend, BackendTarget, ExistingSessions, Filter, Hostname, Match, ObjectKey, PathMatch,
    Pool, PoolKey, Retry, Route, Rule, SplitPolicy, Sticky, Timeouts, ValueMatch,
};
use gateway_api::experimental::grpcroutes::{
    GrpcRouteRulesMatches, GrpcRouteRulesMatchesMethodType as GrpcType, GrpcRouteSpec,
};
use gateway_api::experimental::httproutes::{
    HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType as HeaderType, HttpRouteRulesMatchesPathType as PathType,
    HttpRouteRulesMatchesQueryParamsType as QueryType, HttpRouteSpec,
};
use imbl::OrdMap;

use super::backends::{BackendRef, resolve};
use super::gateways::{Gateways, ListenerInfo, hostname};
use super::{Notes, Objects, filters};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::duration::parse_gateway_duration;
use crate::kinds::{Kind, Spec};

/// Longest regular expression.
const MAX_REGEX: usize = 1024;

/// Which SplitPolicy applies to which route and rule.
#[derive(Debug, Default)]
pub(crate) struct SplitPolicies(BTreeMap<(ObjectKey, Option<String>), Arc<Object>>);

impl SplitPolicies {
    pub fn of(objects: &Objects, notes: &mut BTreeMap<ObjectKey, Notes>) -> Self {
        let mut found: BTreeMap<(ObjectKey, Option<String>), Arc<Object>> = BTreeMap::new();
        let mut all: Vec<&Arc<Object>> = objects.of(Kind::SplitPolicy).collect();
        all.sort_by_key(|o| (o.creation_timestamp.is_none(), o.creation_timestamp, o.key()));
        for object in all {
            let Spec::SplitPolicy(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            *note = Notes::default();
            let Some(kind) = Kind::from_name(&spec.target_ref.kind) else { continue };
            let Some(target) = objects.get(kind, &object.namespace, &spec.target_ref.name) else {
                let message =
                    format!("there is no {} {}/{}", kind.as_str(), object.namespace, spec.target_ref.name);
                note.condition("Accepted", false, "TargetNotFound", message.clone());
                let names = objects.names(kind, &object.namespace);
                let mut error = object.error("TargetNotFound", "spec.targetRef.name", message);
                if let Some(hint) = did_you_mean_hint(&spec.target_ref.name, names.iter().map(String::as_str))
                {
                    error = error.hint(hint);
                }
                note.diagnostics.push(error);
                continue;
            };
            let key = (target.key(), spec.target_ref.section_name.clone());
            if let Some(other) = found.get(&key) {
                let message =
                    format!("SplitPolicy {} is attached to the same place and comes first", other.name);
                note.condition("Accepted", false, "Conflicted", message.clone());
                note.diagnostics.push(object.error("Conflicted", "spec.targetRef", message));
                continue;
            }
            note.condition("Accepted", true, "Accepted", "");
            found.insert(key, object.clone());
        }
        Self(found)
    }

    /// The policy of a named rule, else that of the whole route.
    fn for_rule(&self, route: &ObjectKey, rule: Option<&str>) -> Option<&Arc<Object>> {
        rule.and_then(|name| self.0.get(&(route.clone(), Some(name.to_owned()))))
            .or_else(|| self.0.get(&(route.clone(), None)))
    }
}

/// Everything that translating one route looks at.
struct Context<'a> {
    object: &'a Arc<Object>,
    objects: &'a Objects,
    pools: &'a OrdMap<PoolKey, Arc<Pool>>,
    splits: &'a SplitPolicies,
    grpc: bool,
}

/// A route's parts, the same for both kinds.
struct Parts {
    parents: Vec<HttpRouteParentRefs>,
    hostnames: Vec<String>,
    rules: Vec<(HttpRouteRules, Option<Vec<GrpcRouteRulesMatches>>)>,
}

pub(crate) fn translate(
    object: &Arc<Object>,
    objects: &Objects,
    gateways: &Gateways,
    pools: &OrdMap<PoolKey, Arc<Pool>>,
    splits: &SplitPolicies,
    notes: &mut Notes,
) -> Option<Route> {
    let parts = match &object.spec {
        Spec::HttpRoute(spec) => of_http(spec),
        Spec::GrpcRoute(spec) => of_grpc(spec),
        _ => return None,
    };
    let context = Context { object, objects, pools, splits, grpc: object.kind == Kind::GrpcRoute };
    let attachments = attach(&context, &parts, gateways, notes);
    let before = notes.diagnostics.len();
    let rules: Vec<Option<Rule>> = parts
        .rules
        .iter()
        .enumerate()
        .map(|(at, (rule, grpc))| context.rule(at, rule, grpc.as_deref(), notes))
        .collect();
    let refused = rules.iter().filter(|r| r.is_none()).count();
    if refused > 0 {
        let message = notes.diagnostics.get(before).map(|d| d.message.clone()).unwrap_or_default();
        notes.condition("Accepted", refused < rules.len(), "UnsupportedValue", message);
    }
    if attachments.is_empty() {
        return None;
    }
    Some(Route {
        key: object.key(),
        created: object.creation_timestamp.map(|t| t.as_second()),
        attachments,
        rules: rules.into_iter().flatten().map(Arc::new).collect(),
    })
}

fn of_http(spec: &HttpRouteSpec) -> Parts {
    Parts {
        parents: spec.parent_refs.clone().unwrap_or_default(),
        hostnames: spec.hostnames.clone().unwrap_or_default(),
        rules: spec.rules.iter().flatten().map(|r| (r.clone(), None)).collect(),
    }
}

fn of_grpc(spec: &GrpcRouteSpec) -> Parts {
    fn convert<A: serde::Serialize, B: serde::de::DeserializeOwned>(a: &A) -> Option<B> {
        serde_json::to_value(a).ok().and_then(|v| serde_json::from_value(v).ok())
    }
    Parts {
        parents: spec.parent_refs.iter().flatten().filter_map(convert).collect(),
        hostnames: spec.hostnames.clone().unwrap_or_default(),
        rules: spec
            .rules
            .iter()
            .flatten()
            .map(|r| {
                let rule = HttpRouteRules {
                    name: r.name.clone(),
                    filters: r.filters.as_ref().map(|f| f.iter().filter_map(convert).collect()),
                    backend_refs: r.backend_refs.as_ref().map(|b| b.iter().filter_map(convert).collect()),
                    ..HttpRouteRules::default()
                };
                (rule, Some(r.matches.clone().unwrap_or_default()))
            })
            .collect(),
    }
}

fn attach(context: &Context<'_>, parts: &Parts, gateways: &Gateways, notes: &mut Notes) -> Vec<Attachment> {
    let object = context.object;
    let hostnames: Vec<Hostname> = parts.hostnames.iter().map(|h| hostname(h)).collect();
    let mut attachments: Vec<Attachment> = Vec::new();
    for (at, parent) in parts.parents.iter().enumerate() {
        let place = format!("spec.parentRefs[{at}]");
        let mut refuse = |reason: &'static str, field: &str, message: String, hint: Option<String>| {
            notes.part(&parent.name, "Accepted", false, reason, message.clone());
            let mut error = object.error(reason, &format!("{place}{field}"), message);
            if let Some(hint) = hint {
                error = error.hint(hint);
            }
            notes.diagnostics.push(error);
        };
        if parent.kind.as_deref().is_some_and(|k| k != "Gateway") {
            let kind = parent.kind.as_deref().unwrap_or_default();
            refuse(
                "InvalidKind",
                ".kind",
                format!("a route cannot be attached to a {kind}"),
                Some("kind: Gateway".into()),
            );
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&object.namespace);
        let Some(listeners) = gateways.of(namespace, &parent.name) else {
            let names = gateways.names(namespace);
            let hint = did_you_mean_hint(&parent.name, names.iter().map(String::as_str));
            refuse(
                "NoMatchingParent",
                ".name",
                format!("there is no Gateway {namespace}/{}", parent.name),
                hint,
            );
            continue;
        };
        let named: Vec<&ListenerInfo> = listeners
            .iter()
            .filter(|l| parent.section_name.as_ref().is_none_or(|s| *s == *l.key.name))
            .filter(|l| parent.port.is_none_or(|p| p == i32::from(l.port)))
            .collect();
        if named.is_empty() {
            let names: Vec<&str> = listeners.iter().map(|l| &*l.key.name).collect();
            let wanted = parent.section_name.as_deref().unwrap_or_default();
            let hint = did_you_mean_hint(wanted, names.iter().copied())
                .or_else(|| Some(format!("its usable listeners: {}", names.join(", "))));
            let what = match (&parent.section_name, parent.port) {
                (Some(section), _) => format!("no usable listener \"{section}\""),
                (None, Some(port)) => format!("no usable listener on port {port}"),
                (None, None) => "no usable listener".to_owned(),
            };
            refuse(
                "NoMatchingParent",
                ".sectionName",
                format!("Gateway {namespace}/{} has {what}", parent.name),
                hint,
            );
            continue;
        }
        let allowed: Vec<&ListenerInfo> = named
            .into_iter()
            .filter(|l| l.allows(context.objects, &object.namespace, object.kind.as_str()))
            .collect();
        if allowed.is_empty() {
            refuse(
                "NotAllowedByListeners",
                "",
                format!(
                    "Gateway {namespace}/{} does not allow {}s of namespace {}",
                    parent.name,
                    object.kind.as_str(),
                    object.namespace
                ),
                Some("see allowedRoutes of its listeners; the default is the Gateway's own namespace".into()),
            );
            continue;
        }
        let mut attached = false;
        for listener in allowed {
            let names = intersect(listener.hostname.as_ref(), &hostnames);
            if names.is_empty() {
                continue;
            }
            attached = true;
            // Two parentRefs may name one listener; the names are the same both times.
            if attachments.iter().all(|a| a.listener != listener.key) {
                attachments.push(Attachment { listener: listener.key.clone(), hostnames: names });
            }
        }
        if attached {
            notes.part(&parent.name, "Accepted", true, "Accepted", "");
        } else {
            refuse(
                "NoMatchingListenerHostname",
                "",
                format!("no host name of this route fits a listener of Gateway {namespace}/{}", parent.name),
                Some("compare spec.hostnames with the listeners' hostname".into()),
            );
        }
    }
    attachments
}

/// The host names under which a route is found on a listener (Gateway API `hostnames`).
fn intersect(listener: Option<&Hostname>, route: &[Hostname]) -> Vec<Option<Hostname>> {
    let Some(listener) = listener else {
        return if route.is_empty() { vec![None] } else { route.iter().cloned().map(Some).collect() };
    };
    if route.is_empty() {
        return vec![Some(listener.clone())];
    }
    route.iter().filter_map(|r| both(listener, r)).map(Some).collect()
}

fn both(a: &Hostname, b: &Hostname) -> Option<Hostname> {
    match (a, b) {
        (Hostname::Exact(x), Hostname::Exact(y)) => (x == y).then(|| a.clone()),
        (Hostname::Exact(x), wild @ Hostname::Wildcard(_)) => wild.matches(x).then(|| a.clone()),
        (wild @ Hostname::Wildcard(_), Hostname::Exact(y)) => wild.matches(y).then(|| b.clone()),
        (Hostname::Wildcard(x), Hostname::Wildcard(y)) => {
            // The narrower of the two: `*.a.example` within `*.example`.
            let within = |inner: &str, outer: &str| {
                inner == outer || inner.strip_suffix(outer).is_some_and(|rest| rest.ends_with('.'))
            };
            if within(y, x) {
                Some(b.clone())
            } else if within(x, y) {
                Some(a.clone())
            } else {
                None
            }
        }
    }
}

impl Context<'_> {
    fn rule(
        &self,
        at: usize,
        rule: &HttpRouteRules,
        grpc: Option<&[GrpcRouteRulesMatches]>,
        notes: &mut Notes,
    ) -> Option<Rule> {
        let place = format!("spec.rules[{at}]");
        let refuse = |notes: &mut Notes, field: String, message: String| {
            notes.diagnostics.push(self.object.error(
                "UnsupportedValue",
                &format!("{place}{field}"),
                message,
            ));
            None
        };
        let matches = match grpc {
            None => matches(rule.matches.as_deref().unwrap_or_default()),
            Some(grpc) => grpc_matches(grpc),
        };
        let matches = match matches {
            Ok(matches) => matches,
            Err((field, message)) => return refuse(notes, format!(".matches{field}"), message),
        };
        let rule_filters: Vec<_> = rule.filters.iter().flatten().cloned().collect();
        let filters = match self.filters(&rule_filters, &matches, &format!("{place}.filters"), notes) {
            Ok(filters) => filters,
            Err((field, message)) => return refuse(notes, format!(".filters{field}"), message),
        };
        if rule.session_persistence.is_some() {
            let warning = self.object.warning(
                "UnsupportedValue",
                &format!("{place}.sessionPersistence"),
                "sessionPersistence is not supported and has no effect",
            );
            notes.diagnostics.push(warning.hint("a SplitPolicy keeps users on their side of a split"));
        }
        let mut backends = Vec::new();
        for (index, reference) in rule.backend_refs.iter().flatten().enumerate() {
            let at = format!("{place}.backendRefs[{index}]");
            let target = self.target(
                &BackendRef {
                    group: reference.group.as_deref(),
                    kind: reference.kind.as_deref(),
                    namespace: reference.namespace.as_deref(),
                    name: &reference.name,
                    port: reference.port,
                },
                &at,
                notes,
            );
            let own: Vec<_> = reference.filters.iter().flatten().filter_map(filters::common).collect();
            let filters = match self.filters(&own, &matches, &format!("{at}.filters"), notes) {
                Ok(filters) => filters,
                Err((field, message)) => {
                    return refuse(notes, format!(".backendRefs[{index}].filters{field}"), message);
                }
            };
            let weight = u32::try_from(reference.weight.unwrap_or(1)).unwrap_or(0);
            backends.push(Backend { target, weight, filters });
        }
        let timeouts = match timeouts(rule) {
            Ok(timeouts) => timeouts,
            Err((field, message)) => return refuse(notes, field, message),
        };
        let retry = match retry(rule) {
            Ok(retry) => retry,
            Err((field, message)) => return refuse(notes, field, message),
        };
        let route = &self.object;
        let id = match &rule.name {
            Some(name) => format!("{}/{}/{name}", route.namespace, route.name),
            None if at == 0 => format!("{}/{}", route.namespace, route.name),
            None => format!("{}/{}#{at}", route.namespace, route.name),
        };
        let split = self.split(rule, notes);
        Some(Rule { id: id.into(), matches, filters, backends, timeouts, retry, split, grpc: self.grpc })
    }

    fn target(&self, r: &BackendRef<'_>, place: &str, notes: &mut Notes) -> BackendTarget {
        match resolve(self.object, self.objects, self.pools, r, self.grpc) {
            Ok(pool) => BackendTarget::Pool(pool),
            Err(why) => {
                let target = why.target();
                notes.condition("ResolvedRefs", false, why.reason, why.message.clone());
                let mut error = self.object.error(why.reason, &format!("{place}.{}", why.field), why.message);
                if let Some(hint) = why.hint {
                    error = error.hint(hint);
                }
                notes.diagnostics.push(error);
                target
            }
        }
    }

    fn filters(
        &self,
        list: &[gateway_api::experimental::httproutes::HttpRouteRulesFilters],
        matches: &[Match],
        place: &str,
        notes: &mut Notes,
    ) -> Result<Vec<Filter>, filters::Problem> {
        let mut out: Vec<Filter> = Vec::new();
        for (at, filter) in list.iter().enumerate() {
            let mirror_place = format!("{place}[{at}].requestMirror.backendRef");
            let mut mirror = |r: &BackendRef<'_>| self.target(r, &mirror_place, notes);
            let filter = filters::translate(filter, matches, &mut mirror).map_err(|(field, message)| {
                let dot = if field.is_empty() { "" } else { "." };
                (format!("[{at}]{dot}{field}"), message)
            })?;
            // Only mirrors may be repeated (HTTPRouteRule.filters); a redirect leaves nothing to rewrite.
            let twice = !matches!(filter, Filter::Mirror(_))
                && out.iter().any(|f| std::mem::discriminant(f) == std::mem::discriminant(&filter));
            if twice {
                return Err((format!("[{at}]"), "a filter of this type is there already".into()));
            }
            let exclusive =
                |a: &Filter, b: &Filter| matches!((a, b), (Filter::Redirect(_), Filter::Rewrite(_)));
            if out.iter().any(|f| exclusive(f, &filter) || exclusive(&filter, f)) {
                return Err((format!("[{at}]"), "RequestRedirect and URLRewrite exclude each other".into()));
            }
            out.push(filter);
        }
        Ok(out)
    }

    fn split(&self, rule: &HttpRouteRules, notes: &mut Notes) -> Option<Arc<SplitPolicy>> {
        let object = self.splits.for_rule(&self.object.key(), rule.name.as_deref())?;
        let Spec::SplitPolicy(spec) = &object.spec else { return None };
        let sticky = spec.sticky.as_ref().and_then(|s| {
            if let Some(header) = &s.header {
                Some(Sticky::Header(header.name.to_ascii_lowercase().into()))
            } else if let Some(cookie) = &s.cookie {
                Some(if cookie.issue {
                    Sticky::IssuedCookie {
                        name: cookie.name.as_str().into(),
                        ttl: cookie.ttl.map(|d| d.0),
                        path: cookie.path.as_deref().unwrap_or("/").into(),
                    }
                } else {
                    Sticky::Cookie(cookie.name.as_str().into())
                })
            } else {
                s.source.as_ref().map(|_| Sticky::Source)
            }
        });
        let existing = spec.existing_sessions.as_ref().and_then(|e| {
            let backend = rule.backend_refs.iter().flatten().position(|b| b.name == e.stay_on);
            if backend.is_none() {
                let names: Vec<&str> = rule.backend_refs.iter().flatten().map(|b| b.name.as_str()).collect();
                let message =
                    format!("\"{}\" is not a backend of the rule that this policy applies to", e.stay_on);
                let mut error = object.error("BackendNotFound", "spec.existingSessions.stayOn", message);
                if let Some(hint) = did_you_mean_hint(&e.stay_on, names.iter().copied()) {
                    error = error.hint(hint);
                }
                notes.diagnostics.push(error);
            }
            Some(ExistingSessions { cookie: e.cookie.as_str().into(), backend: backend? })
        });
        Some(Arc::new(SplitPolicy { name: object.name.clone(), sticky, existing }))
    }
}

fn matches(list: &[HttpRouteRulesMatches]) -> Result<Vec<Match>, filters::Problem> {
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
    match regex::Regex::new(pattern) {
        Ok(_) => Ok(pattern.into()),
        Err(error) => {
            let last =
                error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err((field.to_owned(), format!("\"{pattern}\" is not a regular expression: {last}")))
        }
    }
}

fn grpc_matches(list: &[GrpcRouteRulesMatches]) -> Result<Vec<Match>, filters::Problem> {
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
                        let any = "[^/]+";
                        let pattern = format!("/{}/{}", s.unwrap_or(any), n.unwrap_or(any));
                        PathMatch::Regex(regex(&pattern, &format!("[{at}].method"))?)
                    }
                }
            }
        };
        let headers = m
            .headers
            .iter()
            .flatten()
            .enumerate()
            .map(|(index, h)| {
                let value = match h.r#type {
                    Some(gateway_api::experimental::grpcroutes::GrpcRouteRulesMatchesHeadersType::RegularExpression) => {
                        ValueMatch::Regex(regex(&h.value, &format!("[{at}].headers[{index}].value"))?)
                    }
                    _ => ValueMatch::Exact(h.value.as_str().into()),
                };
                Ok((h.name.to_ascii_lowercase().into(), value))
            })
            .collect::<Result<_, filters::Problem>>()?;
        Ok(Match { path, method: None, headers, query: Vec::new() })
    };
    list.iter().enumerate().map(one).collect()
}

fn timeouts(rule: &HttpRouteRules) -> Result<Timeouts, filters::Problem> {
    let Some(timeouts) = &rule.timeouts else { return Ok(Timeouts::default()) };
    let parse = |text: &Option<String>, field: &str| {
        text.as_deref()
            .map(|t| parse_gateway_duration(t).map_err(|e| (format!(".timeouts.{field}"), e.message)))
            .transpose()
    };
    let (request, backend_request) =
        (parse(&timeouts.request, "request")?, parse(&timeouts.backend_request, "backendRequest")?);
    if let (Some(r), Some(b)) = (request, backend_request)
        && !r.is_zero()
        && b > r
    {
        return Err((
            ".timeouts.backendRequest".into(),
            "is longer than the timeout of the whole request".into(),
        ));
    }
    Ok(Timeouts { request, backend_request })
}

fn retry(rule: &HttpRouteRules) -> Result<Option<Retry>, filters::Problem> {
    let Some(retry) = &rule.retry else { return Ok(None) };
    let backoff = retry
        .backoff
        .as_deref()
        .map(|t| parse_gateway_duration(t).map_err(|e| (".retry.backoff".to_owned(), e.message)))
        .transpose()?;
    let attempts = retry.attempts.unwrap_or(1);
    let attempts = u32::try_from(attempts)
        .map_err(|_| (".retry.attempts".to_owned(), format!("{attempts} is not a number of attempts")))?;
    let codes = retry.codes.iter().flatten().filter_map(|c| u16::try_from(*c).ok()).collect();
    Ok(Some(Retry { attempts, backoff, codes }))
}
