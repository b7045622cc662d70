//! Expressions in CEL beside a policy's rules. Attributes are those of Envoy's RBAC filter, each made only if the
//! expression asks for it. What is missing of a connection or a token is an empty text, list or map; what is missing in a map
//! is an error, and what an error means is for the policy's action to say.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, Program, Value};
use fieldgate_core::identity::Token;
use fieldgate_core::{RequestHead, Version};
use serde::Serialize;

use super::peer;
use super::rule::Facts;
use super::text::Invalid;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// An expression, ready to be evaluated.
pub struct Expression {
    text: Arc<str>,
    program: Program,
}

impl Expression {
    /// Reads an expression. Its bounds were seen to where it was configured.
    pub fn new(text: &Arc<str>) -> Result<Self, Invalid> {
        let program = ENVIRONMENT.compile(text).map_err(|_| Invalid)?;
        Ok(Self { text: text.clone(), program })
    }

    /// Whether it holds; `None` if that cannot be said: an error, or a value that is not true or false.
    pub fn holds(&self, facts: &Facts, token: Option<&Token>) -> Option<bool> {
        let attributes = Attributes { facts, token };
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        context.set_variable_resolver(&attributes);
        match self.program.execute(&context) {
            Ok(Value::Bool(holds)) => Some(holds),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

struct Attributes<'a> {
    facts: &'a Facts<'a>,
    token: Option<&'a Token>,
}

impl VariableResolver for Attributes<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let value = self.attribute(name)?;
        let value: Box<dyn Val> = value.try_into().ok()?;
        Some(CowVal::Owned(value))
    }
}

impl Attributes<'_> {
    fn attribute(&self, name: &str) -> Option<Value> {
        let head = self.facts.head;
        let field = |name: &str| text(&head.headers.get(name).map(lossy).unwrap_or_default());
        let identity = self.facts.peer_identity;
        Some(match name {
            "request.path" => text(&head.target),
            "request.url_path" => text(head.path()),
            "request.query" => text(head.target.split_once('?').map_or("", |(_, query)| query)),
            "request.host" => text(&head.authority),
            "request.scheme" => text(if head.https { "https" } else { "http" }),
            "request.method" => text(head.method.as_str()),
            "request.protocol" => text(protocol(head)),
            "request.headers" => headers(head),
            "request.referer" => field("referer"),
            "request.useragent" => field("user-agent"),
            "request.id" => field("x-request-id"),
            "request.auth.principal" => text(self.token.map_or("", |token| &token.principal)),
            "request.auth.audiences" => match self.token {
                Some(token) => of(&token.audiences)?,
                None => of(&[(); 0])?,
            },
            "request.auth.presenter" => {
                text(self.token.and_then(|token| token.claims.get("azp")?.as_str()).unwrap_or_default())
            }
            "request.auth.claims" => match self.token {
                Some(token) => of(&token.claims)?,
                None => of(&serde_json::Map::new())?,
            },
            "source.address" => text(&self.facts.peer.to_string()),
            "remote.address" => text(&self.facts.client.to_string()),
            "source.principal" => text(identity.and_then(|peer| peer.principal()).unwrap_or_default()),
            "source.namespace" => text(identity.and_then(|peer| peer.workload()).map_or("", |(_, of, _)| of)),
            "source.service_account" => {
                text(identity.and_then(|peer| peer.workload()).map_or("", |(_, _, of)| of))
            }
            "destination.address" => text(&SocketAddr::new(self.facts.local, self.facts.port).to_string()),
            "destination.port" => Value::Int(self.facts.port.into()),
            "connection.sni" | "connection.requested_server_name" => text(&lossy(self.facts.server_name)),
            "connection.mtls" => Value::Bool(peer::names(identity).any(|name| !name.is_empty())),
            "connection.uri_san_peer_certificate" => {
                text(identity.and_then(|p| p.uris.first()).map_or("", |n| n))
            }
            "connection.dns_san_peer_certificate" => {
                text(identity.and_then(|p| p.dns.first()).map_or("", |n| n))
            }
            "connection.subject_peer_certificate" => text(identity.map_or("", |peer| &peer.subject)),
            "metadata.filter_metadata" => of(&self.facts.metadata.dynamic)?,
            _ => return None,
        })
    }
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn of(value: &(impl Serialize + ?Sized)) -> Option<Value> {
    cel::to_value(value).ok()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn protocol(head: &RequestHead) -> &'static str {
    match head.version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
        _ => "HTTP/2",
    }
}

/// By names in lower case; several fields of a name are one, joined by commas.
fn headers(head: &RequestHead) -> Value {
    let mut all = std::collections::HashMap::<String, String>::new();
    for (_, name, value) in head.headers.iter() {
        let value = lossy(value);
        all.entry(lossy(name).to_ascii_lowercase())
            .and_modify(|known| {
                known.push(',');
                known.push_str(&value);
            })
            .or_insert(value);
    }
    all.into()
}
