//! What a client's certificate says of its holder. Whether to believe it is decided elsewhere.

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::distinguished_name::rfc2253;

/// The names in a certificate, and what else tells it apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// URI names.
    pub uris: Vec<Box<str>>,
    /// DNS names.
    pub dns: Vec<Box<str>>,
    /// E-mail addresses.
    pub emails: Vec<Box<str>>,
    /// The subject, RFC 2253 form.
    pub subject: Box<str>,
    /// The issuer, RFC 2253 form.
    pub issuer: Box<str>,
    /// SHA-256 of the certificate, hexadecimal in lower case.
    pub hash: Box<str>,
    /// Seconds since 1970 when it expires.
    pub not_after: i64,
    /// Whether subject and issuer are the same.
    pub self_issued: bool,
}

impl ClientCertificate {
    /// Reads one. A name with bytes that no such name has makes it malformed: names go into header fields, logs and
    /// policies, where they must mean one thing.
    pub fn parse(der: &[u8]) -> Result<Self, String> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("bytes after the certificate".to_owned());
        }
        let mut parsed = Self {
            subject: rfc2253(certificate.subject()).into(),
            issuer: rfc2253(certificate.issuer()).into(),
            hash: hex(digest(&SHA256, der).as_ref()).into(),
            not_after: certificate.validity().not_after.timestamp(),
            self_issued: certificate.subject().as_raw() == certificate.issuer().as_raw(),
            ..Self::default()
        };
        let alternative = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            let (list, name) = match name {
                GeneralName::URI(name) => (&mut parsed.uris, name),
                GeneralName::DNSName(name) => (&mut parsed.dns, name),
                GeneralName::RFC822Name(name) => (&mut parsed.emails, name),
                GeneralName::Invalid(..) => return Err("a subject alternative name is malformed".to_owned()),
                _ => continue,
            };
            if !is_clean(name) {
                return Err(format!("the subject alternative name {name:?} is malformed"));
            }
            list.push((*name).into());
        }
        Ok(parsed)
    }

    /// Trust domains of its SPIFFE identities.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        self.uris.iter().filter_map(|uri| {
            let rest = uri.strip_prefix("spiffe://")?;
            Some(rest.split_once('/').map_or(rest, |(domain, _)| domain))
        })
    }
}

/// Whether a name means the same in header fields, logs and policies: printable ASCII without quotes.
pub(super) fn is_clean(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\'))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn parsed(names: Vec<SanType>) -> Result<ClientCertificate, String> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = names;
        ClientCertificate::parse(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn names_are_told_apart_by_kind() {
        let found = parsed(vec![
            SanType::URI("spiffe://td/ns/a/sa/b".try_into().unwrap()),
            SanType::URI("https://x".try_into().unwrap()),
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::Rfc822Name("a@b".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 1].into()),
        ])
        .unwrap();
        assert_eq!(found.uris, ["spiffe://td/ns/a/sa/b".into(), "https://x".into()]);
        assert_eq!((&*found.dns[0], &*found.emails[0]), ("a.example", "a@b"));
        assert_eq!(found.trust_domains().collect::<Vec<_>>(), ["td"]);
        assert!(found.self_issued && found.hash.len() == 64);
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_refused() {
        for name in ["spiffe://td/a\r\nx: y", "spiffe://td/a b", "spiffe://td/\"", "a\\b", "a\0b"] {
            assert!(parsed(vec![SanType::URI(name.try_into().unwrap())]).is_err(), "{name:?}");
            assert!(parsed(vec![SanType::DnsName(name.try_into().unwrap())]).is_err(), "{name:?}");
        }
        assert!(ClientCertificate::parse(b"").is_err());
    }
}
