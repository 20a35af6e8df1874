//! Reads of a job whose lease another reader holds.
//!
//! Such a read has a flight of its own, under the token that the store has shown: as long as that token
//! stands, as a lease or as the generation of the entry, the job has not changed since the read began.
//! If the holder reads for the same caller in another sidecar, the read first waits for its entry, and
//! takes that entry if it comes before the upstream's response. A holder that reads for another caller
//! is not waited for: its entry would not be for this one. In both cases the response may let the
//! caller into the audience of that entry.

use std::{future, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    entry::Entry,
    fill::{FillTarget, KnownEntry, LeaderRead},
    flight::JobVersion,
    reader::CacheReader,
    shared_state::{CacheConfig, SharedState},
};
use crate::{
    semantics::{audience::Standing, identity::Place},
    store::{Epoch, Grant, Key, Seen},
};

/// Time that a reader waits for the entry of another one before it reads the upstream itself, and for
/// which it looks for that entry once it has a response.
pub(super) const ENTRY_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store. Doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Whether a read waits for the entry of the reader that holds the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    ForEntry,
}

/// A lease that another reader holds.
pub(super) struct HeldLease {
    pub(super) version: JobVersion,
    /// When the lease was seen, in ms since 1970 by the store's clock. The read began later.
    pub(super) seen_at_ms: i64,
    patience: Patience,
}

/// How the lease of another reader has ended.
pub(super) enum LeaseEnd {
    /// There is an entry of this job.
    Entry(Box<KnownEntry>),
    /// There is neither an entry nor a lease, in this epoch.
    Free(Epoch),
    /// There is another value, or the store does not tell.
    Unknown,
}

impl HeldLease {
    /// `seen` is what the store had for the key before it showed the lease.
    pub(super) fn new(version: JobVersion, seen: &Seen, patience: Patience) -> Self {
        Self { version, seen_at_ms: seen.now_ms, patience }
    }
}

impl SharedState {
    /// Waits until the lease of a job has ended.
    pub(super) async fn lease_end(
        &self,
        config: &CacheConfig,
        (key, place): (&Key, &Place),
    ) -> LeaseEnd {
        let mut pause = FIRST_PAUSE;
        loop {
            // Listens before the store is read, so that no report of a change is missed.
            let changed = self.near.as_ref().map(|near| near.changed(key));
            if self.store.trust(key).is_err() {
                return LeaseEnd::Unknown;
            }
            let seen = match self.store.read(key, &mut config.budget()).await {
                Ok(seen) if !seen.in_grace => seen,
                _ => return LeaseEnd::Unknown,
            };
            match Entry::decode_of(&seen, &config.identity(key, place)) {
                Some(Ok(entry)) => {
                    return LeaseEnd::Entry(Box::new(KnownEntry { entry: Arc::new(entry), seen }));
                }
                Some(Err(_)) => return LeaseEnd::Unknown,
                None if !seen.is_leased => return LeaseEnd::Free(seen.epoch),
                None => {}
            }
            let _ = match changed {
                Some(changed) => timeout(pause, changed).await,
                None => timeout(pause, future::pending()).await,
            };
            pause *= 2;
        }
    }
}

impl CacheReader {
    /// Waits for the entry of the reader that holds the lease, if this read waits for it. Returns the
    /// entry if it is the answer. If there is neither an entry nor a lease any more, takes the lease.
    pub async fn wait_for_holder(&self, lead: &mut LeaderRead) -> Option<Arc<Entry>> {
        let FillTarget::Held(held) = &lead.target else { return None };
        if held.patience == Patience::None {
            return None;
        }
        match timeout(ENTRY_WAIT, self.lease_end(lead)).await {
            Ok(LeaseEnd::Entry(known)) => self.entry_for(lead, &known),
            Ok(LeaseEnd::Free(epoch)) => {
                self.take_free_lease(lead, &epoch).await;
                None
            }
            Ok(LeaseEnd::Unknown) | Err(_) => None,
        }
    }

    /// Waits for the entry of the reader that holds the lease. Ends only if that entry is the answer.
    pub async fn entry_of_holder(&self, lead: &LeaderRead) -> Arc<Entry> {
        if let FillTarget::Held(_) = &lead.target
            && let LeaseEnd::Entry(known) = self.lease_end(lead).await
            && let Some(entry) = self.entry_for(lead, &known)
        {
            return entry;
        }
        future::pending().await
    }

    async fn lease_end(&self, LeaderRead { key, place, .. }: &LeaderRead) -> LeaseEnd {
        self.state.lease_end(&self.config, (key, place)).await
    }

    /// Returns the entry if it is for the caller of this read.
    fn entry_for(&self, lead: &LeaderRead, known: &KnownEntry) -> Option<Arc<Entry>> {
        let KnownEntry { entry, seen } = known;
        let standing =
            self.config.fingerprinter.standing(entry.audience(), lead.caller, seen.now_ms);
        (standing == Standing::Included).then(|| Arc::clone(entry))
    }

    async fn take_free_lease(&self, lead: &mut LeaderRead, epoch: &Epoch) {
        let reader = lead.coalesce_key.reader_hash();
        let budget = &mut self.config.budget();
        // A lease of another epoch is dropped, which hands it back.
        if let Ok(Grant::Lease(lease)) =
            self.state.store.lease(&lead.key, reader, None, budget).await
            && lease.epoch == *epoch
        {
            let version = JobVersion { token: lease.token.clone(), epoch: lease.epoch.clone() };
            lead.leader.refile(version, lead.coalesce_key);
            (lead.target, lead.why) = (FillTarget::Lease(lease), None);
        }
    }
}
