use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{Authentication, Jwks, JwtRule, ObjectKey, RemoteJwks, TokenPlace};
use fieldgate_core::{Method, RequestHead};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: u64 = 1_700_000_000;

fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Somebody who makes tokens.
struct Signer {
    pair: Ed25519KeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str, seed: u8) -> Self {
        Self { pair: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("a key"), kid }
    }

    fn key(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "x": x })
    }

    fn document(&self) -> String {
        json!({ "keys": [self.key()] }).to_string()
    }

    fn keys(&self) -> KeySet {
        KeySet::parse(self.document().as_bytes()).expect("keys")
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_text(&json!({ "alg": "EdDSA", "kid": self.kid }).to_string(), &claims.to_string())
    }

    fn sign_text(&self, header: &str, payload: &str) -> String {
        sign_with(header, payload, |text| self.pair.sign(text).as_ref().to_vec())
    }
}

fn sign_with(header: &str, payload: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(sign(text.as_bytes()));
    format!("{text}.{signature}")
}

fn good() -> Value {
    json!({ "iss": "https://issuer", "sub": "me", "aud": ["shop", "other"], "exp": NOW + 60 })
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = good();
    claims[name] = value.into();
    claims
}

#[test]
fn a_good_token_says_who_and_what() {
    let signer = Signer::new("a", 1);
    let token = verify(&signer.sign(&good()), &signer.keys(), "https://issuer", &["shop"], wall());
    let token = token.expect("a good token");
    assert_eq!((&*token.principal, &*token.subject), ("https://issuer/me", "me"));
    assert_eq!(token.audiences, ["shop", "other"]);
    assert_eq!(Value::Object(token.claims), good());
}

#[test]
fn claims_must_hold_now_and_for_us() {
    let signer = Signer::new("a", 1);
    let check = |claims: Value, expected: Result<(), Refusal>| {
        let token = signer.sign(&claims);
        let verdict = verify(&token, &signer.keys(), "https://issuer", &["shop"], wall()).map(|_| ());
        assert_eq!(verdict, expected, "{claims}");
    };
    check(with("exp", NOW - 60), Ok(()));
    check(with("exp", NOW - 61), Err(Refusal::Expired));
    check(with("exp", 0), Err(Refusal::Expired));
    check(with("exp", (NOW - 60) as f64 - 0.5), Err(Refusal::Expired));
    check(with("exp", u64::MAX), Ok(()));
    for bad in [json!(-1), json!(1e30), json!(-0.5)] {
        check(with("exp", bad.clone()), Err(Refusal::ExpiryOutOfRange));
        check(with("nbf", json!(-1.5)), Err(Refusal::NotBeforeOutOfRange));
        check(with("iat", bad), Err(Refusal::IssuedOutOfRange));
    }
    for bad in [json!("1700000060"), json!(null), json!([1])] {
        check(with("exp", bad.clone()), Err(Refusal::ExpiryNotInteger));
        check(with("nbf", bad.clone()), Err(Refusal::NotBeforeNotInteger));
        check(with("iat", bad), Err(Refusal::IssuedNotInteger));
    }
    for name in ["nbf", "iat"] {
        check(with(name, NOW + 60), Ok(()));
        check(with(name, NOW + 61), Err(Refusal::NotYetValid));
    }
    check(with("nbf", (NOW + 60) as f64 + 0.5), Err(Refusal::NotYetValid));
    check(with("aud", "shop"), Ok(()));
    check(with("aud", "shops"), Err(Refusal::AudienceNotAllowed));
    check(with("aud", "https://shop/"), Err(Refusal::AudienceNotAllowed));
    check(with("aud", json!([])), Err(Refusal::AudienceNotAllowed));
    check(with("aud", json!([1])), Err(Refusal::AudienceNotString));
    check(with("aud", json!({})), Err(Refusal::AudienceNotString));
    check(with("iss", "https://issuer/"), Err(Refusal::UnknownIssuer));
    check(with("iss", 1), Err(Refusal::IssuerNotString));
    check(with("sub", json!(null)), Err(Refusal::SubjectNotString));
    check(with("jti", 1), Err(Refusal::IdNotString));
    // NaN and numbers beyond all bounds are no JSON.
    for exp in ["NaN", "1e999", "Infinity"] {
        let token = signer.sign_text(r#"{"alg":"EdDSA"}"#, &format!("{{\"exp\":{exp}}}"));
        assert_eq!(
            verify(&token, &signer.keys(), "", &[""; 0], wall()).unwrap_err(),
            Refusal::PayloadNotJson
        );
    }
}

#[test]
fn headers_that_change_what_a_token_means_are_refused() {
    let signer = Signer::new("a", 1);
    let check = |header: &str, expected: Result<(), Refusal>| {
        let token = signer.sign_text(header, &good().to_string());
        let verdict = verify(&token, &signer.keys(), "https://issuer", &["shop"], wall()).map(|_| ());
        assert_eq!(verdict, expected, "{header}");
    };
    check(r#"{"alg":"EdDSA"}"#, Ok(()));
    check(r#"{"alg":"Ed25519","kid":"a","typ":"at+jwt"}"#, Ok(()));
    check(r#"{"alg":"EdDSA","kid":"","jku":"https://evil/keys","jwk":{"kty":"oct","k":"AA"}}"#, Ok(()));
    check(r#"{"alg":"EdDSA","kid":"b"}"#, Err(Refusal::NoSuchKey));
    check(r#"{"alg":"EdDSA","kid":1}"#, Err(Refusal::HeaderBadKeyId));
    check(r#"{"alg":"none"}"#, Err(Refusal::HeaderUnknownAlgorithm));
    check(r#"{"alg":"nOnE"}"#, Err(Refusal::HeaderUnknownAlgorithm));
    check(r#"{"alg":"eddsa"}"#, Err(Refusal::HeaderUnknownAlgorithm));
    check(r#"{"alg":["EdDSA"]}"#, Err(Refusal::HeaderBadAlgorithm));
    check("{}", Err(Refusal::HeaderBadAlgorithm));
    check(r#"{"alg":"HS256"}"#, Err(Refusal::NoSuchKey));
    check(r#"{"alg":"EdDSA","alg":"EdDSA"}"#, Err(Refusal::HeaderNotJson));
    check(r#"{"alg":"EdDSA","crit":["exp"],"exp":1}"#, Err(Refusal::HeaderCritical));
    check(r#"{"alg":"EdDSA","crit":[]}"#, Err(Refusal::HeaderCritical));
    check(r#"{"alg":"EdDSA","b64":false,"crit":["b64"]}"#, Err(Refusal::HeaderCritical));
    check(r#"{"alg":"EdDSA","b64":true}"#, Err(Refusal::HeaderCritical));
    check(r#"{"alg":"EdDSA","cty":"JWT"}"#, Err(Refusal::Nested));
    check(r#"{"alg":"EdDSA","cty":"Application/jwt"}"#, Err(Refusal::Nested));
    check(r#"{"alg":"EdDSA","cty":"json"}"#, Ok(()));
    check(r#"{"alg":"EdDSA","zip":"DEF"}"#, Err(Refusal::Nested));
    check(r#"["EdDSA"]"#, Err(Refusal::HeaderNotJson));
}

#[test]
fn what_has_not_the_form_of_a_token_is_refused() {
    let signer = Signer::new("a", 1);
    let keys = signer.keys();
    let check = |token: &str, expected: Refusal| {
        let verdict = verify(token, &keys, "https://issuer", &["shop"], wall());
        assert_eq!(verdict.unwrap_err(), expected, "{token:.60}");
    };
    let token = signer.sign(&good());
    let (head, rest) = token.split_once('.').expect("a dot");
    let (payload, signature) = rest.split_once('.').expect("two dots");
    check("", Refusal::NotThreeParts);
    check("a.b", Refusal::NotThreeParts);
    check(&format!("{token}."), Refusal::NotThreeParts);
    check(&format!("{token}.."), Refusal::Nested);
    check(&format!("{head}=.{payload}.{signature}"), Refusal::HeaderBadBase64);
    check(&format!("{head}.{payload}\n.{signature}"), Refusal::PayloadBadBase64);
    check(&format!("{head}.{payload}.{signature}="), Refusal::SignatureBadBase64);
    check(&format!("{head}.{payload}."), Refusal::BadSignature);

    check(
        &signer.sign_text(r#"{"alg":"EdDSA"}"#, r#"{"iss":"a","iss":"https://issuer"}"#),
        Refusal::PayloadNotJson,
    );
    check(&signer.sign_text(r#"{"alg":"EdDSA"}"#, "[]"), Refusal::PayloadNotJson);
    check(&signer.sign(&with("x", "y".repeat(MAX_TOKEN_BYTES))), Refusal::TooLong);
    check(&Signer::new("a", 2).sign(&good()), Refusal::BadSignature);
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    let signer = Signer::new("a", 1);
    let document = signer.document();
    let raw = signer.pair.public_key().as_ref();
    for secret in [document.as_bytes(), raw, URL_SAFE_NO_PAD.encode(raw).as_bytes()] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let token = sign_with(r#"{"alg":"HS256","kid":"a"}"#, &good().to_string(), |text| {
            hmac::sign(&key, text).as_ref().to_vec()
        });
        let verdict = verify(&token, &signer.keys(), "https://issuer", &["shop"], wall());
        assert_eq!(verdict.unwrap_err(), Refusal::NoSuchKey);
    }
}

fn rule(issuer: &str, keys: &str) -> JwtRule {
    JwtRule {
        issuer: issuer.into(),
        audiences: Vec::new(),
        keys: Jwks::Inline(keys.into()),
        from: vec![
            TokenPlace::Header("authorization".into(), "Bearer ".into()),
            TokenPlace::Param("access_token".into()),
        ],
        forward: false,
        payload_header: None,
        claim_headers: Vec::new(),
        clock_skew: CLOCK_SKEW,
    }
}

fn inline(jwks: &Jwks) -> Arc<KeySource> {
    match jwks {
        Jwks::Inline(document) => Arc::new(KeySource::inline(document)),
        Jwks::Remote(_) => Arc::new(KeySource::fetched(|| ())),
    }
}

fn authenticator(rules: Vec<JwtRule>, sources: KeySources<'_>) -> Authenticator {
    let key = ObjectKey { kind: "RequestAuthentication", namespace: "default".into(), name: "jwt".into() };
    let rules = rules.into_iter().map(Arc::new).collect();
    Authenticator::compile(&[Arc::new(Authentication { key, listeners: Vec::new(), rules })], sources)
}

fn request(target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_target(target);
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

/// What comes of a request: principals and head, or the refusal.
fn judge(
    authenticator: &Authenticator,
    mut head: RequestHead,
) -> Result<(Vec<String>, RequestHead), Refusal> {
    let mut metadata = Metadata::default();
    authenticator.authenticate(&mut head, &mut metadata, &mut Cache::default(), wall())?;
    Ok((metadata.tokens.iter().map(|token| token.principal.clone()).collect(), head))
}

#[test]
fn a_request_without_a_token_passes_and_one_with_a_bad_token_does_not() {
    let signer = Signer::new("a", 1);
    let authenticator = authenticator(vec![rule("https://issuer", &signer.document())], &inline);
    let bearer = |token: &str| request("/", &[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(judge(&authenticator, request("/", &[])).unwrap().0, [""; 0]);
    assert_eq!(judge(&authenticator, request("/", &[("authorization", "Basic YTpi")])).unwrap().0, [""; 0]);
    let (who, head) = judge(&authenticator, bearer(&signer.sign(&good()))).unwrap();
    assert_eq!(who, ["https://issuer/me"]);
    assert!(head.headers.is_empty(), "the token is taken off");
    let twice = signer.sign(&good());
    let mut head = bearer(&twice);
    head.set_target(&format!("/?access_token={twice}"));
    assert_eq!(
        judge(&authenticator, head).unwrap().0,
        ["https://issuer/me"],
        "one token, though in two places"
    );
    let refused = |head: RequestHead| judge(&authenticator, head).expect_err("a refusal");
    assert_eq!(refused(bearer(&signer.sign(&with("exp", 1)))), Refusal::Expired);
    assert_eq!(refused(bearer(&signer.sign(&with("iss", "https://other")))), Refusal::UnknownIssuer);
    assert_eq!(refused(bearer("x")), Refusal::NotThreeParts);
    // A good token does not make up for a bad one, wherever they are.
    let (good_one, bad_one) = (signer.sign(&good()), Signer::new("a", 2).sign(&good()));
    let both = [("authorization", &*format!("Bearer {good_one}"))];
    assert_eq!(refused(request(&format!("/?access_token={bad_one}"), &both)), Refusal::BadSignature);
    let twice = format!("/?access_token={good_one}&access_token={bad_one}");
    assert_eq!(refused(request(&twice, &[])), Refusal::BadSignature);
    let many = format!("/?{}", vec![format!("access_token={good_one}"); MAX_TOKENS + 1].join("&"));
    assert_eq!(refused(request(&many, &[])), Refusal::TooManyTokens);
    let mut preflight = request("/", &[("origin", "https://a"), ("authorization", "Bearer x")]);
    preflight.method = Method::Options;
    assert_eq!(refused(preflight.clone()), Refusal::NotThreeParts);
    preflight.headers.push(b"access-control-request-method", b"GET");
    assert_eq!(judge(&authenticator, preflight).unwrap().0, [""; 0]);
}

#[test]
fn a_token_is_judged_by_the_rule_of_its_issuer_where_that_rule_looks() {
    let (a, b) = (Signer::new("a", 1), Signer::new("b", 2));
    let mut for_b = rule("https://b", &b.document());
    for_b.from = vec![TokenPlace::Header("x-b".into(), "".into()), TokenPlace::Cookie("b".into())];
    for_b.audiences = vec!["https://shop/".into()];
    for_b.forward = true;
    let authenticator = authenticator(vec![for_b, rule("https://a", &a.document())], &inline);
    let of_a = a.sign(&with("iss", "https://a"));
    let of_b = b.sign(&with("iss", "https://b"));
    let bearer = format!("Bearer {of_a}");
    let (who, head) =
        judge(&authenticator, request("/", &[("x-b", &of_b), ("authorization", &bearer)])).unwrap();
    assert_eq!(who, ["https://a/me", "https://b/me"]);
    assert_eq!(head.headers.get("x-b"), Some(of_b.as_bytes()));
    assert_eq!(head.headers.get("authorization"), None);
    let (who, _) = judge(&authenticator, request("/", &[("cookie", &format!("b={of_b}"))])).unwrap();
    assert_eq!(who, ["https://b/me"]);
    for fields in [[("x-b", &*of_a)], [("authorization", &*format!("Bearer {of_b}"))]] {
        assert_eq!(judge(&authenticator, request("/", &fields)).unwrap_err(), Refusal::UnknownIssuer);
    }
    // Signed by one issuer in the name of the other.
    let forged = a.sign(&with("iss", "https://b"));
    assert_eq!(judge(&authenticator, request("/", &[("x-b", &forged)])).unwrap_err(), Refusal::NoSuchKey);
    let stranger = b.sign(&json!({ "iss": "https://b", "aud": "other" }));
    assert_eq!(
        judge(&authenticator, request("/", &[("x-b", &stranger)])).unwrap_err(),
        Refusal::AudienceNotAllowed
    );
}

#[test]
fn claims_become_headers_that_no_client_can_make() {
    let signer = Signer::new("a", 1);
    let mut with_headers = rule("https://issuer", &signer.document());
    let path = |path: &str| path.split('.').map(Arc::from).collect::<Vec<Arc<str>>>();
    let names = [
        "sub", "n.deep", "n.list", "n.yes", "n.int", "n.float", "n.whole", "n.map", "n.mixed", "no", "n.bad",
        "n.none",
    ];
    with_headers.claim_headers =
        names.iter().map(|name| (format!("x-{}", name.replace('.', "-")).into(), path(name))).collect();
    with_headers.payload_header = Some("x-payload".into());
    let authenticator = authenticator(vec![with_headers], &inline);
    let mut claims = good();
    claims["n"] = json!({
        "deep": "d", "list": ["a", 1, true], "yes": true, "int": 9999, "float": 1.5, "whole": 3.0,
        "bad": "a\r\nx-evil: 1", "none": null, "map": {"a": 1}, "mixed": ["a", {}],
    });
    let token = signer.sign(&claims);
    let mut fields: Vec<(String, &str)> =
        names.iter().map(|name| (format!("X-{}", name.replace('.', "-")), "forged")).collect();
    fields.push(("x-payload".to_owned(), "forged"));
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&**name, *value)).collect();
    let (_, head) = judge(&authenticator, request("/", &fields)).unwrap();
    assert!(head.headers.is_empty(), "without a token, too");
    let mut head = request(&format!("/?access_token={token}"), &fields);
    head.headers.push(b"x-else", b"y");
    let (_, head) = judge(&authenticator, head).unwrap();
    assert_eq!(head.target, "/");
    let payload = token.split('.').nth(1).unwrap();
    let expected = [
        ("x-else", "y"),
        ("x-payload", payload),
        ("x-sub", "me"),
        ("x-n-deep", "d"),
        ("x-n-list", "a,1,true"),
        ("x-n-yes", "true"),
        ("x-n-int", "9999"),
        ("x-n-float", "1.5"),
        ("x-n-whole", "3"),
        ("x-n-map", "eyJhIjoxfQ=="),
        ("x-n-mixed", "WyJhIix7fV0="),
    ];
    let got: Vec<(&[u8], &[u8])> = head.headers.iter().map(|(_, name, value)| (name, value)).collect();
    let expected: Vec<(&[u8], &[u8])> =
        expected.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
    assert_eq!(got, expected);
}

#[test]
fn keys_that_come_and_go() {
    let (old, new) = (Signer::new("old", 1), Signer::new("new", 2));
    let woken = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = Arc::clone(&woken);
    let source = Arc::new(KeySource::fetched(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let mut fetched = rule("https://issuer", "");
    fetched.keys = Jwks::Remote(Arc::new(RemoteJwks {
        uri: "https://issuer/keys".into(),
        discover: false,
        refresh: Duration::from_mins(5),
        timeout: Duration::from_secs(5),
        roots: None,
    }));
    let given = Arc::clone(&source);
    let authenticator = authenticator(vec![fetched], &move |_| Arc::clone(&given));
    let mut cache = Cache::default();
    let mut ask = |signer: &Signer, wall: SystemTime| {
        let mut head = request("/", &[("authorization", &format!("Bearer {}", signer.sign(&good())))]);
        authenticator.authenticate(&mut head, &mut Metadata::default(), &mut cache, wall)
    };
    let woken = || woken.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(ask(&old, wall()), Err(Refusal::NoKeys));
    source.replace(old.keys());
    assert_eq!(ask(&old, wall()).map(|passed| passed.known), Ok(0));
    assert_eq!(ask(&old, wall()).map(|passed| passed.known), Ok(1));
    assert_eq!(woken(), 0);
    assert_eq!(ask(&new, wall()), Err(Refusal::NoSuchKey));
    assert_eq!(ask(&new, wall()), Err(Refusal::NoSuchKey));
    assert_eq!(woken(), 1, "one wish is enough");
    assert!(source.take_wish());
    source.replace(new.keys());
    assert_eq!(ask(&new, wall()).map(|passed| passed.checked), Ok(1));
    // What was good under the keys before is not good for ever, nor beyond its end.
    assert_eq!(ask(&old, wall()), Err(Refusal::NoSuchKey));
    assert_eq!(ask(&new, wall() + Duration::from_mins(3)), Err(Refusal::Expired));
    let broken = KeySource::inline("{\"keys\": []}");
    assert_eq!((broken.current().is_none(), broken.refusal()), (true, Refusal::NoValidKeys));
}

/// Tokens of each sort of key, with their keys.
fn of_each_sort() -> Vec<(String, KeySet)> {
    let signer = Signer::new("a", 1);
    let random = SystemRandom::new();
    let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let point = p256.public_key().as_ref();
    let ec = json!({ "keys": [{ "kty": "EC", "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]) }] });
    let rsa = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("a key");
    let public = rsa.public_key();
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // RSAPublicKey (RFC 8017 appendix A.1.1) of 2048 bits: the modulus is at 9, the exponent the usual one.
    let n = number(&public.as_ref()[9..265]);
    let of_rsa = json!({ "keys": [{ "kty": "RSA", "n": n, "e": "AQAB" }] });
    let secret = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    let oct = json!({ "keys": [{ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32]) }] });
    let payload = good().to_string();
    let keys = |document: &Value| KeySet::parse(document.to_string().as_bytes()).expect("keys");
    vec![
        (signer.sign(&good()), signer.keys()),
        (
            sign_with(r#"{"alg":"ES256"}"#, &payload, |text| {
                p256.sign(&random, text).expect("a signature").as_ref().to_vec()
            }),
            keys(&ec),
        ),
        (
            sign_with(r#"{"alg":"RS256"}"#, &payload, |text| {
                let mut signature = vec![0; rsa.public_modulus_len()];
                rsa.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).expect("a signature");
                signature
            }),
            keys(&of_rsa),
        ),
        (
            sign_with(r#"{"alg":"HS256"}"#, &payload, |text| hmac::sign(&secret, text).as_ref().to_vec()),
            keys(&oct),
        ),
    ]
}

#[test]
fn a_token_with_one_bit_flipped_is_never_good() {
    for (token, keys) in of_each_sort() {
        verify(&token, &keys, "https://issuer", &["shop"], wall()).expect("a good token");
        for at in 0..token.len() * 8 {
            let mut flipped = token.clone().into_bytes();
            flipped[at / 8] ^= 1 << (at % 8);
            // What is no text is refused before.
            let Ok(flipped) = String::from_utf8(flipped) else { continue };
            assert!(verify_signature(&flipped, &keys).is_err(), "bit {at} of {token}");
        }
    }
}

proptest! {
    #[test]
    fn nothing_panics(token in "\\PC*", document in proptest::collection::vec(any::<u8>(), 0..200)) {
        let signer = Signer::new("a", 1);
        prop_assert!(verify(&token, &signer.keys(), "", &["a"; 0], wall()).is_err());
        prop_assert!(KeySet::parse(&document).is_err());
    }

    /// Any header and payload, soundly encoded and signed.
    #[test]
    fn nothing_that_is_signed_panics(header in "\\PC*", payload in "\\PC*", key in "\\PC*", value in any::<f64>()) {
        let signer = Signer::new("a", 1);
        let token = signer.sign_text(&header, &payload);
        let _ = verify(&token, &signer.keys(), "", &["a"; 0], wall());
        let token = signer.sign_text(r#"{"alg":"EdDSA"}"#, &json!({ "exp": value, "nbf": value, &key: key }).to_string());
        let _ = verify(&token, &signer.keys(), "", &["a"; 0], wall());
        let _ = KeySet::parse(json!({ "keys": [{ "kty": key, "n": header, "e": payload, "k": key }] }).to_string().as_bytes());
        let _ = KeySet::parse(json!({ "keys": [{ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode(&header), "e": "AQAB" }] }).to_string().as_bytes());
    }
}
