//! One unconfirmed invalidation, and when it is repeated.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::words::{Key, Token};

/// First and longest pause before a failed invalidation is repeated; the pause doubles in between.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One unconfirmed invalidation.
#[derive(Clone, Debug)]
pub struct PendingItem {
    /// The key to invalidate.
    pub key: Key,
    /// The write that set the fence to lift.
    pub write: Token,
    /// How long the fence lingers.
    pub linger: Duration,
    /// The longest linger of other writes to the key that were pending before.
    pub(super) linger_of_others: Duration,
    pub(super) due: Due,
}

impl PendingItem {
    /// Returns the linger that a later end of this write must keep: each end of a write replaces
    /// the linger of the one before.
    pub(super) fn others(&self, write: &Token) -> Duration {
        if self.write == *write { self.linger_of_others } else { self.linger }
    }
}

/// When something is to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) addition: u64,
    pub(super) at: Instant,
    pub(super) failures: u32,
}

impl Due {
    pub(super) fn now(addition: u64) -> Self {
        Self { addition, at: Instant::now(), failures: 0 }
    }

    pub(super) fn postpone(&mut self) {
        let pause = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.at = Instant::now() + pause;
        self.failures += 1;
    }

    pub(super) fn order(self) -> (Instant, u64) {
        (self.at, self.addition)
    }
}
