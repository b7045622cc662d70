//! From the text of one chunk of a file to objects: what kind each document is, whether its metadata hold, its typed
//! spec, and what is wrong with it. Knows nothing of other documents.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use fieldgate_core::ir::ObjectKey;
pub use k8s_openapi::jiff::Timestamp;

use crate::diagnostic::{Diagnostic, Location, ObjectRef, Severity, did_you_mean_hint, reason};
use crate::kinds::check::{BadName, dns_label, dns_name};
use crate::kinds::{self, Kind, Spec};
use crate::yaml::{self, Node, Problem, Value, events::absolute_lines};

/// The namespace of an object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One object, valid by itself.
#[derive(Debug)]
pub struct Object {
    /// The kind.
    pub kind: Kind,
    /// As written.
    pub api_version: String,
    /// `default` where none is written; empty for a kind without namespaces.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// Written by the API server; decides between conflicting objects.
    pub creation_timestamp: Option<Timestamp>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Written by the API server, 0 without it.
    pub generation: i64,
    /// The content.
    pub spec: Spec,
    /// A route's content between reading and translating it.
    route: Mutex<Option<Box<Spec>>>,
    source: Arc<Source>,
    /// Which document of the source, and where in it for an item of a List.
    document: u32,
    item: Option<u32>,
}

/// A piece of a file. Positions in it are relative, so that a line added above moves nothing but `first_line`.
#[derive(Debug)]
pub(crate) struct Source {
    file: Arc<str>,
    text: Box<str>,
    first_line: AtomicU32,
}

/// All that one chunk of a file holds.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) source: Arc<Source>,
    pub(crate) items: Vec<Item>,
    /// The text could not be parsed, so it may have meant more objects than `items` names.
    pub(crate) broken: bool,
}

/// One document, or one item of a List.
#[derive(Debug)]
pub(crate) struct Item {
    /// The object that it means, if that much is readable.
    pub(crate) key: Option<ObjectKey>,
    pub(crate) object: Option<Arc<Object>>,
    pub(crate) findings: Vec<Finding>,
}

/// A diagnostic whose lines are still relative to its chunk.
#[derive(Debug)]
pub(crate) struct Finding {
    severity: Severity,
    pub(crate) object: Option<ObjectRef>,
    problem: Problem,
    secret: bool,
}

impl Object {
    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind.as_str(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Kind, namespace and name for a diagnostic.
    pub fn to_ref(&self) -> ObjectRef {
        object_ref(&self.key())
    }

    /// Looks at a route's content: an `HttpRoute` or a `GrpcRoute`.
    ///
    /// The types are generated and many times as large as the text, and there may be a hundred thousand rules. So a
    /// route's content is kept from reading until [`take_route`](Self::take_route); after that its text is read again.
    /// In a List, reading one item means to read all: there it stays.
    pub(crate) fn route<T>(&self, look: impl FnOnce(&Spec) -> T) -> T {
        if !matches!(self.spec, Spec::Route) {
            return look(&self.spec);
        }
        let kept = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(spec) => look(spec),
            None => look(&self.read_route()),
        }
    }

    /// A route's content, which is not kept any longer.
    pub(crate) fn take_route(&self) -> Spec {
        if !matches!(self.spec, Spec::Route) {
            return self.spec.clone();
        }
        let kept = self.route.lock().unwrap_or_else(PoisonError::into_inner).take();
        kept.map_or_else(|| self.read_route(), |spec| *spec)
    }

    fn read_route(&self) -> Spec {
        let documents = yaml::parse(&self.source.text);
        let document = documents.ok().and_then(|mut all| {
            let at = self.document as usize;
            (at < all.len()).then(|| all.swap_remove(at))
        });
        let spec = document.and_then(|document| kinds::read(self.kind, &document).spec);
        // The text was read before and is the same.
        spec.unwrap_or(Spec::Route)
    }

    /// Whether it is an item of a List.
    pub(crate) fn is_in_list(&self) -> bool {
        self.item.is_some()
    }

    /// The file that it came from.
    pub fn file(&self) -> &Arc<str> {
        &self.source.file
    }

    /// Where the object begins.
    pub fn location(&self) -> Location {
        self.locate("")
    }

    /// Where a field like `spec.rules[0].backendRefs[1].port` stands, or its nearest parent that is written.
    ///
    /// Reads the object's text again: for diagnostics only.
    pub fn locate(&self, field: &str) -> Location {
        let (line, column) = self.relative(field);
        self.source.location(line, column)
    }

    /// An error at one of this object's fields.
    pub fn error(&self, reason: &'static str, field: &str, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.relative(field);
        let mut diagnostic = Diagnostic::error(reason, self.source.location(line, column), message)
            .object(self.to_ref())
            .field(field);
        if self.kind != Kind::Secret {
            diagnostic.source_line = self.source.line_text(line).filter(|line| may_be_shown(line));
        }
        diagnostic
    }

    /// A warning at one of this object's fields.
    pub fn warning(&self, reason: &'static str, field: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..self.error(reason, field, message) }
    }

    fn relative(&self, field: &str) -> (u32, u32) {
        let Ok(documents) = yaml::parse(&self.source.text) else { return (1, 1) };
        let Some(document) = documents.get(self.document as usize) else { return (1, 1) };
        let item = self.item.and_then(|i| match &document.get("items")?.value {
            Value::Seq(items) => items.get(i as usize),
            _ => None,
        });
        yaml::locate(item.unwrap_or(document), field)
    }
}

impl Source {
    pub(crate) fn new(file: Arc<str>, text: impl Into<Box<str>>, first_line: u32) -> Self {
        Self { file, text: text.into(), first_line: AtomicU32::new(first_line) }
    }

    pub(crate) fn file(&self) -> &Arc<str> {
        &self.file
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn first_line(&self) -> u32 {
        // Relaxed: only ever read for messages and for the order of documents in one file.
        self.first_line.load(Ordering::Relaxed)
    }

    pub(crate) fn move_to(&self, first_line: u32) {
        self.first_line.store(first_line, Ordering::Relaxed);
    }

    pub(crate) fn location(&self, line: u32, column: u32) -> Location {
        Location { file: self.file.clone(), line: self.first_line() + line.max(1) - 1, column: column.max(1) }
    }

    fn line_text(&self, line: u32) -> Option<Box<str>> {
        self.text.lines().nth(line.max(1) as usize - 1).filter(|l| !l.trim().is_empty()).map(Into::into)
    }
}

/// A set of keys may hold a symmetric one, which is as secret as a password.
fn may_be_shown(line: &str) -> bool {
    !["jwks:", "\"jwks\"", "\"k\"", "\"d\""].iter().any(|begins_keys| line.contains(begins_keys))
}

impl Finding {
    pub(crate) fn to_diagnostic(&self, source: &Source) -> Diagnostic {
        let Problem { reason, line, column, field, message, hint } = &self.problem;
        Diagnostic {
            severity: self.severity,
            reason,
            location: source.location(*line, *column),
            object: self.object.clone(),
            field: field.clone(),
            message: absolute_lines(message, source.first_line()),
            hint: hint.clone(),
            last_good_in_use: false,
            source_line: source.line_text(*line).filter(|line| !self.secret && may_be_shown(line)),
        }
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl Chunk {
    /// Whether some document of it is wrong so that nobody can tell which object it means.
    pub(crate) fn is_unreadable(&self) -> bool {
        self.items.iter().any(|i| i.key.is_none() && i.findings.iter().any(Finding::is_error))
    }

    /// Gives the memory of routes' contents back: they are read again when they are translated.
    pub(crate) fn forget_routes(&self) {
        for object in self.items.iter().filter_map(|item| item.object.as_ref()) {
            object.route.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Reads a chunk.
    pub(crate) fn parse(file: Arc<str>, text: impl Into<Box<str>>, first_line: u32) -> Self {
        let source = Arc::new(Source::new(file, text, first_line));
        let mut chunk = Self { source: source.clone(), items: Vec::new(), broken: false };
        match yaml::parse(&source.text) {
            Ok(documents) => {
                for (i, document) in documents.iter().enumerate() {
                    chunk.read_document(document, i as u32);
                }
            }
            Err(problem) => chunk.note_broken(*problem),
        }
        chunk
    }

    fn read_document(&mut self, document: &Node<'_>, index: u32) {
        let Some(items) = list_items(document) else {
            let item = read_object(document, &self.source, index, None);
            self.items.push(item);
            return;
        };
        for (i, node) in items.iter().enumerate() {
            let item = read_object(node, &self.source, index, Some(i as u32));
            self.items.push(item);
        }
    }

    fn note_broken(&mut self, problem: Problem) {
        self.broken = true;
        let heads = scan_heads(&self.source.text);
        let secret = heads.iter().any(|h| h.kind == "Secret") || self.source.text.contains("Secret");
        let head = head_at(&heads, problem.line);
        let finding = Finding { severity: Severity::Error, object: head, problem, secret };
        self.items.push(Item { key: None, object: None, findings: vec![finding] });
        for head in heads {
            if let Some(key) = head.key() {
                self.items.push(Item { key: Some(key), object: None, findings: Vec::new() });
            }
        }
    }
}

fn list_items<'a, 't>(document: &'a Node<'t>) -> Option<&'a [Node<'t>]> {
    if !document.get("kind")?.text()?.ends_with("List") {
        return None;
    }
    match &document.get("items")?.value {
        Value::Seq(items) => Some(items),
        Value::Null => Some(&[]),
        _ => None,
    }
}

/// Reads one object; every problem is collected, and any error refuses it.
fn read_object(root: &Node<'_>, source: &Arc<Source>, document: u32, item: Option<u32>) -> Item {
    let mut reading = Reading { root, findings: Vec::new(), object: None, secret: false };
    let key = reading.key();
    let object = key.as_ref().and_then(|(key, kind, api_version)| {
        let metadata = reading.metadata(*kind);
        let spec = reading.spec(*kind);
        if reading.findings.iter().any(Finding::is_error) {
            return None;
        }
        let (spec, route) = match spec? {
            spec @ (Spec::HttpRoute(_) | Spec::GrpcRoute(_)) if item.is_none() => (Spec::Route, Some(spec)),
            spec => (spec, None),
        };
        Some(Arc::new(Object {
            kind: *kind,
            api_version: api_version.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            creation_timestamp: metadata.creation_timestamp,
            labels: metadata.labels,
            annotations: metadata.annotations,
            generation: metadata.generation,
            spec,
            route: Mutex::new(route.map(Box::new)),
            source: source.clone(),
            document,
            item,
        }))
    });
    Item { key: key.map(|(key, ..)| key), object, findings: reading.findings }
}

#[derive(Default)]
struct Metadata {
    creation_timestamp: Option<Timestamp>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    generation: i64,
}

struct Reading<'a, 't> {
    root: &'a Node<'t>,
    findings: Vec<Finding>,
    object: Option<ObjectRef>,
    secret: bool,
}

impl Reading<'_, '_> {
    /// What the document is. `None` when it is nobody's or cannot be told; that is noted then.
    fn key(&mut self) -> Option<(ObjectKey, Kind, String)> {
        if !matches!(self.root.value, Value::Map(_)) {
            let place = (self.root.line, self.root.column);
            self.error(
                place,
                "",
                reason::NOT_AN_OBJECT,
                "this is not an object of Kubernetes",
                Some("an object begins with apiVersion, kind and metadata".into()),
            );
            return None;
        }
        let kind_text = self.required_text("kind");
        let metadata = self.root.get("metadata");
        let text_of = |key| metadata.and_then(|m| m.get(key)).and_then(Node::text).unwrap_or("").to_owned();
        let kind_written = kind_text.clone().unwrap_or_default();
        self.object = Some(ObjectRef {
            kind: if kind_written.is_empty() { "(no kind)".into() } else { kind_written },
            namespace: text_of("namespace"),
            name: text_of("name"),
        });
        // Said again with the object, now that it is known.
        self.findings.iter_mut().for_each(|f| f.object.clone_from(&self.object));
        let api_version = self.required_text("apiVersion");
        let (kind_text, api_version) = (kind_text?, api_version?);
        let kind = self.kind(&kind_text, &api_version)?;
        self.secret = kind == Kind::Secret;
        if kind.is_namespaced() {
            let object = self.object.as_mut()?;
            if object.namespace.is_empty() {
                DEFAULT_NAMESPACE.clone_into(&mut object.namespace);
            }
        } else {
            self.object.as_mut()?.namespace.clear();
        }
        let (namespace, name) = self.names(kind)?;
        Some((ObjectKey { kind: kind.as_str(), namespace, name }, kind, api_version))
    }

    fn required_text(&mut self, key: &str) -> Option<String> {
        let Some(entry) = self.root.entry(key) else {
            let close = close_key(self.root, key);
            let hint = close.map_or_else(
                || match key {
                    "kind" => "every object says what it is: kind: HTTPRoute".to_owned(),
                    _ => "every object says its version: apiVersion: gateway.networking.k8s.io/v1".to_owned(),
                },
                |k| format!("\"{k}\" is written here; did you mean \"{key}\"?"),
            );
            let place = (self.root.line, self.root.column);
            self.error(
                place,
                key,
                reason::MISSING_FIELD,
                format!("the required field \"{key}\" is missing"),
                Some(hint),
            );
            return None;
        };
        if let Some(text) = entry.value.as_str() {
            return Some(text.to_owned());
        }
        let found = describe(&entry.value);
        let place = (entry.line, entry.column);
        self.error(place, key, reason::WRONG_TYPE, format!("expected a string, found {found}"), None);
        None
    }

    fn kind(&mut self, kind_text: &str, api_version: &str) -> Option<Kind> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let kind = Kind::from_name(kind_text);
        if let Some(kind) = kind
            && kind.group() == group
        {
            if !kind.versions().contains(&version) {
                let message = format!("{kind} has no version \"{version}\"");
                self.error_at(
                    "apiVersion",
                    reason::WRONG_API_VERSION,
                    message,
                    Some(format!("write apiVersion: {}", kind.api_version())),
                );
                return None;
            }
            return Some(kind);
        }
        if kinds::is_known_elsewhere(group, kind_text) {
            let message = format!(
                "{kind_text} of {} is not read and has no effect",
                if group.is_empty() { "the core group" } else { group }
            );
            let hint = kind.map(|k| format!("the {k} that is read is that of {}", k.api_version()));
            let (line, column) = yaml::locate(self.root, "kind");
            self.push(Severity::Warning, (line, column), "kind", reason::UNSUPPORTED_KIND, message, hint);
            return None;
        }
        if let Some(kind) = kind {
            let message = format!("there is no {kind} in \"{api_version}\"");
            self.error_at(
                "apiVersion",
                reason::WRONG_API_VERSION,
                message,
                Some(format!("write apiVersion: {}", kind.api_version())),
            );
            return None;
        }
        let hint = did_you_mean_hint(kind_text, Kind::ALL.iter().copied().map(Kind::as_str)).or_else(|| {
            let of_group: Vec<_> =
                Kind::ALL.iter().filter(|k| k.group() == group).map(|k| k.as_str()).collect();
            (!of_group.is_empty()).then(|| format!("kinds of this group: {}", of_group.join(", ")))
        });
        self.error_at(
            "kind",
            reason::UNKNOWN_KIND,
            format!("the kind \"{kind_text}\" of {api_version} is unknown"),
            hint,
        );
        None
    }

    fn names(&mut self, kind: Kind) -> Option<(Arc<str>, Arc<str>)> {
        let metadata = self.root.get("metadata");
        let Some(name) = metadata.and_then(|m| m.entry("name")) else {
            let hint = match metadata {
                Some(m) if m.get("generateName").is_some() => {
                    Some("generateName needs an API server; write a name".to_owned())
                }
                _ => None,
            };
            self.error_at("metadata", reason::MISSING_FIELD, "the required field \"name\" is missing", hint);
            if let Some(finding) = self.findings.last_mut() {
                "metadata.name".clone_into(&mut finding.problem.field);
            }
            return None;
        };
        let name = self.name_text("metadata.name", &name.value, kind.is_named_by_label());
        let namespace = match metadata.and_then(|m| m.get("namespace")) {
            Some(node) if !kind.is_namespaced() => {
                if !node.is_null() {
                    let (line, column) = yaml::locate(self.root, "metadata.namespace");
                    let message = format!("a {kind} belongs to no namespace");
                    self.push(
                        Severity::Warning,
                        (line, column),
                        "metadata.namespace",
                        reason::IGNORED_FIELD,
                        message,
                        Some("remove the field".into()),
                    );
                }
                Some(Arc::from(""))
            }
            Some(node) if !node.is_null() && node.text() != Some("") => {
                self.name_text("metadata.namespace", node, true)
            }
            _ if kind.is_namespaced() => Some(default_namespace()),
            _ => Some(Arc::from("")),
        };
        Some((namespace?, name?))
    }

    fn name_text(&mut self, field: &str, node: &Node<'_>, label: bool) -> Option<Arc<str>> {
        let Some(text) = node.as_str() else {
            let hint = node.text().map(|t| format!("put it in quotes: \"{t}\""));
            self.error_at(
                field,
                reason::WRONG_TYPE,
                format!("expected a string, found {}", describe(node)),
                hint,
            );
            return None;
        };
        let Err(why) = (if label { dns_label(text) } else { dns_name(text) }) else {
            return Some(text.into());
        };
        let hint = match why {
            BadName::UpperCase(_) if dns_name(&text.to_lowercase()).is_ok() => {
                format!("write \"{}\"", text.to_lowercase())
            }
            BadName::Character('_') => format!("write \"{}\"", text.replace('_', "-").to_lowercase()),
            BadName::Character('.') if label => "no dots are allowed here".to_owned(),
            _ => "lower-case letters, digits and \"-\" are allowed".to_owned(),
        };
        self.error_at(field, reason::INVALID_NAME, format!("\"{text}\" is not a name: {why}"), Some(hint));
        None
    }

    fn metadata(&mut self, kind: Kind) -> Metadata {
        self.top_level_fields(kind);
        let mut metadata = Metadata::default();
        let Some(node) = self.root.get("metadata") else { return metadata };
        let Value::Map(entries) = &node.value else { return metadata };
        for entry in entries {
            match entry.key.as_ref() {
                "labels" => metadata.labels = self.strings("metadata.labels", &entry.value),
                "annotations" => metadata.annotations = self.strings("metadata.annotations", &entry.value),
                "generation" => {
                    metadata.generation = entry.value.text().and_then(|t| t.parse().ok()).unwrap_or(0);
                }
                "creationTimestamp" => metadata.creation_timestamp = self.timestamp(&entry.value),
                known if METADATA.contains(&known) => {}
                unknown => {
                    let mut field = "metadata".to_owned();
                    yaml::push_key(&mut field, unknown);
                    let hint = did_you_mean_hint(unknown, METADATA.iter().copied());
                    self.error(
                        (entry.line, entry.column),
                        &field,
                        reason::UNKNOWN_FIELD,
                        "unknown field",
                        hint,
                    );
                }
            }
        }
        metadata
    }

    fn top_level_fields(&mut self, kind: Kind) {
        let Value::Map(entries) = &self.root.value else { return };
        let known = || {
            ["apiVersion", "kind", "metadata", "status"].into_iter().chain(kind.top_fields().iter().copied())
        };
        for entry in entries {
            if !known().any(|k| k == entry.key) {
                let key = entry.key.as_ref();
                let hint = did_you_mean_hint(key, known()).or_else(|| {
                    let fields: Vec<_> = known().filter(|k| *k != "status").collect();
                    let under = if fields.contains(&"spec") { "; most belong under spec" } else { "" };
                    Some(format!("fields here: {}{under}", fields.join(", ")))
                });
                self.error((entry.line, entry.column), key, reason::UNKNOWN_FIELD, "unknown field", hint);
            }
        }
    }

    fn strings(&mut self, field: &str, node: &Node<'_>) -> BTreeMap<String, String> {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => return BTreeMap::new(),
            _ => {
                self.error_at(
                    field,
                    reason::WRONG_TYPE,
                    format!("expected a mapping, found {}", describe(node)),
                    None,
                );
                return BTreeMap::new();
            }
        };
        let mut strings = BTreeMap::new();
        for entry in entries {
            if let Some(text) = entry.value.as_str() {
                strings.insert(entry.key.to_string(), text.to_owned());
                continue;
            }
            let mut at = field.to_owned();
            yaml::push_key(&mut at, &entry.key);
            let hint = match entry.value.text() {
                Some(text) => Some(format!("put it in quotes: \"{text}\"")),
                None if entry.value.is_null() => Some("write \"\" for an empty string".to_owned()),
                None => None,
            };
            let place = if entry.value.text().is_some() {
                (entry.value.line, entry.value.column)
            } else {
                (entry.line, entry.column)
            };
            self.error(
                place,
                &at,
                reason::WRONG_TYPE,
                format!("expected a string, found {}", describe(&entry.value)),
                hint,
            );
        }
        strings
    }

    fn timestamp(&mut self, node: &Node<'_>) -> Option<Timestamp> {
        // `creationTimestamp: null` is what kubectl's --dry-run writes.
        let text = node.text()?;
        let timestamp = text.parse().ok();
        if timestamp.is_none() {
            let message = format!("\"{text}\" is not a time");
            self.error_at(
                "metadata.creationTimestamp",
                reason::INVALID_VALUE,
                message,
                Some("it is written by the API server: remove it".into()),
            );
        }
        timestamp
    }

    fn spec(&mut self, kind: Kind) -> Option<Spec> {
        let result = kinds::read(kind, self.root);
        for (severity, problems) in [(Severity::Error, result.errors), (Severity::Warning, result.warnings)] {
            for problem in problems {
                let object = self.object.clone();
                self.findings.push(Finding { severity, object, problem, secret: self.secret });
            }
        }
        result.spec
    }

    fn error_at(
        &mut self,
        field: &str,
        reason: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let place = yaml::locate(self.root, field);
        self.error(place, field, reason, message, hint);
    }

    fn error(
        &mut self,
        place: (u32, u32),
        field: &str,
        reason: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        self.push(Severity::Error, place, field, reason, message, hint);
    }

    fn push(
        &mut self,
        severity: Severity,
        (line, column): (u32, u32),
        field: &str,
        reason: &'static str,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let problem =
            Problem { reason, line, column, field: field.to_owned(), message: message.into(), hint };
        self.findings.push(Finding { severity, object: self.object.clone(), problem, secret: self.secret });
    }
}

const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "generation",
    "creationTimestamp",
    "generateName",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

fn default_namespace() -> Arc<str> {
    thread_local!(static DEFAULT: Arc<str> = Arc::from(DEFAULT_NAMESPACE));
    DEFAULT.with(Arc::clone)
}

fn close_key<'a>(root: &'a Node<'_>, wanted: &str) -> Option<&'a str> {
    let Value::Map(entries) = &root.value else { return None };
    let keys = entries
        .iter()
        .map(|e| e.key.as_ref())
        .filter(|k| !["spec", "kind", "metadata", "apiVersion"].contains(k));
    crate::diagnostic::did_you_mean(wanted, keys)
}

fn describe(node: &Node<'_>) -> String {
    match &node.value {
        Value::Null => "nothing (null)".to_owned(),
        Value::Seq(_) => "a list".to_owned(),
        Value::Map(_) => "a mapping".to_owned(),
        Value::Scalar { text, .. } => match yaml::resolve(text) {
            yaml::Resolved::Bool(b) => format!("the boolean {b}"),
            _ => format!("the number {text}"),
        },
    }
}

pub(crate) fn object_ref(key: &ObjectKey) -> ObjectRef {
    ObjectRef { kind: key.kind.to_owned(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

/// The kind and name of a document that cannot be parsed, by its look.
#[derive(Debug, Default, Clone)]
struct Head<'t> {
    line: u32,
    kind: &'t str,
    namespace: &'t str,
    name: &'t str,
}

impl Head<'_> {
    fn key(&self) -> Option<ObjectKey> {
        let kind = Kind::from_name(self.kind)?;
        if dns_name(self.name).is_err() {
            return None;
        }
        let namespace = match self.namespace {
            _ if !kind.is_namespaced() => Arc::from(""),
            "" => default_namespace(),
            namespace => Arc::from(namespace),
        };
        Some(ObjectKey { kind: kind.as_str(), namespace, name: self.name.into() })
    }
}

fn head_at(heads: &[Head<'_>], line: u32) -> Option<ObjectRef> {
    let head = heads.iter().rev().find(|h| h.line <= line)?;
    head.key().map(|key| object_ref(&key))
}

/// Finds `kind:` at the margin and `name:` and `namespace:` under a `metadata:` at the margin, block or flow style.
fn scan_heads(text: &str) -> Vec<Head<'_>> {
    let mut heads: Vec<Head<'_>> = Vec::new();
    let mut in_metadata = false;
    let mut depth = None;
    for (i, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        if indent == 0 {
            in_metadata = trimmed.starts_with("metadata:");
            depth = None;
            let starts = trimmed.starts_with("apiVersion:") || trimmed.starts_with("---");
            if heads.is_empty() || (starts && heads.last().is_some_and(|h| !h.kind.is_empty())) {
                heads.push(Head { line: i as u32 + 1, ..Head::default() });
            }
        }
        let Some(head) = heads.last_mut() else { continue };
        if let Some(kind) = value_of(trimmed, "kind").filter(|_| indent == 0) {
            head.kind = kind;
        }
        if !in_metadata {
            continue;
        }
        if let Some((_, flow)) = trimmed.split_once('{').filter(|_| indent == 0) {
            for part in flow.trim_end_matches('}').split(',') {
                head.name = value_of(part.trim(), "name").unwrap_or(head.name);
                head.namespace = value_of(part.trim(), "namespace").unwrap_or(head.namespace);
            }
        } else if indent > 0 && *depth.get_or_insert(indent) == indent {
            head.name = value_of(trimmed, "name").unwrap_or(head.name);
            head.namespace = value_of(trimmed, "namespace").unwrap_or(head.namespace);
        }
    }
    heads
}

fn value_of<'t>(line: &'t str, key: &str) -> Option<&'t str> {
    let value = line.strip_prefix(key)?.strip_prefix(':')?;
    let value = value.split(" #").next().unwrap_or(value).trim();
    Some(value.trim_matches(['"', '\'']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_document_still_says_what_it_is() {
        let text = "apiVersion: v1\nkind: Service # x\nmetadata:\n  labels:\n    name: other\n  name: \"shop\"\n  namespace: prod\nspec:\n x: 1\n  y: 2\n";
        let heads = scan_heads(text);
        assert_eq!(heads[0].key().unwrap().to_string(), "Service prod/shop");
        let flow = scan_heads("kind: Pool\nmetadata: {name: vms}\nspec: {");
        assert_eq!(flow[0].key().unwrap().to_string(), "Pool default/vms");
    }

    #[test]
    fn lists_hold_objects() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata:\n    name: b\n";
        let chunk = Chunk::parse("x.yaml".into(), text, 10);
        let objects: Vec<_> = chunk.items.iter().filter_map(|i| i.object.clone()).collect();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[1].locate("metadata.name").line, 10 + 9);
    }
}
