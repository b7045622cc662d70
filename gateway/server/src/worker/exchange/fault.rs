//! Faults on purpose: a request is held for a while, or answered with an error (Envoy's fault filter; flags `DI`, `FI`).

use std::future::poll_fn;
use std::task::Poll;

use fieldgate_core::fault::FaultDecision;
use fieldgate_core::ir::FaultAnswer;

use super::{Forward, Log};
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
    log: &mut Log<'_>,
) -> Result<(), Answer> {
    if let Some(delay) = fault.delay {
        log.flags = "DI";
        worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::Fault("delay"));
        let sleep = std::pin::pin!(tokio::time::sleep(delay));
        let mut sleep = sleep;
        // A client that goes away is found out by what comes after.
        poll_fn(|cx| match sleep.as_mut().poll(cx) {
            Poll::Pending => down.poll_gone(cx),
            Poll::Ready(()) => Poll::Ready(()),
        })
        .await;
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
