//! The feed of events to subscribers.
//!
//! All subscribers share one ring of [`RING_EVENTS`] events, and each has its own position in it. A
//! subscriber that falls further behind loses the oldest events and gets their number. Publishers
//! never wait for subscribers. There are at most [`MAX_SUBSCRIBERS`] subscribers. A new one first gets
//! the last [`REPLAYED_EVENTS`] events.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

use super::{
    event_kind::{EventKind, Initiator},
    jobs::BusyJob,
};

/// Most subscribers at a time.
pub const MAX_SUBSCRIBERS: usize = 16;
/// Events in the ring, which wait for the slowest subscriber.
pub const RING_EVENTS: usize = 256;
/// Recent events that a new subscriber gets first.
pub const REPLAYED_EVENTS: usize = 64;

/// A published event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Sequence number, from 1; 0 for the counts of a second.
    pub number: u64,
    /// Time in ms since 1970.
    pub at_ms: i64,
    /// The kind; `None` for the counts of a second.
    pub what: Option<EventKind>,
    /// The reason, in the words of `Cache-Status`; may be empty.
    pub why: &'static str,
    /// The initiator, if known.
    pub by: Initiator,
    /// The id of the job, if it is about one job.
    pub job: Option<Box<str>>,
    /// Number of jobs; 0 if it is about all jobs or about none.
    pub jobs: usize,
    /// The counts of the last second; `None` for all other events.
    pub second: Option<SecondCounts>,
}

/// The requests of one second.
#[derive(Clone, Debug, Default)]
pub struct SecondCounts {
    /// Requests by outcome.
    pub outcomes: [(&'static str, u64); 5],
    /// The busiest jobs of the last two minutes.
    pub busiest: Vec<BusyJob>,
}

impl Event {
    pub(super) fn new(what: EventKind, why: &'static str, by: Initiator, at_ms: i64) -> Self {
        let what = Some(what);
        Self { number: 0, at_ms, what, why, by, job: None, jobs: 0, second: None }
    }

    pub(super) fn about(self, job: Option<Box<str>>, jobs: usize) -> Self {
        Self { job, jobs, ..self }
    }
}

/// The publisher of events.
pub(super) struct EventFeed {
    last_number: AtomicU64,
    recent: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
    places: Arc<Semaphore>,
}

/// A subscriber of the feed. It gives its place back when it is dropped.
pub struct Subscription {
    /// Recent events from before the subscription.
    pub recent: Vec<Arc<Event>>,
    /// Events after that.
    pub receiver: broadcast::Receiver<Arc<Event>>,
    #[expect(dead_code, reason = "held, not read")]
    place: OwnedSemaphorePermit,
}

impl Default for EventFeed {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(MAX_SUBSCRIBERS));
        let before = Mutex::default();
        Self {
            last_number: AtomicU64::new(0),
            recent: before,
            sender: broadcast::Sender::new(RING_EVENTS),
            places,
        }
    }
}

impl EventFeed {
    /// Publishes an event. The caller holds the lock of the jobs here and in [`EventFeed::subscribe`], so
    /// that a new subscriber neither misses an event nor gets one twice.
    pub(super) fn publish(&self, event: Event) {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Arc::new(Event { number, ..event });
        let mut before = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if before.len() >= REPLAYED_EVENTS {
            before.pop_front();
        }
        before.push_back(Arc::clone(&event));
        drop(before);
        // The only error is that there are no subscribers.
        let _ = self.sender.send(event);
    }

    /// Publishes the counts of a second. They are not kept for new subscribers.
    pub(super) fn publish_second(&self, at_ms: i64, counts: SecondCounts) {
        let second = Some(counts);
        let (what, why, by, job) = (None, "", None, None);
        let event = Event { number: 0, at_ms, what, why, by, job, jobs: 0, second };
        let _ = self.sender.send(Arc::new(event));
    }

    /// Subscribes, and replays the recent events after number `after`. Returns `None` if all places
    /// are taken.
    pub(super) fn subscribe(&self, after: u64) -> Option<Subscription> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let before = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let before = before.iter().filter(|event| event.number > after).cloned().collect();
        Some(Subscription { recent: before, receiver: self.sender.subscribe(), place })
    }

    pub(super) fn has_subscribers(&self) -> bool {
        self.sender.receiver_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn event() -> Event {
        Event::new(EventKind::Purge, "", None, 1)
    }

    #[test]
    fn who_begins_is_told_what_was_before_and_nothing_twice() {
        let feed = EventFeed::default();
        for _ in 0..REPLAYED_EVENTS + 2 {
            feed.publish(event());
        }
        let mut listener = feed.subscribe(0).unwrap();
        let numbers = |listener: &Subscription| {
            listener.recent.iter().map(|event| event.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&listener), (3..=REPLAYED_EVENTS as u64 + 2).collect::<Vec<_>>());
        assert_eq!(
            numbers(&feed.subscribe(REPLAYED_EVENTS as u64 + 1).unwrap()),
            [REPLAYED_EVENTS as u64 + 2]
        );
        feed.publish(event());
        assert_eq!(listener.receiver.try_recv().unwrap().number, REPLAYED_EVENTS as u64 + 3);
        assert!(matches!(listener.receiver.try_recv(), Err(TryRecvError::Empty)));
    }

    #[test]
    fn a_slow_listener_is_told_how_much_it_lost() {
        let feed = EventFeed::default();
        let mut slow = feed.subscribe(0).unwrap();
        for _ in 0..RING_EVENTS + 7 {
            feed.publish(event());
        }
        assert!(matches!(slow.receiver.try_recv(), Err(TryRecvError::Lagged(7))));
        assert_eq!(slow.receiver.try_recv().unwrap().number, 8);
    }

    #[test]
    fn listeners_are_bounded_and_a_place_is_given_back() {
        let feed = EventFeed::default();
        let mut all: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| feed.subscribe(0).unwrap()).collect();
        assert!(feed.subscribe(0).is_none());
        all.pop();
        assert!(feed.subscribe(0).is_some());
    }
}
