//! The round trip to a server, and whether it fits into the budget of a read.
//!
//! A read that misses needs two round trips: it reads the key and asks for the lease. A hit may need
//! two as well: a read that waits for the barrier may find a round under way. A server for which the
//! budget is too small is *far*: every read would spend its budget in vain, so reads pass, as with a
//! server that is down. Its session stays, and invalidations are sent and repeated as ever.
//!
//! One slow answer does not make a server far, nor does one fast answer make it near again.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use redis::{Value, cmd};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::{
    dial::RedisConnection,
    session::{PROBE_TIMEOUT, Session},
    state::ShardState,
};
use crate::store::{
    FarStore, StoreError,
    errors::{Result, StoreErrorKind},
};

/// Measurements that decide.
const MEASUREMENTS: usize = 3;
/// Interval between two looks whether a far server is near again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The distance of the server of a session.
#[derive(Debug, Default)]
pub(super) struct Distance {
    is_far: AtomicBool,
    /// Time of the last exchange that was measured, in us.
    round_trip_us: AtomicU64,
}

impl Distance {
    pub(super) fn is_far(&self) -> bool {
        self.is_far.load(Ordering::Acquire)
    }

    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    pub(super) fn note(&self, round_trip: Duration) {
        let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        self.round_trip_us.store(micros, Ordering::Relaxed);
    }
}

/// Measures the distance of a server after an exchange that took `first`. Returns why it is too far
/// away, if it is. A server that answered that exchange in time is not asked again.
pub(super) async fn measure(
    connection: &RedisConnection,
    first: Duration,
    budget: Duration,
) -> Result<Option<FarStore>> {
    let mut smallest = first;
    for _ in 1..MEASUREMENTS {
        if FarStore::of(smallest, budget).is_none() {
            return Ok(None);
        }
        smallest = smallest.min(ping(connection).await?);
    }
    Ok(FarStore::of(smallest, budget))
}

/// Measures again after each probe, the round trip of which is noted. A far server is asked less
/// often.
pub(super) async fn follow(
    shard: &ShardState,
    session: &Session,
    looked_at: &mut Instant,
) -> Result<()> {
    let budget = shard.context.config.budget;
    if !session.distance.is_far() {
        let first = session.distance.round_trip();
        if let Some(far) = measure(&session.connection, first, budget).await? {
            set_far(shard, session, &far);
            *looked_at = Instant::now();
        }
        return Ok(());
    }
    if looked_at.elapsed() < LOOK_EVERY {
        return Ok(());
    }
    let mut largest = Duration::ZERO;
    for _ in 0..MEASUREMENTS {
        largest = largest.max(ping(&session.connection).await?);
    }
    *looked_at = Instant::now();
    if FarStore::of(largest, budget).is_none() {
        session.distance.is_far.store(false, Ordering::Release);
        info!(store = shard.address, round_trip_ms = %millis(largest), "the store is near enough again");
        shard.context.status_changed.notify_one();
    }
    Ok(())
}

/// Lets reads pass.
pub(super) fn set_far(shard: &ShardState, session: &Session, far: &FarStore) {
    session.distance.is_far.store(true, Ordering::Release);
    shard.context.status_changed.notify_one();
    if let Some(suppressed) = shard.warnings.far.admit("far") {
        warn!(
            store = shard.address,
            round_trip_ms = %millis(far.round_trip),
            budget_ms = %millis(far.budget),
            remedy = far.remedy(),
            suppressed,
            "Redis is too far away for store.budget; reads go to the API, and writes still invalidate"
        );
    }
}

async fn ping(connection: &RedisConnection) -> Result<Duration> {
    let sent = Instant::now();
    let mut requests = connection.requests.clone();
    let answer = timeout(PROBE_TIMEOUT, cmd("PING").query_async::<Value>(&mut requests)).await?;
    match answer.map_err(StoreError::from) {
        // A refusal is an answer, too.
        Err(error) if error.kind() != StoreErrorKind::Refused => Err(error),
        _ => Ok(sent.elapsed()),
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
