//! What other processes with the same journal have not confirmed.
//!
//! While such a process lives, this one only bypasses its jobs. When it has ended, they are added here
//! and repeated as if they had always been ours.

use std::{io, path::PathBuf};

use tracing::{info, warn};

use super::{Added, PendingSet, inner::Inner};
use crate::store::{
    journal::{
        Durability,
        records::{LiveRecords, Record},
        siblings::{EndedJournal, SiblingState},
    },
    slots::{SlotSet, slot_of_key},
};

/// The journal of this process, for operators.
#[derive(Clone, Debug)]
pub struct JournalStatus {
    /// The file that this process writes.
    pub path: PathBuf,
    /// Number of other processes with unconfirmed invalidations.
    pub siblings: usize,
    /// Number of their invalidations, where all of some slots count as one.
    pub sibling_invalidations: usize,
}

impl PendingSet {
    /// Returns the state of the journal, if there is one.
    pub(in crate::store) fn journal_status(&self) -> Option<JournalStatus> {
        let path = self.journal.as_ref()?.path().to_owned();
        let inner = self.lock();
        let count = |live: &LiveRecords| live.keys.len() + usize::from(!live.slots.is_empty());
        let sibling_invalidations = inner.siblings.values().map(count).sum();
        Some(JournalStatus { path, siblings: inner.siblings.len(), sibling_invalidations })
    }

    /// Bypasses what the siblings have not confirmed by a scan of them, whether they live or not.
    pub(in crate::store) fn bypass_siblings(&self, scan: Vec<(usize, SiblingState)>) {
        self.update(|inner| {
            // This scan has found them wherever they are now.
            inner.leaving.clear();
            for (number, state) in scan {
                match state {
                    SiblingState::Live(live) | SiblingState::Ended(live, _) if !live.is_empty() => {
                        inner.set_sibling(number, Some(live));
                    }
                    SiblingState::Unchanged => {}
                    _ => inner.set_sibling(number, None),
                }
            }
        });
    }

    /// Takes over what a process has left that has ended. Its file may be emptied once this returns
    /// true: the records are on the disk here. Until then they are in this process only.
    pub(in crate::store) async fn adopt(&self, number: usize, live: LiveRecords) -> bool {
        if live.is_empty() {
            self.update(|inner| inner.set_sibling(number, None));
            return true;
        }
        let queued = self.update(|inner| {
            // Under one lock, so that no reader finds the keys neither there nor here.
            inner.set_sibling(number, None);
            let records = self.insert_all(inner, live);
            self.write_journal(inner, records, Durability::Awaited)
        });
        self.synced(queued).await
    }

    fn insert_all(&self, inner: &mut Inner, live: LiveRecords) -> Vec<Record> {
        let mut slots = SlotSet::NONE;
        let mut records = Vec::with_capacity(live.keys.len() + 1);
        for (key, (write, linger)) in live.keys {
            if self.insert(inner, &key, &write, linger) == Added::Overflow {
                slots.insert(slot_of_key(&key));
            }
            records.push(Record::added(key.main(), write.as_str(), linger));
        }
        if !live.slots.is_empty() {
            inner.insert_slots(&live.slots);
            slots.insert_all(&live.slots);
        }
        if !slots.is_empty() {
            records.push(Record::slots_added(&slots));
        }
        records
    }

    /// Writes everything that is pending to the journal again. Returns whether it is on the disk.
    pub(in crate::store) async fn persist(&self) -> bool {
        let queued = self.update(|inner| {
            let journal = self.journal.as_ref()?;
            Some(journal.rewrite(inner.records(), Durability::Awaited))
        });
        self.synced(queued).await
    }
}

/// Empties a journal that was taken over.
pub(in crate::store) fn empty(ended: EndedJournal) {
    let path = ended.path.clone();
    let is_ours = ended.is_ours();
    match ended.empty() {
        Ok(()) if !is_ours => {}
        Ok(()) => {
            info!(path = %path.display(), "took over the journal of a process that has ended");
        }
        Err(error) => warn_unemptied(&path, &error),
    }
}

fn warn_unemptied(path: &std::path::Path, error: &io::Error) {
    warn!(
        %error,
        path = %path.display(),
        "cannot empty the journal of a process that has ended; its jobs are invalidated again and again"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::words::Key;

    #[test]
    fn what_leaves_a_sibling_is_bypassed_until_the_next_scan() {
        let pending = PendingSet::new(10);
        let key = Key::new("job_status:", "a");
        let records = vec![Record::added(key.main(), "w", Duration::ZERO)];
        let live = || SiblingState::Live(LiveRecords::replay(records.clone()));
        pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, live())]);
        // The process of the first has adopted it after its own file was read.
        pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
        assert!(pending.contains(&key));
        pending.bypass_siblings(vec![(0, live()), (1, SiblingState::Empty)]);
        assert!(pending.contains(&key));
        pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
        pending.bypass_siblings(vec![(0, SiblingState::Empty), (1, SiblingState::Empty)]);
        assert!(!pending.contains(&key) && pending.is_empty());
    }
}
