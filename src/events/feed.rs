//! Events as they happen, for whoever listens.
//!
//! All listeners share one ring of [`WAITING`] events, and each has its place in it: one who is slower
//! than that loses the oldest and is told how many. Nobody waits for a listener. There are at most
//! [`LISTENERS`] of them. Who begins is told the last [`BEFORE`] events first.

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

/// Who may listen at a time.
pub const LISTENERS: usize = 16;
/// Events that wait for the slowest.
pub const WAITING: usize = 256;
/// Events from before that a listener is told first.
pub const BEFORE: usize = 64;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Counts up from 1; 0 for what has no number.
    pub number: u64,
    /// In ms since 1970.
    pub at_ms: i64,
    /// What it was; none for the counts of a second.
    pub what: Option<What>,
    /// Why, in the words of `Cache-Status`; empty where there is nothing to add.
    pub why: &'static str,
    /// Who caused it, where that is known.
    pub by: By,
    /// The job, if it is one.
    pub job: Option<Box<str>>,
    /// How many jobs it is about; 0 for all of them, or none.
    pub jobs: usize,
    /// The requests of the last second.
    pub second: Option<Counts>,
}

/// The requests of one second.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// By outcome.
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

/// The ring.
pub(super) struct Feed {
    last: AtomicU64,
    before: Mutex<VecDeque<Arc<Event>>>,
    told: broadcast::Sender<Arc<Event>>,
    places: Arc<Semaphore>,
}

/// One who listens.
pub struct Listener {
    /// What happened before.
    pub before: Vec<Arc<Event>>,
    /// What happens from then on.
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
    /// Events are told one at a time: the caller holds the lock of the jobs, as in [`Feed::listen`].
    pub(super) fn tell(&self, event: Event) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Arc::new(Event { number, ..event });
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        if before.len() >= BEFORE {
            before.pop_front();
        }
        before.push_back(Arc::clone(&event));
        drop(before);
        // The only error is that nobody listens.
        let _ = self.told.send(event);
    }

    /// What a second was like is not worth telling later.
    pub(super) fn second(&self, at_ms: i64, counts: Counts) {
        let second = Some(counts);
        let (what, why, by, job) = (None, "", None, None);
        let event = Event { number: 0, at_ms, what, why, by, job, jobs: 0, second };
        let _ = self.told.send(Arc::new(event));
    }

    /// After the event of this number, of those that are still known.
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
