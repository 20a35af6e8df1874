//! One connection of a client, from the accepted socket to its end: the layers between the socket
//! and the service.
//!
//! # The stack of an HTTP/1 connection
//!
//! ```text
//!          requests ^    | responses                     | 1xx responses
//!                   |    v                               v
//!   +---------------------------------+    service.rs
//!   | service                         |
//!   +---------------------------------+
//!   | hyper              http1_conn   |  bytes become requests, responses become bytes
//!   +---------------------------------+
//!   | RepeatStream  repeat_fast_path  |  answers a head that repeats an earlier one
//!   | InformationalStream             |  puts 1xx responses between two messages
//!   |                     http1_conn  |
//!   | ProgressStream                  |  notes what arrives and whether a write has to wait
//!   |                progress_stream  |
//!   | RewoundStream        handshake  |  yields the bytes once more that named the protocol
//!   +---------------------------------+
//!   | TlsStream         (if there is) |
//!   | WriteTimeoutStream              |  fails a write that the client does not accept
//!   |                          layer  |
//!   | Socket            transport.rs  |
//!   +---------------------------------+
//!          client ^    | bytes
//! ```
//!
//! | layer | bytes that it sees | may write | why it is there |
//! |---|---|---|---|
//! | `WriteTimeoutStream` | those of the socket | nothing | above TLS it would see TLS accept more than the client reads |
//! | `RewoundStream` | all that TLS has decrypted | nothing | the first layer that knows what TLS hides |
//! | `ProgressStream` | all, in both directions | nothing | below all that write: a response still on its way is no silence |
//! | `InformationalStream` | those to the client | 1xx responses | below the fast path: a 1xx that is half written is ended before any answer |
//! | `RepeatStream` | all that hyper gets or gives | the whole answer of a hit | next to hyper: it has to know which bytes hyper holds |
//! | hyper | those that the fast path leaves | all other answers; 400, 414 and 431 without asking the service | |
//!
//! The PROXY protocol header comes before TLS and is read from the `WriteTimeoutStream`
//! (`proxy_protocol`); no later layer sees it. All layers are a [`layer::Layer`], which states only
//! what it changes.
//!
//! On an HTTP/2 connection the `RewoundStream` is the last layer below hyper. Pings take the place
//! of the header timeout, and each stream has a write timeout of its own.
//!
//! # Ownership
//!
//! [`ClientConnection`] owns the connection, counts it as open, and counts its error. It opens it
//! (`handshake`: peer, TLS, protocol) and hands the stream to the connection of the protocol
//! (`http1_conn`, `http2_conn`), which owns the layers until it ends. Two sides of an HTTP/1
//! connection meet in three shared states, which only its task changes:
//!
//! | state | written by | read by |
//! |---|---|---|
//! | `RequestProgress` | `http1_conn`, `ProgressStream`, `RepeatStream` | the timer of the head, `RepeatStream` |
//! | `InformationalQueue` | the service | `InformationalStream` |
//! | `FastPathState` | `http1_conn`, `RepeatStream` | both |
//!
//! # How a connection ends
//!
//! A connection is ended by the client; by a handshake or a head that takes longer than
//! `server.header_timeout`; by a write that waits longer than `server.write_timeout`; by hyper, after
//! an error of the client; or by a drain, between two answers (`service.rs`). The timer and the drain
//! are a `side_task`: they cost a request nothing.

mod connection_metrics;
mod handshake;
mod http1_conn;
mod http2_conn;
mod layer;
mod progress_stream;
mod proxy_protocol;
mod repeat_fast_path;
mod request_progress;
mod side_task;

use std::sync::Arc;

use tokio::time::timeout;
use tokio_rustls::rustls::ServerConfig;
use tracing::debug;

pub use self::connection_metrics::ServerMetrics;
use self::{
    connection_metrics::{ConnectionError, Result},
    handshake::{ClientProtocol, Handshake, OpenedConnection},
    http1_conn::Http1Config,
    http2_conn::Http2Config,
};
use crate::{
    config,
    limits::GaugeGuard,
    service::{Drain, Service, silent_during_drain},
    tls::Renewed,
    transport::{RemoteAddress, Socket},
};

/// The settings that every connection of a server is served with.
pub(super) struct ConnectionConfig {
    handshake: Handshake,
    http1: Http1Config,
    http2: Http2Config,
}

impl ConnectionConfig {
    pub(super) fn new(
        config: config::ServerConfig,
        tls: Option<Arc<Renewed<ServerConfig>>>,
    ) -> Self {
        let http1 = Http1Config::new(&config);
        let http2 = Http2Config::new(&config);
        Self { handshake: Handshake { config, tls }, http1, http2 }
    }
}

/// One connection. It counts as open until this is dropped.
pub(super) struct ClientConnection<S> {
    config: Arc<ConnectionConfig>,
    service: S,
    drain: Drain,
    metrics: Arc<ServerMetrics>,
    #[expect(dead_code, reason = "held, not read")]
    open: GaugeGuard,
}

impl<S: Service> ClientConnection<S> {
    pub(super) fn new(
        config: &Arc<ConnectionConfig>,
        service: &S,
        drain: &Drain,
        metrics: &Arc<ServerMetrics>,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            service: service.clone(),
            drain: drain.clone(),
            metrics: Arc::clone(metrics),
            open: GaugeGuard::increment(&metrics.connections),
        }
    }

    /// Serves the connection to its end and counts its error, if any.
    pub(super) async fn serve(mut self, socket: Socket, remote: RemoteAddress) {
        if let Err(error) = self.try_serve(socket, remote).await {
            debug!(%error, "client connection ended");
            self.metrics.record_error(&error);
        }
    }

    async fn try_serve(&mut self, socket: Socket, remote: RemoteAddress) -> Result<()> {
        let ConnectionConfig { handshake, http1, http2 } = &*self.config;
        let limit = handshake.config.header_timeout;
        let opened = tokio::select! {
            opened = timeout(limit, handshake.open(socket, remote)) => opened,
            () = silent_during_drain(&mut self.drain) => return Ok(()),
        };
        let OpenedConnection { protocol, stream, peer } =
            opened.map_err(|_| ConnectionError::Timeout(limit))??;
        let (service, drain) = (self.service.clone(), &mut self.drain);
        match protocol {
            ClientProtocol::Http1 => http1.serve(stream, peer, service, drain).await?,
            ClientProtocol::Http2 => {
                http2.serve(stream, peer, service, drain, &self.metrics.limits).await?;
            }
        }
        Ok(())
    }
}
