//! Any PEM: a certificate with its key is served, or the reason is a sentence without a byte of the key. Any server name
//! is answered by the most specific pattern that takes it.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, UNIX_EPOCH};

use fieldgate_fuzz::input::Input;
use fieldgate_wire::tls::{Certificate, SniResolver};
use libfuzzer_sys::fuzz_target;
use rcgen::{CertificateParams, KeyPair};
use rustls::SignatureScheme;

const NAMES: [&str; 8] =
    ["a.example", "*.example", "*.b.example", "C.Example.", "*", "example", "x.y.example", "*.a.example"];

/// An Ed25519 key that everybody knows, so that an input means the same in every run.
static KEY: LazyLock<KeyPair> = LazyLock::new(|| {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([0x42; 32]);
    KeyPair::try_from(der).expect("PKCS#8")
});

static CERTIFICATE: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| {
    let names = vec!["Shop.Example.com".to_owned(), "*.example.org".to_owned(), "10.0.0.1".to_owned()];
    let signed = CertificateParams::new(names).expect("names").self_signed(&*KEY).expect("signed");
    (signed.der().to_vec(), KEY.serialize_pem())
});

static BY_PATTERN: LazyLock<Vec<Arc<Certificate>>> = LazyLock::new(|| {
    let one = |name: &&str| {
        let params = CertificateParams::new(vec![name.trim_end_matches('.').to_owned()]).expect("a name");
        let pem = params.self_signed(&*KEY).expect("signed").pem();
        Arc::new(Certificate::from_pem(pem.as_bytes(), CERTIFICATE.1.as_bytes()).expect("valid"))
    };
    NAMES.iter().map(one).collect()
});

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    match input.below(3) {
        0 => {
            let (chain, key) = (input.line(), input.0);
            let key = if key.is_empty() { CERTIFICATE.1.as_bytes() } else { key };
            check(chain, key);
        }
        1 => check(edited(&mut input).as_bytes(), CERTIFICATE.1.as_bytes()),
        _ => check_names(&mut input),
    }
});

fn check(chain: &[u8], key: &[u8]) {
    let certificate = match Certificate::from_pem(chain, key) {
        Ok(certificate) => certificate,
        Err(error) => {
            let told = error.to_string();
            let encoded =
                |l: &str| l.len() > 24 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
            let shown = String::from_utf8_lossy(key).lines().any(|l| encoded(l) && told.contains(l));
            return assert!(!told.is_empty() && !shown, "{told}");
        }
    };
    assert!(certificate.names().iter().all(|n| !n.bytes().any(|b| b.is_ascii_uppercase())));
    for name in certificate.names() {
        let host = name.strip_prefix("*.").map_or_else(|| name.clone(), |parent| format!("x.{parent}"));
        assert!(certificate.covers(&host), "{name}");
        assert!(!certificate.covers(&format!("y.x.{host}")) || certificate.names().len() > 1);
    }
    for now in [0, 1_700_000_000, u32::MAX.into()] {
        for warning in certificate.warnings(UNIX_EPOCH + Duration::from_secs(now)) {
            assert!(!warning.to_string().is_empty());
        }
    }
    assert!(!format!("{certificate:?}").contains("PRIVATE"));
    let _ = certificate.expires_at();
}

/// The certificate with bytes changed, put in or taken out: no fuzzer gets through base64 by itself.
fn edited(input: &mut Input<'_>) -> String {
    let mut der = CERTIFICATE.0.clone();
    while !input.is_empty() && !der.is_empty() {
        let (what, at, byte) = (input.below(4), usize::from(input.u16()) % der.len(), input.byte());
        match what {
            0 => drop(der.remove(at)),
            1 => der.insert(at, byte),
            2 => der.truncate(at),
            _ => der[at] = byte,
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64(&der))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
        out.extend((0..4).map(|at| if at <= group.len() { digit(at) } else { '=' }));
    }
    out
}

fn check_names(input: &mut Input<'_>) {
    let set = input.byte();
    let entries = || (0..8).filter(|at| set & (1 << at) > 0).map(|at| (NAMES[at], [BY_PATTERN[at].clone()]));
    let strict = input.rarely(2);
    let resolver = SniResolver::new(entries(), vec![BY_PATTERN[0].clone()], strict);
    let asked = if input.rarely(2) {
        input.text()
    } else {
        format!("{}{}", input.one_of(&["", "z.", "Z.b."]), input.one_of(&NAMES))
    };
    let chosen = resolver.choose(Some(&asked), &[SignatureScheme::ED25519]);
    let host = asked.trim_end_matches('.').to_ascii_lowercase();
    let rank = |pattern: &str| {
        let pattern = pattern.trim_end_matches('.').to_ascii_lowercase();
        match pattern.strip_prefix('*') {
            None => (pattern == host).then_some(usize::MAX),
            Some("") => Some(0),
            Some(suffix) => host.ends_with(suffix).then_some(suffix.len()),
        }
    };
    let best = entries().filter_map(|(pattern, [c])| Some((rank(pattern)?, c))).max_by_key(|(rank, _)| *rank);
    let expected = best.map(|(_, c)| c).or_else(|| (!strict).then(|| BY_PATTERN[0].clone()));
    assert_eq!(chosen.map(|c| c.names()), expected.as_ref().map(|c| c.names()), "{asked} {set:b}");
}
