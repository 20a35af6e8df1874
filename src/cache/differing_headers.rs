//! Response headers that keep the callers of a job apart: the upstream gave two of them the same body,
//! but another value of a header.
//!
//! Only names are kept. They come from the upstream, and their number is bounded.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::http::HeaderName;
use tracing::warn;

use crate::{config::carries_meaning, observe::throttle::HourlyPerName, store::Key};

/// Greatest number of jobs for which names are remembered, for `/explain`.
const MAX_JOBS: usize = 1_000;
/// Greatest number of names for one job.
const MAX_NAMES: usize = 8;

/// Remembers the headers that keep callers apart, and warns about each of them once an hour.
pub(super) struct DifferingHeaders {
    warnings: Arc<HourlyPerName>,
    window: Duration,
    jobs: Mutex<HashMap<Key, DifferingNames>>,
}

struct DifferingNames {
    seen: Instant,
    names: Vec<HeaderName>,
}

impl fmt::Debug for DifferingHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DifferingHeaders").field("jobs", &self.jobs().len()).finish_non_exhaustive()
    }
}

impl DifferingHeaders {
    /// Creates a memory in which names stay for `window`.
    pub(super) fn new(window: Duration) -> Self {
        Self { warnings: Arc::default(), window, jobs: Mutex::default() }
    }

    /// Returns an empty memory for another configuration. Warnings stay throttled.
    pub(super) fn reconfigured(&self, window: Duration) -> Self {
        Self { warnings: Arc::clone(&self.warnings), ..Self::new(window) }
    }

    /// Records that two answers for the job `id` differed in these headers alone.
    pub(super) fn record(&self, key: &Key, id: &str, names: &[HeaderName]) {
        for name in names.iter().take(MAX_NAMES) {
            if self.warnings.admits(name.as_str()) {
                warn_of(name.as_str(), id);
            }
        }
        let mut jobs = self.jobs();
        if jobs.len() >= MAX_JOBS && !jobs.contains_key(key) {
            jobs.retain(|_, differing| differing.seen.elapsed() < self.window);
            if jobs.len() >= MAX_JOBS {
                jobs.clear();
            }
        }
        let differing = jobs
            .entry(key.clone())
            .or_insert_with(|| DifferingNames { seen: Instant::now(), names: Vec::new() });
        if differing.seen.elapsed() >= self.window {
            differing.names.clear();
        }
        differing.seen = Instant::now();
        for name in names {
            if differing.names.len() < MAX_NAMES && !differing.names.contains(name) {
                differing.names.push(name.clone());
            }
        }
    }

    /// Returns the headers in which recent answers for a job differed.
    pub(super) fn names(&self, key: &Key) -> Vec<HeaderName> {
        let jobs = self.jobs();
        let recent = jobs.get(key).filter(|differing| differing.seen.elapsed() < self.window);
        recent.map(|differing| differing.names.clone()).unwrap_or_default()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<Key, DifferingNames>> {
        // No code that holds the lock panics half-way through a change.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn warn_of(header: &str, job: &str) {
    if carries_meaning(header) {
        warn!(
            header,
            job,
            "the API gives callers the same body, but another value of this header, so they do not \
             share an entry; let the API send the same value as long as the job does not change"
        );
    } else {
        warn!(
            header,
            job,
            remedy = "responses.volatile",
            "the API gives callers the same body, but another value of this header, so they do not \
             share an entry; if it says nothing about the job, add it to responses.volatile"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_remembered_for_a_while_and_are_bounded() {
        let kept = DifferingHeaders::new(Duration::from_mins(1));
        let key = |id: usize| Key::new("job_status:", &id.to_string());
        let pod = HeaderName::from_static("x-pod");
        kept.record(&key(1), "7", &[pod.clone(), pod.clone()]);
        assert_eq!(kept.names(&key(1)), std::slice::from_ref(&pod));
        assert!(kept.names(&key(2)).is_empty());
        let many: Vec<HeaderName> = (0..20).map(|n| format!("x-{n}").parse().unwrap()).collect();
        kept.record(&key(1), "7", &many);
        assert_eq!(kept.names(&key(1)).len(), MAX_NAMES);
        for id in 0..3 * MAX_JOBS {
            kept.record(&key(id), "7", std::slice::from_ref(&pod));
        }
        assert!(kept.jobs().len() <= MAX_JOBS);
        assert!(kept.reconfigured(Duration::ZERO).names(&key(1)).is_empty());
        let short = DifferingHeaders::new(Duration::ZERO);
        short.record(&key(1), "7", &[pod]);
        assert!(short.names(&key(1)).is_empty());
    }
}
