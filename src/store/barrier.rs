//! The read barrier: when a value in this process may be used without asking the store.
//!
//! The tracking connection carries news of every change. News that the server sends before its
//! answer to a `PING` is applied before that answer is seen. So once a `PING` that was sent after a
//! reader arrived has been answered, the reader knows of every change that was acknowledged to
//! anyone before it arrived. Readers share rounds as in Raft's `ReadIndex`: a reader that arrives
//! while a round is under way waits for the next one, which is a single `PING` for all of them.
//!
//! A round may carry keys. Where the server reports only changes to keys that were read on the
//! connection, such a round makes it remember a key. Once the reader passes, news about that key
//! arrives like any other.
//!
//! The barrier only coordinates: it sends nothing and reads no clock. [`Barrier::launch`] and
//! [`Barrier::answered`] are for the owner of the connection, [`Barrier::pass`] and
//! [`Barrier::poll_pass`] for readers. The barrier is up only while the connection is; a reader
//! that waits when it goes down gets an error.

use std::{
    future::{Future, poll_fn},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::Key;

/// The rounds of one connection after another.
#[derive(Default)]
pub struct Barrier {
    state: Mutex<BarrierState>,
    /// The last round that was answered, over all connections.
    answered: AtomicU64,
    /// The life of the connection; odd while it is up.
    life: AtomicU64,
    /// When the last answered round was launched, in us; 0 while the connection is down.
    fresh_at_us: AtomicU64,
    /// Notified when a round is wanted and none is under way.
    wanted: Notify,
}

#[derive(Default)]
struct BarrierState {
    /// The last round that was launched.
    launched: u64,
    in_flight: bool,
    /// A round is wanted although no reader waits for it.
    nudged: bool,
    /// Readers that wait for the round under way.
    current_waiters: Vec<Waker>,
    /// Readers that wait for the next round.
    next_waiters: Vec<Waker>,
    /// Keys that the next round is to carry.
    next_keys: Vec<Key>,
}

/// The connection is down, or went down while a reader waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierDown;

/// The progress of one read through the barrier. Each reader needs a new one.
#[derive(Debug, Default)]
pub struct BarrierWait {
    /// The round that lets the reader pass, and the life in which it was joined.
    joined: Option<(u64, u64)>,
    /// The number of the shard that is waited for, on a cluster.
    pub(super) shard: Option<u64>,
    pub(super) began: Option<Instant>,
}

impl BarrierWait {
    /// Returns how long the wait has lasted; zero if there was none.
    pub fn lasted(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

impl Barrier {
    /// Waits for a round that begins after the first poll, and carries the `key` if there is one.
    pub fn pass(&self, mut key: Option<Key>) -> impl Future<Output = Result<(), BarrierDown>> {
        let mut wait = BarrierWait::default();
        poll_fn(move |cx| self.poll_joined(&mut wait, &mut key, cx))
    }

    /// As [`Barrier::pass`], for callers that poll and cannot borrow.
    pub fn poll_pass(
        &self,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        self.poll_joined(wait, &mut None, cx)
    }

    /// The `key` is the one that the round is to carry, until the round was joined.
    fn poll_joined(
        &self,
        wait: &mut BarrierWait,
        key: &mut Option<Key>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        // Checked without the lock: most readers are polled twice, and the second time there is an
        // answer.
        if let Some(joined) = wait.joined
            && let Poll::Ready(passed) = self.outcome(joined)
        {
            return Poll::Ready(passed);
        }
        let mut state = self.lock();
        let now = (state.launched + 1, self.life.load(Ordering::Relaxed));
        let joined = *wait.joined.get_or_insert(now);
        if let Poll::Ready(passed) = self.outcome(joined) {
            return Poll::Ready(passed);
        }
        if joined.0 <= state.launched {
            state.current_waiters.push(cx.waker().clone());
            return Poll::Pending;
        }
        state.next_waiters.push(cx.waker().clone());
        // Bounded by the number of requests, like the wakers.
        state.next_keys.extend(key.take());
        let first = state.next_waiters.len() == 1 && !state.in_flight && !state.nudged;
        drop(state);
        if first {
            self.wanted.notify_one();
        }
        Poll::Pending
    }

    /// Returns when the last answered round was launched, in us by the clock of
    /// [`Barrier::answered`]: every change before that is known. `None` while the connection is
    /// down.
    pub fn fresh_at_us(&self) -> Option<u64> {
        match self.fresh_at_us.load(Ordering::Acquire) {
            0 => None,
            at => Some(at),
        }
    }

    /// Asks for a round without waiting for it.
    pub fn nudge(&self) {
        let mut state = self.lock();
        let first = !state.in_flight && !state.nudged && state.next_waiters.is_empty();
        state.nudged = true;
        drop(state);
        if first {
            self.wanted.notify_one();
        }
    }

    /// Returns whether there is a connection.
    pub fn is_up(&self) -> bool {
        is_up(self.life.load(Ordering::Acquire))
    }

    /// Marks the connection as up. A new connection is flushed first, so that earlier notes are
    /// void; after a connection that only hung they are still good.
    pub fn mark_up(&self) {
        let mut state = self.lock();
        if !is_up(self.life.load(Ordering::Relaxed)) {
            state.in_flight = false;
            self.life.fetch_add(1, Ordering::Release);
        }
    }

    /// Marks the connection as gone or hung: waiting readers get an error, and no reader passes.
    pub fn mark_down(&self) {
        let mut state = self.lock();
        if !is_up(self.life.load(Ordering::Relaxed)) {
            return;
        }
        self.life.fetch_add(1, Ordering::Release);
        self.fresh_at_us.store(0, Ordering::Release);
        state.nudged = false;
        state.next_keys.clear();
        let current = std::mem::take(&mut state.current_waiters);
        let next = std::mem::take(&mut state.next_waiters);
        drop(state);
        current.into_iter().chain(next).for_each(Waker::wake);
    }

    /// Waits until a round is wanted and none is under way.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Begins a round if one is wanted, and returns how many readers wait for it. The keys to carry
    /// replace the contents of `carried`. The caller has the server remember them, and sends the
    /// `PING` after that. Must not be called while a round is under way.
    pub fn launch(&self, carried: &mut Vec<Key>) -> Option<usize> {
        let state = &mut *self.lock();
        if state.next_waiters.is_empty() && !state.nudged {
            return None;
        }
        state.launched += 1;
        state.in_flight = true;
        state.nudged = false;
        // The emptied vectors keep their capacity for the next round.
        std::mem::swap(&mut state.current_waiters, &mut state.next_waiters);
        carried.clear();
        std::mem::swap(carried, &mut state.next_keys);
        Some(state.current_waiters.len())
    }

    /// Ends the round under way, which was launched at this time: it has been answered, and the
    /// news before the answer has been applied.
    pub fn answered(&self, launched_at_us: u64) {
        let mut state = self.lock();
        state.in_flight = false;
        self.answered.store(state.launched, Ordering::Release);
        self.fresh_at_us.store(launched_at_us.max(1), Ordering::Release);
        let mut wakers = std::mem::take(&mut state.current_waiters);
        drop(state);
        wakers.drain(..).for_each(Waker::wake);
        let mut state = self.lock();
        if state.current_waiters.capacity() == 0 {
            state.current_waiters = wakers;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BarrierState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a reader that joined this round in this life passes. The life is checked
    /// first: once it is over, nothing is answered in its name.
    fn outcome(&self, (round, life): (u64, u64)) -> Poll<Result<(), BarrierDown>> {
        if !is_up(life) || self.life.load(Ordering::Acquire) != life {
            return Poll::Ready(Err(BarrierDown));
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

    fn up() -> Barrier {
        let rounds = Barrier::default();
        rounds.mark_up();
        rounds
    }

    #[tokio::test]
    async fn who_comes_while_a_round_is_under_way_waits_for_the_next() {
        let rounds = up();
        let mut early = pin!(rounds.pass(None));
        assert!(poll!(&mut early).is_pending());
        rounds.wanted().await;
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        let (mut late, mut later) = (pin!(rounds.pass(None)), pin!(rounds.pass(None)));
        assert!(poll!(&mut late).is_pending() && poll!(&mut later).is_pending());
        rounds.answered(1);
        assert_eq!(poll!(&mut early), Poll::Ready(Ok(())));
        assert!(poll!(&mut late).is_pending(), "it came after that round was launched");
        assert_eq!(rounds.launch(&mut Vec::new()), Some(3), "two readers, one polled twice");
        rounds.answered(2);
        assert_eq!(poll!(&mut late), Poll::Ready(Ok(())));
        assert_eq!(poll!(&mut later), Poll::Ready(Ok(())));
        assert_eq!(rounds.launch(&mut Vec::new()), None, "nobody waits");
    }

    #[tokio::test]
    async fn nobody_passes_a_connection_that_is_down_or_went_down() {
        let rounds = Barrier::default();
        assert_eq!(rounds.pass(None).await, Err(BarrierDown));
        rounds.mark_up();
        let (mut current, mut next) = (pin!(rounds.pass(None)), pin!(rounds.pass(None)));
        assert!(poll!(&mut current).is_pending());
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        assert!(poll!(&mut next).is_pending());
        rounds.mark_down();
        rounds.mark_up();
        assert_eq!(poll!(&mut current), Poll::Ready(Err(BarrierDown)), "its round was lost");
        assert_eq!(poll!(&mut next), Poll::Ready(Err(BarrierDown)));
        let mut again = pin!(rounds.pass(None));
        assert!(poll!(&mut again).is_pending());
        rounds.wanted().await;
        assert_eq!(rounds.launch(&mut Vec::new()), Some(1));
        rounds.answered(1);
        assert_eq!(poll!(&mut again), Poll::Ready(Ok(())));
    }

    #[tokio::test]
    async fn a_round_carries_the_names_of_who_boards_it_once() {
        let rounds = up();
        let key = |id| Key::new("job_status:", id);
        let (mut early, mut carried) = (pin!(rounds.pass(Some(key("x")))), Vec::new());
        assert!(poll!(&mut early).is_pending() && poll!(&mut early).is_pending());
        assert_eq!(rounds.launch(&mut carried), Some(2), "one reader, polled twice");
        assert_eq!(carried, [key("x")]);
        let (mut late, mut other) = (pin!(rounds.pass(Some(key("y")))), pin!(rounds.pass(None)));
        assert!(poll!(&mut late).is_pending() && poll!(&mut other).is_pending());
        rounds.answered(1);
        assert_eq!(poll!(&mut early), Poll::Ready(Ok(())));
        assert!(poll!(&mut late).is_pending(), "its key is not remembered yet");
        assert_eq!(rounds.launch(&mut carried), Some(3));
        assert_eq!(carried, [key("y")]);
        rounds.mark_down();
        rounds.mark_up();
        rounds.nudge();
        assert_eq!(rounds.launch(&mut carried), Some(0));
        assert!(carried.is_empty(), "its reader is gone");
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
        rounds.mark_down();
        assert_eq!(rounds.fresh_at_us(), None);
    }
}
