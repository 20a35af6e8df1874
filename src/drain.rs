//! The end of a process that finishes its work first: the signal that a drain has begun, and what it
//! means for a connection that has sent nothing yet.

use std::time::Duration;

use tokio::{
    sync::{SetOnce, watch},
    time::{sleep, timeout},
};

/// Becomes true when servers must stop accepting connections.
pub type Drain = watch::Receiver<bool>;

/// Waits for the drain. Also returns when the sender is dropped.
pub(crate) async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|is_draining| *is_draining).await;
}

/// Time that a drain gives a connection that has sent nothing yet. Its request may be on its way,
/// and a client that has just connected would see the close as an error.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Returns when a drain has lasted so long that a connection that has sent nothing counts as idle.
pub(crate) async fn silent_during_drain(drain: &mut Drain) {
    until_drain(drain).await;
    sleep(FIRST_REQUEST_GRACE).await;
}

/// The first request of a connection.
#[derive(Debug, Default)]
pub(crate) struct FirstRequest(SetOnce<()>);

impl FirstRequest {
    /// Records that the connection has had a request.
    pub(crate) fn mark_begun(&self) {
        if !self.0.initialized() {
            let _ = self.0.set(());
        }
    }

    /// Returns when a drain has begun and the connection has had a request, or enough time for one.
    /// An earlier shutdown would make hyper close a connection that has had no request, even while
    /// it reads the first head.
    pub(crate) async fn ready_to_close(&self, drain: &mut Drain) {
        until_drain(drain).await;
        let _ = timeout(FIRST_REQUEST_GRACE, self.0.wait()).await;
    }
}
