//! What a request would come to, and why: a lookup that changes nothing.
//!
//! It asks the store once, by reading only, and takes no lease, joins no flight, counts nothing and
//! marks nothing. What it says is told by the very code that judges a real lookup wherever that can be
//! asked without a trace (`judge`, `refusal`); the rest mirrors [`Cache::lookup`] step by step. It
//! cannot know what the upstream would answer, nor whether there will be room for another flight, and
//! while Redis does not answer it takes nothing in this process for a hit, which `near = "bounded"` may
//! do for as long as it allows.

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
    events::jobs::Past,
    store::{State, StoreError},
};

/// Whether a request's form of the answer is known: its host, path, `Accept` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is the one of this request.
    Given,
    /// It is taken for the one that the entry was read in.
    Assumed,
}

/// What a read would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forecast {
    /// An answer from the cache, which may be served for so long yet.
    Hit(Duration),
    /// An answer of the upstream, which is stored if it may be; `why` as in `Cache-Status`.
    Miss {
        /// Why the cache may not answer, where that is the request's doing.
        why: Option<Bypass>,
        /// The same for people.
        because: Because,
    },
    /// The answer of a read of the upstream that is under way here.
    Join,
    /// An answer of the upstream, past the cache.
    Pass(Bypass),
}

/// Why there is no hit where a miss fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// There is no entry.
    Nothing,
    /// There is one that the upstream has not served to this caller.
    Outside,
    /// The same, but it has served it to this caller in another form.
    OtherForm,
    /// It has, too long ago.
    Lapsed,
    /// It is older than the request wants.
    Old,
    /// There is a value that is no entry.
    Rejected(Reject),
    /// No lookup can be confirmed, or none is wanted, for the reason that `Cache-Status` gives.
    Unconfirmed(Bypass),
}

/// What there is to say of a job.
#[derive(Debug)]
pub struct Explained {
    /// What the request would come to.
    pub forecast: Forecast,
    /// What the store shows, or why it shows nothing.
    pub state: Result<State, StoreError>,
    /// The value in the store, read as an entry.
    pub value: Option<Result<Arc<Entry>, Reject>>,
    /// How the request stands to the entry.
    pub standing: Option<Standing>,
    /// Whether this process holds an entry.
    pub near: bool,
    /// Whether an invalidation is unconfirmed.
    pub pending: bool,
    /// Its slot and the address of that slot's master, where the store is a cluster.
    pub place: Option<(u16, Option<String>)>,
    /// Whether its answers could not be stored lately.
    pub uncacheable: bool,
    /// How often its entry was replaced within a TTL.
    pub replaced: u32,
    /// How often somebody else's value was found within a TTL.
    pub foreign: u32,
    /// What happened to it lately.
    pub past: Past,
}

impl Cache {
    /// Explains what a read would come to.
    pub async fn explain(&self, mut ask: Ask, form: Form) -> Explained {
        let state = self.store.inspect(&ask.key, &mut self.budget()).await;
        let value = state.as_ref().ok().and_then(|state| Entry::decode(&state.seen));
        let value = value.map(|value| value.map(Arc::new));
        if let (Form::Assumed, Some(Ok(entry))) = (form, &value) {
            ask.pair = self.prints.assume(entry.audience(), ask.pair);
            ask.circle = self.prints.circle(ask.pair);
        }
        let standing = match (&value, &state) {
            (Some(Ok(entry)), Ok(state)) => {
                Some(self.prints.standing(entry.audience(), ask.pair, state.seen.now_ms))
            }
            _ => None,
        };
        let uncacheable = match form {
            Form::Given => self.is_uncacheable(&ask),
            Form::Assumed => self.uncacheable.any(|(key, _)| *key == ask.key),
        };
        let foreign = self.foreign.count(&ask.key);
        let refusal = Self::refusal(&ask, uncacheable);
        let forecast = match self.store.trust(&ask.key) {
            Err(error) => Self::unconfirmed_of(&ask, reason(&error)),
            Ok(_) => match &state {
                Err(error) => Self::unconfirmed_of(&ask, reason(error)),
                Ok(state) => self.forecast(&ask, state, value.as_ref(), refusal, foreign),
            },
        };
        Explained {
            forecast,
            standing,
            value,
            state,
            near: self.near.as_ref().is_some_and(|near| near.holds(&ask.key)),
            pending: matches!(self.store.trust(&ask.key), Err(StoreError::Pending)),
            place: self.store.place(&ask.key),
            uncacheable,
            replaced: self.replaced.count(&ask.key),
            foreign,
            past: self.metrics.events.past(ask.key.main()),
        }
    }

    /// As [`Cache::find`](Cache::lookup) decides.
    fn forecast(
        &self,
        ask: &Ask,
        state: &State,
        value: Option<&Result<Arc<Entry>, Reject>>,
        refusal: Option<Bypass>,
        foreign: u32,
    ) -> Forecast {
        match value {
            Some(Ok(entry)) => return self.foresee_offer(ask, entry, state.seen.now_ms, refusal),
            Some(Err(Reject::Foreign)) if foreign >= FOREIGN_VALUES => {
                return Self::unconfirmed_of(ask, Bypass::Foreign);
            }
            _ => {}
        }
        if let Some(why) = refusal {
            return Forecast::Pass(why);
        }
        if state.is_alien {
            return Self::unconfirmed_of(ask, Bypass::StoreError);
        }
        if state.fence_left_ms.is_some() {
            return Self::unconfirmed_of(ask, Bypass::Fenced);
        }
        match (&state.lease, value) {
            (Some(lease), None) if state.is_placeholder => {
                let (token, epoch) = (lease.token.clone(), state.epoch().clone());
                self.foresee_leased(ask, &Shown { token, epoch })
            }
            (_, Some(Err(reject))) => {
                Forecast::Miss { why: None, because: Because::Rejected(*reject) }
            }
            _ => Forecast::Miss { why: None, because: Because::Nothing },
        }
    }

    /// Where somebody else fills.
    fn foresee_leased(&self, ask: &Ask, shown: &Shown) -> Forecast {
        if ask.directives.no_cache {
            Self::unconfirmed_of(ask, Bypass::NoCache)
        } else if self.flights.join(&ask.key, shown, ask.circle).is_some() {
            Forecast::Join
        } else {
            Forecast::Pass(Self::else_of(ask, Bypass::Leased))
        }
    }

    fn foresee_offer(
        &self,
        ask: &Ask,
        entry: &Entry,
        now_ms: i64,
        refusal: Option<Bypass>,
    ) -> Forecast {
        match self.judge(ask, entry, now_ms, || refusal) {
            Offer::Hit => Forecast::Hit(entry.ttl(now_ms)),
            Offer::Pass(why) => Forecast::Pass(why),
            Offer::Read { young: false } => {
                Forecast::Miss { why: Some(Bypass::NoCache), because: Because::Old }
            }
            Offer::Read { young: true } => {
                let because = match self.prints.standing(entry.audience(), ask.pair, now_ms) {
                    Standing::Lapsed => Because::Lapsed,
                    _ if entry.audience().has_credential(ask.pair) => Because::OtherForm,
                    _ => Because::Outside,
                };
                Forecast::Miss { why: None, because }
            }
        }
    }

    /// As [`Cache::unconfirmed`] decides, but for the room that there is.
    fn unconfirmed_of(ask: &Ask, why: Bypass) -> Forecast {
        if ask.is_by_itself() {
            return Forecast::Pass(Self::else_of(ask, why));
        }
        Forecast::Miss { why: Some(why), because: Because::Unconfirmed(why) }
    }
}
