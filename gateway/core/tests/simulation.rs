//! A seeded life of a gateway in virtual time: workers, pools and failing servers, configuration that changes under
//! requests, and a look at every decision of core.
//!
//! `SIMULATION_SEED=n` runs one seed and shows its last events if it fails; `SIMULATION_STEPS=n` runs so many steps in
//! all.

#[path = "simulation/account.rs"]
mod account;
#[path = "simulation/census.rs"]
mod census;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/life.rs"]
mod life;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/requests.rs"]
mod requests;
#[path = "simulation/setup.rs"]
mod setup;
#[path = "simulation/sticky.rs"]
mod sticky;
#[path = "simulation/watch.rs"]
mod watch;
#[path = "simulation/world.rs"]
mod world;

use life::{Life, Statistics};

/// Steps of one seed; more seeds find more than longer lives.
const STEPS: u64 = 25_000;
const IN_ALL: u64 = 400_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text}, which is no number")))
}

/// Or a seed that fails could not be looked at.
#[test]
fn a_seed_replays() {
    let life = || {
        let mut life = Life::new(99, false);
        life.run(STEPS / 5);
        (life.step, life.now_ms, life.world.next(), life.chance.next(), std::mem::take(&mut life.statistics))
    };
    assert_eq!(life(), life());
}

#[test]
fn nothing_gets_lost() {
    let steps = number("SIMULATION_STEPS");
    let (seeds, traced) = match number("SIMULATION_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (1..1 + steps.unwrap_or(IN_ALL).div_ceil(STEPS), false),
    };
    let (mut all, mut steps) = (Statistics::default(), 0);
    for seed in seeds.clone() {
        let mut life = Life::new(seed, traced);
        life.run(STEPS);
        steps += life.step;
        all.add(&life.statistics);
    }
    println!("{steps} steps of seeds {seeds:?}: {all:#?}");
}
