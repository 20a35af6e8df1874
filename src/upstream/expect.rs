//! `Expect: 100-continue`: an upload that is held back until the upstream asks for it, and never
//! asked for if the upstream answers first.

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

use super::activity::Activity;

/// For an upstream that does not know the expectation: "a client that will wait for a 100 (Continue)
/// response before sending the request content [..] SHOULD NOT wait for an indefinite period before
/// sending the content" RFC 9110 10.1.1. It is what curl waits.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// What becomes of one such expectation.
#[derive(Debug)]
pub(super) struct Expectation {
    state: AtomicU8,
    upload: AtomicWaker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// The upload may begin.
    Met,
    /// The upstream has answered; its answer is still being read.
    Answered,
    /// That is done: nothing keeps the connection.
    Over,
}

impl Expectation {
    /// Lets the upload begin.
    pub(super) fn meet(&self) {
        self.turn(State::Waiting, State::Met);
    }

    /// The upstream has answered. `Some` if it has not asked for the upload, which then never
    /// begins.
    pub(super) fn settle(self: Arc<Self>) -> Option<Unasked> {
        self.turn(State::Waiting, State::Answered).then(|| Unasked(self))
    }

    fn turn(&self, from: State, to: State) -> bool {
        let turned = self
            .state
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if turned {
            self.upload.wake();
        }
        turned
    }

    fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }
}

/// An upload that nobody asked for. Dropped when the answer to it has been read, it breaks off the
/// request, which the upstream waits for in vain.
#[derive(Debug)]
pub(super) struct Unasked(Arc<Expectation>);

impl Drop for Unasked {
    fn drop(&mut self) {
        self.0.turn(State::Answered, State::Over);
    }
}

/// An upload that is held back. hyper asks the client for it when it is first polled.
#[derive(Debug)]
pub struct Held {
    pub(super) incoming: Incoming,
    pub(super) activity: Arc<Activity>,
    pub(super) expectation: Arc<Expectation>,
    patience: Pin<Box<Sleep>>,
}

impl Held {
    pub(super) fn new(incoming: Incoming) -> Self {
        let expectation =
            Expectation { state: AtomicU8::new(State::Waiting as u8), upload: AtomicWaker::new() };
        Self {
            incoming,
            activity: Arc::new(Activity::from_then(PATIENCE)),
            expectation: Arc::new(expectation),
            patience: Box::pin(sleep(PATIENCE)),
        }
    }

    /// Ready when it is known whether the upload may begin.
    pub(super) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Self { expectation, patience, .. } = self;
        expectation.upload.register(cx.waker());
        if expectation.is(State::Waiting) && patience.as_mut().poll(cx).is_ready() {
            expectation.meet();
        }
        if expectation.is(State::Met) {
            return Poll::Ready(true);
        }
        if expectation.is(State::Over) { Poll::Ready(false) } else { Poll::Pending }
    }
}
