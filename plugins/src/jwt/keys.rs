//! Sets of keys (RFC 7517), each key ready to check signatures.
//!
//! A key is used only for what it says that it is for, and only with algorithms of its own type: a public key is never
//! taken for a secret. Keys that cannot be used are left out with a reason, as RFC 7517 section 5 wants it; a set of which
//! nothing is left is none.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, OF_RSA, OF_SECRETS};
use super::{json, rsa};

/// Bytes of a document.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Keys of a set that are used: a token that names none is tried with each of its type.
pub const MAX_KEYS: usize = 64;

/// Keys, none of which changes.
pub struct KeySet {
    id: u64,
    keys: Vec<Key>,
    unusable: Vec<Unusable>,
}

/// A key that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Its name, if it has one.
    pub kid: Option<Box<str>>,
    /// Why.
    pub reason: &'static str,
}

/// Why a text is no set of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadKeySet {
    /// Longer than [`MAX_DOCUMENT_BYTES`].
    TooLong,
    /// Not JSON, or a name is there twice.
    NotJson,
    /// There is no list `keys`.
    NoKeys,
    /// No key can be used; why not the first.
    NoUsableKey(Option<&'static str>),
}

impl fmt::Display for BadKeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "it is longer than {MAX_DOCUMENT_BYTES} bytes"),
            Self::NotJson => f.write_str("it is not a JSON object, or one that has a name twice"),
            Self::NoKeys => f.write_str("it has no list \"keys\""),
            Self::NoUsableKey(None) => f.write_str("it has no key"),
            Self::NoUsableKey(Some(why)) => write!(f, "it has no key that can be used: {why}"),
        }
    }
}

impl std::error::Error for BadKeySet {}

/// A key as it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo<'a> {
    /// Its name, if it has one.
    pub kid: Option<&'a str>,
    /// `RSA`, `EC`, `OKP` or `oct`.
    pub kty: &'static str,
    /// The one algorithm that it is for, if it says so.
    pub alg: Option<&'static str>,
}

pub(super) struct Key {
    kid: Option<Box<str>>,
    alg: Option<Algorithm>,
    material: Material,
}

enum Material {
    /// One for each algorithm, so that nothing is parsed when a token comes.
    Public(&'static str, Vec<(Algorithm, ParsedPublicKey)>),
    Secret(Vec<(Algorithm, hmac::Key)>),
}

impl KeySet {
    /// Reads a document.
    pub fn parse(document: &[u8]) -> Result<Self, BadKeySet> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(BadKeySet::TooLong);
        }
        let document = json::object(document).ok_or(BadKeySet::NotJson)?;
        let Some(Value::Array(list)) = document.get("keys") else { return Err(BadKeySet::NoKeys) };
        let (mut keys, mut unusable) = (Vec::new(), Vec::new());
        for key in list {
            match Key::of(key) {
                Ok(_) if keys.len() == MAX_KEYS => {
                    unusable.push(Unusable::of(key, "the set has more than 64 keys"));
                }
                Ok(key) => keys.push(key),
                Err(reason) => unusable.push(Unusable::of(key, reason)),
            }
        }
        // What everybody may know and what nobody may know do not go together: one of the two is a mistake.
        if keys.iter().any(|key| !key.is_secret()) {
            let secrets = keys.extract_if(.., |key| key.is_secret());
            let reason = "a secret among public keys";
            unusable.extend(secrets.map(|key| Unusable { kid: key.kid, reason }));
        }
        if keys.is_empty() {
            return Err(BadKeySet::NoUsableKey(unusable.first().map(|key| key.reason)));
        }
        Ok(Self { id: IDS.fetch_add(1, Ordering::Relaxed), keys, unusable })
    }

    /// A number that no other set has, though it were read from the same text.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What may be shown of the keys.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = KeyInfo<'_>> {
        self.keys.iter().map(Key::info)
    }

    /// Keys of the document that are not used.
    pub fn unusable(&self) -> &[Unusable] {
        &self.unusable
    }

    /// Those that may have signed a token with this header. A key without a name may be any.
    pub(super) fn candidates(&self, algorithm: Algorithm, kid: Option<&str>) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| {
            let named = match (kid, &key.kid) {
                (Some(kid), Some(own)) => *kid == **own,
                _ => true,
            };
            named && key.does(algorithm)
        })
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys()).finish()
    }
}

impl Key {
    fn of(key: &Value) -> Result<Self, &'static str> {
        let Value::Object(fields) = key else { return Err("a key is not an object") };
        let kid = match fields.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.as_str().into()),
            Some(_) => return Err("kid is not a string"),
        };
        let alg = match fields.get("alg") {
            None => None,
            Some(Value::String(name)) => {
                Some(Algorithm::named(name).ok_or("alg is not one that signs tokens")?)
            }
            Some(_) => return Err("alg is not a string"),
        };
        may_verify(fields)?;
        let material = match text(fields, "kty")? {
            "RSA" => Material::Public("RSA", of_rsa(fields, alg)?),
            "EC" => Material::Public("EC", of_curve(fields, alg)?),
            "OKP" => Material::Public("OKP", of_edwards(fields, alg)?),
            "oct" => Material::Secret(of_secret(fields, alg)?),
            _ => return Err("kty is not RSA, EC, OKP or oct"),
        };
        Ok(Self { kid, alg, material })
    }

    fn info(&self) -> KeyInfo<'_> {
        let kty = match &self.material {
            Material::Public(kty, _) => kty,
            Material::Secret(_) => "oct",
        };
        KeyInfo { kid: self.kid.as_deref(), kty, alg: self.alg.map(Algorithm::name) }
    }

    /// Whether it has a name.
    pub fn is_named(&self) -> bool {
        self.kid.is_some()
    }

    fn is_secret(&self) -> bool {
        matches!(self.material, Material::Secret(_))
    }

    fn does(&self, algorithm: Algorithm) -> bool {
        match &self.material {
            Material::Public(_, keys) => keys.iter().any(|(of, _)| *of == algorithm),
            Material::Secret(keys) => keys.iter().any(|(of, _)| *of == algorithm),
        }
    }

    /// Whether it has signed this.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Public(_, keys) => {
                let key = keys.iter().find(|(of, _)| *of == algorithm);
                key.is_some_and(|(_, key)| key.verify_sig(message, signature).is_ok())
            }
            Material::Secret(keys) => {
                let key = keys.iter().find(|(of, _)| *of == algorithm);
                key.is_some_and(|(_, key)| hmac::verify(key, message, signature).is_ok())
            }
        }
    }
}

impl Unusable {
    fn of(key: &Value, reason: &'static str) -> Self {
        Self { kid: key.get("kid").and_then(Value::as_str).map(Into::into), reason }
    }
}

/// `use` and `key_ops` (RFC 7517 sections 4.2 and 4.3).
fn may_verify(fields: &Map<String, Value>) -> Result<(), &'static str> {
    match fields.get("use") {
        None => {}
        Some(Value::String(what)) if what == "sig" => {}
        Some(_) => return Err("use is not sig"),
    }
    match fields.get("key_ops") {
        None => Ok(()),
        Some(Value::Array(list)) if list.iter().any(|op| op == "verify") => Ok(()),
        Some(_) => Err("key_ops does not have verify"),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, &'static str> {
    fields.get(name).and_then(Value::as_str).ok_or(match name {
        "kty" => "kty is missing",
        "crv" => "crv is missing",
        _ => "a number of the key is missing",
    })
}

fn bytes(fields: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    URL_SAFE_NO_PAD.decode(text(fields, name)?).map_err(|_| "a number of the key is not base64url")
}

/// A number without leading zeros, which some write though RFC 7518 section 2 forbids it.
fn number(fields: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let mut number = bytes(fields, name)?;
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.drain(..zeros);
    Ok(number)
}

fn of_rsa(
    fields: &Map<String, Value>,
    alg: Option<Algorithm>,
) -> Result<Vec<(Algorithm, ParsedPublicKey)>, &'static str> {
    let (n, e) = (number(fields, "n")?, number(fields, "e")?);
    if let Some(why) = rsa::weakness(&n, &e) {
        return Err(why);
    }
    let wanted = alg.as_ref().map_or(&OF_RSA[..], std::slice::from_ref);
    let parse = |algorithm: &Algorithm| {
        let parameters = algorithm.rsa().ok_or("alg is not one of RSA")?;
        let key = RsaPublicKeyComponents { n: &n, e: &e }.to_parsed_public_key(parameters);
        Ok((*algorithm, key.map_err(|_| "the RSA key is not sound")?))
    };
    wanted.iter().map(parse).collect()
}

fn of_curve(
    fields: &Map<String, Value>,
    alg: Option<Algorithm>,
) -> Result<Vec<(Algorithm, ParsedPublicKey)>, &'static str> {
    let (algorithm, length) = match text(fields, "crv")? {
        "P-256" => (Algorithm::Es256, 32),
        "P-384" => (Algorithm::Es384, 48),
        "P-521" => (Algorithm::Es512, 66),
        _ => return Err("crv is not P-256, P-384 or P-521"),
    };
    // Uncompressed (SEC 1 section 2.3.3).
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = number(fields, name)?;
        let missing = length - coordinate.len().min(length);
        point.extend(std::iter::repeat_n(0, missing));
        point.extend(coordinate);
    }
    on_curve(algorithm, alg, &point)
}

fn of_edwards(
    fields: &Map<String, Value>,
    alg: Option<Algorithm>,
) -> Result<Vec<(Algorithm, ParsedPublicKey)>, &'static str> {
    match text(fields, "crv")? {
        "Ed25519" => on_curve(Algorithm::EdDsa, alg, &bytes(fields, "x")?),
        _ => Err("crv is not Ed25519"),
    }
}

fn on_curve(
    algorithm: Algorithm,
    alg: Option<Algorithm>,
    point: &[u8],
) -> Result<Vec<(Algorithm, ParsedPublicKey)>, &'static str> {
    let parameters = algorithm.curve().filter(|_| alg.is_none_or(|alg| alg == algorithm));
    let parameters = parameters.ok_or("alg is not the one of the curve")?;
    let key = ParsedPublicKey::new(parameters, point).map_err(|_| "the point is not on the curve")?;
    Ok(vec![(algorithm, key)])
}

fn of_secret(
    fields: &Map<String, Value>,
    alg: Option<Algorithm>,
) -> Result<Vec<(Algorithm, hmac::Key)>, &'static str> {
    let secret = bytes(fields, "k")?;
    let wanted = alg.as_ref().map_or(&OF_SECRETS[..], std::slice::from_ref);
    let mut keys = Vec::new();
    for algorithm in wanted {
        let parameters = algorithm.hmac().ok_or("alg is not one of secrets")?;
        // RFC 7518 section 3.2: as long as the hash at least.
        if secret.len() >= parameters.digest_algorithm().output_len() {
            keys.push((*algorithm, hmac::Key::new(parameters, &secret)));
        }
    }
    if keys.is_empty() { Err("the secret is shorter than the hash") } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn unhex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }

    /// The key of a group of Wycheproof's vectors.
    fn key_of(group: &Value) -> Value {
        let given = group.get("publicKeyJwk").or_else(|| group.get("keyJwk"));
        given.cloned().unwrap_or_else(|| {
            let number = |name: &str| {
                let number = unhex(group["publicKey"][name].as_str().expect("a number"));
                URL_SAFE_NO_PAD.encode(&number[number.iter().take_while(|byte| **byte == 0).count()..])
            };
            if group["publicKey"]["curve"] == "secp256r1" {
                return json!({ "kty": "EC", "crv": "P-256", "x": number("wx"), "y": number("wy") });
            }
            json!({ "kty": "RSA", "n": number("modulus"), "e": number("publicExponent") })
        })
    }

    #[test]
    fn signatures_are_judged_as_wycheproof_says() {
        let Some(root) = std::env::var_os("FIELDGATE_FIXTURES") else {
            println!("skipped: FIELDGATE_FIXTURES is not set");
            return;
        };
        let folder = std::path::Path::new(&root).join("wycheproof-jose/testvectors_v1");
        for (name, algorithm, count) in [
            ("ecdsa_secp256r1_sha256_p1363", Algorithm::Es256, 262),
            ("ed25519", Algorithm::EdDsa, 151),
            ("rsa_signature_2048_sha256", Algorithm::Rs256, 259),
        ] {
            let text =
                std::fs::read(folder.join(format!("{name}_test.json"))).expect("the fixture can be read");
            let file: Value = serde_json::from_slice(&text).expect("it is JSON");
            let mut seen = 0;
            for group in file["testGroups"].as_array().expect("a list") {
                let key = Key::of(&key_of(group));
                for test in group["tests"].as_array().expect("a list") {
                    let hex = |name: &str| unhex(test[name].as_str().expect("hexadecimal"));
                    let verified =
                        key.as_ref().is_ok_and(|key| key.verifies(algorithm, &hex("msg"), &hex("sig")));
                    // What is acceptable may be refused.
                    let expected = test["result"] != "invalid";
                    assert!(
                        verified == expected || (!verified && test["result"] == "acceptable"),
                        "{name} {} {}: {verified}, {:?}",
                        test["tcId"],
                        test["comment"],
                        key.as_ref().err(),
                    );
                    seen += 1;
                }
            }
            assert_eq!(seen, count, "{name}");
        }
    }

    fn reason(key: &Value) -> Option<&'static str> {
        KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).err().and_then(|bad| match bad {
            BadKeySet::NoUsableKey(why) => why,
            _ => None,
        })
    }

    #[test]
    fn keys_that_are_for_something_else_are_left_out() {
        let secret = URL_SAFE_NO_PAD.encode([7; 64]);
        let key = |name: &str, value: Value| {
            let mut key = json!({ "kty": "oct", "k": secret });
            key[name] = value;
            key
        };
        for (name, value) in [
            ("alg", json!("HS512")),
            ("use", json!("sig")),
            ("key_ops", json!(["sign", "verify"])),
            ("kid", json!("a")),
        ] {
            assert_eq!(reason(&key(name, value)), None, "{name}");
        }
        for (name, value) in [
            ("alg", json!("RS256")),
            ("alg", json!("none")),
            ("alg", json!(1)),
            ("use", json!("enc")),
            ("use", json!(null)),
            ("key_ops", json!(["sign"])),
            ("key_ops", json!("verify")),
            ("kid", json!(7)),
            ("kty", json!("RSA")),
            ("kty", json!(null)),
            ("k", json!("")),
            ("k", json!("AAAA")),
            ("k", json!("====")),
        ] {
            assert!(reason(&key(name, value.clone())).is_some(), "{name} {value}");
        }
    }

    #[test]
    fn a_set_has_a_bound_and_only_one_sort_of_keys() {
        let secret = |kid: usize| json!({ "kty": "oct", "kid": kid.to_string(), "k": URL_SAFE_NO_PAD.encode([7; 64]) });
        let parse = |keys: Vec<Value>| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
        let many = parse((0..MAX_KEYS + 2).map(secret).collect()).expect("keys");
        assert_eq!((many.keys().len(), many.unusable().len()), (MAX_KEYS, 2));
        let public = json!({
            "kty": "OKP", "crv": "Ed25519", "kid": "p", "x": "fU0Of2FTpptiQrUiq77mhf2kQg-INLEIw72uNp71Sfo"
        });
        let mixed = parse(vec![secret(0), public]).expect("keys");
        assert_eq!(mixed.keys().map(|key| key.kty).collect::<Vec<_>>(), ["OKP"]);
        assert_eq!(mixed.unusable()[0].kid.as_deref(), Some("0"));
        assert_ne!(many.id(), mixed.id());
        assert!(!format!("{many:?}").contains("BwcH"), "{many:?}");
        assert_eq!(parse(Vec::new()).unwrap_err(), BadKeySet::NoUsableKey(None));
        assert_eq!(KeySet::parse(b"{}").unwrap_err(), BadKeySet::NoKeys);
        assert_eq!(KeySet::parse(b"<html>").unwrap_err(), BadKeySet::NotJson);
        assert_eq!(KeySet::parse(&vec![b' '; MAX_DOCUMENT_BYTES + 1]).unwrap_err(), BadKeySet::TooLong);
    }
}
