//! The test backend as a process of its own; see the library's `backend` for what each path answers.

use std::process::ExitCode;

use clap::Parser;
use fieldgate_loadtests::backend::{Options, serve};

/// A backend to hold a proxy against: HTTP/1.1 and HTTP/2 (prior knowledge) on one port.
///
/// Paths: / · /bytes/N · /upload · /stall, /resume · /duplex · /echo · /status/CODE?length=N · /delay/MS · /slow-body ·
/// /truncate/HOW/N · /reset · /swallow · /early · /103/N · /trailers · /grpc/N · /ws · /healthz, /healthz/fail, /healthz/ok ·
/// /stats; any other path answers as / does.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments { options } = Arguments::parse();
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-backend: cannot serve on {}: {error}", options.listen);
            ExitCode::FAILURE
        }
    }
}
