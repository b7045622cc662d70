//! Tokens whose signature was checked already. A client sends the same token with every request, and the signature is what
//! costs. Only that it is good under certain keys is kept; time, issuer and audience are looked at each time.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustc_hash::FxHashMap;

use super::claims::Claims;

/// Tokens of a generation; two are kept.
const MAX_TOKENS: usize = 512;

/// Bytes of the tokens of a generation, as they were sent.
const MAX_BYTES: usize = 512 << 10;

/// A token by SHA-256: bearer tokens themselves are not to lie about in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub fn of(token: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(out)
    }
}

/// What is known of a token.
#[derive(Debug)]
pub(super) struct Verified {
    pub claims: Claims,
    /// The [`KeySet::id`](super::KeySet::id) of the keys that it was checked with.
    pub keys: u64,
}

/// Tokens that were checked. One for each worker, so that no lock is needed. When a generation is full the one before is
/// forgotten; tokens in use pass from one to the next.
#[derive(Default)]
pub struct Cache {
    young: FxHashMap<Digest, Arc<Verified>>,
    old: FxHashMap<Digest, Arc<Verified>>,
    bytes: usize,
}

impl Cache {
    /// Of a token of that many bytes.
    pub(super) fn get(&mut self, token: &Digest, bytes: usize) -> Option<Arc<Verified>> {
        if let Some(found) = self.young.get(token) {
            return Some(Arc::clone(found));
        }
        let found = self.old.remove(token)?;
        self.insert(*token, Arc::clone(&found), bytes);
        Some(found)
    }

    pub(super) fn insert(&mut self, token: Digest, verified: Arc<Verified>, bytes: usize) {
        if self.young.len() >= MAX_TOKENS || self.bytes + bytes > MAX_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(token, verified).is_none() {
            self.bytes += bytes;
        }
    }

    /// Tokens that are kept.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("tokens", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let claims = Claims::read(b"{}").expect("claims");
        let verified = Arc::new(Verified { claims, keys: 1 });
        let mut cache = Cache::default();
        let used = Digest::of(b"used");
        cache.insert(used, Arc::clone(&verified), 4);
        for number in 0..10 * MAX_TOKENS {
            cache.insert(Digest::of(&number.to_be_bytes()), Arc::clone(&verified), 8);
            assert!(cache.get(&used, 4).is_some());
            assert!(cache.len() <= 2 * MAX_TOKENS);
        }
        assert!(cache.get(&Digest::of(&0_usize.to_be_bytes()), 8).is_none());
        for number in 0..100_usize {
            cache.insert(Digest::of(&number.to_le_bytes()), Arc::clone(&verified), MAX_BYTES / 4);
            assert!(cache.young.len() <= 4 || cache.bytes <= MAX_BYTES);
        }
        assert!(cache.len() <= 8, "{}", cache.len());
    }
}
