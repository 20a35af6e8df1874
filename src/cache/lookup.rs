//! Looks up a read of a client or a prefetch: collects the facts, has [`decide`] decide, and acts on
//! the decision.
//!
//! A lookup reads the store before it joins a flight: joining by job id alone could give a client a
//! response that was read before a write the client knows of. A prefetch differs in that it leaves
//! every entry alone and never queues. Entries are read in [`reader`](super::reader).

use std::sync::Arc;

use tokio::time::timeout;
use tracing::debug;

use super::{
    decide::{self, Facts, LeaseHolder, LookupRequest, NoEntry, OtherLease, Uncached, WithEntry},
    entry::{ChangeId, Entry, Reject},
    fill::{FillTarget, KnownEntry, LeaderRead},
    flight::{Flight, FlightRole, JobVersion},
    held_lease::{HeldLease, Patience},
    reader::{CacheReader, Found},
    silent_changes::ObservedEntry,
};
use crate::{
    mutants::{self, Mutant},
    semantics::{labels::labels, policy::Bypass},
    store::{Budget, Epoch, Grant, Lease, Seen, StoreError, StoreErrorKind, Token},
};

labels! {
    /// How a read is answered.
    pub enum Lookup {
        /// The entry is the answer.
        Hit(Arc<Entry>) = "hit",
        /// The reader reads the upstream, for itself and all that join.
        Lead(Box<LeaderRead>) = "lead",
        /// The reader shares another reader's upstream read. The reason is the one for
        /// `Cache-Status`, if there is one.
        Join(Flight, Option<Bypass>) = "join",
        /// The reader reads the upstream for itself only.
        Pass(Bypass) = "pass",
    }
}

impl Lookup {
    /// Returns why the read goes to the upstream, if there is more to say than that there is no entry.
    pub fn bypass(&self) -> Option<Bypass> {
        match self {
            Self::Hit(_) => None,
            Self::Lead(lead) => lead.why,
            Self::Join(_, why) => *why,
            Self::Pass(why) => Some(*why),
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
    /// The read may fill.
    Fill(Lease),
    /// Another reader holds the lease, with this token.
    Leased(OtherLease<Flight>, JobVersion),
    /// The store has a value by now.
    Overtaken(Seen),
    /// The read goes to the upstream without the lease.
    Uncached(Uncached),
}

impl CacheReader {
    /// Looks up a job that has no near hit.
    pub async fn lookup(&self, request: &LookupRequest, budget: &mut Budget) -> Lookup {
        self.lookup_change(request, budget, &mut None).await
    }

    /// Looks up a job like [`CacheReader::lookup`]. Notes the change since which the job is read, if the
    /// store has shown it.
    pub async fn lookup_change(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
        change: &mut Option<ChangeId>,
    ) -> Lookup {
        match self.state.store.trust(&request.key) {
            // During the grace the store is read all the same: its answer shows whether the grace
            // lasts.
            Ok(_) | Err(StoreError::Grace) => {}
            Err(error) => return self.answer_without_store(request, &error),
        }
        if self.state.store.is_left_alone(&request.key) {
            return self.answer_without_store(request, &StoreError::Spent);
        }
        if mutants::is(Mutant::JoinBeforeLookup)
            && let Some(flight) = self.state.flights.any_confirmed(&request.key)
        {
            return Lookup::Join(flight, None);
        }
        let mut store_lookup = StoreLookup { reader: self, request, budget, change: None };
        let lookup = store_lookup.find().await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            self.answer_without_store(request, &error)
        });
        *change = store_lookup.change;
        if lookup.may_be_split() {
            self.state.notes.splitting_headers.note_read(&self.config.fingerprinter, request);
        }
        lookup
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
        let lookup = StoreLookup { reader: self, request, budget, change: None };
        lookup.find_for_prefetch().await.unwrap_or_else(|error| {
            debug!(%error, "lookup failed");
            Some(Lookup::Pass(bypass_reason(&error)))
        })
    }

    fn answer_without_store(&self, request: &LookupRequest, error: &StoreError) -> Lookup {
        let facts = request.facts(self.notes.is_hit_for_miss(request), false);
        self.answer_uncached(request, decide::unconfirmed(&facts, bypass_reason(error)))
    }

    /// Collects the facts about the reader that holds the lease of this version. `epoch` is that of
    /// the value that the store has shown.
    pub(super) fn lease_holder(
        &self,
        request: &LookupRequest,
        version: &JobVersion,
        epoch: &Epoch,
    ) -> LeaseHolder<Flight> {
        let LookupRequest { key, coalesce_key, .. } = request;
        let flight = self.state.flights.confirmed(key, version, *coalesce_key);
        LeaseHolder {
            is_of_epoch: version.epoch.server() == epoch.server(),
            is_same_reader: version.token.is_of(coalesce_key.reader_hash()),
            is_late: flight.as_ref().is_some_and(Flight::is_late),
            flight,
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
                let LookupRequest { key, caller, place, .. } = request;
                let route = self.config.identity(key, place).route;
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
        let LookupRequest { key, coalesce_key, .. } = request;
        let token = Token::named(known.entry.generation());
        let version = JobVersion { token, epoch: known.seen.epoch.clone() };
        // A solo request does not queue. Others may join its flight by the version that it has seen.
        let role = if why.is_none() || request.solo {
            self.state.flights.join_or_lead(key, version, *coalesce_key)
        } else {
            self.state.flights.join_or_lead_next(key.clone(), *coalesce_key)
        };
        lead_or_join(request, role, why, || FillTarget::Entry(Box::new(known)))
    }

    /// Hands a lease back, and waits for that no longer than the budget lasts.
    async fn hand_back(&self, lease: Lease, budget: &Budget) {
        let _ = timeout(budget.left(), self.state.store.release(lease)).await;
    }

    async fn lead(&self, request: &LookupRequest, lease: Lease, budget: &Budget) -> Lookup {
        let version = JobVersion { token: lease.token.clone(), epoch: lease.epoch.clone() };
        let flights = &self.state.flights;
        let role = flights.join_or_lead(&request.key, version, request.coalesce_key);
        if let FlightRole::Full = role {
            self.hand_back(lease, budget).await;
            return Lookup::Pass(Bypass::Flights);
        }
        lead_or_join(request, role, None, || FillTarget::Lease(lease))
    }

    /// Answers a read while another reader holds the lease: by an upstream read under the version that
    /// the store has just shown.
    fn lead_under_held(&self, request: &LookupRequest, held: HeldLease) -> Lookup {
        let LookupRequest { key, coalesce_key, .. } = request;
        let role = self.state.flights.join_or_lead(key, held.version.clone(), *coalesce_key);
        lead_or_join(request, role, Some(Bypass::Leased), || FillTarget::Held(Box::new(held)))
    }

    /// Answers a read without a confirmed lookup: only by an upstream read that starts after now.
    pub fn lead_next(&self, request: &LookupRequest, why: Bypass) -> Lookup {
        let flights = &self.state.flights;
        let role = flights.join_or_lead_next(request.key.clone(), request.coalesce_key);
        lead_or_join(request, role, Some(why), || FillTarget::Nowhere)
    }
}

/// A lookup in the store.
struct StoreLookup<'r> {
    reader: &'r CacheReader,
    request: &'r LookupRequest,
    budget: &'r mut Budget,
    /// The change since which the job is read, if the store has shown it.
    change: Option<ChangeId>,
}

impl StoreLookup<'_> {
    async fn find(&mut self) -> Result<Lookup, StoreError> {
        let Self { reader, request, .. } = *self;
        let (reject, seen) = match reader.read_entry(request, self.budget).await? {
            Found::Entry(known) => {
                self.change = Some(known.entry.change());
                return Ok(reader.answer_with_entry(request, known));
            }
            Found::NoEntry(reject, seen) => (reject, seen),
        };
        let is_hit_for_miss = reader.notes.is_hit_for_miss(request);
        let is_of_other = reader.is_of_other_program(request, reject, &seen, self.budget).await;
        let facts = reader.facts_without_entry(request, is_hit_for_miss, is_of_other);
        match decide::without_entry(&facts, reject, seen.in_grace) {
            NoEntry::Lease => self.take_lease(&facts, &seen).await,
            NoEntry::UnconfirmedWithLease(why) => Ok(self.lead_next_with_lease(why, &seen).await),
            NoEntry::Uncached(uncached) => Ok(reader.answer_uncached(request, uncached)),
        }
    }

    async fn find_for_prefetch(mut self) -> Result<Option<Lookup>, StoreError> {
        let Self { reader, request, .. } = self;
        reader.state.store.trust(&request.key)?;
        if reader.state.store.is_left_alone(&request.key) {
            return Err(StoreError::Spent);
        }
        // Hit-for-miss keeps clients from queueing, and prefetches do not queue.
        let (reject, seen) = match reader.read_entry(request, self.budget).await? {
            Found::Entry(KnownEntry { entry, seen }) => {
                let entry = reader.entry_facts(request, &entry, seen.now_ms);
                let facts = request.facts(false, false);
                return Ok(match decide::with_entry(&facts, entry, seen.in_grace) {
                    WithEntry::Uncached(Uncached::Unconfirmed(why)) => Some(Lookup::Pass(why)),
                    _ => None,
                });
            }
            // Replacing the entry of another route or API would be no help to either.
            Found::NoEntry(Some(Reject::Identity), _) => return Ok(None),
            Found::NoEntry(reject, seen) => (reject, seen),
        };
        let is_of_other = reader.is_of_other_program(request, reject, &seen, self.budget).await;
        let facts = reader.facts_without_entry(request, false, is_of_other);
        match decide::without_entry(&facts, reject, seen.in_grace) {
            NoEntry::Lease => {}
            NoEntry::UnconfirmedWithLease(why) | NoEntry::Uncached(Uncached::Unconfirmed(why)) => {
                return Ok(Some(Lookup::Pass(why)));
            }
            NoEntry::Uncached(Uncached::Pass(_)) => return Ok(None),
        }
        Ok(match self.ask_for_lease(&facts, &seen).await? {
            LeaseStep::Fill(lease) => Some(reader.lead(request, lease, self.budget).await),
            LeaseStep::Leased(OtherLease::Join(flight), _) => Some(Lookup::Join(flight, None)),
            LeaseStep::Leased(OtherLease::Lead | OtherLease::Wait, _) => {
                Some(Lookup::Pass(Bypass::Leased))
            }
            LeaseStep::Overtaken(_) => None,
            LeaseStep::Uncached(uncached)
            | LeaseStep::Leased(OtherLease::Uncached(uncached), _) => {
                let (Uncached::Pass(why) | Uncached::Unconfirmed(why)) = uncached;
                Some(Lookup::Pass(why))
            }
        })
    }

    /// Takes the lease of a job that has no entry, and answers by what the store says to that.
    async fn take_lease(&mut self, facts: &Facts, seen: &Seen) -> Result<Lookup, StoreError> {
        let Self { reader, request, .. } = *self;
        Ok(match self.ask_for_lease(facts, seen).await? {
            LeaseStep::Fill(lease) => reader.lead(request, lease, self.budget).await,
            LeaseStep::Leased(OtherLease::Join(flight), _) => Lookup::Join(flight, None),
            LeaseStep::Leased(OtherLease::Lead, version) => {
                reader.lead_under_held(request, HeldLease::new(version, seen, Patience::None))
            }
            LeaseStep::Leased(OtherLease::Wait, version) => {
                reader.lead_under_held(request, HeldLease::new(version, seen, Patience::ForEntry))
            }
            LeaseStep::Overtaken(seen) => {
                let found = reader.decode(request, seen);
                if let Found::Entry(known) = &found {
                    self.change = Some(known.entry.change());
                }
                reader.answer_overtaken(request, facts, found)
            }
            LeaseStep::Uncached(uncached)
            | LeaseStep::Leased(OtherLease::Uncached(uncached), _) => {
                reader.answer_uncached(request, uncached)
            }
        })
    }

    /// Asks for the lease of a job that has no entry, and decides how the read goes on.
    async fn ask_for_lease(&mut self, facts: &Facts, seen: &Seen) -> Result<LeaseStep, StoreError> {
        Ok(match self.lease(seen).await? {
            Grant::Lease(lease) => {
                self.change = Some(ChangeId::of_lease(&lease.token));
                let is_of_other_epoch = lease.epoch.server() != seen.epoch.server();
                match decide::granted(facts, is_of_other_epoch) {
                    None => LeaseStep::Fill(lease),
                    Some(uncached) => {
                        self.reader.hand_back(lease, self.budget).await;
                        LeaseStep::Uncached(uncached)
                    }
                }
            }
            Grant::Stored(seen) => LeaseStep::Overtaken(seen),
            Grant::Leased(token, epoch) => {
                self.change = Some(ChangeId::of_lease(&token));
                let version = JobVersion { token, epoch };
                let holder = self.reader.lease_holder(self.request, &version, &seen.epoch);
                LeaseStep::Leased(decide::leased(facts, holder), version)
            }
            Grant::Fenced => LeaseStep::Uncached(decide::unconfirmed(facts, Bypass::Fenced)),
        })
    }

    async fn lease(&mut self, seen: &Seen) -> Result<Grant, StoreError> {
        let LookupRequest { key, coalesce_key, .. } = self.request;
        let store = &self.reader.state.store;
        store.lease(key, coalesce_key.reader_hash(), seen.stored.as_ref(), self.budget).await
    }

    /// Answers a read without a confirmed lookup, but stores the response if the lease is granted.
    async fn lead_next_with_lease(&mut self, why: Bypass, seen: &Seen) -> Lookup {
        let mut lookup = self.reader.lead_next(self.request, why);
        if let Lookup::Lead(lead) = &mut lookup
            && let Ok(Grant::Lease(lease)) = self.lease(seen).await
        {
            lead.target = FillTarget::Lease(lease);
        }
        lookup
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
        FlightRole::Lead(leader) => Lookup::Lead(Box::new(LeaderRead {
            leader,
            why,
            target: target(),
            key: request.key.clone(),
            place: request.place.clone(),
            caller: request.caller,
            coalesce_key: request.coalesce_key,
        })),
        FlightRole::Join(flight) => Lookup::Join(flight, why),
        FlightRole::Full => Lookup::Pass(Bypass::Flights),
    }
}

pub(super) fn bypass_reason(error: &StoreError) -> Bypass {
    match error.kind() {
        StoreErrorKind::Pending => Bypass::Pending,
        StoreErrorKind::Grace => Bypass::Grace,
        StoreErrorKind::Far => Bypass::StoreSlow,
        StoreErrorKind::Timeout => Bypass::StoreTimeout,
        StoreErrorKind::Refused | StoreErrorKind::Redirected => Bypass::StoreError,
        StoreErrorKind::Down | StoreErrorKind::Lost | StoreErrorKind::Tls => Bypass::StoreDown,
    }
}
