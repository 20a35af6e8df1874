//! The notes of this process about jobs: attempts that are not worth repeating, and what keeps the
//! callers of a job apart.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tracing::warn;

use super::{
    cache_config::CacheConfig,
    differing_headers::DifferingHeaders,
    entry::{self, Entry},
    flight::CoalesceKey,
    lookup_request::LookupRequest,
    metrics::CacheMetrics,
    replacements::Replacements,
    splitting_headers::SplittingHeaders,
    windowed_counts::WindowedCounts,
};
use crate::{
    config,
    observe::throttle::Throttle,
    semantics::audience::Standing,
    store::{Key, MAX_PAIRS_OF_CREDENTIAL, Seen, Token},
};

/// Duration of a hit-for-miss mark. After a response that could not be stored, readers of the job do
/// not queue behind each other for this long.
const HIT_FOR_MISS_TIME: Duration = Duration::from_secs(10);
/// Number of foreign values of one job that are overwritten within a TTL. After that the key is left
/// to the other writer.
const MAX_FOREIGN_VALUES: u32 = 3;

/// The notes of one generation of the configuration.
#[derive(Debug)]
pub(super) struct JobNotes {
    /// Jobs and coalesce keys that recently got a response that could not be stored.
    pub(super) hit_for_miss: WindowedCounts<(Key, CoalesceKey)>,
    pub(super) replacements: Replacements,
    /// Response headers that keep the callers of a job apart.
    pub(super) differing_headers: DifferingHeaders,
    /// Foreign values found under each job's key.
    pub(super) foreign_values: WindowedCounts<Key>,
    pub(super) of_process: Arc<ProcessNotes>,
}

/// The notes of this process, which a reload keeps.
#[derive(Debug)]
pub(super) struct ProcessNotes {
    /// Unknown request headers that keep callers apart.
    pub(super) splitting_headers: SplittingHeaders,
    pub(super) shared_key_warning: SharedKeyWarning,
    /// Leases of other sidecars that a reader has waited for without result.
    pub(super) waited_leases: WindowedCounts<Token>,
    foreign_warnings: Throttle,
}

impl JobNotes {
    pub(super) fn new(config: &config::Config) -> Self {
        let of_process = Arc::new(ProcessNotes {
            splitting_headers: SplittingHeaders::default(),
            shared_key_warning: SharedKeyWarning::default(),
            waited_leases: WindowedCounts::new(config.store.lease),
            foreign_warnings: Throttle::default(),
        });
        Self::with(config.ttl, DifferingHeaders::new(config.ttl), of_process)
    }

    /// Returns the notes under another configuration. Counts start from zero: attempts that failed
    /// under the old configuration may succeed under the new one.
    pub(super) fn reconfigured(&self, ttl: Duration) -> Self {
        Self::with(ttl, self.differing_headers.reconfigured(ttl), Arc::clone(&self.of_process))
    }

    fn with(
        ttl: Duration,
        differing_headers: DifferingHeaders,
        of_process: Arc<ProcessNotes>,
    ) -> Self {
        Self {
            hit_for_miss: WindowedCounts::new(HIT_FOR_MISS_TIME),
            replacements: Replacements::new(ttl),
            differing_headers,
            foreign_values: WindowedCounts::new(ttl),
            of_process,
        }
    }

    pub(super) fn is_hit_for_miss(&self, request: &LookupRequest) -> bool {
        self.hit_for_miss.count(&(request.key.clone(), request.coalesce_key)) > 0
    }

    /// Returns whether an entry cannot take the caller into its audience of at most `max` callers.
    /// Renewing a lapsed caller does not make the audience larger, and neither does a caller that
    /// replaces another pair of its own credential.
    pub(super) fn is_closed(
        &self,
        request: &LookupRequest,
        entry: &Entry,
        standing: Standing,
        max: usize,
    ) -> bool {
        let audience = entry.audience();
        let is_full = audience.members.len() >= max
            && audience.pairs_of_credential(request.caller) < MAX_PAIRS_OF_CREDENTIAL;
        self.replacements.is_exhausted(&request.key, request.caller.credential())
            || is_full && standing == Standing::Outside
    }

    /// Returns whether the key is left to another program, because it has stored its own values there
    /// too often.
    pub(super) fn yields_key(&self, key: &Key) -> bool {
        self.foreign_values.count(key) >= MAX_FOREIGN_VALUES
    }

    /// Counts a foreign value under a key, with a warning.
    pub(super) fn count_foreign_value(&self, key: &Key, metrics: &CacheMetrics) {
        metrics.foreign_values.inc();
        if self.of_process.foreign_warnings.admit("foreign value").is_some() {
            warn!(
                "another program stores values under the keys of this cache; switch off the \
                 application's own cache, but keep its DELs"
            );
        }
        self.foreign_values.add(key.clone());
    }
}

/// The warning about a Redis key that two routes or two APIs give to different jobs: whether it has
/// been given.
#[derive(Debug, Default)]
pub(super) struct SharedKeyWarning(AtomicBool);

impl SharedKeyWarning {
    /// Warns once that the value under the key of a request is of another API, route or job. The two
    /// replace each other, so neither is cached for long.
    pub(super) fn give(&self, config: &CacheConfig, request: &LookupRequest, seen: &Seen) {
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let ours = config.identity(&request.key, request.route);
        let (other_api, other_route) = entry::origin_of(seen).unwrap_or_default();
        let remedy = if other_api == ours.api {
            "poll each job by one route, or give one route a sidecar of its own with another store.prefix"
        } else {
            "give one of the APIs another store.prefix, such as its name"
        };
        warn!(
            api = ours.api,
            route = ours.route,
            other_api,
            other_route,
            prefix = config.settings.prefix,
            remedy,
            "two routes or two APIs share the Redis key of a job and replace each other's entries"
        );
    }
}
