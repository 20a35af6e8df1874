//! Short memories of what is not worth trying: bounded, and forgotten by themselves.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Marks kept at most. Past it all are forgotten at once: each costs one futile attempt.
const LIMIT: usize = 10_000;

/// How often each name was marked within a window that begins with its first mark.
pub struct Marks<K> {
    window: Duration,
    marked: Mutex<HashMap<K, (Instant, u32)>>,
}

impl<K> fmt::Debug for Marks<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Marks")
            .field("window", &self.window)
            .field("marked", &self.marked.lock().unwrap_or_else(PoisonError::into_inner).len())
            .finish_non_exhaustive()
    }
}

impl<K: Eq + Hash> Marks<K> {
    /// No marks yet; each lasts for `window`.
    pub fn new(window: Duration) -> Self {
        Self { window, marked: Mutex::default() }
    }

    /// Marks a name; returns how often that was within its window, this time included.
    pub fn add(&self, name: K) -> u32 {
        self.with(|marked| {
            if marked.len() >= LIMIT {
                marked.retain(|_, (since, _)| since.elapsed() < self.window);
                if marked.len() >= LIMIT {
                    marked.clear();
                }
            }
            let (since, count) = marked.entry(name).or_insert((Instant::now(), 0));
            if since.elapsed() >= self.window {
                (*since, *count) = (Instant::now(), 0);
            }
            *count += 1;
            *count
        })
    }

    /// How often a name was marked within its window.
    pub fn count(&self, name: &K) -> u32 {
        self.with(|marked| match marked.get(name) {
            Some((since, count)) if since.elapsed() < self.window => *count,
            Some(_) => {
                marked.remove(name);
                0
            }
            None => 0,
        })
    }

    /// Whether such a name was marked within its window. It looks at all of them.
    pub fn any(&self, is: impl Fn(&K) -> bool) -> bool {
        let lasts = |since: &Instant| since.elapsed() < self.window;
        self.with(|marked| marked.iter().any(|(name, (since, _))| is(name) && lasts(since)))
    }

    fn with<T>(&self, action: impl FnOnce(&mut HashMap<K, (Instant, u32)>) -> T) -> T {
        action(&mut self.marked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_count_within_their_window_and_are_forgotten_after_it() {
        let marks = Marks::new(Duration::from_mins(1));
        assert_eq!((marks.count(&1), marks.add(1), marks.add(1), marks.count(&1)), (0, 1, 2, 2));
        assert!(marks.any(|name| *name == 1) && !marks.any(|name| *name == 2));
        let short = Marks::new(Duration::ZERO);
        assert_eq!((short.add(1), short.add(1), short.count(&1)), (1, 1, 0));
    }

    #[test]
    fn marks_are_bounded() {
        let marks = Marks::new(Duration::from_mins(1));
        for name in 0..3 * LIMIT {
            marks.add(name);
        }
        assert!(marks.marked.lock().unwrap().len() <= LIMIT);
    }
}
