//! The memory of a sidecar: flights, and invalidations that are not confirmed.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use super::{
    link::Link,
    scheduler::{step, until},
    world::CREDENTIALS,
};

#[derive(Default)]
pub(super) struct Sidecar {
    pub(super) link: RefCell<Rc<Link>>,
    /// Whether Redis is unreachable.
    pub(super) is_cut_off: Cell<bool>,
    pub(super) flights: Flights,
    pub(super) pending: RefCell<Option<Pending>>,
    pub(super) is_repeating: Cell<bool>,
    /// The newest state that was acknowledged while its end was not confirmed.
    pub(super) unconfirmed: Cell<u64>,
    /// Number of entries that responses to each client replaced, because the upstream answers it
    /// differently.
    pub(super) replaced: RefCell<HashMap<usize, u32>>,
}

impl Sidecar {
    pub(super) fn replaced_by(&self, who: usize) -> u32 {
        self.replaced.borrow().get(&who).copied().unwrap_or(0)
    }
}

/// An invalidation that is repeated until it is confirmed.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) write: String,
    pub(super) linger_ms: i64,
    /// The longest linger of other writes that were pending before.
    pub(super) others_ms: i64,
    /// Counts additions, so that a confirmation removes only what it confirmed.
    pub(super) addition: u64,
}

#[derive(Clone, Debug)]
enum FlightState {
    Pending,
    Ready(String),
    Abandoned,
}

/// An upstream read that several readers wait for.
#[derive(Clone)]
pub(super) struct Flight(Rc<RefCell<FlightState>>);

impl Flight {
    fn new() -> Self {
        Self(Rc::new(RefCell::new(FlightState::Pending)))
    }

    pub(super) fn land(&self, body: &str) {
        self.0.replace(FlightState::Ready(body.to_owned()));
    }

    pub(super) fn abandon(&self) {
        self.0.replace(FlightState::Abandoned);
    }

    /// Waits for the read. Returns `None` if its result cannot be shared.
    pub(super) async fn ready(&self) -> Option<String> {
        until(|| !matches!(*self.0.borrow(), FlightState::Pending)).await;
        match &*self.0.borrow() {
            FlightState::Ready(body) => Some(body.clone()),
            FlightState::Pending | FlightState::Abandoned => None,
        }
    }
}

/// The version of a job that the store showed, its epoch, and the reading credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JobVersion {
    pub(super) token: String,
    pub(super) epoch: u64,
    pub(super) who: usize,
}

/// Modelled on `src/cache/flight.rs`.
#[derive(Default)]
pub(super) struct Flights {
    confirmed: RefCell<Vec<(u64, JobVersion, Flight)>>,
    count: Cell<u64>,
    unleased: RefCell<[ReadQueue; CREDENTIALS]>,
}

/// One read is next, and starts at any time while others run.
#[derive(Default)]
struct ReadQueue {
    running: Vec<(u64, Flight)>,
    next: Option<(u64, Flight)>,
}

/// The place of a leader among the flights.
pub(super) enum FlightSlot {
    Confirmed(u64),
    Unleased(usize, u64),
}

/// How a reader without a hit gets its answer.
pub(super) enum FlightRole {
    Lead(FlightSlot, Flight),
    Join(Flight),
}

impl Flights {
    fn number(&self) -> u64 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }

    /// Joins or starts the flight for the version that the store has just shown.
    pub(super) fn share(&self, shown: JobVersion) -> FlightRole {
        if let Some(flight) = self.find(|of| *of == shown) {
            return FlightRole::Join(flight);
        }
        let (number, flight) = (self.number(), Flight::new());
        self.confirmed.borrow_mut().push((number, shown, flight.clone()));
        FlightRole::Lead(FlightSlot::Confirmed(number), flight)
    }

    /// Files a flight under another version.
    pub(super) fn refile(&self, seat: &FlightSlot, shown: JobVersion, flight: &Flight) {
        let FlightSlot::Confirmed(number) = *seat else { return };
        self.leave(seat);
        self.confirmed.borrow_mut().push((number, shown, flight.clone()));
    }

    /// Returns the first flight that `serves`.
    pub(super) fn find(&self, serves: impl Fn(&JobVersion) -> bool) -> Option<Flight> {
        let confirmed = self.confirmed.borrow();
        confirmed.iter().find(|(_, of, _)| serves(of)).map(|(.., flight)| flight.clone())
    }

    /// Detaches all flights after a local write or purge.
    pub(super) fn detach(&self) {
        self.confirmed.borrow_mut().clear();
    }

    /// Leads or joins a read that begins after this call.
    pub(super) fn next(&self, who: usize) -> FlightRole {
        let queue = &mut self.unleased.borrow_mut()[who];
        if let Some((_, flight)) = &queue.next {
            return FlightRole::Join(flight.clone());
        }
        let (number, flight) = (self.number(), Flight::new());
        let read = (number, flight.clone());
        if queue.running.is_empty() {
            queue.running.push(read);
        } else {
            queue.next = Some(read);
        }
        FlightRole::Lead(FlightSlot::Unleased(who, number), flight)
    }

    /// Returns the read that runs without a lease, which must not be joined.
    pub(super) fn running(&self, who: usize) -> Option<Flight> {
        self.unleased.borrow()[who].running.last().map(|(_, flight)| flight.clone())
    }

    /// Waits until this leader may read.
    pub(super) async fn turn(&self, seat: &FlightSlot) {
        let FlightSlot::Unleased(who, number) = *seat else { return };
        let is_next = |queue: &ReadQueue| queue.next.as_ref().is_some_and(|(of, _)| *of == number);
        if is_next(&self.unleased.borrow()[who]) {
            // The schedule decides when it starts.
            step().await;
            let queue = &mut self.unleased.borrow_mut()[who];
            queue.running.extend(queue.next.take());
        }
    }

    /// Removes a finished leader.
    pub(super) fn leave(&self, seat: &FlightSlot) {
        match *seat {
            FlightSlot::Confirmed(number) => {
                self.confirmed.borrow_mut().retain(|(of, ..)| *of != number);
            }
            FlightSlot::Unleased(who, number) => {
                self.unleased.borrow_mut()[who].running.retain(|(of, _)| *of != number);
            }
        }
    }
}
