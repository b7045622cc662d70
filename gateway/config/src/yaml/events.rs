//! All of YAML 1.2, from `saphyr-parser`'s events: anchors, merge keys, tags, block scalars.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};

use super::{Entry, MAX_ALIAS_NODES, MAX_DEPTH, Node, Problem, Resolved, Style, Value, explain, resolve};
use crate::diagnostic::reason;

/// Parses every document of `text`.
pub(super) fn parse(text: &str) -> Result<Vec<Node<'_>>, Box<Problem>> {
    Builder {
        events: Parser::new_from_str(text),
        text,
        anchors: HashMap::new(),
        alias_nodes: 0,
        documents: Vec::new(),
    }
    .run()
}

struct Builder<'t> {
    events: Parser<'t, StrInput<'t>>,
    text: &'t str,
    anchors: HashMap<usize, Node<'t>>,
    /// Nodes that were copied for anchors and aliases in this document.
    alias_nodes: usize,
    documents: Vec<Node<'t>>,
}

impl<'t> Builder<'t> {
    fn run(mut self) -> Result<Vec<Node<'t>>, Box<Problem>> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(self.documents),
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    self.alias_nodes = 0;
                }
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                content => {
                    let node = self.node(content, span, 0)?;
                    if !node.is_null() {
                        self.documents.push(node);
                    }
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Box<Problem>> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => Err(explain::syntax(self.text, e.marker().line(), e.marker().col(), e.info())),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node<'t>, Box<Problem>> {
        let (line, column) = place(span);
        if depth > MAX_DEPTH {
            return Err(too_deep(line, column));
        }
        let (value, anchor) = match event {
            Event::Alias(id) => return self.alias(id, line, column, depth),
            Event::Scalar(text, style, anchor, tag) => {
                (scalar(text, style, tag.as_deref(), line, column)?, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(depth)?, anchor),
            _ => (Value::Null, 0),
        };
        // The events place an indented list at its dash and another at its first item: here it is always the item.
        let (line, column) = match &value {
            Value::Seq(items) => items.first().map_or((line, column), |i| (i.line, i.column)),
            _ => (line, column),
        };
        let node = Node { line, column, value };
        if anchor != 0 {
            self.spend(&node)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value<'t>, Box<Problem>> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Seq(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value<'t>, Box<Problem>> {
        let mut entries: Vec<Entry<'t>> = Vec::new();
        let mut merged: Vec<Node<'t>> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                merge(&mut entries, merged);
                return Ok(Value::Map(entries));
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            if is_merge {
                merged.extend(merge_sources(value)?);
                continue;
            }
            let entry = Entry { line: key.line, column: key.column, key: key_text(key)?, value };
            if let Some(first) = entries.iter().find(|e| e.key == entry.key) {
                return Err(duplicate_key(first, &entry));
            }
            entries.push(entry);
        }
    }

    /// A copy of what the alias names, placed where the alias stands: that is the line an operator looks at.
    fn alias(&mut self, id: usize, line: u32, column: u32, depth: usize) -> Result<Node<'t>, Box<Problem>> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            return Err(problem(
                reason::INVALID_YAML,
                line,
                column,
                "this alias stands inside of the value that it names",
                Some("an anchor can be used only after the value that it marks has ended"),
            ));
        };
        if depth + self::depth(&node) > MAX_DEPTH {
            return Err(too_deep(line, column));
        }
        self.spend(&node)?;
        Ok(Node { line, column, ..node })
    }

    fn spend(&mut self, node: &Node<'_>) -> Result<(), Box<Problem>> {
        self.alias_nodes += count(node);
        if self.alias_nodes <= MAX_ALIAS_NODES {
            return Ok(());
        }
        Err(problem(
            reason::TOO_MANY_ALIASES,
            node.line,
            node.column,
            format!("the anchors and aliases of this document expand to more than {MAX_ALIAS_NODES} values"),
            Some("write the values out, or split the document"),
        ))
    }
}

fn place(span: Span) -> (u32, u32) {
    (span.start.line() as u32, span.start.col() as u32 + 1)
}

fn scalar<'t>(
    text: Cow<'t, str>,
    style: ScalarStyle,
    tag: Option<&Tag>,
    line: u32,
    column: u32,
) -> Result<Value<'t>, Box<Problem>> {
    let mut style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
    if let Some(tag) = tag {
        match tag.suffix.as_str() {
            "str" if tag.is_yaml_core_schema() => style = Style::Quoted,
            "int" | "float" | "bool" | "null" if tag.is_yaml_core_schema() => {}
            _ => {
                return Err(problem(
                    reason::INVALID_YAML,
                    line,
                    column,
                    format!("the tag {tag} has no meaning here"),
                    Some("remove the tag; put quotes around text that begins with \"!\""),
                ));
            }
        }
    }
    Ok(if style == Style::Plain && resolve(&text) == Resolved::Null {
        Value::Null
    } else {
        Value::Scalar { text, style }
    })
}

fn key_text(key: Node<'_>) -> Result<Cow<'_, str>, Box<Problem>> {
    match key.value {
        Value::Scalar { text, .. } => Ok(text),
        Value::Null => Ok(Cow::Borrowed("null")),
        Value::Seq(_) | Value::Map(_) => Err(problem(
            reason::INVALID_YAML,
            key.line,
            key.column,
            "a list or mapping cannot be the key of a mapping",
            Some(
                "a template's {{ ... }} is YAML for a mapping in a mapping: render the template first, or quote it",
            ),
        )),
    }
}

fn merge_sources(value: Node<'_>) -> Result<Vec<Node<'_>>, Box<Problem>> {
    let (line, column) = (value.line, value.column);
    let sources = match value.value {
        Value::Seq(items) => items,
        _ => vec![value],
    };
    if sources.iter().all(|s| matches!(s.value, Value::Map(_))) {
        return Ok(sources);
    }
    Err(problem(
        reason::INVALID_YAML,
        line,
        column,
        "the merge key << takes a mapping or a list of mappings",
        None,
    ))
}

/// What is written in the mapping itself wins, then the earlier source.
fn merge<'t>(entries: &mut Vec<Entry<'t>>, sources: Vec<Node<'t>>) {
    for source in sources {
        let Value::Map(more) = source.value else { continue };
        for entry in more {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
    }
}

fn count(node: &Node<'_>) -> usize {
    1 + match &node.value {
        Value::Seq(items) => items.iter().map(count).sum::<usize>(),
        Value::Map(entries) => entries.iter().map(|e| 1 + count(&e.value)).sum(),
        _ => 0,
    }
}

fn depth(node: &Node<'_>) -> usize {
    1 + match &node.value {
        Value::Seq(items) => items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
        _ => 0,
    }
}

pub(super) fn too_deep(line: u32, column: u32) -> Box<Problem> {
    problem(reason::TOO_DEEP, line, column, format!("nested deeper than {MAX_DEPTH} levels"), None)
}

pub(super) fn duplicate_key(first: &Entry<'_>, again: &Entry<'_>) -> Box<Problem> {
    let missing_separator = matches!(again.key.as_ref(), "apiVersion" | "kind") && again.column == 1;
    problem(
        reason::DUPLICATE_KEY,
        again.line,
        again.column,
        format!("the key \"{}\" is written twice in one mapping; first at line {}", again.key, {
            // Rewritten by whoever knows the line on which this text begins in its file.
            LineMark(first.line)
        }),
        Some(if missing_separator {
            "two objects in one file are separated by a line \"---\""
        } else {
            "remove one of the two"
        }),
    )
}

/// A line number inside of a message, relative to the parsed text; [`absolute_lines`] makes it the file's.
struct LineMark(u32);

impl std::fmt::Display for LineMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\u{2}{}\u{3}", self.0)
    }
}

/// Turns the marked line numbers of a message into those of the file.
pub(crate) fn absolute_lines(message: &str, first_line: u32) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('\u{2}') {
        out.push_str(before);
        let Some((number, after)) = after.split_once('\u{3}') else { break };
        out.push_str(&(number.parse::<u32>().unwrap_or(1) + first_line - 1).to_string());
        rest = after;
    }
    out.push_str(rest);
    out
}

pub(super) fn problem(
    reason: &'static str,
    line: u32,
    column: u32,
    message: impl Into<String>,
    hint: Option<&str>,
) -> Box<Problem> {
    Box::new(Problem {
        reason,
        line,
        column,
        field: String::new(),
        message: message.into(),
        hint: hint.map(str::to_owned),
    })
}
