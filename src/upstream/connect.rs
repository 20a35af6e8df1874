//! Connections to the upstream: over TCP, with TLS, or by a unix socket.
//!
//! The settings of HTTP/1.1 and HTTP/2, the half of a connection that accepts requests, and the
//! form of a request's target are here as well, because they differ by version.
//!
//! HTTP/2 is for gRPC only. Nothing else needs it, and HTTP/1.1 passes more on (upgrades,
//! informational responses) and costs less.

use std::{io, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, Uri, Version,
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
    http::{
        request,
        uri::{Authority, PathAndQuery, Scheme},
    },
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::UnixStream, time::timeout};
use tokio_rustls::{
    TlsConnector, TlsStream,
    rustls::{
        ClientConfig,
        pki_types::{InvalidDnsNameError, ServerName},
    },
};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::{addresses::Addresses, error::UpstreamError, request_body::RequestBody};
use crate::{
    config::{self, Endpoint, HEADERS_ON_STACK, UpstreamConfig},
    tls::{self, HTTP1, HTTP2, Renewed, TlsError, TlsMetrics},
    transport::{ClientStream, Socket, prepare},
};

/// The protocol of a connection to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamProtocol {
    Http1,
    Http2,
}

impl UpstreamProtocol {
    fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => HTTP1,
            Self::Http2 => HTTP2,
        }
    }
}

/// Opens connections to one endpoint.
#[derive(Debug)]
pub(super) struct Connector {
    endpoint: Endpoint,
    /// Set if the endpoint uses TLS.
    tls: Option<Arc<Renewed<ClientConfig>>>,
    limit: Duration,
    addresses: Addresses,
    #[expect(dead_code, reason = "held, not read")]
    renewal: Option<AbortOnDropHandle<()>>,
}

impl Connector {
    /// Reads the certificates. Does not connect yet.
    pub(super) fn new(
        config: &UpstreamConfig,
        renew_interval: Duration,
        metrics: TlsMetrics,
    ) -> Result<Self, TlsError> {
        let endpoint = config.endpoint();
        let tls = matches!(endpoint, Endpoint::Tls { .. })
            .then(|| tls::renewed_client(config.tls.clone()));
        let tls = tls.transpose()?;
        let renewal = tls.as_ref().map(|tls| tls.spawn_renewal(renew_interval, metrics));
        Ok(Self {
            endpoint,
            tls,
            limit: config.connect_timeout,
            addresses: Addresses::default(),
            renewal,
        })
    }

    /// The `Host` of requests that have none, and the authority of URLs that lead here.
    pub(super) fn authority(&self) -> &str {
        match &self.endpoint {
            Endpoint::Tcp(authority) | Endpoint::Tls { authority, .. } => authority,
            Endpoint::Unix(_) => "localhost",
        }
    }

    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// The name of the endpoint in messages.
    fn name(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp(authority) => authority.clone(),
            Endpoint::Tls { authority, .. } => format!("https://{authority}"),
            Endpoint::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Opens a connection within `upstream.connect_timeout`, including the TLS handshake.
    pub(super) async fn connect(
        &self,
        protocol: UpstreamProtocol,
    ) -> Result<ClientStream, UpstreamError> {
        let limit = self.limit;
        let connected = timeout(limit, self.open(protocol)).await;
        connected
            .unwrap_or_else(|_| Err(UpstreamError::ConnectTimeout { upstream: self.name(), limit }))
    }

    async fn open(&self, protocol: UpstreamProtocol) -> Result<ClientStream, UpstreamError> {
        let connect_error = |source| UpstreamError::Connect { upstream: self.name(), source };
        let socket = match &self.endpoint {
            Endpoint::Tcp(authority) | Endpoint::Tls { authority, .. } => {
                let connected = self.addresses.connect(authority, self.limit).await;
                Socket::Left(connected.map_err(connect_error)?)
            }
            Endpoint::Unix(path) => {
                Socket::Right(UnixStream::connect(path).await.map_err(connect_error)?)
            }
        };
        prepare(&socket).map_err(connect_error)?;
        let (Some(tls), Endpoint::Tls { name, .. }) = (&self.tls, &self.endpoint) else {
            return Ok(ClientStream::Left(socket));
        };
        let tls_error = |source| UpstreamError::Tls { upstream: self.name(), source };
        let name = ServerName::try_from(name.clone());
        let name = name.map_err(|error: InvalidDnsNameError| tls_error(io::Error::other(error)))?;
        let connector = TlsConnector::from(tls.current());
        let connector = connector.with_alpn(vec![protocol.alpn().to_vec()]);
        let stream = connector.connect(name, socket).await.map_err(tls_error)?;
        // "If [..] no overlap, the server SHALL respond with a fatal alert" (RFC 7301 3.2). Servers
        // without ALPN select nothing, and speak HTTP/1.1.
        let chosen = stream.get_ref().1.alpn_protocol();
        if protocol == UpstreamProtocol::Http2 && chosen != Some(HTTP2) {
            return Err(tls_error(io::Error::other("it does not speak HTTP/2")));
        }
        Ok(ClientStream::Right(Box::new(TlsStream::Client(stream))))
    }
}

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

    pub(super) async fn try_send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
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

/// The settings of both versions.
pub(super) struct HttpVersions {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl HttpVersions {
    /// Limits responses as requests are limited. Harmless defects of a response over HTTP/1
    /// are repaired: "A proxy [..] MUST remove any such whitespace" between a name and its colon
    /// (RFC 9112 5.1), and may "replace each received obs-fold with one or more SP octets" (5.2).
    pub(super) fn new(limits: &config::ServerConfig) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .max_header_size(limits.max_header_bytes)
            .max_buf_size(limits.buffer())
            // Field names reach the client in the upstream's spelling. Requests carry their own
            // spelling.
            .preserve_header_case(true)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true);
        if limits.max_headers > HEADERS_ON_STACK {
            http1.max_headers(limits.max_headers);
        }
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
        Self { http1, http2 }
    }

    /// Begins a connection on a new stream.
    pub(super) async fn handshake(
        &self,
        stream: ClientStream,
        protocol: UpstreamProtocol,
    ) -> hyper::Result<RequestSender> {
        let io = TokioIo::new(stream);
        match protocol {
            UpstreamProtocol::Http1 => {
                let (sender, connection) = self.http1.handshake(io).await?;
                tokio::spawn(drive(connection.with_upgrades()));
                Ok(RequestSender::Http1(sender))
            }
            UpstreamProtocol::Http2 => {
                let (sender, connection) = self.http2.handshake(io).await?;
                tokio::spawn(drive(connection));
                Ok(RequestSender::Http2(sender))
            }
        }
    }
}

/// Drives a connection. Its errors also reach the request that uses it.
async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(%error, "upstream connection ended");
    }
}

/// Whether a request needs HTTP/2 to the upstream: gRPC is only defined over HTTP/2, and the
/// trailers say how a call has ended. A call is a POST. gRPC-Web (`application/grpc-web`) does not
/// need it: it was made for HTTP/1.1.
fn needs_http2(head: &request::Parts) -> bool {
    let is_grpc = |value: &HeaderValue| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    };
    head.version == Version::HTTP_2
        && head.method == Method::POST
        && head.headers.get(CONTENT_TYPE).is_some_and(is_grpc)
}

/// Converts the head of a client's request for the upstream: its target, its `Host`, and the HTTP
/// version that the upstream is sent.
///
/// The target is in origin form (RFC 9112 3.2.1). RFC 9112 3.2.2: "When a proxy receives a request
/// with an absolute-form of request-target, the proxy MUST ignore the received Host header field
/// (if any) and instead replace it with the host information of the request-target"; HTTP/2 says
/// the same of `:authority`.
pub fn to_origin_form(head: &mut request::Parts, default_host: &str) {
    let host = match head.uri.authority().map(Authority::as_str) {
        Some(text) => Some(text.rsplit_once('@').map_or(text, |(_, host)| host)),
        None => (!head.headers.contains_key(HOST)).then_some(default_host),
    };
    if let Some(value) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        head.headers.insert(HOST, value);
    }
    let target = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    head.uri = target.into();
    head.version = if needs_http2(head) { Version::HTTP_2 } else { Version::HTTP_11 };
}

/// Converts a request in origin form to HTTP/2, where the target includes scheme and authority.
///
/// "An intermediary that converts a request from another HTTP version [..] MUST" build the
/// authority from `Host`, and sending both would state the same twice (RFC 9113 8.3.1): `Host` is
/// removed.
pub(super) fn to_absolute_form<B>(request: &mut Request<B>, scheme: Scheme, default_host: &str) {
    let host = request.headers_mut().remove(HOST);
    request.headers_mut().remove(CONNECTION);
    let authority = host
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .or_else(|| default_host.parse().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(scheme);
    parts.authority = authority;
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Always valid, because it is complete.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Version};

    use super::needs_http2;

    #[track_caller]
    fn check(version: Version, content_type: &str, want: bool) {
        let request = Request::post("/").version(version).header("content-type", content_type);
        let head = request.body(()).unwrap().into_parts().0;
        assert_eq!(needs_http2(&head), want, "{version:?} {content_type}");
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
        let read = Request::get("/").version(Version::HTTP_2);
        let read = read.header("content-type", "application/grpc").body(()).unwrap();
        assert!(!needs_http2(&read.into_parts().0));
    }
}
