//! The configuration and the state that the parts of the cache share. A reload replaces the
//! configuration. It keeps the state: the store, everything that a change of a job has to reach, and
//! the metrics.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use hyper::http::HeaderMap;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{
    entry::Entry,
    flight::{CoalesceKey, Flights},
    foreign_cache::ForeignCaches,
    job_news::JobNews,
    job_notes::{SplittingHeaders, WindowedCounts},
    silent_changes::{ChangeWatcher, SilentChanges},
};
use crate::{
    config::{CachingConfig, Config, NearMode, PushMode, StoreUrl},
    limits::{Limit, LimitHits, Quota},
    observe::{
        events::Events,
        metrics::{Counters, RecentTimes, Registry},
        throttle::{HourlyPerName, Throttle},
    },
    semantics::{
        audience::{Caller, Fingerprinter},
        identity::{Identity, Place, RouteIndex, Scopes},
        job_id::JobId,
        labels::labels,
        policy::{NoStore, Policy, RequestDirectives},
        settings::{RouteConfig, StateTtlConfig},
    },
    store::{
        Budget, Ended, IdentityHash, Key, NearMetrics, Store, StoreError, Token,
        near::{NearEntries, Noted, Watcher},
    },
};

/// Margin that is added to the upstream's response timeout, so that a fence outlives its write.
const FENCE_MARGIN: Duration = Duration::from_secs(10);

/// How long an entry that was found wrong is remembered, for concurrent comparisons with it.
const WRONG_ENTRY_MEMORY: Duration = Duration::from_secs(10);

/// The state that survives reloads.
pub(super) struct SharedState {
    pub(super) store: Store,
    /// The near entries of this process, unless they are switched off or the store itself is here.
    pub(super) near: Option<Arc<NearEntries<Arc<Entry>>>>,
    pub(super) flights: Arc<Flights>,
    pub(super) silent_changes: Arc<SilentChanges>,
    /// Those that wait for jobs to change.
    pub(super) news: Arc<JobNews>,
    /// Limits the memory of responses that are being read into the cache.
    pub(super) capture_quota: Arc<Quota>,
    /// Entries that a comparison found to differ from the upstream's response.
    pub(super) wrong_entries: WindowedCounts<Token>,
    pub(super) notes: ProcessNotes,
    pub(super) metrics: CacheMetrics,
    pub(super) events: Arc<Events>,
}

/// The notes of this process that a reload keeps, and the throttles of the warnings about them.
#[derive(Default)]
pub(super) struct ProcessNotes {
    /// Unknown request headers that keep callers apart.
    pub(super) splitting_headers: SplittingHeaders,
    pub(super) wrong_entry_warnings: Throttle,
    pub(super) pending_warnings: Throttle,
    pub(super) foreign_value_warnings: Throttle,
    pub(super) foreign_caches: ForeignCaches,
    pub(super) differing_header_warnings: HourlyPerName,
    /// Whether two routes or two APIs were seen to share the key of a job.
    pub(super) has_shared_key: AtomicBool,
}

impl SharedState {
    /// Opens the store that the configuration names.
    pub(super) fn open(
        config: &Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, StoreError> {
        events.set_key_prefixes(config.prefixes());
        let metrics = CacheMetrics::register(registry);
        let has_near =
            config.cache.near.mode != NearMode::Off && config.store.url != StoreUrl::Memory;
        let near = has_near.then(|| {
            let weigh = |entry: &Arc<Entry>| entry.weight();
            let (metrics, events) = (Arc::clone(&metrics.near), Arc::clone(&events));
            Arc::new(NearEntries::new(config.cache.near.max_bytes, weigh, metrics, events))
        });
        let silent_changes = Arc::new(SilentChanges::new(metrics.silent_changes.clone()));
        let news = Arc::<JobNews>::default();
        let has_news = config.push.mode != PushMode::Off && config.store.url != StoreUrl::Memory;
        let watcher = (near.is_some() || has_news).then(|| {
            let near = near.clone().map(|near| near as Arc<dyn Watcher>);
            let (silent_changes, news) = (Arc::clone(&silent_changes), Arc::clone(&news));
            Arc::new(ChangeWatcher { near, silent_changes, news }) as Arc<dyn Watcher>
        });
        let store = Store::open(config, registry, Arc::clone(&events), watcher)?;
        let hits = LimitHits::shared(registry);
        let flights =
            Quota::of(Limit::Flights, config.cache.limits.max_flights, &metrics.flights, &hits);
        let captured =
            Quota::of(Limit::Captured, config.cache.limits.max_captured, &metrics.captured, &hits);
        Ok(Self {
            store,
            near,
            flights: Arc::new(Flights::new(flights)),
            silent_changes,
            news,
            capture_quota: captured,
            wrong_entries: WindowedCounts::new(WRONG_ENTRY_MEMORY),
            notes: ProcessNotes::default(),
            metrics,
            events,
        })
    }

    /// Notes that a key is about to be read, and asks for reports of its changes; must be called before
    /// the store is read. Returns `None` without near entries and while changes are not tracked.
    pub(super) async fn note_near(&self, key: &Key, budget: &mut Budget) -> Option<Noted> {
        let noted = self.near.as_ref().map(|near| near.note(key));
        if noted.is_none() && !self.news.is_listened_to(key) {
            return None;
        }
        // Tracking is requested only after the note: if it began between the two, the note would be
        // void.
        self.store.follow(key, budget).await.ok()?;
        noted
    }

    /// Returns whether there is a near entry of the job.
    pub(super) fn is_near(&self, key: &Key) -> bool {
        self.near.as_ref().is_some_and(|near| near.holds(key))
    }

    /// Invalidates these jobs in this process: detaches their flights, evicts their near entries, and
    /// drops what is remembered to find silent changes. Returns how many flights each job had.
    pub(super) fn invalidate_locally(&self, keys: &[Key]) -> Vec<usize> {
        let flights = keys.iter().map(|key| self.flights.detach(key)).collect();
        self.silent_changes.forget(keys);
        // At once, without waiting for Redis to report the change. So a client that writes through
        // this process reads its own write even in bounded mode.
        if let Some(near) = &self.near {
            for key in keys {
                near.evict(key.main().as_bytes());
            }
        }
        for key in keys {
            self.news.report(key.main().as_bytes());
        }
        flights
    }

    /// Invalidates all jobs in this process. Returns how many flights there were.
    pub(super) fn invalidate_all_locally(&self) -> usize {
        let flights = self.flights.detach_all();
        self.silent_changes.forget_all();
        if let Some(near) = &self.near {
            near.flush();
        }
        self.news.report_all();
        flights
    }
}

/// The configuration of requests, responses and times: what jobs and callers are called, and which
/// responses are stored for how long. A reload replaces it.
pub(super) struct CacheConfig {
    pub(super) fingerprinter: Fingerprinter,
    /// One for each route, in their order.
    policies: Vec<Policy>,
    pub(super) scopes: Scopes,
    pub(super) settings: CachingConfig,
    /// Beginnings of the names of keys. The first one is that of routes without one of their own.
    prefixes: Vec<String>,
    /// Size in bytes above which bodies are compressed, if they are.
    pub(super) compress_above: Option<usize>,
    /// Time for which the fence of a write with an unknown outcome stands.
    pub(super) linger: Duration,
    /// Time for which the upstream may take to answer.
    pub(super) response_timeout: Duration,
    /// Total time that one request may wait for the store.
    pub(super) store_budget: Duration,
}

impl CacheConfig {
    pub(super) fn new(config: &Config) -> Self {
        let Config { api, cache, store, upstream, .. } = config;
        let fingerprinter = Fingerprinter::new(&cache.credentials).with_query(api.query.clone());
        // Parsing never fails: the names were checked when the configuration was loaded.
        let volatile = cache.responses.volatile.iter().filter_map(|name| name.parse().ok());
        let volatile: Vec<_> = volatile.collect();
        let policy = |route: &RouteConfig| Policy {
            ttl: route.ttl.unwrap_or(cache.lifetimes.ttl),
            statuses: route.statuses.clone().unwrap_or_default(),
            stated_only: cache.lifetimes.stated_only,
            max_body: cache.limits.max_body,
            vary: fingerprinter.covered_headers().to_vec(),
            ignored: fingerprinter.ignored_headers().to_vec(),
            state_ttls: Some(StateTtlConfig {
                pointer: cache.lifetimes.states.pointer.clone(),
                map: route.states.as_ref().unwrap_or(&cache.lifetimes.states.map).clone(),
            }),
            cookies: cache.credentials.cookies.clone(),
            volatile: volatile.clone(),
        };
        let routes = api.routes();
        let policies = routes.iter().map(policy).collect();
        Self {
            fingerprinter,
            policies,
            scopes: Scopes::new(api.name.as_deref(), routes.iter().map(|route| &*route.path)),
            settings: cache.clone(),
            prefixes: config.prefixes(),
            compress_above: store.compress_above,
            linger: store.linger,
            response_timeout: upstream.response_timeout,
            store_budget: store.budget,
        }
    }

    /// Returns a new budget: the total time that one request may wait for the store.
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.store_budget)
    }

    /// Returns the time after which the fence of a write falls by itself if it is not renewed.
    pub(super) fn fence_ttl(&self) -> Duration {
        self.response_timeout + FENCE_MARGIN
    }

    /// Returns the greatest age of the knowledge about changes in Redis; zero in strict mode.
    pub(super) fn max_staleness(&self) -> Duration {
        match self.settings.near.mode {
            NearMode::Bounded => self.settings.near.max_staleness,
            NearMode::Strict | NearMode::Off => Duration::ZERO,
        }
    }

    /// Returns the key of a job.
    pub(super) fn key(&self, id: &JobId) -> Key {
        Key::new(self.prefix(id.prefix()), id.as_str())
    }

    /// Returns the prefix at this position.
    pub(super) fn prefix(&self, position: usize) -> &str {
        self.prefixes.get(position).map_or("", String::as_str)
    }

    /// Returns the prefix of a key.
    pub(super) fn prefix_of(&self, key: &Key) -> &str {
        let prefix = self.prefixes.iter().find(|prefix| key.main().starts_with(prefix.as_str()));
        prefix.map_or("", String::as_str)
    }

    /// Returns the name of a job for people: its key without the prefix.
    pub(super) fn id<'k>(&self, key: &'k Key) -> &'k str {
        key.main().strip_prefix(self.prefix_of(key)).unwrap_or_default()
    }

    /// Returns what an entry under a key is of, for requests at this place.
    pub(super) fn identity<'i>(&'i self, key: &'i Key, place: &'i Place) -> Identity<'i> {
        self.scopes.identity(place, self.id(key))
    }

    /// Returns which responses to reads at this route are stored.
    pub(super) fn policy(&self, route: RouteIndex) -> &Policy {
        // The first one for a route of another configuration, which a reload has just replaced.
        self.policies.get(route.position()).unwrap_or(&self.policies[0])
    }

    pub(super) fn coalesce_key(&self, caller: Caller, identity: IdentityHash) -> CoalesceKey {
        CoalesceKey { caller: self.fingerprinter.coalesce_key(caller), identity }
    }

    pub(super) fn directives(&self, headers: &HeaderMap) -> RequestDirectives {
        let directives = RequestDirectives::of(headers);
        if self.settings.ignore_client_cache_control {
            directives.without_advisory()
        } else {
            directives
        }
    }
}

labels! {
    /// Cause of an invalidation; a label of its metric.
    pub enum InvalidationSource {
        /// A write, before it is answered.
        Write = "write",
        /// A write, after one of its bodies has ended.
        WriteBody = "write-body",
        /// A write or a reload that changes every job.
        WriteAll = "write-all",
        /// A purge of some jobs on request.
        Purge = "purge",
        /// A purge of all jobs on request.
        PurgeAll = "purge-all",
        /// A comparison with the upstream, which has found a wrong entry.
        Comparison = "evidence",
    }
}

/// The metrics of the cache.
pub(crate) struct CacheMetrics {
    pub(super) fills: Counters<1>,
    /// Invalidations by source and by outcome.
    pub(super) invalidations: Counters<2>,
    /// Values under jobcache keys that another program wrote, and prefixes left to an application that
    /// fails at the placeholder.
    pub(super) foreign_values: Counter,
    /// Jobs that had changed after their TTL although no change was reported.
    pub(crate) silent_changes: Counter,
    /// Upstream reads that other requests may share.
    pub(crate) flights: Gauge,
    /// Bytes of responses that are held until they are stored.
    pub(crate) captured: Gauge,
    pub(crate) near: Arc<NearMetrics>,
    /// Recent times from a request to its response head, for sampled hits.
    pub(crate) hit_times: Arc<RecentTimes>,
    /// The same for misses.
    pub(crate) miss_times: Arc<RecentTimes>,
}

impl CacheMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let outcomes = |source| Ended::WORDS.map(|ended| [source, ended]);
        Self {
            fills: r.counters_by(
                "outcome",
                "fills",
                "Fills by outcome",
                ["stored", "revoked", "failed"].into_iter().chain(NoStore::WORDS),
            ),
            invalidations: r.counters(
                "invalidations",
                "Invalidations by source and outcome",
                ["source", "outcome"],
                InvalidationSource::WORDS.into_iter().flat_map(outcomes),
            ),
            foreign_values: r.counter(
                "foreign_values",
                "Values under jobcache keys that another program wrote, and prefixes left to an \
                 application that fails at the placeholder",
            ),
            silent_changes: r.counter(
                "silent_changes",
                "Jobs that had changed after their TTL although no write, purge or DEL was seen",
            ),
            flights: r.gauge(
                "flights",
                "Upstream reads that other requests may share, under way or next",
            ),
            captured: r.bytes("captured", "Responses held in memory until they are stored"),
            near: Arc::new(NearMetrics::register(r)),
            hit_times: Arc::default(),
            miss_times: Arc::default(),
        }
    }
}
