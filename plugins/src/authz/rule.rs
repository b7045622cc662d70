//! Rules of one action, prepared, and the facts that they are matched against.

use std::net::IpAddr;

use fieldgate_core::ir::{self, ConditionKey, ConditionValue, ConnectionFacts, PolicyAction, StringMatch};
use fieldgate_core::{HeaderId, RequestHead, Version};
use ipnet::IpNet;
use rustc_hash::FxHashMap;

use super::RuleRef;
use super::text::{Invalid, Star, Text};
use fieldgate_core::AddressSet;

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

/// The rules of one action in the order of their ids. Those that cannot match without some host or some path are found
/// by it, whichever is shared by fewer rules; so a request is matched against few rules, however many there are.
#[derive(Debug, Default)]
pub struct Group {
    rules: Vec<(RuleRef, Rule)>,
    by_host: Index,
    by_path: Index,
    /// Places in `rules` of all others, ascending.
    other: Vec<u32>,
}

impl Group {
    /// Prepares rules, given in the order of their ids.
    pub fn new<'a>(action: PolicyAction, rules: impl Iterator<Item = (RuleRef, &'a ir::PolicyRule)>) -> Self {
        let compiled = rules.filter_map(|(name, rule)| match Rule::new(rule) {
            Ok(rule) => Some((name, rule)),
            // Fails closed.
            Err(Invalid) => (action != PolicyAction::Allow).then(|| (name, Rule::default())),
        });
        let mut group = Self { rules: compiled.collect(), ..Self::default() };
        (group.by_host, group.by_path, group.other) = index(&group.rules);
        group
    }

    /// The first rule that matches.
    pub fn first_match(&self, facts: &Facts) -> Option<RuleRef> {
        if self.rules.is_empty() {
            return None;
        }
        let by_host = self.by_host.find(facts.head.authority.as_bytes());
        let by_path = self.by_path.find(facts.head.path().as_bytes());
        let lists = by_host.chain(by_path).chain([&*self.other]);
        let first = lists.filter_map(|places| self.first_of(places, facts)).min()?;
        Some(self.rules[first as usize].0)
    }

    fn first_of(&self, places: &[u32], facts: &Facts) -> Option<u32> {
        places.iter().copied().find(|at| self.rules[*at as usize].1.matches(facts))
    }
}

/// Where each rule is found: by a host, by a path, or always.
fn index(rules: &[(RuleRef, Rule)]) -> (Index, Index, Vec<u32>) {
    let needed = |field: fn(&Operation) -> &Vec<Text>| -> Vec<Option<Vec<&Text>>> {
        rules.iter().map(|(_, rule)| rule.needs(field)).collect()
    };
    let (hosts, paths) = (needed(|o| &o.hosts), needed(|o| &o.paths));
    let (shared_hosts, shared_paths) = (sharing(&hosts), sharing(&paths));
    let (mut by_host, mut by_path, mut other) = (Index::default(), Index::default(), Vec::new());
    for (at, (hosts, paths)) in hosts.iter().zip(&paths).enumerate() {
        let at = at as u32;
        match (hosts, paths) {
            (Some(hosts), Some(paths)) if shared_hosts(hosts) < shared_paths(paths) => {
                by_host.insert(hosts, at);
            }
            (_, Some(paths)) => by_path.insert(paths, at),
            (Some(hosts), None) => by_host.insert(hosts, at),
            (None, None) => other.push(at),
        }
    }
    (by_host, by_path, other)
}

/// How many rules need the texts that one rule needs.
fn sharing<'a>(needed: &[Option<Vec<&'a Text>>]) -> impl Fn(&[&'a Text]) -> usize + use<'a> {
    let mut rules: FxHashMap<&[u8], usize> = FxHashMap::default();
    for text in needed.iter().flatten().flatten() {
        *rules.entry(text.literal()).or_default() += 1;
    }
    move |texts| texts.iter().map(|text| rules[text.literal()]).sum()
}

/// Places of rules, ascending, by a text of which they need one.
#[derive(Debug, Default)]
struct Index {
    exact: FxHashMap<Box<[u8]>, Vec<u32>>,
    prefix: FxHashMap<Box<[u8]>, Vec<u32>>,
    suffix: FxHashMap<Box<[u8]>, Vec<u32>>,
    /// The lengths that occur in `prefix` and `suffix`, ascending.
    prefix_lengths: Vec<usize>,
    suffix_lengths: Vec<usize>,
}

impl Index {
    fn insert(&mut self, texts: &[&Text], at: u32) {
        for text in texts {
            let (map, lengths) = match text {
                Text::Prefix(_) => (&mut self.prefix, Some(&mut self.prefix_lengths)),
                Text::Suffix(_) => (&mut self.suffix, Some(&mut self.suffix_lengths)),
                _ => (&mut self.exact, None),
            };
            let places = map.entry(text.literal().into()).or_default();
            if places.last() != Some(&at) {
                places.push(at);
            }
            if let Some(lengths) = lengths
                && let Err(place) = lengths.binary_search(&text.literal().len())
            {
                lengths.insert(place, text.literal().len());
            }
        }
    }

    /// The lists of all texts that fit a value.
    fn find<'a>(&'a self, value: &'a [u8]) -> impl Iterator<Item = &'a [u32]> {
        let fitting = |lengths: &'a [usize]| lengths.iter().copied().take_while(|len| *len <= value.len());
        let prefixes = fitting(&self.prefix_lengths).filter_map(|len| self.prefix.get(&value[..len]));
        let suffixes =
            fitting(&self.suffix_lengths).filter_map(|len| self.suffix.get(&value[value.len() - len..]));
        self.exact.get(value).into_iter().chain(prefixes).chain(suffixes).map(Vec::as_slice)
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

    /// The texts of a field without one of which the rule cannot match; `None` if it can.
    fn needs(&self, field: fn(&Operation) -> &Vec<Text>) -> Option<Vec<&Text>> {
        let indexable = |text: &Text| matches!(text, Text::Exact(_) | Text::Prefix(_) | Text::Suffix(_));
        let needed = |texts: &[Text]| !texts.is_empty() && texts.iter().all(indexable);
        let all = !self.to.is_empty() && self.to.iter().all(|operation| needed(field(operation)));
        all.then(|| self.to.iter().flat_map(field).collect())
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
