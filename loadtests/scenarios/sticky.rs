//! A sticky split moves each user once: through a ramp from 0 to 100 in twenty steps nobody goes back, and at every
//! step the share that has moved is the weight, within what chance allows.

use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_loadtests::load::{Identity, Plan, Running, Tally, Users};
use fieldgate_loadtests::rig::{config, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

const STEPS: u32 = 20;
/// Standard deviations of a binomial share that one step may be off: chance exceeds it once in 150,000 steps.
const DEVIATIONS: f64 = 4.5;
const STEP: Duration = Duration::from_mins(1);

pub fn run(context: &Context) -> Outcome {
    let users = context.count(1000, 500);
    let mut figures = Figures::default();
    let ways = [
        ("header", "  sticky: {header: {name: x-user}}\n", Identity::Header("x-user".to_owned())),
        ("cookie", "  sticky: {cookie: {name: user}}\n", Identity::Cookie("user".to_owned())),
        (
            "issued cookie",
            "  sticky: {cookie: {name: fg-shop, issue: true, ttl: 30d}}\n",
            Identity::CookieJar,
        ),
    ];
    for (name, spec, identity) in ways {
        let worst = ramp(context, spec, Users { count: users, identity })
            .map_err(|error| format!("{name}: {error}"))?;
        figures.add(format!("by {name}: {users} users moved once each; worst step off by {worst:.1} sigma"));
    }
    existing_sessions(context).map_err(|error| format!("existingSessions: {error}"))?;
    figures.add("existingSessions: carriers of the cookie stayed, others followed the weights");
    Ok(figures)
}

fn weights(new: u32) -> String {
    config::route("shop", &[("old", 100 - new), ("new", new)])
}

fn ramp(context: &Context, spec: &str, users: Users) -> Result<f64, String> {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["old", "new"])?;
    stage.config.write("route", &weights(0))?;
    stage.config.write("split", &config::split_policy("shop-sticky", "shop", spec))?;
    let gateway = stage.gateway(&context.options())?;
    let count = users.count;
    let load = Plan { users: Some(users), ..Plan::new(address) }.start()?;
    await_round(&load, count)?;
    let mut worst: f64 = 0.0;
    for step in 1..=STEPS {
        let weight = step * 100 / STEPS;
        gateway.change(|| stage.config.write("route", &weights(weight)))?;
        let tally = await_round(&load, count)?;
        worst = worst.max(judge_step(&tally, count, weight)?);
    }
    let tally = load.stop();
    ensure_flawless("ramp", &tally)?;
    for (user, record) in &tally.users {
        ensure(record.path == ["old", "new"], || format!("user {user} went {}", record.path.join(" -> ")))?;
    }
    Ok(worst)
}

/// Waits until each user was answered twice more: the first of these may have begun before the change.
fn await_round(load: &Running, users: usize) -> Result<Tally, String> {
    let before = load.snapshot();
    let answered = |tally: &Tally, user| tally.users.get(&user).map_or(0, |record| record.count);
    wait::until(STEP, "two answers to every user", || {
        let now = load.snapshot();
        (0..users).all(|user| answered(&now, user) >= answered(&before, user) + 2).then_some(now)
    })
    .map_err(|error| format!("{error}; {}", load.snapshot().describe_failures()))
}

fn judge_step(tally: &Tally, users: usize, weight: u32) -> Result<f64, String> {
    let moved =
        tally.users.values().filter(|record| record.path.last().is_some_and(|last| last == "new")).count();
    let (users, share) = (users as f64, f64::from(weight) / 100.0);
    let deviation = (users * share * (1.0 - share)).sqrt();
    let off = (moved as f64 - users * share).abs();
    ensure(off <= DEVIATIONS * deviation, || {
        format!(
            "at weight {weight}, {moved} of {users} users have moved; allowed is {:.0} off",
            DEVIATIONS * deviation
        )
    })?;
    Ok(if deviation > 0.0 { off / deviation } else { 0.0 })
}

fn existing_sessions(context: &Context) -> Result<(), String> {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["old", "new"])?;
    let spec = "  sticky: {header: {name: x-user}}\n  existingSessions: {cookie: JSESSIONID, stayOn: old}\n";
    stage.config.write("route", &weights(50))?;
    stage.config.write("split", &config::split_policy("shop-sticky", "shop", spec))?;
    let gateway = stage.gateway(&context.options())?;
    let half = requests_of_users(address, true)?;
    ensure(half == (200, 0), || format!("at 50, carriers of the cookie went (old, new) = {half:?}"))?;
    let half = requests_of_users(address, false)?;
    ensure(half.0 > 0 && half.1 > 0, || format!("at 50, others went (old, new) = {half:?}"))?;
    gateway.change(|| stage.config.write("route", &weights(100)))?;
    let full = requests_of_users(address, true)?;
    ensure(full == (200, 0), || format!("at 100, carriers of the cookie went (old, new) = {full:?}"))?;
    let full = requests_of_users(address, false)?;
    ensure(full == (0, 200), || format!("at 100, others went (old, new) = {full:?}"))
}

/// Sends 200 requests of 50 users; gives how many went to old and to new.
fn requests_of_users(address: SocketAddr, session: bool) -> Result<(u64, u64), String> {
    let cookie = ("cookie".to_owned(), "JSESSIONID=abc123".to_owned());
    let users = Users { count: 50, identity: Identity::Header("x-user".to_owned()) };
    let tally = Plan {
        connections: 1,
        requests: Some(200),
        users: Some(users),
        headers: if session { vec![cookie] } else { Vec::new() },
        ..Plan::new(address)
    }
    .run()?;
    ensure_flawless("sessions", &tally)?;
    let backends = tally.backends();
    let of = |name| backends.get(name).copied().unwrap_or_default();
    Ok((of("old"), of("new")))
}
