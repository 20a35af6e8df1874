//! Metrics of the masters of a Redis Cluster, and of redirections by its nodes.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::counters::zeros;

/// The redirections, as the server spells them.
const KINDS: [&str; 4] = ["moved", "ask", "tryagain", "clusterdown"];

/// The metrics of a Redis Cluster; all zero for any other store.
pub struct ClusterMetrics {
    shards: Family<ShardLabels, Gauge>,
    /// Slots that no master owns.
    unowned: Gauge,
    redirections: Family<RedirectionLabels, Counter>,
    /// Times that the slot map was refreshed.
    pub refreshes: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RedirectionLabels {
    kind: &'static str,
}

impl Default for ClusterMetrics {
    fn default() -> Self {
        let shards = Family::<ShardLabels, Gauge>::default();
        for state in ["up", "down"] {
            drop(shards.get_or_create(&ShardLabels { state }));
        }
        let redirections = zeros(KINDS.map(|kind| RedirectionLabels { kind }));
        Self { shards, unowned: Gauge::default(), redirections, refreshes: Counter::default() }
    }
}

impl ClusterMetrics {
    /// Sets the numbers of trusted masters, of other masters, and of slots without a master.
    pub fn set_shards(&self, up: usize, down: usize, unowned: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in [("up", up), ("down", down)] {
            self.shards.get_or_create(&ShardLabels { state }).set(number(count));
        }
        self.unowned.set(number(unowned));
    }

    /// Counts a redirection by its kind.
    pub fn count_redirection(&self, kind: &'static str) {
        self.redirections.get_or_create(&RedirectionLabels { kind }).inc();
    }

    pub(super) fn register(&self, r: &mut Registry) {
        let help = "Masters of the Redis Cluster by whether they are trusted";
        r.register("store_shards", help, self.shards.clone());
        let help = "Slots of the Redis Cluster that no master owns";
        r.register("store_slots_unowned", help, self.unowned.clone());
        let help = "Operations that a node of the Redis Cluster redirected, by kind";
        r.register("store_redirections", help, self.redirections.clone());
        let help = "Times that the slot map of the Redis Cluster was refreshed";
        r.register("store_topology_refreshes", help, self.refreshes.clone());
    }
}
