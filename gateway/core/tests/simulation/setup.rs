//! Pools and routes by chance, and how they change.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::{
    self, AdaptiveConcurrency, Admission, Backoff, Balance, HashBy, HashFunction, HealthCheck, Localities,
    Locality, Outlier, PoolLimits, Retry, RetryBudget, RetryOn, SlowStart, Spread,
};

use crate::random::Random;
use crate::world::address;

/// Servers that a pool can have as endpoints.
pub const SERVERS: u64 = 14;

/// Between looks at rates.
pub const LONGEST_INTERVAL_MS: u64 = 5_000;

const ZONES: [&str; 3] = ["a", "b", "c"];

pub fn pool(slot: usize, random: &mut Random) -> ir::Pool {
    let object =
        ir::ObjectKey { kind: "Pool", namespace: "default".into(), name: format!("pool-{slot}").into() };
    let key = ir::PoolKey { object, port: 0 };
    let mut pool = ir::Pool::of(key, listed(endpoints(slot, random)));
    if random.chance(20) {
        let name = ir::DnsName {
            host: "shop.example".into(),
            refresh: Duration::from_secs(5),
            endpoint: ir::Endpoint::new(address(slot, 0)),
        };
        pool.endpoints = ir::Endpoints::Dns { fixed: Vec::new(), names: vec![name] };
    }
    pool.balance = balance(random);
    settle(&mut pool, random);
    pool
}

/// The same pool after some change.
pub fn changed(slot: usize, before: &CompiledPool, random: &mut Random) -> CompiledPool {
    let known: Vec<ir::Endpoint> = before.endpoints.iter().map(|e| e.ir.clone()).collect();
    if let (ir::Endpoints::Dns { .. }, true) = (&before.ir.endpoints, random.chance(70)) {
        let now = if random.chance(25) { endpoints(slot, random) } else { rescaled(slot, known, random) };
        return before.with_endpoints(&now);
    }
    let ir = changed_settings(slot, &before.ir, known, random);
    CompiledPool::compile(Some(before), Arc::new(ir), slot as u32)
}

fn changed_settings(
    slot: usize,
    before: &ir::Pool,
    known: Vec<ir::Endpoint>,
    random: &mut Random,
) -> ir::Pool {
    let mut pool = before.clone();
    match random.below(12) {
        0 => pool.balance = balance(random),
        1 => settle(&mut pool, random),
        2 => pool.limits = limits(random),
        3 => pool.outlier = outlier(random),
        4 => pool.endpoints = listed(endpoints(slot, random)),
        _ => pool.endpoints = listed(rescaled(slot, known, random)),
    }
    if pool.balance.hash_by().is_some() {
        pool.spread.localities = Localities::Ignored;
    }
    pool
}

fn listed(endpoints: Vec<ir::Endpoint>) -> ir::Endpoints {
    ir::Endpoints::Static(endpoints)
}

fn settle(pool: &mut ir::Pool, random: &mut Random) {
    pool.spread = spread(random);
    if pool.balance.hash_by().is_some() {
        pool.spread.localities = Localities::Ignored;
    }
    pool.health = random.chance(60).then(|| Arc::new(HealthCheck::default()));
    pool.outlier = outlier(random);
    pool.limits = limits(random);
}

fn endpoints(slot: usize, random: &mut Random) -> Vec<ir::Endpoint> {
    if random.chance(2) {
        return Vec::new();
    }
    let (n, first) = (random.between(1, 11), random.below(SERVERS));
    let (weighted, levels) = (random.chance(50), random.chance(35));
    let one = |i| {
        let mut endpoint = ir::Endpoint::new(address(slot, (first + i) % SERVERS));
        endpoint.weight = if weighted { random.between(1, 8) as u32 } else { 1 };
        endpoint.priority = if levels { random.below(3) as u32 * 2 } else { 0 };
        endpoint.locality = Some(Arc::new(Locality::of_zone(random.one_of::<&str>(&ZONES))));
        endpoint.degraded = random.chance(5);
        endpoint.draining = random.chance(5);
        endpoint
    };
    (0..n).map(one).collect()
}

/// One more, one less, or one with another weight, or on its way out.
fn rescaled(slot: usize, mut endpoints: Vec<ir::Endpoint>, random: &mut Random) -> Vec<ir::Endpoint> {
    let at = random.below(endpoints.len().max(1) as u64) as usize;
    match random.below(5) {
        0 if endpoints.len() > 1 => drop(endpoints.remove(at)),
        1 if !endpoints.is_empty() => endpoints[at].draining = !endpoints[at].draining,
        2 if !endpoints.is_empty() => endpoints[at].weight = random.between(1, 8) as u32,
        3 if endpoints.len() > 1 => endpoints.swap_remove(0).draining = false,
        _ => {
            let new = address(slot, random.below(SERVERS));
            if endpoints.iter().all(|e| e.address != new) {
                endpoints.insert(at, ir::Endpoint::new(new));
            }
        }
    }
    endpoints
}

fn balance(random: &mut Random) -> Balance {
    let by = |random: &mut Random| {
        Arc::new(HashBy { sources: Vec::new(), balance_factor: *random.one_of(&[0, 0, 125, 200]) })
    };
    match random.below(8) {
        0 => Balance::RoundRobin,
        1 => Balance::Random,
        2 => Balance::PeakEwma { decay: Duration::from_secs(random.between(1, 10)) },
        3 => Balance::RingHash {
            function: *random.one_of(&[HashFunction::XxHash, HashFunction::Murmur2]),
            min_size: *random.one_of(&[256, 1024]),
            max_size: 4096,
            by: by(random),
        },
        4 => Balance::Maglev { table_size: *random.one_of(&[251, 1021]), by: by(random) },
        5 => Balance::LeastRequest {
            choices: random.between(2, 5) as u32,
            bias: *random.one_of(&[0, 50, 100]),
        },
        6 => Balance::RoundRobin,
        _ => Balance::default(),
    }
}

fn spread(random: &mut Random) -> Spread {
    let zone = |random: &mut Random| Locality::of_zone(random.one_of::<&str>(&ZONES));
    let localities = match random.below(10) {
        0 | 1 => Localities::Weighted(
            ZONES.iter().map(|zone| (Locality::of_zone(zone), random.below(4) as u32)).collect(),
        ),
        2 => {
            Localities::ZoneAware { own: zone(random), min_endpoints: 3, enabled: *random.one_of(&[50, 100]) }
        }
        _ => Localities::Ignored,
    };
    let slow_start = random.chance(20).then(|| SlowStart {
        window: Duration::from_millis(random.between(500, 10_000)),
        aggression: *random.one_of(&[50, 100, 200]),
        min_weight: 10,
    });
    Spread {
        overprovisioning: *random.one_of(&[100, 140, 140, 200]),
        panic_threshold: *random.one_of(&[0, 30, 50, 50, 100]),
        fail_in_panic: random.chance(10),
        localities,
        slow_start,
    }
}

fn outlier(random: &mut Random) -> Option<Arc<Outlier>> {
    let usual = Outlier::default();
    let settings = Outlier {
        consecutive_5xx: random.between(0, 6) as u32,
        enforcing_consecutive_5xx: *random.one_of(&[0, 50, 100, 100]),
        consecutive_gateway_failure: random.between(0, 5) as u32,
        enforcing_consecutive_gateway_failure: *random.one_of(&[0, 100]),
        split_external_local_origin_errors: random.chance(50),
        consecutive_local_origin_failure: random.between(0, 5) as u32,
        interval: Duration::from_millis(random.between(1000, LONGEST_INTERVAL_MS)),
        base_ejection_time: Duration::from_millis(random.between(200, 5000)),
        max_ejection_time: Duration::from_millis(random.between(1000, 20_000)),
        max_ejection_time_jitter: Duration::from_millis(*random.one_of(&[0, 700])),
        max_ejection_percent: *random.one_of(&[0, 10, 30, 50, 100]),
        success_rate_minimum_hosts: 3,
        success_rate_request_volume: 10,
        success_rate_stdev_factor: *random.one_of(&[1000, 1900]),
        failure_percentage_minimum_hosts: 2,
        failure_percentage_request_volume: 10,
        failure_percentage_threshold: 60,
        enforcing_failure_percentage: *random.one_of(&[0, 100]),
        ..usual
    };
    random.chance(65).then(|| Arc::new(settings))
}

fn limits(random: &mut Random) -> PoolLimits {
    let some = |random: &mut Random, percent, most| {
        if random.chance(percent) { random.between(1, most) as u32 } else { u32::MAX }
    };
    PoolLimits {
        max_requests: some(random, 30, 80),
        max_retries: some(random, 30, 6),
        max_requests_per_endpoint: some(random, 20, 12),
        max_pending: random.between(0, 10) as u32,
        queue_timeout: random.chance(50).then(|| Duration::from_millis(random.between(20, 600))),
        retry_budget: RetryBudget {
            percent: *random.one_of(&[0, 20, 20, 50, 100]),
            min: random.between(0, 4) as u32,
        },
        adaptive: random.chance(12).then(|| {
            Arc::new(AdaptiveConcurrency {
                min_concurrency: random.between(1, 4) as u32,
                max_concurrency: random.between(10, 60) as u32,
                min_rtt_interval: Duration::from_secs(5),
                min_rtt_requests: 20,
                ..AdaptiveConcurrency::default()
            })
        }),
        admission: random
            .chance(12)
            .then(|| Arc::new(Admission { window: Duration::from_secs(5), ..Admission::default() })),
        ..PoolLimits::default()
    }
}

/// What a route says of retries; most say nothing.
pub fn retry(random: &mut Random) -> Option<Arc<Retry>> {
    let words = [
        "5xx",
        "gateway-error,reset",
        "connect-failure",
        "reset-before-request,refused-stream",
        "retriable-4xx,retriable-status-codes,reset",
    ];
    let on =
        random.one_of(&words).split(',').filter_map(RetryOn::word).fold(RetryOn::default(), RetryOn::and);
    let retry = Retry {
        attempts: random.between(0, 4) as u32,
        on,
        codes: vec![503],
        per_try_timeout: random.chance(50).then(|| Duration::from_millis(random.between(50, 800))),
        backoff: Backoff { base: Duration::from_millis(random.below(40)), max: Duration::from_millis(250) },
        retry_after: random.chance(40).then(|| Duration::from_secs(2)),
        ..Retry::default()
    };
    random.chance(70).then(|| Arc::new(retry))
}
