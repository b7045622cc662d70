//! `Pool` of the group `fieldgate.dev/v1alpha1`, as it is written.
//!
//! What its schema forbids is in `pool_check`, what shapes its traffic in
//! `pool_traffic`, what checks its health in `pool_health`, its TLS in `pool_tls`.

use serde::Deserialize;

use super::duration::Duration;
use super::pool_health::HealthCheck;
use super::pool_tls::{PoolEndpointTls, PoolTls};
use super::pool_traffic::{Limits, LoadBalancing, OutlierDetection};

/// A pool of machines. Exactly one of `endpoints`, `dns`, `service` and `hostname` is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// The machines by address.
    pub endpoints: Option<Vec<PoolEndpoint>>,
    /// The machines behind a DNS name.
    pub dns: Option<PoolDns>,
    /// The pods behind a Kubernetes Service.
    pub service: Option<PoolService>,
    /// The endpoints of a ServiceEntry's host.
    pub hostname: Option<PoolHostname>,
    /// What the machines speak.
    #[serde(default)]
    pub protocol: PoolProtocol,
    /// How one is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// How they are probed; not at all without it.
    pub health_check: Option<HealthCheck>,
    /// How long a TCP connection may take to open.
    pub connect_timeout: Option<Duration>,
    /// How long an unused connection is kept.
    pub idle_timeout: Option<Duration>,
    /// How many connections each endpoint gets at most, over all workers.
    pub max_connections_per_endpoint: Option<u32>,
    /// When endpoints are left alone for how their requests end.
    pub outlier_detection: Option<OutlierDetection>,
    /// What the pool as a whole is protected by.
    pub limits: Option<Limits>,
    /// TLS towards the endpoints; plain without it.
    pub tls: Option<PoolTls>,
    /// What is used when the endpoints above fail: each entry is the next priority.
    #[serde(default)]
    pub fallback: Vec<Fallback>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolEndpoint {
    /// An IP address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Its share among the others; 0 takes no new requests.
    #[serde(default = "one")]
    pub weight: u32,
    /// Where it stands.
    pub zone: Option<String>,
    /// Where it stands, in whole; in place of `zone`.
    pub locality: Option<PoolLocality>,
    /// Used when those of a smaller one fail.
    #[serde(default)]
    pub priority: u32,
    /// Used when those that are not degraded do not suffice.
    #[serde(default)]
    pub degraded: bool,
    /// What hashing knows it by, in place of its address.
    pub hash_key: Option<String>,
    /// The name it goes by in metrics and, with TLS, in its certificate.
    pub hostname: Option<String>,
    /// TLS towards it, if that is not the pool's.
    pub tls: Option<PoolEndpointTls>,
    /// Finishes what it has and takes nothing new.
    #[serde(default)]
    pub drain: bool,
}

/// Where an endpoint stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolLocality {
    /// `eu-west-1`
    pub region: String,
    /// `eu-west-1a`
    pub zone: String,
    /// A rack, a rank.
    pub subzone: String,
}

/// A DNS name whose addresses are the endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolDns {
    /// The name.
    pub name: String,
    /// The port of all of them.
    pub port: u16,
    /// It is asked again after the answer's TTL, and at the latest after this; 30s.
    pub refresh: Option<Duration>,
}

/// A Kubernetes Service whose endpoints are the pool's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolService {
    /// The Service's name.
    pub name: String,
    /// Its namespace; the pool's own without it.
    pub namespace: Option<String>,
    /// The Service's port.
    pub port: u16,
}

/// A host of a ServiceEntry whose endpoints are the pool's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolHostname {
    /// The host.
    pub name: String,
    /// The ServiceEntry's port.
    pub port: u16,
    /// Only the endpoints of this subset of the host's DestinationRule.
    pub subset: Option<String>,
}

/// Other endpoints for when a pool's own fail.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fallback {
    /// The kind's group.
    pub group: Option<String>,
    /// Service, without it; Pool or Hostname.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// Its namespace; the pool's own without it.
    pub namespace: Option<String>,
    /// The port of a Service or Hostname.
    pub port: Option<i32>,
}

/// What a pool's endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge on plaintext.
    Http2,
    /// What the client speaks.
    Auto,
}

fn one() -> u32 {
    1
}
