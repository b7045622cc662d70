//! The load client's account against the backend, both in this process: a judge must itself be judged.

use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_loadtests::backend::{Options, serve};
use fieldgate_loadtests::load::{Identity, Outcome, Plan, Tally, Users};
use fieldgate_loadtests::rig::{http, ports, wait};

/// A backend that serves until the tests end.
fn backend() -> SocketAddr {
    let listen = ports::free();
    std::thread::spawn(move || serve(&Options::at(listen, "one")));
    wait::until_true(Duration::from_secs(10), "the backend", || http::connect(listen).is_ok()).unwrap();
    listen
}

fn plan(path: &str) -> Plan {
    Plan { path: path.to_owned(), requests: Some(50), connections: 4, ..Plan::new(backend()) }
}

/// Runs a plan by HTTP/1.1 and by HTTP/2; both must end with this one outcome for every request.
#[track_caller]
fn check(plan: Plan, status: u16, backend: &str, error: &str) {
    let wanted = Outcome { status, backend: backend.to_owned(), error: error.to_owned() };
    for plan in [plan.clone(), plan.http2(3)] {
        let version = plan.version;
        let tally = plan.run().unwrap();
        assert_eq!(tally.sent, 50, "{version:?}");
        assert_eq!(tally.outcomes, [(wanted.clone(), 50)].into(), "{version:?}");
        assert_eq!(tally.errors(), if error.is_empty() { 0 } else { 50 }, "{version:?}");
    }
}

#[test]
fn complete_answers_are_counted_by_backend() {
    check(plan("/"), 200, "one", "");
    check(plan("/bytes/100000"), 200, "one", "");
    check(plan("/trailers"), 200, "one", "");
    check(plan("/103"), 200, "one", "");
    check(plan("/status/503"), 503, "one", "");
    check(Plan { method: "HEAD".to_owned(), ..plan("/") }, 200, "one", "");
    check(Plan { method: "POST".to_owned(), body: 100_000, ..plan("/upload") }, 200, "one", "");
}

#[test]
fn what_fails_is_an_error_of_its_kind() {
    check(plan("/truncate"), 200, "one", "truncated");
    check(plan("/reset"), 0, "", "reset");
    check(Plan { timeout: Duration::from_millis(20), ..plan("/delay/5000") }, 0, "", "timeout");
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let plan = Plan { requests: Some(3), connections: 1, ..Plan::new(ports::free()) };
    for plan in [plan.clone(), plan.http2(1)] {
        let tally = plan.run().unwrap();
        assert_eq!((tally.sent, tally.errors()), (0, 3));
        assert_eq!(tally.connect_failures, [("refused".to_owned(), 3)].into());
    }
}

#[test]
fn every_user_is_one_workers() {
    let users = Users { count: 10, identity: Identity::Header("x-user".to_owned()) };
    for plan in [plan("/"), plan("/").http2(3)] {
        let tally = Plan { users: Some(users.clone()), ..plan }.run().unwrap();
        assert_eq!(tally.users.len(), 10);
        assert_eq!(tally.users.values().map(|record| record.count).sum::<u64>(), 50);
        assert!(tally.users.values().all(|record| record.path == ["one"]));
    }
}

#[test]
fn a_load_that_is_stopped_accounts_for_all_it_sent() {
    let running = Plan { requests: None, ..plan("/delay/1") }.start().unwrap();
    wait::until_true(Duration::from_secs(10), "some answers", || running.snapshot().completed() > 20)
        .unwrap();
    let tally: Tally = running.stop();
    assert_eq!(tally.outcomes.values().sum::<u64>(), tally.sent);
    assert_eq!(tally.failures(), 0, "{}", tally.describe_failures());
}
