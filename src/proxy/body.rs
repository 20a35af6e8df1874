//! Response bodies: what is stored, what streams through, and what holds its end back.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
    time::timeout,
};
use tracing::debug;

use super::shadow::Tried;
use crate::{
    cache::policy::NoStore,
    limits::{Held, Kept, Room, cost, counted, join},
    upstream::{BodyError, ResponseBody},
};

/// What is still read of a write's answer when its client has hung up.
const DRAIN_BYTES: usize = 1 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client is sent.
#[derive(Debug)]
pub enum Body {
    /// Bytes at hand, sent at once.
    Full(Bytes),
    /// As it comes from the upstream.
    Upstream(ResponseBody),
    /// What has come of a body, then the rest as it comes.
    Resumed(Kept, ResponseBody),
    /// Sent on while it is captured.
    Tee(Tee),
    /// The answer to a write, whose last part waits for the invalidation.
    Ending(Box<Ending>),
    /// As it comes from the upstream, and compared with an entry on its way.
    Tried(Box<Tried>),
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self::Full(Bytes::new())
    }

    /// Whether it is an answer to an upload that the upstream has not asked for.
    pub fn leaves_upload(&self) -> bool {
        match self {
            Self::Upstream(body) | Self::Resumed(_, body) => body.leaves_upload(),
            Self::Full(_) | Self::Tee(_) | Self::Ending(_) | Self::Tried(_) => false,
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

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Upstream(body) => Pin::new(body).poll_frame(cx),
            Self::Resumed(frames, rest) => match frames.pop() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(rest).poll_frame(cx),
            },
            Self::Tee(tee) => tee.poll_frame(cx),
            Self::Ending(ending) => ending.poll_frame(cx),
            Self::Tried(tried) => tried.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Resumed(frames, rest) => frames.is_empty() && rest.is_end_stream(),
            Self::Tee(_) => false,
            Self::Ending(ending) => ending.is_end_stream(),
            Self::Tried(tried) => tried.rest().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Upstream(body) => body.size_hint(),
            Self::Resumed(..) | Self::Tee(_) => SizeHint::default(),
            Self::Ending(ending) => ending.size_hint(),
            Self::Tried(tried) => tried.rest().size_hint(),
        }
    }
}

/// What became of reading a body in full.
#[derive(Debug)]
pub enum Captured {
    /// All of it.
    Whole(Bytes),
    /// It cannot be stored; this is the body from its beginning.
    Unstorable(Body, NoStore),
    /// It was cut off.
    Broken(BodyError),
}

/// Reads a body in full, up to `max` bytes and as far as there is room for it.
///
/// "a cache MAY store a response that is not complete [..] provided that the stored response is
/// recorded as being incomplete" RFC 9111 3.3. None is: who polls a job wants all of it.
pub async fn capture(mut body: ResponseBody, max: usize, room: &Arc<Room>) -> Captured {
    let mut frames = Kept::new(room);
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Captured::Broken(error),
        };
        let data = frame.data_ref().map(Bytes::len);
        size += data.unwrap_or(0);
        let fits = frames.push(frame);
        if let Some(why) = hinders(data, size > max, fits) {
            return Captured::Unstorable(Body::Resumed(frames, body), why);
        }
    }
    Captured::Whole(frames.join())
}

/// Why a body that has come so far cannot be stored.
fn hinders(data: Option<usize>, too_large: bool, fits: bool) -> Option<NoStore> {
    match data {
        None => Some(NoStore::Trailers),
        Some(_) if too_large => Some(NoStore::TooLarge),
        Some(_) => (!fits).then_some(NoStore::Memory),
    }
}

/// What became of reading a body in full beside its client.
#[derive(Debug)]
pub enum Beside {
    /// All of it. The client sees the end only with [`TeeEnd::finish`].
    Whole(Bytes),
    /// It cannot be stored; the client gets the rest by itself.
    Unstorable(NoStore),
    /// It was cut off, for the client as well.
    Broken,
}

/// Reads a body of unknown length in full, while the client gets each part as it comes.
///
/// What is captured and what waits for the client are the same bytes: they take their room once, until
/// both have done with them.
pub async fn capture_beside(mut body: ResponseBody, max: usize, tee: &TeeEnd) -> Beside {
    let mut parts = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                debug!(%error, "the upstream's body broke off");
                tee.send(Piece::Broken(error));
                return Beside::Broken;
            }
        };
        let data = frame.data_ref().cloned();
        let fits = tee.held.grow(cost(&frame));
        tee.send(Piece::Frame(frame));
        size += data.as_ref().map_or(0, Bytes::len);
        if let Some(why) = hinders(data.as_ref().map(Bytes::len), size > max, fits) {
            tee.send(Piece::Rest(body));
            return Beside::Unstorable(why);
        }
        parts.extend(data);
    }
    Beside::Whole(counted(join(parts.iter()), Arc::clone(&tee.held)))
}

/// A body that is sent to a client while it is captured.
///
/// What waits between the two is at most what may be stored and what there is room for: past that the
/// client reads by itself.
#[derive(Debug)]
pub struct Tee {
    pieces: UnboundedReceiver<Piece>,
    rest: Option<ResponseBody>,
    /// Until all that waits here has been taken.
    held: Option<Arc<Held>>,
}

/// The other end of a [`Tee`].
#[derive(Debug)]
pub struct TeeEnd {
    pieces: UnboundedSender<Piece>,
    held: Arc<Held>,
}

#[derive(Debug)]
enum Piece {
    Frame(Frame<Bytes>),
    Rest(ResponseBody),
    Broken(BodyError),
    End,
}

impl Tee {
    /// Both ends.
    pub fn new(room: &Arc<Room>) -> (TeeEnd, Self) {
        let (sender, pieces) = unbounded_channel();
        let held = Arc::new(room.nothing());
        let tee = Self { pieces, rest: None, held: Some(Arc::clone(&held)) };
        (TeeEnd { pieces: sender, held }, tee)
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(rest) = &mut self.rest {
            return Pin::new(rest).poll_frame(cx);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        if !matches!(piece, Some(Piece::Frame(_))) {
            self.held = None;
        }
        match piece {
            Some(Piece::Frame(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Piece::Rest(rest)) => Pin::new(self.rest.insert(rest)).poll_frame(cx),
            Some(Piece::Broken(error)) => Poll::Ready(Some(Err(error))),
            Some(Piece::End) => Poll::Ready(None),
            // Who captured died: a body cut short must not look complete.
            None => Poll::Ready(Some(Err(BodyError::Abandoned))),
        }
    }
}

impl TeeEnd {
    /// The client may see the end.
    pub fn finish(self) {
        self.send(Piece::End);
    }

    fn send(&self, piece: Piece) {
        // A client that has hung up does not keep the rest from being captured.
        let _ = self.pieces.send(piece);
    }
}

/// Runs the invalidation that a write's answer waits for, once it is known how the body ended.
pub type End = Box<dyn FnOnce(Finishing) -> JoinHandle<()> + Send + Sync>;
/// Becomes known when the body has ended.
pub type Finishing = Pin<Box<dyn Future<Output = Finish> + Send>>;

/// How the body of a write's answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The upstream has sent all of it.
    Whole,
    /// It was cut off.
    Cut,
}

/// The body of a write's answer. An upstream may commit while it sends; so the invalidation runs
/// again when it has ended, and the client sees the end after that.
pub struct Ending {
    state: State,
    /// Held back until the invalidation has run: with a Content-Length the client takes the last
    /// byte for the end.
    held: Option<Result<Frame<Bytes>, BodyError>>,
}

enum State {
    Open(Body, End),
    Running(JoinHandle<()>),
    Done,
}

impl Ending {
    /// Calls `end` when `body` has ended, also when nobody reads it to its end.
    pub fn new(body: Body, end: End) -> Self {
        Self { state: State::Open(body, end), held: None }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match &mut self.state {
                State::Open(body, _) => {
                    let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                    let finish = match &frame {
                        Some(Ok(_)) if !body.is_end_stream() => return Poll::Ready(frame),
                        Some(Ok(_)) | None => Finish::Whole,
                        Some(Err(_)) => Finish::Cut,
                    };
                    self.held = frame;
                    if let State::Open(_, end) = std::mem::replace(&mut self.state, State::Done) {
                        self.state = State::Running(end(Box::pin(std::future::ready(finish))));
                    }
                }
                State::Running(task) => {
                    // A panic in there was logged, and leaves nothing to wait for.
                    let _ = ready!(Pin::new(task).poll(cx));
                    self.state = State::Done;
                }
                State::Done => return Poll::Ready(self.held.take()),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done) && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Open(body, _) => body.size_hint(),
            State::Running(_) | State::Done => SizeHint::default(),
        }
    }
}

impl Drop for Ending {
    /// The client has hung up. What is left is read, so that the outcome is known.
    fn drop(&mut self) {
        if let State::Open(body, end) = std::mem::replace(&mut self.state, State::Done) {
            // Nobody waits for it; it is among the proxy's tasks.
            drop(end(Box::pin(drain(body))));
        }
    }
}

async fn drain(mut body: Body) -> Finish {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(frame) = body.frame().await {
            let size = frame.ok()?.data_ref().map_or(0, Bytes::len);
            left = left.checked_sub(size)?;
        }
        Some(())
    };
    match timeout(DRAIN_TIMEOUT, read).await {
        Ok(Some(())) => Finish::Whole,
        _ => Finish::Cut,
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending").field("held", &self.held).finish_non_exhaustive()
    }
}
