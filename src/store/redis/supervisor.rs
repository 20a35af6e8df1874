//! The supervisor: publishes a session while a master is available.

use std::{convert::Infallible, future, sync::Arc, thread, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    errors::BACKOFF,
    session::Session,
    state::{SessionHandle, ShardState},
    tracking::track,
};
use crate::store::errors::StoreError;

/// Keeps a session published while a master is available.
pub(super) async fn supervise(shared: Arc<ShardState>) {
    let _guard = SupervisorGuard(Arc::clone(&shared));
    let mut backoff = BACKOFF.0;
    let mut first_pause = Duration::ZERO;
    loop {
        let session = shared.reconnect(first_pause, &mut backoff).await;
        let error = shared.serve(&session, &mut backoff).await;
        // Before `requeue_recent`: from here on no invalidation counts as confirmed, so it misses
        // none.
        session.fail();
        shared.retract(&error);
        shared.requeue_recent().await;
        warn!(store = shared.address, %error, "store is down; all requests go to the upstream");
        first_pause = backoff;
    }
}

/// Withdraws the session if the supervisor panics, because nothing would watch it any more.
struct SupervisorGuard(Arc<ShardState>);

impl Drop for SupervisorGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.retract(&StoreError::Lost("the store supervisor has panicked".into()));
        }
    }
}

impl ShardState {
    /// Publishes the session. Returns the reason when it can no longer be trusted.
    async fn serve(&self, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
        info!(epoch = session.epoch().as_str(), "store is up");
        self.publish(Arc::clone(session));
        *backoff = BACKOFF.0;
        tokio::select! {
            error = self.watch(session) => error,
            error = self.source.moved(session.target(), session.term()) => {
                session.fail();
                error
            }
            never = self.keep_record(session) => match never {},
            never = self.end_grace(session) => match never {},
            never = self.track(session) => match never {},
        }
    }

    /// Runs the tracking connection for as long as the session lasts: in another epoch its messages
    /// are not about our entries.
    async fn track(&self, session: &Session) -> Infallible {
        match &self.tracked {
            Some(tracked) => track(self, session, tracked).await,
            None => future::pending().await,
        }
    }

    /// Returns the reason when the session can no longer be trusted.
    async fn watch(&self, session: &Session) -> StoreError {
        loop {
            tokio::select! {
                _ = timeout(self.probe_interval(), self.failed.notified()) => {}
                () = session.closed() => {
                    return StoreError::Lost("the server closed the connection".into());
                }
            }
            if session.has_failed() {
                return StoreError::Lost("too many operations failed".into());
            }
            if let Err(error) = session.probe().await {
                session.fail();
                return error;
            }
        }
    }
}
