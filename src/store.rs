//! The store protocol: leases, fences and what they guarantee. All access to Redis goes through
//! here.
//!
//! # The guarantee
//!
//! Once a write through any sidecar, a purge, or a third party's plain `DEL job_status:<id>` is
//! acknowledged, no GET that starts later, through any sidecar, returns an older body.
//!
//! # How
//!
//! Each job has four keys in one cluster slot. `job_status:<id>` holds the body byte for byte, or
//! `""`, the placeholder of a lease. `{job_status:<id>}:meta` describes the body, `:lease` holds
//! the token of the reader that may fill, `:fence` lists the writes in flight. All times are by the
//! server's own clock.
//!
//! 1. A miss takes a **lease** and leaves the placeholder, reads the upstream and **fills**. The
//!    fill succeeds only while placeholder and lease are untouched, so any deletion of
//!    `job_status:<id>`, `redis-cli DEL` included, voids the fill in flight.
//! 2. A write **begins** before it is forwarded: the entry is deleted, the lease is void, and a
//!    fence refuses new leases while the outcome is unknown, even if the sidecar dies. The write
//!    **ends** before its response head is passed on: the entry is deleted again. The fence is
//!    lifted by a last end, once the bodies of request and response have ended, because the
//!    upstream may commit until then. If the outcome is unknown (timeout, reset), the fence lingers.
//! 3. An end that the server has not confirmed makes its job **pending** in this sidecar: the job
//!    is bypassed, and the end is repeated until it is confirmed.
//! 4. An entry counts only in the **epoch** (`run_id` and `master_replid` of the server) in which
//!    its lease was taken. So entries are not served that come from an old snapshot after a
//!    restart, or from a replica that was promoted without the last DEL. A new epoch has no hits
//!    for `store.reconnect_grace`, so that every sidecar can have connected and repeated its ends.
//!
//! Values that this process keeps itself ([`near`]) are used only behind a barrier ([`barrier`]): a
//! `PING`, sent after the reader arrived, on the connection that carries the news of every change,
//! has been answered. So they are never older than what Redis would have answered. (With
//! `near = "bounded"` the `PING` may be up to `near_max_staleness` old.)
//!
//! On a Redis Cluster all this holds for each master and its slots; [`redis::cluster`] explains what
//! happens when slots move or masters change.
//!
//! # The limits
//!
//! Each is counted and logged when it happens.
//!
//! - A write that was answered while the server had not confirmed its end (cut off, hung, refusing
//!   writes): this sidecar bypasses the job until it is confirmed; other sidecars may serve the
//!   older body until its TTL ends. After a restart or failover this needs more than the grace. The purge webhook answers 503 instead of reporting success.
//! - A deposed master that still answers, until this sidecar learns of it (at most 1 s, from the
//!   master itself or from sentinels). What that master confirmed last is then repeated at the new
//!   one. A sidecar that reaches only the losing side of a split network does not learn of it.
//! - An upstream that reads from a lagging replica or commits after it has answered: `settle`
//!   covers the writes that pass through; nothing can cover a third party's DEL sent before its own
//!   commit.
//! - A server that evicts (`maxmemory-policy` other than `noeviction`) may evict the fence of a
//!   write after its sidecar has died, or while its end is not confirmed.
//!
//! # What each fault costs
//!
//! | fault | what clients see | what it costs |
//! |---|---|---|
//! | Redis refuses connections | answers from the upstream | nothing: the breaker is open |
//! | Redis hangs | answers from the upstream | the budget (50 ms) per read, two per write, until the breaker opens |
//! | Redis restarts, or a replica is promoted | answers from the upstream | every job is read once more, after a grace without hits |
//! | error replies (`WRONGTYPE`, `NOPERM`, `OOM`) | answers from the upstream | that job is not cached |
//! | a sidecar dies during a write | fresh answers | that job is not cached until the fence expires |
//! | a master of a cluster is lost | hits, except for its jobs | those are not cached until its replica has taken over |
//! | slots move in a cluster | hits, except for their jobs | those are not cached during the move, then read once more |
//! | the tracking connection is lost | hits | near entries are read from Redis again |
//! | the pending set overflows | hits, except in the slots of keys that did not fit | those jobs are not cached here until all is purged |

pub mod barrier;
mod batch_outcome;
mod budget;
mod errors;
pub mod journal;
mod key_state;
mod lease;
pub mod memory;
pub mod near;
mod node_address;
mod node_status;
pub mod pending;
mod receipt;
pub mod redis;
mod retry_queue;
mod sibling_watch;
mod sidecar_record;
mod slots;
mod words;
mod write;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use self::{
    barrier::BarrierDown, memory::Memory, near::Watcher, redis::Redis, words::unix_ms, write::Begun,
};
pub use self::{
    barrier::BarrierWait,
    budget::Budget,
    errors::{Redirect, StoreError},
    key_state::{KeyState, LeaseState},
    lease::{Grant, Lease},
    node_address::NodeAddress,
    node_status::NodeStatus,
    pending::sibling_bypass::JournalStatus,
    receipt::{KeyReceipt, Purged, RemovedEntry},
    sidecar_record::{RecordMismatch, SidecarRecord},
    words::{
        CredentialKey, Ended, Epoch, Fill, IdentityHash, Key, MAX_PAIRS_OF_CREDENTIAL, Replacement,
        Seen, StoredValue, Token,
    },
    write::Write,
};
use crate::{
    clock, config,
    metrics::{Metrics, StoreOp},
};

/// Checks that the configured store can be reached now and is fit for use. Returns how other
/// sidecars there are configured differently.
pub async fn probe(config: &config::Config) -> Result<Vec<RecordMismatch>, StoreError> {
    match &config.store.url {
        config::StoreUrl::Memory => Ok(Vec::new()),
        _ => redis::probe(config).await,
    }
}

/// The store: Redis, or the memory of this process with the same semantics.
pub struct Store {
    engine: Engine,
    tokens: Tokens,
    /// Tasks that finish even if their caller is dropped.
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
    Redis(Redis),
    Memory(Memory),
}

impl Store {
    /// Opens the configured store. The connection to Redis is made in the background, so this
    /// succeeds while Redis is down. Must be called within a tokio runtime.
    ///
    /// If there is a `watcher`, changes in Redis are tracked, and [`Store::poll_barrier`] waits
    /// until the watcher knows of them.
    pub fn open(
        config: &config::Config,
        metrics: Arc<Metrics>,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let tasks = TaskTracker::new();
        let engine = if config.store.url == config::StoreUrl::Memory {
            metrics.set_store_up(true);
            metrics.breaker.close();
            Engine::Memory(Memory::new(config))
        } else {
            let (metrics, tasks) = (Arc::clone(&metrics), tasks.clone());
            Engine::Redis(Redis::open(config, metrics, tasks, watcher)?)
        };
        Ok(Self { engine, tokens: Tokens::new(), tasks, metrics })
    }

    /// Spawns a task that must finish even if nobody waits for it any more; [`Store::close`] waits
    /// for it.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Returns the time by the store's clock, as [`Store::now_ms`], if the key may be answered from
    /// the cache now. Fails for a key with an unconfirmed invalidation, and for every key while the
    /// store is down, or within `store.reconnect_grace` of its restart or failover.
    pub fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.trust(key),
            Engine::Memory(_) => Ok(unix_ms(clock::now())),
        }
    }

    /// Makes sure that the watcher is notified of the next change to a key. Call it after the key
    /// was noted ([`near::NearEntries::note`]) and before it is read; if it fails, the value must not be
    /// inserted. Costs a round trip if the store reports only changes to keys that were read, and
    /// none otherwise.
    pub async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<(), StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.owner(key)?.follow(key, budget).await,
            Engine::Memory(_) => Err(StoreError::Down),
        }
    }

    /// Waits until the watcher knows of every change to a key that was acknowledged to anyone
    /// before the first poll with this `wait`, or, with a `staleness`, that long before the first
    /// poll.
    pub fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        match &self.engine {
            Engine::Redis(redis) => redis.poll_barrier(key, staleness, wait, cx),
            Engine::Memory(_) => Poll::Ready(Err(BarrierDown)),
        }
    }

    /// Reads a key: one round trip, no script.
    pub async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen, StoreError> {
        self.timed(StoreOp::Read, async {
            match &self.engine {
                Engine::Redis(redis) => redis.owner(key)?.read(key, budget).await,
                Engine::Memory(memory) => Ok(memory.read(key)),
            }
        })
        .await
    }

    /// Reads everything under the keys of a job: one round trip, no script. For diagnosis: the
    /// result does not affect the connection, and the operation is not counted.
    pub async fn inspect(&self, key: &Key, budget: &mut Budget) -> Result<KeyState, StoreError> {
        match &self.engine {
            Engine::Redis(redis) => redis.owner(key)?.inspect(key, budget).await,
            Engine::Memory(memory) => Ok(memory.inspect(key)),
        }
    }

    /// Asks for the right to fill a key with an entry of this identity, which the token of the lease
    /// names. `refused` is a value that the caller has read and found
    /// not to be an entry of ours; it is deleted if it is still there.
    ///
    /// If the answer does not arrive in time, or the caller is dropped while it waits, the lease is
    /// released after the request, on the same connection.
    pub async fn lease(
        &self,
        key: &Key,
        identity: IdentityHash,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        let token = self.tokens.next_of(identity);
        let expected = self.metrics.events.expect_own_change(key.main());
        let grant = self.timed(StoreOp::Lease, async {
            match &self.engine {
                Engine::Redis(redis) => redis.owner(key)?.lease(key, token, refused, budget).await,
                Engine::Memory(memory) => Ok(memory.lease(key, token, refused)),
            }
        });
        let grant = grant.await;
        if !matches!(grant, Ok(Grant::Lease(_))) {
            self.metrics.events.withdraw_expected(key.main(), expected);
        }
        grant
    }

    /// Stores an entry under a lease. `meta` is a JSON object without its closing brace; the store
    /// adds `expires_at_ms`. `ttl` counts from the grant of the lease.
    pub async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        self.expect([&lease.key]);
        self.timed(StoreOp::Fill, async {
            match &self.engine {
                Engine::Redis(redis) => redis.owner(&lease.key)?.fill(lease, body, meta, ttl).await,
                Engine::Memory(memory) => Ok(memory.fill(&lease, body, meta, ttl)),
            }
        })
        .await
    }

    /// Adds a caller to the audience of an entry, if that is still the very entry that was seen.
    /// Meta records the time at which it was seen; the upstream served it to the caller no earlier.
    pub async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        caller: &str,
    ) -> Result<Fill, StoreError> {
        self.timed(StoreOp::Admit, async {
            match &self.engine {
                Engine::Redis(redis) => {
                    redis.owner(key)?.admit(key, seen, generation, caller).await
                }
                Engine::Memory(memory) => Ok(memory.admit(key, seen, caller)),
            }
        })
        .await
    }

    /// Replaces an entry with a newer body, if it is still the very entry that was seen. `meta` is
    /// a JSON object without its closing brace, as for [`Store::fill`].
    pub async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        self.expect([key]);
        self.timed(StoreOp::Replace, async {
            match &self.engine {
                Engine::Redis(redis) => redis.owner(key)?.replace(key, seen, generation, new).await,
                Engine::Memory(memory) => Ok(memory.replace(key, seen, new)),
            }
        })
        .await
    }

    /// Returns a token that was never used before, for the generation of a replacement.
    pub fn token(&self, identity: IdentityHash) -> Token {
        self.tokens.next_of(identity)
    }

    /// Replaces the configuration that is recorded for other sidecars, after a reload.
    pub fn record(&self, record: SidecarRecord) {
        match &self.engine {
            Engine::Redis(redis) => redis.context.records.replace(record),
            Engine::Memory(_) => {}
        }
    }

    /// Returns the current key of the credential fingerprints.
    pub fn credential_key(&self) -> CredentialKey {
        match &self.engine {
            Engine::Redis(redis) => redis.context.credential_key(),
            Engine::Memory(memory) => memory.credential_key(),
        }
    }

    /// Hands a lease back when the answer cannot be stored.
    pub async fn release(&self, lease: Lease) {
        self.expect([&lease.key]);
        match &self.engine {
            Engine::Redis(redis) => {
                // Without an owner the lease expires by itself.
                if let Ok(shard) = redis.owner(&lease.key) {
                    shard.release(lease).await;
                }
            }
            Engine::Memory(memory) => memory.release(&lease),
        }
    }

    /// Fences keys before a write is forwarded. Never fails: if the fence is not confirmed, the end
    /// of the write runs twice.
    pub async fn begin(&self, keys: Vec<Key>, fence: Duration, budget: &mut Budget) -> Write {
        let id = self.tokens.next();
        self.expect(&keys);
        let begun = match &self.engine {
            Engine::Redis(redis) => {
                let started = Instant::now();
                let (begun, result) = redis.begin(&keys, &id, fence, budget).await;
                self.metrics.record_store_op(StoreOp::Begin, &result, started.elapsed());
                begun
            }
            Engine::Memory(memory) => {
                memory.begin(&keys, &id, fence);
                Begun::Confirmed
            }
        };
        Write { keys, elsewhere: 0, id, fence, begun }
    }

    /// Returns a write that fences nothing, to be widened and ended.
    pub fn unfenced(&self, fence: Duration) -> Write {
        let id = self.tokens.next();
        Write { keys: Vec::new(), elsewhere: 0, id, fence, begun: Begun::NotSent }
    }

    /// Renews the fence of a long write.
    pub async fn renew(&self, write: &Write) {
        match &self.engine {
            Engine::Redis(redis) => redis.renew(write).await,
            Engine::Memory(memory) => memory.begin(&write.keys, &write.id, write.fence),
        }
    }

    /// Invalidates the keys of a write and lifts its fence after `linger`. A later end of the same
    /// write may lift it sooner.
    ///
    /// Call it before the write is answered, from a task that is never cancelled.
    pub async fn end(&self, write: &Write, linger: Duration, budget: &mut Budget) -> Ended {
        self.expect(&write.keys);
        let started = Instant::now();
        match &self.engine {
            Engine::Redis(redis) => {
                let ended = redis.end(write, linger, budget).await;
                self.metrics.record_store_op(StoreOp::End, &ended, started.elapsed());
                ended.unwrap_or(Ended::Pending)
            }
            Engine::Memory(memory) => memory.end(&write.keys, &write.id, linger).ended,
        }
    }

    /// Invalidates keys, as the end of a write that did not pass through this sidecar. Runs under
    /// its own deadline, and a batch of keys waits for the store at most `wait`; keys that are not
    /// confirmed become pending. Must not be cancelled, like [`Store::end`].
    pub async fn purge(&self, keys: Vec<Key>, wait: Duration) -> Purged {
        let id = self.tokens.next();
        self.expect(&keys);
        let started = Instant::now();
        let (elsewhere, fence, begun) = (0, Duration::ZERO, Begun::NotSent);
        let write = Write { keys, elsewhere, id, fence, begun };
        let (ended, was) = match &self.engine {
            Engine::Redis(redis) => redis.purge(&write, wait).await,
            Engine::Memory(memory) => return memory.end(&write.keys, &write.id, Duration::ZERO),
        };
        self.metrics.record_store_op(StoreOp::End, &ended, started.elapsed());
        Purged { ended: ended.unwrap_or(Ended::Pending), receipts: was }
    }

    /// Invalidates every key under the prefix. Runs under its own deadline. Must not be cancelled,
    /// like [`Store::end`].
    pub async fn purge_all(&self) -> Ended {
        match &self.engine {
            Engine::Redis(redis) => redis.purge_all().await,
            Engine::Memory(memory) => memory.purge_all(),
        }
    }

    /// Returns the current time in ms since 1970, by the store's clock, or by ours while it is
    /// down.
    pub fn now_ms(&self) -> i64 {
        match &self.engine {
            Engine::Redis(redis) => redis.now_ms(),
            Engine::Memory(_) => unix_ms(clock::now()),
        }
    }

    /// Returns whether there is a trusted connection; on a cluster, one to the owner of every slot.
    pub fn is_up(&self) -> bool {
        match &self.engine {
            Engine::Redis(redis) => redis.is_up(),
            Engine::Memory(_) => true,
        }
    }

    /// Returns the masters of a cluster; empty if the store is not a cluster.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        match &self.engine {
            Engine::Redis(redis) => redis.nodes(),
            Engine::Memory(_) => Vec::new(),
        }
    }

    /// Returns the slot of a key and the address of its master; `None` if the store is not a
    /// cluster.
    pub fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        match &self.engine {
            Engine::Redis(redis) => redis.place(key),
            Engine::Memory(_) => None,
        }
    }

    /// Returns the number of keys with an unconfirmed invalidation, plus one while whole slots are
    /// pending.
    pub fn pending(&self) -> usize {
        match &self.engine {
            Engine::Redis(redis) => redis.context.retry_queue.pending.len(),
            Engine::Memory(_) => 0,
        }
    }

    /// Returns the state of the journal of unconfirmed invalidations, if there is one.
    pub fn journal(&self) -> Option<JournalStatus> {
        match &self.engine {
            Engine::Redis(redis) => redis.context.retry_queue.journal_status(),
            Engine::Memory(_) => None,
        }
    }

    /// Waits for spawned tasks and tries a last time to confirm what is pending, all within
    /// `deadline`.
    pub async fn close(&self, deadline: Duration) {
        let started = Instant::now();
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
        let left = deadline.saturating_sub(started.elapsed());
        match &self.engine {
            Engine::Redis(redis) => redis.close(left).await,
            Engine::Memory(_) => {}
        }
    }

    /// Tells the event log that the next change of these keys is made by this process.
    fn expect<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) {
        for key in keys {
            self.metrics.events.expect_own_change(key.main());
        }
    }

    async fn timed<T>(
        &self,
        op: StoreOp,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let result = operation.await;
        self.metrics.record_store_op(op, &result, started.elapsed());
        result
    }
}

/// Makes tokens that are unique among all sidecars, without a round trip.
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

    /// Makes a token that names an identity.
    fn next_of(&self, identity: IdentityHash) -> Token {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Token(format!("{:016x}-{n:x}-{identity}", self.process).into())
    }
}
