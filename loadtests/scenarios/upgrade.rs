//! A new process takes over from the old one under load by every protocol: not one connection is refused or reset, what
//! is in flight ends on the old process, which then ends by itself, and an upgrade that fails changes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldgate_loadtests::probe;
use fieldgate_loadtests::rig::{Backend, Gateway, GatewayOptions, config, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, Way};
use crate::held::{Held, Loads};

/// Covers the drain deadline of an old process.
const END: Duration = Duration::from_secs(90);
const PROGRESS: Duration = Duration::from_secs(10);
/// Workers of one process after the other: the same, more, fewer, more than there are cores.
const WORKERS: [usize; 5] = [2, 4, 1, 3, 2];
/// Routes of a configuration that takes a while to read.
const MANY_ROUTES: usize = 20_000;

pub fn run(context: &Context) -> Outcome {
    let mut scene = Scene::start(context)?;
    let ways = scene.edge.ways();
    let loads = Loads::start(&ways, true)?;
    let mut figures = Figures::default();
    probe::run(async {
        scene.failures(&loads)?;
        for &workers in WORKERS.iter().take(context.count(WORKERS.len(), 3)) {
            scene.upgrade(workers, &ways, &loads).await.map_err(|e| format!("to {workers} workers: {e}"))?;
        }
        scene.twice(&ways, &loads).await.map_err(|error| format!("twice at once: {error}"))?;
        scene.failures(&loads)
    })?;
    figures.add(format!(
        "{} processes took over, with workers {WORKERS:?} and two at once; {} came to nothing",
        scene.started, scene.failed
    ));
    loads.finish(false, &mut figures)?;
    Ok(figures)
}

struct Scene {
    stage: Stage,
    edge: Edge,
    backends: Vec<Backend>,
    options: GatewayOptions,
    serving: Gateway,
    started: usize,
    failed: usize,
}

impl Scene {
    fn start(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let edge = Edge::new(&stage)?;
        let backends = stage.pools(&["one", "two"])?;
        stage.config.write("route", &config::route("shop", &[("one", 1), ("two", 1)]))?;
        let path = |name: &str| stage.path().join(name).display().to_string();
        let mut options = context.options();
        options.flags =
            vec!["--pid-file".into(), path("gateway.pid"), "--upgrade-socket".into(), path("upgrade.sock")];
        let serving = stage.gateway(&options)?;
        options.flags.push("--upgrade".into());
        Ok(Self { stage, edge, backends, options, serving, started: 0, failed: 0 })
    }

    /// What was in flight ends on the old process, and with it the process.
    async fn upgrade(&mut self, workers: usize, ways: &[Way], loads: &Loads) -> Result<(), String> {
        let mut held = Held::open(ways).await.map_err(|error| format!("before: {error}"))?;
        let old = self.take_over(workers)?;
        held.step().await?;
        progress(loads)?;
        held.step().await?;
        held.finish().await?;
        ended(old)?;
        progress(loads)
    }

    /// A second upgrade begins while the first one's old process still drains.
    async fn twice(&mut self, ways: &[Way], loads: &Loads) -> Result<(), String> {
        let mut first = Held::open(ways).await?;
        let oldest = self.take_over(4)?;
        let mut second = Held::open(ways).await?;
        let old = self.take_over(2)?;
        first.step().await?;
        second.step().await?;
        progress(loads)?;
        first.finish().await?;
        ended(oldest)?;
        second.finish().await?;
        ended(old)?;
        progress(loads)
    }

    /// Gives the process that serves no more.
    fn take_over(&mut self, workers: usize) -> Result<Gateway, String> {
        self.options.workers = workers;
        self.started += 1;
        let name = format!("gateway-{}", self.started);
        let new = Gateway::start_named(&name, &self.options, &self.stage.config, self.stage.path())?;
        Ok(std::mem::replace(&mut self.serving, new))
    }

    /// Processes that never come to serve: the old one goes on.
    fn failures(&mut self, loads: &Loads) -> Result<(), String> {
        let config = self.stage.config.path().to_owned();
        let nowhere = self.stage.path().join("nowhere");
        let flag = GatewayOptions {
            flags: [&self.options.flags[..], &["--nonsense".into()]].concat(),
            ..self.options.clone()
        };
        let many = GatewayOptions { workers: 4, ..self.options.clone() };
        let admin = self.serving.admin;
        self.fails("a bad flag", &flag, &config, admin)?;
        self.fails("no configuration", &self.options, &nowhere, admin)?;
        // The port of a backend: in use, and no gateway's to hand over.
        let in_use = self.backends[0].address;
        self.fails("an admin port in use", &many, &config, in_use)?;
        self.killed(&many)?;
        self.failed += 4;
        progress(loads)
    }

    fn fails(
        &self,
        what: &str,
        options: &GatewayOptions,
        config: &Path,
        admin: std::net::SocketAddr,
    ) -> Result<(), String> {
        let mut new = Gateway::launch("gateway-failing", options, config, self.stage.path(), admin)?;
        let status = new.process.wait_exit(END)?;
        ensure(!status.success(), || format!("{what}: the new process ended with {status}"))
    }

    /// Killed when it has the sockets and does not serve yet.
    fn killed(&self, options: &GatewayOptions) -> Result<(), String> {
        let config = self.many_routes()?;
        let mut new = Gateway::launch("gateway-killed", options, &config, self.stage.path(), ports::free())?;
        wait::until_true(END, "the new process to have the sockets", || {
            new.process.log().contains("sockets received")
        })?;
        ensure(!new.process.log().contains("fieldgate serves"), || {
            "it was too quick to be killed".to_owned()
        })?;
        new.process.kill();
        Ok(())
    }

    fn many_routes(&self) -> Result<PathBuf, String> {
        let directory = self.stage.path().join("many");
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let route =
            |number| config::route_for_host(&format!("r{number}"), &format!("h{number}.test"), &[("one", 1)]);
        let text: Vec<_> = (0..MANY_ROUTES).map(route).collect();
        let file = directory.join("routes.yaml");
        std::fs::write(&file, text.join("---\n")).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(directory)
    }
}

fn ended(mut old: Gateway) -> Result<(), String> {
    let status = old.process.wait_exit(END)?;
    ensure(status.success(), || format!("an old process ended with {status}:\n{}", old.process.log_tail()))
}

/// Answers keep coming, and none has failed.
fn progress(loads: &Loads) -> Result<(), String> {
    let before = loads.answered();
    wait::until_true(PROGRESS, "answers to go on", || loads.answered() > before + 500)?;
    loads.check()
}
