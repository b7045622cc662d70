//! Says each problem once when it appears and once when it is gone, however often it is found again in between.

use std::collections::BTreeMap;

use fieldgate_config::diagnostic::Severity;

/// The problems that were there last time.
#[derive(Default)]
pub struct Problems {
    known: BTreeMap<String, Severity>,
}

impl Problems {
    /// Takes the problems that are there now and logs what changed.
    pub fn update(&mut self, now: impl IntoIterator<Item = (Severity, String)>) {
        let now: BTreeMap<String, Severity> =
            now.into_iter().map(|(severity, text)| (text, severity)).collect();
        let (appeared, gone) = self.difference(&now);
        for text in gone {
            tracing::info!("no longer: {}", first_line(text));
        }
        for (text, severity) in appeared {
            match severity {
                Severity::Error => tracing::error!("{text}"),
                Severity::Warning => tracing::warn!("{text}"),
            }
        }
        self.known = now;
    }

    fn difference<'a>(
        &'a self,
        now: &'a BTreeMap<String, Severity>,
    ) -> (Vec<(&'a str, Severity)>, Vec<&'a str>) {
        let appeared = now
            .iter()
            .filter(|(text, _)| !self.known.contains_key(*text))
            .map(|(text, s)| (text.as_str(), *s));
        let gone = self.known.keys().filter(|text| !now.contains_key(*text)).map(String::as_str);
        (appeared.collect(), gone.collect())
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_said() {
        let mut problems = Problems::default();
        let set = |texts: &[&str]| {
            texts.iter().map(|t| ((*t).to_owned(), Severity::Error)).collect::<BTreeMap<_, _>>()
        };
        problems.update([(Severity::Error, "a".to_owned()), (Severity::Error, "b".to_owned())]);
        let now = set(&["b", "c"]);
        assert_eq!(problems.difference(&now), (vec![("c", Severity::Error)], vec!["a"]));
        assert_eq!(problems.difference(&set(&["a", "b"])), (vec![], vec![]));
    }
}
