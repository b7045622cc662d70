//! How long the first load of many small routes takes, and the change of one of them:
//! `cargo run --release -p fieldgate-config --example parse_speed [ROUTES]`.

use std::fmt::Write;
use std::time::Instant;

use fieldgate_config::{FileChange, Store};

fn main() {
    let routes = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let text = documents(routes, 90);
    println!("{routes} routes, {:.1} MB in one file", text.len() as f64 / 1e6);

    let mut store = Store::default();
    let changed = text.replacen("weight: 90", "weight: 80", routes / 2).replacen(
        "weight: 80",
        "weight: 90",
        routes / 2 - 1,
    );
    let moved = format!("# one line more\n{changed}");
    for (what, text) in
        [("first load", text), ("one route changed", changed), ("one line added on top", moved)]
    {
        let start = Instant::now();
        let change = store.apply(vec![FileChange { name: "routes.yaml".into(), text: Some(text) }]);
        println!(
            "{what}: {:.1} ms, {} objects new or changed, {} diagnostics",
            start.elapsed().as_secs_f64() * 1e3,
            change.upserted.len(),
            change.diagnostics.len()
        );
    }
}

fn documents(routes: usize, weight: u32) -> String {
    let mut text = String::new();
    for i in 0..routes {
        let _ = write!(
            text,
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: route-{i}
  namespace: shop
spec:
  parentRefs:
  - name: edge
  hostnames:
  - host-{i}.example.com
  rules:
  - matches:
    - path:
        type: PathPrefix
        value: /api/v{i}
    backendRefs:
    - name: service-{i}
      port: 8080
      weight: {weight}
    - name: machines-{i}
      kind: Pool
      group: fieldgate.dev
      weight: 10
"
        );
    }
    text
}
