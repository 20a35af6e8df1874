//! The right to fill a key.

use std::fmt;

use super::words::{Epoch, Key, Seen, Token};

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
