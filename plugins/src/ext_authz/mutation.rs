//! What an authorizer wants changed: read and judged before anything of it is done, so that an answer is carried out whole
//! or refused whole.

use bytes::Bytes;
use fieldgate_core::head::is_token;
use fieldgate_core::{HeaderId, Headers, RequestHead};

use super::proto::{HeaderValueOption, QueryParameter};

/// A change of header fields.
#[derive(Debug, PartialEq)]
pub struct Change {
    pub name: String,
    pub value: Bytes,
    pub how: How,
}

/// What becomes of fields of that name that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They stay; this one is added.
    Append,
    /// If there are any, this one is not added.
    AddIfAbsent,
    /// They are replaced.
    Set,
    /// They are replaced, if there are any.
    Overwrite,
}

/// Envoy's `HeaderAppendAction`.
const APPEND_IF_EXISTS_OR_ADD: i32 = 0;
const ADD_IF_ABSENT: i32 = 1;
const OVERWRITE_IF_EXISTS_OR_ADD: i32 = 2;
const OVERWRITE_IF_EXISTS: i32 = 3;

impl Change {
    /// Reads a gRPC authorizer's; `unsaid` is how one is meant that does not say. What is not sound is an error.
    pub fn read(option: &HeaderValueOption, unsaid: How) -> Result<Self, String> {
        let header = option.header.clone().unwrap_or_default();
        let value = if header.raw_value.is_empty() { header.value.into() } else { header.raw_value };
        let how = match (&option.append, option.append_action) {
            (Some(append), _) if append.value => How::Append,
            (Some(_), _) => How::Set,
            (None, APPEND_IF_EXISTS_OR_ADD) => unsaid,
            (None, ADD_IF_ABSENT) => How::AddIfAbsent,
            (None, OVERWRITE_IF_EXISTS_OR_ADD) => How::Set,
            (None, OVERWRITE_IF_EXISTS) => How::Overwrite,
            (None, other) => return Err(format!("an append_action {other}")),
        };
        Self::new(&header.key, value, how)
    }

    /// One that is sound.
    pub fn new(name: &str, value: Bytes, how: How) -> Result<Self, String> {
        let name = name.to_ascii_lowercase();
        check_name(&name)?;
        // RFC 9110 section 5.5.
        if !value.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..)) {
            return Err(format!("a value of {name} with control characters"));
        }
        Ok(Self { name, value, how })
    }

    /// Makes it.
    pub fn apply(&self, headers: &mut Headers) {
        let there = || headers.get(&self.name).is_some();
        match self.how {
            How::Append => {}
            How::AddIfAbsent if there() => return,
            How::Overwrite if !there() => return,
            How::AddIfAbsent => {}
            How::Set | How::Overwrite => headers.remove(&self.name),
        }
        headers.push(self.name.as_bytes(), &self.value);
    }
}

/// Whether a field may be changed from outside: what frames a message, names its target or belongs to a connection is the
/// gateway's.
fn check_name(name: &str) -> Result<(), String> {
    if !is_token(name) {
        return Err(format!("a header {name:?}"));
    }
    if is_ours(HeaderId::of(name.as_bytes())) {
        return Err(format!("the header {name}, which is the gateway's to set"));
    }
    Ok(())
}

/// Whether fields of this name are of one message or connection.
pub fn is_ours(id: HeaderId) -> bool {
    id.is_hop_by_hop()
        || matches!(id, HeaderId::Host | HeaderId::ContentLength | HeaderId::Te | HeaderId::Trailer)
}

/// Reads parameters to set. Both parts must be encoded already, as Envoy wants them, so that one cannot become two.
pub fn read_query(parameters: Vec<QueryParameter>) -> Result<Vec<(String, String)>, String> {
    let sound = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%+".contains(&b));
    let read = parameters.into_iter().map(|QueryParameter { key, value }| {
        if key.is_empty() || !sound(&key) || !sound(&value) {
            return Err(format!("a query parameter {key:?} that is not URL-encoded"));
        }
        Ok((key, value))
    });
    read.collect()
}

/// Takes parameters out and sets others; the rest stays as it is, in its order.
pub fn edit_query(head: &mut RequestHead, set: &[(String, String)], remove: &[String]) {
    if set.is_empty() && remove.is_empty() {
        return;
    }
    let mut pairs: Vec<(String, Option<String>)> = Vec::new();
    for pair in head.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
        if !remove.iter().any(|gone| gone == key) {
            pairs.push((key.to_owned(), value.map(str::to_owned)));
        }
    }
    for (key, value) in set {
        pairs.retain(|(there, _)| there != key);
        pairs.push((key.clone(), Some(value.clone())));
    }
    let mut target = head.path().to_owned();
    for (at, (key, value)) in pairs.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(key);
        if let Some(value) = value {
            target.push('=');
            target.push_str(value);
        }
    }
    head.set_target(&target);
}

#[cfg(test)]
mod tests {
    use super::super::proto::{BoolValue, HeaderValue};
    use super::*;

    fn option(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
        HeaderValueOption {
            header: Some(HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() }),
            append: append.map(|value| BoolValue { value }),
            append_action,
        }
    }

    #[test]
    fn a_field_is_changed_as_its_action_says() {
        for (append, action, there, absent) in [
            (None, APPEND_IF_EXISTS_OR_ADD, "new", "new"),
            (Some(true), OVERWRITE_IF_EXISTS, "old,new", "new"),
            (Some(false), APPEND_IF_EXISTS_OR_ADD, "new", "new"),
            (None, ADD_IF_ABSENT, "old", "new"),
            (None, OVERWRITE_IF_EXISTS_OR_ADD, "new", "new"),
            (None, OVERWRITE_IF_EXISTS, "new", ""),
        ] {
            let change = Change::read(&option("X-A", "new", append, action), How::Set).unwrap();
            let after = |before: &[u8]| {
                let mut headers = Headers::new();
                if !before.is_empty() {
                    headers.push(b"x-a", before);
                }
                change.apply(&mut headers);
                let values: Vec<_> = headers.get_all("x-a").map(String::from_utf8_lossy).collect();
                values.join(",")
            };
            assert_eq!((&*after(b"old"), &*after(b"")), (there, absent), "{append:?} {action}");
        }
    }

    #[test]
    fn what_is_not_sound_is_refused() {
        for name in [
            "",
            ":path",
            ":authority",
            "host",
            "content-length",
            "Transfer-Encoding",
            "connection",
            "a b",
            "te",
            "ä",
        ] {
            assert!(Change::new(name, "x".into(), How::Set).is_err(), "{name:?}");
        }
        for value in ["a\r\nx: y", "a\0", "\x7f"] {
            assert!(Change::new("x-a", value.to_owned().into(), How::Set).is_err(), "{value:?}");
        }
        assert!(Change::read(&option("x-a", "b", None, 9), How::Set).is_err());
        assert!(Change::new("x-a", "ä\tb".into(), How::Set).is_ok());
    }

    #[test]
    fn parameters_are_set_and_removed_in_place() {
        let edited = |target: &str, set: &[(&str, &str)], remove: &[&str]| {
            let mut head = RequestHead::default();
            head.set_target(target);
            let set: Vec<_> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let remove: Vec<_> = remove.iter().map(|k| (*k).to_owned()).collect();
            edit_query(&mut head, &set, &remove);
            assert!(head.path().starts_with("/p") && !head.path().contains('?'));
            head.target
        };
        assert_eq!(edited("/p", &[("a", "1")], &[]), "/p?a=1");
        assert_eq!(edited("/p?a=0&b&a=2&c=%20", &[("a", "1")], &[]), "/p?b&c=%20&a=1");
        assert_eq!(edited("/p?token=x&b=1", &[], &["token"]), "/p?b=1");
        assert_eq!(edited("/p?token=x", &[], &["token"]), "/p");
        assert_eq!(edited("/p?&&x", &[], &[]), "/p?&&x");
        let bad = |key: &str, value: &str| {
            read_query(vec![QueryParameter { key: key.into(), value: value.into() }]).is_err()
        };
        assert!(
            bad("", "x") && bad("a=b", "x") && bad("a", "x&admin=1") && bad("a", "#") && !bad("a", "%26+b")
        );
    }
}
