//! When the topology is refreshed, and who waits for it.
//!
//! Refreshes are shared as rounds of the read barrier are: a caller that wants one while one is
//! under way waits for the next, so that its result was requested after the caller arrived.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{Notify, watch};

use crate::store::node_address::NodeAddress;

/// Topology refreshes, one after the other.
#[derive(Debug)]
pub(in crate::store) struct RefreshRounds {
    wanted: Notify,
    /// Number of refreshes that have begun.
    begun: AtomicU64,
    latest: watch::Sender<RefreshResult>,
}

/// The result of a refresh, apart from the map itself.
#[derive(Clone, Debug, Default)]
pub(in crate::store) struct RefreshResult {
    number: u64,
    /// The nodes that answered.
    witnesses: Arc<[NodeAddress]>,
    /// Whether there is no other node that could have answered.
    is_alone: bool,
}

impl Default for RefreshRounds {
    fn default() -> Self {
        let learned = watch::Sender::new(RefreshResult::default());
        Self { wanted: Notify::new(), begun: AtomicU64::new(0), latest: learned }
    }
}

impl RefreshRounds {
    /// Asks for a refresh and does not wait for it.
    pub(in crate::store) fn request(&self) {
        self.wanted.notify_one();
    }

    /// Waits for a refresh that begins after now. By then the map is up to date.
    pub(in crate::store) async fn next(&self) -> RefreshResult {
        let mut learned = self.latest.subscribe();
        let next = self.begun.load(Ordering::SeqCst) + 1;
        self.request();
        let refresh = learned.wait_for(|refresh| refresh.number >= next).await;
        // Cannot fail: `self` holds the sender.
        refresh.map(|refresh| refresh.clone()).unwrap_or_default()
    }

    /// Waits until a refresh is wanted.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Begins a refresh and returns its number.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Ends a refresh, after the map was updated. A refresh that no node answered does not end.
    pub(super) fn end(&self, number: u64, witnesses: Arc<[NodeAddress]>, is_alone: bool) {
        self.latest.send_replace(RefreshResult { number, witnesses, is_alone });
    }
}

impl RefreshResult {
    /// Whether a node other than this one has answered, or this node if there is no other.
    pub(in crate::store) fn confirms(&self, node: &NodeAddress) -> bool {
        self.witnesses.iter().any(|witness| witness != node)
            || self.is_alone && self.witnesses.contains(node)
    }
}
