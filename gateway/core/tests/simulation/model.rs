//! What the simulation knows of endpoints from what it did to them and from what it was told, to compare with what core
//! says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
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
    rows: Rows,
    doubts: Doubts,
}

/// What came in a row, as Envoy counts it.
#[derive(Default)]
struct Rows {
    server_errors: u32,
    gateway_errors: u32,
    local: u32,
}

/// What is remembered of an endpoint where nothing is configured.
#[derive(Default)]
struct Doubts {
    failures: u32,
    /// Ejections without an answer since.
    ejections: u32,
}

#[derive(Default)]
pub struct Model {
    known: FxHashMap<usize, Known>,
    /// Rates follow the address, also when it comes back.
    last_failure_ms: BTreeMap<SocketAddr, u64>,
    /// Pools in which rates are judged.
    judged: BTreeSet<usize>,
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
        rows: Rows::default(),
        doubts: Doubts::default(),
    })
}

impl Model {
    /// Another snapshot has come. States that nobody holds any more are forgotten.
    pub fn compiled(&mut self, pool: &CompiledPool) {
        self.known.retain(|_, known| Arc::strong_count(&known.state) > 1);
        for endpoint in &pool.endpoints {
            known(&mut self.known, &endpoint.state);
        }
    }

    /// A worker's second is over. What was seen is forgotten once detection is gone.
    pub fn ticked(&mut self, pool: &CompiledPool, slot: usize) {
        if pool.ir.outlier.is_some() {
            self.judged.insert(slot);
        } else if self.judged.remove(&slot) {
            for endpoint in &pool.endpoints {
                known(&mut self.known, &endpoint.state).rows = Rows::default();
            }
        }
    }

    pub fn set_healthy(&mut self, state: &Arc<EndpointState>, healthy: bool) -> Checked {
        let known = known(&mut self.known, state);
        let news = state.set_healthy(healthy);
        if news && healthy {
            known.until_ms = 0;
            known.doubts = Doubts::default();
        }
        let right = news == (known.healthy != healthy);
        known.healthy = healthy;
        if right { Ok(()) } else { Err(format!("set_healthy({healthy}) of {} says {news}", state.address)) }
    }

    pub fn set_degraded(&mut self, state: &Arc<EndpointState>, degraded: bool) {
        known(&mut self.known, state).degraded = degraded;
        state.set_degraded(degraded);
    }

    pub fn set_drained(&mut self, state: &Arc<EndpointState>, drained: bool) {
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
        let endpoint = &pool.endpoints[at];
        let others = self.ejected_of(pool, now_ms);
        let of = known(&mut self.known, &endpoint.state);
        if !matches!(seen, Seen::Status(..500)) {
            self.last_failure_ms.insert(endpoint.address(), now_ms);
        }
        let is_ejected = of.until_ms > now_ms;
        let right = match pool.ir.outlier.as_deref() {
            None => of.doubt(seen, now_ms) == said.map(|e| (e.reason, e.until_ms)),
            // What it does while it is ejected is no reason to eject it again.
            Some(_) if is_ejected => said.is_none(),
            Some(outlier) => {
                let row = of.rows.count(outlier, seen);
                let room = others == 0 || others < most_ejected(outlier, pool);
                match (row, said) {
                    (None, said) => said.is_none(),
                    (Some((reason, 0)), said) => said.is_some_and(|e| e.reason == reason && !e.enforced),
                    (Some((_, enforcing)), None) => enforcing > 0 && !room,
                    (Some((reason, enforcing)), Some(e)) => {
                        e.reason == reason && (e.enforced && room || !e.enforced && enforcing < 100)
                    }
                }
            }
        };
        if !right || said.is_some_and(|e| e.address != endpoint.address()) {
            let address = endpoint.address();
            return Err(format!(
                "{said:?} after {seen:?} of {address}, ejected: {is_ejected}, {others} in all"
            ));
        }
        said.map_or(Ok(()), |ejection| self.ejected(pool, &ejection, now_ms))
    }

    /// Somebody said that an endpoint of this pool is ejected, or would be.
    pub fn ejected(&mut self, pool: &CompiledPool, ejection: &Ejection, now_ms: u64) -> Checked {
        let Some(endpoint) = pool.endpoints.iter().find(|e| e.address() == ejection.address) else {
            return Err(format!("{ejection:?} is of no endpoint of the pool"));
        };
        let of = known(&mut self.known, &endpoint.state);
        if !ejection.enforced {
            return Ok(());
        }
        if of.until_ms > now_ms {
            return Err(format!("{ejection:?}, but it is ejected until {}", of.until_ms));
        }
        of.until_ms = ejection.until_ms;
        let last_failure_ms = self.last_failure_ms.get(&ejection.address).copied().unwrap_or(0);
        let Some(outlier) = pool.ir.outlier.as_deref() else { return Ok(()) };
        of.rows = Rows::default();
        check_time(outlier, ejection, last_failure_ms, now_ms)?;
        let (ejected, most, n) =
            (self.ejected_of(pool, now_ms), most_ejected(outlier, pool), pool.endpoints.len());
        if ejected > most {
            return Err(format!(
                "{ejection:?}: {ejected} of {n} are ejected; {most} may be (max_ejection_percent)"
            ));
        }
        Ok(())
    }

    fn ejected_of(&self, pool: &CompiledPool, now_ms: u64) -> usize {
        pool.endpoints.iter().filter(|e| self.is_ejected(e, now_ms)).count()
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

/// One may always be.
fn most_ejected(outlier: &Outlier, pool: &CompiledPool) -> usize {
    (pool.endpoints.len() * outlier.max_ejection_percent as usize / 100).max(1)
}

/// Whether an ejection is for no longer than it may be, and for nothing that is long past.
fn check_time(outlier: &Outlier, ejection: &Ejection, last_failure_ms: u64, now_ms: u64) -> Checked {
    // The interval may have been longer when it began.
    if last_failure_ms + LONGEST_INTERVAL_MS + 2_000 < now_ms {
        return Err(format!("{ejection:?} at {now_ms}, though the last failure was at {last_failure_ms}"));
    }
    let base = outlier.base_ejection_time.as_millis() as u64;
    let longest = base.max(outlier.max_ejection_time.as_millis() as u64)
        + outlier.max_ejection_time_jitter.as_millis() as u64;
    if !(base..=longest).contains(&(ejection.until_ms - now_ms)) {
        return Err(format!("{ejection:?} at {now_ms}: not from {base} to {longest} ms"));
    }
    Ok(())
}

impl Rows {
    /// Which row is full with this, and how many percent of such are enforced.
    fn count(&mut self, outlier: &Outlier, seen: Seen) -> Option<(Reason, u32)> {
        let full = |row: &mut u32, enough: u32| {
            *row += u32::from(enough > 0);
            let full = enough > 0 && *row >= enough;
            if full {
                *row = 0;
            }
            full
        };
        let status = match seen {
            Seen::Status(status) => status,
            _ if outlier.split_external_local_origin_errors => {
                return full(&mut self.local, outlier.consecutive_local_origin_failure).then_some((
                    Reason::ConsecutiveLocalOriginFailure,
                    outlier.enforcing_consecutive_local_origin_failure,
                ));
            }
            _ => 503,
        };
        if matches!(seen, Seen::Status(_)) {
            self.local = 0;
        }
        if status < 500 {
            (self.server_errors, self.gateway_errors) = (0, 0);
            return None;
        }
        let gateway = match status {
            502..=504 => full(&mut self.gateway_errors, outlier.consecutive_gateway_failure),
            _ => {
                self.gateway_errors = 0;
                false
            }
        };
        let server = full(&mut self.server_errors, outlier.consecutive_5xx);
        let by_server = (Reason::Consecutive5xx, outlier.enforcing_consecutive_5xx);
        let by_gateway = (Reason::ConsecutiveGatewayFailure, outlier.enforcing_consecutive_gateway_failure);
        match (server, gateway) {
            // Of two, one that is enforced.
            (true, true) if by_server.1 == 0 => Some(by_gateway),
            (true, _) => Some(by_server),
            (false, true) => Some(by_gateway),
            (false, false) => None,
        }
    }
}

impl Known {
    /// What becomes of it where nothing is configured: ejected for this reason, until then.
    fn doubt(&mut self, seen: Seen, now_ms: u64) -> Option<(Reason, u64)> {
        let reason = match seen {
            Seen::Status(_) => {
                self.doubts = Doubts::default();
                self.until_ms = 0;
                return None;
            }
            Seen::ConnectFailed => Reason::Refused,
            Seen::Reset | Seen::TimedOut => {
                self.doubts.failures += 1;
                Reason::Failures
            }
        };
        let enough = reason == Reason::Refused || self.doubts.failures >= 3 || self.doubts.ejections > 0;
        if !enough || self.until_ms > now_ms {
            return None;
        }
        let seconds = (1u64 << self.doubts.ejections.min(5)).min(30);
        self.doubts = Doubts { failures: 0, ejections: self.doubts.ejections + 1 };
        Some((reason, now_ms + seconds * 1000))
    }
}
