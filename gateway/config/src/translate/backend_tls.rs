//! Gateway API's BackendTLSPolicies to IR: whom to believe behind a Service or a Pool.
//!
//! A policy that cannot be had closes what it is for. It goes before what a DestinationRule says.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{Pool, PoolTls, ServerTrust, StringMatch};
use gateway_api::backendtlspolicies::{
    BackendTlsPolicySpec, BackendTlsPolicyTargetRefs as Target,
    BackendTlsPolicyValidationSubjectAltNames as Name,
};

use super::upstream_tls::{Place, Trouble, closed, without_exceptions};
use super::{Notes, NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::{Kind, Spec};

/// TLS by kind, namespace and name of the target, and by the port's name if that was given.
#[derive(Default)]
pub(crate) struct BackendTls(BTreeMap<Of, (Arc<str>, Arc<PoolTls>)>);

type Of = (Kind, Arc<str>, String, Option<String>);

impl BackendTls {
    pub fn of(objects: &Objects, notes: &mut NotesOf) -> Self {
        let mut all = Self::default();
        for object in objects.by_age(Kind::BackendTlsPolicy) {
            let Spec::BackendTlsPolicy(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            let (tls, invalid) = tls(object, spec, objects, note);
            let (tls, mut refused) = (Arc::new(tls), invalid);
            for (i, target) in spec.target_refs.iter().enumerate() {
                if let Err((reason, message)) = all.attach(object, target, i, &tls, objects, note) {
                    refused.get_or_insert((reason, message));
                }
            }
            match refused {
                None => note.condition("Accepted", true, "Accepted", ""),
                Some((reason, message)) => note.condition("Accepted", false, reason, message),
            }
        }
        all
    }

    /// Puts on a pool what is said of its object, and of this port before others.
    pub fn apply(&self, object: &Object, port: Option<&str>, pool: &mut Pool) {
        if self.0.is_empty() {
            return;
        }
        let of = |port: Option<&str>| {
            (object.kind, object.namespace.clone(), object.name.to_string(), port.map(str::to_owned))
        };
        let found = port.and_then(|port| self.0.get(&of(Some(port)))).or_else(|| self.0.get(&of(None)));
        if let Some((_, tls)) = found {
            without_exceptions(&mut pool.endpoints);
            pool.tls = Some(tls.clone());
        }
    }

    fn attach(
        &mut self,
        object: &Object,
        target: &Target,
        at: usize,
        tls: &Arc<PoolTls>,
        objects: &Objects,
        note: &mut Notes,
    ) -> Result<(), (&'static str, String)> {
        let mut refuse = |reason: &'static str, field: &str, message: String, hint: Option<String>| {
            let mut error = object.error(reason, &format!("spec.targetRefs[{at}].{field}"), message.clone());
            error.hint = hint;
            note.diagnostics.push(error);
            Err((reason, message))
        };
        let kind = if target.kind == "Pool" { Kind::Pool } else { Kind::Service };
        let Some(found) = objects.get(kind, &object.namespace, &target.name) else {
            let names = objects.names(kind, &object.namespace);
            let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
            let message = format!("there is no {kind} {}/{}", object.namespace, target.name);
            return refuse("TargetNotFound", "name", message, hint);
        };
        let section = target.section_name.as_ref().filter(|name| !name.is_empty());
        if let Some(section) = section {
            let ports: Vec<&str> = match &found.spec {
                Spec::Service(spec) => {
                    spec.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect()
                }
                _ => Vec::new(),
            };
            if !ports.contains(&section.as_str()) {
                let hint = did_you_mean_hint(section, ports.iter().copied());
                let message =
                    format!("{kind} {}/{} has no port \"{section}\"", object.namespace, target.name);
                return refuse("TargetNotFound", "sectionName", message, hint);
            }
        }
        let of = (kind, object.namespace.clone(), target.name.clone(), section.cloned());
        if let Some((other, _)) = self.0.get(&of) {
            let message = format!("BackendTLSPolicy {other} is for the same {kind} and comes first");
            let hint = "remove one of the two; the older counts, then the first by name";
            return refuse("Conflicted", "name", message, Some(hint.to_owned()));
        }
        self.0.insert(of, (object.name.clone(), tls.clone()));
        Ok(())
    }
}

/// What a policy says, and why it is not accepted, if it is not.
fn tls(
    object: &Object,
    spec: &BackendTlsPolicySpec,
    objects: &Objects,
    note: &mut Notes,
) -> (PoolTls, Option<(&'static str, String)>) {
    let validation = &spec.validation;
    let origin: Arc<str> = object.key().to_string().into();
    let names = validation.subject_alt_names.iter().flatten().filter_map(|Name { hostname, uri, .. }| {
        Some(StringMatch::Exact(hostname.as_deref().or(uri.as_deref())?.into()))
    });
    let mut tls =
        PoolTls { sni: Some(validation.hostname.as_str().into()), names: names.collect(), ..closed(origin) };
    for key in spec.options.iter().flatten().map(|(key, _)| key) {
        let message = format!("the option \"{key}\" is not known here: it has no effect");
        note.diagnostics.push(object.warning("UnsupportedValue", "spec.options", message).hint("remove it"));
    }
    let Some(refs) = validation.ca_certificate_refs.as_ref().filter(|refs| !refs.is_empty()) else {
        tls.trust = ServerTrust::System;
        note.condition("ResolvedRefs", true, "ResolvedRefs", "");
        return (tls, None);
    };
    let place = Place { objects, namespace: &object.namespace, workload: None };
    let (mut roots, mut revoked, mut bad) = (Vec::new(), Vec::new(), None);
    for (i, reference) in refs.iter().enumerate() {
        let known = ["ConfigMap", "Secret"].contains(&reference.kind.as_str()) && reference.group.is_empty();
        let found = if known {
            let found = place.authorities(&reference.kind, &reference.name);
            found.map_err(|trouble| ("InvalidCACertificateRef", trouble))
        } else {
            let (group, kind) = (&reference.group, &reference.kind);
            let message = format!("certificates cannot be in a {kind} of group \"{group}\"");
            let hint = Some("name a ConfigMap with the key ca.crt".to_owned());
            Err(("InvalidKind", Trouble { field: String::new(), message, hint }))
        };
        match found {
            Ok((root, list)) => {
                roots.push(root);
                revoked.extend(list);
            }
            Err((reason, Trouble { field, message, hint })) => {
                let at = format!("spec.validation.caCertificateRefs[{i}]{field}");
                let mut error = object.error(reason, &at, message.clone());
                error.hint = hint;
                note.diagnostics.push(error);
                bad.get_or_insert((reason, message));
            }
        }
    }
    let none = roots.is_empty();
    tls.trust = ServerTrust::Roots { roots, revoked };
    match bad {
        None => note.condition("ResolvedRefs", true, "ResolvedRefs", ""),
        Some((reason, message)) => note.condition("ResolvedRefs", false, reason, message),
    }
    let message = "none of caCertificateRefs can be used: no connection is made to what the policy is for";
    (tls, none.then(|| ("NoValidCACertificate", message.to_owned())))
}
