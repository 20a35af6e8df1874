//! Events, and their feed to subscribers.
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

/// A job with recent requests.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BusyJob {
    /// Its key, or its id.
    pub job: String,
    /// Requests in this minute and the one before, estimated.
    pub requests: u64,
    /// Hits among them.
    pub hits: u64,
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

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A request was answered from the cache.
    Hit,
    /// A request was answered by a read of the upstream, which other requests may share.
    Miss,
    /// A request bypassed the cache.
    Pass,
    /// A request was answered by jobcache itself, with an error.
    Error,
    /// An answer was stored.
    Fill,
    /// An answer was not stored.
    FillRefused,
    /// A client was added to the audience of an entry, because the upstream gave it the same
    /// answer.
    Admitted,
    /// The entry was replaced, because the upstream gave a client another answer.
    Replaced,
    /// A write through this sidecar began.
    Write,
    /// A write through this sidecar ended: its request and its answer. Recorded once per write.
    WriteEnded,
    /// The job was purged on request.
    Purge,
    /// Every job was purged.
    PurgeAll,
    /// Another sidecar or a third party changed the job in Redis.
    Changed,
    /// All keys left Redis at once.
    Flushed,
    /// The entry was evicted from the memory of this process.
    Evicted,
    /// A pending invalidation was confirmed.
    Confirmed,
    /// The store is up: the breaker closed.
    StoreUp,
    /// The store is down: the breaker opened.
    StoreDown,
    /// The tracking connection is up.
    TrackingUp,
    /// The tracking connection is down, so each hit asks the store.
    TrackingDown,
    /// The upstream answers.
    UpstreamUp,
    /// The upstream does not answer.
    UpstreamDown,
}

impl EventKind {
    /// Returns the name for `/events`, `/explain` and the status page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Pass => "pass",
            Self::Error => "error",
            Self::Fill => "fill",
            Self::FillRefused => "fill-refused",
            Self::Admitted => "admitted",
            Self::Replaced => "replaced",
            Self::Write => "write",
            Self::WriteEnded => "write-ended",
            Self::Purge => "purge",
            Self::PurgeAll => "purge-all",
            Self::Changed => "changed",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::Confirmed => "confirmed",
            Self::StoreUp => "store-up",
            Self::StoreDown => "store-down",
            Self::TrackingUp => "tracking-up",
            Self::TrackingDown => "tracking-down",
            Self::UpstreamUp => "upstream-up",
            Self::UpstreamDown => "upstream-down",
        }
    }

    /// Whether the last event of this kind outlives the ring of recent events. These events show
    /// that a job was changed, and why its answers are not stored.
    pub(super) fn outlives_ring(self) -> bool {
        use EventKind::{Changed, FillRefused, Purge, Write, WriteEnded};
        matches!(self, Changed | FillRefused | Purge | Write | WriteEnded)
    }

    /// Whether the store reports this change, possibly after the event was recorded.
    pub(super) fn changes_the_key(self) -> bool {
        use EventKind::{Confirmed, Fill, Purge, Replaced, Write, WriteEnded};
        matches!(self, Confirmed | Fill | Purge | Replaced | Write | WriteEnded)
    }
}

/// The initiator of an event as text, such as the sender of a purge.
pub type Initiator = Option<Arc<str>>;

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
