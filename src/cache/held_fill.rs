//! Reads the upstream while another reader holds the [lease](super::held_lease) of the job.

use std::{future, sync::Arc};

use tokio::time::timeout;

use super::{
    entry::Entry,
    fill::{FillTarget, Filler, LeaderRead},
    flight::JobVersion,
    held_lease::{ENTRY_WAIT, LeaseEnd, Patience},
};
use crate::{
    semantics::audience::Standing,
    store::{Epoch, Grant, Seen},
};

impl Filler {
    /// Waits for the entry of the reader that holds the lease, if this read waits for it. Returns the
    /// entry if it is the answer. If there is neither an entry nor a lease any more, takes the lease.
    pub async fn wait_for_holder(&self, lead: &mut LeaderRead) -> Option<Arc<Entry>> {
        let FillTarget::Held(held) = &lead.target else { return None };
        if held.patience == Patience::None {
            return None;
        }
        match timeout(ENTRY_WAIT, self.lease_end(lead)).await {
            Ok(LeaseEnd::Entry(entry, seen)) => self.entry_for(lead, entry, &seen),
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
            && let LeaseEnd::Entry(entry, seen) = self.lease_end(lead).await
            && let Some(entry) = self.entry_for(lead, entry, &seen)
        {
            return entry;
        }
        future::pending().await
    }

    async fn lease_end(&self, LeaderRead { key, place, .. }: &LeaderRead) -> LeaseEnd {
        self.state.lease_end(&self.config, (key, place)).await
    }

    /// Returns the entry if it is for the caller of this read.
    fn entry_for(&self, lead: &LeaderRead, entry: Arc<Entry>, seen: &Seen) -> Option<Arc<Entry>> {
        let standing =
            self.config.fingerprinter.standing(entry.audience(), lead.caller, seen.now_ms);
        (standing == Standing::Included).then_some(entry)
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
