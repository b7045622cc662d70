//! From what the configuration says of clients' certificates to what judges them.

use std::sync::Arc;

use fieldgate_core::ir;
use fieldgate_wire::tls::{ClientMode, ClientRules, ClientVerifier, NamePattern};

/// The IR's rules, ready to judge.
pub(super) fn verifier(clients: &ir::ClientValidation) -> Result<Arc<ClientVerifier>, String> {
    fn texts(bundles: &[Arc<ir::PemBundle>]) -> Vec<(&str, &[u8])> {
        bundles.iter().map(|bundle| (&*bundle.origin, &*bundle.pem)).collect()
    }
    ClientVerifier::new(ClientRules {
        mode: match clients.mode {
            ir::ClientCertificates::Required => ClientMode::Required,
            ir::ClientCertificates::Optional => ClientMode::Optional,
            ir::ClientCertificates::Unverified => ClientMode::Unverified,
        },
        roots: texts(&clients.roots),
        revoked: texts(&clients.revoked),
        names: clients.names.iter().map(name_pattern).collect(),
        trust_domains: clients.trust_domains.iter().map(|domain| (**domain).into()).collect(),
    })
}

fn name_pattern(pattern: &ir::StringMatch) -> NamePattern {
    match pattern {
        // Templates are for paths; a name that looks like one means itself.
        ir::StringMatch::Exact(text) | ir::StringMatch::Template(text) => NamePattern::Exact((**text).into()),
        ir::StringMatch::Prefix(text) => NamePattern::Prefix((**text).into()),
        ir::StringMatch::Suffix(text) => NamePattern::Suffix((**text).into()),
        ir::StringMatch::Present => NamePattern::Any,
    }
}
