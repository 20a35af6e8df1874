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
//!    upstream may commit until then. If the outcome is unknown (timeout, reset), the fence
//!    lingers.
//! 3. An end that the server has not confirmed makes its job **pending** in this sidecar: the job
//!    is bypassed, and the end is repeated until it is confirmed.
//! 4. An entry counts only in the **epoch** (`run_id` and `master_replid` of the server) in which
//!    its lease was taken. So entries are not served that come from an old snapshot after a
//!    restart, or from a replica that was promoted without the last DEL. A new epoch has no hits
//!    for `store.reconnect_grace`, so that every sidecar can have connected and repeated its ends.
//! 5. A purge of all renews the **purge token** of its prefix, which is read with the keys of a job. An
//!    entry counts, and a lease can be filled, only under the token that its lease has seen.
//!
//! Values that this process keeps itself ([`near`]) are used only behind a barrier ([`barrier`]): a
//! `PING`, sent after the reader arrived, on the connection that carries the news of every change,
//! has been answered. So they are never older than what Redis would have answered. (With
//! `near = "bounded"` the `PING` may be up to `near_max_staleness` old.)
//!
//! On a Redis Cluster all this holds for each master and its slots; `redis/cluster.rs` explains
//! what happens when slots move or masters change.
//!
//! # The limits
//!
//! Each is counted and logged when it happens.
//!
//! - A write that was answered while the server had not confirmed its end (cut off, hung, refusing
//!   writes): this sidecar bypasses the job until it is confirmed; other sidecars may serve the
//!   older body until its TTL ends. After a restart or failover that happens only if this sidecar
//!   is cut off for longer than the grace. The purge webhook answers 503 instead of reporting
//!   success.
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
//! | Redis is too far away for the budget | answers from the upstream | nothing for a read, two budgets per write |
//! | a value takes longer than the budget to transfer | answers from the upstream, for that job | that job is not cached for 10 s at a time |
//! | Redis restarts, or a replica is promoted | answers from the upstream | every job is read once more, after a grace without hits |
//! | error replies (`WRONGTYPE`, `NOPERM`, `OOM`) | answers from the upstream | that job is not cached |
//! | a sidecar dies during a write | fresh answers | that job is not cached until the fence expires |
//! | a master of a cluster is lost | hits, except for its jobs | those are not cached until its replica has taken over |
//! | slots move in a cluster | hits, except for their jobs | those are not cached during the move, then read once more |
//! | the tracking connection is lost | hits | near entries are read from Redis again |
//! | the pending set overflows | hits, except in the slots of keys that did not fit | those jobs are not cached here until all is purged |

pub mod barrier;
mod budget;
mod diagnosis;
mod errors;
pub mod journal;
pub mod memory;
mod metrics;
pub mod near;
mod operations;
pub mod pending;
mod problems;
mod redis;
mod retry_queue;
mod sidecar_record;
mod slots;
mod words;
mod write;

pub use self::{
    barrier::BarrierWait,
    budget::{Budget, FarStore, WriteBudget},
    diagnosis::Diagnosis,
    errors::{NodeAddress, Redirect, StoreError, StoreErrorKind},
    metrics::{NearMetrics, NearMiss},
    pending::JournalStatus,
    problems::Problem,
    sidecar_record::{RecordMismatch, SidecarRecord},
    words::{
        CredentialKey, Ended, EntryChange, Epoch, Fill, Grant, IdentityHash, Key, KeyState, Lease,
        LeaseState, MAX_PAIRS_OF_CREDENTIAL, NodeStatus, ReaderHash, Seen, StoredValue, Token,
    },
    write::{KeyReceipt, Purged, RemovedEntry, Write},
};

use std::{
    fmt,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::{
    memory::Memory,
    metrics::StoreMetrics,
    near::Watcher,
    redis::RedisEngine,
    words::{Tokens, now_ms},
};
use crate::{
    config,
    observe::{events::Events, metrics::Registry},
};

/// The findings of a probe of a store that can be used.
#[derive(Debug, Default)]
pub struct ProbedStore {
    /// How other sidecars there are configured differently.
    pub mismatches: Vec<RecordMismatch>,
    /// Set if the server is too far away for the budget.
    pub far: Option<FarStore>,
}

/// Checks that the configured store can be reached now and is fit for use.
pub async fn probe(config: &config::Config) -> Result<ProbedStore, StoreError> {
    if config.store.url == config::StoreUrl::Memory {
        return Ok(ProbedStore::default());
    }
    let (ours, (records, far)) = (SidecarRecord::of(config), redis::probe(config).await?);
    let mismatches = records.iter().filter_map(|record| ours.mismatch(record)).collect();
    Ok(ProbedStore { mismatches, far })
}

/// The store: Redis, or the memory of this process with the same semantics.
pub struct Store {
    engine: Engine,
    /// Tasks that run for as long as the store is open.
    _background: Vec<AbortOnDropHandle<()>>,
    tokens: Tokens,
    /// Tasks that finish even if their caller is dropped.
    tasks: TaskTracker,
    metrics: Arc<StoreMetrics>,
    events: Arc<Events>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

enum Engine {
    Redis(Arc<RedisEngine>),
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
        registry: &mut Registry,
        events: Arc<Events>,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let tasks = TaskTracker::new();
        let metrics = Arc::new(StoreMetrics::register(registry));
        let (engine, background) = if config.store.url == config::StoreUrl::Memory {
            metrics.set_up(true, false, &events);
            (Engine::Memory(Memory::new(config)), Vec::new())
        } else {
            let (metrics, events) = (Arc::clone(&metrics), Arc::clone(&events));
            let (engine, tasks) = redis::open(config, metrics, events, tasks.clone(), watcher)?;
            (Engine::Redis(engine), tasks)
        };
        let tokens = Tokens::new();
        Ok(Self { engine, _background: background, tokens, tasks, metrics, events })
    }

    /// Returns the metrics of this store.
    pub(crate) fn metrics(&self) -> &StoreMetrics {
        &self.metrics
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
    /// store is down or too far away, or within `store.reconnect_grace` of its restart or failover.
    pub fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        self.redis().map_or_else(|| Ok(now_ms()), |redis| redis.trust(key))
    }

    /// Whether the store is not asked about a key for now, because its value took longer than the
    /// budget a moment ago.
    pub fn is_left_alone(&self, key: &Key) -> bool {
        self.redis().is_some_and(|redis| redis.context.large.is_left_alone(key))
    }

    /// Returns a token that was never used before, for the generation of a replacement.
    pub fn token(&self, reader: ReaderHash) -> Token {
        self.tokens.next_of(reader)
    }

    /// Replaces the configuration that is recorded for other sidecars, after a reload.
    pub fn record(&self, record: SidecarRecord) {
        if let Some(redis) = self.redis() {
            redis.context.records.replace(record);
        }
    }

    /// Returns the current key of the credential fingerprints.
    pub fn credential_key(&self) -> CredentialKey {
        match &self.engine {
            Engine::Redis(redis) => redis.context.credential_key(),
            Engine::Memory(memory) => memory.credential_key.clone(),
        }
    }

    fn redis(&self) -> Option<&Arc<RedisEngine>> {
        if let Engine::Redis(redis) = &self.engine { Some(redis) } else { None }
    }

    /// Returns the current time in ms since 1970, by the store's clock, or by ours while it is
    /// down.
    pub fn now_ms(&self) -> i64 {
        self.redis().map_or_else(now_ms, |redis| redis.now_ms())
    }

    /// Returns whether there is a trusted connection; on a cluster, one to the owner of every slot.
    pub fn is_up(&self) -> bool {
        self.redis().is_none_or(|redis| redis.is_up())
    }

    /// Returns whether reads do not ask the store, because it is down or too far away.
    pub fn is_breaker_open(&self) -> bool {
        self.metrics.is_breaker_open()
    }

    /// Returns the masters of a cluster; empty if the store is not a cluster.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        self.redis().map(|redis| redis.nodes()).unwrap_or_default()
    }

    /// Returns the slot of a key and the address of its master; `None` if the store is not a
    /// cluster.
    pub fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        self.redis()?.place(key)
    }

    /// Returns the number of keys with an unconfirmed invalidation, plus one while whole slots are
    /// pending.
    pub fn pending(&self) -> usize {
        self.redis().map_or(0, |redis| redis.context.retry_queue.pending.len())
    }

    /// Returns the state of the journal of unconfirmed invalidations, if there is one.
    pub fn journal(&self) -> Option<JournalStatus> {
        self.redis()?.context.retry_queue.pending.journal_status()
    }

    /// Returns what is wrong with the store, if anything is known.
    pub fn problem(&self) -> Option<Problem> {
        let redis = self.redis()?;
        redis.context.problems.current().or_else(|| Some(Problem::far(&redis.far()?)))
    }

    /// Waits for spawned tasks and tries a last time to confirm what is pending, all within
    /// `deadline`.
    pub async fn close(&self, deadline: Duration) {
        let started = Instant::now();
        self.tasks.close();
        let _ = tokio::time::timeout(deadline, self.tasks.wait()).await;
        let left = deadline.saturating_sub(started.elapsed());
        if let Some(engine) = self.redis() {
            redis::close(engine, left).await;
        }
    }
}
