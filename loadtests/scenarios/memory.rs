//! Bodies of any size stream: 1 GiB each way by every protocol leaves the gateway's memory bounded.

use std::fs::File;
use std::path::PathBuf;

use fieldgate_loadtests::rig::{Backend, Gateway, config};

use crate::clients::run_curl;
use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, Way};

const MIB: u64 = 1024 * 1024;
/// Resident memory that no transfer may take the gateway beyond, in MiB.
const MEMORY: f64 = 100.0;

pub fn run(context: &Context) -> Outcome {
    let size = context.count(1024, 64) * MIB;
    let scene = Scene::start(context, size)?;
    let mut figures = Figures::default();
    for Way { name, curl: flags, base, .. } in scene.edge.ways() {
        scene.upload(&flags, &base, size).map_err(|error| format!("{name} upload: {error}"))?;
        Scene::download(&flags, &base, size).map_err(|error| format!("{name} download: {error}"))?;
        figures.add(format!("{name}: {} MiB each way, peak {:.0} MiB", size / MIB, scene.peak()?));
    }
    Ok(figures)
}

struct Scene {
    _stage: Stage,
    _backend: Backend,
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
        Ok(Self { _stage: stage, _backend: backend, gateway, edge, file, checksum: checksum_of_zeros(size) })
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
