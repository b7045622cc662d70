//! The guard as a whole: from a request to what the client hears, and what is kept over a reload.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fieldgate_core::guard::Callout;
use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::ir::{
    ConnectionFacts, DescriptorEntry, GlobalLimit, LimitCondition, LimitKey, PoolKey, Rule, StringMatch,
};
use fieldgate_core::{Headers, Method, RequestHead};
use prost::Message;

use super::proto::{Code, CurrentLimit, HeaderValue, RateLimitRequest, RateLimitResponse, Status};
use super::*;
use crate::grpc;

fn key() -> ObjectKey {
    ObjectKey { kind: "RateLimitPolicy", namespace: "default".into(), name: "l".into() }
}

/// So many per hour and no more at once.
fn limit(name: &str, tokens: u32, by: &[LimitKey]) -> Limit {
    Limit {
        name: name.into(),
        when: Vec::new(),
        by: by.to_vec(),
        burst: tokens,
        tokens,
        interval: Duration::from_hours(1),
        max_keys: 100,
    }
}

fn policy(limits: Vec<Limit>) -> RateLimit {
    RateLimit { limits, global: None, shadow: false, headers: false, status: 429, resource_exhausted: false }
}

fn header(name: &str) -> LimitKey {
    LimitKey::Header(name.into())
}

/// A client with a request in its hand.
struct Client {
    head: RequestHead,
    address: IpAddr,
    identity: Option<PeerIdentity>,
    rule: Option<Rule>,
    metadata: Metadata,
    told: Headers,
    now: Instant,
}

impl Client {
    fn new() -> Self {
        let mut head = RequestHead { authority: "shop.example:80".into(), ..RequestHead::default() };
        head.set_target("/api/cart?x=1");
        Self {
            head,
            address: IpAddr::from([10, 1, 2, 3]),
            identity: None,
            rule: None,
            metadata: Metadata::default(),
            told: Headers::new(),
            now: Instant::now(),
        }
    }

    fn with(mut self, fields: &[(&str, &str)]) -> Self {
        for (name, value) in fields {
            self.head.headers.push(name.as_bytes(), value.as_bytes());
        }
        self
    }

    fn at(mut self, address: &str) -> Self {
        self.address = address.parse().expect("an address");
        self
    }

    fn shown<T>(&mut self, see: impl FnOnce(&mut Guarded<'_>) -> T) -> T {
        see(&mut Guarded {
            head: &mut self.head,
            facts: ConnectionFacts {
                peer: self.address,
                client: self.address,
                local: ([127, 0, 0, 1], 80).into(),
                sni: None,
                identity: self.identity.as_ref(),
            },
            rule: self.rule.as_ref(),
            metadata: &mut self.metadata,
            response_headers: &mut self.told,
            body_length: Some(0),
            now: self.now,
            wall: SystemTime::UNIX_EPOCH,
            random: &mut || 0,
        })
    }

    fn ask(&mut self, guard: &dyn Guard) -> Verdict {
        self.shown(|request| guard.begin(request))
    }

    fn passes(&mut self, guard: &dyn Guard) -> bool {
        matches!(self.ask(guard), Verdict::Continue)
    }

    /// What it hears of how much is left.
    fn left(&self) -> [String; 3] {
        ["limit", "remaining", "reset"].map(|name| {
            let value = self.told.get(&format!("x-ratelimit-{name}")).unwrap_or_default();
            String::from_utf8_lossy(value).into_owned()
        })
    }
}

fn guard(policy: &RateLimit) -> Arc<dyn Guard> {
    ready(&key(), policy, None)
}

fn counts(guard: &Arc<dyn Guard>) -> Vec<(String, [u64; 4])> {
    let limiter = (&**guard as &dyn Any).downcast_ref::<RateLimiter>().expect("a rate limit");
    limiter.counts().map(|(name, counts)| (name.to_owned(), counts)).collect()
}

#[test]
fn beyond_a_limit_clients_hear_when_to_come_again() {
    let mut of_ten = limit("all", 10, &[]);
    of_ten.interval = Duration::from_secs(20);
    let guard = guard(&RateLimit { headers: true, ..policy(vec![of_ten]) });
    let mut client = Client::new();
    for left in (0..10).rev() {
        assert!(client.passes(&*guard));
        assert_eq!(client.left()[1], left.to_string());
        client.told.clear();
    }
    let Verdict::Respond(response) = client.ask(&*guard) else { panic!("the limit is used up") };
    assert_eq!((response.status, response.flags, response.details), (429, "RL", "local_rate_limited"));
    assert_eq!(client.left(), ["10, 10;w=20;name=\"all\"", "0", "20"]);
    let field = |name| response.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str());
    assert_eq!((field("retry-after"), field("x-envoy-ratelimited")), (Some("2"), Some("true")));
    client.now += Duration::from_secs(2);
    assert!(client.passes(&*guard), "a token is back");
    assert_eq!(counts(&guard), [("all".to_owned(), [11, 1, 0, 0])]);
}

#[test]
fn each_key_tells_requests_apart() {
    let check = |by: &[LimitKey], a: Client, same: Client, other: Client, none: Option<Client>| {
        let guard = guard(&policy(vec![limit("l", 1, by)]));
        let now = a.now;
        let ask = |mut client: Client| {
            client.now = now;
            client.passes(&*guard)
        };
        assert_eq!([ask(a), ask(same), ask(other)], [true, false, true], "{by:?}");
        if let Some(none) = none {
            let mut none = none;
            none.now = now;
            assert!(none.passes(&*guard) && none.passes(&*guard), "{by:?}: it does not count");
        }
    };
    let new = Client::new;
    let user = |value| new().with(&[("x-user", value)]);
    check(&[header("x-user")], user("a"), user("a"), user("b"), Some(new()));
    let twice = || new().with(&[("x-user", "a"), ("x-user", "b")]);
    check(&[header("x-user")], user("a"), user("a"), twice(), Some(user("")));
    let (client, exact) = (LimitKey::Client(24, 64), LimitKey::Client(32, 128));
    let at = |address: &str| new().at(address);
    check(std::slice::from_ref(&client), at("10.1.2.3"), at("10.1.2.9"), at("10.1.3.3"), None);
    check(&[client], at("2001:db8::1"), at("2001:db8::2:1"), at("2001:db8:0:1::1"), None);
    check(&[exact], at("10.1.2.3"), at("::ffff:10.1.2.3"), at("10.1.2.4"), None);
    let peer = |uri: &str, subject: &str| {
        let uris = if uri.is_empty() { Vec::new() } else { vec![uri.into()] };
        Client {
            identity: Some(PeerIdentity { uris, subject: subject.into(), ..PeerIdentity::default() }),
            ..new()
        }
    };
    let spiffe = |name: &str| peer(&format!("spiffe://td/ns/a/sa/{name}"), "CN=x");
    check(&[LimitKey::Principal], spiffe("a"), spiffe("a"), spiffe("b"), Some(new()));
    check(&[LimitKey::Principal], peer("", "CN=a"), peer("", "CN=a"), peer("", "CN=b"), Some(peer("", "")));
    let bearer = |subject: &str, tenant: serde_json::Value| {
        let claims = serde_json::json!({"realm": {"tenant": tenant}});
        let serde_json::Value::Object(claims) = claims else { unreachable!() };
        let token = Token { principal: format!("iss/{subject}"), claims, ..Token::default() };
        Client { metadata: Metadata { tokens: vec![Arc::new(token)], ..Metadata::default() }, ..new() }
    };
    let logged_in = |name: &str| {
        let metadata = Metadata { user: Some((name.into(), "basic")), ..Metadata::default() };
        Client { metadata, ..new() }
    };
    check(
        &[LimitKey::User],
        bearer("a", 1.into()),
        bearer("a", 2.into()),
        bearer("b", 1.into()),
        Some(new()),
    );
    check(&[LimitKey::User], logged_in("a"), logged_in("a"), logged_in("b"), None);
    let claim = [LimitKey::Claim(vec!["realm".into(), "tenant".into()])];
    check(&claim, bearer("a", "x".into()), bearer("b", "x".into()), bearer("a", "y".into()), Some(new()));
    check(&claim, bearer("a", 1.into()), bearer("b", 1.into()), bearer("a", 2.into()), None);
    let of_rule = |id: &str| Client { rule: Some(Rule { id: id.into(), ..Rule::default() }), ..new() };
    check(&[LimitKey::Route], of_rule("a"), of_rule("a"), of_rule("b"), Some(new()));
    let host = |name: &str| {
        let mut client = new();
        client.head.authority = name.into();
        client
    };
    check(&[LimitKey::Host], host("a.example:80"), host("a.example"), host("b.example"), None);
    let path = |target: &str| {
        let mut client = new();
        client.head.set_target(target);
        client
    };
    check(&[LimitKey::Path], path("/a?1"), path("/a?2"), path("/b"), None);
    let method = |method| {
        let mut client = new();
        client.head.method = method;
        client
    };
    check(&[LimitKey::Method], method(Method::Get), method(Method::Get), method(Method::Post), None);
    // Parts do not run into each other.
    let two = |a, b| new().with(&[("x-a", a), ("x-b", b)]);
    check(&[header("x-a"), header("x-b")], two("1", "23"), two("1", "23"), two("12", "3"), Some(user("a")));
}

#[test]
fn only_what_fits_all_conditions_counts() {
    let mut posts = limit("posts", 1, &[]);
    posts.when = vec![
        LimitCondition::Method("POST".into()),
        LimitCondition::Path(StringMatch::Prefix("/api/".into())),
        LimitCondition::Header("x-plan".into(), StringMatch::Exact("free".into())),
    ];
    let guard = guard(&policy(vec![posts]));
    let client = |method, target: &str, plans: &[&str]| {
        let fields: Vec<_> = plans.iter().map(|plan| ("x-plan", *plan)).collect();
        let mut client = Client::new().with(&fields);
        client.head.method = method;
        client.head.set_target(target);
        client
    };
    let now = Instant::now();
    let ask = |mut client: Client| {
        client.now = now;
        client.passes(&*guard)
    };
    assert!(ask(client(Method::Post, "/api/x", &["free"])));
    assert!(!ask(client(Method::Post, "/api/x", &["free"])));
    assert!(
        !ask(client(Method::Post, "/api/x", &["gold", "free"])),
        "a second field does not hide the first"
    );
    assert!(ask(client(Method::Get, "/api/x", &["free"])));
    assert!(ask(client(Method::Post, "/other?/api/", &["free"])));
    assert!(ask(client(Method::Post, "/api/x", &["gold"])) && ask(client(Method::Post, "/api/x", &[])));
}

/// A client that is over its own limit must not use up what it shares with others.
#[test]
fn a_request_that_is_refused_takes_nothing() {
    let guard = guard(&policy(vec![limit("shared", 3, &[]), limit("own", 1, &[header("x-user")])]));
    let now = Instant::now();
    let ask = |user| {
        let mut client = Client::new().with(&[("x-user", user)]);
        client.now = now;
        client.passes(&*guard)
    };
    assert!(ask("greedy"));
    assert!((0..50).all(|_| !ask("greedy")));
    assert!(ask("a") && ask("b") && !ask("c"));
    let expected = [("shared".to_owned(), [3, 1, 0, 0]), ("own".to_owned(), [3, 50, 0, 0])];
    assert_eq!(counts(&guard), expected);
}

#[test]
fn in_the_shadow_all_is_counted_and_nothing_refused() {
    let shadow = RateLimit { shadow: true, ..policy(vec![limit("two", 2, &[]), limit("one", 1, &[])]) };
    let guard = guard(&shadow);
    let mut client = Client::new();
    assert!((0..5).all(|_| client.passes(&*guard)));
    assert_eq!(counts(&guard), [("two".to_owned(), [2, 0, 3, 0]), ("one".to_owned(), [1, 0, 4, 0])]);
}

#[test]
fn grpc_hears_that_a_resource_is_exhausted_if_asked_for() {
    let exhausted = RateLimit { resource_exhausted: true, ..policy(vec![limit("l", 1, &[])]) };
    let guard = guard(&exhausted);
    let mut grpc = Client::new().with(&[("content-type", "application/grpc")]);
    assert!(grpc.passes(&*guard));
    let Verdict::Respond(response) = grpc.ask(&*guard) else { panic!("the limit is used up") };
    assert!(response.status == 200 && response.headers.contains(&("grpc-status", "8".to_owned())));
    let Verdict::Respond(response) = Client { now: grpc.now, ..Client::new() }.ask(&*guard) else { panic!() };
    assert_eq!(response.status, 429, "who does not speak gRPC hears nothing of it");
}

#[test]
fn a_reload_keeps_what_was_counted() {
    let by = [header("x-user")];
    let before = guard(&policy(vec![limit("a", 2, &by), limit("b", 5, &[])]));
    let now = Instant::now();
    let ask = |guard: &Arc<dyn Guard>| {
        let mut client = Client::new().with(&[("x-user", "u")]);
        client.now = now;
        client.passes(&**guard)
    };
    assert!(ask(&before) && ask(&before) && !ask(&before));
    // What only says how, and a burst: one more than before.
    let mut larger = limit("a", 2, &by);
    larger.burst = 3;
    larger.when = vec![LimitCondition::Method("GET".into())];
    let changed = RateLimit { headers: true, status: 503, ..policy(vec![limit("b", 5, &[]), larger]) };
    let after = ready(&key(), &changed, Some(&before));
    assert!(ask(&after) && !ask(&after), "one is what the burst grew by");
    let of = |guard: &Arc<dyn Guard>, name: &str| counts(guard).into_iter().find(|(n, _)| n == name);
    assert_eq!(of(&after, "a"), Some(("a".to_owned(), [3, 2, 0, 0])), "counters go on");
    // Another rate is another count; the name's counters go on all the same.
    let faster = ready(&key(), &policy(vec![limit("a", 9, &by)]), Some(&after));
    assert!((0..9).all(|_| ask(&faster)) && !ask(&faster));
    assert_eq!(of(&faster, "a"), Some(("a".to_owned(), [12, 3, 0, 0])));
    assert!(ask(&guard(&policy(vec![limit("a", 2, &by)]))), "another object begins anew");
}

fn asks(fail_open: bool) -> RateLimit {
    let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "ratelimit".into() };
    let global = GlobalLimit {
        pool: Arc::new(PoolKey { object, port: 0 }),
        domain: "edge".into(),
        timeout: Duration::from_millis(20),
        fail_open,
        descriptors: vec![
            vec![DescriptorEntry::Generic("generic_key".into(), "x".into())],
            vec![
                DescriptorEntry::Of("remote_address".into(), LimitKey::Client(24, 64)),
                DescriptorEntry::Of("user".into(), header("x-user")),
            ],
        ],
    };
    RateLimit { global: Some(Arc::new(global)), ..policy(Vec::new()) }
}

fn question(client: &mut Client, guard: &dyn Guard) -> (Callout, RateLimitRequest) {
    let Verdict::Ask(callout) = client.ask(guard) else { panic!("the service is asked") };
    let message = RateLimitRequest::decode(callout.body.slice(5..)).expect("a message");
    (*callout, message)
}

fn answered(response: &RateLimitResponse) -> Result<Answered, NoAnswer> {
    let mut headers = Headers::new();
    headers.push(b"grpc-status", b"0");
    Ok(Answered { status: 200, headers, body: grpc::frame(&response.encode_to_vec()) })
}

#[test]
fn the_service_is_asked_about_what_the_request_has() {
    let guard = guard(&asks(true));
    let (callout, message) = question(&mut Client::new().with(&[("x-user", "u")]), &*guard);
    assert_eq!(callout.head.target, "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    assert_eq!((callout.pool.to_string().as_str(), callout.grpc), ("Pool default/ratelimit", true));
    assert_eq!(callout.timeout, Duration::from_millis(20));
    let told = |message: &RateLimitRequest| -> Vec<Vec<String>> {
        let entries = message.descriptors.iter().map(|d| &d.entries);
        entries.map(|e| e.iter().map(|e| format!("{}={}", e.key, e.value)).collect()).collect()
    };
    assert_eq!(message.domain, "edge");
    assert_eq!(told(&message), [vec!["generic_key=x"], vec!["remote_address=10.1.2.0/24", "user=u"]]);
    let (_, message) = question(&mut Client::new(), &*guard);
    assert_eq!(told(&message), [["generic_key=x"]], "one that lacks a part is left out");
    // What is refused here needs nobody else.
    let local = RateLimit { limits: vec![limit("l", 1, &[])], ..asks(true) };
    let guard = super::ready(&key(), &local, None);
    let mut client = Client::new();
    question(&mut client, &*guard);
    assert!(matches!(client.ask(&*guard), Verdict::Respond(_)));
}

#[test]
fn an_answer_is_put_into_effect() {
    let name = |key: &str, value: &str| HeaderValue {
        key: key.into(),
        value: value.into(),
        raw_value: Bytes::new(),
    };
    let status = |code: Code, limit_remaining, seconds| Status {
        code: code.into(),
        current_limit: Some(CurrentLimit { requests_per_unit: 10, unit: 2, name: "n".into() }),
        limit_remaining,
        duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    let number = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(7.0)) };
    let mut response = RateLimitResponse {
        overall_code: Code::Ok.into(),
        statuses: vec![status(Code::Ok, 4, 30), status(Code::Ok, 2, 20)],
        response_headers_to_add: vec![name("X-Told", "yes"), name("content-length", "0"), name("a b", "c")],
        request_headers_to_add: vec![
            name("X-Quota", "7"),
            name("x-split", "a\r\nb: c"),
            name("Host", "evil"),
        ],
        raw_body: "wait a little\n".into(),
        dynamic_metadata: Some(prost_types::Struct { fields: [("n".to_owned(), number)].into() }),
    };
    let guard = guard(&RateLimit { headers: true, ..asks(true) });
    let mut client = Client::new();
    let verdict = client.shown(|request| guard.resume(request, 0, answered(&response)));
    assert!(matches!(verdict, Verdict::Continue));
    let added: Vec<_> = client.head.headers.iter().map(|(_, name, value)| (name, value)).collect();
    assert_eq!(added, [(&b"x-quota"[..], &b"7"[..])], "nothing that would break the message apart");
    assert_eq!(client.told.get("x-told"), Some(&b"yes"[..]));
    assert_eq!(client.told.len(), 4);
    assert_eq!(client.left(), ["10, 10;w=60;name=\"n\", 10;w=60;name=\"n\"", "2", "20"]);
    assert_eq!(client.metadata.dynamic["envoy.filters.http.ratelimit"]["n"], 7.0);
    response.overall_code = Code::OverLimit.into();
    response.statuses[1] = status(Code::OverLimit, 0, 20);
    let mut client = Client::new();
    let verdict = client.shown(|request| guard.resume(request, 0, answered(&response)));
    let Verdict::Respond(refused) = verdict else { panic!("it is over the limit") };
    assert_eq!((refused.status, refused.flags, refused.details), (429, "RL", "request_rate_limited"));
    assert_eq!(&*refused.body, "wait a little\n");
    assert!(refused.headers.contains(&("retry-after", "20".to_owned())));
    assert_eq!((client.told.get("x-told"), client.left()[1].as_str()), (Some(&b"yes"[..]), "0"));
    assert!(client.head.headers.is_empty());
    assert_eq!(counts(&guard), [("global".to_owned(), [1, 1, 0, 0])]);
    let shadow = super::ready(&key(), &RateLimit { shadow: true, ..asks(false) }, None);
    let verdict = Client::new().shown(|request| shadow.resume(request, 0, answered(&response)));
    assert!(matches!(verdict, Verdict::Continue));
    assert_eq!(counts(&shadow), [("global".to_owned(), [0, 0, 1, 0])]);
}

#[test]
fn without_an_answer_the_policy_says_what_becomes_of_a_request() {
    let unknown = RateLimitResponse::default();
    let mut failed = answered(&unknown).expect("an answer");
    failed.headers.set("grpc-status", b"14");
    let garbage = Answered { body: grpc::frame(b"\xff\xff\xff"), ..answered(&unknown).expect("an answer") };
    let failures: [fn() -> Result<Answered, NoAnswer>; 2] =
        [|| Err(NoAnswer::Timeout), || Err(NoAnswer::Unreachable("no endpoint".into()))];
    let bad = [failed, garbage, answered(&unknown).expect("an answer")];
    let all = || failures.iter().map(|f| f()).chain(bad.iter().cloned().map(Ok));
    let (open, closed) = (guard(&asks(true)), guard(&asks(false)));
    for answer in all() {
        let verdict = Client::new().shown(|request| open.resume(request, 0, answer));
        assert!(matches!(verdict, Verdict::Continue));
    }
    for answer in all() {
        let verdict = Client::new().shown(|request| closed.resume(request, 0, answer));
        let Verdict::Respond(response) = verdict else { panic!("it fails closed") };
        assert_eq!((response.status, response.flags), (500, "RLSE"));
    }
    assert_eq!(counts(&open), [("global".to_owned(), [0, 0, 0, 5])]);
    assert_eq!(counts(&closed), [("global".to_owned(), [0, 0, 0, 5])]);
}

/// Workers that all ask one guard by the clock on the wall: what passes is a burst and what comes back in that time.
#[test]
fn many_workers_share_a_limit() {
    const WORKERS: usize = 8;
    let mut limited = limit("l", 1000, &[]);
    limited.interval = Duration::from_secs(1);
    limited.burst = 100;
    let mut keyed = limit("k", 1000, &[LimitKey::Host]);
    (keyed.interval, keyed.burst) = (limited.interval, limited.burst);
    for policy in [policy(vec![limited]), policy(vec![keyed])] {
        let guard = guard(&policy);
        let passed = AtomicU64::new(0);
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    let mut client = Client::new();
                    while began.elapsed() < Duration::from_millis(300) {
                        client.now = Instant::now();
                        if client.passes(&*guard) {
                            passed.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        let most = 100 + began.elapsed().as_millis() as u64 + 1;
        let passed = passed.into_inner();
        assert!(passed <= most + WORKERS as u64 && passed >= 100, "{passed} of {most}");
    }
}

#[test]
fn people_are_told_what_counts() {
    let mut posts = limit("posts", 7, &[]);
    posts.when = vec![LimitCondition::Method("POST".into())];
    let own = limit("own", 5, &[header("x-user"), LimitKey::Client(24, 64)]);
    let told = |client: &mut Client, policy: &RateLimit| client.shown(|request| explain(policy, request));
    let policy = RateLimit { limits: vec![posts, limit("all", 9, &[]), own], ..asks(true) };
    let service = "Pool default/ratelimit counts, domain edge";
    assert_eq!(
        told(&mut Client::new().with(&[("x-user", "u")]), &policy),
        [
            "all: 9 in 3600s, 9 at once".to_owned(),
            "own: 5 in 3600s, 5 at once, for u, 10.1.2.0/24".to_owned(),
            format!("{service}: generic_key=x"),
            format!("{service}: remote_address=10.1.2.0/24, user=u"),
        ]
    );
    let mut post = Client::new();
    post.head.method = Method::Post;
    let shadow = RateLimit { shadow: true, global: None, ..policy };
    let counts = ["posts: 7 in 3600s, 7 at once (only watched)", "all: 9 in 3600s, 9 at once (only watched)"];
    assert_eq!(told(&mut post, &shadow), counts);
}
