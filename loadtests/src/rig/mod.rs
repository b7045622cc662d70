//! What scenarios stand on: processes that end with them, configuration directories, free ports, certificates, and
//! waits that poll a condition within a bound.

pub mod certificates;
pub mod config;
pub mod cpu;
pub mod http;
pub mod ports;
pub mod process;
pub mod scripted;
pub mod tokens;
pub mod wait;

pub use config::ConfigDir;
pub use http::Response;
pub use process::{Backend, Gateway, GatewayOptions, Process};
pub use scripted::{Reply, Scripted};
