//! Faults on purpose: a request is held for a while, or answered with an error (Envoy's fault filter; flags `DI`, `FI`).

use fieldgate_core::fault::FaultDecision;
use fieldgate_core::ir::FaultAnswer;

use super::tries::unless_gone;
use super::{Forward, Log, Request};
use crate::telemetry::PoolEvent;
use crate::worker::Worker;
use crate::worker::local::Answer;
use crate::worker::side::Side;

/// What becomes of a request that has a fault coming to it: it goes on after its delay, or ends with this answer.
pub(super) async fn suffer(
    worker: &Worker,
    to: &Forward<'_>,
    fault: &FaultDecision,
    down: &mut Side,
    request: &mut Request,
    log: &mut Log<'_>,
) -> Result<(), Answer> {
    if let Some(delay) = fault.delay {
        log.flags = "DI";
        worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::Fault("delay"));
        // A client that goes away is found out by what comes after.
        let _ = unless_gone(down, request, tokio::time::sleep(delay)).await;
    }
    let Some(answer) = fault.abort else { return Ok(()) };
    worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::Fault("abort"));
    let flags = if fault.delay.is_some() { "DI,FI" } else { "FI" };
    Err(match answer {
        FaultAnswer::Status(status) => Answer::new(status, DETAILS, flags, BODY),
        FaultAnswer::Grpc(status) => Answer::grpc(status, DETAILS, flags, BODY),
    })
}

const DETAILS: &str = "fault_filter_abort";
const BODY: &str = "fault filter abort\n";
