//! Keys for session tickets, shared by every listener of the process.
//!
//! They outlive configurations, so a client resumes across a change of certificates or listeners, and they can be handed to
//! the process that follows. They live in memory only, must never be written to a disk, and rotate by themselves: a stolen
//! key opens no more than three periods of recorded TLS 1.2 sessions.
//! Each ticket is bound to a scope, so that a session which some listener accepted without a client certificate
//! cannot be resumed where another asks for one.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

use super::introduction;

/// Keys that open tickets: the one that also seals, and those of the periods before.
const GENERATIONS: u64 = 3;
/// RFC 8446, section 4.6.1.
const LIFETIME_MAX: u64 = 7 * 24 * 3600;
const ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;
/// A key as exported: its generation, its id, its secret.
const EXPORTED_LEN: usize = 8 + ID_LEN + SECRET_LEN;

/// The keys, with what makes them change. Share one per process.
pub struct TicketKeys {
    period: Duration,
    origin: Instant,
    /// Newest first, never empty.
    keys: RwLock<Vec<Key>>,
}

struct Key {
    generation: u64,
    id: [u8; ID_LEN],
    /// Kept to be handed on: the key made of it does not give it back.
    secret: [u8; SECRET_LEN],
    aead: LessSafeKey,
}

impl TicketKeys {
    /// Keys that are replaced every `period`. A ticket is good for at least two periods and at most three.
    pub fn new(period: Duration) -> Arc<Self> {
        Self::new_at(period, Instant::now())
    }

    /// The keys as another process of this machine can take them on. Whoever sees this can open every ticket.
    pub fn export(&self) -> Vec<u8> {
        self.export_at(Instant::now())
    }

    /// Takes on what [`TicketKeys::export`] gave. Tickets sealed there open here, and the keys age as if nothing had
    /// happened. `None` if it is not whole, or of keys with another period.
    pub fn import(period: Duration, exported: &[u8]) -> Option<Arc<Self>> {
        Self::import_at(period, exported, Instant::now())
    }

    /// Tickets of these keys that are good among listeners of the same scope only.
    pub fn scoped(self: &Arc<Self>, scope: impl Into<Box<[u8]>>) -> Arc<dyn ProducesTickets> {
        Arc::new(ScopedTickets { keys: Arc::clone(self), scope: scope.into() })
    }

    /// The same for listeners that look at certificates of clients. A ticket says whether its client was believed, and it is no
    /// longer good than that may be taken for granted.
    pub(super) fn of_clients(self: &Arc<Self>, scope: &[u8]) -> Arc<dyn ProducesTickets> {
        Arc::new(ClientTickets(ScopedTickets { keys: Arc::clone(self), scope: scope.into() }))
    }

    fn new_at(period: Duration, origin: Instant) -> Arc<Self> {
        let period = period.max(Duration::from_secs(1));
        let first = Key::generate(0).expect("the operating system has random bytes");
        Arc::new(Self { period, origin, keys: RwLock::new(vec![first]) })
    }

    /// Big endian: the period in seconds, the age in milliseconds (`u64` each), then the keys.
    fn export_at(&self, now: Instant) -> Vec<u8> {
        self.rotate(now);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let age = now.saturating_duration_since(self.origin).as_millis() as u64;
        let mut exported = Vec::with_capacity(16 + keys.len() * EXPORTED_LEN);
        exported.extend_from_slice(&self.period.as_secs().to_be_bytes());
        exported.extend_from_slice(&age.to_be_bytes());
        for key in keys.iter() {
            exported.extend_from_slice(&key.generation.to_be_bytes());
            exported.extend_from_slice(&key.id);
            exported.extend_from_slice(&key.secret);
        }
        exported
    }

    fn import_at(period: Duration, exported: &[u8], now: Instant) -> Option<Arc<Self>> {
        let (seconds, rest) = take_number(exported)?;
        let (age, rest) = take_number(rest)?;
        // The clock is the machine's, so it was there when the keys were made.
        let origin = now.checked_sub(Duration::from_millis(age))?;
        if seconds != period.as_secs() || rest.is_empty() || !rest.len().is_multiple_of(EXPORTED_LEN) {
            return None;
        }
        let keys = rest.chunks_exact(EXPORTED_LEN).map(Key::import).collect::<Option<Vec<_>>>()?;
        let in_order = keys.is_sorted_by(|newer, older| newer.generation > older.generation);
        in_order.then(|| Arc::new(Self { period, origin, keys: RwLock::new(keys) }))
    }

    fn seal(&self, scope: &[u8], plain: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.rotate(now);
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys[0].seal(scope, plain).ok()
    }

    fn open(&self, scope: &[u8], ticket: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.rotate(now);
        let (id, sealed) = ticket.split_at_checked(ID_LEN)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find(|key| key.id == id)?.open(scope, sealed)
    }

    fn rotate(&self, now: Instant) {
        let generation = self.generation(now);
        let due = |keys: &[Key]| keys[0].generation < generation;
        if !due(&self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        // Without random bytes the old key goes on.
        let Ok(fresh) = Key::generate(generation) else { return };
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if due(&keys) {
            keys.insert(0, fresh);
            keys.retain(|key| key.generation + GENERATIONS > generation);
        }
    }

    fn generation(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_secs() / self.period.as_secs()
    }
}

impl fmt::Debug for TicketKeys {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").field("period", &self.period).finish_non_exhaustive()
    }
}

impl Key {
    fn generate(generation: u64) -> Result<Self, Unspecified> {
        let mut id = [0; ID_LEN];
        let mut secret = [0; SECRET_LEN];
        rand::fill(&mut id)?;
        rand::fill(&mut secret)?;
        Self::new(generation, id, secret)
    }

    fn new(generation: u64, id: [u8; ID_LEN], secret: [u8; SECRET_LEN]) -> Result<Self, Unspecified> {
        let aead = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret)?);
        Ok(Self { generation, id, secret, aead })
    }

    fn import(exported: &[u8]) -> Option<Self> {
        let (generation, rest) = take_number(exported)?;
        let (id, secret) = rest.split_first_chunk()?;
        Self::new(generation, *id, secret.try_into().ok()?).ok()
    }

    /// Key id, nonce, then ciphertext with its tag.
    fn seal(&self, scope: &[u8], plain: &[u8]) -> Result<Vec<u8>, Unspecified> {
        // Random nonces are safe for 2^32 tickets of a key (NIST SP 800-38D, section 8.3).
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce)?;
        let mut sealed = plain.to_vec();
        self.aead.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(scope),
            &mut sealed,
        )?;
        Ok([&self.id[..], &nonce, &sealed].concat())
    }

    fn open(&self, scope: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut buffer = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = self.aead.open_in_place(nonce, Aad::from(scope), &mut buffer).ok()?.len();
        buffer.truncate(len);
        Some(buffer)
    }
}

fn take_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_be_bytes(*number), rest))
}

#[derive(Debug)]
struct ScopedTickets {
    keys: Arc<TicketKeys>,
    scope: Box<[u8]>,
}

impl ProducesTickets for ScopedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        (2 * self.keys.period.as_secs()).min(LIFETIME_MAX) as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(&self.scope, plain, Instant::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(&self.scope, ticket, Instant::now())
    }
}

/// Tickets that begin with the second since 1970 until which their client is believed; 0 for one that is not.
#[derive(Debug)]
struct ClientTickets(ScopedTickets);

impl ProducesTickets for ClientTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let until = introduction::with(|found| found.until)?.unwrap_or(0);
        self.0.encrypt(&[&until.to_be_bytes()[..], plain].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.0.decrypt(ticket)?;
        let (until, plain) = take_number(&opened)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        if until != 0 && until <= now {
            return None;
        }
        introduction::with(|found| found.until = Some(until).filter(|until| *until != 0))?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_hours(1);

    #[test]
    fn a_ticket_is_good_for_its_period_and_the_two_after() {
        let start = Instant::now();
        let keys = TicketKeys::new_at(PERIOD, start);
        let ticket = keys.seal(b"", b"session", start).unwrap();
        for periods in 0..3 {
            assert_eq!(
                keys.open(b"", &ticket, start + PERIOD * periods).as_deref(),
                Some(&b"session"[..]),
                "{periods}"
            );
        }
        assert_eq!(keys.open(b"", &ticket, start + PERIOD * 3), None);
    }

    #[test]
    fn a_long_pause_without_tickets_ages_them_too() {
        let start = Instant::now();
        let keys = TicketKeys::new_at(PERIOD, start);
        let ticket = keys.seal(b"", b"session", start).unwrap();
        assert_eq!(keys.open(b"", &ticket, start + PERIOD * 50), None);
        assert_eq!(keys.keys.read().unwrap().len(), 1);
    }

    #[test]
    fn each_period_seals_with_its_own_key() {
        let start = Instant::now();
        let keys = TicketKeys::new_at(PERIOD, start);
        let id = |now| keys.seal(b"", b"session", now).unwrap()[..ID_LEN].to_vec();
        let first = id(start);
        assert_eq!(first, id(start + Duration::from_secs(3599)));
        assert_ne!(first, id(start + PERIOD));
        assert_eq!(keys.keys.read().unwrap().len(), 2);
    }

    #[test]
    fn another_scope_and_a_changed_ticket_are_refused() {
        let now = Instant::now();
        let keys = TicketKeys::new_at(PERIOD, now);
        let ticket = keys.seal(b"open", b"session", now).unwrap();
        assert_eq!(keys.open(b"mutual", &ticket, now), None);
        for index in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[index] ^= 1;
            assert_eq!(keys.open(b"open", &changed, now), None, "byte {index}");
        }
        for len in 0..ticket.len() {
            assert_eq!(keys.open(b"open", &ticket[..len], now), None, "length {len}");
        }
    }

    #[test]
    fn keys_that_were_handed_on_open_old_tickets_and_age_on() {
        let start = Instant::now();
        let before = TicketKeys::new_at(PERIOD, start);
        let oldest = before.seal(b"", b"session", start).unwrap();
        let newer = before.seal(b"", b"session", start + PERIOD).unwrap();
        let handed_on = start + PERIOD + PERIOD / 2;
        let after = TicketKeys::import_at(PERIOD, &before.export_at(handed_on), handed_on).unwrap();
        let opens = |ticket: &[u8], now| after.open(b"", ticket, now).is_some();
        assert!(opens(&oldest, handed_on) && opens(&newer, handed_on));
        // Both seal with the same key until it is due to be replaced.
        let ticket = after.seal(b"", b"session", handed_on).unwrap();
        assert_eq!(before.open(b"", &ticket, handed_on).as_deref(), Some(&b"session"[..]));
        assert!(opens(&oldest, start + Duration::from_secs(3 * 3600 - 1)));
        assert!(!opens(&oldest, start + PERIOD * 3) && opens(&newer, start + PERIOD * 3));
    }

    #[test]
    fn what_is_not_an_export_is_refused() {
        let now = Instant::now();
        let exported = TicketKeys::new_at(PERIOD, now).export_at(now);
        assert!(TicketKeys::import_at(PERIOD, &exported, now).is_some());
        assert!(TicketKeys::import_at(PERIOD * 2, &exported, now).is_none());
        for len in 0..exported.len() {
            assert!(TicketKeys::import_at(PERIOD, &exported[..len], now).is_none(), "length {len}");
        }
        let twice = [&exported[..], &exported[16..]].concat();
        assert!(TicketKeys::import_at(PERIOD, &twice, now).is_none());
    }

    #[test]
    fn the_advertised_lifetime_is_what_every_ticket_has() {
        let lifetime = |period| TicketKeys::new(period).scoped([]).lifetime();
        assert_eq!(lifetime(PERIOD), 7200);
        assert_eq!(u64::from(lifetime(Duration::from_hours(24 * 30))), LIFETIME_MAX);
    }

    #[tokio::test]
    async fn a_ticket_of_a_client_ends_with_what_it_has_proved() {
        let tickets = TicketKeys::new(PERIOD).of_clients(b"rules");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for (until, good) in [(Some(now + 600), true), (Some(now - 1), false), (None, true)] {
            let (ticket, _) = introduction::of(async {
                introduction::with(|found| found.until = until);
                tickets.encrypt(b"session")
            })
            .await;
            let (opened, found) = introduction::of(async { tickets.decrypt(ticket.as_ref()?) }).await;
            assert_eq!(opened.as_deref(), good.then_some(&b"session"[..]), "{until:?}");
            assert_eq!(found.until, until.filter(|_| good));
            // Nobody would know whom it is of.
            assert_eq!(tickets.decrypt(&ticket.unwrap()), None);
        }
        assert_eq!(tickets.encrypt(b"session"), None);
    }
}
