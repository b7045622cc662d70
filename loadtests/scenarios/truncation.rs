//! An answer that its upstream cut short never looks complete to the client, whoever speaks what.

use std::fmt::Write as _;

use fieldgate_loadtests::load::Version;
use fieldgate_loadtests::probe::{self, Ask, Probe};

use crate::context::{Context, Figures, Outcome, ensure};
use crate::crossing::Crossing;
use crate::raw::Wire;

/// Ways to cut an answer short, as the backend knows them.
const CUTS: [&str; 6] = ["length", "between-chunks", "within-chunk", "connection", "short", "no-error"];
/// Bytes before the cut: one that waits with the head in one buffer, and one that fills several.
const SIZES: [u64; 2] = [500, 3_000_000];

pub fn run(context: &Context) -> Outcome {
    let crossing = Crossing::start(context)?;
    let mut complete = String::new();
    let mut cases = 0;
    for pair in crossing.pairs() {
        let probe = Probe::new(&pair.plan)?;
        for (cut, bytes) in CUTS.into_iter().flat_map(|cut| SIZES.map(|bytes| (cut, bytes))) {
            let path = format!("/truncate/{cut}/{bytes}");
            let seen = probe::run(probe.ask(&Ask::get(&path), ""))?;
            let refused = matches!(seen.answer.status, 502 | 503);
            if seen.error.is_empty() && !refused {
                let (status, got) = (seen.answer.status, seen.answer.body.len());
                let _ = write!(complete, "\n  {} {path}: a complete {status} with {got} bytes", pair.name);
            }
            cases += 1;
        }
        if pair.plan.version == Version::Http1 && pair.plan.ca.is_none() {
            cases += http10(&pair.plan, &mut complete)?;
        }
    }
    ensure(complete.is_empty(), || complete)?;
    let mut figures = Figures::default();
    figures.add(format!("{cases} answers cut short, each seen as such"));
    Ok(figures)
}

/// To an HTTP/1.0 client a body without a length ends with the connection: only a reset tells it from a cut one.
fn http10(plan: &fieldgate_loadtests::load::Plan, complete: &mut String) -> Result<usize, String> {
    let cuts = ["between-chunks", "within-chunk"];
    for cut in cuts {
        let mut wire = Wire::connect(plan.address)?;
        wire.send(&format!("GET /truncate/{cut}/500 HTTP/1.0\r\nhost: {}\r\n\r\n", plan.host))?;
        if let Ok(bytes) = wire.rest()
            && !String::from_utf8_lossy(&bytes).contains(" 50")
        {
            let _ = write!(complete, "\n  HTTP/1.0 to {} {cut}: ended in good order", plan.host);
        }
    }
    Ok(cuts.len())
}
