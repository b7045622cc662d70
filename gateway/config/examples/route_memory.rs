//! What many rules cost in memory, by who holds it, from YAML as the gateway reads it:
//! `cargo run --release -p fieldgate-config --example route_memory [RULES]`.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use fieldgate_config::{Configuration, FileChange, Store, Translator};
use fieldgate_core::Snapshot;
use fieldgate_core::ir::Touched;

/// Rules of one object, as the API server allows them.
const RULES: usize = 16;
/// Objects share hosts, so that each host has many routes.
const HOSTS: usize = 100;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// What an allocator of size classes makes of a request.
fn rounded(size: usize) -> usize {
    match size {
        0..=64 => size.next_multiple_of(8),
        _ => {
            let step = size.next_power_of_two() / 8;
            size.next_multiple_of(step)
        }
    }
}

// SAFETY: everything is passed on to the system's allocator as it came; beside that only numbers are added up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(rounded(layout.size()), Relaxed) + rounded(layout.size());
        PEAK.fetch_max(live, Relaxed);
        BLOCKS.fetch_add(1, Relaxed);
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Relaxed);
        BLOCKS.fetch_sub(1, Relaxed);
        // SAFETY: see above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let rules: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    println!("{:<34} {:>10} {:>12} {:>12}", "", "ms", "bytes a rule", "blocks a rule");
    let mut files = files(rules);
    let mut texts: usize = files.iter().filter_map(|f| f.text.as_ref()).map(String::len).sum();
    texts /= rules;
    println!("{:<34} {:>10} {texts:>12}", "texts", "");
    let measured = |what: &str, from: (usize, usize), begun: Instant| {
        let (live, blocks) = (LIVE.load(Relaxed), BLOCKS.load(Relaxed));
        let each = |now: usize, then: usize| (now as f64 - then as f64) / rules as f64;
        println!(
            "{what:<34} {:>10.1} {:>12.0} {:>12.1}",
            begun.elapsed().as_secs_f64() * 1e3,
            each(live, from.0),
            each(blocks, from.1)
        );
    };
    let now = || (LIVE.load(Relaxed), BLOCKS.load(Relaxed));

    let (mut store, mut translator) = (Store::default(), Translator::default());
    let (from, begun) = (now(), Instant::now());
    let change = store.apply(files.clone());
    measured("objects and their texts", from, begun);
    let (from, begun) = (now(), Instant::now());
    let translation = translator.apply(&change);
    drop(change);
    measured("translation", from, begun);
    let (from, begun) = (now(), Instant::now());
    let snapshot = Snapshot::compile(None, translation.config, &Touched::All, 1);
    measured("compiled", from, begun);
    let begun = Instant::now();
    let all = now();
    drop(snapshot);
    drop(translator);
    drop(store);
    measured("all of it, given back", all, begun);

    let from = now();
    PEAK.store(from.0, Relaxed);
    let begun = Instant::now();
    let mut configuration = Configuration::default();
    let outcome = configuration.apply(std::mem::take(&mut files));
    let snapshot = Snapshot::compile(None, outcome.config, &Touched::All, 1);
    measured("all of it, but the texts as given", from, begun);
    println!("{:<34} {:>10} {:>12}", "at the peak", "", (PEAK.load(Relaxed) - from.0) / rules);
    assert_eq!(snapshot.config.routes.len(), rules.div_ceil(RULES));
    assert_eq!(outcome.diagnostics, []);
}

fn files(rules: usize) -> Vec<FileChange> {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  gatewayClassName: fieldgate\n  listeners:\n  - {name: web, protocol: HTTP, port: 8080}\n";
    let pool = "apiVersion: fieldgate.dev/v1alpha1\nkind: Pool\nmetadata: {name: bench}\nspec: {endpoints: [{address: 10.0.0.1, port: 80}]}\n";
    let file = |name: String, text: String| FileChange { name: name.into(), text: Some(text) };
    let objects = (0..rules).step_by(RULES).enumerate();
    let mut files = vec![
        file("/etc/fieldgate/gateway.yaml".into(), gateway.into()),
        file("/etc/fieldgate/pool.yaml".into(), pool.into()),
    ];
    files.extend(objects.map(|(object, first)| {
        let text = route(object, first..rules.min(first + RULES));
        file(format!("/etc/fieldgate/route-{object}.yaml"), text)
    }));
    files
}

fn route(object: usize, rules: std::ops::Range<usize>) -> String {
    let host = object % HOSTS;
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: route-{object}}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [host-{host}.example.test]
  rules:
"
    );
    for rule in rules {
        let (area, service) = (rule % 7, rule % 1009);
        let _ = write!(
            text,
            "  - matches: [{{path: {{type: PathPrefix, value: /area-{area}/service-{service}/item-{rule}}}}}]
    backendRefs:
    - {{group: fieldgate.dev, kind: Pool, name: bench, weight: 1}}
"
        );
    }
    text
}
