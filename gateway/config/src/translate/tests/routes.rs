//! Routes: where they attach, what they match, what they do.

use fieldgate_core::ir::PathMatch;

use super::*;

const BACKEND: &str = "backendRefs: [{group: fieldgate.dev, kind: Pool, name: p}]";

/// Where a route of namespace `default` attaches to one listener with these fields.
#[test]
fn hostnames_are_intersected() {
    for (listener, route_names, expected) in [
        ("", "", "any"),
        ("", "a.example", "a.example"),
        ("a.example", "", "a.example"),
        ("a.example", "a.example", "a.example"),
        ("a.example", "b.example", ""),
        ("a.example", "b.example, a.example", "a.example"),
        ("'*.example'", "", "*.example"),
        ("'*.example'", "a.example, b.c.example", "a.example b.c.example"),
        ("'*.example'", "example", ""),
        ("'*.example'", "'*.b.example'", "*.b.example"),
        ("'*.b.example'", "'*.example'", "*.b.example"),
        ("'*.b.example'", "'*.c.example'", ""),
        ("a.b.example", "'*.example', '*.b.example'", "a.b.example"),
    ] {
        let field = if listener.is_empty() { String::new() } else { format!(", hostname: {listener}") };
        let texts = [
            gateway(&format!("{{name: web, protocol: HTTP, port: 80{field}}}")),
            route(&format!("hostnames: [{route_names}]").replace("hostnames: []", "rules: [{}]")),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = attachments(&texts, "HTTPRoute", "default", "r");
        let wanted: Vec<String> =
            if expected.is_empty() { Vec::new() } else { vec![format!("edge/web: {expected}")] };
        assert_eq!(found, wanted, "{listener} and {route_names}");
        if expected.is_empty() {
            let reason = conditions(&texts, "HTTPRoute", "r");
            assert!(
                reason.contains(&"edge/Accepted=false NoMatchingListenerHostname".to_owned()),
                "{reason:?}"
            );
        }
    }
}

#[test]
fn parents_choose_listeners() {
    let two = "{name: a, protocol: HTTP, port: 80}, {name: b, protocol: HTTP, port: 81}";
    for (parent, expected, reason) in [
        ("name: edge", "a b", "Accepted"),
        ("name: edge, sectionName: b", "b", "Accepted"),
        ("name: edge, port: 80", "a", "Accepted"),
        ("name: edge, sectionName: b, port: 80", "", "NoMatchingParent"),
        ("name: edge, sectionName: c", "", "NoMatchingParent"),
        ("name: edge, port: 82", "", "NoMatchingParent"),
        ("name: none", "", "NoMatchingParent"),
        ("name: edge, namespace: far", "", "NoMatchingParent"),
        ("name: edge, kind: Service, group: ''", "", "InvalidKind"),
    ] {
        let texts = [gateway(two), route("rules: [{}]").replace("{name: edge}", &format!("{{{parent}}}"))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = attachments(&texts, "HTTPRoute", "default", "r");
        let names: Vec<&str> =
            found.iter().filter_map(|l| l.strip_prefix("edge/")?.strip_suffix(": any")).collect();
        assert_eq!(names.join(" "), expected, "{parent}");
        let conditions = conditions(&texts, "HTTPRoute", "r");
        let accepted = conditions.iter().find(|c| c.contains("/Accepted=")).expect("a condition");
        assert!(accepted.ends_with(reason), "{parent}: {accepted}");
    }
}

#[test]
fn listeners_say_who_may_attach() {
    let namespace =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: team, labels: {open: 'yes', tier: two}}\n";
    let selector = |s: &str| format!("namespaces: {{from: Selector, selector: {{{s}}}}}");
    let table: &[(String, &str, bool)] = &[
        (String::new(), "default", true),
        (String::new(), "team", false),
        ("namespaces: {from: Same}".into(), "team", false),
        ("namespaces: {from: All}".into(), "team", true),
        (selector("matchLabels: {open: 'yes'}"), "team", true),
        (selector("matchLabels: {open: 'no'}"), "team", false),
        (selector("matchLabels: {open: 'yes'}"), "default", false),
        (selector("matchLabels: {kubernetes.io/metadata.name: default}"), "default", true),
        (selector("matchExpressions: [{key: tier, operator: In, values: [one, two]}]"), "team", true),
        (selector("matchExpressions: [{key: tier, operator: NotIn, values: [one, two]}]"), "team", false),
        (selector("matchExpressions: [{key: tier, operator: Exists}]"), "team", true),
        (selector("matchExpressions: [{key: tier, operator: DoesNotExist}]"), "team", false),
        ("kinds: [{kind: HTTPRoute}]".into(), "default", true),
        ("kinds: [{kind: GRPCRoute}]".into(), "default", false),
    ];
    for (allowed, from, expected) in table {
        let texts = [
            gateway(&format!("{{name: web, protocol: HTTP, port: 80, allowedRoutes: {{{allowed}}}}}")),
            object(
                "gateway.networking.k8s.io/v1",
                "HTTPRoute",
                &format!("{from}/r"),
                "parentRefs: [{name: edge, namespace: default}]",
            ),
            namespace.to_owned(),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found = !attachments(&texts, "HTTPRoute", from, "r").is_empty();
        assert_eq!(found, *expected, "{allowed} from {from}");
        if !expected {
            let reason = conditions(&texts, "HTTPRoute", "r").join(" ");
            assert!(reason.contains("Accepted=false NotAllowedByListeners"), "{reason}");
        }
    }
}

#[test]
fn paths_are_canonical() {
    for (path, expected) in [
        ("", PathMatch::Prefix("/".into())),
        ("value: /", PathMatch::Prefix("/".into())),
        ("type: PathPrefix, value: /a/", PathMatch::Prefix("/a".into())),
        ("type: Exact, value: /a/", PathMatch::Exact("/a/".into())),
        ("type: RegularExpression, value: /a.*", PathMatch::Regex("/a.*".into())),
    ] {
        let texts = [
            gateway(WEB),
            pool("p"),
            route(&format!("rules: [{{matches: [{{path: {{{path}}}}}], {BACKEND}}}]")),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(http_route(&texts).rules[0].matches[0].path, expected, "{path}");
    }
}

#[test]
fn rules_have_names_of_their_own() {
    let texts = [gateway(WEB), pool("p"), route("rules: [{}, {name: pay}, {}]")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let route = http_route(&texts);
    let ids: Vec<&str> = route.rules.iter().map(|r| &*r.id).collect();
    assert_eq!(ids, ["default/r", "default/r/pay", "default/r#2"]);
}

#[test]
fn a_route_without_rules_takes_everything() {
    let texts = [gateway(WEB), route("hostnames: [a.example]")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let route = http_route(&texts);
    assert_eq!(route.rules.len(), 1);
    assert_eq!(route.rules[0].matches, [ir::Match::default()]);
}

#[test]
fn only_the_first_condition_on_a_name_counts() {
    let headers = "headers: [{name: A, value: x}, {name: a, value: y}], queryParams: [{name: q, value: x}, {name: Q, value: z}]";
    let texts = [gateway(WEB), route(&format!("rules: [{{matches: [{{{headers}}}]}}]"))];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let route = http_route(&texts);
    let matched = &route.rules[0].matches[0];
    assert_eq!(matched.headers, [("a".into(), ir::ValueMatch::Exact("x".into()))]);
    assert_eq!(matched.query.len(), 2);
}

/// What cannot be done is answered with an error; it is never done by halves, nor by another rule.
#[test]
fn a_rule_that_cannot_be_followed_answers_with_an_error() {
    for filters in [
        "{type: ExtensionRef, extensionRef: {group: x, kind: Y, name: z}}",
        "{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {group: fieldgate.dev, kind: Pool, name: p}, \
         http: {path: '/a?b'}}}",
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: a}]}}",
        "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: 'a b'}}}",
    ] {
        let texts = [
            gateway(WEB),
            pool("p"),
            route(&format!("rules: [{{filters: [{filters}], {BACKEND}}}, {{{BACKEND}}}]")),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let route = http_route(&texts);
        assert_eq!(route.rules.len(), 2, "{filters}");
        assert!(matches!(route.rules[0].backends[0].target, ir::BackendTarget::Invalid(_)), "{filters}");
        assert!(matches!(route.rules[1].backends[0].target, ir::BackendTarget::Pool(_)), "{filters}");
        let conditions = conditions(&texts, "HTTPRoute", "r");
        assert!(conditions.contains(&"/PartiallyInvalid=true UnsupportedValue".to_owned()), "{conditions:?}");
    }
}

/// The path, the method, the headers and the answer of each match of a route's rules.
fn taken(route: &ir::Route) -> Vec<String> {
    let of_rule = |rule: &std::sync::Arc<ir::Rule>| {
        let answer = match rule.backends.first().map(|b| &b.target) {
            Some(ir::BackendTarget::Invalid(_)) => "500",
            _ => "200",
        };
        let told = |m: &ir::Match| format!("{:?} {:?} {:?} {answer}", m.path, m.headers, m.query);
        rule.matches.iter().map(told).collect::<Vec<_>>()
    };
    route.rules.iter().flat_map(of_rule).collect()
}

/// Whatever a rule with an unsound match was to take is refused, and not left to a rule that was not meant for it.
#[test]
fn a_rule_whose_matches_are_not_understood_keeps_its_requests_and_refuses_them() {
    let bad = "{type: RegularExpression, name: x, value: '('}";
    for (matched, expected) in [
        ("path: {type: RegularExpression, value: '/a('}", r#"Regex("(?s)/a.*") [] []"#),
        (
            &*format!("path: {{value: /a}}, headers: [{bad}, {{name: y, value: z}}]"),
            r#"Prefix("/a") [("x", Regex("(?s).*")), ("y", Exact("z"))] []"#,
        ),
        (&*format!("queryParams: [{bad}]"), r#"Prefix("/") [] [("x", Regex("(?s).*"))]"#),
    ] {
        let texts = [
            gateway(WEB),
            pool("p"),
            route(&format!(
                "rules: [{{matches: [{{{matched}}}, {{path: {{value: /sound}}}}], {BACKEND}}}, {{name: b, {BACKEND}}}]"
            )),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let route = http_route(&texts);
        let expected = [
            format!("{expected} 500"),
            r#"Prefix("/sound") [] [] 500"#.into(),
            r#"Prefix("/") [] [] 200"#.into(),
        ];
        assert_eq!(taken(&route), expected);
        assert_eq!(problems(&texts).len(), 1);
        let conditions = conditions(&texts, "HTTPRoute", "r");
        assert!(conditions.contains(&"/PartiallyInvalid=true UnsupportedValue".to_owned()), "{conditions:?}");
    }
}

#[test]
fn a_grpc_rule_whose_matches_are_not_understood_refuses_its_requests() {
    for (matched, expected) in [
        (
            "method: {type: RegularExpression, service: '(', method: C}",
            r#"Regex("/(?:(?s).*)/(?:C)") [] [] 500"#,
        ),
        (
            "method: {service: a.B}, headers: [{type: RegularExpression, name: x, value: '('}]",
            r#"Prefix("/a.B") [("x", Regex("(?s).*"))] [] 500"#,
        ),
    ] {
        let texts = [gateway(WEB), pool("p"), grpc(&format!("{{{matched}}}"))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(taken(&http_route(&texts)), [expected]);
    }
}

#[test]
fn a_route_without_a_sound_rule_is_not_accepted() {
    let texts =
        [gateway(WEB), route("rules: [{matches: [{path: {type: RegularExpression, value: '/a('}}]}]")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(taken(&http_route(&texts)), [r#"Regex("(?s)/a.*") [] [] 500"#]);
    let conditions = conditions(&texts, "HTTPRoute", "r");
    assert_eq!(conditions[0], "edge/Accepted=false UnsupportedValue");
}

/// Gateway API's "Fall Back", as long as there is something to fall back to.
#[test]
fn a_route_whose_new_matches_are_not_sound_stays_as_it_was() {
    let version = |path: &str, rest: &str| {
        route(&format!(
            "rules: [{{matches: [{{path: {{type: RegularExpression, value: '{path}'}}}}], {rest}}}]"
        ))
    };
    let mut configuration = configuration(&[&gateway(WEB), &pool("p"), &version("/a", BACKEND), &pool("q")]);
    let mut write = |file: &str, text: String| {
        let outcome = configuration.apply(vec![FileChange { name: file.into(), text: Some(text) }]);
        let route = outcome.config.routes.values().next().expect("a route").clone();
        let statuses = configuration.statuses();
        let status = statuses.iter().find(|s| s.kind == "HTTPRoute").expect("a status");
        let falls_back = status.conditions.iter().any(|c| c.message.starts_with("Fall Back: "));
        let told = outcome.diagnostics.iter().filter(|d| d.last_good_in_use).count();
        (taken(&route)[0].clone(), outcome.changed, falls_back, told)
    };
    let a = |answer: &str| format!("Regex(\"/a\") [] [] {answer}");
    let other = BACKEND.replace("name: p", "name: q");
    assert_eq!(write("2.yaml", version("/b(", &other)), (a("200"), false, true, 1));
    // Still wrong, in another way, with a comment above it.
    assert_eq!(write("2.yaml", format!("# x\n{}", version("/c(", BACKEND))), (a("200"), false, true, 1));
    // The version in force keeps up with what it refers to.
    assert_eq!(write("1.yaml", pool("other")), (a("500"), true, true, 1));
    assert_eq!(write("1.yaml", pool("p")), (a("200"), true, true, 1));
    assert_eq!(write("2.yaml", version("/b", &other)), ("Regex(\"/b\") [] [] 200".into(), true, false, 0));
}

/// Two kinds of routes of one name are two routes everywhere.
#[test]
fn routes_of_two_kinds_have_rules_of_different_names() {
    let texts = [
        gateway(WEB),
        pool("p"),
        route(&format!("rules: [{{{BACKEND}}}]")),
        grpc("{}").replace("name: g,", "name: r,"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let ids: Vec<&str> = config.routes.values().flat_map(|r| &r.rules).map(|r| &*r.id).collect();
    assert_eq!(ids, ["grpc:default/r", "default/r"]);
}

#[test]
fn a_prefix_that_is_rewritten_already_cannot_be_replaced_again() {
    let rewrite = |how: &str| format!("filters: [{{type: URLRewrite, urlRewrite: {{{how}}}}}]");
    let full = rewrite("path: {type: ReplaceFullPath, replaceFullPath: /f}");
    let prefix = rewrite("path: {type: ReplacePrefixMatch, replacePrefixMatch: /p}");
    let host = rewrite("hostname: a.example");
    for (of_rule, of_backend, sound) in [
        (&prefix, &full, true),
        (&host, &prefix, true),
        (&prefix, &host, true),
        (&prefix, &prefix, false),
        (&full, &prefix, false),
    ] {
        let backend = BACKEND.replace("name: p", &format!("name: p, {of_backend}"));
        let texts = [
            gateway(WEB),
            pool("p"),
            route(&format!("rules: [{{matches: [{{path: {{value: /a}}}}], {of_rule}, {backend}}}]")),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let refused = taken(&http_route(&texts))[0].ends_with("500");
        assert_eq!(!refused, sound, "{of_rule} {of_backend}");
        let expected: &[&str] =
            if sound { &[] } else { &["UnsupportedValue spec.rules[0].backendRefs[0].filters[0]"] };
        assert_eq!(problems(&texts), expected);
    }
}

fn grpc(matches: &str) -> String {
    object(
        "gateway.networking.k8s.io/v1",
        "GRPCRoute",
        "g",
        &format!("parentRefs: [{{name: edge}}], rules: [{{matches: [{matches}], {BACKEND}}}]"),
    )
}

#[test]
fn grpc_methods_are_paths() {
    for (method, expected) in [
        ("service: a.B, method: C", PathMatch::Exact("/a.B/C".into())),
        ("service: a.B", PathMatch::Prefix("/a.B".into())),
        ("method: C", PathMatch::Regex("/[^/]+/C".into())),
        ("type: RegularExpression, service: 'a|b', method: C", PathMatch::Regex("/(?:a|b)/(?:C)".into())),
        ("type: RegularExpression, method: 'C.*'", PathMatch::Regex("/[^/]+/(?:C.*)".into())),
    ] {
        let texts = [gateway(WEB), pool("p"), grpc(&format!("{{method: {{{method}}}}}"))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let route = http_route(&texts);
        assert_eq!(route.rules[0].matches[0].path, expected, "{method}");
        assert!(route.rules[0].grpc);
    }
}

#[test]
fn split_policies_reach_the_rules_they_name() {
    let two = "backendRefs: [{group: fieldgate.dev, kind: Pool, name: p, weight: 1}, {group: fieldgate.dev, kind: Pool, name: q, weight: 1}]";
    let policy = |name: &str, rest: &str| {
        object(
            "fieldgate.dev/v1alpha1",
            "SplitPolicy",
            name,
            &format!("targetRef: {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r{rest}"),
        )
    };
    let texts = [
        gateway(WEB),
        pool("p"),
        pool("q"),
        route(&format!("rules: [{{{two}}}, {{name: pay, {two}}}]")),
        policy("all", "}, sticky: {source: {}}, existingSessions: {cookie: c, stayOn: q}"),
        policy("pay", ", sectionName: pay}, sticky: {cookie: {name: u, issue: true}}"),
        policy("later", "}, sticky: {source: {}}"),
        policy("lost", ", sectionName: play}, sticky: {source: {}}"),
        policy("astray", ", sectionName: pay}, existingSessions: {cookie: c, stayOn: z}"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let route = http_route(&texts);
    let names: Vec<_> = route.rules.iter().map(|r| r.split.as_ref().map(|s| s.name.to_string())).collect();
    assert_eq!(names, [Some("all".to_owned()), Some("pay".to_owned())]);
    let existing = route.rules[0].split.as_ref().and_then(|s| s.existing.clone());
    assert_eq!(existing.map(|e| e.backend), Some(1));
    for (name, condition) in [
        ("all", "/Accepted=true Accepted"),
        ("later", "/Accepted=false Conflicted"),
        ("lost", "/Accepted=false TargetNotFound"),
        ("astray", "/Accepted=false BackendNotFound"),
    ] {
        assert_eq!(conditions(&texts, "SplitPolicy", name), [condition], "{name}");
    }
}
