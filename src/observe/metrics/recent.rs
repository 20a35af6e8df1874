//! Counts of the last ten minutes, for the status page; Prometheus has the longer history.
//!
//! The counters are sampled once a second ([`sample_every_second`]), so counting itself costs nothing more.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Metrics;
use crate::observe::events::feed::SecondCounts;

/// Time between two samples.
const SECOND: Duration = Duration::from_secs(1);
/// Samples that are kept: ten minutes, and the one before.
const MAX_SNAPSHOTS: usize = 601;
/// Times are forgotten after one to two of these periods, in samples.
const ROTATE_AFTER: u64 = 60;
/// How many of the busiest jobs subscribers get each second.
const BUSIEST: usize = 5;
/// Number of buckets of times: four for each power of two, in us.
const BUCKETS: usize = 128;

/// Requests since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTotals {
    /// Requests answered from the cache.
    pub hits: u64,
    /// Requests answered by an upstream read that is shared by all waiting requests.
    pub misses: u64,
    /// The misses that were answered by the read of another request.
    pub joined: u64,
    /// Reads of a job that bypassed the cache.
    pub passes: u64,
    /// Other requests that bypassed the cache.
    pub others: u64,
    /// Writes.
    pub writes: u64,
    /// Requests answered with an error by jobcache itself.
    pub errors: u64,
}

impl RequestTotals {
    /// The requests since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            joined: self.joined.saturating_sub(before.joined),
            passes: self.passes.saturating_sub(before.passes),
            others: self.others.saturating_sub(before.others),
            writes: self.writes.saturating_sub(before.writes),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    /// Reads of jobs.
    pub fn reads(&self) -> u64 {
        self.hits + self.misses + self.passes
    }

    /// Reads of jobs that did not need an upstream read of their own.
    pub fn saved(&self) -> u64 {
        self.hits + self.joined
    }

    /// The share of hits in the reads of jobs. `None` without reads.
    pub fn hit_ratio(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "a ratio is shown with a few digits")]
        let ratio = |part: u64, whole: u64| part as f64 / whole as f64;
        (self.reads() > 0).then(|| ratio(self.hits, self.reads()))
    }
}

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Requests since the process started, or within the step for [`Recent::steps`].
    pub totals: RequestTotals,
    /// The 99th percentiles of the times of hits, misses, the upstream and the store, over the last
    /// one to two minutes.
    pub p99: [Option<Duration>; 4],
}

/// The counts and times of the last ten minutes.
pub struct Recent {
    began: Instant,
    snapshots: Mutex<VecDeque<CounterSnapshot>>,
    pub(super) misses: AtomicU64,
    pub(super) passes: AtomicU64,
    pub(super) others: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) errors: AtomicU64,
    /// Time from a request to its response head, for sampled hits.
    pub hit_times: RecentTimes,
    /// The same for misses.
    pub miss_times: RecentTimes,
    /// Time to the upstream's response head.
    pub upstream_times: RecentTimes,
    /// Time of store operations.
    pub store_times: RecentTimes,
}

impl Default for Recent {
    fn default() -> Self {
        let count = AtomicU64::default;
        Self {
            began: Instant::now(),
            snapshots: Mutex::default(),
            misses: count(),
            passes: count(),
            others: count(),
            writes: count(),
            errors: count(),
            hit_times: RecentTimes::default(),
            miss_times: RecentTimes::default(),
            upstream_times: RecentTimes::default(),
            store_times: RecentTimes::default(),
        }
    }
}

impl Recent {
    /// Time since the process started.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The totals of so many seconds ago. Zero if no sample is that old, as in a young process.
    pub fn totals_before(&self, seconds: usize) -> RequestTotals {
        let samples = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        match samples.len().checked_sub(seconds) {
            Some(index) => {
                samples.get(index).map_or_else(RequestTotals::default, |sample| sample.totals)
            }
            None => RequestTotals::default(),
        }
    }

    /// The last ten minutes in steps of so many seconds, oldest first: the requests in each step,
    /// and the times at its end.
    pub fn steps(&self, seconds: usize) -> Vec<CounterSnapshot> {
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
        let sample =
            CounterSnapshot { totals, p99: self.times().map(|times| times.quantile(0.99)) };
        let mut samples = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let before = samples.back().copied().unwrap_or_default();
        if samples.len() >= MAX_SNAPSHOTS {
            samples.pop_front();
        }
        samples.push_back(sample);
        before.totals
    }

    fn forget_times(&self) {
        for times in self.times() {
            times.rotate();
        }
    }

    fn times(&self) -> [&RecentTimes; 4] {
        [&self.hit_times, &self.miss_times, &self.upstream_times, &self.store_times]
    }
}

/// Samples the counters every second; never returns.
pub async fn sample_every_second(metrics: Arc<Metrics>) {
    let mut ticks = interval(SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1_u64.. {
        ticks.tick().await;
        let totals = metrics.totals();
        let second = totals.since(&metrics.recent.keep_snapshot(totals));
        metrics.sample_reasons();
        metrics.events.set_hit_rate(second.hits);
        if tick % ROTATE_AFTER == 0 {
            metrics.recent.forget_times();
        }
        if metrics.events.has_subscribers() {
            let outcomes = [
                ("hit", second.hits),
                ("miss", second.misses),
                ("pass", second.passes + second.others),
                ("write", second.writes),
                ("error", second.errors),
            ];
            let busiest = metrics.events.busiest(BUSIEST);
            metrics.events.publish_second(SecondCounts { outcomes, busiest });
        }
    }
}

/// A histogram of the times of the last one to two minutes. Its quantiles are accurate to within an
/// eighth.
pub struct RecentTimes {
    now: Box<[AtomicU64]>,
    before: Box<[AtomicU64]>,
}

impl Default for RecentTimes {
    fn default() -> Self {
        let zeros = || (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { now: zeros(), before: zeros() }
    }
}

impl RecentTimes {
    /// Counts a time that stands for `times` operations.
    pub fn observe(&self, took: Duration, times: u64) {
        self.now[bucket(took)].fetch_add(times, Ordering::Relaxed);
    }

    /// The number of counted times.
    pub fn count(&self) -> u64 {
        self.counts().sum()
    }

    /// The time that this fraction of the times, from 0.0 to 1.0, did not exceed, approximately.
    /// `None` without times.
    pub fn quantile(&self, fraction: f64) -> Option<Duration> {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is a rank among samples"
        )]
        let rank = (self.count() as f64 * fraction).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts().enumerate() {
            seen += count;
            if count > 0 && seen >= rank.max(1) {
                return Some(middle(index));
            }
        }
        None
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        let pairs = self.now.iter().zip(&self.before);
        pairs.map(|(now, before)| now.load(Ordering::Relaxed) + before.load(Ordering::Relaxed))
    }

    fn rotate(&self) {
        for (now, before) in self.now.iter().zip(&self.before) {
            before.store(now.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

fn bucket(took: Duration) -> usize {
    let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let Some(power) = us.checked_ilog2().filter(|power| *power >= 2) else {
        return usize::try_from(us).unwrap_or_default();
    };
    let quarter = (us >> (power - 2)) & 3;
    let index = (u64::from(power) - 1) * 4 + quarter;
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn middle(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    if bucket < 4 {
        return Duration::from_micros(bucket);
    }
    let (power, quarter) = (bucket / 4 + 1, bucket % 4);
    let width = 1_u64 << (power - 2);
    Duration::from_micros((4 + quarter) * width + width / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_an_eighth() {
        let times = RecentTimes::default();
        assert_eq!(times.quantile(0.5), None);
        for us in 1..=10_000 {
            times.observe(Duration::from_micros(us), 1);
        }
        for (part, us) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.0001, 1.0)] {
            let quantile = times.quantile(part).unwrap().as_secs_f64() * 1e6;
            assert!((quantile - us).abs() <= us / 8.0, "{part}: {quantile}");
        }
        times.observe(Duration::from_secs(1 << 40), 1);
    }

    #[test]
    fn times_are_forgotten_after_two_turns() {
        let times = RecentTimes::default();
        times.observe(Duration::from_millis(1), 3);
        times.rotate();
        assert_eq!(times.count(), 3);
        times.rotate();
        assert_eq!(times.count(), 0);
    }

    #[test]
    fn what_stood_before_is_told_from_bounded_looks() {
        let recent = Recent::default();
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
        let recent = Recent::default();
        assert_eq!(recent.steps(2), []);
        for hits in 1..=6 {
            recent.hit_times.observe(Duration::from_millis(hits), 1);
            recent.keep_snapshot(RequestTotals { hits: hits * hits, ..RequestTotals::default() });
        }
        let steps = recent.steps(2);
        assert_eq!(steps.iter().map(|step| step.totals.hits).collect::<Vec<_>>(), [12, 20]);
        assert_eq!(steps.last().map(|step| step.p99[0]), Some(recent.hit_times.quantile(0.99)));
        assert_eq!(
            steps.last().map(|step| step.p99[3]),
            Some(None),
            "there was no store operation"
        );
    }

    #[test]
    fn hits_and_shared_reads_are_what_the_upstream_is_spared() {
        let totals =
            RequestTotals { hits: 6, misses: 3, joined: 1, passes: 1, ..RequestTotals::default() };
        assert_eq!((totals.reads(), totals.saved(), totals.hit_ratio()), (10, 7, Some(0.6)));
        assert_eq!(RequestTotals::default().hit_ratio(), None);
    }
}
