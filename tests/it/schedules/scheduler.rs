//! Runs actors one step at a time, in an order that a seed decides.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use fastrand::Rng;

/// Probability that the actor with the highest priority loses it.
const CHANGE_POINT: f64 = 0.15;

/// A task that takes steps.
pub(super) type Actor = Pin<Box<dyn Future<Output = ()>>>;

/// Ends a step, after which any actor may be next. Between two of these an actor does one atomic
/// action.
pub(super) async fn step() {
    let mut waited = false;
    poll_fn(|context| {
        if mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Blocks until `condition` holds. Other actors must make it hold; the blocked one takes no steps.
pub(super) async fn until(condition: impl Fn() -> bool) {
    poll_fn(|_| if condition() { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// How the actor for the next step is chosen.
enum Order {
    /// Any actor.
    Uniform,
    /// Always the actor with the highest random priority, which it loses sometimes. Runs some
    /// actors for long and starves others (probabilistic concurrency testing, Burckhardt et al.
    /// 2010).
    Priorities,
}

struct Entry {
    actor: Actor,
    priority: f64,
    /// Whether the actor is in [`until`].
    waits: bool,
    /// Whether its condition has been checked since the last step of any actor, and did not hold.
    blocked: bool,
}

/// Woken by an actor that wants to continue; a blocked one does not wake it.
#[derive(Default)]
struct Runnable(AtomicBool);

impl Wake for Runnable {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) struct Scheduler {
    order: Order,
    actors: Vec<Entry>,
    runnable: Arc<Runnable>,
    waker: Waker,
}

impl Scheduler {
    pub(super) fn new(rng: &RefCell<Rng>) -> Self {
        let order = if rng.borrow_mut().bool() { Order::Uniform } else { Order::Priorities };
        let runnable = Arc::<Runnable>::default();
        let waker = Waker::from(Arc::clone(&runnable));
        Self { order, actors: Vec::new(), runnable, waker }
    }

    pub(super) fn add(&mut self, actor: Actor, rng: &RefCell<Rng>) {
        let priority = rng.borrow_mut().f64();
        self.actors.push(Entry { actor, priority, waits: false, blocked: false });
    }

    pub(super) fn is_idle(&self) -> bool {
        self.actors.is_empty()
    }

    /// Lets one actor take one step. Returns whether it did, rather than being blocked. The actor
    /// may use `rng` as well.
    pub(super) fn turn(&mut self, rng: &RefCell<Rng>) -> bool {
        let chosen = self.choose(&mut rng.borrow_mut());
        self.runnable.0.store(false, Ordering::Relaxed);
        let entry = &mut self.actors[chosen];
        let is_done = entry.actor.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready();
        let waits = !is_done && !self.runnable.0.load(Ordering::Relaxed);
        // The actions before a wait are a step as well.
        let took_step = !(waits && entry.waits);
        entry.waits = waits;
        if is_done {
            drop(self.actors.swap_remove(chosen));
        }
        if took_step {
            self.actors.iter_mut().for_each(|entry| entry.blocked = false);
        }
        if waits {
            self.actors[chosen].blocked = true;
        }
        took_step
    }

    fn choose(&mut self, rng: &mut Rng) -> usize {
        let open = self.actors.iter().enumerate().filter(|(_, entry)| !entry.blocked);
        if matches!(self.order, Order::Uniform) {
            let open: Vec<usize> = open.map(|(at, _)| at).collect();
            return *rng.choice(&open).expect("not all are blocked");
        }
        let (chosen, _) = open
            .max_by(|(_, a), (_, b)| a.priority.total_cmp(&b.priority))
            .expect("not all are blocked");
        if rng.f64() < CHANGE_POINT {
            self.actors[chosen].priority = rng.f64() / 2.0;
        }
        chosen
    }
}
