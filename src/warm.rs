//! Reads jobs before clients ask for them: at the start, and after purges that ask for it.
//!
//! What is to be read waits in a queue that is bounded (`warm.max`) and holds each job once: one read
//! that begins after the last of its purges is worth as much as one for each. It is read at `warm.rate`,
//! `CONCURRENCY` at a time, through `proxy` as a client's GET would be. What stands in the way and
//! passes (the fence of a write, an upstream or a store that is not there yet) is waited for, for
//! `PATIENCE`; without the store nothing is read from the upstream, for nothing could be stored.
//!
//! It changes nothing about who may be given an entry, delays no client and no readiness, and keeps
//! nothing warm: an entry that expires is read again when somebody asks.

mod ids;
pub mod probe;
mod queue;

use std::{sync::Arc, time::Duration};

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tracing::{error, info, warn};

use self::queue::{Item, Queue};
use crate::{
    cache::key::JobId,
    config::{self, Config},
    metrics::Metrics,
    proxy::{Proxy, ReadAhead},
    server::Drain,
};

/// Reads at a time.
const CONCURRENCY: usize = 8;
/// How long a job, or the list, is tried again. Longer than the fence of a write stands by default.
const PATIENCE: Duration = Duration::from_mins(2);
/// Between two tries at first; doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between two tries at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of a list or a file at most: a document takes many times its size in memory.
const MAX_LIST: usize = 4 << 20;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Where jobs to be read are handed in.
#[derive(Clone, Debug)]
pub struct Warmer {
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    /// Whether nothing is configured that the reads say, as clients do.
    is_bare: bool,
}

/// Reads what is handed in, and what the configuration names.
#[derive(Debug)]
pub struct Warming {
    warmer: Warmer,
    /// What the reads say, of who asks and for which form.
    headers: HeaderMap,
    config: config::WarmConfig,
    period: Duration,
}

/// Where jobs are known from; a label of a metric.
#[derive(Clone, Copy, Debug)]
enum Source {
    File,
    List,
}

impl Warmer {
    /// What is likely to be missing for the reads to be of any use.
    pub fn missing(&self) -> Option<&'static str> {
        self.is_bare.then_some(
            "warm.headers is not set: the jobs are read without Host, Accept and the like, and who sends \
             any of them is not given what was read",
        )
    }

    /// Hands in jobs to be read, and returns how many will be.
    pub fn refresh(&self, jobs: &[JobId]) -> usize {
        let taken = jobs.iter().filter(|job| self.queue.add((*job).clone())).count();
        self.metrics.warm.count(ReadAhead::Overflow.as_str(), jobs.len() - taken);
        self.metrics.warm.set_waiting(self.queue.len());
        taken
    }
}

impl Warming {
    /// Reads nothing before it is [run](Warming::run).
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Self {
        let queue = Arc::new(Queue::within(config.warm.max));
        let is_bare = config.warm.headers.is_empty();
        let warmer = Warmer { queue, metrics: Arc::clone(metrics), is_bare };
        let headers = headers(config);
        let rate = u32::try_from(config.warm.rate).unwrap_or(u32::MAX);
        Self { warmer, headers, config: config.warm.clone(), period: Duration::from_secs(1) / rate }
    }

    /// Where jobs to be read are handed in.
    pub fn warmer(&self) -> Warmer {
        self.warmer.clone()
    }

    /// Reads by what `proxy` is at the time of each read, until the drain begins.
    pub async fn run(self, proxy: impl Fn() -> Arc<Proxy>, mut leaving: Drain) {
        let mut reads = JoinSet::new();
        let work = async { tokio::join!(self.begin(&proxy), self.read_all(&proxy, &mut reads)) };
        tokio::select! {
            // Also when who would tell us is gone.
            _ = leaving.wait_for(|leaving| *leaving) => {}
            _ = work => {}
        }
        // What is under way goes on: a lease that is let go of keeps others waiting. `proxy` waits for
        // what it reads.
        reads.detach_all();
        self.warmer.queue.close();
    }

    /// Hands in what the configuration names.
    async fn begin(&self, proxy: &impl Fn() -> Arc<Proxy>) {
        tokio::join!(self.take_file(), self.take_list(proxy));
    }

    async fn take_file(&self) {
        let Some(path) = self.config.file.clone() else { return };
        let shown = path.display().to_string();
        let read = spawn_blocking(move || ids::in_file(&path, MAX_LIST)).await;
        match read {
            Ok(Ok(found)) => self.take(Source::File, &found),
            Ok(Err(error)) => {
                warn!(
                    path = shown,
                    %error,
                    "cannot read warm.file; nothing of it is warmed: name a file of ids, one a line, \
                     that this user may read, and restart"
                );
                self.count_source(Source::File, "failed");
            }
            // Told to stop.
            Err(_) => {}
        }
    }

    /// The backend may start beside us, so it is asked again.
    async fn take_list(&self, proxy: &impl Fn() -> Arc<Proxy>) {
        let Some(target) = &self.config.list else { return };
        let (mut pauses, mut told) = (Pauses::begin(), false);
        let error = loop {
            if !proxy().reads_ahead() {
                info!("mode is off; warm.list is not asked");
                return;
            }
            let error = match probe::listed(&proxy(), target, &self.headers, &self.config).await {
                Ok(found) => return self.take(Source::List, &found),
                Err(error) => error,
            };
            let Some(pause) = pauses.next() else { break error };
            // It need not be there yet; but what it answers may stay as it is.
            if !told && error.is_an_answer() {
                told = true;
                warn!(list = %target, %error, "cannot read warm.list; it is asked again for two minutes");
            }
            sleep(pause).await;
        };
        warn!(list = %target, %error, "cannot read warm.list; nothing of it is warmed");
        self.count_source(Source::List, "failed");
    }

    fn take(&self, source: Source, found: &ids::Found) {
        let taken = self.warmer.refresh(&found.jobs);
        let (source_name, jobs, unreadable) = (source.as_str(), found.jobs.len(), found.unreadable);
        self.count_source(source, "read");
        if taken < jobs || unreadable > 0 || jobs == 0 {
            let pointer = matches!(source, Source::List).then(|| self.config.pointer.to_string());
            let first = found.first_unreadable.as_deref();
            warn!(
                source = source_name,
                jobs,
                taken,
                unreadable,
                first,
                pointer,
                "not all that was to be warmed will be: mend the ids that are none, let warm.pointer \
                 lead to them, or raise warm.max"
            );
        } else {
            info!(source = source_name, jobs, "jobs will be read ahead");
        }
    }

    async fn read_all(
        &self,
        proxy: &impl Fn() -> Arc<Proxy>,
        reads: &mut JoinSet<(Item, ReadAhead)>,
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
                    self.warmer.metrics.warm.set_waiting(self.warmer.queue.len());
                    let (proxy, headers) = (proxy(), self.headers.clone());
                    reads.spawn(async move {
                        let outcome = proxy.read_ahead(&item.job, &headers).await;
                        (item, outcome)
                    });
                }
                Some(read) = reads.join_next() => {
                    match read {
                        Ok((item, outcome)) => self.conclude(item, outcome),
                        Err(error) => {
                            error!(%error, "a read ahead died");
                            self.warmer.metrics.warm.count(ReadAhead::Died.as_str(), 1);
                        }
                    }
                }
            }
        }
    }

    /// Counts what a read came to, unless it is to be tried again.
    fn conclude(&self, mut item: Item, outcome: ReadAhead) {
        let pause = if outcome.passes() { item.pauses.next() } else { None };
        match pause {
            Some(pause) => {
                self.warmer.metrics.warm.postpone(outcome.as_str());
                self.warmer.queue.postpone(item, Instant::now() + pause);
            }
            None => self.warmer.metrics.warm.count(outcome.as_str(), 1),
        }
        self.warmer.metrics.warm.set_waiting(self.warmer.queue.len());
    }

    fn count_source(&self, source: Source, outcome: &'static str) {
        self.warmer.metrics.warm.count_source(source.as_str(), outcome);
    }
}

impl Source {
    fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::List => "list",
        }
    }
}

/// What the reads say beside the path. Behind our TLS a client's request says so, and so do these.
fn headers(config: &Config) -> HeaderMap {
    let warm = &config.warm;
    let given = warm.headers.iter().map(|(name, value)| (name.clone(), value));
    let credential = warm.authorization.iter().map(|value| (AUTHORIZATION, value));
    let mut headers = HeaderMap::new();
    for (name, value) in given.chain(credential) {
        // They have been checked.
        if let Ok(mut value) = HeaderValue::from_str(value.expose()) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    if config.tls.identity().is_some() {
        headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("https"));
    }
    headers
}

/// The pauses between the tries of one thing, until it is given up.
#[derive(Debug)]
struct Pauses {
    pause: Duration,
    left: Duration,
}

impl Pauses {
    fn begin() -> Self {
        Self { pause: FIRST_PAUSE, left: PATIENCE }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause.min(self.left);
        self.left -= pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let pauses: Vec<_> = Pauses::begin().collect();
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert_eq!(pauses.iter().sum::<Duration>(), PATIENCE);
    }

    #[test]
    fn a_read_says_what_is_configured_and_shows_no_secret() {
        let mut config = Config::default();
        config.warm.authorization = Some(config::Secret::new("Bearer swordfish"));
        config.warm.headers = vec![(hyper::header::ACCEPT, config::Secret::new("a/b"))];
        let headers = headers(&config);
        assert_eq!(headers[AUTHORIZATION], "Bearer swordfish");
        assert_eq!(headers[hyper::header::ACCEPT], "a/b");
        assert!(!format!("{headers:?}").contains("swordfish"));
        assert!(!headers.contains_key(FORWARDED_PROTO));
        config.tls.cert = Some("cert.pem".into());
        assert_eq!(super::headers(&config)[FORWARDED_PROTO], "https");
    }
}
