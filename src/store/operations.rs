//! The operations on keys, each timed and counted.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    BarrierWait, Budget, Ended, Engine, EntryChange, Fill, Grant, Key, KeyState, Lease, Purged,
    ReaderHash, Seen, Store, StoreError, StoredValue, Write, barrier::BarrierDown, errors::Result,
    memory::Memory, metrics::StoreOp, redis::Shard, write::Begun,
};

impl Store {
    /// Makes sure that the watcher is notified of the next change to a key. Call it after the key
    /// was noted ([`NearEntries::note`](super::near::NearEntries::note)) and before it is read; if
    /// it fails, the value must not be inserted. Costs a round trip if the store reports only
    /// changes to keys that were read, and none otherwise.
    pub async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<()> {
        let follow = async |shard: Arc<Shard>| shard.follow(key, budget).await;
        self.on_key(key, follow, |_| Err(StoreError::Down)).await
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
        let Some(redis) = self.redis() else { return Poll::Ready(Err(BarrierDown)) };
        redis.poll_barrier(key, staleness, wait, cx)
    }

    /// Reads a key: one round trip, no script.
    pub async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen> {
        let read = async |shard: Arc<Shard>| shard.read(key, budget).await;
        let in_memory = |memory: &Memory| Ok(memory.read(key));
        self.timed(StoreOp::Read, async || self.on_key(key, read, in_memory).await).await
    }

    /// Reads everything under the keys of a job: one round trip, no script. For diagnosis: the
    /// result does not affect the connection, and the operation is not counted.
    pub async fn inspect(&self, key: &Key, budget: &mut Budget) -> Result<KeyState> {
        let inspect = async |shard: Arc<Shard>| shard.inspect(key, budget).await;
        self.on_key(key, inspect, |memory| Ok(memory.inspect(key))).await
    }

    /// Whether the server of a key has evicted keys of its own accord since it began to count.
    pub async fn has_evicted(&self, key: &Key, budget: &mut Budget) -> Result<bool> {
        let has_evicted = async |shard: Arc<Shard>| shard.has_evicted(budget).await;
        // In memory, an entry is evicted whole.
        self.on_key(key, has_evicted, |_| Ok(false)).await
    }

    /// Asks for the right to fill a key with an entry for such a reader, which the token of the
    /// lease names. `refused` is a value that the caller has read and found not to be an entry of
    /// ours; it is deleted if it is still there.
    ///
    /// If the answer does not arrive in time, or the caller is dropped while it waits, the lease is
    /// released after the request, on the same connection. A lease that is dropped is handed back in the
    /// background as well, see [`Store::release`].
    pub async fn lease(
        &self,
        key: &Key,
        reader: ReaderHash,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant> {
        let token = self.tokens.next_of(reader);
        let expected = self.events.expect_own_change(key.main());
        let lease = async |shard: Arc<Shard>| shard.lease(key, &token, refused, budget).await;
        let in_memory = |memory: &Memory| Ok(memory.lease(key, &token, refused));
        let lease = async || self.on_key(key, lease, in_memory).await;
        let grant = self.timed(StoreOp::Lease, lease).await;
        if !matches!(grant, Ok(Grant::Lease(_))) {
            self.events.withdraw_expected(key.main(), expected);
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
    ) -> Result<Fill> {
        self.expect([&lease.key]);
        let fill = async || match &self.engine {
            Engine::Redis(redis) => redis.owner(&lease.key)?.fill(lease, body, meta, ttl).await,
            Engine::Memory(memory) => Ok(memory.fill(&lease, body, meta, ttl)),
        };
        self.timed(StoreOp::Fill, fill).await
    }

    /// Changes an entry, if it is still the very entry that was seen.
    pub async fn change(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        change: EntryChange<'_>,
    ) -> Result<Fill> {
        let op = match change {
            EntryChange::Admit(_) => StoreOp::Admit,
            EntryChange::Replace { .. } => {
                self.expect([key]);
                StoreOp::Replace
            }
        };
        let changed = async |shard: Arc<Shard>| shard.change(key, seen, generation, change).await;
        let in_memory = |memory: &Memory| Ok(memory.change(key, seen, generation, change));
        self.timed(op, async || self.on_key(key, changed, in_memory).await).await
    }

    /// Hands a lease back when the answer cannot be stored. A caller that gives up waiting leaves that to
    /// the background.
    pub async fn release(&self, lease: Lease) {
        self.expect([&lease.key]);
        // In memory, and without an owner, it is enough to drop the lease.
        if let Engine::Redis(redis) = &self.engine
            && let Ok(shard) = redis.owner(&lease.key)
        {
            shard.release(lease).await;
        }
    }

    /// Fences keys before a write is forwarded. Never fails: if the fence is not confirmed, the end
    /// of the write runs twice.
    pub async fn begin(&self, keys: Vec<Key>, fence: Duration, budget: &mut Budget) -> Write {
        let mut write = self.write(keys, fence);
        self.expect(&write.keys);
        let begin = async || match &self.engine {
            Engine::Redis(redis) => redis.begin(&mut write, budget).await,
            Engine::Memory(memory) => {
                memory.begin(&mut write);
                Ok(())
            }
        };
        // Without a fence the end of the write runs twice.
        let _ = self.timed(StoreOp::Begin, begin).await;
        write
    }

    /// Returns a write that fences nothing, to be widened and ended.
    pub fn unfenced(&self, fence: Duration) -> Write {
        self.write(Vec::new(), fence)
    }

    fn write(&self, keys: Vec<Key>, fence: Duration) -> Write {
        Write { keys, elsewhere: 0, id: self.tokens.next(), fence, begun: Begun::NotSent }
    }

    /// Renews the fence of a long write.
    pub async fn renew(&self, write: &Write) {
        match &self.engine {
            Engine::Redis(redis) => redis.renew(write).await,
            Engine::Memory(memory) => memory.fence(write.renewed(), write),
        }
    }

    /// Invalidates the keys of a write and lifts its fence after `linger`. A later end of the same
    /// write may lift it sooner.
    ///
    /// Call it before the write is answered, from a task that is never cancelled.
    pub async fn end(&self, write: &Write, linger: Duration, budget: &mut Budget) -> Ended {
        self.expect(&write.keys);
        let end = async || match &self.engine {
            Engine::Redis(redis) => redis.end(write, linger, budget).await.0,
            Engine::Memory(memory) => memory.end(write, linger).0,
        };
        self.timed(StoreOp::End, end).await.unwrap_or(Ended::Pending)
    }

    /// Invalidates keys, as the end of a write that did not pass through this sidecar. Runs under
    /// its own deadline, and a batch of keys waits for the store at most `wait`; keys that are not
    /// confirmed become pending. Must not be cancelled, like [`Store::end`].
    pub async fn purge(&self, keys: Vec<Key>, wait: Duration) -> Purged {
        let write = self.write(keys, Duration::ZERO);
        self.expect(&write.keys);
        let started = Instant::now();
        let (ended, receipts) = match &self.engine {
            Engine::Redis(redis) => redis.purge(&write, wait).await,
            Engine::Memory(memory) => memory.end(&write, Duration::ZERO),
        };
        self.metrics.operations.record(StoreOp::End, &ended, started.elapsed());
        Purged { ended: ended.unwrap_or(Ended::Pending), receipts }
    }

    /// Invalidates every key under the prefix. Runs under its own deadline. Must not be cancelled,
    /// like [`Store::end`].
    pub async fn purge_all(&self) -> Ended {
        match &self.engine {
            Engine::Redis(redis) => redis.purge_all().await,
            Engine::Memory(memory) => memory.purge_all(),
        }
    }

    /// Tells the event log that the next change of these keys is made by this process.
    fn expect<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) {
        self.events.expect_own_changes(keys.into_iter().map(Key::main));
    }

    /// Runs an operation on one key, at its owner or in memory.
    async fn on_key<T>(
        &self,
        key: &Key,
        at_owner: impl AsyncFnOnce(Arc<Shard>) -> Result<T>,
        in_memory: impl FnOnce(&Memory) -> Result<T>,
    ) -> Result<T> {
        match &self.engine {
            Engine::Redis(redis) => at_owner(redis.owner(key)?).await,
            Engine::Memory(memory) => in_memory(memory),
        }
    }

    /// Times and counts an operation.
    async fn timed<T>(&self, op: StoreOp, operation: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let result = operation().await;
        self.metrics.operations.record(op, &result, started.elapsed());
        result
    }
}
