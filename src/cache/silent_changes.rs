//! Jobs that change without a purge: the API gives another body after the TTL than before, and
//! nothing has reported a change.
//!
//! Detection costs no reads. The last entry of a job that this sidecar filled or read is kept as a
//! digest. The fill that replaces it after its TTL compares. A change is silent only if this sidecar
//! knows of no reason for it:
//!
//! - A write or purge through this sidecar forgets the entry.
//! - News of the key before the TTL ends (a `DEL`, a purge or write through another sidecar) spoils
//!   it. At the TTL the news is the expiry itself; the first right after a fill is that of the fill.
//! - A lease that was granted before the TTL ended shows that the entry was deleted.
//! - News that was lost, with the tracking connection or for all keys, forgets every entry.
//! - Another caller or variant is not compared.
//!
//! Limits without news: with `near = "off"` a `DEL` is noticed by the next read before the
//! TTL ends, and one after the last read is not. With `memory://` every change is a write or purge
//! through this process. In all modes, a change through another sidecar while there is no entry is not
//! noticed, so a comparison is made only shortly after the TTL has ended.

pub(super) mod news;
pub(super) mod observed_entry;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing::warn;
use xxhash_rust::xxh3::xxh3_128;

use self::observed_entry::{ObservedEntry, StoredAs};
use crate::{observe::throttle::HourlyPerName, semantics::audience::Caller, store::Key};

/// Most jobs that are remembered. Further jobs are not compared until others are
/// forgotten.
const MAX_JOBS: usize = 10_000;
/// Most callers of one entry that are remembered.
const MAX_CALLERS: usize = 8;
/// Time after the end of a TTL in which a read is compared.
const COMPARABLE_FOR: Duration = Duration::from_mins(1);
/// Time after a fill in which news of the key probably comes from that fill, and in which it may.
const OWN_NEWS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Greatest difference between the clocks of this process and the store.
const CLOCK_MARGIN: Duration = Duration::from_millis(100);
/// Shortest interval between two searches for jobs that can be forgotten.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);
/// Time in which silent changes of a route are counted, and in which a purge or `DEL` prevents a warning.
const WINDOW: Duration = Duration::from_hours(1);
/// Number of silent changes within [`WINDOW`] that are worth a warning.
const WARN_AT: usize = 3;

/// The memory of entries, and the silent changes of each route.
pub(super) struct SilentChanges {
    state: Mutex<State>,
    warned: HourlyPerName,
    /// All silent changes.
    total: Counter,
}

#[derive(Default)]
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
    /// Whether there was news of the key before the end of the TTL.
    is_spoiled: bool,
    /// Whether there was news that is taken for that of the fill.
    has_own_news: bool,
    route: usize,
}

/// The silent changes of one route.
#[derive(Debug, Default)]
struct RouteChanges {
    name: Box<str>,
    total: u64,
    /// Times of the last silent changes, at most [`WARN_AT`].
    recent: VecDeque<Instant>,
    /// Last purge or `DEL` of a job.
    purged: Option<Instant>,
}

/// The silent changes of one route, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SilentRoute {
    /// The template.
    pub route: String,
    /// Number of silent changes since the start.
    pub changes: u64,
    /// Whether the last hour had three silent changes, and no purge or `DEL`.
    pub is_without_purges: bool,
}

impl fmt::Debug for SilentChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SilentChanges")
            .field("jobs", &self.lock().jobs.len())
            .finish_non_exhaustive()
    }
}

impl SilentChanges {
    pub(super) fn new(total: Counter) -> Self {
        Self { state: Mutex::default(), warned: HourlyPerName::default(), total }
    }

    /// Notes a response that was stored, and compares it with the entry before it.
    pub(super) fn stored(&self, observed: ObservedEntry<'_>, stored: StoredAs) {
        if matches!(stored, StoredAs::Admission { .. }) {
            return self.seen(observed);
        }
        let new = RememberedEntry::new(&observed);
        let mut state = self.lock();
        let before = state.jobs.remove(observed.key);
        let silent = match (before, stored) {
            (Some(before), StoredAs::Fill { granted_at_ms, .. }) => {
                state.compare(&before, &new, granted_at_ms)
            }
            _ => None,
        };
        state.remember(observed.key, observed.route, new);
        drop(state);
        if let Some(route) = silent {
            self.report(&route);
        }
    }

    /// Notes an entry that was read from the store and served to a caller.
    pub(super) fn seen(&self, observed: ObservedEntry<'_>) {
        let mut state = self.lock();
        if let Some(known) = state.jobs.get_mut(observed.key) {
            if known.is_generation(&observed) {
                known.generation = observed.generation;
                return known.add_caller(observed.caller);
            }
            let (route, ended_early) = (known.route, known.ends_after(observed.now_ms));
            state.jobs.remove(observed.key);
            if ended_early {
                state.routes[route].purged = Some(Instant::now());
            }
        }
        let new = RememberedEntry::new(&observed);
        state.remember(observed.key, observed.route, new);
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

    /// Handles news of a key.
    fn changed(&self, name: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(known) = state.jobs.get_mut(name) else { return };
        let age = now.saturating_duration_since(known.noted_at);
        if now + CLOCK_MARGIN >= known.expires_at {
            return;
        }
        if age < OWN_NEWS.0 && !std::mem::replace(&mut known.has_own_news, true) {
            return;
        }
        known.is_spoiled = true;
        if age < OWN_NEWS.1 {
            // It may be late news of the fill, and does not show that the route has purges.
            return;
        }
        let route = known.route;
        state.routes[route].purged = Some(now);
    }

    /// Returns the routes with silent changes.
    pub(super) fn routes(&self) -> Vec<SilentRoute> {
        let state = self.lock();
        let routes = state.routes.iter().filter(|route| route.total > 0);
        let shown = |route: &RouteChanges| SilentRoute {
            route: route.name.to_string(),
            changes: route.total,
            is_without_purges: state.is_without_purges(route),
        };
        routes.map(shown).collect()
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
        if route.recent.len() == WARN_AT {
            route.recent.pop_front();
        }
        route.recent.push_back(now);
        let route = &self.routes[before.route];
        Some(SilentRoute {
            route: route.name.to_string(),
            changes: route.total,
            is_without_purges: self.is_without_purges(route),
        })
    }

    fn is_without_purges(&self, route: &RouteChanges) -> bool {
        let within = |at: &Instant| at.elapsed() < WINDOW;
        let purged = [route.purged, self.purged].iter().flatten().any(within);
        !purged && route.recent.len() == WARN_AT && route.recent.iter().all(within)
    }

    fn remember(&mut self, key: &Key, route: &str, mut entry: RememberedEntry) {
        if self.jobs.len() >= MAX_JOBS && !self.make_room() {
            return;
        }
        entry.route = self.route(route);
        self.jobs.insert(key.clone(), entry);
    }

    /// Forgets jobs that are too old for a comparison. Returns whether there is room.
    fn make_room(&mut self) -> bool {
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
    fn new(observed: &ObservedEntry<'_>) -> Self {
        let now = Instant::now();
        let left_ms = observed.expires_at_ms.saturating_sub(observed.now_ms);
        let left = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
        Self {
            status: observed.entry.status().as_u16(),
            digest: xxh3_128(observed.entry.body()),
            generation: observed.generation,
            callers: vec![observed.caller],
            expires_at_ms: observed.expires_at_ms,
            // The limit of a day keeps the addition from overflowing.
            expires_at: now + left.min(Duration::from_hours(24)),
            noted_at: now,
            is_spoiled: false,
            has_own_news: false,
            route: 0,
        }
    }

    /// Whether the observed is of this very entry.
    fn is_generation(&self, observed: &ObservedEntry<'_>) -> bool {
        match self.generation {
            Some(ours) => observed.generation == Some(ours),
            None => self.digest == xxh3_128(observed.entry.body()),
        }
    }

    fn add_caller(&mut self, caller: Caller) {
        if self.callers.len() < MAX_CALLERS && !self.callers.contains(&caller) {
            self.callers.push(caller);
        }
    }

    /// Whether the TTL had not ended at this time by the store's clock.
    fn ends_after(&self, at_ms: i64) -> bool {
        let margin = i64::try_from(CLOCK_MARGIN.as_millis()).unwrap_or(0);
        at_ms.saturating_add(margin) < self.expires_at_ms
    }
}
