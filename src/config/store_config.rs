//! The store of entries: its settings.

use std::{path::PathBuf, time::Duration};

use super::{ClientTls, StoreLogin, StoreUrl};

/// The store of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Kind and address of the store.
    pub url: StoreUrl,
    /// Name of the connections, from the URL.
    pub client_name: Option<String>,
    /// User and password, if the URL has none.
    pub login: StoreLogin,
    /// TLS files, for URLs with a scheme that means TLS.
    pub tls: ClientTls,
    /// Settings of the sentinels, for a URL that names some.
    pub sentinel: SentinelConfig,
    /// Text before the job id in a key.
    pub prefix: String,
    /// Time that the store may cost a read, over all operations; a write has as much for its begin and
    /// for each end.
    pub budget: Duration,
    /// Lifetime of a lease, the right to fill.
    pub lease: Duration,
    /// Time after a write of unknown outcome during which fills are refused.
    pub linger: Duration,
    /// Time for which no hit is served after a restart or failover of the store.
    pub reconnect_grace: Duration,
    /// Bodies of more bytes are compressed; none = no body is.
    pub compress_above: Option<usize>,
    /// Bytes of bodies that the embedded store keeps.
    pub memory_max: usize,
}

/// Connections to sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentinelConfig {
    /// User and password at the sentinels. Those of Redis are never sent to them.
    pub login: StoreLogin,
    /// Whether they use TLS; none = as Redis does.
    pub tls: Option<bool>,
}

/// Invalidations that the store has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingConfig {
    /// Largest number of ids. Beyond it, reads in the slot of each further id bypass the cache until
    /// a purge of all is confirmed.
    pub limit: usize,
    /// File in which they survive a restart; synced.
    pub journal: Option<PathBuf>,
}
