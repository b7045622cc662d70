//! Istio's own pairs of AuthorizationPolicies and the RBAC filters that istiod makes of them: our decision about the
//! policies must be Envoy's about the filters, for requests made of the values that the policies mention.
//!
//! The fixtures use more than a gateway can know without JWT or mTLS. Both sides are cut down alike, to all supported
//! kinds of condition or to a single one, with and without the pattern `*`.

mod policy;
mod rbac;
mod requests;
mod yaml;

use std::path::Path;

use fieldgate_plugins::authz::Authorizer;

/// Kinds of condition that are supported.
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
}

const KINDS: [Kind; 9] = [
    Kind::Host,
    Kind::Method,
    Kind::Path,
    Kind::Port,
    Kind::Peer,
    Kind::Client,
    Kind::Local,
    Kind::ServerName,
    Kind::Header,
];

/// What of policies and filters is looked at.
#[derive(Clone, Copy, Debug)]
struct Keep {
    /// One kind only.
    only: Option<Kind>,
    /// The pattern `*`.
    star: bool,
}

impl Keep {
    fn kind(self, kind: Kind) -> bool {
        self.only.is_none_or(|only| only == kind)
    }
}

#[test]
fn policies_decide_as_the_filters_made_of_them() {
    let Some(root) = std::env::var_os("FIELDGATE_FIXTURES") else {
        println!("skipped: FIELDGATE_FIXTURES is not set");
        return;
    };
    let folder = Path::new(&root).join("istio-authz-builder/http");
    let mut cases = 0;
    let mut seen = std::collections::BTreeMap::<_, [usize; 2]>::new();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix("-in.yaml").map(str::to_owned)
        })
        .collect();
    names.sort();
    for name in names {
        let input = yaml::read(&folder.join(format!("{name}-in.yaml")));
        if input.iter().any(|policy| policy.at("spec.action").text() == Some("CUSTOM")) {
            continue;
        }
        let filters: Vec<yaml::Yaml> = ["out", "out1", "out2"]
            .iter()
            .map(|out| folder.join(format!("{name}-{out}.yaml")))
            .filter(|path| path.exists())
            .flat_map(|path| yaml::read(&path))
            .collect();
        assert!(!filters.is_empty(), "{name} has no output");
        cases += 1;
        for only in KINDS.iter().copied().map(Some).chain([None]) {
            for star in [true, false] {
                let keep = Keep { only, star };
                let policies: Vec<_> = input.iter().map(|p| policy::translate(p, keep)).collect();
                let authorizer = Authorizer::compile(&policies);
                for request in requests::about(&policies) {
                    let expected = rbac::decide(&filters, keep, &request);
                    let decision = authorizer.decide(&request.head, &request.facts());
                    let id =
                        |rule: Option<&fieldgate_plugins::authz::RuleInfo>| rule.map(|r| r.id.to_string());
                    let ours = rbac::Verdict {
                        allowed: decision.allowed,
                        matched: id(decision.matched),
                        logged: id(decision.audit),
                        dry_run_deny: id(decision.dry_run_deny.and_then(|d| d.matched)),
                        dry_run_allow: id(decision.dry_run_allow.and_then(|d| d.matched)),
                    };
                    assert_eq!(ours, expected, "{name}, {keep:?}: {request:?}");
                    seen.entry(only).or_default()[usize::from(ours.allowed)] += 1;
                }
            }
        }
    }
    assert!(cases >= 18, "{cases} fixtures");
    // Otherwise the comparison would say little.
    for (only, [refused, allowed]) in seen {
        assert!(refused > 20 && allowed > 20, "{only:?}: {refused} refused, {allowed} allowed");
    }
}
