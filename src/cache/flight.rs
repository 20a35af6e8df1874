//! Flights: one upstream read, many readers (single-flight).
//!
//! There are two kinds. The difference keeps promise 1, never stale:
//!
//! - A **confirmed** flight is joined by the version that the store has just shown ([`JobVersion`]): the
//!   token of the lease that the flight fills, or the generation of the entry that it verifies. As
//!   long as the store shows that version, no invalidation has run since the flight's upstream read
//!   began.
//! - Without a confirmed lookup (store down, fenced, pending) a reader may join only a read that
//!   starts after the reader arrived. So for each job and coalesce key the first read starts at once,
//!   and one is **next**: readers that arrive while reads run share it. It starts 50 ms after
//!   the last start, or earlier if no other runs (`flight/read_queue.rs`).
//!
//! **Nobody waits for long.** A read that has run for [`LATE`] without a response is late. It is
//! joined no more, and its followers look the job up again. They still take its response if that
//! comes first. So a read that never ends delays others by [`LATE`], and costs the upstream one more
//! read at a time and not one per follower.
//!
//! Requests with the same coalesce key may get the same response ([`Fingerprinter::coalesce_key`]).
//!
//! [`Fingerprinter::coalesce_key`]: crate::semantics::audience::Fingerprinter::coalesce_key
//!
//! Followers share responses that may be stored, and those that only the configuration keeps out of the
//! store ([`may_be_shared`]). If the upstream does not answer, they look the job up again, and share
//! another read. If a leader panics or is aborted, each of its followers reads for itself.
//!
//! [`may_be_shared`]: crate::semantics::policy::may_be_shared

mod read_queue;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::Span;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::read_queue::ReadQueue;
use super::entry::Entry;
use crate::{
    limits::{Permit, Quota},
    mutants::{self, Mutant},
    observe::spans,
    semantics::audience::Caller,
    store::{Epoch, IdentityHash, Key, ReaderHash, Token},
};

/// Time after which a read is late. With the pause before the read that follows, a follower has waited
/// for less than a second when its own read starts.
pub const LATE: Duration = Duration::from_millis(900);
/// Requests of one job with equal keys may get the same response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CoalesceKey {
    /// The caller, as far as it matters.
    pub caller: Caller,
    /// The API, route and job of the request: several routes may give one key.
    pub identity: IdentityHash,
}

impl CoalesceKey {
    /// Returns the hash that names such readers in a lease.
    pub(super) fn reader_hash(&self) -> ReaderHash {
        ReaderHash(xxh3_64_with_seed(&self.caller.to_bytes(), self.identity.0))
    }
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
    /// The read has not started.
    Queued,
    /// The read has run since then.
    Running(Instant),
    /// The flight has ended without a response to share.
    Failed(FlightFailure),
    Ready(Arc<Entry>),
}

/// Why a flight has brought its followers no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlightFailure {
    /// The upstream has not answered. Followers share another read.
    Unanswered,
    /// The upstream has answered with an error of its own. Followers share a later read if there is one.
    ServerError,
    /// The response is for its own reader only, its body takes longer than a follower should wait, or
    /// the leader died. Each follower reads for itself.
    Unshared,
}

/// A follower's handle of a flight.
#[derive(Clone, Debug)]
pub struct Flight(watch::Receiver<FlightProgress>);

impl Flight {
    /// Waits for the response of the flight.
    pub async fn wait(mut self) -> Result<Arc<Entry>, FlightFailure> {
        let is_over = |progress: &FlightProgress| {
            !matches!(progress.state, FlightState::Queued | FlightState::Running(_))
        };
        let progress = self.0.wait_for(is_over).await.map_err(|_| FlightFailure::Unshared)?;
        spans::follows_from(&progress.span);
        match &progress.state {
            FlightState::Ready(entry) => Ok(Arc::clone(entry)),
            FlightState::Failed(why) => Err(*why),
            FlightState::Queued | FlightState::Running(_) => Err(FlightFailure::Unshared),
        }
    }

    /// Waits until the read is late. Never ends if it is over before that.
    pub async fn late(mut self) {
        let since = {
            let started =
                |progress: &FlightProgress| !matches!(progress.state, FlightState::Queued);
            match self.0.wait_for(started).await.map(|progress| progress.state.clone()) {
                Ok(FlightState::Running(since)) => since,
                _ => return future::pending().await,
            }
        };
        sleep_until(since + LATE).await;
    }

    /// Returns whether the read is late.
    pub(super) fn is_late(&self) -> bool {
        matches!(self.0.borrow().state, FlightState::Running(since) if since.elapsed() >= LATE)
    }
}

/// The flights of this process.
pub struct Flights {
    confirmed: Mutex<ConfirmedFlights>,
    /// Number of the next leader.
    next_number: AtomicU64,
    unconfirmed: Mutex<HashMap<(Key, CoalesceKey), ReadQueue<Flight>>>,
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
    // The latest: an earlier one is late.
    Some(flights.get(key)?.iter().rev().find(serves)?.flight.clone())
}

/// Held by the reader that reads the upstream for a flight. The flight ends when it is dropped.
pub struct Leader {
    progress: watch::Sender<FlightProgress>,
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
    /// The reader reads the upstream, as soon as its read may [start](Leader::start).
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

    /// Joins the confirmed flight of a version that the store has just shown, or leads another one if
    /// there is none or it is late.
    pub fn join_or_lead(
        self: &Arc<Self>,
        key: &Key,
        version: JobVersion,
        coalesce_key: CoalesceKey,
    ) -> FlightRole {
        let mut confirmed = lock(&self.confirmed);
        if let Some(flight) = find(&confirmed, key, &version, coalesce_key)
            && !flight.is_late()
        {
            return FlightRole::Join(flight);
        }
        let Some(permit) = self.quota.take(1) else { return FlightRole::Full };
        let (number, progress, flight) = self.new_flight(FlightState::Running(Instant::now()));
        let flight = ConfirmedFlight { number, version, coalesce_key, flight };
        confirmed.entry(key.clone()).or_default().push(flight);
        let slot = FlightSlot::Confirmed(key.clone(), number);
        FlightRole::Lead(Leader { progress, slot, flights: Arc::clone(self), permit })
    }

    fn new_flight(&self, state: FlightState) -> (u64, watch::Sender<FlightProgress>, Flight) {
        let progress = FlightProgress { state, span: Span::none() };
        let (progress, flight) = watch::channel(progress);
        (self.next_number.fetch_add(1, Ordering::Relaxed), progress, Flight(flight))
    }

    /// Returns the confirmed flight of a version that the store has just shown, if there is one here.
    /// It may be late.
    pub fn confirmed(
        &self,
        key: &Key,
        version: &JobVersion,
        coalesce_key: CoalesceKey,
    ) -> Option<Flight> {
        find(&lock(&self.confirmed), key, version, coalesce_key)
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
        if let Some(queue) = &queue {
            if mutants::is(Mutant::JoinRunning)
                && let Some(running) = queue.latest_running()
            {
                return FlightRole::Join(running.clone());
            }
            if let Some(next) = queue.next() {
                return FlightRole::Join(next.clone());
            }
        }
        let Some(permit) = self.quota.take(1) else { return FlightRole::Full };
        let now = Instant::now();
        let state = if queue.is_some() { FlightState::Queued } else { FlightState::Running(now) };
        let (number, progress, flight) = self.new_flight(state);
        if let Some(queue) = queue {
            queue.add_next((number, flight), now);
        } else {
            queues.insert(name.clone(), ReadQueue::starting((number, flight), now));
        }
        let slot = FlightSlot::Unconfirmed(name, number);
        FlightRole::Lead(Leader { progress, slot, flights: Arc::clone(self), permit })
    }

    /// Starts a read that is next, if it may start now. Returns until when it has to wait, unless
    /// another read ends before that.
    fn start(&self, slot: &FlightSlot) -> Option<(Instant, Arc<Notify>)> {
        let FlightSlot::Unconfirmed(name, number) = slot else { return None };
        lock(&self.unconfirmed).get_mut(name)?.start(*number, Instant::now())
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

impl Leader {
    /// Returns the flight, for a follower.
    pub fn flight(&self) -> Flight {
        Flight(self.progress.subscribe())
    }

    /// Waits until the read may start. It is valid for every reader that joined before that.
    pub async fn start(&self) {
        while let Some((due, ended)) = self.flights.start(&self.slot) {
            let _ = timeout_at(due, ended.notified()).await;
        }
        self.progress.send_if_modified(|progress| {
            let is_queued = matches!(progress.state, FlightState::Queued);
            if is_queued {
                progress.state = FlightState::Running(Instant::now());
            }
            is_queued
        });
    }

    /// Files the flight under another version, before its upstream read begins.
    pub(super) fn refile(&self, version: JobVersion, coalesce_key: CoalesceKey) {
        let FlightSlot::Confirmed(key, number) = &self.slot else { return };
        self.flights.leave(&self.slot);
        let (number, flight) = (*number, self.flight());
        let flight = ConfirmedFlight { number, version, coalesce_key, flight };
        lock(&self.flights.confirmed).entry(key.clone()).or_default().push(flight);
    }

    /// Releases the followers, which then read for themselves, and lets the next read begin. Used when
    /// the body is streamed and may never end.
    pub fn detach_followers(&self) {
        self.fail(FlightFailure::Unshared);
        self.flights.leave(&self.slot);
    }

    /// Releases the followers, because the upstream has not answered. They look the job up again, and do
    /// not find this flight any more.
    pub(super) fn leave_unanswered(&self) {
        self.flights.leave(&self.slot);
        self.fail(FlightFailure::Unanswered);
    }

    /// Releases the followers without a response.
    pub(super) fn fail(&self, why: FlightFailure) {
        self.set_state(FlightState::Failed(why));
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
