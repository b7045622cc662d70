//! Keys and passwords, as requests bring them.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{ApiKeys, BasicAuth, ConnectionFacts, Secret};
use fieldgate_core::{Headers, RequestHead};

use super::*;
use crate::jwt::KeySource;

/// All of "s3cret".
const SHA: &str = "{SHA}/vNB+F2HQ559kaLUZbmHHvZrXpg=";
const BCRYPT: &str = "$2b$04$rvyUrI88eE9BHxMpIrDZMOReT8Fj7ZkzhTEaHNMAMiWJmjkvBf2ne";

pub(super) fn secret(text: &str) -> Secret {
    Secret(text.as_bytes().into())
}

pub(super) fn guard(login: &ir::Login, keys: &str) -> Arc<dyn Guard> {
    let key = ObjectKey { kind: "LoginPolicy", namespace: "default".into(), name: "login".into() };
    let guard = ir::Guard { key, kind: ir::GuardKind::Login(Box::new(login.clone())) };
    ready(&guard, login, &|_| Arc::new(KeySource::inline(keys))).expect("a guard")
}

pub(super) fn request(target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead { authority: "shop.example".into(), https: true, ..RequestHead::default() };
    head.set_target(target);
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

/// A request on its way past one guard.
pub(super) struct Way {
    pub head: RequestHead,
    pub metadata: Metadata,
    pub response: Headers,
    pub now: Instant,
    pub wall: SystemTime,
}

impl Way {
    pub fn new(head: RequestHead) -> Self {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_hours(500_000));
        Self { head, metadata: Metadata::default(), response: Headers::new(), now, wall }
    }

    pub fn begin(&mut self, guard: &dyn Guard) -> Verdict {
        self.with(|request| guard.begin(request))
    }

    pub fn resume(&mut self, guard: &dyn Guard, step: u8, answer: Result<Answered, NoAnswer>) -> Verdict {
        self.with(|request| guard.resume(request, step, answer))
    }

    fn with(&mut self, then: impl FnOnce(&mut Guarded<'_>) -> Verdict) -> Verdict {
        let client = IpAddr::from([192, 0, 2, 1]);
        let facts = ConnectionFacts {
            peer: client,
            client,
            local: SocketAddr::from(([10, 0, 0, 2], 443)),
            sni: None,
            identity: None,
        };
        then(&mut Guarded {
            head: &mut self.head,
            facts,
            rule: None,
            metadata: &mut self.metadata,
            response_headers: &mut self.response,
            body_length: Some(0),
            now: self.now,
            wall: self.wall,
            random: &mut || 4,
        })
    }

    fn user(&self) -> Option<&str> {
        self.metadata.user.as_ref().map(|(user, _)| &**user)
    }
}

fn keys(strip: bool) -> ir::Login {
    ir::Login {
        api_keys: Some(ApiKeys {
            headers: vec!["x-api-key".into()],
            params: vec!["key".into()],
            cookies: vec!["k".into()],
            keys: vec![("alice".into(), secret("a-key")), ("bob".into(), secret("b-key"))],
            strip,
        }),
        user_header: Some("x-user".into()),
        ..ir::Login::default()
    }
}

fn basic(hash: &str) -> ir::Login {
    ir::Login {
        basic: Some(BasicAuth {
            realm: "shop".into(),
            users: vec![("alice".into(), secret(hash)), ("alice".into(), secret(SHA))],
            strip: true,
        }),
        ..ir::Login::default()
    }
}

fn authorization(pair: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn refused(verdict: &Verdict) -> Option<(u16, &'static str)> {
    match verdict {
        Verdict::Respond(response) => Some((response.status, response.details)),
        _ => None,
    }
}

#[test]
fn a_key_may_be_in_any_of_its_places_and_goes_no_further() {
    let guard = guard(&keys(true), "");
    for (target, fields, user, left) in [
        ("/?a=1", vec![("x-api-key", "a-key")], "alice", "/?a=1"),
        ("/?key=b-key&a=%2F", vec![], "bob", "/?a=%2F"),
        ("/?key=b-key", vec![("x-user", "root")], "bob", "/"),
        ("/", vec![("cookie", "a=1; k=a-key")], "alice", "/"),
        ("/?key=a-key", vec![("x-api-key", "a-key")], "alice", "/"),
    ] {
        let mut way = Way::new(request(target, &fields));
        assert!(matches!(way.begin(&*guard), Verdict::Continue), "{target} {fields:?}");
        assert_eq!((way.user(), &*way.head.target), (Some(user), left));
        assert_eq!(way.head.headers.get_all("x-user").collect::<Vec<_>>(), [user.as_bytes()]);
        assert!(way.head.headers.get("x-api-key").is_none());
        assert!(way.head.cookie("k").is_none());
    }
    let mut way = Way::new(request("/", &[("cookie", "a=1; k=a-key")]));
    way.begin(&*self::guard(&keys(false), ""));
    assert!(way.head.cookie("k").is_some(), "kept where it is asked for");
}

#[test]
fn a_key_that_is_wrong_missing_or_not_the_only_one_is_refused() {
    let guard = guard(&keys(true), "");
    for (target, fields, details) in [
        ("/", vec![], "login_required"),
        ("/", vec![("x-user", "alice")], "login_required"),
        ("/", vec![("x-api-key", "a-kex")], "api_key_unknown"),
        ("/", vec![("x-api-key", "")], "api_key_unknown"),
        ("/?key=b-key", vec![("x-api-key", "a-key")], "api_key_unknown"),
        ("/?key=a-key&key=b-key", vec![], "api_key_unknown"),
        ("/", vec![("x-api-key", "a-key"), ("x-api-key", "b-key")], "api_key_unknown"),
    ] {
        let mut way = Way::new(request(target, &fields));
        assert_eq!(refused(&way.begin(&*guard)), Some((401, details)), "{target} {fields:?}");
        assert_eq!((way.user(), way.head.headers.get("x-user")), (None, None));
    }
}

#[test]
fn cheap_hashes_are_checked_at_once() {
    let guard = guard(&basic(SHA), "");
    let mut way = Way::new(request("/", &[("authorization", &authorization("alice:s3cret"))]));
    assert!(matches!(way.begin(&*guard), Verdict::Continue));
    assert_eq!(way.metadata.user, Some(("alice".into(), "basic")));
    assert!(way.head.headers.get("authorization").is_none());
    for pair in ["alice:S3cret", "bob:s3cret", "alice", ":s3cret", "a\nb:s3cret"] {
        let mut way = Way::new(request("/", &[("authorization", &authorization(pair))]));
        assert_eq!(refused(&way.begin(&*guard)), Some((401, "basic_auth_refused")), "{pair}");
    }
    for other in ["Bearer x", "Basi", "basicx"] {
        let mut way = Way::new(request("/", &[("authorization", other)]));
        assert_eq!(refused(&way.begin(&*guard)), Some((401, "login_required")), "{other}");
    }
    let good = authorization("alice:s3cret");
    let mut way = Way::new(request("/", &[("authorization", &good), ("authorization", &good)]));
    assert_eq!(refused(&way.begin(&*guard)), Some((401, "basic_auth_refused")), "which of the two?");
}

#[test]
fn dear_hashes_are_checked_elsewhere_and_once() {
    let guard = guard(&basic(BCRYPT), "");
    let fields = authorization("alice:s3cret");
    let mut way = Way::new(request("/", &[("authorization", &fields)]));
    let work = |verdict: Verdict| match verdict {
        Verdict::Work(work) => (work.step, Ok(Answered { body: (work.job)(), ..Answered::default() })),
        other => panic!("{other:?}"),
    };
    let (step, answer) = work(way.begin(&*guard));
    assert!(matches!(way.resume(&*guard, step, answer), Verdict::Continue));
    assert_eq!(way.user(), Some("alice"));
    // Known now, for a while.
    let mut again = Way::new(request("/", &[("authorization", &fields)]));
    assert!(matches!(again.begin(&*guard), Verdict::Continue));
    let mut late = Way::new(request("/", &[("authorization", &fields)]));
    late.now += Duration::from_mins(6);
    assert!(matches!(late.begin(&*guard), Verdict::Work(_)));
    // Who is not there takes as long, and is not remembered.
    for pair in ["bob:s3cret", "alice:other"] {
        for _ in 0..2 {
            let mut way = Way::new(request("/", &[("authorization", &authorization(pair))]));
            let (step, answer) = work(way.begin(&*guard));
            assert_eq!(
                refused(&way.resume(&*guard, step, answer)),
                Some((401, "basic_auth_refused")),
                "{pair}"
            );
        }
    }
    let mut busy = Way::new(request("/", &[("authorization", &authorization("alice:new"))]));
    let (step, _) = work(busy.begin(&*guard));
    let verdict = busy.resume(&*guard, step, Err(NoAnswer::Unreachable(String::new())));
    assert_eq!(refused(&verdict), Some((503, "basic_auth_overflow")));
}

#[test]
fn a_hash_that_cannot_be_read_makes_no_guard() {
    let login = basic("$apr1$x$y");
    let key = ObjectKey { kind: "LoginPolicy", namespace: "default".into(), name: "login".into() };
    let guard = ir::Guard { key, kind: ir::GuardKind::Login(Box::new(login.clone())) };
    let why = ready(&guard, &login, &|_| Arc::new(KeySource::inline(""))).expect_err("no guard");
    assert!(why.starts_with("user alice: ") && !why.contains("apr1"), "{why}");
}

#[test]
fn nothing_secret_is_shown() {
    let mut login = keys(true);
    login.basic = basic(SHA).basic;
    let shown = format!("{:?} {login:?}", guard(&login, ""));
    assert!(!shown.contains("a-key") && !shown.contains("SHA}"), "{shown}");
}
