//! HTTP/2 to the upstream, for gRPC: nothing else needs it, and HTTP/1.1 passes more (upgrades, interim
//! responses) and costs less.
//!
//! All requests share one connection. It is made when it is first needed, and anew when it has ended.

use std::time::Duration;

use hyper::{
    Request, Uri, Version,
    client::conn::http2,
    header::{CONNECTION, CONTENT_TYPE, HOST},
    http::{
        request,
        uri::{Authority, PathAndQuery, Scheme},
    },
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tracing::debug;

use super::{RequestBody, UpstreamError};
use crate::transport::Stream;

/// How long a connection may be silent with a request under way until it is asked whether it lives, and
/// how long for its answer.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Sends requests over the shared connection.
pub(super) type Sender = http2::SendRequest<RequestBody>;

/// The connection that requests share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Held while one is being made: others wait for it rather than make their own.
    sender: Mutex<Option<Sender>>,
    http2: http2::Builder<TokioExecutor>,
}

/// Whether a request has been made upstream over HTTP/2 before, that is over a connection that may
/// have ended since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    Now,
    Before,
}

impl Shared {
    /// No connection yet.
    pub(super) fn new(max_header_bytes: usize) -> Self {
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_header_list_size(u32::try_from(max_header_bytes).unwrap_or(u32::MAX));
        Self { sender: Mutex::default(), http2 }
    }

    /// The connection, made by `connect` where there is none.
    pub(super) async fn sender(
        &self,
        connect: impl Future<Output = Result<Stream, UpstreamError>>,
    ) -> Result<(Sender, Made), UpstreamError> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), Made::Before));
        }
        let io = TokioIo::new(connect.await?);
        let (sender, connection) = self.http2.handshake(io).await.map_err(UpstreamError::Broken)?;
        // Ends with the connection; what goes wrong on it reaches those who use it.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "upstream connection ended");
            }
        });
        *kept = Some(sender.clone());
        Ok((sender, Made::Now))
    }
}

/// Whether a request needs HTTP/2 upstream: gRPC is defined over it alone, and its trailers say how a
/// call has ended. gRPC-Web (`application/grpc-web`) is not: it was made for HTTP/1.1.
pub(super) fn is_needed(head: &request::Parts) -> bool {
    let is_grpc = |value: &[u8]| match value.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    };
    head.version == Version::HTTP_2
        && head.headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes()))
}

/// Makes a request in origin form one of HTTP/2, whose target names scheme and authority.
///
/// "An intermediary that converts a request from another HTTP version [..] MUST" make the authority of
/// `Host`, and both together say one thing twice (RFC 9113 8.3.1): `Host` goes.
pub(super) fn to_absolute_form(
    request: &mut Request<RequestBody>,
    scheme: Scheme,
    default_host: &str,
) {
    let host = request.headers_mut().remove(HOST);
    request.headers_mut().remove(CONNECTION);
    let authority = host
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .or_else(|| default_host.parse().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(scheme);
    parts.authority = authority;
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Complete, so that it is valid.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Version};

    use super::is_needed;

    #[track_caller]
    fn check(version: Version, content_type: &str, want: bool) {
        let request = Request::builder().version(version).header("content-type", content_type);
        let head = request.body(()).unwrap().into_parts().0;
        assert_eq!(is_needed(&head), want, "{version:?} {content_type}");
    }

    #[test]
    fn grpc_needs_http2() {
        for grpc in ["application/grpc", "application/grpc+proto", "application/grpc;a=b"] {
            check(Version::HTTP_2, grpc, true);
            check(Version::HTTP_11, grpc, false);
        }
        for other in ["application/grpc-web", "application/grpc-web+proto", "application/json", ""]
        {
            check(Version::HTTP_2, other, false);
        }
    }
}
