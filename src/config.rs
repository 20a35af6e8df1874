//! Configuration: flag > environment > file > default.

use std::{net::SocketAddr, time::Duration};

/// A checked configuration: every value is within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where operators and the purge webhook connect.
    pub admin: SocketAddr,
    /// Secret of the purge webhook: Standard Webhooks signature or bearer token.
    pub webhook_secret: Option<Secret>,
    /// Path templates of the job resource, each with one `{id}` segment.
    pub routes: Vec<String>,
    /// Longest time an entry is kept.
    pub ttl: Duration,
    /// Largest body that is stored, in bytes.
    pub max_body: usize,
    /// How long fills stay refused after a write was answered (upstreams that read from a replica).
    pub settle: Duration,
    /// One INFO line a request.
    pub access_log: bool,
    /// Filter of the log, as `tracing_subscriber::EnvFilter` reads it.
    pub log: String,
    /// How long a shutdown waits for requests in flight.
    pub drain_timeout: Duration,
    /// Limits of the client side.
    pub server: Server,
    /// The backend.
    pub upstream: Upstream,
    /// Where entries live.
    pub store: Store,
    /// Invalidations that the store has not confirmed.
    pub pending: Pending,
    /// What marks a request as somebody's.
    pub credentials: Credentials,
}

/// Limits of the client side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Client connections at a time; further ones wait in the listen backlog.
    pub max_connections: usize,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
}

/// The backend and how patient we are with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// `http://host[:port]`, without a path.
    pub url: String,
    /// TCP connect.
    pub connect_timeout: Duration,
    /// From the last byte of the request sent to the response head.
    pub response_timeout: Duration,
    /// Between two parts of a response body.
    pub body_timeout: Duration,
    /// How long an unused connection is kept: shorter than the upstream's keep-alive (uvicorn: 5 s).
    pub idle_timeout: Duration,
    /// Unused connections kept at most.
    pub max_idle: usize,
}

/// Where entries live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// `redis://[user:password@]host[:port][/db]` or `memory://`.
    pub url: StoreUrl,
    /// Before the job id in the key.
    pub prefix: String,
    /// What the store may cost one request, over all its operations.
    pub budget: Duration,
    /// Life of the right to fill.
    pub lease: Duration,
    /// How long fills stay refused after a write of unknown outcome.
    pub linger: Duration,
    /// Bytes of bodies the embedded store keeps at most.
    pub memory_max: usize,
}

/// Which store.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// The URL of a Redis server; may hold a password, which `Debug` hides.
    Redis(String),
    /// In this process.
    Memory,
}

/// Invalidations that the store has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Ids at most; past it every read bypasses the cache until a purge of all is confirmed.
    pub limit: usize,
}

/// What marks a request as somebody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Header names, lower case. A request that carries one passes uncached.
    pub headers: Vec<String>,
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Self::Memory { "memory://" } else { "redis://***" })
    }
}
