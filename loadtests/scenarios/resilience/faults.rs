//! The faults, one after the other: what each does to which backends, and what of it a gateway could not have hidden.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::dns::{Answers, Server};
use super::farm::{Farm, Handshake};

/// Between two answers of a DNS server that flaps: some resolver or other looks again each second.
const FLAP: Duration = Duration::from_millis(1300);
/// How long a host is gone before its connections are forgotten on its side.
const FORGETTING: Duration = Duration::from_millis(1500);

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// kill -9, and a start anew.
    Kill,
    /// SIGSTOP, SIGCONT.
    Stop,
    /// No listening socket, while connections go on.
    Refuse,
    /// A host that neither hears nor answers.
    BlackHole,
    /// Each answer takes 100 ms longer.
    Delay,
    /// One request in a hundred ends in a RST after it was received.
    Resets,
    /// A host that is back without knowing its connections.
    HalfOpen,
    /// Each answer ends in the middle of its body.
    Truncate,
    /// A name whose answers change, fail and vanish; all that it ever names is well.
    Dns,
    /// Each answer is 503.
    Status,
    /// Comes back after a kill with answers that take 300 ms at first.
    Cold,
    /// Comes back after a kill with TLS handshakes that end like this.
    Tls(Handshake),
}

/// A fault, and how many backends have it.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its name in tables.
    pub name: &'static str,
    pub kind: Kind,
    pub victims: usize,
    /// Whether a quick run has it too.
    pub quick: bool,
}

const fn fault(name: &'static str, kind: Kind, victims: usize, quick: bool) -> Fault {
    Fault { name, kind, victims, quick }
}

/// All of them, in their order.
pub const FAULTS: [Fault; 18] = [
    fault("kill", Kind::Kill, 1, true),
    fault("kill-3", Kind::Kill, 3, false),
    fault("stop", Kind::Stop, 1, true),
    fault("stop-3", Kind::Stop, 3, false),
    fault("refuse", Kind::Refuse, 1, true),
    fault("black-hole", Kind::BlackHole, 1, false),
    fault("delay", Kind::Delay, 1, false),
    fault("resets", Kind::Resets, usize::MAX, true),
    fault("half-open", Kind::HalfOpen, 1, false),
    fault("truncate", Kind::Truncate, 1, false),
    fault("dns", Kind::Dns, 0, false),
    fault("status", Kind::Status, 1, true),
    fault("status-3", Kind::Status, 3, false),
    fault("slow-start", Kind::Cold, 1, false),
    fault("tls-expired", Kind::Tls(Handshake::Expired), 1, true),
    fault("tls-name", Kind::Tls(Handshake::WrongName), 1, false),
    fault("tls-stall", Kind::Tls(Handshake::Stalled), 1, true),
    fault("tls-reset", Kind::Tls(Handshake::Reset), 1, false),
];

impl Fault {
    /// The backends that have it, of so many. Where it begins differs by fault, and is the same for all proxies.
    pub fn hosts(&self, count: usize) -> Vec<usize> {
        let first = self.name.bytes().map(usize::from).sum::<usize>();
        (0..self.victims.min(count)).map(|number| (first + number) % count).collect()
    }

    /// Whether it takes hosts that can fall silent.
    pub fn needs_hosts(&self) -> bool {
        matches!(self.kind, Kind::BlackHole | Kind::HalfOpen)
    }

    /// Whether backends speak TLS.
    pub fn is_of_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// How long it lasts where others last so long.
    pub fn lasts(&self, usual: Duration) -> Duration {
        if self.kind == Kind::HalfOpen { FORGETTING } else { usual }
    }

    /// Whether an answer that had begun may be cut by it: what a client has seen the beginning of cannot be tried again.
    pub fn cuts_answers(&self) -> bool {
        !matches!(self.kind, Kind::Refuse | Kind::Delay | Kind::Dns | Kind::Status)
    }

    /// Whether each answer breaks off after it has begun, so that a proxy has seen its head whatever it has passed on.
    pub fn begins_answers(&self) -> bool {
        self.kind == Kind::Truncate
    }

    /// Whether a request may have been processed although its answer is an error or never comes.
    pub fn may_have_processed(&self) -> bool {
        !matches!(self.kind, Kind::Refuse | Kind::Delay | Kind::Dns)
    }

    /// Whether a backend that has it is worth no less than others: nobody would leave it for long.
    pub fn is_mild(&self) -> bool {
        self.kind == Kind::Resets
    }

    /// Whether latency is of interest after its end rather than while it lasts.
    pub fn is_felt_after(&self) -> bool {
        self.kind == Kind::Cold
    }

    /// Breaks it.
    pub fn begin(&self, farm: &mut Farm) -> Result<(), String> {
        for host in self.hosts(farm.len()) {
            match self.kind {
                Kind::Kill | Kind::Cold => farm.kill(host),
                Kind::Tls(handshake) => {
                    farm.kill(host);
                    farm.restart_with(host, handshake)?;
                }
                Kind::Stop => farm.process(host).signal("STOP")?,
                Kind::Refuse => farm.order(host, "refuse")?,
                Kind::BlackHole => farm.network.silence(host)?,
                Kind::Delay => farm.order(host, "delay 100")?,
                Kind::Resets => farm.order(host, "resets 10")?,
                Kind::HalfOpen => {
                    farm.network.silence(host)?;
                    farm.kill(host);
                }
                Kind::Truncate => farm.order(host, "truncate")?,
                Kind::Status => farm.order(host, "status 503")?,
                Kind::Dns => {}
            }
        }
        Ok(())
    }

    /// Waits while it lasts; the name flaps meanwhile, if there is one.
    pub fn last(farm: &Farm, dns: Option<&Server>, duration: Duration) {
        let Some(dns) = dns else { return std::thread::sleep(duration) };
        let end = Instant::now() + duration;
        for answers in flaps(farm).iter().cycle() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            dns.answer(answers.clone());
            std::thread::sleep(left.min(FLAP));
        }
        dns.answer(all(farm));
    }

    /// Mends it.
    pub fn end(&self, farm: &mut Farm) -> Result<(), String> {
        for host in self.hosts(farm.len()) {
            match self.kind {
                Kind::Kill => farm.restart(host)?,
                Kind::Tls(_) => {
                    farm.kill(host);
                    farm.restart(host)?;
                }
                Kind::Stop => farm.process(host).signal("CONT")?,
                Kind::BlackHole => farm.network.restore(host)?,
                Kind::HalfOpen => {
                    farm.network.restore(host)?;
                    farm.restart(host)?;
                }
                Kind::Cold => {
                    farm.restart(host)?;
                    farm.order(host, "cold 300")?;
                }
                Kind::Refuse | Kind::Delay | Kind::Resets | Kind::Truncate | Kind::Status => {
                    farm.order(host, "heal")?;
                }
                Kind::Dns => {}
            }
        }
        Ok(())
    }
}

/// What a name stands for while it is well.
pub fn all(farm: &Farm) -> Answers {
    some(farm, 0..farm.len())
}

fn flaps(farm: &Farm) -> [Answers; 4] {
    let half = farm.len() / 2;
    [some(farm, 0..half), Answers::NoSuchName, some(farm, half..farm.len()), Answers::Failure]
}

fn some(farm: &Farm, hosts: std::ops::Range<usize>) -> Answers {
    let address = |host| match farm.network.address(host).ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    Answers::Addresses(hosts.map(address).collect())
}
