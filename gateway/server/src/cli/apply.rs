//! `fieldgate apply` and `fieldgate delete`

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{DEFAULT_ADMIN, client};
use crate::source::STDIN;

/// Put objects in force in a running gateway, and into its directory.
#[derive(Args)]
#[command(
    after_help = "The gateway must run with --api-write. All objects are taken, or none; exits with 1 if they are refused.

Examples:
  fieldgate apply -f route.yaml
  kustomize build . | fieldgate apply -f -
  fieldgate apply -f route.yaml --if-generation 12"
)]
pub(super) struct Apply {
    /// Files with the objects, YAML or JSON; `-` for standard input.
    #[arg(short, long, value_name = "FILE", required = true, num_args = 1..)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    to: To,
}

/// Take an object out of a running gateway, and out of its directory.
#[derive(Args)]
#[command(after_help = "The gateway must run with --api-write.

Examples:
  fieldgate delete HTTPRoute shop
  fieldgate delete Pool vms -n prod")]
pub(super) struct Delete {
    /// The kind, as in the object.
    kind: String,
    /// The name.
    name: String,
    /// The namespace.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    to: To,
}

/// Which gateway, and in which state.
#[derive(Args)]
struct To {
    /// Where its admin server listens.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// Only if this generation is in force.
    #[arg(long, value_name = "GENERATION")]
    if_generation: Option<u64>,
}

impl Apply {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let mut body = String::new();
        for file in &self.file {
            let text = read(file)?;
            if !body.is_empty() && !text.starts_with("---") {
                body.push_str("---\n");
            }
            body.push_str(&text);
            if !body.ends_with('\n') {
                body.push('\n');
            }
        }
        self.to.send("PUT", "/api/v1/objects", &body)
    }
}

impl Delete {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let [kind, namespace, name] =
            [&self.kind, &self.namespace, &self.name].map(|part| client::encode(part));
        self.to.send("DELETE", &format!("/api/v1/objects/{kind}/{namespace}/{name}"), "")
    }
}

impl To {
    fn send(&self, method: &str, path: &str, body: &str) -> Result<ExitCode, String> {
        let (status, answer) = client::change(self.admin, method, path, body, self.if_generation)?;
        let (text, good) = told(status, &answer);
        if good {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        eprint!("{text}");
        Ok(ExitCode::FAILURE)
    }
}

fn read(file: &PathBuf) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    if file.as_os_str() != STDIN {
        return std::fs::read_to_string(file).map_err(failed);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// An answer for people, and whether the change was made.
fn told(status: u16, answer: &Value) -> (String, bool) {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let mut out = String::new();
    for diagnostic in list("diagnostics") {
        out.push_str(&format!("{}\n\n", text(&diagnostic, "text")));
    }
    if !matches!(status, 200 | 202) {
        out.push_str(&format!("fieldgate: {}\n", text(answer, "error")));
        return (out, false);
    }
    for object in list("objects") {
        let [kind, namespace, name, result, file] =
            ["kind", "namespace", "name", "result", "file"].map(|key| text(&object, key));
        let slash = if namespace.is_empty() { "" } else { "/" };
        out.push_str(&format!("{kind} {namespace}{slash}{name} {result} ({file})\n"));
    }
    let generation = &answer["generation"];
    out.push_str(&match status {
        200 => format!("in force with generation {generation}\n"),
        _ => format!(
            "written; in force once its DNS names are looked up (generation {generation} until then)\n"
        ),
    });
    (out, true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_told_in_words() {
        let made = json!({"generation": 7, "diagnostics": [], "objects": [
            {"kind": "Pool", "namespace": "default", "name": "vms", "result": "created", "file": "/c/api/x.yaml"},
            {"kind": "Namespace", "namespace": "", "name": "prod", "result": "deleted", "file": "/c/n.yaml"},
        ]});
        let expected = "Pool default/vms created (/c/api/x.yaml)\nNamespace prod deleted (/c/n.yaml)\nin force with generation 7\n";
        assert_eq!(told(200, &made), (expected.to_owned(), true));
        let refused = json!({"error": "refused", "diagnostics": [{"text": "error: a:1:1: wrong"}]});
        assert_eq!(told(422, &refused), ("error: a:1:1: wrong\n\nfieldgate: refused\n".to_owned(), false));
    }
}
