//! Applications that cache their jobs themselves, under the keys of this cache.
//!
//! Two caches under one key are of no use: each takes the values of the other for damage. Some
//! applications also fail with status 500 when they find the placeholder of a lease, and each of their
//! jobs would begin with an error. So jobcache steps aside for a while: reads of the prefix pass, no
//! placeholder is set, and writes and purges still delete the keys.
//!
//! There are two signs. Values that are not ours are found for several jobs (`reader.rs` notes them). Or a
//! read fails while the placeholder stands, succeeds without it, and leaves a value that is not ours
//! (`proxy/lead.rs` repeats the read, and `fill.rs` looks at the value).

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::warn;

use super::job_notes::WindowedCounts;
use crate::store::Key;

/// Number of jobs with values that are not ours, within [`ASIDE_TIME`], after which jobcache steps aside.
const MIN_JOBS: usize = 3;
/// How long jobcache steps aside.
const ASIDE_TIME: Duration = Duration::from_mins(10);
/// Most reads that are repeated without the placeholder, within [`REPEAT_WINDOW`]: an API that is broken
/// answers every read with 500, and must not get each of them twice.
const MAX_REPEATS: u32 = 3;
const REPEAT_WINDOW: Duration = Duration::from_secs(10);

/// Signs of other caches under our keys, and the prefixes that are left to them.
pub(super) struct ForeignCaches {
    /// Jobs with values that are not ours.
    jobs: WindowedCounts<Key>,
    repeats: WindowedCounts<()>,
    /// Whether any prefix is left to the application. Lets a read pass without the lock.
    is_any_aside: AtomicBool,
    /// The prefixes, each with the end of that time.
    aside: Mutex<HashMap<String, Instant>>,
}

impl Default for ForeignCaches {
    fn default() -> Self {
        Self {
            jobs: WindowedCounts::new(ASIDE_TIME),
            repeats: WindowedCounts::new(REPEAT_WINDOW),
            is_any_aside: AtomicBool::new(false),
            aside: Mutex::default(),
        }
    }
}

impl ForeignCaches {
    /// Whether the jobs of this prefix are left to the application.
    pub(super) fn is_aside(&self, prefix: &str) -> bool {
        self.is_any_aside.load(Ordering::Relaxed) && self.aside().contains_key(prefix)
    }

    /// Returns the prefixes that are left to the application, each with the time that is left.
    pub(super) fn prefixes(&self) -> Vec<(String, Duration)> {
        let now = Instant::now();
        let left = |(prefix, until): (&String, &Instant)| {
            (prefix.clone(), until.saturating_duration_since(now))
        };
        self.aside().iter().map(left).collect()
    }

    /// Notes that a value which is not ours was found under a key with this prefix.
    pub(super) fn note_value(&self, prefix: &str, key: &Key) {
        self.jobs.add(key.clone());
        if self.jobs.keys(|job| job.main().starts_with(prefix)).len() >= MIN_JOBS {
            self.step_aside(prefix);
        }
    }

    /// Whether another read may be repeated without the placeholder.
    pub(super) fn admits_repeat(&self) -> bool {
        self.repeats.count(&()) < MAX_REPEATS && self.repeats.add(()) <= MAX_REPEATS
    }

    /// Leaves the jobs of this prefix to the application for a while.
    pub(super) fn step_aside(&self, prefix: &str) {
        let mut aside = self.aside();
        let is_new = aside.insert(prefix.to_owned(), Instant::now() + ASIDE_TIME).is_none();
        self.is_any_aside.store(true, Ordering::Relaxed);
        drop(aside);
        if is_new {
            warn!(
                prefix,
                for_s = ASIDE_TIME.as_secs(),
                "the application caches its jobs itself under the keys of this cache, so for now their \
                 reads pass; switch off the application's own cache, but keep its DELs"
            );
        }
    }

    /// Locks the prefixes that are still left to the application.
    fn aside(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        aside.retain(|_, until| *until > now);
        self.is_any_aside.store(!aside.is_empty(), Ordering::Relaxed);
        aside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_three_jobs_of_one_prefix_are_a_cache() {
        let caches = ForeignCaches::default();
        for (prefix, id) in [("p:", "1"), ("p:", "1"), ("p:", "2"), ("q:", "3")] {
            caches.note_value(prefix, &Key::new(prefix, id));
        }
        assert!(!caches.is_aside("p:"));
        caches.note_value("p:", &Key::new("p:", "3"));
        assert!(caches.is_aside("p:") && !caches.is_aside("q:"));
        let left = caches.prefixes();
        assert!(matches!(&left[..], [(prefix, left)] if prefix == "p:" && *left > ASIDE_TIME / 2));
    }

    #[test]
    fn few_reads_are_repeated() {
        let caches = ForeignCaches::default();
        assert_eq!((0..5).filter(|_| caches.admits_repeat()).count(), 3);
    }
}
