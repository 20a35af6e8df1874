//! Flights: one upstream read, many readers.
//!
//! There are two kinds, and the difference is what keeps promise 1:
//!
//! - A **confirmed** flight is joined by what the store has just shown ([`Shown`]): the token of the
//!   lease it fills, or the generation of the entry it verifies. While the store shows that, no
//!   invalidation has run since the flight's upstream read began.
//! - Without a confirmed lookup (store down, fenced, pending) a reader may join only a read that
//!   starts after it arrived. So at most one read runs and one is **next**, for each job and
//!   circle; who arrives while one runs shares the next.
//!
//! A circle is who may be given the same answer ([`Prints::circle`]).
//!
//! [`Prints::circle`]: super::audience::Prints::circle
//!
//! Followers share only what may be stored. A leader that dies, by panic or abort, sends its
//! followers on their own way.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{oneshot, watch};
use tracing::Span;

use super::{audience::Pair, entry::Entry};
use crate::{
    limits::{Held, Room},
    mutants::{self, Mutant},
    spans,
    store::{Epoch, Key, Token},
};

/// What a flight has brought so far, and its span, for those who join it.
#[derive(Debug)]
struct Flown {
    landing: Landing,
    span: Span,
}

/// What a flight has brought so far.
#[derive(Clone, Debug)]
enum Landing {
    InTheAir,
    /// It takes longer than anybody should wait for somebody else's sake.
    Late,
    Landed(Arc<Entry>),
}

/// A reader's hold on another reader's flight.
#[derive(Clone, Debug)]
pub struct Flight(watch::Receiver<Flown>);

impl Flown {
    fn begins() -> Self {
        Self { landing: Landing::InTheAir, span: Span::none() }
    }
}

impl Flight {
    /// Waits for the flight; `None` if it brought nothing that can be shared.
    pub async fn landed(mut self) -> Option<Arc<Entry>> {
        let in_the_air = |flown: &Flown| matches!(flown.landing, Landing::InTheAir);
        let flown = self.0.wait_for(|flown| !in_the_air(flown)).await.ok()?;
        spans::follow(&flown.span);
        match &flown.landing {
            Landing::Landed(entry) => Some(Arc::clone(entry)),
            Landing::InTheAir | Landing::Late => None,
        }
    }
}

/// The flights of this process.
#[derive(Debug)]
pub struct Flights {
    confirmed: Mutex<HashMap<Key, Vec<Confirmed>>>,
    /// Tells leaders apart.
    count: AtomicU64,
    unleased: Mutex<HashMap<(Key, Pair), Queue>>,
    /// How many there may be.
    room: Arc<Room>,
}

/// What the store shows of a job: the token of a lease or the generation of an entry, in the epoch of
/// the connection that showed it. In another epoch it may be back from a snapshot that knows nothing
/// of an invalidation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The token.
    pub token: Token,
    /// The epoch.
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
    fn serves(&self, shown: &Shown, circle: Pair) -> bool {
        (self.shown.token == shown.token || mutants::is(Mutant::JoinById))
            && (self.shown.epoch == shown.epoch || mutants::is(Mutant::JoinAcrossEpochs))
            && self.circle == circle
    }
}

/// The reads of one job and circle without a confirmed lookup.
#[derive(Debug)]
struct Queue {
    running: u64,
    /// What the one that runs will bring. Nobody may join it: it began before they came.
    running_flight: Flight,
    next: Option<Next>,
}

#[derive(Debug)]
struct Next {
    number: u64,
    go: oneshot::Sender<()>,
    flight: Flight,
}

/// The one who reads the upstream for a flight.
#[derive(Debug)]
pub struct Leader {
    landing: watch::Sender<Flown>,
    turn: Option<oneshot::Receiver<()>>,
    seat: Seat,
    flights: Arc<Flights>,
    #[expect(dead_code, reason = "held, not read")]
    held: Held,
}

#[derive(Debug)]
enum Seat {
    Confirmed(Key, u64),
    Unleased((Key, Pair), u64),
}

/// How a reader without a confirmed lookup gets its answer.
#[derive(Debug)]
pub enum Ticket {
    /// By reading the upstream, when its turn comes.
    Lead(Leader),
    /// With a read that has not begun yet.
    Join(Flight),
    /// By itself: there are as many flights as may be.
    Full,
}

impl Flights {
    /// None yet, and at most as many as there is room for.
    pub fn within(room: Arc<Room>) -> Self {
        let (confirmed, unleased) = (Mutex::default(), Mutex::default());
        Self { confirmed, count: AtomicU64::default(), unleased, room }
    }

    /// Joins the flight of what the store has just shown, or starts it.
    pub fn share(self: &Arc<Self>, key: &Key, shown: Shown, circle: Pair) -> Ticket {
        let mut confirmed = lock(&self.confirmed);
        let flights = confirmed.entry(key.clone()).or_default();
        if let Some(found) = flights.iter().find(|flight| flight.serves(&shown, circle)) {
            return Ticket::Join(found.flight.clone());
        }
        let Some(held) = self.room.take(1) else {
            if flights.is_empty() {
                confirmed.remove(key);
            }
            return Ticket::Full;
        };
        let (landing, flight) = watch::channel(Flown::begins());
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        flights.push(Confirmed { number, shown, circle, flight: Flight(flight) });
        let seat = Seat::Confirmed(key.clone(), number);
        Ticket::Lead(Leader { landing, turn: None, seat, flights: Arc::clone(self), held })
    }

    /// The flight of what the store has just shown, if there is one here.
    pub fn join(&self, key: &Key, shown: &Shown, circle: Pair) -> Option<Flight> {
        let confirmed = lock(&self.confirmed);
        let found = confirmed.get(key)?.iter().find(|flight| flight.serves(shown, circle))?;
        Some(found.flight.clone())
    }

    /// Any flight of a job: what nobody may join by.
    pub fn any(&self, key: &Key) -> Option<Flight> {
        Some(lock(&self.confirmed).get(key)?.first()?.flight.clone())
    }

    /// A local write or purge: nobody joins the flights of this job any more. Says how many there were.
    pub fn detach(&self, key: &Key) -> usize {
        lock(&self.confirmed).remove(key).map_or(0, |flights| flights.len())
    }

    /// A purge of all.
    pub fn detach_all(&self) -> usize {
        let flights = std::mem::take(&mut *lock(&self.confirmed));
        flights.values().map(Vec::len).sum()
    }

    /// Leads or joins a read that begins after now.
    pub fn next(self: &Arc<Self>, key: Key, circle: Pair) -> Ticket {
        let name = (key, circle);
        let (landing, flight) = watch::channel(Flown::begins());
        let flight = Flight(flight);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let mut queues = lock(&self.unleased);
        let held;
        let turn = match queues.entry(name.clone()) {
            Slot::Vacant(slot) => {
                let Some(place) = self.room.take(1) else { return Ticket::Full };
                held = place;
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
                let Some(place) = self.room.take(1) else { return Ticket::Full };
                held = place;
                let (go, turn) = oneshot::channel();
                queue.next = Some(Next { number, go, flight });
                Some(turn)
            }
        };
        let seat = Seat::Unleased(name, number);
        Ticket::Lead(Leader { landing, turn, seat, flights: Arc::clone(self), held })
    }

    fn leave(&self, seat: &Seat) {
        match seat {
            Seat::Confirmed(key, number) => {
                let mut confirmed = lock(&self.confirmed);
                if let Slot::Occupied(mut slot) = confirmed.entry(key.clone()) {
                    slot.get_mut().retain(|flight| flight.number != *number);
                    if slot.get().is_empty() {
                        slot.remove();
                    }
                }
            }
            Seat::Unleased(name, number) => {
                if let Slot::Occupied(mut slot) = lock(&self.unleased).entry(name.clone())
                    && !slot.get_mut().leave(*number)
                {
                    slot.remove();
                }
            }
        }
    }
}

impl Queue {
    /// A leader is done, or dead; says whether anybody is left.
    fn leave(&mut self, number: u64) -> bool {
        if self.running != number {
            // The next one gave up before its turn.
            self.next.take_if(|next| next.number == number);
            return true;
        }
        let Some(next) = self.next.take() else { return false };
        (self.running, self.running_flight) = (next.number, next.flight);
        // If its leader is gone as well, its own `leave` comes after this one.
        let _ = next.go.send(());
        true
    }
}

impl Leader {
    /// Waits until the read may begin. Who joined before that is covered by it.
    pub async fn turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            // An error means that the queue is gone, and nobody is ahead.
            let _ = turn.await;
        }
    }

    /// Sends everybody who waits on their own way, and lets the next read begin: the body of this one
    /// streams, and may take for ever.
    pub fn vacate(&self) {
        self.lands(Landing::Late);
        self.flights.leave(&self.seat);
    }

    /// Shares what was read with everybody who joined, and who joins until the leader is dropped.
    pub fn land(&self, entry: Arc<Entry>) {
        self.lands(Landing::Landed(entry));
    }

    fn lands(&self, landing: Landing) {
        self.landing.send_modify(|flown| flown.landing = landing);
    }

    /// Names the span of the read to those who join.
    pub fn led_by(&self, flight: &Span) {
        if !flight.is_disabled() {
            self.landing.send_modify(|flown| flown.span = flight.clone());
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.flights.leave(&self.seat);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that holds the lock panics half-way through a change.
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
        config::CredentialsConfig,
        store::{CredentialKey, Token},
    };

    fn circle() -> Pair {
        let (head, ()) = Request::new(()).into_parts();
        Prints::new(&CredentialsConfig::default()).pair(
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

    /// At most so many.
    fn flights(limit: usize) -> Arc<Flights> {
        Arc::new(Flights::within(Room::new(limit, Gauge::default(), Counter::default())))
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
        // It runs now: who comes later waits for one that begins after them.
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
