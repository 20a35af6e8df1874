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
//! With `Expect: 100-continue` an upload is held back until the upstream asks for it. It never
//! begins if the upstream answers first.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep};

/// The state of an upload. One task writes it, and another one may read it.
#[derive(Debug)]
pub(super) struct UploadActivity(Mutex<UploadProgress>);

#[derive(Debug)]
struct UploadProgress {
    state: UploadState,
    /// When the upload last progressed.
    last: Instant,
    /// When the current wait for the client began.
    wait_start: Instant,
    /// The total time of the earlier waits for the client.
    waited: Duration,
    bytes: u64,
}

/// The side that an upload waits for.
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
        let now = Instant::now();
        Self(Mutex::new(UploadProgress {
            state: UploadState::WaitsForUpstream,
            last: now + head_start,
            wait_start: now,
            waited: Duration::ZERO,
            bytes: 0,
        }))
    }

    /// Records that `bytes` arrived.
    pub(super) fn received(&self, bytes: usize, now: Instant) {
        self.lock().bytes += bytes as u64;
        self.enter(UploadState::WaitsForUpstream, now);
    }

    /// Enters `state`.
    pub(super) fn enter(&self, state: UploadState, now: Instant) {
        let mut this = self.lock();
        match (this.state, state) {
            (UploadState::WaitsForClient, UploadState::WaitsForClient) => {}
            (_, UploadState::WaitsForClient) => this.wait_start = now,
            (UploadState::WaitsForClient, _) => {
                let waited = now - this.wait_start;
                this.waited += waited;
                this.last = now;
            }
            _ => this.last = now,
        }
        this.state = state;
    }

    pub(super) fn last_progress(&self) -> Instant {
        self.lock().last
    }

    pub(super) fn state(&self) -> UploadState {
        self.lock().state
    }

    /// Whether the upload waits for the client and the client has used up its allowance.
    pub(super) fn is_too_slow(&self, rate: usize, patience: Duration, now: Instant) -> bool {
        self.state() == UploadState::WaitsForClient && self.allowance(rate, patience, now).is_zero()
    }

    /// How much longer the upload may wait for the client in total: `patience` plus the time earned
    /// by the bytes received, at `rate` bytes a second, less the time waited. It shrinks no faster
    /// than time passes.
    pub(super) fn allowance(&self, rate: usize, patience: Duration, now: Instant) -> Duration {
        let this = self.lock();
        let Some(earned_ms) = (this.bytes * 1000).checked_div(rate as u64) else {
            return Duration::MAX;
        };
        let is_waiting = this.state == UploadState::WaitsForClient;
        let current = if is_waiting { now - this.wait_start } else { Duration::ZERO };
        (patience + Duration::from_millis(earned_ms)).saturating_sub(this.waited + current)
    }

    fn lock(&self) -> MutexGuard<'_, UploadProgress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long an upload is held back for an upstream that does not know the expectation: "a client
/// that will wait for a 100 (Continue) response before sending the request content [..] SHOULD NOT
/// wait for an indefinite period before sending the content" RFC 9110 10.1.1. curl waits as long.
pub(super) const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of one expectation.
#[derive(Debug, Default)]
pub(super) struct Expectation {
    state: Mutex<ExpectationState>,
    upload: AtomicWaker,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ExpectationState {
    #[default]
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != from {
            return false;
        }
        *state = to;
        drop(state);
        self.upload.wake();
        true
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

/// An upload that is held back.
#[derive(Debug)]
pub(super) struct HeldUpload {
    pub(super) expectation: Arc<Expectation>,
    patience: Pin<Box<Sleep>>,
}

impl HeldUpload {
    pub(super) fn new() -> Self {
        Self { expectation: Arc::default(), patience: Box::pin(sleep(CONTINUE_TIMEOUT)) }
    }

    /// Ready once it is known whether the upload may begin.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Self { expectation, patience } = self;
        expectation.upload.register(cx.waker());
        // Lets an upload begin that has waited long enough, and changes nothing once it is decided.
        if patience.as_mut().poll(cx).is_ready() {
            expectation.allow_upload();
        }
        match *expectation.state.lock().unwrap_or_else(PoisonError::into_inner) {
            ExpectationState::Allowed => Poll::Ready(true),
            ExpectationState::Done => Poll::Ready(false),
            ExpectationState::Waiting | ExpectationState::Answered => Poll::Pending,
        }
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
        let mut now = activity.last_progress();
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
        let mut now = activity.last_progress();
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
        let start = activity.last_progress();
        activity.enter(UploadState::WaitsForClient, start);
        let later = start + Duration::from_hours(24);
        assert!(!activity.is_too_slow(0, PATIENCE, later));
    }
}
