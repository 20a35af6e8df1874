//! Flights: one upstream read, many readers (single-flight).
//!
//! There are two kinds. The difference keeps promise 1, never stale:
//!
//! - A **confirmed** flight is joined by the version that the store has just shown ([`JobVersion`]): the
//!   token of the lease that the flight fills, or the generation of the entry that it verifies. As
//!   long as the store shows that version, no invalidation has run since the flight's upstream read
//!   began.
//! - Without a confirmed lookup (store down, fenced, pending) a reader may join only a read that
//!   starts after the reader arrived. So for each job and coalesce key at most one read runs and one
//!   is **next**. Readers that arrive while one runs share the next.
//!
//! Requests with the same coalesce key may get the same response ([`Fingerprinter::coalesce_key`]).
//!
//! [`Fingerprinter::coalesce_key`]: crate::semantics::audience::Fingerprinter::coalesce_key
//!
//! Followers share responses that may be stored, and those that only the configuration keeps out of the
//! store ([`may_be_shared`]). If a leader panics or is aborted, each of its followers reads for itself.
//!
//! [`may_be_shared`]: crate::semantics::policy::may_be_shared

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{oneshot, watch};
use tracing::Span;

use super::entry::Entry;
use crate::{
    limits::{Permit, Quota},
    mutants::{self, Mutant},
    observe::spans,
    semantics::audience::Caller,
    store::{Epoch, IdentityHash, Key, Token},
};

/// Requests of one job with equal keys may get the same response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoalesceKey {
    /// The caller, as far as it matters.
    pub caller: Caller,
    /// The API, route and job of the request: several routes may give one key.
    pub identity: IdentityHash,
}

/// State and span of a flight, as its followers see them.
#[derive(Debug)]
struct FlightProgress {
    state: FlightState,
    span: Span,
}

/// State of a flight.
#[derive(Clone, Debug)]
enum FlightState {
    Pending,
    /// The read takes longer than a follower should wait.
    Detached,
    Ready(Arc<Entry>),
}

/// A follower's handle of a flight.
#[derive(Clone, Debug)]
pub struct Flight(watch::Receiver<FlightProgress>);

impl Flight {
    /// Waits for the result of the flight; `None` if there is none that can be shared.
    pub async fn wait(mut self) -> Option<Arc<Entry>> {
        let is_over = |progress: &FlightProgress| !matches!(progress.state, FlightState::Pending);
        let progress = self.0.wait_for(is_over).await.ok()?;
        spans::follows_from(&progress.span);
        match &progress.state {
            FlightState::Ready(entry) => Some(Arc::clone(entry)),
            FlightState::Pending | FlightState::Detached => None,
        }
    }
}

/// The flights of this process.
pub struct Flights {
    confirmed: Mutex<ConfirmedFlights>,
    /// Number of the next leader.
    next_number: AtomicU64,
    unconfirmed: Mutex<HashMap<(Key, CoalesceKey), ReadQueue>>,
    /// Limits the number of flights.
    quota: Arc<Quota>,
}

/// Version of a job that the store has shown.
///
/// The epoch belongs to the version: in another epoch the same token may have come back from a
/// snapshot that was taken before an invalidation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobVersion {
    /// Token of a lease, or generation of an entry.
    pub token: Token,
    /// Epoch of the connection that showed the token.
    pub epoch: Epoch,
}

type ConfirmedFlights = HashMap<Key, Vec<ConfirmedFlight>>;

struct ConfirmedFlight {
    number: u64,
    version: JobVersion,
    coalesce_key: CoalesceKey,
    flight: Flight,
}

fn find(
    flights: &ConfirmedFlights,
    key: &Key,
    version: &JobVersion,
    coalesce_key: CoalesceKey,
) -> Option<Flight> {
    let serves = |flight: &&ConfirmedFlight| {
        (flight.version.token == version.token || mutants::is(Mutant::JoinById))
            && (flight.version.epoch == version.epoch || mutants::is(Mutant::JoinAcrossEpochs))
            && flight.coalesce_key == coalesce_key
    };
    Some(flights.get(key)?.iter().find(serves)?.flight.clone())
}

/// The reads without a confirmed lookup, for one job and coalesce key.
struct ReadQueue {
    running: u64,
    /// The flight of the running read. No reader may join it: it began before they arrived.
    running_flight: Flight,
    next: Option<QueuedRead>,
}

struct QueuedRead {
    number: u64,
    start: oneshot::Sender<()>,
    flight: Flight,
}

/// Held by the reader that reads the upstream for a flight. The flight ends when it is dropped.
pub struct Leader {
    progress: watch::Sender<FlightProgress>,
    turn: Option<oneshot::Receiver<()>>,
    slot: FlightSlot,
    flights: Arc<Flights>,
    #[expect(dead_code, reason = "held, not read")]
    permit: Permit,
}

enum FlightSlot {
    Confirmed(Key, u64),
    Unconfirmed((Key, CoalesceKey), u64),
}

/// Role of a reader in a flight.
pub enum FlightRole {
    /// The reader reads the upstream, when its turn comes.
    Lead(Leader),
    /// The reader shares another reader's upstream read.
    Join(Flight),
    /// The reader reads for itself: the limit of flights is reached.
    Full,
}

impl Flights {
    /// Creates an empty set of flights. `quota` limits their number.
    pub fn new(quota: Arc<Quota>) -> Self {
        Self {
            confirmed: Mutex::default(),
            next_number: AtomicU64::default(),
            unconfirmed: Mutex::default(),
            quota,
        }
    }

    /// Joins the confirmed flight of a version that the store has just shown, or starts it.
    pub fn join_or_lead(
        self: &Arc<Self>,
        key: &Key,
        version: JobVersion,
        coalesce_key: CoalesceKey,
    ) -> FlightRole {
        let mut confirmed = lock(&self.confirmed);
        if let Some(flight) = find(&confirmed, key, &version, coalesce_key) {
            return FlightRole::Join(flight);
        }
        let Some(permit) = self.quota.take(1) else { return FlightRole::Full };
        let (number, progress, flight) = self.new_flight();
        let flight = ConfirmedFlight { number, version, coalesce_key, flight };
        confirmed.entry(key.clone()).or_default().push(flight);
        let slot = FlightSlot::Confirmed(key.clone(), number);
        FlightRole::Lead(Leader { progress, turn: None, slot, flights: Arc::clone(self), permit })
    }

    fn new_flight(&self) -> (u64, watch::Sender<FlightProgress>, Flight) {
        let progress = FlightProgress { state: FlightState::Pending, span: Span::none() };
        let (progress, flight) = watch::channel(progress);
        (self.next_number.fetch_add(1, Ordering::Relaxed), progress, Flight(flight))
    }

    /// Joins the confirmed flight of a version that the store has just shown, if there is one here.
    pub fn join_confirmed(
        &self,
        key: &Key,
        version: &JobVersion,
        coalesce_key: CoalesceKey,
    ) -> Option<Flight> {
        find(&lock(&self.confirmed), key, version, coalesce_key)
    }

    /// Returns whether a read under this version is led here, for whomever.
    pub fn is_led(&self, key: &Key, version: &JobVersion) -> bool {
        let confirmed = lock(&self.confirmed);
        confirmed.get(key).is_some_and(|flights| flights.iter().any(|f| f.version == *version))
    }

    /// Returns any flight of a job. Joining it is wrong: only a mutant does so.
    pub fn any_confirmed(&self, key: &Key) -> Option<Flight> {
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
    pub fn join_or_lead_next(self: &Arc<Self>, key: Key, coalesce_key: CoalesceKey) -> FlightRole {
        let name = (key, coalesce_key);
        let mut queues = lock(&self.unconfirmed);
        let queue = queues.get_mut(&name);
        if let Some(ReadQueue { running_flight, next, .. }) = &queue {
            if mutants::is(Mutant::JoinRunning) {
                return FlightRole::Join(running_flight.clone());
            }
            if let Some(next) = next {
                return FlightRole::Join(next.flight.clone());
            }
        }
        let Some(permit) = self.quota.take(1) else { return FlightRole::Full };
        let (number, progress, flight) = self.new_flight();
        let turn = if let Some(queue) = queue {
            let (start, turn) = oneshot::channel();
            queue.next = Some(QueuedRead { number, start, flight });
            Some(turn)
        } else {
            let queue = ReadQueue { running: number, running_flight: flight, next: None };
            queues.insert(name.clone(), queue);
            None
        };
        let slot = FlightSlot::Unconfirmed(name, number);
        FlightRole::Lead(Leader { progress, turn, slot, flights: Arc::clone(self), permit })
    }

    fn leave(&self, slot: &FlightSlot) {
        match slot {
            FlightSlot::Confirmed(key, number) => {
                let mut confirmed = lock(&self.confirmed);
                if let Slot::Occupied(mut flights) = confirmed.entry(key.clone()) {
                    flights.get_mut().retain(|flight| flight.number != *number);
                    if flights.get().is_empty() {
                        flights.remove();
                    }
                }
            }
            FlightSlot::Unconfirmed(name, number) => {
                if let Slot::Occupied(mut queue) = lock(&self.unconfirmed).entry(name.clone())
                    && !queue.get_mut().leave(*number)
                {
                    queue.remove();
                }
            }
        }
    }
}

impl ReadQueue {
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
        let _ = next.start.send(());
        true
    }
}

impl Leader {
    /// Waits until the read may begin. The read is valid for every reader that joined before that.
    pub async fn wait_for_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            // An error means that the queue is gone, so no read is ahead of this one.
            let _ = turn.await;
        }
    }

    /// Releases the followers, which then read for themselves, and lets the next read begin. Used when
    /// the body is streamed and may never end.
    pub fn detach_followers(&self) {
        self.set_state(FlightState::Detached);
        self.flights.leave(&self.slot);
    }

    /// Shares the entry with all followers, including those that join before the leader is dropped.
    pub fn publish(&self, entry: Arc<Entry>) {
        self.set_state(FlightState::Ready(entry));
    }

    fn set_state(&self, state: FlightState) {
        self.progress.send_modify(|progress| progress.state = state);
    }

    /// Sets the span of the read, for its followers.
    pub fn set_span(&self, span: &Span) {
        if !span.is_disabled() {
            self.progress.send_modify(|progress| progress.span = span.clone());
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.flights.leave(&self.slot);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is safe to use: no code that holds it can panic in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
