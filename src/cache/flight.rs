//! Flights: one upstream read, many readers.
//!
//! There are two kinds, and the difference is what keeps promise 1:
//!
//! - A **leased** flight is joined by the token that the store has just shown, in the epoch of its
//!   lease. While the store shows it, no invalidation has run since the flight's upstream read began;
//!   in another epoch it may be back from a snapshot that knows nothing of one.
//! - Without a confirmed lookup (store down, fenced, pending) a reader may join only a read that
//!   starts after it arrived. So at most one read runs and one is **next**, for each job and
//!   fingerprint; who arrives while one runs shares the next.
//!
//! Followers share only what may be stored. A leader that dies, by panic or abort, sends its
//! followers on their own way.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{oneshot, watch};

use super::{audience::Fingerprint, entry::Entry};
use crate::{
    mutants::{self, Mutant},
    store::{Epoch, Key, Lease, Token},
};

/// What a flight has brought so far.
#[derive(Clone, Debug)]
enum Landing {
    InTheAir,
    Landed(Arc<Entry>),
}

/// A reader's hold on another reader's flight.
#[derive(Clone, Debug)]
pub struct Flight(watch::Receiver<Landing>);

impl Flight {
    /// Waits for the flight; `None` if it brought nothing that can be shared.
    pub async fn landed(mut self) -> Option<Arc<Entry>> {
        match &*self.0.wait_for(|landing| matches!(landing, Landing::Landed(_))).await.ok()? {
            Landing::Landed(entry) => Some(Arc::clone(entry)),
            Landing::InTheAir => None,
        }
    }
}

/// The flights of this process.
#[derive(Debug, Default)]
pub struct Flights {
    leased: Mutex<HashMap<Key, Vec<Leased>>>,
    unleased: Mutex<HashMap<(Key, Fingerprint), Queue>>,
}

#[derive(Debug)]
struct Leased {
    token: Token,
    epoch: Epoch,
    fingerprint: Fingerprint,
    flight: Flight,
}

/// The reads of one job and fingerprint without a confirmed lookup.
#[derive(Debug)]
struct Queue {
    /// Distinguishes the leaders of this queue.
    last: u64,
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
    landing: watch::Sender<Landing>,
    turn: Option<oneshot::Receiver<()>>,
    seat: Seat,
    flights: Arc<Flights>,
}

#[derive(Debug)]
enum Seat {
    Leased(Key, Token),
    Unleased((Key, Fingerprint), u64),
}

/// How a reader without a confirmed lookup gets its answer.
#[derive(Debug)]
pub enum Ticket {
    /// By reading the upstream, when its turn comes.
    Lead(Leader),
    /// With a read that has not begun yet.
    Join(Flight),
}

impl Flights {
    /// Starts the flight of a lease.
    pub fn lead(self: &Arc<Self>, key: Key, lease: &Lease, fingerprint: Fingerprint) -> Leader {
        let token = lease.token().clone();
        let (landing, flight) = watch::channel(Landing::InTheAir);
        lock(&self.leased).entry(key.clone()).or_default().push(Leased {
            token: token.clone(),
            epoch: lease.epoch().clone(),
            fingerprint,
            flight: Flight(flight),
        });
        Leader { landing, turn: None, seat: Seat::Leased(key, token), flights: Arc::clone(self) }
    }

    /// The flight of a lease that the store has just shown, if it is one of ours, of the same epoch
    /// and for the same fingerprint.
    pub fn join(
        &self,
        key: &Key,
        token: &Token,
        epoch: &Epoch,
        fingerprint: &Fingerprint,
    ) -> Option<Flight> {
        let leased = lock(&self.leased);
        let found = leased.get(key)?.iter().find(|flight| {
            (flight.token == *token || mutants::is(Mutant::JoinById))
                && (flight.epoch == *epoch || mutants::is(Mutant::JoinAcrossEpochs))
                && flight.fingerprint == *fingerprint
        })?;
        Some(found.flight.clone())
    }

    /// Any flight of a job: what nobody may join by.
    pub fn any(&self, key: &Key) -> Option<Flight> {
        Some(lock(&self.leased).get(key)?.first()?.flight.clone())
    }

    /// A local write or purge: nobody joins the flights of this job any more.
    pub fn detach(&self, key: &Key) {
        lock(&self.leased).remove(key);
    }

    /// A purge of all.
    pub fn detach_all(&self) {
        lock(&self.leased).clear();
    }

    /// Leads or joins a read that begins after now.
    pub fn next(self: &Arc<Self>, key: Key, fingerprint: Fingerprint) -> Ticket {
        let name = (key, fingerprint);
        let (landing, flight) = watch::channel(Landing::InTheAir);
        let flight = Flight(flight);
        let mut queues = lock(&self.unleased);
        let (number, turn) = match queues.entry(name.clone()) {
            Slot::Vacant(slot) => {
                slot.insert(Queue { last: 0, running: 0, running_flight: flight, next: None });
                (0, None)
            }
            Slot::Occupied(mut slot) => {
                let queue = slot.get_mut();
                if mutants::is(Mutant::JoinRunning) {
                    return Ticket::Join(queue.running_flight.clone());
                }
                if let Some(next) = &queue.next {
                    return Ticket::Join(next.flight.clone());
                }
                queue.last += 1;
                let (go, turn) = oneshot::channel();
                queue.next = Some(Next { number: queue.last, go, flight });
                (queue.last, Some(turn))
            }
        };
        let seat = Seat::Unleased(name, number);
        Ticket::Lead(Leader { landing, turn, seat, flights: Arc::clone(self) })
    }

    fn leave(&self, seat: &Seat) {
        match seat {
            Seat::Leased(key, token) => {
                let mut leased = lock(&self.leased);
                if let Slot::Occupied(mut slot) = leased.entry(key.clone()) {
                    slot.get_mut().retain(|flight| flight.token != *token);
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

    /// Shares what was read with everybody who joined, and who joins until the leader is dropped.
    pub fn land(&self, entry: Arc<Entry>) {
        self.landing.send_replace(Landing::Landed(entry));
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
