//! Settings of pools in words, the same wherever they are shown: `explain`, `status`, the admin server.

use std::fmt::Write as _;
use std::sync::Arc;

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::{
    AffinityCarrier, Balance, EndpointTls, HashBy, HashFunction, HashKind, HealthKind, PemBundle, PoolTls,
    ServerTrust, StringMatch,
};

/// How a pool chooses: `least-request of 2`, `ring hash by header x-user, else client address`.
pub fn balance(balance: &Balance) -> String {
    match balance {
        Balance::LeastRequest { choices, bias: 100 } => format!("least-request of {choices}"),
        Balance::LeastRequest { choices, bias } => {
            format!("least-request of {choices}, bias {}", hundredths(*bias))
        }
        Balance::RoundRobin => "round-robin".to_owned(),
        Balance::Random => "random".to_owned(),
        Balance::PeakEwma { decay } => format!("peak-EWMA, decay {decay:?}"),
        Balance::RingHash { function, min_size, max_size, by } => {
            let function = match function {
                HashFunction::XxHash => "xxHash",
                HashFunction::Murmur2 => "Murmur2",
            };
            format!("ring hash ({function}, {min_size} to {max_size} entries) {}", hash_by(by))
        }
        Balance::Maglev { table_size, by } => format!("Maglev (table of {table_size}) {}", hash_by(by)),
    }
}

fn hash_by(by: &HashBy) -> String {
    if by.sources.is_empty() {
        return "by chance, as nothing is said of what to hash".to_owned();
    }
    let mut out = String::from("by ");
    for (index, source) in by.sources.iter().enumerate() {
        if index > 0 {
            out.push_str(if by.sources[index - 1].terminal { ", else " } else { " and " });
        }
        let _ = match &source.kind {
            HashKind::Header(name) => write!(out, "header {name}"),
            HashKind::Cookie { name, ttl: None, .. } => write!(out, "cookie {name}"),
            HashKind::Cookie { name, .. } => write!(out, "cookie {name}, which the gateway sets"),
            HashKind::Source => write!(out, "client address"),
            HashKind::Query(name) => write!(out, "query parameter {name}"),
        };
    }
    if by.balance_factor > 0 {
        let _ = write!(out, ", at most {} times the mean load", hundredths(by.balance_factor));
    }
    out
}

/// What carries the endpoint's name.
pub fn affinity(carrier: &AffinityCarrier) -> String {
    match carrier {
        AffinityCarrier::Cookie { name, .. } => format!("cookie {name}"),
        AffinityCarrier::Header(name) => format!("header {name}"),
    }
}

/// TLS towards endpoints, but for anything secret: `server name shop.example, authorities of ConfigMap default/ca`.
pub fn upstream_tls(tls: &PoolTls) -> String {
    let mut out = match &tls.sni {
        Some(name) => format!("server name {name}"),
        None => "server name as the request's host".to_owned(),
    };
    let list = |bundles: &[Arc<PemBundle>]| {
        bundles.iter().map(|bundle| &*bundle.origin).collect::<Vec<_>>().join(", ")
    };
    let _ = match &tls.trust {
        ServerTrust::System => write!(out, ", the system's authorities"),
        ServerTrust::Anybody => write!(out, ", any certificate"),
        ServerTrust::Roots { roots, .. } if roots.is_empty() => write!(out, ", closed: nobody is believed"),
        ServerTrust::Roots { roots, revoked } if revoked.is_empty() => {
            write!(out, ", authorities of {}", list(roots))
        }
        ServerTrust::Roots { roots, revoked } => {
            write!(out, ", authorities of {}, revocation lists of {}", list(roots), list(revoked))
        }
    };
    if !tls.names.is_empty() {
        let names = tls.names.iter().map(|name| match name {
            StringMatch::Exact(text) => text.to_string(),
            StringMatch::Prefix(text) => format!("{text}*"),
            StringMatch::Suffix(text) => format!("*{text}"),
            StringMatch::Present => "*".to_owned(),
            StringMatch::Template(text) => text.to_string(),
        });
        let _ = write!(out, ", names {}", names.collect::<Vec<_>>().join(" or "));
    }
    if let Some(identity) = &tls.identity {
        let _ = write!(out, ", client certificate of {}", identity.origin);
    }
    out
}

/// TLS towards one endpoint where that is not the pool's: `plain`, or as [`upstream_tls`].
pub fn endpoint_tls(tls: &EndpointTls) -> Option<String> {
    match tls {
        EndpointTls::AsPool => None,
        EndpointTls::Plain => Some("plain".to_owned()),
        EndpointTls::Own(own) => Some(upstream_tls(own)),
    }
}

/// What a check asks.
pub fn health(kind: &HealthKind) -> String {
    match kind {
        HealthKind::Tcp => "TCP".to_owned(),
        HealthKind::Http { method, path, .. } => format!("{method} {path}"),
        HealthKind::Grpc { service, .. } if service.is_empty() => "gRPC".to_owned(),
        HealthKind::Grpc { service, .. } => format!("gRPC {service}"),
    }
}

/// Endpoints that would be chosen now, but for what panic allows.
pub fn usable(pool: &CompiledPool, now_ms: u64) -> usize {
    pool.endpoints.iter().filter(|e| !e.is_draining() && e.state.available(now_ms)).count()
}

fn hundredths(value: u32) -> String {
    format!("{}.{:02}", value / 100, value % 100)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldgate_core::ir::HashSource;

    use super::*;

    #[test]
    fn tls_is_told_without_secrets() {
        let roots = vec![Arc::new(PemBundle { origin: "ConfigMap default/ca".into(), pem: [].into() })];
        let mut tls = PoolTls {
            origin: "Pool default/p".into(),
            trust: ServerTrust::Roots { roots, revoked: Vec::new() },
            sni: Some("a.example".into()),
            names: vec![StringMatch::Exact("spiffe://td/x".into())],
            identity: Some(Arc::new(fieldgate_core::ir::Certificate {
                origin: "Secret default/own".into(),
                chain_pem: [].into(),
                key_pem: b"SECRET"[..].into(),
            })),
            alpn: Vec::new(),
        };
        assert_eq!(
            upstream_tls(&tls),
            "server name a.example, authorities of ConfigMap default/ca, names spiffe://td/x, client certificate of Secret default/own"
        );
        assert!(!format!("{tls:?}").contains("SECRET"));
        (tls.trust, tls.sni) = (ServerTrust::Roots { roots: Vec::new(), revoked: Vec::new() }, None);
        assert!(upstream_tls(&tls).starts_with("server name as the request's host, closed"));
    }

    #[test]
    fn balancers_are_named() {
        let source = |kind, terminal| HashSource { kind, terminal };
        let cookie = HashKind::Cookie { name: "s".into(), ttl: Some(Duration::ZERO), path: "/".into() };
        let sources = vec![source(HashKind::Header("x-user".into()), true), source(cookie, false)];
        let both = [sources.clone(), vec![source(HashKind::Source, false)]].concat();
        let maglev = |sources, balance_factor| Balance::Maglev {
            table_size: 65_537,
            by: HashBy { sources, balance_factor }.into(),
        };
        for (balancer, expected) in [
            (Balance::default(), "least-request of 2"),
            (Balance::LeastRequest { choices: 3, bias: 150 }, "least-request of 3, bias 1.50"),
            (
                maglev(sources, 125),
                "Maglev (table of 65537) by header x-user, else cookie s, which the gateway sets, at most 1.25 times the mean load",
            ),
            (
                maglev(both, 0),
                "Maglev (table of 65537) by header x-user, else cookie s, which the gateway sets and client address",
            ),
            (maglev(vec![], 0), "Maglev (table of 65537) by chance, as nothing is said of what to hash"),
        ] {
            assert_eq!(balance(&balancer), expected);
        }
    }
}
