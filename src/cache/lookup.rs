//! Decides how a read is answered: from the store, by reading the upstream, or by joining another
//! request's upstream read.
//!
//! A lookup reads the store before it joins a flight: joining by job id alone could give a client a
//! response that was read before a write the client knows of. The forecasts of
//! [`forecast`](super::forecast) share these decisions or mirror them step by step. Near entries are in
//! [`near_lookup`](super::near_lookup), and the lookups of prefetches in [`prefetch_lookup`](super::prefetch_lookup).

use std::{future, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::{
    Cache, LookupRequest,
    entry::{Entry, Reject},
    fill::{FillTarget, KnownEntry, LeaderRead},
    flight::{Flight, FlightTicket, SeenVersion},
};
use crate::{
    mutants::{self, Mutant},
    semantics::{audience::Standing, policy::Bypass},
    store::{Budget, Grant, Key, Lease, MAX_PAIRS_OF_CREDENTIAL, Seen, StoreError, Token},
};

/// How long a reader waits for another sidecar's fill. The store budget does not cover this wait.
const OTHER_FILL_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store while waiting for another sidecar's fill. Doubles.
const FIRST_OTHER_FILL_PAUSE: Duration = Duration::from_millis(5);
/// Number of foreign values of one job that are overwritten within a TTL. After that the key is left
/// to the other writer.
pub(super) const MAX_FOREIGN_VALUES: u32 = 3;
/// Number of times that the entry of one job is replaced within a TTL. After that the upstream is
/// assumed to answer each client differently.
pub const MAX_REPLACEMENTS: u32 = 3;

/// How a read is answered.
#[derive(Debug)]
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
}

/// How an entry that was found can be used for a read.
#[derive(Clone, Copy, Debug)]
pub(super) enum EntryUse {
    /// The entry is the answer.
    Hit,
    /// The entry is no answer and is left as it is.
    Pass(Bypass),
    /// The entry is no answer yet: the upstream is read, and its response may widen or replace it.
    Read {
        /// Whether the entry is young enough for the request.
        age_accepted: bool,
    },
}

impl Cache {
    /// Looks up a job that has no near hit.
    ///
    /// Reads the store before it joins a flight: joining by job id alone could give a client a response
    /// that was read before a write the client knows of.
    pub async fn lookup(&self, request: &LookupRequest, budget: &mut Budget) -> Lookup {
        match self.store.trust(&request.key) {
            // What the store shows then says whether it is still so.
            Ok(_) | Err(StoreError::Grace) => {}
            Err(error) => return self.answer_unconfirmed(request, bypass_reason(&error)),
        }
        if mutants::is(Mutant::JoinBeforeLookup)
            && let Some(flight) = self.flights.any_confirmed(&request.key)
        {
            return Lookup::Join(flight, None);
        }
        match self.find_in_store(request, budget).await {
            Ok(lookup) => {
                self.note_unknown_headers(request, &lookup);
                lookup
            }
            Err(error) => {
                debug!(%error, "lookup failed");
                self.answer_unconfirmed(request, bypass_reason(&error))
            }
        }
    }

    async fn find_in_store(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        let (found, seen) = self.read_entry(request, budget).await?;
        if seen.in_grace {
            return Ok(self.answer_in_grace(request, found.as_ref(), &seen, budget).await);
        }
        match found {
            Some(Ok(entry)) => return Ok(self.answer_with_entry(request, entry, seen)),
            Some(Err(reject)) if self.yields_key(&request.key, reject) => {
                return Ok(self.answer_unconfirmed(request, Bypass::Foreign));
            }
            _ => {}
        }
        if let Some(why) = self.fill_refusal(request) {
            return Ok(Lookup::Pass(why));
        }
        let granted =
            self.store.lease(&request.key, request.identity, seen.stored.as_ref(), budget).await?;
        match granted {
            Grant::Lease(lease) if *lease.epoch() == seen.epoch => {
                Ok(self.lead(request, lease).await)
            }
            // The store has restarted between the two operations.
            Grant::Lease(lease) => {
                self.store.release(lease).await;
                Ok(self.answer_unconfirmed(request, Bypass::Grace))
            }
            Grant::Stored(seen) => {
                let identity = self.identity(&request.key, request.route);
                Ok(match Entry::decode_of(&seen, &identity) {
                    Some(Ok(entry)) => self.answer_with_entry(request, Arc::new(entry), seen),
                    Some(Err(reject)) => self.answer_unconfirmed(request, taken_by_other(reject)),
                    None => self.answer_unconfirmed(request, Bypass::Foreign),
                })
            }
            Grant::Leased(..) if request.directives.no_cache => {
                Ok(self.answer_unconfirmed(request, Bypass::NoCache))
            }
            // A read of another API or route, or in another epoch, is neither joined nor waited for.
            Grant::Leased(token, epoch)
                if !token.is_of(request.identity) || epoch != seen.epoch =>
            {
                Ok(self.answer_unconfirmed(request, Bypass::Leased))
            }
            Grant::Leased(token, epoch) => {
                self.follow(request, SeenVersion { token, epoch }, budget).await
            }
            Grant::Fenced => Ok(self.answer_unconfirmed(request, Bypass::Fenced)),
        }
    }

    /// Reads the store, and keeps an entry that it finds as a near entry.
    pub(super) async fn read_entry(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<(Option<Result<Arc<Entry>, Reject>>, Seen), StoreError> {
        let key = &request.key;
        let near = self.near.as_ref();
        let noted = match near {
            Some(near) => near.note(&self.store, key, budget).await,
            None => None,
        };
        let seen = self.store.read(key, budget).await?;
        let found = Entry::decode_of(&seen, &self.identity(key, request.route));
        let found = found.map(|decoded| decoded.map(Arc::new));
        if let Some(Err(Reject::Identity)) = found {
            self.warn_of_shared_key(request, &seen);
        }
        if let (Some(Ok(entry)), Some(near), Some(noted)) = (&found, near, noted) {
            near.keep(key, entry, noted);
        }
        Ok((found, seen))
    }

    /// Returns whether an entry is a hit: it is of the same API, route and job, the caller is in its
    /// audience, and the request's `Cache-Control` admits it.
    pub(super) fn is_hit(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) -> bool {
        if entry.identity() != request.identity {
            return false;
        }
        let standing = self.fingerprinter.standing(entry.audience(), request.caller, now_ms);
        standing == Standing::Included && request.accepts_age(entry, now_ms)
    }

    /// Answers a read for which an entry was found.
    ///
    /// If the entry is no hit, the reader asks the upstream and may join the audience by that. A lapsed
    /// caller does the same: if the upstream refuses it, only that caller sees the refusal, and its
    /// membership is just not renewed.
    fn answer_with_entry(&self, request: &LookupRequest, entry: Arc<Entry>, seen: Seen) -> Lookup {
        if seen.in_grace {
            return self.answer_unconfirmed(request, Bypass::Grace);
        }
        let young =
            match self.judge_entry(request, &entry, seen.now_ms, || self.fill_refusal(request)) {
                EntryUse::Hit => {
                    self.note_read(request, &entry, seen.now_ms);
                    return Lookup::Hit(entry);
                }
                EntryUse::Pass(why) => return Lookup::Pass(why),
                EntryUse::Read { age_accepted: young } => young,
            };
        let token = Token::named(entry.generation());
        let epoch = seen.epoch.clone();
        let known = KnownEntry { entry, seen };
        // A solo request does not queue. Others may join its flight by the version that it has seen.
        let ticket = if young || request.solo {
            self.flights.join_or_lead(
                &request.key,
                SeenVersion { token, epoch },
                request.coalesce_key,
            )
        } else {
            self.flights.join_or_lead_next(request.key.clone(), request.coalesce_key)
        };
        let why = (!young).then_some(Bypass::NoCache);
        match ticket {
            FlightTicket::Lead(leader) => {
                let target = FillTarget::Entry(Box::new(known));
                Lookup::Lead(Box::new(LeaderRead::new(request, leader, target, why)))
            }
            FlightTicket::Join(flight) => Lookup::Join(flight, why),
            FlightTicket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// Judges how an entry can be used for a read. `refusal` returns why the request may not fill, if
    /// it may not.
    pub(super) fn judge_entry(
        &self,
        request: &LookupRequest,
        entry: &Entry,
        now_ms: i64,
        refusal: impl FnOnce() -> Option<Bypass>,
    ) -> EntryUse {
        if self.is_hit(request, entry, now_ms) {
            return EntryUse::Hit;
        }
        if let Some(why) = refusal() {
            return EntryUse::Pass(why);
        }
        // Renewing a lapsed caller does not make the audience larger, and neither does a caller that
        // replaces another pair of its own credential.
        let audience = entry.audience();
        let full = audience.members.len() >= self.settings.max_audience
            && audience.pairs_of_credential(request.caller) < MAX_PAIRS_OF_CREDENTIAL;
        let standing = self.fingerprinter.standing(entry.audience(), request.caller, now_ms);
        if self.replacements.count(&request.key) >= MAX_REPLACEMENTS
            || full && standing == Standing::Outside
        {
            return EntryUse::Pass(Bypass::Audience);
        }
        EntryUse::Read { age_accepted: request.accepts_age(entry, now_ms) }
    }

    fn fill_refusal(&self, request: &LookupRequest) -> Option<Bypass> {
        Self::fill_refusal_of(request, self.is_hit_for_miss(request))
    }

    pub(super) fn is_hit_for_miss(&self, request: &LookupRequest) -> bool {
        self.hit_for_miss.count(&(request.key.clone(), request.coalesce_key)) > 0
    }

    pub(super) fn fill_refusal_of(request: &LookupRequest, uncacheable: bool) -> Option<Bypass> {
        if request.directives.only_if_cached {
            return Some(Bypass::OnlyIfCached);
        }
        if request.directives.no_store {
            return Some(Bypass::NoStore);
        }
        if !request.may_fill {
            return Some(Bypass::Method);
        }
        uncacheable.then_some(Bypass::Uncacheable)
    }

    /// Passes the request to the upstream, unless it asks for a cached answer only.
    fn pass(request: &LookupRequest, why: Bypass) -> Lookup {
        Lookup::Pass(Self::pass_reason(request, why))
    }

    pub(super) fn pass_reason(request: &LookupRequest, why: Bypass) -> Bypass {
        if request.directives.only_if_cached { Bypass::OnlyIfCached } else { why }
    }

    pub(super) async fn lead(&self, request: &LookupRequest, lease: Lease) -> Lookup {
        let version = SeenVersion { token: lease.token().clone(), epoch: lease.epoch().clone() };
        match self.flights.join_or_lead(&request.key, version, request.coalesce_key) {
            FlightTicket::Lead(leader) => Lookup::Lead(Box::new(LeaderRead::new(
                request,
                leader,
                FillTarget::Lease(lease),
                None,
            ))),
            FlightTicket::Join(flight) => Lookup::Join(flight, None),
            FlightTicket::Full => {
                self.store.release(lease).await;
                Lookup::Pass(Bypass::Flights)
            }
        }
    }

    /// Follows a fill by another reader: joins it if it is in this process, and else waits a little for
    /// its entry.
    async fn follow(
        &self,
        request: &LookupRequest,
        version: SeenVersion,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        if let Some(flight) =
            self.flights.join_confirmed(&request.key, &version, request.coalesce_key)
        {
            return Ok(Lookup::Join(flight, None));
        }
        if request.solo || self.waited_leases.count(&version.token) > 0 {
            return Ok(Self::pass(request, Bypass::Leased));
        }
        let deadline = Instant::now() + OTHER_FILL_WAIT;
        let mut step = FIRST_OTHER_FILL_PAUSE;
        while Instant::now() < deadline {
            self.wait_for_change(&request.key, deadline.min(Instant::now() + step)).await;
            step *= 2;
            let (found, seen) = self.read_entry(request, budget).await?;
            match found {
                Some(Ok(entry)) => return Ok(self.answer_with_entry(request, entry, seen)),
                Some(Err(reject)) => {
                    return Ok(self.answer_unconfirmed(request, taken_by_other(reject)));
                }
                None => {}
            }
        }
        self.waited_leases.add(version.token);
        Ok(Self::pass(request, Bypass::Leased))
    }

    /// Waits for a report of a change to the key, at most until `until`: the report may have come
    /// before this began to listen.
    async fn wait_for_change(&self, key: &Key, until: Instant) {
        let changed = async {
            match &self.near {
                Some(near) => near.changed(key).await,
                None => future::pending().await,
            }
        };
        let _ = timeout_at(until, changed).await;
    }

    /// Answers a read without a confirmed lookup: only by an upstream read that starts after now.
    pub(super) fn answer_unconfirmed(&self, request: &LookupRequest, why: Bypass) -> Lookup {
        if request.never_coalesces() {
            return Self::pass(request, why);
        }
        match self.flights.join_or_lead_next(request.key.clone(), request.coalesce_key) {
            FlightTicket::Lead(leader) => Lookup::Lead(Box::new(LeaderRead::new(
                request,
                leader,
                FillTarget::Nowhere,
                Some(why),
            ))),
            FlightTicket::Join(flight) => Lookup::Join(flight, Some(why)),
            FlightTicket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// Returns whether the key of a rejected value is to be left to another program, because it has
    /// stored foreign values there too often. Counts the value if it is foreign.
    pub(super) fn yields_key(&self, key: &Key, reject: Reject) -> bool {
        if reject != Reject::Foreign {
            return false;
        }
        self.metrics.foreign_values.inc();
        if self.foreign_warnings.add(()) == 1 {
            warn!(
                "another program stores values under the keys of this cache; switch off the \
                 application's own cache, but keep its DELs"
            );
        }
        self.foreign_values.add(key.clone()) > MAX_FOREIGN_VALUES
    }
}

/// The reason for a value that appeared under a key that was asked for.
fn taken_by_other(reject: Reject) -> Bypass {
    if reject == Reject::Identity { Bypass::Leased } else { Bypass::Foreign }
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
