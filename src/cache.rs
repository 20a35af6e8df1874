//! Reads, writes and purges of jobs: joins policy, flights and store.
//!
//! The cache never contacts the upstream. A reader that must do so gets a [`Lead`], and `proxy`
//! fetches.

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
    limits::Quota,
    metrics::{Limit, Metrics},
    store::{Budget, Key, Store, StoreError, Token},
    throttle::Throttle,
};

/// Duration of a hit-for-miss mark. After a response that could not be stored, readers of the job do
/// not queue behind each other for this long.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);
/// Interval between two warnings about foreign values.
const FOREIGN_WARNING_EVERY: Duration = Duration::from_mins(1);
/// Margin that is added to the upstream's response timeout, so that a fence outlives its write.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// The cache of job reads.
///
/// A clone shares all state with the original. A [revised](Cache::revised) cache also shares it,
/// except for what its configuration determines.
#[derive(Clone)]
pub struct Cache {
    store: Arc<Store>,
    near: Option<Arc<Layer>>,
    flights: Arc<Flights>,
    /// Jobs and coalesce keys that recently got a response that could not be stored.
    uncacheable: Arc<Marks<(Key, Pair)>>,
    /// Replacements of a job's entry by a different response that the upstream gave another caller.
    replaced: Arc<Marks<Key>>,
    prints: Prints,
    /// Foreign values found under each job's key.
    foreign: Arc<Marks<Key>>,
    foreign_warnings: Arc<Marks<()>>,
    pending_warnings: Arc<Throttle>,
    /// Leases of other sidecars that a reader has waited for without result.
    waited: Arc<Marks<Token>>,
    /// Entries that a comparison found to differ from the upstream's response.
    refuted: Arc<Marks<Token>>,
    refuted_warnings: Arc<Throttle>,
    bulk: Arc<Bulk>,
    /// Limits the memory of responses that are being read into the cache.
    captured: Arc<Quota>,
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

/// A read of a job, as the cache sees it.
#[derive(Debug)]
pub struct Ask {
    key: Key,
    pair: Pair,
    /// Requests of one job with the same key may share an upstream read.
    circle: Pair,
    directives: RequestDirectives,
    /// The response may be stored as far as the method is concerned: the request is a GET.
    fills: bool,
    /// The request never waits for another request's upstream read.
    alone: bool,
    form: Form,
}

impl Ask {
    /// Makes the request solo: it never has to wait for another request's upstream read. A lookup does
    /// not queue it for a turn, and it may ignore a [`Lookup::Join`].
    #[must_use]
    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Returns whether the request shares no upstream read when its lookup is not confirmed.
    fn is_by_itself(&self) -> bool {
        let RequestDirectives { no_store, only_if_cached, .. } = self.directives;
        self.alone || !self.fills || no_store || only_if_cached
    }

    fn is_young(&self, entry: &Entry, now_ms: i64) -> bool {
        self.directives.admit(entry.age(now_ms), entry.ttl(now_ms))
    }
}

impl Cache {
    /// Opens the store that the configuration names and creates the cache on top of it.
    ///
    /// # Errors
    ///
    /// Fails if [`Store::open`] does.
    pub fn open(config: &config::Config, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        metrics.events.set_key_prefix(&config.store.prefix);
        let near = Layer::new(config, &metrics).map(Arc::new);
        let watcher = near.as_ref().map(|near| near.watcher());
        let store = Store::open(config, Arc::clone(&metrics), watcher)?;
        let limits = &metrics.limits;
        let quota = |limit, used: &Gauge, kind| {
            Quota::new(limit, used.clone(), limits.counter(kind).clone())
        };
        let flights = quota(config.max_flights, &limits.flights, Limit::Flights);
        let captured = quota(config.max_captured, &limits.captured, Limit::Captured);
        let fingerprinter = prints(config);
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
            policy: policy(config, &fingerprinter),
            prints: fingerprinter,
            settings: Settings::of(config),
            metrics,
        })
    }

    /// Returns the same cache under another configuration of the same store.
    ///
    /// The counts of unstorable responses, replacements and foreign values start from zero: attempts
    /// that failed under the old configuration may succeed under the new one.
    #[must_use]
    pub fn revised(&self, config: &config::Config) -> Self {
        let fingerprinter = prints(config);
        Self {
            uncacheable: Arc::new(Marks::new(UNCACHEABLE_FOR)),
            replaced: Arc::new(Marks::new(config.ttl)),
            foreign: Arc::new(Marks::new(config.ttl)),
            policy: policy(config, &fingerprinter),
            prints: fingerprinter,
            settings: Settings::of(config),
            ..self.clone()
        }
    }

    /// The store behind the cache.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the request headers that fingerprints cover. They must reach the upstream unchanged.
    pub fn fingerprinted(&self) -> &[HeaderName] {
        self.prints.covered()
    }

    /// Returns whether a request must bypass the cache because it carries a credential.
    pub fn is_personal(&self, headers: &HeaderMap) -> bool {
        self.prints.bypasses(headers)
    }

    /// Returns a new budget: the total time that one request may wait for the store.
    pub fn budget(&self) -> Budget {
        Budget::new(self.settings.budget)
    }

    /// Creates the lookup request for a GET or HEAD of a job.
    pub fn ask(&self, id: &JobId, method: &Method, uri: &Uri, headers: &HeaderMap) -> Ask {
        let (caller, variant) = self.prints.take(self.store.credential_key(), uri, headers);
        Ask {
            key: self.key(id),
            pair: caller,
            circle: self.prints.circle(caller),
            directives: self.directives(headers),
            fills: *method == Method::GET,
            alone: false,
            form: variant,
        }
    }

    /// Changes a lookup request to the job `id` at `path`. The method and all headers must be the same
    /// as in the request that it was made from.
    pub fn turn(&self, request: &mut Ask, id: &str, path: &str) {
        if request.form.path() == path.as_bytes() {
            return;
        }
        request.key.rename(&self.settings.prefix, id);
        request.pair = self.prints.turn(request.pair, &mut request.form, path);
        request.circle = self.prints.circle(request.pair);
    }

    fn directives(&self, headers: &HeaderMap) -> RequestDirectives {
        let directives = RequestDirectives::of(headers);
        if self.settings.ignore_client_cache_control { directives.advisory() } else { directives }
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

fn policy(config: &config::Config, fingerprinter: &Prints) -> Policy {
    Policy {
        ttl: config.ttl,
        stated_only: config.ttl_stated_only,
        max_body: config.max_body,
        vary: fingerprinter.covered().to_vec(),
        states: States::new(&config.states),
        cookies: config.credentials.cookies.clone(),
    }
}
