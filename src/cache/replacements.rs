//! Counts replacements, to notice that the upstream answers each client differently.
//!
//! Entries that replace each other spare the upstream nothing. So a credential may replace the entry of
//! a job only so often within a TTL, and only so many credentials may. One caller that gets responses
//! of its own, such as a page to log in, does not end sharing for the others.

use std::time::Duration;

use super::windowed_counts::WindowedCounts;
use crate::{semantics::audience::Fingerprint, store::Key};

/// Most replacements by the responses to one credential.
const MAX_OF_CREDENTIAL: u32 = 3;
/// Most credentials with replacements.
const MAX_CREDENTIALS: u32 = 8;

/// Replacements of entries by a different response that the upstream gave another caller.
#[derive(Debug)]
pub(super) struct Replacements {
    by_credential: WindowedCounts<(Key, Fingerprint)>,
    credentials: WindowedCounts<Key>,
}

impl Replacements {
    /// Creates empty counts, each of which lasts for `ttl`.
    pub(super) fn new(ttl: Duration) -> Self {
        let (by_credential, credentials) = (WindowedCounts::new(ttl), WindowedCounts::new(ttl));
        Self { by_credential, credentials }
    }

    /// Counts a replacement by a response to this credential.
    pub(super) fn add(&self, key: &Key, credential: Fingerprint) {
        if self.by_credential.add((key.clone(), credential)) == 1 {
            self.credentials.add(key.clone());
        }
    }

    /// Returns whether a response to this credential may not replace the entry again.
    pub(super) fn is_exhausted(&self, key: &Key, credential: Fingerprint) -> bool {
        self.of_credential(key, credential) >= MAX_OF_CREDENTIAL
            || self.credentials.count(key) >= MAX_CREDENTIALS
    }

    /// Returns the number of replacements, for diagnosis: those by responses to this credential, or one
    /// for each credential if these are more.
    pub(super) fn count(&self, key: &Key, credential: Fingerprint) -> u32 {
        self.of_credential(key, credential).max(self.credentials.count(key))
    }

    fn of_credential(&self, key: &Key, credential: Fingerprint) -> u32 {
        self.by_credential.count(&(key.clone(), credential))
    }
}
