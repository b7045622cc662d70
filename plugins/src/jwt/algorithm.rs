//! The algorithms that sign tokens (RFC 7518 section 3, RFC 8037), each with the one type of key that it goes with. There is
//! no `none`.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    VerificationAlgorithm,
};

/// An algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

use Algorithm::{EdDsa, Es256, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};

/// All that RSA keys can be used with.
pub(super) const OF_RSA: [Algorithm; 6] = [Rs256, Rs384, Rs512, Ps256, Ps384, Ps512];

/// All that secrets can be used with.
pub(super) const OF_SECRETS: [Algorithm; 3] = [Hs256, Hs384, Hs512];

impl Algorithm {
    /// By the name in `alg`, which is told in this spelling only.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Hs256,
            "HS384" => Hs384,
            "HS512" => Hs512,
            "RS256" => Rs256,
            "RS384" => Rs384,
            "RS512" => Rs512,
            "PS256" => Ps256,
            "PS384" => Ps384,
            "PS512" => Ps512,
            "ES256" => Es256,
            "ES384" => Es384,
            "ES512" => Es512,
            // RFC 9864 gives EdDSA with this curve a name of its own.
            "EdDSA" | "Ed25519" => EdDsa,
            _ => return None,
        })
    }

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Hs256 => "HS256",
            Hs384 => "HS384",
            Hs512 => "HS512",
            Rs256 => "RS256",
            Rs384 => "RS384",
            Rs512 => "RS512",
            Ps256 => "PS256",
            Ps384 => "PS384",
            Ps512 => "PS512",
            Es256 => "ES256",
            Es384 => "ES384",
            Es512 => "ES512",
            EdDsa => "EdDSA",
        }
    }

    /// How RSA keys are checked.
    pub fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Ps256 => &RSA_PSS_2048_8192_SHA256,
            Ps384 => &RSA_PSS_2048_8192_SHA384,
            Ps512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        })
    }

    /// How keys on curves are checked. Signatures have a fixed length, not DER's form.
    pub fn curve(self) -> Option<&'static dyn VerificationAlgorithm> {
        Some(match self {
            Es256 => &ECDSA_P256_SHA256_FIXED,
            Es384 => &ECDSA_P384_SHA384_FIXED,
            Es512 => &ECDSA_P521_SHA512_FIXED,
            EdDsa => &ED25519,
            _ => return None,
        })
    }

    /// How secrets are used.
    pub fn hmac(self) -> Option<hmac::Algorithm> {
        Some(match self {
            Hs256 => hmac::HMAC_SHA256,
            Hs384 => hmac::HMAC_SHA384,
            Hs512 => hmac::HMAC_SHA512,
            _ => return None,
        })
    }
}
