use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::ir::{ConnectionFacts, PoolKey, Rule};
use fieldgate_core::{Method, RequestHead, Version};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use super::proto::{
    BoolValue, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpResponse,
    HttpStatus, OkHttpResponse, QueryParameter, Status,
};
use super::*;

/// A request on its way, with all that a guard may see or change.
struct Client {
    head: RequestHead,
    identity: Option<PeerIdentity>,
    rule: Option<Rule>,
    metadata: Metadata,
    response_headers: Headers,
    body_length: Option<u64>,
}

impl Client {
    fn new(method: Method, target: &str, fields: &[(&str, &str)]) -> Self {
        let mut head = RequestHead { method, version: Version::Http2, ..RequestHead::default() };
        head.https = true;
        head.authority.push_str("shop.example");
        head.set_target(target);
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        Self {
            head,
            identity: None,
            rule: None,
            metadata: Metadata::default(),
            response_headers: Headers::new(),
            body_length: Some(0),
        }
    }

    fn meets<T>(&mut self, guard: impl FnOnce(&mut Guarded<'_>) -> T) -> T {
        guard(&mut Guarded {
            head: &mut self.head,
            facts: ConnectionFacts {
                peer: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)),
                client: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
                local: SocketAddr::from(([10, 0, 0, 1], 8443)),
                sni: Some("shop.example"),
                identity: self.identity.as_ref(),
            },
            rule: self.rule.as_ref(),
            metadata: &mut self.metadata,
            response_headers: &mut self.response_headers,
            body_length: self.body_length,
            now: Instant::now(),
            wall: UNIX_EPOCH + Duration::from_millis(1_700_000_000_250),
            random: &mut || 42,
        })
    }

    fn asks(&mut self, guard: &ExtAuthz) -> Callout {
        match self.meets(|request| guard.begin(request)) {
            Verdict::Ask(callout) => *callout,
            other => panic!("{other:?}"),
        }
    }

    fn hears(&mut self, guard: &ExtAuthz, answer: Result<Answered, NoAnswer>) -> Verdict {
        self.meets(|request| guard.resume(request, DECISION, answer))
    }

    fn has(&self, name: &str) -> Vec<String> {
        self.head.headers.get_all(name).map(|v| String::from_utf8_lossy(v).into_owned()).collect()
    }
}

fn authorizer(protocol: ExtAuthzProtocol) -> ExtAuthz {
    let key = ObjectKey { kind: "ExternalAuthorizer", namespace: "default".into(), name: "opa".into() };
    let object = ObjectKey { kind: "Service", namespace: "default".into(), name: "opa".into() };
    ExtAuthz {
        key,
        ir: ir::ExtAuthz {
            pool: Arc::new(PoolKey { object, port: 9191 }),
            protocol,
            timeout: Duration::from_millis(200),
            fail_open: false,
            status_on_error: 403,
            body_limit: 0,
            partial_body: false,
            raw_body: false,
            request_headers: Vec::new(),
            context: Vec::new(),
            peer_certificate: false,
            own_headers: Vec::new(),
            fail_open_header: false,
            routes: Vec::new(),
        },
    }
}

fn by_grpc() -> ExtAuthz {
    authorizer(ExtAuthzProtocol::Grpc { authority: None })
}

fn by_http() -> ExtAuthz {
    authorizer(ExtAuthzProtocol::Http {
        path_prefix: "/verify/".into(),
        authority: None,
        add: vec![("x-from".into(), "edge".into())],
        upstream_headers: vec![StringMatch::Prefix("x-auth-".into())],
        client_headers_on_success: vec![StringMatch::Exact("set-cookie".into())],
        client_headers_on_denied: Vec::new(),
    })
}

fn check_of(callout: &Callout) -> CheckRequest {
    CheckRequest::decode(&callout.body[5..]).unwrap()
}

fn said(response: &CheckResponse) -> Result<Answered, NoAnswer> {
    let mut answered =
        Answered { status: 200, body: grpc::frame(&response.encode_to_vec()), ..Answered::default() };
    answered.headers.push(b"grpc-status", b"0");
    Ok(answered)
}

fn response(code: i32, http_response: Option<HttpResponse>) -> CheckResponse {
    CheckResponse { status: Some(Status { code }), http_response, dynamic_metadata: None }
}

fn option(key: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() }),
        append: append.map(|value| BoolValue { value }),
        append_action: 0,
    }
}

#[track_caller]
fn refused(verdict: Verdict) -> (u16, &'static str, String) {
    match verdict {
        Verdict::Respond(response) => {
            assert_eq!(response.flags, "UAEX");
            (response.status, response.details, response.body.into_owned())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_check_says_what_envoys_says() {
    let fields = [
        ("x-request-id", "id-1"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("accept", "x"),
        ("accept", "y"),
        ("connection", "close"),
        ("x-forwarded-client-cert", "forged"),
        ("x-envoy-internal", "true"),
    ];
    let mut client = Client::new(Method::Get, "/a/b?c=d", &fields);
    client.identity = Some(PeerIdentity {
        uris: vec!["spiffe://td/ns/shop/sa/web".into()],
        der: b"certificate".as_slice().into(),
        ..PeerIdentity::default()
    });
    let claims =
        serde_json::json!({"iss": "https://i", "groups": ["a"], "n": 1.5, "deep": {"t": true, "z": null}});
    let serde_json::Value::Object(claims) = claims else { unreachable!() };
    client.metadata.tokens.push(Arc::new(Token { issuer: "https://i".into(), claims, ..Token::default() }));
    let mut guard = by_grpc();
    guard.ir.context = vec![("tier".into(), "gold".into())];
    guard.ir.peer_certificate = true;
    let callout = client.asks(&guard);
    assert_eq!((&*callout.head.target, callout.grpc, callout.step), (CHECK, true, DECISION));
    let attributes = check_of(&callout).attributes.unwrap();

    let source = attributes.source.unwrap();
    assert_eq!(source.address.unwrap().socket_address.unwrap().address, "192.0.2.7");
    assert_eq!(source.principal, "spiffe://td/ns/shop/sa/web");
    assert_eq!(
        source.certificate,
        "-----BEGIN%20CERTIFICATE-----%0AY2VydGlmaWNhdGU%3D%0A-----END%20CERTIFICATE-----%0A"
    );
    let destination = attributes.destination.unwrap().address.unwrap().socket_address.unwrap();
    assert_eq!((&*destination.address, destination.port_value), ("10.0.0.1", Some(8443)));
    assert_eq!(attributes.tls_session.unwrap().sni, "shop.example");
    assert_eq!(attributes.context_extensions["tier"], "gold");

    let request = attributes.request.unwrap();
    let time = request.time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1_700_000_000, 250_000_000));
    let http = request.http.unwrap();
    assert_eq!((&*http.id, &*http.method, &*http.path), ("id-1", "GET", "/a/b?c=d"));
    assert_eq!(
        (&*http.host, &*http.scheme, &*http.protocol, http.size),
        ("shop.example", "https", "HTTP/2", 0)
    );
    let mut names: Vec<_> = http.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
    names.sort();
    assert_eq!(
        names,
        [
            ":authority: shop.example",
            ":method: GET",
            ":path: /a/b?c=d",
            ":scheme: https",
            "accept: x,y",
            "cookie: a=1; b=2",
            "x-request-id: id-1",
        ]
    );

    let payloads = &attributes.metadata_context.unwrap().filter_metadata["envoy.filters.http.jwt_authn"];
    let Some(Kind::StructValue(payload)) = &payloads.fields["payload"].kind else { panic!() };
    assert_eq!(payload.fields["n"].kind, Some(Kind::NumberValue(1.5)));
    assert_eq!(payloads.fields["https://i"], payloads.fields["payload"]);
}

#[test]
fn a_check_has_only_the_fields_asked_for() {
    let mut guard = by_grpc();
    guard.ir.request_headers =
        vec![StringMatch::Exact("authorization".into()), StringMatch::Prefix("x-".into())];
    let mut client = Client::new(Method::Get, "/", &[("authorization", "t"), ("x-a", "1"), ("accept", "*")]);
    let http = check_of(&client.asks(&guard)).attributes.unwrap().request.unwrap().http.unwrap();
    let mut names: Vec<_> = http.headers.into_keys().filter(|name| !name.starts_with(':')).collect();
    names.sort();
    assert_eq!(names, ["authorization", "x-a"]);
    assert_eq!(http.id, "42", "one that has no id gets one");
}

#[test]
fn an_answer_changes_the_request_and_the_response() {
    let guard = by_grpc();
    let fields = [("x-user", "forged"), ("x-list", "a"), ("authorization", "secret")];
    let mut client = Client::new(Method::Get, "/p?token=x&b=1", &fields);
    client.asks(&guard);
    let metadata = Struct {
        fields: [("user".to_owned(), Value { kind: Some(Kind::StringValue("alice".into())) })].into(),
    };
    let ok = OkHttpResponse {
        headers: vec![option("X-User", "alice", None), option("x-list", "b", Some(true))],
        headers_to_remove: vec!["Authorization".into(), ":path".into(), "host".into()],
        response_headers_to_add: vec![option("set-cookie", "s=1", None), option("set-cookie", "t=2", None)],
        query_parameters_to_set: vec![QueryParameter { key: "u".into(), value: "alice".into() }],
        query_parameters_to_remove: vec!["token".into()],
        ..OkHttpResponse::default()
    };
    let mut answer = response(0, Some(HttpResponse::Ok(ok)));
    answer.dynamic_metadata = Some(metadata);
    assert!(matches!(client.hears(&guard, said(&answer)), Verdict::Continue));
    assert_eq!(client.has("x-user"), ["alice"]);
    assert_eq!(client.has("x-list"), ["a", "b"]);
    assert!(client.has("authorization").is_empty());
    assert_eq!(client.head.target, "/p?b=1&u=alice");
    assert_eq!(client.response_headers.get_all("set-cookie").count(), 2);
    assert_eq!(client.metadata.dynamic[METADATA], serde_json::json!({"user": "alice"}));
}

#[test]
fn a_refusal_is_the_authorizers() {
    let guard = by_grpc();
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: 401 }),
        headers: vec![
            option("www-authenticate", "Basic", None),
            option("set-cookie", "a=1", None),
            option("set-cookie", "b=2", None),
            option("content-length", "999", None),
            option("content-type", "text/html", None),
        ],
        body: "<p>no</p>".into(),
    };
    let answer = response(7, Some(HttpResponse::Denied(denied)));
    let mut client = Client::new(Method::Get, "/", &[]);
    let verdict = client.hears(&guard, said(&answer));
    assert_eq!(refused(verdict), (401, "ext_authz_denied", "<p>no</p>".into()));
    let mut names: Vec<_> =
        client.response_headers.iter().map(|(_, n, _)| String::from_utf8_lossy(n).into_owned()).collect();
    names.sort();
    assert_eq!(names, ["content-type", "set-cookie", "set-cookie", "www-authenticate"]);

    let mut client = Client::new(Method::Post, "/a.B/C", &[("content-type", "application/grpc")]);
    client.hears(&guard, said(&answer));
    assert_eq!(client.response_headers.get("content-type"), None, "a gRPC client reads gRPC");

    for bare in [response(16, None), response(7, Some(HttpResponse::Ok(OkHttpResponse::default())))] {
        let mut client = Client::new(Method::Get, "/", &[]);
        assert_eq!(refused(client.hears(&guard, said(&bare))), (403, "ext_authz_denied", String::new()));
    }
}

#[test]
fn an_unsound_answer_changes_nothing_and_lets_nothing_pass() {
    let mut guard = by_grpc();
    guard.ir.fail_open = true;
    for ok in [
        OkHttpResponse {
            headers: vec![option("x-user", "alice", None), option("x-b", "1\r\nx-admin: 1", None)],
            ..OkHttpResponse::default()
        },
        OkHttpResponse { headers: vec![option(":path", "/admin", None)], ..OkHttpResponse::default() },
        OkHttpResponse {
            response_headers_to_add: vec![option("a b", "1", None)],
            ..OkHttpResponse::default()
        },
        OkHttpResponse {
            query_parameters_to_set: vec![QueryParameter { key: "a".into(), value: "1&b=2".into() }],
            ..OkHttpResponse::default()
        },
    ] {
        let mut client = Client::new(Method::Get, "/p", &[]);
        let verdict = client.hears(&guard, said(&response(0, Some(HttpResponse::Ok(ok)))));
        assert_eq!(refused(verdict), (500, "ext_authz_invalid", String::new()));
        assert!(client.has("x-user").is_empty() && client.head.target == "/p");
    }
    let denied =
        DeniedHttpResponse { status: Some(HttpStatus { code: 99 }), ..DeniedHttpResponse::default() };
    let verdict = Client::new(Method::Get, "/", &[])
        .hears(&guard, said(&response(7, Some(HttpResponse::Denied(denied)))));
    assert_eq!(refused(verdict).1, "ext_authz_invalid");
}

#[test]
fn without_an_answer_it_is_as_configured() {
    let garbage = |body: &'static [u8]| {
        let mut answered = Answered { status: 200, body: grpc::frame(body), ..Answered::default() };
        answered.headers.push(b"grpc-status", b"0");
        answered
    };
    let mut unavailable = Answered { status: 200, ..Answered::default() };
    unavailable.headers.push(b"grpc-status", b"14");
    for answer in [
        Err(NoAnswer::Timeout),
        Err(NoAnswer::TooLong),
        Err(NoAnswer::Unreachable("down".into())),
        Ok(garbage(b"\xff\xff\xff")),
        Ok(unavailable),
        Ok(Answered { status: 503, ..Answered::default() }),
        said(&response(0, Some(HttpResponse::Error(DeniedHttpResponse::default())))),
    ] {
        let mut guard = by_grpc();
        guard.ir.status_on_error = 503;
        guard.ir.own_headers = vec![StringMatch::Exact("x-user".into())];
        guard.ir.fail_open_header = true;
        let mut client = Client::new(Method::Get, "/", &[("x-user", "forged")]);
        let verdict = client.hears(&guard, answer.clone());
        assert_eq!(refused(verdict), (503, "ext_authz_error", String::new()), "{answer:?}");

        guard.ir.fail_open = true;
        let mut client = Client::new(Method::Get, "/", &[("x-user", "forged")]);
        assert!(matches!(client.hears(&guard, answer), Verdict::FailOpen));
        assert!(
            client.has("x-user").is_empty(),
            "what only the authorizer may say is not the client's to say"
        );
        assert_eq!(client.has(FAILED_OPEN), ["true"]);
    }
}

#[test]
fn a_body_is_shown_as_far_as_it_is_asked_for() {
    let mut guard = by_grpc();
    guard.ir.body_limit = 4;
    let mut client = Client::new(Method::Post, "/", &[]);
    assert_eq!(client.asks(&guard).client_body, None, "there is none");

    client.body_length = None;
    let callout = client.asks(&guard);
    assert_eq!(callout.client_body, Some(BodyWish { limit: 4, partial: false }));
    let shown = |client: &mut Client, guard: &ExtAuthz, body: &'static [u8], whole| {
        let body = Err(NoAnswer::Body(Bytes::from_static(body), whole));
        match client.meets(|request| guard.resume(request, BODY, body)) {
            Verdict::Ask(callout) => check_of(&callout).attributes.unwrap().request.unwrap().http.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let http = shown(&mut client, &guard, b"body", true);
    assert_eq!((&*http.body, http.size, &*http.headers[PARTIAL_BODY]), ("body", 4, "false"));
    guard.ir.raw_body = true;
    let http = shown(&mut client, &guard, b"\xffody", false);
    assert_eq!((&http.raw_body[..], &*http.body, http.size), (&b"\xffody"[..], "", -1));
    assert_eq!(http.headers[PARTIAL_BODY], "true");

    let verdict = client.meets(|request| guard.resume(request, BODY, Err(NoAnswer::BodyTooLong)));
    assert_eq!(refused(verdict).0, 413);
}

#[test]
fn an_http_authorizer_sees_the_request_as_it_is() {
    let mut guard = by_http();
    guard.ir.request_headers = vec![StringMatch::Exact("cookie".into())];
    let fields = [
        ("authorization", "Bearer t"),
        ("cookie", "a=1"),
        ("accept", "*"),
        ("content-length", "5"),
        ("x-from", "forged"),
        ("connection", "x"),
    ];
    let mut client = Client::new(Method::Delete, "/a?b=c", &fields);
    let callout = client.asks(&guard);
    assert_eq!((&callout.head.method, &*callout.head.target), (&Method::Delete, "/verify/a?b=c"));
    assert_eq!((&*callout.head.authority, callout.grpc), ("shop.example", false));
    let mut sent: Vec<_> = callout
        .head
        .headers
        .iter()
        .map(|(_, n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)))
        .collect();
    sent.sort();
    assert_eq!(sent, ["authorization: Bearer t", "cookie: a=1", "x-from: edge"]);
}

fn http_answer(status: u16, fields: &[(&str, &str)], body: &'static str) -> Result<Answered, NoAnswer> {
    let mut answered = Answered { status, body: Bytes::from_static(body.as_bytes()), ..Answered::default() };
    for (name, value) in fields {
        answered.headers.push(name.as_bytes(), value.as_bytes());
    }
    Ok(answered)
}

#[test]
fn an_http_authorizers_fields_go_where_they_are_listed() {
    let mut guard = by_http();
    guard.ir.own_headers = vec![StringMatch::Prefix("x-auth-".into())];
    let fields = [("x-auth-user", "forged"), ("x-auth-admin", "forged"), ("x-token", "t")];
    let mut client = Client::new(Method::Get, "/", &fields);
    let answer = http_answer(
        200,
        &[
            ("x-auth-user", "alice"),
            ("x-auth-group", "a"),
            ("x-auth-group", "b"),
            ("x-other", "1"),
            ("set-cookie", "s=1"),
            ("content-length", "0"),
            ("x-envoy-auth-headers-to-remove", "x-token, host"),
        ],
        "",
    );
    assert!(matches!(client.hears(&guard, answer), Verdict::Continue));
    assert_eq!(client.has("x-auth-user"), ["alice"]);
    assert_eq!(client.has("x-auth-group"), ["a", "b"]);
    assert!(client.has("x-auth-admin").is_empty() && client.has("x-token").is_empty());
    assert!(client.has("x-other").is_empty());
    let names: Vec<_> = client.response_headers.iter().map(|(_, n, _)| n.to_vec()).collect();
    assert_eq!(names, [b"set-cookie".to_vec()]);
}

#[test]
fn where_all_goes_upstream_the_answers_own_fields_do_not() {
    let mut guard = by_http();
    let ExtAuthzProtocol::Http { upstream_headers, .. } = &mut guard.ir.protocol else { unreachable!() };
    *upstream_headers = vec![StringMatch::Present];
    let mut client = Client::new(Method::Post, "/", &[("content-type", "application/json")]);
    client.hears(
        &guard,
        http_answer(200, &[("content-type", "text/plain"), ("server", "a"), ("x-user", "b")], ""),
    );
    assert_eq!(
        (client.has("content-type"), client.has("x-user")),
        (vec!["application/json".into()], vec!["b".into()])
    );
    assert!(client.has("server").is_empty());
}

#[test]
fn an_http_authorizers_status_decides() {
    let denied =
        [("location", "https://login"), ("server", "auth"), ("connection", "close"), ("x-why", "no")];
    let mut guard = by_http();
    let mut client = Client::new(Method::Get, "/", &[]);
    let verdict = client.hears(&guard, http_answer(302, &denied, "moved"));
    assert_eq!(refused(verdict), (302, "ext_authz_denied", "moved".into()));
    let names = |client: &Client| -> Vec<String> {
        client.response_headers.iter().map(|(_, n, _)| String::from_utf8_lossy(n).into_owned()).collect()
    };
    assert_eq!(names(&client), ["location", "x-why"]);

    let ExtAuthzProtocol::Http { client_headers_on_denied, .. } = &mut guard.ir.protocol else {
        unreachable!()
    };
    client_headers_on_denied.push(StringMatch::Exact("x-other".into()));
    let mut client = Client::new(Method::Get, "/", &[]);
    client.hears(&guard, http_answer(302, &denied, "moved"));
    assert_eq!(names(&client), ["location"], "a redirect without a target is of no use");

    for (status, details) in [(201, "ext_authz_denied"), (404, "ext_authz_denied"), (500, "ext_authz_error")]
    {
        let verdict = Client::new(Method::Get, "/", &[]).hears(&guard, http_answer(status, &[], ""));
        assert_eq!(refused(verdict).1, details, "{status}");
    }
}

#[test]
fn a_route_may_differ() {
    let mut guard = by_grpc();
    guard.ir.own_headers = vec![StringMatch::Exact("x-user".into())];
    guard.ir.context = vec![("tier".into(), "1".into()), ("a".into(), "b".into())];
    guard.ir.routes = vec![
        ("default/shop".into(), ExtAuthzRoute::Context(vec![("tier".into(), "2".into())])),
        ("default/shop/open".into(), ExtAuthzRoute::Off),
    ];
    assert!(guard.looks_ahead());
    let on = |id: &str| {
        let mut client = Client::new(Method::Get, "/", &[("x-user", "forged")]);
        client.rule = Some(Rule { id: id.into(), ..Rule::default() });
        match client.meets(|request| guard.begin(request)) {
            Verdict::Ask(callout) => {
                check_of(&callout).attributes.unwrap().context_extensions["tier"].clone()
            }
            Verdict::Continue => {
                assert!(client.has("x-user").is_empty());
                "off".to_owned()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(on("default/shop#1"), "2");
    assert_eq!(on("default/shop/checkout"), "2");
    assert_eq!(on("default/shop/open"), "off");
    assert_eq!(on("default/shopping#1"), "1");
    assert_eq!(on("grpc:default/shop#1"), "1");
}
