//! Fieldgate's protocols: HTTP/1, TLS, buffers, timers, sockets. HTTP/2 is the `h2` crate's, used by the workers.
//!
//! Mechanisms only: no configuration and no policy, and nothing here depends on the rest of Fieldgate. The parts that
//! belong to a worker live on its one thread and use `Rc` and `Cell`.

pub mod buffer;
pub mod h1;
pub mod io;
pub mod linger;
pub mod metered;
pub mod socket;
pub mod staged;
pub mod stock;
pub mod timer;
pub mod tls;
pub mod websocket;
