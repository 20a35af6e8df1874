//! Cache lookups for prefetches, which read jobs before a client asks for them.
//!
//! A prefetch learns only whether there is something to read, and never gets an entry. It leaves an
//! existing entry alone, even if the entry is for other callers: adding one more caller would cost an
//! upstream read, and would take the entry from its audience if the upstream answers each client
//! differently. Without a confirmed lookup nothing is read, because the response could not be stored.

use tracing::debug;

use super::{
    Cache, Lookup, LookupRequest,
    decide::{Decision, decide},
    entry::Reject,
    fill::LeaderRead,
    flight::{Flight, SeenVersion},
    lookup::bypass_reason,
};
use crate::{
    semantics::policy::Bypass,
    store::{Budget, Grant, Seen, StoreError},
};

/// How a prefetch goes on.
#[derive(Debug)]
pub enum PrefetchLookup {
    /// There is an entry, for some audience: nothing to do.
    Present,
    /// Read the upstream, for all readers that join.
    Lead(Box<LeaderRead>),
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
    pub async fn lookup_for_prefetch(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> PrefetchLookup {
        self.find_for_prefetch(request, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            PrefetchLookup::Wait(bypass_reason(&error))
        })
    }

    async fn find_for_prefetch(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<PrefetchLookup, StoreError> {
        self.store.trust(&request.key)?;
        let (found, seen) = self.read_entry(request, budget).await?;
        // Replacing the entry of another route or API would be no help to either.
        if let Some(Err(Reject::Identity)) = found {
            return Ok(PrefetchLookup::Present);
        }
        let is_foreign = matches!(found, Some(Err(Reject::Foreign)));
        // Hit-for-miss keeps clients from queueing, and prefetches do not queue.
        let facts = request.facts(false, is_foreign && self.yields_key(&request.key));
        match decide(&facts, self.sight(request, found.as_ref(), &seen)) {
            Decision::Lease => self.lease_for_prefetch(request, &seen, budget).await,
            Decision::Unconfirmed(Bypass::Foreign) => Ok(PrefetchLookup::Never),
            Decision::Unconfirmed(why) | Decision::UnconfirmedWithLease(why) => {
                Ok(PrefetchLookup::Wait(why))
            }
            _ => Ok(PrefetchLookup::Present),
        }
    }

    async fn lease_for_prefetch(
        &self,
        request: &LookupRequest,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Result<PrefetchLookup, StoreError> {
        let (key, identity) = (&request.key, request.identity);
        Ok(match self.store.lease(key, identity, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => match self.lead(request, lease).await {
                Lookup::Lead(lead) => PrefetchLookup::Lead(lead),
                Lookup::Join(flight, _) => PrefetchLookup::Join(flight),
                Lookup::Pass(why) => PrefetchLookup::Wait(why),
                Lookup::Hit(_) => PrefetchLookup::Present,
            },
            Grant::Stored(_) => PrefetchLookup::Present,
            Grant::Leased(token, epoch) => {
                let version = SeenVersion { token, epoch };
                let joined =
                    self.flights.join_confirmed(&request.key, &version, request.coalesce_key);
                joined.map_or(PrefetchLookup::Wait(Bypass::Leased), PrefetchLookup::Join)
            }
            Grant::Fenced => PrefetchLookup::Wait(Bypass::Fenced),
        })
    }
}
