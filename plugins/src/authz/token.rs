//! What a token says against patterns, read as Envoy reads the metadata of `jwt_authn`: texts and lists of texts fit,
//! numbers and truth values do not.

use std::sync::Arc;

use fieldgate_core::identity::{Metadata, Token};
use fieldgate_core::ir::{RequestPrincipal, StringMatch};
use serde_json::Value;

use super::text::{Invalid, Star, Text, texts};

/// Some of these, unless there are none, and none of those.
#[derive(Debug, Default)]
pub struct Bearers {
    some: Vec<Bearer>,
    none: Vec<Bearer>,
}

#[derive(Debug)]
struct Bearer {
    issuer: Text,
    subject: Text,
}

impl Bearers {
    /// Prepares patterns.
    pub fn new(some: &[RequestPrincipal], none: &[RequestPrincipal]) -> Result<Self, Invalid> {
        let all = |list: &[RequestPrincipal]| list.iter().map(Bearer::new).collect::<Result<_, _>>();
        Ok(Self { some: all(some)?, none: all(none)? })
    }

    /// Whether the bearer of a token fits.
    pub fn matches(&self, token: Option<&Token>) -> bool {
        let any =
            |list: &[Bearer]| token.is_some_and(|token| list.iter().any(|bearer| bearer.matches(token)));
        (self.some.is_empty() || any(&self.some)) && !any(&self.none)
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.some.is_empty() && self.none.is_empty()
    }
}

impl Bearer {
    fn new(of: &RequestPrincipal) -> Result<Self, Invalid> {
        Ok(Self { issuer: Text::new(&of.issuer)?, subject: Text::new(&of.subject)? })
    }

    fn matches(&self, token: &Token) -> bool {
        let claim = |text: &Text, name: &str, value: &str| {
            // An empty claim is not a missing one.
            (!value.is_empty() || token.claims.get(name).is_some_and(Value::is_string))
                && text.matches(value.as_bytes(), Star::NotEmpty)
        };
        claim(&self.issuer, "iss", &token.issuer) && claim(&self.subject, "sub", &token.subject)
    }
}

/// A claim: some of these, unless there are none, and none of those.
#[derive(Debug)]
pub struct Claim {
    path: Vec<Arc<str>>,
    some: Vec<Text>,
    none: Vec<Text>,
}

impl Claim {
    /// Prepares patterns.
    pub fn new(path: &[Arc<str>], some: &[StringMatch], none: &[StringMatch]) -> Result<Self, Invalid> {
        Ok(Self { path: path.to_vec(), some: texts(some)?, none: texts(none)? })
    }

    /// Whether a token's claim fits.
    pub fn matches(&self, token: Option<&Token>) -> bool {
        let value = token.and_then(|token| token.claim(&self.path));
        let any = |texts: &[Text]| value.is_some_and(|value| self.is_any(value, texts));
        (self.some.is_empty() || any(&self.some)) && !any(&self.none)
    }

    fn is_any(&self, value: &Value, texts: &[Text]) -> bool {
        match value {
            Value::String(text) if self.is_list_of_words() => {
                text.split(' ').filter(|word| !word.is_empty()).any(|word| is_any(word, texts))
            }
            Value::String(text) => is_any(text, texts),
            Value::Array(items) => items.iter().filter_map(Value::as_str).any(|item| is_any(item, texts)),
            _ => false,
        }
    }

    /// Claims that istiod tells Envoy to take apart.
    fn is_list_of_words(&self) -> bool {
        matches!(&*self.path, [only] if matches!(&**only, "scope" | "permission"))
    }
}

/// A value of dynamic metadata: a text that is, or a list that has, some of these, and none of those.
#[derive(Debug)]
pub struct Dynamic {
    filter: Box<str>,
    key: Box<str>,
    some: Vec<(bool, Text)>,
    none: Vec<(bool, Text)>,
}

impl Dynamic {
    /// Prepares patterns; the flag says whether one is of an item of a list.
    pub fn new(filter: &str, key: &str, some: Vec<(bool, Text)>, none: Vec<(bool, Text)>) -> Self {
        Self { filter: filter.into(), key: key.into(), some, none }
    }

    /// Whether it fits.
    pub fn matches(&self, metadata: &Metadata) -> bool {
        let value = metadata.dynamic.get(&*self.filter).and_then(|filter| filter.get(&*self.key));
        let one = |value: &Value, (in_list, text): &(bool, Text)| {
            let fits = |value: &Value| {
                value.as_str().is_some_and(|value| text.matches(value.as_bytes(), Star::NotEmpty))
            };
            match value {
                Value::Array(items) if *in_list => items.iter().any(fits),
                value => !in_list && fits(value),
            }
        };
        let any =
            |texts: &[(bool, Text)]| value.is_some_and(|value| texts.iter().any(|text| one(value, text)));
        (self.some.is_empty() || any(&self.some)) && !any(&self.none)
    }
}

fn is_any(value: &str, texts: &[Text]) -> bool {
    texts.iter().any(|text| text.matches(value.as_bytes(), Star::NotEmpty))
}
