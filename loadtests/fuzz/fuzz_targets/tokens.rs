//! Tokens: whatever is in one, it is good only if a plain reading of it says so, and nothing of it may be changed then. Sets
//! of keys and places of tokens: whatever is in them, nothing is found that is not there.

#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_core::RequestHead;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{Authentication, Jwks, JwtRule, ObjectKey, TokenPlace};
use fieldgate_fuzz::input::Input;
use fieldgate_plugins::jwt::{Authenticator, Cache, KeySet, KeySource, verify};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const SECRET: [u8; 32] = [7; 32];
const NOW: u64 = 1_700_000_000;
const SKEW: u64 = 60;
const NAMES: [&str; 12] =
    ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "alg", "kid", "crit", "cty", "b64"];

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    json!({ "keys": [{ "kty": "oct", "kid": "a", "k": URL_SAFE_NO_PAD.encode(SECRET) }] }).to_string()
});
static KEYS: LazyLock<KeySet> = LazyLock::new(|| KeySet::parse(DOCUMENT.as_bytes()).expect("sound keys"));

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    match input.below(4) {
        0 => keys(input.0),
        1 => places(&mut input),
        _ => tokens(&mut input),
    }
});

fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn signed(header: &[u8], payload: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &SECRET), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn object(input: &mut Input<'_>, mut object: Value) -> Vec<u8> {
    if input.rarely(8) {
        return input.line().to_vec();
    }
    for _ in 0..input.below(4) {
        let name = input.one_of(&NAMES);
        object[name] = match input.below(8) {
            0 => json!(input.u64()),
            1 => json!(NOW + u64::from(input.u16()) % 200 - 100),
            2 => json!(f64::from_bits(input.u64())),
            3 => json!(input.text()),
            4 => json!([input.text(), input.text()]),
            5 => Value::Null,
            6 => json!({ input.text(): true }),
            _ => json!(true),
        };
    }
    object.to_string().into_bytes()
}

fn tokens(input: &mut Input<'_>) {
    let header = object(input, json!({ "alg": "HS256", "kid": "a" }));
    let payload = object(input, json!({ "iss": "me", "aud": "shop", "exp": NOW }));
    let token = signed(&header, &payload);
    let Ok(good) = verify(&token, &KEYS, "me", &["shop"], wall()) else { return };
    let header: Value = serde_json::from_slice(&header).expect("the header of a good token is JSON");
    let payload: Value = serde_json::from_slice(&payload).expect("the payload of a good token is JSON");
    assert_eq!(header["alg"], "HS256");
    assert!(["crit", "b64", "enc", "zip"].iter().all(|name| header.get(name).is_none()), "{header}");
    assert!(matches!(header.get("kid"), None | Some(Value::String(_))), "{header}");
    assert_eq!(payload["iss"], "me");
    let ours =
        |aud: &Value| aud == "shop" || aud.as_array().is_some_and(|list| list.iter().any(|a| a == "shop"));
    assert!(ours(&payload["aud"]), "{payload}");
    let bound = |name: &str, holds: fn(f64) -> bool| {
        payload.get(name).is_none_or(|value| value.as_f64().is_some_and(holds))
    };
    assert!(bound("exp", |exp| exp >= (NOW - SKEW) as f64), "{payload}");
    assert!(bound("nbf", |nbf| nbf <= (NOW + SKEW) as f64), "{payload}");
    assert!(bound("iat", |iat| iat < (NOW + SKEW + 1) as f64), "{payload}");
    assert_eq!(Value::Object(good.claims), payload);
    let at = usize::from(input.u16()) % token.len();
    let mut changed = token.into_bytes();
    changed[at] ^= 1 << input.below(7);
    let changed = String::from_utf8(changed).expect("seven bits stay ASCII");
    assert!(verify(&changed, &KEYS, "me", &["shop"], wall()).is_err(), "{changed}");
}

fn keys(document: &[u8]) {
    let Ok(keys) = KeySet::parse(document) else { return };
    let read: Value = serde_json::from_slice(document).expect("a set of keys is JSON");
    let there = read["keys"].as_array().expect("it has a list of keys").len();
    assert_eq!(keys.keys().len() + keys.unusable().len(), there);
    assert!(keys.keys().len() > 0);
}

fn places(input: &mut Input<'_>) {
    static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
        let key = ObjectKey { kind: "RequestAuthentication", namespace: "a".into(), name: "a".into() };
        let rule = JwtRule {
            issuer: "me".into(),
            audiences: Vec::new(),
            keys: Jwks::Inline(DOCUMENT.as_str().into()),
            from: vec![
                TokenPlace::Header("authorization".into(), "Bearer ".into()),
                TokenPlace::Param("t".into()),
                TokenPlace::Cookie("t".into()),
            ],
            forward: false,
            payload_header: Some("x-payload".into()),
            claim_headers: vec![("x-claim".into(), vec!["c".into()])],
            clock_skew: Duration::from_secs(SKEW),
        };
        let one = Authentication { key, listeners: Vec::new(), rules: vec![Arc::new(rule)] };
        Authenticator::compile(&[Arc::new(one)], &|_| Arc::new(KeySource::inline(&DOCUMENT)))
    });
    let good = signed(br#"{"alg":"HS256"}"#, &object(input, json!({ "iss": "me", "c": "x" })));
    let with_token = input.rarely(2);
    let text = input.text().replace('T', if with_token { &good } else { "" });
    let mut head = RequestHead::default();
    match input.below(3) {
        0 => head.headers.push(b"authorization", text.as_bytes()),
        1 => head.headers.push(b"cookie", text.as_bytes()),
        _ => head.set_target(&format!("/?{text}")),
    }
    head.headers.push(b"x-payload", b"forged");
    head.headers.push(b"x-claim", b"forged");
    let mut metadata = Metadata::default();
    let passed = AUTHENTICATOR.authenticate(&mut head, &mut metadata, &mut Cache::default(), wall());
    if passed.is_err() {
        assert!(metadata.tokens.is_empty());
        return;
    }
    assert!(with_token || metadata.tokens.is_empty(), "{text}");
    for (_, name, value) in head.headers.iter() {
        assert_ne!(value, b"forged", "{name:?}");
        assert!(
            !value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
                || name == b"authorization"
                || name == b"cookie"
        );
    }
    let mut again = Metadata::default();
    AUTHENTICATOR
        .authenticate(&mut head, &mut again, &mut Cache::default(), wall())
        .expect("what passed once passes again");
    assert!(again.tokens.is_empty(), "a token that is taken off is gone");
//! Tokens and key sets: a token that is believed was signed by a key of the set, byte for byte as it stands, with an algorithm of
//! that key's kind, and says what a plain reading of its claims says. A byte that is changed is noticed.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::hmac;
use fieldgate_fuzz::input::Input;
use fieldgate_plugins::jwt::{CLOCK_SKEW, KeySet, verify, verify_signature};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const SECRET: &[u8; 64] = &[0x5a; 64];
const NOW: u64 = 1_700_000_000;

/// A symmetric key, and public ones of other kinds that must never be taken for one.
static KEYS: LazyLock<KeySet> = LazyLock::new(|| {
    let document = json!({"keys": [
        {"kty": "oct", "kid": "mac", "alg": "HS256", "k": encode(SECRET)},
        {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    ]});
    KeySet::parse(document.to_string().as_bytes()).expect("a key set")
});

const ALGORITHMS: [&str; 10] =
    ["HS256", "HS384", "none", "None", "", "RS256", "ES256", "EdDSA", "PS256", "hs256"];
const KIDS: [&str; 4] = ["mac", "ed", "ec", "other"];

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    match input.below(4) {
        0 => any(&String::from_utf8_lossy(input.0)),
        1 => drop(KeySet::parse(input.0)),
        2 => forged(&mut input),
        _ => signed(&mut input),
    }
});

/// Nobody knows the key, so nothing is believed.
fn any(token: &str) {
    if let Ok(payload) = verify_signature(token, &KEYS) {
        assert!(is_signed(token), "{token}");
        assert!(token.split('.').nth(1) == Some(&encode(&payload)), "{token}");
    }
}

/// An algorithm of another kind, or none, with what could be taken for its key.
fn forged(input: &mut Input<'_>) {
    let (algorithm, kid) = (input.one_of(&ALGORITHMS), input.one_of(&KIDS));
    let key: &[u8] = input.one_of(&[&b""[..], b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", SECRET]);
    let header = json!({"alg": algorithm, "kid": kid});
    let head = format!("{}.{}", encode(header.to_string().as_bytes()), encode(input.0));
    let signature = if key.is_empty() { Vec::new() } else { mac(key, head.as_bytes()) };
    let token = format!("{head}.{}", encode(&signature));
    let good = algorithm == "HS256" && kid == "mac" && key == SECRET;
    assert_eq!(verify_signature(&token, &KEYS).is_ok(), good, "{token}");
}

/// Claims as somebody writes them, signed; then a byte of it changes.
fn signed(input: &mut Input<'_>) {
    let time = |input: &mut Input<'_>| NOW as i64 + i64::from(input.u16()) - 32_768;
    let mut claims =
        json!({"iss": input.one_of(&["us", "them"]), "sub": input.text(), "aud": input.one_of(&["a", "b"])});
    if input.below(2) == 1 {
        claims["aud"] = json!([input.one_of(&["a", "b", "c"]), "d"]);
    }
    for name in ["exp", "nbf"] {
        if input.below(2) == 1 {
            claims[name] = json!(time(input));
        }
    }
    let header = json!({"alg": "HS256", "kid": "mac"}).to_string();
    let head = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
    let token = format!("{head}.{}", encode(&mac(SECRET, head.as_bytes())));
    let wall = UNIX_EPOCH + Duration::from_secs(NOW);
    let result = verify(&token, &KEYS, "us", &["a"], wall);
    assert_eq!(result.is_ok(), holds(&claims), "{claims}: {result:?}");
    if let Ok(told) = result {
        assert_eq!(
            (told.issuer.as_str(), told.subject.as_str()),
            ("us", claims["sub"].as_str().unwrap_or_default())
        );
    }
    let mut bytes = token.clone().into_bytes();
    let at = usize::from(input.u16()) % bytes.len();
    bytes[at] = input.byte();
    let changed = String::from_utf8_lossy(&bytes).into_owned();
    if changed != token {
        assert!(verify_signature(&changed, &KEYS).is_err(), "{changed} for {token}");
    }
}

/// What the claims say, read plainly. Seconds at the very edge of the skew are left to the gateway.
fn holds(claims: &Value) -> bool {
    let audience = match &claims["aud"] {
        Value::Array(all) => all.contains(&json!("a")),
        one => one == "a",
    };
    let (now, skew) = (NOW as i64, CLOCK_SKEW.as_secs() as i64);
    let in_time = claims["exp"].as_i64().is_none_or(|exp| now <= exp + skew)
        && claims["nbf"].as_i64().is_none_or(|nbf| now + skew >= nbf);
    claims["iss"] == "us" && audience && in_time
}

fn is_signed(token: &str) -> bool {
    let Some((head, signature)) = token.rsplit_once('.') else { return false };
    signature == encode(&mac(SECRET, head.as_bytes()))
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

/// base64url without padding (RFC 7515 section 2), written plainly.
fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(word >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}
