//! Istio's own pairs of AuthorizationPolicies and the RBAC filters that istiod makes of them: our decision about the
//! policies must be Envoy's about the filters, for requests made of the values that the policies mention.
//!
//! Both sides are looked at whole, and cut down alike to a single kind of condition, with and without the pattern `*`:
//! rules that ask everything at once match next to nothing.

mod integration;
mod policy;
mod rbac;
mod requests;
mod yaml;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fieldgate_core::ir::Policy;
use fieldgate_plugins::authz::{Authorizer, ConnectionAuthorizer, Decision, RuleInfo};

/// Kinds of condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Host,
    Method,
    Path,
    Port,
    Peer,
    Client,
    Local,
    ServerName,
    Header,
    Identity,
    Token,
    Metadata,
}

const KINDS: [Kind; 12] = [
    Kind::Host,
    Kind::Method,
    Kind::Path,
    Kind::Port,
    Kind::Peer,
    Kind::Client,
    Kind::Local,
    Kind::ServerName,
    Kind::Header,
    Kind::Identity,
    Kind::Token,
    Kind::Metadata,
];

/// What of policies and filters is looked at.
#[derive(Clone, Copy, Debug)]
struct Keep {
    /// One kind only.
    only: Option<Kind>,
    /// The pattern `*`.
    star: bool,
    /// All that is asked of HTTP requests, too: connections are to find out themselves what to do with it.
    http: bool,
}

impl Keep {
    fn kind(self, kind: Kind) -> bool {
        let http = [Kind::Host, Kind::Method, Kind::Path, Kind::Header, Kind::Token].contains(&kind);
        self.only.is_none_or(|only| only == kind) || self.http && http
    }
}

/// A fixture: its policies, the filters that istiod makes of them, and its trust domain with its aliases.
struct Case {
    input: &'static str,
    filters: &'static [&'static str],
    trust_domains: &'static [&'static str],
}

const fn case(input: &'static str, filters: &'static [&'static str]) -> Case {
    Case { input, filters, trust_domains: &["cluster.local"] }
}

const fn aliases(input: &'static str, trust_domains: &'static [&'static str]) -> Case {
    Case { input, filters: &[], trust_domains }
}

/// All inputs, as istiod's own tests pair them. Without a word the output is named like the input.
const HTTP: &[Case] = &[
    case("allow-empty-rule", &[]),
    case("allow-full-rule", &[]),
    case("allow-host-before-111", &[]),
    case("allow-nil-rule", &[]),
    case("allow-path", &[]),
    case("audit-full-rule", &[]),
    case(
        "custom-bad-multiple-providers",
        &["custom-bad-multiple-providers-out1", "custom-bad-multiple-providers-out2"],
    ),
    case("custom-simple-http", &["custom-http-provider-out1", "custom-http-provider-out2"]),
    case("custom-simple-http", &["custom-grpc-provider-out1", "custom-grpc-provider-out2"]),
    case("custom-simple-http", &["custom-bad-out"]),
    case("deny-and-allow", &["deny-and-allow-out1", "deny-and-allow-out2"]),
    case("deny-empty-rule", &[]),
    case("dry-run-allow", &[]),
    case("dry-run-allow-and-deny", &["dry-run-allow-and-deny-out1", "dry-run-allow-and-deny-out2"]),
    case("dry-run-mix", &[]),
    case("multiple-policies", &[]),
    case("single-policy", &[]),
    aliases("simple-policy-td-aliases", &["td1", "cluster.local"]),
    aliases("simple-policy-multiple-td-aliases", &["td1", "cluster.local", "some-td"]),
    aliases("simple-policy-principal-with-wildcard", &["td1", "foobar"]),
    aliases("td-aliases-source-principal", &["new-td", "old-td", "some-trustdomain"]),
    aliases("trust-domains", &["cluster.local", "another.local"]),
];

/// All but one: of CUSTOM with a provider that speaks HTTP istiod makes nothing for TCP.
const TCP: &[Case] = &[
    case("allow-both-http-tcp", &[]),
    case("allow-only-http", &[]),
    case("audit-both-http-tcp", &[]),
    case("custom-both-http-tcp", &["custom-both-http-tcp-out1"]),
    case("deny-both-http-tcp", &[]),
    case("dry-run-mix", &[]),
];

/// By kind of condition: refused, allowed.
type Seen = BTreeMap<Option<Kind>, [usize; 2]>;

#[test]
fn policies_decide_as_the_filters_made_of_them() {
    let Some(root) = std::env::var_os("FIELDGATE_FIXTURES") else {
        println!("skipped: FIELDGATE_FIXTURES is not set");
        return;
    };
    let root = Path::new(&root).join("istio-authz-builder");
    let (mut http, mut tcp) = (Seen::new(), Seen::new());
    check(&root.join("http"), HTTP, &mut http, |policies, request| {
        let authorizer = Authorizer::compile(policies);
        let (facts, metadata) = (request.facts(), &request.metadata);
        let asked = authorizer.providers().iter();
        let asked = asked.filter_map(|p| authorizer.asks(p, &request.head, &facts, metadata));
        verdict(&authorizer.decide(&request.head, &facts, metadata), asked)
    });
    check(&root.join("tcp"), TCP, &mut tcp, |policies, request| {
        let authorizer = ConnectionAuthorizer::compile(policies);
        let (facts, metadata) = (request.facts(), &request.metadata);
        let asked = authorizer.providers().iter().filter_map(|p| authorizer.asks(p, &facts, metadata));
        verdict(&authorizer.decide(&facts, metadata), asked)
    });
    // Otherwise the comparison would say little.
    for (only, [refused, allowed]) in http {
        assert!(refused > 20 && allowed > 20, "{only:?}: {refused} refused, {allowed} allowed");
    }
    for (only, [refused, allowed]) in tcp {
        assert!(refused + allowed > 100, "{only:?}: {refused} refused, {allowed} allowed");
    }
}

/// Each fixture whole, and cut down to each kind of condition, for requests made of the values in it.
fn check(
    folder: &Path,
    cases: &[Case],
    seen: &mut Seen,
    decide: fn(&[Arc<Policy>], &requests::Request) -> rbac::Verdict,
) {
    for case in cases {
        let name = case.input;
        let input = policy::read(&folder.join(format!("{name}-in.yaml")), case.trust_domains);
        let own = [format!("{name}-out")];
        let named = case.filters.iter().map(|name| (*name).to_owned());
        let files: Vec<String> = if case.filters.is_empty() { own.into() } else { named.collect() };
        let filters = files
            .iter()
            .flat_map(|file| yaml::read(&folder.join(format!("{file}.yaml"))))
            .collect::<Vec<_>>();
        assert!(!filters.is_empty(), "{name} has no output");
        let http = folder.ends_with("tcp");
        for only in KINDS.iter().copied().map(Some).chain([None]) {
            for star in [true, false] {
                let keep = Keep { only, star, http };
                let policies: Vec<_> = input.iter().map(|p| policy::cut(p, keep)).collect();
                for request in requests::about(&policies) {
                    let expected = rbac::decide(&filters, keep, &request);
                    let ours = decide(&policies, &request);
                    assert_eq!(ours, expected, "{name}, {keep:?}: {request:?}");
                    seen.entry(only).or_default()[usize::from(ours.allowed)] += 1;
                }
            }
        }
    }
}

fn verdict<'a>(decision: &Decision<'_>, asked: impl Iterator<Item = &'a RuleInfo>) -> rbac::Verdict {
    let id = |rule: Option<&RuleInfo>| rule.map(|r| r.id.to_string());
    rbac::Verdict {
        allowed: decision.allowed,
        matched: id(decision.matched),
        logged: id(decision.audit),
        dry_run_deny: id(decision.dry_run_deny.and_then(|d| d.matched)),
        dry_run_allow: id(decision.dry_run_allow.and_then(|d| d.matched)),
        asked: asked.map(|rule| rule.id.to_string()).collect(),
    }
}
