//! Bodies of any size stream: 1 GiB each way by every protocol leaves the gateway's memory bounded, and a client that
//! reads slowly holds its upstream back.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use fieldgate_loadtests::rig::{Backend, Gateway, config, http};

use crate::clients::run_curl;
use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, HOST};

const MIB: u64 = 1024 * 1024;
/// Resident memory that no transfer may take the gateway beyond, in MiB.
const MEMORY: f64 = 100.0;
/// What a stalled client may leave in the sockets' and the gateway's buffers together.
const IN_FLIGHT: u64 = 32 * MIB;
/// An upstream that sends nothing for so long is held back.
const STILL: Duration = Duration::from_millis(500);

pub fn run(context: &Context) -> Outcome {
    let size = context.count(1024, 64) * MIB;
    let scene = Scene::start(context, size)?;
    let mut figures = Figures::default();
    for (name, flags, base) in scene.edge.ways() {
        scene.upload(&flags, &base, size).map_err(|error| format!("{name} upload: {error}"))?;
        Scene::download(&flags, &base, size).map_err(|error| format!("{name} download: {error}"))?;
        figures.add(format!("{name}: {} MiB each way, peak {:.0} MiB", size / MIB, scene.peak()?));
    }
    let sent = scene.slow_reader(size)?;
    figures.add(format!(
        "slow reader: the upstream stopped after {} KiB; peak {:.0} MiB",
        sent / 1024,
        scene.peak()?
    ));
    Ok(figures)
}

struct Scene {
    _stage: Stage,
    backend: Backend,
    gateway: Gateway,
    edge: Edge,
    file: PathBuf,
    checksum: u32,
}

impl Scene {
    fn start(context: &Context, size: u64) -> Result<Self, String> {
        let stage = context.stage()?;
        let edge = Edge::new(&stage)?;
        stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
        let backend = stage.pools(&["one"])?.remove(0);
        let gateway = stage.gateway(&context.options())?;
        let file = stage.path().join("upload");
        // A sparse file: the bytes are zeros, and no disk is needed for them.
        File::create(&file)
            .and_then(|file| file.set_len(size))
            .map_err(|error| format!("upload file: {error}"))?;
        Ok(Self { _stage: stage, backend, gateway, edge, file, checksum: checksum_of_zeros(size) })
    }

    fn upload(&self, flags: &[String], base: &str, size: u64) -> Result<(), String> {
        let file = self.file.display().to_string();
        let output = run_curl(flags, &["-T", &file, &format!("{base}/upload")])?;
        let wanted = format!("{{\"bytes\":{size},\"crc32\":{}}}", self.checksum);
        ensure(output == wanted, || format!("the backend received {output}, wanted {wanted}"))
    }

    fn download(flags: &[String], base: &str, size: u64) -> Result<(), String> {
        let url = format!("{base}/bytes/{size}");
        let output = run_curl(flags, &["-o", "/dev/null", "-w", "%{http_code} %{size_download}", &url])?;
        ensure(output == format!("200 {size}"), || format!("curl saw {output}"))
    }

    /// Stops reading in the middle; how much the upstream had sent when it stopped too.
    fn slow_reader(&self, size: u64) -> Result<u64, String> {
        let failed = |error: std::io::Error| format!("slow reader: {error}");
        let before = self.backend.counter("sent_bytes")?;
        let mut stream = http::connect(self.edge.plain).map_err(failed)?;
        let request = format!("GET /bytes/{size} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(failed)?;
        let mut piece = vec![0; MIB as usize];
        stream.read_exact(&mut piece).map_err(failed)?;
        let mut sent = self.backend.counter("sent_bytes")? - before;
        loop {
            std::thread::sleep(STILL);
            let now = self.backend.counter("sent_bytes")? - before;
            ensure(now <= IN_FLIGHT, || {
                format!("slow reader: the upstream has sent {now} bytes and goes on")
            })?;
            // Asking for the counter is itself an answer of a few hundred bytes.
            if now < sent + 1024 {
                break;
            }
            sent = now;
        }
        for _ in 0..IN_FLIGHT / MIB {
            stream.read_exact(&mut piece).map_err(|error| format!("slow reader, reading on: {error}"))?;
        }
        Ok(sent)
    }

    fn peak(&self) -> Result<f64, String> {
        let peak = self.gateway.process.peak_memory_mib()?;
        ensure(peak <= MEMORY, || {
            format!("the gateway's memory rose to {peak:.0} MiB; allowed are {MEMORY}")
        })?;
        Ok(peak)
    }
}

fn checksum_of_zeros(size: u64) -> u32 {
    let block = vec![0; MIB as usize];
    let mut checksum = crc32fast::Hasher::new();
    (0..size / MIB).for_each(|_| checksum.update(&block));
    checksum.finalize()
}
