//! What every part of the proxy needs under one configuration, and the client of a request.

use std::{fmt, sync::Arc};

use tokio_util::task::TaskTracker;

use super::{metrics::ProxyMetrics, stale_config::StaleConfig};
use crate::{
    cache::Cache, config::CacheMode, observe::events::Events, semantics::route::Routes,
    service::Informational, transport::Peer, upstream::Upstream,
};

/// The client of a request, and its way for informational responses.
pub(super) struct Requester {
    pub(super) client: Peer,
    pub(super) informational: Informational,
}

/// What every path of a request needs under one configuration.
#[derive(Clone)]
pub(super) struct ProxyContext {
    pub(super) routes: Arc<Routes>,
    /// Set when a reload puts other routes or rules into force.
    pub(super) stale_config: StaleConfig,
    pub(super) cache: Arc<Cache>,
    pub(super) upstream: Arc<Upstream>,
    /// Writes and flights, which outlive the client that began them, and upgraded connections.
    pub(super) tasks: TaskTracker,
    pub(super) mode: CacheMode,
    pub(super) metrics: Arc<ProxyMetrics>,
    pub(super) events: Arc<Events>,
}

impl fmt::Debug for ProxyContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyContext")
            .field("mode", &self.mode)
            .field("cache", &self.cache)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}
