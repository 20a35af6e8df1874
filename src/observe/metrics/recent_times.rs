//! Times of the last one to two minutes, for the status page.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Number of buckets of times: four for each power of two, in us.
const BUCKETS: usize = 128;

/// A histogram of the times of the last one to two minutes. Its quantiles are accurate to within an
/// eighth.
#[derive(Debug)]
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

    /// Forgets the times from before the last call.
    pub fn rotate(&self) {
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
}
