//! Requests that policies have an opinion about: made of the values in them, values close by, and others.

use std::net::{IpAddr, SocketAddr};

use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::ir::{
    ConditionKey, ConditionValue, ConnectionFacts, Policy, ServiceAccount, StringMatch,
};
use fieldgate_core::{Method, RequestHead};
use ipnet::IpNet;
use serde_json::{Map, Value};

/// A request with its facts.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: RequestHead,
    pub peer: IpAddr,
    pub client: IpAddr,
    pub local: SocketAddr,
    pub server_name: Option<String>,
    pub identity: Option<PeerIdentity>,
    pub metadata: Metadata,
}

impl Request {
    pub fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            peer: self.peer,
            client: self.client,
            local: self.local,
            sni: self.server_name.as_deref(),
            identity: self.identity.as_ref(),
        }
    }
}

/// Values by what they are of.
#[derive(Default)]
struct Values {
    hosts: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    ports: Vec<u16>,
    peers: Vec<IpAddr>,
    clients: Vec<IpAddr>,
    locals: Vec<IpAddr>,
    server_names: Vec<String>,
    headers: Vec<String>,
    header_names: Vec<String>,
    /// Names of certificates.
    names: Vec<String>,
    issuers: Vec<String>,
    subjects: Vec<String>,
    claims: Vec<(Vec<String>, Vec<String>)>,
    dynamic: Vec<(String, String, Vec<String>)>,
}

/// Some requests, always the same ones for the same policies.
pub fn about(policies: &[std::sync::Arc<Policy>]) -> Vec<Request> {
    let values = Values::of(policies);
    let mut random = Random(0x5eed);
    (0..200).map(|_| values.request(&mut random)).collect()
}

impl Values {
    fn of(policies: &[std::sync::Arc<Policy>]) -> Self {
        let texts = |list: &str| list.split(' ').map(str::to_owned).collect();
        let ips = || vec!["172.31.0.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        let mut values = Self {
            hosts: texts("other.test other.test:80"),
            methods: texts("GET POST"),
            paths: texts("/ /other"),
            ports: vec![1],
            peers: ips(),
            clients: ips(),
            locals: ips(),
            server_names: texts("other.test "),
            headers: texts("other "),
            header_names: Vec::new(),
            names: texts("https://other.test spiffe://td/ns/other/sa/other spiffe://other"),
            issuers: texts("other "),
            subjects: texts("other "),
            claims: Vec::new(),
            dynamic: Vec::new(),
        };
        let rules = || policies.iter().flat_map(|p| &p.rules);
        for source in rules().flat_map(|r| &r.from) {
            source.ip_blocks.iter().chain(&source.not_ip_blocks).for_each(|n| around(n, &mut values.peers));
            source
                .remote_ip_blocks
                .iter()
                .chain(&source.not_remote_ip_blocks)
                .for_each(|n| around(n, &mut values.clients));
        }
        for source in rules().flat_map(|r| &r.from) {
            let whole = source.principals.iter().chain(&source.not_principals);
            whole.for_each(|p| principals_like(p, &mut values.names));
            let namespaces = source.namespaces.iter().chain(&source.not_namespaces);
            namespaces.for_each(|n| namespaces_like(n, &mut values.names));
            let domains = source.trust_domains.iter().chain(&source.not_trust_domains);
            domains.for_each(|n| values.names.push(format!("spiffe://{}/ns/a/sa/b", n.replace('*', ".x"))));
            let accounts = source.service_accounts.iter().chain(&source.not_service_accounts);
            accounts.for_each(|a| accounts_like(a, &mut values.names));
            for bearer in source.request_principals.iter().chain(&source.not_request_principals) {
                like(&bearer.issuer, &mut values.issuers);
                like(&bearer.subject, &mut values.subjects);
            }
        }
        for to in rules().flat_map(|r| &r.to) {
            to.hosts.iter().chain(&to.not_hosts).for_each(|p| like(p, &mut values.hosts));
            to.methods.iter().chain(&to.not_methods).for_each(|p| like(p, &mut values.methods));
            to.paths.iter().chain(&to.not_paths).for_each(|p| like(p, &mut values.paths));
            values.ports.extend(to.ports.iter().chain(&to.not_ports));
        }
        for when in rules().flat_map(|r| &r.when) {
            if let ConditionKey::RequestHeader(name) = &when.key {
                values.header_names.push(name.to_string());
            }
            let mut texts = Vec::new();
            for value in when.values.iter().chain(&when.not_values) {
                match (value, &when.key) {
                    (ConditionValue::String(p), ConditionKey::SourcePrincipal) => {
                        principals_like(p, &mut values.names);
                    }
                    (
                        ConditionValue::String(p) | ConditionValue::InList(p),
                        ConditionKey::Claim(_) | ConditionKey::Metadata(..),
                    ) => {
                        like(p, &mut texts);
                    }
                    (ConditionValue::Name(n), _) => namespaces_like(n, &mut values.names),
                    (ConditionValue::Account(a), _) => accounts_like(a, &mut values.names),
                    (ConditionValue::Bearer(bearer), _) => {
                        like(&bearer.issuer, &mut values.issuers);
                        like(&bearer.subject, &mut values.subjects);
                    }
                    (ConditionValue::InList(_), _) => unreachable!(),
                    (ConditionValue::String(p), ConditionKey::Sni) => like(p, &mut values.server_names),
                    (ConditionValue::String(p), _) => like(p, &mut values.headers),
                    (ConditionValue::Ip(net), ConditionKey::SourceIp) => around(net, &mut values.peers),
                    (ConditionValue::Ip(net), ConditionKey::RemoteIp) => around(net, &mut values.clients),
                    (ConditionValue::Ip(net), _) => around(net, &mut values.locals),
                    (ConditionValue::Port(port), _) => values.ports.push(*port),
                }
            }
            texts.push("other".to_owned());
            match &when.key {
                ConditionKey::Claim(path) => {
                    values.claims.push((path.iter().map(ToString::to_string).collect(), texts));
                }
                ConditionKey::Metadata(filter, key) => {
                    values.dynamic.push((filter.to_string(), key.to_string(), texts));
                }
                _ => {}
            }
        }
        values
    }

    fn request(&self, random: &mut Random) -> Request {
        let mut head = RequestHead {
            method: Method::from_bytes(random.of(&self.methods).as_bytes()),
            authority: random.of(&self.hosts).to_ascii_lowercase(),
            ..RequestHead::default()
        };
        head.set_target(&format!("{}{}", random.of(&self.paths), random.of(&["", "?query=/exact"])));
        for name in &self.header_names {
            for _ in 0..random.next() % 3 {
                head.headers.push(name.as_bytes(), random.of(&self.headers).as_bytes());
            }
        }
        let server_name = random.of(&self.server_names).clone();
        Request {
            head,
            peer: *random.of(&self.peers),
            client: *random.of(&self.clients),
            local: SocketAddr::new(*random.of(&self.locals), *random.of(&self.ports)),
            server_name: Some(server_name).filter(|n| !n.is_empty()),
            identity: self.identity(random),
            metadata: self.metadata(random),
        }
    }

    fn identity(&self, random: &mut Random) -> Option<PeerIdentity> {
        let mut names = || (0..random.next() % 3).map(|_| random.of(&self.names).as_str().into()).collect();
        let uris: Vec<Box<str>> = names();
        let subject = if random.next().is_multiple_of(2) { "CN=other" } else { "" };
        (!random.next().is_multiple_of(4)).then(|| PeerIdentity {
            uris,
            subject: subject.into(),
            ..PeerIdentity::default()
        })
    }

    fn metadata(&self, random: &mut Random) -> Metadata {
        let mut metadata = Metadata::default();
        if !random.next().is_multiple_of(4) {
            let mut claims = Map::new();
            for (path, texts) in &self.claims {
                let value = some_value(texts, random);
                match &**path {
                    [only] => drop(claims.insert(only.clone(), value)),
                    [first, second] => {
                        drop(claims.insert(first.clone(), serde_json::json!({ second.as_str(): value })));
                    }
                    other => panic!("{other:?}"),
                }
            }
            // The issuer of a claim is also one that a principal may have.
            let issuer = match claims.get("iss").and_then(Value::as_str) {
                Some(text) if random.next().is_multiple_of(2) => text.to_owned(),
                _ => random.of(&self.issuers).clone(),
            };
            let subject = random.of(&self.subjects).clone();
            claims.insert("iss".into(), issuer.as_str().into());
            if !subject.is_empty() {
                claims.insert("sub".into(), subject.as_str().into());
            }
            let token = Token { issuer, subject, claims, ..Token::default() };
            metadata.tokens.push(token.into());
        }
        for (filter, key, texts) in &self.dynamic {
            let value = some_value(texts, random);
            metadata.dynamic.insert(filter.clone(), serde_json::json!({ key.as_str(): value }));
        }
        metadata
    }
}

/// A text, a list of texts, or what is neither.
fn some_value(texts: &[String], random: &mut Random) -> Value {
    match random.next() % 5 {
        0 => serde_json::json!([random.of(texts), 7, random.of(texts)]),
        1 => serde_json::json!(7),
        _ => serde_json::json!(random.of(texts)),
    }
}

fn principals_like(pattern: &StringMatch, names: &mut Vec<String>) {
    let mut texts = Vec::new();
    like(pattern, &mut texts);
    names.extend(texts.iter().map(|text| format!("spiffe://{text}")));
    names.extend(texts);
}

fn namespaces_like(name: &str, names: &mut Vec<String>) {
    for with in ["", "x", "/x"] {
        let name = name.replace('*', with);
        names.extend([
            format!("spiffe://td/ns/{name}/sa/a"),
            format!("spiffe://td/ns/{name}"),
            format!("/ns/{name}/"),
        ]);
    }
}

fn accounts_like(account: &ServiceAccount, names: &mut Vec<String>) {
    let ServiceAccount { namespace, name } = account;
    names.extend([
        format!("spiffe://td/ns/{namespace}/sa/{name}"),
        format!("spiffe://td/ns/{namespace}/sa/{name}x"),
        format!("spiffe://td/ns/{namespace}/x/y/sa/{name}/z"),
        format!("spiffe:///ns/{namespace}/sa/{name}"),
        format!("spiffe://td/ns/other/sa/{name}"),
    ]);
}

/// Texts that a pattern takes, and some that it just does not.
fn like(pattern: &StringMatch, values: &mut Vec<String>) {
    match pattern {
        StringMatch::Exact(t) => {
            values.extend([t.to_string(), format!("{t}x"), format!("x{t}"), format!("{t}:80")]);
        }
        StringMatch::Prefix(t) => values.extend([t.to_string(), format!("{t}x"), format!("x{t}")]),
        StringMatch::Suffix(t) => values.extend([t.to_string(), format!("x{t}"), format!("{t}x")]),
        StringMatch::Present => {}
        StringMatch::Template(t) => {
            for with in ["a", "a=b", "", "a*b", "a/b", "a b"] {
                values.push(t.replace("{**}", with).replace("{*}", with));
            }
        }
    }
}

/// The ends of a block and the address behind it.
fn around(net: &IpNet, values: &mut Vec<IpAddr>) {
    values.extend([net.network(), net.broadcast()]);
    if let IpAddr::V4(last) = net.broadcast() {
        values.push(IpAddr::V4(u32::from(last).wrapping_add(1).into()));
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[(self.next() % values.len() as u64) as usize]
    }
}
