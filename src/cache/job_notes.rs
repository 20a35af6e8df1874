//! What this process has noted about jobs: attempts that are not worth repeating, and what keeps the
//! callers of a job apart.

use std::{sync::Arc, time::Duration};

use tracing::warn;

use super::{
    caller_splits::CallerSplits, entry::Entry, flight::CoalesceKey, kept_apart::KeptApart,
    lookup_request::LookupRequest, metrics::CacheMetrics, replacements::Replacements,
    shared_key::SharedKeyWarning, windowed_counts::WindowedCounts,
};
use crate::{
    config,
    semantics::audience::Standing,
    store::{Key, MAX_PAIRS_OF_CREDENTIAL, Token},
};

/// Duration of a hit-for-miss mark. After a response that could not be stored, readers of the job do
/// not queue behind each other for this long.
const HIT_FOR_MISS_TIME: Duration = Duration::from_secs(10);
/// Interval between two warnings about foreign values.
const FOREIGN_WARNING_INTERVAL: Duration = Duration::from_mins(1);
/// Number of foreign values of one job that are overwritten within a TTL. After that the key is left
/// to the other writer.
pub(super) const MAX_FOREIGN_VALUES: u32 = 3;

/// The notes of one generation of the configuration.
#[derive(Debug)]
pub(super) struct JobNotes {
    /// Jobs and coalesce keys that recently got a response that could not be stored.
    pub(super) hit_for_miss: WindowedCounts<(Key, CoalesceKey)>,
    pub(super) replacements: Replacements,
    /// Response headers that keep the callers of a job apart.
    pub(super) kept_apart: KeptApart,
    /// Foreign values found under each job's key.
    pub(super) foreign_values: WindowedCounts<Key>,
    pub(super) lasting: Arc<LastingNotes>,
}

/// The notes that survive a reload.
#[derive(Debug)]
pub(super) struct LastingNotes {
    /// Unknown request headers that keep callers apart.
    pub(super) caller_splits: CallerSplits,
    pub(super) shared_key_warning: SharedKeyWarning,
    /// Leases of other sidecars that a reader has waited for without result.
    pub(super) waited_leases: WindowedCounts<Token>,
    foreign_warnings: WindowedCounts<()>,
}

impl JobNotes {
    pub(super) fn new(config: &config::Config) -> Self {
        let lasting = Arc::new(LastingNotes {
            caller_splits: CallerSplits::default(),
            shared_key_warning: SharedKeyWarning::default(),
            waited_leases: WindowedCounts::new(config.store.lease),
            foreign_warnings: WindowedCounts::new(FOREIGN_WARNING_INTERVAL),
        });
        Self::with_lasting(config.ttl, KeptApart::new(config.ttl), lasting)
    }

    /// Returns the notes under another configuration. Counts start from zero: attempts that failed
    /// under the old configuration may succeed under the new one.
    pub(super) fn renewed(&self, ttl: Duration) -> Self {
        Self::with_lasting(ttl, self.kept_apart.renewed(ttl), Arc::clone(&self.lasting))
    }

    fn with_lasting(ttl: Duration, kept_apart: KeptApart, lasting: Arc<LastingNotes>) -> Self {
        Self {
            hit_for_miss: WindowedCounts::new(HIT_FOR_MISS_TIME),
            replacements: Replacements::new(ttl),
            kept_apart,
            foreign_values: WindowedCounts::new(ttl),
            lasting,
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

    /// Counts a foreign value. Returns whether its key is to be left to the program that stores such
    /// values there, because it does so too often.
    pub(super) fn yields_key(&self, key: &Key, metrics: &CacheMetrics) -> bool {
        metrics.foreign_values.inc();
        if self.lasting.foreign_warnings.add(()) == 1 {
            warn!(
                "another program stores values under the keys of this cache; switch off the \
                 application's own cache, but keep its DELs"
            );
        }
        self.foreign_values.add(key.clone()) > MAX_FOREIGN_VALUES
    }
}
