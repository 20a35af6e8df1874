//! Tokens that are unique among all sidecars.

use std::sync::atomic::{AtomicU64, Ordering};

use super::words::{IdentityHash, Token};

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
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Token(format!("{:016x}-{n:x}", self.process).into())
    }

    /// Makes a token that names an identity.
    pub(super) fn next_of(&self, identity: IdentityHash) -> Token {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Token(format!("{:016x}-{n:x}-{identity}", self.process).into())
    }
}
