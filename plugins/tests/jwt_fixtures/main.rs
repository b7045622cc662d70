//! Tokens, keys and signatures of Wycheproof and of Envoy's own tests: each must be judged as they say, but for those that
//! are named here with the reason.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fieldgate_plugins::jwt::{KeySet, Refusal, verify, verify_signature};
use serde_json::{Value, json};

const RENAMED: &str =
    "the key's alg is another than the token's, and a key is for its alg only (RFC 7517 section 4.4)";
const TYPO: &str = "the key's alg, ES521, is none, so nobody knows what the key is for";
const NOT_BASE64: &str = "a ? stands in base64, where RFC 7515 section 2 has no place for it";
const LOST: &str = "the text is that of 357, a valid token: the padding that it is about is not in it";
const SAME_NAME: &str =
    "RFC 7517 section 4.5 lets keys have the same name, and Envoy tries both; both are the issuer's";

/// What is judged otherwise, by file and number.
const OTHERWISE: [(&str, u64, &str); 9] = [
    ("json_web_signature", 346, RENAMED),
    ("json_web_signature", 347, TYPO),
    ("json_web_signature", 350, RENAMED),
    ("json_web_signature", 351, TYPO),
    ("json_web_signature", 367, LOST),
    ("json_web_signature", 370, LOST),
    ("json_web_signature", 372, NOT_BASE64),
    ("json_web_signature", 373, NOT_BASE64),
    ("json_web_key", 4, SAME_NAME),
];

fn read(path: &str) -> Option<Value> {
    let Some(root) = std::env::var_os("FIELDGATE_FIXTURES") else {
        println!("skipped: FIELDGATE_FIXTURES is not set");
        return None;
    };
    let path = PathBuf::from(root).join(path);
    Some(serde_json::from_slice(&std::fs::read(&path).expect("the fixture can be read")).expect("it is JSON"))
}

fn wycheproof(name: &str) -> Option<Value> {
    read(&format!("wycheproof-jose/testvectors_v1/{name}_test.json"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A set of one key, or the set that it is.
fn set(key: &Value) -> Value {
    if key.get("keys").is_some() { key.clone() } else { json!({ "keys": [key] }) }
}

fn accepts(keys: &Value, token: &str) -> bool {
    KeySet::parse(keys.to_string().as_bytes()).is_ok_and(|keys| verify_signature(token, &keys).is_ok())
}

/// Holds all tokens of a file against what is expected of them, and says how many there were.
fn check_tokens(name: &str) -> usize {
    let Some(file) = wycheproof(name) else { return 0 };
    let mut seen = 0;
    for group in list(&file["testGroups"]) {
        let key = group.get("public").unwrap_or(&group["private"]);
        for test in list(&group["tests"]) {
            let id = test["tcId"].as_u64().expect("a number");
            // The serialization in JSON is no text; as one it is refused like any other that is no token. Encrypted
            // tokens are refused whatever is in them.
            let (token, encrypted) = match (test.get("jws"), test.get("jwe")) {
                (Some(token), _) => (token, false),
                (None, Some(token)) => (token, true),
                _ => panic!("{name} {id} has no token"),
            };
            let token = token.as_str().map_or_else(|| token.to_string(), str::to_owned);
            let otherwise = OTHERWISE.iter().any(|(file, number, _)| *file == name && *number == id);
            let expected = (test["result"] == "valid" && !encrypted) != otherwise;
            assert_eq!(accepts(&set(key), &token), expected, "{name} {id} {}", test["comment"]);
            seen += 1;
        }
    }
    seen
}

#[test]
fn signed_tokens_are_judged_as_wycheproof_says() {
    if wycheproof("json_web_signature").is_some() {
        assert_eq!(check_tokens("json_web_signature"), 401);
        assert_eq!(check_tokens("json_web_key"), 26);
        assert_eq!(check_tokens("json_web_crypto"), 83);
        assert_eq!(check_tokens("json_web_encryption"), 139);
    }
}

#[test]
fn tokens_are_judged_as_envoy_says() {
    let Some(file) = read("envoy-derived/jwt_vectors.json") else { return };
    let keys = KeySet::parse(file["jwks"].to_string().as_bytes()).expect("sound keys");
    let audiences = ["example_service", "http://example_service1", "https://example_service2/"];
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let check = |name: &str, issuer: &str, audiences: &[&str]| {
        let token = text(&file["vectors"][name]["jwt"]);
        assert!(!token.is_empty(), "{name}");
        verify(token, &keys, issuer, audiences, now)
    };
    for name in ["GoodToken", "GoodTokenWithSpaces", "NestedGoodToken"] {
        let token = check(name, "https://example.com", &audiences).expect(name);
        assert_eq!(token.principal, "https://example.com/test@example.com");
        assert_eq!(Value::Object(token.claims), file["vectors"][name]["payload"], "{name}");
    }
    let refused = |name: &str| check(name, "https://example.com", &audiences).expect_err(name);
    assert_eq!(refused("NonExpiringToken"), Refusal::AudienceNotAllowed);
    // Envoy takes it where its tests do without keys. None of the file's keys has signed it (its signature is another
    // hash's under each of them), so that it comes as far as that here.
    assert_eq!(check("NonExpiringToken", "https://example.com", &[]), Err(Refusal::BadSignature));
    assert_eq!(refused("ExpiredToken"), Refusal::Expired);
    assert_eq!(refused("NotYetValidToken"), Refusal::NotYetValid);
    assert_eq!(refused("InvalidAudToken"), Refusal::AudienceNotAllowed);
    // Its name is wrong: it names no key, so that each is tried, and none of them has signed it.
    assert_eq!(refused("NonExistKidToken"), Refusal::BadSignature);
    assert_eq!(refused("OtherGoodToken"), Refusal::UnknownIssuer);
    assert_eq!(refused("ES256WithoutIssToken"), Refusal::UnknownIssuer);
    check("OtherGoodToken", "https://other.com", &["other_service"]).expect("a token of another issuer");
    let es256 = KeySet::parse(text(&file["constants"]["ES256PublicKey"]).as_bytes()).expect("sound keys");
    let token = text(&file["vectors"]["ES256WithoutIssToken"]["jwt"]);
    verify(token, &es256, "", &["example_service"], now).expect("a token without an issuer");
    assert_eq!(verify(token, &es256, "https://example.com", &audiences, now), Err(Refusal::UnknownIssuer));
}
