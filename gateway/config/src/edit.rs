//! Changes of single objects as changes of files: which text a file has once an object in it is replaced, added or
//! taken out.
//!
//! Only the text of that object is touched; other documents, separators and comments around it stay as they are. There
//! is no IO here: the files are those that the store knows.

use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Location, reason};
use crate::document::{Chunk, ObjectKey};
use crate::store::{FileChange, Place, Store, split};

/// What is to become of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Which object.
    pub key: ObjectKey,
    /// Its document; `None` to take it out.
    pub text: Option<String>,
    /// The file for an object that no file describes yet.
    pub new_file: Option<Arc<str>>,
}

/// A file before and after an edit; `None` where it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditedFile {
    /// Its name.
    pub name: Arc<str>,
    /// Its text as the store knows it.
    pub before: Option<String>,
    /// Its text with the edit.
    pub after: Option<String>,
}

/// Why an edit cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// Whether the object that was to be taken out is not there at all.
    pub not_found: bool,
    /// What is in the way, and what to do about it.
    pub message: String,
}

/// The documents that somebody wants to be in force, as edits; else what is wrong with them. `name` stands for the file
/// in what is said.
pub fn documents(name: &str, text: &str) -> Result<Vec<Edit>, Vec<Diagnostic>> {
    let mut edits: Vec<Edit> = Vec::new();
    let mut wrong = Vec::new();
    for piece in split(text) {
        let chunk = Chunk::parse(name.into(), piece.text, piece.first_line);
        let findings = chunk.items.iter().flat_map(|item| &item.findings);
        let errors: Vec<_> =
            findings.filter(|f| f.is_error()).map(|f| f.to_diagnostic(&chunk.source)).collect();
        let at = Location { file: name.into(), line: piece.first_line, column: 1 };
        match &chunk.items[..] {
            _ if !errors.is_empty() => wrong.extend(errors),
            [] => {}
            [item] if item.object.as_ref().is_some_and(|object| !object.is_in_list()) => {
                let Some(key) = item.key.clone() else { continue };
                if edits.iter().any(|e| e.key == key) {
                    wrong.push(Diagnostic::error(
                        reason::DUPLICATE_OBJECT,
                        at,
                        format!("{key} is here twice"),
                    ));
                    continue;
                }
                edits.push(Edit {
                    key,
                    text: Some(without_separator(body(piece.text)).to_owned()),
                    new_file: None,
                });
            }
            [item] if item.object.is_none() => {
                let error = Diagnostic::error(
                    reason::UNSUPPORTED_KIND,
                    at,
                    "this object means nothing to the gateway",
                );
                wrong.push(error.hint("send kinds that it reads"));
            }
            _ => {
                let error = Diagnostic::error(reason::NOT_AN_OBJECT, at, "a list cannot be applied");
                wrong.push(error.hint("send its items as documents, each after a line ---"));
            }
        }
    }
    if edits.is_empty() && wrong.is_empty() {
        let at = Location { file: name.into(), line: 1, column: 1 };
        wrong.push(Diagnostic::error(reason::NOT_AN_OBJECT, at, "there is no object in it"));
    }
    if wrong.is_empty() { Ok(edits) } else { Err(wrong) }
}

/// The files that change with these edits.
pub(crate) fn files(store: &Store, edits: &[Edit]) -> Result<Vec<EditedFile>, Impossible> {
    let mut drafts: Vec<Draft> = Vec::new();
    for edit in edits {
        match (store.place(&edit.key), &edit.new_file, &edit.text) {
            (Place::One { file, chunk }, _, text) => {
                let draft = Draft::of(store, &file, &mut drafts);
                if let Some(text) = text
                    && is_json_file(&file)
                    && !text.trim_start().starts_with('{')
                {
                    let message = format!("{file} holds JSON (hint: send {} as JSON, too)", edit.key);
                    return Err(Impossible { not_found: false, message });
                }
                let old = draft.pieces[chunk].take().unwrap_or_default();
                draft.pieces[chunk] = text.as_ref().map(|text| replaced(&old, text));
            }
            (Place::Nowhere, Some(file), Some(text)) => {
                let draft = Draft::of(store, file, &mut drafts);
                let separator = if draft.pieces.is_empty() { "" } else { "---\n" };
                if let Some(Some(last)) = draft.pieces.last_mut()
                    && !last.ends_with('\n')
                {
                    last.push('\n');
                }
                draft.pieces.push(Some(format!("{separator}{text}")));
            }
            (Place::Nowhere, _, _) => {
                return Err(Impossible { not_found: true, message: format!("there is no {}", edit.key) });
            }
            (Place::Elsewhere(message), _, _) => return Err(Impossible { not_found: false, message }),
        }
    }
    Ok(drafts.into_iter().map(Draft::done).collect())
}

/// A file in the making: its documents, without those that were taken out.
struct Draft {
    name: Arc<str>,
    before: Option<String>,
    pieces: Vec<Option<String>>,
}

impl Draft {
    fn of<'d>(store: &Store, name: &Arc<str>, drafts: &'d mut Vec<Self>) -> &'d mut Self {
        let at = drafts.iter().position(|draft| draft.name == *name).unwrap_or_else(|| {
            let pieces = store.pieces(name).map(|piece| Some(piece.to_owned())).collect();
            drafts.push(Self { name: name.clone(), before: store.text(name), pieces });
            drafts.len() - 1
        });
        &mut drafts[at]
    }

    fn done(self) -> EditedFile {
        let text: String = self.pieces.into_iter().flatten().collect();
        // A file that says nothing any more goes; one with words in it stays.
        let says = |line: &str| !line.trim().is_empty() && line.trim() != "---";
        let after = text.lines().any(says).then_some(text);
        EditedFile { name: self.name, before: self.before, after }
    }
}

/// A document with the separator and the comments around it as they were.
fn replaced(old: &str, new: &str) -> String {
    let own = body(old);
    let above = own_start(old, own);
    // `--- {a: 1}` is separator and document in one.
    let separator = if own.starts_with("---") { "---\n" } else { "" };
    let below = &old[above + own.len()..];
    let end = if new.ends_with('\n') || (below.is_empty() && !old.ends_with('\n')) { "" } else { "\n" };
    format!("{}{separator}{new}{end}{below}", &old[..above])
}

/// What of a piece is the document itself: without the separator, and without blank lines and comments at its edges.
fn body(piece: &str) -> &str {
    let beside = |line: &str| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    };
    let mut start = 0;
    for line in piece.split_inclusive('\n') {
        if !(beside(line) || line.trim_end() == "---" || line.starts_with("--- #")) {
            break;
        }
        start += line.len();
    }
    let mut end = piece.len();
    for line in piece[start..].split_inclusive('\n').rev() {
        // An indented comment may be a line of a block scalar.
        if !beside(line) || line.starts_with([' ', '\t']) {
            break;
        }
        end -= line.len();
    }
    &piece[start..end]
}

fn without_separator(document: &str) -> &str {
    document.strip_prefix("---").map_or(document, str::trim_start)
}

fn own_start(whole: &str, part: &str) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

fn is_json_file(name: &str) -> bool {
    name.len() > 5 && name[name.len() - 5..].eq_ignore_ascii_case(".json")
}

impl EditedFile {
    /// The change to this file, or, after it, the change back.
    pub fn change(&self, back: bool) -> FileChange {
        let text = if back { &self.before } else { &self.after };
        FileChange { name: self.name.clone(), text: text.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, port: u16) -> String {
        format!(
            "apiVersion: fieldgate.dev/v1alpha1\nkind: Pool\nmetadata: {{name: {name}}}\nspec: {{endpoints: [{{address: 10.0.0.1, port: {port}}}]}}\n"
        )
    }

    fn store(files: &[(&str, &str)]) -> Store {
        let mut store = Store::default();
        let change =
            |(name, text): &(&str, &str)| FileChange { name: (*name).into(), text: Some((*text).into()) };
        store.apply(files.iter().map(change).collect());
        store
    }

    fn put(text: &str) -> Edit {
        let mut edits = documents("request", text).unwrap();
        assert_eq!(edits.len(), 1);
        Edit { new_file: Some("api/new.yaml".into()), ..edits.remove(0) }
    }

    fn after(store: &Store, edit: Edit) -> (String, Option<String>) {
        let mut files = files(store, &[edit]).unwrap();
        assert_eq!(files.len(), 1);
        let file = files.remove(0);
        (file.name.to_string(), file.after)
    }

    #[test]
    fn only_the_document_is_replaced() {
        let (a, b, b2, c) = (pool("a", 1), pool("b", 1), pool("b", 2), pool("c", 1));
        let text = format!("# first\n{a}# end of a\n--- # b\n\n# about b\n{b}\n# end of b\n---\n{c}");
        let store = store(&[("f.yaml", &text)]);
        let expected = format!("# first\n{a}# end of a\n--- # b\n\n# about b\n{b2}\n# end of b\n---\n{c}");
        assert_eq!(after(&store, put(&b2)), ("f.yaml".to_owned(), Some(expected)));
        let taken_out = Edit { text: None, ..put(&b2) };
        assert_eq!(after(&store, taken_out).1, Some(format!("# first\n{a}# end of a\n---\n{c}")));
    }

    #[test]
    fn a_new_object_gets_a_file_or_is_added_to_the_one_of_that_name() {
        let (a, b) = (pool("a", 1), pool("b", 1));
        assert_eq!(after(&store(&[]), put(&a)), ("api/new.yaml".to_owned(), Some(a.clone())));
        let there = store(&[("api/new.yaml", b.trim_end())]);
        assert_eq!(after(&there, put(&a)).1, Some(format!("{b}---\n{a}")));
    }

    #[test]
    fn a_file_without_its_only_object_goes() {
        let store = store(&[("f.yaml", &pool("a", 1))]);
        assert_eq!(after(&store, Edit { text: None, ..put(&pool("a", 1)) }).1, None);
    }

    #[test]
    fn what_cannot_be_edited_says_why() {
        let (a, b) = (pool("a", 1), pool("b", 1));
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", a.trim_end().replace('\n', "\n  "));
        for (files, part) in [
            (vec![("f.yaml", list.as_str())], "List"),
            (vec![("f.yaml", a.as_str()), ("g.yaml", a.as_str())], "g.yaml"),
            (
                vec![(
                    "f.json",
                    "{\"apiVersion\": \"fieldgate.dev/v1alpha1\", \"kind\": \"Pool\", \"metadata\": {\"name\": \"a\"}, \"spec\": {\"endpoints\": [{\"address\": \"10.0.0.1\", \"port\": 1}]}}",
                )],
                "JSON",
            ),
        ] {
            let impossible = super::files(&store(&files), &[put(&a)]).unwrap_err();
            assert!(impossible.message.contains(part) && !impossible.not_found, "{impossible:?}");
        }
        let gone = super::files(&store(&[("f.yaml", &a)]), &[Edit { text: None, ..put(&b) }]);
        assert!(gone.unwrap_err().not_found);
    }

    #[test]
    fn documents_that_cannot_be_applied_are_refused() {
        for (text, reason) in [
            (String::new(), reason::NOT_AN_OBJECT),
            ("# nothing\n".to_owned(), reason::NOT_AN_OBJECT),
            (format!("{}---\n{}", pool("a", 1), pool("a", 2)), reason::DUPLICATE_OBJECT),
            (pool("a", 1).replace("endpoints", "endpoint"), reason::UNKNOWN_FIELD),
            ("kind: [".to_owned(), reason::INVALID_YAML),
            ("apiVersion: v1\nkind: List\nitems: []\n".to_owned(), reason::NOT_AN_OBJECT),
        ] {
            let wrong = documents("request", &text).unwrap_err();
            assert!(wrong.iter().any(|d| d.reason == reason), "{text}: {wrong:?}");
        }
        assert_eq!(documents("request", &format!("{}---\n{}", pool("a", 1), pool("b", 2))).unwrap().len(), 2);
    }
}
