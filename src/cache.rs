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
mod lookup;
pub mod marks;
mod near;
pub mod policy;
pub mod query;
mod told;
mod trial;

pub use ahead::Ahead;
pub use fill::{Abandoned, Known, Landed, Lead};
pub use invalidate::{Died, OUTCOME_UNKNOWN, Outcome, Purge, PurgeAll, Receipt};
pub use lookup::{Lookup, REPLACEMENTS};
pub use near::{Absence, Look};
pub use trial::Trial;

use std::{fmt, sync::Arc, time::Duration};

use hyper::http::{HeaderMap, HeaderName, Method, Uri};
use prometheus_client::metrics::gauge::Gauge;

use self::{
    audience::{Form, Pair, Prints},
    bulk::Bulk,
    entry::Entry,
    flight::Flights,
    key::JobId,
    marks::Marks,
    near::Layer,
    policy::{Policy, RequestDirectives, States},
    query::Query,
};
use crate::{
    config,
    limits::Room,
    metrics::{Limit, Metrics},
    store::{Budget, Key, Store, StoreError, Token},
    throttle::Throttle,
};

/// How long a response that could not be stored keeps later readers from queueing behind another.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);
/// Between two warnings about somebody else's values.
const FOREIGN_WARNING_EVERY: Duration = Duration::from_mins(1);
/// A fence outlives the write by this much.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// The cache.
///
/// One that is [`revised`](Cache::revised) shares with the first all but what its configuration says.
#[derive(Clone)]
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

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("store", &self.store)
            .field("near", &self.near.is_some())
            .field("flights", &self.flights)
            .finish_non_exhaustive()
    }
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
