//! Why the upstream gave no answer, and whose fault that is.

use std::time::Duration;

use super::{
    activity::{Activity, Upload},
    body::{BodyError, UploadError},
};

/// Why the upstream gave no answer. Each becomes a status in one place, `proxy::answer`.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error("cannot connect to the upstream {upstream}: {source}")]
    Connect {
        /// Where to.
        upstream: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// No connection in time.
    #[error("the upstream {upstream} did not accept a connection within {limit:?}")]
    ConnectTimeout {
        /// Where to.
        upstream: String,
        /// `upstream.connect_timeout`.
        limit: Duration,
    },
    /// No TLS: the other end is not who it should be, or does not want us.
    #[error("cannot speak TLS with the upstream {upstream}: {source}")]
    Tls {
        /// Where to.
        upstream: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// No response head in time.
    #[error("the upstream did not answer within {limit:?}")]
    ResponseTimeout {
        /// `upstream.response_timeout`.
        limit: Duration,
    },
    /// As many exchanges as may be are under way.
    #[error("all {limit} upstream connections were in use for {waited:?}")]
    Busy {
        /// `upstream.max_connections`.
        limit: usize,
        /// `upstream.connect_timeout`, or nothing where `upstream.max_waiting` waited already.
        waited: Duration,
    },
    /// A new connection was closed before it took the request.
    #[error("the upstream {upstream} closed a new connection at once")]
    Closed {
        /// Where to.
        upstream: String,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the exchange with the upstream broke: {0}")]
    Broken(#[source] hyper::Error),
    /// A change of protocol that was not asked for.
    #[error("the upstream switched protocols unasked")]
    UnaskedUpgrade,
    /// Another transfer coding than `chunked`, though we asked for none.
    #[error("the upstream's answer has a transfer coding other than chunked")]
    TransferCoding,
    /// The response's body did not come.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The client's upload stood still, so that the upstream could not answer.
    #[error("the client sent nothing of its upload for {limit:?}")]
    ClientStalled {
        /// `upstream.response_timeout`.
        limit: Duration,
    },
    /// The client's upload was too slow.
    #[error("the client's upload brought less than {rate} bytes a second")]
    ClientSlow {
        /// `server.min_upload_rate`.
        rate: usize,
    },
    /// The client's upload broke off: it has hung up, or sent what is not HTTP.
    #[error("the client's upload broke off: {0}")]
    ClientGone(#[source] UploadError),
}

impl UpstreamError {
    /// Whether it was a matter of time.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout { .. }
                | Self::ResponseTimeout { .. }
                | Self::Body(BodyError::Idle(_))
        )
    }

    /// Whether the connection may have been closed by the upstream before the request came to it.
    pub(super) fn may_be_stale(&self) -> bool {
        matches!(self, Self::Broken(error) if !error.is_parse())
    }

    /// Whether the fault is the client's.
    pub fn is_clients(&self) -> bool {
        matches!(self, Self::ClientStalled { .. } | Self::ClientSlow { .. } | Self::ClientGone(_))
    }

    /// Whether the upstream may have seen the request.
    pub fn may_have_arrived(&self) -> bool {
        !matches!(
            self,
            Self::Connect { .. }
                | Self::ConnectTimeout { .. }
                | Self::Tls { .. }
                | Self::Closed { .. }
                | Self::Busy { .. }
        )
    }

    /// The word for logs, metrics and headers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "upstream-connect",
            Self::ConnectTimeout { .. } => "upstream-connect-timeout",
            Self::Tls { .. } => "upstream-tls",
            Self::ResponseTimeout { .. } => "upstream-response-timeout",
            Self::Busy { .. } => "upstream-busy",
            Self::Closed { .. } => "upstream-closed",
            Self::Broken(error) if error.is_parse_too_large() => "upstream-head-too-large",
            Self::Broken(error) if error.is_parse() => "upstream-malformed",
            Self::Broken(_) => "upstream-broken",
            Self::UnaskedUpgrade => "unasked-upgrade",
            Self::TransferCoding => "upstream-transfer-coding",
            Self::Body(BodyError::Idle(_)) => "upstream-body-timeout",
            Self::Body(_) => "upstream-body",
            Self::ClientStalled { .. } => "client-stalled",
            Self::ClientSlow { .. } => "client-slow",
            Self::ClientGone(_) => "client-gone",
        }
    }
}

/// Whose fault a broken exchange is: hyper ends it when the upload that it sends breaks off.
pub(super) fn broken(error: hyper::Error, upload: Option<&Activity>) -> UpstreamError {
    match upload.map(Activity::state) {
        Some(Upload::Broken) => UpstreamError::ClientGone(error.into()),
        _ => UpstreamError::Broken(error),
    }
}

/// Whose fault silence is. An upload that the upstream does not take waits for it, not for the
/// client.
pub(super) fn late(limit: Duration, upload: Option<&Activity>) -> UpstreamError {
    match upload.map(Activity::state) {
        Some(Upload::Awaited) => UpstreamError::ClientStalled { limit },
        _ => UpstreamError::ResponseTimeout { limit },
    }
}
