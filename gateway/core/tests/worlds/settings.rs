//! Random pools and routes, and the changes that an operator makes to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    AdaptiveConcurrency, Admission, Backoff, Balance, Endpoint, Endpoints, HashBy, HashFunction, HealthCheck,
    Hedge, Localities, Locality, ObjectKey, Outlier, Pool, PoolKey, PoolLimits, Retry, RetryBudget, RetryOn,
    SlowStart, Spread,
};

use crate::dice::Dice;

/// Addresses that there are at all.
pub const ADDRESSES: usize = 24;
const ZONES: [&str; 3] = ["r/a", "r/b", "r/c"];

pub fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, place as u8], 80))
}

/// The inverse of `address`.
pub fn place(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(a) => a.ip().octets()[3] as usize,
        SocketAddr::V6(_) => unreachable!("there are none"),
    }
}

/// What stays the same in one world.
pub struct Shape {
    max_weight: u64,
    priorities: u64,
    zones: bool,
}

impl Shape {
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            max_weight: dice.one_of(&[1, 1, 5]),
            priorities: dice.one_of(&[1, 1, 2, 3]),
            zones: dice.percent(60),
        }
    }

    fn endpoint(&self, place: usize, dice: &mut Dice) -> Endpoint {
        let zone = |dice: &mut Dice| Arc::new(Locality::parse(dice.one_of(&ZONES)));
        Endpoint {
            weight: dice.between(1, self.max_weight) as u32,
            priority: dice.below(self.priorities) as u32,
            locality: self.zones.then(|| zone(dice)),
            draining: dice.percent(4),
            degraded: dice.percent(4),
            ..Endpoint::new(address(place))
        }
    }

    pub fn pool(&self, dice: &mut Dice) -> Pool {
        let mut places: Vec<usize> = (0..ADDRESSES).collect();
        let n = dice.between(1, 16);
        let endpoints = (0..n).map(|_| {
            let at = dice.below(places.len() as u64) as usize;
            self.endpoint(places.swap_remove(at), dice)
        });
        let endpoints = Endpoints::Static(endpoints.collect());
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "shop".into() };
        Pool {
            balance: balance(dice),
            spread: spread(dice),
            health: dice.percent(60).then(Arc::<HealthCheck>::default),
            outlier: dice.percent(60).then(|| Arc::new(outlier(dice))),
            limits: limits(dice),
            ..Pool::of(PoolKey { object, port: 0 }, endpoints)
        }
    }

    /// One thing becomes another.
    pub fn change(&self, pool: &Pool, dice: &mut Dice) -> Pool {
        let mut pool = pool.clone();
        let Endpoints::Static(endpoints) = &mut pool.endpoints else { unreachable!("all are given") };
        let any = dice.below(endpoints.len().max(1) as u64) as usize;
        match dice.below(16) {
            0..=3 => {
                for _ in 0..dice.between(1, 4) {
                    let place = dice.below(ADDRESSES as u64) as usize;
                    if endpoints.iter().all(|e| e.address != address(place)) {
                        endpoints.push(self.endpoint(place, dice));
                    }
                }
            }
            4..=6 => {
                for _ in 0..dice.between(1, 3) {
                    if endpoints.len() > usize::from(dice.percent(97)) {
                        let gone = dice.below(endpoints.len() as u64) as usize;
                        endpoints.remove(gone);
                    }
                }
            }
            7 | 8 if any < endpoints.len() => {
                endpoints[any] = self.endpoint(crate::settings::place(endpoints[any].address), dice);
            }
            9 if any < endpoints.len() => endpoints[any].draining = !endpoints[any].draining,
            10 => pool.balance = balance(dice),
            11 => pool.spread = spread(dice),
            12 => pool.outlier = dice.percent(60).then(|| Arc::new(outlier(dice))),
            13 | 14 => pool.limits = limits(dice),
            15 => pool.health = dice.percent(60).then(Arc::<HealthCheck>::default),
            // A change that changes nothing.
            _ => {}
        }
        pool
    }
}

fn balance(dice: &mut Dice) -> Balance {
    let by = |dice: &mut Dice| {
        Arc::new(HashBy { sources: Vec::new(), balance_factor: dice.one_of(&[0, 0, 110, 200]) })
    };
    match dice.below(9) {
        0 | 1 => Balance::RoundRobin,
        2 => Balance::Random,
        3 => Balance::LeastRequest { choices: 2, bias: 100 },
        4 => Balance::LeastRequest { choices: 4, bias: dice.one_of(&[0, 50, 200]) },
        5 => Balance::PeakEwma { decay: Duration::from_secs(10) },
        6 | 7 => Balance::RingHash {
            function: dice.one_of(&[HashFunction::XxHash, HashFunction::Murmur2]),
            min_size: 512,
            max_size: 4096,
            by: by(dice),
        },
        _ => Balance::Maglev { table_size: 2039, by: by(dice) },
    }
}

fn spread(dice: &mut Dice) -> Spread {
    let localities = match dice.below(6) {
        0 => Localities::Weighted(
            ZONES[..2].iter().map(|zone| (Locality::parse(zone), dice.between(0, 5) as u32)).collect(),
        ),
        1 => Localities::ZoneAware {
            own: Locality::parse(ZONES[0]),
            min_endpoints: 6,
            enabled: dice.one_of(&[100, 50]),
        },
        _ => Localities::Ignored,
    };
    let slow_start = SlowStart { window: Duration::from_secs(5), aggression: 100, min_weight: 10 };
    Spread {
        overprovisioning: dice.one_of(&[140, 140, 100, 200]),
        panic_threshold: dice.one_of(&[50, 50, 0, 20, 80]),
        fail_in_panic: dice.percent(12),
        localities,
        slow_start: dice.percent(12).then_some(slow_start),
    }
}

fn outlier(dice: &mut Dice) -> Outlier {
    let enforcing = |dice: &mut Dice| dice.one_of(&[100, 100, 50, 0]);
    Outlier {
        consecutive_5xx: dice.between(1, 6) as u32,
        enforcing_consecutive_5xx: enforcing(dice),
        consecutive_gateway_failure: dice.between(1, 6) as u32,
        enforcing_consecutive_gateway_failure: enforcing(dice),
        split_external_local_origin_errors: dice.percent(50),
        consecutive_local_origin_failure: dice.between(1, 6) as u32,
        interval: Duration::from_secs(dice.between(1, 5)),
        base_ejection_time: Duration::from_millis(dice.between(500, 5000)),
        max_ejection_time: Duration::from_secs(10),
        max_ejection_time_jitter: Duration::from_millis(dice.one_of(&[0, 700])),
        max_ejection_percent: dice.one_of(&[0, 10, 30, 50, 100]),
        success_rate_minimum_hosts: 3,
        success_rate_request_volume: 10,
        success_rate_stdev_factor: dice.one_of(&[1900, 1000]),
        failure_percentage_minimum_hosts: 2,
        failure_percentage_request_volume: 10,
        enforcing_failure_percentage: enforcing(dice),
        ..Outlier::default()
    }
}

fn limits(dice: &mut Dice) -> PoolLimits {
    let adaptive = AdaptiveConcurrency {
        min_rtt_interval: Duration::from_secs(dice.between(2, 20)),
        min_rtt_requests: 20,
        max_concurrency: 50,
        ..AdaptiveConcurrency::default()
    };
    let admission = Admission { window: Duration::from_secs(5), ..Admission::default() };
    PoolLimits {
        max_requests: dice.one_of(&[u32::MAX, u32::MAX, 10, 100]),
        max_retries: dice.one_of(&[u32::MAX, u32::MAX, 0, 3]),
        retry_budget: dice.one_of(&[
            RetryBudget::default(),
            RetryBudget { percent: 50, min: 0 },
            RetryBudget { percent: 100, min: 0 },
            RetryBudget { percent: 0, min: 1 },
        ]),
        adaptive: dice.percent(15).then(|| Arc::new(adaptive)),
        admission: dice.percent(15).then(|| Arc::new(admission)),
        ..PoolLimits::default()
    }
}

/// What a route says of tries, if anything.
pub fn retry(dice: &mut Dice) -> Option<Arc<Retry>> {
    if dice.percent(40) {
        return None;
    }
    let mut on = RetryOn::default();
    for _ in 0..dice.between(0, 4) {
        on = on.and(dice.one_of(&RetryOn::WORDS).1);
    }
    let hedge =
        Hedge { after: Duration::from_millis(dice.between(5, 100)), at_once: dice.between(2, 3) as u32 };
    Some(Arc::new(Retry {
        attempts: dice.between(0, 4) as u32,
        on,
        codes: vec![429, 500],
        per_try_timeout: dice.percent(60).then(|| Duration::from_millis(dice.between(10, 500))),
        backoff: dice.one_of(&[Backoff::default(), Backoff { base: Duration::ZERO, max: Duration::ZERO }]),
        hedge: dice.percent(30).then_some(hedge),
        ..Retry::default()
    }))
}
