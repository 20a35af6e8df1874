//! Metrics of limits: how much of each is in use, and how often each was reached.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// A limit that was reached. Each has the name of its setting, so that the metric says what to
/// change. Floods of HTTP/2 are counted in
/// [`connection_errors`](super::Metrics::connection_errors).
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

/// The metrics of the limits.
pub struct LimitMetrics {
    family: Family<LimitLabels, Counter>,
    /// The counters of the family, looked up once.
    hits: [Counter; Limit::ALL.len()],
    /// Requests that are being answered.
    pub requests: Gauge,
    /// Upstream reads that other requests may share.
    pub flights: Gauge,
    /// Bytes of responses that are held until they are stored.
    pub captured: Gauge,
    /// Bytes of writes that rules read.
    pub inspected: Gauge,
    /// Bytes of purges.
    pub purges: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

impl Default for LimitMetrics {
    fn default() -> Self {
        let family = Family::<LimitLabels, Counter>::default();
        let hits = Limit::ALL
            .map(|limit| family.get_or_create_owned(&LimitLabels { limit: limit.as_str() }));
        Self {
            family,
            hits,
            requests: Gauge::default(),
            flights: Gauge::default(),
            captured: Gauge::default(),
            inspected: Gauge::default(),
            purges: Gauge::default(),
        }
    }
}

impl LimitMetrics {
    /// Counts that a limit was reached.
    pub fn count_hit(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// The counter of a limit.
    pub fn counter(&self, limit: Limit) -> &Counter {
        // `ALL` is in the order of declaration.
        &self.hits[limit as usize]
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "limits_hit",
            "Times that a limit was reached, by the name of its setting",
            self.family.clone(),
        );
        r.register("requests_in_flight", "Requests that are being answered", self.requests.clone());
        r.register(
            "flights",
            "Upstream reads that other requests may share, under way or next",
            self.flights.clone(),
        );
        let captured = self.captured.clone();
        let help = "Responses held in memory until they are stored";
        r.register_with_unit("captured", help, Unit::Bytes, captured);
        let inspected = self.inspected.clone();
        let help = "Writes held in memory because rules read them";
        r.register_with_unit("inspected", help, Unit::Bytes, inspected);
        let purges = self.purges.clone();
        r.register_with_unit(
            "purges",
            "Purges held in memory while they are read",
            Unit::Bytes,
            purges,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, LimitMetrics};
    use crate::config::setting;

    #[test]
    fn a_limit_is_counted_under_the_name_of_a_setting_that_there_is() {
        let limits = LimitMetrics::default();
        for limit in Limit::ALL {
            assert!(setting(limit.as_str()).is_some(), "{limit:?}");
            limits.count_hit(limit);
            assert_eq!(limits.counter(limit).get(), 1, "{limit:?} has a counter of its own");
        }
    }
}
