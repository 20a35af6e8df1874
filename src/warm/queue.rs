//! The jobs that wait to be read, each once.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::Pauses;
use crate::cache::key::JobId;

/// Jobs in the order in which they are to be read.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// That there is another one.
    news: Notify,
    max: usize,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("max", &self.max)
            .field("waiting", &self.len())
            .finish_non_exhaustive()
    }
}

/// One that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) job: JobId,
    /// Before it is tried again.
    pub(super) pauses: Pauses,
}

#[derive(Default)]
struct Waiting {
    ready: VecDeque<Item>,
    /// Those that were tried in vain, by when they are tried again; numbered, for two may share a time.
    later: BTreeMap<(Instant, u64), Item>,
    count: u64,
    /// All of these.
    known: HashSet<JobId>,
    closed: bool,
}

impl Queue {
    /// None yet, and at most `max`.
    pub(super) fn within(max: usize) -> Self {
        Self { waiting: Mutex::default(), news: Notify::new(), max }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().known.len()
    }

    /// Takes no more: nobody will read them.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Whether this job waits now. One that waits already does so once: its read is yet to begin.
    pub(super) fn add(&self, job: JobId) -> bool {
        let mut waiting = self.lock();
        if waiting.known.contains(&job) {
            return true;
        }
        if waiting.closed || waiting.known.len() >= self.max {
            return false;
        }
        waiting.known.insert(job.clone());
        waiting.ready.push_back(Item { job, pauses: Pauses::begin() });
        drop(waiting);
        self.news.notify_one();
        true
    }

    /// Puts one back that was tried in vain, unless it has been handed in again since.
    pub(super) fn postpone(&self, item: Item, until: Instant) {
        let mut waiting = self.lock();
        if waiting.known.insert(item.job.clone()) {
            waiting.count += 1;
            let place = (until, waiting.count);
            waiting.later.insert(place, item);
            drop(waiting);
            self.news.notify_one();
        }
    }

    /// The next one, once there is one that may be read. Nothing is lost when it is dropped.
    pub(super) async fn next(&self) -> Item {
        loop {
            let at = match self.take(Instant::now()) {
                Ok(item) => return item,
                Err(at) => at,
            };
            match at {
                // Late or told: it is looked at again either way.
                Some(at) => drop(timeout_at(at, self.news.notified()).await),
                None => self.news.notified().await,
            }
        }
    }

    /// The next one at `now`, or when there will be one.
    fn take(&self, now: Instant) -> Result<Item, Option<Instant>> {
        let mut waiting = self.lock();
        let due = waiting.later.first_key_value().map(|((at, _), _)| *at);
        let item = if due.is_some_and(|at| at <= now) {
            waiting.later.pop_first().map(|(_, item)| item)
        } else {
            waiting.ready.pop_front()
        };
        let item = item.ok_or(due)?;
        waiting.known.remove(&item.job);
        Ok(item)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing under the lock leaves it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn job(id: &str) -> JobId {
        JobId::canonical(id).unwrap()
    }

    fn taken(queue: &Queue, now: Instant) -> Option<String> {
        queue.take(now).ok().map(|item| item.job.to_string())
    }

    #[test]
    fn a_job_waits_once_and_no_more_than_there_is_room_for() {
        let (queue, now) = (Queue::within(2), Instant::now());
        assert!(queue.add(job("a")) && queue.add(job("b")) && queue.add(job("a")));
        assert!(!queue.add(job("c")), "there are two");
        assert_eq!(queue.len(), 2);
        assert_eq!(taken(&queue, now).as_deref(), Some("a"));
        assert!(queue.add(job("a")), "its read has begun, and another one may be needed");
        assert_eq!(taken(&queue, now).as_deref(), Some("b"));
        assert_eq!(taken(&queue, now).as_deref(), Some("a"));
        assert_eq!(taken(&queue, now), None);
        queue.close();
        assert!(!queue.add(job("d")), "nobody will read it");
    }

    #[test]
    fn one_that_is_postponed_lets_the_others_go_first() {
        let (queue, now) = (Queue::within(2), Instant::now());
        assert!(queue.add(job("a")) && queue.add(job("b")));
        let first = queue.take(now).unwrap();
        let until = now + Duration::from_secs(1);
        queue.postpone(first, until);
        assert_eq!(taken(&queue, now).as_deref(), Some("b"));
        assert_eq!(queue.take(now).unwrap_err(), Some(until));
        assert_eq!(taken(&queue, until).as_deref(), Some("a"));
    }
}
