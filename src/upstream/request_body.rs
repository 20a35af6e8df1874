//! Requests to the upstream with their bodies, and the end of an upload: a write is complete only when
//! its upload has ended, which may be after its response.
//!
//! The exchange with the upstream ends when the client breaks its upload off. It ends a moment later,
//! so that an upstream that judges a client by the head alone can still refuse the write. Without its
//! answer the outcome would be unknown, and a client without any permission could keep jobs uncached
//! by breaking off uploads.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{HeaderValue, TRANSFER_ENCODING},
};
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep, sleep},
};

use super::{
    error::UploadError,
    upload::{Expectation, HeldUpload, UploadActivity, UploadState},
};
use crate::limits::BufferedFrames;

/// The body of a request to the upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// No body.
    Empty,
    /// The body from the client, as it arrives.
    Client(Incoming, Arc<UploadActivity>),
    /// The body that the client sends only once it is asked to.
    Held(Box<HeldUpload>),
    /// The frames of a body that were already read, then the rest as it arrives.
    Resumed(BufferedFrames, Box<RequestBody>),
    /// A body that reports its end.
    Tracked(Box<RequestBody>, UploadGuard),
}

impl RequestBody {
    /// Passes a client's body on. `expects` is true if the client waits to be asked for it.
    pub fn from_client(body: Incoming, expects: bool) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        if expects {
            return Self::Held(Box::new(HeldUpload::new(body)));
        }
        Self::Client(body, Arc::new(UploadActivity::with_head_start(Duration::ZERO)))
    }

    /// Puts frames that were already read in front of the rest of the body.
    #[must_use]
    pub fn resumed(self, read: BufferedFrames) -> Self {
        if read.is_empty() { self } else { Self::Resumed(read, Box::new(self)) }
    }

    /// Reports the end of the upload. Returns `None` if there is no upload.
    pub fn tracked(self) -> (Self, Option<UploadEnd>) {
        if self.is_end_stream() {
            return (self, None);
        }
        let (guard, end) = UploadGuard::new();
        (Self::Tracked(Box::new(self), guard), Some(end))
    }

    pub(super) fn activity(&self) -> Option<Arc<UploadActivity>> {
        match self {
            Self::Empty => None,
            Self::Client(_, activity) => Some(Arc::clone(activity)),
            Self::Held(held) => Some(Arc::clone(&held.activity)),
            Self::Resumed(_, rest) | Self::Tracked(rest, _) => rest.activity(),
        }
    }

    pub(super) fn expectation(&self) -> Option<Arc<Expectation>> {
        match self {
            Self::Held(held) => Some(Arc::clone(&held.expectation)),
            Self::Resumed(_, rest) | Self::Tracked(rest, _) => rest.expectation(),
            Self::Empty | Self::Client(..) => None,
        }
    }

    /// Begins an upload that is held back. Returns whether it was. The next poll asks the client
    /// for it.
    pub fn begin(&mut self) -> bool {
        match std::mem::replace(self, Self::Empty) {
            Self::Held(held) => {
                held.activity.enter(UploadState::WaitsForUpstream, Instant::now());
                *self = Self::Client(held.incoming, held.activity);
                true
            }
            Self::Tracked(mut body, guard) => {
                let began = body.begin();
                *self = Self::Tracked(body, guard);
                began
            }
            other => {
                *self = other;
                false
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = self.get_mut();
        if let Self::Held(held) = this {
            if !ready!(held.poll_begin(cx)) {
                return Poll::Ready(Some(Err(UploadError::Unrequested)));
            }
            this.begin();
        }
        match this {
            Self::Empty | Self::Held(_) => Poll::Ready(None),
            Self::Client(body, activity) => {
                let frame = Pin::new(body).poll_frame(cx);
                let now = Instant::now();
                match &frame {
                    Poll::Pending => activity.enter(UploadState::WaitsForClient, now),
                    Poll::Ready(Some(Err(_))) => activity.enter(UploadState::Broken, now),
                    Poll::Ready(None) => activity.enter(UploadState::WaitsForUpstream, now),
                    Poll::Ready(Some(Ok(frame))) => {
                        activity.received(frame.data_ref().map_or(0, Bytes::len), now);
                    }
                }
                frame.map_err(UploadError::Client)
            }
            Self::Resumed(read, rest) => match read.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
            Self::Tracked(body, guard) => {
                if guard.broken_off.is_none() {
                    match ready!(Pin::new(&mut **body).poll_frame(cx)) {
                        Some(Err(UploadError::Client(error))) => {
                            let grace = Box::pin(sleep(BROKEN_OFF_GRACE));
                            guard.broken_off = Some(BrokenOff { error, grace });
                        }
                        frame => {
                            // hyper does not ask for more than the announced length.
                            if frame.is_none()
                                || matches!(frame, Some(Ok(_)) if body.is_end_stream())
                            {
                                guard.outcome = UploadOutcome::Complete;
                            }
                            return Poll::Ready(frame);
                        }
                    }
                }
                guard.poll_broken_off(cx).map(|error| Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body, _) => body.is_end_stream(),
            Self::Held(held) => held.incoming.is_end_stream(),
            Self::Resumed(read, rest) => read.is_empty() && rest.is_end_stream(),
            Self::Tracked(body, _) => body.is_end_stream(),
        }
    }

    /// A body of known length keeps it, and a chunked one stays chunked.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body, _) => body.size_hint(),
            Self::Held(held) => held.incoming.size_hint(),
            Self::Tracked(body, _) => body.size_hint(),
            Self::Resumed(read, rest) => {
                let sizes = read.data().map(|data| data.len() as u64);
                let (size, rest) = (sizes.sum::<u64>(), rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(size + rest.lower());
                if let Some(upper) = rest.upper() {
                    hint.set_upper(size + upper);
                }
                hint
            }
        }
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
    if !safe || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
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
    fn new() -> (Self, UploadEnd) {
        let (sender, end) = oneshot::channel();
        let outcome = UploadOutcome::Truncated;
        (Self { outcome, end: Some(sender), broken_off: None }, UploadEnd(end))
    }

    /// Waits for the end of the grace, which ends the exchange with the upstream.
    fn poll_broken_off(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Error> {
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
        guard.outcome = UploadOutcome::Complete;
        assert_eq!(end.try_outcome(), None);
        drop(guard);
        assert_eq!(end.outcome().await, UploadOutcome::Complete);

        let (guard, mut end) = UploadGuard::new();
        drop(guard);
        assert_eq!(end.try_outcome(), Some(UploadOutcome::Truncated));
    }
}
