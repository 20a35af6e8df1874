//! How often each limit was reached. The part that holds a limit has a gauge of what is in use.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use crate::observe::metrics::Registry;

/// A limit that was reached. Each has the name of its setting, so that the metric says what to
/// change. Floods of HTTP/2 are counted in `jobcache_connection_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// All client connections were in use, so the next client has to wait.
    Connections,
    /// A request was refused because too many were being answered.
    Requests,
    /// A connection was closed because no complete request head arrived in time. Idle connections
    /// count too.
    HeaderTimeout,
    /// A client read nothing of its response for too long.
    WriteTimeout,
    /// An upload was too slow.
    UploadRate,
    /// A request head was too long or, over HTTP/1, had too many fields: the parser does not
    /// distinguish the two.
    HeaderBytes,
    /// A request head had too many fields.
    Headers,
    /// A path with its query was too long.
    Uri,
    /// An HTTP/2 connection reached its number of streams; further streams are refused.
    Streams,
    /// A read of a job went to the upstream on its own because too many flights were under way.
    Flights,
    /// A response was not stored because too many bytes of responses were held in memory.
    Captured,
    /// A write or a purge was refused because too many bytes of them were held in memory.
    Inspected,
    /// All connections to the upstream were in use, so a request had to wait.
    UpstreamConnections,
    /// A request was refused because too many were waiting for a connection.
    UpstreamWaiting,
    /// A purge was refused because too many arrived within a second.
    WebhookPurges,
    /// A call without the webhook secret was answered 429 because too many came from its address.
    WebhookFailures,
}

impl Limit {
    /// Every limit, in the order of declaration.
    pub const ALL: [Self; 16] = [
        Self::Connections,
        Self::Requests,
        Self::HeaderTimeout,
        Self::WriteTimeout,
        Self::UploadRate,
        Self::HeaderBytes,
        Self::Headers,
        Self::Uri,
        Self::Streams,
        Self::Flights,
        Self::Captured,
        Self::Inspected,
        Self::UpstreamConnections,
        Self::UpstreamWaiting,
        Self::WebhookPurges,
        Self::WebhookFailures,
    ];

    /// The key of its setting.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "server.max_connections",
            Self::Requests => "server.max_requests",
            Self::HeaderTimeout => "server.header_timeout",
            Self::WriteTimeout => "server.write_timeout",
            Self::UploadRate => "server.min_upload_rate",
            Self::HeaderBytes => "server.max_header_bytes",
            Self::Headers => "server.max_headers",
            Self::Uri => "server.max_uri",
            Self::Streams => "server.max_streams",
            Self::Flights => "max_flights",
            Self::Captured => "max_captured",
            Self::Inspected => "max_inspected",
            Self::UpstreamConnections => "upstream.max_connections",
            Self::UpstreamWaiting => "upstream.max_waiting",
            Self::WebhookPurges => "webhook_max_purges",
            Self::WebhookFailures => "webhook_max_failures",
        }
    }
}

/// The counters of the limits. All parts count in the same.
#[derive(Debug)]
pub struct LimitHits([Counter; Limit::ALL.len()]);

impl LimitHits {
    /// Returns the counters, which the first part to call this registers.
    pub fn shared(registry: &mut Registry) -> Arc<Self> {
        registry.shared(|registry| Arc::new(Self::register(registry)))
    }

    fn register(registry: &mut Registry) -> Self {
        let hits = registry.counters_by(
            "limit",
            "limits_hit",
            "Times that a limit was reached, by the name of its setting",
            Limit::ALL.map(Limit::as_str),
        );
        // Looked up once.
        Self(Limit::ALL.map(|limit| hits.handle([limit.as_str()])))
    }

    /// Counts that a limit was reached.
    pub fn count(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// The counter of a limit.
    pub fn counter(&self, limit: Limit) -> &Counter {
        // `ALL` is in the order of declaration.
        &self.0[limit as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, LimitHits};
    use crate::{config::setting, observe::metrics::Registry};

    #[test]
    fn a_limit_is_counted_under_the_name_of_a_setting_that_there_is() {
        let limits = LimitHits::shared(&mut Registry::default());
        for limit in Limit::ALL {
            assert!(setting(limit.as_str()).is_some(), "{limit:?}");
            limits.count(limit);
            assert_eq!(limits.counter(limit).get(), 1, "{limit:?} has a counter of its own");
        }
    }
}
