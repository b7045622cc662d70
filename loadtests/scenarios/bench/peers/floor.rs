//! A relay that does not know HTTP: `loadtests/floor`, by each of its engines.

use super::Configured;
use crate::bench::load::Addresses;
use crate::bench::setup::Site;

/// See [`super::Kind`]. Read and write, into a buffer as large as the gateway's large ones.
pub fn epoll(site: &Site<'_>, to: Addresses) -> Configured {
    configure(site, to, &["--engine=epoll", "--buffer=65536"])
}

/// Long bodies through a pipe.
pub fn splice(site: &Site<'_>, to: Addresses) -> Configured {
    configure(site, to, &["--engine=splice"])
}

/// By io_uring.
pub fn uring(site: &Site<'_>, to: Addresses) -> Configured {
    configure(site, to, &["--engine=uring", "--buffer=65536", "--buffers=128"])
}

/// It does what it can do, whatever the setup asks for.
fn configure(site: &Site<'_>, to: Addresses, more: &[&str]) -> Configured {
    let ends = [format!("--listen={}", to.plain), format!("--upstream={}", site.backend)];
    Ok(Some(ends.into_iter().chain(more.iter().map(|&word| word.to_owned())).collect()))
}
