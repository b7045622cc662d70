//! Reloads of every kind under a constant load by every protocol: no request fails, no connection of what did not
//! change ends, and each change is seen to have taken effect.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::probe::{self, Probe};
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, Gateway, http, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, HOST};
use crate::held::{Held, Loads};

const CHANGE: Duration = Duration::from_secs(10);
/// Kinds of change, taken in turn.
const KINDS: usize = 6;
/// Exchanges that are in flight move on after so many reloads.
const STEP: usize = 25;
/// Handshakes after a change of certificate, so that every worker is met.
const HANDSHAKES: usize = 4;

pub fn run(context: &Context) -> Outcome {
    let reloads = context.count(1000, 60);
    let mut scene = Scene::new(context)?;
    let ways = scene.edge.ways();
    let loads = Loads::start(&ways, false)?;
    let mut took = Vec::new();
    probe::run(async {
        let mut held = Held::open(&ways).await?;
        for number in 0..reloads {
            let started = Instant::now();
            scene.reload(number).await.map_err(|error| format!("reload {number}: {error}"))?;
            took.push(started.elapsed());
            loads.check().map_err(|error| format!("by reload {number}, {error}"))?;
            if number % STEP == 0 {
                held.step().await.map_err(|error| format!("in flight at reload {number}: {error}"))?;
            }
        }
        held.finish().await
    })?;
    let mut figures = Figures::default();
    loads.finish(true, &mut figures)?;
    figures.add(format!("{reloads} reloads, each seen to work after {}", spread(&mut took)));
    figures.add(format!(
        "new certificates were shown {} after their file was written",
        spread(&mut scene.certificates)
    ));
    Ok(figures)
}

fn spread(took: &mut [Duration]) -> String {
    took.sort();
    let millis = |index: usize| took[index].as_secs_f64() * 1000.0;
    format!("{:.0} ms (median; slowest {:.0} ms)", millis(took.len() / 2), millis(took.len() - 1))
}

struct Scene {
    stage: Stage,
    gateway: Gateway,
    edge: Edge,
    backends: Vec<Backend>,
    /// Asks over TLS.
    tls: Plan,
    /// What TLS shows at present.
    certificate: Vec<u8>,
    /// How long new certificates took to be shown.
    certificates: Vec<Duration>,
    /// Ports of a listener that is well, and of one without a usable certificate.
    other: SocketAddr,
    broken: SocketAddr,
}

impl Scene {
    fn new(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let edge = Edge::new(&stage)?;
        stage.config.write("route", &config::route("shop", &[("one", 50), ("two", 50)]))?;
        let mut backends = stage.pools(&["one", "two"])?;
        backends.push(stage.backend("one-more")?);
        let gateway = stage.gateway(&context.options())?;
        let [.., h2_over_tls] = edge.ways();
        let tls = h2_over_tls.plan;
        let certificate = probe::run(Probe::certificate(&tls))?;
        let (other, broken) = (ports::free(), ports::free());
        let certificates = Vec::new();
        Ok(Self { stage, gateway, edge, backends, tls, certificate, certificates, other, broken })
    }

    /// One change, of the kinds in turn.
    async fn reload(&mut self, number: usize) -> Result<(), String> {
        let turn = number / KINDS;
        match number % KINDS {
            0 => self.weights(turn),
            1 => self.routes(turn),
            2 => self.certificate().await,
            3 => self.endpoints(turn),
            4 => self.listeners(turn).await,
            _ => self.broken_certificate(turn).await,
        }
    }

    fn change(&self, name: &str, text: &str) -> Result<(), String> {
        self.gateway.change(|| self.stage.config.write(name, text)).map(|_| ())
    }

    fn weights(&self, turn: usize) -> Result<(), String> {
        let weight = (turn * 7 % 99 + 1) as u32;
        self.change("route", &config::route("shop", &[("one", weight), ("two", 100 - weight)]))
    }

    /// A route of another host comes, then goes.
    fn routes(&self, turn: usize) -> Result<(), String> {
        if turn.is_multiple_of(2) {
            self.change("extra", &config::route_for_host("extra", "extra.test", &[("two", 1)]))?;
        } else {
            self.gateway.change(|| self.stage.config.remove("extra"))?;
        }
        let answer = http::get_host(self.edge.plain, "extra.test", "/")?;
        // Without it, the route for all hosts answers.
        let only_two = turn.is_multiple_of(2);
        ensure(answer.status == 200 && (!only_two || answer.header("x-backend") == Some("two")), || {
            format!("extra.test: {}", answer.status)
        })
    }

    fn endpoints(&self, turn: usize) -> Result<(), String> {
        let mut endpoints = vec![self.backends[0].address];
        if turn.is_multiple_of(2) {
            endpoints.push(self.backends[2].address);
        }
        self.change("pool-one", &config::pool("one", &endpoints, "http1"))
    }

    /// Once the change is said to run, every handshake shows the new one.
    async fn certificate(&mut self) -> Result<(), String> {
        let issued = self.edge.authority.issue(&[HOST])?;
        let started = Instant::now();
        self.change("secret", &config::secret("shop", &issued))?;
        self.certificate = issued.der()?;
        self.certificate_is_shown().await?;
        self.certificates.push(started.elapsed());
        Ok(())
    }

    async fn certificate_is_shown(&self) -> Result<(), String> {
        for _ in 0..HANDSHAKES {
            let shown = Probe::certificate(&self.tls).await?;
            ensure(shown == self.certificate, || "a handshake showed another certificate".to_owned())?;
        }
        Ok(())
    }

    /// A Gateway on two other ports comes, then goes. Its HTTPS listener has no usable certificate, which stops neither
    /// its other listener nor anybody else's.
    async fn listeners(&self, turn: usize) -> Result<(), String> {
        if turn.is_multiple_of(2) {
            let listeners = [
                Listener::https("broken", self.broken.port(), "nonsense"),
                Listener::http("web", self.other.port()),
            ];
            let nonsense = config::secret("nonsense", &nonsense());
            self.change("other", &format!("{}---\n{nonsense}", config::gateway("other", &listeners)))?;
            // It has no route: 404 shows that it listens.
            wait::until_true(CHANGE, "the new listener to answer", || {
                http::get(self.other, "/").is_ok_and(|response| response.status == 404)
            })?;
            let broken = Plan { address: self.broken, ..self.tls.clone() };
            ensure(Probe::certificate(&broken).await.is_err(), || {
                "it has no certificate to show".to_owned()
            })?;
            return self.certificate_is_shown().await;
        }
        self.gateway.change(|| self.stage.config.remove("other"))?;
        wait::until_true(CHANGE, "the removed listener to refuse", || http::connect(self.other).is_err())
    }

    /// The certificate that is in use is overwritten by something else: it stays, and that is counted.
    async fn broken_certificate(&self, turn: usize) -> Result<(), String> {
        if !turn.is_multiple_of(4) {
            return self.weights(turn + 50);
        }
        let rejected = || self.gateway.metric("fieldgate_config_rejected_objects", "").unwrap_or_default();
        let before = rejected();
        self.stage.config.write("secret", &config::secret("shop", &nonsense()))?;
        wait::until_true(CHANGE, "the bad certificate to be counted", || rejected() > before)?;
        self.certificate_is_shown().await
    }
}

fn nonsense() -> fieldgate_loadtests::rig::certificates::Certified {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nbm9uc2Vuc2U=\n-----END {what}-----\n");
    fieldgate_loadtests::rig::certificates::Certified {
        certificate: pem("CERTIFICATE"),
        key: pem("PRIVATE KEY"),
    }
}
