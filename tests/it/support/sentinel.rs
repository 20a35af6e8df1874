//! A real master, two replicas and three sentinels.

use std::{
    collections::HashMap,
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::{AsyncConnectionConfig, FromRedisValue};
use tempfile::TempDir;

use super::{RedisServer, SOON, eventually, free_port};

/// Name of the master in the sentinels' configuration.
pub(crate) const MASTER: &str = "mymaster";

/// Time limit for a complete failover on two busy cores, and for a second one if the first was given up.
const FAILOVER: Duration = Duration::from_mins(1);

/// Time limit of the sentinels for an election or a failover. They try again after twice that time. A limit of one
/// second makes elections fail again and again on a busy machine, because sentinels ask each other once a second.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3);

/// Silence after which the sentinels consider a server down that a test has stopped or cut off.
const DOWN_AFTER: Duration = Duration::from_secs(1);

/// The same silence when no fault is active: practically never, because a master that is only slow
/// on a busy machine must not be deposed.
const PATIENT: Duration = Duration::from_hours(1);

/// Fields of replicas or sentinels.
type SentinelFields = Vec<HashMap<String, String>>;

pub(crate) struct Deployment {
    pub(crate) nodes: Vec<RedisServer>,
    pub(crate) master: usize,
    pub(crate) sentinels: Vec<Sentinel>,
}

pub(crate) struct Sentinel {
    port: u16,
    /// TLS port, used if the configuration contains `TLS_PORT`.
    tls_port: u16,
    dir: TempDir,
    lines: String,
    child: Option<Child>,
}

impl Deployment {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], "").await
    }

    /// Starts with further arguments for each Redis and further lines in each sentinel's
    /// configuration.
    pub(crate) async fn start_with(args: &[&str], lines: &str) -> Self {
        // Makes replicas sync at once.
        let sync = ["--repl-diskless-sync-delay", "0", "--repl-diskless-load", "disabled"];
        let args = [&sync[..], args].concat();
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(RedisServer::start_with(&args).await);
        }
        let mut this = Self { nodes, master: 0, sentinels: Vec::new() };
        this.follow(1).await;
        this.follow(2).await;
        for _ in 0..3 {
            this.sentinels.push(Sentinel::start(this.nodes[0].port(), lines).await);
        }
        this.settle().await;
        this
    }

    pub(crate) fn url(&self) -> String {
        let ports = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port));
        format!("redis-sentinel://{}/{MASTER}", ports.collect::<Vec<_>>().join(","))
    }

    pub(crate) fn master(&self) -> &RedisServer {
        &self.nodes[self.master]
    }

    /// Makes a node a replica of the master. Sentinels do this too, but only after eight seconds.
    pub(crate) async fn follow(&self, node: usize) {
        let port = self.master().port();
        let () = self.nodes[node].run(redis::cmd("REPLICAOF").arg("127.0.0.1").arg(port)).await;
    }

    /// Waits until the replicas are in sync and every sentinel knows all nodes, so that a failover
    /// can succeed.
    pub(crate) async fn settle(&mut self) {
        self.agree(|_| true).await;
        for (node, redis) in self.nodes.iter().enumerate().filter(|(node, _)| *node != self.master)
        {
            eventually(FAILOVER, async || {
                let info: String = redis.run(redis::cmd("INFO").arg("replication")).await;
                let up = info.contains("master_link_status:up");
                if up { Ok(()) } else { Err(format!("{node}: {info}")) }
            })
            .await;
        }
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.child.is_some()) {
            eventually(FAILOVER, async || sentinel.is_ready().await).await;
        }
    }

    /// Makes the sentinels notice that the master is gone or hangs, so that they elect another. The
    /// fault must be active already.
    pub(crate) async fn find_it_down(&self) {
        self.set_down_after(DOWN_AFTER).await;
    }

    async fn set_down_after(&self, silence: Duration) {
        let mut set = redis::cmd("SENTINEL");
        let ms = u64::try_from(silence.as_millis()).expect("a short silence");
        set.arg("SET").arg(MASTER).arg("down-after-milliseconds").arg(ms);
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.child.is_some()) {
            let set = sentinel.ask::<()>(&set).await;
            set.expect("a sentinel that accepts the setting");
        }
    }

    /// Keeps the sentinels from making a healthy deposed master follow the new one. By default they
    /// do so after four publish periods of two seconds each.
    pub(crate) async fn leave_deposed_masters_alone(&self) {
        let mut set = redis::cmd("SENTINEL");
        set.arg("DEBUG").arg("PUBLISH-PERIOD").arg(600_000);
        for sentinel in &self.sentinels {
            sentinel.ask::<()>(&set).await.expect("a sentinel of 7.0 or newer");
        }
    }

    /// Waits until a sentinel names another master; this is the leader of the failover. From then on
    /// no server is deposed for its silence.
    pub(crate) async fn promoted(&self) {
        let deposed = self.master().port();
        eventually(FAILOVER, async || {
            for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.child.is_some()) {
                if sentinel.named().await.is_some_and(|port| port != deposed) {
                    return Ok(());
                }
            }
            Err(deposed)
        })
        .await;
        self.set_down_after(PATIENT).await;
    }

    /// Waits until every running sentinel names another master, and records it.
    pub(crate) async fn failed_over(&mut self) {
        let deposed = self.master().port();
        self.promoted().await;
        self.agree(|port| port != deposed).await;
    }

    /// Waits until all running sentinels name the same acceptable master.
    async fn agree(&mut self, will_do: impl Fn(u16) -> bool) {
        let next = eventually(FAILOVER, async || {
            let mut named = Vec::new();
            for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.child.is_some()) {
                named.push(sentinel.named().await);
            }
            let next = named[0].filter(|port| will_do(*port));
            next.filter(|_| named.iter().all(|port| *port == next)).ok_or(named)
        })
        .await;
        let at = self.nodes.iter().position(|node| node.port() == next);
        self.master = at.expect("a known master");
    }

    /// Asks one sentinel for a failover from a healthy master.
    pub(crate) async fn depose(&self) {
        eventually(FAILOVER, async || {
            let mut failover = redis::cmd("SENTINEL");
            failover.arg("FAILOVER").arg(MASTER);
            self.sentinels[0].ask::<()>(&failover).await
        })
        .await;
    }
}

impl Sentinel {
    async fn start(master: u16, lines: &str) -> Self {
        let dir = TempDir::with_prefix("jobcache-sentinel-").expect("a temporary directory");
        let tls_port = free_port();
        let lines = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER} {}\n\
             sentinel failover-timeout {MASTER} {}\n\
             sentinel parallel-syncs {MASTER} 2\n{}\n",
            PATIENT.as_millis(),
            GIVEN_UP_AFTER.as_millis(),
            lines.replace("TLS_PORT", &tls_port.to_string())
        );
        let mut sentinel = Self { port: free_port(), tls_port, dir, lines, child: None };
        sentinel.restart().await;
        sentinel
    }

    /// Restarts the sentinel with its original configuration.
    pub(crate) async fn restart(&mut self) {
        self.spawn();
        let ping = redis::cmd("PING");
        eventually(SOON, async || self.ask::<String>(&ping).await).await;
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port
    }

    fn spawn(&mut self) {
        let path = self.dir.path().join("sentinel.conf");
        let dir = self.dir.path().display();
        let text = format!(
            "port {}\nbind 127.0.0.1\ndir {dir}\nlogfile {dir}/sentinel.log\n{}",
            self.port, self.lines
        );
        std::fs::write(&path, text).expect("a file");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", &super::redis::program()])
            .arg(&path)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("setpriv (util-linux) runs redis-server");
        self.child = Some(child);
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Returns the port of the master that this sentinel names.
    pub(crate) async fn named(&self) -> Option<u16> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(MASTER);
        let named: (String, u16) = self.ask(&ask).await.ok()?;
        Some(named.1)
    }

    async fn is_ready(&self) -> Result<(), String> {
        let ask = |what: &str| {
            let mut ask = redis::cmd("SENTINEL");
            ask.arg(what).arg(MASTER);
            ask
        };
        let replicas: SentinelFields =
            self.ask(&ask("REPLICAS")).await.map_err(|e| e.to_string())?;
        let others: SentinelFields =
            self.ask(&ask("SENTINELS")).await.map_err(|e| e.to_string())?;
        let well = replicas
            .iter()
            .filter(|replica| replica["flags"] == "slave" && replica["master-link-status"] == "ok");
        let ready = well.count() == 2 && others.len() == 2;
        if ready { Ok(()) } else { Err(format!("{replicas:?} {others:?}")) }
    }

    pub(crate) async fn ask<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> redis::RedisResult<T> {
        let patience = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(SOON))
            .set_response_timeout(Some(SOON));
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&patience).await?;
        command.query_async(&mut connection).await
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.kill();
    }
}
