//! Which certificate answers which server name.
//!
//! An immutable table, made of what the caller knows: listener hostnames with their certificates. It must not invent
//! patterns from the names in certificates.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::patterns::{Patterns, is_normal, normal};
use super::{Certificate, introduction};

/// Chooses by server name, most specific pattern first, then by what the client can verify.
#[derive(Debug)]
pub struct SniResolver {
    by_name: Patterns<Vec<Arc<Certificate>>>,
    default: Vec<Arc<Certificate>>,
    strict: bool,
}

impl SniResolver {
    /// Certificates by [pattern](Patterns). Those of equal patterns are put together.
    ///
    /// A pattern without certificates refuses its names; they do not fall to a wider pattern.
    ///
    /// `default` answers clients that send no name or one that matches nothing; if `strict`, such clients are refused
    /// and `default` is not used.
    pub fn new<P, C>(
        entries: impl IntoIterator<Item = (P, C)>,
        default: Vec<Arc<Certificate>>,
        strict: bool,
    ) -> Self
    where
        P: AsRef<str>,
        C: IntoIterator<Item = Arc<Certificate>>,
    {
        let mut resolver = Self { by_name: Patterns::default(), default, strict };
        for (pattern, certificates) in entries {
            resolver.by_name.entry(pattern.as_ref(), Vec::new).extend(certificates);
        }
        for list in resolver.by_name.values_mut().chain([&mut resolver.default]) {
            // Equal in strength, but an RSA signature costs the server many times more.
            list.sort_by_key(|certificate| certificate.is_rsa());
        }
        resolver
    }

    /// The certificate for a server name and the signature schemes that the client offers.
    pub fn choose(&self, name: Option<&str>, offered: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
        match name {
            None => pick(self.fallback(), "", offered),
            Some(name) if is_normal(name) => pick(self.find(name), name, offered),
            Some(name) => {
                let name = normal(name);
                pick(self.find(&name), &name, offered)
            }
        }
    }

    fn find(&self, name: &str) -> &[Arc<Certificate>] {
        self.by_name.find(name).map_or_else(|| self.fallback(), Vec::as_slice)
    }

    fn fallback(&self) -> &[Arc<Certificate>] {
        if self.strict { &[] } else { &self.default }
    }
}

impl ResolvesServerCert for SniResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let chosen = self.choose(hello.server_name(), hello.signature_schemes())?;
        introduction::shown(chosen);
        Some(Arc::clone(chosen.certified()))
    }
}

/// One that names the host and that the client can verify; else one that it can verify; else any, so that the
/// handshake fails with the right alert.
fn pick<'a>(
    list: &'a [Arc<Certificate>],
    name: &str,
    offered: &[SignatureScheme],
) -> Option<&'a Arc<Certificate>> {
    if let [only] = list {
        return Some(only);
    }
    let usable = || list.iter().filter(|certificate| certificate.can_sign(offered));
    usable().find(|certificate| certificate.covers(name)).or_else(|| usable().next()).or(list.first())
}

#[cfg(test)]
mod tests {
    use super::super::certificate::tests::{ecdsa, rsa};
    use super::*;

    const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];
    const RSA: &[SignatureScheme] = &[SignatureScheme::RSA_PSS_SHA256];

    fn table(strict: bool) -> SniResolver {
        let entries = ["a.example", "*.example", "*.b.example", "C.Example."]
            .map(|p| (p, [ecdsa(&[p.trim_end_matches('.')])]));
        SniResolver::new(entries, vec![ecdsa(&["default.test"])], strict)
    }

    fn chosen<'a>(table: &'a SniResolver, name: Option<&str>) -> Option<&'a str> {
        table.choose(name, ECDSA).map(|certificate| certificate.names()[0].as_str())
    }

    #[test]
    fn the_most_specific_pattern_answers() {
        let table = table(false);
        for (name, expected) in [
            ("a.example", "a.example"),
            ("A.Example", "a.example"),
            ("a.example.", "a.example"),
            ("c.example", "c.example"),
            ("z.example", "*.example"),
            ("x.y.z.example", "*.example"),
            ("b.example", "*.example"),
            ("x.b.example", "*.b.example"),
            ("x.y.b.example", "*.b.example"),
            ("x.a.example", "*.example"),
            ("example", "default.test"),
            ("badexample", "default.test"),
            ("other.test", "default.test"),
        ] {
            assert_eq!(chosen(&table, Some(name)), Some(expected), "{name}");
        }
        assert_eq!(chosen(&table, None), Some("default.test"));
    }

    #[test]
    fn strict_refuses_strangers() {
        let table = table(true);
        assert_eq!(chosen(&table, Some("a.example")), Some("a.example"));
        assert_eq!(chosen(&table, Some("other.test")), None);
        assert_eq!(chosen(&table, None), None);
    }

    #[test]
    fn a_star_takes_every_name_that_nothing_else_takes() {
        let table = SniResolver::new(
            [("*", [ecdsa(&["any.test"])]), ("a.example", [ecdsa(&["a.example"])])],
            vec![],
            true,
        );
        assert_eq!(chosen(&table, Some("a.example")), Some("a.example"));
        assert_eq!(chosen(&table, Some("b.test")), Some("any.test"));
        assert_eq!(chosen(&table, None), None);
    }

    #[test]
    fn the_client_decides_between_rsa_and_ecdsa() {
        let table =
            SniResolver::new([("a.example", [rsa(&["a.example"]), ecdsa(&["a.example"])])], vec![], true);
        let is_rsa = |offered: &[_]| table.choose(Some("a.example"), offered).unwrap().is_rsa();
        assert!(!is_rsa(ECDSA));
        assert!(is_rsa(RSA));
        assert!(!is_rsa(&[RSA[0], ECDSA[0]]));
        assert!(!is_rsa(&[SignatureScheme::ED448]));
    }

    #[test]
    fn among_the_certificates_of_a_listener_the_one_that_names_the_host_is_chosen() {
        let certificates = ["a.example", "b.example"].map(|name| ecdsa(&[name]));
        let table = SniResolver::new([("*.example", certificates)], vec![], true);
        assert_eq!(chosen(&table, Some("b.example")), Some("b.example"));
        assert_eq!(chosen(&table, Some("a.example")), Some("a.example"));
        assert_eq!(chosen(&table, Some("c.example")), Some("a.example"));
    }

    #[test]
    fn a_pattern_without_certificates_is_refused_and_not_answered_by_another() {
        let entries = [("a.example", vec![]), ("*.example", vec![ecdsa(&["*.example"])])];
        let table = SniResolver::new(entries, vec![ecdsa(&["default.test"])], false);
        assert_eq!(chosen(&table, Some("a.example")), None);
        assert_eq!(chosen(&table, Some("b.example")), Some("*.example"));
    }

    #[test]
    fn equal_patterns_are_put_together() {
        let table = SniResolver::new(
            [("a.example", [ecdsa(&["a.example"])]), ("A.example", [rsa(&["a.example"])])],
            vec![],
            true,
        );
        assert!(table.choose(Some("a.example"), RSA).unwrap().is_rsa());
        assert!(!table.choose(Some("a.example"), ECDSA).unwrap().is_rsa());
    }
}
