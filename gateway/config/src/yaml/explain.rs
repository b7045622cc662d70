//! The scanner's words to an operator's: what most likely happened at that line, and what to do.

use super::Problem;
use super::events::problem;
use crate::diagnostic::reason;

/// A syntax error at a line (from 1) and column (from 0) of `text`.
pub(super) fn syntax(text: &str, line: usize, column: usize, info: &str) -> Box<Problem> {
    let (line, column) = (line.max(1), column + 1);
    let current = text.lines().nth(line - 1).unwrap_or("");
    let (line, column) = if current.is_empty() { end_of_text(text, line, column) } else { (line, column) };
    let current = text.lines().nth(line - 1).unwrap_or("");
    let (message, hint) = words(text, current, line, info);
    problem(reason::INVALID_YAML, line as u32, column as u32, message, hint)
}

/// An error at the end of the text is shown on the last line that has something.
fn end_of_text(text: &str, line: usize, column: usize) -> (usize, usize) {
    let lines: Vec<&str> = text.lines().take(line).collect();
    match lines.iter().rposition(|l| !l.trim().is_empty()) {
        Some(last) => (last + 1, lines[last].trim_end().chars().count() + 1),
        None => (line, column),
    }
}

fn words(text: &str, current: &str, line: usize, info: &str) -> (String, Option<&'static str>) {
    let has = |needle: &str| info.contains(needle);
    if has("tab") || indented_with_tab(current) {
        return say("a tab is used for indentation", "YAML is indented with spaces; replace the tabs of this line");
    }
    if current.contains("{{") || text.lines().any(|l| l.trim_start().starts_with("{{")) {
        return say(
            "this is not YAML: it looks like a template that was not rendered",
            "render it first (helm template, envsubst, kustomize build)",
        );
    }
    if current.starts_with("<<<<<<<") || current.starts_with("=======") || current.starts_with(">>>>>>>") {
        return say("this line is the mark of an unresolved merge conflict", "resolve the conflict and remove the marks");
    }
    if has("unknown anchor") {
        return say("this alias names no anchor of this document", "quote a value that begins with \"*\"");
    }
    if has("mapping values are not allowed") {
        return mapping_value(text, current, line);
    }
    if has("did not find expected key") || has("invalid indentation") {
        return say(
            "the indentation of this line matches nothing above it",
            "indent it exactly like its siblings, with spaces",
        );
    }
    if has("'-' indicator") {
        return say("a list item is expected here, and this line is none", "begin it with \"- \", or indent it as part of the item above");
    }
    if has("block sequence entries are not allowed") {
        return say("a list item cannot begin here", "put \"- \" on a line of its own, indented below the key");
    }
    if has("flow sequence") || has("flow mapping") {
        return say("a [ or { is not closed, or a comma is missing before this place", "close it, or write one item a line without brackets");
    }
    if has("misplaced bracket") {
        return say("this bracket closes nothing", "quote a value that begins with ] or }");
    }
    if has("quoted scalar") && has("end of stream") || has("unexpected end of quoted") || has("document indicator") {
        return say("the quoted text that begins here is not closed", "add the missing quote");
    }
    if has("escape") || has("Unicode character") || has("hex") {
        return say(
            "this quoted text has an escape that YAML does not know",
            "write \\\\ for a backslash, or use 'single quotes', which have no escapes",
        );
    }
    if has("invalid trailing content") {
        return say("text follows after a closed quote", "put the quotes around the whole value, and double a quote inside of 'single quotes'");
    }
    if has("unexpected character") {
        return say("a plain value cannot begin with this character", "put the value in quotes");
    }
    if has("simple key") {
        return say("this line is neither \"key: value\" nor part of the value above", "add the missing colon, with a space after it");
    }
    if has("recursion limit") {
        return say("brackets are nested too deep", "close the brackets");
    }
    if has("unprintable") {
        return say("there is a control character in the text", "save the file as plain UTF-8 text");
    }
    if has("handle") || has("directive") || has("document start") {
        return say("a line \"---\" is expected here", "separate objects by a line \"---\"");
    }
    (format!("this is not YAML: {info}"), None)
}

fn mapping_value(text: &str, current: &str, line: usize) -> (String, Option<&'static str>) {
    let indent = |l: &str| l.len() - l.trim_start().len();
    let above = text.lines().take(line - 1).filter(|l| !l.trim().is_empty()).last().unwrap_or("");
    let above_has_value = above.split_once(": ").is_some_and(|(_, v)| !v.trim().is_empty());
    if above_has_value && indent(current) > indent(above) && current.matches(':').count() == 1 {
        return say("this line is indented deeper than the one above, which already has a value", "indent it like the line above");
    }
    if above.trim_end().split_once(':').is_none() && !above.is_empty() {
        return say("the line above has no colon", "write \"key: value\" or \"key:\"");
    }
    say("a second \": \" is on this line", "quote a value that contains \": \"")
}

fn indented_with_tab(line: &str) -> bool {
    line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t')
}

fn say(message: &str, hint: &'static str) -> (String, Option<&'static str>) {
    (message.to_owned(), Some(hint))
}
