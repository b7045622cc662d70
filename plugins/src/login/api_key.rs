//! API keys. A key is looked up by its digest: how long that takes says nothing of any key.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use fieldgate_core::guard::Verdict;
use fieldgate_core::{RequestHead, ir};
use rustc_hash::FxHashMap;

use super::{Found, cookies, refusal, url};

/// Keys, ready. Only their digests are kept.
pub struct ApiKeys {
    headers: Vec<Arc<str>>,
    params: Vec<Arc<str>>,
    cookies: Vec<Arc<str>>,
    clients: FxHashMap<[u8; 32], Arc<str>>,
    strip: bool,
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKeys({} clients)", self.clients.len())
    }
}

impl ApiKeys {
    pub fn new(ir: &ir::ApiKeys) -> Self {
        Self {
            headers: ir.headers.clone(),
            params: ir.params.clone(),
            cookies: ir.cookies.clone(),
            clients: ir.keys.iter().map(|(client, key)| (of(&key.0), client.clone())).collect(),
            strip: ir.strip,
        }
    }

    pub fn look(&self, head: &mut RequestHead) -> Found {
        let Some(presented) = self.presented(head) else { return Found::Nothing };
        let Some(client) = presented.and_then(|digest| self.clients.get(&digest)) else {
            let challenge = vec![("www-authenticate", "ApiKey".to_owned())];
            return Found::Verdict(Verdict::Respond(refusal(
                401,
                "api_key_unknown",
                challenge,
                "this API key is not known\n",
            )));
        };
        if self.strip {
            self.take_off(head);
        }
        Found::User((**client).into())
    }

    /// The digest of the key that is presented; of several, only if they are all the same, since upstreams may look at any.
    fn presented(&self, head: &RequestHead) -> Option<Option<[u8; 32]>> {
        let query = head.query().unwrap_or_default();
        let in_headers = self.headers.iter().flat_map(|name| head.headers.get_all(name)).map(|value| {
            // As other gateways take it, a key may also be sent as a bearer token.
            value.strip_prefix(b"Bearer ").unwrap_or(value)
        });
        let in_params = self.params.iter().filter(|name| !query.is_empty() && has(query, name));
        let in_params = in_params.map(|name| url::only(query, name).map(|value| of(value.as_bytes())));
        let in_cookies = self.cookies.iter().filter_map(|name| head.cookie(name));
        let mut all = in_headers.map(|k| Some(of(k))).chain(in_params).chain(in_cookies.map(|k| Some(of(k))));
        let first = all.next()?;
        Some(if all.all(|other| other == first) { first } else { None })
    }

    fn take_off(&self, head: &mut RequestHead) {
        for name in &self.headers {
            head.headers.remove(name);
        }
        if let Some(query) = head.query()
            && self.params.iter().any(|name| has(query, name))
        {
            let query = url::without(query, |name| self.params.iter().any(|own| **own == *name));
            let mark = if query.is_empty() { "" } else { "?" };
            let target = format!("{}{mark}{query}", head.path());
            head.set_target(&target);
        }
        cookies::take_off(&mut head.headers, |name| self.cookies.iter().any(|own| **own == *name));
    }
}

fn has(query: &str, name: &str) -> bool {
    url::without(query, |own| own == name).len() != query.len()
}

fn of(key: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, key).as_ref());
    out
}
