//! jobcache itself, in this process or as the real binary.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use jobcache::{
    Listeners, RunError,
    config::{Config, InvalidConfig, LoadedConfig, StoreUrl},
    reload::{self, Reloader, Reloads},
    telemetry::Telemetry,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::{
    Client, RedisServer, SOON, Upstream, client::Reply, eventually, free_port, soon, steady_clock,
};

/// Attempts to find two ports that stay free until the child has bound them.
const PORT_ATTEMPTS: usize = 5;

/// The variable with which hits need not wait after a start of Redis.
const NO_GRACE: (&str, &str) = ("JOBCACHE_STORE_RECONNECT_GRACE", "0s");

/// The variable with which a machine with a hard limit of 20,000 open files has enough for all connections:
/// otherwise there is a warning.
const FEW_STREAMS: (&str, &str) = ("JOBCACHE_UPSTREAM_MAX_STREAMS", "1000");

/// jobcache in this process, with a [`steady_clock`].
pub(crate) struct Sidecar {
    pub(crate) client: Client,
    pub(crate) admin: Client,
    shutdown: Option<oneshot::Sender<()>>,
    run: JoinHandle<Result<(), RunError>>,
}

impl Sidecar {
    pub(crate) async fn start(config: Config) -> Self {
        Self::serve(config.into(), Reloads::never()).await
    }

    /// Starts with the current result of `read`. A reload calls `read` again.
    pub(crate) async fn reloading(
        read: impl Fn() -> Result<LoadedConfig, InvalidConfig> + Send + Sync + 'static,
    ) -> (Self, Reloader) {
        let loaded = read().expect("a configuration to start with");
        let (reloader, reloads) = reload::channel(read, Telemetry::default());
        (Self::serve(loaded, reloads).await, reloader)
    }

    async fn serve(mut loaded: LoadedConfig, reloads: Reloads) -> Self {
        steady_clock();
        let (proxy, admin) = (bind().await, bind().await);
        let address = |listener: &TcpListener| listener.local_addr().expect("a bound listener");
        let (listen, operators) = (address(&proxy), address(&admin));
        loaded.config.listen = listen.into();
        loaded.config.admin = operators.into();
        let listeners = Listeners { proxy: proxy.into(), admin: admin.into() };
        let (client, admin) = (Client::new(listen), Client::operator(operators));
        let (shutdown, told) = oneshot::channel();
        let told = async {
            // A dropped sender is a shutdown too.
            let _ = told.await;
        };
        let run = tokio::spawn(jobcache::run_reloading(loaded, listeners, told, reloads));
        Self { client, admin, shutdown: Some(shutdown), run }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.client.get(path).await
    }

    pub(crate) async fn put(&self, path: &str) -> Reply {
        self.client.put(path).await
    }

    /// Polls a job that no test uses until it is answered from the cache.
    pub(crate) async fn warm(&self) {
        eventually(SOON, async || {
            let reply = self.get("/jobs/warm-up1").await;
            if reply.is_hit() { Ok(()) } else { Err(reply) }
        })
        .await;
    }

    /// Starts draining the sidecar and does not wait.
    pub(crate) fn begin_shutdown(&mut self) {
        self.shutdown.take();
    }

    /// Drains the sidecar and returns the result of `run`.
    pub(crate) async fn shutdown(&mut self) -> Result<(), RunError> {
        self.begin_shutdown();
        soon(&mut self.run).await.expect("run does not panic")
    }

    /// Returns whether a new connection is refused.
    pub(crate) async fn refuses(&self) -> bool {
        TcpStream::connect(self.client.address()).await.is_err()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// Binds a port that no other test of this process is given, also after the sidecar has closed it: what refuses
/// connections then is not taken for something that listens.
async fn bind() -> TcpListener {
    for _ in 0..PORT_ATTEMPTS {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", free_port())).await {
            return listener;
        }
    }
    panic!("no port stays free until it is bound");
}

/// The common setup: one Redis, one upstream, and one sidecar between them.
pub(crate) struct Setup {
    pub(crate) redis: RedisServer,
    pub(crate) upstream: Upstream,
    pub(crate) sidecar: Sidecar,
    config: Config,
}

impl Setup {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts with a changed configuration, and waits until hits are served.
    ///
    /// `settle` is zero, so that a read after a write fills. The budget is generous, so that a busy
    /// machine does not turn a hit into a pass. Tests of these settings override them.
    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let redis = RedisServer::start().await;
        let setup = Self::cold(redis, change).await;
        setup.sidecar.warm().await;
        setup.redis.del("job_status:warm-up1").await;
        setup.upstream.forget_requests();
        setup
    }

    /// Starts with this Redis, running or not, and does not wait for hits.
    pub(crate) async fn cold(redis: RedisServer, change: impl FnOnce(&mut Config)) -> Self {
        let upstream = Upstream::start().await;
        let mut config = config(&redis, &upstream);
        change(&mut config);
        let sidecar = Sidecar::start(config.clone()).await;
        Self { redis, upstream, sidecar, config }
    }

    /// Returns the configuration of the first sidecar.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Starts another sidecar like the first, without waiting for its hits.
    pub(crate) async fn second_cold(&self) -> Sidecar {
        Sidecar::start(self.config.clone()).await
    }

    /// Starts another sidecar like the first, on the same Redis and upstream.
    pub(crate) async fn second(&self) -> Sidecar {
        let second = self.second_cold().await;
        second.warm().await;
        self.upstream.forget_requests();
        second
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.sidecar.get(path).await
    }

    /// Completes an exchange, after which the sidecar has begun to process earlier input.
    pub(crate) async fn exchange(&self) {
        self.get("/exchange").await;
    }

    /// Polls until the path is answered from the cache, and returns that answer.
    pub(crate) async fn hit(&self, path: &str) -> Reply {
        eventually(SOON, async || {
            let reply = self.get(path).await;
            if reply.is_hit() { Ok(reply) } else { Err(reply) }
        })
        .await
    }
}

/// Returns the default configuration for this Redis and this upstream, without a grace after a start
/// of Redis.
pub(crate) fn config(redis: &RedisServer, upstream: &Upstream) -> Config {
    let mut config = Config::default();
    config.cache.settle = Duration::ZERO;
    config.store.budget = Duration::from_secs(2);
    config.store.reconnect_grace = Duration::ZERO;
    config.store.url = StoreUrl::Redis(redis.url());
    config.upstream.url = upstream.url();
    config
}

/// The built binary as a child process.
pub(crate) struct Process {
    pub(crate) client: Client,
    pub(crate) admin: Client,
    child: Child,
    stderr: Arc<Mutex<String>>,
}

impl Process {
    /// Starts with `--listen` and `--admin` on its own ports, and waits until it is live. Without
    /// another value of the variables there is no grace after a start of Redis, and few streams.
    pub(crate) async fn start(args: &[&str], envs: &[(&str, &str)]) -> Self {
        Self::start_from(|| command(args, &[&[NO_GRACE, FEW_STREAMS], envs].concat())).await
    }

    /// Like [`start`](Self::start) for a child that sees `file` at `path`, in a mount namespace.
    /// Returns none if there are no namespaces.
    pub(crate) async fn seeing(
        (path, file): (&str, &Path),
        args: &[&str],
        envs: &[(&str, &str)],
    ) -> Option<Self> {
        let mut probe = Command::new("unshare");
        let has_namespaces = probe.args(["-rm", "true"]).stderr(Stdio::null()).status();
        if !has_namespaces.is_ok_and(|status| status.success()) {
            return None;
        }
        Some(Self::start_from(|| seeing((path, file), args, envs)).await)
    }

    /// Like [`start`](Self::start) for a child that may open this many files.
    pub(crate) async fn with_open_files(limit: usize, args: &[&str]) -> Self {
        Self::start_from(|| with_open_files(limit, args)).await
    }

    async fn start_from(command: impl Fn() -> Command) -> Self {
        steady_clock();
        for _ in 0..PORT_ATTEMPTS {
            let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
            let admin_address = SocketAddr::from(([127, 0, 0, 1], free_port()));
            // Both ports are free, but may be the same.
            if listen == admin_address {
                continue;
            }
            let (proxy, admin) = (listen.to_string(), admin_address.to_string());
            let addresses = ["--listen", &proxy, "--admin", &admin];
            let mut child = command().args(addresses).spawn().expect("the binary runs");
            let stderr = collect(&mut child);
            let (client, admin) = (Client::new(listen), Client::operator(admin_address));
            let mut process = Self { client, admin, child, stderr };
            if process.lives(admin_address).await {
                return process;
            }
            let log = process.stderr();
            assert!(log.to_lowercase().contains("in use"), "jobcache does not start: {log}");
        }
        panic!("no free ports in {PORT_ATTEMPTS} attempts");
    }

    /// Starts a process on the client address of another one, which the configuration may allow.
    /// Waits until it is live.
    pub(crate) async fn beside(listen: SocketAddr, args: &[&str], envs: &[(&str, &str)]) -> Self {
        let admin_address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (proxy, admin) = (listen.to_string(), admin_address.to_string());
        let addresses = ["--listen", &proxy, "--admin", &admin];
        let mut child = command(args, envs).args(addresses).spawn().expect("the binary runs");
        let stderr = collect(&mut child);
        let (client, admin) = (Client::new(listen), Client::operator(admin_address));
        let mut process = Self { client, admin, child, stderr };
        assert!(process.lives(admin_address).await, "{}", process.stderr());
        process
    }

    /// Starts like a service manager with socket activation: with this many listening sockets on
    /// their own ports, under these names.
    pub(crate) async fn activated(sockets: usize, names: Option<&str>, args: &[&str]) -> Self {
        let mut child = activated(sockets, names, args).spawn().expect("python3 runs");
        let stderr = collect(&mut child);
        let (listen, admin) = eventually(SOON, async || {
            let log = stderr.lock().expect("no panic under the lock").clone();
            logged(&log, "listen").zip(logged(&log, "admin")).ok_or(log)
        })
        .await;
        let mut process =
            Self { client: Client::new(listen), admin: Client::operator(admin), child, stderr };
        assert!(process.lives(admin).await, "{}", process.stderr());
        process
    }

    /// Like [`activated`](Self::activated) for a start that fails; returns the exit code and
    /// stderr.
    pub(crate) fn failed_activation(
        sockets: usize,
        names: Option<&str>,
        args: &[&str],
    ) -> (i32, String) {
        let output = activated(sockets, names, args).output().expect("python3 runs");
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Runs to completion with these arguments, and returns exit code, stdout and stderr.
    pub(crate) fn output(args: &[&str], envs: &[(&str, &str)]) -> (i32, String, String) {
        let output = command(args, envs).stdout(Stdio::piped()).output().expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    /// Runs a strict check. Returns whether the store is what it complains about, and the line about the store.
    pub(crate) async fn check_store(
        url: &str,
        upstream: &Upstream,
        envs: &[(&str, &str)],
    ) -> (bool, String) {
        let owned = |text: &str| text.to_owned();
        let args =
            ["check", "--strict", "--upstream", &upstream.url(), "--redis-url", url].map(owned);
        let envs: Vec<_> = envs.iter().map(|(name, value)| (owned(name), owned(value))).collect();
        let run = move || {
            let envs: Vec<_> = envs.iter().map(|(name, value)| (&**name, &**value)).collect();
            Self::output(&args.each_ref().map(String::as_str), &envs)
        };
        let (code, out, error) = tokio::task::spawn_blocking(run).await.expect("no panic");
        let line = out.lines().find(|line| line.starts_with("# store "));
        let line = line.unwrap_or_else(|| panic!("no line about the store: {out}{error}"));
        let was_reached = error.contains("the store was reached, but ");
        let is_named = line.contains("refuses jobcache") || line.contains(": cannot be used: ");
        assert_eq!(was_reached, is_named, "{out}{error}");
        let is_refused = was_reached || error.contains("not everything can be reached: store");
        assert_eq!(code, i32::from(is_refused), "{out}{error}");
        (is_refused, line.to_owned())
    }

    /// Starts without addresses, and waits for nothing.
    pub(crate) fn spawn(args: &[&str], envs: &[(&str, &str)]) -> Self {
        let mut child = command(args, envs).spawn().expect("the binary runs");
        let stderr = collect(&mut child);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { client: Client::new(nowhere), admin: Client::new(nowhere), child, stderr }
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// Sends SIGHUP.
    pub(crate) fn hang_up(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::HUP);
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        eventually(SOON, async || self.child.try_wait().expect("a child")).await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().expect("no panic under the lock").clone()
    }

    /// Returns the peak resident memory in KiB.
    pub(crate) fn peak_memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("the status of a child");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")).expect("VmHWM in kB");
        kib.trim().parse().expect("a number")
    }

    async fn lives(&mut self, admin: SocketAddr) -> bool {
        eventually(SOON, async || {
            if self.child.try_wait().expect("a child").is_some() {
                return Some(false);
            }
            TcpStream::connect(admin).await.ok()?;
            let reply = self.admin.request(hyper::Method::GET, "/livez").try_send().await.ok()?;
            reply.status.is_success().then_some(true)
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn command(args: &[&str], envs: &[(&str, &str)]) -> Command {
    // Like Redis, the child is killed when the thread that started it ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_jobcache")])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(envs.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn with_open_files(limit: usize, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "prlimit", &format!("--nofile={limit}:{limit}")])
        .arg(env!("CARGO_BIN_EXE_jobcache"))
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([NO_GRACE])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Mounts a file over another, and executes jobcache.
const MOUNT: &str = r#"mount --bind "$1" "$2" && shift 2 && exec "$@""#;

fn seeing((path, file): (&str, &Path), args: &[&str], envs: &[(&str, &str)]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "-rm", "sh", "-c", MOUNT, "sh"])
        .arg(file)
        .args([path, env!("CARGO_BIN_EXE_jobcache")])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(envs.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Binds sockets, places them as `sd_listen_fds(3)` expects, and executes jobcache.
const SERVICE_MANAGER: &str = "
import fcntl, os, socket, sys
count, names, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(count)]
high = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 64) for each in sockets]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
if names:
    os.environ['LISTEN_FDNAMES'] = names
os.execv(command[0], command)
";

fn activated(sockets: usize, names: Option<&str>, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "/usr/bin/python3", "-c", SERVICE_MANAGER])
        .args([&sockets.to_string(), names.unwrap_or_default(), env!("CARGO_BIN_EXE_jobcache")])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Returns the address in this field of the log.
fn logged(log: &str, field: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once(&format!(" {field}=\""))?;
    rest.split_once('"')?.0.parse().ok()
}

/// Reads the child's stderr continuously, so that a full pipe never blocks it.
fn collect(child: &mut Child) -> Arc<Mutex<String>> {
    let stderr = child.stderr.take().expect("a piped stderr");
    let log = Arc::new(Mutex::new(String::new()));
    let sink = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = sink.lock().expect("no panic under the lock");
            log.push_str(&line);
            log.push('\n');
        }
    });
    log
}
