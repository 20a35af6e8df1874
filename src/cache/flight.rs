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
    /// What the request is for: several routes may give one key.
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

impl FlightProgress {
    fn pending() -> Self {
        Self { state: FlightState::Pending, span: Span::none() }
    }
}

impl Flight {
    /// Waits for the result of the flight; `None` if there is none that can be shared.
    pub async fn wait(mut self) -> Option<Arc<Entry>> {
        let is_pending = |progress: &FlightProgress| matches!(progress.state, FlightState::Pending);
        let progress = self.0.wait_for(|progress| !is_pending(progress)).await.ok()?;
        spans::follows_from(&progress.span);
        match &progress.state {
            FlightState::Ready(entry) => Some(Arc::clone(entry)),
            FlightState::Pending | FlightState::Detached => None,
        }
    }
}

/// The flights of this process.
pub struct Flights {
    confirmed: Mutex<HashMap<Key, Vec<ConfirmedFlight>>>,
    /// Number of the next leader.
    next_number: AtomicU64,
    unconfirmed: Mutex<HashMap<(Key, CoalesceKey), ReadQueue>>,
    /// Limits the number of flights.
    quota: Arc<Quota>,
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights")
            .field("begun", &self.next_number.load(Ordering::Relaxed))
            .field("quota", &self.quota)
            .finish_non_exhaustive()
    }
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

#[derive(Debug)]
struct ConfirmedFlight {
    number: u64,
    version: JobVersion,
    coalesce_key: CoalesceKey,
    flight: Flight,
}

impl ConfirmedFlight {
    fn serves(&self, version: &JobVersion, coalesce_key: CoalesceKey) -> bool {
        (self.version.token == version.token || mutants::is(Mutant::JoinById))
            && (self.version.epoch == version.epoch || mutants::is(Mutant::JoinAcrossEpochs))
            && self.coalesce_key == coalesce_key
    }
}

/// The reads without a confirmed lookup, for one job and coalesce key.
#[derive(Debug)]
struct ReadQueue {
    running: u64,
    /// The flight of the running read. No reader may join it: it began before they arrived.
    running_flight: Flight,
    next: Option<QueuedRead>,
}

#[derive(Debug)]
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

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader").field("slot", &self.slot).finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum FlightSlot {
    Confirmed(Key, u64),
    Unconfirmed((Key, CoalesceKey), u64),
}

/// Role of a reader in a flight.
#[derive(Debug)]
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
        let flights = confirmed.entry(key.clone()).or_default();
        if let Some(found) = flights.iter().find(|flight| flight.serves(&version, coalesce_key)) {
            return FlightRole::Join(found.flight.clone());
        }
        let Some(permit) = self.quota.take(1) else {
            if flights.is_empty() {
                confirmed.remove(key);
            }
            return FlightRole::Full;
        };
        let (progress, flight) = watch::channel(FlightProgress::pending());
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let flight = Flight(flight);
        flights.push(ConfirmedFlight { number, version, coalesce_key, flight });
        FlightRole::Lead(Leader {
            progress,
            turn: None,
            slot: FlightSlot::Confirmed(key.clone(), number),
            flights: Arc::clone(self),
            permit,
        })
    }

    /// Joins the confirmed flight of a version that the store has just shown, if there is one here.
    pub fn join_confirmed(
        &self,
        key: &Key,
        version: &JobVersion,
        coalesce_key: CoalesceKey,
    ) -> Option<Flight> {
        let confirmed = lock(&self.confirmed);
        let flights = confirmed.get(key)?;
        let found = flights.iter().find(|flight| flight.serves(version, coalesce_key))?;
        Some(found.flight.clone())
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
        let (progress, flight) = watch::channel(FlightProgress::pending());
        let flight = Flight(flight);
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let mut queues = lock(&self.unconfirmed);
        let permit;
        let turn = match queues.entry(name.clone()) {
            Slot::Vacant(slot) => {
                let Some(taken) = self.quota.take(1) else { return FlightRole::Full };
                permit = taken;
                slot.insert(ReadQueue { running: number, running_flight: flight, next: None });
                None
            }
            Slot::Occupied(mut slot) => {
                let queue = slot.get_mut();
                if mutants::is(Mutant::JoinRunning) {
                    return FlightRole::Join(queue.running_flight.clone());
                }
                if let Some(next) = &queue.next {
                    return FlightRole::Join(next.flight.clone());
                }
                let Some(taken) = self.quota.take(1) else { return FlightRole::Full };
                permit = taken;
                let (go, turn) = oneshot::channel();
                queue.next = Some(QueuedRead { number, start: go, flight });
                Some(turn)
            }
        };
        FlightRole::Lead(Leader {
            progress,
            turn,
            slot: FlightSlot::Unconfirmed(name, number),
            flights: Arc::clone(self),
            permit,
        })
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use hyper::Request;

    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;
    use crate::{
        config::CredentialsConfig,
        semantics::audience::Fingerprinter,
        store::{CredentialKey, Token},
    };

    fn coalesce_key() -> CoalesceKey {
        let (head, ()) = Request::new(()).into_parts();
        let caller = Fingerprinter::new(&CredentialsConfig::default()).caller(
            &CredentialKey::new([0; 32]),
            &head.uri,
            &head.headers,
        );
        CoalesceKey { caller, identity: IdentityHash(7) }
    }

    fn key() -> Key {
        Key::new("job_status:", "x")
    }

    fn version(token: &str, epoch: &str) -> JobVersion {
        JobVersion { token: Token::named(token), epoch: Epoch::named(epoch) }
    }

    fn leads(role: FlightRole) -> Leader {
        match role {
            FlightRole::Lead(leader) => leader,
            other => panic!("{other:?}"),
        }
    }

    fn joins(role: FlightRole) -> Flight {
        match role {
            FlightRole::Join(flight) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn flights(limit: usize) -> Arc<Flights> {
        Arc::new(Flights::new(Quota::new(limit, Gauge::default(), Counter::default())))
    }

    #[test]
    fn a_flight_is_joined_by_what_the_store_shows_in_its_epoch_and_by_nothing_else() {
        let flights = flights(9);
        let leader = leads(flights.join_or_lead(&key(), version("t1", "e1"), coalesce_key()));
        assert!(flights.join_confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_some());
        assert!(flights.join_confirmed(&key(), &version("t2", "e1"), coalesce_key()).is_none());
        assert!(flights.join_confirmed(&key(), &version("t1", "e2"), coalesce_key()).is_none());
        let other_route = CoalesceKey { identity: IdentityHash(8), ..coalesce_key() };
        assert!(flights.join_confirmed(&key(), &version("t1", "e1"), other_route).is_none());
        flights.detach(&key());
        assert!(flights.join_confirmed(&key(), &version("t1", "e1"), coalesce_key()).is_none());
        drop(leader);
    }

    #[tokio::test]
    async fn a_leader_that_panics_sends_its_followers_on_their_own_way() {
        let flights = flights(9);
        let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
        let follower = joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
        let dies = tokio::spawn(async move {
            let _leader = leader;
            panic!("the upstream's answer was too much for us");
        });
        assert!(follower.wait().await.is_none());
        assert!(dies.await.unwrap_err().is_panic());
        leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
    }

    #[tokio::test]
    async fn a_leader_that_is_aborted_lets_the_next_read_begin() {
        let flights = flights(9);
        let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
        let mut next = leads(flights.join_or_lead_next(key(), coalesce_key()));
        let follower = joins(flights.join_or_lead_next(key(), coalesce_key()));
        let aborted = tokio::spawn(async move {
            let _running = running;
            pending::<()>().await;
        });
        aborted.abort();
        next.wait_for_turn().await;
        // The next read runs now: later readers wait for one that begins after they arrived.
        let later = leads(flights.join_or_lead_next(key(), coalesce_key()));
        drop(next);
        assert!(follower.wait().await.is_none());
        drop(later);
        assert!(lock(&flights.unconfirmed).is_empty(), "nobody is left");
    }

    #[tokio::test]
    async fn a_next_leader_that_gives_up_leaves_its_place_to_another() {
        let flights = flights(9);
        let running = leads(flights.join_or_lead_next(key(), coalesce_key()));
        drop(leads(flights.join_or_lead_next(key(), coalesce_key())));
        let mut next = leads(flights.join_or_lead_next(key(), coalesce_key()));
        drop(running);
        next.wait_for_turn().await;
    }

    #[test]
    fn at_the_flight_limit_a_reader_joins_running_flights_and_starts_none() {
        let flights = flights(2);
        let other = Key::new("job_status:", "y");
        let leader = leads(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));
        let running = leads(flights.join_or_lead_next(key(), coalesce_key()));

        assert!(matches!(
            flights.join_or_lead(&other, version("t", "e"), coalesce_key()),
            FlightRole::Full
        ));
        assert!(matches!(
            flights.join_or_lead(&key(), version("u", "e"), coalesce_key()),
            FlightRole::Full
        ));
        assert!(
            matches!(flights.join_or_lead_next(key(), coalesce_key()), FlightRole::Full),
            "no next one"
        );
        assert!(matches!(
            flights.join_or_lead_next(other.clone(), coalesce_key()),
            FlightRole::Full
        ));
        joins(flights.join_or_lead(&key(), version("t", "e"), coalesce_key()));

        drop(leader);
        let next = leads(flights.join_or_lead_next(key(), coalesce_key()));
        joins(flights.join_or_lead_next(key(), coalesce_key()));
        drop((running, next));
        assert!(lock(&flights.confirmed).is_empty() && lock(&flights.unconfirmed).is_empty());
    }
}
