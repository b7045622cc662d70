//! SIGTERM under load: every request that was sent is answered, clients are told to go, and the process ends.

use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{config, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless, ensure_logged};

const CONNECTIONS: usize = 16;
const START: Duration = Duration::from_secs(10);
/// Covers the drain's own deadline.
const END: Duration = Duration::from_secs(90);

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let log = stage.path().join("access.log");
    let mut options = context.options();
    options.flags = vec!["--access-log".into(), log.display().to_string()];
    let mut gateway = stage.gateway(&options)?;
    // Nobody connects anew, so each load ends when its connections were ended in good order.
    let plan = || Plan { connections: CONNECTIONS, reconnect: false, ..Plan::new(address) };
    let loads = [("h1", plan().start()?), ("h2", plan().http2(4).start()?)];
    wait::until_true(START, "both loads to be under way", || {
        loads.iter().all(|(_, load)| load.snapshot().completed() > 1000)
    })?;
    gateway.process.signal("TERM")?;
    wait::until_true(END, "both loads to be sent away", || loads.iter().all(|(_, load)| load.is_finished()))?;
    let status = gateway.process.wait_exit(END)?;
    ensure(status.success(), || format!("the gateway ended with {status}"))?;
    let mut figures = Figures::default();
    let mut requests = 0;
    for (name, load) in loads {
        let tally = load.join();
        requests += tally.sent;
        ensure_flawless(name, &tally)?;
        let farewells = if name == "h1" { tally.close_seen } else { tally.goaway_seen };
        ensure(farewells == CONNECTIONS as u64, || {
            format!("{name}: {farewells} of {CONNECTIONS} were told to go")
        })?;
        figures
            .add(format!("{name}: {} requests, none failed, {farewells} connections told to go", tally.sent));
    }
    ensure_logged(&log, requests)?;
    figures.add("the access log has a line for each");
    Ok(figures)
}
