//! `Expect: 100-continue`: an upload is held back until the upstream asks for it. It never begins
//! if the upstream answers first.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::activity::UploadActivity;

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
