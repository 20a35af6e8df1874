//! Connections that wait for their next request.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::{RequestBody, bound::Owner, connect::UpstreamProtocol};
use crate::config;

/// Idle connections, with the one that was used last at the end.
pub(super) struct Pool {
    idle: Mutex<Vec<IdleConnection>>,
    max_idle: usize,
    idle_timeout: Duration,
    /// The number of idle connections.
    count: Gauge,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("max_idle", &self.max_idle)
            .field("idle", &self.count.get())
            .finish_non_exhaustive()
    }
}

struct IdleConnection {
    sender: RequestSender,
    since: Instant,
}

/// A connection in use, whether it was used before, and where it goes afterwards.
pub(super) struct PooledConnection {
    pub(super) sender: RequestSender,
    pub(super) reused: bool,
    pub(super) home: ConnectionHome,
}

/// Where a connection goes after its exchange.
pub(super) enum ConnectionHome {
    /// The pool, for any request.
    Pool(Arc<Pool>),
    /// The client connection that owns it.
    Client(Box<Owner>),
    /// Nobody; the connection closes.
    Nowhere,
    /// Nobody; the connection closes, and so does the client connection.
    NowhereNorClient,
}

impl PooledConnection {
    /// Gives the connection to its home. The exchange has ended.
    pub(super) fn release(self) {
        match self.home {
            ConnectionHome::Pool(pool) => pool.put(self.sender),
            ConnectionHome::Client(owner) => owner.put(self.sender),
            ConnectionHome::Nowhere | ConnectionHome::NowhereNorClient => {}
        }
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
    fn protocol(&self) -> UpstreamProtocol {
        match self {
            Self::Http1(_) => UpstreamProtocol::Http1,
            Self::Http2(_) => UpstreamProtocol::Http2,
        }
    }

    fn is_ready(&self) -> bool {
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

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: &config::UpstreamConfig, count: Gauge) -> Self {
        let max_idle = config.max_idle;
        let idle_timeout = config.idle_timeout;
        Self { idle: Mutex::default(), max_idle, idle_timeout, count }
    }

    /// Takes the connection of this protocol that was used last, if there is one.
    pub(super) fn take(self: &Arc<Self>, protocol: UpstreamProtocol) -> Option<PooledConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy = Vec::new();
        let mut found = None;
        while let Some(IdleConnection { sender, since }) = idle.pop() {
            // All others are older.
            if since.elapsed() > self.idle_timeout {
                idle.clear();
                break;
            }
            if sender.protocol() == protocol && sender.is_ready() {
                let home = ConnectionHome::Pool(Arc::clone(self));
                found = Some(PooledConnection { sender, reused: true, home });
                break;
            }
            // The connection is of the other protocol, or it still sends a request body that the
            // upstream did not wait for.
            if !sender.is_closed() {
                busy.push(IdleConnection { sender, since });
            }
        }
        idle.extend(busy.into_iter().rev());
        self.update_gauge(&idle);
        found
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, sender: RequestSender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push(IdleConnection { sender, since: Instant::now() });
        }
        self.update_gauge(&idle);
    }

    /// Updates the gauge. The caller holds the lock, so that a delayed update cannot overwrite a
    /// newer one.
    fn update_gauge(&self, idle: &[IdleConnection]) {
        self.count.set(i64::try_from(idle.len()).unwrap_or(i64::MAX));
    }
}

impl fmt::Debug for IdleConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleConnection").field("since", &self.since).finish_non_exhaustive()
    }
}
