//! Holds `docs/reference.md` against the program: what the program can say, and what it takes, is on that page, and names
//! of metrics on that page are the program's. Lists are taken from the sources and from `--help`, so a new metric, detail,
//! operator, flag or path fails here until it is described.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_config::kinds::Kind;
use regex::Regex;

/// The ways in which the sources write a response code detail.
const DETAILS: [&str; 6] = [
    r#"Answer::new\(\s*\d+,\s*"([^"]+)""#,
    r#"details = "([^"]+)""#,
    r#"details: "([^"]+)","#,
    r#"Self::\w+ => "((?:http1|request)[^"]+)""#,
    r#"fn details\(self\) -> &'static str \{\s*"([^"]+)""#,
    r#""(rbac_[a-z_]+)\["#,
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
fn response_code_details() {
    let sources = ["gateway/server/src/worker", "gateway/core/src", "gateway/wire/src", "plugins/src"];
    let text: String = sources.into_iter().map(self::sources).collect();
    let names: BTreeSet<_> = DETAILS.iter().flat_map(|pattern| found(&text, pattern)).collect();
    assert!(names.len() > 20, "the patterns find details no more: {names:?}");
    all_described(&reference(), "response code detail", &names);
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
    let paths = found(&sources("gateway/server/src/admin.rs"), r#"\("((?:GET|POST) /[^"]*)", ""#);
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
    std::fs::read_to_string(root().join("docs/reference.md")).unwrap()
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
