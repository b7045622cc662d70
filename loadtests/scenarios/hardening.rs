//! The process that has taken from itself what it does not need serves, reloads, hands over and drains as any other: once
//! started as root with `--user`, and once started by a user who is nobody special. What the kernel says of the process,
//! what it could try and was refused, and its audit log are looked at on the way.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fieldgate_loadtests::load::{Plan, Running};
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, Gateway, GatewayOptions, http, wait};
use serde_json::Value;

use crate::context::{Context, Figures, Outcome, Stage, ensure, ensure_flawless};

const USER: &str = "nobody";
const CONTROLS: [&str; 5] = ["unprivileged", "no_new_privs", "no_core_dumps", "landlock", "seccomp"];
const PROGRESS: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(90);
/// The bit of CAP_NET_BIND_SERVICE, as `/proc` shows it.
const ONLY_LOW_PORTS: &str = "0000000000000400";

pub fn run(context: &Context) -> Outcome {
    let uid = id("-u")?;
    if text_of("id", &["-u"])? != "0" {
        return Ok(Figures::skipped("it starts gateways as other users, for which it has to be root"));
    }
    let mut figures = Figures::default();
    for as_root in [true, false] {
        let how = if as_root { "started as root with --user" } else { "started without privileges" };
        let line = Scene::start(context, uid, as_root)
            .and_then(Scene::play)
            .map_err(|error| format!("{how}: {error}"))?;
        figures.add(format!("{how}: {line}"));
    }
    figures.add(without(context)?);
    Ok(figures)
}

struct Scene {
    stage: Stage,
    _backends: Vec<Backend>,
    options: GatewayOptions,
    uid: u32,
    as_root: bool,
    port: u16,
    gateway: Gateway,
}

impl Scene {
    fn start(context: &Context, uid: u32, as_root: bool) -> Result<Self, String> {
        let stage = context.stage()?;
        let port = low_port()?;
        stage.config.write("gateway", &config::gateway("edge", &[Listener::http("web", port)]))?;
        let backends = stage.pools(&["one", "two"])?;
        stage.config.write("route", &config::route("shop", &[("one", 1), ("two", 1)]))?;
        let mut options = context.options();
        let gid = id("-g")?;
        prepare(&stage, uid, gid, as_root)?;
        options.binary =
            if as_root { context.gateway.clone() } else { unprivileged(context, &stage, uid, gid)? };
        let path = |name: &str| stage.path().join(name).display().to_string();
        let (access, audit) = (path("logs/access.log"), path("logs/audit.log"));
        let (pid, socket) = (path("run/pid"), path("run/upgrade.sock"));
        let flags =
            ["--access-log", &access, "--audit-log", &audit, "--pid-file", &pid, "--upgrade-socket", &socket];
        options.flags = flags.map(str::to_owned).to_vec();
        if as_root {
            options.flags.extend(["--user".to_owned(), USER.to_owned()]);
        }
        let gateway = stage.gateway(&options)?;
        Ok(Self { stage, _backends: backends, options, uid, as_root, port, gateway })
    }

    fn play(mut self) -> Result<String, String> {
        self.held_by_the_kernel()?;
        self.refused()?;
        let load = Plan { connections: 8, ..Plan::new(at(self.port)) }.start()?;
        progress(&load)?;
        self.reloads()?;
        progress(&load)?;
        self.hand_over()?;
        progress(&load)?;
        self.held_by_the_kernel()?;
        let tally = load.stop();
        ensure_flawless("under hardening", &tally)?;
        self.gateway.process.signal("TERM")?;
        let status = self.gateway.process.wait_exit(END)?;
        ensure(status.success(), || format!("the gateway ended with {status}"))?;
        let lines = self.audited()?;
        Ok(format!(
            "user {}, {} controls in force; {} requests on a port below 1024 while it reloaded and handed over, none \
             failed; {lines} lines in the audit log, unbroken",
            self.uid,
            CONTROLS.len(),
            tally.sent
        ))
    }

    /// What `/proc` says, from outside.
    fn held_by_the_kernel(&self) -> Result<(), String> {
        let proc = PathBuf::from(format!("/proc/{}", self.gateway.process.pid()));
        let status = read(&proc.join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let user = [self.uid; 4].map(|uid| uid.to_string()).join(" ");
        let mut expected = vec![
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapEff", ONLY_LOW_PORTS),
            ("CapPrm", ONLY_LOW_PORTS),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
            ("Uid", &user),
        ];
        if self.as_root {
            expected.push(("CapBnd", ONLY_LOW_PORTS));
        }
        for (name, value) in expected {
            ensure(field(name) == value, || format!("{name} is {}, not {value}", field(name)))?;
        }
        ensure(!field("Groups").split(' ').any(|group| group == "0"), || {
            format!("it is in root's group: {}", field("Groups"))
        })?;
        // Every thread, not only the one that asked for it.
        for thread in fs::read_dir(proc.join("task")).map_err(|error| error.to_string())?.flatten() {
            let status = read(&thread.path().join("status"))?;
            ensure(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), || {
                format!("a thread is not restricted:\n{status}")
            })?;
        }
        let limits = read(&proc.join("limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
        ensure(core.split_whitespace().nth(4) == Some("0"), || format!("core files are possible: {core}"))?;
        // What cannot be dumped is root's in /proc, whoever runs it.
        let owner = fs::metadata(proc.join("mem")).map_err(|error| error.to_string())?.uid();
        ensure(owner == 0, || format!("its memory can be read by user {owner}"))
    }

    /// What the process tried itself, and what its configuration makes it try.
    fn refused(&self) -> Result<(), String> {
        let status = http::get_json(self.gateway.admin, "/api/v1/status")?;
        let controls = status["hardening"]["controls"].as_array().cloned().unwrap_or_default();
        let detail = |name: &str| {
            let control =
                controls.iter().find(|control| control["name"] == name && control["active"] == true);
            control.and_then(|control| control["detail"].as_str()).map(str::to_owned)
        };
        for name in CONTROLS {
            ensure(detail(name).is_some(), || format!("{name} is not in force: {:#}", status["hardening"]))?;
        }
        let tried = format!("{:?} {:?}", detail("landlock"), detail("seccomp"));
        ensure(tried.contains("EACCES") && tried.contains("EPERM"), || format!("not tried: {tried}"))?;
        let active = self.gateway.metric("fieldgate_hardening_active", "")?;
        ensure(active == CONTROLS.len() as f64, || format!("{active} controls in the metric"))?;
        // A link that somebody smuggles into the configuration leads nowhere.
        let link = self.stage.config.path().join("smuggled.yaml");
        std::os::unix::fs::symlink("/proc/version", &link).map_err(|error| error.to_string())?;
        let told = || {
            let status: Value = http::get_json(self.gateway.admin, "/api/v1/status").ok()?;
            let text = status["diagnostics"].to_string();
            (text.contains("smuggled.yaml") && text.contains("ermission denied")).then_some(())
        };
        wait::until(PROGRESS, "a file from elsewhere to be refused", told)?;
        fs::remove_file(link).map_err(|error| error.to_string())
    }

    /// Routes, and a further port below 1024, which takes the one right that is left.
    fn reloads(&mut self) -> Result<(), String> {
        for weight in 1..=10 {
            let text = config::route("shop", &[("one", 1), ("two", weight + 1)]);
            self.gateway.change(|| self.stage.config.write("route", &text))?;
        }
        let further = low_port()?;
        let listeners = [Listener::http("web", self.port), Listener::http("more", further)];
        let text = config::gateway("edge", &listeners);
        self.gateway.change(|| self.stage.config.write("gateway", &text))?;
        wait::until_true(PROGRESS, "a further low port", || {
            http::get(at(further), "/").is_ok_and(|response| response.status == 200)
        })
    }

    fn hand_over(&mut self) -> Result<(), String> {
        let mut options = self.options.clone();
        options.flags.push("--upgrade".to_owned());
        let next = Gateway::start_named("gateway-next", &options, &self.stage.config, self.stage.path())?;
        let mut old = std::mem::replace(&mut self.gateway, next);
        let status = old.process.wait_exit(END)?;
        ensure(status.success(), || {
            format!("the process before ended with {status}:\n{}", old.process.log_tail())
        })
    }

    /// Both processes' lines are one chain, and tell of all that was done.
    fn audited(&self) -> Result<usize, String> {
        let path = self.stage.path().join("logs/audit.log");
        let owner = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.uid();
        ensure(owner == self.uid, || format!("the audit log belongs to user {owner}"))?;
        let text = read(&path)?;
        for action in ["start", "reload", "hand_over", "drain_listeners", "end"] {
            ensure(text.contains(&format!("\"action\":\"{action}\"")), || {
                format!("no {action} in:\n{text}")
            })?;
        }
        let verify = |path: &Path| {
            let output = Command::new(&self.options.binary).args(["audit", "verify"]).arg(path).output();
            output.map_err(|error| format!("audit verify: {error}"))
        };
        let output = verify(&path)?;
        ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
        let without_one: Vec<_> =
            text.lines().enumerate().filter(|(at, _)| *at != 1).map(|(_, line)| line).collect();
        let forged = self.stage.path().join("forged");
        fs::write(&forged, without_one.join("\n") + "\n").map_err(|error| error.to_string())?;
        ensure(!verify(&forged)?.status.success(), || "a line that was taken out does not show".to_owned())?;
        Ok(text.lines().count())
    }
}

/// The same process without any of it, so that the marks above mean something.
fn without(context: &Context) -> Result<String, String> {
    let stage = context.stage()?;
    stage.plain_edge()?;
    let mut options = context.options();
    options.flags = vec!["--hardening".into(), "off".into()];
    let gateway = stage.gateway(&options)?;
    let status = read(Path::new(&format!("/proc/{}/status", gateway.process.pid())))?;
    ensure(status.contains("Seccomp:\t0") && status.contains("NoNewPrivs:\t0"), || status.clone())?;
    Ok("with --hardening off: Seccomp 0, NoNewPrivs 0".to_owned())
}

/// The stage's directories as an operator would lay them out: configuration and log directory are root's.
fn prepare(stage: &Stage, uid: u32, gid: u32, as_root: bool) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", stage.path().display());
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
    for (name, own) in [("run", true), ("logs", !as_root)] {
        let path = stage.path().join(name);
        fs::create_dir(&path).map_err(failed)?;
        if own {
            chown(&path, Some(uid), Some(gid)).map_err(failed)?;
        }
    }
    Ok(())
}

/// A script that becomes the user with the one capability, as systemd does, and then the gateway.
fn unprivileged(context: &Context, stage: &Stage, uid: u32, gid: u32) -> Result<PathBuf, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", stage.path().display());
    // Where the build lies, others may not be able to look.
    let binary = stage.path().join("fieldgate");
    fs::copy(&context.gateway, &binary).map_err(failed)?;
    let script = stage.path().join("as-nobody");
    let text = format!(
        "#!/bin/sh\nexec setpriv --reuid={uid} --regid={gid} --clear-groups --inh-caps=+net_bind_service \
         --ambient-caps=+net_bind_service {} \"$@\"\n",
        binary.display()
    );
    fs::write(&script, text).map_err(failed)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    Ok(script)
}

fn low_port() -> Result<u16, String> {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    // Two scenarios at once shall not want the same.
    let from = 600 + (std::process::id() % 200) as u16;
    (from..1024).find(is_free).ok_or_else(|| "no port below 1024 is free".to_owned())
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn progress(load: &Running) -> Result<(), String> {
    let before = load.snapshot().completed();
    wait::until_true(PROGRESS, "answers to go on", || load.snapshot().completed() > before + 200)
}

fn id(what: &str) -> Result<u32, String> {
    let text = text_of("id", &[what, USER])?;
    text.parse().map_err(|_| format!("id {what} {USER}: {text}"))
}

fn text_of(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
