//! What happened, for operators: metrics and access logs.
//!
//! A worker describes every request once, in an [`Outcome`], and gives it to its [`Recorder`] and to the
//! [`access_log::AccessLog`]. Nothing here decides anything about a request, and nothing here makes a worker wait.

pub mod access_log;
mod clients;
pub mod exposition;
mod guards;
mod metrics;
mod mirrors;
pub mod outcome;
mod pool_events;
mod recorder;
mod refusals;
mod series;
#[cfg(test)]
mod testing;
mod tokens;

pub use guards::GuardResult;
pub use metrics::{Telemetry, backend_name, route_of};
pub use mirrors::{MirrorCounts, MirrorOutcome};
pub use outcome::{Outcome, Stages};
pub use pool_events::PoolEvent;
pub use recorder::Recorder;
