//! The times at which a topic is read without a client that asks for it.

use std::time::Duration;

use tokio::time::Instant;

/// Longest wait for a fence, from the last news and from the first. The fence of a write that has
/// ended stands for `settle`, which is a second by default; the margin lets it fall first.
const FENCE_WAIT: Duration = Duration::from_millis(1_050);
const MAX_FENCE_WAIT: Duration = Duration::from_secs(2);

/// First pause after a read that failed, or that the store has not confirmed. It doubles up to
/// `push.recheck`.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Why the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A waiter has asked for a look.
    Asked,
    /// There is news about the key.
    News,
    /// The fence has stood for long enough.
    Fence,
    /// The last read failed.
    Retry,
    /// The store may not have the last version, and reports no change of what it does not have.
    Confirm,
    /// There was no news for `push.recheck`.
    Recheck,
}

/// The next reads of a topic.
pub(super) struct ReadSchedule {
    /// `push.recheck`.
    interval: Duration,
    recheck_at: Instant,
    fence: Option<FenceWait>,
    retry: Option<Retry>,
    confirm: Option<Retry>,
}

/// A wait for the fence of the job.
#[derive(Clone, Copy)]
struct FenceWait {
    since: Instant,
    until: Instant,
}

/// A read that follows a pause.
#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    pause: Duration,
}

/// Waits that a result has ended. The next waits follow from their lengths.
#[derive(Clone, Copy)]
pub(super) struct EndedWaits {
    fence: Option<FenceWait>,
    retry: Option<Retry>,
    confirm: Option<Retry>,
}

impl ReadSchedule {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, recheck_at: now + interval, fence: None, retry: None, confirm: None }
    }

    /// Returns when to read without news, and why.
    pub(super) fn next_due(&self) -> (Instant, Cause) {
        let fence = self.fence.map(|fence| (fence.until, Cause::Fence));
        let retry = self.retry.map(|retry| (retry.at, Cause::Retry));
        let recheck = (self.recheck_at, Cause::Recheck);
        let confirm = self.confirm.map(|confirm| (confirm.at, Cause::Confirm));
        let due = [fence, retry, confirm].into_iter().flatten();
        due.fold(recheck, |first, next| if next.0 < first.0 { next } else { first })
    }

    /// Returns when a topic without waiters ends.
    pub(super) fn idle_until(&self) -> Instant {
        self.recheck_at + self.interval
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.recheck_at
    }

    /// Begins a new interval: the upstream is read now, or has just answered.
    pub(super) fn restart(&mut self, now: Instant) {
        self.recheck_at = now + self.interval;
    }

    /// Ends the waits, because a read has a result.
    pub(super) fn end_waits(&mut self) -> EndedWaits {
        let Self { fence, retry, confirm, .. } = self;
        EndedWaits { fence: fence.take(), retry: retry.take(), confirm: confirm.take() }
    }

    /// Reads again once the fence has fallen, and otherwise as planned.
    pub(super) fn await_fence(&mut self, ended: EndedWaits, now: Instant) {
        let since = ended.fence.map_or(now, |fence| fence.since);
        let until = (now + FENCE_WAIT).min(since + MAX_FENCE_WAIT);
        self.fence = Some(FenceWait { since, until });
        self.retry = ended.retry;
    }

    /// Reads again after a pause, which is twice as long as the one that has ended.
    pub(super) fn retry_longer(&mut self, ended: EndedWaits, now: Instant) {
        let pause = ended.retry.map_or(FIRST_RETRY, |retry| retry.pause * 2);
        self.retry = Some(self.after(pause, now));
    }

    /// Reads again after the first pause.
    pub(super) fn retry_soon(&mut self, now: Instant) {
        self.retry = Some(self.after(FIRST_RETRY, now));
    }

    /// Reads again without a pause.
    pub(super) fn retry_at_once(&mut self, now: Instant) {
        self.retry = Some(Retry { at: now, pause: FIRST_RETRY });
    }

    /// Looks whether the store has the last version after a pause, which doubles if the last look has
    /// not shown that.
    pub(super) fn confirm(&mut self, ended: EndedWaits, now: Instant) {
        let last = ended.confirm.filter(|confirm| confirm.at <= now);
        let pause = last.map_or(FIRST_RETRY, |confirm| confirm.pause * 2);
        self.confirm = Some(self.after(pause, now));
    }

    fn after(&self, pause: Duration, now: Instant) -> Retry {
        let pause = pause.min(self.interval);
        Retry { at: now + pause, pause }
    }
}
