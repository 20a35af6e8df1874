//! Counts of the last ten minutes, for the status page, and why requests were not hits, since the
//! process started and in the last minute. Prometheus has the longer history.
//!
//! The counters are sampled once a second ([`Recent::sample_every_second`]), so counting itself costs
//! nothing more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    observe::{
        events::{Events, feed::SecondCounts},
        metrics::RecentTimes,
    },
    proxy::metrics::{ProxyMetrics, RequestMetrics, RequestTotals},
    semantics::policy::{Bypass, NoStore},
};

/// Time between two samples.
const SECOND: Duration = Duration::from_secs(1);
/// Samples that are kept: ten minutes, and the one before.
const MAX_SNAPSHOTS: usize = 601;
/// Times are forgotten after one to two of these periods, in samples.
const ROTATE_AFTER: u64 = 60;
/// How many of the busiest jobs subscribers get each second.
const BUSIEST: usize = 5;

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CounterSnapshot {
    /// Requests since the process started, or within the step for [`Recent::steps`].
    pub(super) totals: RequestTotals,
    /// The 99th percentiles of the times of hits, misses, the upstream and the store, over the last
    /// one to two minutes.
    pub(super) p99: [Option<Duration>; 4],
}

/// Recent times of hits, misses, the upstream and the store.
pub(crate) type Times = [Arc<RecentTimes>; 4];

/// The counts and times of the last ten minutes.
pub(crate) struct Recent {
    began: Instant,
    snapshots: Mutex<VecDeque<CounterSnapshot>>,
    reasons: ReasonHistory,
    /// The recent times.
    pub(super) times: Times,
    proxy: Arc<ProxyMetrics>,
    events: Arc<Events>,
}

impl Recent {
    pub(crate) fn new(proxy: Arc<ProxyMetrics>, times: Times, events: Arc<Events>) -> Self {
        let (snapshots, reasons) = (Mutex::default(), ReasonHistory::default());
        Self { began: Instant::now(), snapshots, reasons, times, proxy, events }
    }

    /// Time since the process started.
    pub(super) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The totals of so many seconds ago. Zero if no sample is that old, as in a young process.
    pub(super) fn totals_before(&self, seconds: usize) -> RequestTotals {
        let samples = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = samples.len().checked_sub(seconds);
        index.and_then(|index| samples.get(index)).map(|sample| sample.totals).unwrap_or_default()
    }

    /// The last ten minutes in steps of so many seconds, oldest first: the requests in each step,
    /// and the times at its end.
    pub(super) fn steps(&self, seconds: usize) -> Vec<CounterSnapshot> {
        let samples = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ends: Vec<CounterSnapshot> =
            samples.iter().rev().step_by(seconds.max(1)).copied().collect();
        drop(samples);
        ends.reverse();
        let steps = ends.iter().zip(ends.iter().skip(1));
        steps
            .map(|(from, to)| CounterSnapshot { totals: to.totals.since(&from.totals), ..*to })
            .collect()
    }

    /// Keeps a sample. Returns the totals of the previous one.
    fn keep_snapshot(&self, totals: RequestTotals) -> RequestTotals {
        let sample = CounterSnapshot {
            totals,
            p99: self.times.each_ref().map(|times| times.quantile(0.99)),
        };
        let mut samples = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.back().copied().unwrap_or_default();
        if samples.len() >= MAX_SNAPSHOTS {
            samples.pop_front();
        }
        samples.push_back(sample);
        before.totals
    }

    /// Why requests were not hits.
    pub(super) fn reasons(&self) -> Vec<ReasonCount> {
        self.reasons.counts(&self.proxy.requests)
    }

    /// Samples the counters every second; never returns.
    pub(crate) async fn sample_every_second(self: Arc<Self>) {
        let mut ticks = interval(SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 1_u64.. {
            ticks.tick().await;
            self.sample();
            if tick % ROTATE_AFTER == 0 {
                self.times.iter().for_each(|times| times.rotate());
                self.proxy.push.recent.rotate();
            }
        }
    }

    fn sample(&self) {
        let totals = self.proxy.requests.totals();
        let second = totals.since(&self.keep_snapshot(totals));
        self.reasons.sample(&self.proxy.requests);
        self.events.set_hit_rate(second.hits);
        if self.events.has_subscribers() {
            let outcomes = [
                ("hit", second.hits),
                ("miss", second.misses),
                ("pass", second.passes + second.others),
                ("write", second.writes),
                ("error", second.errors),
            ];
            let busiest = self.events.busiest(BUSIEST);
            self.events.publish_second(SecondCounts { outcomes, busiest });
        }
    }
}

/// Samples that are kept: those of one minute.
const MAX_SAMPLES: usize = 60;

/// The counts of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReasonCount {
    /// `miss` or `pass`.
    pub(super) outcome: &'static str,
    /// The reason, in the words of `Cache-Status`.
    pub(super) reason: &'static str,
    /// Requests since the process started.
    pub(super) total: u64,
    /// Requests in the last minute.
    pub(super) last_minute: u64,
}

/// The counts of all reasons at each second of the last minute.
#[derive(Default)]
struct ReasonHistory(Mutex<VecDeque<Vec<u64>>>);

impl ReasonHistory {
    /// Returns the reasons that have occurred.
    pub(super) fn counts(&self, requests: &RequestMetrics) -> Vec<ReasonCount> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A process younger than a minute: all counts are of the last minute.
        let before =
            samples.front().filter(|_| samples.len() >= MAX_SAMPLES).cloned().unwrap_or_default();
        drop(samples);
        let reasons = outcome_reasons().enumerate().map(|(index, (outcome, reason))| {
            let total = requests.of_reason(outcome, reason);
            let last_minute = total.saturating_sub(before.get(index).copied().unwrap_or_default());
            ReasonCount { outcome, reason, total, last_minute }
        });
        reasons.filter(|reason| reason.total > 0).collect()
    }

    /// Samples the counts; called once a second.
    pub(super) fn sample(&self, requests: &RequestMetrics) {
        let count = |(outcome, reason)| requests.of_reason(outcome, reason);
        let counts = outcome_reasons().map(count).collect();
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(counts);
    }
}

/// Returns all pairs of an outcome and a reason.
fn outcome_reasons() -> impl Iterator<Item = (&'static str, &'static str)> {
    // A word that is both a bypass and a no-store reason is listed once.
    let no_store = NoStore::WORDS.into_iter().filter(|why| !Bypass::WORDS.contains(why));
    let miss = Bypass::WORDS.into_iter().chain(no_store).map(|why| ("miss", why));
    miss.chain(Bypass::WORDS.map(|why| ("pass", why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        observe::{events::EventKind, metrics::Registry},
        proxy::metrics::ProxyMetrics,
    };

    fn recent() -> Recent {
        let proxy = ProxyMetrics::register(&mut Registry::default());
        Recent::new(Arc::new(proxy), Times::default(), Arc::default())
    }

    #[test]
    fn what_stood_before_is_told_from_bounded_looks() {
        let recent = recent();
        for hits in 1..=700 {
            recent.keep_snapshot(RequestTotals { hits, ..RequestTotals::default() });
        }
        assert_eq!(recent.snapshots.lock().unwrap().len(), MAX_SNAPSHOTS);
        assert_eq!(recent.totals_before(1).hits, 700);
        assert_eq!(recent.totals_before(60).hits, 641);
        assert_eq!(recent.totals_before(600).hits, 101);
        assert_eq!(recent.totals_before(1_000), RequestTotals::default());
    }

    #[test]
    fn the_last_minutes_are_told_in_steps_that_end_now() {
        let recent = recent();
        assert_eq!(recent.steps(2), []);
        for hits in 1..=6 {
            recent.times[0].observe(Duration::from_millis(hits), 1);
            recent.keep_snapshot(RequestTotals { hits: hits * hits, ..RequestTotals::default() });
        }
        let steps = recent.steps(2);
        assert_eq!(steps.iter().map(|step| step.totals.hits).collect::<Vec<_>>(), [12, 20]);
        assert_eq!(steps.last().map(|step| step.p99[0]), Some(recent.times[0].quantile(0.99)));
        assert_eq!(
            steps.last().map(|step| step.p99[3]),
            Some(None),
            "there was no store operation"
        );
    }

    #[test]
    fn what_was_before_the_last_minute_is_told_in_all_alone() {
        let ProxyMetrics { requests, .. } = ProxyMetrics::register(&mut Registry::default());
        let history = ReasonHistory::default();
        let counts = || -> Vec<_> {
            let counts = history.counts(&requests);
            counts.iter().map(|it| (it.reason, it.total, it.last_minute)).collect()
        };
        requests.count(EventKind::Pass, "query");
        requests.count(EventKind::Miss, "fenced");
        assert_eq!(counts(), [("fenced", 1, 1), ("query", 1, 1)]);
        history.sample(&requests);
        requests.count(EventKind::Pass, "query");
        for _ in 1..MAX_SAMPLES {
            assert_eq!(counts(), [("fenced", 1, 1), ("query", 2, 2)], "of less than a minute");
            history.sample(&requests);
        }
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 1)]);
        history.sample(&requests);
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 0)]);
        assert_eq!(history.0.lock().unwrap().len(), MAX_SAMPLES);
    }
}
