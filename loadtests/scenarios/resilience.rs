//! What a gateway keeps from its clients while what stands behind it breaks or is asked for too much, beside Envoy and
//! HAProxy given the same job (`docs/resilience.md`). Each proxy has its turn by itself, with the same faults in the
//! same order and the same requests.

mod account;
mod capture;
pub mod chaos;
mod dns;
pub mod drain;
mod farm;
mod faults;
mod network;
pub mod overload;
mod proxies;

use std::path::Path;

use serde::Serialize;

use crate::bench;
use crate::context::Context;

/// Writes figures where that was asked for: all of them as JSON, and a table as Markdown. A Markdown file that has the
/// markers `<!-- NAME begin -->` and `<!-- NAME end -->` gets the table between them, any other is replaced.
fn publish(context: &Context, name: &str, figures: &impl Serialize, table: &str) -> Result<(), String> {
    let json = serde_json::to_value(figures).map_err(|error| error.to_string())?;
    bench::write_json(context, &json)?;
    let Some(path) = &context.markdown else { return Ok(()) };
    let before = std::fs::read_to_string(path).unwrap_or_default();
    write(path, &between_markers(&before, name, table).unwrap_or_else(|| table.to_owned()))
}

fn between_markers(text: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name} begin -->"), format!("<!-- {name} end -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", table.trim()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The machine and the versions that figures are of.
fn circumstances(proxies: &[proxies::Proxy]) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let information = read("/proc/cpuinfo");
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let versions: Vec<String> =
        proxies.iter().map(|proxy| format!("{}: {}", proxy.name, proxy.version)).collect();
    format!("{cores} cores of {model}, Linux {}. {}.", kernel.trim(), versions.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_what_is_between_its_markers() {
        let text = "a\n<!-- x begin -->\nold\n<!-- x end -->\nb";
        let expected = "a\n<!-- x begin -->\n\nnew\n\n<!-- x end -->\nb";
        assert_eq!(between_markers(text, "x", "new\n").as_deref(), Some(expected));
        assert_eq!(between_markers(text, "y", "new"), None);
    }
}
