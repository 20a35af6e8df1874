//! What a sidecar keeps in its memory: flights, and the invalidations that are not confirmed.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{link::Link, scheduler::until};

#[derive(Default)]
pub(super) struct Sidecar {
    pub(super) link: RefCell<Rc<Link>>,
    /// Redis cannot be reached.
    pub(super) is_cut_off: Cell<bool>,
    pub(super) flights: Flights,
    pub(super) pending: RefCell<Option<Pending>>,
    pub(super) is_repeating: Cell<bool>,
    /// The newest version that was acknowledged while its end was not confirmed.
    pub(super) unconfirmed: Cell<u64>,
}

/// An invalidation that is to be repeated until it is confirmed.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) write: String,
    pub(super) linger_ms: i64,
    /// Counts additions, so that a confirmation removes only what it confirmed.
    pub(super) addition: u64,
}

#[derive(Clone, Copy, Debug)]
enum Landing {
    InTheAir,
    Landed(u64),
    Abandoned,
}

/// One upstream read that several readers wait for.
#[derive(Clone)]
pub(super) struct Flight(Rc<Cell<Landing>>);

impl Flight {
    fn new() -> Self {
        Self(Rc::new(Cell::new(Landing::InTheAir)))
    }

    pub(super) fn land(&self, version: u64) {
        self.0.set(Landing::Landed(version));
    }

    pub(super) fn abandon(&self) {
        self.0.set(Landing::Abandoned);
    }

    /// `None` if it brought nothing that can be shared.
    pub(super) async fn landed(&self) -> Option<u64> {
        until(|| !matches!(self.0.get(), Landing::InTheAir)).await;
        if let Landing::Landed(version) = self.0.get() { Some(version) } else { None }
    }
}

/// As in `src/cache/flight.rs`.
#[derive(Default)]
pub(super) struct Flights {
    leased: RefCell<Vec<(String, Flight)>>,
    unleased: RefCell<Option<Queue>>,
}

/// At most one read runs and one is next.
struct Queue {
    last: u64,
    running: u64,
    running_flight: Flight,
    next: Option<(u64, Flight)>,
}

/// How a reader without a confirmed lookup gets its answer.
pub(super) enum Ticket {
    Lead(u64, Flight),
    Join(Flight),
}

impl Flights {
    pub(super) fn lead(&self, token: &str) -> Flight {
        let flight = Flight::new();
        self.leased.borrow_mut().push((token.to_owned(), flight.clone()));
        flight
    }

    pub(super) fn join(&self, token: &str) -> Option<Flight> {
        let leased = self.leased.borrow();
        leased.iter().find(|(of, _)| of == token).map(|(_, flight)| flight.clone())
    }

    /// What nobody may join by.
    pub(super) fn any(&self) -> Option<Flight> {
        self.leased.borrow().first().map(|(_, flight)| flight.clone())
    }

    pub(super) fn leave(&self, token: &str) {
        self.leased.borrow_mut().retain(|(of, _)| of != token);
    }

    /// A local write or purge.
    pub(super) fn detach(&self) {
        self.leased.borrow_mut().clear();
    }

    /// Leads or joins a read that begins after now.
    pub(super) fn next(&self) -> Ticket {
        let mut unleased = self.unleased.borrow_mut();
        let Some(queue) = unleased.as_mut() else {
            let flight = Flight::new();
            let running_flight = flight.clone();
            *unleased = Some(Queue { last: 0, running: 0, running_flight, next: None });
            return Ticket::Lead(0, flight);
        };
        if let Some((_, flight)) = &queue.next {
            return Ticket::Join(flight.clone());
        }
        queue.last += 1;
        let flight = Flight::new();
        queue.next = Some((queue.last, flight.clone()));
        Ticket::Lead(queue.last, flight)
    }

    /// The read that runs without a lease: what nobody may join.
    pub(super) fn running(&self) -> Option<Flight> {
        self.unleased.borrow().as_ref().map(|queue| queue.running_flight.clone())
    }

    /// Waits until this reader may read.
    pub(super) async fn turn(&self, number: u64) {
        until(|| self.unleased.borrow().as_ref().is_some_and(|queue| queue.running == number))
            .await;
    }

    /// The read that ran is done.
    pub(super) fn pass_on(&self) {
        let mut unleased = self.unleased.borrow_mut();
        let next = unleased.as_mut().and_then(|queue| queue.next.take());
        match (unleased.as_mut(), next) {
            (Some(queue), Some((number, flight))) => {
                (queue.running, queue.running_flight) = (number, flight);
            }
            _ => *unleased = None,
        }
    }
}
