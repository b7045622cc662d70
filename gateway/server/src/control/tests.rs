//! The control task as a whole: texts in, snapshots and commands out, with real sockets and no workers.

mod change;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use fieldgate_config::FileChange;
use fieldgate_config::translate::TrustDomains;
use fieldgate_core::Snapshot;
use fieldgate_core::ir::Endpoints;
use tokio::sync::watch;

use super::*;
use crate::jwks::KeySets;
use crate::telemetry::Telemetry;
use crate::worker::Command;

/// A control task with recorders where its workers would be.
struct Rig {
    control: ControlHandle,
    shared: Arc<Shared>,
    view: Arc<ArcSwap<View>>,
    generations: watch::Receiver<u64>,
    draining: watch::Receiver<Option<Duration>>,
    listening: Arc<Mutex<BTreeMap<u64, (SocketAddr, TcpListener)>>>,
}

impl Rig {
    fn start() -> Self {
        Self::start_in(None)
    }

    /// New objects go into this directory.
    fn start_in(directory: Option<std::path::PathBuf>) -> Self {
        let published = Published::nothing(None);
        let shared = Arc::new(Shared {
            published: Arc::new(ArcSwap::from_pointee(published)),
            telemetry: Telemetry::new(),
            started: Instant::now(),
            workers: 1,
            room_news: Arc::default(),
            overload: Arc::default(),
            draining: AtomicBool::new(false),
        });
        let (control, events) = channel();
        let listening = Arc::new(Mutex::new(BTreeMap::new()));
        let tell: Tell = {
            let listening = Arc::clone(&listening);
            Box::new(move |_, command| match command {
                Command::Listen { id, address, socket } => {
                    listening.lock().unwrap().insert(id, (address, socket));
                }
                Command::Unlisten { id } => {
                    listening.lock().unwrap().remove(&id);
                }
                Command::Drain { .. } => listening.lock().unwrap().clear(),
                Command::Flush(_) | Command::Report(_) | Command::Pressure(_) => {
                    panic!("nothing here asks for that")
                }
            })
        };
        let resolver = {
            let control = control.clone();
            Resolver::system(move |resolved| control.send(Event::Resolved(resolved)))
        };
        let task = Control::new(Parts {
            shared: Arc::clone(&shared),
            workers: 2,
            tell,
            inherited: Inheritance::default(),
            resolver,
            keys: {
                let control = control.clone();
                KeySets::new(move || control.send(Event::KeysAnswered))
            },
            locality: None,
            trust_domains: TrustDomains::default(),
            directory,
            audit: Arc::default(),
        });
        let rig = Self {
            control,
            shared,
            view: task.view(),
            generations: task.generations(),
            draining: task.draining(),
            listening,
        };
        tokio::spawn(task.run(events));
        rig
    }

    fn file(&self, name: &str, text: &str) {
        let change = FileChange { name: name.into(), text: Some(text.to_owned()) };
        self.control.send(Event::Source(Update { changes: vec![change], diagnostics: vec![] }));
    }

    async fn generation(&mut self, generation: u64) -> Arc<Snapshot> {
        self.generations.wait_for(|now| *now >= generation).await.unwrap();
        let snapshot = Arc::clone(&self.shared.published.load().snapshot);
        assert_eq!(snapshot.generation, generation);
        snapshot
    }

    /// All events sent so far have been handled once this one is answered.
    async fn settled(&self) -> Vec<ObjectStatus> {
        self.control.statuses().await
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn gateway(ports: &[u16]) -> String {
    let mut listeners = String::new();
    for port in ports {
        writeln!(listeners, "  - {{name: web-{port}, protocol: HTTP, port: {port}}}").unwrap();
    }
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         gatewayClassName: fieldgate\n  addresses: [{{type: IPAddress, value: 127.0.0.1}}]\n  listeners:\n{listeners}"
    )
}

fn route(weight: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  \
         parentRefs: [{{name: edge}}]\n  rules:\n  - backendRefs: [{{group: fieldgate.dev, kind: Pool, name: vms, weight: {weight}}}]\n"
    )
}

fn pool(endpoints: &str) -> String {
    format!("apiVersion: fieldgate.dev/v1alpha1\nkind: Pool\nmetadata: {{name: vms}}\nspec:\n  {endpoints}\n")
}

#[tokio::test]
async fn a_change_is_published_and_an_equal_text_is_not() {
    let mut rig = Rig::start();
    let port = free_port();
    rig.file("gateway.yaml", &gateway(&[port]));
    let first = rig.generation(1).await;
    assert_eq!(first.addresses().count(), 1);
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();

    rig.file("route.yaml", &route("1"));
    rig.generation(2).await;
    rig.file("route.yaml", &format!("# a comment\n{}", route("1")));
    rig.settled().await;
    assert_eq!(*rig.generations.borrow(), 2);
    rig.file("route.yaml", &route("2"));
    rig.generation(3).await;
    assert!(rig.view.load().is_ready());
}

#[tokio::test]
async fn listeners_come_and_go_and_the_others_are_left_alone() {
    let mut rig = Rig::start();
    let (kept, gone, new) = (free_port(), free_port(), free_port());
    rig.file("gateway.yaml", &gateway(&[kept, gone]));
    rig.generation(1).await;
    let ids = |rig: &Rig, port| -> Vec<u64> {
        let listening = rig.listening.lock().unwrap();
        listening.iter().filter(|(_, (address, _))| address.port() == port).map(|(id, _)| *id).collect()
    };
    let before = ids(&rig, kept);
    assert_eq!(before.len(), 2, "one for each worker");

    rig.file("gateway.yaml", &gateway(&[kept, new]));
    rig.generation(2).await;
    assert_eq!(ids(&rig, kept), before);
    assert_eq!(ids(&rig, new).len(), 2);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, gone)).is_err());
}

#[tokio::test]
async fn a_bad_text_is_reported_and_the_last_good_stays() {
    let mut rig = Rig::start();
    rig.file("gateway.yaml", &gateway(&[free_port()]));
    rig.file("route.yaml", &route("1"));
    rig.generation(2).await;
    rig.file("route.yaml", &route("many"));
    rig.settled().await;
    assert_eq!(*rig.generations.borrow(), 2);
    let view = rig.view.load();
    let bad = view.diagnostics.iter().find(|d| d.field.ends_with("weight")).expect("the weight is reported");
    assert!(bad.last_good_in_use);
    assert_eq!(rig.shared.published.load().snapshot.config.routes.len(), 1);
}

#[tokio::test]
async fn an_address_in_use_makes_its_listener_unprogrammed_and_no_other() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (busy, free) = (taken.local_addr().unwrap().port(), free_port());
    let mut rig = Rig::start();
    rig.file("gateway.yaml", &gateway(&[busy, free]));
    rig.generation(1).await;
    TcpStream::connect((Ipv4Addr::LOCALHOST, free)).unwrap();
    assert!(!rig.view.load().is_ready());
    let statuses = rig.settled().await;
    let programmed = |port: u16| {
        let part = format!("web-{port}");
        let mut conditions = statuses.iter().flat_map(|status| &status.conditions);
        conditions.find(|c| c.part == part && c.kind == "Programmed").unwrap().status
    };
    assert!(programmed(free));
    assert!(!programmed(busy));
}

#[tokio::test]
async fn a_pool_of_names_is_published_with_its_addresses_at_once() {
    let mut rig = Rig::start();
    rig.file(
        "all.yaml",
        &[gateway(&[free_port()]), route("1"), pool("dns: {name: localhost, port: 8080}")].join("---\n"),
    );
    let snapshot = rig.generation(1).await;
    let resolved = snapshot.config.pools.values().any(|pool| match &pool.endpoints {
        Endpoints::Static(endpoints) => {
            endpoints.iter().any(|e| e.address == (Ipv4Addr::LOCALHOST, 8080).into())
        }
        Endpoints::Dns { .. } => false,
    });
    assert!(resolved, "{:?}", snapshot.config.pools);
}

#[tokio::test]
async fn a_draining_process_has_no_sockets_to_hand_over() {
    let mut rig = Rig::start();
    let port = free_port();
    rig.file("gateway.yaml", &gateway(&[port]));
    rig.generation(1).await;
    assert_eq!(rig.control.inheritance().await.unwrap().sockets.len(), 2);

    let deadline = Duration::from_secs(7);
    rig.control.send(Event::Drain { deadline });
    assert_eq!(*rig.draining.wait_for(Option::is_some).await.unwrap(), Some(deadline));
    assert!(rig.control.inheritance().await.is_none());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    rig.file("gateway.yaml", &gateway(&[free_port()]));
    rig.generation(2).await;
    assert!(rig.listening.lock().unwrap().is_empty(), "nothing is bound while draining");
}

/// Whether the endpoint of the pool `vms` is out of service; `None` if there is none.
fn is_drained(snapshot: &Snapshot, address: SocketAddr) -> Option<bool> {
    let mut endpoints = snapshot.pools().flat_map(|pool| &pool.endpoints);
    endpoints.find(|endpoint| endpoint.address() == address).map(|endpoint| endpoint.state.is_drained())
}

#[tokio::test]
async fn an_endpoint_out_of_service_stays_out_whatever_comes_and_goes() {
    let mut rig = Rig::start();
    let (out, other): (SocketAddr, SocketAddr) = (([10, 0, 0, 1], 80).into(), ([10, 0, 0, 2], 80).into());
    let both = "endpoints: [{address: 10.0.0.1, port: 80}, {address: 10.0.0.2, port: 80}]";
    let one = "endpoints: [{address: 10.0.0.2, port: 80}]";
    rig.file("gateway.yaml", &gateway(&[free_port()]));
    rig.file("route.yaml", &route("1"));
    rig.file("pool.yaml", &pool(both));
    let first = rig.generation(3).await;
    let control = rig.control.clone();
    let set = async |name: &str, address, drained| {
        let name = PoolName::parse("default", name).unwrap();
        control.drain_endpoint(Who::signal("test"), name, address, drained).await.unwrap()
    };
    assert_eq!(set("vms", out, true).await, Ok(true));
    assert_eq!(set("vms", out, true).await, Ok(false), "it is out already");
    assert_eq!((is_drained(&first, out), is_drained(&first, other)), (Some(true), Some(false)));
    assert_eq!(rig.view.load().drained.len(), 1);

    let unknown = set("vms", ([10, 0, 0, 9], 80).into(), true).await.unwrap_err();
    assert!(
        unknown.contains("10.0.0.9:80") && unknown.contains("it has 10.0.0.1:80, 10.0.0.2:80"),
        "{unknown}"
    );
    let unknown = set("wms", out, true).await.unwrap_err();
    assert!(unknown.contains("no Pool default/wms") && unknown.contains("Pool default/vms"), "{unknown}");
    assert!(set("vms", ([10, 0, 0, 9], 80).into(), false).await.is_err());

    // The address leaves and comes back; the pool does.
    rig.file("pool.yaml", &pool(one));
    assert_eq!(is_drained(&*rig.generation(4).await, out), None);
    rig.file("pool.yaml", &pool(both));
    assert_eq!(is_drained(&*rig.generation(5).await, out), Some(true));
    rig.file("pool.yaml", "");
    assert_eq!(is_drained(&*rig.generation(6).await, out), None);
    rig.file("pool.yaml", &pool(both));
    let last = rig.generation(7).await;
    assert_eq!((is_drained(&last, out), is_drained(&last, other)), (Some(true), Some(false)));

    // The next process hears of it.
    let name = PoolName::parse("default", "vms").unwrap();
    assert_eq!(rig.control.inheritance().await.unwrap().drained, [(name, out)]);

    assert_eq!(set("vms", out, false).await, Ok(true));
    assert_eq!(set("vms", out, false).await, Ok(false), "it is back already");
    assert_eq!(is_drained(&last, out), Some(false));
}
