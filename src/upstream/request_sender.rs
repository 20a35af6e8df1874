//! The half of a connection that accepts requests.

use hyper::client::conn::{http1, http2};

use super::{connect::UpstreamProtocol, request_body::RequestBody};

/// The half of a connection that accepts requests.
pub(super) enum RequestSender {
    Http1(http1::SendRequest<RequestBody>),
    /// Also used for one request at a time. On a shared connection one client could delay or end
    /// the requests of all: by what it does not read, by its number of streams, or by frames that
    /// count as a flood.
    Http2(http2::SendRequest<RequestBody>),
}

impl RequestSender {
    pub(super) fn protocol(&self) -> UpstreamProtocol {
        match self {
            Self::Http1(_) => UpstreamProtocol::Http1,
            Self::Http2(_) => UpstreamProtocol::Http2,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    /// Waits until a request can be sent. Returns false if the connection has closed.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}
