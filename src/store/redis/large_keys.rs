//! The keys of values that take long to transfer, and which of them are left alone for now.
//!
//! `large_values.rs` notes them, and reads large values over the bulk lane. A lookup asks first whether
//! a key is left alone.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::store::Key;

/// How long a value is left alone that took longer than the budget.
const LEFT_ALONE: Duration = Duration::from_secs(10);
/// How long it is remembered that a value is large.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Most keys that are remembered.
const MAX_KEYS: usize = 4096;

/// Keys with large values.
#[derive(Debug, Default)]
pub(crate) struct LargeKeys {
    noted: Mutex<HashMap<Key, LargeValue>>,
    /// Checked without the lock: most processes never see such a value.
    has_any: AtomicBool,
}

/// A large value, and when it was last found to be one.
#[derive(Clone, Copy, Debug)]
struct LargeValue {
    at: Instant,
    /// Whether it took longer than the budget.
    is_late: bool,
}

impl LargeKeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, LargeValue>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a value is large.
    pub(super) fn note_large(&self, key: &Key) {
        self.note(key, LargeValue { at: Instant::now(), is_late: false });
    }

    /// Notes that a value took longer than the budget.
    pub(super) fn note_late(&self, key: &Key) {
        self.note(key, LargeValue { at: Instant::now(), is_late: true });
    }

    fn note(&self, key: &Key, value: LargeValue) {
        let mut noted = self.lock();
        if noted.len() >= MAX_KEYS {
            noted.retain(|_, noted| noted.at.elapsed() < REMEMBERED);
        }
        if noted.len() >= MAX_KEYS {
            // The next read of each shows again that it is large.
            noted.clear();
        }
        noted.insert(key.clone(), value);
        self.has_any.store(true, Ordering::Relaxed);
    }

    fn noted(&self, key: &Key) -> Option<LargeValue> {
        let noted =
            if self.has_any.load(Ordering::Relaxed) { self.lock().get(key).copied() } else { None };
        noted.filter(|noted| noted.at.elapsed() < REMEMBERED)
    }

    /// Whether the value of a key is known to be large.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.noted(key).is_some()
    }

    /// Whether reads of a key pass, because its value took longer than the budget.
    pub(crate) fn is_left_alone(&self, key: &Key) -> bool {
        self.noted(key).is_some_and(|noted| noted.is_late && noted.at.elapsed() < LEFT_ALONE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_large_value_is_left_alone_for_a_while_and_the_keys_are_bounded() {
        let large = LargeKeys::default();
        let key = |id: usize| Key::new("job_status:", &id.to_string());
        assert!(!large.is_left_alone(&key(7)));
        large.note_late(&key(7));
        large.note_large(&key(9));
        assert!(large.has(&key(9)) && !large.is_left_alone(&key(9)));
        assert!(large.is_left_alone(&key(7)) && !large.is_left_alone(&key(8)));
        tokio::time::advance(LEFT_ALONE).await;
        assert!(!large.is_left_alone(&key(7)) && large.has(&key(7)));
        for id in 0..2 * MAX_KEYS {
            large.note_late(&key(id));
        }
        assert!(large.lock().len() <= MAX_KEYS);
        assert!(large.is_left_alone(&key(2 * MAX_KEYS - 1)));
    }
}
