//! The words of the store: keys, tokens, epochs, values, leases and outcomes.

pub use crate::semantics::{
    audience::{CredentialKey, MAX_PAIRS_OF_CREDENTIAL},
    identity::IdentityHash,
};

use std::{
    borrow::Borrow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use crate::{clock, semantics::labels::labels};

/// The name of a job's entry in the store: prefix and id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub(super) Box<str>);

impl Key {
    /// Joins a prefix and a canonical id. Neither contains a brace, so that the companion keys are
    /// in the same cluster slot.
    pub fn new(prefix: &str, id: &str) -> Self {
        // One allocation, because a key is made for every read.
        Self([prefix, id].concat().into())
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
        let mut name = String::new();
        self.write_companion(role, &mut name);
        name
    }

    /// Writes the name of a companion in place of a text: a write may need thousands.
    pub(super) fn write_companion(&self, role: &str, name: &mut String) {
        name.clear();
        name.reserve(self.0.len() + role.len() + 3);
        for part in ["{", &self.0, "}:", role] {
            name.push_str(part);
        }
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
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

    /// Returns whether it was made for such a reader. A token of an older sidecar names no caller, so
    /// it is of no reader.
    pub fn is_of(&self, reader: ReaderHash) -> bool {
        let hash = self.0.splitn(3, '-').nth(2);
        hash.and_then(|hash| u64::from_str_radix(hash, 16).ok()) == Some(reader.0)
    }
}

/// Hash of a read: API, route, job and caller. Readers with the same hash may get
/// the same response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReaderHash(pub u64);

impl fmt::Display for ReaderHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One life of the server's data: `run_id` and `master_replid`, followed by the term of the master
/// with Sentinel, or by its config epoch on a cluster. That of an entry ends with a space and the purge
/// token under which it was leased, because a purge of all ends the life of every entry.
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

    /// Returns the part without the purge token.
    pub fn server(&self) -> &str {
        self.0.split(' ').next().unwrap_or_default()
    }

    /// Returns it with this purge token; a missing one is empty, and no entry has it.
    pub(super) fn with_purge_token(&self, token: &[u8]) -> Self {
        Self([self.server(), " ", &String::from_utf8_lossy(token)].concat().into())
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
    /// The key holds the placeholder of a lease.
    pub is_leased: bool,
    /// The current epoch. An entry that was stored in another epoch must not be used.
    pub epoch: Epoch,
    /// The current time by the store's clock, in ms since 1970.
    pub now_ms: i64,
    /// The epoch was too new for hits when the value was asked for: another sidecar may still owe
    /// an invalidation.
    pub in_grace: bool,
}

/// A change of an entry that has been seen, by [`Store::change`](super::Store::change).
#[derive(Clone, Copy, Debug)]
pub enum EntryChange<'c> {
    /// Adds this caller to its audience. Meta records the time at which the entry was seen; the
    /// upstream served it to the caller no earlier.
    Admit(&'c str),
    /// Replaces it with a newer body.
    Replace {
        /// The newer body.
        body: &'c Bytes,
        /// A JSON object without its closing brace.
        meta: &'c str,
        /// When it expires, in ms since 1970 by the store's clock.
        expires_at_ms: i64,
    },
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

labels! {
    /// The outcome of an invalidation.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Ended {
        /// The store has confirmed it.
        Confirmed {
            /// Number of entries that were removed.
            entries: usize,
        } = "confirmed",
        /// The store has not confirmed it. The jobs are bypassed here until it has.
        Pending = "pending",
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The time by the clock of this process, in ms since 1970.
pub(super) fn now_ms() -> i64 {
    unix_ms(clock::now())
}

/// A time in ms since 1970.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Makes tokens that are unique among all sidecars, without a round trip.
#[derive(Debug)]
pub(super) struct Tokens {
    process: u64,
    next: AtomicU64,
}

impl Tokens {
    pub(super) fn new() -> Self {
        Self { process: fastrand::u64(..), next: AtomicU64::new(0) }
    }

    pub(super) fn next(&self) -> Token {
        Token(self.text().into())
    }

    /// Makes a token that names a reader.
    pub(super) fn next_of(&self, reader: ReaderHash) -> Token {
        Token(format!("{}-{reader}", self.text()).into())
    }

    fn text(&self) -> String {
        format!("{:016x}-{:x}", self.process, self.next.fetch_add(1, Ordering::Relaxed))
    }
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
    /// Becomes the generation of the entry.
    pub token: Token,
    /// The epoch to which the entry will belong.
    pub epoch: Epoch,
    /// When the lease was asked for, in ms since 1970 by the store's clock.
    pub granted_at_ms: i64,
    pub(super) hold: LeaseGuard,
}

/// Hands a lease back when it is dropped. It is made before the lease is asked for: a request that
/// times out, or is dropped because its client hung up, must not block all fills of the job until
/// the lease expires.
pub(super) struct LeaseGuard(Option<Box<dyn FnOnce() + Send + Sync>>);

impl fmt::Debug for LeaseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseGuard").field("spent", &self.0.is_none()).finish()
    }
}

impl LeaseGuard {
    pub(super) fn new(hand_back: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(hand_back)))
    }

    /// Cancels the hand-back: the lease was not granted, or has been used up.
    pub(super) fn spend(mut self) {
        self.0 = None;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        if let Some(hand_back) = self.0.take() {
            hand_back();
        }
    }
}

/// Everything that stands under the keys of a job.
#[derive(Clone, Debug)]
pub struct KeyState {
    /// The entry, as a reader sees it.
    pub seen: Seen,
    /// The main key holds a value that is not a string, so it was written by a third party.
    pub is_alien: bool,
    /// The lease under which the key may be filled.
    pub lease: Option<LeaseState>,
    /// Time until the fence expires, in ms; -1 if it never does. `None` without a fence.
    pub fence_left_ms: Option<i64>,
}

/// A lease that is held at present.
#[derive(Clone, Debug)]
pub struct LeaseState {
    /// The token of its holder.
    pub token: Token,
    /// Time until it expires, in ms; -1 if it never does.
    pub left_ms: i64,
}

/// A master of a cluster.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The address at which it is reached.
    pub address: String,
    /// Number of slots that it owns.
    pub slots: usize,
    /// Whether it is trusted.
    pub up: bool,
    /// Whether changes on it are tracked.
    pub tracked: bool,
}
