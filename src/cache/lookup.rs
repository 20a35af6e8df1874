//! How a read is to be answered: from the store, by reading the upstream, or with what another's read
//! brings.
//!
//! It looks before it joins: joining by id would hand a reader an answer that was read before a write he
//! knows of. What [`explain`](super::explain) foresees is told by the same judges, or mirrors this step
//! by step. Not here: entries in this process ([`near`](super::near)), and the reads of nobody
//! ([`ahead`](super::ahead)).

use std::{future, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::{
    Ask, Cache,
    audience::Standing,
    entry::{Entry, Reject},
    fill::{Known, Lead, Target},
    flight::{Flight, Shown, Ticket},
    policy::Bypass,
};
use crate::{
    mutants::{self, Mutant},
    store::{Budget, Grant, Key, Lease, Seen, StoreError, Token},
};

/// How long another sidecar's fill is waited for: the one exception to the budget.
const FOREIGN_LEASE_WAIT: Duration = Duration::from_millis(250);
/// Between two looks at another sidecar's fill, at first; doubles.
const FOREIGN_LEASE_STEP: Duration = Duration::from_millis(5);
/// Values of somebody else's that are replaced for one job in a TTL; past it, it is left alone.
pub(super) const FOREIGN_VALUES: u32 = 3;
/// Entries of one job that are replaced in a TTL; past it the bodies are each client's own.
pub const REPLACEMENTS: u32 = 3;

/// How a read is to be answered.
#[derive(Debug)]
pub enum Lookup {
    /// From the cache.
    Hit(Arc<Entry>),
    /// By reading the upstream, for everybody who joins.
    Lead(Box<Lead>),
    /// With what another reader's upstream read brings.
    Join(Flight, Option<Bypass>),
    /// From the upstream, for this reader alone.
    Pass(Bypass),
}

impl Lookup {
    /// The word for spans.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Hit(_) => "hit",
            Self::Lead(_) => "lead",
            Self::Join(..) => "join",
            Self::Pass(_) => "pass",
        }
    }
}

/// What an entry is to a reader.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offer {
    /// His answer.
    Hit,
    /// Nothing, and it stays as it is.
    Pass(Bypass),
    /// Nothing as yet: he asks the upstream, and what that says may change it.
    Read {
        /// Whether it is young enough for him.
        young: bool,
    },
}

impl Cache {
    /// Looks a job up that is not [near](Cache::near). It looks before it joins: joining by id would
    /// hand a reader an answer that was read before a write he knows of.
    pub async fn lookup(&self, ask: &Ask, budget: &mut Budget) -> Lookup {
        if let Err(error) = self.store.trust(&ask.key) {
            return self.unconfirmed(ask, reason(&error));
        }
        if mutants::is(Mutant::JoinBeforeLookup)
            && let Some(flight) = self.flights.any(&ask.key)
        {
            return Lookup::Join(flight, None);
        }
        match self.find(ask, budget).await {
            Ok(lookup) => lookup,
            Err(error) => {
                debug!(%error, "lookup failed");
                self.unconfirmed(ask, reason(&error))
            }
        }
    }

    async fn find(&self, ask: &Ask, budget: &mut Budget) -> Result<Lookup, StoreError> {
        let (found, seen) = self.look(&ask.key, budget).await?;
        match found {
            Some(Ok(entry)) => return Ok(self.offer(ask, entry, seen)),
            Some(Err(reject)) if self.leaves_alone(&ask.key, reject) => {
                return Ok(self.unconfirmed(ask, Bypass::Foreign));
            }
            _ => {}
        }
        if let Some(why) = self.may_not_fill(ask) {
            return Ok(Lookup::Pass(why));
        }
        match self.store.lease(&ask.key, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => Ok(self.lead(ask, lease).await),
            Grant::Stored(seen) => Ok(match Entry::decode(&seen) {
                Some(Ok(entry)) => self.offer(ask, Arc::new(entry), seen),
                _ => self.unconfirmed(ask, Bypass::Foreign),
            }),
            Grant::Leased(..) if ask.directives.no_cache => {
                Ok(self.unconfirmed(ask, Bypass::NoCache))
            }
            Grant::Leased(token, epoch) => self.follow(ask, Shown { token, epoch }, budget).await,
            Grant::Fenced => Ok(self.unconfirmed(ask, Bypass::Fenced)),
        }
    }

    /// Reads the store, and keeps an entry that it finds in this process.
    pub(super) async fn look(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<(Option<Result<Arc<Entry>, Reject>>, Seen), StoreError> {
        let near = self.near.as_ref();
        let noted = match near {
            Some(near) => near.note(&self.store, key, budget).await,
            None => None,
        };
        let seen = self.store.read(key, budget).await?;
        let found = Entry::decode(&seen).map(|decoded| decoded.map(Arc::new));
        if let (Some(Ok(entry)), Some(near), Some(noted)) = (&found, near, noted) {
            near.keep(key, entry, noted);
        }
        Ok((found, seen))
    }

    /// An entry is a hit for its audience, unless it is too old for the client's taste.
    pub(super) fn is_hit(&self, ask: &Ask, entry: &Entry, now_ms: i64) -> bool {
        let standing = self.prints.standing(entry.audience(), ask.pair, now_ms);
        standing == Standing::Included && ask.is_young(entry, now_ms)
    }

    /// Who is given no hit asks the upstream, and may thereby join the audience. So does who has
    /// lapsed: if the upstream refuses him, he alone gets to see that, and is just not renewed.
    fn offer(&self, ask: &Ask, entry: Arc<Entry>, seen: Seen) -> Lookup {
        let young = match self.judge(ask, &entry, seen.now_ms, || self.may_not_fill(ask)) {
            Offer::Hit => return Lookup::Hit(entry),
            Offer::Pass(why) => return Lookup::Pass(why),
            Offer::Read { young } => young,
        };
        let (token, epoch) = (Token::named(entry.generation()), seen.epoch.clone());
        let known = Known { entry, seen };
        // One that takes no turn is joined by what the store has just shown, as any other.
        let ticket = if young || ask.alone {
            self.flights.share(&ask.key, Shown { token, epoch }, ask.circle)
        } else {
            self.flights.next(ask.key.clone(), ask.circle)
        };
        let why = (!young).then_some(Bypass::NoCache);
        match ticket {
            Ticket::Lead(leader) => {
                let target = Target::Entry(Box::new(known));
                Lookup::Lead(Box::new(Lead::new(ask, leader, target, why)))
            }
            Ticket::Join(flight) => Lookup::Join(flight, why),
            Ticket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// `refusal` says why he may not fill, if he may not.
    pub(super) fn judge(
        &self,
        ask: &Ask,
        entry: &Entry,
        now_ms: i64,
        refusal: impl FnOnce() -> Option<Bypass>,
    ) -> Offer {
        if self.is_hit(ask, entry, now_ms) {
            return Offer::Hit;
        }
        if let Some(why) = refusal() {
            return Offer::Pass(why);
        }
        // A pair that is renewed takes no further place.
        let full = entry.audience().members.len() >= self.settings.audience;
        let standing = self.prints.standing(entry.audience(), ask.pair, now_ms);
        if self.replaced.count(&ask.key) >= REPLACEMENTS || full && standing == Standing::Outside {
            return Offer::Pass(Bypass::Audience);
        }
        Offer::Read { young: ask.is_young(entry, now_ms) }
    }

    fn may_not_fill(&self, ask: &Ask) -> Option<Bypass> {
        Self::refusal(ask, self.is_uncacheable(ask))
    }

    pub(super) fn is_uncacheable(&self, ask: &Ask) -> bool {
        self.uncacheable.count(&(ask.key.clone(), ask.circle)) > 0
    }

    pub(super) fn refusal(ask: &Ask, uncacheable: bool) -> Option<Bypass> {
        if ask.directives.only_if_cached {
            return Some(Bypass::OnlyIfCached);
        }
        if ask.directives.no_store {
            return Some(Bypass::NoStore);
        }
        if !ask.fills {
            return Some(Bypass::Method);
        }
        uncacheable.then_some(Bypass::Uncacheable)
    }

    /// To the upstream, unless the client would rather have nothing.
    fn elsewhere(ask: &Ask, why: Bypass) -> Lookup {
        Lookup::Pass(Self::else_of(ask, why))
    }

    pub(super) fn else_of(ask: &Ask, why: Bypass) -> Bypass {
        if ask.directives.only_if_cached { Bypass::OnlyIfCached } else { why }
    }

    pub(super) async fn lead(&self, ask: &Ask, lease: Lease) -> Lookup {
        let shown = Shown { token: lease.token().clone(), epoch: lease.epoch().clone() };
        match self.flights.share(&ask.key, shown, ask.circle) {
            Ticket::Lead(leader) => {
                Lookup::Lead(Box::new(Lead::new(ask, leader, Target::Lease(lease), None)))
            }
            Ticket::Join(flight) => Lookup::Join(flight, None),
            Ticket::Full => {
                self.store.release(lease).await;
                Lookup::Pass(Bypass::Flights)
            }
        }
    }

    /// Somebody else fills: joins if it is this sidecar, else waits a little for the fill.
    async fn follow(
        &self,
        ask: &Ask,
        shown: Shown,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        if let Some(flight) = self.flights.join(&ask.key, &shown, ask.circle) {
            return Ok(Lookup::Join(flight, None));
        }
        if ask.alone || self.waited.count(&shown.token) > 0 {
            return Ok(Self::elsewhere(ask, Bypass::Leased));
        }
        let deadline = Instant::now() + FOREIGN_LEASE_WAIT;
        let mut step = FOREIGN_LEASE_STEP;
        while Instant::now() < deadline {
            self.news(&ask.key, deadline.min(Instant::now() + step)).await;
            step *= 2;
            let (found, seen) = self.look(&ask.key, budget).await?;
            match found {
                Some(Ok(entry)) => return Ok(self.offer(ask, entry, seen)),
                Some(Err(_)) => return Ok(self.unconfirmed(ask, Bypass::Foreign)),
                None => {}
            }
        }
        self.waited.add(shown.token);
        Ok(Self::elsewhere(ask, Bypass::Leased))
    }

    /// Waits for news of a key, but not for long: it may have come before we listened.
    async fn news(&self, key: &Key, until: Instant) {
        let changed = async {
            match &self.near {
                Some(near) => near.changed(key).await,
                None => future::pending().await,
            }
        };
        let _ = timeout_at(until, changed).await;
    }

    /// Without a confirmed lookup only a read that starts after now will do.
    fn unconfirmed(&self, ask: &Ask, why: Bypass) -> Lookup {
        if ask.is_by_itself() {
            return Self::elsewhere(ask, why);
        }
        match self.flights.next(ask.key.clone(), ask.circle) {
            Ticket::Lead(leader) => {
                Lookup::Lead(Box::new(Lead::new(ask, leader, Target::Nowhere, Some(why))))
            }
            Ticket::Join(flight) => Lookup::Join(flight, Some(why)),
            Ticket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// Whether a value that is not a hit is somebody else's, who insists on it.
    pub(super) fn leaves_alone(&self, key: &Key, reject: Reject) -> bool {
        if reject != Reject::Foreign {
            return false;
        }
        self.metrics.foreign_values.inc();
        if self.foreign_warnings.add(()) == 1 {
            warn!(
                "somebody else writes the keys of this cache; switch off the cache inside the \
                 application and keep its DELs"
            );
        }
        self.foreign.add(key.clone()) > FOREIGN_VALUES
    }
}

pub(super) fn reason(error: &StoreError) -> Bypass {
    match error {
        StoreError::Pending => Bypass::Pending,
        StoreError::Timeout | StoreError::Spent => Bypass::StoreTimeout,
        StoreError::Refused(_) | StoreError::Redirected(_) | StoreError::Journal { .. } => {
            Bypass::StoreError
        }
        StoreError::Down | StoreError::Lost(_) | StoreError::Tls(_) => Bypass::StoreDown,
    }
}
