//! For how long nothing is a hit in a new epoch.
//!
//! After a restart or failover every sidecar has to connect, and to repeat the invalidations that the
//! server has not confirmed, before the first hit. `store.reconnect_grace` is the time for that. It
//! counts from the first sidecar that connects, by the server's clock: that sidecar sets a mark with
//! the new epoch (`lua/epoch.lua`).
//!
//! If the mark can be neither read nor set, the whole grace is waited for.

use std::{sync::LazyLock, time::Duration};

use redis::{Script, aio::MultiplexedConnection};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

use super::{
    classify::{DETACHED_TIMEOUT, classify},
    server_info::ServerInfo,
    state::ShardState,
};
use crate::store::words::{Epoch, millis};

/// `uptime_in_seconds` is rounded, by this much at most.
const UPTIME_ERROR_SECS: u64 = 1;

static EPOCH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/epoch.lua")));

/// Returns when the grace of this epoch is over; `None` if that is now.
pub(super) async fn grace_end(
    shard: &ShardState,
    connection: &mut MultiplexedConnection,
    info: &ServerInfo,
    epoch: &Epoch,
) -> Option<Instant> {
    let name = epoch_mark(shard)?;
    let grace = shard.context.config.reconnect_grace;
    let is_new = info.uptime_secs() <= grace.as_secs() + 1 + UPTIME_ERROR_SECS;
    let mut script = EPOCH.key(name);
    script.arg(shard.source.marked_epoch(epoch)).arg(if is_new { "new" } else { "old" });
    let known = timeout(DETACHED_TIMEOUT, script.invoke_async::<i64>(connection)).await;
    let known_ms = match known {
        Ok(Ok(known_ms)) => u64::try_from(known_ms).unwrap_or(0),
        Ok(Err(error)) => {
            debug!(error = %classify(&error), "cannot note the epoch of the store");
            0
        }
        Err(_) => 0,
    };
    let left = grace.checked_sub(Duration::from_millis(known_ms))?;
    (!left.is_zero()).then(|| {
        info!(
            left_ms = millis(left),
            "the store is in a new epoch; no hits until it is known everywhere"
        );
        // The reply took some time, so this is later than by the server's clock.
        Instant::now() + left
    })
}

/// The name of the mark, in a slot of this server; `None` if it has no slot, or none is needed.
pub(super) fn epoch_mark(shard: &ShardState) -> Option<String> {
    let config = &shard.context.config;
    (!config.reconnect_grace.is_zero()).then(|| shard.source.epoch_mark(&config.prefix))?
}
