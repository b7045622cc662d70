//! placeholder
/// x
pub struct Snapshot;
