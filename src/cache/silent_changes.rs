//! Jobs that change without a purge: the API gives another body after the TTL than before, and
//! nothing has reported a change.
//!
//! Detection costs no reads. The last entry of a job that this sidecar filled or read is kept as a
//! digest. The fill that replaces it after its TTL compares. A change is silent only if this sidecar
//! knows of no reason for it:
//!
//! - A write or purge through this sidecar forgets the entry.
//! - Redis reports a change of the key before the TTL ends (a `DEL`, a purge or write through another
//!   sidecar). At the TTL it reports the expiry itself; the first report right after a fill is that of
//!   the fill.
//! - A lease that was granted before the TTL ended shows that the entry was deleted.
//! - Reports that were lost, with the tracking connection or for all keys, forget every entry.
//! - Another caller or variant is not compared.
//!
//! Limits without reports: with `near = "off"` a `DEL` is noticed by the next read before the
//! TTL ends, and one after the last read is not. With `memory://` every change is a write or purge
//! through this process. In all modes, a change through another sidecar while there is no entry is not
//! noticed, so a comparison is made only shortly after the TTL has ended.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tracing::warn;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    entry::{CLOCK_MARGIN_MS, Entry},
    job_news::JobNews,
};
use crate::{
    observe::throttle::HourlyPerName,
    semantics::audience::Caller,
    store::{Key, Token, near::Watcher},
};

/// Most jobs that are remembered. Further jobs are not compared until others are forgotten.
const MAX_JOBS: usize = 10_000;
/// Most callers of one entry that are remembered.
const MAX_CALLERS: usize = 8;
/// Time after the end of a TTL in which a read is compared.
const COMPARABLE_FOR: Duration = Duration::from_mins(1);
/// Time after a fill in which a reported change of the key probably is that fill, and in which it
/// may be.
const OWN_CHANGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Shortest interval between two searches for jobs that can be forgotten.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// Time in which silent changes of a route are counted, and in which a purge or `DEL` prevents a
/// warning.
const WINDOW: Duration = Duration::from_hours(1);
/// Number of silent changes within [`WINDOW`] that are worth a warning.
const WARN_AT: usize = 3;

/// The memory of entries, and the silent changes of each route.
#[derive(Debug)]
pub(super) struct SilentChanges {
    state: Mutex<State>,
    warned: HourlyPerName,
    /// All silent changes.
    total: Counter,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<Key, RememberedEntry>,
    routes: Vec<RouteChanges>,
    /// Last purge or `DEL` that may have been of any route.
    purged: Option<Instant>,
    last_search: Option<Instant>,
}

/// The last entry of a job.
#[derive(Debug)]
struct RememberedEntry {
    status: u16,
    digest: u128,
    /// Hash of the token under which it was stored; `None` if it is not known.
    generation: Option<u64>,
    callers: Vec<Caller>,
    /// End of the TTL by the store's clock.
    expires_at_ms: i64,
    /// The same by the clock of this process.
    expires_at: Instant,
    noted_at: Instant,
    /// Whether a change of the key was reported before the end of the TTL.
    is_spoiled: bool,
    /// Whether a change was reported that is taken for the fill.
    is_fill_reported: bool,
    route: usize,
}

/// The silent changes of one route.
#[derive(Debug, Default)]
struct RouteChanges {
    name: Box<str>,
    total: u64,
    /// Times of the last silent changes.
    recent: [Option<Instant>; WARN_AT],
    /// Last purge or `DEL` of a job.
    purged: Option<Instant>,
}

/// The silent changes of one route, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SilentRoute {
    /// The template.
    pub route: String,
    /// Number of silent changes since the start.
    pub changes: u64,
    /// Whether the last hour had three silent changes, and no purge or `DEL`.
    #[serde(rename = "without_purges")]
    pub is_without_purges: bool,
}

/// An entry that was stored or read.
#[derive(Clone, Copy)]
pub(super) struct ObservedEntry<'a> {
    pub(super) key: &'a Key,
    pub(super) caller: Caller,
    /// Template of the route.
    pub(super) route: &'a str,
    pub(super) entry: &'a Entry,
    /// Now by the store's clock.
    pub(super) now_ms: i64,
}

impl SilentChanges {
    pub(super) fn new(total: Counter) -> Self {
        Self { state: Mutex::default(), warned: HourlyPerName::default(), total }
    }

    /// Notes an entry that was filled under a lease of this token, which was granted at this time by
    /// the store's clock, and compares it with the entry before it.
    pub(super) fn filled(&self, observed: &ObservedEntry<'_>, lease: &Token, granted_at_ms: i64) {
        let Some(new) = self.hashed(observed, generation(lease.as_str())) else { return };
        let mut state = self.lock();
        let before = state.jobs.remove(observed.key);
        let silent = before.and_then(|before| state.compare(&before, &new, granted_at_ms));
        state.remember(observed, new);
        drop(state);
        if let Some(route) = silent {
            self.report(&route);
        }
    }

    /// Notes an entry that was stored in place of one that had not expired.
    pub(super) fn replaced(&self, observed: &ObservedEntry<'_>) {
        let Some(new) = self.hashed(observed, None) else { return };
        self.lock().remember(observed, new);
    }

    /// Notes an entry of the store that was served to a caller, or that the caller was admitted to.
    pub(super) fn seen(&self, observed: &ObservedEntry<'_>) {
        let generation = generation(observed.entry.generation());
        if let Some(known) = self.lock().jobs.get_mut(observed.key)
            && known.generation.is_some()
            && known.generation == generation
        {
            return known.add_caller(observed.caller);
        }
        let Some(new) = self.hashed(observed, generation) else { return };
        let mut state = self.lock();
        if let Some(known) = state.jobs.get_mut(observed.key) {
            let is_same = match known.generation {
                Some(known) => generation == Some(known),
                None => known.digest == new.digest,
            };
            if is_same {
                known.generation = generation;
                return known.add_caller(observed.caller);
            }
            if known.ends_after(observed.now_ms) {
                let route = known.route;
                state.routes[route].purged = Some(Instant::now());
            }
        }
        state.remember(observed, new);
    }

    /// Hashes an entry, without the lock, if there is room for it.
    fn hashed(
        &self,
        observed: &ObservedEntry<'_>,
        generation: Option<u64>,
    ) -> Option<RememberedEntry> {
        let has_room = self.lock().has_room(observed.key);
        has_room.then(|| RememberedEntry::new(observed, generation))
    }

    /// Forgets jobs that are about to be changed, or were.
    pub(super) fn forget(&self, keys: &[Key]) {
        let mut state = self.lock();
        for key in keys {
            state.jobs.remove(key);
        }
    }

    /// Forgets every job: each may have changed.
    pub(super) fn forget_all(&self) {
        self.lock().jobs.clear();
    }

    /// Forgets jobs that are purged on request, and notes that their routes have purges.
    pub(super) fn purged(&self, keys: &[Key]) {
        let now = Some(Instant::now());
        let mut state = self.lock();
        for key in keys {
            match state.jobs.remove(key) {
                Some(known) => state.routes[known.route].purged = now,
                None => state.purged = now,
            }
        }
    }

    /// Notes a purge of all.
    pub(super) fn all_purged(&self) {
        let mut state = self.lock();
        state.jobs.clear();
        state.purged = Some(Instant::now());
    }

    /// Handles the report of a change of a key.
    fn changed(&self, name: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(known) = state.jobs.get_mut(name) else { return };
        let age = now.saturating_duration_since(known.noted_at);
        if now + Duration::from_millis(CLOCK_MARGIN_MS.unsigned_abs()) >= known.expires_at
            || age < OWN_CHANGE.0 && !std::mem::replace(&mut known.is_fill_reported, true)
        {
            return;
        }
        known.is_spoiled = true;
        // An earlier one may be a late one of the fill, and does not show that the route has purges.
        if age >= OWN_CHANGE.1 {
            let route = known.route;
            state.routes[route].purged = Some(now);
        }
    }

    /// Returns the routes with silent changes.
    pub(super) fn routes(&self) -> Vec<SilentRoute> {
        let state = self.lock();
        let routes = state.routes.iter().filter(|route| route.total > 0);
        routes.map(|route| state.shown(route)).collect()
    }

    fn report(&self, route: &SilentRoute) {
        self.total.inc();
        if route.is_without_purges && self.warned.admits(&route.route) {
            warn!(
                route = route.route,
                changes = route.changes,
                "jobs change without a purge: the API gave other answers after the TTL, and nothing had \
                 reported a change, so clients see changes late; call the purge webhook or DEL the key \
                 when a job changes, or set a shorter ttl"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Compares an entry with the one that was filled after it. Returns the route if it has changed
    /// silently.
    fn compare(
        &mut self,
        before: &RememberedEntry,
        new: &RememberedEntry,
        granted_at_ms: i64,
    ) -> Option<SilentRoute> {
        let now = Instant::now();
        if before.ends_after(granted_at_ms) {
            self.routes[before.route].purged = Some(now);
            return None;
        }
        let gap_ms = granted_at_ms.saturating_sub(before.expires_at_ms);
        let gap = Duration::from_millis(u64::try_from(gap_ms).unwrap_or(0));
        let is_comparable = !before.is_spoiled
            && gap <= COMPARABLE_FOR
            && new.callers.iter().all(|caller| before.callers.contains(caller));
        if !is_comparable || (before.status, before.digest) == (new.status, new.digest) {
            return None;
        }
        let route = &mut self.routes[before.route];
        route.total += 1;
        route.recent.rotate_left(1);
        route.recent[WARN_AT - 1] = Some(now);
        Some(self.shown(&self.routes[before.route]))
    }

    fn shown(&self, route: &RouteChanges) -> SilentRoute {
        let is_recent = |at: Option<Instant>| at.is_some_and(|at| at.elapsed() < WINDOW);
        let is_purged = is_recent(route.purged) || is_recent(self.purged);
        SilentRoute {
            route: route.name.to_string(),
            changes: route.total,
            is_without_purges: !is_purged && route.recent.into_iter().all(is_recent),
        }
    }

    fn remember(&mut self, observed: &ObservedEntry<'_>, mut entry: RememberedEntry) {
        if self.has_room(observed.key) {
            entry.route = self.route(observed.route);
            self.jobs.insert(observed.key.clone(), entry);
        }
    }

    /// Returns whether there is room for a job. Forgets those that are too old for a comparison.
    fn has_room(&mut self, key: &Key) -> bool {
        if self.jobs.len() < MAX_JOBS || self.jobs.contains_key(key) {
            return true;
        }
        let now = Instant::now();
        if self.last_search.is_none_or(|last| now >= last + SEARCH_INTERVAL) {
            self.last_search = Some(now);
            self.jobs.retain(|_, known| now < known.expires_at + COMPARABLE_FOR);
        }
        self.jobs.len() < MAX_JOBS
    }

    fn route(&mut self, name: &str) -> usize {
        if let Some(known) = self.routes.iter().position(|route| &*route.name == name) {
            return known;
        }
        self.routes.push(RouteChanges { name: name.into(), ..RouteChanges::default() });
        self.routes.len() - 1
    }
}

impl RememberedEntry {
    fn new(observed: &ObservedEntry<'_>, generation: Option<u64>) -> Self {
        let now = Instant::now();
        let entry = observed.entry;
        Self {
            status: entry.status().as_u16(),
            digest: xxh3_128(entry.body()),
            generation,
            callers: vec![observed.caller],
            expires_at_ms: entry.expires_at_ms(),
            // The limit of a day keeps the addition from overflowing.
            expires_at: now + entry.ttl(observed.now_ms).min(Duration::from_hours(24)),
            noted_at: now,
            is_spoiled: false,
            is_fill_reported: false,
            route: 0,
        }
    }

    fn add_caller(&mut self, caller: Caller) {
        if self.callers.len() < MAX_CALLERS && !self.callers.contains(&caller) {
            self.callers.push(caller);
        }
    }

    /// Whether the TTL had not ended at this time by the store's clock.
    fn ends_after(&self, at_ms: i64) -> bool {
        at_ms.saturating_add(CLOCK_MARGIN_MS) < self.expires_at_ms
    }
}

/// Returns the hash of the token under which an entry was stored.
fn generation(token: &str) -> Option<u64> {
    (!token.is_empty()).then(|| xxh3_64(token.as_bytes()))
}

/// Passes the changes that the store reports on to the near entries and to the memory of silent
/// changes.
pub(super) struct ChangeWatcher {
    pub(super) near: Option<Arc<dyn Watcher>>,
    pub(super) silent_changes: Arc<SilentChanges>,
    pub(super) news: Arc<JobNews>,
}

impl Watcher for ChangeWatcher {
    fn evict(&self, name: &[u8]) {
        if let Some(near) = &self.near {
            near.evict(name);
        }
        if let Ok(text) = std::str::from_utf8(name) {
            self.silent_changes.changed(text);
        }
        self.news.report(name);
    }

    fn flush(&self) {
        if let Some(near) = &self.near {
            near.flush();
        }
        self.silent_changes.forget_all();
        self.news.report_all();
    }

    fn evict_matching(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        if let Some(near) = &self.near {
            near.evict_matching(is_gone);
        }
        self.silent_changes.lock().jobs.retain(|key, _| !is_gone(key.main().as_bytes()));
        self.news.report_matching(is_gone);
    }

    fn resumed(&self) {
        self.news.report_all();
    }
}
