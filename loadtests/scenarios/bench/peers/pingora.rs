//! A stock `pingora-proxy` load balancer: `loadtests/peers/pingora-lb`.

use super::{Certificate, Configured};
use crate::bench::load::Addresses;
use crate::bench::setup::{Setup, Site, Upstream};

/// See [`super::Kind`].
pub fn configure(site: &Site<'_>, to: Addresses) -> Configured {
    // It has what its program says, and no more.
    if (Setup { upstream: Upstream::Http1, ..site.setup }) != Setup::PLAIN {
        return Ok(None);
    }
    let Certificate { chain, key, .. } = site.certificate;
    let mut arguments = vec![
        format!("--plain={}", to.plain),
        format!("--tls={}", to.tls),
        format!("--certificate={chain}"),
        format!("--key={key}"),
        format!("--backend={}", site.backend),
    ];
    if site.setup.upstream != Upstream::Http1 {
        arguments.push("--h2c".to_owned());
    }
    Ok(Some(arguments))
}
