//! Why the upstream gave no response, and whether that is the fault of the client.

use std::{task::Poll, time::Duration};

use bytes::Bytes;
use hyper::body::Frame;

use super::upload::{UploadActivity, UploadState};
use crate::semantics::labels::labels;

/// Why the upstream gave no response. `proxy::answer` maps each error to a status.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The connection failed.
    #[error("cannot connect to the upstream {upstream}: {source}")]
    Connect {
        /// The address of the upstream.
        upstream: String,
        /// The error of the system.
        source: std::io::Error,
    },
    /// No connection in time.
    #[error("the upstream {upstream} did not accept a connection within {limit:?}")]
    ConnectTimeout {
        /// The address of the upstream.
        upstream: String,
        /// `upstream.connect_timeout`.
        limit: Duration,
    },
    /// The TLS handshake failed: one side does not accept the other.
    #[error("cannot speak TLS with the upstream {upstream}: {source}")]
    Tls {
        /// The address of the upstream.
        upstream: String,
        /// The error of the handshake.
        source: std::io::Error,
    },
    /// No response head in time.
    #[error("the upstream did not answer within {limit:?}")]
    ResponseTimeout {
        /// `upstream.response_timeout`.
        limit: Duration,
    },
    /// All connections were in use.
    #[error("all {limit} upstream connections were in use for {waited:?}")]
    Busy {
        /// `upstream.max_connections`.
        limit: usize,
        /// `upstream.connect_timeout`, or zero if `upstream.max_waiting` requests waited already.
        waited: Duration,
    },
    /// The answer would have been one stream more than there may be.
    #[error("all {limit} streams to the upstream were open")]
    TooManyStreams {
        /// `upstream.max_streams`.
        limit: usize,
    },
    /// A new connection was closed before it took the request.
    #[error("the upstream {upstream} closed a new connection at once")]
    Closed {
        /// The address of the upstream.
        upstream: String,
    },
    /// The connection broke, or the response was not HTTP.
    #[error("the exchange with the upstream broke: {0}")]
    Broken(#[source] hyper::Error),
    /// The upstream switched protocols although the request did not ask for it.
    #[error("the upstream switched protocols without being asked")]
    UnrequestedUpgrade,
    /// The response has a transfer coding other than `chunked`, although none was asked for.
    #[error("the upstream's answer has a transfer coding other than chunked")]
    TransferCoding,
    /// The body of the response did not arrive.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The client's upload stalled, so the upstream could not answer.
    #[error("the client sent nothing of its upload for {limit:?}")]
    ClientStalled {
        /// `upstream.response_timeout`.
        limit: Duration,
    },
    /// The client's upload was too slow.
    #[error("the client's upload was slower than {rate} bytes a second")]
    ClientSlow {
        /// `server.min_upload_rate`.
        rate: usize,
    },
    /// The client's upload broke off: the client hung up, or sent bytes that are not HTTP.
    #[error("the client's upload broke off: {0}")]
    ClientGone(#[source] UploadError),
}

/// The result of polling a body for its next frame.
pub type PolledFrame<E> = Poll<Option<Result<Frame<Bytes>, E>>>;

/// Why the body of a response ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke.
    #[error("the upstream's response was cut off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing arrived for too long.
    #[error("the upstream sent nothing for {0:?}")]
    Idle(Duration),
    /// The task that read the upstream died.
    #[error("the read of the upstream was abandoned")]
    Abandoned,
}

/// Why an upload ended early.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client broke it off.
    #[error(transparent)]
    Client(#[from] hyper::Error),
    /// The upload never began.
    #[error("the upstream answered without asking for the upload")]
    Unrequested,
}

impl UpstreamError {
    /// Whether a time limit was exceeded.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout { .. }
                | Self::ResponseTimeout { .. }
                | Self::Body(BodyError::Idle(_))
        )
    }

    /// Whether the upstream may have closed the connection before the request reached it.
    pub(super) fn may_be_stale(&self) -> bool {
        matches!(self, Self::Broken(error) if !error.is_parse())
    }

    /// Whether the client is at fault.
    pub fn is_client_error(&self) -> bool {
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
                | Self::TooManyStreams { .. }
        )
    }

    /// The name in logs, metrics and headers.
    pub fn as_str(&self) -> &'static str {
        self.kind().as_str()
    }

    fn kind(&self) -> UpstreamErrorKind {
        match self {
            Self::Connect { .. } => UpstreamErrorKind::Connect,
            Self::ConnectTimeout { .. } => UpstreamErrorKind::ConnectTimeout,
            Self::Tls { .. } => UpstreamErrorKind::Tls,
            Self::ResponseTimeout { .. } => UpstreamErrorKind::ResponseTimeout,
            Self::Busy { .. } => UpstreamErrorKind::Busy,
            Self::TooManyStreams { .. } => UpstreamErrorKind::Streams,
            Self::Closed { .. } => UpstreamErrorKind::Closed,
            Self::Broken(error) if error.is_parse_too_large() => UpstreamErrorKind::HeadTooLarge,
            Self::Broken(error) if error.is_parse() => UpstreamErrorKind::Malformed,
            Self::Broken(_) => UpstreamErrorKind::Broken,
            Self::UnrequestedUpgrade => UpstreamErrorKind::UnrequestedUpgrade,
            Self::TransferCoding => UpstreamErrorKind::TransferCoding,
            Self::Body(BodyError::Idle(_)) => UpstreamErrorKind::BodyTimeout,
            Self::Body(_) => UpstreamErrorKind::Body,
            Self::ClientStalled { .. } => UpstreamErrorKind::ClientStalled,
            Self::ClientSlow { .. } => UpstreamErrorKind::ClientSlow,
            Self::ClientGone(_) => UpstreamErrorKind::ClientGone,
        }
    }
}

labels! {
    /// The kinds of errors, which metrics count.
    pub(super) enum UpstreamErrorKind {
        Connect = "upstream-connect",
        ConnectTimeout = "upstream-connect-timeout",
        Tls = "upstream-tls",
        ResponseTimeout = "upstream-response-timeout",
        Busy = "upstream-busy",
        Streams = "upstream-streams",
        Closed = "upstream-closed",
        HeadTooLarge = "upstream-head-too-large",
        Malformed = "upstream-malformed",
        Broken = "upstream-broken",
        UnrequestedUpgrade = "unasked-upgrade",
        TransferCoding = "upstream-transfer-coding",
        BodyTimeout = "upstream-body-timeout",
        Body = "upstream-body",
        ClientStalled = "client-stalled",
        ClientSlow = "client-slow",
        ClientGone = "client-gone",
    }
}

/// Decides who is at fault for a broken exchange: hyper also ends one when the upload that it sends
/// breaks off.
pub(super) fn broken_error(error: hyper::Error, upload: Option<&UploadActivity>) -> UpstreamError {
    match upload.map(UploadActivity::state) {
        Some(UploadState::Broken) => UpstreamError::ClientGone(error.into()),
        _ => UpstreamError::Broken(error),
    }
}

/// Decides who is at fault for a missing response. An upload that the upstream does not read waits
/// for the upstream, not for the client.
pub(super) fn timeout_error(limit: Duration, upload: Option<&UploadActivity>) -> UpstreamError {
    match upload.map(UploadActivity::state) {
        Some(UploadState::WaitsForClient) => UpstreamError::ClientStalled { limit },
        _ => UpstreamError::ResponseTimeout { limit },
    }
}
