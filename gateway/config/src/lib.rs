//! Documents to configuration: reads Kubernetes, Gateway API, Istio and Fieldgate objects from text and says,
//! for people, what is wrong with them.
//!
//! This crate does no IO: it is given texts with their names. It never decides anything about a request; that is
//! `fieldgate-core`'s.

pub mod diagnostic;
pub mod document;
pub mod kinds;
pub mod status;
pub mod store;
pub mod translate;
pub mod yaml;

pub use diagnostic::Diagnostic;
pub use status::ObjectStatus;
pub use store::{FileChange, Store, StoreChange};
pub use translate::Translator;

use fieldgate_core::ir;

/// The configuration of a gateway: documents, what they mean together, and what is wrong with them.
#[derive(Debug, Default)]
pub struct Configuration {
    store: Store,
    translator: Translator,
}

/// What a change of files came to.
#[derive(Debug)]
pub struct Outcome {
    /// The whole configuration.
    pub config: ir::Config,
    /// Which parts may differ from the one before.
    pub touched: ir::Touched,
    /// Everything that is wrong now.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the configuration differs from the one before.
    pub changed: bool,
}

impl Configuration {
    /// Takes changed files in.
    pub fn apply(&mut self, files: Vec<FileChange>) -> Outcome {
        let names: Vec<_> = files.iter().map(|f| f.name.clone()).collect();
        let change = self.store.apply(files);
        let translation = self.translator.apply(&change);
        self.translator.relocate(&names);
        let diagnostics = self.diagnostics();
        Outcome {
            config: translation.config,
            touched: translation.touched,
            diagnostics,
            changed: translation.changed,
        }
    }

    /// Everything that is wrong, in the order of file and line.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all = self.store.diagnostics();
        all.extend(self.translator.diagnostics());
        all.sort_by(Diagnostic::by_place);
        all
    }

    /// What Gateway API reports of listeners beside conditions.
    pub fn listener_statuses(&self) -> Vec<status::ListenerStatus> {
        self.translator.listener_statuses()
    }

    /// The `metadata.generation` of the version of an object that its conditions are about.
    pub fn observed_generation(&self, key: &document::ObjectKey) -> Option<i64> {
        self.translator.observed_generation(key)
    }

    /// The status of every object that has one.
    pub fn statuses(&self) -> Vec<status::ObjectStatus> {
        self.translator.statuses()
    }
}

/// Everything that is wrong with a set of files `(name, text)`, in the order of file name and line.
///
/// This is what `fieldgate check` prints and what the golden tests compare.
pub fn check_text(files: &[(&str, &str)]) -> Vec<Diagnostic> {
    let mut configuration = Configuration::default();
    let changes = files
        .iter()
        .map(|(name, text)| FileChange { name: (*name).into(), text: Some((*text).to_owned()) })
        .collect();
    configuration.apply(changes).diagnostics
}
