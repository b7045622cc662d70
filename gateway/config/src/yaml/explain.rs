//! The scanner's words to an operator's: what most likely happened, on which line, and what to do.

use super::Problem;
use super::events::problem;
use crate::diagnostic::reason;

/// A syntax error at a line (from 1) and column (from 0) of `text`.
pub(super) fn syntax(text: &str, line: usize, column: usize, info: &str) -> Box<Problem> {
    let (line, column) = shown_at(text, line.max(1), column + 1);
    let error = Syntax { text, line, column, current: line_of(text, line), info };
    let said = error.explain();
    let (line, column) = said.place.unwrap_or((line, column));
    problem(reason::INVALID_YAML, line as u32, column as u32, said.message, said.hint)
}

/// An error at the end of the text is shown on the last line that has something.
fn shown_at(text: &str, line: usize, column: usize) -> (usize, usize) {
    if !line_of(text, line).is_empty() {
        return (line, column);
    }
    let lines: Vec<&str> = text.lines().take(line).collect();
    match lines.iter().rposition(|l| !l.trim().is_empty()) {
        Some(last) => (last + 1, lines[last].trim_end().chars().count() + 1),
        None => (line, column),
    }
}

fn line_of(text: &str, line: usize) -> &str {
    text.lines().nth(line - 1).unwrap_or("")
}

struct Syntax<'t> {
    text: &'t str,
    line: usize,
    column: usize,
    current: &'t str,
    info: &'t str,
}

struct Said {
    message: String,
    hint: Option<&'static str>,
    /// Where the cause is, if the scanner stumbled only later.
    place: Option<(usize, usize)>,
}

impl Said {
    fn at(self, line: usize, column: usize) -> Self {
        Self { place: Some((line, column)), ..self }
    }
}

fn say(message: &str, hint: &'static str) -> Said {
    Said { message: message.to_owned(), hint: Some(hint), place: None }
}

impl Syntax<'_> {
    /// What is wrong with the whole text comes first, then the scanner's own view, most telling first.
    fn explain(&self) -> Said {
        self.not_meant_as_yaml()
            .or_else(|| self.indentation())
            .or_else(|| self.quoting())
            .unwrap_or_else(|| self.structure())
    }

    fn has(&self, needle: &str) -> bool {
        self.info.contains(needle)
    }

    fn not_meant_as_yaml(&self) -> Option<Said> {
        let mark = |l: &str| l.starts_with("<<<<<<< ") || l == "=======" || l.starts_with(">>>>>>> ");
        if let Some(line) = self.text.lines().position(mark) {
            let said = say(
                "this line is the mark of an unresolved merge conflict",
                "resolve the conflict and remove the marks",
            );
            return Some(said.at(line + 1, 1));
        }
        let template =
            self.current.contains("{{") || self.text.lines().any(|l| l.trim_start().starts_with("{{"));
        template.then(|| {
            say(
                "this is not YAML: it looks like a template that was not rendered",
                "render it first (helm template, envsubst, kustomize build)",
            )
        })
    }

    fn indentation(&self) -> Option<Said> {
        let tab = self.current.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t');
        if let Some(tab) = tab {
            let said = say(
                "a tab is used for indentation",
                "YAML is indented with spaces; replace the tabs of this line",
            );
            return Some(said.at(self.line, tab + 1));
        }
        if self.has("tab") {
            return Some(say("a tab stands where only spaces may", "replace the tab by spaces"));
        }
        if self.has("mapping values are not allowed") {
            return Some(self.mapping_value());
        }
        (self.has("did not find expected key") || self.has("invalid indentation")).then(|| {
            say(
                "the indentation of this line matches nothing above it",
                "indent it exactly like its siblings, with spaces",
            )
        })
    }

    fn mapping_value(&self) -> Said {
        let (above_line, above) = self.line_above();
        let above_has_value = above.split_once(": ").is_some_and(|(_, v)| !v.trim().is_empty());
        if above_has_value && indent(self.current) > indent(above) && self.current.matches(": ").count() <= 1
        {
            let said = say(
                "this line is indented deeper than the one above, which already has a value",
                "indent it like the line above",
            );
            return said.at(self.line, indent(self.current) + 1);
        }
        if !above.is_empty() && !above.contains(':') && self.current.matches(": ").count() <= 1 {
            return colon_missing().at(above_line, indent(above) + 1);
        }
        say("a second \": \" is on this line", "quote a value that contains \": \"")
    }

    fn quoting(&self) -> Option<Said> {
        let said = if self.has("unknown anchor") {
            say("this alias names no anchor of this document", "quote a value that begins with \"*\"")
        } else if self.has("quoted scalar") && self.has("end of stream") || self.has("document indicator") {
            say("the quoted text that begins here is not closed", "add the missing quote")
        } else if self.has("escape") || self.has("Unicode character") {
            say(
                "this quoted text has an escape that YAML does not know",
                "write \\\\ for a backslash, or use 'single quotes', which have no escapes",
            )
        } else if self.has("invalid trailing content") {
            say(
                "text follows after a closed quote",
                "put the quotes around the whole value, and double a quote inside of 'single quotes'",
            )
        } else if self.has("unexpected character") {
            say("a plain value cannot begin with this character", "put the value in quotes")
        } else if self.has("unprintable") {
            say("there is a control character in the text", "save the file as plain UTF-8 text")
        } else {
            return None;
        };
        Some(said)
    }

    fn structure(&self) -> Said {
        if self.has("flow sequence") || self.has("flow mapping") || self.has("placement of ':'") {
            return say(
                "a [ or { is not closed, or a comma is missing, before this place",
                "close it, or write one item a line without brackets",
            );
        }
        if self.has("misplaced bracket") {
            return say("this bracket closes nothing", "quote a value that begins with ] or }");
        }
        if self.has("recursion limit") {
            return say("brackets are nested too deep", "close the brackets");
        }
        if self.has("'-' indicator") {
            return say(
                "a list item is expected here, and this line is none",
                "begin it with \"- \", or indent it as part of the item above",
            );
        }
        if self.has("block sequence entries are not allowed") {
            return say(
                "a list item cannot begin here",
                "put \"- \" on a line of its own, indented below the key",
            );
        }
        if self.has("simple key") {
            return self.no_colon();
        }
        if self.has("handle") || self.has("directive") || self.has("document start") {
            return say("a line \"---\" is expected here", "separate objects by a line \"---\"");
        }
        Said { message: format!("this is not YAML: {}", self.info), hint: None, place: None }
    }

    fn no_colon(&self) -> Said {
        let (above_line, above) = self.line_above();
        if self.current.contains(':') && !above.is_empty() && !above.contains(':') {
            return colon_missing().at(above_line, indent(above) + 1);
        }
        colon_missing().at(self.line, self.column.min(indent(self.current) + 1))
    }

    /// The nearest line above that has something.
    fn line_above(&self) -> (usize, &str) {
        let above: Vec<&str> = self.text.lines().take(self.line - 1).collect();
        above.iter().rposition(|l| !l.trim().is_empty()).map_or((1, ""), |i| (i + 1, above[i]))
    }
}

fn colon_missing() -> Said {
    say(
        "this line is neither \"key: value\" nor part of the value above",
        "add the missing colon, with a space after it",
    )
}

fn indent(line: &str) -> usize {
    line.chars().take_while(|c| *c == ' ').count()
}
