//! Seeded worlds: workers that share a pool, servers behind it that fail, slow down, flap, refuse, go silent and come
//! back, operators that drain, scale and change, clients whose requests are retried, hedged, bound and given up. Whatever
//! happens, what core promises is checked at every step.
//!
//! A failure prints its seed. `SIMULATION_SEED` runs that world alone, `SIMULATION_STEPS` runs so many steps in all.

mod dice;
mod plan;
mod requests;
mod servers;
mod settings;
mod truth;
mod watch;
mod world;

use std::collections::BTreeMap;

use world::World;

/// Steps of one world.
const WORLD: u64 = 15_000;
/// Steps of all worlds, if nobody asks for more.
const STEPS: u64 = 1_500_000;

/// Says which world failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this world failed; to see it again: SIMULATION_SEED={}", self.0);
        }
    }
}

fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.replace('_', "").parse().unwrap_or_else(|_| panic!("{name}: {text} is no number")))
}

#[test]
fn what_core_promises_holds_whatever_happens() {
    let seeds = match asked("SIMULATION_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=asked("SIMULATION_STEPS").unwrap_or(STEPS).div_ceil(WORLD),
    };
    let many = seeds.clone().count() > 10;
    let mut steps = 0;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds {
        let named = Seed(seed);
        let mut world = World::new(seed);
        steps += world.run(WORLD);
        for (what, n) in world.watch.counts.iter().chain(&world.truth.ejections) {
            *counts.entry(what).or_default() += n;
        }
        drop(named);
    }
    println!("{steps} steps: {counts:#?}");
    // What does not happen proves nothing.
    for what in HAPPENS.iter().filter(|_| many) {
        assert!(counts.contains_key(what), "{what} never happened: {counts:#?}");
    }
}

const HAPPENS: [&str; 27] = [
    "admission",
    "affinity kept",
    "affinity lost",
    "answered",
    "at home by hash",
    "available",
    "budget",
    "by locality",
    "by weight",
    "cancelled",
    "concurrency",
    "consecutive_5xx",
    "consecutive_gateway_failure",
    "consecutive_local_origin_failure",
    "failed",
    "failure_percentage",
    "failures",
    "guess overruled",
    "hedged",
    "in turn",
    "movements",
    "no endpoint",
    "panic",
    "refused in panic",
    "requests",
    "success_rate",
    "within the bound of load",
];

/// The same seed is the same world, or a failure could not be seen again.
#[test]
fn a_world_replays() {
    let run = || {
        let mut world = World::new(7);
        world.run(3000);
        (world.now_ms, world.dice.roll(), world.watch.counts)
    };
    assert_eq!(run(), run());
}
