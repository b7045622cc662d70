//! Active probes of a `Pool`, as they are written.

use serde::Deserialize;

use super::duration::Duration;
use crate::diagnostic::reason;

/// Active probes. Exactly one of `http`, `tcp` and `grpc` is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// From the end of one probe to the start of the next; 5s.
    pub interval: Option<Duration>,
    /// After which a probe has failed; 1s.
    pub timeout: Option<Duration>,
    /// Successes in a row that make an endpoint healthy; 2.
    pub healthy_threshold: Option<u32>,
    /// Failures in a row that make it unhealthy; 3.
    pub unhealthy_threshold: Option<u32>,
    /// A random addition to each interval.
    pub jitter: Option<Duration>,
    /// By an HTTP request.
    pub http: Option<HttpCheck>,
    /// By opening a connection.
    pub tcp: Option<TcpCheck>,
    /// By gRPC's own protocol for it.
    pub grpc: Option<GrpcCheck>,
    /// The port to probe, in place of the endpoint's.
    pub port: Option<u16>,
    /// The probe is made over TLS.
    pub tls: Option<CheckTls>,
}

/// A probe by HTTP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The path; `/`.
    pub path: Option<String>,
    /// The Host header; the endpoint's address without it.
    pub host: Option<String>,
    /// The method; GET.
    pub method: Option<String>,
    /// Codes and ranges of codes, `"200-299"` without it.
    pub expected_statuses: Option<Vec<StatusRange>>,
}

/// A probe by TCP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct TcpCheck {}

/// A probe by `grpc.health.v1.Health/Check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct GrpcCheck {
    /// The service asked for; the server as a whole without it.
    #[serde(default)]
    pub service: String,
    /// `:authority`; the endpoint's address without it.
    pub authority: Option<String>,
}

/// TLS of a probe. Exactly one of `caCertificateRefs` and `insecureSkipVerify` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckTls {
    /// The name asked for; the endpoint's address without it.
    pub server_name: Option<String>,
    /// Secrets with the authorities, in `ca.crt`.
    pub ca_certificate_refs: Option<Vec<CertificateRef>>,
    /// Any certificate will do.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

/// A Secret of the pool's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CertificateRef {
    /// The core group.
    pub group: Option<String>,
    /// Secret.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
}

/// `"204"` or `"200-299"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first code.
    pub first: u16,
    /// The last code, included.
    pub last: u16,
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl serde::de::Visitor<'_> for V {
            type Value = StatusRange;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a status code or a range of them, such as \"200-299\"")
            }

            fn visit_i64<E: serde::de::Error>(self, code: i64) -> Result<StatusRange, E> {
                self.visit_str(&code.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusRange, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (code(first), code(last)) {
                    (Some(first), Some(last)) if first <= last => Ok(StatusRange { first, last }),
                    _ => Err(crate::yaml::reject(
                        reason::INVALID_VALUE,
                        format_args!("\"{text}\" is not a range of status codes"),
                        "write codes between 100 and 599: \"200\" or \"200-299\"",
                    )),
                }
            }
        }
        deserializer.deserialize_any(V)
    }
}

fn code(text: &str) -> Option<u16> {
    let code = text.trim().parse().ok()?;
    (100..=599).contains(&code).then_some(code)
}
