//! All current objects, kept incrementally: a change costs a scan of the changed files and a parse of the changed
//! documents.
//!
//! An object stays in force as long as some document means it, however broken its newest text is; it goes when no
//! document means it any more. The store knows nothing of what objects mean to each other.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::diagnostic::{Diagnostic, Severity, reason};
use crate::document::{Chunk, Finding, Item, Object, ObjectKey, object_ref};
use crate::unread::{self, UnreadBackendTls, UnreadPolicy};

/// A file as it is now.
#[derive(Debug, Clone)]
pub struct FileChange {
    /// Its name, for messages and to recognise it again.
    pub name: Arc<str>,
    /// Its whole text; `None` when it is gone.
    pub text: Option<String>,
}

/// What an [`apply`](Store::apply) changed.
#[derive(Debug, Default)]
pub struct StoreChange {
    /// New objects and new versions of objects, in the order of their keys.
    pub upserted: Vec<Arc<Object>>,
    /// Objects that are no more.
    pub removed: Vec<ObjectKey>,
    /// Errors and warnings of the documents that were read anew, and of objects that are now described twice.
    pub diagnostics: Vec<Diagnostic>,
}

/// The contents of so many routes are kept for the translation of a change: more are not worth their memory.
const KEPT_ROUTES: usize = 1024;

/// The objects of a set of files.
#[derive(Debug, Default)]
pub struct Store {
    files: FxHashMap<Arc<str>, Vec<Arc<Chunk>>>,
    /// Which documents mean an object; several when it is described twice, or is being moved.
    claims: FxHashMap<ObjectKey, Vec<Claim>>,
    current: FxHashMap<ObjectKey, Arc<Object>>,
    /// For a chunk that cannot be parsed: the objects that stood in its place and may still be meant.
    inherited: FxHashMap<ChunkId, Vec<ObjectKey>>,
    /// The chunks of which there is something to say; a change must not cost a walk through all of them.
    noted: FxHashMap<ChunkId, Arc<Chunk>>,
    /// The objects that several documents mean.
    contested: FxHashSet<ObjectKey>,
}

/// Where an object is described.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// By this document of this file, which describes nothing else.
    One {
        file: Arc<str>,
        chunk: usize,
    },
    Nowhere,
    /// Where it cannot be edited, and why.
    Elsewhere(String),
}

#[derive(Debug, Clone)]
struct Claim {
    chunk: Arc<Chunk>,
    item: usize,
}

/// A chunk's address; the chunk lives as long as the store refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ChunkId(usize);

impl ChunkId {
    fn of(chunk: &Arc<Chunk>) -> Self {
        Self(Arc::as_ptr(chunk) as usize)
    }
}

/// The claim of a chunk that only inherits an object.
const INHERITED: usize = usize::MAX;

impl Claim {
    fn object(&self) -> Option<&Arc<Object>> {
        self.chunk.items.get(self.item)?.object.as_ref()
    }

    /// The order in which documents are read: by file name, then downwards.
    fn order(&self) -> (&str, u32, usize) {
        (self.chunk.source.file(), self.chunk.source.first_line(), self.item)
    }
}

impl Store {
    /// Takes over the files as they are now; files that are not named stay as they are.
    pub fn apply(&mut self, files: Vec<FileChange>) -> StoreChange {
        let mut touched = FxHashSet::default();
        let mut read: Vec<Arc<Chunk>> = Vec::new();
        for file in files {
            let before = read.len();
            self.apply_file(file, &mut touched, &mut read);
            if before >= KEPT_ROUTES {
                read[before..].iter().for_each(|chunk| chunk.forget_routes());
            }
        }
        let mut change = self.settle(touched);
        for chunk in read {
            self.chunk_diagnostics(&chunk, &mut change.diagnostics);
        }
        change.diagnostics.sort_by(Diagnostic::by_place);
        change
    }

    /// Whether no file was read yet, or all are gone.
    pub fn has_no_files(&self) -> bool {
        self.files.is_empty()
    }

    /// The object of that key.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.current.get(key)
    }

    /// Where an object is described.
    pub(crate) fn place(&self, key: &ObjectKey) -> Place {
        let claims = match self.claims.get(key).map_or(&[][..], Vec::as_slice) {
            [] => return Place::Nowhere,
            claims => claims,
        };
        let [claim] = claims else {
            let all: Vec<_> = claims.iter().map(|c| c.chunk.source.location(1, 1).to_string()).collect();
            let message = format!(
                "{key} is described more than once, at {} (hint: remove all but one)",
                all.join(" and ")
            );
            return Place::Elsewhere(message);
        };
        let source = &claim.chunk.source;
        let at = source.location(1, 1);
        if claim.item == INHERITED || claim.chunk.is_unreadable() {
            let message = format!("{at} cannot be read and may mean {key} (hint: mend that text first)");
            return Place::Elsewhere(message);
        }
        if claim.chunk.items.len() != 1 || claim.object().is_some_and(|object| object.is_in_list()) {
            let message = format!(
                "{key} is one of several in one document at {at}, such as a List (hint: change it there)"
            );
            return Place::Elsewhere(message);
        }
        let chunks = self.files.get(source.file()).map_or(&[][..], Vec::as_slice);
        match chunks.iter().position(|chunk| Arc::ptr_eq(chunk, &claim.chunk)) {
            Some(chunk) => Place::One { file: source.file().clone(), chunk },
            None => Place::Nowhere,
        }
    }

    /// The documents of a file, with separators and comments: together its text.
    pub(crate) fn pieces(&self, file: &str) -> impl Iterator<Item = &str> {
        self.files.get(file).into_iter().flatten().map(|chunk| chunk.source.text())
    }

    /// The text of a file, as it was read.
    pub(crate) fn text(&self, file: &str) -> Option<String> {
        self.files.contains_key(file).then(|| self.pieces(file).collect())
    }

    /// All current objects, in no order.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.current.values()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.current.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// How many documents are refused now.
    pub fn refused(&self) -> usize {
        let refused = |i: &&Item| i.findings.iter().any(Finding::is_error);
        let invalid: usize = self.noted.values().map(|c| c.items.iter().filter(refused).count()).sum();
        let twice: usize = self
            .contested
            .iter()
            .filter_map(|key| self.claims.get(key))
            .map(|c| c.iter().filter(|c| c.object().is_some()).count().max(1) - 1)
            .sum();
        invalid + twice
    }

    /// All that is wrong now, in the order of file name and line.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all = Vec::new();
        for chunk in self.noted.values() {
            self.chunk_diagnostics(chunk, &mut all);
        }
        for key in &self.contested {
            note_duplicates(key, self.claims.get(key).map_or(&[], Vec::as_slice), &mut all);
        }
        all.sort_by(Diagnostic::by_place);
        all
    }

    /// BackendTLSPolicies that some text means, or may mean, and that nobody can read, with no last good version in
    /// force.
    pub(crate) fn unread_backend_tls(&self) -> Vec<UnreadBackendTls> {
        let mut all = Vec::new();
        for chunk in self.noted.values() {
            let inherited = self.inherited.get(&ChunkId::of(chunk)).map_or(&[][..], Vec::as_slice);
            all.extend(unread::backend_tls(chunk, inherited, &|key| self.current.contains_key(key)));
        }
        all.sort();
        all
    }

    /// AuthorizationPolicies that some text means, or may mean, and that nobody can read, with no last good version in
    /// force.
    pub(crate) fn unread_policies(&self) -> Vec<UnreadPolicy> {
        let mut all = Vec::new();
        for chunk in self.noted.values() {
            let inherited = self.inherited.get(&ChunkId::of(chunk)).map_or(&[][..], Vec::as_slice);
            unread::in_chunk(chunk, inherited, &|key| self.current.contains_key(key), &mut all);
        }
        all.sort();
        all.dedup();
        all
    }

    fn apply_file(
        &mut self,
        file: FileChange,
        touched: &mut FxHashSet<ObjectKey>,
        read: &mut Vec<Arc<Chunk>>,
    ) {
        let old = self.files.remove(&file.name).unwrap_or_default();
        let Some(text) = file.text else {
            for chunk in &old {
                self.unclaim(chunk, touched);
            }
            return;
        };
        let pieces = split(&text);
        // A file of one document is kept as it came, without a copy.
        if pieces.len() == 1 && old.is_empty() {
            let first_line = pieces[0].first_line;
            let chunk = Arc::new(Chunk::parse(file.name.clone(), text, first_line));
            if !chunk.items.is_empty() {
                self.claim(&chunk, touched);
                read.push(chunk.clone());
            }
            self.files.insert(file.name, vec![chunk]);
            return;
        }
        let kept = Kept::find(&old, &pieces);
        let mut orphans = Vec::new();
        for (i, chunk) in old.iter().enumerate() {
            if !kept.old[i] {
                orphans.extend(self.unclaim(chunk, touched));
            }
        }
        let mut chunks = Vec::with_capacity(pieces.len());
        let mut fresh = Vec::new();
        for (piece, unchanged) in pieces.iter().zip(&kept.new) {
            if let Some(i) = unchanged {
                old[*i].source.move_to(piece.first_line);
                if kept.moved.contains(i) {
                    // Of two documents that mean one object the upper one counts, and that may be another now.
                    touched.extend(old[*i].items.iter().filter_map(|item| item.key.clone()));
                }
                chunks.push(old[*i].clone());
                continue;
            }
            let chunk = Arc::new(Chunk::parse(file.name.clone(), piece.text, piece.first_line));
            if fresh.len() >= KEPT_ROUTES {
                chunk.forget_routes();
            }
            if chunk.items.is_empty() {
                // A comment or nothing: kept all the same, so that the next comparison finds it unchanged.
                chunks.push(chunk);
                continue;
            }
            self.claim(&chunk, touched);
            fresh.push(chunk.clone());
            chunks.push(chunk);
        }
        self.inherit(&fresh, orphans);
        read.extend(fresh);
        self.files.insert(file.name, chunks);
    }

    fn claim(&mut self, chunk: &Arc<Chunk>, touched: &mut FxHashSet<ObjectKey>) {
        for (item, key) in
            chunk.items.iter().enumerate().filter_map(|(i, item)| Some((i, item.key.as_ref()?)))
        {
            self.add_claim(key, Claim { chunk: chunk.clone(), item });
            touched.insert(key.clone());
        }
        if chunk.items.iter().any(|item| !item.findings.is_empty()) {
            self.noted.insert(ChunkId::of(chunk), chunk.clone());
        }
    }

    fn add_claim(&mut self, key: &ObjectKey, claim: Claim) {
        let claims = self.claims.entry(key.clone()).or_default();
        claims.push(claim);
        if claims.len() > 1 {
            self.contested.insert(key.clone());
        }
    }

    /// Takes a chunk's claims back and returns the keys it had.
    fn unclaim(&mut self, chunk: &Arc<Chunk>, touched: &mut FxHashSet<ObjectKey>) -> Vec<ObjectKey> {
        self.noted.remove(&ChunkId::of(chunk));
        let own = chunk.items.iter().filter_map(|i| i.key.clone());
        let keys: Vec<_> =
            own.chain(self.inherited.remove(&ChunkId::of(chunk)).unwrap_or_default()).collect();
        for key in &keys {
            if let Some(claims) = self.claims.get_mut(key) {
                claims.retain(|c| !Arc::ptr_eq(&c.chunk, chunk));
                if claims.len() < 2 {
                    self.contested.remove(key);
                }
                if claims.is_empty() {
                    self.claims.remove(key);
                }
            }
            touched.insert(key.clone());
        }
        keys
    }

    /// Objects whose text is gone, while some text in the same edit does not say what it means, may be meant by it.
    fn inherit(&mut self, fresh: &[Arc<Chunk>], orphans: Vec<ObjectKey>) {
        let Some(heir) = fresh.iter().find(|c| c.is_unreadable()) else { return };
        let orphans: Vec<_> = orphans
            .into_iter()
            .filter(|k| !self.claims.contains_key(k) && self.current.contains_key(k))
            .collect();
        for key in &orphans {
            self.add_claim(key, Claim { chunk: heir.clone(), item: INHERITED });
        }
        if !orphans.is_empty() {
            self.inherited.insert(ChunkId::of(heir), orphans);
        }
    }

    /// Decides, for every key that a change touched, which object is in force.
    fn settle(&mut self, touched: FxHashSet<ObjectKey>) -> StoreChange {
        let mut change = StoreChange::default();
        for key in touched {
            let Some(claims) = self.claims.get_mut(&key) else {
                if self.current.remove(&key).is_some() {
                    change.removed.push(key);
                }
                continue;
            };
            claims.sort_by(|a, b| a.order().cmp(&b.order()));
            // Where no claim is valid, the last good one stays.
            if let Some(object) = claims.iter().find_map(Claim::object)
                && self.current.get(&key).is_none_or(|c| !Arc::ptr_eq(c, object))
            {
                self.current.insert(key.clone(), object.clone());
                change.upserted.push(object.clone());
            }
            let claims = &self.claims[&key];
            note_duplicates(&key, claims, &mut change.diagnostics);
        }
        change.upserted.sort_by_cached_key(|o| o.key());
        change.removed.sort();
        change
    }

    fn chunk_diagnostics(&self, chunk: &Arc<Chunk>, out: &mut Vec<Diagnostic>) {
        for item in &chunk.items {
            let in_use = match &item.key {
                Some(key) => item.object.is_none() && self.current.contains_key(key),
                None => chunk.is_unreadable() && self.keeps_any(chunk),
            };
            for finding in &item.findings {
                let mut diagnostic = finding.to_diagnostic(&chunk.source);
                diagnostic.last_good_in_use = in_use && diagnostic.severity == Severity::Error;
                out.push(diagnostic);
            }
        }
    }

    /// Whether a chunk that does not say what it means keeps objects in force.
    fn keeps_any(&self, chunk: &Arc<Chunk>) -> bool {
        self.inherited.contains_key(&ChunkId::of(chunk))
            || chunk.broken
                && chunk.items.iter().filter_map(|i| i.key.as_ref()).any(|k| self.current.contains_key(k))
    }
}

/// The first valid description counts; each further one is an error that names it.
fn note_duplicates(key: &ObjectKey, claims: &[Claim], out: &mut Vec<Diagnostic>) {
    let mut valid = claims.iter().filter_map(Claim::object);
    let Some(first) = valid.next() else { return };
    for again in valid {
        let message = format!("this object is already described at {}, which is in force", first.location());
        out.push(
            again
                .error(reason::DUPLICATE_OBJECT, "", message)
                .object(object_ref(key))
                .hint("remove one of the two, or give it another name"),
        );
    }
}

/// A document's text with its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece<'t> {
    pub(crate) text: &'t str,
    pub(crate) first_line: u32,
}

/// Cuts a file before each line `---`. Such a line ends a document wherever it stands, also within quotes and block
/// scalars (YAML 1.2 section 9.1.2), so that no parser is needed.
pub(crate) fn split(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut line) = (0, 1);
    let mut push = |end: usize, start: &mut usize| {
        let piece = &text[*start..end];
        if !piece.is_empty() {
            pieces.push(Piece { text: piece, first_line: line });
            line += memchr::memchr_iter(b'\n', piece.as_bytes()).count() as u32;
        }
        *start = end;
    };
    for newline in memchr::memmem::find_iter(text.as_bytes(), b"\n---") {
        let at = newline + 1;
        if matches!(text.as_bytes().get(at + 3), None | Some(b' ' | b'\t' | b'\r' | b'\n'))
            && !is_directives(&text[start..at])
        {
            push(at, &mut start);
        }
    }
    push(text.len(), &mut start);
    pieces
}

/// `%YAML 1.2` and its like belong to the document that follows.
fn is_directives(text: &str) -> bool {
    text.starts_with('%') && text.lines().all(|l| l.is_empty() || l.starts_with(['%', '#']))
}

/// Which chunks of a file stay as they are.
struct Kept {
    /// For each new piece, the old chunk of the same text.
    new: Vec<Option<usize>>,
    old: Vec<bool>,
    /// Old chunks that may stand in another order than before.
    moved: FxHashSet<usize>,
}

impl Kept {
    fn find(old: &[Arc<Chunk>], pieces: &[Piece<'_>]) -> Self {
        let mut kept =
            Self { new: vec![None; pieces.len()], old: vec![false; old.len()], moved: FxHashSet::default() };
        let same = |i: usize, j: usize| old[i].source.text() == pieces[j].text;
        let shorter = old.len().min(pieces.len());
        let head = (0..shorter).take_while(|&i| same(i, i)).count();
        let tail = (1..=shorter - head).take_while(|&i| same(old.len() - i, pieces.len() - i)).count();
        (0..head).for_each(|i| kept.keep(i, i));
        (1..=tail).for_each(|i| kept.keep(old.len() - i, pieces.len() - i));
        // Documents that were moved about in between.
        let middle = head..old.len() - tail;
        let mut by_text: FxHashMap<&str, Vec<usize>> = FxHashMap::default();
        for i in middle.rev() {
            by_text.entry(old[i].source.text()).or_default().push(i);
        }
        for (j, piece) in pieces.iter().enumerate().take(pieces.len() - tail).skip(head) {
            if let Some(i) = by_text.get_mut(piece.text).and_then(Vec::pop) {
                kept.keep(i, j);
                kept.moved.insert(i);
            }
        }
        kept
    }

    fn keep(&mut self, old: usize, new: usize) {
        self.old[old] = true;
        self.new[new] = Some(old);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::Kind;

    fn namespace(name: &str, label: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    v: {label}\n")
    }

    fn file(name: &str, documents: &[String]) -> FileChange {
        FileChange { name: name.into(), text: Some(documents.join("---\n")) }
    }

    fn gone(name: &str) -> FileChange {
        FileChange { name: name.into(), text: None }
    }

    /// `name=label@line`, sorted.
    fn content(store: &Store) -> Vec<String> {
        let mut all: Vec<_> =
            store.objects().map(|o| format!("{}={}@{}", o.name, o.labels["v"], o.location().line)).collect();
        all.sort();
        all
    }

    fn names(change: &StoreChange) -> (Vec<&str>, Vec<&str>) {
        (
            change.upserted.iter().map(|o| &*o.name).collect(),
            change.removed.iter().map(|k| &*k.name).collect(),
        )
    }

    #[test]
    fn only_what_changed_is_read_again() {
        let mut store = Store::default();
        let [a, b, c] = ["a", "b", "c"].map(|n| namespace(n, "x1"));
        assert_eq!(
            names(&store.apply(vec![file("f", &[a.clone(), b.clone(), c.clone()])])),
            (vec!["a", "b", "c"], vec![])
        );
        let before = store.get(&key("c")).unwrap().clone();
        let change = store.apply(vec![file("f", &[a.clone(), namespace("b", "x2") + "\n\n", c.clone()])]);
        assert_eq!(names(&change), (vec!["b"], vec![]));
        assert!(Arc::ptr_eq(&before, store.get(&key("c")).unwrap()));
        assert_eq!(before.location().line, 17, "the old object moved down with its text");
        assert_eq!(names(&store.apply(vec![file("f", &[c, a])])).1, ["b"]);
        assert_eq!(names(&store.apply(vec![gone("f")])), (vec![], vec!["a", "c"]));
        assert!(store.is_empty());
        assert!(store.claims.is_empty() && store.inherited.is_empty());
        assert!(store.noted.is_empty() && store.contested.is_empty());
    }

    #[test]
    fn the_last_good_stays_while_its_text_is_wrong() {
        for broken in [
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  lables: {}\n",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n labels: {}\n",
            "apiVersion: v1\nkind: Namespace\nmetadata:\n   - name: a\n  x\n",
            "{\"apiVersion\": \"v1\",\n",
            "\tcat walked here",
        ] {
            let mut store = Store::default();
            store.apply(vec![file("f", &[namespace("a", "x1"), namespace("b", "x1")])]);
            let change = store.apply(vec![file("f", &[broken.to_owned() + "\n", namespace("b", "x2")])]);
            assert_eq!(names(&change), (vec!["b"], vec![]), "{broken}");
            assert_eq!(content(&store)[0], "a=x1@1", "{broken}");
            assert!(change.diagnostics.iter().any(|d| d.last_good_in_use), "{broken}");
            assert!(store.diagnostics().iter().any(|d| d.last_good_in_use), "{broken}");
            // Still wrong in another way, then right again, then gone.
            store.apply(vec![file("f", &["also: [wrong\n".to_owned(), namespace("b", "x2")])]);
            assert_eq!(content(&store)[0], "a=x1@1", "{broken}");
            let change = store.apply(vec![file("f", &[namespace("a", "x3"), namespace("b", "x2")])]);
            assert_eq!(names(&change), (vec!["a"], vec![]), "{broken}");
            assert_eq!(store.diagnostics(), []);
            assert_eq!(names(&store.apply(vec![file("f", &[namespace("b", "x2")])])).1, ["a"]);
        }
    }

    #[test]
    fn a_lost_separator_loses_nothing() {
        let mut store = Store::default();
        store.apply(vec![file("f", &[namespace("a", "x1"), namespace("b", "x1"), namespace("c", "x1")])]);
        let joined = namespace("a", "x1") + &namespace("b", "x1");
        let change = store.apply(vec![file("f", &[joined, namespace("c", "x1")])]);
        assert_eq!(names(&change), (vec![], vec![]));
        assert_eq!(store.len(), 3);
        assert_eq!(store.refused(), 1);
    }

    #[test]
    fn on_the_first_load_there_is_no_last_good() {
        let mut store = Store::default();
        let change = store.apply(vec![file("f", &["a: [".to_owned() + "\n", namespace("b", "x1")])]);
        assert_eq!(names(&change), (vec!["b"], vec![]));
        assert!(change.diagnostics.iter().all(|d| !d.last_good_in_use));
    }

    #[test]
    fn of_two_descriptions_the_first_counts() {
        let mut store = Store::default();
        store.apply(vec![file("b", &[namespace("a", "from-b")])]);
        store.apply(vec![file("a", &[namespace("a", "from-a")])]);
        assert_eq!(content(&store), ["a=from-a@1"]);
        let diagnostics = store.diagnostics();
        assert_eq!(diagnostics.len(), 1);
        assert_eq!(diagnostics[0].reason, reason::DUPLICATE_OBJECT);
        assert_eq!(&*diagnostics[0].location.file, "b");
        store.apply(vec![gone("a")]);
        assert_eq!(content(&store), ["a=from-b@1"]);
        assert_eq!(store.diagnostics(), []);
    }

    #[test]
    fn an_object_moves_between_files_without_a_gap() {
        let mut store = Store::default();
        store.apply(vec![file("a", &[namespace("a", "x1")])]);
        let change = store.apply(vec![gone("a"), file("b", &[namespace("a", "x1")])]);
        assert_eq!(names(&change), (vec!["a"], vec![]));
    }

    #[test]
    fn a_file_is_cut_at_separators_only() {
        let cut = |text| split(text).iter().map(|p| (p.text, p.first_line)).collect::<Vec<_>>();
        assert_eq!(cut("a\n---\nb\n--- # c\nd"), [("a\n", 1), ("---\nb\n", 2), ("--- # c\nd", 4)]);
        assert_eq!(cut("---\na\n----\n ---\nb"), [("---\na\n----\n ---\nb", 1)]);
        assert_eq!(cut("a\r\n---\r\nb"), [("a\r\n", 1), ("---\r\nb", 2)]);
        assert_eq!(cut("%YAML 1.2\n---\na"), [("%YAML 1.2\n---\na", 1)]);
        assert_eq!(cut(""), []);
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::Namespace.as_str(), namespace: "".into(), name: name.into() }
    }

    /// A file's documents as (name, label); each file has names of its own, so that all inputs are valid.
    type Documents = Vec<(usize, usize)>;

    fn documents(file: usize, mut documents: Documents) -> Vec<String> {
        let mut seen = FxHashSet::default();
        documents.retain(|(name, _)| seen.insert(*name));
        documents
            .iter()
            .map(|(name, label)| {
                namespace(&format!("f{file}-n{name}"), &format!("x{label}")) + &"\n".repeat(*label)
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_way_to_a_state_gives_that_state(
            steps in proptest::collection::vec(
                proptest::collection::vec((0usize..3, proptest::option::weighted(0.8, proptest::collection::vec((0usize..5, 0usize..3), 0..6))), 1..3),
                1..12,
            )
        ) {
            let mut store = Store::default();
            let mut texts: std::collections::BTreeMap<String, FileChange> = std::collections::BTreeMap::new();
            let mut by_change: std::collections::BTreeSet<ObjectKey> = std::collections::BTreeSet::new();
            for step in steps {
                let mut changes = Vec::new();
                for (number, content) in step {
                    let name = format!("file{number}");
                    let change = match content {
                        Some(content) => file(&name, &documents(number, content)),
                        None => gone(&name),
                    };
                    texts.insert(name, change.clone());
                    changes.push(change);
                }
                let change = store.apply(changes);
                by_change.extend(change.upserted.iter().map(|o| o.key()));
                for key in &change.removed {
                    prop_assert!(by_change.remove(key));
                }
                let mut scratch = Store::default();
                scratch.apply(texts.values().cloned().collect());
                prop_assert_eq!(content(&store), content(&scratch));
                prop_assert_eq!(by_change.len(), store.len());
                prop_assert_eq!(store.diagnostics(), vec![]);
                prop_assert_eq!(store.claims.len(), scratch.claims.len());
                prop_assert!(store.noted.is_empty() && store.contested.is_empty());
            }
        }

        /// No order of good and bad texts loses an object that some document still means, or panics.
        #[test]
        fn bad_texts_never_remove_what_they_mean(labels in proptest::collection::vec((0usize..4, any::<bool>()), 1..10)) {
            let mut store = Store::default();
            let mut last_good = None;
            for (label, good) in labels {
                let text = namespace("a", &format!("x{label}"));
                let text = if good { text } else { text.replace("labels:", "labels: [") };
                store.apply(vec![FileChange { name: "f".into(), text: Some(text) }]);
                if good {
                    last_good = Some(format!("a=x{label}@1"));
                }
                prop_assert_eq!(content(&store).pop(), last_good.clone());
                prop_assert_eq!(store.diagnostics().is_empty(), good);
            }
        }
    }
}
