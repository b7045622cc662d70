//! An issuer of tokens for one run: RS256, one key.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// An issuer.
pub struct Issuer {
    key: KeyPair,
    name: String,
    kid: String,
}

impl Issuer {
    /// One with a new key of 2,048 bits.
    pub fn new(name: &str, kid: &str) -> Result<Self, String> {
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(|error| error.to_string())?;
        Ok(Self { key, name: name.to_owned(), kid: kid.to_owned() })
    }

    /// Its `iss`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its public key as a JWK set.
    pub fn jwks(&self) -> String {
        let public = self.key.public_key();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({
            "kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.kid,
            "n": number(public.modulus().big_endian_without_leading_zero()),
            "e": number(public.exponent().big_endian_without_leading_zero()),
        });
        json!({ "keys": [key] }).to_string()
    }

    /// A token with these claims beside its own `iss`.
    pub fn token(&self, claims: &Value) -> Result<String, String> {
        let mut claims = claims.clone();
        claims["iss"] = json!(self.name);
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.kid});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|error| error.to_string())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};

    #[test]
    fn its_tokens_are_verified_by_its_keys() {
        let issuer = Issuer::new("https://issuer.test", "k1").unwrap();
        let token = issuer.token(&json!({"sub": "u"})).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let keys: Value = serde_json::from_str(&issuer.jwks()).unwrap();
        let number = |name: &str| URL_SAFE_NO_PAD.decode(keys["keys"][0][name].as_str().unwrap()).unwrap();
        let public = RsaPublicKeyComponents { n: number("n"), e: number("e") };
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        public.verify(&RSA_PKCS1_2048_8192_SHA256, signed.as_bytes(), &signature).unwrap();
        assert!(public.verify(&RSA_PKCS1_2048_8192_SHA256, b"other", &signature).is_err());
    }
}
