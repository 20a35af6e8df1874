//! The state of an upload: which side it waits for, when it last progressed, and whether the client
//! is too slow.
//!
//! A limit of silence alone does not catch a client that holds a connection on purpose: one that
//! sends a byte now and then is never silent for long. So an upload has an allowance of waiting
//! time, which grows with the bytes received, as in Apache's `mod_reqtimeout`
//! (`body=20,MinRate=500`) and in Kestrel (`MinRequestBodyDataRate`: 240 bytes a second after 5 s).
//! Only time spent waiting for the client is charged. An upstream that does not read what has
//! arrived is not the client's fault.
//!
//! With `Expect: 100-continue` an upload is held back until the upstream asks for it. It never begins
//! if the upstream answers first.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

/// The state of an upload. Times are in milliseconds from its start. One task writes it, and
/// another one may read it.
#[derive(Debug)]
pub struct UploadActivity {
    start: Instant,
    /// When the upload last progressed.
    last_ms: AtomicU64,
    state: AtomicU8,
    /// When the current wait for the client began.
    wait_start_ms: AtomicU64,
    /// The total time of the earlier waits for the client.
    waited_ms: AtomicU64,
    bytes: AtomicU64,
}

/// Which side an upload waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadState {
    /// The client has sent bytes that wait for the upstream, or has sent everything.
    WaitsForUpstream,
    /// The client has to send more.
    WaitsForClient,
    /// The client broke it off.
    Broken,
}

impl UploadActivity {
    /// Starts an upload that may take `head_start` before its first progress is due.
    pub(super) fn with_head_start(head_start: Duration) -> Self {
        Self {
            start: Instant::now(),
            last_ms: AtomicU64::new(millis(head_start)),
            state: AtomicU8::new(UploadState::WaitsForUpstream as u8),
            wait_start_ms: AtomicU64::new(0),
            waited_ms: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Records that `bytes` arrived.
    pub(super) fn received(&self, bytes: usize, now: Instant) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.enter(UploadState::WaitsForUpstream, now);
    }

    /// Enters `state`.
    pub(super) fn enter(&self, state: UploadState, now: Instant) {
        let before = self.state();
        if before == UploadState::WaitsForClient && state == UploadState::WaitsForClient {
            return;
        }
        let now_ms = millis(now - self.start);
        if state == UploadState::WaitsForClient {
            self.wait_start_ms.store(now_ms, Ordering::Relaxed);
        } else {
            self.last_ms.store(now_ms, Ordering::Relaxed);
            if before == UploadState::WaitsForClient {
                let waited_ms = now_ms.saturating_sub(self.wait_start_ms.load(Ordering::Relaxed));
                self.waited_ms.fetch_add(waited_ms, Ordering::Relaxed);
            }
        }
        // Stored last: a reader that sees `WaitsForClient` also sees when the wait began.
        self.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn last_progress(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    pub(super) fn state(&self) -> UploadState {
        let state = self.state.load(Ordering::Acquire);
        let known =
            [UploadState::WaitsForUpstream, UploadState::WaitsForClient, UploadState::Broken];
        known
            .into_iter()
            .find(|known| *known as u8 == state)
            .unwrap_or(UploadState::WaitsForUpstream)
    }

    /// Whether the upload waits for the client and the client has used up its allowance.
    pub(super) fn is_too_slow(&self, rate: usize, patience: Duration, now: Instant) -> bool {
        self.state() == UploadState::WaitsForClient && self.allowance(rate, patience, now).is_zero()
    }

    /// How much longer the upload may wait for the client in total: `patience` plus the time earned
    /// by the bytes received, at `rate` bytes a second, less the time waited. It shrinks no faster
    /// than time passes.
    pub(super) fn allowance(&self, rate: usize, patience: Duration, now: Instant) -> Duration {
        let Some(earned_ms) = (self.bytes.load(Ordering::Relaxed) * 1000).checked_div(rate as u64)
        else {
            return Duration::MAX;
        };
        let mut spent_ms = self.waited_ms.load(Ordering::Relaxed);
        if self.state() == UploadState::WaitsForClient {
            let since_ms = self.wait_start_ms.load(Ordering::Relaxed);
            spent_ms += millis(now - self.start).saturating_sub(since_ms);
        }
        (patience + Duration::from_millis(earned_ms))
            .saturating_sub(Duration::from_millis(spent_ms))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long an upload is held back for an upstream that does not know the expectation: "a client
/// that will wait for a 100 (Continue) response before sending the request content [..] SHOULD NOT
/// wait for an indefinite period before sending the content" RFC 9110 10.1.1. curl waits as long.
pub(super) const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of one expectation.
#[derive(Debug)]
pub(super) struct Expectation {
    state: AtomicU8,
    upload: AtomicWaker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpectationState {
    Waiting,
    /// The upload may begin.
    Allowed,
    /// The upstream has answered; its response is still being read.
    Answered,
    /// The response has been read: nothing needs the connection any more.
    Done,
}

impl Expectation {
    /// Lets the upload begin.
    pub(super) fn allow_upload(&self) {
        self.transition(ExpectationState::Waiting, ExpectationState::Allowed);
    }

    /// Records that the upstream has answered. Returns `Some` if it has not asked for the upload,
    /// which then never begins.
    pub(super) fn response_started(self: Arc<Self>) -> Option<UnrequestedUpload> {
        self.transition(ExpectationState::Waiting, ExpectationState::Answered)
            .then(|| UnrequestedUpload(self))
    }

    fn transition(&self, from: ExpectationState, to: ExpectationState) -> bool {
        let changed = self
            .state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if changed {
            self.upload.wake();
        }
        changed
    }

    fn is(&self, state: ExpectationState) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }
}

/// An upload that the upstream has not asked for. Dropping it, once the response has been read,
/// breaks off the request: the upstream still waits for a body that never arrives.
#[derive(Debug)]
pub(super) struct UnrequestedUpload(Arc<Expectation>);

impl Drop for UnrequestedUpload {
    fn drop(&mut self) {
        self.0.transition(ExpectationState::Answered, ExpectationState::Done);
    }
}

/// An upload that is held back. hyper asks the client for it at the first poll of the body.
#[derive(Debug)]
pub struct HeldUpload {
    pub(super) incoming: Incoming,
    pub(super) activity: Arc<UploadActivity>,
    pub(super) expectation: Arc<Expectation>,
    patience: Pin<Box<Sleep>>,
}

impl HeldUpload {
    pub(super) fn new(incoming: Incoming) -> Self {
        let expectation = Expectation {
            state: AtomicU8::new(ExpectationState::Waiting as u8),
            upload: AtomicWaker::new(),
        };
        Self {
            incoming,
            activity: Arc::new(UploadActivity::with_head_start(CONTINUE_TIMEOUT)),
            expectation: Arc::new(expectation),
            patience: Box::pin(sleep(CONTINUE_TIMEOUT)),
        }
    }

    /// Ready once it is known whether the upload may begin.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Self { expectation, patience, .. } = self;
        expectation.upload.register(cx.waker());
        if expectation.is(ExpectationState::Waiting) && patience.as_mut().poll(cx).is_ready() {
            expectation.allow_upload();
        }
        if expectation.is(ExpectationState::Allowed) {
            return Poll::Ready(true);
        }
        if expectation.is(ExpectationState::Done) { Poll::Ready(false) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: usize = 100;
    const PATIENCE: Duration = Duration::from_secs(30);

    #[track_caller]
    fn check_left(activity: &UploadActivity, now: Instant, seconds: u64) {
        assert_eq!(activity.allowance(RATE, PATIENCE, now).as_secs(), seconds);
    }

    #[test]
    fn a_client_that_is_waited_for_uses_up_its_allowance_and_earns_more_by_what_it_brings() {
        let activity = UploadActivity::with_head_start(Duration::ZERO);
        let mut now = activity.start;
        check_left(&activity, now, 30);
        for _ in 0..3 {
            activity.enter(UploadState::WaitsForClient, now);
            now += Duration::from_secs(10);
            // Polled again in between; that changes nothing.
            activity.enter(UploadState::WaitsForClient, now);
            activity.received(1, now);
        }
        assert_eq!(activity.allowance(RATE, PATIENCE, now), Duration::from_millis(30));
        activity.enter(UploadState::WaitsForClient, now);
        assert!(!activity.is_too_slow(RATE, PATIENCE, now));
        now += Duration::from_secs(1);
        assert!(activity.is_too_slow(RATE, PATIENCE, now));
        activity.received(1_000, now);
        check_left(&activity, now, 9);
    }

    #[test]
    fn an_upstream_that_takes_nothing_costs_the_client_nothing() {
        let activity = UploadActivity::with_head_start(Duration::ZERO);
        let mut now = activity.start;
        activity.received(1, now);
        now += Duration::from_hours(1);
        check_left(&activity, now, 30);
        activity.enter(UploadState::WaitsForClient, now);
        now += Duration::from_secs(5);
        check_left(&activity, now, 25);
    }

    #[test]
    fn no_rate_is_no_limit() {
        let activity = UploadActivity::with_head_start(Duration::ZERO);
        activity.enter(UploadState::WaitsForClient, activity.start);
        let later = activity.start + Duration::from_hours(24);
        assert!(!activity.is_too_slow(0, PATIENCE, later));
    }
}
