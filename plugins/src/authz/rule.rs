//! One rule of a policy, prepared, and the facts that it is matched against.

use std::net::IpAddr;
use std::sync::Arc;

use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::ir::{self, ConditionKey, ConditionValue, ConnectionFacts, StringMatch};
use fieldgate_core::{AddressSet, HeaderId, RequestHead, Version};
use ipnet::IpNet;

use super::expression::Expression;
use super::peer::Peers;
use super::text::{Invalid, Star, Text, texts};
use super::token::{Bearers, Claim, Dynamic};

/// What a request is matched on.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub head: &'a RequestHead,
    pub peer: IpAddr,
    pub client: IpAddr,
    pub local: IpAddr,
    pub port: u16,
    pub server_name: &'a [u8],
    pub peer_identity: Option<&'a PeerIdentity>,
    pub metadata: &'a Metadata,
}

impl<'a> Facts<'a> {
    /// A mapped IPv4 address is an IPv4 address; a missing server name is an empty one (as in Envoy).
    pub fn new(head: &'a RequestHead, facts: &ConnectionFacts<'a>, metadata: &'a Metadata) -> Self {
        Self {
            head,
            peer: facts.peer.to_canonical(),
            client: facts.client.to_canonical(),
            local: facts.local.ip().to_canonical(),
            port: facts.local.port(),
            server_name: facts.sni.unwrap_or_default().as_bytes(),
            peer_identity: facts.identity,
            metadata,
        }
    }
}

/// One rule; matches everything if nothing is in it.
#[derive(Debug, Default)]
pub struct Rule {
    from: Vec<Source>,
    to: Vec<Operation>,
    when: Vec<Condition>,
    /// Whether some part looks at a token.
    of_token: bool,
    /// What must hold too, and what it counts as if that cannot be said.
    expression: Option<(Arc<Expression>, bool)>,
}

impl Rule {
    /// Prepares a rule.
    pub fn new(rule: &ir::PolicyRule) -> Result<Self, Invalid> {
        let mut new = Self {
            from: rule.from.iter().map(Source::new).collect::<Result<_, _>>()?,
            to: rule.to.iter().map(Operation::new).collect::<Result<_, _>>()?,
            when: rule.when.iter().map(Condition::new).collect::<Result<_, _>>()?,
            of_token: false,
            expression: None,
        };
        new.of_token = new.from.iter().any(|source| !source.bearers.is_empty())
            || new.when.iter().any(|when| matches!(when, Condition::Bearer(_) | Condition::Claim(_)));
        Ok(new)
    }

    /// The same, if an expression holds too. An error counts as `otherwise`.
    pub fn and(mut self, expression: Option<&Arc<Expression>>, otherwise: bool) -> Self {
        self.of_token |= expression.is_some();
        self.expression = expression.map(|expression| (Arc::clone(expression), otherwise));
        self
    }

    /// Whether it matches. A request with several tokens is judged as if it had each of them alone, and the rule matches if
    /// it does with one: so no two tokens together open what neither opens, and none hides another from a DENY rule.
    pub fn matches(&self, facts: &Facts) -> bool {
        #[cfg(test)]
        super::tests::count_a_rule();
        if !(self.to.is_empty() || self.to.iter().any(|to| to.miss(facts).is_none())) {
            return false;
        }
        let with = |token: Option<&Token>| {
            (self.from.is_empty() || self.from.iter().any(|from| from.miss(facts, token).is_none()))
                && self.when.iter().all(|when| when.matches(facts, token))
                && self.expression_holds(facts, token)
        };
        match &*facts.metadata.tokens {
            [] => with(None),
            [first, ..] if !self.of_token => with(Some(first)),
            tokens => tokens.iter().any(|token| with(Some(token))),
        }
    }

    fn expression_holds(&self, facts: &Facts, token: Option<&Token>) -> bool {
        self.expression
            .as_ref()
            .is_none_or(|(expression, otherwise)| expression.holds(facts, token).unwrap_or(*otherwise))
    }

    /// What of the rule does not fit, for people: the first field of each alternative.
    pub fn misses(&self, facts: &Facts) -> Vec<String> {
        let tokens: Vec<Option<&Token>> = match &*facts.metadata.tokens {
            [] => vec![None],
            tokens => tokens.iter().map(|token| Some(&**token)).collect(),
        };
        let mut misses = Vec::new();
        let to: Vec<_> = self.to.iter().map(|to| to.miss(facts)).collect();
        if !to.is_empty() && to.iter().all(Option::is_some) {
            let fields = to.into_iter().flatten().enumerate();
            misses.extend(fields.map(|(at, field)| format!("to[{at}].operation.{field}")));
        }
        for token in tokens {
            let from: Vec<_> = self.from.iter().map(|from| from.miss(facts, token)).collect();
            if !from.is_empty() && from.iter().all(Option::is_some) {
                let fields = from.into_iter().flatten().enumerate();
                misses.extend(fields.map(|(at, field)| format!("from[{at}].source.{field}")));
            }
            let when = self.when.iter().enumerate().filter(|(_, when)| !when.matches(facts, token));
            misses.extend(when.map(|(at, _)| format!("when[{at}]")));
            if !self.expression_holds(facts, token) {
                misses.push("the expression".to_owned());
            }
        }
        misses.dedup();
        misses
    }
}

#[derive(Debug)]
struct Source {
    peer: Addresses,
    client: Addresses,
    principals: Peers,
    namespaces: Peers,
    accounts: Peers,
    trust_domains: Peers,
    bearers: Bearers,
}

impl Source {
    fn new(source: &ir::PolicySource) -> Result<Self, Invalid> {
        Ok(Self {
            peer: Addresses::new(&source.ip_blocks, &source.not_ip_blocks),
            client: Addresses::new(&source.remote_ip_blocks, &source.not_remote_ip_blocks),
            principals: Peers::principals(&source.principals, &source.not_principals)?,
            namespaces: Peers::namespaces(&source.namespaces, &source.not_namespaces),
            accounts: Peers::accounts(&source.service_accounts, &source.not_service_accounts),
            trust_domains: Peers::trust_domains(&source.trust_domains, &source.not_trust_domains),
            bearers: Bearers::new(&source.request_principals, &source.not_request_principals)?,
        })
    }

    /// The first field that does not fit.
    fn miss(&self, facts: &Facts, token: Option<&Token>) -> Option<&'static str> {
        let identity = facts.peer_identity;
        if !self.peer.matches(facts.peer) {
            Some("ipBlocks")
        } else if !self.client.matches(facts.client) {
            Some("remoteIpBlocks")
        } else if !self.principals.matches(identity) {
            Some("principals")
        } else if !self.namespaces.matches(identity) {
            Some("namespaces")
        } else if !self.accounts.matches(identity) {
            Some("serviceAccounts")
        } else if !self.trust_domains.matches(identity) {
            Some("trustDomains")
        } else if !self.bearers.matches(token) {
            Some("requestPrincipals")
        } else {
            None
        }
    }
}

/// Some of these, unless there are none, and none of those.
#[derive(Debug)]
struct Addresses {
    some: AddressSet,
    none: AddressSet,
}

impl Addresses {
    fn new<'a>(some: impl IntoIterator<Item = &'a IpNet>, none: impl IntoIterator<Item = &'a IpNet>) -> Self {
        Self { some: AddressSet::new(some), none: AddressSet::new(none) }
    }

    fn matches(&self, address: IpAddr) -> bool {
        (self.some.is_empty() || self.some.contains(address)) && !self.none.contains(address)
    }
}

/// As [`Addresses`], of texts.
#[derive(Debug)]
struct Operation {
    hosts: Vec<Text>,
    not_hosts: Vec<Text>,
    ports: Vec<u16>,
    not_ports: Vec<u16>,
    methods: Vec<Text>,
    not_methods: Vec<Text>,
    paths: Vec<Text>,
    not_paths: Vec<Text>,
}

impl Operation {
    fn new(operation: &ir::PolicyOperation) -> Result<Self, Invalid> {
        // Authorities are in lower case already.
        let hosts =
            |patterns: &[StringMatch]| patterns.iter().map(Text::lower_case).collect::<Result<_, _>>();
        Ok(Self {
            hosts: hosts(&operation.hosts)?,
            not_hosts: hosts(&operation.not_hosts)?,
            ports: operation.ports.clone(),
            not_ports: operation.not_ports.clone(),
            methods: texts(&operation.methods)?,
            not_methods: texts(&operation.not_methods)?,
            paths: texts(&operation.paths)?,
            not_paths: texts(&operation.not_paths)?,
        })
    }

    /// The first field that does not fit.
    fn miss(&self, facts: &Facts) -> Option<&'static str> {
        let head = facts.head;
        let host = (!head.authority.is_empty()).then_some(head.authority.as_bytes());
        let method = Some(head.method.as_str().as_bytes());
        let port = facts.port;
        if !(self.ports.is_empty() || self.ports.contains(&port)) || self.not_ports.contains(&port) {
            Some("ports")
        } else if !some_and_none(&self.methods, &self.not_methods, method, Star::There) {
            Some("methods")
        } else if !some_and_none(&self.hosts, &self.not_hosts, host, Star::There) {
            Some("hosts")
        } else if !some_and_none(&self.paths, &self.not_paths, Some(head.path().as_bytes()), Star::NotEmpty) {
            Some("paths")
        } else {
            None
        }
    }
}

#[derive(Debug)]
enum Condition {
    Header { name: Box<str>, some: Vec<Text>, none: Vec<Text> },
    ServerName { some: Vec<Text>, none: Vec<Text> },
    Peer(Addresses),
    Client(Addresses),
    Local(Addresses),
    Port { some: Vec<u16>, none: Vec<u16> },
    Identity(Peers),
    Bearer(Bearers),
    Claim(Claim),
    Dynamic(Dynamic),
}

impl Condition {
    fn new(condition: &ir::PolicyCondition) -> Result<Self, Invalid> {
        let (values, not_values) = (&condition.values, &condition.not_values);
        let addresses = || Ok(Addresses::new(&nets(values)?, &nets(not_values)?));
        Ok(match &condition.key {
            ConditionKey::SourcePrincipal => {
                Self::Identity(Peers::principals(&patterns(values)?, &patterns(not_values)?)?)
            }
            ConditionKey::SourceNamespace => {
                Self::Identity(Peers::namespaces(&names(values)?, &names(not_values)?))
            }
            ConditionKey::SourceTrustDomain => {
                Self::Identity(Peers::trust_domains(&names(values)?, &names(not_values)?))
            }
            ConditionKey::SourceServiceAccount => {
                let account = |value: &ConditionValue| match value {
                    ConditionValue::Account(account) => Some(account.clone()),
                    _ => None,
                };
                Self::Identity(Peers::accounts(&all(values, account)?, &all(not_values, account)?))
            }
            ConditionKey::RequestPrincipal => {
                let bearer = |value: &ConditionValue| match value {
                    ConditionValue::Bearer(bearer) => Some(bearer.clone()),
                    _ => None,
                };
                Self::Bearer(Bearers::new(&all(values, bearer)?, &all(not_values, bearer)?)?)
            }
            ConditionKey::Claim(path) => {
                Self::Claim(Claim::new(path, &patterns(values)?, &patterns(not_values)?)?)
            }
            ConditionKey::Metadata(filter, key) => {
                let text = |value: &ConditionValue| match value {
                    ConditionValue::String(pattern) => Text::new(pattern).ok().map(|text| (false, text)),
                    ConditionValue::InList(pattern) => Text::new(pattern).ok().map(|text| (true, text)),
                    _ => None,
                };
                Self::Dynamic(Dynamic::new(filter, key, all(values, text)?, all(not_values, text)?))
            }
            ConditionKey::RequestHeader(name) => Self::Header {
                name: name.to_ascii_lowercase().into(),
                some: strings(values)?,
                none: strings(not_values)?,
            },
            ConditionKey::Sni => Self::ServerName { some: strings(values)?, none: strings(not_values)? },
            ConditionKey::SourceIp => Self::Peer(addresses()?),
            ConditionKey::RemoteIp => Self::Client(addresses()?),
            ConditionKey::DestinationIp => Self::Local(addresses()?),
            ConditionKey::DestinationPort => Self::Port { some: ports(values)?, none: ports(not_values)? },
        })
    }

    fn matches(&self, facts: &Facts, token: Option<&Token>) -> bool {
        match self {
            Self::Identity(peers) => peers.matches(facts.peer_identity),
            Self::Bearer(bearers) => bearers.matches(token),
            Self::Claim(claim) => claim.matches(token),
            Self::Dynamic(value) => value.matches(facts.metadata),
            Self::Header { name, some, none } => {
                (some.is_empty() || header_is_any(facts.head, name, some))
                    && !header_is_any(facts.head, name, none)
            }
            Self::ServerName { some, none } => {
                some_and_none(some, none, Some(facts.server_name), Star::NotEmpty)
            }
            Self::Peer(addresses) => addresses.matches(facts.peer),
            Self::Client(addresses) => addresses.matches(facts.client),
            Self::Local(addresses) => addresses.matches(facts.local),
            Self::Port { some, none } => {
                (some.is_empty() || some.contains(&facts.port)) && !none.contains(&facts.port)
            }
        }
    }
}

/// Whether a header has a value that fits one of the patterns. Each field of the name is looked at for itself, as in Envoy
/// since CVE-2026-26308: were they joined, an attacker could hide a value from a DENY rule behind another.
fn header_is_any(head: &RequestHead, name: &str, texts: &[Text]) -> bool {
    let is_any = |value: &[u8]| texts.iter().any(|text| text.matches(value, Star::There));
    // Pseudo-header fields, and `host`, are where the head has them.
    let text = match name {
        ":authority" | "host" => head.authority.as_str(),
        ":method" => head.method.as_str(),
        ":path" => head.target.as_str(),
        ":scheme" if head.https => "https",
        ":scheme" => "http",
        // In HTTP/2 crumbs of one field that was split on the way (RFC 9113 section 8.2.3).
        "cookie" if head.version >= Version::Http2 => {
            let crumbs: Vec<&[u8]> = head.headers.get_all_id(HeaderId::Cookie).collect();
            return !crumbs.is_empty() && is_any(&crumbs.join(&b"; "[..]));
        }
        _ => return head.headers.get_all(name).any(is_any),
    };
    !text.is_empty() && is_any(text.as_bytes())
}

fn some_and_none(some: &[Text], none: &[Text], value: Option<&[u8]>, star: Star) -> bool {
    // What is missing matches no pattern.
    let any = |texts: &[Text]| value.is_some_and(|value| texts.iter().any(|t| t.matches(value, star)));
    (some.is_empty() || any(some)) && !any(none)
}

/// All values, of the one type that the key has.
fn all<T>(values: &[ConditionValue], of: impl Fn(&ConditionValue) -> Option<T>) -> Result<Vec<T>, Invalid> {
    values.iter().map(of).collect::<Option<_>>().ok_or(Invalid)
}

fn patterns(values: &[ConditionValue]) -> Result<Vec<StringMatch>, Invalid> {
    all(values, |value| match value {
        ConditionValue::String(pattern) => Some(pattern.clone()),
        _ => None,
    })
}

fn names(values: &[ConditionValue]) -> Result<Vec<Arc<str>>, Invalid> {
    all(values, |value| match value {
        ConditionValue::Name(name) => Some(name.clone()),
        _ => None,
    })
}

fn strings(values: &[ConditionValue]) -> Result<Vec<Text>, Invalid> {
    texts(&patterns(values)?)
}

fn nets(values: &[ConditionValue]) -> Result<Vec<IpNet>, Invalid> {
    all(values, |value| match value {
        ConditionValue::Ip(net) => Some(*net),
        _ => None,
    })
}

fn ports(values: &[ConditionValue]) -> Result<Vec<u16>, Invalid> {
    all(values, |value| match value {
        ConditionValue::Port(port) => Some(*port),
        _ => None,
    })
}
