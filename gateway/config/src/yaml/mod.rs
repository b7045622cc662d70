//! Text to a tree of nodes that know their line and column, and from there to typed values.
//!
//! Three readers make the same tree: `fast` for the plain block style in which nearly every object is written,
//! `events` (on `saphyr-parser`) for all of YAML 1.2, and `json` for what begins like JSON. Nothing here knows
//! what an object of Kubernetes is.

// A problem is boxed where it is made, since every reader returns `Result<_, Box<Problem>>`.
#![allow(clippy::unnecessary_box_returns)]

mod de;
pub(crate) mod events;
mod explain;
mod fast;
mod json;
mod path;
mod scalar;

use std::borrow::Cow;

pub use de::{Nulls, Reader, reject};
pub(crate) use path::push_key;
pub use path::{find, locate};
pub use scalar::{Resolved, resolve};

/// Nesting that no object of Kubernetes comes near; a bound for the stack.
pub const MAX_DEPTH: usize = 64;

/// How many nodes the aliases of one document may add to it.
pub const MAX_ALIAS_NODES: usize = 100_000;

/// A value and where it begins; line and column count from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<'t> {
    /// The line in the text that was parsed.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
    /// The value.
    pub value: Value<'t>,
}

/// What a node holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'t> {
    /// Nothing written, `null` or `~`.
    Null,
    /// Any other scalar; its type is decided where it is used.
    Scalar {
        /// The text, unescaped.
        text: Cow<'t, str>,
        /// Quoted text is always a string.
        style: Style,
    },
    /// A list.
    Seq(Vec<Node<'t>>),
    /// A mapping, in the order in which it was written.
    Map(Vec<Entry<'t>>),
}

/// Whether a scalar's type is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// May be a number or a boolean.
    Plain,
    /// A string, whatever it looks like: quoted, a block scalar, or tagged `!!str`.
    Quoted,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'t> {
    /// The key as text.
    pub key: Cow<'t, str>,
    /// Where the key begins.
    pub line: u32,
    /// Where the key begins.
    pub column: u32,
    /// The value.
    pub value: Node<'t>,
}

/// Something wrong at a place: the shape in which this module, and the kinds, say it. It becomes a
/// [`Diagnostic`](crate::Diagnostic) once the file and the object are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One of [`reason::ALL`](crate::diagnostic::reason::ALL).
    pub reason: &'static str,
    /// The line in the text that was parsed.
    pub line: u32,
    /// The column.
    pub column: u32,
    /// The field, empty for the whole document.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Parses a text of one or more documents. Documents without content are left out.
///
/// One broken document breaks the text: callers split at `---` first.
pub fn parse(text: &str) -> Result<Vec<Node<'_>>, Box<Problem>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if looks_like_json(text) {
        // YAML's flow style allows more (bare keys, comments, a last comma); what is neither is JSON gone wrong.
        return json::parse(text).or_else(|e| events::parse(text).map_err(|_| e));
    }
    fast::parse(text).map_or_else(|| events::parse(text), Ok)
}

/// Each reader by itself, for the fuzz target that holds them to each other.
#[cfg(fuzzing)]
pub mod readers {
    use super::{Node, Problem};

    /// The plain block style; nothing if it is not.
    pub fn fast(text: &str) -> Option<Vec<Node<'_>>> {
        super::fast::parse(text)
    }

    /// All of YAML.
    pub fn whole(text: &str) -> Result<Vec<Node<'_>>, Box<Problem>> {
        super::events::parse(text)
    }

    /// JSON.
    pub fn json(text: &str) -> Result<Vec<Node<'_>>, Box<Problem>> {
        super::json::parse(text)
    }
}

fn looks_like_json(text: &str) -> bool {
    let Some(rest) = text.trim_start().strip_prefix(['{', '[']) else { return false };
    // `{a: b}` is YAML's flow style and stays with the YAML reader, and so does the `{{` of a template.
    rest.trim_start().starts_with(['"', '}', ']', '{', '[']) && !rest.starts_with('{')
}

impl<'t> Node<'t> {
    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node<'t>> {
        self.entry(key).map(|e| &e.value)
    }

    /// The entry of `key`, if this is a mapping that has it.
    pub fn entry(&self, key: &str) -> Option<&Entry<'t>> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// The scalar's text, whatever type it would resolve to.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The text, if the scalar is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, style: Style::Quoted } => Some(text),
            Value::Scalar { text, style: Style::Plain } => {
                matches!(resolve(text), Resolved::Text).then_some(text.as_ref())
            }
            _ => None,
        }
    }

    /// Whether nothing is written there.
    pub fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(text: &str) -> Node<'_> {
        parse(text).unwrap().remove(0)
    }

    #[test]
    fn anchors_aliases_and_merge_keys() {
        let root =
            first("base: &b {x: 1, y: 2}\nplain: *b\nmore:\n  <<: *b\n  y: 3\nlist:\n  <<: [{y: 4}, *b]\n");
        let text = |path| find(&root, path).and_then(Node::text);
        assert_eq!(text("plain.y"), Some("2"));
        assert_eq!((text("more.x"), text("more.y")), (Some("1"), Some("3")));
        assert_eq!((text("list.x"), text("list.y")), (Some("1"), Some("4")));
        assert_eq!(locate(&root, "plain.x"), (1, 14));
    }

    #[test]
    fn tags_and_styles_decide_what_is_a_string() {
        let root = first("a: !!str 80\nb: |\n  80\nc: '80'\nd: 80\ne: !!int 7\n");
        let strings: Vec<_> =
            ["a", "b", "c", "d", "e"].map(|k| root.get(k).and_then(Node::as_str).is_some()).into();
        assert_eq!(strings, [true, true, true, false, false]);
        assert!(parse("a: !secret x").is_err());
    }

    #[test]
    fn files_from_other_systems_are_read() {
        for text in [
            "\u{feff}a: 1\n",
            "a: 1\r\nb: 2\r\n",
            "{a: 1, b: [x]}",
            "{}",
            "{\"a\": 1, b: [2,], # c\n}",
            "--- {\"a\": 1}\n",
            "# only\n",
            "---\n---\n",
        ] {
            assert!(parse(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_anchor_within_itself_is_refused() {
        assert!(parse("a: &a [*a]\n").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_text_makes_it_panic(text in "[ \\n\\t{}\\[\\]:,\"'#&*!|>%@`a-c0-2.<~?\\\\é-]{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn json_is_what_serde_json_takes(text in "(\\{|\\[)[ \\n{}\\[\\]:,\"a1.e-]{0,14}(\\}|\\])") {
            // A key written twice is an error only here, and several values may follow each other only here.
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            let ours = json::parse(&text);
            if theirs {
                prop_assert!(ours.as_ref().is_ok_and(|d| d.len() == 1) || ours.is_err_and(|e| e.reason == crate::diagnostic::reason::DUPLICATE_KEY));
            } else {
                prop_assert!(ours.is_err() || ours.is_ok_and(|d| d.len() != 1));
            }
        }
    }
}
