//! A Redis without sidecars, its clients, and the cost of their commands.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::Connection;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{Result, observe::thread_seconds, servers::Redis};

/// Prefix of numbered keys, which makes them as long as keys with UUIDs.
const PREFIX: &str = "job_status:0f8fad5b-d9cb-469f-a165-";
/// Wait for data in transit at the end of a measurement.
const REST: Duration = Duration::from_millis(20);

/// The server.
pub(super) struct Bare {
    redis: Redis,
    pub(super) control: Connection,
}

/// Connections that subscribe to changes and only read.
pub(super) struct Audience {
    readers: JoinSet<()>,
    heard_bytes: Arc<AtomicU64>,
}

impl Bare {
    pub(super) fn start() -> Result<Self> {
        let redis = Redis::start()?;
        let control = redis::Client::open(redis.url())?.get_connection()?;
        Ok(Self { redis, control })
    }

    pub(super) fn connect(&self) -> Result<Connection> {
        Ok(redis::Client::open(self.redis.url())?.get_connection()?)
    }

    /// Returns the CPU time that the main thread has used since its start, in microseconds.
    pub(super) fn cpu_us(&self) -> Result<f64> {
        Ok(1e6 * thread_seconds(self.redis.process.pid())?)
    }

    /// Returns the CPU time of some work and its consequences, in microseconds.
    pub(super) fn cost_us(
        &mut self,
        work: impl FnOnce(&mut Connection) -> Result<()>,
    ) -> Result<f64> {
        let before = self.cpu_us()?;
        work(&mut self.control)?;
        std::thread::sleep(REST);
        Ok(self.cpu_us()? - before)
    }

    /// Returns a number from `INFO`.
    pub(super) fn info(&mut self, name: &str) -> Result<f64> {
        let text: String = redis::cmd("INFO").arg("everything").query(&mut self.control)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(line.unwrap_or("0").trim().parse()?)
    }

    /// Opens this many connections that send the same commands, given as words, and then listen.
    pub(super) async fn audience(&self, size: usize, commands: &[Vec<String>]) -> Result<Audience> {
        let mut readers = JoinSet::new();
        let heard_bytes = Arc::new(AtomicU64::new(0));
        let mut opening = redis::cmd("HELLO").arg(3).get_packed_command();
        for words in commands {
            opening.extend(redis::cmd(&words[0]).arg(&words[1..]).get_packed_command());
        }
        for _ in 0..size {
            let mut stream = TcpStream::connect(self.redis.address).await?;
            stream.write_all(&opening).await?;
            let received = Arc::clone(&heard_bytes);
            readers.spawn(async move {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    received.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
        let mut audience = Audience { readers, heard_bytes };
        audience.settle().await;
        Ok(audience)
    }
}

impl Audience {
    pub(super) fn heard_bytes(&self) -> u64 {
        self.heard_bytes.load(Ordering::Relaxed)
    }

    /// Waits until no more data arrives.
    pub(super) async fn settle(&mut self) {
        let mut before = u64::MAX;
        while self.heard_bytes() != before {
            before = self.heard_bytes();
            tokio::time::sleep(3 * REST).await;
        }
    }

    pub(super) async fn leave(mut self) {
        self.readers.shutdown().await;
        tokio::time::sleep(3 * REST).await;
    }
}

/// Returns the name of a key.
pub(super) fn key(number: usize) -> String {
    format!("{PREFIX}{number:012}")
}
