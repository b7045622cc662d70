//! The plain block style in which nearly every object is written, read several times faster than all of YAML.
//!
//! This reader only ever says "I know what this is" or "I do not": whatever is unusual (anchors, tags, block
//! scalars, flow style, text over several lines, anything but ASCII) and whatever is wrong goes to [`super::events`],
//! which also finds the words for it. Where both read a text, they read the same; a property test holds them to it.

use std::borrow::Cow;

use super::{Entry, MAX_DEPTH, Node, Resolved, Style, Value, resolve};

/// Reads a text of one document, if it is of the plain kind.
pub(super) fn parse(text: &str) -> Option<Vec<Node<'_>>> {
    if !text.bytes().all(|b| matches!(b, b'\n' | 0x20..=0x7e)) {
        return None;
    }
    let mut reader = Fast { text, next: 0, line: 0, indent: 0, content: "" };
    reader.advance();
    if let Some(rest) = reader.content.strip_prefix("---")
        && reader.indent == 0
    {
        if !(rest.is_empty() || rest.starts_with(" #")) {
            return None;
        }
        reader.advance();
    }
    if reader.at_end() {
        return Some(Vec::new());
    }
    let root = reader.block(0)?;
    reader.at_end().then(|| vec![root])
}

/// Stands on a line that has content, or at the end, where `content` is empty.
struct Fast<'t> {
    text: &'t str,
    /// Where the next line begins.
    next: usize,
    line: u32,
    /// The column of `content`, from 0. Behind a "- " it is that of what follows.
    indent: usize,
    content: &'t str,
}

impl<'t> Fast<'t> {
    /// Goes to the next line that is neither empty nor a comment.
    fn advance(&mut self) {
        while self.next < self.text.len() {
            let rest = &self.text[self.next..];
            let end = memchr::memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len());
            let line = &rest[..end];
            self.next += (end + 1).min(rest.len());
            self.line += 1;
            self.indent = line.bytes().take_while(|b| *b == b' ').count();
            self.content = line[self.indent..].trim_ascii_end();
            if !self.content.is_empty() && !self.content.starts_with('#') {
                return;
            }
        }
        self.content = "";
        self.indent = 0;
    }

    fn at_end(&self) -> bool {
        self.content.is_empty()
    }

    fn place(&self) -> (u32, u32) {
        (self.line, self.indent as u32 + 1)
    }

    fn block(&mut self, depth: usize) -> Option<Node<'t>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        if self.content.starts_with("- ") { self.sequence(depth) } else { self.mapping(depth) }
    }

    fn sequence(&mut self, depth: usize) -> Option<Node<'t>> {
        let indent = self.indent;
        let mut items: Vec<Node<'t>> = Vec::new();
        while !self.at_end() && self.indent == indent && self.content.starts_with('-') {
            let after = self.content.strip_prefix("- ")?;
            let content = after.trim_ascii_start();
            if content.starts_with("- ") || content == "-" || content.starts_with('#') {
                return None;
            }
            self.indent += self.content.len() - content.len();
            self.content = content;
            if split_key(content).is_some() {
                items.push(self.mapping(depth + 1)?);
            } else {
                items.push(self.scalar(content, self.indent, indent)?);
            }
        }
        let (line, column) = items.first().map(|i| (i.line, i.column))?;
        Some(Node { line, column, value: Value::Seq(items) })
    }

    fn mapping(&mut self, depth: usize) -> Option<Node<'t>> {
        if depth >= MAX_DEPTH {
            return None;
        }
        let (line, column) = self.place();
        let indent = self.indent;
        let mut entries: Vec<Entry<'t>> = Vec::with_capacity(4);
        while !self.at_end() && self.indent == indent && !is_marker(self.content, indent) {
            let (key, rest) = split_key(self.content)?;
            if entries.iter().any(|e| e.key == key) || resolve(key) == Resolved::Null {
                return None;
            }
            let (line, column) = self.place();
            let value = rest.trim_ascii_start();
            let value = if value.is_empty() || value.starts_with('#') {
                self.nested(indent, column + key.len() as u32, depth)?
            } else {
                self.scalar(value, indent + self.content.len() - value.len(), indent)?
            };
            entries.push(Entry { key: Cow::Borrowed(key), line, column, value });
        }
        // Deeper lines belong to an entry, and every entry has taken its own.
        (self.at_end() || self.indent < indent || self.content.starts_with("- "))
            .then_some(Node { line, column, value: Value::Map(entries) })
            .filter(|_| self.at_end() || self.indent <= indent)
    }

    /// The value below a key: a list may stand at the key's own indent.
    fn nested(&mut self, indent: usize, after_key: u32, depth: usize) -> Option<Node<'t>> {
        let line = self.line;
        self.advance();
        let is_value = self.indent > indent || self.indent == indent && self.content.starts_with("- ");
        if self.at_end() || !is_value {
            return Some(Node { line, column: after_key, value: Value::Null });
        }
        self.block(depth + 1)
    }

    /// A scalar that ends with its line, and takes the reader to the next. `column` counts from 0.
    fn scalar(&mut self, text: &'t str, column: usize, indent: usize) -> Option<Node<'t>> {
        let (line, column) = (self.line, column as u32 + 1);
        let value = inline(text)?;
        self.advance();
        // A deeper line would continue the text.
        if !self.at_end() && self.indent > indent {
            return None;
        }
        Some(Node { line, column, value })
    }
}

fn is_marker(content: &str, indent: usize) -> bool {
    indent == 0 && (content.starts_with("---") || content.starts_with("..."))
}

/// `key: rest` or `key:`, for a key of letters, digits and `-_./`.
fn split_key(content: &str) -> Option<(&str, &str)> {
    let bytes = content.as_bytes();
    if !bytes.first()?.is_ascii_alphanumeric() {
        return None;
    }
    let end =
        bytes.iter().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/')))?;
    if bytes[end] != b':' || !matches!(bytes.get(end + 1), None | Some(b' ')) {
        return None;
    }
    Some((&content[..end], &content[end + 1..]))
}

fn inline(text: &str) -> Option<Value<'_>> {
    let (text, style) = match text.as_bytes()[0] {
        quote @ (b'"' | b'\'') => (quoted(text, quote)?, Style::Quoted),
        b'[' | b'{' => return empty_flow(text),
        b'a'..=b'z'
        | b'A'..=b'Z'
        | b'0'..=b'9'
        | b'/'
        | b'.'
        | b'_'
        | b'('
        | b'^'
        | b'$'
        | b'+'
        | b'~'
        | b'=' => (plain(text)?, Style::Plain),
        b'-' if text.as_bytes().get(1).is_some_and(u8::is_ascii_alphanumeric) => (plain(text)?, Style::Plain),
        _ => return None,
    };
    if style == Style::Plain && resolve(text) == Resolved::Null {
        return Some(Value::Null);
    }
    Some(Value::Scalar { text: Cow::Borrowed(text), style })
}

fn plain(text: &str) -> Option<&str> {
    let mut end = text.len();
    for at in memchr::memchr2_iter(b':', b'#', text.as_bytes()) {
        match text.as_bytes()[at] {
            b':' if matches!(text.as_bytes().get(at + 1), None | Some(b' ')) => return None,
            b'#' if at > 0 && text.as_bytes()[at - 1] == b' ' => {
                end = at;
                break;
            }
            _ => {}
        }
    }
    Some(text[..end].trim_ascii_end())
}

fn quoted(text: &str, quote: u8) -> Option<&str> {
    let inner = &text[1..];
    let end = memchr::memchr2(quote, b'\\', inner.as_bytes())?;
    if inner.as_bytes()[end] == b'\\' && quote == b'"' {
        return None;
    }
    if inner.as_bytes()[end] != quote {
        // A backslash within single quotes is itself, but then the end is further on: leave it.
        return None;
    }
    let after = &inner[end + 1..];
    (after.is_empty() || after.starts_with(' ') && after.trim_ascii_start().starts_with('#'))
        .then(|| &inner[..end])
}

fn empty_flow(text: &str) -> Option<Value<'_>> {
    match text {
        "[]" => Some(Value::Seq(Vec::new())),
        "{}" => Some(Value::Map(Vec::new())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::events;
    use super::*;

    /// Fast may decline anything; what it reads, the whole reader must read alike.
    fn check(text: &str) -> bool {
        let Some(fast) = parse(text) else { return false };
        match events::parse(text) {
            Ok(whole) => assert_eq!(fast, whole, "{text}"),
            Err(e) => panic!("read what is wrong ({}):\n{text}", e.message),
        }
        true
    }

    #[test]
    fn the_usual_style_is_read_fast() {
        for text in [
            "",
            "# nothing\n",
            "a: 1",
            "---\na: 1\n",
            "--- # first\na:   x y z   # c\nb:\nc: \"q # q\"\nd: 'q: q'\n",
            "a:\n  b:\n    c: http://x/y#z\n  d: ~\n\n  # x\n  e: []\nf: {}\n",
            "a:\n- b: 1\n  c:\n  - d\n  - e: f\n- b: 2\ng: h\n",
            "a:\n  - b\n  -   c: 1\n      d: 2\n  - -1\n",
            "- a\n- b: c\n",
            "a:\n- b:\n  c: 1\n",
        ] {
            assert!(check(text), "{text}");
        }
    }

    #[test]
    fn what_is_unusual_or_wrong_is_left() {
        for text in [
            "a: b: c",
            "a:\n  b: 1\n c: 2",
            "a: 1\n  b: 2",
            "a: x\n  y",
            "a:\n  x",
            "a: |\n  x",
            "a: &x 1",
            "a: *x",
            "a: !!str 1",
            "a: 1\na: 2",
            "a: [1]",
            "a: \"x\\n\"",
            "a: 'it''s'",
            "a:\t1",
            "a: é",
            "? a\n: b",
            "-\n  a: 1",
            "- - a",
            "a: 1\n---\nb: 2",
            "a: 1\n...\n",
            "- a\nb: 1",
            "a: 1\n- b",
            "a:\n  - b\n  c: d",
            "  a: 1\nb: 2",
            "a: \"x\" y",
            "NULL: 1",
            "<<: 1",
        ] {
            assert!(!check(text), "{text}");
        }
    }

    /// A tree in block style, as people and kubectl write it.
    fn block() -> impl Strategy<Value = Vec<String>> {
        let scalar = proptest::sample::select(SCALARS).prop_map(|s| vec![s.to_owned()]);
        scalar.prop_recursive(4, 24, 4, |inner| {
            let keys = proptest::sample::subsequence(vec!["a", "b-c", "x.y/z", "k_1"], 1..=4);
            let maps = (keys, proptest::collection::vec(inner.clone(), 4), any::<bool>()).prop_map(
                |(keys, values, deep)| {
                    keys.iter()
                        .zip(values)
                        .flat_map(|(key, value)| entry(&format!("{key}:"), value, deep))
                        .collect()
                },
            );
            let lists = proptest::collection::vec(inner, 1..4)
                .prop_map(|items| items.into_iter().flat_map(|item| hang("- ", item)).collect());
            prop_oneof![maps, lists]
        })
    }

    /// `key: scalar`, or the value on the lines below, lists indented or not.
    fn entry(key: &str, value: Vec<String>, deep: bool) -> Vec<String> {
        let is_scalar = value.len() == 1 && SCALARS.contains(&value[0].as_str());
        if is_scalar {
            return vec![format!("{key} {}", value[0])];
        }
        let indent = if value[0].starts_with("- ") && !deep { "" } else { "  " };
        let below = value.into_iter().map(|line| format!("{indent}{line}"));
        std::iter::once(key.to_owned()).chain(below).collect()
    }

    fn hang(mark: &str, lines: Vec<String>) -> Vec<String> {
        lines
            .into_iter()
            .enumerate()
            .map(|(i, line)| format!("{}{line}", if i == 0 { mark } else { "  " }))
            .collect()
    }

    const SCALARS: &[&str] =
        &["1", "true", "~", "x y", "\"q: #\"", "'s'", "[]", "{}", "http://h:1/p#f", "v # c", "-1", "a-b:c"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn both_readers_agree(lines in proptest::collection::vec((0usize..7, 0usize..PIECES.len(), 0usize..PIECES.len()), 1..9)) {
            let lines: Vec<_> = lines.iter().map(|(indent, a, b)| format!("{:indent$}{}{}", "", PIECES[*a], PIECES[*b])).collect();
            let text = lines.join("\n");
            check(&text);
        }

        #[test]
        fn whole_trees_are_read_alike(lines in block()) {
            let text = lines.join("\n");
            let nested_list = text.contains("- - ");
            let is_scalar = SCALARS.contains(&text.as_str());
            prop_assert!(check(&text) || nested_list || is_scalar, "declined:\n{text}");
        }
    }

    const PIECES: &[&str] = &[
        "",
        "a: ",
        "b: ",
        "c:",
        "- ",
        "-",
        "1",
        "x y",
        "\"q\"",
        "'s'",
        "[]",
        "{}",
        "#",
        " # c",
        ": ",
        ":",
        "~",
        "null",
        "---",
        "...",
        "k-1/x.y: ",
        "- a: ",
        "-1",
        "\\",
        "\"",
        "'",
        "http://x",
        "|",
        ">",
        "&a ",
        "*a",
        "!!str ",
        "? ",
        "%",
        "- - ",
        "true",
        "  ",
    ];
}
