//! Bounded counts that expire by themselves, mostly of attempts that are not worth repeating.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Greatest number of keys. If there are more, all counts are dropped at once: each costs one futile
/// attempt.
const MAX_KEYS: usize = 10_000;

/// Counts events for each key within a window that begins with the first event.
pub struct WindowedCounts<K> {
    window: Duration,
    counts: Mutex<HashMap<K, (Instant, u32)>>,
}

impl<K> fmt::Debug for WindowedCounts<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowedCounts")
            .field("window", &self.window)
            .field("marked", &self.counts.lock().unwrap_or_else(PoisonError::into_inner).len())
            .finish_non_exhaustive()
    }
}

impl<K: Eq + Hash> WindowedCounts<K> {
    /// Creates an empty set of counts, each of which lasts for `window`.
    pub fn new(window: Duration) -> Self {
        Self { window, counts: Mutex::default() }
    }

    /// Counts an event and returns the key's count within its window, including this event.
    pub fn add(&self, key: K) -> u32 {
        self.with(|counts| {
            if counts.len() >= MAX_KEYS {
                counts.retain(|_, (since, _)| since.elapsed() < self.window);
                if counts.len() >= MAX_KEYS {
                    counts.clear();
                }
            }
            let (since, count) = counts.entry(key).or_insert((Instant::now(), 0));
            if since.elapsed() >= self.window {
                (*since, *count) = (Instant::now(), 0);
            }
            *count += 1;
            *count
        })
    }

    /// Returns the key's count within its window.
    pub fn count(&self, key: &K) -> u32 {
        self.with(|counts| match counts.get(key) {
            Some((since, count)) if since.elapsed() < self.window => *count,
            Some(_) => {
                counts.remove(key);
                0
            }
            None => 0,
        })
    }

    /// Returns whether any key that `matches` has a count within its window. Scans all keys.
    pub fn any(&self, matches: impl Fn(&K) -> bool) -> bool {
        let is_current = |since: &Instant| since.elapsed() < self.window;
        self.with(|counts| counts.iter().any(|(key, (since, _))| matches(key) && is_current(since)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut HashMap<K, (Instant, u32)>) -> T) -> T {
        action(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
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
        assert!(counts.any(|key| *key == 1) && !counts.any(|key| *key == 2));
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
}
