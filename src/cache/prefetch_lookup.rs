//! Cache lookups for prefetches, which read jobs before a client asks for them.
//!
//! A prefetch learns only whether there is something to read, and never gets an entry. It leaves an
//! existing entry alone, even if the entry is for other callers: adding one more caller would cost an
//! upstream read, and would take the entry from its audience if the upstream answers each client
//! differently. Without a confirmed lookup nothing is read, because the response could not be stored.

use tracing::debug;

use super::{
    decide::{Decision, decide},
    entry::Reject,
    fill::LeaderRead,
    flight::{Flight, SeenVersion},
    lookup::{CacheReader, bypass_reason},
    lookup_request::LookupRequest,
    lookup_result::Lookup,
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

impl PrefetchLookup {
    /// Decides whether to prefetch a job. Takes the same lease as a client's read, so that a response
    /// that a purge or a write has overtaken is not stored.
    pub async fn of(reader: &CacheReader, request: &LookupRequest, budget: &mut Budget) -> Self {
        Self::find(reader, request, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            Self::Wait(bypass_reason(&error))
        })
    }

    async fn find(
        reader: &CacheReader,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Self, StoreError> {
        reader.state.store.trust(&request.key)?;
        let (found, seen) = reader.read_entry(request, budget).await?;
        // Replacing the entry of another route or API would be no help to either.
        if let Some(Err(Reject::Identity)) = found {
            return Ok(Self::Present);
        }
        let is_foreign = matches!(found, Some(Err(Reject::Foreign)));
        // Hit-for-miss keeps clients from queueing, and prefetches do not queue.
        let facts = request.facts(
            false,
            is_foreign && reader.notes.yields_key(&request.key, &reader.state.metrics),
        );
        match decide(&facts, reader.sight(request, found.as_ref(), &seen)) {
            Decision::Lease => Self::lease(reader, request, &seen, budget).await,
            Decision::Unconfirmed(Bypass::Foreign) => Ok(Self::Never),
            Decision::Unconfirmed(why) | Decision::UnconfirmedWithLease(why) => Ok(Self::Wait(why)),
            _ => Ok(Self::Present),
        }
    }

    async fn lease(
        reader: &CacheReader,
        request: &LookupRequest,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Result<Self, StoreError> {
        let (key, identity) = (&request.key, request.identity);
        Ok(match reader.state.store.lease(key, identity, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => match reader.lead(request, lease).await {
                Lookup::Lead(lead) => Self::Lead(lead),
                Lookup::Join(flight, _) => Self::Join(flight),
                Lookup::Pass(why) => Self::Wait(why),
                Lookup::Hit(_) => Self::Present,
            },
            Grant::Stored(_) => Self::Present,
            Grant::Leased(token, epoch) => {
                let version = SeenVersion { token, epoch };
                let joined = reader.state.flights.join_confirmed(
                    &request.key,
                    &version,
                    request.coalesce_key,
                );
                joined.map_or(Self::Wait(Bypass::Leased), Self::Join)
            }
            Grant::Fenced => Self::Wait(Bypass::Fenced),
        })
    }
}
