//! `fieldgate run`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use fieldgate_core::ir::Locality;
use tracing_subscriber::EnvFilter;

use super::admin::AdminArgs;
use super::hardening::HardeningArgs;
use super::overload::OverloadArgs;
use super::trust_domain::TrustDomainArgs;
use super::{DEFAULT_ADMIN, duration, locality};
use crate::audit;
use crate::control::ApiWrite;
use crate::host::{self, RunOptions};
use crate::telemetry::access_log::{self, Format, Target};

/// Serve a configuration, and follow its changes.
#[derive(Args)]
#[command(after_help = "Examples:
  fieldgate run --config /etc/fieldgate
  fieldgate run --config ./config --access-log - --access-log-format json
  kustomize build . | fieldgate run --config -

Signals: TERM drains and ends; INT ends at once; USR1 opens the access log and the audit log anew.
A new process started with --upgrade and the same --upgrade-socket takes over without a refused connection.")]
pub(super) struct Run {
    /// Directories (read through, *.yaml *.yml *.json), files, or `-` for standard input.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    config: Vec<PathBuf>,
    /// Where the admin server listens (metrics, status); `off` for nowhere.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN, value_parser = admin)]
    admin: Admin,
    #[command(flatten)]
    admin_access: AdminArgs,
    /// Worker threads; by default one per core that the process may use.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Where this gateway stands, for what prefers endpoints nearby.
    #[arg(long, value_name = "REGION/ZONE/SUBZONE", env = "FIELDGATE_LOCALITY", value_parser = locality)]
    locality: Option<Locality>,
    #[command(flatten)]
    trust_domain: TrustDomainArgs,
    /// The gateway's certificate in its mesh: cert-chain.pem, key.pem and root-cert.pem (or ca.pem). Istio's
    /// /var/run/secrets/workload-spiffe-credentials is used where it is there.
    #[arg(long, value_name = "DIR", env = "FIELDGATE_WORKLOAD_CERTIFICATE")]
    workload_certificate: Option<PathBuf>,
    /// Where requests are logged: a file, `-` for standard output, or `off`.
    #[arg(long, value_name = "PATH", default_value = "off")]
    access_log: String,
    /// `text` (Istio's), `json`, or a text with Envoy's operators: '%REQ(:METHOD)% %RESPONSE_CODE% %DURATION%'.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = str::parse::<Format>)]
    access_log_format: Format,
    /// Where changes of the gateway are written down, and by whom they were made: a file, `-` for standard output, or `off`.
    #[arg(long, value_name = "PATH", default_value = "off")]
    audit_log: String,
    /// Let the admin server change objects, and with them the files of the directory (`fieldgate apply`). On loopback or
    /// with TLS only.
    #[arg(long)]
    api_write: bool,
    /// The same, for whoever can reach the admin server: it asks for no password.
    #[arg(long)]
    api_write_from_anywhere: bool,
    /// How long requests in flight may take to finish when the process ends.
    #[arg(long, value_name = "TIME", default_value = "45s", value_parser = duration)]
    drain_time: Duration,
    /// Holds the process id while the process serves.
    #[arg(long, value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Where this process hands its sockets to the one that follows it.
    #[arg(long, value_name = "PATH")]
    upgrade_socket: Option<PathBuf>,
    /// Take the sockets from the process that serves now.
    #[arg(long, requires = "upgrade_socket")]
    upgrade: bool,
    #[command(flatten)]
    hardening: HardeningArgs,
    #[command(flatten)]
    overload: OverloadArgs,
    /// What is logged to standard error: error, warn, info, debug, or directives such as `info,fieldgate=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info,pingora_core=warn")]
    log_level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Admin(Option<SocketAddr>);

impl Run {
    pub(super) fn run(self) -> ExitCode {
        if let Err(message) = init_log(&self.log_level) {
            eprintln!("fieldgate: {message}");
            return ExitCode::from(2);
        }
        host::run(self.options())
    }

    fn options(self) -> RunOptions {
        let access_log = access_log_target(&self.access_log)
            .map(|target| access_log::Options { target, format: self.access_log_format });
        RunOptions {
            limits: self.overload.limits(),
            hardening: self.hardening.options(),
            admin_access: self.admin_access.options(),
            audit_log: audit_log_target(&self.audit_log),
            config: self.config,
            admin: self.admin.0,
            workers: self.workers.map(usize::from),
            locality: self.locality,
            trust_domains: self.trust_domain.names(),
            workload_certificate: self.workload_certificate,
            drain_time: self.drain_time,
            pid_file: self.pid_file,
            upgrade: self.upgrade,
            upgrade_socket: self.upgrade_socket,
            access_log,
            api_write: match (self.api_write, self.api_write_from_anywhere) {
                (_, true) => ApiWrite::Anyone,
                (true, false) => ApiWrite::Loopback,
                (false, false) => ApiWrite::Off,
            },
        }
    }
}

fn admin(text: &str) -> Result<Admin, String> {
    if text == "off" {
        return Ok(Admin(None));
    }
    let address =
        text.parse().map_err(|_| "write an address and a port: 127.0.0.1:15000, or `off`".to_owned())?;
    Ok(Admin(Some(address)))
}

fn audit_log_target(text: &str) -> Option<audit::Target> {
    match text {
        "off" => None,
        "-" => Some(audit::Target::Stdout),
        path => Some(audit::Target::File(path.into())),
    }
}

fn access_log_target(text: &str) -> Option<Target> {
    match text {
        "off" => None,
        "-" => Some(Target::Stdout),
        path => Some(Target::File(path.into())),
    }
}

/// To standard error, so that an access log on standard output stays clean.
fn init_log(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("--log-level `{level}`: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .try_init()
        .map_err(|error| format!("cannot set up the log: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Alone {
        #[command(flatten)]
        run: Run,
    }

    fn parse(arguments: &[&str]) -> Result<RunOptions, String> {
        let all = ["run"].iter().chain(arguments);
        Alone::try_parse_from(all).map(|alone| alone.run.options()).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let options = parse(&["--config", "a", "b"]).unwrap();
        assert_eq!(options.config, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(options.admin, Some("127.0.0.1:15000".parse().unwrap()));
        assert_eq!((options.workers, options.access_log), (None, None));
        assert_eq!(options.api_write, ApiWrite::Off);
        let limits = options.limits;
        assert_eq!((limits.per_address, limits.per_source), (None, None));
        assert_eq!(limits.delay, Some(Duration::from_millis(100)));
        assert!(limits.connections.is_some() && limits.hold_back_floods);
        assert_eq!(parse(&["--config=a", "--api-write"]).unwrap().api_write, ApiWrite::Loopback);
        let anyone = parse(&["--config=a", "--api-write", "--api-write-from-anywhere"]).unwrap();
        assert_eq!(anyone.api_write, ApiWrite::Anyone);
    }

    #[test]
    fn all_flags() {
        let options = parse(&[
            "--config=-",
            "--admin=off",
            "--workers=2",
            "--locality=eu-west-1/eu-west-1a",
            "--workload-certificate=w",
            "--access-log=-",
            "--access-log-format=json",
            "--drain-time=5s",
            "--pid-file=p",
            "--upgrade-socket=u",
            "--upgrade",
            "--max-connections=9",
            "--max-connections-per-address=8",
            "--max-connections-per-source=7",
            "--max-memory=1GiB",
            "--max-delay=off",
            "--hold-back-floods=off",
        ])
        .unwrap();
        let limits = crate::overload::Limits {
            connections: Some(9),
            per_address: Some(8),
            per_source: Some(7),
            memory: Some(1 << 30),
            delay: None,
            hold_back_floods: false,
        };
        assert_eq!(options.limits, limits);
        assert_eq!((options.admin, options.workers, options.upgrade), (None, Some(2), true));
        assert_eq!(options.locality, Some(Locality::parse("eu-west-1/eu-west-1a")));
        assert_eq!(options.workload_certificate, Some(PathBuf::from("w")));
        let log = access_log::Options { target: Target::Stdout, format: Format::Json };
        assert_eq!(options.access_log, Some(log));
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (arguments, part) in [
            (&["--config=a", "--admin=15000"][..], "127.0.0.1:15000"),
            (&["--config=a", "--workers=0"], "1..=1024"),
            (&["--config=a", "--locality=/a"], "region/zone/subzone"),
            (&["--config=a", "--drain-time=45"], "45s"),
            (&["--config=a", "--access-log-format=%NOPE%"], "no operator"),
            (&["--config=a", "--max-connections=0"], "above 0"),
            (&["--config=a", "--max-memory=4"], "512MiB"),
            (&["--config=a", "--upgrade"], "--upgrade-socket"),
            (&[], "--config"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
