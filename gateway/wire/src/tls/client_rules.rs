//! What certificates of clients are held against, as it is asked for. How they are judged is in `clients`.

use aws_lc_rs::digest::{Context, SHA256};

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientMode {
    /// None, or a wrong one: the handshake fails.
    Required,
    /// None is fine, a wrong one fails.
    Optional,
    /// None is fine, and a wrong one counts as none.
    Unverified,
}

/// What a name of a certificate may have to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This.
    Exact(Box<str>),
    /// Anything that begins so.
    Prefix(Box<str>),
    /// Anything that ends so.
    Suffix(Box<str>),
    /// Anything.
    Any,
}

impl NamePattern {
    pub(super) fn fits(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
            Self::Suffix(suffix) => name.ends_with(&**suffix),
            Self::Any => !name.is_empty(),
        }
    }

    /// DNS names mean the same in both cases.
    pub(super) fn fits_dns(&self, name: &str) -> bool {
        let lower = |text: &str| text.to_ascii_lowercase().into_boxed_str();
        let this = match self {
            Self::Exact(text) => Self::Exact(lower(text)),
            Self::Prefix(text) => Self::Prefix(lower(text)),
            Self::Suffix(text) => Self::Suffix(lower(text)),
            Self::Any => Self::Any,
        };
        this.fits(&lower(name))
    }
}

/// What certificates of clients are held against.
#[derive(Clone, Debug)]
pub struct ClientRules<'a> {
    /// Whether one must be shown.
    pub mode: ClientMode,
    /// Authorities: where each text is from, and its PEM.
    pub roots: Vec<(&'a str, &'a [u8])>,
    /// Revocation lists, in the same way. If there are any, a certificate whose issuer has none is refused, and so is one
    /// whose issuer's list is out of date.
    pub revoked: Vec<(&'a str, &'a [u8])>,
    /// Any one must fit a URI, DNS or e-mail name; empty asks nothing.
    pub names: Vec<NamePattern>,
    /// A SPIFFE identity must be of one of these, and none of another; empty asks nothing.
    pub trust_domains: Vec<Box<str>>,
}

impl ClientRules<'_> {
    /// All that a certificate is held against, so that a session is not resumed where another judgement might be made.
    pub(super) fn scope(&self) -> Vec<u8> {
        let mut digest = Context::new(&SHA256);
        let mut field = |bytes: &[u8]| {
            digest.update(&(bytes.len() as u64).to_be_bytes());
            digest.update(bytes);
        };
        field(&[self.mode as u8]);
        for texts in [&self.roots, &self.revoked] {
            field(&texts.len().to_be_bytes());
            for (_, pem) in texts {
                field(pem);
            }
        }
        field(&self.names.len().to_be_bytes());
        for name in &self.names {
            let (kind, text): (u8, &str) = match name {
                NamePattern::Exact(text) => (0, text),
                NamePattern::Prefix(text) => (1, text),
                NamePattern::Suffix(text) => (2, text),
                NamePattern::Any => (3, ""),
            };
            field(&[kind]);
            field(text.as_bytes());
        }
        for domain in &self.trust_domains {
            field(domain.as_bytes());
        }
        digest.finish().as_ref().to_vec()
    }
}

/// Something that has its time, of what a verifier believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    /// What it is.
    pub kind: DatedKind,
    /// Where it is from.
    pub origin: Box<str>,
    /// Whose it is, RFC 2253 form.
    pub subject: Box<str>,
    /// Seconds since 1970 when it ends.
    pub until: i64,
}

/// Kinds of [`Dated`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatedKind {
    /// An authority's certificate.
    Authority,
    /// A revocation list.
    RevocationList,
}
