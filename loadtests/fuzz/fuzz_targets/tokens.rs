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
}
