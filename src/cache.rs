//! Reads, writes and purges of jobs: joins policy, flights and store.
//!
//! The cache never contacts the upstream. A reader that must do so gets a [`LeaderRead`], and
//! `proxy` fetches.
//!
//! The [`CacheReader`] looks up, the [`Filler`] shares and stores, and the [`Invalidator`] drops: for
//! writes and purges, and for a [`Comparison`] that finds an entry wrong. They share the state and
//! the configuration in `shared_state`. A reload replaces the configuration, and the notes about jobs
//! in `job_notes`. All decisions about a read are in `decide`, and `forecast` explains them.

mod comparison;
mod decide;
pub mod entry;
mod fill;
mod fill_result;
pub mod flight;
pub mod forecast;
mod foreign_cache;
mod held_fill;
mod held_lease;
mod invalidate;
mod job_news;
mod job_notes;
mod lookup;
mod placeholder_repeat;
mod reader;
mod shared_purge_all;
mod shared_state;
mod silent_changes;

pub use comparison::{Comparison, ComparisonResult};
pub use decide::{BeforeLookup, LookupRequest};
pub use entry::ChangeId;
pub use fill::{Filler, LeaderRead, PublishedRead};
pub use fill_result::{AbandonReason, FillResult};
pub use invalidate::{
    EndStage, FenceEnd, Invalidator, OUTCOME_UNKNOWN, PurgeAllOutcome, PurgeOutcome, PurgeReceipt,
    RELOAD_WAIT, WriteOutcome,
};
pub use job_news::NewsListener;
pub use lookup::Lookup;
pub use reader::{CacheReader, NearLookup};
pub use shared_state::InvalidationSource;
pub use silent_changes::SilentRoute;

use std::{sync::Arc, time::Duration};

use hyper::http::{HeaderMap, Method, Uri, response};

use self::{
    job_notes::JobNotes,
    shared_purge_all::SharedPurgeAll,
    shared_state::{CacheConfig, CacheMetrics, SharedState},
};
use crate::{
    config::Config,
    observe::{
        events::{EventKind, Events, HitSample},
        metrics::Registry,
    },
    semantics::{audience::Fingerprinter, identity::ReadJob, policy::Bypass},
    store::{Budget, Key, SidecarRecord, Store, StoreError, WriteBudget},
};

/// The cache of job reads.
///
/// A [reconfigured](Cache::reconfigured) cache shares all state with the original, except for what
/// its configuration determines.
pub struct Cache {
    state: Arc<SharedState>,
    config: Arc<CacheConfig>,
    /// Looks up reads.
    pub reader: CacheReader,
    /// Shares and stores the responses of reads.
    pub filler: Filler,
    /// Invalidates jobs, for writes, purges and comparisons.
    pub invalidator: Arc<Invalidator>,
}

impl Cache {
    /// Opens the store that the configuration names and creates the cache on top of it.
    ///
    /// # Errors
    ///
    /// Fails if [`Store::open`] does.
    pub fn open(
        config: &Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, StoreError> {
        let state = Arc::new(SharedState::open(config, registry, events)?);
        Ok(Self::of_state(state, Arc::default(), config))
    }

    /// Returns the same cache under another configuration of the same store.
    ///
    /// The counts of unstorable responses, replacements and foreign values start from zero:
    /// attempts that failed under the old configuration may succeed under the new one.
    #[must_use]
    pub fn reconfigured(&self, config: &Config) -> Self {
        self.state.store.record(SidecarRecord::of(config));
        let shared_purge_all = Arc::clone(&self.invalidator.shared_purge_all);
        Self::of_state(Arc::clone(&self.state), shared_purge_all, config)
    }

    fn of_state(state: Arc<SharedState>, purge_all: Arc<SharedPurgeAll>, config: &Config) -> Self {
        let notes = Arc::new(JobNotes::new(config.cache.lifetimes.ttl));
        let config = Arc::new(CacheConfig::new(config));
        let (of_state, of_config) = (|| Arc::clone(&state), || Arc::clone(&config));
        let invalidator = Arc::new(Invalidator {
            state: of_state(),
            config: of_config(),
            shared_purge_all: purge_all,
        });
        let filler = Filler { state: of_state(), config: of_config(), notes: Arc::clone(&notes) };
        let reader = CacheReader { state: of_state(), config: of_config(), notes };
        Self { state, config, reader, filler, invalidator }
    }

    /// Returns the metrics of this cache.
    pub(crate) fn metrics(&self) -> &CacheMetrics {
        &self.state.metrics
    }

    /// The recent events of jobs.
    pub(crate) fn events(&self) -> &Events {
        &self.state.events
    }

    /// The store behind the cache.
    pub fn store(&self) -> &Store {
        &self.state.store
    }

    /// Returns the routes with jobs that were seen to change without a purge.
    pub fn silent_changes(&self) -> Vec<SilentRoute> {
        self.state.silent_changes.routes()
    }

    /// Takes the fingerprints of requests.
    pub fn fingerprinter(&self) -> &Fingerprinter {
        &self.config.fingerprinter
    }

    /// Whether the jobs of this prefix are left to an application that caches them itself.
    pub fn is_aside(&self, prefix: u8) -> bool {
        self.state.notes.foreign_caches.is_aside(self.config.prefix(prefix.into()))
    }

    /// Returns the prefixes that are left to such an application, each with the time that is left.
    pub fn prefixes_aside(&self) -> Vec<(String, Duration)> {
        self.state.notes.foreign_caches.prefixes()
    }

    /// Returns a new budget: the total time that one request may wait for the store.
    pub fn budget(&self) -> Budget {
        self.config.budget()
    }

    /// Returns the budgets of a write.
    pub fn write_budget(&self) -> WriteBudget {
        WriteBudget::new(self.config.store_budget)
    }

    /// Creates the lookup request for a GET or HEAD of a job.
    pub fn lookup_request(
        &self,
        job: &ReadJob<'_>,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> LookupRequest {
        let (caller, variant) = self.config.fingerprinter.caller_and_variant(
            self.state.store.credential_key(),
            uri,
            headers,
        );
        let identity = self.config.scopes.hash(&job.place, &job.key);
        LookupRequest {
            key: Key::new(self.config.prefix(job.prefix.into()), &job.key),
            place: job.place.clone(),
            identity,
            caller,
            coalesce_key: self.config.coalesce_key(caller, identity),
            directives: self.config.directives(headers),
            may_fill: *method == Method::GET,
            solo: false,
            rechecks: false,
            other_entries: decide::OtherEntries::default(),
            variant,
        }
    }

    /// Changes a lookup request to the job at `path`. The method and all headers must be the
    /// same as in the request that it was made from.
    pub fn retarget(&self, request: &mut LookupRequest, job: ReadJob<'_>, path: &str) {
        if request.variant.path() == path.as_bytes() {
            return;
        }
        request.key.rename(self.config.prefix(job.prefix.into()), &job.key);
        request.caller =
            self.config.fingerprinter.retarget(request.caller, &mut request.variant, path);
        request.identity = self.config.scopes.hash(&job.place, &job.key);
        request.place = job.place;
        request.coalesce_key = self.config.coalesce_key(request.caller, request.identity);
    }

    /// Compares the head of the response to a GET without conditions. Returns whether the body has
    /// to be compared.
    pub fn compare_head(&self, comparison: &mut Comparison, head: &response::Parts) -> bool {
        let policy = self.config.policy(comparison.route());
        comparison.compare_head(head, policy, self.state.store.now_ms())
    }

    /// Records the answer to a read of a job. `why` is empty if there is nothing to add. Hits are
    /// recorded only if they are sampled.
    pub fn record_answer(
        &self,
        request: &LookupRequest,
        what: EventKind,
        why: &'static str,
        sample: Option<&HitSample>,
    ) {
        let count = match (what, sample) {
            (EventKind::Hit, None) => return,
            (EventKind::Hit, Some(sample)) => {
                self.state.metrics.hit_times.observe(sample.elapsed(), sample.weight());
                sample.weight()
            }
            (EventKind::Miss, Some(sample)) => {
                self.state.metrics.miss_times.observe(sample.elapsed(), 1);
                1
            }
            _ => 1,
        };
        self.state.events.record_request(request.key.main(), what, why, count);
    }

    /// Records a read of a job that bypassed the cache without a lookup.
    pub fn record_pass(&self, job: &ReadJob<'_>, why: Bypass) {
        let key = Key::new(self.config.prefix(job.prefix.into()), &job.key);
        self.state.events.record_request(key.main(), EventKind::Pass, why.as_str(), 1);
    }
}
