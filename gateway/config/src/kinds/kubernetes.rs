//! What the API server forbids in Kubernetes' own kinds beyond types, as far as it matters here.

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::check::Checks;
use crate::diagnostic::reason;

pub(super) fn check_service(spec: &ServiceSpec, checks: &mut Checks<'_>) {
    let ports = spec.ports.as_deref().unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        checks.port(format_args!("spec.ports[{i}].port"), i64::from(port.port));
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
            checks.port(format_args!("ports[{i}].port"), i64::from(number));
        }
    }
}
