//! Rules of one action, prepared, and the facts that they are matched against.

use std::net::IpAddr;

use fieldgate_core::ir::{self, ConditionKey, ConditionValue, ConnectionFacts, PolicyAction, StringMatch};
use fieldgate_core::{HeaderId, RequestHead, Version};
use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::RuleRef;
use super::address::AddressSet;
use super::text::{Invalid, Star, Text};

/// What a request is matched on.
pub struct Facts<'a> {
    head: &'a RequestHead,
    peer: IpAddr,
    client: IpAddr,
    local: IpAddr,
    port: u16,
    server_name: &'a [u8],
}

impl<'a> Facts<'a> {
    /// A mapped IPv4 address is an IPv4 address; a missing server name is an empty one (as in Envoy).
    pub fn new(head: &'a RequestHead, facts: &ConnectionFacts<'a>) -> Self {
        Self {
            head,
            peer: facts.peer.to_canonical(),
            client: facts.client.to_canonical(),
            local: facts.local.ip().to_canonical(),
            port: facts.local.port(),
            server_name: facts.sni.unwrap_or_default().as_bytes(),
        }
    }
}

/// The rules of one action in the order of their ids, with an index of those that can be told by host or path.
#[derive(Debug, Default)]
pub struct Group {
    rules: Vec<(RuleRef, Rule)>,
    /// Places in `rules`, ascending: those that take only these exact hosts.
    by_host: FxHashMap<Box<[u8]>, Vec<u32>>,
    /// Those that take only these exact paths.
    by_path: FxHashMap<Box<[u8]>, Vec<u32>>,
    /// All others.
    other: Vec<u32>,
}

impl Group {
    /// Prepares rules, given in the order of their ids.
    pub fn new<'a>(action: PolicyAction, rules: impl Iterator<Item = (RuleRef, &'a ir::PolicyRule)>) -> Self {
        let mut group = Self::default();
        for (name, rule) in rules {
            let at = group.rules.len() as u32;
            let rule = match Rule::new(rule) {
                Ok(rule) => rule,
                // Fails closed.
                Err(Invalid) if action == PolicyAction::Allow => continue,
                Err(Invalid) => Rule::default(),
            };
            let (index, keys) = if let Some(hosts) = rule.only(|o| &o.hosts) {
                (&mut group.by_host, hosts)
            } else if let Some(paths) = rule.only(|o| &o.paths) {
                (&mut group.by_path, paths)
            } else {
                group.other.push(at);
                group.rules.push((name, rule));
                continue;
            };
            for key in keys {
                let places = index.entry(key).or_default();
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
            group.rules.push((name, rule));
        }
        group
    }

    /// The first rule that matches.
    pub fn first_match(&self, facts: &Facts) -> Option<RuleRef> {
        if self.rules.is_empty() {
            return None;
        }
        let listed = |index: &'_ FxHashMap<Box<[u8]>, Vec<u32>>, key: &str| -> Option<u32> {
            if index.is_empty() {
                return None;
            }
            self.first_of(index.get(key.as_bytes())?, facts)
        };
        let first = [
            listed(&self.by_host, &facts.head.authority),
            listed(&self.by_path, facts.head.path()),
            self.first_of(&self.other, facts),
        ];
        first.into_iter().flatten().min().map(|at| self.rules[at as usize].0)
    }

    fn first_of(&self, places: &[u32], facts: &Facts) -> Option<u32> {
        places.iter().copied().find(|at| self.rules[*at as usize].1.matches(facts))
    }
}

/// One rule; matches everything if nothing is in it.
#[derive(Debug, Default)]
struct Rule {
    from: Vec<Source>,
    to: Vec<Operation>,
    when: Vec<Condition>,
}

impl Rule {
    fn new(rule: &ir::PolicyRule) -> Result<Self, Invalid> {
        Ok(Self {
            from: rule.from.iter().map(Source::new).collect(),
            to: rule.to.iter().map(Operation::new).collect::<Result<_, _>>()?,
            when: rule.when.iter().map(Condition::new).collect::<Result<_, _>>()?,
        })
    }

    fn matches(&self, facts: &Facts) -> bool {
        (self.to.is_empty() || self.to.iter().any(|o| o.matches(facts)))
            && (self.from.is_empty() || self.from.iter().any(|s| s.matches(facts)))
            && self.when.iter().all(|c| c.matches(facts))
    }

    /// All values of a field, if the rule can match nothing else.
    fn only(&self, field: impl Fn(&Operation) -> &Vec<Text>) -> Option<Vec<Box<[u8]>>> {
        let mut values = Vec::new();
        for operation in &self.to {
            let texts = field(operation);
            if texts.is_empty() {
                return None;
            }
            for text in texts {
                let Text::Exact(value) = text else { return None };
                values.push(value.clone());
            }
        }
        (!values.is_empty()).then_some(values)
    }
}

#[derive(Debug)]
struct Source {
    peer: Addresses,
    client: Addresses,
}

impl Source {
    fn new(source: &ir::PolicySource) -> Self {
        Self {
            peer: Addresses::new(&source.ip_blocks, &source.not_ip_blocks),
            client: Addresses::new(&source.remote_ip_blocks, &source.not_remote_ip_blocks),
        }
    }

    fn matches(&self, facts: &Facts) -> bool {
        self.peer.matches(facts.peer) && self.client.matches(facts.client)
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

    fn matches(&self, facts: &Facts) -> bool {
        let head = facts.head;
        let host = (!head.authority.is_empty()).then_some(head.authority.as_bytes());
        let method = Some(head.method.as_str().as_bytes());
        (self.ports.is_empty() || self.ports.contains(&facts.port))
            && !self.not_ports.contains(&facts.port)
            && some_and_none(&self.methods, &self.not_methods, method, Star::There)
            && some_and_none(&self.hosts, &self.not_hosts, host, Star::There)
            && some_and_none(&self.paths, &self.not_paths, Some(head.path().as_bytes()), Star::NotEmpty)
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
}

impl Condition {
    fn new(condition: &ir::PolicyCondition) -> Result<Self, Invalid> {
        let (values, not_values) = (&condition.values, &condition.not_values);
        let addresses = || Ok(Addresses::new(&nets(values)?, &nets(not_values)?));
        Ok(match &condition.key {
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

    fn matches(&self, facts: &Facts) -> bool {
        match self {
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

fn texts(patterns: &[StringMatch]) -> Result<Vec<Text>, Invalid> {
    patterns.iter().map(Text::new).collect()
}

fn strings(values: &[ConditionValue]) -> Result<Vec<Text>, Invalid> {
    let text = |value: &ConditionValue| match value {
        ConditionValue::String(pattern) => Text::new(pattern),
        _ => Err(Invalid),
    };
    values.iter().map(text).collect()
}

fn nets(values: &[ConditionValue]) -> Result<Vec<IpNet>, Invalid> {
    let net = |value: &ConditionValue| match value {
        ConditionValue::Ip(net) => Ok(*net),
        _ => Err(Invalid),
    };
    values.iter().map(net).collect()
}

fn ports(values: &[ConditionValue]) -> Result<Vec<u16>, Invalid> {
    let port = |value: &ConditionValue| match value {
        ConditionValue::Port(port) => Ok(*port),
        _ => Err(Invalid),
    };
    values.iter().map(port).collect()
}
