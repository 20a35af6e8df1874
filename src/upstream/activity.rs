//! How an upload stands: whose turn it is, when it last moved, and whether its client is too slow.
//!
//! Silence alone does not tell a client that holds a connection on purpose: one that sends a byte now
//! and then is never silent for long. So an upload has an allowance of waiting, which grows with
//! what it brings, as that of Apache's `mod_reqtimeout` (`body=20,MinRate=500`) and of Kestrel
//! (`MinRequestBodyDataRate`: 240 bytes a second after 5 s). Only the time in which we wait for the
//! client is taken off it; an upstream that does not take what has come is not the client's fault.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How an upload stands, and when it last moved. Times are in milliseconds from its start. One task
/// writes it, and another one may read.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    /// When it last moved.
    last_ms: AtomicU64,
    state: AtomicU8,
    /// Since when the client is waited for, while it is.
    since_ms: AtomicU64,
    /// How long it was waited for before that.
    awaited_ms: AtomicU64,
    bytes: AtomicU64,
}

/// How an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// What the client has sent waits for the upstream; or all of it was sent.
    Sent,
    /// The client is to send more.
    Awaited,
    /// The client broke it off.
    Broken,
}

impl Activity {
    /// One whose first move is expected within `head_start`.
    pub(super) fn from_then(head_start: Duration) -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(millis(head_start)),
            state: AtomicU8::new(Upload::Sent as u8),
            since_ms: AtomicU64::new(0),
            awaited_ms: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// A part of it came.
    pub(super) fn came(&self, bytes: usize, now: Instant) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.turn(Upload::Sent, now);
    }

    /// It stands so from now on.
    pub(super) fn turn(&self, state: Upload, now: Instant) {
        let was = self.state();
        if was == Upload::Awaited && state == Upload::Awaited {
            return;
        }
        let now_ms = millis(now - self.start);
        if state == Upload::Awaited {
            self.since_ms.store(now_ms, Ordering::Relaxed);
        } else {
            self.last_ms.store(now_ms, Ordering::Relaxed);
            if was == Upload::Awaited {
                let waited_ms = now_ms.saturating_sub(self.since_ms.load(Ordering::Relaxed));
                self.awaited_ms.fetch_add(waited_ms, Ordering::Relaxed);
            }
        }
        // Last: who sees that it is awaited sees since when.
        self.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    pub(super) fn state(&self) -> Upload {
        let state = self.state.load(Ordering::Acquire);
        let known = [Upload::Sent, Upload::Awaited, Upload::Broken];
        known.into_iter().find(|known| *known as u8 == state).unwrap_or(Upload::Sent)
    }

    /// Whether the client is waited for and has used up its allowance.
    pub(super) fn is_too_slow(&self, rate: usize, patience: Duration, now: Instant) -> bool {
        self.state() == Upload::Awaited && self.allowance(rate, patience, now).is_zero()
    }

    /// How much longer the client may be waited for, all in all: `patience`, and what it has earned
    /// by what it has brought at `rate` bytes a second. It shrinks no faster than time passes.
    pub(super) fn allowance(&self, rate: usize, patience: Duration, now: Instant) -> Duration {
        let Some(earned_ms) = (self.bytes.load(Ordering::Relaxed) * 1000).checked_div(rate as u64)
        else {
            return Duration::MAX;
        };
        let mut spent_ms = self.awaited_ms.load(Ordering::Relaxed);
        if self.state() == Upload::Awaited {
            let since_ms = self.since_ms.load(Ordering::Relaxed);
            spent_ms += millis(now - self.start).saturating_sub(since_ms);
        }
        (patience + Duration::from_millis(earned_ms))
            .saturating_sub(Duration::from_millis(spent_ms))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: usize = 100;
    const PATIENCE: Duration = Duration::from_secs(30);

    #[track_caller]
    fn check_left(activity: &Activity, now: Instant, seconds: u64) {
        assert_eq!(activity.allowance(RATE, PATIENCE, now).as_secs(), seconds);
    }

    #[test]
    fn a_client_that_is_waited_for_uses_up_its_allowance_and_earns_more_by_what_it_brings() {
        let activity = Activity::from_then(Duration::ZERO);
        let mut now = activity.start;
        check_left(&activity, now, 30);
        for _ in 0..3 {
            activity.turn(Upload::Awaited, now);
            now += Duration::from_secs(10);
            // Polled again in between, which changes nothing.
            activity.turn(Upload::Awaited, now);
            activity.came(1, now);
        }
        assert_eq!(activity.allowance(RATE, PATIENCE, now), Duration::from_millis(30));
        activity.turn(Upload::Awaited, now);
        assert!(!activity.is_too_slow(RATE, PATIENCE, now));
        now += Duration::from_secs(1);
        assert!(activity.is_too_slow(RATE, PATIENCE, now));
        activity.came(1_000, now);
        check_left(&activity, now, 9);
    }

    #[test]
    fn an_upstream_that_takes_nothing_costs_the_client_nothing() {
        let activity = Activity::from_then(Duration::ZERO);
        let mut now = activity.start;
        activity.came(1, now);
        now += Duration::from_hours(1);
        check_left(&activity, now, 30);
        activity.turn(Upload::Awaited, now);
        now += Duration::from_secs(5);
        check_left(&activity, now, 25);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let activity = Activity::from_then(Duration::ZERO);
        activity.turn(Upload::Awaited, activity.start);
        let later = activity.start + Duration::from_hours(24);
        assert!(!activity.is_too_slow(0, PATIENCE, later));
    }
}
