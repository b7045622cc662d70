//! What tells requests apart, and which requests count.

use std::borrow::Cow;
use std::hash::Hasher;
use std::net::IpAddr;

use fieldgate_core::guard::Guarded;
use fieldgate_core::ir::{LimitCondition, LimitKey};
use ipnet::IpNet;
use serde_json::Value as Json;

use crate::authz::text::{Invalid, Star, Text};

/// A prepared [`LimitCondition`].
#[derive(Debug)]
pub(super) enum When {
    Header(Box<str>, Text),
    Path(Text),
    Method(Box<str>),
}

impl When {
    pub fn new(condition: &LimitCondition) -> Result<Self, Invalid> {
        Ok(match condition {
            LimitCondition::Header(name, value) => Self::Header((&**name).into(), Text::new(value)?),
            LimitCondition::Path(path) => Self::Path(Text::new(path)?),
            LimitCondition::Method(method) => Self::Method((&**method).into()),
        })
    }

    pub fn holds(&self, request: &Guarded<'_>) -> bool {
        let head = &*request.head;
        match self {
            // Any of them: a client must not get around a limit by sending a header twice.
            Self::Header(name, text) => head.headers.get_all(name).any(|v| text.matches(v, Star::There)),
            Self::Path(text) => text.matches(head.path().as_bytes(), Star::NotEmpty),
            Self::Method(method) => head.method.as_str() == &**method,
        }
    }
}

/// What a request has of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'r> {
    Bytes(Cow<'r, [u8]>),
    Address(IpAddr),
    Network(IpNet),
}

impl<'r> Value<'r> {
    /// `None`: the request has none and does not count.
    pub fn of(key: &'r LimitKey, request: &'r Guarded<'_>) -> Option<Self> {
        let head = &*request.head;
        let text = |text: &'r str| Some(Self::Bytes(Cow::Borrowed(text.as_bytes())));
        match key {
            LimitKey::Header(name) => joined(head.headers.get_all(name)).map(Self::Bytes),
            LimitKey::Client(ipv4, ipv6) => Some(Self::client(request.facts.client, *ipv4, *ipv6)),
            LimitKey::Principal => {
                let identity = request.facts.identity?;
                // Without a SPIFFE name the certificate's subject is who it is; that a CA signs for one holder only.
                text(identity.principal().unwrap_or(&identity.subject)).filter(Self::is_some)
            }
            LimitKey::User => {
                let tokens = request.metadata.tokens.iter();
                let token = tokens.map(|token| token.principal.as_str()).find(|name| !name.is_empty());
                text(token.or_else(|| request.metadata.user.as_ref().map(|(name, _)| &**name))?)
            }
            LimitKey::Claim(path) => {
                request.metadata.tokens.iter().find_map(|token| token.claim(path)).map(|claim| match claim {
                    Json::String(text) => Self::Bytes(Cow::Borrowed(text.as_bytes())),
                    other => Self::Bytes(Cow::Owned(other.to_string().into_bytes())),
                })
            }
            LimitKey::Route => text(&request.rule?.id),
            LimitKey::Host => text(head.host()),
            LimitKey::Path => text(head.path()),
            LimitKey::Method => text(head.method.as_str()),
        }
    }

    fn client(address: IpAddr, ipv4: u8, ipv6: u8) -> Self {
        let address = address.to_canonical();
        let (bits, all) = if address.is_ipv4() { (ipv4, 32) } else { (ipv6, 128) };
        match IpNet::new(address, bits) {
            Ok(network) if bits < all => Self::Network(network.trunc()),
            _ => Self::Address(address),
        }
    }

    fn is_some(&self) -> bool {
        !matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }

    /// Parts that follow each other cannot be mistaken for others: each ends with its length.
    pub fn hash(&self, hasher: &mut impl Hasher) {
        match self {
            Self::Bytes(bytes) => {
                hasher.write(bytes);
                hasher.write_usize(bytes.len());
            }
            Self::Address(address) => std::hash::Hash::hash(address, hasher),
            Self::Network(network) => std::hash::Hash::hash(&network.network(), hasher),
        }
    }

    /// As people and services read it.
    pub fn into_text(self) -> String {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Self::Address(address) => address.to_string(),
            Self::Network(network) => network.to_string(),
        }
    }
}

/// Fields of one name as the one that they are (RFC 9110 section 5.3). An empty one is none.
fn joined<'r>(mut values: impl Iterator<Item = &'r [u8]>) -> Option<Cow<'r, [u8]>> {
    let first = values.next()?;
    let mut all = Cow::Borrowed(first);
    for next in values {
        let all = all.to_mut();
        all.extend_from_slice(b",");
        all.extend_from_slice(next);
    }
    (!all.is_empty()).then_some(all)
}
