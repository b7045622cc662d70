//! Hashes of passwords, as htpasswd files have them.

use argon2::password_hash::PasswordHash;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A hash of a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Hash {
    /// `{SHA}`: fast to check, and fast to guess.
    Sha([u8; 20]),
    /// `$2y$`, `$2b$`, `$2a$`.
    Bcrypt(Box<str>),
    /// `$argon2id$`, `$argon2i$`, `$argon2d$`.
    Argon2(Box<str>),
}

/// The most that a bcrypt hash may cost, as the logarithm of its rounds: about a second.
const MAX_COST: u32 = 14;
/// The most memory that an argon2 hash may take, in KiB, and how often it may go through it.
const MAX_MEMORY: u32 = 256 << 10;
const MAX_PASSES: u32 = 16;

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sha(_) => "Sha",
            Self::Bcrypt(_) => "Bcrypt",
            Self::Argon2(_) => "Argon2",
        })
    }
}

impl Hash {
    /// Reads one; the error says what is wrong with it, without it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(sha) = text.strip_prefix("{SHA}") {
            let bytes = STANDARD.decode(sha).ok().and_then(|bytes| bytes.try_into().ok());
            return bytes.map(Self::Sha).ok_or("{SHA} is followed by 20 bytes in base64");
        }
        if ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| text.starts_with(prefix)) {
            let cost: Option<u32> = text.get(4..6).and_then(|cost| cost.parse().ok());
            return match cost {
                Some(4..=MAX_COST) if text.len() == 60 && text.as_bytes()[6] == b'$' => {
                    Ok(Self::Bcrypt(text.into()))
                }
                Some(cost) if cost > MAX_COST => Err("a bcrypt hash may cost 14 at most"),
                _ => Err("this is not a whole bcrypt hash"),
            };
        }
        if text.starts_with("$argon2") {
            let hash = PasswordHash::new(text).map_err(|_| "this is not a whole argon2 hash")?;
            let params =
                Params::try_from(&hash).map_err(|_| "the parameters of the argon2 hash are not sound")?;
            if params.m_cost() > MAX_MEMORY || params.t_cost() > MAX_PASSES || hash.hash.is_none() {
                return Err("an argon2 hash may take 256 MiB and 16 passes at most");
            }
            return Ok(Self::Argon2(text.into()));
        }
        Err("the hash is neither {SHA}, bcrypt ($2y$) nor argon2; make it with htpasswd -B")
    }

    /// Whether a check is done in no time.
    pub fn is_fast(&self) -> bool {
        matches!(self, Self::Sha(_))
    }

    /// Whether it is the hash of this password.
    pub fn is_of(&self, password: &[u8]) -> bool {
        match self {
            Self::Sha(hash) => {
                let own = digest(&SHA1_FOR_LEGACY_USE_ONLY, password);
                verify_slices_are_equal(own.as_ref(), hash).is_ok()
            }
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Argon2(hash) => argon2_is_of(hash, password).unwrap_or(false),
        }
    }
}

fn argon2_is_of(hash: &str, password: &[u8]) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let algorithm = Algorithm::try_from(hash.algorithm).ok()?;
    let version = hash.version.and_then(|version| Version::try_from(version).ok()).unwrap_or_default();
    let argon2 = Argon2::new(algorithm, version, Params::try_from(&hash).ok()?);
    let expected = hash.hash?;
    let mut salt = [0; 64];
    let salt = hash.salt?.decode_b64(&mut salt).ok()?;
    let mut own = vec![0; expected.len()];
    argon2.hash_password_into(password, salt, &mut own).ok()?;
    Some(verify_slices_are_equal(&own, expected.as_bytes()).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of "s3cret", made by openssl, python-bcrypt and argon2-cffi.
    const SHA: &str = "{SHA}/vNB+F2HQ559kaLUZbmHHvZrXpg=";
    const BCRYPT: &str = "$2b$04$rvyUrI88eE9BHxMpIrDZMOReT8Fj7ZkzhTEaHNMAMiWJmjkvBf2ne";
    const ARGON2: &str =
        "$argon2id$v=19$m=64,t=1,p=1$oOI23tzp6Wng9sK2H5RZEQ$SZ3FPtgGBmDOx4I06iNgT9kLTaNLKSQK6dcVNFa9Z8U";

    #[test]
    fn hashes_of_other_programs_are_read() {
        for (text, fast) in [(SHA, true), (BCRYPT, false), (ARGON2, false)] {
            let hash = Hash::parse(text).unwrap();
            assert_eq!(hash.is_fast(), fast, "{text}");
            assert!(hash.is_of(b"s3cret") && !hash.is_of(b"S3cret") && !hash.is_of(b""), "{text}");
        }
    }

    #[test]
    fn what_is_no_hash_or_too_dear_is_refused() {
        for bad in [
            "plain",
            "$apr1$x$y",
            "{SHA}AAAA",
            "$2y$15$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            "$2y$05$CCCC",
            "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaXeyGM0uV4XB4cRU",
            "$argon2id$v=19$m=65536,t=2,p=1",
        ] {
            assert!(Hash::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{:?}", Hash::parse(SHA)), "Ok(Sha)");
    }
}
