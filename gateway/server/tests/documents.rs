//! Holds `docs/` against the program. `docs/reference.md`: what the program can say, and what it takes, is on that page, and names
//! of metrics on that page are the program's. Lists are taken from the sources and from `--help`, so a new metric, detail,
//! operator, flag or path fails here until it is described. All pages, and the alerts' runbook: links lead somewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_config::kinds::Kind;
use regex::Regex;

/// The ways in which the sources write a response code detail, and a flag beside it.
const DETAILS: [&str; 6] = [
    r#"Answer::new\(\s*\w+,\s*"([^"]+)""#,
    r#"details = "([^"]+)""#,
    r#"details: "([^"]+)","#,
    r#"\("[A-Z]{2,4}", "([a-z][^"]+)"\)"#,
    r#"fn details\(self\) -> &'static str \{\s*"([^"]+)""#,
    r#""(rbac_[a-z_]+)\["#,
];
const FLAGS: [&str; 4] = [
    r#"Answer::new\(\s*\w+,\s*[^,]+,\s*"([A-Z]{2,4})""#,
    r#"flags = "([A-Z]{2,4})""#,
    r#"\("([A-Z]{2,4})", "[a-z][^"]+"\)"#,
    r#"fn flags\(self\) -> &'static str \{\s*"([^"]+)""#,
];

#[test]
fn metrics() {
    let page = reference();
    let mut names = found(&sources("gateway/server/src"), r#""((?:fieldgate|istio)_[a-z_]+)""#);
    // `fieldgate top` reads the buckets of a histogram.
    names.retain(|name| !name.ends_with("_bucket"));
    assert!(names.len() > 10, "the pattern finds metrics no more: {names:?}");
    all_described(&page, "metric", &names);
    let described = found(&page, r"`((?:fieldgate|istio)_[a-z_]+[a-z])`");
    for name in described {
        assert!(names.contains(&name), "`{name}` is described, but there is no such metric");
    }
}

#[test]
fn response_flags_and_details() {
    let page = reference();
    let sources = ["gateway/server/src/worker", "gateway/core/src", "plugins/src"];
    let text: String = sources.into_iter().map(self::sources).collect();
    let mut details: BTreeSet<_> = DETAILS.iter().flat_map(|pattern| found(&text, pattern)).collect();
    details.extend(found(&self::sources("gateway/wire/src/h1/head.rs"), r#"Self::\w+ => "([^"]+)""#));
    assert!(details.len() > 25, "the patterns find details no more: {details:?}");
    all_described(&page, "response code detail", &details);
    let flags: BTreeSet<_> = FLAGS.iter().flat_map(|pattern| found(&text, pattern)).collect();
    assert!(flags.len() > 6, "the patterns find flags no more: {flags:?}");
    for flag in flags {
        assert!(page.contains(&format!("| {flag} |")), "docs/reference.md does not describe the flag {flag}");
    }
}

#[test]
fn operators_of_the_access_log() {
    let operators = sources("gateway/server/src/telemetry/access_log/operator.rs");
    let mut names = found(&operators, r#"= "([A-Z_]+)";"#);
    names.extend(found(&operators, r#"^ *"([A-Z_]+)" => return"#));
    assert!(names.len() > 20, "the patterns find operators no more: {names:?}");
    all_described(&reference(), "operator", &names);
}

#[test]
fn admin_paths() {
    let paths = found(&sources("gateway/server/src/admin.rs"), r#"\("((?:GET|POST|PUT|DELETE) /[^"]*)", ""#);
    assert!(paths.len() > 10, "the pattern finds paths no more: {paths:?}");
    all_described(&reference(), "admin path", &paths);
}

#[test]
fn commands_and_flags() {
    let page = reference();
    let commands = found(&help(&[]), r"^  ([a-z]+)  ");
    assert!(commands.contains("run"), "{commands:?}");
    for command in commands.iter().filter(|command| *command != "help") {
        assert!(page.contains(&format!("`fieldgate {command}")), "the command {command} is not described");
        let flags = found(&help(&[command]), r"(?:^ +|, )(--?[a-zA-Z][a-z-]*)");
        for flag in flags.iter().filter(|flag| !matches!(flag.as_str(), "-h" | "-V")) {
            assert!(page.contains(flag.as_str()), "{flag} of {command} is not described");
        }
    }
}

#[test]
fn kinds() {
    let page = reference();
    for kind in Kind::ALL {
        assert!(page.contains(kind.as_str()), "the kind {kind} is not described");
        for version in kind.versions() {
            assert!(page.contains(version), "version {version} of {kind} is not described");
        }
    }
}

/// A claim of `docs/security.md` is worth its test: `file.rs::test`, and scenarios by their names in italics.
#[test]
fn claims_of_security_have_their_tests() {
    let page = read("docs/security.md");
    let sources: String = ["gateway", "plugins"].into_iter().map(every_source).collect();
    let tests = found(&page, r"`[a-z0-9_/]+\.rs::([a-z0-9_]+)`");
    assert!(tests.len() > 15, "the pattern finds tests no more: {tests:?}");
    for test in &tests {
        assert!(
            sources.contains(&format!("fn {test}(")),
            "docs/security.md names the test {test}, which is not there"
        );
    }
    let scenarios = read("loadtests/scenarios/main.rs");
    let tables: Vec<_> =
        page.lines().filter(|line| line.starts_with('|') && line.contains("scenario")).collect();
    let named = found(&tables.join("\n"), r"(?:^|[^*a-z_])\*([a-z0-9-]+)\*");
    assert!(named.contains("hardening") && named.contains("drain"), "{named:?}");
    for name in named {
        assert!(
            scenarios.contains(&format!("\"{name}\"")),
            "docs/security.md names the scenario {name}, which is not there"
        );
    }
}

#[test]
fn links() {
    let pages = [
        "README.md",
        "docs/ARCHITECTURE.md",
        "docs/operations.md",
        "docs/performance.md",
        "docs/reference.md",
        "docs/security.md",
    ];
    for page in pages.into_iter().chain(["docs/tutorial.md", "loadtests/README.md"]) {
        for link in found(&read(page), r"\]\(([^)\s]+)\)").iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(page).parent().unwrap();
            let target = if file.is_empty() { PathBuf::from(page) } else { folder.join(file) };
            leads_somewhere(page, &target, anchor);
        }
    }
    let rules = "deploy/prometheus/fieldgate.rules.yml";
    for link in found(&read(rules), r#"runbook: "([^"]+)""#) {
        let (file, anchor) = link.split_once('#').unwrap();
        leads_somewhere(rules, Path::new(file), anchor);
    }
}

fn leads_somewhere(from: &str, file: &Path, anchor: &str) {
    let path = root().join(file);
    assert!(path.exists(), "{from} links to {}, which is not there", file.display());
    if !anchor.is_empty() {
        let headings = found(&std::fs::read_to_string(path).unwrap(), r"^#+ (.+)$");
        let known = headings.iter().any(|heading| slug(heading) == anchor);
        assert!(known, "{from} links to {}#{anchor}, and there is no such heading", file.display());
    }
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect()
}

fn all_described(page: &str, what: &str, names: &BTreeSet<String>) {
    let missing: Vec<_> = names.iter().filter(|name| !page.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "docs/reference.md does not describe: {what} {missing:?}");
}

/// What the first group of the pattern holds, wherever it matches.
fn found(text: &str, pattern: &str) -> BTreeSet<String> {
    let regex = Regex::new(&format!("(?m){pattern}")).unwrap();
    regex.captures_iter(text).map(|captures| captures[1].to_owned()).collect()
}

fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_fieldgate")).args(command).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn reference() -> String {
    read("docs/reference.md")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The text of a source file, or of all below a folder, without tests.
fn sources(path: &str) -> String {
    let mut text = String::new();
    collect(&root().join(path), &mut text);
    text
}

fn collect(path: &Path, text: &mut String) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), text);
        }
    } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
        let source = std::fs::read_to_string(path).unwrap();
        text.push_str(source.split("#[cfg(test)]\nmod tests {").next().unwrap());
    }
}

/// The text of all source files below a folder, tests and all.
fn every_source(path: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![root().join(path)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    text
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
