//! What the store is asked and what it answers.

use std::{borrow::Borrow, collections::HashSet, fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{barrier, cluster, memory, redis};

/// The name of a job's entry in the store: prefix and id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub(super) Box<str>);

impl Key {
    /// Joins a prefix and a canonical id. Neither holds a brace, so that its companions
    /// are keys of the same cluster slot.
    pub fn new(prefix: &str, id: &str) -> Self {
        // One allocation: it is made for every read.
        let mut name = String::with_capacity(prefix.len() + id.len());
        name.push_str(prefix);
        name.push_str(id);
        Self(name.into_boxed_str())
    }

    /// Makes it that of another id, in the room of this one where that is of the same length.
    pub fn rename(&mut self, prefix: &str, id: &str) {
        let mut name = std::mem::take(&mut self.0).into_string();
        name.clear();
        name.push_str(prefix);
        name.push_str(id);
        self.0 = name.into_boxed_str();
    }

    /// The key of the body.
    pub fn main(&self) -> &str {
        &self.0
    }

    pub(super) fn companion(&self, role: &str) -> String {
        format!("{{{}}}:{role}", self.0)
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The waiting of one read for the barrier.
#[derive(Debug, Default)]
pub struct Wait {
    pub(super) ticket: barrier::Ticket,
    /// Whose round it is, where there are several servers.
    pub(super) shard: Option<u64>,
    began: Option<Instant>,
}

impl Wait {
    pub(super) fn has_begun(&self) -> bool {
        self.began.is_some()
    }

    pub(super) fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// How long it has lasted.
    pub fn lasted(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

/// Names one lease, and as the generation of an entry the fill that made it. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub(super) Arc<str>);

impl Token {
    /// The token that an entry names as its generation.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The token as it stands in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One life of the server's data: `run_id` and `master_replid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch(pub(super) Arc<str>);

impl Epoch {
    /// The epoch that an entry names.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// The epoch as it stands in an entry.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Keys the fingerprints of credentials. All sidecars of one store have the same.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialKey([u8; 32]);

impl CredentialKey {
    /// A key of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key of its own.
    pub(super) fn random() -> Self {
        Self(std::array::from_fn(|_| fastrand::u8(..)))
    }

    /// The key that a configured secret gives.
    pub(super) fn derived(secret: &str) -> Self {
        Self(blake3::derive_key("jobcache credential fingerprints v1", secret.as_bytes()))
    }

    /// For the hash.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CredentialKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What the store holds under a key, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The value of the main key.
    pub body: Bytes,
    /// The value of the meta key; empty where there is none.
    pub meta: Bytes,
    /// When the main key expires, in ms since 1970 by the store's clock; -1 for never.
    pub expires_at_ms: i64,
}

/// An answer of [`Store::read`](super::Store::read), with the epoch of the connection that gave it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The value, if there is one; a placeholder is none.
    pub stored: Option<Stored>,
    /// What an entry must have been stored in to be believed.
    pub epoch: Epoch,
    /// Now by the store's clock, in ms since 1970.
    pub now_ms: i64,
}

/// An answer of [`Store::lease`](super::Store::lease).
#[derive(Debug)]
pub enum Grant {
    /// Ours to fill.
    Lease(Lease),
    /// Somebody filled meanwhile.
    Stored(Seen),
    /// Somebody else is filling, under this token, as a connection of this epoch has shown. A
    /// snapshot or a promotion may have brought the token back from another epoch.
    Leased(Token, Epoch),
    /// A write is in flight, or its outcome is unknown.
    Fenced,
}

/// Permission to fill one key, granted by the store to one reader at a time.
///
/// A purge or a write revokes it, so a response fetched before a write can never be stored after
/// it. One that is dropped unspent is handed back, and one whose sidecar dies expires in the store.
#[must_use = "spend a lease with `fill`; dropped, it is handed back"]
#[derive(Debug)]
pub struct Lease {
    pub(super) key: Key,
    pub(super) token: Token,
    pub(super) epoch: Epoch,
    pub(super) granted_at_ms: i64,
    pub(super) hold: Hold,
}

/// What hands a lease back when it is dropped.
#[derive(Debug)]
pub(super) enum Hold {
    Redis(redis::Hold),
    Memory(#[allow(dead_code, reason = "it is there for its drop")] memory::Hold),
}

impl Hold {
    /// There is nothing to hand back any more.
    pub(super) fn spend(self) {
        if let Self::Redis(hold) = self {
            hold.spend();
        }
    }
}

impl Lease {
    /// When it was asked for, by the store's clock, in ms since 1970.
    pub fn granted_at_ms(&self) -> i64 {
        self.granted_at_ms
    }

    /// Becomes the generation of the entry.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The epoch the entry will belong to.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }
}

/// What [`Store::replace`](super::Store::replace) puts in the place of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Replacement<'r> {
    /// The newer body.
    pub body: &'r Bytes,
    /// A JSON object without its closing brace.
    pub meta: &'r str,
    /// When it expires, in ms since 1970 by the store's clock.
    pub expires_at_ms: i64,
}

/// What became of a fill, an admission or a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The entry is there.
    Stored,
    /// The lease no longer stood: purged, written to, or expired. Nothing was stored.
    Revoked,
}

/// What became of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The store has confirmed it; says how many entries there were.
    Confirmed {
        /// Entries that were dropped.
        entries: usize,
    },
    /// The store has not confirmed it. The jobs are bypassed here until it has.
    Pending,
}

impl Ended {
    /// The word for metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed { .. } => "confirmed",
            Self::Pending => "pending",
        }
    }
}

/// A write in flight over some keys.
#[derive(Debug)]
pub struct Write {
    pub(super) keys: Vec<Key>,
    pub(super) id: Token,
    pub(super) fence: Duration,
    pub(super) begun: Begun,
}

/// Whether the fence of a write is known to stand, and over which connection it went.
#[derive(Debug)]
pub(super) enum Begun {
    /// On this connection; for the embedded store there is none.
    Confirmed(Option<redis::SessionHandle>),
    /// Sent on this connection but not confirmed, or not sent at all.
    Unconfirmed(Option<redis::SessionHandle>),
    /// Sent to several masters, and not confirmed by all of them.
    Scattered,
}

impl Write {
    /// The keys it invalidates.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Adds keys that it turns out to have changed, for its end; they were not fenced.
    pub fn widen(&mut self, keys: impl IntoIterator<Item = Key>) {
        let mut known: HashSet<Key> = self.keys.iter().cloned().collect();
        self.keys.extend(keys.into_iter().filter(|key| known.insert(key.clone())));
    }
}

/// Where a node of a cluster sends whoever asked for what it does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The slot is another node's: the map is out of date.
    Moved,
    /// The slot is on its way to this node, and the key is there already, or nowhere.
    Ask(Option<cluster::Address>),
    /// The slot is on its way, and of several keys some are here and some are there.
    TryAgain,
    /// The node has lost the majority of the cluster, or nobody serves the slot.
    Down,
}

impl Redirect {
    /// The word for metrics, as the server spells it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Ask(_) => "ask",
            Self::TryAgain => "tryagain",
            Self::Down => "clusterdown",
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the store gave no answer. None of these reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No trusted connection: the breaker is open.
    #[error("the store is down")]
    Down,
    /// An invalidation of this key is not confirmed yet.
    #[error("an invalidation is pending")]
    Pending,
    /// The budget ran out.
    #[error("the store did not answer within its budget")]
    Timeout,
    /// The budget ran out, and most of it had been spent before this operation.
    #[error("the budget was spent before the store could answer")]
    Spent,
    /// The connection broke.
    #[error("the connection to the store broke: {0}")]
    Lost(String),
    /// It could not be opened for what TLS asks for.
    #[error("TLS to the store failed: {0}")]
    Tls(String),
    /// The server answered with an error.
    #[error("the store refused: {0}")]
    Refused(String),
    /// A node of a cluster sends us elsewhere.
    #[error("the node of the cluster says {0}")]
    Redirected(Redirect),
    /// The journal of unconfirmed invalidations cannot be opened.
    #[error("cannot open the journal {}: {source}", path.display())]
    Journal {
        /// `pending.journal`.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The word for metrics and operators. What the server says may name its address, which is for the
    /// log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Pending => "pending",
            Self::Timeout | Self::Spent => "timeout",
            Self::Lost(_) => "lost",
            Self::Tls(_) => "tls",
            Self::Refused(_) | Self::Journal { .. } => "refused",
            Self::Redirected(_) => "redirected",
        }
    }
}

/// What the store may still cost one request, over all its operations.
#[derive(Debug)]
pub struct Budget {
    whole: Duration,
    left: Duration,
}

impl Budget {
    /// A budget of this much waiting.
    pub fn new(left: Duration) -> Self {
        Self { whole: left, left }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Takes what something else has cost.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }

    /// Waits for `operation` while the budget lasts, and takes the time it took from it.
    pub(super) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (started, given) = (Instant::now(), self.left);
        let result = tokio::time::timeout(given, operation).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.unwrap_or_else(|_| Err(self.late(given)))
    }

    /// Why an operation that was given this much did not come to its end. With less than half of
    /// the budget it says little of the store.
    pub(super) fn late(&self, given: Duration) -> StoreError {
        if given * 2 < self.whole { StoreError::Spent } else { StoreError::Timeout }
    }

    /// The same for several operations at once, each with a result of its own.
    pub(super) async fn spend_each<T>(
        &mut self,
        operations: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        let (started, given) = (Instant::now(), self.left);
        let results = operations.map(|operation| tokio::time::timeout(given, operation));
        let results = join_all(results).await;
        self.left = self.left.saturating_sub(started.elapsed());
        let result = |result: Result<_, _>| result.unwrap_or_else(|_| Err(self.late(given)));
        results.into_iter().map(result).collect()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timeout_counts_against_the_store_only_if_it_had_most_of_the_budget() {
        let mut budget = Budget::new(Duration::from_millis(20));
        let never = || std::future::pending::<Result<(), StoreError>>();
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Timeout)));
        assert!(matches!(budget.spend(never()).await, Err(StoreError::Spent)));
        let each = budget.spend_each([never()].into_iter()).await;
        assert!(matches!(each[..], [Err(StoreError::Spent)]));
    }
}
