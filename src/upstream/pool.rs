//! Connections that wait for their next request.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::{RequestBody, connect::Protocol};
use crate::{config, metrics::Metrics};

/// Connections that nobody uses now, the one used last at the end.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<Idle>>,
    max_idle: usize,
    idle_timeout: Duration,
    /// How many there are.
    count: Gauge,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection in use; tells whether it has been used before.
pub(super) struct Connection {
    pub(super) sender: Sender,
    pub(super) reused: bool,
}

/// The end of a connection that takes requests.
pub(super) enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    /// For one request at a time as well. Shared, it would let one client hold up or end the calls
    /// of all: by what it does not read, by its number of streams, by frames that count as a flood.
    Http2(http2::SendRequest<RequestBody>),
}

impl Sender {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Http1(_) => Protocol::Http1,
            Self::Http2(_) => Protocol::Http2,
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_ready(),
            Self::Http2(sender) => sender.is_ready(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: &config::UpstreamConfig, metrics: &Metrics) -> Self {
        let (max_idle, idle_timeout) = (config.max_idle, config.idle_timeout);
        let count = metrics.upstream.idle.clone();
        Self { idle: Mutex::default(), max_idle, idle_timeout, count }
    }

    /// The connection of this protocol that was used last, if it is still there.
    pub(super) fn take(&self, protocol: Protocol) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy = Vec::new();
        let mut found = None;
        while let Some(Idle { sender, since }) = idle.pop() {
            // The rest is older.
            if since.elapsed() > self.idle_timeout {
                idle.clear();
                break;
            }
            if sender.protocol() == protocol && sender.is_ready() {
                found = Some(Connection { sender, reused: true });
                break;
            }
            // Of the other protocol, or still sending a request body that the upstream did not wait for.
            if !sender.is_closed() {
                busy.push(Idle { sender, since });
            }
        }
        idle.extend(busy.into_iter().rev());
        self.tell(&idle);
        found
    }

    /// Keeps a connection for the next request.
    pub(super) fn put(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push(Idle { sender, since: Instant::now() });
        }
        self.tell(&idle);
    }

    /// While the lock is held, so that nobody who is overtaken leaves an older number.
    fn tell(&self, idle: &[Idle]) {
        self.count.set(i64::try_from(idle.len()).unwrap_or(i64::MAX));
    }
}

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idle").field("since", &self.since).finish_non_exhaustive()
    }
}
