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

/// A symmetric key.
static KEYS: LazyLock<KeySet> =
    LazyLock::new(|| set(&json!([{"kty": "oct", "kid": "mac", "alg": "HS256", "k": encode(SECRET)}])));

/// Public keys, which everybody has, and none may be taken for a symmetric one.
static PUBLIC: LazyLock<KeySet> = LazyLock::new(|| {
    set(&json!([
        {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "EC", "kid": "ec", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
         "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
    ]))
});

fn set(keys: &serde_json::Value) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a key set")
}

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
    assert!(verify_signature(&token, &PUBLIC).is_err(), "{token}");
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
