//! Whatever is written into a file: something is said about it or it is taken, nothing panics, what stood before and is
//! not contradicted stands after, and the way to a state does not change the state.

#![no_main]

use std::sync::{Arc, LazyLock};

use fieldgate_config::diagnostic::Severity;
use fieldgate_config::{Configuration, Diagnostic, FileChange, Outcome, Store};
use fieldgate_core::Snapshot;
use fieldgate_core::ir::{Config, Touched};
use fieldgate_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

/// A gateway that works, in a file that is read first.
const GOOD: &str = include_str!("../seeds/good.yaml");

static BEFORE: LazyLock<Config> = LazyLock::new(|| {
    let outcome = Configuration::default().apply(vec![file("a.yaml", GOOD)]);
    assert!(outcome.diagnostics.is_empty(), "{:?}", outcome.diagnostics);
    assert_eq!((outcome.config.routes.len(), outcome.config.policies.len()), (1, 1));
    outcome.config
});

fn file(name: &str, text: &str) -> FileChange {
    FileChange { name: name.into(), text: Some(text.to_owned()) }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (first, second) = (input.text(), input.text());
    let mut configuration = Configuration::default();
    let good = configuration.apply(vec![file("a.yaml", GOOD)]);
    assert_eq!(good.config, *BEFORE);

    let outcome = configuration.apply(vec![file("f.yaml", &first)]);
    check(&outcome, &first);
    stays_where_nothing_is_said(&outcome, &first);
    said_again(&mut configuration, &outcome, &first);
    if second.is_empty() {
        return;
    }
    last_good_stays(&first, &second);
    let outcome = configuration.apply(vec![file("f.yaml", &second)]);
    check(&outcome, &second);
    same_as_from_scratch(&configuration, &outcome, &second);
    let after = configuration.apply(vec![FileChange { name: "f.yaml".into(), text: None }]);
    assert_eq!(after.config, *BEFORE, "what is gone leaves nothing behind");
    assert!(after.diagnostics.is_empty());
});

fn check(outcome: &Outcome, text: &str) {
    let lines = text.lines().count() as u32 + 1;
    for diagnostic in &outcome.diagnostics {
        let Diagnostic { location, message, reason, .. } = diagnostic;
        assert!(!message.is_empty() && !reason.is_empty(), "{diagnostic:?}");
        assert!(!message.contains(['\u{2}', '\u{3}']) || text.contains(['\u{2}', '\u{3}']), "{diagnostic:?}");
        assert!(location.column > 0 && location.line > 0, "{diagnostic:?}");
        assert!(*location.file != *"f.yaml" || location.line <= lines, "{diagnostic:?}");
        assert!(!diagnostic.to_string().is_empty());
    }
    let snapshot = Snapshot::compile(None, outcome.config.clone(), &Touched::All, 1);
    let rules: usize = outcome.config.routes.values().map(|r| r.rules.len()).sum();
    assert!(snapshot.rules().count() <= rules);
}

/// A text that yields no object changes nothing, unless it is a policy that nobody can read, which closes.
fn stays_where_nothing_is_said(outcome: &Outcome, text: &str) {
    let mut store = Store::default();
    let change = store.apply(vec![file("f.yaml", text)]);
    if change.upserted.is_empty() {
        let Config { listeners, routes, pools, policies } = &outcome.config;
        assert_eq!((listeners, routes, pools), (&BEFORE.listeners, &BEFORE.routes, &BEFORE.pools));
        assert!(BEFORE.policies.iter().all(|(key, policy)| policies.get(key) == Some(policy)));
    }
    let silent = text.lines().all(|l| l.trim().is_empty() || l.starts_with(['#', '-', '%', '.', '\u{feff}']));
    let said = outcome.diagnostics.iter().any(|d| *d.location.file == *"f.yaml");
    assert!(said || silent || !change.upserted.is_empty() || store.refused() == 0, "nothing is said");
}

fn said_again(configuration: &mut Configuration, before: &Outcome, text: &str) {
    let again = configuration.apply(vec![file("f.yaml", text)]);
    assert!(!again.changed, "the same text is no change");
    assert_eq!(again.config, before.config);
    assert_eq!(told(&again.diagnostics), told(&before.diagnostics));
}

/// Objects of a file stay in force while its text as a whole cannot be read.
fn last_good_stays(first: &str, second: &str) {
    let whole = !second.contains("\n---") && !first.contains(second);
    if !whole || fieldgate_config::yaml::parse(second).is_ok() {
        return;
    }
    let mut store = Store::default();
    store.apply(vec![file("f.yaml", first)]);
    let before: Vec<_> = store.objects().cloned().collect();
    let change = store.apply(vec![file("f.yaml", second)]);
    assert!(change.removed.is_empty() && change.upserted.is_empty(), "{change:?}");
    for object in before {
        assert!(store.get(&object.key()).is_some_and(|o| Arc::ptr_eq(o, &object)), "{}", object.key());
    }
}

/// However a state is reached it is the same, as long as no last good version is in use.
fn same_as_from_scratch(configuration: &Configuration, outcome: &Outcome, text: &str) {
    let mut scratch = Configuration::default();
    let from_scratch = scratch.apply(vec![file("a.yaml", GOOD), file("f.yaml", text)]);
    let errors = |d: &Diagnostic| d.severity == Severity::Error;
    if from_scratch.diagnostics.iter().any(errors) {
        return;
    }
    assert_eq!(outcome.config, from_scratch.config);
    assert_eq!(told(&outcome.diagnostics), told(&from_scratch.diagnostics));
    assert_eq!(format!("{:?}", configuration.statuses()), format!("{:?}", scratch.statuses()));
}

fn told(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}
