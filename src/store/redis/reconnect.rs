//! How a supervisor connects again.
//!
//! Every sidecar has to connect within `store.reconnect_grace` (`grace.rs`). So attempts to connect
//! begin at least every quarter of it, also while an earlier one hangs.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{
    classify::BACKOFF,
    connect::{connect_master, open_session},
    state::{SessionHandle, ShardState},
};
use crate::store::errors::StoreError;

/// Interval between two probes of the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);

/// Most attempts to connect that are under way at a time.
const MAX_ATTEMPTS: usize = 4;

/// Connects to the master, however long that takes, and opens a session.
/// Waits for about `first_pause` before the first attempt.
pub(super) async fn reconnect(
    shard: &ShardState,
    first_pause: Duration,
    backoff: &mut Duration,
) -> SessionHandle {
    let mut attempts = FuturesUnordered::new();
    let mut next_at = Instant::now() + jittered(first_pause);
    loop {
        let has_room = attempts.len() < MAX_ATTEMPTS;
        let failed = tokio::select! {
            Some(dialled) = attempts.next() => match dialled {
                Ok(dialled) => match open_session(shard, dialled).await {
                    Ok(session) => return session,
                    Err(error) => error,
                },
                Err(error) => error,
            },
            () = sleep_until(next_at), if has_room => {
                attempts.push(connect_master(&shard.source));
                next_at = Instant::now() + longest_pause(shard);
                continue;
            }
        };
        warn_of_failed_attempt(shard, &failed);
        if attempts.is_empty() {
            next_at = Instant::now() + jittered(*backoff);
            *backoff = (*backoff * 2).min(longest_pause(shard));
        }
    }
}

fn warn_of_failed_attempt(shard: &ShardState, error: &StoreError) {
    shard.context.metrics.breaker.fail(error);
    if let Some(suppressed) = shard.warnings.connect.admit(&error.to_string()) {
        let store = &shard.address;
        warn!(store, %error, suppressed, "cannot connect to the store; retrying");
    }
}

/// The longest pause between two attempts to connect: a quarter of the grace.
fn longest_pause(shard: &ShardState) -> Duration {
    let grace = shard.context.config.reconnect_grace;
    if grace.is_zero() { BACKOFF.1 } else { (grace / 4).clamp(BACKOFF.0, BACKOFF.1) }
}

/// The interval between two probes of the server. A connection that is closed is noticed at once;
/// a server that is silent or no longer a master is not.
pub(super) fn probe_interval(shard: &ShardState) -> Duration {
    longest_pause(shard).min(PROBE_EVERY)
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
