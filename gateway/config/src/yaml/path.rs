//! Finds the node that a field path like `spec.rules[0].metadata["a.b/c"]` names.

use super::{Node, Value};

/// Where `field` is in `root`: the value's place, or that of the nearest parent which exists.
pub fn locate(root: &Node<'_>, field: &str) -> (u32, u32) {
    let mut node = root;
    let mut place = (root.line, root.column);
    for step in steps(field) {
        match (step, &node.value) {
            (Step::Key(key), Value::Map(entries)) => match entries.iter().find(|e| e.key == key) {
                Some(entry) => {
                    node = &entry.value;
                    place = if node.is_null() || is_container(node) {
                        (entry.line, entry.column)
                    } else {
                        (node.line, node.column)
                    };
                }
                None => break,
            },
            (Step::Index(index), Value::Seq(items)) => match items.get(index) {
                Some(item) => {
                    node = item;
                    place = (item.line, item.column);
                }
                None => break,
            },
            _ => break,
        }
    }
    place
}

/// The node that `field` names.
pub fn find<'n, 't>(root: &'n Node<'t>, field: &str) -> Option<&'n Node<'t>> {
    steps(field).try_fold(root, |node, step| match (step, &node.value) {
        (Step::Key(key), Value::Map(_)) => node.get(key),
        (Step::Index(index), Value::Seq(items)) => items.get(index),
        _ => None,
    })
}

/// A list or mapping is best shown by its key: it begins on the next line.
fn is_container(node: &Node<'_>) -> bool {
    matches!(node.value, Value::Seq(_) | Value::Map(_))
}

#[derive(Debug, PartialEq)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

fn steps(field: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = field;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, after) = quoted.split_once("\"]")?;
            rest = after;
            return Some(Step::Key(key));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let (digits, after) = index.split_once(']')?;
            rest = after;
            return digits.parse().ok().map(Step::Index);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        rest = after;
        Some(Step::Key(key))
    })
}

/// Appends `key` to a field path, quoted when it would not read back.
pub(crate) fn push_key(path: &mut String, key: &str) {
    if key.contains(['.', '[', ']', '"', ' ', '/']) || key.is_empty() {
        path.push_str("[\"");
        path.push_str(key);
        path.push_str("\"]");
    } else {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_leads_to_its_place() {
        let text = "a:\n  b:\n  - c: 1\n    \"x.y/z\": 2\n  - c: 3\n";
        let root = &super::super::parse(text).unwrap()[0];
        for (field, place) in [
            ("", (1, 1)),
            ("a", (1, 1)),
            ("a.b", (2, 3)),
            ("a.b[0]", (3, 5)),
            ("a.b[0].c", (3, 8)),
            ("a.b[0][\"x.y/z\"]", (4, 14)),
            ("a.b[1].c", (5, 8)),
            ("a.b[7].c", (2, 3)),
            ("a.nothing.there", (1, 1)),
        ] {
            assert_eq!(locate(root, field), place, "{field}");
        }
    }

    #[test]
    fn a_pushed_key_reads_back() {
        let mut path = String::new();
        push_key(&mut path, "metadata");
        push_key(&mut path, "x.y/z");
        assert_eq!(path, "metadata[\"x.y/z\"]");
        assert_eq!(steps(&path).collect::<Vec<_>>(), [Step::Key("metadata"), Step::Key("x.y/z")]);
    }
}
