//! News about jobs, for those that wait for a job to change.
//!
//! News says that the state of a key may have changed: by a write or purge through this process, or as
//! Redis reports it. It comes after the near entry is gone, and before the change is acknowledged here
//! or the next barrier passes. It does not say what has changed, and a fill is news, too.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};

use crate::store::Key;

/// The time of the last news; `None` if there was none since the first listener came.
type LastNews = Option<Instant>;

/// The listeners of all keys.
#[derive(Debug, Default)]
pub(super) struct JobNews {
    by_key: Mutex<HashMap<Key, watch::Sender<LastNews>>>,
    /// Number of keys with listeners, so that news costs nothing without them.
    keys: AtomicUsize,
}

/// Receives the news about one key.
#[derive(Debug)]
pub struct NewsListener {
    news: Arc<JobNews>,
    key: Key,
    last: watch::Receiver<LastNews>,
}

impl JobNews {
    /// Listens to the news about a key from now on.
    pub(super) fn listen(self: &Arc<Self>, key: &Key) -> NewsListener {
        let mut by_key = self.lock();
        let last = by_key.entry(key.clone()).or_default().subscribe();
        self.keys.store(by_key.len(), Ordering::SeqCst);
        NewsListener { news: Arc::clone(self), key: key.clone(), last }
    }

    /// Whether somebody listens to the news about a key.
    pub(super) fn is_listened_to(&self, key: &Key) -> bool {
        self.has_listeners() && self.lock().contains_key(key)
    }

    /// Reports news about a key.
    pub(super) fn report(&self, name: &[u8]) {
        if self.has_listeners()
            && let Ok(name) = std::str::from_utf8(name)
            && let Some(last) = self.lock().get(name)
        {
            last.send_replace(Some(Instant::now()));
        }
    }

    /// Reports news about all keys.
    pub(super) fn report_all(&self) {
        self.report_matching(&|_| true);
    }

    /// Reports news about the keys with a name that satisfies `is_meant`.
    pub(super) fn report_matching(&self, is_meant: &dyn Fn(&[u8]) -> bool) {
        if !self.has_listeners() {
            return;
        }
        let now = Instant::now();
        for (key, last) in &*self.lock() {
            if is_meant(key.main().as_bytes()) {
                last.send_replace(Some(now));
            }
        }
    }

    fn has_listeners(&self) -> bool {
        self.keys.load(Ordering::SeqCst) > 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<LastNews>>> {
        // No code that holds the lock panics half-way through a change.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NewsListener {
    /// Waits for news that was not taken.
    pub async fn changed(&mut self) {
        // Never fails: the sender stays as long as it has a receiver.
        let _ = self.last.changed().await;
        self.last.mark_changed();
    }

    /// Takes the news, and returns when the last of it came; `None` if there was none.
    pub fn take(&mut self) -> Option<Instant> {
        let is_new = self.last.has_changed().unwrap_or(false);
        let last = *self.last.borrow_and_update();
        last.filter(|_| is_new)
    }
}

impl Drop for NewsListener {
    fn drop(&mut self) {
        let mut by_key = self.news.lock();
        // This receiver is the last one.
        if by_key.get(&self.key).is_some_and(|last| last.receiver_count() <= 1) {
            by_key.remove(&self.key);
        }
        self.news.keys.store(by_key.len(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    #[tokio::test]
    async fn a_listener_hears_of_its_key_alone_and_misses_nothing() {
        let news = Arc::<JobNews>::default();
        news.report(b"job_status:x");
        let (mut x, mut y) = (news.listen(&key("x")), news.listen(&key("y")));
        assert!(x.take().is_none());
        news.report(b"job_status:x");
        x.changed().await;
        x.changed().await;
        assert!(x.take().is_some() && x.take().is_none() && y.take().is_none());
        news.report_all();
        news.report_matching(&|name| name.ends_with(b"x"));
        assert!(x.take().is_some() && y.take().is_some());
    }

    #[test]
    fn a_key_is_kept_as_long_as_somebody_listens() {
        let news = Arc::<JobNews>::default();
        let (first, second) = (news.listen(&key("x")), news.listen(&key("x")));
        drop(first);
        assert!(news.is_listened_to(&key("x")) && !news.is_listened_to(&key("y")));
        drop(second);
        assert!(!news.is_listened_to(&key("x")) && news.lock().is_empty());
    }
}
