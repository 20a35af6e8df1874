//! What an invalidation has found.

use super::Ended;

/// What a purge came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// For all keys taken together.
    pub ended: Ended,
    /// What there was under each key, in their order; none where the store has not confirmed it.
    pub was: Vec<Option<Was>>,
}

/// What there was under a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Was {
    /// A value that was, or might have been taken for, an entry.
    pub entry: Option<WasEntry>,
    /// Somebody was reading the upstream to fill it, which was voided.
    pub filling: bool,
}

/// An entry that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasEntry {
    /// Bytes of its body.
    pub size: usize,
    /// The token under which it was stored; none for a value that is not ours.
    pub generation: Option<String>,
    /// How old it was, in ms; none for a value that is not ours.
    pub age_ms: Option<i64>,
}

impl WasEntry {
    /// By what meta tells of it.
    pub(super) fn new(size: usize, generation: &str, times: [Option<i64>; 2], now_ms: i64) -> Self {
        let [stored_at_ms, age_ms] = times;
        let age = |stored_at_ms: i64| age_ms.unwrap_or(0) + (now_ms - stored_at_ms).max(0);
        Self {
            size,
            generation: (!generation.is_empty()).then(|| generation.to_owned()),
            age_ms: stored_at_ms.map(age),
        }
    }
}
