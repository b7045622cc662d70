//! What the kinds' checks share: errors with a field whose place is found in the tree, and the common rules.

pub use fieldgate_core::head::is_token;
use std::fmt;

use super::duration::Duration;
use crate::diagnostic::reason;
use crate::yaml::{self, Node, Problem, Value};

/// Collects what is wrong with one object beyond the types of its fields.
pub struct Checks<'n> {
    root: &'n Node<'n>,
    problems: Vec<Problem>,
}

impl<'n> Checks<'n> {
    /// Checks of the object at `root`.
    pub fn new(root: &'n Node<'n>) -> Self {
        Self { root, problems: Vec::new() }
    }

    /// What was found.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Notes an error at a field.
    pub fn error(
        &mut self,
        field: &str,
        reason: &'static str,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        let (line, column) = yaml::locate(self.root, field);
        self.problems.push(Problem {
            reason,
            line,
            column,
            field: field.to_owned(),
            message: message.into(),
            hint: hint.map(str::to_owned),
        });
    }

    /// Whether a list is written there and has no items, as against not being written at all.
    pub fn is_empty_list(&self, field: &str) -> bool {
        yaml::find(self.root, field)
            .is_some_and(|n| matches!(&n.value, Value::Seq(items) if items.is_empty()))
    }

    /// Of these sibling fields, one and only one is set.
    pub fn exactly_one(&mut self, parent: &str, fields: &[(&str, bool)]) {
        let set: Vec<&str> = fields.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
        let all: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        match set[..] {
            [_] => {}
            [] => self.error(
                parent,
                reason::MISSING_FIELD,
                format!("none of {} is set", all.join(", ")),
                Some("set exactly one of them"),
            ),
            [first, second, ..] => self.error(
                &format!("{parent}.{second}"),
                reason::CONFLICTING_FIELDS,
                format!("{first} and {second} cannot be used together"),
                Some("remove one of the two"),
            ),
        }
    }

    // The fields below are formatted only for what is wrong: a hundred thousand routes come through here.

    /// A port that can be connected to.
    pub fn port(&mut self, field: impl fmt::Display, port: i64) {
        self.range(field, port, 1, 65535);
    }

    /// A number within bounds.
    pub fn range(&mut self, field: impl fmt::Display, value: impl Into<i64>, min: i64, max: i64) {
        let value = value.into();
        if !(min..=max).contains(&value) {
            self.error(
                &field.to_string(),
                reason::OUT_OF_RANGE,
                format!("expected {min} to {max}, found {value}"),
                None,
            );
        }
    }

    /// A list of bounded length.
    pub fn count(&mut self, field: impl fmt::Display, len: usize, max: usize) {
        if len > max {
            self.error(
                &field.to_string(),
                reason::WRONG_COUNT,
                format!("at most {max} entries are allowed, found {len}"),
                None,
            );
        }
    }

    /// A duration that is not zero.
    pub fn positive(&mut self, field: &str, duration: Option<Duration>) {
        if duration.is_some_and(|d| d.0.is_zero()) {
            self.error(
                field,
                reason::OUT_OF_RANGE,
                "expected more than 0",
                Some("remove the field for its default"),
            );
        }
    }

    /// The name of a header or cookie.
    pub fn token(&mut self, field: &str, text: &str, what: &str) {
        if !is_token(text) {
            let message = format!("\"{text}\" is not {what}");
            self.error(field, reason::INVALID_VALUE, message, Some("letters, digits and -_. only"));
        }
    }

    /// `Path` of a cookie that the gateway sets.
    pub fn cookie_path(&mut self, field: &str, path: Option<&str>) {
        if let Some(path) = path
            && (!path.starts_with('/') || path.contains([';', ',']) || path.chars().any(char::is_control))
        {
            self.error(
                field,
                reason::INVALID_VALUE,
                format!("\"{path}\" is not the path of a cookie"),
                Some("it begins with \"/\" and has no \";\""),
            );
        }
    }

    /// A DNS name of Gateway API: lower case, optionally with a wildcard for its first label.
    pub fn hostname(&mut self, field: &str, name: &str, wildcard: bool) {
        let host = name.strip_prefix("*.").filter(|_| wildcard).unwrap_or(name);
        let Err(why) = dns_name(host) else {
            if wildcard && host.parse::<std::net::Ipv4Addr>().is_ok() {
                self.error(
                    field,
                    reason::INVALID_HOSTNAME,
                    format!("\"{name}\" is an IP address"),
                    Some("a hostname is needed"),
                );
            }
            return;
        };
        let hint = if name.contains("://") {
            "leave out the scheme"
        } else if name.contains(':') {
            "the port has a field of its own"
        } else if name == "*" && wildcard {
            "leave out the hostname to match every one"
        } else if name.contains('*') {
            if wildcard {
                "a \"*\" may only be the whole first label: *.example.com"
            } else {
                "a \"*\" is not allowed here"
            }
        } else {
            "a name like shop.example.com"
        };
        self.error(
            field,
            reason::INVALID_HOSTNAME,
            format!("\"{name}\" is not a hostname: {why}"),
            Some(hint),
        );
    }
}

/// Why a text is not a name of RFC 1123.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// Nothing.
    Empty,
    /// More characters than allowed.
    TooLong(usize),
    /// An upper-case letter.
    UpperCase(char),
    /// A character that is not allowed at all.
    Character(char),
    /// A label begins or ends with `-`, or is empty.
    Edge,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::TooLong(max) => write!(f, "it is longer than {max} characters"),
            Self::UpperCase(c) => write!(f, "'{c}' is in upper case"),
            Self::Character(c) => write!(f, "the character {c:?} is not allowed"),
            Self::Edge => f.write_str("each part must begin and end with a letter or digit"),
        }
    }
}

/// A DNS subdomain of RFC 1123: labels of lower-case letters, digits and `-`, joined by dots, 253 in all.
pub fn dns_name(text: &str) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(BadName::Empty);
    }
    if text.len() > 253 {
        return Err(BadName::TooLong(253));
    }
    text.split('.').try_for_each(|label| dns_characters(label, false))
}

/// A DNS label of RFC 1123: no dots, 63 characters.
pub fn dns_label(text: &str) -> Result<(), BadName> {
    if text.is_empty() {
        return Err(BadName::Empty);
    }
    if text.len() > 63 {
        return Err(BadName::TooLong(63));
    }
    dns_characters(text, true)
}

fn dns_characters(label: &str, whole: bool) -> Result<(), BadName> {
    for c in label.chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => {}
            'A'..='Z' => return Err(BadName::UpperCase(c)),
            _ => return Err(BadName::Character(c)),
        }
    }
    if label.is_empty() && whole {
        return Err(BadName::Empty);
    }
    if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
        return Err(BadName::Edge);
    }
    Ok(())
}
