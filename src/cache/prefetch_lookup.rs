//! Cache lookups for prefetches, which read jobs before a client asks for them.
//!
//! A prefetch learns only whether there is something to read, and never gets an entry. It leaves an
//! existing entry alone, even if the entry is for other callers: adding one more caller would cost an
//! upstream read, and would take the entry from its audience if the upstream answers each client
//! differently. Without a confirmed lookup nothing is read, because the response could not be stored.

use tracing::debug;

use super::{
    decide::{self, Facts, NoEntry, Uncached, WithEntry},
    entry::Reject,
    fill::LeaderRead,
    flight::Flight,
    lookup::{CacheReader, bypass_reason},
    lookup_request::LookupRequest,
    lookup_result::{Found, LeaseStep, Lookup},
};
use crate::{
    semantics::policy::Bypass,
    store::{Budget, Seen, StoreError},
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
        // Hit-for-miss keeps clients from queueing, and prefetches do not queue.
        let (reject, seen) = match reader.read_entry(request, budget).await? {
            Found::Entry(known) => {
                let (facts, now_ms) = (request.facts(false, false), known.seen.now_ms);
                let entry = reader.entry_facts(request, &known.entry, now_ms);
                return Ok(match decide::with_entry(&facts, entry, known.seen.in_grace) {
                    WithEntry::Uncached(Uncached::Unconfirmed(why)) => Self::Wait(why),
                    _ => Self::Present,
                });
            }
            // Replacing the entry of another route or API would be no help to either.
            Found::NoEntry(Some(Reject::Identity), _) => return Ok(Self::Present),
            Found::NoEntry(reject, seen) => (reject, seen),
        };
        let facts = reader.facts_without_entry(request, false, reject, seen.in_grace);
        match decide::without_entry(&facts, reject, seen.in_grace) {
            NoEntry::Lease => Self::lease(reader, request, (&facts, &seen), budget).await,
            NoEntry::Uncached(Uncached::Unconfirmed(Bypass::Foreign)) => Ok(Self::Never),
            NoEntry::UnconfirmedWithLease(why) | NoEntry::Uncached(Uncached::Unconfirmed(why)) => {
                Ok(Self::Wait(why))
            }
            NoEntry::Uncached(Uncached::Pass(_)) => Ok(Self::Present),
        }
    }

    async fn lease(
        reader: &CacheReader,
        request: &LookupRequest,
        (facts, seen): (&Facts, &Seen),
        budget: &mut Budget,
    ) -> Result<Self, StoreError> {
        Ok(match reader.ask_for_lease(request, facts, seen, budget).await? {
            LeaseStep::Fill(lease) => match reader.lead(request, lease).await {
                Lookup::Lead(lead) => Self::Lead(lead),
                Lookup::Join(flight, _) => Self::Join(flight),
                Lookup::Pass(why) => Self::Wait(why),
                Lookup::Hit(_) => Self::Present,
            },
            LeaseStep::Join(flight) => Self::Join(flight),
            LeaseStep::Wait(_) => Self::Wait(Bypass::Leased),
            LeaseStep::Overtaken(_) => Self::Present,
            LeaseStep::Uncached(Uncached::Pass(why) | Uncached::Unconfirmed(why)) => {
                Self::Wait(why)
            }
        })
    }
}
