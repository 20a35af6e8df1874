//! A write in flight, and the receipts of its end: what each invalidation found and removed.

use std::{collections::HashSet, time::Duration};

use super::{Ended, Key, Token, errors::Result};

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

/// Whether the fence of a write stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// Nothing was sent: the write needs no fence, or the store was down.
    NotSent,
    /// It was sent and not confirmed for every key, so it may still arrive and leave a fence.
    Unconfirmed,
    /// It stands.
    Confirmed,
}

/// One step of a write on one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyOp<'w> {
    pub(super) step: WriteStep,
    pub(super) key: &'w Key,
    pub(super) write: &'w Token,
    /// How long the fence stands from now on; an end without that time lifts it.
    pub(super) fence: Duration,
}

/// The steps of a write. Both set the fence, and delete the entry and the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteStep {
    /// Before the write is forwarded.
    Begin,
    /// Once its outcome is known. Counts as an invalidation.
    End,
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

    /// Returns the keys to renew the fence of while the write runs. One slow upload must not keep
    /// many jobs uncached, so those that the target names elsewhere are fenced once. They are
    /// invalidated at the end all the same.
    pub(super) fn renewed(&self) -> &[Key] {
        self.keys.get(self.elsewhere..).unwrap_or_default()
    }

    /// Splits the write into the keys that are named elsewhere and the others, to end each part by
    /// itself; `None` if there are no such keys.
    pub fn split_elsewhere(&self) -> Option<(Self, Self)> {
        let (elsewhere, rest) = self.keys.split_at(self.elsewhere);
        let part =
            |keys: &[Key]| Self { keys: keys.to_vec(), elsewhere: 0, id: self.id.clone(), ..*self };
        (!elsewhere.is_empty()).then(|| (part(elsewhere), part(rest)))
    }

    /// Adds keys for its end that the write turns out to have changed; they were not fenced.
    pub fn widen(&mut self, keys: impl ExactSizeIterator<Item = Key>) {
        if keys.len() == 0 {
            return;
        }
        let mut known: HashSet<Key> = self.keys.iter().cloned().collect();
        self.keys.extend(keys.filter(|key| known.insert(key.clone())));
    }
}

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

/// Combines the ends of several keys: the outcome for all, which is the last failure if there was
/// one, and the receipt of each.
pub(super) fn combined(
    results: Vec<Result<KeyReceipt>>,
) -> (Result<Ended>, Vec<Option<KeyReceipt>>) {
    let mut failed = None;
    let receipts =
        results.into_iter().map(|result| result.map_err(|error| failed = Some(error)).ok());
    let receipts: Vec<_> = receipts.collect();
    let entries = receipts.iter().flatten().filter(|receipt| receipt.entry.is_some()).count();
    (failed.map_or(Ok(Ended::Confirmed { entries }), Err), receipts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_of_jobs_named_elsewhere_are_not_renewed() {
        let keys: Vec<Key> = ["8", "9", "7"].map(|id| Key::new("job_status:", id)).into();
        let (id, begun) = (Token::named("w"), Begun::Confirmed);
        let mut write = Write { keys, elsewhere: 0, id, fence: Duration::ZERO, begun };
        assert_eq!(write.renewed().len(), 3);
        write.mark_elsewhere(2);
        assert_eq!(write.renewed(), [Key::new("job_status:", "7")]);
        assert_eq!(write.keys().len(), 3);
    }

    #[test]
    fn times_that_somebody_else_wrote_are_told_as_far_as_they_go() {
        let age = |times| RemovedEntry::new(1, "", times, 1_000).age_ms;
        assert_eq!(age([Some(400), Some(7)]), Some(607));
        assert_eq!(age([Some(2_000), None]), Some(0));
        assert_eq!(age([Some(i64::MIN), Some(i64::MAX)]), Some(i64::MAX));
        assert_eq!(age([None, Some(7)]), None);
    }
}
