//! Cookies that only we can read and write: encrypted and authenticated, bound to what they are for, and split where one
//! would be larger than browsers keep.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_core::ir::Secret;
use fieldgate_core::{HeaderId, Headers, RequestHead};

/// Bytes of a value in one cookie. Browsers keep 4096 of name, value and attributes together.
const PIECE: usize = 3600;
/// Cookies that one value may take: 18 KB, of the 60 that a head may have.
const PIECES: usize = 5;

/// Encrypts and decrypts.
pub struct Sealer {
    keys: Vec<LessSafeKey>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealer({} keys)", self.keys.len())
    }
}

impl Sealer {
    /// The first secret encrypts. `context` tells this user of the secrets from others.
    pub fn new(secrets: &[Secret], context: &str) -> Result<Self, String> {
        if secrets.is_empty() || secrets.iter().any(|secret| secret.0.len() < 32) {
            return Err("a cookie secret needs 32 bytes or more".to_owned());
        }
        let key = |secret: &Secret| {
            let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, b"fieldgate.dev/login/v1").extract(&secret.0);
            let info = [context.as_bytes()];
            let okm = prk.expand(&info, &AES_256_GCM).ok()?;
            Some(LessSafeKey::new(UnboundKey::from(okm)))
        };
        let keys: Option<Vec<_>> = secrets.iter().map(key).collect();
        keys.map(|keys| Self { keys })
            .ok_or_else(|| "no key can be derived from the cookie secret".to_owned())
    }

    /// `purpose` must be the same when it is opened. Nothing if there are no random numbers.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        self.keys[0].seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
        let mut out = nonce.to_vec();
        out.append(&mut sealed);
        Some(URL_SAFE_NO_PAD.encode(out))
    }

    /// What was sealed for the same purpose.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        self.keys.iter().find_map(|key| {
            let mut sealed = sealed.to_vec();
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let plain = key.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut sealed).ok()?;
            Some(plain.to_vec())
        })
    }
}

/// How cookies are set.
#[derive(Clone, Debug)]
pub struct Jar {
    /// The name, without the prefix that says how it was set.
    pub name: String,
    /// `None` is the host alone.
    pub domain: Option<String>,
}

impl Jar {
    /// The name in full. Over TLS no other host, no other path and no plain connection can set a cookie of that name
    /// (RFC 6265bis section 4.1.3).
    pub fn name(&self, secure: bool, suffix: &str) -> String {
        let prefix = match (&self.domain, secure) {
            (_, false) => "",
            (None, true) => "__Host-",
            (Some(_), true) => "__Secure-",
        };
        format!("{prefix}{}{suffix}", self.name)
    }

    /// `Set-Cookie`. `seconds`: how long it is kept; 0 removes it.
    pub fn set(&self, secure: bool, suffix: &str, value: &str, seconds: u64) -> String {
        let name = self.name(secure, suffix);
        let domain = self.domain.as_ref().map_or_else(String::new, |domain| format!("; Domain={domain}"));
        let flag = if secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/{domain}; Max-Age={seconds}; HttpOnly; SameSite=Lax{flag}")
    }

    /// Whether a cookie is one of ours, set with any prefix.
    pub fn owns(&self, name: &str) -> bool {
        let bare = name.strip_prefix("__Host-").or_else(|| name.strip_prefix("__Secure-")).unwrap_or(name);
        bare.strip_prefix(self.name.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    }

    /// A value that may be longer than one cookie holds; `None` if it is too long altogether. What an older, longer one
    /// has taken beyond it is removed.
    pub fn set_whole(
        &self,
        head: &RequestHead,
        secure: bool,
        value: &str,
        seconds: u64,
    ) -> Option<Vec<String>> {
        let pieces = value.len().div_ceil(PIECE).max(1);
        if pieces > PIECES {
            return None;
        }
        let mut cookies = Vec::with_capacity(pieces);
        for at in 0..PIECES {
            let suffix = suffix(at);
            if at < pieces {
                let piece = &value[at * PIECE..value.len().min((at + 1) * PIECE)];
                let piece = if at == 0 { format!("{pieces}.{piece}") } else { piece.to_owned() };
                cookies.push(self.set(secure, &suffix, &piece, seconds));
            } else if head.cookie(&self.name(secure, &suffix)).is_some() {
                cookies.push(self.set(secure, &suffix, "", 0));
            }
        }
        Some(cookies)
    }

    /// The value that [`Jar::set_whole`] has set.
    pub fn whole(&self, head: &RequestHead, secure: bool) -> Option<Vec<u8>> {
        let first = head.cookie(&self.name(secure, ""))?;
        let (count, rest) = first.split_at_checked(2)?;
        let pieces = usize::from(count[0].checked_sub(b'0')?);
        if count[1] != b'.' || pieces == 0 || pieces > PIECES {
            return None;
        }
        let mut value = rest.to_vec();
        for at in 1..pieces {
            value.extend_from_slice(head.cookie(&self.name(secure, &suffix(at)))?);
        }
        Some(value)
    }

    /// Removes what [`Jar::set_whole`] has set.
    pub fn clear(&self, head: &RequestHead, secure: bool) -> Vec<String> {
        let there = (0..PIECES).map(suffix).filter(|s| head.cookie(&self.name(secure, s)).is_some());
        there.map(|suffix| self.set(secure, &suffix, "", 0)).collect()
    }
}

fn suffix(piece: usize) -> String {
    if piece == 0 { String::new() } else { format!("-{piece}") }
}

/// Takes cookies off a request.
pub fn take_off(headers: &mut Headers, is_out: impl Fn(&str) -> bool) {
    let name = |pair: &[u8]| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        std::str::from_utf8(name).ok().map(str::to_owned)
    };
    let out = |pair: &[u8]| name(pair).is_some_and(|name| is_out(&name));
    let fields = headers.get_all_id(HeaderId::Cookie);
    if !fields.flat_map(|field| field.split(|b| *b == b';')).any(out) {
        return;
    }
    let fields: Vec<Vec<u8>> = headers
        .get_all_id(HeaderId::Cookie)
        .map(|field| {
            let kept = field.split(|b| *b == b';').filter(|pair| !out(pair)).map(<[u8]>::trim_ascii);
            kept.collect::<Vec<_>>().join(&b"; "[..])
        })
        .filter(|field| !field.is_empty())
        .collect();
    headers.remove_id(HeaderId::Cookie);
    for field in fields {
        headers.push_known(HeaderId::Cookie, "cookie", &field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(byte: u8) -> Secret {
        Secret([byte; 32].as_slice().into())
    }

    fn with(cookies: &[String]) -> RequestHead {
        let mut head = RequestHead::default();
        for cookie in cookies {
            let pair = cookie.split(';').next().unwrap();
            head.headers.push(b"cookie", pair.as_bytes());
        }
        head
    }

    #[test]
    fn secrets_are_rotated() {
        let old = Sealer::new(&[secret(1)], "a").unwrap();
        let both = Sealer::new(&[secret(2), secret(1)], "a").unwrap();
        let new = Sealer::new(&[secret(2)], "a").unwrap();
        let sealed = old.seal("p", b"x").unwrap();
        assert_eq!(both.open("p", sealed.as_bytes()).as_deref(), Some(&b"x"[..]));
        assert_eq!(new.open("p", sealed.as_bytes()), None);
        assert!(new.open("p", both.seal("p", b"x").unwrap().as_bytes()).is_some());
    }

    #[test]
    fn what_is_for_something_else_is_not_opened() {
        let sealer = Sealer::new(&[secret(1)], "default/a").unwrap();
        let sealed = sealer.seal("state", b"x").unwrap();
        assert_eq!(sealer.open("session", sealed.as_bytes()), None);
        let other = Sealer::new(&[secret(1)], "default/b").unwrap();
        assert_eq!(other.open("state", sealed.as_bytes()), None);
        assert!(Sealer::new(&[Secret(b"short".as_slice().into())], "a").is_err());
    }

    #[test]
    fn names_say_how_they_were_set() {
        let mut jar = Jar { name: "fg".into(), domain: None };
        assert_eq!(
            jar.set(true, "", "v", 9),
            "__Host-fg=v; Path=/; Max-Age=9; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(jar.set(false, "-1", "v", 9), "fg-1=v; Path=/; Max-Age=9; HttpOnly; SameSite=Lax");
        jar.domain = Some("example.com".into());
        let set = jar.set(true, "", "v", 9);
        assert!(set.starts_with("__Secure-fg=v; Path=/; Domain=example.com;"), "{set}");
        for (name, ours) in
            [("fg", true), ("__Host-fg-1", true), ("fg.ab", true), ("fgx", false), ("x", false)]
        {
            assert_eq!(jar.owns(name), ours, "{name}");
        }
    }

    #[test]
    fn only_cookies_of_ours_are_taken_off() {
        let mut head = RequestHead::default();
        head.headers.push(b"cookie", b"a=1; fg=x;b=2");
        head.headers.push(b"cookie", b"fg-1=y");
        take_off(&mut head.headers, |name| name.starts_with("fg"));
        assert_eq!(head.headers.get_all("cookie").collect::<Vec<_>>(), [&b"a=1; b=2"[..]]);
    }

    proptest! {
        #[test]
        fn long_values_come_back_whole(length in 0usize..20_000, older in 0usize..20_000) {
            let jar = Jar { name: "fg".into(), domain: None };
            let text = |length: usize| "abcdefg".chars().cycle().take(length).collect::<String>();
            let old = jar.set_whole(&RequestHead::default(), true, &text(older), 1).unwrap_or_default();
            match jar.set_whole(&with(&old), true, &text(length), 1) {
                None => prop_assert!(length > PIECE * PIECES),
                Some(cookies) => {
                    prop_assert!(cookies.iter().all(|c| c.len() < 4096));
                    prop_assert_eq!(jar.whole(&with(&cookies), true), Some(text(length).into_bytes()));
                    prop_assert_eq!(cookies.len(), length.div_ceil(PIECE).max(1).max(old.len()));
                }
            }
        }

        #[test]
        fn not_a_bit_may_change(plain in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0u32..6) {
            let sealer = Sealer::new(&[secret(1)], "a").unwrap();
            let sealed = sealer.seal("p", &plain).unwrap();
            prop_assert_eq!(sealer.open("p", sealed.as_bytes()), Some(plain));
            let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let changed = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(sealer.open("p", changed.as_bytes()), None);
        }
    }
}
