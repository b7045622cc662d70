//! Three readers make one tree. What the fast one takes, the whole one takes, and both say the same down to the column;
//! what the JSON one takes is what serde_json takes; and a text that is both JSON and YAML means the same in both.

#![no_main]

use fieldgate_config::yaml::{Node, Resolved, Style, Value, find, locate, parse, readers, resolve};
use libfuzzer_sys::fuzz_target;
use serde_json::Value as Json;

fuzz_target!(|text: &str| {
    let whole = readers::whole(text);
    if let Some(fast) = readers::fast(text) {
        let whole = whole.as_ref().unwrap_or_else(|e| panic!("read what is wrong: {}", e.message));
        assert_eq!(&fast, whole);
    }
    let json = readers::json(text);
    check_json(text, json.as_deref().ok());
    if let (Ok(json), Ok(whole), Some('{' | '[')) = (&json, &whole, text.trim_start().chars().next()) {
        let (json, whole): (Vec<Json>, Vec<Json>) =
            (json.iter().map(tree).collect(), whole.iter().map(tree).collect());
        assert_eq!(json, whole);
    }
    // YAML ends a line at a lone CR too, and `str::lines` does not.
    if text.replace("\r\n", "").contains('\r') {
        return;
    }
    for problem in [whole.as_ref().err(), json.as_ref().err()].into_iter().flatten() {
        let lines = text.lines().count().max(1) as u32 + 1;
        assert!((1..=lines).contains(&problem.line) && problem.column > 0, "{problem:?}");
        assert!(!problem.message.is_empty());
    }
    if let Ok(documents) = parse(text) {
        documents.iter().for_each(|d| check_places(d, text));
    }
});

/// serde_json takes it too, unless it nests deeper or a key is there twice, which only one of the two refuses.
fn check_json(text: &str, ours: Option<&[Node<'_>]>) {
    let theirs: Result<Vec<Json>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    match (ours, theirs) {
        (Some(ours), Ok(theirs)) => {
            let ours: Json = ours.iter().map(tree).collect();
            let theirs: Json = theirs.into_iter().map(plain).collect();
            assert!(alike(&ours, &theirs), "{ours} is not {theirs}");
        }
        (Some(_), Err(error)) => {
            // Values need not be apart for us; a number may be larger than theirs.
            let told = error.to_string();
            assert!(told.contains("number out of range") || told.contains("trailing characters"), "{told}");
        }
        (None, _) => {}
    }
}

/// A tree as JSON, numbers as floats.
fn tree(node: &Node<'_>) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Seq(items) => items.iter().map(tree).collect(),
        Value::Map(entries) => entries.iter().map(|e| (e.key.to_string(), tree(&e.value))).collect(),
        Value::Scalar { text, style: Style::Quoted } => Json::String(text.to_string()),
        Value::Scalar { text, style: Style::Plain } => match resolve(text) {
            Resolved::Null => Json::Null,
            Resolved::Bool(b) => Json::Bool(b),
            Resolved::Int(n) => (n as f64).into(),
            Resolved::Float(n) => n.into(),
            Resolved::Text => Json::String(text.to_string()),
        },
    }
}

fn plain(value: Json) -> Json {
    match value {
        Json::Number(n) => n.as_f64().into(),
        Json::Array(items) => items.into_iter().map(plain).collect(),
        Json::Object(entries) => entries.into_iter().map(|(k, v)| (k, plain(v))).collect(),
        other => other,
    }
}

/// The same tree. serde_json rounds long numbers to a neighbour of the nearest float unless it is built to take the time.
fn alike(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap_or(f64::NAN), b.as_f64().unwrap_or(f64::NAN));
            a == b || (a - b).abs() <= a.abs() * 1e-14
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Every place is in the text, and a field's path leads to the field.
fn check_places(root: &Node<'_>, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let inside = |line: u32, column: u32| {
        line >= 1
            && column >= 1
            && (line as usize <= lines.len() + 1)
            && lines.get(line as usize - 1).is_none_or(|l| column as usize <= l.chars().count() + 2)
    };
    assert!(inside(root.line, root.column), "{root:?}");
    let Value::Map(entries) = &root.value else { return };
    for entry in entries {
        assert!(inside(entry.line, entry.column), "{entry:?}");
        let simple = !entry.key.is_empty() && entry.key.bytes().all(|b| b.is_ascii_alphanumeric());
        if simple {
            assert_eq!(find(root, &entry.key), Some(&entry.value));
            let (line, column) = locate(root, &entry.key);
            assert!(inside(line, column));
        }
        let _ = entry.value.as_str();
    }
}
