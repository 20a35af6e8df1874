//! Accepts connections and serves HTTP/1 and HTTP/2 on them until a drain begins.
//!
//! This file has the listener's side: how many connections there may be, and what becomes of them
//! in a drain. One connection is the business of `connection`, which draws its layers.
//!
//! The server knows nothing about what it serves: the proxy and the admin interface are services
//! that the caller passes in (`service`).

mod connection;
pub mod listen;

use std::{future::ready, io, sync::Arc, time::Duration};

use rustix::io::Errno;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tracing::warn;

pub use self::connection::ServerMetrics;
use self::{
    connection::{ClientConnection, ConnectionConfig},
    listen::{Accepted, Listener},
};
use crate::{
    config,
    limits::Limit,
    observe::throttle::Throttle,
    service::{Drain, Service, until_drain},
    tls::Renewed,
};

/// Pause after a failed accept. The likely cause is that no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server for one listener.
pub struct Server {
    listener: Listener,
    config: config::ServerConfig,
    tls: Option<Arc<Renewed<ServerConfig>>>,
    metrics: Arc<ServerMetrics>,
}

impl Server {
    /// Creates a server. It accepts no connection before [`run`](Self::run).
    pub fn new(
        listener: impl Into<Listener>,
        config: &config::ServerConfig,
        metrics: Arc<ServerMetrics>,
    ) -> Self {
        Self { listener: listener.into(), config: config.clone(), tls: None, metrics }
    }

    /// Serves TLS if there is a configuration for it.
    #[must_use]
    pub(crate) fn with_tls(self, tls: Option<Arc<Renewed<ServerConfig>>>) -> Self {
        Self { tls, ..self }
    }

    /// Expects no PROXY protocol header, even if `server.proxy_protocol` is set for the clients'
    /// listener.
    #[must_use]
    pub(crate) fn without_proxy_protocol(mut self) -> Self {
        self.config.proxy_protocol = false;
        self
    }

    /// Serves until `drain` becomes true, then waits up to `deadline` for the requests in flight.
    pub async fn run(self, mut drain: Drain, deadline: Duration, service: impl Service) {
        let Self { listener, config, tls, metrics } = self;
        let permits = Arc::new(Semaphore::new(config.max_connections));
        let config = Arc::new(ConnectionConfig::new(config, tls));
        let of_connection = drain.clone();
        let begin = || ClientConnection::new(&config, &service, &of_connection, &metrics);
        // Dropping the set at the end closes the connections that are left.
        let mut connections = JoinSet::new();
        let warnings = Throttle::default();
        loop {
            let accepted = async {
                // Take a permit first: a connection without one waits in the listen backlog.
                let permit = acquire_permit(&permits, &metrics).await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                (permit, accepted) = accepted => match accepted {
                    Ok(accepted) => (permit, accepted),
                    Err(error) => { pause_after_accept_error(&error, &warnings).await; continue }
                },
                Some(_ended) = connections.join_next() => continue,
                () = until_drain(&mut drain) => break,
            };
            connections.spawn(serve(begin(), ready(permit), accepted));
        }
        let backlog = listener.close().unwrap_or_else(|error| {
            warn!(%error, "cannot accept the connections that wait in the listen backlog");
            Vec::new()
        });
        for accepted in backlog {
            let permit = Arc::clone(&permits).acquire_owned();
            connections.spawn(serve(begin(), permit, accepted));
        }
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(deadline, ended).await.is_err() {
            let open = connections.len();
            warn!(connections = open, "drain deadline passed; closing the remaining connections");
            connections.shutdown().await;
        }
    }
}

/// Serves a connection once it has a permit, and gives that back at its end.
async fn serve<S: Service>(
    connection: ClientConnection<S>,
    permit: impl Future,
    (socket, remote): Accepted,
) {
    let _permit = permit.await;
    connection.serve(socket, remote).await;
}

async fn acquire_permit(
    permits: &Arc<Semaphore>,
    metrics: &ServerMetrics,
) -> Result<OwnedSemaphorePermit, AcquireError> {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return Ok(permit);
    }
    metrics.limits.count(Limit::Connections);
    Arc::clone(permits).acquire_owned().await
}

async fn pause_after_accept_error(error: &io::Error, warnings: &Throttle) {
    // EMFILE of this process and ENFILE of the machine have one kind, and different remedies.
    let cause =
        error.raw_os_error().map_or_else(|| error.kind().to_string(), |code| code.to_string());
    if let Some(suppressed) = warnings.admit(&cause) {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE) => warn!(
                %error, suppressed,
                "cannot accept a connection; raise the limit of open files of this process (ulimit -n), or lower server.max_connections"
            ),
            Some(Errno::NFILE) => warn!(
                %error, suppressed,
                "cannot accept a connection; the machine has no open file left (sysctl fs.file-max)"
            ),
            _ => warn!(%error, suppressed, "cannot accept a connection"),
        }
    }
    sleep(ACCEPT_PAUSE).await;
}
