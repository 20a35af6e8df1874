//! Forecasts how a read would be answered, and why, without changing anything.
//!
//! A forecast reads the store once. It takes no lease, joins no flight, counts nothing and marks
//! nothing. Where the code that judges a real lookup has no side effects, the forecast calls it
//! (`judge`, `refusal`); the rest mirrors [`Cache::lookup`] step by step.
//!
//! A forecast cannot know the upstream's response, nor whether the limit of flights will leave room
//! for another. While Redis does not answer, it predicts no near hit, although `near = "bounded"` may
//! serve one for as long as its staleness limit allows.

use std::{sync::Arc, time::Duration};

use super::{
    Ask, Cache,
    audience::Standing,
    entry::{Entry, Reject},
    flight::Shown,
    lookup::{FOREIGN_VALUES, Offer, reason},
    policy::Bypass,
};
use crate::{
    events::jobs::JobHistory,
    store::{KeyState, StoreError},
};

/// Where the variant of a request (its host, path, `Accept` and so on) comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
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
        why: Option<Bypass>,
        /// The reason in more detail, for people.
        because: Because,
    },
    /// The request joins an upstream read that is in flight in this process.
    Join,
    /// The request bypasses the cache.
    Pass(Bypass),
}

/// Why a read is a miss and not a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// There is no entry.
    Nothing,
    /// There is an entry, but the upstream has not served it to this caller.
    Outside,
    /// The upstream has served the entry to this credential, but in another variant.
    OtherForm,
    /// The upstream has served the entry to this caller, but too long ago.
    Lapsed,
    /// The entry is older than the request allows.
    Old,
    /// There is a value that is not a valid entry.
    Rejected(Reject),
    /// A lookup cannot be confirmed or is not wanted. The reason is the one in `Cache-Status`.
    Unconfirmed(Bypass),
}

/// The state of a job and the forecast for a read of it.
#[derive(Debug)]
pub struct Explained {
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
    pub place: Option<(u16, Option<String>)>,
    /// Whether a recent response could not be stored (hit-for-miss).
    pub uncacheable: bool,
    /// How often the entry was replaced within a TTL.
    pub replaced: u32,
    /// How often a foreign value was found within a TTL.
    pub foreign: u32,
    /// Recent events of the job.
    pub past: JobHistory,
}

impl Cache {
    /// Forecasts how a read would be answered, and returns all that the forecast is based on.
    pub async fn explain(&self, mut request: Ask, form: Form) -> Explained {
        let state = self.store.inspect(&request.key, &mut self.budget()).await;
        let value = state.as_ref().ok().and_then(|state| Entry::decode(&state.seen));
        let value = value.map(|value| value.map(Arc::new));
        if let (Form::Assumed, Some(Ok(entry))) = (form, &value) {
            request.pair = self.prints.assume(entry.audience(), request.pair);
            request.circle = self.prints.circle(request.pair);
        }
        let standing = match (&value, &state) {
            (Some(Ok(entry)), Ok(state)) => {
                Some(self.prints.standing(entry.audience(), request.pair, state.seen.now_ms))
            }
            _ => None,
        };
        let uncacheable = match form {
            Form::Given => self.is_uncacheable(&request),
            Form::Assumed => self.uncacheable.any(|(key, _)| *key == request.key),
        };
        let foreign = self.foreign.count(&request.key);
        let refusal = Self::refusal(&request, uncacheable);
        let forecast = match self.store.trust(&request.key) {
            Err(error) => Self::unconfirmed_of(&request, reason(&error)),
            Ok(_) => match &state {
                Err(error) => Self::unconfirmed_of(&request, reason(error)),
                Ok(state) => self.forecast(&request, state, value.as_ref(), refusal, foreign),
            },
        };
        Explained {
            forecast,
            standing,
            value,
            state,
            near: self.near.as_ref().is_some_and(|near| near.holds(&request.key)),
            pending: matches!(self.store.trust(&request.key), Err(StoreError::Pending)),
            place: self.store.place(&request.key),
            uncacheable,
            replaced: self.replaced.count(&request.key),
            foreign,
            past: self.metrics.events.history(request.key.main()),
        }
    }

    /// Mirrors [`Cache::find`](Cache::lookup).
    fn forecast(
        &self,
        request: &Ask,
        state: &KeyState,
        value: Option<&Result<Arc<Entry>, Reject>>,
        refusal: Option<Bypass>,
        foreign: u32,
    ) -> Forecast {
        match value {
            Some(Ok(entry)) => {
                return self.foresee_offer(request, entry, state.seen.now_ms, refusal);
            }
            Some(Err(Reject::Foreign)) if foreign >= FOREIGN_VALUES => {
                return Self::unconfirmed_of(request, Bypass::Foreign);
            }
            _ => {}
        }
        if let Some(why) = refusal {
            return Forecast::Pass(why);
        }
        if state.is_alien {
            return Self::unconfirmed_of(request, Bypass::StoreError);
        }
        if state.fence_left_ms.is_some() {
            return Self::unconfirmed_of(request, Bypass::Fenced);
        }
        match (&state.lease, value) {
            (Some(lease), None) if state.is_placeholder => {
                let token = lease.token.clone();
                let epoch = state.epoch().clone();
                self.foresee_leased(request, &Shown { token, epoch })
            }
            (_, Some(Err(reject))) => {
                Forecast::Miss { why: None, because: Because::Rejected(*reject) }
            }
            _ => Forecast::Miss { why: None, because: Because::Nothing },
        }
    }

    /// Forecasts a read of a job that another reader is filling. Mirrors `Cache::follow`, but does not
    /// wait.
    fn foresee_leased(&self, request: &Ask, version: &Shown) -> Forecast {
        if request.directives.no_cache {
            Self::unconfirmed_of(request, Bypass::NoCache)
        } else if self.flights.join(&request.key, version, request.circle).is_some() {
            Forecast::Join
        } else {
            Forecast::Pass(Self::else_of(request, Bypass::Leased))
        }
    }

    fn foresee_offer(
        &self,
        request: &Ask,
        entry: &Entry,
        now_ms: i64,
        refusal: Option<Bypass>,
    ) -> Forecast {
        match self.judge(request, entry, now_ms, || refusal) {
            Offer::Hit => Forecast::Hit(entry.ttl(now_ms)),
            Offer::Pass(why) => Forecast::Pass(why),
            Offer::Read { young: false } => {
                Forecast::Miss { why: Some(Bypass::NoCache), because: Because::Old }
            }
            Offer::Read { young: true } => {
                let because = match self.prints.standing(entry.audience(), request.pair, now_ms) {
                    Standing::Lapsed => Because::Lapsed,
                    _ if entry.audience().has_credential(request.pair) => Because::OtherForm,
                    _ => Because::Outside,
                };
                Forecast::Miss { why: None, because }
            }
        }
    }

    /// Mirrors [`Cache::unconfirmed`], except that it ignores the limit of flights.
    fn unconfirmed_of(request: &Ask, why: Bypass) -> Forecast {
        if request.is_by_itself() {
            return Forecast::Pass(Self::else_of(request, why));
        }
        Forecast::Miss { why: Some(why), because: Because::Unconfirmed(why) }
    }
}
