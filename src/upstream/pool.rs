//! Connections that wait for their next request.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::{connect::UpstreamProtocol, request_sender::RequestSender};
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

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: &config::UpstreamConfig, count: Gauge) -> Self {
        let max_idle = config.max_idle;
        let idle_timeout = config.idle_timeout;
        Self { idle: Mutex::default(), max_idle, idle_timeout, count }
    }

    /// Takes the connection of this protocol that was used last, if there is one.
    pub(super) fn take(&self, protocol: UpstreamProtocol) -> Option<RequestSender> {
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
                found = Some(sender);
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
