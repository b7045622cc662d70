//! `x-forwarded-client-cert`: who a client has proved to be, told to backends as Envoy tells it.
//!
//! A field holds elements, one for each proxy on the way, separated by commas; an element holds pairs `Key=value`, separated
//! by semicolons. Values with separators in them are quoted. What is written here is written by a gateway that has verified
//! the certificate; what is read here has been written by somebody, and who that was is not known here.

mod read;

pub use read::{Element, XfccError, parse};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::identity::PeerIdentity;
use crate::ir::ClientCertDetails;

/// The element for a peer, as Envoy writes it. `by`: URI names of the certificate that the gateway has shown.
pub fn element(peer: &PeerIdentity, by: &[Box<str>], details: ClientCertDetails) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    for uri in by {
        pair(&mut out, "By", uri);
    }
    pair(&mut out, "Hash", &peer.hash);
    if details.cert {
        quoted_pems(&mut out, "Cert", [&*peer.der]);
    }
    if details.chain {
        quoted_pems(&mut out, "Chain", peer.chain.iter().map(|der| &**der));
    }
    if details.subject {
        key(&mut out, "Subject");
        out.push(b'"');
        // RFC 2253 has put a backslash before quotes already.
        out.extend_from_slice(peer.subject.as_bytes());
        out.push(b'"');
    }
    if details.uri {
        for uri in &peer.uris {
            pair(&mut out, "URI", uri);
        }
        if peer.uris.is_empty() {
            // Envoy writes the key whether there is a name or not.
            key(&mut out, "URI");
        }
    }
    if details.dns {
        for name in &peer.dns {
            pair(&mut out, "DNS", name);
        }
    }
    out
}

fn key(out: &mut Vec<u8>, key: &str) {
    if !out.is_empty() {
        out.push(b';');
    }
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
}

fn pair(out: &mut Vec<u8>, name: &str, value: &str) {
    key(out, name);
    if !value.bytes().any(|byte| matches!(byte, b',' | b';' | b'=' | b'"')) {
        return out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
    for byte in value.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            // It has no place in a URI or a DNS name, and at the end of one it would keep the quote from ending the value:
            // what follows could then be read as other pairs.
            b'\\' => out.extend_from_slice(b"%5C"),
            other => out.push(other),
        }
    }
    out.push(b'"');
}

/// PEM with what is not itself in a query percent-encoded, as Envoy has it.
fn quoted_pems<'a>(out: &mut Vec<u8>, name: &str, ders: impl IntoIterator<Item = &'a [u8]>) {
    let mut ders = ders.into_iter().peekable();
    if ders.peek().is_none() {
        return;
    }
    key(out, name);
    out.push(b'"');
    for der in ders {
        out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
        for line in STANDARD.encode(der).as_bytes().chunks(64) {
            for byte in line {
                match byte {
                    b'+' => out.extend_from_slice(b"%2B"),
                    b'/' => out.extend_from_slice(b"%2F"),
                    b'=' => out.extend_from_slice(b"%3D"),
                    other => out.push(*other),
                }
            }
            out.extend_from_slice(b"%0A");
        }
        out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn web() -> PeerIdentity {
        PeerIdentity {
            uris: vec!["spiffe://td/ns/shop/sa/web".into()],
            dns: vec!["web.shop".into(), "www.shop".into()],
            subject: "CN=web,O=Shop".into(),
            hash: "ab12".into(),
            der: (*b"\xfb\xff\xfe").into(),
            chain: vec![(*b"\xfb\xff\xfe").into(), (*b"a").into()],
        }
    }

    fn text(peer: &PeerIdentity, by: &[Box<str>], details: ClientCertDetails) -> String {
        String::from_utf8(element(peer, by, details)).unwrap()
    }

    const NOTHING: ClientCertDetails =
        ClientCertDetails { cert: false, chain: false, subject: false, uri: false, dns: false };

    #[test]
    fn pairs_come_in_the_order_of_envoy() {
        let all = ClientCertDetails { cert: true, chain: true, subject: true, uri: true, dns: true };
        let pem = |base64: &str| {
            format!("-----BEGIN%20CERTIFICATE-----%0A{base64}%0A-----END%20CERTIFICATE-----%0A")
        };
        let (leaf, other) = (pem("%2B%2F%2F%2B"), pem("YQ%3D%3D"));
        assert_eq!(
            text(&web(), &["spiffe://td/ns/edge/sa/gateway".into()], all),
            format!(
                "By=spiffe://td/ns/edge/sa/gateway;Hash=ab12;Cert=\"{leaf}\";Chain=\"{leaf}{other}\";\
                 Subject=\"CN=web,O=Shop\";URI=spiffe://td/ns/shop/sa/web;DNS=web.shop;DNS=www.shop"
            )
        );
        assert_eq!(text(&web(), &[], NOTHING), "Hash=ab12");
    }

    #[test]
    fn subject_and_uri_are_written_even_if_there_is_none() {
        let nobody = PeerIdentity { hash: "00".into(), ..PeerIdentity::default() };
        let details = ClientCertDetails { subject: true, uri: true, dns: true, ..NOTHING };
        assert_eq!(text(&nobody, &[], details), "Hash=00;Subject=\"\";URI=");
    }

    #[test]
    fn a_name_with_separators_stays_one_value() {
        let sly = PeerIdentity {
            uris: vec!["x:a;By=b,Hash=c".into()],
            hash: "00".into(),
            ..PeerIdentity::default()
        };
        let written = text(&sly, &[], ClientCertDetails { uri: true, ..NOTHING });
        assert_eq!(written, "Hash=00;URI=\"x:a;By=b,Hash=c\"");
        let read = parse(written.as_bytes()).unwrap();
        assert_eq!((read.len(), read[0].all("by").count()), (1, 0));
    }

    #[test]
    fn a_backslash_does_not_keep_a_value_open() {
        let sly = PeerIdentity {
            uris: vec!["a,\\".into(), ";Hash=11;By=".into()],
            hash: "00".into(),
            ..PeerIdentity::default()
        };
        let read = parse(text(&sly, &[], ClientCertDetails { uri: true, ..NOTHING }).as_bytes()).unwrap();
        assert_eq!((read.len(), read[0].all("hash").collect::<Vec<_>>()), (1, vec!["00"]));
        assert_eq!(read[0].all("uri").collect::<Vec<_>>(), ["a,%5C", ";Hash=11;By="]);
    }

    proptest! {
        /// Whatever is in a certificate, exactly that is read from what is written of it.
        #[test]
        fn what_is_written_is_read(
            uris in prop::collection::vec("[!-~&&[^\"\\\\]]{1,20}", 0..3),
            dns in prop::collection::vec("[!-~&&[^\"\\\\]]{1,20}", 0..3),
            // Text of RFC 2253: a backslash is followed by what it escapes.
            subject in "([ -~&&[^\"\\\\]]|\\\\[,+\\\\<>;]){0,20}",
            der in prop::collection::vec(any::<u8>(), 0..100),
            details in any::<[bool; 5]>(),
        ) {
            let [cert, chain, with_subject, uri, with_dns] = details;
            let details = ClientCertDetails { cert, chain, subject: with_subject, uri, dns: with_dns };
            let boxed = |names: &[String]| names.iter().map(|name| name.as_str().into()).collect::<Vec<Box<str>>>();
            let peer = PeerIdentity {
                uris: boxed(&uris), dns: boxed(&dns), subject: subject.as_str().into(), hash: "00ff".into(),
                der: der.as_slice().into(), chain: vec![der.as_slice().into()],
            };
            let twice = [element(&peer, &boxed(&uris), details), element(&peer, &[], details)].join(&b","[..]);
            let read = parse(&twice).unwrap();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(read[0].all("By").collect::<Vec<_>>(), uris.clone());
            prop_assert_eq!(read[1].first("hash"), Some("00ff"));
            if uri && !uris.is_empty() {
                prop_assert_eq!(read[1].all("URI").collect::<Vec<_>>(), uris);
            }
            if with_dns {
                prop_assert_eq!(read[1].all("dns").collect::<Vec<_>>(), dns);
            }
            prop_assert_eq!(read[0].first("Subject"), with_subject.then_some(&*subject));
            prop_assert_eq!(read[0].first("Cert").is_some(), cert);
        }
    }
}
