//! The process: starts workers and the control task, and ends them in good order.
//!
//! pingora-core's `Server` hosts it: it runs the service's runtime and its main loop. What a signal means is decided here,
//! in `Signals`, and pingora learns of an end only when it is safe; why is in
//! `docs/decisions/0002-pingora-hosts-the-process.md`.

mod admin_socket;
mod files;
mod handover;
mod pid_file;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use fieldgate_config::translate::TrustDomains;
use fieldgate_core::ir::Locality;
use pingora_core::server::configuration::ServerConf;
use pingora_core::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora_core::services::Service;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::{self, Access};
use crate::audit::{self, Audit, Who};
use crate::control::{self, AdminState, ApiWrite, Control, ControlHandle, Event, Parts};
use crate::hardening;
use crate::jwks::KeySets;
use crate::overload::{self, Limits, Overload};
use crate::panics;
use crate::published::{Published, Shared};
use crate::resolve::Resolver;
use crate::source::{Source, Watcher};
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::{self, AccessLog};
use crate::worker::{self, WorkerHandle};
use crate::workload;
use handover::{Takeover, UpgradeSocket};
use pid_file::PidFile;

/// Threads of the control runtime: compiling on one must not stop checks and answers on the other.
const CONTROL_THREADS: usize = 2;
/// How long workers may take beyond their own deadline before the process ends without them.
const OVERTIME: Duration = Duration::from_secs(2);
/// How often lost workers are looked for.
const LOST_POLL: Duration = Duration::from_secs(1);
/// How often ended workers are looked for while draining.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// What `fieldgate run` was told.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Files and directories; `-` is standard input.
    pub config: Vec<PathBuf>,
    /// Where the admin server listens; `None` is nowhere.
    pub admin: Option<SocketAddr>,
    /// How many workers; `None` is one per core that the process may use.
    pub workers: Option<usize>,
    /// Where this gateway stands.
    pub locality: Option<Locality>,
    /// What the trust domain is called that it belongs to.
    pub trust_domains: TrustDomains,
    /// Where the gateway's certificate in its mesh is.
    pub workload_certificate: Option<PathBuf>,
    /// How long requests in flight may take to finish at the end.
    pub drain_time: Duration,
    /// Holds the process id while the process serves.
    pub pid_file: Option<PathBuf>,
    /// Take the listening sockets from the process that serves now.
    pub upgrade: bool,
    /// Where the process that serves and the one that follows it meet.
    pub upgrade_socket: Option<PathBuf>,
    /// Where requests are logged.
    pub access_log: Option<access_log::Options>,
    /// Whether the admin server changes objects.
    pub api_write: ApiWrite,
    /// The gateway's own limits.
    pub limits: Limits,
    /// What the process takes from itself.
    pub hardening: hardening::Options,
    /// TLS and roles of the admin server.
    pub admin_access: admin::Options,
    /// Where changes are written down.
    pub audit_log: Option<audit::Target>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            config: Vec::new(),
            admin: None,
            workers: None,
            locality: None,
            trust_domains: TrustDomains::default(),
            workload_certificate: None,
            drain_time: Duration::from_secs(30),
            pid_file: None,
            upgrade: false,
            upgrade_socket: None,
            access_log: None,
            api_write: ApiWrite::Off,
            limits: Limits::default(),
            hardening: hardening::Options::default(),
            admin_access: admin::Options::default(),
            audit_log: None,
        }
    }
}

/// Runs the gateway until it is told to end. Logging must be set up before.
pub fn run(options: RunOptions) -> ExitCode {
    panics::watch();
    files::raise_limit();
    let hardened = match hardening::enter(&options.hardening, &files::places(&options)) {
        Ok(report) => Arc::new(report),
        Err(message) => {
            tracing::error!("{message}; the process ends");
            return ExitCode::FAILURE;
        }
    };
    let audit = match Audit::open(options.audit_log.clone()) {
        Ok(audit) => Arc::new(audit),
        Err(message) => {
            tracing::error!("{message}; the process ends");
            return ExitCode::FAILURE;
        }
    };
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "config": audit::names(options.config.iter().map(|path| path.display().to_string())),
        "hardening": hardened.json(),
    });
    audit.record("start", &Who::Process("this process"), about, &audit::Outcome::Done);
    let (control, events) = control::channel();
    let end = Arc::new(watch::Sender::new(None));
    let signals = Signals {
        control: control.clone(),
        drain_time: options.drain_time,
        end: end.subscribe(),
        audit: Arc::clone(&audit),
    };
    let gateway = Gateway {
        start: Some(Start {
            options,
            hardened,
            audit: Arc::clone(&audit),
            control,
            events,
            end: Arc::clone(&end),
        }),
    };
    let conf = ServerConf {
        threads: CONTROL_THREADS,
        work_stealing: true,
        // By the time pingora hears of an end, everything has drained.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    server.add_service(gateway);
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    let failed = matches!(*end.borrow(), Some(End::Failed));
    let about = json!({"pid": std::process::id(), "failed": failed});
    audit.record("end", &Who::Process("this process"), about, &audit::Outcome::Done);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// All that was in flight finished, or the deadline passed.
    Drained,
    /// It could not start.
    Failed,
    /// At once.
    Quit,
}

/// Signals, for pingora's main loop. SIGTERM drains and SIGINT quits; SIGQUIT, pingora's sign for an upgrade, needs no
/// action, as the next process takes the sockets by itself, nor does SIGHUP, which others reload on.
struct Signals {
    control: ControlHandle,
    drain_time: Duration,
    end: watch::Receiver<Option<End>>,
    audit: Arc<Audit>,
}

impl Signals {
    fn record(&self, action: &str, signal: &'static str) {
        self.audit.record(action, &Who::signal(signal), json!({}), &audit::Outcome::Done);
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let mut end = self.end.clone();
        let mut terminate = listen_for(SignalKind::terminate());
        let mut interrupt = listen_for(SignalKind::interrupt());
        let mut quit = listen_for(SignalKind::quit());
        let mut hangup = listen_for(SignalKind::hangup());
        loop {
            tokio::select! {
                () = received(&mut terminate) => {
                    self.record("drain_listeners", "SIGTERM");
                    self.control.send(Event::Drain { deadline: self.drain_time });
                }
                () = received(&mut interrupt) => {
                    self.record("quitquitquit", "SIGINT");
                    tracing::info!("interrupted: ending at once");
                    return ShutdownSignal::FastShutdown;
                }
                () = received(&mut quit) => {
                    tracing::info!("SIGQUIT: a process started with --upgrade takes over by itself; going on until it does");
                }
                () = received(&mut hangup) => {
                    tracing::info!("SIGHUP: nothing to do, for changed files are read as they change");
                }
                ended = end.wait_for(Option::is_some) => {
                    let quick = matches!(ended.as_deref(), Ok(Some(End::Quit)) | Err(_));
                    return if quick { ShutdownSignal::FastShutdown } else { ShutdownSignal::GracefulTerminate };
                }
            }
        }
    }
}

fn listen_for(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| tracing::error!(%error, ?kind, "cannot listen for a signal")).ok()
}

/// Never ends for a signal that cannot be had.
async fn received(signal: &mut Option<Signal>) {
    if let Some(signal) = signal
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// The one service of the process.
struct Gateway {
    start: Option<Start>,
}

#[async_trait]
impl Service for Gateway {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let Some(start) = self.start.take() else { return };
        let end = Arc::clone(&start.end);
        let how = match start.run().await {
            Ok(how) => how,
            Err(message) => {
                tracing::error!("{message}; the process ends");
                End::Failed
            }
        };
        end.send_replace(Some(how));
    }

    fn name(&self) -> &'static str {
        "control"
    }

    fn threads(&self) -> Option<usize> {
        Some(CONTROL_THREADS)
    }
}

struct Start {
    options: RunOptions,
    hardened: Arc<hardening::Report>,
    audit: Arc<Audit>,
    control: ControlHandle,
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    end: Arc<watch::Sender<Option<End>>>,
}

impl Start {
    async fn run(self) -> Result<End, String> {
        let Self { options, hardened, audit, control, events, .. } = self;
        admin_socket::check(&options)?;
        let mut takeover = take_over(&options)?;
        let paths = options.config.clone();
        let opened = tokio::task::spawn_blocking(move || Source::open(&paths)).await;
        let (source, first) = opened.map_err(|error| error.to_string())??;
        let shared = shared(&options)?;
        let workers = spawn_workers(&shared)?;
        let task = Control::new(Parts {
            shared: Arc::clone(&shared),
            workers: workers.len(),
            tell: tell(&workers),
            inherited: takeover.as_mut().map(Takeover::take).unwrap_or_default(),
            resolver: resolver(&control),
            keys: key_sets(&control),
            locality: options.locality.clone(),
            trust_domains: options.trust_domains.clone(),
            directory: options.config.iter().find(|path| path.is_dir()).cloned(),
            audit: Arc::clone(&audit),
        });
        let (view, mut generations, draining) = (task.view(), task.generations(), task.draining());
        let quit = watch::Sender::new(false);
        let mut quit_asked = quit.subscribe();
        let state = Arc::new(AdminState {
            shared: Arc::clone(&shared),
            workers: workers.clone(),
            view,
            control: control.clone(),
            drain_time: options.drain_time,
            quit,
            api_write: options.api_write,
            failing: AtomicBool::new(false),
            hardened,
            access: Access::new(&options.admin_access, options.api_write == ApiWrite::Anyone),
            audit: Arc::clone(&audit),
        });
        let inherited_admin = takeover.as_mut().and_then(Takeover::take_admin);
        let (admin_socket, admin_task) =
            admin_socket::serve(&options, inherited_admin, Arc::clone(&state)).await?;
        // Nothing is served before the admin address is had: a process that ends for want of it must not have taken a
        // connection from the one before.
        follow_workload(&options, &control).await?;
        control.send(Event::Source(first));
        tokio::spawn(watch_control(tokio::spawn(task.run(events)), Arc::clone(&state)));
        let _watcher = watch_source(source, &control)?;
        // What the first configuration names listens from here on.
        let first_published = generations.wait_for(|generation| *generation > 0);
        first_published.await.map_err(|_| "the control task ended".to_owned())?;
        if let Some(takeover) = takeover
            && let Err(error) = takeover.acknowledge()
        {
            // Whatever became of it, this process has the sockets and serves.
            tracing::warn!(%error, "the process before could not be told that this one serves; it may be gone");
        }
        // From here on a failure must not end the process: nobody else serves any more.
        let _pid_file = options.pid_file.as_deref().and_then(|path| logged(PidFile::write(path)));
        let upgrade_socket =
            options.upgrade_socket.as_deref().and_then(|path| logged(UpgradeSocket::bind(path)));
        tokio::spawn(reopen_on_usr1(Arc::clone(&shared), Arc::clone(&audit)));
        tokio::spawn(watch_memory(Arc::clone(&shared.overload), workers.clone()));
        tracing::info!(workers = workers.len(), pid = std::process::id(), "fieldgate serves");

        let lost = lost(&workers, draining.clone());
        let drained = drained(&workers, draining);
        tokio::pin!(drained);
        let how = tokio::select! {
            () = &mut drained => End::Drained,
            true = async { quit_asked.wait_for(|asked| *asked).await.is_ok() } => End::Quit,
            () = lost => return Err("a worker ended unasked".to_owned()),
            () = handed_over(upgrade_socket, admin_socket, &control) => {
                // The next process answers there now.
                if let Some(task) = admin_task {
                    task.abort();
                }
                audit.record("hand_over", &Who::Process("the next process"), json!({}), &audit::Outcome::Done);
                control.send(Event::Drain { deadline: options.drain_time });
                drained.await;
                End::Drained
            }
        };
        if let Some(log) = &shared.published.load().access_log {
            log.flush(OVERTIME);
        }
        Ok(how)
    }
}

fn logged<T>(result: Result<T, String>) -> Option<T> {
    result.inspect_err(|message| tracing::error!("{message}")).ok()
}

fn take_over(options: &RunOptions) -> Result<Option<Takeover>, String> {
    if !options.upgrade {
        return Ok(None);
    }
    let Some(path) = &options.upgrade_socket else {
        return Err(
            "--upgrade needs --upgrade-socket, with the path that the serving process was given".to_owned()
        );
    };
    Takeover::request(path).map(Some)
}

fn shared(options: &RunOptions) -> Result<Arc<Shared>, String> {
    let telemetry = Telemetry::new();
    let access_log = options.access_log.as_ref().map(|log| AccessLog::open(log, &telemetry)).transpose()?;
    let published = Published::nothing(access_log);
    Ok(Arc::new(Shared {
        published: Arc::new(ArcSwap::from_pointee(published)),
        telemetry,
        started: Instant::now(),
        workers: worker_count(options),
        room_news: Arc::default(),
        overload: Overload::new(options.limits, worker_count(options)),
        draining: AtomicBool::new(false),
    }))
}

fn worker_count(options: &RunOptions) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    options.workers.unwrap_or_else(cores).max(1)
}

fn spawn_workers(shared: &Arc<Shared>) -> Result<Vec<Arc<WorkerHandle>>, String> {
    let count = shared.workers;
    (0..count)
        .map(|index| worker::spawn(index, Arc::clone(shared)).map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot start {count} workers: {error}"))
}

fn tell(workers: &[Arc<WorkerHandle>]) -> Box<dyn Fn(usize, worker::Command) + Send + Sync> {
    let workers = workers.to_vec();
    Box::new(move |index, command| workers[index].send(command))
}

fn key_sets(control: &ControlHandle) -> KeySets {
    let control = control.clone();
    KeySets::new(move || control.send(Event::KeysAnswered))
}

fn resolver(control: &ControlHandle) -> Resolver {
    let control = control.clone();
    Resolver::system(move |resolved| control.send(Event::Resolved(resolved)))
}

/// Sends the workload's certificate before any configuration that may need it, and again as it is replaced.
async fn follow_workload(options: &RunOptions, control: &ControlHandle) -> Result<(), String> {
    let Some(directory) = workload::directory(options.workload_certificate.clone()) else { return Ok(()) };
    let path = directory.clone();
    let read = tokio::task::spawn_blocking(move || workload::read(&path)).await;
    let known = match read.map_err(|error| error.to_string())? {
        Ok(workload) => Some(workload),
        Err(why) => {
            tracing::warn!("{why}; until it is there no connection is made for which it is needed");
            None
        }
    };
    if let Some(workload) = known.clone() {
        control.send(Event::Workload(workload));
    }
    let control = control.clone();
    let tell = move |workload| control.send(Event::Workload(workload));
    tokio::spawn(workload::follow(directory, known, tell));
    Ok(())
}

fn watch_source(source: Source, control: &ControlHandle) -> Result<Watcher, String> {
    let control = control.clone();
    source.watch(move |update| control.send(Event::Source(update)))
}

/// Serving goes on without the control task, with what was published last; whoever asks is told that something is wrong.
async fn watch_control(task: tokio::task::JoinHandle<()>, state: Arc<AdminState>) {
    if task.await.is_err() {
        state.failing.store(true, Ordering::Relaxed);
        tracing::error!(
            "the control task has ended: no change takes effect any more (hint: start the gateway anew)"
        );
    }
}

/// Ends once the next process has taken over.
async fn handed_over(
    socket: Option<UpgradeSocket>,
    admin: Option<std::net::TcpListener>,
    control: &ControlHandle,
) {
    match socket {
        Some(socket) => socket.serve(control, admin.as_ref()).await,
        None => std::future::pending().await,
    }
}

/// Ends if a worker does while nothing drains. Nobody would accept from its sockets any more, so the process has to end
/// and be started anew.
async fn lost(workers: &[Arc<WorkerHandle>], draining: watch::Receiver<Option<Duration>>) {
    let mut look = tokio::time::interval(LOST_POLL);
    loop {
        look.tick().await;
        let ended = workers.iter().any(|worker| worker.is_finished());
        if draining.borrow().is_some() {
            return std::future::pending().await;
        }
        if ended {
            return;
        }
    }
}

/// Ends once a drain that has begun is over.
async fn drained(workers: &[Arc<WorkerHandle>], mut draining: watch::Receiver<Option<Duration>>) {
    let begun = draining.wait_for(Option::is_some).await.map(|begun| *begun);
    // An error: the control task is gone, and with it all that could ask for a drain.
    let Ok(Some(deadline)) = begun else { return std::future::pending().await };
    let begun = Instant::now();
    let mut poll = tokio::time::interval(DRAIN_POLL);
    while workers.iter().any(|worker| !worker.is_finished()) {
        poll.tick().await;
        if begun.elapsed() > deadline + OVERTIME {
            tracing::warn!(?deadline, "some workers have not ended in time; ending without them");
            return;
        }
    }
    tracing::info!(took = ?begun.elapsed(), "drained");
}

/// Tells the workers when memory becomes scarce.
async fn watch_memory(overload: Arc<Overload>, workers: Vec<Arc<WorkerHandle>>) {
    overload::watch_memory(overload, overload::resident, |pressure| {
        for worker in &workers {
            worker.send(worker::Command::Pressure(pressure));
        }
    })
    .await;
}

/// As log rotation expects it.
async fn reopen_on_usr1(shared: Arc<Shared>, audit: Arc<Audit>) {
    let mut usr1 = listen_for(SignalKind::user_defined1());
    loop {
        received(&mut usr1).await;
        audit.reopen();
        if let Some(log) = &shared.published.load().access_log {
            log.reopen();
            tracing::info!("access log reopened");
        }
    }
}
