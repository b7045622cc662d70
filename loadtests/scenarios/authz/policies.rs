//! Random AuthorizationPolicies, as they are written: each case has a few, for hosts of its own.

use std::fmt::Write as _;

/// The policies of one case.
pub struct Case {
    pub number: usize,
    pub policies: Vec<Policy>,
}

pub struct Policy {
    pub action: &'static str,
    pub rules: Vec<Rule>,
}

#[derive(Default)]
pub struct Rule {
    /// Fields of each source and operation, with their texts.
    pub from: Vec<Vec<Field>>,
    pub to: Vec<Vec<Field>>,
    /// Key, values, notValues.
    pub when: Vec<(&'static str, Vec<String>, Vec<String>)>,
}

pub type Field = (&'static str, Vec<String>);

/// SplitMix64: the same cases in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    pub fn of<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values[self.below(values.len())]
    }
}

pub const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE", "OPTIONS"];
/// In patterns and in requests; `N` is the case.
const HOSTS: &[&str] =
    &["a.caseN.test", "*.caseN.test", "a.*", "A.CaseN.Test", "*.test:8080", "b.caseN.test:8080", "*"];
const METHOD_PATTERNS: &[&str] = &["GET", "POST", "P*", "*T", "DELETE", "*"];
const PATHS: &[&str] =
    &["/", "/a", "/a/*", "*/b", "/a/{*}", "/a/{*}/c", "/{**}/c", "/a/{**}", "/x/{*}/{**}", "*.css", "*"];
const PEERS: &[&str] = &["127.0.1.0/24", "127.0.1.1", "127.0.2.0/23", "10.0.0.0/8", "::/0"];
const CLIENTS: &[&str] = &["192.0.2.0/24", "192.0.2.7", "2001:db8::/32", "127.0.0.0/8", "198.51.100.1"];
const TEXTS: &[&str] = &["v", "v*", "*w", "*", "v,w"];

const SOURCES: &[(&str, &[&str])] = &[
    ("ipBlocks", PEERS),
    ("notIpBlocks", PEERS),
    ("remoteIpBlocks", CLIENTS),
    ("notRemoteIpBlocks", CLIENTS),
];
/// `PORT` is that of the listener.
const PORTS: &[&str] = &["PORT", "PORT", "443"];
const OPERATIONS: &[(&str, &[&str])] = &[
    ("hosts", HOSTS),
    ("notHosts", HOSTS),
    ("methods", METHOD_PATTERNS),
    ("notMethods", METHOD_PATTERNS),
    ("paths", PATHS),
    ("notPaths", PATHS),
    ("ports", PORTS),
    ("notPorts", PORTS),
];
const CONDITIONS: &[(&str, &[&str])] = &[
    ("request.headers[x-one]", TEXTS),
    ("request.headers[X-Two]", TEXTS),
    ("request.headers[:path]", &["/a", "/a*", "*"]),
    ("source.ip", PEERS),
    ("remote.ip", CLIENTS),
    ("destination.port", PORTS),
    // Of anonymous clients.
    ("source.principal", &["*", "cluster.local/ns/a/sa/b"]),
    ("source.namespace", &["*", "a"]),
    ("request.auth.principal", &["*", "https://i/s"]),
    ("request.auth.claims[a]", &["*", "x"]),
    ("connection.sni", &["*", "*.test"]),
];

impl Case {
    pub fn new(number: usize, port: u16, random: &mut Random) -> Self {
        let mut texts = |random: &mut Random, from: &[&str]| -> Vec<String> {
            let count = 1 + random.below(2);
            let all = (0..count).map(|_| random.of(from));
            all.map(|text| {
                text.replace("caseN", &format!("case{number}")).replace("CaseN", &format!("Case{number}"))
            })
            .map(|text| text.replace("PORT", &port.to_string()))
            .collect()
        };
        let mut fields =
            |random: &mut Random, table: &[(&'static str, &[&str])], most: usize| -> Vec<Vec<Field>> {
                let one =
                    |random: &mut Random, texts: &mut dyn FnMut(&mut Random, &[&str]) -> Vec<String>| {
                        let mut fields: Vec<Field> = Vec::new();
                        for _ in 0..=random.below(2) {
                            let (name, from) = table[random.below(table.len())];
                            if fields.iter().all(|(known, _)| *known != name) {
                                fields.push((name, texts(random, from)));
                            }
                        }
                        fields
                    };
                (0..random.below(most + 1)).map(|_| one(random, &mut texts)).collect()
            };
        let rule = |random: &mut Random| {
            let (from, to) = (fields(random, SOURCES, 2), fields(random, OPERATIONS, 3));
            Rule { from, to, when: Vec::new() }
        };
        let mut rule = rule;
        let mut policies: Vec<Policy> = (0..=random.below(3))
            .map(|_| {
                let action = random.of(&["ALLOW", "ALLOW", "DENY", "AUDIT"]);
                let count = random.below(4).max(usize::from(action == "DENY"));
                Policy { action, rules: (0..count).map(|_| rule(random)).collect() }
            })
            .collect();
        for rule in policies.iter_mut().flat_map(|policy| &mut policy.rules) {
            if random.below(3) == 0 {
                let (key, from) = CONDITIONS[random.below(CONDITIONS.len())];
                let some = |random: &mut Random| vec![random.of(from).replace("PORT", &port.to_string())];
                let (values, not) = match random.below(3) {
                    0 => (some(random), Vec::new()),
                    1 => (Vec::new(), some(random)),
                    _ => (some(random), some(random)),
                };
                rule.when.push((key, values, not));
            }
        }
        Self { number, policies }
    }

    /// A Gateway of the case's hosts, and its policies.
    pub fn objects(&self, port: u16) -> String {
        let number = self.number;
        let mut text = format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: case{number}, annotations: {{fieldgate.dev/trusted-hops: '1'}}}}
spec:
  gatewayClassName: fieldgate
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners: [{{name: web, port: {port}, protocol: HTTP, hostname: '*.case{number}.test'}}]
"
        );
        let list = |texts: &[String]| serde_json::json!(texts).to_string();
        let fields = |kind: &str, all: &[Vec<Field>]| -> Vec<String> {
            let one = |(name, texts): &Field| format!("{name}: {}", list(texts));
            let of = |fields: &Vec<Field>| fields.iter().map(one).collect::<Vec<_>>().join(", ");
            all.iter().map(|fields| format!("{{{kind}: {{{}}}}}", of(fields))).collect()
        };
        for (at, policy) in self.policies.iter().enumerate() {
            let _ = write!(
                text,
                "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: case{number}-{at}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: case{number}}}]
  action: {}
",
                policy.action
            );
            if !policy.rules.is_empty() {
                text.push_str("  rules:\n");
            }
            for rule in &policy.rules {
                let when = rule.when.iter().map(|(key, values, not)| {
                    format!("{{key: '{key}', values: {}, notValues: {}}}", list(values), list(not))
                });
                let parts = [
                    ("from", fields("source", &rule.from)),
                    ("to", fields("operation", &rule.to)),
                    ("when", when.collect()),
                ];
                let parts = parts.into_iter().filter(|(_, items)| !items.is_empty());
                let parts: Vec<_> =
                    parts.map(|(name, items)| format!("{name}: [{}]", items.join(", "))).collect();
                let _ = writeln!(text, "  - {{{}}}", parts.join(", "));
            }
        }
        text
    }
}
