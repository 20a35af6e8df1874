//! Flights: one upstream read, many readers (single-flight).
//!
//! There are two kinds. The difference keeps promise 1, never stale:
//!
//! - A **confirmed** flight is joined by the version that the store has just shown ([`Shown`]): the
//!   token of the lease that the flight fills, or the generation of the entry that it verifies. As
//!   long as the store shows that version, no invalidation has run since the flight's upstream read
//!   began.
//! - Without a confirmed lookup (store down, fenced, pending) a reader may join only a read that
//!   starts after the reader arrived. So for each job and coalesce key at most one read runs and one
//!   is **next**. Readers that arrive while one runs share the next.
//!
//! Requests with the same coalesce key may get the same response ([`Prints::circle`]).
//!
//! [`Prints::circle`]: super::audience::Prints::circle
//!
//! Followers share only responses that may be stored. If a leader panics or is aborted, each of its
//! followers reads for itself.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{oneshot, watch};
use tracing::Span;

use super::{audience::Pair, entry::Entry};
use crate::{
    limits::{Permit, Quota},
    mutants::{self, Mutant},
    spans,
    store::{Epoch, Key, Token},
};

/// State and span of a flight, as its followers see them.
#[derive(Debug)]
struct Flown {
    landing: Landing,
    span: Span,
}

/// State of a flight.
#[derive(Clone, Debug)]
enum Landing {
    InTheAir,
    /// The read takes longer than a follower should wait.
    Late,
    Landed(Arc<Entry>),
}

/// A follower's handle of a flight.
#[derive(Clone, Debug)]
pub struct Flight(watch::Receiver<Flown>);

impl Flown {
    fn begins() -> Self {
        Self { landing: Landing::InTheAir, span: Span::none() }
    }
}

impl Flight {
    /// Waits for the result of the flight; `None` if there is none that can be shared.
    pub async fn landed(mut self) -> Option<Arc<Entry>> {
        let is_pending = |progress: &Flown| matches!(progress.landing, Landing::InTheAir);
        let progress = self.0.wait_for(|progress| !is_pending(progress)).await.ok()?;
        spans::follows_from(&progress.span);
        match &progress.landing {
            Landing::Landed(entry) => Some(Arc::clone(entry)),
            Landing::InTheAir | Landing::Late => None,
        }
    }
}

/// The flights of this process.
pub struct Flights {
    confirmed: Mutex<HashMap<Key, Vec<Confirmed>>>,
    /// Number of the next leader.
    count: AtomicU64,
    unleased: Mutex<HashMap<(Key, Pair), Queue>>,
    /// Limits the number of flights.
    room: Arc<Quota>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("begun", &self.count.load(Ordering::Relaxed))
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

/// Version of a job that the store has shown.
///
/// The epoch belongs to the version: in another epoch the same token may have come back from a
/// snapshot that was taken before an invalidation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Token of a lease, or generation of an entry.
    pub token: Token,
    /// Epoch of the connection that showed the token.
    pub epoch: Epoch,
}

#[derive(Debug)]
struct Confirmed {
    number: u64,
    shown: Shown,
    circle: Pair,
    flight: Flight,
}

impl Confirmed {
    fn serves(&self, version: &Shown, coalesce_key: Pair) -> bool {
        (self.shown.token == version.token || mutants::is(Mutant::JoinById))
            && (self.shown.epoch == version.epoch || mutants::is(Mutant::JoinAcrossEpochs))
            && self.circle == coalesce_key
    }
}

/// The reads without a confirmed lookup, for one job and coalesce key.
#[derive(Debug)]
struct Queue {
    running: u64,
    /// The flight of the running read. No reader may join it: it began before they arrived.
    running_flight: Flight,
    next: Option<Next>,
}

#[derive(Debug)]
struct Next {
    number: u64,
    go: oneshot::Sender<()>,
    flight: Flight,
}

/// Held by the reader that reads the upstream for a flight. The flight ends when it is dropped.
pub struct Leader {
    landing: watch::Sender<Flown>,
    turn: Option<oneshot::Receiver<()>>,
    seat: Seat,
    flights: Arc<Flights>,
    #[expect(dead_code, reason = "held, not read")]
    held: Permit,
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader").field("seat", &self.seat).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Seat {
    Confirmed(Key, u64),
    Unleased((Key, Pair), u64),
}

/// The part of a reader in a flight.
#[derive(Debug)]
pub enum Ticket {
    /// The reader reads the upstream, when its turn comes.
    Lead(Leader),
    /// The reader shares another reader's upstream read.
    Join(Flight),
    /// The reader reads for itself: the limit of flights is reached.
    Full,
}

impl Flights {
    /// Creates an empty set of flights. `quota` limits their number.
    pub fn within(quota: Arc<Quota>) -> Self {
        Self {
            confirmed: Mutex::default(),
            count: AtomicU64::default(),
            unleased: Mutex::default(),
            room: quota,
        }
    }

    /// Joins the confirmed flight of a version that the store has just shown, or starts it.
    pub fn share(self: &Arc<Self>, key: &Key, version: Shown, coalesce_key: Pair) -> Ticket {
        let mut confirmed = lock(&self.confirmed);
        let flights = confirmed.entry(key.clone()).or_default();
        if let Some(found) = flights.iter().find(|flight| flight.serves(&version, coalesce_key)) {
            return Ticket::Join(found.flight.clone());
        }
        let Some(permit) = self.room.take(1) else {
            if flights.is_empty() {
                confirmed.remove(key);
            }
            return Ticket::Full;
        };
        let (progress, flight) = watch::channel(Flown::begins());
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let flight = Flight(flight);
        flights.push(Confirmed { number, shown: version, circle: coalesce_key, flight });
        Ticket::Lead(Leader {
            landing: progress,
            turn: None,
            seat: Seat::Confirmed(key.clone(), number),
            flights: Arc::clone(self),
            held: permit,
        })
    }

    /// Joins the confirmed flight of a version that the store has just shown, if there is one here.
    pub fn join(&self, key: &Key, version: &Shown, coalesce_key: Pair) -> Option<Flight> {
        let confirmed = lock(&self.confirmed);
        let flights = confirmed.get(key)?;
        let found = flights.iter().find(|flight| flight.serves(version, coalesce_key))?;
        Some(found.flight.clone())
    }

    /// Returns any flight of a job. Joining it is wrong: only a mutant does so.
    pub fn any(&self, key: &Key) -> Option<Flight> {
        Some(lock(&self.confirmed).get(key)?.first()?.flight.clone())
    }

    /// Detaches the confirmed flights of a job after a local write or purge: no reader can join them
    /// any more. Returns how many there were.
    pub fn detach(&self, key: &Key) -> usize {
        lock(&self.confirmed).remove(key).map_or(0, |flights| flights.len())
    }

    /// Detaches all confirmed flights, after a purge of all. Returns how many there were.
    pub fn detach_all(&self) -> usize {
        let flights = std::mem::take(&mut *lock(&self.confirmed));
        flights.values().map(Vec::len).sum()
    }

    /// Leads or joins a read that begins after now.
    pub fn next(self: &Arc<Self>, key: Key, coalesce_key: Pair) -> Ticket {
        let name = (key, coalesce_key);
        let (progress, flight) = watch::channel(Flown::begins());
        let flight = Flight(flight);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let mut queues = lock(&self.unleased);
        let permit;
        let turn = match queues.entry(name.clone()) {
            Slot::Vacant(slot) => {
                let Some(taken) = self.room.take(1) else { return Ticket::Full };
                permit = taken;
                slot.insert(Queue { running: number, running_flight: flight, next: None });
                None
            }
            Slot::Occupied(mut slot) => {
                let queue = slot.get_mut();
                if mutants::is(Mutant::JoinRunning) {
                    return Ticket::Join(queue.running_flight.clone());
                }
                if let Some(next) = &queue.next {
                    return Ticket::Join(next.flight.clone());
                }
                let Some(taken) = self.room.take(1) else { return Ticket::Full };
                permit = taken;
                let (go, turn) = oneshot::channel();
                queue.next = Some(Next { number, go, flight });
                Some(turn)
            }
        };
        Ticket::Lead(Leader {
            landing: progress,
            turn,
            seat: Seat::Unleased(name, number),
            flights: Arc::clone(self),
            held: permit,
        })
    }

    fn leave(&self, slot: &Seat) {
        match slot {
            Seat::Confirmed(key, number) => {
                let mut confirmed = lock(&self.confirmed);
                if let Slot::Occupied(mut flights) = confirmed.entry(key.clone()) {
                    flights.get_mut().retain(|flight| flight.number != *number);
                    if flights.get().is_empty() {
                        flights.remove();
                    }
                }
            }
            Seat::Unleased(name, number) => {
                if let Slot::Occupied(mut queue) = lock(&self.unleased).entry(name.clone())
                    && !queue.get_mut().leave(*number)
                {
                    queue.remove();
                }
            }
        }
    }
}

impl Queue {
    /// Removes a leader that is done or was dropped. Returns whether the queue is still in use.
    fn leave(&mut self, number: u64) -> bool {
        if self.running != number {
            // The next leader gave up before its turn.
            self.next.take_if(|next| next.number == number);
            return true;
        }
        let Some(next) = self.next.take() else { return false };
        (self.running, self.running_flight) = (next.number, next.flight);
        // If the next leader is gone as well, its own `leave` follows this one.
        let _ = next.go.send(());
        true
    }
}

impl Leader {
    /// Waits until the read may begin. The read is valid for every reader that joined before that.
    pub async fn turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            // An error means that the queue is gone, so no read is ahead of this one.
            let _ = turn.await;
        }
    }

    /// Releases the followers, which then read for themselves, and lets the next read begin. Used when
    /// the body is streamed and may never end.
    pub fn vacate(&self) {
        self.lands(Landing::Late);
        self.flights.leave(&self.seat);
    }

    /// Shares the entry with all followers, including those that join before the leader is dropped.
    pub fn land(&self, entry: Arc<Entry>) {
        self.lands(Landing::Landed(entry));
    }

    fn lands(&self, state: Landing) {
        self.landing.send_modify(|progress| progress.landing = state);
    }

    /// Sets the span of the read, for its followers.
    pub fn led_by(&self, span: &Span) {
        if !span.is_disabled() {
            self.landing.send_modify(|progress| progress.span = span.clone());
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.flights.leave(&self.seat);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is safe to use: no code that holds it can panic in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hyper::Request;

    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;
    use crate::{
        cache::audience::Prints,
        config::Credentials,
        store::{CredentialKey, Token},
    };

    fn circle() -> Pair {
        let (head, ()) = Request::new(()).into_parts();
        Prints::new(&Credentials::default()).pair(
            &CredentialKey::new([0; 32]),
            &head.uri,
            &head.headers,
        )
    }

    fn key() -> Key {
        Key::new("job_status:", "x")
    }

    fn shown(token: &str, epoch: &str) -> Shown {
        Shown { token: Token::named(token), epoch: Epoch::named(epoch) }
    }

    fn leads(ticket: Ticket) -> Leader {
        match ticket {
            Ticket::Lead(leader) => leader,
            other => panic!("{other:?}"),
        }
    }

    fn joins(ticket: Ticket) -> Flight {
        match ticket {
            Ticket::Join(flight) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn flights(limit: usize) -> Arc<Flights> {
        Arc::new(Flights::within(Quota::new(limit, Gauge::default(), Counter::default())))
    }

    #[test]
    fn a_flight_is_joined_by_what_the_store_shows_in_its_epoch_and_by_nothing_else() {
        let flights = flights(9);
        let leader = leads(flights.share(&key(), shown("t1", "e1"), circle()));
        assert!(flights.join(&key(), &shown("t1", "e1"), circle()).is_some());
        assert!(flights.join(&key(), &shown("t2", "e1"), circle()).is_none());
        assert!(flights.join(&key(), &shown("t1", "e2"), circle()).is_none());
        flights.detach(&key());
        assert!(flights.join(&key(), &shown("t1", "e1"), circle()).is_none());
        drop(leader);
    }

    #[tokio::test]
    async fn a_leader_that_panics_sends_its_followers_on_their_own_way() {
        let flights = flights(9);
        let leader = leads(flights.share(&key(), shown("t", "e"), circle()));
        let follower = joins(flights.share(&key(), shown("t", "e"), circle()));
        let dies = tokio::spawn(async move {
            let _leader = leader;
            panic!("the upstream's answer was too much for us");
        });
        assert!(follower.landed().await.is_none());
        assert!(dies.await.unwrap_err().is_panic());
        leads(flights.share(&key(), shown("t", "e"), circle()));
    }

    #[tokio::test]
    async fn a_leader_that_is_aborted_lets_the_next_read_begin() {
        let flights = flights(9);
        let running = leads(flights.next(key(), circle()));
        let mut next = leads(flights.next(key(), circle()));
        let follower = joins(flights.next(key(), circle()));
        let aborted = tokio::spawn(async move {
            let _running = running;
            pending::<()>().await;
        });
        aborted.abort();
        next.turn().await;
        // The next read runs now: later readers wait for one that begins after they arrived.
        let later = leads(flights.next(key(), circle()));
        drop(next);
        assert!(follower.landed().await.is_none());
        drop(later);
        assert!(lock(&flights.unleased).is_empty(), "nobody is left");
    }

    #[tokio::test]
    async fn a_next_leader_that_gives_up_leaves_its_place_to_another() {
        let flights = flights(9);
        let running = leads(flights.next(key(), circle()));
        drop(leads(flights.next(key(), circle())));
        let mut next = leads(flights.next(key(), circle()));
        drop(running);
        next.turn().await;
    }

    #[test]
    fn past_so_many_flights_one_may_join_those_that_there_are_and_start_none() {
        let flights = flights(2);
        let other = Key::new("job_status:", "y");
        let leader = leads(flights.share(&key(), shown("t", "e"), circle()));
        let running = leads(flights.next(key(), circle()));

        assert!(matches!(flights.share(&other, shown("t", "e"), circle()), Ticket::Full));
        assert!(matches!(flights.share(&key(), shown("u", "e"), circle()), Ticket::Full));
        assert!(matches!(flights.next(key(), circle()), Ticket::Full), "no next one");
        assert!(matches!(flights.next(other.clone(), circle()), Ticket::Full));
        joins(flights.share(&key(), shown("t", "e"), circle()));

        drop(leader);
        let next = leads(flights.next(key(), circle()));
        joins(flights.next(key(), circle()));
        drop((running, next));
        assert!(lock(&flights.confirmed).is_empty() && lock(&flights.unleased).is_empty());
    }
}
