//! Tests of the translation as a whole: from texts to IR, diagnostics and statuses.

mod authentications;
mod backends;
mod client_tls;
mod destination_rules;
mod edge_policies;
mod external_authorizers;
mod gateways;
mod guards;
mod incremental;
mod login_policies;
mod policies;
mod pools;
mod routes;
mod traffic;
mod upstream_tls;

use std::fmt::Write as _;

use fieldgate_core::ir;

use crate::{Configuration, Diagnostic, FileChange};

/// A configuration of these texts, each a file of its own.
fn configuration(texts: &[&str]) -> Configuration {
    let mut configuration = Configuration::default();
    configuration.apply(files(texts));
    configuration
}

fn files(texts: &[&str]) -> Vec<FileChange> {
    let file = |(i, text): (usize, &&str)| FileChange {
        name: format!("{i}.yaml").into(),
        text: Some((*text).to_owned()),
    };
    texts.iter().enumerate().map(file).collect()
}

fn config(texts: &[&str]) -> ir::Config {
    configuration(texts).apply(Vec::new()).config
}

/// `reason field` of everything that is wrong.
fn problems(texts: &[&str]) -> Vec<String> {
    let said: Vec<Diagnostic> = configuration(texts).diagnostics();
    said.iter().map(|d| format!("{} {}", d.reason, d.field)).collect()
}

/// The conditions of an object: `part/Type=status Reason`.
fn conditions(texts: &[&str], kind: &str, name: &str) -> Vec<String> {
    let statuses = configuration(texts).statuses();
    let status = statuses.iter().find(|s| s.kind == kind && s.name == name);
    let conditions = status.map(|s| s.conditions.clone()).unwrap_or_default();
    conditions.iter().map(|c| format!("{}/{}={} {}", c.part, c.kind, c.status, c.reason)).collect()
}

/// The hosts of a route on each listener: `edge/web: a.example *.b.example`.
fn attachments(texts: &[&str], kind: &'static str, namespace: &str, name: &str) -> Vec<String> {
    let key = ir::ObjectKey { kind, namespace: namespace.into(), name: name.into() };
    let config = config(texts);
    let Some(route) = config.routes.get(&key) else { return Vec::new() };
    route
        .attachments
        .iter()
        .map(|a| {
            let mut line = format!("{}/{}:", a.listener.gateway, a.listener.name);
            for name in &a.hostnames {
                let name = name.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string);
                write!(line, " {name}").expect("a String takes everything");
            }
            line
        })
        .collect()
}

fn http_route(texts: &[&str]) -> std::sync::Arc<ir::Route> {
    let config = config(texts);
    let route = config.routes.values().next();
    route.unwrap_or_else(|| panic!("no route: {:?}", problems(texts))).clone()
}

/// A Gateway `edge` in `default` with these listeners.
fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec: {{gatewayClassName: fieldgate, listeners: [{listeners}]}}\n"
    )
}

const WEB: &str = "{name: web, protocol: HTTP, port: 80}";

/// A HTTPRoute `r` in `default` with this spec beside its parent `edge`.
fn route(spec: &str) -> String {
    object("gateway.networking.k8s.io/v1", "HTTPRoute", "r", &format!("parentRefs: [{{name: edge}}], {spec}"))
}

fn object(api_version: &str, kind: &str, name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn pool(name: &str) -> String {
    object("fieldgate.dev/v1alpha1", "Pool", name, "endpoints: [{address: 10.0.0.1, port: 8080}]")
}

fn grant(namespace: &str, from_kind: &str, from: &str, to: &str) -> String {
    object(
        "gateway.networking.k8s.io/v1",
        "ReferenceGrant",
        &format!("{namespace}/grant"),
        &format!(
            "from: [{{group: gateway.networking.k8s.io, kind: {from_kind}, namespace: {from}}}], to: [{to}]"
        ),
    )
}
