//! Looks up a read: collects the facts, has [`decide`] decide, and acts on the decision.
//!
//! A lookup reads the store before it joins a flight: joining by job id alone could give a client a
//! response that was read before a write the client knows of. Entries are read in
//! [`reader`](super::reader).

use std::{future, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{
    decide::{self, Facts, LeaseHolder, LookupRequest, NoEntry, OtherLease, Uncached, WithEntry},
    entry::{Entry, Reject},
    fill::{FillTarget, KnownEntry, LeaderRead},
    flight::{Flight, FlightRole, JobVersion},
    reader::{CacheReader, Found},
    silent_changes::ObservedEntry,
};
use crate::{
    mutants::{self, Mutant},
    semantics::policy::Bypass,
    store::{Budget, Epoch, Grant, Key, Lease, Seen, StoreError, Token},
};

/// How long a reader waits for another sidecar's fill. The store budget does not cover this wait.
const OTHER_FILL_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store while waiting for another sidecar's fill. Doubles.
const FIRST_OTHER_FILL_PAUSE: Duration = Duration::from_millis(5);

/// How a read is answered.
pub enum Lookup {
    /// The entry is the answer.
    Hit(Arc<Entry>),
    /// The reader reads the upstream, for itself and all that join.
    Lead(Box<LeaderRead>),
    /// The reader shares another reader's upstream read. The reason is the one for `Cache-Status`, if
    /// there is one.
    Join(Flight, Option<Bypass>),
    /// The reader reads the upstream for itself only.
    Pass(Bypass),
}

impl Lookup {
    /// Returns the word for spans.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Lead(_) => "lead",
            Self::Join(..) => "join",
            Self::Pass(_) => "pass",
        }
    }

    /// Whether other callers of the job may have an entry that this caller did not get.
    pub(super) fn may_be_split(&self) -> bool {
        match self {
            Self::Lead(_) | Self::Join(..) => true,
            Self::Pass(why) => matches!(why, Bypass::Audience | Bypass::Leased),
            Self::Hit(_) => false,
        }
    }
}

/// How a read goes on that has asked for the lease.
enum LeaseStep {
    /// It may fill.
    Fill(Lease),
    /// It joins the flight of the reader that holds the lease.
    Join(Flight),
    /// It waits for the entry that another sidecar reads under this token.
    Wait(Token),
    /// The store has a value by now.
    Overtaken(Seen),
    /// It goes to the upstream without the lease.
    Uncached(Uncached),
}

impl CacheReader {
    /// Looks up a job that has no near hit.
    pub async fn lookup(&self, request: &LookupRequest, budget: &mut Budget) -> Lookup {
        match self.state.store.trust(&request.key) {
            // What the store shows then says whether it is still so.
            Ok(_) | Err(StoreError::Grace) => {}
            Err(error) => return self.answer_without_store(request, &error),
        }
        if mutants::is(Mutant::JoinBeforeLookup)
            && let Some(flight) = self.state.flights.any_confirmed(&request.key)
        {
            return Lookup::Join(flight, None);
        }
        let lookup = self.find_in_store(request, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            self.answer_without_store(request, &error)
        });
        if lookup.may_be_split() {
            self.state.notes.splitting_headers.note_read(&self.config.fingerprinter, request);
        }
        lookup
    }

    fn answer_without_store(&self, request: &LookupRequest, error: &StoreError) -> Lookup {
        let facts = request.facts(self.notes.is_hit_for_miss(request), false);
        self.answer_uncached(request, decide::unconfirmed(&facts, bypass_reason(error)))
    }

    async fn find_in_store(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let (reject, seen) = match self.read_entry(request, budget).await? {
            Found::Entry(known) => return Ok(self.answer_with_entry(request, known)),
            Found::NoEntry(reject, seen) => (reject, seen),
        };
        let is_hit_for_miss = self.notes.is_hit_for_miss(request);
        let facts = self.facts_without_entry(request, is_hit_for_miss, reject, seen.in_grace);
        match decide::without_entry(&facts, reject, seen.in_grace) {
            NoEntry::Lease => self.take_lease(request, &facts, &seen, budget).await,
            NoEntry::UnconfirmedWithLease(why) => {
                Ok(self.lead_next_with_lease(request, why, &seen, budget).await)
            }
            NoEntry::Uncached(uncached) => Ok(self.answer_uncached(request, uncached)),
        }
    }

    /// Takes the lease of a job that has no entry, and answers by what the store says to that.
    async fn take_lease(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        Ok(match self.ask_for_lease(request, facts, seen, budget).await? {
            LeaseStep::Fill(lease) => self.lead(request, lease).await,
            LeaseStep::Join(flight) => Lookup::Join(flight, None),
            LeaseStep::Wait(token) => {
                return self.wait_for_entry(request, facts, token, budget).await;
            }
            LeaseStep::Overtaken(seen) => {
                self.answer_overtaken(request, facts, self.decode(request, seen))
            }
            LeaseStep::Uncached(uncached) => self.answer_uncached(request, uncached),
        })
    }

    /// Asks for the lease of a job that has no entry, and decides how the read goes on.
    async fn ask_for_lease(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Result<LeaseStep, StoreError> {
        let (store, key) = (&self.state.store, &request.key);
        let grant = store.lease(key, request.identity, seen.stored.as_ref(), budget).await?;
        Ok(match grant {
            Grant::Lease(lease) => match decide::granted(facts, *lease.epoch() != seen.epoch) {
                None => LeaseStep::Fill(lease),
                Some(uncached) => {
                    store.release(lease).await;
                    LeaseStep::Uncached(uncached)
                }
            },
            Grant::Stored(seen) => LeaseStep::Overtaken(seen),
            Grant::Leased(token, epoch) => {
                let version = JobVersion { token, epoch };
                let holder = self.lease_holder(request, &version, &seen.epoch);
                match decide::leased(facts, holder) {
                    OtherLease::Join(flight) => LeaseStep::Join(flight),
                    OtherLease::Wait => LeaseStep::Wait(version.token),
                    OtherLease::Uncached(uncached) => LeaseStep::Uncached(uncached),
                }
            }
            Grant::Fenced => LeaseStep::Uncached(decide::unconfirmed(facts, Bypass::Fenced)),
        })
    }

    /// Returns what decides about following the reader that holds the lease of this version. `epoch` is
    /// that of the value that the store has shown.
    pub(super) fn lease_holder(
        &self,
        request: &LookupRequest,
        version: &JobVersion,
        epoch: &Epoch,
    ) -> LeaseHolder<Flight> {
        let (flights, notes) = (&self.state.flights, &self.state.notes);
        LeaseHolder {
            is_same_read: version.token.is_of(request.identity) && version.epoch == *epoch,
            flight: flights.join_confirmed(&request.key, version, request.coalesce_key),
            was_waited_for: notes.waited_leases.count(&version.token) > 0,
        }
    }

    /// Answers a read if there is an entry.
    fn answer_with_entry(&self, request: &LookupRequest, known: KnownEntry) -> Lookup {
        let KnownEntry { entry, seen } = &known;
        let (in_grace, now_ms) = (seen.in_grace, seen.now_ms);
        let entry_facts = self.entry_facts(request, entry, now_ms);
        // A hit needs no look-up of what could not be stored.
        let is_hit = entry_facts.is_hit() && !in_grace;
        let facts = request.facts(!is_hit && self.notes.is_hit_for_miss(request), false);
        match decide::with_entry(&facts, entry_facts, in_grace) {
            WithEntry::Hit => {
                let LookupRequest { key, caller, route, .. } = request;
                let route = self.config.identity(key, *route).route;
                let observed = ObservedEntry { key, caller: *caller, route, entry, now_ms };
                self.state.silent_changes.seen(&observed);
                Lookup::Hit(known.entry)
            }
            WithEntry::Revalidate(why) => self.revalidate(request, why, known),
            WithEntry::Uncached(uncached) => self.answer_uncached(request, uncached),
        }
    }

    /// Answers a read that another value overtook.
    fn answer_overtaken(&self, request: &LookupRequest, facts: &Facts, found: Found) -> Lookup {
        match found {
            Found::Entry(known) => self.answer_with_entry(request, known),
            Found::NoEntry(reject, seen) => {
                let reject = reject.unwrap_or(Reject::Foreign);
                self.answer_uncached(request, decide::overtaken(facts, reject, seen.in_grace))
            }
        }
    }

    fn answer_uncached(&self, request: &LookupRequest, uncached: Uncached) -> Lookup {
        match uncached {
            Uncached::Pass(why) => Lookup::Pass(why),
            Uncached::Unconfirmed(why) => self.lead_next(request, why),
        }
    }

    /// Reads the upstream for a caller that is no member of the audience, or that wants a newer
    /// response. If the upstream refuses a caller, only that caller sees the refusal.
    fn revalidate(
        &self,
        request: &LookupRequest,
        why: Option<Bypass>,
        known: KnownEntry,
    ) -> Lookup {
        let token = Token::named(known.entry.generation());
        let epoch = known.seen.epoch.clone();
        // A solo request does not queue. Others may join its flight by the version that it has seen.
        let role = if why.is_none() || request.solo {
            self.state.flights.join_or_lead(
                &request.key,
                JobVersion { token, epoch },
                request.coalesce_key,
            )
        } else {
            self.state.flights.join_or_lead_next(request.key.clone(), request.coalesce_key)
        };
        lead_or_join(request, role, why, || FillTarget::Entry(Box::new(known)))
    }

    async fn lead(&self, request: &LookupRequest, lease: Lease) -> Lookup {
        let version = JobVersion { token: lease.token().clone(), epoch: lease.epoch().clone() };
        let flights = &self.state.flights;
        let role = flights.join_or_lead(&request.key, version, request.coalesce_key);
        if let FlightRole::Full = role {
            self.state.store.release(lease).await;
            return Lookup::Pass(Bypass::Flights);
        }
        lead_or_join(request, role, None, || FillTarget::Lease(lease))
    }

    async fn wait_for_entry(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        token: Token,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let deadline = Instant::now() + OTHER_FILL_WAIT;
        let mut step = FIRST_OTHER_FILL_PAUSE;
        while Instant::now() < deadline {
            self.wait_for_change(&request.key, deadline.min(Instant::now() + step)).await;
            step *= 2;
            match self.read_entry(request, budget).await? {
                Found::NoEntry(None, _) => {}
                found => return Ok(self.answer_overtaken(request, facts, found)),
            }
        }
        self.state.notes.waited_leases.add(token);
        Ok(Lookup::Pass(Bypass::Leased))
    }

    /// Waits for a report of a change to the key, at most until `until`: the report may have come
    /// before this began to listen.
    async fn wait_for_change(&self, key: &Key, until: Instant) {
        let changed = async {
            match &self.state.near {
                Some(near) => near.changed(key).await,
                None => future::pending().await,
            }
        };
        let _ = timeout_at(until, changed).await;
    }

    /// Answers a read without a confirmed lookup: only by an upstream read that starts after now.
    fn lead_next(&self, request: &LookupRequest, why: Bypass) -> Lookup {
        let flights = &self.state.flights;
        let role = flights.join_or_lead_next(request.key.clone(), request.coalesce_key);
        lead_or_join(request, role, Some(why), || FillTarget::Nowhere)
    }

    /// Does the same, but the response is stored if the lease is granted.
    async fn lead_next_with_lease(
        &self,
        request: &LookupRequest,
        why: Bypass,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Lookup {
        let (key, identity) = (&request.key, request.identity);
        match self.lead_next(request, why) {
            Lookup::Lead(lead) => {
                match self.state.store.lease(key, identity, seen.stored.as_ref(), budget).await {
                    Ok(Grant::Lease(lease)) => Lookup::Lead(Box::new(lead.with_lease(lease))),
                    _ => Lookup::Lead(lead),
                }
            }
            lookup => lookup,
        }
    }

    /// Looks up a job for a prefetch, which reads it before a client asks for it. Returns `None` if
    /// there is an entry, for some audience: nothing to do. Takes the same lease as a client's read, so
    /// that a response that a purge or a write has overtaken is not stored.
    ///
    /// An existing entry is left alone, even if it is for other callers: adding one more caller would
    /// cost an upstream read, and would take the entry from its audience if the upstream answers each
    /// client differently. Without a confirmed lookup nothing is read, because the response could not be
    /// stored.
    pub async fn lookup_for_prefetch(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Option<Lookup> {
        self.find_for_prefetch(request, budget).await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            Some(Lookup::Pass(bypass_reason(&error)))
        })
    }

    async fn find_for_prefetch(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Option<Lookup>, StoreError> {
        self.state.store.trust(&request.key)?;
        // Hit-for-miss keeps clients from queueing, and prefetches do not queue.
        let (reject, seen) = match self.read_entry(request, budget).await? {
            Found::Entry(KnownEntry { entry, seen }) => {
                let facts = self.entry_facts(request, &entry, seen.now_ms);
                let decision =
                    decide::with_entry(&request.facts(false, false), facts, seen.in_grace);
                return Ok(match decision {
                    WithEntry::Uncached(Uncached::Unconfirmed(why)) => Some(Lookup::Pass(why)),
                    _ => None,
                });
            }
            // Replacing the entry of another route or API would be no help to either.
            Found::NoEntry(Some(Reject::Identity), _) => return Ok(None),
            Found::NoEntry(reject, seen) => (reject, seen),
        };
        let facts = self.facts_without_entry(request, false, reject, seen.in_grace);
        match decide::without_entry(&facts, reject, seen.in_grace) {
            NoEntry::Lease => {}
            NoEntry::UnconfirmedWithLease(why) | NoEntry::Uncached(Uncached::Unconfirmed(why)) => {
                return Ok(Some(Lookup::Pass(why)));
            }
            NoEntry::Uncached(Uncached::Pass(_)) => return Ok(None),
        }
        Ok(match self.ask_for_lease(request, &facts, &seen, budget).await? {
            LeaseStep::Fill(lease) => Some(self.lead(request, lease).await),
            LeaseStep::Join(flight) => Some(Lookup::Join(flight, None)),
            LeaseStep::Wait(_) => Some(Lookup::Pass(Bypass::Leased)),
            LeaseStep::Overtaken(_) => None,
            LeaseStep::Uncached(Uncached::Pass(why) | Uncached::Unconfirmed(why)) => {
                Some(Lookup::Pass(why))
            }
        })
    }
}

/// Returns the lookup of a reader with this role in a flight.
fn lead_or_join(
    request: &LookupRequest,
    role: FlightRole,
    why: Option<Bypass>,
    target: impl FnOnce() -> FillTarget,
) -> Lookup {
    match role {
        FlightRole::Lead(leader) => {
            Lookup::Lead(Box::new(LeaderRead::new(request, leader, target(), why)))
        }
        FlightRole::Join(flight) => Lookup::Join(flight, why),
        FlightRole::Full => Lookup::Pass(Bypass::Flights),
    }
}

pub(super) fn bypass_reason(error: &StoreError) -> Bypass {
    match error {
        StoreError::Pending => Bypass::Pending,
        StoreError::Grace => Bypass::Grace,
        StoreError::Timeout | StoreError::Spent => Bypass::StoreTimeout,
        StoreError::Refused(_) | StoreError::Redirected(_) | StoreError::Journal { .. } => {
            Bypass::StoreError
        }
        StoreError::Down
        | StoreError::Unreachable(_)
        | StoreError::Lost(_)
        | StoreError::Unusable(_)
        | StoreError::Tls(_) => Bypass::StoreDown,
    }
}
