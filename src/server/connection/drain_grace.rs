//! The drain of a connection that has sent nothing yet.

use std::time::Duration;

use tokio::{
    sync::SetOnce,
    time::{sleep, timeout},
};

use crate::service::{Drain, until_drain};

/// Time that a drain gives a connection that has sent nothing yet. Its request may be on its way,
/// and a client that has just connected would see the close as an error.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Returns when a drain has lasted so long that a connection that has sent nothing counts as idle.
pub(super) async fn silent_during_drain(drain: &mut Drain) {
    until_drain(drain).await;
    sleep(FIRST_REQUEST_GRACE).await;
}

/// The first request of a connection.
#[derive(Debug, Default)]
pub(super) struct FirstRequest(SetOnce<()>);

impl FirstRequest {
    /// Records that the connection has had a request.
    pub(super) fn mark_begun(&self) {
        if !self.0.initialized() {
            let _ = self.0.set(());
        }
    }

    /// Returns when a drain has begun and the connection has had a request, or enough time for one.
    /// An earlier shutdown would make hyper close a connection that has had no request, even while
    /// it reads the first head.
    pub(super) async fn ready_to_close(&self, drain: &mut Drain) {
        until_drain(drain).await;
        let _ = timeout(FIRST_REQUEST_GRACE, self.0.wait()).await;
    }
}
