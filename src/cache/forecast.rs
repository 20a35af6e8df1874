//! Forecasts how a read would be answered, and why, without changing anything.
//!
//! A forecast reads the store once. It takes no lease, joins no flight, counts nothing and marks
//! nothing. It decides as a real lookup does, by `cache/decide.rs`, up to the point where a lookup
//! would wait.
//!
//! A forecast cannot know the upstream's response, nor whether the limit of flights will leave room
//! for another. While Redis does not answer, it predicts no near hit, although `near = "bounded"` may
//! serve one for as long as its staleness limit allows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    decide::{self, Facts, LookupRequest, NoEntry, OtherLease, Uncached, WithEntry},
    entry::{Entry, Reject},
    flight::{CoalesceKey, JobVersion},
    lookup::bypass_reason,
    reader::CacheReader,
};
use crate::{
    observe::events::jobs::JobHistory,
    semantics::{audience::Standing, identity::Place, policy::Bypass},
    store::{Key, KeyState, Seen, StoreError},
};

/// Where the variant of a request (its host, path, `Accept` and so on) comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VariantOrigin {
    /// The request has stated it.
    Given,
    /// The request has not stated it, so the variant of the stored entry is assumed.
    Assumed,
}

/// How a read would be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forecast {
    /// The cache answers. Holds the time for which the entry may still be served.
    Hit(Duration),
    /// The request reads the upstream. The response is stored if it may be.
    Miss {
        /// The reason that `Cache-Status` gives, if it gives one.
        bypass: Option<Bypass>,
        /// The reason in more detail, for people.
        reason: MissReason,
    },
    /// The request joins an upstream read that is in flight in this process.
    Join,
    /// The request waits a little for the entry that another reader is about to store, and reads the
    /// upstream if that entry is late.
    Wait,
    /// The request bypasses the cache.
    Pass(Bypass),
}

/// Why a read is a miss and not a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissReason {
    /// There is no entry.
    NoEntry,
    /// There is an entry, but the upstream has not served it to this caller.
    NotInAudience,
    /// The upstream has served the entry to this credential, but in another variant.
    OtherVariant,
    /// The upstream has served the entry to this caller, but too long ago.
    Lapsed,
    /// The entry is older than the request allows.
    TooOld,
    /// There is a value that is not a valid entry.
    Rejected(Reject),
    /// A lookup cannot be confirmed or is not wanted. The reason is the one in `Cache-Status`.
    Unconfirmed(Bypass),
}

/// The state of a job and the forecast for a read of it.
#[derive(Debug)]
pub struct ForecastReport {
    /// How the read would be answered.
    pub forecast: Forecast,
    /// State in the store, or the reason why it cannot be read.
    pub state: Result<KeyState, StoreError>,
    /// Value in the store, decoded as an entry.
    pub value: Option<Result<Arc<Entry>, Reject>>,
    /// Whether the caller belongs to the entry's audience.
    pub standing: Option<Standing>,
    /// Whether there is a near entry in this process.
    pub near: bool,
    /// Whether an invalidation is unconfirmed.
    pub pending: bool,
    /// Cluster slot of the job and the address of its master, if the store is a Redis Cluster.
    pub cluster_slot: Option<(u16, Option<String>)>,
    /// The notes of this process about the job.
    pub marks: JobMarks,
    /// Recent events of the job.
    pub history: JobHistory,
}

/// The notes of a process about a job, as `/explain` shows them.
#[derive(Debug, Serialize)]
pub struct JobMarks {
    /// Headers in which recent answers with the same body differed.
    pub differing_headers: Vec<String>,
    /// How often a foreign value was found within a TTL.
    #[serde(rename = "foreign")]
    pub foreign_values: u32,
    /// How often the entry was replaced within a TTL.
    #[serde(rename = "replaced")]
    pub replacements: u32,
    /// Whether these are so many that a caller outside the audience passes.
    #[serde(skip)]
    pub is_replaced_too_often: bool,
    /// Unknown request headers that keep the callers of the job apart.
    pub splitting_headers: Vec<String>,
    /// Whether a recent response could not be stored (hit-for-miss).
    #[serde(rename = "uncacheable")]
    pub hit_for_miss: bool,
}

impl CacheReader {
    /// Forecasts how a read would be answered, and returns all that the forecast is based on.
    pub async fn explain(&self, mut request: LookupRequest, form: VariantOrigin) -> ForecastReport {
        let state = self.state.store.inspect(&request.key, &mut self.config.budget()).await;
        let seen = state.as_ref().ok().map(|state| &state.seen);
        let value = seen.and_then(|seen| self.decode_assuming(&mut request, seen, form));
        let entry = value.as_ref().and_then(|value| value.as_ref().ok()).zip(seen);
        let standing = entry.map(|(entry, Seen { now_ms, .. })| {
            let audience = entry.audience();
            self.config.fingerprinter.standing(audience, request.caller, *now_ms)
        });
        let (key, credential) = (&request.key, request.caller.credential());
        let hit_for_miss = self.is_hit_for_miss(&request, form);
        let facts = request.facts(hit_for_miss, self.notes.yields_key(key));
        let marks = JobMarks {
            differing_headers: self.notes.differing_headers(key),
            foreign_values: self.notes.foreign_values.count(key),
            replacements: self.notes.replacements(key, credential),
            is_replaced_too_often: self.notes.is_replaced_too_often(key, credential),
            splitting_headers: self.state.notes.splitting_headers.of_job(key, Instant::now()),
            hit_for_miss,
        };
        ForecastReport {
            forecast: self.forecast(&request, &facts, state.as_ref(), value.as_ref()),
            standing,
            near: self.state.is_near(key),
            pending: matches!(self.state.store.trust(key), Err(StoreError::Pending)),
            cluster_slot: self.state.store.place(key),
            marks,
            history: self.state.events.history(key.main()),
            value,
            state,
        }
    }

    /// Returns whether a recent response could not be stored: to the request, or to any variant of it
    /// if the variant is assumed.
    fn is_hit_for_miss(&self, request: &LookupRequest, form: VariantOrigin) -> bool {
        if form == VariantOrigin::Given {
            return self.notes.is_hit_for_miss(request);
        }
        let credential = request.coalesce_key.caller.credential();
        let is_of = |(key, of): &(Key, CoalesceKey)| {
            *key == request.key && of.caller.credential() == credential
        };
        !self.notes.hit_for_miss.keys(is_of).is_empty()
    }

    /// Decodes the value for the route of a request. If the request is assumed to be for the entry that
    /// there is, its route and its variant become those of the entry.
    fn decode_assuming(
        &self,
        request: &mut LookupRequest,
        seen: &Seen,
        form: VariantOrigin,
    ) -> Option<Result<Arc<Entry>, Reject>> {
        let (key, variables) = (request.key.clone(), request.place.variables.clone());
        let decode = |place: &Place| Entry::decode_of(seen, &self.config.identity(&key, place));
        let mut value = decode(&request.place);
        if form == VariantOrigin::Assumed {
            if matches!(value, Some(Err(Reject::Identity))) {
                let mut others = self.config.scopes.indexes();
                let other = others.find_map(|route| {
                    let place = Place { route, variables: variables.clone() };
                    decode(&place)?.ok().map(|entry| (place, entry))
                });
                if let Some((place, entry)) = other {
                    (request.place, request.identity) = (place, entry.identity);
                    value = Some(Ok(entry));
                }
            }
            if let Some(Ok(entry)) = &value {
                request.caller =
                    self.config.fingerprinter.assume_variant(entry.audience(), request.caller);
                request.coalesce_key = self.config.coalesce_key(request.caller, request.identity);
            }
        }
        Some(value?.map(Arc::new))
    }

    fn forecast(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        state: Result<&KeyState, &StoreError>,
        value: Option<&Result<Arc<Entry>, Reject>>,
    ) -> Forecast {
        let trust = self.state.store.trust(&request.key);
        let state = match (&trust, state) {
            (Ok(_), Ok(state)) => state,
            (Err(error), _) | (_, Err(error)) => {
                return uncached(decide::unconfirmed(facts, bypass_reason(error)));
            }
        };
        let Seen { in_grace, now_ms, .. } = state.seen;
        let reject = match value {
            None => None,
            Some(Err(reject)) => Some(*reject),
            Some(Ok(entry)) => {
                let entry_facts = self.entry_facts(request, entry, now_ms);
                return match decide::with_entry(facts, entry_facts, in_grace) {
                    WithEntry::Hit => Forecast::Hit(entry.ttl(now_ms)),
                    WithEntry::Revalidate(bypass @ Some(_)) => {
                        Forecast::Miss { bypass, reason: MissReason::TooOld }
                    }
                    WithEntry::Revalidate(None) => {
                        let reason = self.why_outside(request, entry, now_ms);
                        Forecast::Miss { bypass: None, reason }
                    }
                    WithEntry::Uncached(decision) => uncached(decision),
                };
            }
        };
        match decide::without_entry(facts, reject, in_grace) {
            NoEntry::Lease => self.forecast_of_lease(request, facts, state, reject),
            NoEntry::UnconfirmedWithLease(why) => uncached(Uncached::Unconfirmed(why)),
            NoEntry::Uncached(decision) => uncached(decision),
        }
    }

    /// Forecasts how a read would go on that asks for the lease.
    fn forecast_of_lease(
        &self,
        request: &LookupRequest,
        facts: &Facts,
        state: &KeyState,
        reject: Option<Reject>,
    ) -> Forecast {
        if state.is_alien {
            return uncached(decide::unconfirmed(facts, Bypass::StoreError));
        }
        if state.fence_left_ms.is_some() {
            return uncached(decide::unconfirmed(facts, Bypass::Fenced));
        }
        let lease = state.lease.as_ref().filter(|_| state.seen.is_leased && reject.is_none());
        let Some(lease) = lease else {
            let reason = reject.map_or(MissReason::NoEntry, MissReason::Rejected);
            return Forecast::Miss { bypass: None, reason };
        };
        let version = JobVersion { token: lease.token.clone(), epoch: state.seen.epoch.clone() };
        match decide::leased(facts, self.lease_holder(request, &version, &version.epoch)) {
            OtherLease::Join(_) => Forecast::Join,
            OtherLease::Wait => Forecast::Wait,
            OtherLease::Lead => uncached(Uncached::Unconfirmed(Bypass::Leased)),
            OtherLease::Uncached(decision) => uncached(decision),
        }
    }

    /// Returns why a caller does not get an entry that is young enough.
    fn why_outside(&self, request: &LookupRequest, entry: &Entry, now_ms: i64) -> MissReason {
        match self.config.fingerprinter.standing(entry.audience(), request.caller, now_ms) {
            Standing::Lapsed => MissReason::Lapsed,
            _ if entry.audience().has_credential(request.caller) => MissReason::OtherVariant,
            _ => MissReason::NotInAudience,
        }
    }
}

fn uncached(decision: Uncached) -> Forecast {
    match decision {
        Uncached::Pass(why) => Forecast::Pass(why),
        Uncached::Unconfirmed(why) => {
            Forecast::Miss { bypass: Some(why), reason: MissReason::Unconfirmed(why) }
        }
    }
}
