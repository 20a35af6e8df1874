//! The jobs that wait to be read, each of them once, and the pauses between the attempts at one read.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::semantics::job_id::JobId;

/// The waiting jobs, in reading order.
pub(super) struct WarmQueue {
    waiting: Mutex<Waiting>,
    /// Notified when a job is added.
    added: Notify,
    max: usize,
}

/// A waiting job.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) job: JobId,
    /// Pauses before its next attempts.
    pub(super) pauses: RetryPauses,
}

#[derive(Default)]
struct Waiting {
    ready: VecDeque<Item>,
    /// Jobs that wait for another attempt, by its time. The number tells jobs with equal times
    /// apart.
    later: BTreeMap<(Instant, u64), Item>,
    count: u64,
    /// All jobs in `ready` and `later`.
    known: HashSet<JobId>,
    closed: bool,
}

impl WarmQueue {
    /// An empty queue for at most `max` jobs.
    pub(super) fn with_max(max: usize) -> Self {
        Self { waiting: Mutex::default(), added: Notify::new(), max }
    }

    /// Number of waiting jobs.
    pub(super) fn len(&self) -> usize {
        self.lock().known.len()
    }

    /// Accepts no more jobs, because nothing will read them.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Adds a job, and returns whether it waits now. A job that waits already is not added again,
    /// because its read has not begun.
    pub(super) fn add(&self, job: JobId) -> bool {
        let mut waiting = self.lock();
        if waiting.known.contains(&job) {
            return true;
        }
        if waiting.closed || waiting.known.len() >= self.max {
            return false;
        }
        waiting.known.insert(job.clone());
        waiting.ready.push_back(Item { job, pauses: RetryPauses::begin() });
        drop(waiting);
        self.added.notify_one();
        true
    }

    /// Puts back a job for another attempt at `until`, unless it has been added again meanwhile.
    pub(super) fn postpone(&self, item: Item, until: Instant) {
        let mut waiting = self.lock();
        if waiting.known.insert(item.job.clone()) {
            waiting.count += 1;
            let retry_key = (until, waiting.count);
            waiting.later.insert(retry_key, item);
            drop(waiting);
            self.added.notify_one();
        }
    }

    /// Waits for the next job that may be read. No job is lost if the future is dropped.
    pub(super) async fn next(&self) -> Item {
        loop {
            let at = match self.take(Instant::now()) {
                Ok(item) => return item,
                Err(at) => at,
            };
            match at {
                // On a timeout and on a notification alike, the queue is checked again.
                Some(at) => drop(timeout_at(at, self.added.notified()).await),
                None => self.added.notified().await,
            }
        }
    }

    /// The next job at `now`, or the time when there will be one.
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
        // A panic under the lock does not leave the queue inconsistent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a job or the list is retried. Longer than a write is fenced by default.
const PATIENCE: Duration = Duration::from_mins(2);
/// First pause between two attempts; doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pauses between attempts at one read, until `PATIENCE` is used up.
#[derive(Debug)]
pub(super) struct RetryPauses {
    pause: Duration,
    left: Duration,
}

impl RetryPauses {
    pub(super) fn begin() -> Self {
        Self { pause: FIRST_PAUSE, left: PATIENCE }
    }
}

impl Iterator for RetryPauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.pause.min(self.left);
        self.left -= pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        (!pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn job(id: &str) -> JobId {
        JobId::new(id, 0)
    }

    fn taken(queue: &WarmQueue, now: Instant) -> Option<String> {
        queue.take(now).ok().map(|item| item.job.to_string())
    }

    #[test]
    fn a_job_waits_once_and_no_more_than_there_is_room_for() {
        let queue = WarmQueue::with_max(2);
        let now = Instant::now();
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
        let queue = WarmQueue::with_max(2);
        let now = Instant::now();
        assert!(queue.add(job("a")) && queue.add(job("b")));
        let first = queue.take(now).unwrap();
        let until = now + Duration::from_secs(1);
        queue.postpone(first, until);
        assert_eq!(taken(&queue, now).as_deref(), Some("b"));
        assert_eq!(queue.take(now).unwrap_err(), Some(until));
        assert_eq!(taken(&queue, until).as_deref(), Some("a"));
    }

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let pauses: Vec<_> = RetryPauses::begin().collect();
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert_eq!(pauses.iter().sum::<Duration>(), PATIENCE);
    }
}
