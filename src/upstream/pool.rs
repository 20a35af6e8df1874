//! Connections that wait for their next request: those of the pool, which any request may use until
//! they are `upstream.max_age` old, and those that belong to one client connection, because a login
//! authenticates the connection.
//!
//! A client connection is *bound* from its first login over NTLM, Negotiate or Kerberos, or from
//! the first answer with `Persistent-Auth`. From then on its requests use a connection that no
//! other client uses. That connection closes with the client connection, or after
//! `upstream.idle_timeout` without a request. The client connection stays bound without it: a
//! request without a login gets a connection for itself, and the client connection ends with the
//! answer, as it would end with the connection to the API if there were no proxy. The client then
//! logs in again.
//!
//! A request of a client connection that is not known, such as one over HTTP/2, can bind nothing: a
//! login gets a connection for this one request. The same holds when a quarter of
//! `upstream.max_connections` is bound. So a login of several steps fails there, and nobody else
//! gets its connection.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{Response, Version, header::CONNECTION};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::{
    connect::{RequestSender, UpstreamProtocol},
    metrics::ConnectionMetrics,
};
use crate::{
    config::{self, UpstreamConfig},
    limits::{Permit, Quota},
    observe::throttle::HourlyPerName,
    semantics::headers::{ConnectionIdentity, identity_of, list_contains},
    transport::ConnectionId,
};

/// Idle connections, with the one that was used last at the end.
pub(super) struct Pool {
    idle: Mutex<Vec<IdleConnection>>,
    max_idle: usize,
    idle_timeout: Duration,
    max_age: Duration,
    /// The number of idle connections.
    count: Gauge,
}

struct IdleConnection {
    sender: RequestSender,
    opened: Instant,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(config: &config::UpstreamConfig, count: Gauge) -> Self {
        let config::UpstreamConfig { max_idle, idle_timeout, max_age, .. } = *config;
        Self { idle: Mutex::default(), max_idle, idle_timeout, max_age, count }
    }

    /// Takes the connection of this protocol that was used last, if there is one.
    pub(super) fn take(self: &Arc<Self>, protocol: UpstreamProtocol) -> Option<PooledConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy = Vec::new();
        let mut found = None;
        while let Some(IdleConnection { sender, opened, since }) = idle.pop() {
            // All others are older.
            if since.elapsed() > self.idle_timeout {
                idle.clear();
                break;
            }
            if opened.elapsed() >= self.max_age {
                continue;
            }
            if sender.protocol() == protocol && sender.is_ready() {
                let home = ConnectionHome::Pool { pool: Arc::clone(self), opened };
                found = Some(PooledConnection { sender, reused: true, home });
                break;
            }
            // The connection is of the other protocol, or it still sends a request body that the
            // upstream did not wait for.
            if !sender.is_closed() {
                busy.push(IdleConnection { sender, opened, since });
            }
        }
        idle.extend(busy.into_iter().rev());
        self.update_gauge(&idle);
        found
    }

    /// The home of a connection that is opened now.
    pub(super) fn home(self: &Arc<Self>) -> ConnectionHome {
        ConnectionHome::Pool { pool: Arc::clone(self), opened: Instant::now() }
    }

    /// Keeps a connection for the next request, unless it is too old for one.
    fn put(&self, sender: RequestSender, opened: Instant) {
        if sender.is_closed() || opened.elapsed() >= self.max_age {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push(IdleConnection { sender, opened, since: Instant::now() });
        }
        self.update_gauge(&idle);
    }

    /// Updates the gauge. The caller holds the lock, so that a delayed update cannot overwrite a
    /// newer one.
    fn update_gauge(&self, idle: &[IdleConnection]) {
        self.count.set(i64::try_from(idle.len()).unwrap_or(i64::MAX));
    }
}

/// Divisor of `upstream.max_connections`: at most one connection in this many may be bound.
const BOUND_SHARE: usize = 4;

/// The client connections that are open, and what belongs to those that are bound.
pub(crate) struct BoundConnections {
    clients: Mutex<HashMap<ConnectionId, Option<Box<Binding>>>>,
    /// The number of bound client connections. While it is 0, no request takes the lock.
    count: AtomicUsize,
    next_id: AtomicU64,
    quota: Arc<Quota>,
    max_bound: usize,
    idle_timeout: Duration,
    warnings: HourlyPerName,
}

/// A bound client connection.
#[derive(Default)]
struct Binding {
    /// Its connection to the upstream, unless that is in use or lost.
    idle: Option<IdleBound>,
}

struct IdleBound {
    sender: RequestSender,
    permit: Permit,
    since: Instant,
    /// Closes the connection when it is too old.
    #[expect(dead_code, reason = "held, not read")]
    expiry: AbortOnDropHandle<()>,
}

/// The owner of a bound connection while that is in use.
pub(super) struct Owner {
    bound: Arc<BoundConnections>,
    client: ConnectionId,
    permit: Permit,
}

/// A connection in use, whether it was used before, and where it goes afterwards.
pub(super) struct PooledConnection {
    pub(super) sender: RequestSender,
    pub(super) reused: bool,
    pub(super) home: ConnectionHome,
}

/// The place of a connection after its exchange.
pub(super) enum ConnectionHome {
    /// The pool, for any request until the connection is too old.
    Pool { pool: Arc<Pool>, opened: Instant },
    /// The client connection that owns it.
    Client(Box<Owner>),
    /// Nobody; the connection closes.
    Nowhere,
    /// Nobody; the connection closes, and so does the client connection.
    NowhereNorClient,
}

/// How a request gets its connection.
pub(super) enum ConnectionChoice {
    /// Any connection of the pool.
    Pooled,
    /// The one that belongs to its client connection.
    Bound(PooledConnection),
    /// A new one, which goes to this home after the exchange.
    New(ConnectionHome),
}

/// Whether a request carries a login that authenticates its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    Absent,
    Present,
}

impl PooledConnection {
    /// Gives the connection to its home. The exchange has ended.
    pub(super) fn release(self) {
        match self.home {
            ConnectionHome::Pool { pool, opened } => pool.put(self.sender, opened),
            ConnectionHome::Client(owner) => owner.put(self.sender),
            ConnectionHome::Nowhere | ConnectionHome::NowhereNorClient => {}
        }
    }
}

impl BoundConnections {
    pub(super) fn new(config: &UpstreamConfig, metrics: &ConnectionMetrics) -> Self {
        let max_bound = config.max_connections / BOUND_SHARE;
        Self {
            clients: Mutex::default(),
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            quota: Quota::new(max_bound, metrics.bound.clone(), metrics.binds_refused.clone()),
            max_bound,
            idle_timeout: config.idle_timeout,
            warnings: HourlyPerName::default(),
        }
    }

    /// Registers an open client connection. Its requests follow one another.
    pub(crate) fn open(&self) -> ConnectionId {
        let id = ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        self.lock().insert(id, None);
        id
    }

    /// Closes what belongs to a client connection. A connection in use closes after its exchange.
    pub(crate) fn close(&self, client: ConnectionId) {
        let binding = self.lock().remove(&client).flatten();
        if binding.is_some() {
            self.count.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether a connection belongs, or has belonged, to this client connection.
    pub(crate) fn is_bound(&self, client: Option<ConnectionId>) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && client.is_some_and(|id| self.lock().get(&id).is_some_and(Option::is_some))
    }

    /// Chooses the connection of a request. A login binds its client connection, if it may.
    pub(super) fn choose(
        self: &Arc<Self>,
        client: Option<ConnectionId>,
        login: Login,
    ) -> ConnectionChoice {
        let Some(id) = client.filter(|_| login == Login::Present || self.is_bound(client)) else {
            return match login {
                Login::Absent => ConnectionChoice::Pooled,
                Login::Present => ConnectionChoice::New(ConnectionHome::Nowhere),
            };
        };
        if let Some(IdleBound { sender, permit, .. }) = self.take_idle(id) {
            let home = self.home(id, permit);
            return ConnectionChoice::Bound(PooledConnection { sender, reused: true, home });
        }
        ConnectionChoice::New(match login {
            Login::Absent => ConnectionHome::NowhereNorClient,
            Login::Present => self.bind(id),
        })
    }

    fn take_idle(&self, client: ConnectionId) -> Option<IdleBound> {
        let idle = self.lock().get_mut(&client)?.as_mut()?.idle.take()?;
        let is_usable = !idle.sender.is_closed() && idle.since.elapsed() <= self.idle_timeout;
        is_usable.then_some(idle)
    }

    /// Binds a client connection and returns the home of its new connection.
    fn bind(self: &Arc<Self>, client: ConnectionId) -> ConnectionHome {
        let Some(permit) = self.quota.take(1) else {
            if self.warnings.admits("bound") {
                warn!(
                    limit = self.max_bound,
                    "a login over NTLM, Negotiate or Kerberos may fail, because a quarter of \
                     upstream.max_connections is bound to such logins; raise upstream.max_connections"
                );
            }
            return ConnectionHome::Nowhere;
        };
        let mut clients = self.lock();
        // A client connection that has closed owns nothing any more.
        let Some(binding) = clients.get_mut(&client) else { return ConnectionHome::Nowhere };
        if binding.is_none() {
            *binding = Some(Box::default());
            self.count.fetch_add(1, Ordering::Release);
        }
        self.home(client, permit)
    }

    fn home(self: &Arc<Self>, client: ConnectionId, permit: Permit) -> ConnectionHome {
        ConnectionHome::Client(Box::new(Owner { bound: Arc::clone(self), client, permit }))
    }

    /// Returns where a connection goes after a response.
    pub(super) fn home_after<B>(
        self: &Arc<Self>,
        home: ConnectionHome,
        client: Option<ConnectionId>,
        response: &Response<B>,
    ) -> ConnectionHome {
        match (home, identity_of(response.headers())) {
            (ConnectionHome::Pool { .. }, ConnectionIdentity::Established) => {
                // A second connection for a client that is bound already belongs to nobody.
                match client.filter(|_| !self.is_bound(client)) {
                    Some(client) => self.bind(client),
                    None => ConnectionHome::Nowhere,
                }
            }
            (ConnectionHome::Pool { .. }, ConnectionIdentity::Challenged) => {
                ConnectionHome::Nowhere
            }
            (ConnectionHome::Client(_), _) if announces_close(response) => {
                ConnectionHome::NowhereNorClient
            }
            (home, _) => home,
        }
    }

    /// Closes the idle connection of a client connection if it is too old.
    fn expire(&self, client: ConnectionId) {
        let mut clients = self.lock();
        let binding = clients.get_mut(&client).and_then(Option::as_mut);
        let is_old = |idle: &mut IdleBound| idle.since.elapsed() >= self.idle_timeout;
        let expired = binding.and_then(|binding| binding.idle.take_if(is_old));
        drop(clients);
        drop(expired);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Option<Box<Binding>>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owner {
    /// Gives an idle connection back to its client connection, if that is still open.
    pub(super) fn put(self, sender: RequestSender) {
        let Self { bound, client, permit } = self;
        if sender.is_closed() {
            return;
        }
        let (all, limit) = (Arc::downgrade(&bound), bound.idle_timeout);
        let expiry = AbortOnDropHandle::new(tokio::spawn(async move {
            sleep(limit).await;
            if let Some(bound) = all.upgrade() {
                bound.expire(client);
            }
        }));
        let idle = IdleBound { sender, permit, since: Instant::now(), expiry };
        if let Some(Some(binding)) = bound.lock().get_mut(&client) {
            binding.idle = Some(idle);
        }
    }
}

/// Whether the upstream closes the connection after this response. RFC 9112 9.3 has the rules.
fn announces_close<B>(response: &Response<B>) -> bool {
    let lists = |option| list_contains(response.headers(), &CONNECTION, option);
    lists(b"close") || (response.version() == Version::HTTP_10 && !lists(b"keep-alive"))
}
