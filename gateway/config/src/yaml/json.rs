//! JSON. It is read apart from YAML because it is not quite a subset in practice: surrogate pairs (`\ud83d\ude00`),
//! keys longer than 1,024 characters and tabs everywhere. Several values may follow each other, as `kubectl` takes them.

use std::borrow::Cow;

use super::events::{duplicate_key, problem, too_deep};
use super::{Entry, MAX_DEPTH, Node, Problem, Style, Value};
use crate::diagnostic::reason;

/// Parses every value of `text`.
pub(super) fn parse(text: &str) -> Result<Vec<Node<'_>>> {
    let mut reader = Json { text, at: 0, line: 1, line_start: 0 };
    let mut documents = Vec::new();
    loop {
        reader.space();
        if reader.at == text.len() {
            return Ok(documents);
        }
        documents.push(reader.value(0)?);
    }
}

struct Json<'t> {
    text: &'t str,
    at: usize,
    line: u32,
    line_start: usize,
}

type Result<T> = std::result::Result<T, Box<Problem>>;

impl<'t> Json<'t> {
    fn value(&mut self, depth: usize) -> Result<Node<'t>> {
        let (line, column) = self.place();
        if depth > MAX_DEPTH {
            return Err(too_deep(line, column));
        }
        let value = match self.peek() {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            Some(b'"') => Value::Scalar { text: self.string()?, style: Style::Quoted },
            Some(_) => self.word()?,
            None => return Err(self.wrong("the JSON ends in the middle", "is the file complete?")),
        };
        Ok(Node { line, column, value })
    }

    fn object(&mut self, depth: usize) -> Result<Value<'t>> {
        self.at += 1;
        let mut entries: Vec<Entry<'t>> = Vec::new();
        loop {
            self.space();
            if entries.is_empty() && self.take(b'}') {
                return Ok(Value::Map(entries));
            }
            let (line, column) = self.place();
            match self.peek() {
                Some(b'"') => {}
                Some(b'}') => {
                    return Err(
                        self.wrong("a comma stands before this }", "JSON has no comma after the last entry")
                    );
                }
                None => return Err(self.wrong("the JSON ends in the middle", "is the file complete?")),
                _ => {
                    return Err(self.wrong(
                        "a key in double quotes is expected here",
                        "JSON has neither bare keys nor comments",
                    ));
                }
            }
            let key = self.string()?;
            self.space();
            if !self.take(b':') {
                return Err(self.wrong("a colon is expected after the key", "write \"key\": value"));
            }
            self.space();
            let value = self.value(depth + 1)?;
            let entry = Entry { key, line, column, value };
            if let Some(first) = entries.iter().find(|e| e.key == entry.key) {
                return Err(duplicate_key(first, &entry));
            }
            entries.push(entry);
            self.space();
            if self.take(b'}') {
                return Ok(Value::Map(entries));
            }
            self.comma("}")?;
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value<'t>> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.space();
            if items.is_empty() && self.take(b']') {
                return Ok(Value::Seq(items));
            }
            if self.peek() == Some(b']') {
                return Err(
                    self.wrong("a comma stands before this ]", "JSON has no comma after the last item")
                );
            }
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(Value::Seq(items));
            }
            self.comma("]")?;
        }
    }

    fn comma(&mut self, end: &str) -> Result<()> {
        if self.take(b',') {
            return Ok(());
        }
        if self.peek().is_none() {
            return Err(self.wrong("the JSON ends in the middle", "is the file complete?"));
        }
        Err(self.wrong(format!("a comma or {end} is expected here"), "separate entries by commas"))
    }

    fn word(&mut self) -> Result<Value<'t>> {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '+' | '.'))
            .unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "null" => Value::Null,
            "true" | "false" => Value::Scalar { text: Cow::Borrowed(word), style: Style::Plain },
            number if serde_json::from_str::<f64>(number).is_ok() => {
                Value::Scalar { text: Cow::Borrowed(number), style: Style::Plain }
            }
            _ => return Err(self.wrong("a JSON value is expected here", "put text in double quotes")),
        };
        self.at += end;
        Ok(value)
    }

    fn string(&mut self) -> Result<Cow<'t, str>> {
        let start = self.at + 1;
        let bytes = self.text.as_bytes();
        let mut end = start;
        let mut escaped = false;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    end += 2;
                }
                Some(0..=0x1f) | None => {
                    return Err(self.wrong(
                        "the text in double quotes that begins here is not closed",
                        "add the missing quote; write \\n for a line break",
                    ));
                }
                Some(_) => end += 1,
            }
        }
        let raw = &self.text[start..end];
        let text = if escaped {
            match serde_json::from_str::<String>(&self.text[start - 1..=end]) {
                Ok(text) => Cow::Owned(text),
                Err(_) => {
                    return Err(self.wrong(
                        "this text has an escape that JSON does not know",
                        "write \\\\ for a backslash",
                    ));
                }
            }
        } else {
            Cow::Borrowed(raw)
        };
        self.at = end + 1;
        Ok(text)
    }

    fn space(&mut self) {
        while let Some(b @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            if b == b'\n' {
                self.line += 1;
                self.line_start = self.at;
            }
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn place(&self) -> (u32, u32) {
        (self.line, self.text[self.line_start..self.at].chars().count() as u32 + 1)
    }

    fn wrong(&self, message: impl Into<String>, hint: &str) -> Box<Problem> {
        let (line, column) = self.place();
        problem(reason::INVALID_JSON, line, column, message, Some(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Vec<String> {
        fn walk(node: &Node<'_>, out: &mut Vec<String>) {
            match &node.value {
                Value::Null => out.push("null".into()),
                Value::Scalar { text, .. } => out.push(text.to_string()),
                Value::Seq(items) => items.iter().for_each(|i| walk(i, out)),
                Value::Map(entries) => entries.iter().for_each(|e| {
                    out.push(e.key.to_string());
                    walk(&e.value, out);
                }),
            }
        }
        let mut out = Vec::new();
        parse(text).unwrap().iter().for_each(|n| walk(n, &mut out));
        out
    }

    #[test]
    fn what_people_feed() {
        assert_eq!(strings("{\n\t\"a\":\t[1,\n\t-2.5e3,null,true]}\n"), ["a", "1", "-2.5e3", "null", "true"]);
        assert_eq!(strings(r#"{"a":"\ud83d\ude00\/\n"}{"b":{}}"#), ["a", "😀/\n", "b"]);
        assert_eq!(strings("[]"), Vec::<String>::new());
    }

    #[test]
    fn broken_json_is_refused_where_it_breaks() {
        for (text, place) in [
            ("{\"a\":1,}", (1, 8)),
            ("{\"a\":1", (1, 7)),
            ("{\"a\" 1}", (1, 6)),
            ("{\n \"a\": x}", (2, 7)),
            ("{\"a\":\"x}", (1, 6)),
            ("[1 2]", (1, 4)),
            ("{\"a\":01}", (1, 6)),
            ("{\"a\":\"\\", (1, 6)),
            ("{\"a\":1,\"a\":2}", (1, 8)),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!((problem.line, problem.column), place, "{text}: {}", problem.message);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        assert_eq!(parse(&"[".repeat(100_000)).unwrap_err().reason, reason::TOO_DEEP);
    }
}
