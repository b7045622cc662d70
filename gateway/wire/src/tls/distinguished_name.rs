//! Distinguished names as text in the form of RFC 2253, as OpenSSL writes it and Envoy therefore: last part first, short names of
//! attributes, everything but printable ASCII escaped. So the text can go into a header field or a log whoever chose it.

use x509_parser::der_parser::asn1_rs::{Any, Tag};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Short names of attributes as OpenSSL has them. Others go by their number.
const SHORT_NAMES: [(&str, &str); 18] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.46", "dnQualifier"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// The name as text; empty if it has no parts.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let texts = parts.iter().rev().map(|part| {
        // Within a part of several attributes the last comes first, too.
        let mut attributes: Vec<_> = part.iter().map(attribute).collect();
        attributes.reverse();
        attributes.join("+")
    });
    texts.collect::<Vec<_>>().join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let value = attribute.attr_value();
    match SHORT_NAMES.iter().find(|(number, _)| *number == oid) {
        Some((_, name)) => match text(value) {
            Some(text) => format!("{name}={}", escaped(&text)),
            None => format!("{name}={}", dump(value)),
        },
        None => format!("{oid}={}", dump(value)),
    }
}

/// The characters of a string type.
fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            std::str::from_utf8(value.data).ok().map(str::to_owned)
        }
        // Latin 1 in practice, whatever the standard says.
        Tag::T61String => Some(value.data.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString if value.data.len().is_multiple_of(2) => {
            let units = value.data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        Tag::UniversalString if value.data.len().is_multiple_of(4) => value
            .data
            .chunks_exact(4)
            .map(|four| char::from_u32(u32::from_be_bytes([four[0], four[1], four[2], four[3]])))
            .collect(),
        _ => None,
    }
}

/// RFC 2253 section 2.4, and everything that is not printable ASCII as hexadecimal pairs.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => {
                out.extend(['\\', char::from(byte)]);
            }
            b'#' if at == 0 => out.push_str("\\#"),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("\\{byte:02X}")),
        }
    }
    out
}

/// `#` and the value's DER in hexadecimal.
fn dump(value: &Any<'_>) -> String {
    let length = value.data.len();
    let mut der = vec![value.tag().0 as u8];
    if length < 0x80 {
        der.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
        der.push(0x80 | significant.len() as u8);
        der.extend_from_slice(significant);
    }
    der.extend_from_slice(value.data);
    der.iter().fold("#".to_owned(), |text, byte| text + &format!("{byte:02X}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    fn subject(parts: Vec<(DnType, DnValue)>) -> String {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind, value);
        }
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, certificate) = X509Certificate::from_der(made.der()).unwrap();
        rfc2253(certificate.subject())
    }

    #[test]
    fn the_last_part_comes_first_with_short_names() {
        let text = subject(vec![
            (DnType::CountryName, "DE".into()),
            (DnType::OrganizationName, "Shop".into()),
            (DnType::CommonName, "web".into()),
        ]);
        assert_eq!(text, "CN=web,O=Shop,C=DE");
        assert_eq!(subject(vec![]), "");
    }

    #[test]
    fn whatever_is_in_a_name_the_text_is_printable_and_unambiguous() {
        let of = |value: &str| subject(vec![(DnType::CommonName, value.into())]);
        assert_eq!(of("a,b+c\"d\\e<f>g;h=i"), r#"CN=a\,b\+c\"d\\e\<f\>g\;h=i"#);
        assert_eq!(of("#a "), r"CN=\#a\ ");
        assert_eq!(of(" "), r"CN=\ ");
        assert_eq!(of("a\r\nx: y"), r"CN=a\0D\0Ax: y");
        assert_eq!(of("ü"), r"CN=\C3\BC");
    }

    #[test]
    fn unknown_attributes_go_by_number_and_bytes() {
        let text = subject(vec![(
            DnType::CustomDnType(vec![1, 2, 3, 4]),
            DnValue::PrintableString("a".try_into().unwrap()),
        )]);
        assert_eq!(text, "1.2.3.4=#130161");
        let bmp = rcgen::string::BmpString::try_from("aü").unwrap();
        assert_eq!(subject(vec![(DnType::CommonName, DnValue::BmpString(bmp))]), r"CN=a\C3\BC");
    }
}
