//! The bulk lane: a further connection of a session, for large values and for what waits behind them.
//!
//! Most sidecars never see a large value, so the connection is opened when it is first wanted. It must
//! be to the server of the session: behind a name there may be another one by now. Its failures say
//! nothing about the session. `large_values.rs` decides what goes over it.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tracing::debug;

use super::{
    dial::Target,
    lane::{Lane, Turn},
    server_info::{ServerEpoch, ServerInfo},
};
use crate::store::{
    StoreError,
    errors::{DETACHED_TIMEOUT, Result},
};

/// KiB of values that may be on their way to the server at a time.
pub(super) const UPLOAD_KIB: u32 = 1024;

/// The connection for large values.
pub(super) struct BulkLane {
    open: watch::Sender<Option<Arc<Lane>>>,
    wanted: Notify,
    /// KiB of values that are on their way at a time.
    pub(super) uploads: Semaphore,
    /// One value at a time: those that wait would only be late as well.
    pub(super) downloads: Arc<Semaphore>,
}

impl BulkLane {
    pub(super) fn new() -> Self {
        Self {
            open: watch::Sender::new(None),
            wanted: Notify::new(),
            uploads: Semaphore::new(UPLOAD_KIB as usize),
            downloads: Arc::new(Semaphore::new(1)),
        }
    }

    /// Opens the connection whenever it is wanted; never returns.
    pub(super) async fn keep(&self, target: &Target, server: &ServerEpoch) -> Infallible {
        loop {
            self.wanted.notified().await;
            let opened = timeout(DETACHED_TIMEOUT, open(target, server)).await;
            match opened.unwrap_or(Err(StoreError::Timeout)) {
                Ok(lane) => self.hold(Arc::new(lane)).await,
                Err(error) => {
                    debug!(%error, "no connection for large values");
                    sleep(DETACHED_TIMEOUT).await;
                }
            }
        }
    }

    /// Offers the connection until it is closed.
    async fn hold(&self, lane: Arc<Lane>) {
        self.open.send_replace(Some(Arc::clone(&lane)));
        let mut open = self.open.subscribe();
        tokio::select! {
            () = lane.connection.closed.notified() => {}
            _ = open.wait_for(Option::is_none) => {}
        }
        self.open.send_replace(None);
    }

    /// The connection, if it is open; otherwise it will be.
    pub(super) fn now(&self) -> Option<Arc<Lane>> {
        let lane = self.open.borrow().clone();
        if lane.is_none() {
            self.wanted.notify_one();
        }
        lane
    }

    /// Waits for the connection.
    pub(super) async fn ready(&self) -> Arc<Lane> {
        let mut open = self.open.subscribe();
        loop {
            if let Some(lane) = self.now() {
                return lane;
            }
            // Cannot fail: `self` holds the sender.
            let _ = open.changed().await;
        }
    }

    /// Whether a large value is on its way over the common connection, because there is no other.
    pub(super) fn is_missed(&self) -> bool {
        self.uploads.available_permits() < UPLOAD_KIB as usize && self.open.borrow().is_none()
    }

    /// Closes the connection, with all that was not taken in time.
    pub(super) fn close(&self) {
        self.open.send_replace(None);
    }
}

/// Opens another connection to the server.
async fn open(target: &Target, server: &ServerEpoch) -> Result<Lane> {
    let connection = target.connect().await?;
    let info = redis::cmd("INFO").query_async(&mut connection.requests.clone()).await?;
    let info = ServerInfo(info);
    info.check()?;
    if !info.epoch(None).is_of(server) {
        return Err(StoreError::Unusable("this is not the server of the session".into()));
    }
    Ok(Lane::new(connection))
}

/// Waits for an operation on the common connection, until the caller gives up. Looks every `patience`
/// whether its answer is behind a large one. If it is and `may_repeat` agrees, the operation is sent
/// `again` over the bulk lane, and the first answer counts.
pub(super) async fn past_large<T, A>(
    bulk: &BulkLane,
    (turn, patience): (&Turn<'_>, Duration),
    may_repeat: impl Fn() -> bool,
    operation: impl Future<Output = Result<T>>,
    again: impl FnOnce(Arc<Lane>) -> A,
) -> Result<T>
where
    A: Future<Output = Result<T>>,
{
    let mut operation = pin!(async {
        let result = operation.await;
        turn.end();
        result
    });
    // Not without a pause, when the caller has hardly any time left.
    let patience = patience.max(Duration::from_millis(1));
    loop {
        if let Ok(result) = timeout(patience, &mut operation).await {
            return result;
        }
        if may_repeat() && turn.is_behind_large_answer() {
            break;
        }
    }
    let again = pin!(async { again(bulk.ready().await).await });
    match select(operation, again).await {
        Either::Left((result, _)) | Either::Right((result @ Ok(_), _)) => result,
        Either::Right((Err(_), operation)) => operation.await,
    }
}
