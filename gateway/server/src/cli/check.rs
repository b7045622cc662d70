//! `fieldgate check`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use fieldgate_config::diagnostic::Severity;
use fieldgate_config::status::{Condition, ObjectStatus};
use fieldgate_config::translate::TrustDomains;
use fieldgate_config::{Configuration, Diagnostic};
use fieldgate_core::Snapshot;
use fieldgate_core::ir::{Locality, Touched};
use fieldgate_core::snapshot::Rejection;
use serde_json::json;

use super::trust_domain::TrustDomainArgs;
use super::{locality, table};
use crate::control::TlsConfigs;
use crate::source::Source;
use crate::workload;

/// Say everything that is wrong with a configuration, without serving it.
#[derive(Args)]
#[command(after_help = "Exits with 1 if something is wrong; warnings alone do not count.

Examples:
  fieldgate check ./config
  kustomize build . | fieldgate check -
  fieldgate check ./config --output json | jq '.diagnostics[].message'")]
pub(super) struct Check {
    /// Directories, files, or `-` for standard input.
    #[arg(value_name = "PATH", required = true, num_args = 1..)]
    paths: Vec<PathBuf>,
    /// Where the gateway will stand, for what prefers endpoints nearby.
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", env = "FIELDGATE_LOCALITY", value_parser = locality)]
    locality: Option<Locality>,
    #[command(flatten)]
    trust_domain: TrustDomainArgs,
    /// The gateway's certificate in its mesh, as `fieldgate run` has it.
    #[arg(long, value_name = "DIR", env = "FIELDGATE_WORKLOAD_CERTIFICATE")]
    workload_certificate: Option<PathBuf>,
    /// How the result is written.
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// A configuration that was read and compiled, and what came up.
pub(super) struct Checked {
    pub(super) snapshot: Snapshot,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) statuses: Vec<ObjectStatus>,
    /// What came up when TLS was set up.
    pub(super) tls: Vec<(Severity, String)>,
}

impl Checked {
    /// Reads and compiles what is at `paths`, as `run` does for a gateway that stands there, whose trust domain has these names
    /// and which has its certificate in its mesh in a directory.
    pub(super) fn read(
        paths: &[PathBuf],
        locality: Option<Locality>,
        trust_domains: TrustDomains,
        workload: Option<PathBuf>,
    ) -> Result<Self, String> {
        let (_, update) = Source::open(paths)?;
        let mut configuration = Configuration::of_gateway_at(locality).in_trust_domains(trust_domains);
        if let Some(directory) = workload::directory(workload) {
            configuration.set_workload(Some(workload::read(&directory)?));
        }
        let outcome = configuration.apply(update.changes);
        let mut diagnostics = update.diagnostics;
        diagnostics.extend(outcome.diagnostics);
        diagnostics.sort_by(Diagnostic::by_place);
        let snapshot = Snapshot::compile(None, outcome.config, &Touched::All, 1);
        let mut configs = TlsConfigs::default();
        configs.reconcile(&snapshot);
        let tls = configs.findings(SystemTime::now()).collect();
        Ok(Self { snapshot, diagnostics, statuses: configuration.statuses(), tls })
    }

    /// How many errors there are.
    pub(super) fn errors(&self) -> usize {
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count();
        let tls = self.tls.iter().filter(|(severity, _)| *severity == Severity::Error).count();
        errors + tls + self.snapshot.rejections.len()
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            out.push_str(&format!("{diagnostic}\n\n"));
        }
        for rejection in &self.snapshot.rejections {
            out.push_str(&format!("error: {}\n\n", rejection_text(rejection)));
        }
        for (_, finding) in &self.tls {
            out.push_str(&format!("{finding}\n\n"));
        }
        let rows = status_rows(&self.statuses);
        if rows.len() > 1 {
            out.push_str(&table(&rows));
            out.push('\n');
        }
        out.push_str(&self.verdict());
        out
    }

    fn verdict(&self) -> String {
        let (errors, warnings) = (self.errors(), self.diagnostics.len() + self.snapshot.rejections.len());
        let warnings = warnings + self.tls.len() - errors;
        let config = &self.snapshot.config;
        format!(
            "{} listeners, {} routes, {} pools, {} policies: {}, {}\n",
            config.listeners.len(),
            config.routes.len(),
            config.pools.len(),
            config.policies.len(),
            count(errors, "error"),
            count(warnings, "warning"),
        )
    }

    fn json(&self) -> serde_json::Value {
        let rejections = self.snapshot.rejections.iter().map(|rejection| {
            json!({"object": rejection.object.to_string(), "field": rejection.field, "message": rejection.message})
        });
        json!({
            "errors": self.errors(),
            "diagnostics": self.diagnostics,
            "rejected": rejections.collect::<Vec<_>>(),
            "tls": self.tls.iter().map(|(_, finding)| finding).collect::<Vec<_>>(),
            "objects": self.statuses,
        })
    }
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let names = self.trust_domain.names();
        let checked = Checked::read(&self.paths, self.locality, names, self.workload_certificate)?;
        match self.output {
            Output::Text => print!("{}", checked.text()),
            Output::Json => println!("{:#}", checked.json()),
        }
        Ok(if checked.errors() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn rejection_text(rejection: &Rejection) -> String {
    format!("{}: {}: {}", rejection.object, rejection.field, rejection.message)
}

/// One row per object and part; conditions that hold are named, those that do not come with reason and message.
fn status_rows(statuses: &[ObjectStatus]) -> Vec<Vec<String>> {
    let mut rows = vec![["OBJECT", "PART", "CONDITIONS"].map(str::to_owned).to_vec()];
    for status in statuses {
        let mut parts: Vec<&str> = status.conditions.iter().map(|c| c.part.as_str()).collect();
        parts.sort_unstable();
        parts.dedup();
        for (index, part) in parts.iter().enumerate() {
            let object = match index {
                0 => format!("{} {}/{}", status.kind, status.namespace, status.name),
                _ => String::new(),
            };
            let conditions: Vec<_> =
                status.conditions.iter().filter(|c| c.part == *part).map(condition_text).collect();
            rows.push(vec![object, (*part).to_owned(), conditions.join(", ")]);
        }
    }
    rows
}

fn condition_text(condition: &Condition) -> String {
    // `Conflicted` and its like are good news when they do not hold.
    let good = condition.status
        != matches!(condition.kind, "Conflicted" | "PartiallyInvalid" | "OverlappingTLSConfig");
    match (good, condition.status) {
        (true, true) => condition.kind.to_owned(),
        (true, false) => format!("not {}", condition.kind),
        (false, status) => {
            let not = if status { "" } else { "not " };
            format!("{not}{} ({}: {})", condition.kind, condition.reason, condition.message)
        }
    }
}

fn count(number: usize, what: &str) -> String {
    match number {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(part: &str, kind: &'static str, status: bool) -> Condition {
        Condition { part: part.to_owned(), kind, status, reason: "Why", message: "because".to_owned() }
    }

    #[test]
    fn conditions_are_short_when_they_are_good() {
        let statuses = [ObjectStatus {
            kind: "Gateway",
            namespace: "a".to_owned(),
            name: "edge".to_owned(),
            conditions: vec![
                condition("", "Accepted", true),
                condition("http", "Programmed", false),
                condition("http", "Conflicted", false),
            ],
        }];
        let expected = "\
OBJECT          PART  CONDITIONS
Gateway a/edge        Accepted
                http  not Programmed (Why: because), not Conflicted
";
        assert_eq!(table(&status_rows(&statuses)), expected);
    }

    #[test]
    fn a_broken_file_is_an_error_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: Nope\nmetadata: {name: x}\n")
            .unwrap();
        let checked = Checked::read(&[dir.path().to_owned()], None, TrustDomains::default(), None).unwrap();
        let text = checked.text();
        assert!(text.contains("a.yaml:2:"), "{text}");
        assert!(text.contains("Nope"), "{text}");
        assert_eq!(checked.json()["diagnostics"].as_array().map(Vec::len), Some(checked.diagnostics.len()));
    }
}
