//! The receipt of an invalidation: what it found and removed.

use super::words::Ended;

/// The outcome of a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purged {
    /// The outcome for all keys together.
    pub ended: Ended,
    /// The receipt of each key, in the order of the keys; `None` if the store has not confirmed it.
    pub receipts: Vec<Option<KeyReceipt>>,
}

/// The contents of a key that an invalidation removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyReceipt {
    /// A value that was an entry, or could have been taken for one.
    pub entry: Option<RemovedEntry>,
    /// A reader held a lease to fill the key; the lease was voided.
    pub filling: bool,
}

/// An entry that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedEntry {
    /// Size of its body in bytes.
    pub size: usize,
    /// The token under which it was stored; `None` if the value is not ours.
    pub generation: Option<String>,
    /// Its age in ms; `None` if the value is not ours.
    pub age_ms: Option<i64>,
}

impl RemovedEntry {
    /// Builds it from the fields of meta; `times` are `stored_at_ms` and `age_ms`.
    pub(super) fn new(size: usize, generation: &str, times: [Option<i64>; 2], now_ms: i64) -> Self {
        let [stored_at_ms, age_ms] = times;
        // Saturates, because a third party may have written these fields.
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
        let age = |times| RemovedEntry::new(1, "", times, 1_000).age_ms;
        assert_eq!(age([Some(400), Some(7)]), Some(607));
        assert_eq!(age([Some(2_000), None]), Some(0));
        assert_eq!(age([Some(i64::MIN), Some(i64::MAX)]), Some(i64::MAX));
        assert_eq!(age([None, Some(7)]), None);
    }
}
