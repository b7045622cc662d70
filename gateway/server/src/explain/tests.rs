use fieldgate_config::{Configuration, FileChange};
use fieldgate_core::ir::Touched;

use super::*;

const EDGE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: fieldgate
  listeners:
  - {name: web, protocol: HTTP, port: 8080, hostname: '*.example.com'}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: edge}]
  hostnames: [shop.example.com]
  rules:
  - name: canary
    matches: [{path: {type: PathPrefix, value: /cart}, headers: [{name: x-canary, value: 'yes'}]}]
    backendRefs: [{group: fieldgate.dev, kind: Pool, name: new}]
  - name: all
    backendRefs:
    - {group: fieldgate.dev, kind: Pool, name: old, weight: 9}
    - {group: fieldgate.dev, kind: Pool, name: new, weight: 1}
---
apiVersion: fieldgate.dev/v1alpha1
kind: Pool
metadata: {name: old}
spec: {endpoints: [{address: 10.0.0.1, port: 80}]}
---
apiVersion: fieldgate.dev/v1alpha1
kind: Pool
metadata: {name: new}
spec: {endpoints: [{address: 10.0.1.1, port: 80}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
";

fn ask(text: &str, url: &str, headers: &[&str]) -> Answer {
    let mut configuration = Configuration::default();
    let outcome =
        configuration.apply(vec![FileChange { name: "edge.yaml".into(), text: Some(text.to_owned()) }]);
    assert!(outcome.diagnostics.is_empty(), "{:?}", outcome.diagnostics);
    let snapshot = Snapshot::compile(None, outcome.config, &Touched::All, 1);
    let headers: Vec<_> = headers.iter().map(|h| (*h).to_owned()).collect();
    explain(&snapshot, &Question::new("GET", url, &headers, None).unwrap(), 0)
}

fn result(url: &str, headers: &[&str]) -> String {
    ask(EDGE, url, headers).result
}

#[test]
fn how_requests_end() {
    assert_eq!(result("http://shop.example.com:8080/", &[]), "sent to one of the backends, by weight");
    assert_eq!(result("http://shop.example.com:8080/cart/1", &["x-canary: yes"]), "sent to Pool default/new");
    assert_eq!(
        result("http://shop.example.com:8080/admin", &[]),
        "403: rule 0 of AuthorizationPolicy default/no-admin denies it"
    );
    assert!(result("http://other.test:8080/", &[]).starts_with("404: no listener on"));
    assert!(result("http://blog.example.com:8080/", &[]).starts_with("404: no route is attached"));
    assert_eq!(
        result("http://shop.example.com:81/", &[]),
        "refused: nothing listens on port 81; ports are 8080 (http)"
    );
    assert!(ask("", "http://a/", &[]).result.starts_with("refused: nothing listens"));
}

#[test]
fn what_nearly_won_comes_with_the_reason() {
    let answer = ask(EDGE, "http://shop.example.com/cart", &[]);
    assert_eq!(answer.rule.as_ref().map(|rule| rule.rule.as_str()), Some("default/shop/all"));
    let near = &answer.others[0];
    assert_eq!(near.rule, "default/shop/canary");
    assert!(near.why.contains("x-canary"), "{}", near.why);
    assert!(answer.notes[0].contains("nothing listens on port 80"), "{:?}", answer.notes);
}

#[test]
fn an_answer_survives_json_and_is_readable() {
    let answer = ask(EDGE, "http://shop.example.com:8080/x", &[]);
    let json = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), answer);
    let text = answer.to_string();
    assert!(
        text.contains("Pool default/old  weight 9 of 10, 1 of 1 endpoints usable; least-request of 2"),
        "{text}"
    );
}

#[test]
fn mirrors_are_named_with_their_share() {
    let filters = "  - name: all
    filters:
    - type: RequestMirror
      requestMirror: {backendRef: {group: fieldgate.dev, kind: Pool, name: new}}
    - type: RequestMirror
      requestMirror: {backendRef: {group: fieldgate.dev, kind: Pool, name: old}, fraction: {numerator: 1, denominator: 3}}
";
    let one = "name: old, weight: 9";
    let of_one = "name: old, weight: 9, filters: [{type: RequestMirror, requestMirror: \
        {backendRef: {group: fieldgate.dev, kind: Pool, name: new}, percent: 5}}]";
    let text = EDGE.replace("  - name: all\n", filters).replace(one, of_one);
    let answer = ask(&text, "http://shop.example.com:8080/", &[]);
    let lines = [
        "Pool default/new: every request",
        "Pool default/old: 1 of 3 requests",
        "Pool default/new: 5 of 100 requests of those for Pool default/old",
    ];
    assert_eq!(answer.rule.as_ref().unwrap().mirrors, lines);
    let text = answer.to_string();
    assert!(lines.iter().all(|line| text.contains(&format!("mirror     {line}\n"))), "{text}");
}

const WHO: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: staff}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
  - {from: [{source: {requestPrincipals: ['https://i/*']}}], when: [{key: 'request.auth.claims[groups]', values: [admin]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: trial, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{}]}
";

#[test]
fn every_rule_that_was_considered_is_told() {
    let text = format!("{EDGE}{WHO}");
    let ask = |principal: Option<&str>, claims: &[&str]| {
        let mut configuration = Configuration::default();
        let outcome =
            configuration.apply(vec![FileChange { name: "a.yaml".into(), text: Some(text.clone()) }]);
        assert!(outcome.diagnostics.is_empty(), "{:?}", outcome.diagnostics);
        let snapshot = Snapshot::compile(None, outcome.config, &Touched::All, 1);
        let claims: Vec<_> = claims.iter().map(|c| (*c).to_owned()).collect();
        let question = Question::new("GET", "http://shop.example.com:8080/", &[], None).unwrap();
        let question = question.with_principal(principal).with_claims(&claims).unwrap();
        explain(&snapshot, &question, 0)
    };
    let told = |answer: &Answer| -> Vec<String> {
        let all = answer.authorization.as_ref().unwrap().considered.iter();
        all.map(|c| {
            let mark = if c.decided { "-> " } else { "" };
            format!("{mark}{} {} {}", c.action, c.rule, if c.matched { "matches" } else { &c.why })
        })
        .collect()
    };
    assert_eq!(
        told(&ask(None, &["iss=https://i", "sub=s", "groups=[\"user\"]"])),
        [
            "DENY default/no-admin rule 0 to[0].operation.paths",
            "DENY default/trial rule 0 matches",
            "ALLOW default/staff rule 0 from[0].source.principals",
            "ALLOW default/staff rule 1 when[0]",
        ]
    );
    let admin = ask(None, &["iss=https://i", "sub=s", "groups=[\"user\", \"admin\"]"]);
    assert_eq!(told(&admin)[3], "-> ALLOW default/staff rule 1 matches");
    assert!(admin.to_string().contains("-> ALLOW  default/staff rule 1  matches"), "{admin}");
    let web = ask(Some("cluster.local/ns/shop/sa/web"), &[]);
    assert_eq!(told(&web)[2], "-> ALLOW default/staff rule 0 matches");
    assert!(web.authorization.unwrap().dry_run[0].contains("would refuse it"));
    assert!(ask(None, &[]).result.starts_with("403: there are ALLOW policies"));
}

#[test]
fn limits_that_a_request_counts_against_are_told() {
    let policy = |name: &str, target: &str, limit: &str| {
        format!(
            "---
apiVersion: fieldgate.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, {target}}}]
  limits: [{{name: l, rate: {{requests: 9, per: 1m}}, {limit}}}]
"
        )
    };
    let of_edge = policy("edge", "kind: Gateway, name: edge", "by: [{client: {ipv4Prefix: 8}}]");
    let of_rule =
        policy("cart", "kind: HTTPRoute, name: shop, sectionName: canary", "by: [{header: x-user}]");
    let text = format!("{EDGE}{of_edge}{of_rule}");
    let ask = |headers: &[&str]| ask(&text, "http://shop.example.com:8080/cart", headers);
    let edge = "RateLimitPolicy default/edge, l: 9 in 60s, 9 at once, for 127.0.0.0/8";
    assert_eq!(ask(&["x-user: u"]).limits, [edge], "another rule takes it");
    let both = ask(&["x-user: u", "x-canary: yes"]);
    let cart = "RateLimitPolicy default/cart, l: 9 in 60s, 9 at once, for u";
    assert_eq!(both.limits, [edge, cart]);
    assert!(both.to_string().contains(&format!("counted    {cart}\n")));
}
