//! Requests to the upstream with their bodies, and the end of an upload: a write is complete only
//! when its upload has ended, which may be after its response.
//!
//! The exchange with the upstream ends when the client breaks its upload off. It ends a moment
//! later, so that an upstream that judges a client by the head alone can still refuse the write.
//! Without its answer the outcome would be unknown, and a client without any permission could keep
//! jobs uncached by breaking off uploads.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body, Incoming, SizeHint},
    header::{HeaderValue, TRANSFER_ENCODING},
};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

use super::{
    error::{PolledFrame, UploadError},
    upload::{CONTINUE_TIMEOUT, Expectation, HeldUpload, UploadActivity, UploadState},
};
use crate::limits::BufferedFrames;

/// The body of a request to the upstream: an upload of a client, or none.
#[derive(Debug)]
pub struct RequestBody(Option<Box<ClientUpload>>);

#[derive(Debug)]
struct ClientUpload {
    /// Frames that were already read; they come first.
    read: Option<BufferedFrames>,
    /// The rest, as it arrives.
    incoming: Incoming,
    activity: Arc<UploadActivity>,
    /// Set while the client waits to be asked for the body. hyper asks it at the first poll.
    held: Option<HeldUpload>,
    /// Reports the end of the upload.
    guard: Option<UploadGuard>,
}

impl RequestBody {
    /// No body.
    pub const EMPTY: Self = Self(None);

    /// Passes a client's body on. `expects` is true if the client waits to be asked for it.
    pub fn from_client(incoming: Incoming, expects: bool) -> Self {
        if incoming.is_end_stream() {
            return Self::EMPTY;
        }
        let head_start = if expects { CONTINUE_TIMEOUT } else { Duration::ZERO };
        Self(Some(Box::new(ClientUpload {
            read: None,
            incoming,
            activity: Arc::new(UploadActivity::with_head_start(head_start)),
            held: expects.then(HeldUpload::new),
            guard: None,
        })))
    }

    /// Whether the client waits to be asked for the body.
    pub fn is_held(&self) -> bool {
        self.expectation().is_some()
    }

    /// Puts frames that were already read in front of the rest of the body.
    #[must_use]
    pub fn resumed(mut self, read: BufferedFrames) -> Self {
        if let Some(upload) = &mut self.0 {
            upload.read = Some(read);
        }
        self
    }

    /// Reports the end of the upload. Returns `None` if there is no upload.
    pub fn tracked(mut self) -> (Self, Option<UploadEnd>) {
        let end = self.0.as_mut().filter(|upload| !upload.is_end_stream()).map(|upload| {
            let (guard, end) = UploadGuard::new();
            upload.guard = Some(guard);
            end
        });
        (self, end)
    }

    pub(super) fn activity(&self) -> Option<Arc<UploadActivity>> {
        self.0.as_ref().map(|upload| Arc::clone(&upload.activity))
    }

    pub(super) fn expectation(&self) -> Option<Arc<Expectation>> {
        let held = self.0.as_ref().and_then(|upload| upload.held.as_ref());
        held.map(|held| Arc::clone(&held.expectation))
    }

    /// Begins an upload that is held back. Returns whether it was. The next poll asks the client
    /// for it.
    pub fn begin(&mut self) -> bool {
        self.0.as_mut().is_some_and(|upload| upload.begin())
    }
}

impl ClientUpload {
    fn begin(&mut self) -> bool {
        let was_held = self.held.take().is_some();
        if was_held {
            self.activity.enter(UploadState::WaitsForUpstream, Instant::now());
        }
        was_held
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PolledFrame<UploadError> {
        // The end of the grace ends the exchange with the upstream.
        if let Some(guard) = &mut self.guard
            && let Some(BrokenOff { grace, .. }) = &mut guard.broken_off
        {
            ready!(grace.as_mut().poll(cx));
            let error = guard.broken_off.take().map(|broken_off| broken_off.error);
            return Poll::Ready(error.map(|error| Err(error.into())));
        }
        let frame = ready!(self.poll_next(cx));
        // hyper does not ask for more than the announced length.
        let is_last = match &frame {
            Some(Ok(_)) => self.is_end_stream(),
            end => end.is_none(),
        };
        match (frame, &mut self.guard) {
            (Some(Err(UploadError::Client(error))), Some(guard)) => {
                let grace = Box::pin(sleep(BROKEN_OFF_GRACE));
                guard.broken_off = Some(BrokenOff { error, grace });
                self.poll_frame(cx)
            }
            (frame, Some(guard)) if is_last => {
                guard.outcome = BodyOutcome::Complete;
                Poll::Ready(frame)
            }
            (frame, _) => Poll::Ready(frame),
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> PolledFrame<UploadError> {
        if let Some(frame) = self.read.as_mut().and_then(BufferedFrames::pop) {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(held) = &mut self.held {
            if !ready!(held.poll_begin(cx)) {
                return Poll::Ready(Some(Err(UploadError::Unrequested)));
            }
            self.begin();
        }
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        let now = Instant::now();
        match &frame {
            Poll::Pending => self.activity.enter(UploadState::WaitsForClient, now),
            Poll::Ready(Some(Err(_))) => self.activity.enter(UploadState::Broken, now),
            Poll::Ready(None) => self.activity.enter(UploadState::WaitsForUpstream, now),
            Poll::Ready(Some(Ok(frame))) => {
                self.activity.received(frame.data_ref().map_or(0, Bytes::len), now);
            }
        }
        frame.map_err(UploadError::Client)
    }

    fn is_end_stream(&self) -> bool {
        self.read.as_ref().is_none_or(BufferedFrames::is_empty) && self.incoming.is_end_stream()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<UploadError> {
        self.0.as_mut().map_or(Poll::Ready(None), |upload| upload.poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|upload| upload.is_end_stream())
    }

    /// A body of known length keeps it, and a chunked one stays chunked.
    fn size_hint(&self) -> SizeHint {
        let Some(upload) = &self.0 else { return SizeHint::with_exact(0) };
        let read = upload.read.iter().flat_map(BufferedFrames::data);
        let read: u64 = read.map(|data| data.len() as u64).sum();
        let rest = upload.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(read + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(read + upper);
        }
        hint
    }
}

/// hyper omits the body of a GET or HEAD of unknown length unless a header announces it.
pub(super) fn announce_body(request: &mut Request<RequestBody>) {
    if request.body().size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

/// Returns a copy of a request with a safe method and no body. RFC 9110 9.2.2: "A proxy MUST NOT
/// automatically retry non-idempotent requests"; only safe ones are repeated here.
pub(super) fn retry_copy(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !safe || request.body().0.is_some() {
        return None;
    }
    let mut copy = Request::new(RequestBody::EMPTY);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

/// Passes the informational (1xx) responses that precede the response to `sink`. A 100 for a client
/// that waits for it starts the upload instead; hyper then sends the client a 100.
pub fn relay_informational(
    request: &mut Request<RequestBody>,
    sink: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    let expectation = request.body().expectation();
    hyper::ext::on_informational(request, move |response| match &expectation {
        Some(expectation) if response.status() == StatusCode::CONTINUE => {
            expectation.allow_upload();
        }
        _ => sink(response.status(), response.headers()),
    });
}

/// Time that the upstream has to answer after the client broke off its upload.
const BROKEN_OFF_GRACE: Duration = Duration::from_secs(1);

/// How a body of a write ended: the upload, or the body of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyOutcome {
    /// The whole body was passed on.
    Complete,
    /// It was broken off, or the connection to the upstream closed before its end.
    Truncated,
}

/// Resolves when an upload has ended.
#[derive(Debug)]
pub struct UploadEnd(oneshot::Receiver<BodyOutcome>);

/// Held by the body of a request. The connection drops the body as soon as it has passed it on.
#[derive(Debug)]
struct UploadGuard {
    outcome: BodyOutcome,
    end: Option<oneshot::Sender<BodyOutcome>>,
    broken_off: Option<BrokenOff>,
}

/// An upload that the client broke off, and the time that the upstream still has to answer.
#[derive(Debug)]
struct BrokenOff {
    error: hyper::Error,
    grace: Pin<Box<Sleep>>,
}

impl UploadGuard {
    fn new() -> (Self, UploadEnd) {
        let (sender, end) = oneshot::channel();
        let outcome = BodyOutcome::Truncated;
        (Self { outcome, end: Some(sender), broken_off: None }, UploadEnd(end))
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
    pub fn try_outcome(&mut self) -> Option<BodyOutcome> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(BodyOutcome::Truncated),
        }
    }

    /// Waits until the upload has ended.
    pub async fn outcome(self) -> BodyOutcome {
        self.0.await.unwrap_or(BodyOutcome::Truncated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_upload_ends_when_its_body_is_dropped() {
        let (mut guard, mut end) = UploadGuard::new();
        assert_eq!(end.try_outcome(), None);
        guard.outcome = BodyOutcome::Complete;
        assert_eq!(end.try_outcome(), None);
        drop(guard);
        assert_eq!(end.outcome().await, BodyOutcome::Complete);

        let (guard, mut end) = UploadGuard::new();
        drop(guard);
        assert_eq!(end.try_outcome(), Some(BodyOutcome::Truncated));
    }
}
