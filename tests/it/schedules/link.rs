//! The connection of a sidecar to Redis, and the fates of a command on it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use super::{
    scheduler::{step, until},
    world::World,
};

/// Probability that a slow connection breaks instead of delivering.
const BREAKS: f64 = 0.15;
/// Probability that a broken connection had a command in transit, which Redis still executes.
const ON_THE_WIRE: f64 = 0.5;
/// Steps that a command may wait for its answer or be in transit.
const PATIENCE: usize = 6;

type Command = Box<dyn FnOnce(&World)>;

/// A connection. Its commands are executed in the order in which they were sent.
#[derive(Default)]
pub(super) struct Link {
    /// Commands that were sent and not executed yet.
    underway: RefCell<VecDeque<Command>>,
    delivering: Cell<bool>,
    broken: Cell<bool>,
}

/// The reason for a missing answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// There is no connection.
    NotSent,
    /// The command may have been executed, may be executed later, or never.
    Sent,
}

/// A command that was sent, and its answer once there is one.
struct Sent<T> {
    reply: Rc<RefCell<Option<T>>>,
    link: Rc<Link>,
}

impl<T> Sent<T> {
    fn is_over(&self) -> bool {
        self.link.broken.get() || self.reply.borrow().is_some()
    }
}

impl World {
    /// Sends a command over the connection of a sidecar and waits for the answer within the budget.
    /// `command` is executed at most once, in one step.
    pub(super) async fn call<T: 'static>(
        self: &Rc<Self>,
        at: usize,
        command: impl FnOnce(&World) -> T + 'static,
    ) -> Result<T, Unanswered> {
        let sent = self.send(at, command).await?;
        for _ in 0..self.below(PATIENCE) {
            if sent.is_over() {
                break;
            }
            step().await;
        }
        self.answer(at, &sent)
    }

    /// Like [`ClusterState::call`], but waits until the connection breaks.
    pub(super) async fn call_patiently<T: 'static>(
        self: &Rc<Self>,
        at: usize,
        command: impl FnOnce(&World) -> T + 'static,
    ) -> Result<T, Unanswered> {
        let sent = self.send(at, command).await?;
        until(|| sent.is_over()).await;
        self.answer(at, &sent)
    }

    async fn send<T: 'static>(
        self: &Rc<Self>,
        at: usize,
        command: impl FnOnce(&World) -> T + 'static,
    ) -> Result<Sent<T>, Unanswered> {
        step().await;
        if self.sidecars[at].is_cut_off.get() {
            return Err(Unanswered::NotSent);
        }
        let sent = Sent { reply: Rc::default(), link: self.link(at) };
        if !sent.link.delivering.get() && !self.chance(self.scenario.slow) {
            *sent.reply.borrow_mut() = Some(command(self));
            return Ok(sent);
        }
        let reply = Rc::clone(&sent.reply);
        let late = move |world: &World| *reply.borrow_mut() = Some(command(world));
        sent.link.underway.borrow_mut().push_back(Box::new(late));
        if !sent.link.delivering.replace(true) {
            self.spawn(deliver(Rc::clone(self), at, Rc::clone(&sent.link)));
        }
        Ok(sent)
    }

    fn answer<T>(&self, at: usize, sent: &Sent<T>) -> Result<T, Unanswered> {
        sent.reply.take().ok_or_else(|| {
            self.say(format!("sidecar {at}: no answer in time"));
            Unanswered::Sent
        })
    }

    /// Breaks a connection; the sidecar opens another one at once.
    pub(super) fn break_link(&self, at: usize, link: &Rc<Link>) {
        self.say(format!("sidecar {at}: a connection breaks"));
        link.broken.set(true);
        let mut current = self.sidecars[at].link.borrow_mut();
        if Rc::ptr_eq(&current, link) {
            *current = Rc::default();
        }
    }

    /// Breaks all connections after a change of server; commands in transit are lost.
    pub(super) fn break_all_links(&self) {
        for at in 0..self.sidecars.len() {
            let link = self.link(at);
            self.break_link(at, &link);
            link.underway.borrow_mut().clear();
        }
    }
}

/// Executes commands in transit with a delay.
async fn deliver(world: Rc<World>, at: usize, link: Rc<Link>) {
    loop {
        world.some_steps(PATIENCE).await;
        let next = link.underway.borrow_mut().pop_front();
        let Some(command) = next else { break };
        if !link.broken.get() && world.chance(BREAKS) {
            world.break_link(at, &link);
        }
        if link.broken.get() && !world.chance(ON_THE_WIRE) {
            world.say(format!("sidecar {at}: commands in transit are lost"));
            link.underway.borrow_mut().clear();
            break;
        }
        command(&world);
    }
    link.delivering.set(false);
}
