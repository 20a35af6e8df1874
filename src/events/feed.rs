//! The feed of events to subscribers.
//!
//! All subscribers share one ring of [`WAITING`] events, and each has its own position in it. A
//! subscriber that falls further behind loses the oldest events and gets their number. Publishers
//! never wait for subscribers. There are at most [`LISTENERS`] subscribers. A new one first gets
//! the last [`BEFORE`] events.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use super::{By, What, jobs::Busy};

/// Most subscribers at a time.
pub const LISTENERS: usize = 16;
/// Events in the ring, which wait for the slowest subscriber.
pub const WAITING: usize = 256;
/// Recent events that a new subscriber gets first.
pub const BEFORE: usize = 64;

/// A published event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Sequence number, from 1; 0 for the counts of a second.
    pub number: u64,
    /// Time in ms since 1970.
    pub at_ms: i64,
    /// The kind; `None` for the counts of a second.
    pub what: Option<What>,
    /// The reason, in the words of `Cache-Status`; may be empty.
    pub why: &'static str,
    /// The initiator, if known.
    pub by: By,
    /// The id of the job, if it is about one job.
    pub job: Option<Box<str>>,
    /// Number of jobs; 0 if it is about all jobs or about none.
    pub jobs: usize,
    /// The counts of the last second; `None` for all other events.
    pub second: Option<Counts>,
}

/// The requests of one second.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Requests by outcome.
    pub outcomes: [(&'static str, u64); 5],
    /// The busiest jobs of the last two minutes.
    pub busiest: Vec<Busy>,
}

impl Event {
    pub(super) fn new(what: What, why: &'static str, by: By, at_ms: i64) -> Self {
        let what = Some(what);
        Self { number: 0, at_ms, what, why, by, job: None, jobs: 0, second: None }
    }

    pub(super) fn of(self, job: Option<Box<str>>, jobs: usize) -> Self {
        Self { job, jobs, ..self }
    }
}

/// The publisher of events.
pub(super) struct Feed {
    last: AtomicU64,
    before: Mutex<VecDeque<Arc<Event>>>,
    told: broadcast::Sender<Arc<Event>>,
    places: Arc<Semaphore>,
}

/// A subscriber of the feed. It gives its place back when it is dropped.
pub struct Listener {
    /// Recent events from before the subscription.
    pub before: Vec<Arc<Event>>,
    /// Events after that.
    pub told: broadcast::Receiver<Arc<Event>>,
    #[expect(dead_code, reason = "held, not read")]
    place: OwnedSemaphorePermit,
}

impl Default for Feed {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(LISTENERS));
        let before = Mutex::default();
        Self { last: AtomicU64::new(0), before, told: broadcast::Sender::new(WAITING), places }
    }
}

impl Feed {
    /// Publishes an event. The caller holds the lock of the jobs here and in [`Feed::listen`], so
    /// that a new subscriber neither misses an event nor gets one twice.
    pub(super) fn tell(&self, event: Event) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Arc::new(Event { number, ..event });
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        if before.len() >= BEFORE {
            before.pop_front();
        }
        before.push_back(Arc::clone(&event));
        drop(before);
        // The only error is that there are no subscribers.
        let _ = self.told.send(event);
    }

    /// Publishes the counts of a second. They are not kept for new subscribers.
    pub(super) fn second(&self, at_ms: i64, counts: Counts) {
        let second = Some(counts);
        let (what, why, by, job) = (None, "", None, None);
        let event = Event { number: 0, at_ms, what, why, by, job, jobs: 0, second };
        let _ = self.told.send(Arc::new(event));
    }

    /// Subscribes, and replays the recent events after number `after`. Returns `None` if all places
    /// are taken.
    pub(super) fn listen(&self, after: u64) -> Option<Listener> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let before = before.iter().filter(|event| event.number > after).cloned().collect();
        Some(Listener { before, told: self.told.subscribe(), place })
    }

    pub(super) fn is_heard(&self) -> bool {
        self.told.receiver_count() > 0
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn event() -> Event {
        Event::new(What::Purge, "", None, 1)
    }

    #[test]
    fn who_begins_is_told_what_was_before_and_nothing_twice() {
        let feed = Feed::default();
        for _ in 0..BEFORE + 2 {
            feed.tell(event());
        }
        let mut listener = feed.listen(0).unwrap();
        let numbers = |listener: &Listener| {
            listener.before.iter().map(|event| event.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&listener), (3..=BEFORE as u64 + 2).collect::<Vec<_>>());
        assert_eq!(numbers(&feed.listen(BEFORE as u64 + 1).unwrap()), [BEFORE as u64 + 2]);
        feed.tell(event());
        assert_eq!(listener.told.try_recv().unwrap().number, BEFORE as u64 + 3);
        assert!(matches!(listener.told.try_recv(), Err(TryRecvError::Empty)));
    }

    #[test]
    fn a_slow_listener_is_told_how_much_it_lost() {
        let feed = Feed::default();
        let mut slow = feed.listen(0).unwrap();
        for _ in 0..WAITING + 7 {
            feed.tell(event());
        }
        assert!(matches!(slow.told.try_recv(), Err(TryRecvError::Lagged(7))));
        assert_eq!(slow.told.try_recv().unwrap().number, 8);
    }

    #[test]
    fn listeners_are_bounded_and_a_place_is_given_back() {
        let feed = Feed::default();
        let mut all: Vec<_> = (0..LISTENERS).map(|_| feed.listen(0).unwrap()).collect();
        assert!(feed.listen(0).is_none());
        all.pop();
        assert!(feed.listen(0).is_some());
    }
}
