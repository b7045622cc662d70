//! What the schemas of Gateway and ReferenceGrant (Gateway API 1.6) forbid beyond types.

use gateway_api::experimental::gateways::{
    GatewayListeners, GatewayListenersTlsMode, GatewaySpec, GatewayTlsFrontend,
};
use gateway_api::experimental::referencegrants::ReferenceGrantSpec;

use super::check::Checks;
use super::route::{check_namespace, check_section};
use crate::diagnostic::reason;

pub(super) fn check_gateway(spec: &GatewaySpec, checks: &mut Checks<'_>) {
    if spec.listeners.is_empty() {
        checks.error("spec.listeners", reason::WRONG_COUNT, "at least one listener is needed", None);
    }
    checks.count("spec.listeners", spec.listeners.len(), 64);
    for (i, listener) in spec.listeners.iter().enumerate() {
        check_listener(&format!("spec.listeners[{i}]"), listener, &spec.listeners[..i], checks);
    }
    if let Some(frontend) = spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) {
        check_frontend(frontend, checks);
    }
}

fn check_frontend(frontend: &GatewayTlsFrontend, checks: &mut Checks<'_>) {
    let mut check_refs = |at: &str, count: usize| {
        let field = format!("{at}.caCertificateRefs");
        if count == 0 {
            checks.error(&field, reason::WRONG_COUNT, "at least one reference is needed", None);
        }
        checks.count(&field, count, 8);
    };
    if let Some(validation) = &frontend.default.validation {
        check_refs("spec.tls.frontend.default.validation", validation.ca_certificate_refs.len());
    }
    let ports = frontend.per_port.as_deref().unwrap_or_default();
    for (i, own) in ports.iter().enumerate() {
        if let Some(validation) = &own.tls.validation {
            check_refs(
                &format!("spec.tls.frontend.perPort[{i}].tls.validation"),
                validation.ca_certificate_refs.len(),
            );
        }
    }
    checks.count("spec.tls.frontend.perPort", ports.len(), 64);
    for (i, own) in ports.iter().enumerate() {
        let field = format!("spec.tls.frontend.perPort[{i}].port");
        checks.port(format_args!("{field}"), i64::from(own.port));
        if let Some(earlier) = ports[..i].iter().position(|other| other.port == own.port) {
            let message = format!("spec.tls.frontend.perPort[{earlier}] already is for this port");
            checks.error(&field, reason::CONFLICTING_FIELDS, message, Some("remove one of the two"));
        }
    }
}

fn check_listener(
    at: &str,
    listener: &GatewayListeners,
    before: &[GatewayListeners],
    checks: &mut Checks<'_>,
) {
    checks.port(format_args!("{at}.port"), i64::from(listener.port));
    check_section(&format!("{at}.name"), &listener.name, checks);
    if let Some(earlier) = before.iter().position(|l| l.name == listener.name) {
        let message = format!("spec.listeners[{earlier}] already has the name \"{}\"", listener.name);
        let hint = Some("routes choose a listener by name: each needs its own");
        checks.error(&format!("{at}.name"), reason::INVALID_VALUE, message, hint);
    }
    let same = |l: &GatewayListeners| {
        (l.port, &l.protocol, &l.hostname) == (listener.port, &listener.protocol, &listener.hostname)
    };
    if let Some(earlier) = before.iter().position(same) {
        let message = format!("spec.listeners[{earlier}] already has this port, protocol and hostname");
        checks.error(
            at,
            reason::CONFLICTING_FIELDS,
            message,
            Some("remove one of the two, or give them different hostnames"),
        );
    }
    if let Some(hostname) = &listener.hostname {
        checks.hostname(&format!("{at}.hostname"), hostname, true);
        if matches!(listener.protocol.as_str(), "TCP" | "UDP") {
            let message = format!("a listener of protocol {} has no hostname", listener.protocol);
            checks.error(
                &format!("{at}.hostname"),
                reason::CONFLICTING_FIELDS,
                message,
                Some("remove the field"),
            );
        }
    }
    check_listener_tls(at, listener, checks);
}

fn check_listener_tls(at: &str, listener: &GatewayListeners, checks: &mut Checks<'_>) {
    let protocol = listener.protocol.as_str();
    let Some(tls) = &listener.tls else {
        if matches!(protocol, "HTTPS" | "TLS") {
            let message = format!("a listener of protocol {protocol} needs tls");
            let hint = Some("add tls: {certificateRefs: [{name: ...}]}");
            checks.error(at, reason::MISSING_FIELD, message, hint);
        }
        return;
    };
    let passthrough = matches!(tls.mode, Some(GatewayListenersTlsMode::Passthrough));
    if matches!(protocol, "HTTP" | "TCP" | "UDP") {
        let message = format!("a listener of protocol {protocol} has no tls");
        let hint = Some("set protocol: HTTPS, or remove tls");
        checks.error(&format!("{at}.tls"), reason::CONFLICTING_FIELDS, message, hint);
    } else if protocol == "HTTPS" && passthrough {
        let message = "a listener of protocol HTTPS terminates TLS";
        let hint = Some("set protocol: TLS to pass it through, or remove mode");
        checks.error(&format!("{at}.tls.mode"), reason::CONFLICTING_FIELDS, message, hint);
    } else if !passthrough
        && tls.certificate_refs.as_ref().is_none_or(Vec::is_empty)
        && tls.options.as_ref().is_none_or(std::collections::BTreeMap::is_empty)
    {
        let message = "a listener that terminates TLS needs a certificate";
        let hint = Some("add certificateRefs: [{name: ...}], the name of a Secret");
        checks.error(&format!("{at}.tls"), reason::MISSING_FIELD, message, hint);
    }
}

pub(super) fn check_reference_grant(spec: &ReferenceGrantSpec, checks: &mut Checks<'_>) {
    for (field, count) in [("spec.from", spec.from.len()), ("spec.to", spec.to.len())] {
        if count == 0 {
            checks.error(field, reason::WRONG_COUNT, "at least one entry is needed", None);
        }
        checks.count(field, count, 16);
    }
    for (i, from) in spec.from.iter().enumerate() {
        check_namespace(&format!("spec.from[{i}].namespace"), &from.namespace, checks);
    }
}
