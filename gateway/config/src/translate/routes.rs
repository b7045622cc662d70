//! HTTPRoute and GRPCRoute to IR.
//!
//! A GRPCRoute is read as an HTTPRoute whose matches are paths of the form `/service/method`; the two kinds' generated
//! types have the same shapes otherwise.

use std::collections::BTreeSet;
use std::sync::Arc;

use fieldgate_core::ir::{
    Attachment, Backend, BackendTarget, Backoff, Filter, Guard, GuardRef, Hostname, Match, ObjectKey,
    PathRewrite, Pool, PoolKey, Retry, RetryOn, Rewrite, Route, Rule, Timeouts,
};
use gateway_api::experimental::grpcroutes::{GrpcRouteRulesMatches, GrpcRouteSpec};
use gateway_api::experimental::httproutes::{
    HttpRouteParentRefs, HttpRouteRules, HttpRouteRulesFiltersExternalAuth, HttpRouteSpec,
};
use imbl::OrdMap;
use thin_vec::{ThinVec, thin_vec};

use super::attached::Attached;
use super::backends::{BackendRef, resolve};
use super::gateways::{GROUP, Gateways, ListenerInfo, hostname};
use super::guards::Guards;
use super::pools::Hosts;
use super::{Notes, Objects, external_authorizers, filters, matches, session, splits, traffic_policies};
use crate::diagnostic::did_you_mean_hint;
use crate::document::{Object, Timestamp};
use crate::kinds::duration::parse_gateway_duration;
use crate::kinds::{Kind, Spec};

/// What a route refers to.
pub(crate) struct Surroundings<'a> {
    pub objects: &'a Objects,
    pub gateways: &'a Gateways,
    pub pools: &'a OrdMap<PoolKey, Arc<Pool>>,
    pub pool_keys: &'a BTreeSet<Arc<PoolKey>>,
    pub hosts: &'a Hosts,
    pub splits: &'a Attached,
    pub traffic: &'a Attached,
    pub guards: &'a Guards,
}

/// Everything that translating one route looks at.
struct Context<'a> {
    object: &'a Arc<Object>,
    key: ObjectKey,
    around: &'a Surroundings<'a>,
    grpc: bool,
}

/// What of a route is not as it was meant.
#[derive(Default)]
struct Faults {
    /// The first reference that could not be resolved: reason and message.
    unresolved: Option<(&'static str, String)>,
    /// The first rule that could not be taken over whole.
    rule: Option<String>,
    /// The numbers of all such rules.
    rules: BTreeSet<usize>,
}

/// A route's parts, the same for both kinds.
struct Parts {
    default_gateways: bool,
    parents: Vec<HttpRouteParentRefs>,
    hostnames: Vec<String>,
    rules: Vec<(HttpRouteRules, Option<Vec<GrpcRouteRulesMatches>>)>,
}

pub(crate) fn translate(object: &Arc<Object>, around: &Surroundings<'_>, notes: &mut Notes) -> Option<Route> {
    let parts = match object.take_route() {
        Spec::HttpRoute(spec) => of_http(*spec),
        Spec::GrpcRoute(spec) => of_grpc(&spec),
        _ => return None,
    };
    let context = Context { object, key: object.key(), around, grpc: object.kind == Kind::GrpcRoute };
    let mut faults = Faults::default();
    let rules: Vec<Option<Rule>> = parts
        .rules
        .iter()
        .enumerate()
        .map(|(at, (rule, grpc))| context.rule(at, rule, grpc.as_deref(), &mut faults, notes))
        .collect();
    let dropped = faults.rule.as_ref().filter(|_| faults.rules.len() == rules.len());
    let attachments = attach(&context, &parts, dropped, &faults, notes);
    if let Some(message) = faults.rule.as_ref().filter(|_| faults.rules.len() < rules.len()) {
        notes.condition("PartiallyInvalid", true, "UnsupportedValue", format!("Dropped Rule {message}"));
    }
    // Collected anew: in place it would keep the room of all rules by value.
    let rules: Box<[Arc<Rule>]> = rules.into_iter().flatten().map(Arc::new).collect();
    let rules = Vec::from(rules);
    if attachments.is_empty() || rules.is_empty() {
        return None;
    }
    let created = object.creation_timestamp.map(Timestamp::as_second);
    Some(Route { key: context.key, created, attachments, rules })
}

/// What is wrong with the matches of a route: fields and messages. Nothing else in a route can change which requests are
/// whose.
pub(crate) fn bad_matches(object: &Object) -> Vec<filters::Problem> {
    let of_rule = |(at, (_, problems)): (usize, (Vec<Match>, Vec<filters::Problem>))| {
        problems
            .into_iter()
            .map(move |(field, message)| (format!("spec.rules[{at}].matches{field}"), message))
    };
    object.route(|spec| match spec {
        Spec::HttpRoute(spec) => {
            let rules = spec.rules.iter().flatten();
            let read = rules.map(|r| matches::http(r.matches.as_deref().unwrap_or_default()));
            read.enumerate().flat_map(of_rule).collect()
        }
        Spec::GrpcRoute(spec) => {
            let rules = spec.rules.iter().flatten();
            let read = rules.map(|r| matches::grpc(r.matches.as_deref().unwrap_or_default()));
            read.enumerate().flat_map(of_rule).collect()
        }
        _ => Vec::new(),
    })
}

fn of_http(spec: HttpRouteSpec) -> Parts {
    Parts {
        default_gateways: spec.use_default_gateways.is_some(),
        parents: spec.parent_refs.unwrap_or_default(),
        hostnames: spec.hostnames.unwrap_or_default(),
        rules: match spec.rules {
            Some(rules) => rules.into_iter().map(|r| (r, None)).collect(),
            // The default of the CRD: one rule that takes everything.
            None => vec![(HttpRouteRules::default(), None)],
        },
    }
}

fn of_grpc(spec: &GrpcRouteSpec) -> Parts {
    fn convert<A: serde::Serialize, B: serde::de::DeserializeOwned>(a: &A) -> Option<B> {
        serde_json::to_value(a).ok().and_then(|v| serde_json::from_value(v).ok())
    }
    Parts {
        default_gateways: spec.use_default_gateways.is_some(),
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
                    session_persistence: r.session_persistence.as_ref().and_then(convert),
                    ..HttpRouteRules::default()
                };
                (rule, Some(r.matches.clone().unwrap_or_default()))
            })
            .collect(),
    }
}

/// Finds the listeners of every parent and says of each parent what came of it. `dropped` says why no rule is left.
fn attach(
    context: &Context<'_>,
    parts: &Parts,
    dropped: Option<&String>,
    faults: &Faults,
    notes: &mut Notes,
) -> Vec<Attachment> {
    let object = context.object;
    let hostnames: Vec<Hostname> = parts.hostnames.iter().map(|h| hostname(h)).collect();
    let mut attachments: Vec<Attachment> = Vec::new();
    if parts.default_gateways {
        let message = "useDefaultGateways is not supported and has no effect";
        let warning = object.warning("UnsupportedValue", "spec.useDefaultGateways", message);
        notes.diagnostics.push(warning.hint("name the Gateway in parentRefs"));
    }
    if parts.parents.is_empty() {
        let warning =
            object.warning("NoParents", "spec", "a route without parentRefs is attached to nothing");
        notes.diagnostics.push(warning.hint("name the Gateway: parentRefs: [{name: ...}]"));
    }
    for (at, parent) in parts.parents.iter().enumerate() {
        let label = label(parent, &object.namespace);
        let namespace = parent.namespace.as_deref().unwrap_or(&object.namespace);
        if context.around.gateways.is_other(namespace, &parent.name) {
            // Another controller writes the status for its own Gateways.
            continue;
        }
        match found(context, parent, &hostnames) {
            Ok(listeners) => {
                match dropped {
                    None => notes.part(&label, "Accepted", true, "Accepted", ""),
                    Some(why) => notes.part(&label, "Accepted", false, "UnsupportedValue", why.as_str()),
                }
                for attachment in listeners {
                    // Two parentRefs may name one listener; the names are the same both times.
                    if attachments.iter().all(|a| a.listener != attachment.listener) {
                        attachments.push(attachment);
                    }
                }
            }
            Err(Detached { reason, field, message, hint }) => {
                notes.part(&label, "Accepted", false, reason, message.clone());
                let mut error = object.error(reason, &format!("spec.parentRefs[{at}]{field}"), message);
                error.hint = hint;
                notes.diagnostics.push(error);
            }
        }
        match &faults.unresolved {
            None => notes.part(&label, "ResolvedRefs", true, "ResolvedRefs", ""),
            Some((reason, message)) => notes.part(&label, "ResolvedRefs", false, reason, message.as_str()),
        }
    }
    attachments
}

/// A parent for people: `edge`, `infra/edge`, `edge/https`, `edge:8443`.
fn label(parent: &HttpRouteParentRefs, own_namespace: &str) -> String {
    let mut label = match parent.namespace.as_deref() {
        Some(other) if other != own_namespace => format!("{other}/{}", parent.name),
        _ => parent.name.clone(),
    };
    if let Some(section) = &parent.section_name {
        label = format!("{label}/{section}");
    }
    if let Some(port) = parent.port {
        label = format!("{label}:{port}");
    }
    label
}

/// Why a route is not attached to a parent.
struct Detached {
    reason: &'static str,
    field: &'static str,
    message: String,
    hint: Option<String>,
}

fn found(
    context: &Context<'_>,
    parent: &HttpRouteParentRefs,
    hostnames: &[Hostname],
) -> Result<Vec<Attachment>, Detached> {
    let refuse = |reason, field, message, hint| Err(Detached { reason, field, message, hint });
    let (kind, group) =
        (parent.kind.as_deref().unwrap_or("Gateway"), parent.group.as_deref().unwrap_or(GROUP));
    if (kind, group) != ("Gateway", GROUP) {
        let message = format!("a route cannot be attached to a {kind} of group \"{group}\"");
        return refuse("InvalidKind", ".kind", message, Some(format!("kind: Gateway of group {GROUP}")));
    }
    let object = context.object;
    let namespace = parent.namespace.as_deref().unwrap_or(&object.namespace);
    let gateway = format!("Gateway {namespace}/{}", parent.name);
    let Some(listeners) = context.around.gateways.of(namespace, &parent.name) else {
        let names = context.around.gateways.names(namespace);
        let hint = did_you_mean_hint(&parent.name, names.iter().map(String::as_str));
        return refuse("NoMatchingParent", ".name", format!("there is no {gateway}"), hint);
    };
    let mut left: Vec<&ListenerInfo> = listeners
        .iter()
        .filter(|l| parent.section_name.as_ref().is_none_or(|s| *s == *l.key.name))
        .filter(|l| parent.port.is_none_or(|p| p == i32::from(l.port)))
        .collect();
    if left.is_empty() {
        let names: Vec<&str> = listeners.iter().map(|l| &*l.key.name).collect();
        let wanted = parent.section_name.as_deref().unwrap_or_default();
        let hint = did_you_mean_hint(wanted, names.iter().copied())
            .or_else(|| (!names.is_empty()).then(|| format!("its usable listeners: {}", names.join(", "))));
        let (field, what) = match (&parent.section_name, parent.port) {
            (Some(section), None) => (".sectionName", format!("no usable listener \"{section}\"")),
            (Some(section), Some(port)) => {
                (".sectionName", format!("no usable listener \"{section}\" on port {port}"))
            }
            (None, Some(port)) => (".port", format!("no usable listener on port {port}")),
            (None, None) => (".name", "no usable listener".to_owned()),
        };
        return refuse("NoMatchingParent", field, format!("{gateway} has {what}"), hint);
    }
    left.retain(|l| l.allows_kind(object.kind.as_str()));
    if left.is_empty() {
        let message = format!("{gateway} takes no {}s here", object.kind);
        let hint = "see allowedRoutes.kinds of its listeners".to_owned();
        return refuse("NotAllowedByListeners", "", message, Some(hint));
    }
    left.retain(|l| l.allows_namespace(context.around.objects, &object.namespace));
    if left.is_empty() {
        let message = format!("{gateway} does not allow routes of namespace {}", object.namespace);
        let hint =
            "see allowedRoutes.namespaces of its listeners; the default is the Gateway's own namespace";
        return refuse("NotAllowedByListeners", "", message, Some(hint.to_owned()));
    }
    let attachments: Vec<Attachment> = left
        .into_iter()
        .map(|l| Attachment { listener: l.key.clone(), hostnames: intersect(l.hostname.as_ref(), hostnames) })
        .filter(|a| !a.hostnames.is_empty())
        .collect();
    if attachments.is_empty() {
        let message = format!("no host name of this route fits a listener of {gateway}");
        let hint = "compare spec.hostnames with the listeners' hostname".to_owned();
        return refuse("NoMatchingListenerHostname", "", message, Some(hint));
    }
    Ok(attachments)
}

/// The host names under which a route is found on a listener (Gateway API `hostnames`).
fn intersect(listener: Option<&Hostname>, route: &[Hostname]) -> Vec<Option<Hostname>> {
    if route.is_empty() {
        return vec![listener.cloned()];
    }
    let mut names: Vec<Option<Hostname>> = Vec::new();
    for name in route.iter().filter_map(|r| listener.map_or_else(|| Some(r.clone()), |l| both(l, r))) {
        // Two wildcards of the route may both narrow to the listener's name.
        if !names.contains(&Some(name.clone())) {
            names.push(Some(name));
        }
    }
    names
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
    /// One rule. A rule of which something is not sound keeps its requests: they get an error, because another rule was
    /// not meant for them (Gateway API, `HTTPRouteFilter.extensionRef`).
    fn rule(
        &self,
        at: usize,
        rule: &HttpRouteRules,
        grpc: Option<&[GrpcRouteRulesMatches]>,
        faults: &mut Faults,
        notes: &mut Notes,
    ) -> Option<Rule> {
        let place = format!("spec.rules[{at}]");
        let refuse = |faults: &mut Faults, notes: &mut Notes, (field, message): filters::Problem| {
            let error = self.object.error("UnsupportedValue", &format!("{place}{field}"), message.clone());
            faults.rule.get_or_insert_with(|| format!("{at}: {message}; its requests are answered with 500"));
            faults.rules.insert(at);
            notes.diagnostics.push(error);
            message
        };
        let matches = match grpc {
            None => matches::http(rule.matches.as_deref().unwrap_or_default()),
            Some(grpc) => matches::grpc(grpc),
        };
        let (matches, bad) = matches;
        let bad: Vec<String> = bad
            .into_iter()
            .map(|(field, message)| refuse(faults, notes, (format!(".matches{field}"), message)))
            .collect();
        if matches.is_empty() {
            return None;
        }
        let mut translated = Rule {
            id: self.rule_id(at, rule),
            matches: matches.into(),
            backends: ThinVec::with_capacity(rule.backend_refs.as_ref().map_or(0, Vec::len)),
            grpc: self.grpc,
            ..Rule::default()
        };
        let behaviour = self.behaviour(&place, rule, &mut translated, faults, notes);
        let why = behaviour.err().map(|problem| refuse(faults, notes, problem));
        if let Some(why) = bad.into_iter().next().or(why) {
            translated.filters.clear();
            translated.backends = thin_vec![Backend {
                target: BackendTarget::Invalid(why.into()),
                weight: 1,
                filters: ThinVec::new()
            }];
            return Some(translated);
        }
        if let Some(spec) = &rule.session_persistence {
            let place = format!("{place}.sessionPersistence");
            let affinity = session::affinity(spec, &translated, &mut |field, message, hint| {
                let field = format!("{place}{field}");
                notes.diagnostics.push(self.object.warning("UnsupportedValue", &field, message).hint(hint));
            });
            translated.affinity = Some(Arc::new(affinity));
        }
        let name = rule.name.as_deref();
        if let Some(policy) = self.around.splits.for_rule(&self.key, name) {
            let names = rule.backend_refs.iter().flatten().map(|b| b.name.as_str());
            translated.split = splits::translate(policy, names);
        }
        if let Some(policy) = self.around.traffic.for_rule(&self.key, name) {
            traffic_policies::apply(policy, rule, &mut translated);
        }
        self.around.guards.guard_rule(&self.key, name, &mut translated);
        Some(translated)
    }

    fn rule_id(&self, at: usize, rule: &HttpRouteRules) -> Arc<str> {
        let ObjectKey { namespace, name, .. } = &self.key;
        // A colon is in no name, so that the two kinds' ids are apart.
        let kind = if self.grpc { "grpc:" } else { "" };
        match &rule.name {
            Some(rule) => format!("{kind}{namespace}/{name}/{rule}"),
            None if at == 0 => format!("{kind}{namespace}/{name}"),
            None => format!("{kind}{namespace}/{name}#{at}"),
        }
        .into()
    }

    /// Everything of a rule but its matches.
    fn behaviour(
        &self,
        place: &str,
        rule: &HttpRouteRules,
        out: &mut Rule,
        faults: &mut Faults,
        notes: &mut Notes,
    ) -> Result<(), filters::Problem> {
        let own = rule.filters.as_deref().unwrap_or_default();
        out.filters = self
            .filters(own, Some(&out.id), &out.matches, &format!("{place}.filters"), faults, notes)
            .map_err(|(field, message)| (format!(".filters{field}"), message))?;
        out.timeouts = timeouts(rule)?;
        out.retry = retry(rule)?.map(Arc::new);
        let redirects = out.filters.iter().any(|f| matches!(f, Filter::Redirect(_)));
        if redirects && rule.backend_refs.as_ref().is_some_and(|b| !b.is_empty()) {
            let message = "backendRefs have no effect beside a redirect";
            let warning = self.object.warning("IgnoredField", &format!("{place}.backendRefs"), message);
            notes.diagnostics.push(warning.hint("remove one of the two"));
        }
        for (index, reference) in rule.backend_refs.iter().flatten().enumerate() {
            let at = format!("{place}.backendRefs[{index}]");
            let r = BackendRef {
                group: reference.group.as_deref(),
                kind: reference.kind.as_deref(),
                namespace: reference.namespace.as_deref(),
                name: &reference.name,
                port: reference.port,
            };
            let target = self.target(&r, &at, faults, notes);
            let own: Vec<_> = reference.filters.iter().flatten().filter_map(filters::common).collect();
            let filters = self
                .filters(&own, None, &out.matches, &format!("{at}.filters"), faults, notes)
                .and_then(|filters| on_top_of(&out.filters, filters))
                .map_err(|(field, message)| (format!(".backendRefs[{index}].filters{field}"), message))?;
            let weight = u32::try_from(reference.weight.unwrap_or(1)).unwrap_or(0);
            out.backends.push(Backend { target, weight, filters });
        }
        Ok(())
    }

    /// A guard of the rule's own. Where its service is not there nothing is made, and the server refuses what would have
    /// passed it.
    fn external_auth(
        &self,
        auth: &HttpRouteRulesFiltersExternalAuth,
        name: &str,
        place: &str,
        faults: &mut Faults,
        notes: &mut Notes,
    ) -> Result<Filter, filters::Problem> {
        let reference = &auth.backend_ref;
        let r = BackendRef {
            group: reference.group.as_deref(),
            kind: reference.kind.as_deref(),
            namespace: reference.namespace.as_deref(),
            name: &reference.name,
            port: reference.port,
        };
        let namespace = self.key.namespace.clone();
        let name = name.strip_prefix(&*namespace).map_or(name, |name| name.trim_start_matches('/')).into();
        let key = ObjectKey { kind: "ExternalAuth", namespace, name };
        if let BackendTarget::Pool(pool) = self.target(&r, place, faults, notes) {
            let kind = external_authorizers::of_filter(auth, pool)?;
            notes.guards.push(Guard { key: key.clone(), kind });
        }
        Ok(Filter::Guard(Arc::new(GuardRef::new(key))))
    }

    fn target(
        &self,
        r: &BackendRef<'_>,
        place: &str,
        faults: &mut Faults,
        notes: &mut Notes,
    ) -> BackendTarget {
        match resolve(self.object, self.around, r, self.grpc) {
            Ok(pool) => BackendTarget::Pool(pool),
            Err(why) => {
                let target = why.target();
                faults.unresolved.get_or_insert_with(|| (why.reason, why.message.clone()));
                let mut error = self.object.error(why.reason, &format!("{place}.{}", why.field), why.message);
                error.hint = why.hint;
                notes.diagnostics.push(error);
                target
            }
        }
    }

    /// `rule`: whose they are; `None` for those of a backend.
    fn filters(
        &self,
        list: &[gateway_api::experimental::httproutes::HttpRouteRulesFilters],
        rule: Option<&str>,
        matches: &[Match],
        place: &str,
        faults: &mut Faults,
        notes: &mut Notes,
    ) -> Result<ThinVec<Filter>, filters::Problem> {
        let mut out = ThinVec::new();
        for (at, filter) in list.iter().enumerate() {
            if let (Some(rule), Some(auth)) = (rule, &filter.external_auth) {
                let place = format!("{place}[{at}].externalAuth.backendRef");
                let guard = self
                    .external_auth(auth, &format!("{rule}:{at}"), &place, faults, notes)
                    .map_err(|(field, message)| (format!("[{at}].{field}"), message))?;
                out.push(guard);
                continue;
            }
            let mirror_place = format!("{place}[{at}].requestMirror.backendRef");
            let mut mirror = |r: &BackendRef<'_>| self.target(r, &mirror_place, faults, notes);
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
}

/// A backend's filters act on what the rule's have made of the request. What replaces the prefix that the match took would
/// no longer find it there (Gateway API does not say what two rewrites of one path mean).
fn on_top_of(rule: &[Filter], backend: ThinVec<Filter>) -> Result<ThinVec<Filter>, filters::Problem> {
    let rewrites_path = rule.iter().any(|f| matches!(f, Filter::Rewrite(r) if r.path.is_some()));
    let replaces_prefix = |filter: &Filter| match filter {
        Filter::Rewrite(rewrite) => matches!(**rewrite, Rewrite { path: Some(PathRewrite::Prefix(_)), .. }),
        Filter::Redirect(redirect) => matches!(redirect.path, Some(PathRewrite::Prefix(_))),
        _ => false,
    };
    match backend.iter().position(replaces_prefix) {
        Some(at) if rewrites_path => {
            let message = "replaces the prefix of a path that a filter of the rule has rewritten already";
            Err((format!("[{at}]"), message.to_owned()))
        }
        _ => Ok(backend),
    }
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
    Ok(Timeouts { request, backend_request, idle: None })
}

/// What a route's `retry` means beside its statuses (Gateway API, GEP-1731): no response at all.
pub(crate) const RETRY_ON: RetryOn =
    RetryOn::CONNECT_FAILURE.and(RetryOn::REFUSED_STREAM).and(RetryOn::RESET);

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
    let on = RetryOn::STATUS_CODES.and(RETRY_ON);
    // Without a word about it there is no pause.
    let base = backoff.unwrap_or_default();
    let backoff = Backoff { base, max: base * 10 };
    Ok(Some(Retry { attempts, on, codes, backoff, ..Retry::default() }))
}
