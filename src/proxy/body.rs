//! Response bodies: captured for the store, streamed to the client, or both.
//!
//! A client is sent a [`Body`]. `capture` and `capture_tee` read an upstream body for the store, the
//! latter while the client already receives it through a `Tee`. `InvalidatingBody` is the body of
//! the response to a write: it holds its end back until the jobs are invalidated once more.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::timeout,
};
use tracing::debug;

use crate::{
    limits::{BufferedFrames, Permit, Quota, frame_cost, join, with_permit},
    semantics::policy::NoStore,
    upstream::{BodyError, BodyOutcome, PolledFrame, ResponseBody},
};

/// Most bytes that are still read from the response to a write after its client has hung up.
const DRAIN_BYTES: usize = 1 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A response body on its way to a client.
pub enum Body {
    /// Bytes in memory, sent as one frame.
    Full(Bytes),
    /// The upstream body, streamed.
    Upstream(ResponseBody),
    /// The frames that were already read, then the rest, streamed.
    Resumed(BufferedFrames, ResponseBody),
    /// Streamed, and captured, compared or held back on the way: a `Tee`, a comparison in shadow
    /// mode, or the response to a write.
    Watched(UnsyncBoxBody<Bytes, BodyError>),
}

impl Body {
    /// Wraps a body that does something on its way.
    pub(super) fn watched<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Self::Watched(body.boxed_unsync())
    }

    /// Returns the upstream body, if this is one as it came.
    pub(super) fn upstream(&self) -> Option<&ResponseBody> {
        match self {
            Self::Upstream(body) | Self::Resumed(_, body) => Some(body),
            Self::Full(_) | Self::Watched(_) => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<BodyError> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Resumed(frames, rest) => match frames.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(rest).poll_frame(cx),
            },
            Self::Watched(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Resumed(frames, rest) => frames.is_empty() && rest.is_end_stream(),
            Self::Watched(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.size_hint(),
            Self::Resumed(..) => SizeHint::default(),
            Self::Watched(body) => body.size_hint(),
        }
    }
}

/// The result of capturing a body.
pub(super) enum Captured {
    /// The whole body.
    Whole(Bytes),
    /// The body cannot be stored. It is returned from its beginning.
    Unstorable(Body, NoStore),
    /// The body was cut off.
    Broken(BodyError),
}

/// Reads a whole body of at most `max` bytes, as far as `quota` allows.
///
/// "a cache MAY store a response that is not complete [..] provided that the stored response is
/// recorded as being incomplete" RFC 9111 3.3. jobcache stores none: a client that polls a job
/// wants all of it.
pub(super) async fn capture(mut body: ResponseBody, max: usize, quota: &Arc<Quota>) -> Captured {
    let mut frames = BufferedFrames::new(quota);
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Captured::Broken(error),
        };
        let data = frame.data_ref().map(Bytes::len);
        size += data.unwrap_or(0);
        let fits = frames.push(frame);
        if let Some(why) = no_store_reason(data, size > max, fits) {
            return Captured::Unstorable(Body::Resumed(frames, body), why);
        }
    }
    Captured::Whole(frames.join())
}

/// Returns why a body that has been read up to here cannot be stored.
fn no_store_reason(data: Option<usize>, too_large: bool, fits: bool) -> Option<NoStore> {
    match data {
        None => Some(NoStore::Trailers),
        Some(_) if too_large => Some(NoStore::TooLarge),
        Some(_) => (!fits).then_some(NoStore::Memory),
    }
}

/// The result of capturing a body while its client receives it.
pub(super) enum TeeCapture {
    /// The whole body. The client sees the end only with [`TeeEnd::finish`].
    Whole(Bytes),
    /// The body cannot be stored. The client reads the rest by itself.
    Unstorable(NoStore),
    /// The body was cut off, for the client too.
    Broken,
}

/// Reads a whole body of unknown length while the client receives each part as it comes.
///
/// The captured bytes and the bytes that wait for the client are the same memory. They count once,
/// until both sides are done with them.
pub(super) async fn capture_tee(mut body: ResponseBody, max: usize, tee: &TeeEnd) -> TeeCapture {
    let mut parts = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                debug!(%error, "the upstream's response body was cut off");
                tee.send(TeePiece::Frame(Err(error)));
                return TeeCapture::Broken;
            }
        };
        let data = frame.data_ref().cloned();
        let fits = tee.held.grow(frame_cost(&frame));
        tee.send(TeePiece::Frame(Ok(frame)));
        size += data.as_ref().map_or(0, Bytes::len);
        if let Some(why) = no_store_reason(data.as_ref().map(Bytes::len), size > max, fits) {
            tee.send(TeePiece::Rest(body));
            return TeeCapture::Unstorable(why);
        }
        parts.extend(data);
    }
    TeeCapture::Whole(with_permit(join(parts.iter()), Arc::clone(&tee.held)))
}

/// The client's end of a body that is captured while it streams.
///
/// The bytes that wait between the two ends are limited by the largest body that may be stored and
/// by the quota. Past either limit the client reads the upstream itself.
pub(super) struct Tee {
    pieces: UnboundedReceiver<TeePiece>,
    rest: Option<ResponseBody>,
    /// The permit for the waiting bytes, until the client has taken them all.
    held: Option<Arc<Permit>>,
}

/// The capturing end of a [`Tee`].
pub(super) struct TeeEnd {
    pieces: UnboundedSender<TeePiece>,
    held: Arc<Permit>,
}

enum TeePiece {
    Frame(Result<Frame<Bytes>, BodyError>),
    Rest(ResponseBody),
    End,
}

impl Tee {
    /// Returns both ends of a tee. The waiting bytes count against `quota`.
    pub(super) fn new(quota: &Arc<Quota>) -> (TeeEnd, Self) {
        let (sender, pieces) = unbounded_channel();
        let held = Arc::new(quota.empty_permit());
        let tee = Self { pieces, rest: None, held: Some(Arc::clone(&held)) };
        (TeeEnd { pieces: sender, held }, tee)
    }
}

impl HttpBody for Tee {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<BodyError> {
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(cx);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        if !matches!(piece, Some(TeePiece::Frame(Ok(_)))) {
            self.held = None;
        }
        match piece {
            Some(TeePiece::Frame(frame)) => Poll::Ready(Some(frame)),
            Some(TeePiece::Rest(rest)) => Pin::new(self.rest.insert(rest)).poll_frame(cx),
            Some(TeePiece::End) => Poll::Ready(None),
            // The capturing task died: a truncated body must not look complete.
            None => Poll::Ready(Some(Err(BodyError::Abandoned))),
        }
    }
}

impl TeeEnd {
    /// Lets the client see the end of the body.
    pub(super) fn finish(self) {
        self.send(TeePiece::End);
    }

    fn send(&self, piece: TeePiece) {
        // If the client has hung up, the capture still goes on.
        let _ = self.pieces.send(piece);
    }
}

/// Resolves once it is known how the body of a write's response ended.
pub(super) type BodyEndFuture = Pin<Box<dyn Future<Output = BodyOutcome> + Send>>;
type OnBodyEnd = Box<dyn FnOnce(BodyEndFuture) -> JoinHandle<()> + Send>;

/// The body of a write's response. An upstream may commit while it sends the body, so the jobs are
/// invalidated again when the body has ended, and the client sees the end after that.
pub(super) struct InvalidatingBody {
    state: InvalidatingState,
    /// The last frame, held back until the invalidation has run. With a `Content-Length` the client
    /// takes the last byte for the end.
    held: Option<Result<Frame<Bytes>, BodyError>>,
}

enum InvalidatingState {
    Open(Body, OnBodyEnd),
    Running(JoinHandle<()>),
    Done,
}

impl InvalidatingBody {
    /// Wraps `body`. `on_end` starts the invalidation, even if the client does not read the body to
    /// its end.
    pub(super) fn new(
        body: Body,
        on_end: impl FnOnce(BodyEndFuture) -> JoinHandle<()> + Send + 'static,
    ) -> Self {
        Self { state: InvalidatingState::Open(body, Box::new(on_end)), held: None }
    }
}

impl HttpBody for InvalidatingBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<BodyError> {
        loop {
            match &mut self.state {
                InvalidatingState::Open(body, _) => {
                    let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                    let end = match &frame {
                        Some(Ok(_)) if !body.is_end_stream() => return Poll::Ready(frame),
                        Some(Ok(_)) | None => BodyOutcome::Complete,
                        Some(Err(_)) => BodyOutcome::Truncated,
                    };
                    self.held = frame;
                    let state = std::mem::replace(&mut self.state, InvalidatingState::Done);
                    if let InvalidatingState::Open(_, on_end) = state {
                        let end = Box::pin(std::future::ready(end));
                        self.state = InvalidatingState::Running(on_end(end));
                    }
                }
                InvalidatingState::Running(task) => {
                    // A panic in the task was logged and leaves nothing to wait for.
                    let _ = ready!(Pin::new(task).poll(cx));
                    self.state = InvalidatingState::Done;
                }
                InvalidatingState::Done => return Poll::Ready(self.held.take()),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, InvalidatingState::Done) && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            InvalidatingState::Open(body, _) => body.size_hint(),
            InvalidatingState::Running(_) | InvalidatingState::Done => SizeHint::default(),
        }
    }
}

impl Drop for InvalidatingBody {
    /// The client has hung up. The rest is read so that the outcome of the write is known.
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, InvalidatingState::Done);
        if let InvalidatingState::Open(body, on_end) = state {
            // Not awaited here: the task is tracked by the proxy.
            drop(on_end(Box::pin(drain(body))));
        }
    }
}

async fn drain(mut body: Body) -> BodyOutcome {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(frame) = body.frame().await {
            let size = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(size)?;
        }
        Some(())
    };
    match timeout(DRAIN_TIMEOUT, read).await {
        Ok(Some(())) => BodyOutcome::Complete,
        _ => BodyOutcome::Truncated,
    }
}
