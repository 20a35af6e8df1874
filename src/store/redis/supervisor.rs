//! The supervisor: publishes a session while a master is available.

use std::{sync::Arc, thread, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    classify::BACKOFF,
    reconnect::{probe_interval, reconnect},
    record_keeper::keep_record,
    session::Session,
    state::{SessionHandle, ShardState},
    tracking::track,
};
use crate::store::errors::StoreError;

/// Keeps a session published while a master is available.
pub(super) async fn supervise(shard: Arc<ShardState>) {
    let _guard = SupervisorGuard(Arc::clone(&shard));
    let mut backoff = BACKOFF.0;
    let mut first_pause = Duration::ZERO;
    loop {
        let session = reconnect(&shard, first_pause, &mut backoff).await;
        let error = serve(&shard, &session, &mut backoff).await;
        // Before `requeue_recent`: from here on no invalidation counts as confirmed, so it misses
        // none.
        session.fail();
        shard.retract(&error);
        shard.requeue_recent().await;
        warn!(store = shard.address, %error, "store is down; all requests go to the upstream");
        first_pause = backoff;
    }
}

/// Withdraws the session if the supervisor panics, because nothing would watch it any more.
struct SupervisorGuard(Arc<ShardState>);

impl Drop for SupervisorGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.retract(&StoreError::Unusable("the store supervisor has panicked".into()));
        }
    }
}

/// Publishes the session. Returns the reason when it can no longer be trusted.
async fn serve(shard: &ShardState, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
    info!(epoch = session.epoch().as_str(), "store is up");
    shard.publish(Arc::clone(session));
    *backoff = BACKOFF.0;
    tokio::select! {
        error = watch(shard, session) => error,
        error = shard.source.moved(session.target(), session.term()) => {
            session.fail();
            error
        }
        never = keep_record(shard, session) => match never {},
        never = session.end_grace() => match never {},
        never = track(shard, session) => match never {},
    }
}

/// Returns the reason when the session can no longer be trusted.
async fn watch(shard: &ShardState, session: &Session) -> StoreError {
    loop {
        tokio::select! {
            _ = timeout(probe_interval(shard), shard.failed.notified()) => {}
            () = session.closed() => {
                return StoreError::Lost("the server closed the connection".into());
            }
        }
        if session.has_failed() {
            return StoreError::Unusable("too many operations failed".into());
        }
        if let Err(error) = session.probe().await {
            session.fail();
            return error;
        }
    }
}
