//! Metrics and errors of client connections: how many are open, and how the others failed.

use std::{error::Error, io, sync::Arc, time::Duration};

use h2::Reason;
use prometheus_client::metrics::gauge::Gauge;

use crate::{
    limits::{Limit, LimitHits},
    observe::metrics::{Counters, Registry},
    semantics::labels::labels,
    tls::TlsMetrics,
};

labels! {
    /// The kinds of errors of client connections.
    enum ConnectionErrorKind {
        /// The head is no HTTP; answered with a bare 400.
        Malformed = "malformed",
        /// Answered with a bare 414 or 431.
        HeadTooLarge = "head-too-large",
        /// No handshake or head came in time.
        Timeout = "timeout",
        /// The client read nothing of its response for too long.
        Unread = "unread",
        /// HTTP/2 resets, continuations and the like.
        Flood = "flood",
        /// The client hung up within a message.
        Incomplete = "incomplete",
        /// The handshake failed.
        Tls = "tls",
        /// The header is missing or malformed.
        ProxyProtocol = "proxy-protocol",
        /// Any other failure.
        Broken = "broken",
    }
}

/// The metrics of the client connections of all listeners.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Open client connections.
    pub(crate) connections: Gauge,
    errors: Counters<1>,
    pub(in crate::server) limits: Arc<LimitHits>,
    pub(crate) tls: TlsMetrics,
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn register(r: &mut Registry) -> Self {
        Self {
            connections: r.gauge("connections", "Open client connections"),
            errors: r.counters_by(
                "kind",
                "connection_errors",
                "Client connections that ended with an error, by kind",
                ConnectionErrorKind::WORDS,
            ),
            limits: LimitHits::shared(r),
            tls: TlsMetrics::shared(r),
        }
    }

    /// Counts the error of a connection, and the limit that it reached.
    pub(super) fn record_error(&self, error: &ConnectionError) {
        let (kind, limit) = error.kind();
        self.errors.inc([kind.as_str()]);
        limit.inspect(|&limit| self.limits.count(limit));
    }
}

/// The result of a step of a client connection.
pub(super) type Result<T, E = ConnectionError> = std::result::Result<T, E>;

/// How a client connection failed. hyper has already answered it where that is possible, with a
/// bare 400, 414 or 431 that no service sees.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// No complete handshake or request head arrived in time.
    #[error("no complete handshake or request head arrived within {0:?}")]
    Timeout(Duration),
    /// The connection does not come from a load balancer that is trusted to name the client.
    #[error("PROXY protocol header refused: the peer is not in server.trusted_proxies")]
    UntrustedPeer,
    /// The header is missing or malformed.
    #[error("invalid PROXY protocol header: {0}")]
    ProxyHeader(String),
    #[error("the TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

impl ConnectionError {
    /// The `kind` label in metrics, and the limit that was reached if it has a setting.
    fn kind(&self) -> (ConnectionErrorKind, Option<Limit>) {
        use ConnectionErrorKind as Kind;
        match self {
            Self::Timeout(_) => (Kind::Timeout, Some(Limit::HeaderTimeout)),
            Self::UntrustedPeer | Self::ProxyHeader(_) => (Kind::ProxyProtocol, None),
            Self::Tls(_) => (Kind::Tls, None),
            Self::Http(error) if error.is_timeout() => (Kind::Timeout, Some(Limit::HeaderTimeout)),
            Self::Http(error) if error.is_parse_too_large() => {
                (Kind::HeadTooLarge, Some(Limit::HeaderBytes))
            }
            Self::Http(error) if error.is_parse() => (Kind::Malformed, None),
            Self::Http(error) if error.is_incomplete_message() => (Kind::Incomplete, None),
            Self::Http(error) if is_unread(error) => (Kind::Unread, Some(Limit::WriteTimeout)),
            Self::Http(error) if is_flood(error) => (Kind::Flood, None),
            Self::Http(_) | Self::Io(_) => (Kind::Broken, None),
        }
    }
}

/// The chain of causes of an error.
fn causes<'e>(error: &'e hyper::Error) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// Whether the client read nothing for too long. The stream then fails with `TimedOut`.
fn is_unread(error: &hyper::Error) -> bool {
    let source = causes(error).find_map(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.kind() == io::ErrorKind::TimedOut)
}

/// "The endpoint detected that its peer is exhibiting a behavior that might be generating excessive
/// load." RFC 9113 7: resets past `server.max_pending_resets` or `server.max_faulty_streams`, a
/// head in endless parts, or data in endless small frames. h2 tells only the client which of these
/// it was.
fn is_flood(error: &hyper::Error) -> bool {
    let source = causes(error).find_map(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|source| {
        source.is_library() && source.reason() == Some(Reason::ENHANCE_YOUR_CALM)
    })
}
