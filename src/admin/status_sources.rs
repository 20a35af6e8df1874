//! The metrics of other parts that `/status` shows.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::recent::Recent;
use crate::{
    cache::Cache, observe::events::Events, proxy::metrics::ProxyMetrics,
    upstream::metrics::UpstreamMetrics,
};

/// Those that cannot be reached through the cache.
#[derive(Clone)]
pub(crate) struct StatusSources {
    /// Open client connections.
    pub(super) connections: Gauge,
    pub(super) proxy: Arc<ProxyMetrics>,
    pub(super) upstream: Arc<UpstreamMetrics>,
    pub(super) recent: Arc<Recent>,
}

impl StatusSources {
    pub(crate) fn new(
        connections: Gauge,
        cache: &Cache,
        proxy: &Arc<ProxyMetrics>,
        upstream: Arc<UpstreamMetrics>,
        events: &Arc<Events>,
    ) -> Self {
        let store = &cache.store().metrics().operations;
        let cache = cache.metrics();
        let times = [&cache.hit_times, &cache.miss_times, &upstream.recent, &store.recent];
        let recent = Recent::new(Arc::clone(proxy), times.map(Arc::clone), Arc::clone(events));
        Self { connections, proxy: Arc::clone(proxy), upstream, recent: Arc::new(recent) }
    }
}
