//! The read barrier: when a value in this process may be used though the store was not asked for it.
//!
//! The tracking connection carries news of every change. What the server has sent before its answer
//! to a `PING` is applied before that answer is seen, so a reader whose `PING` was sent after he
//! arrived, and has been answered, knows of every change that anybody was told of before he came.
//! Readers share rounds as Raft's `ReadIndex` does: who arrives while one is under way waits for the
//! next, and that is one `PING` for all of them.
//!
//! A round may carry names: who is told only of changes of what he has read ([`Rounds::carry`]) has the
//! server remember a key by it. Once he passes, news of that key comes like any other.
//!
//! This is the meeting point only. It sends nothing and reads no clock: [`Rounds::launch`] and
//! [`Rounds::answered`] are for who owns the connection, [`Rounds::pass`] and [`Rounds::poll_pass`] for
//! readers. It is up only while the connection is; a reader who waits when it goes down is told so.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use super::Key;

/// Rounds of one connection after another.
#[derive(Default)]
pub struct Rounds {
    state: Mutex<State>,
    /// The last round that was answered, over all connections.
    answered: AtomicU64,
    /// The life of the connection; odd while it is up.
    life: AtomicU64,
    /// When the last round that was answered was launched; 0 while the connection is down.
    fresh_at_us: AtomicU64,
    /// Told when a round is wanted and none is under way.
    wanted: Notify,
}

impl fmt::Debug for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounds")
            .field("answered", &self.answered)
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    /// The last round that was launched.
    launched: u64,
    flying: bool,
    /// A round is wanted though nobody waits for it.
    nudged: bool,
    /// Who waits for the round under way.
    aboard: Vec<Waker>,
    /// Who waits for the one after it.
    waiting: Vec<Waker>,
    /// What that one is to carry.
    carried: Vec<Key>,
}

/// The connection is down, or went down while a reader waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Down;

/// Waits for a round that is launched after the first poll.
#[must_use = "it is passed only when it has been awaited"]
#[derive(Debug)]
pub struct Pass<'r> {
    rounds: &'r Rounds,
    ticket: Ticket,
    /// What the round is to carry, until it was joined.
    cargo: Option<Key>,
}

/// The place of one reader, for who polls and may not borrow. A new one for each reader.
#[derive(Debug, Default)]
pub struct Ticket {
    /// The round that lets it pass, and the life in which it was joined.
    joined: Option<(u64, u64)>,
}

impl Rounds {
    /// Waits for a round that begins after this is first polled.
    pub fn pass(&self) -> Pass<'_> {
        Pass { rounds: self, ticket: Ticket::default(), cargo: None }
    }

    /// The same, by a round that carries the name of this key.
    pub fn carry(&self, key: &Key) -> Pass<'_> {
        Pass { cargo: Some(key.clone()), ..self.pass() }
    }

    /// The same as [`Rounds::pass`] for who holds a ticket.
    pub fn poll_pass(&self, ticket: &mut Ticket, cx: &mut Context<'_>) -> Poll<Result<(), Down>> {
        self.poll_aboard(ticket, &mut None, cx)
    }

    fn poll_aboard(
        &self,
        ticket: &mut Ticket,
        cargo: &mut Option<Key>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Down>> {
        // Without the lock: most are polled twice, and the second time there is an answer.
        if let Some(joined) = ticket.joined
            && let Poll::Ready(passed) = self.outcome(joined)
        {
            return Poll::Ready(passed);
        }
        let mut state = self.lock();
        let now = (state.launched + 1, self.life.load(Ordering::Relaxed));
        let joined = *ticket.joined.get_or_insert(now);
        if let Poll::Ready(passed) = self.outcome(joined) {
            return Poll::Ready(passed);
        }
        if joined.0 <= state.launched {
            state.aboard.push(cx.waker().clone());
            return Poll::Pending;
        }
        state.waiting.push(cx.waker().clone());
        // As many at most as there are requests, as with the wakers.
        state.carried.extend(cargo.take());
        let first = state.waiting.len() == 1 && !state.flying && !state.nudged;
        drop(state);
        if first {
            self.wanted.notify_one();
        }
        Poll::Pending
    }

    /// When the last round that was answered was launched, in us by the clock of
    /// [`Rounds::answered`]: every change before that is known. `None` while the connection is down.
    pub fn fresh_at_us(&self) -> Option<u64> {
        match self.fresh_at_us.load(Ordering::Acquire) {
            0 => None,
            at => Some(at),
        }
    }

    /// Asks for a round that nobody waits for.
    pub fn nudge(&self) {
        let mut state = self.lock();
        let first = !state.flying && !state.nudged && state.waiting.is_empty();
        state.nudged = true;
        drop(state);
        if first {
            self.wanted.notify_one();
        }
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        is_up(self.life.load(Ordering::Acquire))
    }

    /// The connection stands. What was noted before must be void: the caller has flushed.
    pub fn raise(&self) {
        let mut state = self.lock();
        if !is_up(self.life.load(Ordering::Relaxed)) {
            state.flying = false;
            self.life.fetch_add(1, Ordering::Release);
        }
    }

    /// The connection is gone, or does not answer: whoever waits is told, and nobody passes.
    pub fn lower(&self) {
        let mut state = self.lock();
        if !is_up(self.life.load(Ordering::Relaxed)) {
            return;
        }
        self.life.fetch_add(1, Ordering::Release);
        self.fresh_at_us.store(0, Ordering::Release);
        state.nudged = false;
        state.carried.clear();
        let aboard = std::mem::take(&mut state.aboard);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        aboard.into_iter().chain(waiting).for_each(Waker::wake);
    }

    /// Waits until a round is wanted and none is under way.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Begins a round if one is wanted, and says for how many; the caller then has the server remember
    /// the keys, which take the place of what is in `carried`, and sends the `PING` after them. Not to
    /// be called while one is under way.
    pub fn launch(&self, carried: &mut Vec<Key>) -> Option<usize> {
        let mut state = self.lock();
        let State { launched, flying, nudged, aboard, waiting, carried: names } = &mut *state;
        if waiting.is_empty() && !*nudged {
            return None;
        }
        *launched += 1;
        *flying = true;
        *nudged = false;
        // The one that was emptied keeps its room for the round after this.
        std::mem::swap(aboard, waiting);
        carried.clear();
        std::mem::swap(carried, names);
        Some(aboard.len())
    }

    /// The round under way, launched at this time, has been answered, and the news before the answer
    /// has been applied.
    pub fn answered(&self, launched_at_us: u64) {
        let mut state = self.lock();
        state.flying = false;
        self.answered.store(state.launched, Ordering::Release);
        self.fresh_at_us.store(launched_at_us.max(1), Ordering::Release);
        let mut aboard = std::mem::take(&mut state.aboard);
        drop(state);
        aboard.drain(..).for_each(Waker::wake);
        let mut state = self.lock();
        if state.aboard.capacity() == 0 {
            state.aboard = aboard;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Pass<'_> {
    type Output = Result<(), Down>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.rounds.poll_aboard(&mut this.ticket, &mut this.cargo, cx)
    }
}

impl Rounds {
    /// Whether who joined this round in this life passes. The life is looked at first: once it is over
    /// nothing is answered in its name.
    fn outcome(&self, (round, life): (u64, u64)) -> Poll<Result<(), Down>> {
        if !is_up(life) || self.life.load(Ordering::Acquire) != life {
            return Poll::Ready(Err(Down));
        }
        if self.answered.load(Ordering::Acquire) >= round {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

fn is_up(life: u64) -> bool {
    life % 2 == 1
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    fn up() -> Rounds {
        let rounds = Rounds::default();
        rounds.raise();
        rounds
    }

    #[tokio::test]
    async fn who_comes_while_a_round_is_under_way_waits_for_the_next() {
        let rounds = up();
        let mut early = pin!(rounds.pass());
        assert!(poll!(&mut early).is_pending());
        rounds.wanted().await;
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        let (mut late, mut later) = (pin!(rounds.pass()), pin!(rounds.pass()));
        assert!(poll!(&mut late).is_pending() && poll!(&mut later).is_pending());
        rounds.answered(1);
        assert_eq!(poll!(&mut early), Poll::Ready(Ok(())));
        assert!(poll!(&mut late).is_pending(), "it came after that round was launched");
        assert_eq!(
            rounds.launch(&mut Vec::new()),
            Some(3),
            "two readers, one of whom was polled twice"
        );
        rounds.answered(2);
        assert_eq!(poll!(&mut late), Poll::Ready(Ok(())));
        assert_eq!(poll!(&mut later), Poll::Ready(Ok(())));
        assert_eq!(rounds.launch(&mut Vec::new()), None, "nobody waits");
    }

    #[tokio::test]
    async fn nobody_passes_a_connection_that_is_down_or_went_down() {
        let rounds = Rounds::default();
        assert_eq!(rounds.pass().await, Err(Down));
        rounds.raise();
        let (mut aboard, mut waiting) = (pin!(rounds.pass()), pin!(rounds.pass()));
        assert!(poll!(&mut aboard).is_pending());
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        assert!(poll!(&mut waiting).is_pending());
        rounds.lower();
        rounds.raise();
        assert_eq!(poll!(&mut aboard), Poll::Ready(Err(Down)), "its round was lost");
        assert_eq!(poll!(&mut waiting), Poll::Ready(Err(Down)));
        let mut anew = pin!(rounds.pass());
        assert!(poll!(&mut anew).is_pending());
        rounds.wanted().await;
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        rounds.answered(1);
        assert_eq!(poll!(&mut anew), Poll::Ready(Ok(())));
    }

    #[tokio::test]
    async fn a_round_carries_the_names_of_who_boards_it_once() {
        let rounds = up();
        let key = |id| Key::new("job_status:", id);
        let (mut early, mut carried) = (pin!(rounds.carry(&key("x"))), Vec::new());
        assert!(poll!(&mut early).is_pending() && poll!(&mut early).is_pending());
        assert_eq!(rounds.launch(&mut carried), Some(2), "one reader, who was polled twice");
        assert_eq!(carried, [key("x")]);
        let (mut late, mut other) = (pin!(rounds.carry(&key("y"))), pin!(rounds.pass()));
        assert!(poll!(&mut late).is_pending() && poll!(&mut other).is_pending());
        rounds.answered(1);
        assert_eq!(poll!(&mut early), Poll::Ready(Ok(())));
        assert!(poll!(&mut late).is_pending(), "its key is not remembered yet");
        assert_eq!(rounds.launch(&mut carried), Some(3));
        assert_eq!(carried, [key("y")]);
        rounds.lower();
        rounds.raise();
        rounds.nudge();
        assert_eq!(rounds.launch(&mut carried), Some(0));
        assert!(carried.is_empty(), "who gave it is gone");
    }

    #[tokio::test]
    async fn a_nudge_is_a_round_that_nobody_waits_for() {
        let rounds = up();
        assert_eq!(rounds.fresh_at_us(), None);
        rounds.nudge();
        rounds.nudge();
        rounds.wanted().await;
        assert_eq!(rounds.launch(&mut Vec::new()), Some(0));
        rounds.answered(7);
        assert_eq!(rounds.fresh_at_us(), Some(7));
        assert_eq!(rounds.launch(&mut Vec::new()), None);
        rounds.lower();
        assert_eq!(rounds.fresh_at_us(), None);
    }
}
