//! A table from server name patterns to whatever belongs to them.
//!
//! What a pattern means is defined here once, so that certificates and other terms of a handshake are chosen alike.

use std::collections::HashMap;

/// Values by pattern. Patterns are names, `*.` and a name, which stands for any number of labels before it (as Gateway
/// API defines for listeners), or `*` for every name.
#[derive(Debug)]
pub struct Patterns<T> {
    exact: HashMap<Box<str>, T>,
    /// Keyed by what follows `*.`.
    wildcard: HashMap<Box<str>, T>,
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new() }
    }
}

impl<T> Patterns<T> {
    /// The value of a pattern, made if there is none.
    pub fn entry(&mut self, pattern: &str, make: impl FnOnce() -> T) -> &mut T {
        let pattern = normal(pattern);
        let (table, key) = match pattern.strip_prefix('*') {
            None => (&mut self.exact, &*pattern),
            Some(suffix) => (&mut self.wildcard, suffix.trim_start_matches('.')),
        };
        table.entry(key.into()).or_insert_with(make)
    }

    /// The value of the most specific pattern that stands for a name, whatever its case.
    pub fn find(&self, name: &str) -> Option<&T> {
        if is_normal(name) { self.find_normal(name) } else { self.find_normal(&normal(name)) }
    }

    /// The value of `*`, which is also that of clients who name nobody.
    pub fn every(&self) -> Option<&T> {
        self.wildcard.get("")
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.exact.values_mut().chain(self.wildcard.values_mut())
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcard.values())
    }

    fn find_normal(&self, name: &str) -> Option<&T> {
        if let Some(found) = self.exact.get(name) {
            return Some(found);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(found) = self.wildcard.get(parent) {
                return Some(found);
            }
            rest = parent;
        }
        self.every()
    }
}

pub(super) fn is_normal(name: &str) -> bool {
    !name.ends_with('.') && !name.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// In lower case, without the dot of the root.
pub(super) fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_is_found() {
        let mut table = Patterns::default();
        for pattern in ["a.example", "*.example", "*.b.example", "C.Example.", "*"] {
            table.entry(pattern, || pattern);
        }
        for (name, expected) in [
            ("A.Example.", "a.example"),
            ("c.example", "C.Example."),
            ("x.y.example", "*.example"),
            ("x.b.example", "*.b.example"),
            ("b.example", "*.example"),
            ("example", "*"),
        ] {
            assert_eq!(table.find(name), Some(&expected), "{name}");
        }
        assert_eq!(table.every(), Some(&"*"));
        assert_eq!(table.values().count(), 5);
    }
}
