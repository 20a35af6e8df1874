//! Requests to the store and its answers.

use std::{borrow::Borrow, collections::HashSet, fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{barrier, cluster, memory, redis};
use crate::semantics::identity::IdentityHash;

/// The name of a job's entry in the store: prefix and id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub(super) Box<str>);

impl Key {
    /// Joins a prefix and a canonical id. Neither contains a brace, so that the companion keys are
    /// in the same cluster slot.
    pub fn new(prefix: &str, id: &str) -> Self {
        // One allocation, because a key is made for every read.
        let mut name = String::with_capacity(prefix.len() + id.len());
        name.push_str(prefix);
        name.push_str(id);
        Self(name.into_boxed_str())
    }

    /// Changes it to the key of another id; reuses the allocation if the length is the same.
    pub fn rename(&mut self, prefix: &str, id: &str) {
        let mut name = std::mem::take(&mut self.0).into_string();
        name.clear();
        name.push_str(prefix);
        name.push_str(id);
        self.0 = name.into_boxed_str();
    }

    /// Returns the main key, which holds the body.
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

/// The progress of one read through the barrier.
#[derive(Debug, Default)]
pub struct BarrierWait {
    pub(super) ticket: barrier::BarrierTicket,
    /// The number of the shard that is waited for, on a cluster.
    pub(super) shard: Option<u64>,
    began: Option<Instant>,
}

impl BarrierWait {
    pub(super) fn has_begun(&self) -> bool {
        self.began.is_some()
    }

    pub(super) fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// Returns how long the wait has lasted; zero if there was none.
    pub fn lasted(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

/// Names one lease and, as the generation of an entry, the fill that made it. Never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub(super) Arc<str>);

impl Token {
    /// Returns the token that an entry names as its generation.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// Returns the token as it is written in the store.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it was made for this identity. A token of an older sidecar names none.
    pub fn is_of(&self, identity: IdentityHash) -> bool {
        let hash = self.0.splitn(3, '-').nth(2);
        hash.and_then(|hash| u64::from_str_radix(hash, 16).ok()) == Some(identity.0)
    }
}

/// One life of the server's data: `run_id` and `master_replid`, followed by the term of the master
/// with Sentinel, or by its config epoch on a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch(pub(super) Arc<str>);

impl Epoch {
    /// Returns the epoch that an entry names.
    pub fn named(name: &str) -> Self {
        Self(name.into())
    }

    /// Returns the epoch as it is written in an entry.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The values under a key in the store, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredValue {
    /// The value of the main key.
    pub body: Bytes,
    /// The value of the meta key; empty if there is none.
    pub meta: Bytes,
    /// When the main key expires, in ms since 1970 by the store's clock; -1 if never.
    pub expires_at_ms: i64,
}

/// An answer of [`Store::read`](super::Store::read), with the epoch of the connection that gave it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The value, if there is one; a placeholder does not count.
    pub stored: Option<StoredValue>,
    /// The current epoch. An entry that was stored in another epoch must not be used.
    pub epoch: Epoch,
    /// The current time by the store's clock, in ms since 1970.
    pub now_ms: i64,
    /// The epoch was too new for hits when the value was asked for: another sidecar may still owe an
    /// invalidation.
    pub in_grace: bool,
}

/// An answer of [`Store::lease`](super::Store::lease).
#[derive(Debug)]
pub enum Grant {
    /// The lease was granted.
    Lease(Lease),
    /// The key has been filled in the meantime.
    Stored(Seen),
    /// Another reader is filling, under this token. The epoch is that of the connection that showed
    /// the token: a snapshot or a promotion may have brought it back from another epoch.
    Leased(Token, Epoch),
    /// A write is in flight, or its outcome is unknown.
    Fenced,
}

/// Permission to fill one key, granted by the store to one reader at a time.
///
/// A purge or a write revokes it, so a response fetched before a write can never be stored after
/// it. If it is dropped unspent it is handed back; if its sidecar dies it expires in the store.
#[must_use = "spend a lease with `fill`; if it is dropped, it is handed back"]
#[derive(Debug)]
pub struct Lease {
    pub(super) key: Key,
    pub(super) token: Token,
    pub(super) epoch: Epoch,
    pub(super) granted_at_ms: i64,
    pub(super) hold: LeaseGuard,
}

/// Hands a lease back when it is dropped.
#[derive(Debug)]
pub(super) enum LeaseGuard {
    Redis(redis::RedisLeaseHold),
    Memory(#[allow(dead_code, reason = "held for its `Drop`")] memory::MemoryLeaseGuard),
}

impl LeaseGuard {
    /// Cancels the hand-back: the lease has been used up.
    pub(super) fn spend(self) {
        if let Self::Redis(hold) = self {
            hold.spend();
        }
    }
}

impl Lease {
    /// Returns when the lease was asked for, in ms since 1970 by the store's clock.
    pub fn granted_at_ms(&self) -> i64 {
        self.granted_at_ms
    }

    /// Returns its token, which becomes the generation of the entry.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Returns the epoch to which the entry will belong.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }
}

/// The newer body with which [`Store::replace`](super::Store::replace) replaces an entry.
#[derive(Clone, Copy, Debug)]
pub struct Replacement<'r> {
    /// The newer body.
    pub body: &'r Bytes,
    /// A JSON object without its closing brace.
    pub meta: &'r str,
    /// When it expires, in ms since 1970 by the store's clock.
    pub expires_at_ms: i64,
}

/// The outcome of a fill, an admission or a replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The entry is stored.
    Stored,
    /// The lease or the entry was no longer there: purged, written to, or expired. Nothing was
    /// stored.
    Revoked,
}

/// The outcome of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The store has confirmed it.
    Confirmed {
        /// Number of entries that were removed.
        entries: usize,
    },
    /// The store has not confirmed it. The jobs are bypassed here until it has.
    Pending,
}

impl Ended {
    /// Returns the label for metrics and spans.
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
    /// The number of keys, the first ones, that the target names elsewhere than at the place of the
    /// id.
    pub(super) elsewhere: usize,
    pub(super) id: Token,
    pub(super) fence: Duration,
    pub(super) begun: Begun,
}

/// Whether the fence of a write is confirmed, and the connection on which it was set.
#[derive(Clone, Debug)]
pub(super) enum Begun {
    /// Confirmed on this connection; `None` if the end may use any connection.
    Confirmed(Option<redis::SessionHandle>),
    /// Sent on this connection but not confirmed, or not sent at all.
    Unconfirmed(Option<redis::SessionHandle>),
    /// Sent to several masters, and not confirmed by all of them.
    Scattered,
}

impl Write {
    /// Returns the keys that it invalidates.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Marks the first `count` keys as named elsewhere in the target than at the place of the id.
    pub fn mark_elsewhere(&mut self, count: usize) {
        self.elsewhere = count.min(self.keys.len());
    }

    /// Splits the write into the keys that are named elsewhere and the others, to end each part by
    /// itself; `None` if there are no such keys.
    pub fn split_elsewhere(&self) -> Option<(Self, Self)> {
        let (elsewhere, rest) = self.keys.split_at(self.elsewhere);
        let part = |keys: &[Key]| Self {
            keys: keys.to_vec(),
            elsewhere: 0,
            id: self.id.clone(),
            fence: self.fence,
            begun: self.begun.clone(),
        };
        (!elsewhere.is_empty()).then(|| (part(elsewhere), part(rest)))
    }

    /// Adds keys for its end that the write turns out to have changed; they were not fenced.
    pub fn widen(&mut self, keys: impl IntoIterator<Item = Key>) {
        let mut known: HashSet<Key> = self.keys.iter().cloned().collect();
        self.keys.extend(keys.into_iter().filter(|key| known.insert(key.clone())));
    }
}

/// A cluster node's refusal of a command for a slot that it does not serve alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// The slot belongs to another node: the slot map is out of date.
    Moved,
    /// The slot is moving to this node, and the key is there already or does not exist.
    Ask(Option<cluster::NodeAddress>),
    /// The slot is moving, and of several keys some are on each node.
    TryAgain,
    /// The node has lost the majority of the cluster, or the slot has no owner.
    Down,
}

impl Redirect {
    /// Returns the label for metrics: the server's error code in lower case.
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
    /// The server has restarted or failed over, and others may still owe it invalidations.
    #[error("the server has just restarted or failed over")]
    Grace,
    /// The budget ran out.
    #[error("the store did not answer within its budget")]
    Timeout,
    /// The budget ran out, and more than half of it had been spent before this operation.
    #[error("the budget was spent before the store could answer")]
    Spent,
    /// No connection was made.
    #[error("cannot connect to the store {0}")]
    Unreachable(String),
    /// A connection that was in use broke.
    #[error("the connection to the store broke: {0}")]
    Lost(String),
    /// The server answers, but is not one to use: a replica, another master, a server that loads its
    /// data.
    #[error("the store cannot be used: {0}")]
    Unusable(String),
    /// TLS could not be set up.
    #[error("TLS to the store failed: {0}")]
    Tls(String),
    /// The server answered with an error.
    #[error("the store refused: {0}")]
    Refused(String),
    /// A cluster node does not serve the slot of the key.
    #[error("the cluster node answered {0}")]
    Redirected(Redirect),
    /// The journal of unconfirmed invalidations cannot be opened.
    #[error("cannot open the journal {}: {source}", path.display())]
    Journal {
        /// The path in `pending.journal`.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl StoreError {
    /// Returns the label for metrics and operators. The server's own words may contain its address,
    /// which only the log may show.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Pending => "pending",
            Self::Grace => "grace",
            Self::Timeout | Self::Spent => "timeout",
            Self::Unreachable(_) | Self::Lost(_) | Self::Unusable(_) => "lost",
            Self::Tls(_) => "tls",
            Self::Refused(_) | Self::Journal { .. } => "refused",
            Self::Redirected(_) => "redirected",
        }
    }
}

/// The time that one request may still spend on the store, over all its operations.
#[derive(Debug)]
pub struct Budget {
    whole: Duration,
    left: Duration,
}

impl Budget {
    /// Makes a budget of this much waiting.
    pub fn new(left: Duration) -> Self {
        Self { whole: left, left }
    }

    /// Returns the time that is left.
    pub fn left(&self) -> Duration {
        self.left
    }

    /// Deducts time that was spent elsewhere.
    pub fn charge(&mut self, spent: Duration) {
        self.left = self.left.saturating_sub(spent);
    }

    /// Waits for `operation` while the budget lasts, and deducts the time it took.
    pub(super) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let given = self.left;
        let result = tokio::time::timeout(given, operation).await;
        self.left = self.left.saturating_sub(started.elapsed());
        result.unwrap_or_else(|_| Err(self.timeout_error(given)))
    }

    /// Returns the error of an operation that did not finish within `given`. If that was less than
    /// half of the budget, the timeout says little about the store.
    pub(super) fn timeout_error(&self, given: Duration) -> StoreError {
        if given * 2 < self.whole { StoreError::Spent } else { StoreError::Timeout }
    }

    /// As [`Budget::spend`], for several operations at once; each has its own result.
    pub(super) async fn spend_each<T>(
        &mut self,
        operations: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        let started = Instant::now();
        let given = self.left;
        let results = operations.map(|operation| tokio::time::timeout(given, operation));
        let results = join_all(results).await;
        self.left = self.left.saturating_sub(started.elapsed());
        let result =
            |result: Result<_, _>| result.unwrap_or_else(|_| Err(self.timeout_error(given)));
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
