//! Which TLS a request's connection to an endpoint has, and the handshake.
//!
//! A kept connection serves only requests that would have made it: of the same configuration and, where the request's host
//! is the name that is asked for, of the same host.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::RequestHead;
use fieldgate_core::balance::CompiledPool;
use fieldgate_wire::buffer::PooledBuf;
use fieldgate_wire::io::Io;
use fieldgate_wire::staged::Staged;
use fieldgate_wire::tls;
use tokio::net::TcpStream;

use crate::upstream_tls::{Client, PoolClients};

/// What a request wants of a connection to an endpoint: TLS with this, or none.
#[derive(Clone, Copy)]
pub struct Wanted<'r>(Option<(&'r Arc<Client>, Option<&'r str>)>);

/// What a connection has.
#[derive(Clone, Default)]
pub struct Secured(Option<(Arc<Client>, Option<Box<str>>)>);

impl<'r> Wanted<'r> {
    /// Of a request for this pool.
    #[inline]
    pub fn of(pool: &'r CompiledPool, head: &'r RequestHead, address: SocketAddr) -> Self {
        match pool.transport.get::<PoolClients>() {
            None => Self(None),
            Some(clients) => Self(clients.of(address).map(|client| {
                let host = client.asks_for_host().then(|| head.host());
                (client, host)
            })),
        }
    }

    /// Whether the connection is one by TLS.
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }

    /// Whether a connection serves it.
    #[inline]
    pub fn is_met_by(self, has: &Secured) -> bool {
        match (self.0, &has.0) {
            (None, None) => true,
            (Some((client, host)), Some((of, asked))) => {
                Arc::ptr_eq(client, of)
                    && match (host, asked) {
                        (Some(host), Some(asked)) => host.eq_ignore_ascii_case(asked),
                        (None, None) => true,
                        _ => false,
                    }
            }
            _ => false,
        }
    }

    /// What a new connection for it has.
    pub fn secured(self) -> Secured {
        Secured(self.0.map(|(client, host)| (Arc::clone(client), host.map(Into::into))))
    }

    /// Does the handshake, if there is to be one. `http1`: HTTP/2 is not offered.
    pub async fn handshake(
        self,
        tcp: TcpStream,
        address: SocketAddr,
        ahead: PooledBuf,
        http1: bool,
    ) -> io::Result<Io> {
        let Some((client, host)) = self.0 else { return Ok(Io::Tcp(tcp)) };
        let refuse = |why: &str| failed(address, io::ErrorKind::InvalidData, why);
        let config = client.configuration(http1).map_err(refuse)?;
        let name = client.server_name(host, address.ip());
        let connected = tls::connect(Arc::clone(config), name, Staged::new(tcp, ahead)).await;
        connected.map_err(|error| {
            // A client may name any host: that says nothing of the endpoint.
            let asked_in_vain = host.is_some() && tls::is_wrong_name(&error);
            let kind = if asked_in_vain { io::ErrorKind::InvalidInput } else { error.kind() };
            failed(address, kind, &tls::describe(&error))
        })
    }
}

impl Secured {
    /// Whether the pool would still connect like this.
    pub fn is_current(&self, pool: &CompiledPool, address: SocketAddr) -> bool {
        let now = pool.transport.get::<PoolClients>().and_then(|clients| clients.of(address));
        match (&self.0, now) {
            (None, None) => true,
            (Some((of, _)), Some(client)) => Arc::ptr_eq(of, client),
            _ => false,
        }
    }
}

/// As Envoy begins such reasons in access logs.
pub fn failed(address: SocketAddr, kind: io::ErrorKind, why: &str) -> io::Error {
    io::Error::new(kind, format!("TLS_error: {address}: {why}"))
}

#[cfg(test)]
mod tests {
    use fieldgate_core::ir::EndpointTls;

    use super::*;
    use crate::upstream_tls::Clients;
    use crate::upstream_tls::tests::{address, snapshot, tls};

    fn request(host: &str) -> RequestHead {
        RequestHead { authority: host.to_owned(), ..RequestHead::default() }
    }

    #[test]
    fn a_kept_connection_serves_its_own_host_only_where_the_host_is_asked_for() {
        let mut clients = Clients::default();
        for (sni, kept_for_all) in [(Some("a.example"), true), (None, false)] {
            let now = snapshot(None, Some(&tls(sni, true)), &[(1, EndpointTls::AsPool)]);
            clients.reconcile(&now);
            let pool = now.pools().next().unwrap();
            let (one, two) = (request("one.example:8080"), request("two.example"));
            let has = Wanted::of(pool, &one, address(1)).secured();
            assert!(Wanted::of(pool, &request("ONE.example"), address(1)).is_met_by(&has));
            assert_eq!(Wanted::of(pool, &two, address(1)).is_met_by(&has), kept_for_all);
            assert!(
                !Wanted::of(pool, &one, address(1)).is_met_by(&Secured::default()),
                "plain is never enough"
            );
        }
    }

    #[test]
    fn a_connection_from_before_a_change_of_trust_serves_nobody() {
        let mut clients = Clients::default();
        let before = snapshot(None, Some(&tls(Some("a.example"), true)), &[(1, EndpointTls::AsPool)]);
        clients.reconcile(&before);
        let head = request("a.example");
        let has = Wanted::of(before.pools().next().unwrap(), &head, address(1)).secured();
        let after = [
            snapshot(Some(&before), Some(&tls(Some("a.example"), true)), &[(1, EndpointTls::AsPool)]),
            snapshot(Some(&before), None, &[(1, EndpointTls::AsPool)]),
        ];
        for now in after {
            clients.reconcile(&now);
            let pool = now.pools().next().unwrap();
            assert!(!Wanted::of(pool, &head, address(1)).is_met_by(&has));
            assert!(!has.is_current(pool, address(1)));
        }
    }
}
