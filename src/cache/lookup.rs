//! Looks up a read: collects the facts, has [`decide`](super::decide) decide, and acts on the decision.
//!
//! A lookup reads the store before it joins a flight: joining by job id alone could give a client a
//! response that was read before a write the client knows of. Near entries are in
//! [`near_lookup`](super::near_lookup), and the lookups of prefetches in
//! [`prefetch_lookup`](super::prefetch_lookup).

use std::{future, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{
    cache_config::CacheConfig,
    decide::{Decision, EntryFacts, Facts, Found, Sight, decide, decide_overtaken},
    entry::{Entry, Reject},
    fill::{FillTarget, KnownEntry, LeaderRead},
    flight::{FlightTicket, SeenVersion},
    job_notes::JobNotes,
    lookup_request::LookupRequest,
    lookup_result::Lookup,
    shared_state::SharedState,
    silent_changes::sighting::Sighting,
};
use crate::{
    mutants::{self, Mutant},
    semantics::policy::Bypass,
    store::{Budget, Grant, Key, Lease, Seen, StoreError, Token},
};

/// How long a reader waits for another sidecar's fill. The store budget does not cover this wait.
const OTHER_FILL_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store while waiting for another sidecar's fill. Doubles.
const FIRST_OTHER_FILL_PAUSE: Duration = Duration::from_millis(5);

/// Looks up reads.
#[derive(Clone, Debug)]
pub struct CacheReader {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) notes: Arc<JobNotes>,
}

impl CacheReader {
    /// Looks up a job that has no near hit.
    ///
    /// Reads the store before it joins a flight: joining by job id alone could give a client a response
    /// that was read before a write the client knows of.
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
        match self.find_in_store(request, budget).await {
            Ok(lookup) => {
                if lookup.is_kept_apart() {
                    let splits = &self.notes.lasting.caller_splits;
                    splits.note_read(&self.config.fingerprinter, request);
                }
                lookup
            }
            Err(error) => {
                debug!(%error, "lookup failed");
                self.answer_without_store(request, &error)
            }
        }
    }

    fn answer_without_store(&self, request: &LookupRequest, error: &StoreError) -> Lookup {
        let facts = request.facts(self.notes.is_hit_for_miss(request), false);
        self.answer(request, decide(&facts, Sight::Unconfirmed(bypass_reason(error))), None)
    }

    async fn find_in_store(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let (found, seen) = self.read_entry(request, budget).await?;
        let is_foreign = matches!(found, Some(Err(Reject::Foreign))) && !seen.in_grace;
        let sight = self.sight(request, found.as_ref(), &seen);
        // A hit needs no look-up of what could not be stored.
        let is_hit_for_miss = !sight.is_hit() && self.notes.is_hit_for_miss(request);
        let facts = request.facts(
            is_hit_for_miss,
            is_foreign && self.notes.yields_key(&request.key, &self.state.metrics),
        );
        match decide(&facts, sight) {
            Decision::Lease => self.take_lease(request, &facts, &seen, budget).await,
            Decision::UnconfirmedWithLease(why) => {
                Ok(self.lead_next_with_lease(request, why, &seen, budget).await)
            }
            decision => Ok(self.answer(request, decision, with_entry(found, seen))),
        }
    }

    /// Asks for the lease of a job that has no entry, and answers by what the store says to that.
    async fn take_lease(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        seen: &Seen,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let (key, identity) = (&request.key, request.identity);
        let decision =
            match self.state.store.lease(key, identity, seen.stored.as_ref(), budget).await? {
                Grant::Lease(lease) => {
                    let is_of_other_epoch = *lease.epoch() != seen.epoch;
                    match decide(facts, Sight::Granted { is_of_other_epoch }) {
                        Decision::Fill => return Ok(self.lead(request, lease).await),
                        decision => {
                            self.state.store.release(lease).await;
                            decision
                        }
                    }
                }
                Grant::Stored(seen) => {
                    let found = Entry::decode_of(&seen, &self.config.identity(key, request.route));
                    let found = found.unwrap_or(Err(Reject::Foreign)).map(Arc::new);
                    return Ok(self.answer_overtaken(request, facts, Some(found), seen));
                }
                Grant::Leased(token, epoch) => {
                    let is_same_read = token.is_of(identity) && epoch == seen.epoch;
                    let version = SeenVersion { token, epoch };
                    return self.follow(request, facts, (version, is_same_read), budget).await;
                }
                Grant::Fenced => decide(facts, Sight::Fenced),
            };
        Ok(self.answer(request, decision, None))
    }

    /// Answers a read that another value overtook.
    fn answer_overtaken(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        found: Option<Result<Arc<Entry>, Reject>>,
        seen: Seen,
    ) -> Lookup {
        let decision = decide_overtaken(facts, self.sight(request, found.as_ref(), &seen));
        self.answer(request, decision, with_entry(found, seen))
    }

    /// Acts on a decision that needs nothing more from the store.
    fn answer(
        &self,
        request: &LookupRequest,
        decision: Decision,
        known: Option<KnownEntry>,
    ) -> Lookup {
        match (decision, known) {
            (Decision::Hit, Some(KnownEntry { entry, seen })) => {
                let sighting = Sighting::of_read(&self.config, request, &entry, seen.now_ms);
                self.state.silent_changes.seen(sighting);
                Lookup::Hit(entry)
            }
            (Decision::Revalidate(why), Some(known)) => self.revalidate(request, why, known),
            (Decision::Unconfirmed(why) | Decision::UnconfirmedWithLease(why), _) => {
                self.lead_next(request, why)
            }
            (Decision::Pass(why), _) => Lookup::Pass(why),
            // The callers act on these themselves.
            (
                Decision::Hit
                | Decision::Revalidate(_)
                | Decision::Lease
                | Decision::Fill
                | Decision::Join
                | Decision::Await,
                _,
            ) => Lookup::Pass(Bypass::Leased),
        }
    }

    /// Reads the store, and keeps an entry that it finds as a near entry.
    pub(super) async fn read_entry(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<(Option<Result<Arc<Entry>, Reject>>, Seen), StoreError> {
        let key = &request.key;
        let near = self.state.near.as_ref();
        let noted = match near {
            Some(near) => near.note(&self.state.store, key, budget).await,
            None => None,
        };
        let seen = self.state.store.read(key, budget).await?;
        let found = Entry::decode_of(&seen, &self.config.identity(key, request.route));
        let found = found.map(|decoded| decoded.map(Arc::new));
        if let Some(Err(Reject::Identity)) = found {
            self.notes.lasting.shared_key_warning.give(&self.config, request, &seen);
        }
        if let (Some(Ok(entry)), Some(near), Some(noted)) = (&found, near, noted) {
            near.entries.insert(key, Arc::clone(entry), noted);
        }
        Ok((found, seen))
    }

    /// Returns whether an entry is a hit: it is of the same API, route and job, the caller is in its
    /// audience, and the request's `Cache-Control` admits it.
    pub(super) fn is_hit(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) -> bool {
        entry.identity() == request.identity && self.entry_facts(request, entry, now_ms).is_hit()
    }

    /// Collects what decides about an entry, apart from whether its audience is closed to the caller.
    fn entry_facts(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) -> EntryFacts {
        EntryFacts {
            standing: self.config.fingerprinter.standing(entry.audience(), request.caller, now_ms),
            is_age_accepted: request.accepts_age(entry, now_ms),
            is_closed: false,
        }
    }

    /// Returns what the store showed for a request.
    pub(super) fn sight(
        &self,
        request: &LookupRequest,
        found: Option<&Result<Arc<Entry>, Reject>>,
        seen: &Seen,
    ) -> Sight {
        let found = match found {
            None => Found::Nothing,
            Some(Err(reject)) => Found::Rejected(*reject),
            Some(Ok(entry)) => {
                let facts = self.entry_facts(request, entry, seen.now_ms);
                let max = self.config.settings.max_audience;
                let is_closed =
                    !facts.is_hit() && self.notes.is_closed(request, entry, facts.standing, max);
                Found::Entry(EntryFacts { is_closed, ..facts })
            }
        };
        if seen.in_grace { Sight::InGrace(found) } else { Sight::Found(found) }
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
        let ticket = if why.is_none() || request.solo {
            self.state.flights.join_or_lead(
                &request.key,
                SeenVersion { token, epoch },
                request.coalesce_key,
            )
        } else {
            self.state.flights.join_or_lead_next(request.key.clone(), request.coalesce_key)
        };
        board(request, ticket, why, || FillTarget::Entry(Box::new(known)))
    }

    pub(super) async fn lead(&self, request: &LookupRequest, lease: Lease) -> Lookup {
        let version = SeenVersion { token: lease.token().clone(), epoch: lease.epoch().clone() };
        let flights = &self.state.flights;
        let ticket = flights.join_or_lead(&request.key, version, request.coalesce_key);
        if let FlightTicket::Full = ticket {
            self.state.store.release(lease).await;
            return Lookup::Pass(Bypass::Flights);
        }
        board(request, ticket, None, || FillTarget::Lease(lease))
    }

    /// Follows a fill by another reader: joins it if it is in this process, and else waits a little for
    /// its entry.
    async fn follow(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        (version, is_same_read): (SeenVersion, bool),
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let flight =
            self.state.flights.join_confirmed(&request.key, &version, request.coalesce_key);
        let sight = Sight::Leased {
            is_same_read,
            is_joinable: flight.is_some(),
            is_hopeless: self.notes.lasting.waited_leases.count(&version.token) > 0,
        };
        match (decide(facts, sight), flight) {
            (Decision::Join, Some(flight)) => Ok(Lookup::Join(flight, None)),
            (Decision::Await, _) => self.wait_for_entry(request, facts, version, budget).await,
            (decision, _) => Ok(self.answer(request, decision, None)),
        }
    }

    async fn wait_for_entry(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        version: SeenVersion,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let deadline = Instant::now() + OTHER_FILL_WAIT;
        let mut step = FIRST_OTHER_FILL_PAUSE;
        while Instant::now() < deadline {
            self.wait_for_change(&request.key, deadline.min(Instant::now() + step)).await;
            step *= 2;
            let (found, seen) = self.read_entry(request, budget).await?;
            if found.is_some() {
                return Ok(self.answer_overtaken(request, facts, found, seen));
            }
        }
        self.notes.lasting.waited_leases.add(version.token);
        Ok(Lookup::Pass(Bypass::Leased))
    }

    /// Waits for a report of a change to the key, at most until `until`: the report may have come
    /// before this began to listen.
    async fn wait_for_change(&self, key: &Key, until: Instant) {
        let changed = async {
            match &self.state.near {
                Some(near) => near.entries.changed(key).await,
                None => future::pending().await,
            }
        };
        let _ = timeout_at(until, changed).await;
    }

    /// Answers a read without a confirmed lookup: only by an upstream read that starts after now.
    fn lead_next(&self, request: &LookupRequest, why: Bypass) -> Lookup {
        let flights = &self.state.flights;
        let ticket = flights.join_or_lead_next(request.key.clone(), request.coalesce_key);
        board(request, ticket, Some(why), || FillTarget::Nowhere)
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
}

/// Leads or joins a flight, as the ticket says.
fn board(
    request: &LookupRequest,
    ticket: FlightTicket,
    why: Option<Bypass>,
    target: impl FnOnce() -> FillTarget,
) -> Lookup {
    match ticket {
        FlightTicket::Lead(leader) => {
            Lookup::Lead(Box::new(LeaderRead::new(request, leader, target(), why)))
        }
        FlightTicket::Join(flight) => Lookup::Join(flight, why),
        FlightTicket::Full => Lookup::Pass(Bypass::Flights),
    }
}

fn with_entry(found: Option<Result<Arc<Entry>, Reject>>, seen: Seen) -> Option<KnownEntry> {
    found?.ok().map(|entry| KnownEntry { entry, seen })
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
