//! Applications that cache their jobs themselves, under the keys of this cache.
//!
//! Two caches under one key are of no use: each takes the values of the other for damage. Some
//! applications also fail with status 500 when they find the placeholder of a lease, and each of their
//! jobs would begin with an error. So jobcache steps aside for a while: reads of the prefix pass, no
//! placeholder is set, and writes and purges still delete the keys.
//!
//! There are three signs. Values that are not ours are found for several jobs. A read fails while the
//! placeholder stands, succeeds without it, and leaves a value that is not ours. Or several reads fail
//! while it stands and succeed without it, whatever they leave: the application only reads the keys.
//!
//! An upstream that fails now and then looks like the last one. There, most reads succeed while a
//! placeholder stands.

use std::{
    collections::HashMap,
    mem,
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
/// Most reads that are repeated without the placeholder, within [`REPEAT_WINDOW`].
const MAX_REPEATS: u32 = 3;
const REPEAT_WINDOW: Duration = Duration::from_secs(10);
/// Number of reads that fail at the placeholder, within [`ASIDE_TIME`], after which jobcache steps aside.
const FAILURES: usize = 3;
/// Number of reads that succeed while a placeholder stands, after which earlier failures do not count.
const SUCCESSES: u32 = 50;

/// Why jobcache steps aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// There are values that are not ours.
    Values,
    /// Reads fail while the placeholder stands.
    Failures,
}

/// What was seen of reads while a placeholder of their prefix stood.
#[derive(Default)]
struct PlaceholderReads {
    /// When reads failed with it and succeeded without it.
    failures: Vec<Instant>,
    /// Reads that succeeded since the last failure.
    successes: u32,
}

/// Signs of other caches under our keys, and the prefixes that are left to them.
pub(super) struct ForeignCaches {
    /// Jobs with values that are not ours.
    jobs: WindowedCounts<Key>,
    repeats: WindowedCounts<()>,
    /// Prefixes with reads that failed at the placeholder.
    reads: Mutex<HashMap<String, PlaceholderReads>>,
    /// Whether there are any. Lets a read be stored without the lock.
    has_failures: AtomicBool,
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
            reads: Mutex::default(),
            has_failures: AtomicBool::new(false),
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
            self.step_aside(prefix, Sign::Values);
        }
    }

    /// Notes that a read has failed while the placeholder stood, and succeeded without it. Returns
    /// whether jobcache steps aside because of that.
    pub(super) fn note_failure(&self, prefix: &str) -> bool {
        self.has_failures.store(true, Ordering::Relaxed);
        let is_sign = {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = reads.entry(prefix.to_owned()).or_default();
            let successes = mem::take(&mut seen.successes);
            seen.failures.retain(|at| successes < SUCCESSES && at.elapsed() < ASIDE_TIME);
            seen.failures.push(Instant::now());
            let is_sign = seen.failures.len() >= FAILURES;
            if is_sign {
                reads.remove(prefix);
            }
            is_sign
        };
        is_sign && self.step_aside(prefix, Sign::Failures)
    }

    /// Notes that a read has succeeded while the placeholder stood.
    pub(super) fn note_success(&self, prefix: &str) {
        if self.has_failures.load(Ordering::Relaxed) {
            let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(seen) = reads.get_mut(prefix) {
                seen.successes = seen.successes.saturating_add(1);
            }
        }
    }

    /// Whether another read may be repeated without the placeholder.
    pub(super) fn admits_repeat(&self) -> bool {
        self.repeats.count(&()) < MAX_REPEATS && self.repeats.add(()) <= MAX_REPEATS
    }

    /// Leaves the jobs of this prefix to the application for a while. Returns whether that is new.
    pub(super) fn step_aside(&self, prefix: &str, sign: Sign) -> bool {
        let mut aside = self.aside();
        let is_new = aside.insert(prefix.to_owned(), Instant::now() + ASIDE_TIME).is_none();
        self.is_any_aside.store(true, Ordering::Relaxed);
        drop(aside);
        let for_s = ASIDE_TIME.as_secs();
        match sign {
            _ if !is_new => {}
            Sign::Values => warn!(
                prefix,
                for_s,
                "the application caches its jobs itself under the keys of this cache, so for now their \
                 reads pass; switch off the application's own cache, but keep its DELs"
            ),
            Sign::Failures => warn!(
                prefix,
                for_s,
                "the application itself reads the keys of this cache and fails at the placeholder of a \
                 read, so for now reads pass; set another store.prefix, or switch off that the \
                 application reads these keys"
            ),
        }
        is_new
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
    fn three_reads_of_one_prefix_that_fail_at_the_placeholder_are_a_reader() {
        let caches = ForeignCaches::default();
        for prefix in ["p:", "p:", "q:"] {
            assert!(!caches.note_failure(prefix));
        }
        assert!(caches.note_failure("p:"));
        assert!(caches.is_aside("p:") && !caches.is_aside("q:"));
    }

    #[test]
    fn an_upstream_that_fails_now_and_then_is_no_reader() {
        let caches = ForeignCaches::default();
        for _ in 0..2 * FAILURES {
            caches.note_failure("p:");
            (0..SUCCESSES).for_each(|_| caches.note_success("p:"));
        }
        assert!(!caches.is_aside("p:"));
    }

    #[test]
    fn few_reads_are_repeated() {
        let caches = ForeignCaches::default();
        assert_eq!((0..5).filter(|_| caches.admits_repeat()).count(), 3);
    }
}
