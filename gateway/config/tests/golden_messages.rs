//! Each `tests/golden/NN-name.yaml` (or `.json`) is checked as a file of that name, and what is said about it is
//! compared with `NN-name.out`. `UPDATE_GOLDEN=1` writes the `.out` files anew; read the difference before it is kept.

use std::fs;
use std::path::{Path, PathBuf};

use fieldgate_config::{Diagnostic, check_text};

#[test]
fn messages_are_as_written() {
    let inputs = inputs();
    assert!(inputs.len() >= 40, "only {} inputs were found", inputs.len());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for input in inputs {
        let found = check(&input);
        let expected_path = input.with_extension("out");
        if update {
            fs::write(&expected_path, &found).expect("the golden folder is writable");
            continue;
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}\n--- expected\n{expected}--- found\n{found}", input.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_bad_input_is_said_to_be_bad() {
    for input in inputs() {
        let silent = check(&input).is_empty();
        assert!(!silent, "{} passes without a word", input.display());
    }
}

#[test]
fn every_output_has_its_input() {
    for entry in fs::read_dir(folder()).expect("the golden folder exists") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|e| e == "out") {
            let has_input = path.with_extension("yaml").exists() || path.with_extension("json").exists();
            assert!(has_input, "{} belongs to no input", path.display());
        }
    }
}

fn check(input: &Path) -> String {
    let name = input.file_name().and_then(|n| n.to_str()).expect("an ASCII name");
    let text = fs::read_to_string(input).expect("readable");
    let said: Vec<Diagnostic> = check_text(&[(name, &text)]);
    let blocks: Vec<String> = said.iter().map(ToString::to_string).collect();
    if blocks.is_empty() { String::new() } else { blocks.join("\n") + "\n" }
}

fn inputs() -> Vec<PathBuf> {
    let mut inputs: Vec<_> = fs::read_dir(folder())
        .expect("the golden folder exists")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"))
        .collect();
    inputs.sort();
    inputs
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}
