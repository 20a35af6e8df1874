//! Reads jobs before clients ask for them: at startup, and after purges that request it.
//!
//! Jobs wait in a bounded queue (`warm.max`) that holds each job once: one read that begins after
//! the last of several purges is as good as one read for each. The queue is read at `warm.rate`,
//! with at most `CONCURRENCY` reads at a time, through `proxy` like the GET of a client. Temporary
//! obstacles (the fence of a write, an upstream or a store that is not there yet) are retried for
//! up to `PATIENCE`. Without the store nothing is read from the upstream, because nothing could be
//! stored.
//!
//! Warming does not change who may get an entry, delays neither clients nor readiness, and keeps
//! nothing warm: an expired entry is read again when a client asks for it.

mod queue;
pub mod sources;

use std::{sync::Arc, time::Duration};

use futures_util::future::join3;
use hyper::HeaderMap;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tracing::{error, info, warn};

use self::{
    queue::{Item, RetryPauses, WarmQueue},
    sources::{headers, listed},
};
use crate::{
    config::{self, Config},
    observe::metrics::{Counters, Registry},
    proxy::{PrefetchOutcome, Proxy},
    semantics::job_id::JobId,
    service::{Drain, until_drain},
};

/// Maximum number of concurrent reads.
const CONCURRENCY: usize = 8;

/// Handle for queueing jobs to be read.
#[derive(Clone)]
pub struct Warmer {
    queue: Arc<WarmQueue>,
    metrics: Arc<WarmMetrics>,
    /// Whether no headers are configured, so that the reads lack those that clients send.
    lacks_headers: bool,
}

/// Reads the queued jobs, and those that the configuration names.
pub struct WarmWorker {
    warmer: Warmer,
    /// Headers of the reads. They select the credential and the representation.
    headers: HeaderMap,
    config: config::WarmConfig,
    period: Duration,
}

/// Sources of job ids, as metric labels.
const FILE: &str = "file";
const LIST: &str = "list";

impl Warmer {
    /// A warning if clients will probably not get the entries that are read.
    pub fn headers_warning(&self) -> Option<&'static str> {
        self.lacks_headers.then_some(
            "warm.headers is not set: jobs are read without Host, Accept and similar headers, so clients \
             that send any of these do not get the entries",
        )
    }

    /// Queues jobs to be read, and returns how many of them are queued now.
    pub fn refresh(&self, jobs: &[JobId]) -> usize {
        let taken = jobs.iter().filter(|job| self.queue.add((*job).clone())).count();
        self.metrics.count(PrefetchOutcome::Overflow.as_str(), jobs.len() - taken);
        self.metrics.set_waiting(self.queue.len());
        taken
    }
}

impl WarmWorker {
    /// Creates the worker. It reads nothing until [`WarmWorker::run`].
    pub fn new(config: &Config, registry: &mut Registry) -> Self {
        let queue = Arc::new(WarmQueue::with_max(config.warm.max));
        let is_bare = config.warm.headers.is_empty();
        let metrics = Arc::new(WarmMetrics::register(registry));
        let warmer = Warmer { queue, metrics, lacks_headers: is_bare };
        let headers = headers(config);
        let rate = u32::try_from(config.warm.rate).unwrap_or(u32::MAX);
        Self { warmer, headers, config: config.warm.clone(), period: Duration::from_secs(1) / rate }
    }

    /// Handle for queueing jobs.
    pub fn warmer(&self) -> Warmer {
        self.warmer.clone()
    }

    /// Reads jobs until the drain begins. `proxy` returns the proxy to use for the next read.
    pub async fn run(self, proxy: impl Fn() -> Arc<Proxy>, mut drain: Drain) {
        let mut reads = JoinSet::new();
        let (file, list) = (self.take_file(&proxy), self.take_list(&proxy));
        tokio::select! {
            // Also stops if the sender of the drain is gone.
            () = until_drain(&mut drain) => {}
            _ = join3(file, list, self.read_all(&proxy, &mut reads)) => {}
        }
        // Reads in progress continue, because others wait for the leases that they hold. `proxy`
        // waits for its reads.
        reads.detach_all();
        self.warmer.queue.close();
    }

    async fn take_file(&self, proxy: &impl Fn() -> Arc<Proxy>) {
        let Some(path) = self.config.file.clone() else { return };
        let path_text = path.display().to_string();
        let routes = Arc::clone(proxy().routes());
        let read = spawn_blocking(move || sources::in_file(&path, &routes)).await;
        match read {
            Ok(Ok(found)) => self.take(FILE, &found),
            Ok(Err(error)) => {
                warn!(
                    path = path_text,
                    %error,
                    "cannot read warm.file, so its jobs are not warmed: set it to a file with one id per \
                     line that this user can read, and restart"
                );
                self.warmer.metrics.sources.inc([FILE, "failed"]);
            }
            // The runtime is shutting down.
            Err(_) => {}
        }
    }

    /// Reads the list. The upstream may start at the same time as this process, so failures are
    /// retried.
    async fn take_list(&self, proxy: &impl Fn() -> Arc<Proxy>) {
        let Some(target) = &self.config.list else { return };
        let mut pauses = RetryPauses::begin();
        let mut has_warned = false;
        let error = loop {
            if !proxy().allows_prefetch() {
                info!("mode is off; warm.list is not read");
                return;
            }
            let error = match listed(&proxy(), target, &self.headers, &self.config).await {
                Ok(found) => return self.take(LIST, &found),
                Err(error) => error,
            };
            let Some(pause) = pauses.next() else { break error };
            // At startup the upstream may not be there yet. An unusable answer may stay as it is,
            // so it is reported at once.
            if !has_warned && error.is_an_answer() {
                has_warned = true;
                warn!(list = %target, %error, "cannot read warm.list; retrying for two minutes");
            }
            sleep(pause).await;
        };
        warn!(list = %target, %error, "cannot read warm.list, so its jobs are not warmed");
        self.warmer.metrics.sources.inc([LIST, "failed"]);
    }

    fn take(&self, source: &'static str, found: &sources::FoundIds) {
        let taken = self.warmer.refresh(&found.jobs);
        let jobs = found.jobs.len();
        let unreadable = found.unreadable;
        self.warmer.metrics.sources.inc([source, "read"]);
        if taken < jobs || unreadable > 0 || jobs == 0 {
            let pointer = (source == LIST).then(|| self.config.pointer.to_string());
            let first = found.first_unreadable.as_deref();
            warn!(
                source,
                jobs,
                taken,
                unreadable,
                first,
                pointer,
                "some jobs will not be warmed: correct the invalid ids, set warm.pointer to lead to the \
                 ids, or raise warm.max"
            );
        } else {
            info!(source, jobs, "jobs are queued for warming");
        }
    }

    async fn read_all(
        &self,
        proxy: &impl Fn() -> Arc<Proxy>,
        reads: &mut JoinSet<(Item, PrefetchOutcome)>,
    ) {
        let mut next_at = Instant::now();
        loop {
            let next = async {
                sleep_until(next_at).await;
                self.warmer.queue.next().await
            };
            tokio::select! {
                item = next, if reads.len() < CONCURRENCY => {
                    next_at = Instant::now() + self.period;
                    self.warmer.metrics.set_waiting(self.warmer.queue.len());
                    let proxy = proxy();
                    let headers = self.headers.clone();
                    reads.spawn(async move {
                        let outcome = proxy.prefetch(&item.job, &headers).await;
                        (item, outcome)
                    });
                }
                Some(read) = reads.join_next() => {
                    match read {
                        Ok((item, outcome)) => self.conclude(item, outcome),
                        Err(error) => {
                            error!(%error, "a prefetch task died");
                            self.warmer.metrics.count(PrefetchOutcome::Died.as_str(), 1);
                        }
                    }
                }
            }
        }
    }

    /// Counts the outcome of a read, unless the read will be retried.
    fn conclude(&self, mut item: Item, outcome: PrefetchOutcome) {
        let pause = if outcome.is_transient() { item.pauses.next() } else { None };
        match pause {
            Some(pause) => {
                self.warmer.metrics.postponed.inc([outcome.as_str()]);
                self.warmer.queue.postpone(item, Instant::now() + pause);
            }
            None => self.warmer.metrics.count(outcome.as_str(), 1),
        }
        self.warmer.metrics.set_waiting(self.warmer.queue.len());
    }
}

/// The metrics of cache warming.
#[derive(Debug)]
struct WarmMetrics {
    outcomes: Counters<1>,
    postponed: Counters<1>,
    /// Labels: source (`file` or `list`) and outcome (`read` or `failed`).
    sources: Counters<2>,
    waiting: Gauge,
}

impl WarmMetrics {
    fn register(r: &mut Registry) -> Self {
        let transient = PrefetchOutcome::ALL.into_iter().filter(|outcome| outcome.is_transient());
        let sources = [FILE, LIST].map(|source| ["read", "failed"].map(|read| [source, read]));
        Self {
            outcomes: r.counters_by(
                "outcome",
                "warm",
                "Jobs to be read ahead, by outcome",
                PrefetchOutcome::WORDS,
            ),
            postponed: r.counters_by(
                "outcome",
                "warm_postponed",
                "Attempts to read a job ahead that are to be repeated, by cause",
                transient.map(PrefetchOutcome::as_str),
            ),
            sources: r.counters(
                "warm_sources",
                "Files and lists of jobs to be read ahead, by outcome",
                ["source", "outcome"],
                sources.into_iter().flatten(),
            ),
            waiting: r.gauge("warm_waiting", "Jobs that wait to be read ahead"),
        }
    }

    /// Counts jobs by the final outcome of their reads.
    fn count(&self, outcome: &'static str, jobs: usize) {
        if jobs > 0 {
            self.outcomes.add([outcome], jobs as u64);
        }
    }

    /// Sets how many jobs wait to be read.
    fn set_waiting(&self, jobs: usize) {
        self.waiting.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }
}
