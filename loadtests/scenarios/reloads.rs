//! Reloads under a constant load of every protocol fail no request, and each is seen to have taken effect.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::{Plan, Running};
use fieldgate_loadtests::rig::certificates::Authority;
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, Gateway, http, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure, ensure_flawless};

/// The name that the certificate is for and that TLS clients ask for.
const HOST: &str = "shop.test";
/// Requests per second of each of the four loads: steady, with room for the reloads on two cores.
const RATE: f64 = 400.0;
const CHANGE: Duration = Duration::from_secs(10);

pub fn run(context: &Context) -> Outcome {
    let reloads = context.count(1000, 100);
    let scene = Scene::new(context)?;
    let gateway = scene.stage.gateway(&context.options())?;
    let loads = scene.loads()?;
    let mut took = Vec::new();
    for number in 0..reloads {
        let started = Instant::now();
        scene.reload(&gateway, number).map_err(|error| format!("reload {number}: {error}"))?;
        took.push(started.elapsed());
        ensure(loads.iter().all(|(_, load)| load.snapshot().failures() == 0), || describe(&loads, number))?;
    }
    let mut figures = Figures::default();
    for (name, load) in loads {
        let tally = load.stop();
        ensure_flawless(name, &tally)?;
        let p99 = tally.latency.percentile(0.99);
        figures.add(format!(
            "{name}: {} requests, none failed, p99 {p99} us, {} connections",
            tally.sent, tally.connections
        ));
    }
    took.sort();
    let millis = |index: usize| took[index].as_secs_f64() * 1000.0;
    figures.add(format!(
        "{reloads} reloads, each seen to run after {:.0} ms (median; slowest {:.0} ms)",
        millis(took.len() / 2),
        millis(took.len() - 1)
    ));
    Ok(figures)
}

fn describe(loads: &[(&str, Running)], number: usize) -> String {
    let failed = loads.iter().map(|(name, load)| (name, load.snapshot().describe_failures()));
    let failed: Vec<_> =
        failed.filter(|(_, text)| !text.is_empty()).map(|(name, text)| format!("{name}: {text}")).collect();
    format!("by reload {number}, {}", failed.join("; "))
}

struct Scene {
    stage: Stage,
    authority: Authority,
    plain: SocketAddr,
    tls: SocketAddr,
    other: SocketAddr,
    backends: Vec<Backend>,
}

impl Scene {
    fn new(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let authority = Authority::new(stage.path())?;
        let (plain, tls, other) = (ports::free(), ports::free(), ports::free());
        let listeners = [Listener::http("plain", plain.port()), Listener::https("tls", tls.port(), "shop")];
        stage.config.write("gateway", &config::gateway("edge", &listeners))?;
        stage.config.write("secret", &config::secret("shop", &authority.issue(&[HOST])?))?;
        stage.config.write("route", &config::route("shop", &[("one", 50), ("two", 50)]))?;
        let mut backends = stage.pools(&["one", "two"])?;
        backends.push(stage.backend("one-more")?);
        Ok(Self { stage, authority, plain, tls, other, backends })
    }

    fn loads(&self) -> Result<Vec<(&'static str, Running)>, String> {
        let plain = || Plan { rate: Some(RATE), connections: 4, ..Plan::new(self.plain) };
        let tls = || Plan {
            address: self.tls,
            host: format!("{HOST}:{}", self.tls.port()),
            ca: Some(self.authority.file.clone()),
            ..plain()
        };
        Ok(vec![
            ("h1", plain().start()?),
            ("h2", plain().http2(4).start()?),
            ("h1 over TLS", tls().start()?),
            ("h2 over TLS", tls().http2(4).start()?),
        ])
    }

    /// One change, of the kinds in turn.
    fn reload(&self, gateway: &Gateway, number: usize) -> Result<(), String> {
        let config = &self.stage.config;
        let turn = number / 5;
        match number % 5 {
            0 => {
                let weight = (turn * 7 % 99 + 1) as u32;
                let route = config::route("shop", &[("one", weight), ("two", 100 - weight)]);
                gateway.change(|| config.write("route", &route))?;
            }
            1 => self.routes(gateway, turn)?,
            2 => {
                let secret = config::secret("shop", &self.authority.issue(&[HOST])?);
                gateway.change(|| config.write("secret", &secret))?;
            }
            3 => {
                let endpoints = if turn.is_multiple_of(2) {
                    vec![self.backends[0].address, self.backends[2].address]
                } else {
                    vec![self.backends[0].address]
                };
                gateway.change(|| config.write("pool-one", &config::pool("one", &endpoints, "http1")))?;
            }
            _ => self.listeners(gateway, turn)?,
        }
        Ok(())
    }

    /// A route of another host comes, then goes.
    fn routes(&self, gateway: &Gateway, turn: usize) -> Result<(), String> {
        let config = &self.stage.config;
        if turn.is_multiple_of(2) {
            let route = config::route("extra", &[("two", 1)])
                .replace("  rules:", "  hostnames: [extra.test]\n  rules:");
            gateway.change(|| config.write("extra", &route))?;
            let answer = http::get_host(self.plain, "extra.test", "/")?;
            return ensure(answer.header("x-backend") == Some("two"), || {
                format!("extra.test: {}", answer.status)
            });
        }
        gateway.change(|| config.remove("extra"))?;
        Ok(())
    }

    /// A Gateway on another port comes, then goes.
    fn listeners(&self, gateway: &Gateway, turn: usize) -> Result<(), String> {
        let config = &self.stage.config;
        if turn.is_multiple_of(2) {
            let other = config::gateway("other", &[Listener::http("web", self.other.port())]);
            gateway.change(|| config.write("other", &other))?;
            // It has no route: 404 shows that it listens.
            return wait::until_true(CHANGE, "the new listener to answer", || {
                http::get(self.other, "/").is_ok_and(|response| response.status == 404)
            });
        }
        gateway.change(|| config.remove("other"))?;
        wait::until_true(CHANGE, "the removed listener to refuse", || http::connect(self.other).is_err())
    }
}
