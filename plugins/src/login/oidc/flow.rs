//! A login that is under way: what must come back from the provider, kept by the browser.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::login::cookies::Sealer;

/// Seconds that a login may take.
pub const LIFETIME: u64 = 600;
/// Bytes of path and query that are gone back to after a login; a longer one goes back to `/`.
const MAX_TARGET: usize = 1500;
/// Characters of the state that tell cookies of several logins apart.
const ID: usize = 8;
const PURPOSE: &str = "flow";

/// See the module.
#[derive(Clone, Serialize, Deserialize)]
pub struct Flow {
    #[serde(rename = "s")]
    pub state: String,
    #[serde(rename = "n")]
    pub nonce: String,
    /// PKCE's.
    #[serde(rename = "v")]
    pub verifier: String,
    /// Where the person wanted to go: path and query.
    #[serde(rename = "t")]
    pub target: String,
    #[serde(rename = "x")]
    expires: u64,
}

impl Flow {
    /// Nothing if there are no random numbers.
    pub fn new(target: &str, now: u64) -> Option<Self> {
        let target = if target.len() > MAX_TARGET || !target.starts_with('/') { "/" } else { target };
        Some(Self {
            state: secret()?,
            nonce: secret()?,
            verifier: secret()?,
            target: target.to_owned(),
            expires: now + LIFETIME,
        })
    }

    pub fn seal(&self, sealer: &Sealer) -> Option<String> {
        sealer.seal(PURPOSE, &serde_json::to_vec(self).ok()?)
    }

    /// The login of this state, if it is not too old.
    pub fn open(sealer: &Sealer, sealed: &[u8], state: &str, now: u64) -> Option<Self> {
        let flow: Self = serde_json::from_slice(&sealer.open(PURPOSE, sealed)?).ok()?;
        let same = verify_slices_are_equal(flow.state.as_bytes(), state.as_bytes()).is_ok();
        (same && now < flow.expires).then_some(flow)
    }

    /// What tells the cookie of this login from those of others.
    pub fn suffix(&self) -> String {
        format!(".{}", &self.state[..ID])
    }

    /// PKCE's `code_challenge` of the method S256.
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, self.verifier.as_bytes()))
    }
}

/// See [`Flow::suffix`]; nothing if that is no state of ours.
pub fn suffix(state: &str) -> Option<String> {
    let id = state.get(..ID).filter(|id| is_id(id))?;
    Some(format!(".{id}"))
}

/// Whether that may be what follows the dot of a suffix.
pub fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// 256 bits.
pub fn secret() -> Option<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}
