//! The metrics of other parts that `/status` shows.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::recent::Recent;
use crate::{proxy::metrics::ProxyMetrics, upstream::metrics::UpstreamMetrics};

/// Those that cannot be reached through the cache.
#[derive(Clone)]
pub(crate) struct StatusSources {
    /// Open client connections.
    pub(crate) connections: Gauge,
    pub(crate) proxy: Arc<ProxyMetrics>,
    pub(crate) upstream: Arc<UpstreamMetrics>,
    pub(crate) recent: Arc<Recent>,
}
