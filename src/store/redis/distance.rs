//! The round trip to a server, and whether it fits into the budget of a read.
//!
//! A read that misses needs two round trips: it reads the key and asks for the lease. A hit may need
//! two as well: a read that waits for the barrier may find a round under way. A server for which the
//! budget is too small is *far*: every read would spend its budget for nothing, so reads pass, as with a
//! server that is down. Its session stays, and invalidations are sent and repeated as ever.
//!
//! One slow answer does not make a server far, nor does one fast answer make it near again: the smallest
//! of [`MEASUREMENTS`] round trips decides the first, and the largest decides the second. `supervisor.rs`
//! measures at connect and at each probe.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use redis::{Value, cmd};
use tokio::time::{Instant, timeout};

use super::dial::RedisConnection;
use crate::store::{
    FarStore, StoreError,
    errors::{Result, StoreErrorKind},
};

/// Time limit of a measurement.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// Measurements that decide.
pub(super) const MEASUREMENTS: usize = 3;
/// Interval between two measurements of a far server.
pub(super) const FAR_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// The distance of the server of a session.
#[derive(Debug, Default)]
pub(super) struct Distance {
    is_far: AtomicBool,
    /// The round trip with which it was found far, in us.
    far_us: AtomicU64,
    /// Time of the last exchange that was measured, in us.
    round_trip_us: AtomicU64,
}

impl Distance {
    pub(super) fn is_far(&self) -> bool {
        self.is_far.load(Ordering::Acquire)
    }

    /// How far it was found to be, if it is too far away.
    pub(super) fn far(&self, budget: Duration) -> Option<FarStore> {
        let round_trip = Duration::from_micros(self.far_us.load(Ordering::Relaxed));
        self.is_far().then_some(FarStore { round_trip, budget })
    }

    /// Sets whether it is too far away; `None` if it is near.
    pub(super) fn set_far(&self, round_trip: Option<Duration>) {
        self.far_us.store(micros(round_trip.unwrap_or_default()), Ordering::Relaxed);
        self.is_far.store(round_trip.is_some(), Ordering::Release);
    }

    pub(super) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    pub(super) fn note(&self, round_trip: Duration) {
        self.round_trip_us.store(micros(round_trip), Ordering::Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
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
        let Some(round_trip) = ping(connection).await? else { return Ok(None) };
        smallest = smallest.min(round_trip);
    }
    Ok(FarStore::of(smallest, budget))
}

/// Measures a round trip; `None` if that is not possible now, because the answer waits behind a large
/// one.
pub(super) async fn ping(connection: &RedisConnection) -> Result<Option<Duration>> {
    let sent = Instant::now();
    let mut requests = connection.requests.clone();
    let ping = cmd("PING");
    let answer = timeout(PING_TIMEOUT, ping.query_async::<Value>(&mut requests)).await;
    let Ok(answer) = answer else {
        let is_moving = connection.traffic.has_arrived_since(sent);
        return if is_moving { Ok(None) } else { Err(StoreError::Timeout) };
    };
    match answer.map_err(StoreError::from) {
        // A refusal is an answer, too.
        Err(error) if error.kind() != StoreErrorKind::Refused => Err(error),
        _ => Ok(Some(sent.elapsed())),
    }
}
