//! Leases that other readers hold.
//!
//! A read of a job that another reader holds the lease of has a flight of its own, under the token that
//! the store has shown: as long as that token stands, as a lease or as the generation of the entry, the
//! job has not changed since the read began. If the holder reads for the same caller in another sidecar,
//! the read first waits for its entry, and takes that entry if it comes before the upstream's response.
//! A holder that reads for another caller is not waited for: its entry would not be for this one. In
//! both cases the response may let the caller into the audience of that entry.
//!
//! [`held_fill`](super::held_fill) waits and takes; [`fill`](super::fill) admits.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    entry::Entry,
    flight::JobVersion,
    shared_state::{CacheConfig, SharedState},
};
use crate::{
    semantics::identity::Place,
    store::{Epoch, Key, Seen},
};

/// Time that a reader waits for the entry of another one before it reads the upstream itself, and for
/// which it looks for that entry once it has a response.
pub(super) const ENTRY_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store. It doubles up to [`ENTRY_WAIT`]: news may be late or lost.
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
    pub(super) patience: Patience,
}

/// How the lease of another reader has ended.
pub(super) enum LeaseEnd {
    /// There is an entry of this job.
    Entry(Arc<Entry>, Box<Seen>),
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
        let mut news = self.news.listen(key);
        loop {
            // Before the store is read, so that no report of a change is missed.
            news.take();
            if self.store.trust(key).is_err() {
                return LeaseEnd::Unknown;
            }
            let seen = match self.store.read(key, &mut config.budget()).await {
                Ok(seen) if !seen.in_grace => seen,
                _ => return LeaseEnd::Unknown,
            };
            match Entry::decode_of(&seen, &config.identity(key, place)) {
                Some(Ok(entry)) => {
                    return LeaseEnd::Entry(Arc::new(entry), Box::new(seen));
                }
                Some(Err(_)) => return LeaseEnd::Unknown,
                None if !seen.is_leased => return LeaseEnd::Free(seen.epoch),
                None => {}
            }
            let _ = timeout(pause, news.changed()).await;
            pause = (pause * 2).min(ENTRY_WAIT);
        }
    }
}
