//! Metrics of the masters of a Redis Cluster, and of redirections by its nodes.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use crate::observe::metrics::{Counters, Registry};

/// The redirections, as the server spells them.
const KINDS: [&str; 4] = ["moved", "ask", "tryagain", "clusterdown"];

/// The metrics of a Redis Cluster; all zero for any other store.
pub(crate) struct ClusterMetrics {
    up: Gauge,
    down: Gauge,
    /// Slots that no master owns.
    unowned: Gauge,
    pub(in crate::store) redirections: Counters<1>,
    /// Times that the slot map was refreshed.
    pub(super) refreshes: Counter,
}

impl ClusterMetrics {
    pub(in crate::store) fn register(r: &mut Registry) -> Self {
        let shards = r.add(
            "store_shards",
            "Masters of the Redis Cluster by whether they are trusted",
            Family::<[(&str, &str); 1], Gauge>::default(),
        );
        let shards = |state| shards.get_or_create_owned(&[("state", state)]);
        Self {
            up: shards("up"),
            down: shards("down"),
            unowned: r
                .gauge("store_slots_unowned", "Slots of the Redis Cluster that no master owns"),
            redirections: r.counters_by(
                "kind",
                "store_redirections",
                "Operations that a node of the Redis Cluster redirected, by kind",
                KINDS,
            ),
            refreshes: r.counter(
                "store_topology_refreshes",
                "Times that the slot map of the Redis Cluster was refreshed",
            ),
        }
    }

    /// Sets the numbers of trusted masters, of other masters, and of slots without a master.
    pub(in crate::store) fn set_shards(&self, up: usize, down: usize, unowned: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.up.set(number(up));
        self.down.set(number(down));
        self.unowned.set(number(unowned));
    }
}
