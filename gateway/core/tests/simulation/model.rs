//! What the simulation knows of endpoints from what it did to them and from what it was told, to compare with what core
//! says of them.

use std::sync::Arc;

use fieldgate_core::balance::{CompiledEndpoint, CompiledPool, EndpointState};
use fieldgate_core::ir::Outlier;
use fieldgate_core::outlier::{Ejection, Reason, Seen};
use rustc_hash::FxHashMap;

use crate::setup::LONGEST_INTERVAL_MS;

/// Of one state, which may be that of an endpoint of an old snapshot.
struct Known {
    state: Arc<EndpointState>,
    healthy: bool,
    degraded: bool,
    drained: bool,
    until_ms: u64,
    /// Tries since the last that was no failure, whatever kind of failures; `None` is not known.
    failures: Option<u32>,
    last_failure_ms: u64,
    /// Ejected and not answered since, where nothing is configured.
    doubted: bool,
}

#[derive(Default)]
pub struct Model {
    known: FxHashMap<usize, Known>,
    /// Goes up with each change that may bear on a choice.
    pub version: u64,
}

/// What is wrong, in words.
pub type Checked = Result<(), String>;

fn key(state: &Arc<EndpointState>) -> usize {
    Arc::as_ptr(state) as usize
}

fn known<'m>(all: &'m mut FxHashMap<usize, Known>, state: &Arc<EndpointState>) -> &'m mut Known {
    all.entry(key(state)).or_insert_with(|| Known {
        state: state.clone(),
        healthy: true,
        degraded: false,
        drained: false,
        until_ms: 0,
        failures: Some(0),
        last_failure_ms: 0,
        doubted: false,
    })
}

impl Model {
    /// Another snapshot has come. States that nobody holds any more are forgotten.
    pub fn compiled(&mut self, pool: &CompiledPool) {
        self.version += 1;
        self.known.retain(|_, known| Arc::strong_count(&known.state) > 1);
        for endpoint in &pool.endpoints {
            let known = known(&mut self.known, &endpoint.state);
            if pool.ir.outlier.is_none() {
                // Rows are not counted meanwhile.
                known.failures = None;
            }
        }
    }

    pub fn set_healthy(&mut self, state: &Arc<EndpointState>, healthy: bool) -> Checked {
        self.version += 1;
        let known = known(&mut self.known, state);
        let news = state.set_healthy(healthy);
        if news && healthy {
            known.until_ms = 0;
            known.doubted = false;
        }
        let right = news == (known.healthy != healthy);
        known.healthy = healthy;
        if right { Ok(()) } else { Err(format!("set_healthy({healthy}) of {} says {news}", state.address)) }
    }

    pub fn set_degraded(&mut self, state: &Arc<EndpointState>, degraded: bool) {
        self.version += 1;
        known(&mut self.known, state).degraded = degraded;
        state.set_degraded(degraded);
    }

    pub fn set_drained(&mut self, state: &Arc<EndpointState>, drained: bool) {
        self.version += 1;
        known(&mut self.known, state).drained = drained;
        state.set_drained(drained);
    }

    /// `report` was called, and said this.
    pub fn reported(
        &mut self,
        pool: &CompiledPool,
        at: usize,
        seen: Seen,
        said: Option<Ejection>,
        now_ms: u64,
    ) -> Checked {
        let state = &pool.endpoints[at].state;
        let known = known(&mut self.known, state);
        match seen {
            Seen::Status(..500) => known.failures = Some(0),
            _ => {
                known.failures = known.failures.map(|n| n + 1);
                known.last_failure_ms = now_ms;
            }
        }
        if pool.ir.outlier.is_none() && matches!(seen, Seen::Status(_)) {
            self.version += u64::from(known.until_ms != 0);
            (known.until_ms, known.doubted, known.failures) = (0, false, None);
        }
        match said {
            Some(ejection) if ejection.address != state.address => {
                Err(format!("{ejection:?} after a try at {}", state.address))
            }
            Some(ejection) => self.ejected(pool, &ejection, now_ms),
            None => Ok(()),
        }
    }

    /// Somebody said that an endpoint of this pool is ejected, or would be.
    pub fn ejected(&mut self, pool: &CompiledPool, ejection: &Ejection, now_ms: u64) -> Checked {
        let Some(endpoint) = pool.endpoints.iter().find(|e| e.address() == ejection.address) else {
            return Err(format!("{ejection:?} is of no endpoint of the pool"));
        };
        let of = known(&mut self.known, &endpoint.state);
        justified(of, pool.ir.outlier.as_deref(), ejection, now_ms)?;
        if !ejection.enforced {
            return Ok(());
        }
        if of.until_ms > now_ms {
            return Err(format!("{ejection:?}, but it is ejected until {}", of.until_ms));
        }
        of.until_ms = ejection.until_ms;
        of.doubted = pool.ir.outlier.is_none();
        self.version += 1;
        match pool.ir.outlier.as_deref() {
            None => Ok(()),
            Some(outlier) => {
                let ejected = pool.endpoints.iter().filter(|e| self.is_ejected(e, now_ms)).count();
                let most = (pool.endpoints.len() * outlier.max_ejection_percent as usize / 100).max(1);
                let n = pool.endpoints.len();
                if ejected <= most {
                    return Ok(());
                }
                Err(format!(
                    "{ejection:?}: {ejected} of {n} are ejected; {most} may be (max_ejection_percent)"
                ))
            }
        }
    }

    /// Whether core agrees about the endpoints of a pool.
    pub fn agrees(&mut self, pool: &CompiledPool, now_ms: u64) -> Checked {
        for endpoint in &pool.endpoints {
            let state = &endpoint.state;
            let of = known(&mut self.known, state);
            let here = (of.healthy, of.degraded, of.drained, of.until_ms > now_ms);
            let there =
                (state.is_healthy(), state.is_degraded(), state.is_drained(), state.is_ejected(now_ms));
            if here != there {
                return Err(format!(
                    "{} is (healthy, degraded, drained, ejected) {there:?} and should be {here:?}",
                    state.address
                ));
            }
        }
        Ok(())
    }

    pub fn is_healthy(&self, endpoint: &CompiledEndpoint) -> bool {
        self.known.get(&key(&endpoint.state)).is_none_or(|k| k.healthy)
    }

    pub fn is_degraded(&self, endpoint: &CompiledEndpoint) -> bool {
        endpoint.ir.degraded || self.known.get(&key(&endpoint.state)).is_some_and(|k| k.degraded)
    }

    pub fn is_drained(&self, endpoint: &CompiledEndpoint) -> bool {
        endpoint.ir.draining || self.known.get(&key(&endpoint.state)).is_some_and(|k| k.drained)
    }

    pub fn is_ejected(&self, endpoint: &CompiledEndpoint, now_ms: u64) -> bool {
        self.known.get(&key(&endpoint.state)).is_some_and(|k| k.until_ms > now_ms)
    }
}

/// Whether enough has happened for such a verdict, and it is for no longer than it may be.
fn justified(of: &Known, outlier: Option<&Outlier>, ejection: &Ejection, now_ms: u64) -> Checked {
    let Some(outlier) = outlier else {
        let right = matches!(ejection.reason, Reason::Refused | Reason::Failures);
        let for_ms = ejection.until_ms - now_ms;
        return if right && (1000..=30_000).contains(&for_ms) {
            Ok(())
        } else {
            Err(format!("{ejection:?}"))
        };
    };
    let in_a_row = |least: u32| least > 0 && of.failures.is_none_or(|n| n >= least);
    // The interval may have been longer when it began.
    let lately = of.last_failure_ms + LONGEST_INTERVAL_MS + 2_000 >= now_ms;
    let right = match ejection.reason {
        Reason::Consecutive5xx => in_a_row(outlier.consecutive_5xx),
        Reason::ConsecutiveGatewayFailure => in_a_row(outlier.consecutive_gateway_failure),
        Reason::ConsecutiveLocalOriginFailure => in_a_row(outlier.consecutive_local_origin_failure),
        Reason::SuccessRate | Reason::FailurePercentage => lately,
        Reason::Refused | Reason::Failures => false,
    };
    if !right {
        return Err(format!(
            "{ejection:?} after {:?} failures in a row, the last at {}",
            of.failures, of.last_failure_ms
        ));
    }
    let base = outlier.base_ejection_time.as_millis() as u64;
    let longest = base.max(outlier.max_ejection_time.as_millis() as u64)
        + outlier.max_ejection_time_jitter.as_millis() as u64;
    if ejection.enforced && !(base..=longest).contains(&(ejection.until_ms - now_ms)) {
        return Err(format!("{ejection:?} at {now_ms}: not from {base} to {longest} ms"));
    }
    Ok(())
}
