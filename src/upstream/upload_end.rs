//! The end of an upload: a write is complete only when its upload has ended, which may be after its
//! response.
//!
//! The exchange with the upstream ends when the client breaks its upload off. It ends a moment
//! later, so that an upstream that judges a client by the head alone can still refuse the write. Without its answer the outcome would be unknown, and a client without any
//! permission could keep jobs uncached by breaking off uploads.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

/// Time that the upstream has to answer after the client broke off its upload.
const BROKEN_OFF_GRACE: Duration = Duration::from_secs(1);

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// The whole body was passed to the connection.
    Complete,
    /// The client broke it off, or the connection to the upstream closed before its end.
    Truncated,
}

/// Resolves when an upload has ended.
#[derive(Debug)]
pub struct UploadEnd(oneshot::Receiver<UploadOutcome>);

/// Held by the body of a request. The connection drops the body as soon as it has passed it on.
#[derive(Debug)]
pub struct UploadGuard {
    outcome: UploadOutcome,
    end: Option<oneshot::Sender<UploadOutcome>>,
    broken_off: Option<BrokenOff>,
}

/// An upload that the client broke off, and the time that the upstream still has to answer.
#[derive(Debug)]
struct BrokenOff {
    error: hyper::Error,
    grace: Pin<Box<Sleep>>,
}

impl UploadGuard {
    pub(super) fn new() -> (Self, UploadEnd) {
        let (sender, end) = oneshot::channel();
        let outcome = UploadOutcome::Truncated;
        (Self { outcome, end: Some(sender), broken_off: None }, UploadEnd(end))
    }

    /// Notes that the last frame was read.
    pub(super) fn complete(&mut self) {
        self.outcome = UploadOutcome::Complete;
    }

    /// Notes that the client broke off the upload.
    pub(super) fn break_off(&mut self, error: hyper::Error) {
        self.broken_off = Some(BrokenOff { error, grace: Box::pin(sleep(BROKEN_OFF_GRACE)) });
    }

    pub(super) fn is_broken_off(&self) -> bool {
        self.broken_off.is_some()
    }

    /// Waits for the end of the grace, which ends the exchange with the upstream.
    pub(super) fn poll_broken_off(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Error> {
        if let Some(broken_off) = &mut self.broken_off {
            ready!(broken_off.grace.as_mut().poll(cx));
        }
        match self.broken_off.take() {
            Some(BrokenOff { error, .. }) => Poll::Ready(error),
            None => Poll::Pending,
        }
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            // If nobody waits for the end, the write does not depend on it.
            let _ = end.send(self.outcome);
        }
    }
}

impl UploadEnd {
    /// Returns how the upload ended, if it has ended by now.
    pub fn try_outcome(&mut self) -> Option<UploadOutcome> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(UploadOutcome::Truncated),
        }
    }

    /// Waits until the upload has ended.
    pub async fn outcome(self) -> UploadOutcome {
        self.0.await.unwrap_or(UploadOutcome::Truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upload_ends_when_its_body_is_dropped() {
        let (mut guard, mut end) = UploadGuard::new();
        assert_eq!(end.try_outcome(), None);
        guard.complete();
        assert_eq!(end.try_outcome(), None);
        drop(guard);
        assert_eq!(end.outcome().await, UploadOutcome::Complete);

        let (guard, mut end) = UploadGuard::new();
        drop(guard);
        assert_eq!(end.try_outcome(), Some(UploadOutcome::Truncated));
    }
}
