//! Envoy's own tables of paths (`envoy-derived/path_vectors.json`): each gives what Envoy expects, or is named below with
//! the reason why this gateway answers otherwise.

use fieldgate_core::path::{
    EscapedSlashes, Outcome, PathOptions, merge_slashes, normalise, unescape_slashes, with_options,
    without_query,
};
use serde_json::Value;

/// Cases of Envoy's universal header validator whose answer here is another, and which. The validator is not what Envoy
/// runs by default; where the two parts of Envoy disagree, the one in use counts.
const OTHERWISE: &[(&str, Option<&str>)] = &[
    // Fragments never come from browsers; Envoy's connection manager refuses them by default too.
    ("NormalizePathUriRootPreserveQueryFragment", None),
    ("NormalizePathUriRootPreserveFragment", None),
    // RFC 3986 section 5.2.4 stays at the root, and so does Envoy's `normalize_path` (`canonical_path`).
    ("NormalizePathUriInvalidBeyondRoot", Some("/")),
    // A malformed escape means something else to each reader.
    ("MalformedUrlEncodingAllowed", None),
    // So does a backslash, wherever it is kept.
    ("BackslashPreservedWithOverride", Some("/path/with/back/slash%5C")),
];

/// About the form of a whole target, which the codecs read.
const OF_CODECS: &[&str] = &[
    "NormalizePathUriAuthorityFormConnect",
    "NormalizePathUriAuthorityFormWithPathConnect",
    "NormalizePathUriAuthorityFormNotConnect",
    "NormalizePathUriAsteriskFormOptions",
    "NormalizePathUriAsteriskFormNotOptions",
];

#[test]
fn paths_come_out_as_envoys() {
    let Some(vectors) = vectors() else { return };
    for pair in list(&vectors, "canonical_path") {
        let (given, expected) = (text(&pair[0]), text(&pair[1]));
        // A codec refuses a target without its slash; Envoy's function does not ask.
        let given = if given.starts_with('/') { given.to_owned() } else { format!("/{given}") };
        assert_eq!(normalise(&given).as_deref(), Some(expected), "{given}");
    }
    for path in list(&vectors, "canonical_path_unchanged").iter().map(text) {
        assert_eq!(normalise(path).as_deref(), Some(path));
    }
    for path in list(&vectors, "canonical_path_rejected").iter().map(text) {
        assert_eq!(normalise(path), None, "{path}");
    }
    for pair in list(&vectors, "merge_slashes") {
        assert_eq!(merge_slashes(text(&pair[0])), text(&pair[1]));
    }
    for case in list(&vectors, "unescape_slashes") {
        let (path, found) = unescape_slashes(text(&case[0]));
        assert_eq!((&*path, found), (text(&case[1]), text(&case[2]) == "FoundAndUnescaped"));
    }
    for pair in list(&vectors, "remove_query_and_fragment") {
        assert_eq!(without_query(text(&pair[0])), text(&pair[1]));
    }
}

#[test]
fn requests_come_out_as_from_the_header_validator() {
    let Some(vectors) = vectors() else { return };
    let (mut same, mut otherwise, mut of_codecs) = (0, 0, 0);
    for test in list(&vectors["uhv_path_normalizer"], "cases") {
        let name = text(&test["test"]);
        if OF_CODECS.contains(&name) {
            of_codecs += 1;
            continue;
        }
        for case in list(test, "cases") {
            let (path, query) = split(text(&case["path"]));
            let got = match with_options(path, options(test)) {
                _ if query.contains('#') => None,
                Outcome::Path(path) | Outcome::Redirect(path) => Some(path + query),
                Outcome::Refused => None,
            };
            let redirected = matches!(with_options(path, options(test)), Outcome::Redirect(_));
            let action = test["action"].as_array().and_then(|a| a.first()).map(|a| text(&a[1]));
            if let Some((_, ours)) = OTHERWISE.iter().find(|(n, _)| *n == name) {
                assert_eq!(got.as_deref(), *ours, "{name}");
                assert_ne!(got.as_deref(), case["normalized"].as_str(), "{name} is no exception any more");
                otherwise += 1;
            } else {
                assert_eq!(got.as_deref(), case["normalized"].as_str(), "{name}");
                assert_eq!(redirected, action == Some("Redirect"), "{name}");
                same += 1;
            }
        }
    }
    assert_eq!((same, otherwise, of_codecs), (24, OTHERWISE.len(), OF_CODECS.len()));
}

fn options(test: &Value) -> PathOptions {
    let config = text(&test["config"][0]);
    let upper =
        |runtime: &Value| runtime[0] == "envoy.uhv.preserve_url_encoded_case" && runtime[1] == "false";
    PathOptions {
        merge_slashes: !config.starts_with("skip_merging"),
        escaped_slashes: match config {
            "reject_encoded_slash_config" => EscapedSlashes::Reject,
            "redirect_encoded_slash_config" => EscapedSlashes::Redirect,
            _ if config.contains("decode") => EscapedSlashes::Unescape,
            _ => EscapedSlashes::Keep,
        },
        upper_case_escapes: list(test, "runtime").iter().any(upper),
        ..PathOptions::default()
    }
}

fn split(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

fn vectors() -> Option<Value> {
    let Ok(fixtures) = std::env::var("FIELDGATE_FIXTURES") else {
        eprintln!("skipped: FIELDGATE_FIXTURES is not set");
        return None;
    };
    let file = std::fs::read_to_string(format!("{fixtures}/envoy-derived/path_vectors.json")).unwrap();
    Some(serde_json::from_str(&file).unwrap())
}

fn list<'v>(value: &'v Value, name: &str) -> &'v Vec<Value> {
    value[name].as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}
