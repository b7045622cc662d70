//! Typed values from a tree, with the place and the field of everything that does not fit.
//!
//! A field that the type does not have is noted and skipped, so that one pass finds all of them; the first value of
//! a wrong type ends the pass.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};

use super::path::push_key;
use super::{Entry, Node, Problem, Resolved, Style, Value, resolve};
use crate::diagnostic::{did_you_mean_hint, one_of, reason};

/// What an explicit `null` means for a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nulls {
    /// As if the field were not there: Kubernetes' own kinds.
    Absent,
    /// Wrong: custom resources, where the API server refuses it too. A key whose value slipped out of its
    /// indentation must not widen a policy.
    Refused,
}

/// Reads typed values and collects unknown fields on the way.
#[derive(Debug)]
pub struct Reader {
    nulls: Nulls,
    /// Values are secrets: no message may quote them.
    secret: bool,
    unknown: RefCell<Vec<Problem>>,
}

impl Reader {
    /// A reader; with `secret`, no message quotes a value.
    pub fn new(nulls: Nulls, secret: bool) -> Self {
        Self { nulls, secret, unknown: RefCell::default() }
    }

    /// The value of `node`, which stands at the field `field` of its document. The keys `skip` are not looked at.
    pub fn read<T: DeserializeOwned>(
        &self,
        node: &Node<'_>,
        field: &str,
        skip: &[&str],
    ) -> Result<T, Box<Problem>> {
        let root = Path::Root(field);
        let de = De { node, path: &root, reader: self, key: (node.line, node.column), known: &[], skip };
        T::deserialize(de).map_err(|e| e.0)
    }

    /// The unknown fields that were met.
    pub fn into_unknown(self) -> Vec<Problem> {
        self.unknown.into_inner()
    }
}

/// An error for a `Deserialize` of a kind's own scalar type, with a reason and a hint.
pub fn reject<E: de::Error>(reason: &'static str, message: impl fmt::Display, hint: impl fmt::Display) -> E {
    E::custom(format_args!("{MARK}{reason}{MARK}{message}{MARK}{hint}"))
}

/// Separates the parts of a [`reject`]ed message; no YAML text may contain it.
const MARK: char = '\u{1}';

enum Path<'a> {
    Root(&'a str),
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        match self {
            Path::Root(field) => (*field).to_owned(),
            Path::Key(parent, key) => {
                let mut text = parent.text();
                push_key(&mut text, key);
                text
            }
            Path::Index(parent, index) => format!("{}[{index}]", parent.text()),
        }
    }
}

/// A problem that may not know its place yet (line 0).
#[derive(Debug)]
struct Error(Box<Problem>);

impl Error {
    fn new(reason: &'static str, message: impl Into<String>, hint: Option<String>) -> Self {
        Self(Box::new(Problem {
            reason,
            line: 0,
            column: 0,
            field: String::new(),
            message: message.into(),
            hint,
        }))
    }

    fn at(mut self, de: De<'_, '_>) -> Self {
        if self.0.line == 0 {
            (self.0.line, self.0.column) = de.place();
            let mut field = de.path.text();
            if self.0.reason == reason::MISSING_FIELD && !self.0.field.is_empty() {
                push_key(&mut field, &self.0.field);
            }
            self.0.field = field;
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        let text = msg.to_string();
        let mut parts = text.split(MARK).skip(1);
        if let (Some(name), Some(message), Some(hint)) = (parts.next(), parts.next(), parts.next()) {
            let known = reason::ALL.iter().find(|r| **r == name).copied().unwrap_or(reason::INVALID_VALUE);
            return Self::new(known, message, (!hint.is_empty()).then(|| hint.to_owned()));
        }
        if text.starts_with("Invalid symbol")
            || text.starts_with("Invalid last symbol")
            || text.contains("padding")
            || text.starts_with("Invalid input length")
        {
            // The base64 decoder's words quote bytes of the secret.
            return Self::new(
                reason::INVALID_BASE64,
                "this is not base64",
                Some("encode the value (base64 -w0), or write it as it is under stringData".to_owned()),
            );
        }
        Self::new(reason::INVALID_VALUE, text, None)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        wrong_type(&plain_expectation(&expected.to_string()), unexpected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = plain_expectation(&expected.to_string());
        let found = found(unexpected);
        Self::new(reason::OUT_OF_RANGE, format!("expected {expected}, found {found}"), None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(
            reason::INVALID_VALUE,
            format!("\"{}\" is not allowed here; allowed: {}", shorten(variant), one_of(expected)),
            did_you_mean_hint(variant, expected.iter().copied()),
        )
    }

    fn missing_field(field: &'static str) -> Self {
        let mut error =
            Self::new(reason::MISSING_FIELD, format!("the required field \"{field}\" is missing"), None);
        field.clone_into(&mut error.0.field);
        error
    }
}

fn wrong_type(expected: &str, unexpected: Unexpected<'_>) -> Error {
    let hint = match unexpected {
        Unexpected::Str(text) if expected.contains("integer") && text.trim().parse::<i64>().is_ok() => {
            Some(format!("remove the quotes: {}", text.trim()))
        }
        Unexpected::Str("yes" | "on" | "y" | "Yes" | "On") if expected.contains("true or false") => {
            Some("write true".to_owned())
        }
        Unexpected::Str("no" | "off" | "n" | "No" | "Off") if expected.contains("true or false") => {
            Some("write false".to_owned())
        }
        Unexpected::Str("true" | "false") if expected.contains("true or false") => {
            Some("remove the quotes".to_owned())
        }
        Unexpected::Signed(n) if expected.contains("string") => Some(format!("put it in quotes: \"{n}\"")),
        Unexpected::Float(_) if expected.contains("string") => Some("put it in quotes".to_owned()),
        Unexpected::Bool(b) if expected.contains("string") => Some(format!("put it in quotes: \"{b}\"")),
        Unexpected::Unit if expected.contains("list") => {
            Some("remove the field, or write [] for an empty list".to_owned())
        }
        Unexpected::Unit if expected.contains("mapping") => {
            Some("remove the field, or write {} for an empty mapping".to_owned())
        }
        Unexpected::Unit => Some("remove the field, or give it a value".to_owned()),
        Unexpected::Map | Unexpected::Str(_) | Unexpected::Signed(_) if expected == "a list" => {
            Some("begin each item with \"- \"".to_owned())
        }
        Unexpected::Seq if expected == "a mapping" => Some("remove the \"- \" in front".to_owned()),
        _ => None,
    };
    Error::new(reason::WRONG_TYPE, format!("expected {expected}, found {}", found(unexpected)), hint)
}

fn found(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(b) => format!("the boolean {b}"),
        Unexpected::Unsigned(n) => format!("the number {n}"),
        Unexpected::Signed(n) => format!("the number {n}"),
        Unexpected::Float(n) => format!("the number {n}"),
        Unexpected::Str(text) => format!("the string \"{}\"", shorten(text)),
        Unexpected::Unit | Unexpected::Option => "nothing (null)".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        Unexpected::Other(what) => what.to_owned(),
        _ => "something else".to_owned(),
    }
}

fn plain_expectation(expected: &str) -> String {
    match expected {
        "IntOrString" => "an integer or a string",
        "u16" => "an integer between 0 and 65535",
        "i32" | "a 32-bit integer" => "an integer between -2147483648 and 2147483647",
        "u32" => "an integer between 0 and 4294967295",
        "u64" => "an integer of at least 0",
        other => other,
    }
    .to_owned()
}

fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let one_line = text.lines().next().unwrap_or("");
    if one_line.chars().count() <= SHOWN && one_line.len() == text.len() {
        return text.to_owned();
    }
    format!("{}...", one_line.chars().take(SHOWN).collect::<String>())
}

#[derive(Clone, Copy)]
struct De<'a, 't> {
    node: &'a Node<'t>,
    path: &'a Path<'a>,
    reader: &'a Reader,
    /// Where the key stands, for a value that has no place of its own.
    key: (u32, u32),
    /// The fields of the struct that this is a value of; empty in a map or list.
    known: &'static [&'static str],
    skip: &'a [&'a str],
}

impl De<'_, '_> {
    fn place(&self) -> (u32, u32) {
        // An empty or nested value begins somewhere behind the key: the key is what an operator looks for.
        match self.node.value {
            Value::Scalar { .. } => (self.node.line, self.node.column),
            _ => self.key,
        }
    }

    fn wrong(self, expected: &str) -> Error {
        let error = if self.reader.secret && matches!(self.node.value, Value::Scalar { .. }) {
            let what = match self.unexpected() {
                Unexpected::Str(_) => "a string",
                Unexpected::Bool(_) => "a boolean",
                _ => "a number",
            };
            wrong_type(expected, Unexpected::Other(what))
        } else {
            wrong_type(expected, self.unexpected())
        };
        error.at(self)
    }

    fn unexpected(&self) -> Unexpected<'_> {
        match &self.node.value {
            Value::Null => Unexpected::Unit,
            Value::Seq(_) => Unexpected::Seq,
            Value::Map(_) => Unexpected::Map,
            Value::Scalar { text, style: Style::Quoted } => Unexpected::Str(text),
            Value::Scalar { text, style: Style::Plain } => match resolve(text) {
                Resolved::Null => Unexpected::Unit,
                Resolved::Bool(b) => Unexpected::Bool(b),
                Resolved::Int(n) => i64::try_from(n).map_or(Unexpected::Float(n as f64), Unexpected::Signed),
                Resolved::Float(n) => Unexpected::Float(n),
                Resolved::Text => Unexpected::Str(text),
            },
        }
    }

    fn resolved(&self) -> Resolved {
        match &self.node.value {
            Value::Scalar { text, style: Style::Plain } => resolve(text),
            Value::Null => Resolved::Null,
            _ => Resolved::Text,
        }
    }

    fn note_unknown(&self) {
        let (field, key) = (self.path.text(), self.path.last_key());
        let hint = did_you_mean_hint(key, self.known.iter().copied())
            .or_else(|| (self.known.len() <= 12).then(|| format!("fields here: {}", self.known.join(", "))));
        self.reader.unknown.borrow_mut().push(Problem {
            reason: reason::UNKNOWN_FIELD,
            line: self.key.0,
            column: self.key.1,
            field,
            message: "unknown field".to_owned(),
            hint,
        });
    }
}

impl Path<'_> {
    fn last_key(&self) -> &str {
        match self {
            Path::Root(field) => field,
            Path::Key(_, key) => key,
            Path::Index(parent, _) => parent.last_key(),
        }
    }
}

macro_rules! integers {
    ($($method:ident => $visit:ident as $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let Resolved::Int(n) = self.resolved() else { return Err(self.wrong("an integer")) };
            match <$type>::try_from(n) {
                Ok(n) => visitor.$visit(n),
                Err(_) => Err(Error::new(
                    reason::OUT_OF_RANGE,
                    format!("expected an integer between {} and {}, found the number {n}", <$type>::MIN, <$type>::MAX),
                    None,
                )),
            }
            .map_err(|e| e.at(self))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for De<'_, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::Seq(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
            Value::Null => visitor.visit_unit(),
            Value::Scalar { text, .. } => match self.resolved() {
                Resolved::Null => visitor.visit_unit(),
                Resolved::Bool(b) => visitor.visit_bool(b),
                Resolved::Float(n) => visitor.visit_f64(n),
                Resolved::Text => visitor.visit_str(text),
                Resolved::Int(n) => match i64::try_from(n) {
                    Ok(n) => visitor.visit_i64(n),
                    Err(_) => visitor.visit_f64(n as f64),
                },
            },
        };
        result.map_err(|e: Error| e.at(self))
    }

    integers! {
        deserialize_i8 => visit_i8 as i8;
        deserialize_i16 => visit_i16 as i16;
        deserialize_i32 => visit_i32 as i32;
        deserialize_i64 => visit_i64 as i64;
        deserialize_u8 => visit_u8 as u8;
        deserialize_u16 => visit_u16 as u16;
        deserialize_u32 => visit_u32 as u32;
        deserialize_u64 => visit_u64 as u64;
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.resolved() {
            Resolved::Bool(b) => visitor.visit_bool(b).map_err(|e: Error| e.at(self)),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.resolved() {
            Resolved::Int(n) => visitor.visit_f64(n as f64).map_err(|e: Error| e.at(self)),
            Resolved::Float(n) => visitor.visit_f64(n).map_err(|e: Error| e.at(self)),
            _ => Err(self.wrong("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.node.value, self.resolved()) {
            (Value::Scalar { text, .. }, Resolved::Text) => {
                visitor.visit_str(text).map_err(|e: Error| e.at(self))
            }
            _ => Err(self.wrong("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() && self.reader.nulls == Nulls::Absent {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self).map_err(|e: Error| e.at(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Seq(items) => {
                visitor.visit_seq(Items { items, next: 0, de: self }).map_err(|e| e.at(self))
            }
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => {
                let access = Entries { entries: entries.iter(), value: None, de: self, known: &[] };
                visitor.visit_map(access).map_err(|e| e.at(self))
            }
            _ => Err(self.wrong("a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => {
                let access = Entries { entries: entries.iter(), value: None, de: self, known: fields };
                visitor.visit_map(access).map_err(|e| e.at(self))
            }
            _ => Err(self.wrong("a mapping")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match (&self.node.value, self.resolved()) {
            (Value::Scalar { text, .. }, Resolved::Text) => {
                let text: &str = text;
                visitor.visit_enum(text.into_deserializer()).map_err(|e: Error| e.at(self))
            }
            _ => Err(self.wrong(&format!("a string ({})", one_of(variants)))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if !self.known.is_empty() {
            self.note_unknown();
        }
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! { bytes byte_buf unit unit_struct tuple tuple_struct identifier }
}

struct Items<'a, 't> {
    items: &'a [Node<'t>],
    next: usize,
    de: De<'a, 't>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let path = Path::Index(self.de.path, self.next);
        self.next += 1;
        let de = De {
            node,
            path: &path,
            key: (node.line, node.column),
            known: &[],
            skip: &[],
            reader: self.de.reader,
        };
        seed.deserialize(de).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Entries<'a, 't> {
    entries: std::slice::Iter<'a, Entry<'t>>,
    value: Option<&'a Entry<'t>>,
    de: De<'a, 't>,
    known: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        while let Some(entry) = self.entries.next() {
            if self.de.skip.contains(&entry.key.as_ref()) || self.is_absent(entry) {
                continue;
            }
            self.value = Some(entry);
            let key: &str = &entry.key;
            return seed.deserialize(key.into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self.value.take().expect("serde asks for a value only after its key");
        let path = Path::Key(self.de.path, &entry.key);
        let de = De {
            node: &entry.value,
            path: &path,
            key: (entry.line, entry.column),
            known: self.known,
            skip: &[],
            reader: self.de.reader,
        };
        seed.deserialize(de)
    }
}

impl Entries<'_, '_> {
    fn is_absent(&self, entry: &Entry<'_>) -> bool {
        entry.value.is_null()
            && self.de.reader.nulls == Nulls::Absent
            && self.known.contains(&entry.key.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Thing {
        name: String,
        port: Option<u16>,
        #[serde(default)]
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        on: bool,
    }

    fn check(text: &str, nulls: Nulls, expected: Result<(), (&str, (u32, u32), &str)>) {
        let root = &super::super::parse(text).unwrap()[0];
        let reader = Reader::new(nulls, false);
        let result = reader.read::<Thing>(root, "spec", &[]);
        let problem = result.as_ref().err().map(|p| (**p).clone()).or_else(|| reader.into_unknown().pop());
        let found = problem.as_ref().map(|p| (p.field.as_str(), (p.line, p.column), p.message.as_str()));
        assert_eq!(found, expected.err(), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_place() {
        use Nulls::{Absent, Refused};
        check("name: x\nport: 80\nlist:\n- on: true\n", Refused, Ok(()));
        check("name: x\nport:\n", Absent, Ok(()));
        check(
            "name: x\nport:\n",
            Refused,
            Err(("spec.port", (2, 1), "expected an integer, found nothing (null)")),
        );
        check("name: 80\n", Refused, Err(("spec.name", (1, 7), "expected a string, found the number 80")));
        check("name: \"80\"\n", Refused, Ok(()));
        check("name: yes\n", Refused, Ok(()));
        check("port: 80\n", Refused, Err(("spec.name", (1, 1), "the required field \"name\" is missing")));
        check(
            "name: x\nport: abc\n",
            Refused,
            Err(("spec.port", (2, 7), "expected an integer, found the string \"abc\"")),
        );
        check(
            "name: x\nport: 70000\n",
            Refused,
            Err(("spec.port", (2, 7), "expected an integer between 0 and 65535, found the number 70000")),
        );
        check(
            "name: x\nlist:\n  on: true\n",
            Refused,
            Err(("spec.list", (2, 1), "expected a list, found a mapping")),
        );
        check(
            "name: x\nlist:\n- on: yes\n",
            Refused,
            Err(("spec.list[0].on", (3, 7), "expected true or false, found the string \"yes\"")),
        );
        check(
            "name: x\nlist:\n- on: true\n  off: 1\n",
            Refused,
            Err(("spec.list[0].off", (4, 3), "unknown field")),
        );
    }
}
