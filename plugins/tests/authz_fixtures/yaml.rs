//! As much YAML as the fixtures are written in.

use std::path::Path;

use saphyr_parser::{Event, Parser};

/// A value.
#[derive(Clone, Debug)]
pub enum Yaml {
    Text(String),
    List(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

static NOTHING: Yaml = Yaml::List(Vec::new());

impl Yaml {
    /// The value at a dotted path, or an empty list.
    pub fn at(&self, path: &str) -> &Yaml {
        path.split('.').fold(self, |value, key| value.get(key).unwrap_or(&NOTHING))
    }

    /// The value of a key. (Keys with dots have no other way.)
    pub fn get(&self, key: &str) -> Option<&Yaml> {
        self.entries().iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    pub fn entries(&self) -> &[(String, Yaml)] {
        if let Self::Map(entries) = self { entries } else { &[] }
    }

    pub fn items(&self) -> &[Yaml] {
        if let Self::List(items) = self { items } else { &[] }
    }

    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }
}

/// The documents of a file.
pub fn read(path: &Path) -> Vec<Yaml> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut events = Parser::new_from_str(&text).map(|event| event.unwrap().0);
    let mut documents = Vec::new();
    while let Some(event) = events.next() {
        if let Event::DocumentStart(_) = event {
            let root = events.next().unwrap();
            documents.push(value(root, &mut events));
        }
    }
    // One file ends with an empty document.
    documents.retain(|document| !document.entries().is_empty());
    documents
}

fn value<'t>(event: Event<'t>, events: &mut impl Iterator<Item = Event<'t>>) -> Yaml {
    match event {
        Event::Scalar(text, ..) => Yaml::Text(text.into_owned()),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next().unwrap() {
                    Event::SequenceEnd => return Yaml::List(items),
                    event => items.push(value(event, events)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let key = match events.next().unwrap() {
                    Event::MappingEnd => return Yaml::Map(entries),
                    event => value(event, events),
                };
                let event = events.next().unwrap();
                entries.push((key.text().unwrap().to_owned(), value(event, events)));
            }
        }
        other => panic!("the fixtures have no {other:?}"),
    }
}
