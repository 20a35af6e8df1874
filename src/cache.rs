//! Reads, writes and purges of jobs: joins policy, flights and store.
//!
//! The cache never contacts the upstream. A reader that must do so gets a [`LeaderRead`], and `proxy`
//! fetches.

mod caller_splits;
mod comparison;
mod comparison_result;
mod decide;
mod elsewhere;
pub mod entry;
mod fill;
pub mod flight;
pub mod forecast;
mod invalidate;
mod kept_apart;
mod lookup;
pub(crate) mod metrics;
mod near_lookup;
mod prefetch_lookup;
mod record;
mod replacements;
mod shared_key;
mod silent_changes;
pub mod windowed_counts;
mod write_all;

pub use comparison::Comparison;
pub use comparison_result::ComparisonResult;
pub use fill::{AbandonReason, KnownEntry, LeaderRead, PublishedRead};
pub use invalidate::{
    EndStage, FenceEnd, OUTCOME_UNKNOWN, PurgeAllOutcome, PurgeOutcome, PurgeReceipt,
    PurgeTaskFailed, WriteOutcome,
};
pub use lookup::Lookup;
pub use near_lookup::{NearLookup, NearMissReason};
pub use prefetch_lookup::PrefetchLookup;
use replacements::Replacements;
pub use silent_changes::SilentRoute;

use std::{fmt, sync::Arc, time::Duration};

use hyper::http::{HeaderMap, HeaderName, Method, Uri};

use self::{
    caller_splits::CallerSplits,
    decide::Facts,
    entry::Entry,
    flight::{CoalesceKey, Flights},
    kept_apart::KeptApart,
    metrics::CacheMetrics,
    near_lookup::NearLayer,
    shared_key::SharedKeyWarning,
    silent_changes::{NewsWatcher, SilentChanges},
    windowed_counts::WindowedCounts,
    write_all::SharedPurgeAll,
};
use crate::{
    config,
    limits::{Limit, LimitHits, Quota},
    observe::{events::Events, metrics::Registry, throttle::Throttle},
    semantics::{
        audience::{Caller, Fingerprinter, Variant},
        identity::{Identity, RouteIndex, Scopes},
        job_id::JobId,
        policy::{Policy, RequestDirectives, StateTtls},
        query::Query,
    },
    store::{Budget, IdentityHash, Key, SidecarRecord, Store, StoreError, Token, near::Watcher},
};

/// Duration of a hit-for-miss mark. After a response that could not be stored, readers of the job do
/// not queue behind each other for this long.
const HIT_FOR_MISS_TIME: Duration = Duration::from_secs(10);
/// Interval between two warnings about foreign values.
const FOREIGN_WARNING_INTERVAL: Duration = Duration::from_mins(1);
/// Margin that is added to the upstream's response timeout, so that a fence outlives its write.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// The cache of job reads.
///
/// A clone shares all state with the original. A [reconfigured](Cache::reconfigured) cache also shares it,
/// except for what its configuration determines.
#[derive(Clone)]
pub struct Cache {
    store: Arc<Store>,
    near: Option<Arc<NearLayer>>,
    flights: Arc<Flights>,
    /// Jobs and coalesce keys that recently got a response that could not be stored.
    hit_for_miss: Arc<WindowedCounts<(Key, CoalesceKey)>>,
    replacements: Arc<Replacements>,
    /// Response headers that keep the callers of a job apart.
    kept_apart: Arc<KeptApart>,
    fingerprinter: Fingerprinter,
    /// Unknown request headers that keep callers apart.
    caller_splits: Arc<CallerSplits>,
    /// Foreign values found under each job's key.
    foreign_values: Arc<WindowedCounts<Key>>,
    foreign_warnings: Arc<WindowedCounts<()>>,
    shared_key_warning: Arc<SharedKeyWarning>,
    pending_warnings: Arc<Throttle>,
    /// Leases of other sidecars that a reader has waited for without result.
    waited_leases: Arc<WindowedCounts<Token>>,
    /// Entries that a comparison found to differ from the upstream's response.
    wrong_entries: Arc<WindowedCounts<Token>>,
    wrong_entry_warnings: Arc<Throttle>,
    shared_purge_all: Arc<SharedPurgeAll>,
    silent_changes: Arc<SilentChanges>,
    /// Limits the memory of responses that are being read into the cache.
    capture_quota: Arc<Quota>,
    policy: Policy,
    settings: CacheSettings,
    metrics: Arc<CacheMetrics>,
    events: Arc<Events>,
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
struct CacheSettings {
    prefix: String,
    scopes: Scopes,
    store_budget: Duration,
    settle: Duration,
    linger: Duration,
    fence: Duration,
    /// Longest time after the response head of a write for which its fence stands until the bodies
    /// have ended.
    hold: Duration,
    max_audience: usize,
    ignore_client_cache_control: bool,
    compress_above: Option<usize>,
}

/// A read of a job, as the cache sees it.
#[derive(Debug)]
pub struct LookupRequest {
    key: Key,
    route: RouteIndex,
    /// Hash of the API, the route and the job.
    identity: IdentityHash,
    caller: Caller,
    /// Requests of one job with the same key may share an upstream read.
    coalesce_key: CoalesceKey,
    directives: RequestDirectives,
    /// The response may be stored as far as the method is concerned: the request is a GET.
    may_fill: bool,
    /// The request never waits for another request's upstream read.
    solo: bool,
    variant: Variant,
}

impl LookupRequest {
    /// Makes the request solo: it never has to wait for another request's upstream read. A lookup does
    /// not queue it for a turn, and it may ignore a [`Lookup::Join`].
    #[must_use]
    pub fn solo(self) -> Self {
        Self { solo: true, ..self }
    }

    fn facts(&self, is_hit_for_miss: bool, yields_key: bool) -> Facts {
        let Self { directives, may_fill, solo: is_solo, .. } = *self;
        Facts { directives, may_fill, is_solo, is_hit_for_miss, yields_key }
    }

    fn accepts_age(&self, entry: &Entry, now_ms: i64) -> bool {
        self.directives.admit(entry.age(now_ms), entry.ttl(now_ms))
    }
}

impl Cache {
    /// Opens the store that the configuration names and creates the cache on top of it.
    ///
    /// # Errors
    ///
    /// Fails if [`Store::open`] does.
    pub fn open(
        config: &config::Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, StoreError> {
        events.set_key_prefix(&config.store.prefix);
        let metrics = Arc::new(CacheMetrics::register(registry));
        let near = NearLayer::new(config, &metrics.near, &events).map(Arc::new);
        let silent_changes = Arc::new(SilentChanges::new(metrics.silent_changes.clone()));
        let watcher = near.as_ref().map(|near| {
            let silent_changes = Arc::clone(&silent_changes);
            Arc::new(NewsWatcher { near: near.watcher(), silent_changes }) as Arc<dyn Watcher>
        });
        let store = Store::open(config, registry, Arc::clone(&events), watcher)?;
        let hits = LimitHits::shared(registry);
        let flights = Quota::of(Limit::Flights, config.max_flights, &metrics.flights, &hits);
        let captured = Quota::of(Limit::Captured, config.max_captured, &metrics.captured, &hits);
        let fingerprinter = fingerprinter(config);
        Ok(Self {
            store: Arc::new(store),
            near,
            flights: Arc::new(Flights::new(flights)),
            hit_for_miss: Arc::new(WindowedCounts::new(HIT_FOR_MISS_TIME)),
            replacements: Arc::new(Replacements::new(config.ttl)),
            caller_splits: Arc::default(),
            kept_apart: Arc::new(KeptApart::new(config.ttl)),
            foreign_values: Arc::new(WindowedCounts::new(config.ttl)),
            foreign_warnings: Arc::new(WindowedCounts::new(FOREIGN_WARNING_INTERVAL)),
            shared_key_warning: Arc::default(),
            pending_warnings: Arc::default(),
            waited_leases: Arc::new(WindowedCounts::new(config.store.lease)),
            wrong_entries: Arc::new(WindowedCounts::new(comparison::WRONG_ENTRY_MEMORY)),
            wrong_entry_warnings: Arc::default(),
            shared_purge_all: Arc::default(),
            silent_changes,
            capture_quota: captured,
            policy: policy(config, &fingerprinter),
            fingerprinter,
            settings: CacheSettings::from_config(config),
            metrics,
            events,
        })
    }

    /// Returns the same cache under another configuration of the same store.
    ///
    /// The counts of unstorable responses, replacements and foreign values start from zero: attempts
    /// that failed under the old configuration may succeed under the new one.
    #[must_use]
    pub fn reconfigured(&self, config: &config::Config) -> Self {
        self.store.record(SidecarRecord::of(config));
        let fingerprinter = fingerprinter(config);
        Self {
            hit_for_miss: Arc::new(WindowedCounts::new(HIT_FOR_MISS_TIME)),
            replacements: Arc::new(Replacements::new(config.ttl)),
            kept_apart: Arc::new(self.kept_apart.renewed(config.ttl)),
            foreign_values: Arc::new(WindowedCounts::new(config.ttl)),
            policy: policy(config, &fingerprinter),
            fingerprinter,
            settings: CacheSettings::from_config(config),
            ..self.clone()
        }
    }

    /// Returns the metrics of this cache.
    pub(crate) fn metrics(&self) -> &CacheMetrics {
        &self.metrics
    }

    /// The store behind the cache.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the routes whose jobs were seen to change without a purge.
    pub fn silent_changes(&self) -> Vec<SilentRoute> {
        self.silent_changes.routes()
    }

    /// Returns the request headers that are known to count. They must reach the upstream unchanged.
    pub fn fingerprinted_headers(&self) -> &[HeaderName] {
        self.fingerprinter.covered_headers()
    }

    /// Returns whether a request must bypass the cache because it carries a credential.
    pub fn must_bypass(&self, headers: &HeaderMap) -> bool {
        self.fingerprinter.must_bypass(headers)
    }

    /// Returns a new budget: the total time that one request may wait for the store.
    pub fn budget(&self) -> Budget {
        Budget::new(self.settings.store_budget)
    }

    /// Creates the lookup request for a GET or HEAD of a job at this route.
    pub fn lookup_request(
        &self,
        (id, route): (&JobId, RouteIndex),
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> LookupRequest {
        let (caller, variant) =
            self.fingerprinter.caller_and_variant(self.store.credential_key(), uri, headers);
        let identity = self.settings.scopes.hash(route, id.as_str());
        LookupRequest {
            key: self.key(id),
            route,
            identity,
            caller,
            coalesce_key: self.coalesce_key(caller, identity),
            directives: self.directives(headers),
            may_fill: *method == Method::GET,
            solo: false,
            variant,
        }
    }

    /// Changes a lookup request to the job `id` at `path`. The method and all headers must be the same
    /// as in the request that it was made from.
    pub fn retarget(
        &self,
        request: &mut LookupRequest,
        (id, route): (&str, RouteIndex),
        path: &str,
    ) {
        if request.variant.path() == path.as_bytes() {
            return;
        }
        request.key.rename(&self.settings.prefix, id);
        request.caller = self.fingerprinter.retarget(request.caller, &mut request.variant, path);
        request.route = route;
        request.identity = self.settings.scopes.hash(route, id);
        request.coalesce_key = self.coalesce_key(request.caller, request.identity);
    }

    fn coalesce_key(&self, caller: Caller, identity: IdentityHash) -> CoalesceKey {
        CoalesceKey { caller: self.fingerprinter.coalesce_key(caller), identity }
    }

    /// Returns what an entry under a key is of, for requests at this route.
    fn identity<'i>(&'i self, key: &'i Key, route: RouteIndex) -> Identity<'i> {
        let name = key.main();
        let id = name.strip_prefix(self.settings.prefix.as_str()).unwrap_or(name);
        self.settings.scopes.identity(route, id)
    }

    fn directives(&self, headers: &HeaderMap) -> RequestDirectives {
        let directives = RequestDirectives::of(headers);
        if self.settings.ignore_client_cache_control {
            directives.without_advisory()
        } else {
            directives
        }
    }

    fn key(&self, id: &JobId) -> Key {
        Key::new(&self.settings.prefix, id.as_str())
    }
}

impl CacheSettings {
    fn from_config(config: &config::Config) -> Self {
        Self {
            prefix: config.store.prefix.clone(),
            scopes: Scopes::new(config.api.as_deref(), &config.routes),
            store_budget: config.store.budget,
            settle: config.settle,
            linger: config.store.linger,
            fence: config.upstream.response_timeout + FENCE_MARGIN,
            hold: config.upstream.response_timeout,
            max_audience: config.credentials.audience,
            ignore_client_cache_control: config.ignore_client_cache_control,
            compress_above: config.store.compress_above,
        }
    }
}

fn fingerprinter(config: &config::Config) -> Fingerprinter {
    Fingerprinter::new(&config.credentials).with_query(Query::new(&config.query))
}

fn policy(config: &config::Config, fingerprinter: &Fingerprinter) -> Policy {
    Policy {
        ttl: config.ttl,
        stated_only: config.ttl_stated_only,
        max_body: config.max_body,
        vary: fingerprinter.covered_headers().to_vec(),
        ignored: fingerprinter.ignored_headers().to_vec(),
        state_ttls: StateTtls::new(&config.states),
        cookies: config.credentials.cookies.clone(),
        // Parsing never fails: the names were checked when the configuration was loaded.
        volatile: config.responses.volatile.iter().filter_map(|name| name.parse().ok()).collect(),
    }
}
