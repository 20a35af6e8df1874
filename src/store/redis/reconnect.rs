//! How a supervisor connects again, and for how long nothing is a hit then.
//!
//! After a restart or failover every sidecar has to connect, and to repeat the invalidations that the
//! server has not confirmed, before the first hit. `store.reconnect_grace` is the time for that. It
//! counts from the first sidecar that connects, by the server's clock: that sidecar sets a mark with
//! the new epoch (`lua/epoch.lua`). So attempts to connect begin at least every quarter of the grace,
//! also while an earlier one hangs.
//!
//! If the mark can be neither read nor set, the whole grace is waited for.

use std::{convert::Infallible, future, sync::LazyLock, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{Script, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{
    connect::connect_master,
    errors::{BACKOFF, DETACHED_TIMEOUT, classify},
    server_info::ServerInfo,
    session::Session,
    state::{SessionHandle, ShardState},
};
use crate::store::{
    errors::StoreError,
    words::{Epoch, millis},
};

/// Interval between two probes of the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);

/// Most attempts to connect that are under way at a time.
const MAX_ATTEMPTS: usize = 4;
/// The uptime is told in whole seconds, and is this much too long at most.
const UPTIME_ERROR_SECS: u64 = 1;

static EPOCH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/epoch.lua")));

impl ShardState {
    /// Connects to the master, however long that takes, and opens a session.
    /// Waits for about `first_pause` before the first attempt.
    pub(super) async fn reconnect(
        &self,
        first_pause: Duration,
        backoff: &mut Duration,
    ) -> SessionHandle {
        let mut attempts = FuturesUnordered::new();
        let mut next_at = Instant::now() + jittered(first_pause);
        loop {
            let has_room = attempts.len() < MAX_ATTEMPTS;
            let failed = tokio::select! {
                Some(dialled) = attempts.next() => match dialled {
                    Ok(dialled) => match self.open_session(dialled).await {
                        Ok(session) => return session,
                        Err(error) => error,
                    },
                    Err(error) => error,
                },
                () = sleep_until(next_at), if has_room => {
                    attempts.push(connect_master(&self.source));
                    next_at = Instant::now() + self.longest_pause();
                    continue;
                }
            };
            self.warn_of_failed_attempt(&failed);
            if attempts.is_empty() {
                next_at = Instant::now() + jittered(*backoff);
                *backoff = (*backoff * 2).min(self.longest_pause());
            }
        }
    }

    fn warn_of_failed_attempt(&self, error: &StoreError) {
        self.context.metrics.breaker.fail(error);
        if let Some(suppressed) = self.warnings.connect.admit(&error.to_string()) {
            let store = &self.address;
            warn!(store, %error, suppressed, "cannot connect to the store; retrying");
        }
    }

    /// Time for which a new epoch has no hits.
    fn grace(&self) -> Duration {
        self.context.config.reconnect_grace
    }

    /// The longest pause between two attempts to connect: a quarter of the grace.
    fn longest_pause(&self) -> Duration {
        let grace = self.grace();
        if grace.is_zero() { BACKOFF.1 } else { (grace / 4).clamp(BACKOFF.0, BACKOFF.1) }
    }

    /// The interval between two probes of the server. A connection that is closed is noticed at once;
    /// a server that is silent or no longer a master is not.
    pub(super) fn probe_interval(&self) -> Duration {
        self.longest_pause().min(PROBE_EVERY)
    }

    /// Returns when the grace of this epoch is over; `None` if that is now.
    pub(super) async fn grace_end(
        &self,
        connection: &mut MultiplexedConnection,
        info: &ServerInfo,
        epoch: &Epoch,
    ) -> Option<Instant> {
        let name = self.epoch_mark()?;
        let is_new = info.uptime_secs() <= self.grace().as_secs() + 1 + UPTIME_ERROR_SECS;
        let mut script = EPOCH.key(name);
        script.arg(self.source.marked_epoch(epoch)).arg(if is_new { "new" } else { "old" });
        let known = timeout(DETACHED_TIMEOUT, script.invoke_async::<i64>(connection)).await;
        let known_ms = match known {
            Ok(Ok(known_ms)) => u64::try_from(known_ms).unwrap_or(0),
            Ok(Err(error)) => {
                debug!(error = %classify(&error), "cannot note the epoch of the store");
                0
            }
            Err(_) => 0,
        };
        let left = self.grace().checked_sub(Duration::from_millis(known_ms))?;
        (!left.is_zero()).then(|| {
            info!(
                left_ms = millis(left),
                "the store is in a new epoch; no hits until it is known everywhere"
            );
            // The reply took some time, so this is later than by the server's clock.
            Instant::now() + left
        })
    }

    /// Ends the grace of a session in time; never returns.
    pub(super) async fn end_grace(&self, session: &Session) -> Infallible {
        session.wait_out_grace().await;
        future::pending().await
    }

    /// The name of the mark, in a slot of this server; `None` if it has no slot, or none is needed.
    pub(super) fn epoch_mark(&self) -> Option<String> {
        (!self.grace().is_zero()).then(|| self.source.epoch_mark(&self.context.config.prefix))?
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}
