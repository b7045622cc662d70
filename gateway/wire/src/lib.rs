//! Fieldgate's protocols: HTTP/1, HTTP/2, TLS, buffers, timers, sockets.
//!
//! Mechanisms only: no configuration and no policy, and nothing here depends on the rest of Fieldgate. The parts that
//! belong to a worker live on its one thread and use `Rc` and `Cell`.

pub mod buffer;
pub mod h1;
pub mod io;
pub mod socket;
pub mod timer;
pub mod tls;
