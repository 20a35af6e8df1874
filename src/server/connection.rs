//! One connection of a client, from the accepted socket to its end.

mod connection_error;
mod detect;
mod drain_grace;
mod handshake;
mod header_timeout;
mod http1_conn;
mod http2_conn;
mod informational_io;
mod layer;
mod open_connection;
mod proxy_protocol;
mod repeat_fast_path;
mod side_task;
mod stream_timeout;
mod write_timeout;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::debug;

use self::{
    connection_error::ConnectionError,
    detect::ClientProtocol,
    drain_grace::silent_during_drain,
    handshake::{Handshake, OpenedConnection},
    http1_conn::Http1Config,
    http2_conn::Http2Config,
};
use crate::{
    config,
    drain::Drain,
    metrics::{KindLabels, Metrics},
    service::Service,
    transport::{RemoteAddress, Socket},
};

/// The settings that every connection of a server is served with.
pub(super) struct ConnectionConfig {
    pub(super) handshake: Handshake,
    header_timeout: Duration,
    http1: Http1Config,
    http2: Http2Config,
}

impl ConnectionConfig {
    pub(super) fn new(config: &config::ServerConfig) -> Self {
        Self {
            handshake: Handshake::new(config),
            header_timeout: config.header_timeout,
            http1: Http1Config::new(config),
            http2: Http2Config::new(config),
        }
    }
}

/// One connection. It counts as open until this is dropped.
pub(super) struct ClientConnection<S> {
    config: Arc<ConnectionConfig>,
    service: S,
    drain: Drain,
    open: OpenGuard,
}

impl<S: Service> ClientConnection<S> {
    pub(super) fn new(
        config: &Arc<ConnectionConfig>,
        service: &S,
        drain: &Drain,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let open = OpenGuard::new(metrics);
        Self { config: Arc::clone(config), service: service.clone(), drain: drain.clone(), open }
    }

    /// Serves the connection to its end and counts its error, if any.
    pub(super) async fn serve(self, socket: Socket, remote: RemoteAddress) {
        let Self { config, service, drain, open } = self;
        if let Err(error) = config.serve(socket, remote, drain, service, &open.0).await {
            debug!(%error, "client connection ended");
            open.record_error(&error);
        }
    }
}

impl ConnectionConfig {
    async fn serve(
        &self,
        socket: Socket,
        remote: RemoteAddress,
        mut drain: Drain,
        service: impl Service,
        metrics: &Arc<Metrics>,
    ) -> Result<(), ConnectionError> {
        let opened = tokio::select! {
            opened = timeout(self.header_timeout, self.handshake.open(socket, remote)) => opened,
            () = silent_during_drain(&mut drain) => return Ok(()),
        };
        let OpenedConnection { protocol, stream, peer } =
            opened.map_err(|_| ConnectionError::Timeout(self.header_timeout))??;
        match protocol {
            ClientProtocol::Http1 => self.http1.serve(stream, peer, service, &mut drain).await?,
            ClientProtocol::Http2 => {
                self.http2.serve(stream, peer, service, &mut drain, metrics).await?;
            }
        }
        Ok(())
    }
}

/// Counts a connection as open until it is dropped.
struct OpenGuard(Arc<Metrics>);

impl OpenGuard {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }

    fn record_error(&self, fault: &ConnectionError) {
        let kind = fault.as_str();
        self.0.connection_errors.get_or_create(&KindLabels { kind }).inc();
        fault.limit().inspect(|&limit| self.0.limits.count_hit(limit));
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}
