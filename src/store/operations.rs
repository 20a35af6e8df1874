//! The operations on keys, each timed and counted.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    BarrierWait, Budget, Ended, Engine, Fill, Grant, IdentityHash, Key, KeyState, Lease, Purged,
    Replacement, Seen, Store, StoreError, StoredValue, Write, barrier::BarrierDown, errors::Result,
    memory::Memory, metrics::StoreOp, redis::Shard, words::EntryChange, write::Begun,
};

impl Store {
    /// Makes sure that the watcher is notified of the next change to a key. Call it after the key
    /// was noted ([`NearEntries::note`](super::near::NearEntries::note)) and before it is read; if
    /// it fails, the value must not be inserted. Costs a round trip if the store reports only
    /// changes to keys that were read, and none otherwise.
    pub async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<()> {
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
    pub async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen> {
        let read = async |shard: Arc<Shard>| shard.read(key, budget).await;
        self.timed(StoreOp::Read, key, read, |memory| memory.read(key)).await
    }

    /// Reads everything under the keys of a job: one round trip, no script. For diagnosis: the
    /// result does not affect the connection, and the operation is not counted.
    pub async fn inspect(&self, key: &Key, budget: &mut Budget) -> Result<KeyState> {
        match &self.engine {
            Engine::Redis(redis) => redis.owner(key)?.inspect(key, budget).await,
            Engine::Memory(memory) => Ok(memory.inspect(key)),
        }
    }

    /// Asks for the right to fill a key with an entry of this identity, which the token of the
    /// lease names. `refused` is a value that the caller has read and found not to be an entry of
    /// ours; it is deleted if it is still there.
    ///
    /// If the answer does not arrive in time, or the caller is dropped while it waits, the lease is
    /// released after the request, on the same connection.
    pub async fn lease(
        &self,
        key: &Key,
        identity: IdentityHash,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant> {
        let token = self.tokens.next_of(identity);
        let expected = self.events.expect_own_change(key.main());
        let lease = async |shard: Arc<Shard>| shard.lease(key, &token, refused, budget).await;
        let of_memory = |memory: &Memory| memory.lease(key, &token, refused);
        let grant = self.timed(StoreOp::Lease, key, lease, of_memory).await;
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
        let started = Instant::now();
        let fill = match &self.engine {
            Engine::Redis(redis) => {
                async { redis.owner(&lease.key)?.fill(lease, body, meta, ttl).await }.await
            }
            Engine::Memory(memory) => Ok(memory.fill(&lease, body, meta, ttl)),
        };
        self.metrics.operations.record(StoreOp::Fill, &fill, started.elapsed());
        fill
    }

    /// Adds a caller to the audience of an entry, if that is still the very entry that was seen.
    /// Meta records the time at which it was seen; the upstream served it to the caller no earlier.
    pub async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        caller: &str,
    ) -> Result<Fill> {
        self.change(StoreOp::Admit, key, seen, generation, EntryChange::Admit(caller)).await
    }

    /// Replaces an entry with a newer body, if it is still the very entry that was seen. `meta` is
    /// a JSON object without its closing brace, as for [`Store::fill`].
    pub async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill> {
        self.expect([key]);
        self.change(StoreOp::Replace, key, seen, generation, EntryChange::Replace(new)).await
    }

    async fn change(
        &self,
        op: StoreOp,
        key: &Key,
        seen: &Seen,
        generation: &str,
        change: EntryChange<'_>,
    ) -> Result<Fill> {
        let changed = async |shard: Arc<Shard>| shard.change(key, seen, generation, change).await;
        self.timed(op, key, changed, |memory| memory.change(key, seen, change)).await
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
        let mut write = self.write(keys, fence);
        self.expect(&write.keys);
        match &self.engine {
            Engine::Redis(redis) => {
                let started = Instant::now();
                let begun = redis.begin(&mut write, budget).await;
                self.metrics.operations.record(StoreOp::Begin, &begun, started.elapsed());
            }
            Engine::Memory(memory) => {
                memory.begin(&write.keys, &write.id, fence);
                write.begun = Begun::Confirmed;
            }
        }
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
            Engine::Memory(memory) => memory.begin(write.renewed(), &write.id, write.fence),
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
                self.metrics.operations.record(StoreOp::End, &ended, started.elapsed());
                ended.unwrap_or(Ended::Pending)
            }
            Engine::Memory(memory) => memory.end(&write.keys, &write.id, linger).ended,
        }
    }

    /// Invalidates keys, as the end of a write that did not pass through this sidecar. Runs under
    /// its own deadline, and a batch of keys waits for the store at most `wait`; keys that are not
    /// confirmed become pending. Must not be cancelled, like [`Store::end`].
    pub async fn purge(&self, keys: Vec<Key>, wait: Duration) -> Purged {
        let write = self.write(keys, Duration::ZERO);
        self.expect(&write.keys);
        let started = Instant::now();
        let (ended, was) = match &self.engine {
            Engine::Redis(redis) => redis.purge(&write, wait).await,
            Engine::Memory(memory) => return memory.end(&write.keys, &write.id, Duration::ZERO),
        };
        self.metrics.operations.record(StoreOp::End, &ended, started.elapsed());
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

    /// Tells the event log that the next change of these keys is made by this process.
    fn expect<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) {
        for key in keys {
            self.events.expect_own_change(key.main());
        }
    }

    /// Runs an operation on one key, at its owner or in memory, and counts it.
    async fn timed<T>(
        &self,
        op: StoreOp,
        key: &Key,
        at_owner: impl AsyncFnOnce(Arc<Shard>) -> Result<T>,
        in_memory: impl FnOnce(&Memory) -> T,
    ) -> Result<T> {
        let started = Instant::now();
        let result = match &self.engine {
            Engine::Redis(redis) => match redis.owner(key) {
                Ok(shard) => at_owner(shard).await,
                Err(error) => Err(error),
            },
            Engine::Memory(memory) => Ok(in_memory(memory)),
        };
        self.metrics.operations.record(op, &result, started.elapsed());
        result
    }
}
