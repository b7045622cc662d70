//! An operator drains an endpoint by the API under load: no request fails, what is in flight there ends there, and
//! when the API says that it is safe to remove, nothing comes to it any more.

use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{Backend, GatewayOptions, config, http, wait};
use serde_json::Value;

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

/// Requests take so long that some are always in flight.
const WORK: &str = "/delay/50";
const PROGRESS: Duration = Duration::from_secs(20);

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let backends = ["one", "two", "three"].map(|name| stage.backend(name));
    let backends: Vec<Backend> = backends.into_iter().collect::<Result<_, _>>()?;
    let endpoints: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    stage.config.write("pool", &config::pool("shop", &endpoints, "http1"))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let options = GatewayOptions { flags: vec!["--api-write".to_owned()], ..context.options() };
    let gateway = stage.gateway(&options)?;
    let plan = || Plan { path: WORK.to_owned(), ..Plan::new(address) };
    let loads = [("h1", plan().start()?), ("h2", plan().http2(4).start()?)];
    let victim = &backends[0];
    await_requests(victim, 100)?;
    let mut figures = Figures::default();
    for round in 0..context.count(5, 2) {
        let told = order(gateway.admin, victim.address, "drain")?;
        ensure(told["drained"] == true, || format!("the drain's answer is {told}"))?;
        let mut last = told;
        wait::until_true(PROGRESS, "the drained endpoint to be safe to remove", || {
            let safe = last["safe_to_remove"] == true;
            if !safe && let Ok(told) = order(gateway.admin, victim.address, "drain") {
                last = told;
            }
            safe
        })?;
        let after = victim.counter("requests")?;
        await_requests(&backends[1], 200)?;
        let later = victim.counter("requests")?;
        ensure(later == after, || {
            format!("round {round}: {} requests came after the endpoint was safe to remove", later - after)
        })?;
        order(gateway.admin, victim.address, "undrain")?;
        await_requests(victim, 100)?;
    }
    for (name, load) in loads {
        let tally = load.stop();
        ensure_flawless(name, &tally)?;
        figures.add(format!("{name}: {} requests, none failed", tally.sent));
    }
    Ok(figures)
}

fn order(admin: SocketAddr, endpoint: SocketAddr, what: &str) -> Result<Value, String> {
    http::post_json(admin, &format!("/api/v1/pools/default/shop/endpoints/{endpoint}/{what}"))
}

fn await_requests(backend: &Backend, more: u64) -> Result<(), String> {
    let before = backend.counter("requests")?;
    let what = format!("{more} more requests to {}", backend.name);
    wait::until_true(PROGRESS, &what, || backend.counter("requests").is_ok_and(|now| now >= before + more))
}
