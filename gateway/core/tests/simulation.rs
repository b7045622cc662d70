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

use life::Life;

/// Steps of one seed; more seeds find more than longer lives.
const STEPS: u64 = 25_000;
const IN_ALL: u64 = 300_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text}, which is no number")))
}

#[test]
fn nothing_gets_lost() {
    let steps = number("SIMULATION_STEPS");
    let (seeds, traced) = match number("SIMULATION_SEED") {
        Some(seed) => (seed..seed + 1, true),
        None => (1..1 + steps.unwrap_or(IN_ALL).div_ceil(STEPS), false),
    };
    for seed in seeds {
        let mut life = Life::new(seed, traced);
        life.run(STEPS);
        println!("seed {seed}: {} steps, {} s, {:?}", life.step, life.now_ms / 1000, life.statistics);
    }
}
