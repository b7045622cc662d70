//! Changes of objects that come by the admin server.
//!
//! The directory stays the one source of truth: a change is made to the file that describes the object, and to the running
//! configuration without waiting for somebody to notice the file. First the files are read again, so that no edit is
//! overwritten unseen; then the change is tried; only what is sound is written, and only what is written is published.
//! Who may ask for a change is the admin server's matter.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use fieldgate_config::diagnostic::Severity;
use fieldgate_config::edit::{self, Edit, EditedFile, Impossible};
use fieldgate_config::kinds::Kind;
use fieldgate_config::status::ObjectStatus;
use fieldgate_config::{Diagnostic, FileChange, Outcome};
use fieldgate_core::ir::ObjectKey;
use serde_json::json;
use tokio::sync::oneshot;

use super::Control;
use crate::audit::{self, Who};
use crate::source::write;

/// What the text of a request is called in diagnostics.
pub const REQUEST: &str = "<request>";

/// Where new objects go, below the first directory of the configuration.
const FOLDER: &str = "api";

/// A change that somebody asks for.
pub struct Change {
    /// Who, for the logs.
    pub who: Who,
    /// Only if this is the generation in force.
    pub if_generation: Option<u64>,
    /// What.
    pub what: What,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Answer>,
}

/// What is to be changed.
pub enum What {
    /// These documents are to be in force.
    Put(String),
    /// This object is to go.
    Delete(ObjectKey),
}

/// What became of it.
pub type Answer = Result<Changed, Refused>;

/// A change that is made.
#[derive(Debug)]
pub struct Changed {
    /// The generation that holds it.
    pub generation: u64,
    /// `false` while it waits for the first answer about a DNS name.
    pub published: bool,
    /// Each object, what became of it, and the file that it is in.
    pub objects: Vec<(ObjectKey, &'static str, Arc<str>)>,
    /// Their conditions, as far as they have any.
    pub statuses: Vec<ObjectStatus>,
    /// What else is to be said of these objects, and errors that others have now and had not before.
    pub diagnostics: Vec<Diagnostic>,
}

/// A change that is not made. Nothing is different from before.
#[derive(Debug)]
pub struct Refused {
    /// Whose fault it is.
    pub why: Why,
    /// For people.
    pub message: String,
    /// What is wrong with the documents.
    pub diagnostics: Vec<Diagnostic>,
}

/// Why a change is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The documents are wrong.
    Invalid,
    /// There is no such object.
    NotFound,
    /// The files are such that it cannot be made.
    Conflict,
    /// Another generation is in force.
    Stale,
    /// The files cannot be read or written.
    Failed,
}

impl Refused {
    fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into(), diagnostics: Vec::new() }
    }
}

impl From<Impossible> for Refused {
    fn from(impossible: Impossible) -> Self {
        let why = if impossible.not_found { Why::NotFound } else { Why::Conflict };
        Self::new(why, impossible.message)
    }
}

impl Control {
    /// Makes a change or refuses it, says so in the log, and answers once workers see it.
    pub(super) fn on_change(&mut self, change: Change) {
        let Change { who, if_generation, what, reply } = change;
        let asked = match &what {
            What::Put(_) => "put objects".to_owned(),
            What::Delete(key) => format!("delete {key}"),
        };
        let answer = self.change(if_generation, what);
        self.audit_change(&who, &asked, &answer);
        match &answer {
            Ok(changed) => {
                self.changes.accepted += 1;
                for (key, verb, file) in &changed.objects {
                    let generation = changed.generation;
                    tracing::info!(%who, generation, file = &**file, "{key} {verb} by the admin API");
                }
            }
            Err(refused) => {
                self.changes.refused += 1;
                tracing::warn!(%who, generation = self.generation, "a change by the admin API is refused: {}", refused.message);
            }
        }
        self.report();
        drop(reply.send(answer));
    }

    fn audit_change(&self, who: &Who, asked: &str, answer: &Answer) {
        let (about, outcome) = match answer {
            Ok(changed) => {
                let row = |(key, verb, file): &(ObjectKey, &'static str, Arc<str>)| json!({"object": key.to_string(), "verb": verb, "file": &**file});
                let objects = audit::names(changed.objects.iter().map(row));
                (json!({"objects": objects, "generation": changed.generation}), audit::Outcome::Done)
            }
            Err(refused) => {
                let about = json!({"asked": asked, "generation": self.generation});
                (about, audit::Outcome::Refused(refused.message.clone()))
            }
        };
        self.audit.record("change", who, about, &outcome);
    }

    fn change(&mut self, if_generation: Option<u64>, what: What) -> Answer {
        let mut edits = match what {
            What::Delete(key) => vec![Edit { key, text: None, new_file: None }],
            What::Put(text) => edit::documents(REQUEST, &text).map_err(|diagnostics| {
                let message = "the documents are refused, and nothing is changed".to_owned();
                Refused { why: Why::Invalid, message, diagnostics }
            })?,
        };
        for edit in edits.iter_mut().filter(|edit| edit.text.is_some()) {
            edit.new_file = self.new_file(&edit.key);
        }
        self.read_again(&edits)?;
        // Only now: what was just read, or still waits for DNS, is a state that the writer has not seen.
        let seen = |wanted: &u64| *wanted == self.generation && self.touched.is_none();
        if let Some(wanted) = if_generation.filter(|wanted| !seen(wanted)) {
            let message =
                format!("generation {} is in force or about to be left, not {wanted}", self.generation);
            return Err(Refused::new(Why::Stale, message));
        }
        self.ensure_described(&edits)?;
        let files = self.edited(&edits)?;
        let known = |control: &Self, key: &ObjectKey| control.configuration.file_of(key);
        let before: Vec<_> = edits.iter().map(|edit| known(self, &edit.key)).collect();
        self.attempt(&edits, &files)?;
        let objects = edits.iter().zip(before).map(|(edit, before)| {
            let verb = match (&before, &edit.text) {
                (_, None) => "deleted",
                (None, _) => "created",
                (Some(file), _) if files.iter().all(|f| f.name != *file || f.before == f.after) => {
                    "unchanged"
                }
                (Some(_), _) => "configured",
            };
            let file = known(self, &edit.key).or(before).unwrap_or_else(|| REQUEST.into());
            (edit.key.clone(), verb, file)
        });
        let objects: Vec<_> = objects.collect();
        let keys: Vec<&ObjectKey> = edits.iter().map(|edit| &edit.key).collect();
        let about = self.document_diagnostics.iter().filter(|d| keys.iter().any(|key| is_about(d, key)));
        let mut diagnostics: Vec<Diagnostic> = about.cloned().collect();
        let waits = self.touched.is_some();
        diagnostics.append(&mut self.consequences);
        Ok(Changed {
            generation: self.generation,
            published: !waits,
            objects,
            statuses: keys.iter().filter_map(|key| self.status(key)).collect(),
            diagnostics,
        })
    }

    /// Refuses to change what is in force by a version that no text describes any more: a change that fails could not be
    /// undone, for undoing brings texts back.
    fn ensure_described(&self, edits: &[Edit]) -> Result<(), Refused> {
        let about = |d: &&Diagnostic| d.last_good_in_use && edits.iter().any(|edit| is_about(d, &edit.key));
        let Some(kept) = self.document_diagnostics.iter().find(about) else { return Ok(()) };
        let message = format!(
            "what {} says is refused, and the version before it is in force (hint: mend or remove that text first)",
            kept.location
        );
        Err(Refused::new(Why::Conflict, message))
    }

    fn edited(&self, edits: &[Edit]) -> Result<Vec<EditedFile>, Refused> {
        let homeless = |edit: &&Edit| edit.new_file.is_none() && edit.text.is_some();
        let files = self.configuration.edited(edits).map_err(|impossible| {
            match edits.iter().find(homeless).filter(|_| impossible.not_found) {
                Some(edit) => Refused::new(
                    Why::Conflict,
                    format!("{} is new, and no --config is a directory that could hold it", edit.key),
                ),
                None => impossible.into(),
            }
        })?;
        for file in &files {
            if &*file.name == "<stdin>" {
                let message = "the configuration came by standard input and cannot be changed".to_owned();
                return Err(Refused::new(Why::Conflict, message));
            }
            if let Some(message) = write::is_managed_elsewhere(Path::new(&*file.name)) {
                return Err(Refused::new(Why::Conflict, message));
            }
        }
        Ok(files)
    }

    /// Takes the change in, writes it and publishes it; or undoes what was done of it.
    fn attempt(&mut self, edits: &[Edit], files: &[EditedFile]) -> Result<(), Refused> {
        let base = self.base.clone();
        let refused_before = self.configuration.refused();
        let outcome = self.configuration.apply(files.iter().map(|file| file.change(false)).collect());
        let put = |edit: &&Edit| edit.text.is_some();
        let refused = |d: &&Diagnostic| {
            d.severity == Severity::Error && edits.iter().filter(put).any(|edit| is_about(d, &edit.key))
        };
        let diagnostics: Vec<_> = outcome.diagnostics.iter().filter(refused).cloned().collect();
        // What is sound alone may not be so behind what stands above it in its file.
        let spoilt = self.configuration.refused() > refused_before
            || edits.iter().filter(put).any(|edit| self.configuration.file_of(&edit.key).is_none());
        let problem = if spoilt && diagnostics.is_empty() {
            let message = "the document cannot stand where the object is in its file, and nothing is changed (hint: send it as plain YAML, without directives)";
            Some(Refused::new(Why::Conflict, message))
        } else if diagnostics.is_empty() {
            let secret = edits.iter().any(|edit| edit.key.kind == Kind::Secret.as_str());
            write_all(files, secret).err().map(|message| Refused::new(Why::Failed, message))
        } else {
            let message = "the documents are refused, and nothing is changed".to_owned();
            Some(Refused { why: Why::Invalid, message, diagnostics })
        };
        if let Some(problem) = problem {
            let undone = self.configuration.apply(files.iter().map(|file| file.change(true)).collect());
            if undone.config == base {
                self.document_diagnostics = undone.diagnostics;
            } else {
                // An object was in force that no text describes any more.
                self.take_over(merged(outcome, undone));
                self.settle();
            }
            return Err(problem);
        }
        self.written.extend(files.iter().map(|file| file.name.clone()));
        let before: BTreeSet<String> = self.document_diagnostics.iter().map(|d| d.message.clone()).collect();
        let new = |d: &&Diagnostic| d.severity == Severity::Error && !before.contains(&d.message);
        self.consequences = outcome.diagnostics.iter().filter(new).cloned().collect();
        self.take_over(outcome);
        self.settle();
        let paths: Vec<_> = files.iter().map(|file| file.name.clone()).collect();
        let sync = move || paths.iter().for_each(|path| write::sync(Path::new(&**path)));
        if let Err(error) = std::thread::Builder::new().name("sync".to_owned()).spawn(sync) {
            tracing::warn!(%error, "no thread to force what was written to the disk");
        }
        Ok(())
    }

    /// Reads the files that are about to be written: somebody else may have written to them just now.
    fn read_again(&mut self, edits: &[Edit]) -> Result<(), Refused> {
        let files = edits
            .iter()
            .filter_map(|edit| self.configuration.file_of(&edit.key).or_else(|| edit.new_file.clone()));
        let files: BTreeSet<Arc<str>> = files.filter(|file| &**file != "<stdin>").collect();
        let mut changes = Vec::new();
        for name in files {
            let text =
                write::read(Path::new(&*name)).map_err(|message| Refused::new(Why::Failed, message))?;
            if text != self.configuration.text_of(&name) {
                changes.push(FileChange { name: name.clone(), text });
                self.written.insert(name);
            }
        }
        if !changes.is_empty() {
            let outcome = self.configuration.apply(changes);
            self.take_over(outcome);
            self.settle();
        }
        Ok(())
    }

    /// Changes that the watcher found, with the present text of files that were also written here: what it read may be
    /// older than that.
    pub(super) fn at_present(&self, mut changes: Vec<FileChange>) -> Vec<FileChange> {
        for change in changes.iter_mut().filter(|change| self.written.contains(&change.name)) {
            if let Ok(text) = write::read(Path::new(&*change.name)) {
                change.text = text;
            }
        }
        changes
    }

    fn new_file(&self, key: &ObjectKey) -> Option<Arc<str>> {
        let directory = self.directory.as_ref()?;
        let kind = key.kind.to_lowercase();
        let name = match &*key.namespace {
            "" => format!("{kind}-{}.yaml", key.name),
            namespace => format!("{kind}-{namespace}-{}.yaml", key.name),
        };
        Some(directory.join(FOLDER).join(name).to_string_lossy().into())
    }

    fn status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        if key.kind != Kind::Gateway.as_str() {
            return self.configuration.status(key);
        }
        // A listener's also tell of sockets and certificates.
        let is_it =
            |s: &ObjectStatus| s.kind == key.kind && *s.namespace == *key.namespace && *s.name == *key.name;
        self.statuses().into_iter().find(is_it)
    }
}

fn is_about(diagnostic: &Diagnostic, key: &ObjectKey) -> bool {
    diagnostic
        .object
        .as_ref()
        .is_some_and(|o| *o.kind == *key.kind && *o.namespace == *key.namespace && *o.name == *key.name)
}

fn merged(first: Outcome, then: Outcome) -> Outcome {
    Outcome { touched: first.touched.and(then.touched), changed: first.changed || then.changed, ..then }
}

/// Writes all or none: those written before one that fails get their old text back.
fn write_all(files: &[EditedFile], secret: bool) -> Result<(), String> {
    for (at, file) in files.iter().enumerate() {
        if file.before == file.after {
            continue;
        }
        if let Err(message) = write::replace(Path::new(&*file.name), file.after.as_deref(), secret) {
            for written in files[..at].iter().filter(|file| file.before != file.after) {
                let path = Path::new(&*written.name);
                if let Err(error) = write::replace(path, written.before.as_deref(), secret) {
                    tracing::error!("a change that failed could not be undone: {error}");
                }
            }
            return Err(message);
        }
    }
    Ok(())
}
