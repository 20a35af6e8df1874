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
        // Somebody else may have written what meta tells.
        let age = |stored_at_ms: i64| {
            age_ms.unwrap_or(0).saturating_add(now_ms.saturating_sub(stored_at_ms).max(0))
        };
        Self {
            size,
            generation: (!generation.is_empty()).then(|| generation.to_owned()),
            age_ms: stored_at_ms.map(age),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_somebody_else_wrote_are_told_as_far_as_they_go() {
        let age = |times| WasEntry::new(1, "", times, 1_000).age_ms;
        assert_eq!(age([Some(400), Some(7)]), Some(607));
        assert_eq!(age([Some(2_000), None]), Some(0));
        assert_eq!(age([Some(i64::MIN), Some(i64::MAX)]), Some(i64::MAX));
        assert_eq!(age([None, Some(7)]), None);
    }
}
