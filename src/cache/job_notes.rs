//! The notes of this process about jobs under one configuration: attempts that are not worth
//! repeating, and what keeps the callers of a job apart. Everything is bounded and expires by itself.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::http::HeaderName;
use tracing::warn;

use super::{decide::LookupRequest, entry::Entry, flight::CoalesceKey};
use crate::{
    config::carries_meaning,
    observe::throttle::HourlyPerName,
    semantics::audience::{Fingerprint, Standing},
    store::{Key, MAX_PAIRS_OF_CREDENTIAL},
};

/// Duration of a hit-for-miss mark. After a response that could not be stored, readers of the job do
/// not queue behind each other for this long.
const HIT_FOR_MISS_TIME: Duration = Duration::from_secs(10);
/// Number of foreign values of one job that are overwritten within a TTL. After that the key is left
/// to the other writer.
const MAX_FOREIGN_VALUES: u32 = 3;
/// Most replacements of an entry by the responses to one credential.
const MAX_OF_CREDENTIAL: u32 = 3;
/// Most credentials whose responses replace an entry.
const MAX_CREDENTIALS: u32 = 8;
/// Greatest number of differing headers that are noted at a time, and shown for one job.
const MAX_NAMES: usize = 8;
/// Greatest number of keys that are counted. If there are more, all counts are dropped at once: each
/// costs one futile attempt.
const MAX_KEYS: usize = 10_000;

/// The notes of one generation of the configuration. Counts start from zero after a reload: attempts
/// that failed under the old configuration may succeed under the new one.
pub(super) struct JobNotes {
    /// Jobs and coalesce keys that recently got a response that could not be stored.
    pub(super) hit_for_miss: WindowedCounts<(Key, CoalesceKey)>,
    /// Replacements of entries by a different response that the upstream gave another caller.
    ///
    /// Entries that replace each other spare the upstream nothing. So a credential may replace the entry
    /// of a job only so often within a TTL, and only so many credentials may. One caller that gets
    /// responses of its own, such as a page to log in, does not end sharing for the others.
    replacements: WindowedCounts<(Key, Fingerprint)>,
    /// The credentials of each job with replacements.
    replacing_credentials: WindowedCounts<Key>,
    /// Response headers that keep the callers of a job apart: the upstream gave two of them the same
    /// body, but another value of a header.
    pub(super) differing_headers: WindowedCounts<(Key, HeaderName)>,
    /// Foreign values found under each job's key.
    pub(super) foreign_values: WindowedCounts<Key>,
}

impl JobNotes {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            hit_for_miss: WindowedCounts::new(HIT_FOR_MISS_TIME),
            replacements: WindowedCounts::new(ttl),
            replacing_credentials: WindowedCounts::new(ttl),
            differing_headers: WindowedCounts::new(ttl),
            foreign_values: WindowedCounts::new(ttl),
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
        self.is_replaced_too_often(&request.key, request.caller.credential())
            || is_full && standing == Standing::Outside
    }

    /// Counts a replacement by a response to this credential.
    pub(super) fn add_replacement(&self, key: &Key, credential: Fingerprint) {
        if self.replacements.add((key.clone(), credential)) == 1 {
            self.replacing_credentials.add(key.clone());
        }
    }

    /// Returns whether a response to this credential may not replace the entry again.
    pub(super) fn is_replaced_too_often(&self, key: &Key, credential: Fingerprint) -> bool {
        self.replacements.count(&(key.clone(), credential)) >= MAX_OF_CREDENTIAL
            || self.replacing_credentials.count(key) >= MAX_CREDENTIALS
    }

    /// Returns the number of replacements, for diagnosis: those by responses to this credential, or one
    /// for each credential if these are more.
    pub(super) fn replacements(&self, key: &Key, credential: Fingerprint) -> u32 {
        let own = self.replacements.count(&(key.clone(), credential));
        own.max(self.replacing_credentials.count(key))
    }

    /// Returns whether the key is left to another program, because it has stored its own values there
    /// too often.
    pub(super) fn yields_key(&self, key: &Key) -> bool {
        self.foreign_values.count(key) >= MAX_FOREIGN_VALUES
    }

    /// Notes that two answers for the job `id` differed in these headers alone, and warns about each
    /// of them once an hour. The names come from the upstream.
    pub(super) fn note_differing(
        &self,
        warnings: &HourlyPerName,
        (key, id): (&Key, &str),
        names: Vec<HeaderName>,
    ) {
        for name in names.into_iter().take(MAX_NAMES) {
            if warnings.admits(name.as_str()) {
                warn_of_differing(name.as_str(), id);
            }
            self.differing_headers.restart((key.clone(), name));
        }
    }

    /// Returns the headers in which recent answers for a job differed.
    pub(super) fn differing_headers(&self, key: &Key) -> Vec<HeaderName> {
        let found = self.differing_headers.keys(|(job, _)| job == key).into_iter();
        let mut names: Vec<HeaderName> = found.map(|(_, name)| name).collect();
        names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        names.truncate(MAX_NAMES);
        names
    }
}

fn warn_of_differing(header: &str, job: &str) {
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

/// Counts events for each key within a window that begins with the first event.
pub(super) struct WindowedCounts<K> {
    window: Duration,
    counts: Mutex<HashMap<K, (Instant, u32)>>,
}

impl<K: Clone + Eq + Hash> WindowedCounts<K> {
    /// Creates an empty set of counts, each of which lasts for `window`.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, counts: Mutex::default() }
    }

    /// Counts an event and returns the key's count within its window, including this event.
    pub(super) fn add(&self, key: K) -> u32 {
        let mut counts = self.counts();
        self.make_room(&mut counts);
        let (since, count) = counts.entry(key).or_insert((Instant::now(), 0));
        if since.elapsed() >= self.window {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count
    }

    /// Counts a key as one event, in a window that begins now.
    fn restart(&self, key: K) {
        let mut counts = self.counts();
        self.make_room(&mut counts);
        counts.insert(key, (Instant::now(), 1));
    }

    fn make_room(&self, counts: &mut HashMap<K, (Instant, u32)>) {
        if counts.len() >= MAX_KEYS {
            counts.retain(|_, (since, _)| since.elapsed() < self.window);
            if counts.len() >= MAX_KEYS {
                counts.clear();
            }
        }
    }

    /// Returns the key's count within its window.
    pub(super) fn count(&self, key: &K) -> u32 {
        let mut counts = self.counts();
        let Some(&(since, count)) = counts.get(key) else { return 0 };
        if since.elapsed() < self.window {
            return count;
        }
        counts.remove(key);
        0
    }

    /// Returns the keys that match and have a count within their window. Scans all keys.
    pub(super) fn keys(&self, matches: impl Fn(&K) -> bool) -> Vec<K> {
        let counts = self.counts();
        let current = counts.iter().filter(|(_, (since, _))| since.elapsed() < self.window);
        current.map(|(key, _)| key).filter(|key| matches(key)).cloned().collect()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<K, (Instant, u32)>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_within_their_window_and_are_forgotten_after_it() {
        let counts = WindowedCounts::new(Duration::from_mins(1));
        assert_eq!(
            (counts.count(&1), counts.add(1), counts.add(1), counts.count(&1)),
            (0, 1, 2, 2)
        );
        assert_eq!((counts.keys(|key| *key == 1), counts.keys(|key| *key == 2)), (vec![1], vec![]));
        let short = WindowedCounts::new(Duration::ZERO);
        assert_eq!((short.add(1), short.add(1), short.count(&1)), (1, 1, 0));
    }

    #[test]
    fn marks_are_bounded() {
        let counts = WindowedCounts::new(Duration::from_mins(1));
        for key in 0..3 * MAX_KEYS {
            counts.add(key);
        }
        assert!(counts.counts.lock().unwrap().len() <= MAX_KEYS);
    }

    #[test]
    fn names_are_remembered_for_a_while_and_are_bounded() {
        let warnings = HourlyPerName::default();
        let kept = JobNotes::new(Duration::from_mins(1));
        let key = |id: usize| Key::new("job_status:", &id.to_string());
        let note =
            |notes: &JobNotes, id, names| notes.note_differing(&warnings, (&key(id), "7"), names);
        let pod = HeaderName::from_static("x-pod");
        note(&kept, 1, vec![pod.clone(), pod.clone()]);
        assert_eq!(kept.differing_headers(&key(1)), [pod.clone()]);
        assert!(kept.differing_headers(&key(2)).is_empty());
        note(&kept, 1, (0..20).map(|n| format!("x-{n}").parse().unwrap()).collect());
        assert_eq!(kept.differing_headers(&key(1)).len(), MAX_NAMES);
        for id in 0..3 * MAX_KEYS {
            note(&kept, id, vec![pod.clone()]);
        }
        assert!(kept.differing_headers.counts.lock().unwrap().len() <= MAX_KEYS);
        let short = JobNotes::new(Duration::ZERO);
        note(&short, 1, vec![pod]);
        assert!(short.differing_headers(&key(1)).is_empty());
    }
}
