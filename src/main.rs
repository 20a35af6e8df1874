//! The `jobcache` command: parses the command line, loads the configuration, starts telemetry and the
//! runtime, binds, runs, and returns the exit code.

mod cli;

use std::{
    env, io, mem,
    net::SocketAddr,
    path::Path,
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use cli::{CheckArgs, Command, check, manual_page};
use jobcache::{
    Listeners, RunError,
    config::{
        self, Config, Flags, InvalidConfig, ListenAddress, LoadedConfig, LogFormat, MemoryLimit,
        ProcessFacts,
    },
    demo::{self, DemoError},
    reload::{self, ReloadOutcome, Reloader},
    server::listen::{self, Listener, Reuse},
    systemd::{self, InheritedSockets, InheritedSocketsError},
    telemetry,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{self, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use tracing::{info, warn};

/// `EX_CONFIG` of sysexits.h, so that an orchestrator can distinguish it from a crash. Wrong usage is 2.
const BAD_CONFIG: u8 = 78;
/// Exit code that a shell reports for a process that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// A second signal of a kind this soon after the first counts as the same one: `timeout` sends it to
/// the process and to its group, and wrappers pass on what the process has got already.
const ECHO: Duration = Duration::from_millis(100);
/// The same for SIGTERM, which no person repeats: wrappers may take longer.
const TERMINATE_ECHO: Duration = Duration::from_secs(1);
/// Time for the tasks that are left to end, after everything has been served and logged.
const TASKS_END: Duration = Duration::from_millis(200);
/// Files for other purposes than connections of clients and upstream: Redis, admin listener, log.
const SPARE_FILES: usize = 256;
/// Log filter of `jobcache demo`.
const DEMO_LOG: &str = "warn";

fn main() -> ExitCode {
    run().unwrap_or_else(|failure| failure.report())
}

fn run() -> Result<ExitCode, Failure> {
    let (flags, command) = cli::parse();
    match command {
        None => serve(flags)?,
        Some(Command::Check(args)) => check(flags, &args)?,
        Some(Command::Healthcheck(_)) => return Ok(healthcheck(flags)),
        Some(Command::Demo(args)) => demonstrate(args)?,
        Some(Command::Completions { shell }) => manual_page::completions(shell)?,
        Some(Command::Man { command }) => manual_page::manual(command.as_deref())?,
        Some(Command::Docs { document }) => manual_page::document(document)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Error that ends the process.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}\n`jobcache man | man -l -` explains every setting")]
    Config(#[from] InvalidConfig),
    #[error("cannot use the sockets of the service manager: {0}")]
    Sockets(#[from] InheritedSocketsError),
    #[error("cannot listen on {address}: {source}\n{}", remedy(source, address, flag))]
    Bind { address: ListenAddress, flag: &'static str, source: io::Error },
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error("cannot serve: {0}")]
    Run(#[from] RunError),
    #[error("{0}")]
    Unreachable(check::Unreachable),
    #[error(transparent)]
    Demo(#[from] DemoError),
}

impl Failure {
    /// Prints the failure to standard error, not to the log: the log may be off, or not started yet.
    fn report(&self) -> ExitCode {
        eprintln!("jobcache: {self}");
        let config = matches!(
            self,
            Self::Config(_)
                | Self::Sockets(_)
                | Self::Demo(DemoError::Config(_))
                | Self::Run(RunError::Tls(_))
        );
        ExitCode::from(if config { BAD_CONFIG } else { 1 })
    }
}

fn remedy(error: &io::Error, address: &ListenAddress, flag: &str) -> String {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, AlreadyExists, PermissionDenied};
    let is_unix = matches!(address, ListenAddress::Unix(_));
    let advice = match (error.kind(), is_unix) {
        (AddrInUse, true) => "another process listens there: stop it, or choose another path",
        (AlreadyExists, true) => "the path exists and is not a socket: choose another path",
        (_, true) => "its directory must exist and be writable: choose another path",
        (AddrInUse, _) => "another process uses this port: stop it, or choose another port",
        (PermissionDenied, _) => "ports below 1024 need privileges: choose a higher port",
        (AddrNotAvailable, _) => "this machine does not have this address: choose another one",
        _ => "choose another address",
    };
    format!("{advice} with {flag}")
}

/// Collects the facts about this process.
fn facts(sockets: Vec<(&'static str, SocketAddr)>) -> ProcessFacts {
    ProcessFacts { sockets, memory: MemoryLimit::read(Path::new("/")) }
}

fn load(process: &ProcessFacts, flags: Flags) -> Result<LoadedConfig, InvalidConfig> {
    // Lossy, so that a value that is not UTF-8 fails the check of its setting instead of being ignored.
    let env = env::vars_os()
        .map(|(name, text)| (name.to_string_lossy().into(), text.to_string_lossy().into()));
    Config::load_with(process, flags, env)
}

fn serve(flags: Flags) -> Result<(), Failure> {
    let inherited = InheritedSockets::take()?;
    // Read once: a limit that changes must not make a reload differ from the start.
    let process = facts(inherited.addresses());
    let mut loaded = load(&process, flags.clone())?;
    let Config { log, traces, .. } = &loaded.config;
    let telemetry =
        telemetry::init(&log.filter, log.format, traces.as_ref()).map_err(io::Error::other)?;
    for warning in &loaded.warnings {
        warn!(warning, "look at the configuration");
    }
    if let Some(limit) = process.memory.as_ref().filter(|_| !loaded.lowered.is_empty()) {
        let defaults = loaded.lowered.join(", ");
        info!(%limit, defaults, "defaults are lower because of the memory limit");
    }
    bound_connections(&mut loaded.config);
    run_on(serving(loaded.config.server.workers)?, async {
        let signals = Signals::new()?;
        let hangup = signal(SignalKind::hangup())?;
        let config = &loaded.config;
        let reuse = if config.server.reuse_port { Reuse::Port } else { Reuse::Never };
        let listeners = Listeners {
            proxy: match inherited.proxy {
                Some(passed) => adopt(passed)?,
                None => bind(&config.listen, reuse, config.unix_mode, "--listen")?,
            },
            admin: match inherited.admin {
                Some(passed) => adopt(passed)?,
                None => bind(&config.admin, Reuse::Never, config.unix_mode, "--admin")?,
            },
        };
        let serving = format!("serving clients on {}", config.listen);
        let (reloader, reloads) = reload::channel(move || load(&process, flags.clone()), telemetry);
        tokio::spawn(reload_on(hangup, reloader));
        let shutdown = async {
            systemd::ready(&serving);
            signals.shutdown().await;
            systemd::stopping("draining");
        };
        Ok(jobcache::run_reloading(loaded, listeners, shutdown, reloads).await?)
    })
}

/// Raises the limit of open files, and accepts no more client connections than it leaves room for.
fn bound_connections(config: &mut Config) {
    let config::UpstreamConfig { max_connections: upstream, max_streams, .. } = config.upstream;
    let clients = &mut config.server.max_connections;
    let wanted = *clients + upstream;
    let Some(limit) = raise_open_files(wanted.saturating_add(max_streams)) else { return };
    let asked = mem::replace(clients, clients_within(limit, *clients, upstream));
    if *clients < asked {
        warn!(
            limit,
            wanted,
            clients = *clients,
            "the limit of open files is less than server.max_connections plus \
             upstream.max_connections, so fewer client connections are accepted; raise it \
             (ulimit -Hn, LimitNOFILE=) or lower those settings"
        );
    }
}

/// Raises the soft limit of open files, of which each connection is one, to what `wanted` connections
/// need, as far as the hard limit allows. Returns it. Shells start programs with a soft limit of 1,024 for
/// those that use `select`.
fn raise_open_files(wanted: usize) -> Option<usize> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let soft = current?;
    let useful = wanted.saturating_add(SPARE_FILES) as u64;
    let mut limit = maximum.unwrap_or(u64::MAX).min(useful).max(soft);
    if limit > soft {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum }) {
            Ok(()) => info!(from = soft, to = limit, "raised the limit of open files"),
            Err(error) => {
                warn!(%error, limit = soft, "cannot raise the limit of open files");
                limit = soft;
            }
        }
    }
    usize::try_from(limit).ok()
}

/// Returns how many of `clients` connections leave room for the admin listener, Redis and the upstream.
fn clients_within(limit: usize, clients: usize, upstream: usize) -> usize {
    let spare = SPARE_FILES.min(limit / 2);
    let left = limit - spare;
    clients.min(left - upstream.min(left / 2)).max(1)
}

/// Reloads at each SIGHUP; signals that arrive during a reload count as one.
async fn reload_on(mut hangup: Signal, reloader: Reloader) {
    while hangup.recv().await.is_some() && !reloader.is_gone() {
        systemd::reloading();
        let Some(outcome) = reloader.reload().await else { return };
        systemd::ready(match outcome {
            ReloadOutcome::Applied => "serving with the reloaded configuration",
            ReloadOutcome::Unchanged => "serving; the configuration has not changed",
            ReloadOutcome::Refused => {
                "serving with the old configuration; the new one needs a restart"
            }
            ReloadOutcome::Invalid => {
                "serving with the old configuration; the new one has mistakes"
            }
        });
    }
}

/// Runs the demo. It prints its own figures, so only warnings are logged.
fn demonstrate(args: demo::Args) -> Result<(), Failure> {
    telemetry::init(DEMO_LOG, LogFormat::Human, None).map_err(io::Error::other)?;
    run_on(runtime::Builder::new_multi_thread().enable_all().build()?, async {
        let signals = Signals::new()?;
        Ok(Box::pin(demo::run(args, signals.shutdown())).await?)
    })
}

fn bind(
    address: &ListenAddress,
    reuse: Reuse,
    unix_mode: u32,
    flag: &'static str,
) -> Result<Listener, Failure> {
    let failed = |source| Failure::Bind { address: address.clone(), flag, source };
    listen::bind(address, reuse, unix_mode).map_err(failed)
}

/// Listens on a socket that the service manager has bound.
fn adopt(passed: std::net::TcpListener) -> io::Result<Listener> {
    passed.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(passed).map(Listener::Tcp)
}

/// Signals that ask for a shutdown: orchestrators send SIGTERM, terminals SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// Waits for the first signal. After that, a second one ends the process at once.
    async fn shutdown(mut self) {
        let first = self.next().await;
        let began = Instant::now();
        info!("shutting down; a second signal ends the process at once");
        tokio::spawn(async move {
            while is_echo(first, self.next().await, began.elapsed()) {}
            warn!("ended by a second signal");
            process::exit(INTERRUPTED);
        });
    }
}

/// Whether a signal repeats the first one.
fn is_echo(first: SignalKind, next: SignalKind, after: Duration) -> bool {
    let echo = if first == SignalKind::terminate() { TERMINATE_ECHO } else { ECHO };
    next == first && after < echo
}

fn check(flags: Flags, args: &CheckArgs) -> Result<(), Failure> {
    let loaded = load(&facts(Vec::new()), flags)?;
    run_on(single_threaded()?, check::run(&loaded, args))
}

/// Docker only defines 0 and 1, so an invalid configuration is 1 here too.
fn healthcheck(flags: Flags) -> ExitCode {
    let health =
        load(&facts(Vec::new()), flags).map_err(|error| error.to_string()).and_then(|loaded| {
            let runtime = single_threaded().map_err(|error| error.to_string())?;
            run_on(runtime, check::health(&loaded.config.admin))
        });
    health.map_or_else(
        |error| {
            eprintln!("jobcache: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

/// Starts the runtime. A sidecar by default leaves half of the CPUs to the processes that it serves.
fn serving(workers: usize) -> io::Result<Runtime> {
    let half = || thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).max(1));
    let workers = if workers == 0 { half() } else { workers };
    runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()
}

/// Runs `main` to its end. Tasks that are left get [`TASKS_END`], and a thread that waits for the
/// system, as for a DNS server that does not answer, ends with the process.
fn run_on<F: Future>(runtime: Runtime, main: F) -> F::Output {
    let ended = runtime.block_on(main);
    runtime.shutdown_timeout(TASKS_END);
    ended
}

fn single_threaded() -> io::Result<Runtime> {
    runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_half_of_a_low_limit_of_files_to_the_rest() {
        assert_eq!(clients_within(100_000, 10_000, 512), 10_000);
        assert_eq!(clients_within(10_768, 10_000, 512), 10_000);
        assert_eq!(clients_within(4_096, 10_000, 512), 4_096 - 512 - 256);
        assert_eq!(clients_within(80, 10_000, 512), 20);
        assert_eq!(clients_within(0, 10_000, 512), 1);
    }

    #[test]
    fn a_second_signal_of_a_kind_at_once_is_the_first_one() {
        let (int, term) = (SignalKind::interrupt(), SignalKind::terminate());
        let soon = Duration::from_millis(1);
        assert!(is_echo(int, int, soon));
        assert!(!is_echo(int, int, ECHO), "a person wants to end the process now");
        assert!(!is_echo(int, term, soon) && !is_echo(term, int, soon));
        assert!(is_echo(term, term, ECHO) && !is_echo(term, term, TERMINATE_ECHO));
    }
}
