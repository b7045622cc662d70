//! What goes wrong around the gateway costs nobody a request: an access log that cannot be written, and a
//! configuration directory that is replaced, goes away, or cannot be read.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{Gateway, config, http, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

const NOTICED: Duration = Duration::from_secs(10);
/// How long a gateway is watched that must not change.
const UNCHANGED: Duration = Duration::from_secs(1);

/// Every line of an access log on a full disk is counted as dropped.
pub fn full_log(context: &Context) -> Outcome {
    let requests = context.count(50_000, 2000);
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let mut options = context.options();
    options.flags = vec!["--access-log".into(), "/dev/full".into()];
    let gateway = stage.gateway(&options)?;
    let tally = Plan { requests: Some(requests), ..Plan::new(address) }.run()?;
    ensure_flawless("full disk", &tally)?;
    let dropped = || gateway.metric("fieldgate_access_log_dropped_total", "").unwrap_or_default() as u64;
    wait::until_true(NOTICED, "every lost line to be counted", || dropped() == requests)
        .map_err(|error| format!("{error}: {} of {requests}", dropped()))?;
    let mut figures = Figures::default();
    figures.add(format!("{requests} requests, none failed; {requests} lines counted as dropped"));
    Ok(figures)
}

/// The directory is replaced, missing, back, and holds a file that cannot be read.
pub fn config_dir(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _backends = stage.pools(&["one", "two"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let load = Plan { rate: Some(500.0), ..Plan::new(address) }.start()?;
    let answers = |name: &str| {
        let served = || http::get(address, "/").is_ok_and(|answer| answer.header("x-backend") == Some(name));
        wait::until_true(NOTICED, &format!("answers of {name}"), served)
            .map_err(|error| format!("{error}; its log:\n{}", gateway.process.log_tail()))
    };
    answers("one")?;
    let (path, aside) = (stage.config.path(), stage.path().join("aside"));
    let rename = |from: &Path, to: &Path| {
        std::fs::rename(from, to).map_err(|error| format!("{}: {error}", from.display()))
    };

    // Another directory takes its place in two steps, with nothing there in between.
    let next = stage.path().join("next");
    copy(path, &next)?;
    let replaced = next.join("route.yaml");
    std::fs::write(&replaced, config::route("shop", &[("two", 1)]))
        .map_err(|error| format!("{}: {error}", replaced.display()))?;
    rename(path, &aside)?;
    rename(&next, path)?;
    answers("two").map_err(|error| format!("after the directory was replaced: {error}"))?;

    rename(path, &next)?;
    stays(&gateway, address, "two").map_err(|error| format!("without its directory: {error}"))?;
    rename(&next, path)?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    answers("one").map_err(|error| format!("after the directory came back: {error}"))?;

    // A link to nowhere cannot be read, whoever asks.
    let link = path.join(".link");
    symlink("/nowhere/route.yaml", &link).map_err(|error| format!("{}: {error}", link.display()))?;
    rename(&link, &path.join("route.yaml"))?;
    stays(&gateway, address, "one").map_err(|error| format!("with a file that cannot be read: {error}"))?;
    stage.config.write("route", &config::route("shop", &[("two", 1)]))?;
    answers("two").map_err(|error| format!("after the file could be read again: {error}"))?;

    let tally = load.stop();
    ensure_flawless("config directory", &tally)?;
    let mut figures = Figures::default();
    figures.add(format!(
        "{} requests while the directory was replaced, missing, back, and half unreadable: none failed",
        tally.sent
    ));
    Ok(figures)
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    };
    copy().map_err(|error| format!("{}: {error}", to.display()))
}

/// Goes on with what it had.
fn stays(gateway: &Gateway, address: std::net::SocketAddr, backend: &str) -> Result<(), String> {
    let end = std::time::Instant::now() + UNCHANGED;
    while std::time::Instant::now() < end {
        let answer = http::get(address, "/")?;
        ensure(answer.header("x-backend") == Some(backend), || {
            format!("the answer is {}; its log:\n{}", answer.status, gateway.process.log_tail())
        })?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
