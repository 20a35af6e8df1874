//! Cache lookups for prefetches, which read jobs before a client asks for them.
//!
//! A prefetch learns only whether there is something to read, and never gets an entry. It leaves an
//! existing entry alone, even if the entry is for other callers: adding one more caller would cost an
//! upstream read, and would take the entry from its audience if the upstream answers each client
//! differently. Without a confirmed lookup nothing is read, because the response could not be stored.

use tracing::debug;

use super::{
    Ask, Cache, Lookup,
    fill::Lead,
    flight::{Flight, Shown},
    lookup::reason,
    policy::Bypass,
};
use crate::store::{Budget, Grant, StoreError};

/// How a prefetch goes on.
#[derive(Debug)]
pub enum Ahead {
    /// There is an entry, for some audience: nothing to do.
    Present,
    /// Read the upstream, for all readers that join.
    Lead(Box<Lead>),
    /// Another reader in this process is reading the job now.
    Join(Flight),
    /// Try again later: the reason is temporary.
    Wait(Bypass),
    /// Give up: another writer keeps storing its own values under the key.
    Never,
}

impl Cache {
    /// Decides whether to prefetch a job. Takes the same lease as a client's read, so that a response
    /// that a purge or a write has overtaken is not stored.
    pub async fn look_ahead(&self, request: &Ask, budget: &mut Budget) -> Ahead {
        self.find_ahead(request, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            Ahead::Wait(reason(&error))
        })
    }

    async fn find_ahead(&self, request: &Ask, budget: &mut Budget) -> Result<Ahead, StoreError> {
        self.store.trust(&request.key)?;
        let (found, seen) = self.look(&request.key, budget).await?;
        match found {
            Some(Ok(_)) => return Ok(Ahead::Present),
            Some(Err(reject)) if self.leaves_alone(&request.key, reject) => {
                return Ok(Ahead::Never);
            }
            _ => {}
        }
        // Hit-for-miss is not checked: it keeps clients from queueing, and prefetches do not queue.
        Ok(match self.store.lease(&request.key, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => match self.lead(request, lease).await {
                Lookup::Lead(lead) => Ahead::Lead(lead),
                Lookup::Join(flight, _) => Ahead::Join(flight),
                Lookup::Pass(why) => Ahead::Wait(why),
                Lookup::Hit(_) => Ahead::Present,
            },
            Grant::Stored(_) => Ahead::Present,
            Grant::Leased(token, epoch) => {
                let joined =
                    self.flights.join(&request.key, &Shown { token, epoch }, request.circle);
                joined.map_or(Ahead::Wait(Bypass::Leased), Ahead::Join)
            }
            Grant::Fenced => Ahead::Wait(Bypass::Fenced),
        })
    }
}
