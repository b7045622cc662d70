//! What the load tests are built from: a backend with every behaviour worth proxying, a load client that accounts
//! for each request, a probe that sees one exchange in full, and a rig that runs them as processes around a gateway.
//!
//! Nothing here links the gateway: it is tested as users meet it, through its binary, its files and its sockets.

pub mod backend;
pub mod load;
pub mod probe;
pub mod rig;
