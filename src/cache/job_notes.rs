//! The notes of this process about jobs: attempts that are not worth repeating, and the headers of
//! requests and responses that keep the callers of a job apart. Everything is bounded and expires by
//! itself.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::http::HeaderName;
use tracing::warn;

use super::{decide::LookupRequest, entry::Entry, flight::CoalesceKey};
use crate::{
    config::carries_meaning,
    observe::throttle::HourlyPerName,
    semantics::audience::{Fingerprint, Fingerprinter, Standing},
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
/// Most credentials with responses that replace an entry.
const MAX_CREDENTIALS: u32 = 8;
/// Greatest number of differing headers that are noted at a time, and shown for one job.
const MAX_DIFFERING: usize = 8;
/// Greatest number of keys that are counted. If there are more, all counts are dropped at once: each
/// costs one futile attempt.
const MAX_KEYS: usize = 10_000;
/// Number of values from which on a header splits the callers of a job.
const SPLITTING_VALUES: usize = 8;
/// Time within which the values count. It begins with the first of them.
const WINDOW: Duration = Duration::from_hours(1);
/// Most headers that are tracked.
const MAX_NAMES: usize = 64;
/// Longest name that is tracked, in bytes.
const MAX_NAME_BYTES: usize = 100;
/// Most groups that are tracked for one header.
const MAX_GROUPS: usize = 128;
/// Time without a read after which a group makes way for another one.
const IDLE_TIME: Duration = Duration::from_mins(1);

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
        for name in names.into_iter().take(MAX_DIFFERING) {
            if warnings.admits(name.as_str()) {
                warn_of_differing(name.as_str(), id);
            }
            self.differing_headers.restart((key.clone(), name));
        }
    }

    /// Returns the headers in which recent answers for a job differed.
    pub(super) fn differing_headers(&self, key: &Key) -> Vec<String> {
        let found = self.differing_headers.keys(|(job, _)| job == key).into_iter();
        let mut names: Vec<String> = found.map(|(_, name)| name.to_string()).collect();
        names.sort_unstable();
        names.truncate(MAX_DIFFERING);
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

/// The readers of one job with one credential: hashes of both.
type Group = (u64, u64);
type Groups = HashMap<Group, SeenValues>;

/// Counts the values of unknown request headers, to find those that split the callers of a job.
///
/// An unknown header tells callers apart. If it has another value in every request, callers never share
/// an entry, and the operator has to learn which header is the cause. So reads without a hit are noted
/// here: with the same job and the same credential, many values of one header within an hour cause a
/// warning that names the header.
///
/// Clients choose names and values, so everything is bounded. Of a value, only a hash with a random key
/// is kept, and only in this process.
#[derive(Debug, Default)]
pub(super) struct SplittingHeaders {
    names: Mutex<HashMap<HeaderName, Groups>>,
    hasher: RandomState,
    warnings: HourlyPerName,
}

/// Values of one header within one group.
#[derive(Debug)]
struct SeenValues {
    since: Instant,
    latest: Instant,
    hashes: Vec<u64>,
}

impl SplittingHeaders {
    /// Notes the unknown headers of a read that the cache did not answer, and warns about those that
    /// keep the callers of the job apart.
    pub(super) fn note_read(&self, fingerprinter: &Fingerprinter, request: &LookupRequest) {
        let headers = fingerprinter.unknown_headers(&request.variant);
        let credential = request.coalesce_key.caller.credential();
        for name in self.note(&request.key, credential, headers, Instant::now()) {
            if self.warnings.admits(name.as_str()) {
                warn!(
                    header = name.as_str(),
                    "a request header that jobcache does not know keeps callers of the same job \
                     apart: it had 8 or more values within an hour. If the API's answer does not \
                     depend on it, add it to credentials.ignore; if it identifies the caller, add it \
                     to credentials.headers"
                );
            }
        }
    }

    /// Notes the headers of a read. Those with the same name are next to each other. Returns the names
    /// of those that split the readers of the job.
    fn note<'h>(
        &self,
        job: &Key,
        credential: Fingerprint,
        headers: impl Iterator<Item = (HeaderName, &'h [u8])>,
        now: Instant,
    ) -> Vec<HeaderName> {
        let mut values: Vec<(HeaderName, u64)> = Vec::new();
        for (name, value) in headers {
            match values.last_mut() {
                Some((last, hash)) if *last == name => {
                    *hash = self.hasher.hash_one((*hash, value));
                }
                _ => values.push((name, self.hasher.hash_one(value))),
            }
        }
        if values.is_empty() {
            return Vec::new();
        }
        let group = (self.hash_of(job), self.hasher.hash_one(credential));
        let mut names = self.names();
        values.retain(|(name, value)| {
            make_room_for(&mut names, name, now)
                && note_value(names.entry(name.clone()).or_default(), group, *value, now)
        });
        values.into_iter().map(|(name, _)| name).collect()
    }

    /// Returns the names of the headers that split the readers of a job.
    pub(super) fn of_job(&self, job: &Key, now: Instant) -> Vec<String> {
        let job = self.hash_of(job);
        let names = self.names();
        let splits = |groups: &Groups| {
            groups.iter().any(|((of, _), seen)| *of == job && seen.splits() && seen.is_live(now))
        };
        let found = names.iter().filter(|(_, groups)| splits(groups));
        let mut found: Vec<String> = found.map(|(name, _)| name.as_str().to_owned()).collect();
        found.sort_unstable();
        found
    }

    fn hash_of(&self, job: &Key) -> u64 {
        self.hasher.hash_one(job.main())
    }

    fn names(&self) -> MutexGuard<'_, HashMap<HeaderName, Groups>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SeenValues {
    fn splits(&self) -> bool {
        self.hashes.len() >= SPLITTING_VALUES
    }

    fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < WINDOW
    }
}

/// Returns whether a header is tracked or may be. Headers that have had a single value in each group
/// make way: a constant header keeps nobody apart.
fn make_room_for(names: &mut HashMap<HeaderName, Groups>, name: &HeaderName, now: Instant) -> bool {
    if names.contains_key(name) || names.len() < MAX_NAMES {
        return name.as_str().len() <= MAX_NAME_BYTES;
    }
    names.retain(|_, groups| {
        groups.retain(|_, seen| seen.is_live(now));
        groups.values().any(|seen| seen.hashes.len() > 1)
    });
    names.len() < MAX_NAMES && name.as_str().len() <= MAX_NAME_BYTES
}

/// Notes a value. Returns whether the header splits the group.
fn note_value(groups: &mut Groups, group: Group, value: u64, now: Instant) -> bool {
    if !groups.contains_key(&group) && groups.len() >= MAX_GROUPS {
        let is_idle = |seen: &SeenValues| now.saturating_duration_since(seen.latest) > IDLE_TIME;
        groups.retain(|_, seen| seen.is_live(now) && (seen.splits() || !is_idle(seen)));
        if groups.len() >= MAX_GROUPS {
            return false;
        }
    }
    let fresh = || SeenValues { since: now, latest: now, hashes: Vec::new() };
    let seen = groups.entry(group).or_insert_with(fresh);
    if !seen.is_live(now) {
        *seen = fresh();
    }
    seen.latest = now;
    if !seen.splits() && !seen.hashes.contains(&value) {
        seen.hashes.push(value);
    }
    seen.splits()
}
