//! Reads an entry: from this process, or from the store.
//!
//! A near entry may be served without asking Redis for it. It has to meet the same conditions as an
//! entry in Redis: the caller is in its audience, its TTL has not run out, and the request's
//! `Cache-Control` admits it. A near miss decides nothing: the lookup goes on in Redis as if there were
//! no near entries.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use tracing::warn;

use super::{
    decide::{EntryFacts, Facts, LookupRequest},
    entry::{self, Entry, Reject},
    fill::KnownEntry,
    job_news::NewsListener,
    job_notes::JobNotes,
    shared_state::{CacheConfig, SharedState},
};
use crate::{
    mutants::{self, Mutant},
    observe::spans,
    store::{BarrierWait, Budget, Key, NearMiss, Seen, StoreError, near::Noted},
};

/// Looks up reads.
#[derive(Clone)]
pub struct CacheReader {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) notes: Arc<JobNotes>,
}

/// State of a near lookup, which may have to wait for the barrier. Each request needs a new one.
#[derive(Default)]
pub struct NearLookup {
    /// The entry that was found and waits for the barrier, with the time of the lookup in ms since
    /// 1970 by the store's clock.
    found: Option<(Arc<Entry>, Noted, i64)>,
    wait: BarrierWait,
}

impl NearLookup {
    /// Returns how long the lookup has waited for the barrier.
    pub fn waited(&self) -> Duration {
        self.wait.lasted()
    }
}

/// The value that the store holds for a read.
pub(super) enum Found {
    /// An entry of this job.
    Entry(KnownEntry),
    /// No value, or one that is not a valid entry for the request.
    NoEntry(Option<Reject>, Seen),
}

impl CacheReader {
    /// Listens to the news about a job.
    pub fn listen(&self, key: &Key) -> NewsListener {
        self.state.news.listen(key)
    }

    /// Looks up a near entry that is a hit for this request. Returns it with the current time in ms
    /// since 1970 by the store's clock, and records the result in the current span.
    pub async fn lookup_near(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Option<(Arc<Entry>, i64)> {
        let mut lookup = NearLookup::default();
        let near = poll_fn(|cx| self.poll_lookup_near(request, &mut lookup, cx)).await;
        let outcome = near.as_ref().map_or_else(|miss| miss.as_str(), |_| "hit");
        if near.is_err() {
            // Only a wait without a hit is charged: after a hit, nothing else needs the budget.
            budget.charge(lookup.waited());
        }
        if !matches!(near, Err(NearMiss::Unasked)) {
            self.state.metrics.near.count_lookup(outcome);
        }
        spans::record_result(&spans::current(), outcome);
        near.ok()
    }

    /// Polls a near lookup like [`CacheReader::lookup_near`], but neither counts it nor charges a budget.
    pub fn poll_lookup_near(
        &self,
        request: &LookupRequest,
        lookup: &mut NearLookup,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Arc<Entry>, i64), NearMiss>> {
        let (store, key) = (&self.state.store, &request.key);
        let near = self.state.near.as_ref().ok_or(NearMiss::Unasked)?;
        let (entry, noted, now_ms) = if let Some(found) = lookup.found.take() {
            found
        } else {
            let now_ms = store.trust(key).map_err(|_| NearMiss::Unasked)?;
            let (entry, noted) = self.near_hit(request, now_ms).ok_or(NearMiss::NoEntry)?;
            (entry, noted, now_ms)
        };
        if !mutants::is(Mutant::NearWithoutBarrier) {
            let staleness = self.config.max_staleness();
            let barrier = store.poll_barrier(key, staleness, &mut lookup.wait, cx);
            if barrier.map_err(|_| NearMiss::Untracked)?.is_pending() {
                lookup.found = Some((entry, noted, now_ms));
                return Poll::Pending;
            }
        }
        // A change that was reported during the wait may have evicted the entry.
        let entry = if near.is_current(noted) {
            Some(entry)
        } else {
            // The store may have restarted meanwhile, so that no entry counts any more.
            store.trust(key).ok().and_then(|_| Some(self.near_hit(request, now_ms)?.0))
        };
        Poll::Ready(entry.map(|entry| (entry, now_ms)).ok_or(NearMiss::Evicted))
    }

    fn near_hit(&self, request: &LookupRequest, now_ms: i64) -> Option<(Arc<Entry>, Noted)> {
        let (entry, noted) = self.state.near.as_ref()?.read(&request.key)?;
        let is_hit = now_ms < entry.expires_at_ms()
            && entry.identity == request.identity
            && self.entry_facts(request, &entry, now_ms).is_hit();
        is_hit.then_some((entry, noted))
    }

    /// Reads the store, and keeps an entry that it finds as a near entry.
    pub(super) async fn read_entry(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Result<Found, StoreError> {
        let key = &request.key;
        let noted = self.state.note_near(key, budget).await;
        let found = self.decode(request, self.state.store.read(key, budget).await?);
        match (&found, &self.state.near, noted) {
            (Found::Entry(known), Some(near), Some(noted)) => {
                near.insert(key, Arc::clone(&known.entry), noted);
            }
            (Found::NoEntry(Some(Reject::Identity), seen), ..)
                if !self.state.notes.has_shared_key.swap(true, Ordering::Relaxed) =>
            {
                self.warn_of_shared_key(request, seen);
            }
            _ => {}
        }
        Ok(found)
    }

    /// Decodes what the store has shown for a read.
    pub(super) fn decode(&self, request: &LookupRequest, seen: Seen) -> Found {
        match Entry::decode_of(&seen, &self.config.identity(&request.key, &request.place)) {
            Some(Ok(entry)) => Found::Entry(KnownEntry { entry: Arc::new(entry), seen }),
            Some(Err(reject)) => Found::NoEntry(Some(reject), seen),
            None => Found::NoEntry(None, seen),
        }
    }

    /// Collects what decides about an entry of this job.
    pub(super) fn entry_facts(
        &self,
        request: &LookupRequest,
        entry: &Entry,
        now_ms: i64,
    ) -> EntryFacts {
        let standing = self.config.fingerprinter.standing(entry.audience(), request.caller, now_ms);
        let is_age_accepted = request.directives.admit(entry.age(now_ms), entry.ttl(now_ms));
        let mut facts = EntryFacts { standing, is_age_accepted, is_closed: false };
        let max = self.config.settings.credentials.audience;
        facts.is_closed = !facts.is_hit() && self.notes.is_closed(request, entry, standing, max);
        facts
    }

    /// Whether another program wrote the value that a read has found. A server that evicts may evict the
    /// meta of an entry of ours, and leave a body that looks the same.
    pub(super) async fn is_of_other_program(
        &self,
        request: &LookupRequest,
        reject: Option<Reject>,
        seen: &Seen,
        budget: &mut Budget,
    ) -> bool {
        if reject != Some(Reject::Foreign) || seen.in_grace {
            return false;
        }
        // An entry of ours expires.
        let may_be_ours =
            seen.stored.as_ref().is_some_and(|it| it.meta.is_empty() && it.expires_at_ms >= 0);
        // In doubt it counts as ours: it is replaced in either case.
        !may_be_ours || !self.state.store.has_evicted(&request.key, budget).await.unwrap_or(true)
    }

    /// Collects the facts about a read without an entry, and notes a value of another program, with a
    /// warning.
    pub(super) fn facts_without_entry(
        &self,
        request: &LookupRequest,
        is_hit_for_miss: bool,
        is_of_other: bool,
    ) -> Facts {
        let yields_key = is_of_other && self.notes.yields_key(&request.key);
        if is_of_other {
            self.state.metrics.foreign_values.inc();
            if self.state.notes.foreign_value_warnings.admit("foreign value").is_some() {
                warn!(
                    "another program stores values under the keys of this cache; switch off the \
                     application's own cache, but keep its DELs"
                );
            }
            self.notes.foreign_values.add(request.key.clone());
            let prefix = self.config.prefix_of(&request.key);
            self.state.notes.foreign_caches.note_value(prefix, &request.key);
        }
        request.facts(is_hit_for_miss, yields_key)
    }

    /// Warns that the value under the key of a request is of another API, route or job. The two replace
    /// each other, so neither is cached for long.
    fn warn_of_shared_key(&self, request: &LookupRequest, seen: &Seen) {
        let ours = self.config.identity(&request.key, &request.place);
        let (other_api, other_route) = entry::origin_of(seen).unwrap_or_default();
        let remedy = if other_api == ours.api {
            "poll each job by one route, or give one route a sidecar of its own with another store.prefix"
        } else {
            "give one of the APIs another store.prefix, such as its name"
        };
        warn!(
            api = ours.api,
            route = ours.route,
            other_api,
            other_route,
            prefix = self.config.prefix(0),
            remedy,
            "two routes or two APIs share the Redis key of a job and replace each other's entries"
        );
    }
}
