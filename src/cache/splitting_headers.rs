//! Unknown request headers that keep the callers of one job apart.
//!
//! An unknown header tells callers apart. If it has another value in every request,
//! callers never share an entry, and the operator has to learn which header is the cause. So
//! reads without a hit are noted here: with the same job and the same credential, many values of one
//! header within an hour cause a warning that names the header.
//!
//! Clients choose names and values, so everything is bounded. Of a value, only a hash with a random key
//! is kept, and only in this process.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper::http::HeaderName;
use tracing::warn;

use super::decide::LookupRequest;
use crate::{
    observe::throttle::HourlyPerName,
    semantics::audience::{Fingerprint, Fingerprinter},
    store::Key,
};

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

/// The readers of one job with one credential: hashes of both.
type Group = (u64, u64);

/// Counts the values of unknown request headers, to find those that split the callers of a job.
#[derive(Debug, Default)]
pub(super) struct SplittingHeaders {
    names: Mutex<HashMap<HeaderName, HashMap<Group, SeenValues>>>,
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
        let splits = |groups: &HashMap<Group, SeenValues>| {
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

    fn names(&self) -> MutexGuard<'_, HashMap<HeaderName, HashMap<Group, SeenValues>>> {
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
fn make_room_for(
    names: &mut HashMap<HeaderName, HashMap<Group, SeenValues>>,
    name: &HeaderName,
    now: Instant,
) -> bool {
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
fn note_value(
    groups: &mut HashMap<Group, SeenValues>,
    group: Group,
    value: u64,
    now: Instant,
) -> bool {
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

#[cfg(test)]
mod tests {
    use hyper::http::Request;

    use super::*;
    use crate::{config::CredentialsConfig, store::CredentialKey};

    fn job(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    fn name(name: &str) -> HeaderName {
        name.parse().unwrap()
    }

    fn credential(token: &str) -> Fingerprint {
        let request = Request::get("/").header("authorization", token).body(()).unwrap();
        let fingerprinter = Fingerprinter::new(&CredentialsConfig::default());
        let key = CredentialKey::new([7; 32]);
        fingerprinter.caller(&key, request.uri(), request.headers()).credential()
    }

    fn note(splits: &SplittingHeaders, id: &str, header: &str, value: &str, now: Instant) -> bool {
        let headers = std::iter::once((name(header), value.as_bytes()));
        !splits.note(&job(id), credential("a"), headers, now).is_empty()
    }

    #[test]
    fn eight_values_within_an_hour_split_the_callers_of_a_job() {
        let (splits, now) = (SplittingHeaders::default(), Instant::now());
        for n in 0..7 {
            assert!(!note(&splits, "x", "x-nonce", &n.to_string(), now));
            assert!(!note(&splits, "x", "x-nonce", "0", now), "a value counts once");
        }
        assert!(!note(&splits, "y", "x-nonce", "7", now), "that is another job");
        let headers = || std::iter::once((name("x-nonce"), b"7".as_slice()));
        let other = splits.note(&job("x"), credential("b"), headers(), now);
        assert!(other.is_empty(), "that is another credential");
        assert_eq!(splits.of_job(&job("x"), now), Vec::<String>::new());
        assert!(note(&splits, "x", "x-nonce", "7", now));
        assert_eq!(splits.of_job(&job("x"), now), ["x-nonce"]);
        assert_eq!(splits.of_job(&job("y"), now), Vec::<String>::new());
        let later = now + WINDOW;
        assert_eq!(splits.of_job(&job("x"), later), Vec::<String>::new());
        assert!(!note(&splits, "x", "x-nonce", "8", later), "the window has begun again");
    }

    #[test]
    fn the_lines_of_one_header_are_one_value() {
        let (splits, now) = (SplittingHeaders::default(), Instant::now());
        let values: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let headers = values.iter().map(|value| (name("x-list"), value.as_bytes()));
        assert!(splits.note(&job("x"), credential("a"), headers, now).is_empty());
    }

    #[test]
    fn names_and_groups_are_bounded_and_constant_headers_make_way() {
        let (splits, now) = (SplittingHeaders::default(), Instant::now());
        for n in 0..2 {
            note(&splits, "x", "x-nonce", &n.to_string(), now);
        }
        for n in 0..1_000 {
            note(&splits, "x", &format!("x-{n}"), "constant", now);
            note(&splits, &n.to_string(), "x-nonce", "0", now);
        }
        note(&splits, "x", &"x".repeat(MAX_NAME_BYTES + 1), "", now);
        {
            let names = splits.names();
            assert!(names.len() <= MAX_NAMES && names[&name("x-nonce")].len() <= MAX_GROUPS);
            assert!(names.keys().all(|name| name.as_str().len() <= MAX_NAME_BYTES));
        }
        for n in 2..SPLITTING_VALUES {
            note(&splits, "x", "x-nonce", &n.to_string(), now);
        }
        assert_eq!(splits.of_job(&job("x"), now), ["x-nonce"]);
        let later = now + IDLE_TIME * 2;
        for n in 0..SPLITTING_VALUES {
            note(&splits, "late", "x-nonce", &n.to_string(), later);
        }
        assert_eq!(splits.of_job(&job("late"), later), ["x-nonce"], "idle groups make way");
    }
}
