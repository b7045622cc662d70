//! Basic authentication (RFC 7617). Slow hashes are checked elsewhere than on a worker, once: that a password was right is
//! remembered for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldgate_core::guard::{Answered, Guarded, NoAnswer, Verdict, Work};
use fieldgate_core::ir;
use rustc_hash::FxHashMap;

use super::password::Hash;
use super::{Found, is_field_value, refusal};

/// The step of a password's check.
pub const STEP: u8 = 1;

/// How long a password that was right is believed without being checked again.
const REMEMBERED: Duration = Duration::from_mins(5);
/// So many at once are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Bytes of a header that is looked at.
const MAX_BYTES: usize = 4096;

/// Passwords, ready.
pub struct Basic {
    realm: Arc<str>,
    users: FxHashMap<Box<str>, Hash>,
    /// Checked where there is no such user, so that it takes as long.
    decoy: Option<Hash>,
    strip: bool,
    /// Of this process alone: what is remembered is of no use to others.
    key: hmac::Key,
    remembered: ArcSwap<FxHashMap<[u8; 32], Instant>>,
}

impl std::fmt::Debug for Basic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Basic({} users)", self.users.len())
    }
}

struct Credentials {
    user: String,
    password: Vec<u8>,
}

impl Basic {
    pub fn new(ir: &ir::BasicAuth) -> Result<Self, String> {
        let mut users = FxHashMap::default();
        for (user, hash) in &ir.users {
            let text = std::str::from_utf8(&hash.0).map_err(|_| format!("the hash of {user} is no text"))?;
            let hash = Hash::parse(text).map_err(|why| format!("user {user}: {why}"))?;
            // As in an htpasswd file, the first line of a user counts.
            users.entry((**user).into()).or_insert(hash);
        }
        let decoy = users.values().find(|hash| !hash.is_fast()).or(users.values().next()).cloned();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
            .map_err(|_| "there are no random numbers".to_owned())?;
        let realm = ir.realm.clone();
        Ok(Self { realm, users, decoy, strip: ir.strip, key, remembered: ArcSwap::default() })
    }

    /// For `www-authenticate`.
    pub fn challenge(&self) -> String {
        let realm: String = self.realm.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
        format!("Basic realm=\"{realm}\", charset=\"UTF-8\"")
    }

    pub fn look(&self, request: &mut Guarded<'_>) -> Found {
        let Some(presented) = presented(request) else { return Found::Nothing };
        let Some(credentials) = presented else { return self.refuse() };
        let digest = self.digest(&credentials);
        let until = self.remembered.load().get(&digest).copied();
        if until.is_some_and(|until| request.now < until) {
            return self.accept(request, credentials.user);
        }
        let own = self.users.get(credentials.user.as_str());
        let Some(hash) = own.or(self.decoy.as_ref()) else { return self.refuse() };
        if hash.is_fast() {
            let right = hash.is_of(&credentials.password) && own.is_some();
            return if right { self.accept(request, credentials.user) } else { self.refuse() };
        }
        let (hash, known, password) = (hash.clone(), own.is_some(), credentials.password);
        let job = Box::new(move || {
            let right = hash.is_of(&password) && known;
            Bytes::from_static(if right { b"1" } else { b"" })
        });
        Found::Verdict(Verdict::Work(Box::new(Work { job, step: STEP })))
    }

    pub fn answered(&self, request: &mut Guarded<'_>, answer: Result<Answered, NoAnswer>) -> Found {
        let Ok(answered) = answer else {
            return Found::Verdict(Verdict::Respond(refusal(
                503,
                "basic_auth_overflow",
                vec![("retry-after", "1".to_owned())],
                "too many passwords are being checked\n",
            )));
        };
        match presented(request).flatten() {
            Some(credentials) if !answered.body.is_empty() => {
                self.remember(self.digest(&credentials), request.now);
                self.accept(request, credentials.user)
            }
            _ => self.refuse(),
        }
    }

    fn accept(&self, request: &mut Guarded<'_>, user: String) -> Found {
        if self.strip {
            request.head.headers.remove("authorization");
        }
        Found::User(user.into())
    }

    fn refuse(&self) -> Found {
        let headers = vec![("www-authenticate", self.challenge())];
        let body = "user or password is wrong\n";
        Found::Verdict(Verdict::Respond(refusal(401, "basic_auth_refused", headers, body)))
    }

    fn digest(&self, credentials: &Credentials) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        // Of fixed length, so that no two pairs look the same.
        context.update(&(credentials.user.len() as u64).to_be_bytes());
        context.update(credentials.user.as_bytes());
        context.update(&credentials.password);
        let mut out = [0; 32];
        out.copy_from_slice(context.sign().as_ref());
        out
    }

    /// Rare: once for each user in [`REMEMBERED`], after something that took much longer.
    fn remember(&self, digest: [u8; 32], now: Instant) {
        self.remembered.rcu(|old| {
            let mut new = FxHashMap::clone(old);
            new.retain(|_, until| now < *until);
            while new.len() >= MAX_REMEMBERED {
                let Some(first) = new.iter().min_by_key(|(_, until)| **until).map(|(digest, _)| *digest)
                else {
                    break;
                };
                new.remove(&first);
            }
            new.insert(digest, now + REMEMBERED);
            new
        });
    }
}

/// What a request presents; `Some(None)` if it cannot be read.
fn presented(request: &Guarded<'_>) -> Option<Option<Credentials>> {
    let mut values = request.head.headers.get_all("authorization");
    let value = values.next()?;
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    // Of two, an upstream may believe the other.
    if values.next().is_some() || value.len() > MAX_BYTES {
        return Some(None);
    }
    Some(read(rest))
}

fn read(encoded: &[u8]) -> Option<Credentials> {
    let decoded = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = decoded.iter().position(|b| *b == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    is_field_value(&user).then(|| Credentials { user, password: decoded[colon + 1..].to_vec() })
}
