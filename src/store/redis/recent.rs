//! Invalidations that were confirmed a moment ago.
//!
//! A master that was deposed goes on confirming until its sidecar learns of it: in vain, as the new one
//! may have an entry that was filled before the write, or be filling it. So when a session ends, what it
//! confirmed within [`WINDOW`] is pending once more, and is repeated on the next one. Where the master is
//! the same after all, that costs those jobs one more read.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::store::Key;

/// Longer than a deposed master is believed, with time for the session to end.
const WINDOW: Duration = Duration::from_secs(3);
/// Invalidations that are kept in mind one by one; past it all that there is counts as purged.
const LIMIT: usize = 20_000;

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Confirmed>);

#[derive(Debug, Default)]
struct Confirmed {
    ends: VecDeque<(Instant, Key)>,
    /// A purge of all.
    all: Option<Instant>,
}

/// What a session confirmed just before it ended.
#[derive(Debug, Default)]
pub(super) struct Late {
    pub(super) keys: Vec<Key>,
    /// Whether everything was purged.
    pub(super) all: bool,
}

impl Recent {
    pub(super) fn note(&self, key: &Key, now: Instant) {
        let mut confirmed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while confirmed.ends.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            confirmed.ends.pop_front();
        }
        if confirmed.ends.len() >= LIMIT
            && let Some((at, _)) = confirmed.ends.pop_front()
        {
            confirmed.all = confirmed.all.max(Some(at));
        }
        confirmed.ends.push_back((now, key.clone()));
    }

    pub(super) fn note_all(&self, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).all = Some(now);
    }

    /// Forgets them.
    pub(super) fn take(&self, now: Instant) -> Late {
        let confirmed = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let is_late = |at: Instant| now.duration_since(at) <= WINDOW;
        let mut late = Late { all: confirmed.all.is_some_and(is_late), ..Late::default() };
        let ends = confirmed.ends.into_iter().filter(|(at, _)| is_late(*at));
        late.keys.extend(ends.map(|(_, key)| key));
        late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_confirmed_lately_is_given_once() {
        let (recent, start) = (Recent::default(), Instant::now());
        let key = |id: &str| Key::new("p:", id);
        recent.note(&key("old"), start);
        recent.note(&key("new"), start + WINDOW);
        recent.note_all(start);

        let late = recent.take(start + WINDOW + Duration::from_millis(1));

        assert_eq!(late.keys, [key("new")]);
        assert!(!late.all);
        assert!(recent.take(start + WINDOW).keys.is_empty());
    }

    #[test]
    fn what_is_too_much_to_be_kept_one_by_one_is_not_lost() {
        let (recent, now) = (Recent::default(), Instant::now());
        for id in 0..=LIMIT {
            recent.note(&Key::new("p:", &id.to_string()), now);
        }
        let late = recent.take(now);
        assert_eq!((late.keys.len(), late.all), (LIMIT, true));
    }
}
