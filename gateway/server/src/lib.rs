//! The gateway: its workers, where its configuration comes from, what it tells operators, and its command line.
//!
//! Decisions about requests are `fieldgate-core`'s, protocols are `fieldgate-wire`'s, the meaning of documents is
//! `fieldgate-config`'s. This crate joins them to sockets, files, clocks and signals.

pub mod admin;
pub mod audit;
pub mod cli;
pub mod control;
mod describe;
pub mod explain;
pub mod hardening;
pub mod health;
pub mod host;
pub mod jwks;
mod memory;
pub mod overload;
pub mod panics;
pub mod published;
pub mod resolve;
pub mod source;
pub mod telemetry;
pub mod upstream_tls;
pub mod worker;
pub mod workload;
