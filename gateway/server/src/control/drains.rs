//! Endpoints that an operator has taken out of service, by the name of their pool and their address.
//!
//! The marks themselves are `EndpointState`s'; here they are remembered for when an endpoint, or its whole pool, leaves and
//! comes back, and for the process after this one. They are not written anywhere: after a restart they are gone, and
//! `drain: true` in the Pool is what lasts.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::Snapshot;
use fieldgate_core::balance::{CompiledEndpoint, CompiledPool, EndpointState};
use fieldgate_core::ir::PoolKey;
use tokio::sync::oneshot;

use crate::audit::Who;

/// Names that a hint lists at most.
const HINTS: usize = 10;

/// A pool as an operator names it. Several pools may be meant: a Service that is asked for in two protocols is two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolName {
    kind: &'static str,
    namespace: Arc<str>,
    name: Arc<str>,
    port: u16,
}

/// An endpoint that an operator has taken out.
pub type DrainedEndpoint = (PoolName, SocketAddr);

/// Somebody takes an endpoint out of service, or puts it back.
pub struct DrainOrder {
    /// For the logs.
    pub who: Who,
    /// Its pool.
    pub pool: PoolName,
    /// Its address.
    pub address: SocketAddr,
    /// Out, or back.
    pub drained: bool,
    /// Whether anything changed, or why there is no such endpoint.
    pub reply: oneshot::Sender<Result<bool, String>>,
}

impl PoolName {
    /// `vms` is a Pool; others are `service/NAME:PORT` and `hostname/NAME:PORT`.
    pub fn parse(namespace: &str, text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text:?} names no pool (hint: NAME of a Pool, service/NAME:PORT or hostname/NAME:PORT)")
        };
        let (kind, rest) = text.split_once('/').unwrap_or(("pool", text));
        let kind = ["Pool", "Service", "Hostname"].into_iter().find(|known| known.eq_ignore_ascii_case(kind));
        let (name, port) = match kind {
            Some("Pool") => (rest, 0),
            _ => rest
                .rsplit_once(':')
                .and_then(|(name, port)| Some((name, port.parse().ok()?)))
                .ok_or_else(wrong)?,
        };
        let good = |part: &str| !part.is_empty() && !part.contains(|c: char| c == '/' || c.is_whitespace());
        match kind {
            Some(kind) if good(name) && good(namespace) => {
                Ok(Self { kind, namespace: namespace.into(), name: name.into(), port })
            }
            _ => Err(wrong()),
        }
    }

    /// Whether a pool has this name. `Service (gRPC)` is the Service's, for other routes.
    pub fn is_of(&self, key: &PoolKey) -> bool {
        let object = &key.object;
        object.name == self.name
            && object.namespace == self.namespace
            && key.port == self.port
            && object.kind.split(' ').next() == Some(self.kind)
    }

    /// As [`Self::parse`] reads it.
    fn path(&self) -> String {
        match self.kind {
            "Pool" => self.name.to_string(),
            kind => format!("{}/{}:{}", kind.to_ascii_lowercase(), self.name, self.port),
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        if self.port == 0 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// One endpoint per line, for the next process.
pub fn write_drained(drained: &[DrainedEndpoint]) -> String {
    let line = |(pool, address): &DrainedEndpoint| format!("{} {} {address}\n", pool.namespace, pool.path());
    drained.iter().map(line).collect()
}

/// What [`write_drained`] wrote. A line that cannot be read is passed over: another version wrote it.
pub fn read_drained(text: &str) -> Vec<DrainedEndpoint> {
    let line = |line: &str| {
        let mut parts = line.split(' ');
        let pool = PoolName::parse(parts.next()?, parts.next()?).ok()?;
        Some((pool, parts.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// All that are taken out.
#[derive(Default)]
pub(super) struct Drains(BTreeSet<DrainedEndpoint>);

impl Drains {
    pub(super) fn new(inherited: Vec<DrainedEndpoint>) -> Self {
        Self(inherited.into_iter().collect())
    }

    pub(super) fn list(&self) -> Vec<DrainedEndpoint> {
        self.0.iter().cloned().collect()
    }

    /// Marks those that a snapshot has, before anybody serves from it.
    pub(super) fn apply(&self, snapshot: &Snapshot) {
        for (name, address) in &self.0 {
            for state in states(snapshot, name, *address) {
                state.set_drained(true);
            }
        }
    }

    /// Whether anything changed, or why there is no such endpoint. One that is remembered is known although it is away.
    pub(super) fn set(
        &mut self,
        snapshot: &Snapshot,
        pool: &PoolName,
        address: SocketAddr,
        drained: bool,
    ) -> Result<bool, String> {
        let key = (pool.clone(), address);
        let mut found = false;
        for state in states(snapshot, pool, address) {
            state.set_drained(drained);
            found = true;
        }
        if !found && !self.0.contains(&key) {
            return Err(unknown(snapshot, pool, address));
        }
        Ok(if drained { self.0.insert(key) } else { self.0.remove(&key) })
    }
}

fn named<'s>(snapshot: &'s Snapshot, name: &'s PoolName) -> impl Iterator<Item = &'s Arc<CompiledPool>> {
    snapshot.pools().filter(|pool| name.is_of(&pool.ir.key))
}

fn states<'s>(
    snapshot: &'s Snapshot,
    name: &'s PoolName,
    address: SocketAddr,
) -> impl Iterator<Item = &'s Arc<EndpointState>> {
    let endpoints = named(snapshot, name).flat_map(|pool| &pool.endpoints);
    endpoints.map(|endpoint| &endpoint.state).filter(move |state| state.address == address)
}

fn unknown(snapshot: &Snapshot, name: &PoolName, address: SocketAddr) -> String {
    let mut pools = named(snapshot, name).peekable();
    if pools.peek().is_some() {
        let addresses: BTreeSet<_> =
            pools.flat_map(|pool| &pool.endpoints).map(CompiledEndpoint::address).collect();
        let hint = some(addresses.iter().map(ToString::to_string));
        return format!("{name} has no endpoint {address} (hint: it has {hint})");
    }
    no_such_pool(snapshot, name)
}

/// That there is no such pool, and which there are.
pub fn no_such_pool(snapshot: &Snapshot, name: &PoolName) -> String {
    let near = snapshot.pools().map(|pool| &pool.ir.key).filter(|key| key.object.namespace == name.namespace);
    let hint = some(near.map(ToString::to_string).collect::<BTreeSet<_>>().into_iter());
    format!("there is no {name} (hint: in namespace {} there are: {hint})", name.namespace)
}

fn some(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<_> = names.collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    let more = names.len().saturating_sub(HINTS);
    names.truncate(HINTS);
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    names.join(", ") + &and_more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_have_names_that_people_can_write() {
        for (text, expected) in [
            ("vms", Some("Pool prod/vms")),
            ("pool/vms", Some("Pool prod/vms")),
            ("service/shop:8080", Some("Service prod/shop:8080")),
            ("Hostname/api.example.com:443", Some("Hostname prod/api.example.com:443")),
            ("service/shop", None),
            ("service/shop:http", None),
            ("deployment/shop", None),
            ("service/a/b:1", None),
            ("a b", None),
            ("", None),
        ] {
            let name = PoolName::parse("prod", text).ok().map(|name| name.to_string());
            assert_eq!(name.as_deref(), expected, "{text}");
        }
        let wrong = PoolName::parse("prod", "service/shop").unwrap_err();
        assert!(wrong.contains("service/NAME:PORT"), "{wrong}");
    }

    #[test]
    fn the_next_process_reads_what_this_one_wrote() {
        let drained: Vec<DrainedEndpoint> = [
            ("vms", "10.0.0.1:80"),
            ("service/shop:8080", "[fd00::1]:8080"),
            ("hostname/api.example.com:443", "10.0.0.1:443"),
        ]
        .map(|(pool, address)| (PoolName::parse("prod", pool).unwrap(), address.parse().unwrap()))
        .to_vec();
        let text = write_drained(&drained);
        assert_eq!(text.lines().next(), Some("prod vms 10.0.0.1:80"));
        assert_eq!(read_drained(&text), drained);
        assert_eq!(read_drained(&format!("of another version\n{text}")), drained);
    }
}
