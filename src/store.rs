//! The store protocol: leases, fences and what they guarantee. The only door to Redis.
//!
//! # The guarantee
//!
//! Once a write through any sidecar, a purge, or a third party's plain `DEL job_status:<id>` is
//! acknowledged, no GET that starts later, through any sidecar, returns an older body.
//!
//! # How
//!
//! Each job has four keys in one cluster slot. `job_status:<id>` holds the body byte for byte, or
//! `""`, the placeholder of a lease. `{job_status:<id>}:meta` describes the body, `:lease` names who
//! may fill, `:fence` lists the writes in flight. All times are by the server's own clock.
//!
//! 1. A miss takes a **lease** and leaves the placeholder, reads the upstream and **fills**, which
//!    succeeds only while placeholder and lease are untouched. Whoever deletes `job_status:<id>`,
//!    `redis-cli DEL` included, thereby voids the fill in flight.
//! 2. A write **begins** before it is forwarded: the entry goes, the lease is void, and a fence
//!    refuses new leases while the outcome is unknown, also when the sidecar dies. It **ends**
//!    before it is answered: the entry goes again and the fence is lifted. With an unknown outcome
//!    (timeout, reset) the fence lingers.
//! 3. An end that the server has not confirmed makes its job **pending** here: bypassed, and
//!    repeated until confirmed.
//! 4. An entry counts only in the **epoch** (`run_id` and `master_replid` of the server) in which
//!    its lease was taken. So neither a server that restarted from an old snapshot nor a replica
//!    promoted without the last DEL is believed.
//!
//! What this process keeps of all that ([`near`]) is used only behind a barrier ([`barrier`]): a `PING`
//! that was sent after the reader came, on the connection that carries the news of every change, has
//! been answered. So it is never older than what Redis would have said.
//!
//! On a Redis Cluster all this stands for each master and its slots; what follows when slots move or
//! masters change is told in [`cluster`].
//!
//! # The limits
//!
//! Each is counted and logged when it happens.
//!
//! - A write that was answered while the server had not confirmed its end (cut off, hung, refusing
//!   writes): this sidecar bypasses the job until it is confirmed; other sidecars may serve the
//!   older body until its TTL ends. The purge webhook answers 503 instead of pretending.
//! - A deposed master that still answers, until this sidecar learns of it (at most 1 s, from the master
//!   itself or from sentinels). What that master confirmed at last is then repeated at the new one. Who
//!   reaches none but the losing side of a split network learns nothing.
//! - An upstream that reads from a lagging replica or commits after it has answered: `settle` covers
//!   the writes that pass through; nothing can cover a third party's DEL sent before its own commit.
//! - A server that evicts (`maxmemory-policy` other than `noeviction`) may evict the fence of a write
//!   whose sidecar has died, or whose end is not confirmed.
//!
//! # What each fault costs
//!
//! | fault | what clients see | what it costs |
//! |---|---|---|
//! | Redis refuses connections | answers from the upstream | nothing: the breaker is open |
//! | Redis hangs | answers from the upstream | the budget (50 ms) a read, two a write, until the breaker opens |
//! | Redis restarts, or a replica is promoted | answers from the upstream | every job is read once more |
//! | error replies (`WRONGTYPE`, `NOPERM`, `OOM`) | answers from the upstream | that job is not cached |
//! | a sidecar dies amid a write | fresh answers | that job is not cached until the fence runs out |
//! | a master of a cluster is lost | hits, but for its jobs | those are not cached until its replica has taken over |
//! | slots move in a cluster | hits, but for their jobs | those are not cached while they are on their way, then read once more |
//! | the tracking connection is lost | hits | what is near is read from Redis again |
//! | the pending set overflows | hits, but in the slots of what found no room | those jobs are not cached here until all is purged |

pub mod barrier;
pub mod cluster;
mod debts;
pub mod journal;
pub mod memory;
pub mod near;
pub mod pending;
mod receipt;
pub mod redis;
mod state;
mod tally;
mod types;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

pub use self::cluster::Node;
pub use self::receipt::{Purged, Was, WasEntry};
pub use self::state::{Leased, State};
pub use self::types::{
    Budget, CredentialKey, Ended, Epoch, Fill, Grant, Key, Lease, Redirect, Replacement, Seen,
    StoreError, Stored, Token, Wait, Write,
};
use self::{
    barrier::Down,
    near::Watcher,
    types::{Begun, Hold},
};
use crate::{
    clock, config,
    metrics::{Metrics, Op},
};

/// Whether the store that is configured can be reached now, and is one that will do.
pub async fn probe(config: &config::Config) -> Result<(), StoreError> {
    match &config.store.url {
        config::StoreUrl::Memory => Ok(()),
        config::StoreUrl::Redis(_) | config::StoreUrl::Sentinel(_) => redis::probe(config).await,
        config::StoreUrl::Cluster(seeds) => cluster::probe(seeds, config).await,
    }
}

/// The store: Redis, or this process' memory with the same semantics.
pub struct Store {
    engine: Engine,
    tokens: Tokens,
    /// What outlives whoever asked for it.
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("engine", &self.engine)
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Engine {
    Redis(redis::Redis),
    Cluster(cluster::Cluster),
    Memory(memory::Memory),
}

impl Store {
    /// Opens the store that the configuration names. Redis is connected to in the background, so
    /// this succeeds with Redis down; it must be called within a tokio runtime.
    ///
    /// With a `watcher` changes in Redis are tracked, and [`Store::poll_barrier`] tells when it knows.
    pub fn open(
        config: &config::Config,
        metrics: Arc<Metrics>,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let tasks = TaskTracker::new();
        let engine = match &config.store.url {
            config::StoreUrl::Memory => {
                metrics.store_is_up(true);
                metrics.breaker.close();
                Engine::Memory(memory::Memory::new(config))
            }
            config::StoreUrl::Redis(_) | config::StoreUrl::Sentinel(_) => {
                let (metrics, tasks) = (Arc::clone(&metrics), tasks.clone());
                Engine::Redis(redis::Redis::open(config, metrics, tasks, watcher)?)
            }
            config::StoreUrl::Cluster(seeds) => {
                let (metrics, tasks) = (Arc::clone(&metrics), tasks.clone());
                Engine::Cluster(cluster::Cluster::open(seeds, config, metrics, tasks, watcher)?)
            }
        };
        Ok(Self { engine, tokens: Tokens::new(), tasks, metrics })
    }

    /// Starts what must come to its end though nobody waits for it any more; [`Store::close`] waits.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Which keys must not be answered from the cache now: those of unconfirmed invalidations, and
    /// every key while the store is down. Else now by the store's clock, as [`Store::now_ms`].
    pub fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.trust(key),
            Engine::Cluster(cluster) => cluster.trust(key),
            Engine::Memory(_) => Ok(unix_ms(clock::now())),
        }
    }

    /// Makes sure that the watcher will be told of changes of a key: of every one from now on until the
    /// first, at least. To be called after the key was noted, and before it is read: what is noted while
    /// changes are not followed may not be put in. It takes a round trip where the store tells of what was
    /// read only.
    pub async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.follow(key, budget).await,
            Engine::Cluster(cluster) => cluster.follow(key, budget).await,
            Engine::Memory(_) => Err(StoreError::Down),
        }
    }

    /// Waits until the watcher knows of every change to a key of which anybody was told before the first poll
    /// with this `wait`, or, with a `staleness`, so long before that.
    pub fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut Wait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Down>> {
        match &self.engine {
            Engine::Redis(redis) => redis.poll_barrier(staleness, wait, cx),
            Engine::Cluster(cluster) => cluster.poll_barrier(key, staleness, wait, cx),
            Engine::Memory(_) => Poll::Ready(Err(Down)),
        }
    }

    /// Reads a key: one round trip, no script.
    pub async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen, StoreError> {
        self.timed(Op::Read, async {
            match &self.engine {
                Engine::Redis(redis) => redis.read(key, budget).await,
                Engine::Cluster(cluster) => cluster.read(key, budget).await,
                Engine::Memory(memory) => Ok(memory.read(key)),
            }
        })
        .await
    }

    /// Reads all that stands under the keys of a job: one round trip, no script. It is for who wants
    /// to know: nothing follows from it for the connection, and it is not counted.
    pub async fn inspect(&self, key: &Key, budget: &mut Budget) -> Result<State, StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.inspect(key, budget).await,
            Engine::Cluster(cluster) => cluster.inspect(key, budget).await,
            Engine::Memory(memory) => Ok(memory.inspect(key)),
        }
    }

    /// Asks for the right to fill a key. `refused` is a value that the caller has read and found
    /// not to be an entry of ours; it is deleted if it is still there.
    ///
    /// A lease whose answer did not come in time, or whose asker was dropped while it waited, is
    /// released behind it, on the same connection.
    pub async fn lease(
        &self,
        key: &Key,
        refused: Option<&Stored>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        let token = self.tokens.next();
        let expected = self.metrics.events.expect(key.main());
        let grant = self.timed(Op::Lease, async {
            match &self.engine {
                Engine::Redis(redis) => redis.lease(key, token, refused, budget).await,
                Engine::Cluster(cluster) => cluster.lease(key, token, refused, budget).await,
                Engine::Memory(memory) => Ok(memory.lease(key, token, refused)),
            }
        });
        let grant = grant.await;
        if !matches!(grant, Ok(Grant::Lease(_))) {
            self.metrics.events.unexpect(key.main(), expected);
        }
        grant
    }

    /// Stores an entry under a lease. `meta` is a JSON object without its closing brace; the store
    /// adds `expires_at_ms`. `ttl` counts from the lease.
    pub async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        self.expect([&lease.key]);
        self.timed(Op::Fill, async {
            match &self.engine {
                Engine::Redis(redis) => redis.fill(lease, body, meta, ttl).await,
                Engine::Cluster(cluster) => cluster.fill(lease, body, meta, ttl).await,
                Engine::Memory(memory) => Ok(memory.fill(&lease, body, meta, ttl)),
            }
        })
        .await
    }

    /// Lets an audience pair use an entry, if it is still the very one that was seen, and notes in
    /// meta that the upstream has served it to the pair: no earlier than it was seen.
    pub async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        pair: &str,
    ) -> Result<Fill, StoreError> {
        self.timed(Op::Admit, async {
            match &self.engine {
                Engine::Redis(redis) => redis.admit(key, seen, generation, pair).await,
                Engine::Cluster(cluster) => cluster.admit(key, seen, generation, pair).await,
                Engine::Memory(memory) => Ok(memory.admit(key, seen, pair)),
            }
        })
        .await
    }

    /// Puts a newer body in the place of an entry, if that is still the very one that was seen.
    /// `meta` is a JSON object without its closing brace, as for [`Store::fill`].
    pub async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        self.expect([key]);
        self.timed(Op::Replace, async {
            match &self.engine {
                Engine::Redis(redis) => redis.replace(key, seen, generation, new).await,
                Engine::Cluster(cluster) => cluster.replace(key, seen, generation, new).await,
                Engine::Memory(memory) => Ok(memory.replace(key, seen, new)),
            }
        })
        .await
    }

    /// A token that was never used, for the generation of a replacement.
    pub fn token(&self) -> Token {
        self.tokens.next()
    }

    /// What keys the fingerprints of credentials now.
    pub fn credential_key(&self) -> CredentialKey {
        match &self.engine {
            Engine::Redis(redis) => redis.credential_key(),
            Engine::Cluster(cluster) => cluster.credential_key(),
            Engine::Memory(memory) => memory.credential_key(),
        }
    }

    /// Hands a lease back: what came cannot be stored.
    pub async fn release(&self, lease: Lease) {
        self.expect([&lease.key]);
        match &self.engine {
            Engine::Redis(redis) => redis.release(lease).await,
            Engine::Cluster(cluster) => cluster.release(lease).await,
            Engine::Memory(memory) => memory.release(&lease),
        }
    }

    /// Fences keys before a write is forwarded. Never fails: a fence that is not confirmed makes the
    /// end of the write run twice.
    pub async fn begin(&self, keys: Vec<Key>, fence: Duration, budget: &mut Budget) -> Write {
        let id = self.tokens.next();
        self.expect(&keys);
        let begun = match &self.engine {
            Engine::Redis(redis) => {
                let started = Instant::now();
                let (begun, result) = redis.begin(&keys, &id, fence, budget).await;
                self.metrics.store_op(Op::Begin, &result, started.elapsed());
                begun
            }
            Engine::Cluster(cluster) => {
                let started = Instant::now();
                let (begun, result) = cluster.begin(&keys, &id, fence, budget).await;
                self.metrics.store_op(Op::Begin, &result, started.elapsed());
                begun
            }
            Engine::Memory(memory) => {
                memory.begin(&keys, &id, fence);
                Begun::Confirmed(None)
            }
        };
        Write { keys, id, fence, begun }
    }

    /// A write that fences nothing, to be widened and ended.
    pub fn unfenced(&self, fence: Duration) -> Write {
        Write { keys: Vec::new(), id: self.tokens.next(), fence, begun: Begun::Confirmed(None) }
    }

    /// Keeps the fence of a long write standing.
    pub async fn renew(&self, write: &Write) {
        match &self.engine {
            Engine::Redis(redis) => redis.renew(write).await,
            Engine::Cluster(cluster) => cluster.renew(write).await,
            Engine::Memory(memory) => memory.begin(&write.keys, &write.id, write.fence),
        }
    }

    /// Invalidates the keys of a write and lifts its fence, after `linger`.
    ///
    /// To be called before the write is answered, from a task that nobody cancels.
    pub async fn end(&self, write: &Write, linger: Duration, budget: &mut Budget) -> Ended {
        self.expect(&write.keys);
        let started = Instant::now();
        match &self.engine {
            Engine::Redis(redis) => {
                let ended = redis.end(write, linger, budget).await;
                self.metrics.store_op(Op::End, &ended, started.elapsed());
                ended.unwrap_or(Ended::Pending)
            }
            Engine::Cluster(cluster) => {
                let ended = cluster.end(write, linger, budget).await;
                self.metrics.store_op(Op::End, &ended, started.elapsed());
                ended.unwrap_or(Ended::Pending)
            }
            Engine::Memory(memory) => memory.end(&write.keys, &write.id, linger).ended,
        }
    }

    /// Invalidates keys: the end of a write that went elsewhere. Runs under a deadline of its own,
    /// and ends as soon as the store has made it wait for `wait`. As [`Store::end`], nobody may
    /// cancel it.
    pub async fn purge(&self, keys: Vec<Key>, wait: Duration) -> Purged {
        let id = self.tokens.next();
        self.expect(&keys);
        let started = Instant::now();
        let write = Write { keys, id, fence: Duration::ZERO, begun: Begun::Confirmed(None) };
        let (ended, was) = match &self.engine {
            Engine::Redis(redis) => redis.purge(&write, wait).await,
            Engine::Cluster(cluster) => cluster.purge(&write, wait).await,
            Engine::Memory(memory) => return memory.end(&write.keys, &write.id, Duration::ZERO),
        };
        self.metrics.store_op(Op::End, &ended, started.elapsed());
        Purged { ended: ended.unwrap_or(Ended::Pending), was }
    }

    /// Invalidates every key under the prefix. Runs under a deadline of its own. As [`Store::end`],
    /// nobody may cancel it.
    pub async fn purge_all(&self) -> Ended {
        match &self.engine {
            Engine::Redis(redis) => redis.purge_all().await,
            Engine::Cluster(cluster) => cluster.purge_all().await,
            Engine::Memory(memory) => memory.purge_all(),
        }
    }

    /// Now by the store's clock, in ms since 1970, or by ours while it is down.
    pub fn now_ms(&self) -> i64 {
        match &self.engine {
            Engine::Redis(redis) => redis.now_ms(),
            Engine::Cluster(cluster) => cluster.now_ms(),
            Engine::Memory(_) => unix_ms(clock::now()),
        }
    }

    /// Whether a trusted connection stands.
    pub fn is_up(&self) -> bool {
        match &self.engine {
            Engine::Redis(redis) => redis.is_up(),
            Engine::Cluster(cluster) => cluster.is_up(),
            Engine::Memory(_) => true,
        }
    }

    /// The masters of a cluster; none where the store is no cluster.
    pub fn nodes(&self) -> Vec<Node> {
        match &self.engine {
            Engine::Cluster(cluster) => cluster.nodes(),
            Engine::Redis(_) | Engine::Memory(_) => Vec::new(),
        }
    }

    /// The slot of a key and the address of its master; none where the store is no cluster.
    pub fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        match &self.engine {
            Engine::Cluster(cluster) => Some(cluster.place(key)),
            Engine::Redis(_) | Engine::Memory(_) => None,
        }
    }

    /// Invalidations that are not confirmed.
    pub fn pending(&self) -> usize {
        match &self.engine {
            Engine::Redis(redis) => redis.pending(),
            Engine::Cluster(cluster) => cluster.pending(),
            Engine::Memory(_) => 0,
        }
    }

    /// Stops the background work, after a last try to confirm what is pending.
    pub async fn close(&self, deadline: Duration) {
        let started = Instant::now();
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
        let left = deadline.saturating_sub(started.elapsed());
        match &self.engine {
            Engine::Redis(redis) => redis.close(left).await,
            Engine::Cluster(cluster) => cluster.close(left).await,
            Engine::Memory(_) => {}
        }
    }

    /// News of these keys is soon to come, and is of what we do ourselves.
    fn expect<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) {
        for key in keys {
            self.metrics.events.expect(key.main());
        }
    }

    async fn timed<T>(
        &self,
        op: Op,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let result = operation.await;
        self.metrics.store_op(op, &result, started.elapsed());
        result
    }
}

/// Makes tokens: unique among all sidecars, without a round trip.
#[derive(Debug)]
struct Tokens {
    process: u64,
    next: AtomicU64,
}

impl Tokens {
    fn new() -> Self {
        Self { process: fastrand::u64(..), next: AtomicU64::new(0) }
    }

    fn next(&self) -> Token {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Token(format!("{:016x}-{n:x}", self.process).into())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unix_ms(time: SystemTime) -> i64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
