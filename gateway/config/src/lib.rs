//! Documents to configuration: reads Kubernetes, Gateway API, Istio and Fieldgate objects from text and says,
//! for people, what is wrong with them.
//!
//! This crate does no IO: it is given texts with their names. It never decides anything about a request; that is
//! `fieldgate-core`'s.

pub mod diagnostic;
pub mod document;
pub mod kinds;
pub mod store;
pub mod yaml;

pub use diagnostic::Diagnostic;
pub use store::{FileChange, Store, StoreChange};

/// Everything that is wrong with a set of files `(name, text)`, in the order of file name and line.
///
/// This is what `fieldgate check` prints and what the golden tests compare.
pub fn check_text(files: &[(&str, &str)]) -> Vec<Diagnostic> {
    let mut store = Store::default();
    let changes = files
        .iter()
        .map(|(name, text)| FileChange { name: (*name).into(), text: Some((*text).to_owned()) })
        .collect();
    store.apply(changes);
    store.diagnostics()
}
