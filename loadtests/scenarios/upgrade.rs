//! A new process takes over from the old one under load: not one connection is refused or reset, and the old process
//! ends by itself when its connections are done.

use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{Gateway, config, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

/// Covers the drain deadline of the old process.
const END: Duration = Duration::from_secs(90);
const PROGRESS: Duration = Duration::from_secs(10);

pub fn run(context: &Context) -> Outcome {
    let upgrades = context.count(5, 2);
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["one", "two"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1), ("two", 1)]))?;
    let path = |name: &str| stage.path().join(name).display().to_string();
    let mut options = context.options();
    options.flags =
        vec!["--pid-file".into(), path("gateway.pid"), "--upgrade-socket".into(), path("upgrade.sock")];
    let mut old = stage.gateway(&options)?;
    let loads = [("h1", Plan::new(address).start()?), ("h2", Plan::new(address).http2(4).start()?)];
    let answered = || loads.iter().map(|(_, load)| load.snapshot().completed()).sum::<u64>();
    options.flags.push("--upgrade".into());
    for number in 1..=upgrades {
        let new = Gateway::start_named(&format!("gateway-{number}"), &options, &stage.config, stage.path())?;
        let status = old.process.wait_exit(END)?;
        ensure(status.success(), || {
            format!("the old process ended with {status}:\n{}", old.process.log_tail())
        })?;
        old = new;
        let before = answered();
        wait::until_true(PROGRESS, "the new process to answer", || answered() > before + 1000)?;
    }
    let mut figures = Figures::default();
    figures.add(format!("{upgrades} upgrades"));
    for (name, load) in loads {
        let tally = load.stop();
        ensure_flawless(name, &tally)?;
        figures.add(format!(
            "{name}: {} requests on {} connections, none failed",
            tally.sent, tally.connections
        ));
    }
    Ok(figures)
}
