//! Connections to the upstream: over TCP, with TLS, or by a unix socket.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector, TlsStream,
    rustls::{
        ClientConfig,
        pki_types::{InvalidDnsNameError, ServerName},
    },
};
use tokio_util::task::AbortOnDropHandle;

use super::error::UpstreamError;
use crate::{
    config::{Endpoint, UpstreamConfig},
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
        Ok(Self { endpoint, tls, limit: config.connect_timeout, renewal })
    }

    /// The `Host` of requests that have none, and the authority of URLs that lead here.
    pub(super) fn authority(&self) -> &str {
        match &self.endpoint {
            Endpoint::Tcp(authority) | Endpoint::Tls { authority, .. } => authority,
            Endpoint::Unix(_) => "localhost",
        }
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
                Socket::Left(TcpStream::connect(authority).await.map_err(connect_error)?)
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
