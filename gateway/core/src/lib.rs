//! Fieldgate's decisions: which route, which side of a split, which endpoint, what becomes of a head.
//!
//! Nothing here does IO, reads a clock or draws randomness: facts, `now` and random numbers are passed in. CI builds the
//! crate for `wasm32-unknown-unknown` to keep it so.

pub mod address_set;
pub mod balance;
pub mod fault;
pub mod filter;
pub mod guard;
pub mod head;
pub mod identity;
pub mod ir;
pub mod limits;
pub mod mirror;
pub mod outlier;
pub mod path;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod split;
pub mod xfcc;

pub use address_set::AddressSet;
pub use head::{HeaderId, Headers, Method, RequestHead, ResponseHead, Version};
pub use snapshot::Snapshot;
