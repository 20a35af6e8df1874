//! The end of an upload: a write is complete only when its upload has ended, which may be after its
//! response.

use tokio::sync::oneshot;

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
}

impl UploadGuard {
    pub(super) fn new() -> (Self, UploadEnd) {
        let (sender, end) = oneshot::channel();
        (Self { outcome: UploadOutcome::Truncated, end: Some(sender) }, UploadEnd(end))
    }

    /// Notes that the last frame was read.
    pub(super) fn complete(&mut self) {
        self.outcome = UploadOutcome::Complete;
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
