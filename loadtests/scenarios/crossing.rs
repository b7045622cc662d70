//! Every protocol of a client against every protocol of an upstream, on one gateway and one backend.

use fieldgate_loadtests::load::{Plan, Version};
use fieldgate_loadtests::rig::{Backend, Gateway, config};

use crate::context::{Context, Stage};
use crate::edge::{Edge, Way};

/// The host that is asked for, which decides the protocol that the backend is asked by.
const UPSTREAMS: [(&str, &str, Version); 2] =
    [("h1.test", "http1", Version::Http1), ("h2.test", "http2", Version::Http2)];

/// A gateway between them.
pub struct Crossing {
    _stage: Stage,
    edge: Edge,
    pub backend: Backend,
    pub gateway: Gateway,
}

/// One protocol on either side.
pub struct Pair {
    pub name: String,
    /// Asks through the gateway.
    pub plan: Plan,
    pub upstream: Version,
}

impl Crossing {
    pub fn start(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let edge = Edge::for_hosts(&stage, &UPSTREAMS.map(|(host, ..)| host))?;
        let backend = stage.backend("one")?;
        for (host, protocol, _) in UPSTREAMS {
            stage
                .config
                .write(&format!("pool-{protocol}"), &config::pool(protocol, &[backend.address], protocol))?;
            let route = config::route_for_host(protocol, host, &[(protocol, 1)]);
            stage.config.write(&format!("route-{protocol}"), &route)?;
        }
        let gateway = stage.gateway(&context.options())?;
        Ok(Self { _stage: stage, edge, backend, gateway })
    }

    /// Each of the client's protocols with each of the upstream's.
    pub fn pairs(&self) -> Vec<Pair> {
        let pairs = UPSTREAMS.map(|(host, protocol, upstream)| {
            let pair =
                |Way { name, plan, .. }| Pair { name: format!("{name} to {protocol}"), plan, upstream };
            self.edge.ways_to(host).map(pair)
        });
        pairs.into_iter().flatten().collect()
    }
}
