//! What is wrong, where, whose fault it is and what to do about it.
//!
//! A diagnostic is a value: it is printed for an operator ([`Display`](fmt::Display)) and serialised for programs
//! alike. Nothing here decides what is wrong.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// The machine-readable reasons, stable across releases: people alert on them.
pub mod reason {
    macro_rules! reasons {
        ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
            $($(#[$doc])* pub const $name: &str = $text;)*
            /// Every reason that this layer gives.
            pub const ALL: &[&str] = &[$($text),*];
        };
    }
    reasons! {
        /// The text is not YAML.
        INVALID_YAML = "InvalidYaml";
        /// The text begins like JSON and is not.
        INVALID_JSON = "InvalidJson";
        /// A key is written twice in one mapping.
        DUPLICATE_KEY = "DuplicateKey";
        /// Nested deeper than this program reads.
        TOO_DEEP = "TooDeep";
        /// The aliases of a document expand to more than this program reads.
        TOO_MANY_ALIASES = "TooManyAliases";
        /// A field that the kind does not have.
        UNKNOWN_FIELD = "UnknownField";
        /// A field that the kind requires is not there.
        MISSING_FIELD = "MissingField";
        /// A value of another type than the field has.
        WRONG_TYPE = "WrongType";
        /// A value of the right type that the field does not allow.
        INVALID_VALUE = "InvalidValue";
        /// A number outside the field's range.
        OUT_OF_RANGE = "OutOfRange";
        /// Not a duration.
        INVALID_DURATION = "InvalidDuration";
        /// Not base64.
        INVALID_BASE64 = "InvalidBase64";
        /// A name or namespace that Kubernetes does not allow.
        INVALID_NAME = "InvalidName";
        /// A hostname that is none.
        INVALID_HOSTNAME = "InvalidHostname";
        /// Fields that cannot be used together.
        CONFLICTING_FIELDS = "ConflictingFields";
        /// Fewer or more entries than the field allows.
        WRONG_COUNT = "WrongCount";
        /// A kind that nobody knows.
        UNKNOWN_KIND = "UnknownKind";
        /// The kind exists, but not in that group or version.
        WRONG_API_VERSION = "WrongApiVersion";
        /// A kind that exists and that this program does not read.
        UNSUPPORTED_KIND = "UnsupportedKind";
        /// Two documents describe the same object.
        DUPLICATE_OBJECT = "DuplicateObject";
        /// A text that cannot be read and may mean an AuthorizationPolicy.
        UNREADABLE_POLICY = "UnreadablePolicy";
        /// A document that is not an object of Kubernetes.
        NOT_AN_OBJECT = "NotAnObject";
        /// A field that has no effect where it is.
        IGNORED_FIELD = "IgnoredField";
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is refused.
    Error,
    /// The object is used, or was never meant for this program.
    Warning,
}

/// A place in a file; line and column count from 1, the column in characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// The file's name as it was given.
    #[serde(serialize_with = "as_str")]
    pub file: Arc<str>,
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

fn as_str<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Which object a diagnostic is about, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ObjectRef {
    /// As written, also when the kind is unknown.
    pub kind: String,
    /// Empty for an object without a namespace.
    pub namespace: String,
    /// Empty when it is missing.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        match self.namespace.as_str() {
            "" => write!(f, "{} {name}", self.kind),
            namespace => write!(f, "{} {namespace}/{name}", self.kind),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// One of [`reason::ALL`], or a reason of a later layer.
    pub reason: &'static str,
    /// Where it is.
    pub location: Location,
    /// Which object it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectRef>,
    /// The field, like `spec.rules[0].matches[1].path.type`; empty when it is about the whole document.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The object was good before this text came, and that version is still in force.
    pub last_good_in_use: bool,
    /// The line that `location` names. Never that of a Secret.
    #[serde(skip)]
    pub source_line: Option<Box<str>>,
}

impl Diagnostic {
    /// An error about `object` at `location`.
    pub fn error(reason: &'static str, location: Location, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            reason,
            location,
            object: None,
            field: String::new(),
            message: message.into(),
            hint: None,
            last_good_in_use: false,
            source_line: None,
        }
    }

    /// A warning; else as [`Diagnostic::error`].
    pub fn warning(reason: &'static str, location: Location, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(reason, location, message) }
    }

    /// Says which object it is about.
    pub fn object(mut self, object: ObjectRef) -> Self {
        self.object = Some(object);
        self
    }

    /// Says which field it is about.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Says what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Order of reading: by file, then line, then column.
    pub fn by_place(a: &Self, b: &Self) -> Ordering {
        a.location
            .cmp(&b.location)
            .then_with(|| a.severity.cmp(&b.severity))
            .then_with(|| a.message.cmp(&b.message))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}: ", self.location)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.message)?;
        if let Some(line) = &self.source_line {
            write_excerpt(f, &self.location, line)?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        if self.last_good_in_use {
            write!(f, "\n  note: the last good version of this object is still in use")?;
        }
        Ok(())
    }
}

/// A terminal's width less the gutter; a longer line is cut around the caret.
const EXCERPT_WIDTH: usize = 96;

fn write_excerpt(f: &mut fmt::Formatter<'_>, at: &Location, line: &str) -> fmt::Result {
    let caret = (at.column as usize).saturating_sub(1);
    let skipped = if caret < EXCERPT_WIDTH { 0 } else { caret - EXCERPT_WIDTH / 2 };
    let shown: String = line.chars().skip(skipped).take(EXCERPT_WIDTH).map(printable).collect();
    let pad = caret - skipped;
    write!(f, "\n{:>6} | {}\n       | {:pad$}^", at.line, shown.trim_end(), "")
}

/// A tab or control character would move the caret, or the operator's terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => '→',
        c if c.is_control() => '·',
        c => c,
    }
}

/// The member of `known` that `given` was probably meant to be.
pub fn did_you_mean<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let given_lower = given.to_lowercase();
    let limit = (given.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter_map(|candidate| {
            let distance = edit_distance(&given_lower, &candidate.to_lowercase());
            (distance <= limit || is_part_of(&given_lower, &candidate.to_lowercase()))
                .then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?`, when there is such an x.
pub fn did_you_mean_hint<'k>(given: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    did_you_mean(given, known).map(|x| format!("did you mean \"{x}\"?"))
}

/// The values that a field allows, for a message: `"a", "b" or "c"`.
pub fn one_of(values: &[&str]) -> String {
    match values {
        [] => "nothing".to_owned(),
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|v| format!("\"{v}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
    }
}

/// "Prefix" for "PathPrefix", "port" for "ports".
fn is_part_of(given: &str, candidate: &str) -> bool {
    given.len() >= 4 && (candidate.starts_with(given) || candidate.ends_with(given))
}

/// Damerau-Levenshtein over characters with adjacent transpositions ("prot" is one slip from "port").
fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut row = vec![i + 1; b.len() + 1];
        for (j, cb) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(ca != cb);
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *ca == b[j - 1] && a[i - 1] == *cb {
                row[j + 1] = row[j + 1].min(before_last[j - 1] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_slips_of_the_hand() {
        for (a, b, distance) in [
            ("", "", 0),
            ("port", "port", 0),
            ("prot", "port", 1),
            ("prt", "port", 1),
            ("ports", "port", 1),
            ("a", "xyz", 3),
        ] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn what_is_far_off_is_not_suggested() {
        assert_eq!(did_you_mean("backendref", ["backendRefs", "matches"]), Some("backendRefs"));
        assert_eq!(did_you_mean("zzz", ["port", "name"]), None);
        assert_eq!(did_you_mean("", ["port"]), None);
    }

    #[test]
    fn a_diagnostic_reads_as_one_block() {
        let location = Location { file: "file.yaml".into(), line: 12, column: 9 };
        let mut diagnostic = Diagnostic::error(reason::UNKNOWN_FIELD, location, "unknown field")
            .object(ObjectRef { kind: "HTTPRoute".into(), namespace: "default".into(), name: "shop".into() })
            .field("spec.rules[0].backendRefs[0].prot")
            .hint("did you mean \"port\"?");
        diagnostic.source_line = Some("        prot: 80".into());
        assert_eq!(
            diagnostic.to_string(),
            "error: file.yaml:12:9: HTTPRoute default/shop: spec.rules[0].backendRefs[0].prot: unknown field\n    \
             12 |         prot: 80\n       |         ^\n  hint: did you mean \"port\"?"
        );
    }
}
