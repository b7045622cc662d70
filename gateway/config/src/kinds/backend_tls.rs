//! What the schema of Gateway API's `BackendTLSPolicy` forbids beyond types.

use gateway_api::backendtlspolicies::{
    BackendTlsPolicySpec, BackendTlsPolicyValidationSubjectAltNamesType as NameType,
};

use super::check::Checks;
use crate::diagnostic::reason;

pub(super) fn check_backend_tls_policy(spec: &BackendTlsPolicySpec, checks: &mut Checks<'_>) {
    if spec.target_refs.is_empty() {
        checks.error("spec.targetRefs", reason::WRONG_COUNT, "at least one target is needed", None);
    }
    checks.count("spec.targetRefs", spec.target_refs.len(), 16);
    for (i, target) in spec.target_refs.iter().enumerate() {
        let kinds = [("", "Service"), ("fieldgate.dev", "Pool")];
        if !kinds.contains(&(target.group.as_str(), target.kind.as_str())) {
            let message =
                format!("a BackendTLSPolicy cannot be attached to {}/{}", target.group, target.kind);
            let hint = Some("group: \"\" with kind: Service, or group: fieldgate.dev with kind: Pool");
            checks.error(&format!("spec.targetRefs[{i}]"), reason::INVALID_VALUE, message, hint);
        }
    }
    let validation = &spec.validation;
    let refs = validation.ca_certificate_refs.as_ref().filter(|refs| !refs.is_empty());
    let well_known = validation.well_known_ca_certificates.as_deref().filter(|name| !name.is_empty());
    checks.exactly_one(
        "spec.validation",
        &[("caCertificateRefs", refs.is_some()), ("wellKnownCACertificates", well_known.is_some())],
    );
    checks.count("spec.validation.caCertificateRefs", refs.map_or(0, Vec::len), 8);
    if well_known.is_some_and(|name| name != "System") {
        let message = "only System is known";
        checks.error(
            "spec.validation.wellKnownCACertificates",
            reason::INVALID_VALUE,
            message,
            Some("System"),
        );
    }
    checks.hostname("spec.validation.hostname", &validation.hostname, false);
    let names = validation.subject_alt_names.as_deref().unwrap_or_default();
    checks.count("spec.validation.subjectAltNames", names.len(), 5);
    for (i, name) in names.iter().enumerate() {
        let at = format!("spec.validation.subjectAltNames[{i}]");
        let (wanted, given, other) = match name.r#type {
            NameType::Hostname => ("hostname", &name.hostname, name.uri.is_some()),
            NameType::Uri => ("uri", &name.uri, name.hostname.is_some()),
        };
        if given.as_ref().is_none_or(String::is_empty) || other {
            let message = format!("a name of this type has {wanted} and nothing else");
            checks.error(&at, reason::INVALID_VALUE, message, None);
        } else if let (NameType::Hostname, Some(hostname)) = (&name.r#type, given) {
            checks.hostname(&format!("{at}.hostname"), hostname, true);
        }
    }
}
