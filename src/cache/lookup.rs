//! Decides how a read is answered: from the store, by reading the upstream, or by joining another
//! request's upstream read.
//!
//! A lookup reads the store before it joins a flight: joining by job id alone could give a client a
//! response that was read before a write the client knows of. The forecasts of
//! [`explain`](super::explain) share these decisions or mirror them step by step. Near entries are in
//! [`near`](super::near), and the lookups of prefetches in [`ahead`](super::ahead).

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

/// How long a reader waits for another sidecar's fill. No other wait is outside the budget.
const FOREIGN_LEASE_WAIT: Duration = Duration::from_millis(250);
/// First pause between two reads of the store while waiting for another sidecar's fill. Doubles.
const FOREIGN_LEASE_STEP: Duration = Duration::from_millis(5);
/// Number of foreign values of one job that are overwritten within a TTL. After that the key is left
/// to the other writer.
pub(super) const FOREIGN_VALUES: u32 = 3;
/// Number of times that the entry of one job is replaced within a TTL. After that the upstream is
/// assumed to answer each client differently.
pub const REPLACEMENTS: u32 = 3;

/// How a read is answered.
#[derive(Debug)]
pub enum Lookup {
    /// The entry is the answer.
    Hit(Arc<Entry>),
    /// The reader reads the upstream, for itself and all that join.
    Lead(Box<Lead>),
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
pub(super) enum Offer {
    /// The entry is the answer.
    Hit,
    /// The entry is no answer and is left as it is.
    Pass(Bypass),
    /// The entry is no answer yet: the upstream is read, and its response may widen or replace it.
    Read {
        /// Whether the entry is young enough for the request.
        young: bool,
    },
}

impl Cache {
    /// Looks up a job that has no [near](Cache::near) hit.
    ///
    /// Reads the store before it joins a flight: joining by job id alone could give a client a response
    /// that was read before a write the client knows of.
    pub async fn lookup(&self, request: &Ask, budget: &mut Budget) -> Lookup {
        if let Err(error) = self.store.trust(&request.key) {
            return self.unconfirmed(request, reason(&error));
        }
        if mutants::is(Mutant::JoinBeforeLookup)
            && let Some(flight) = self.flights.any(&request.key)
        {
            return Lookup::Join(flight, None);
        }
        match self.find(request, budget).await {
            Ok(lookup) => lookup,
            Err(error) => {
                debug!(%error, "lookup failed");
                self.unconfirmed(request, reason(&error))
            }
        }
    }

    async fn find(&self, request: &Ask, budget: &mut Budget) -> Result<Lookup, StoreError> {
        let (found, seen) = self.look(&request.key, budget).await?;
        match found {
            Some(Ok(entry)) => return Ok(self.offer(request, entry, seen)),
            Some(Err(reject)) if self.leaves_alone(&request.key, reject) => {
                return Ok(self.unconfirmed(request, Bypass::Foreign));
            }
            _ => {}
        }
        if let Some(why) = self.may_not_fill(request) {
            return Ok(Lookup::Pass(why));
        }
        match self.store.lease(&request.key, seen.stored.as_ref(), budget).await? {
            Grant::Lease(lease) => Ok(self.lead(request, lease).await),
            Grant::Stored(seen) => Ok(match Entry::decode(&seen) {
                Some(Ok(entry)) => self.offer(request, Arc::new(entry), seen),
                _ => self.unconfirmed(request, Bypass::Foreign),
            }),
            Grant::Leased(..) if request.directives.no_cache => {
                Ok(self.unconfirmed(request, Bypass::NoCache))
            }
            Grant::Leased(token, epoch) => {
                self.follow(request, Shown { token, epoch }, budget).await
            }
            Grant::Fenced => Ok(self.unconfirmed(request, Bypass::Fenced)),
        }
    }

    /// Reads the store, and keeps an entry that it finds as a near entry.
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

    /// Returns whether an entry is a hit: the caller is in its audience, and the request's
    /// `Cache-Control` admits it.
    pub(super) fn is_hit(&self, request: &Ask, entry: &Entry, now_ms: i64) -> bool {
        let standing = self.prints.standing(entry.audience(), request.pair, now_ms);
        standing == Standing::Included && request.is_young(entry, now_ms)
    }

    /// Answers a read for which an entry was found.
    ///
    /// If the entry is no hit, the reader asks the upstream and may join the audience by that. A lapsed
    /// caller does the same: if the upstream refuses it, only that caller sees the refusal, and its
    /// membership is just not renewed.
    fn offer(&self, request: &Ask, entry: Arc<Entry>, seen: Seen) -> Lookup {
        let young = match self.judge(request, &entry, seen.now_ms, || self.may_not_fill(request)) {
            Offer::Hit => return Lookup::Hit(entry),
            Offer::Pass(why) => return Lookup::Pass(why),
            Offer::Read { young } => young,
        };
        let token = Token::named(entry.generation());
        let epoch = seen.epoch.clone();
        let known = Known { entry, seen };
        // A solo request takes no turn. Others may join its flight by the version that it has seen.
        let ticket = if young || request.alone {
            self.flights.share(&request.key, Shown { token, epoch }, request.circle)
        } else {
            self.flights.next(request.key.clone(), request.circle)
        };
        let why = (!young).then_some(Bypass::NoCache);
        match ticket {
            Ticket::Lead(leader) => {
                let target = Target::Entry(Box::new(known));
                Lookup::Lead(Box::new(Lead::new(request, leader, target, why)))
            }
            Ticket::Join(flight) => Lookup::Join(flight, why),
            Ticket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// Judges how an entry can be used for a read. `refusal` returns why the request may not fill, if
    /// it may not.
    pub(super) fn judge(
        &self,
        request: &Ask,
        entry: &Entry,
        now_ms: i64,
        refusal: impl FnOnce() -> Option<Bypass>,
    ) -> Offer {
        if self.is_hit(request, entry, now_ms) {
            return Offer::Hit;
        }
        if let Some(why) = refusal() {
            return Offer::Pass(why);
        }
        // Renewing a lapsed caller does not make the audience larger.
        let full = entry.audience().members.len() >= self.settings.audience;
        let standing = self.prints.standing(entry.audience(), request.pair, now_ms);
        if self.replaced.count(&request.key) >= REPLACEMENTS
            || full && standing == Standing::Outside
        {
            return Offer::Pass(Bypass::Audience);
        }
        Offer::Read { young: request.is_young(entry, now_ms) }
    }

    fn may_not_fill(&self, request: &Ask) -> Option<Bypass> {
        Self::refusal(request, self.is_uncacheable(request))
    }

    pub(super) fn is_uncacheable(&self, request: &Ask) -> bool {
        self.uncacheable.count(&(request.key.clone(), request.circle)) > 0
    }

    pub(super) fn refusal(request: &Ask, uncacheable: bool) -> Option<Bypass> {
        if request.directives.only_if_cached {
            return Some(Bypass::OnlyIfCached);
        }
        if request.directives.no_store {
            return Some(Bypass::NoStore);
        }
        if !request.fills {
            return Some(Bypass::Method);
        }
        uncacheable.then_some(Bypass::Uncacheable)
    }

    /// Passes the request to the upstream, unless it asks for a cached answer only.
    fn elsewhere(request: &Ask, why: Bypass) -> Lookup {
        Lookup::Pass(Self::else_of(request, why))
    }

    pub(super) fn else_of(request: &Ask, why: Bypass) -> Bypass {
        if request.directives.only_if_cached { Bypass::OnlyIfCached } else { why }
    }

    pub(super) async fn lead(&self, request: &Ask, lease: Lease) -> Lookup {
        let version = Shown { token: lease.token().clone(), epoch: lease.epoch().clone() };
        match self.flights.share(&request.key, version, request.circle) {
            Ticket::Lead(leader) => {
                Lookup::Lead(Box::new(Lead::new(request, leader, Target::Lease(lease), None)))
            }
            Ticket::Join(flight) => Lookup::Join(flight, None),
            Ticket::Full => {
                self.store.release(lease).await;
                Lookup::Pass(Bypass::Flights)
            }
        }
    }

    /// Follows a fill by another reader: joins it if it is in this process, and else waits a little for
    /// its entry.
    async fn follow(
        &self,
        request: &Ask,
        version: Shown,
        budget: &mut Budget,
    ) -> Result<Lookup, StoreError> {
        if let Some(flight) = self.flights.join(&request.key, &version, request.circle) {
            return Ok(Lookup::Join(flight, None));
        }
        if request.alone || self.waited.count(&version.token) > 0 {
            return Ok(Self::elsewhere(request, Bypass::Leased));
        }
        let deadline = Instant::now() + FOREIGN_LEASE_WAIT;
        let mut step = FOREIGN_LEASE_STEP;
        while Instant::now() < deadline {
            self.news(&request.key, deadline.min(Instant::now() + step)).await;
            step *= 2;
            let (found, seen) = self.look(&request.key, budget).await?;
            match found {
                Some(Ok(entry)) => return Ok(self.offer(request, entry, seen)),
                Some(Err(_)) => return Ok(self.unconfirmed(request, Bypass::Foreign)),
                None => {}
            }
        }
        self.waited.add(version.token);
        Ok(Self::elsewhere(request, Bypass::Leased))
    }

    /// Waits for a report of a change to the key, at most until `until`: the report may have come
    /// before this began to listen.
    async fn news(&self, key: &Key, until: Instant) {
        let changed = async {
            match &self.near {
                Some(near) => near.changed(key).await,
                None => future::pending().await,
            }
        };
        let _ = timeout_at(until, changed).await;
    }

    /// Answers a read without a confirmed lookup: only by an upstream read that starts after now.
    fn unconfirmed(&self, request: &Ask, why: Bypass) -> Lookup {
        if request.is_by_itself() {
            return Self::elsewhere(request, why);
        }
        match self.flights.next(request.key.clone(), request.circle) {
            Ticket::Lead(leader) => {
                Lookup::Lead(Box::new(Lead::new(request, leader, Target::Nowhere, Some(why))))
            }
            Ticket::Join(flight) => Lookup::Join(flight, Some(why)),
            Ticket::Full => Lookup::Pass(Bypass::Flights),
        }
    }

    /// Returns whether the key of a rejected value is to be left to another program, because that has
    /// stored foreign values there too often. Counts the value if it is foreign.
    pub(super) fn leaves_alone(&self, key: &Key, reject: Reject) -> bool {
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
