//! What translating many routes costs, and each kind of change after that:
//! `cargo run --release -p fieldgate-config --example translate_speed [ROUTES]`.

use std::time::Instant;

use fieldgate_config::{FileChange, Store, Translator};
use fieldgate_core::ir::Touched;

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec: {gatewayClassName: fieldgate, listeners: [{name: web, protocol: HTTP, port: 8080}]}\n";

fn main() {
    let routes: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let all = (0..routes).map(|i| route(i, 90)).collect();
    let middle = routes / 2;
    let steps: Vec<(&str, Vec<FileChange>)> = vec![
        ("one gateway, one pool", vec![file("gateway", GATEWAY.to_owned()), file("pool", pool("10.0.0.1"))]),
        ("all routes", all),
        ("one route changed", vec![route(middle, 80)]),
        ("one route removed", vec![FileChange { text: None, ..route(middle, 0) }]),
        ("endpoints changed", vec![file("pool", pool("10.0.0.2"))]),
        (
            "a listener's host name changed",
            vec![file("gateway", GATEWAY.replace("8080", "8080, hostname: '*.example'"))],
        ),
    ];
    let (mut store, mut translator) = (Store::default(), Translator::default());
    for (what, files) in steps {
        let change = store.apply(files);
        let start = Instant::now();
        let translation = translator.apply(&change);
        let took = start.elapsed().as_secs_f64() * 1e3;
        let touched = match &translation.touched {
            Touched::Routes(keys) => keys.len(),
            Touched::All => routes,
        };
        println!("{what}: {took:.3} ms, {touched} routes differ");
    }
}

fn file(name: &str, text: String) -> FileChange {
    FileChange { name: format!("{name}.yaml").into(), text: Some(text) }
}

fn pool(address: &str) -> String {
    format!(
        "apiVersion: fieldgate.dev/v1alpha1\nkind: Pool\nmetadata: {{name: shop}}\nspec: {{endpoints: [{{address: {address}, port: 80}}]}}\n"
    )
}

fn route(i: usize, weight: u32) -> FileChange {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{i}}}\nspec:\n  parentRefs: [{{name: edge}}]\n  hostnames: [r{i}.example]\n  rules:\n  - matches: [{{path: {{type: PathPrefix, value: /a}}}}]\n    backendRefs: [{{group: fieldgate.dev, kind: Pool, name: shop, weight: {weight}}}]\n"
    );
    file(&format!("r{i}"), text)
}
