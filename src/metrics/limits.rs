//! What is in use of each limit, and how often one was met.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// A limit that was met. Each bears the name of its setting, so that the metric says what to change.
/// Floods of HTTP/2 are counted in [`connection_errors`](super::Metrics::connection_errors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// All client connections were in use, and the next client has to wait.
    Connections,
    /// A request was refused, as many being answered.
    Requests,
    /// A connection was closed that said nothing, or too little, for too long: idle ones too.
    HeaderTimeout,
    /// A client took nothing of its answer for too long.
    WriteTimeout,
    /// An upload was too slow.
    UploadRate,
    /// A head was too long, or, over HTTP/1, had too many fields: the parser does not say which.
    HeaderBytes,
    /// A head had too many fields.
    Headers,
    /// A path and query was too long.
    Uri,
    /// A connection of HTTP/2 had as many streams as it may; further ones are refused.
    Streams,
    /// A read of a job went to the upstream by itself, as many being shared.
    Flights,
    /// An answer was not stored, as much being held in memory.
    Captured,
    /// A write or a purge was refused, as much of them being held in memory.
    Inspected,
    /// All connections to the upstream were in use, and a request had to wait.
    UpstreamConnections,
    /// A request was refused, as many being waiting for one.
    UpstreamWaiting,
    /// A purge was refused, as many having come within a second.
    WebhookPurges,
    /// A call without the webhook secret was told to wait, as many having come from its address.
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

/// The limits' metrics.
#[derive(Debug)]
pub struct Limits {
    family: Family<LimitLabels, Counter>,
    /// Those of the family, looked up once.
    hits: [Counter; Limit::ALL.len()],
    /// Requests that are being answered.
    pub requests: Gauge,
    /// Reads of the upstream that others may share.
    pub flights: Gauge,
    /// Bytes of answers that are on their way into the cache.
    pub captured: Gauge,
    /// Bytes of writes that rules look into.
    pub inspected: Gauge,
    /// Bytes of purges.
    pub purges: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

impl Default for Limits {
    fn default() -> Self {
        let family = Family::<LimitLabels, Counter>::default();
        let hits = Limit::ALL
            .map(|limit| family.get_or_create_owned(&LimitLabels { limit: limit.as_str() }));
        let (requests, flights) = (Gauge::default(), Gauge::default());
        Self {
            family,
            hits,
            requests,
            flights,
            captured: Gauge::default(),
            inspected: Gauge::default(),
            purges: Gauge::default(),
        }
    }
}

impl Limits {
    /// Counts that a limit was met.
    pub fn hit(&self, limit: Limit) {
        self.counter(limit).inc();
    }

    /// What counts it.
    pub fn counter(&self, limit: Limit) -> &Counter {
        // `ALL` is in the order of declaration.
        &self.hits[limit as usize]
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "limits_hit",
            "Times that a limit was met, by the name of its setting",
            self.family.clone(),
        );
        r.register("requests_in_flight", "Requests that are being answered", self.requests.clone());
        r.register(
            "flights",
            "Reads of the upstream that others may share, under way or next",
            self.flights.clone(),
        );
        let captured = self.captured.clone();
        let help = "Answers held in memory on their way into the cache";
        r.register_with_unit("captured", help, Unit::Bytes, captured);
        let inspected = self.inspected.clone();
        let help = "Writes that rules look into, held in memory";
        r.register_with_unit("inspected", help, Unit::Bytes, inspected);
        let purges = self.purges.clone();
        r.register_with_unit("purges", "Purges that are read", Unit::Bytes, purges);
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, Limits};
    use crate::config::setting;

    #[test]
    fn a_limit_is_counted_under_the_name_of_a_setting_that_there_is() {
        let limits = Limits::default();
        for limit in Limit::ALL {
            assert!(setting(limit.as_str()).is_some(), "{limit:?}");
            limits.hit(limit);
            assert_eq!(limits.counter(limit).get(), 1, "{limit:?} has a counter of its own");
        }
    }
}
