//! The words of the store: keys, tokens, epochs, values and outcomes.

use std::{
    borrow::Borrow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

pub use crate::semantics::{
    audience::{CredentialKey, MAX_PAIRS_OF_CREDENTIAL},
    identity::IdentityHash,
};

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

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
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

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A time in ms since 1970.
pub(super) fn unix_ms(time: SystemTime) -> i64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
