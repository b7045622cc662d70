//! What the fuzz targets share: oracles that read a specification aloud, and a way to take structure from bytes.
//!
//! An oracle is written for being obviously right, never for speed, and shares no code with what it judges.

pub mod input;
pub mod rfc3986;
pub mod rfc9112;
