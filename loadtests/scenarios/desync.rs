//! The cases of http-desync-guardian, sent byte by byte to the gateway before an upstream that records what reaches it.

use fieldgate_loadtests::rig::{config, ports};

use crate::clients::python;
use crate::context::{Context, Figures, Outcome};

/// Names the directory of public test data.
const FIXTURES: &str = "FIELDGATE_FIXTURES";

pub fn run(context: &Context) -> Outcome {
    let Some(fixtures) = std::env::var_os(FIXTURES) else {
        return Ok(Figures::skipped(format!("{FIXTURES} is not set")));
    };
    let cases = std::path::Path::new(&fixtures).join("http-desync-guardian/tests");
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let upstream = ports::free();
    stage.config.write("pool", &config::pool("recorder", &[upstream], "http1"))?;
    stage.config.write("route", &config::route("shop", &[("recorder", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    python(
        "desync.py",
        &[
            &format!("--cases={}", cases.display()),
            &format!("--gateway={address}"),
            &format!("--upstream={upstream}"),
        ],
    )
}
