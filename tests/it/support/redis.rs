//! A `redis-server` for each test, and faults for it.

use std::process::{Child, Command, Stdio};

use redis::{AsyncConnectionConfig, FromRedisValue, aio::MultiplexedConnection};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{SOON, eventually, free_port, steady_clock};

/// Attempts to find a port that stays free until Redis has bound it.
const PORT_ATTEMPTS: usize = 5;

pub(crate) struct RedisServer {
    port: u16,
    dir: TempDir,
    program: String,
    args: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts `redis-server` with further arguments, such as `["--maxmemory", "2mb"]`.
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        Self::start_as(program(), args).await
    }

    /// Starts a program that takes the arguments of `redis-server`.
    pub(crate) async fn start_as(program: String, args: &[&str]) -> Self {
        steady_clock();
        let mut server = Self::absent();
        server.program = program;
        server.args = args.iter().map(ToString::to_string).collect();
        for _ in 0..PORT_ATTEMPTS {
            server.spawn();
            if server.answers().await {
                return server;
            }
            server.port = free_port();
        }
        panic!("redis-server does not start; is it installed? {:?}", server.log());
    }

    /// Returns a server with an address that does not run until [`restart_empty`].
    ///
    /// [`restart_empty`]: Self::restart_empty
    pub(crate) fn absent() -> Self {
        let dir = TempDir::with_prefix("jobcache-redis-").expect("a temporary directory");
        Self { port: free_port(), dir, program: program(), args: Vec::new(), child: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Sends SIGKILL: connections are reset, and data since the last [`save`](Self::save) is lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The child may already have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGSTOP: connections stay open and nothing answers.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Sends SIGCONT: commands sent in the meantime are executed now.
    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the server and restarts it on the same port without data.
    pub(crate) async fn restart_empty(&mut self) {
        let _ = std::fs::remove_file(self.dir.path().join("dump.rdb"));
        self.restart_from_rdb().await;
    }

    /// Kills the server and restarts it on the same port with the data of the last
    /// [`save`](Self::save).
    pub(crate) async fn restart_from_rdb(&mut self) {
        self.kill();
        self.spawn();
        assert!(self.answers().await, "redis-server does not restart: {:?}", self.log());
    }

    /// Writes the snapshot that [`restart_from_rdb`](Self::restart_from_rdb) loads. Waits first for
    /// a snapshot that is being written for a replica.
    pub(crate) async fn save(&self) {
        eventually(SOON, async || {
            self.try_run::<()>(&redis::cmd("SAVE")).await.map_err(|error| error.to_string())
        })
        .await;
    }

    /// Opens a connection for the test, with a timeout for busy machines.
    pub(crate) async fn connection(&self) -> MultiplexedConnection {
        self.connect().await.expect("redis-server accepts a connection")
    }

    /// Runs a command on its own connection.
    pub(crate) async fn run<T: FromRedisValue>(&self, command: &redis::Cmd) -> T {
        command.query_async(&mut self.connection().await).await.expect("redis-server answers")
    }

    /// Like [`run`](Self::run), but returns errors.
    pub(crate) async fn try_run<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> redis::RedisResult<T> {
        command.query_async(&mut self.connect().await?).await
    }

    /// Returns whether the server has been started and not killed.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) async fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.run(redis::cmd("GET").arg(key)).await
    }

    /// Returns all bytes under a key of any type that jobcache uses: the records of sidecars are a
    /// sorted set, all others are strings.
    pub(crate) async fn content(&self, key: &str) -> Vec<u8> {
        let kind: String = self.run(redis::cmd("TYPE").arg(key)).await;
        match &*kind {
            "zset" => {
                let mut read = redis::cmd("ZRANGE");
                let members: Vec<Vec<u8>> = self.run(read.arg(key).arg(0).arg(-1)).await;
                members.concat()
            }
            _ => self.get(key).await.unwrap_or_default(),
        }
    }

    pub(crate) async fn set(&self, key: &str, value: &[u8]) {
        let () = self.run(redis::cmd("SET").arg(key).arg(value)).await;
    }

    pub(crate) async fn del(&self, key: &str) {
        let () = self.run(redis::cmd("DEL").arg(key)).await;
    }

    /// Returns the remaining life in milliseconds; -1 without an expiry, -2 without the key.
    pub(crate) async fn ttl_ms(&self, key: &str) -> i64 {
        self.run(redis::cmd("PTTL").arg(key)).await
    }

    pub(crate) async fn keys(&self, pattern: &str) -> Vec<String> {
        self.run(redis::cmd("KEYS").arg(pattern)).await
    }

    /// Returns whether `key` holds a body: it is neither absent nor the empty placeholder of a
    /// lease, nor an entry that a purge of all has voided and not deleted yet.
    pub(crate) async fn holds(&self, key: &str) -> bool {
        // Together, because what is voided may be deleted now.
        let mut read = redis::cmd("MGET");
        read.arg(key).arg(format!("{{{key}}}:meta"));
        let [body, meta]: [Option<Vec<u8>>; 2] = self.run(&read).await;
        let holds_body = body.is_some_and(|body| !body.is_empty());
        holds_body && !self.is_voided(&meta.unwrap_or_default()).await
    }

    async fn is_voided(&self, meta: &[u8]) -> bool {
        let meta: serde_json::Value = serde_json::from_slice(meta).unwrap_or_default();
        let Some((_, of)) = meta["epoch"].as_str().and_then(|epoch| epoch.split_once(' ')) else {
            return false;
        };
        for name in self.keys("{*}:purge-token").await {
            let token = self.get(&name).await;
            if token.as_deref() == Some(of.as_bytes()) {
                return false;
            }
        }
        true
    }

    async fn connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let patience = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(SOON))
            .set_response_timeout(Some(SOON));
        let client = redis::Client::open(self.url())?;
        client.get_multiplexed_async_connection_with_config(&patience).await
    }

    fn spawn(&mut self) {
        // The kernel kills the child when the thread that started it ends for any reason, so that
        // no Redis outlives a killed test process.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", &self.program, "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--logfile", "redis.log"])
            .args(["--port", &self.port.to_string()])
            .arg("--dir")
            .arg(self.dir.path())
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv (util-linux) runs redis-server");
        self.child = Some(child);
    }

    /// Returns whether the child answers PING before the deadline; false at once if it has exited.
    async fn answers(&mut self) -> bool {
        eventually(SOON, async || {
            if self.child.as_mut().is_none_or(|child| child.try_wait().expect("a child").is_some())
            {
                return Some(false);
            }
            let mut connection = self.connect().await.ok()?;
            // After a clash, the port may belong to another process.
            let info: String =
                redis::cmd("INFO").arg("server").query_async(&mut connection).await.ok()?;
            let pid = self.child.as_ref()?.id();
            info.contains(&format!("process_id:{pid}\r\n")).then_some(true)
        })
        .await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("redis-server runs");
        kill_process(Pid::from_child(child), signal).expect("the child exists");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the program to run as Redis: `redis-server`, or the value of the variable, such as
/// `valkey-server`.
pub(crate) fn program() -> String {
    std::env::var("JOBCACHE_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

/// Returns the key of a job with the default prefix.
pub(crate) fn key(id: &str) -> String {
    format!("job_status:{id}")
}

/// Remaining life of a key in Redis right after a fill with the default TTL of 300 s.
pub(crate) const FRESH_TTL_MS: std::ops::RangeInclusive<i64> = 295_000..=300_000;
