//! Read, write and purge: joins policy, flight and store.
//!
//! It never fetches. A reader that has to is handed a [`Lead`] and a lease, and `proxy` fetches.

mod ahead;
pub mod audience;
mod bulk;
pub mod cookies;
pub mod entry;
pub mod explain;
mod fill;
pub mod flight;
mod invalidate;
pub mod key;
pub mod marks;
mod near;
pub mod policy;
pub mod query;
mod told;
mod trial;

pub use ahead::Ahead;
pub use fill::{Abandoned, Known, Landed, Lead};
pub use invalidate::{Died, Outcome, Purge, PurgeAll, Receipt};
pub use near::{Absence, Look};
pub use trial::Trial;

use std::{future, sync::Arc, time::Duration};

use hyper::http::{HeaderMap, HeaderName, Method, Uri};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use self::{
    audience::{Form, Pair, Prints, Standing},
    bulk::Bulk,
    entry::{Entry, Reject},
    fill::Target,
    flight::{Flight, Flights, Shown, Ticket},
    key::JobId,
    marks::Marks,
    near::Layer,
    policy::{Bypass, Policy, RequestDirectives, States},
    query::Query,
};
use crate::{
    config,
    limits::Room,
    metrics::{Limit, Metrics},
    mutants::{self, Mutant},
    store::{Budget, Grant, Key, Lease, Seen, Store, StoreError, Token},
    telemetry::Throttle,
};

/// How long another sidecar's fill is waited for: the one exception to the budget.
const FOREIGN_LEASE_WAIT: Duration = Duration::from_millis(250);
/// Between two looks at another sidecar's fill, at first; doubles.
const FOREIGN_LEASE_STEP: Duration = Duration::from_millis(5);
/// How long a response that could not be stored keeps later readers from queueing behind another.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);
/// Values of somebody else's that are replaced for one job in a TTL; past it, it is left alone.
const FOREIGN_VALUES: u32 = 3;
/// Entries of one job that are replaced in a TTL; past it the bodies are each client's own.
const REPLACEMENTS: u32 = 3;
/// Between two warnings about somebody else's values.
const FOREIGN_WARNING_EVERY: Duration = Duration::from_mins(1);
/// A fence outlives the write by this much.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// The cache.
///
/// One that is [`revised`](Cache::revised) shares with the first all but what its configuration says.
#[derive(Clone, Debug)]
pub struct Cache {
    store: Arc<Store>,
    near: Option<Arc<Layer>>,
    flights: Arc<Flights>,
    /// Jobs and fingerprints whose responses cannot be stored (hit-for-miss).
    uncacheable: Arc<Marks<(Key, Pair)>>,
    /// Jobs whose entry was replaced because the upstream answers each client differently.
    replaced: Arc<Marks<Key>>,
    prints: Prints,
    /// Jobs whose key somebody else writes.
    foreign: Arc<Marks<Key>>,
    foreign_warnings: Arc<Marks<()>>,
    pending_warnings: Arc<Throttle>,
    /// Other sidecars' leases that were waited for in vain.
    waited: Arc<Marks<Token>>,
    /// Entries that were not what the upstream answers.
    refuted: Arc<Marks<Token>>,
    refuted_warnings: Arc<Throttle>,
    bulk: Arc<Bulk>,
    /// What responses on their way into the cache take.
    captured: Arc<Room>,
    policy: Policy,
    settings: Settings,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug)]
struct Settings {
    prefix: String,
    budget: Duration,
    settle: Duration,
    linger: Duration,
    fence: Duration,
    audience: usize,
    ignore_client_cache_control: bool,
    compress_above: Option<usize>,
}

/// What a reader asks for.
#[derive(Debug)]
pub struct Ask {
    key: Key,
    pair: Pair,
    /// Who shares an upstream read with it.
    circle: Pair,
    directives: RequestDirectives,
    fills: bool,
    /// It waits for nobody's read but its own.
    alone: bool,
    form: Form,
}

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
enum Offer {
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

impl Ask {
    /// The same of a reader who is to wait for nobody's read but its own: it is never told to take a
    /// turn, and where it is told to join, it need not.
    #[must_use]
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Whether it shares no read where no lookup is confirmed.
    fn is_by_itself(&self) -> bool {
        let RequestDirectives { no_store, only_if_cached, .. } = self.directives;
        self.alone || !self.fills || no_store || only_if_cached
    }

    fn is_young(&self, entry: &Entry, now_ms: i64) -> bool {
        self.directives.admit(entry.age(now_ms), entry.ttl(now_ms))
    }
}

impl Cache {
    /// Opens the store that the configuration names, and joins it with the configured policy.
    pub fn open(config: &config::Config, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        metrics.events.strip(&config.store.prefix);
        let near = Layer::new(config, &metrics).map(Arc::new);
        let watcher = near.as_ref().map(|near| near.watcher());
        let store = Store::open(config, Arc::clone(&metrics), watcher)?;
        let limits = &metrics.limits;
        let room =
            |limit, used: &Gauge, met| Room::new(limit, used.clone(), limits.counter(met).clone());
        let flights = room(config.max_flights, &limits.flights, Limit::Flights);
        let captured = room(config.max_captured, &limits.captured, Limit::Captured);
        let prints = prints(config);
        Ok(Self {
            store: Arc::new(store),
            near,
            flights: Arc::new(Flights::within(flights)),
            uncacheable: Arc::new(Marks::new(UNCACHEABLE_FOR)),
            replaced: Arc::new(Marks::new(config.ttl)),
            foreign: Arc::new(Marks::new(config.ttl)),
            foreign_warnings: Arc::new(Marks::new(FOREIGN_WARNING_EVERY)),
            pending_warnings: Arc::default(),
            waited: Arc::new(Marks::new(config.store.lease)),
            refuted: Arc::new(Marks::new(trial::REMEMBERED)),
            refuted_warnings: Arc::default(),
            bulk: Arc::default(),
            captured,
            policy: policy(config, &prints),
            prints,
            settings: Settings::of(config),
            metrics,
        })
    }

    /// The same cache under another configuration of the same store. What was not worth trying under
    /// the old one may be now, so those marks go.
    #[must_use]
    pub fn revised(&self, config: &config::Config) -> Self {
        let prints = prints(config);
        Self {
            uncacheable: Arc::new(Marks::new(UNCACHEABLE_FOR)),
            replaced: Arc::new(Marks::new(config.ttl)),
            foreign: Arc::new(Marks::new(config.ttl)),
            policy: policy(config, &prints),
            prints,
            settings: Settings::of(config),
            ..self.clone()
        }
    }

    /// The store behind the cache.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The request headers by which entries are told apart: they must reach the upstream untouched.
    pub fn fingerprinted(&self) -> &[HeaderName] {
        self.prints.covered()
    }

    /// Whether a request may not be answered from the cache because it is somebody's.
    pub fn is_personal(&self, headers: &HeaderMap) -> bool {
        self.prints.bypasses(headers)
    }

    /// What one request may wait for the store.
    pub fn budget(&self) -> Budget {
        Budget::new(self.settings.budget)
    }

    /// What a GET or HEAD of a job asks for.
    pub fn ask(&self, id: &JobId, method: &Method, uri: &Uri, headers: &HeaderMap) -> Ask {
        let (pair, form) = self.prints.take(self.store.credential_key(), uri, headers);
        Ask {
            key: self.key(id),
            pair,
            circle: self.prints.circle(pair),
            directives: self.directives(headers),
            fills: *method == Method::GET,
            alone: false,
            form,
        }
    }

    /// Makes it what a request asks for that differs in the path alone, which is that of this id.
    /// The method and the headers, all of them, must be the same.
    pub fn turn(&self, ask: &mut Ask, id: &str, path: &str) {
        if ask.form.path() == path.as_bytes() {
            return;
        }
        ask.key.rename(&self.settings.prefix, id);
        ask.pair = self.prints.turn(ask.pair, &mut ask.form, path);
        ask.circle = self.prints.circle(ask.pair);
    }

    fn directives(&self, headers: &HeaderMap) -> RequestDirectives {
        let asked = RequestDirectives::of(headers);
        if self.settings.ignore_client_cache_control { asked.advisory() } else { asked }
    }

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
    async fn look(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<(Option<Result<Arc<Entry>, Reject>>, Seen), StoreError> {
        let near = self.near.as_ref();
        let noted = near.and_then(|near| near.note(&self.store, key));
        let seen = self.store.read(key, budget).await?;
        let found = Entry::decode(&seen).map(|decoded| decoded.map(Arc::new));
        if let (Some(Ok(entry)), Some(near), Some(noted)) = (&found, near, noted) {
            near.keep(key, entry, noted);
        }
        Ok((found, seen))
    }

    /// An entry is a hit for its audience, unless it is too old for the client's taste.
    fn is_hit(&self, ask: &Ask, entry: &Entry, now_ms: i64) -> bool {
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
    fn judge(
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

    fn is_uncacheable(&self, ask: &Ask) -> bool {
        self.uncacheable.count(&(ask.key.clone(), ask.circle)) > 0
    }

    fn refusal(ask: &Ask, uncacheable: bool) -> Option<Bypass> {
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

    fn else_of(ask: &Ask, why: Bypass) -> Bypass {
        if ask.directives.only_if_cached { Bypass::OnlyIfCached } else { why }
    }

    async fn lead(&self, ask: &Ask, lease: Lease) -> Lookup {
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
    fn leaves_alone(&self, key: &Key, reject: Reject) -> bool {
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

    fn key(&self, id: &JobId) -> Key {
        Key::new(&self.settings.prefix, id.as_str())
    }
}

impl Settings {
    fn of(config: &config::Config) -> Self {
        Self {
            prefix: config.store.prefix.clone(),
            budget: config.store.budget,
            settle: config.settle,
            linger: config.store.linger,
            fence: config.upstream.response_timeout + FENCE_MARGIN,
            audience: config.credentials.audience,
            ignore_client_cache_control: config.ignore_client_cache_control,
            compress_above: config.store.compress_above,
        }
    }
}

fn prints(config: &config::Config) -> Prints {
    Prints::new(&config.credentials).counting(Query::new(&config.query))
}

fn policy(config: &config::Config, prints: &Prints) -> Policy {
    Policy {
        ttl: config.ttl,
        stated_only: config.ttl_stated_only,
        max_body: config.max_body,
        vary: prints.covered().to_vec(),
        states: States::new(&config.states),
        cookies: config.credentials.cookies.clone(),
    }
}

fn reason(error: &StoreError) -> Bypass {
    match error {
        StoreError::Pending => Bypass::Pending,
        StoreError::Timeout | StoreError::Spent => Bypass::StoreTimeout,
        StoreError::Refused(_) | StoreError::Journal { .. } => Bypass::StoreError,
        StoreError::Down | StoreError::Lost(_) => Bypass::StoreDown,
    }
}
