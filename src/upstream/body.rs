//! Bodies on their way to the upstream and back.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Place,
    pool::{Connection, Pool},
};

/// What is sent to the upstream.
#[derive(Debug)]
pub enum RequestBody {
    /// Nothing.
    Empty,
    /// What the client sends, as it comes.
    Client(Incoming, Arc<Activity>),
    /// What has been read of a body, then the rest as it comes.
    Resumed(VecDeque<Frame<Bytes>>, Box<RequestBody>),
}

/// How an upload stands, and when it last moved.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    last_ms: AtomicU64,
    state: AtomicU8,
}

/// How an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// What the client has sent waits for the upstream; or all of it was sent.
    Sent,
    /// The client is to send more.
    Awaited,
    /// The client broke it off.
    Broken,
}

impl Activity {
    fn new() -> Self {
        let state = AtomicU8::new(Upload::Sent as u8);
        Self { start: Instant::now(), last_ms: AtomicU64::new(0), state }
    }

    fn touch(&self, state: Upload) {
        self.state.store(state as u8, Ordering::Relaxed);
        if state != Upload::Awaited {
            let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.last_ms.store(elapsed, Ordering::Relaxed);
        }
    }

    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    pub(super) fn state(&self) -> Upload {
        let state = self.state.load(Ordering::Relaxed);
        let known = [Upload::Sent, Upload::Awaited, Upload::Broken];
        known.into_iter().find(|known| *known as u8 == state).unwrap_or(Upload::Sent)
    }
}

impl RequestBody {
    /// Passes a client's body on.
    pub fn of(body: Incoming) -> Self {
        if body.is_end_stream() {
            return Self::Empty;
        }
        Self::Client(body, Arc::new(Activity::new()))
    }

    /// The body from its beginning, of which these frames have been read.
    #[must_use]
    pub fn after(self, read: VecDeque<Frame<Bytes>>) -> Self {
        if read.is_empty() { self } else { Self::Resumed(read, Box::new(self)) }
    }

    pub(super) fn activity(&self) -> Option<Arc<Activity>> {
        match self {
            Self::Empty => None,
            Self::Client(_, activity) => Some(Arc::clone(activity)),
            Self::Resumed(_, rest) => rest.activity(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(body, activity) => {
                let frame = Pin::new(body).poll_frame(cx);
                activity.touch(match &frame {
                    Poll::Pending => Upload::Awaited,
                    Poll::Ready(Some(Err(_))) => Upload::Broken,
                    Poll::Ready(_) => Upload::Sent,
                });
                frame
            }
            Self::Resumed(read, rest) => match read.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => Pin::new(&mut **rest).poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body, _) => body.is_end_stream(),
            Self::Resumed(read, rest) => read.is_empty() && rest.is_end_stream(),
        }
    }

    /// One of known length keeps it, and one that came in chunks goes on in chunks.
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body, _) => body.size_hint(),
            Self::Resumed(read, rest) => {
                let sizes = read.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64);
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

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke.
    #[error("the upstream's response was cut off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("nothing came from the upstream for {0:?}")]
    Idle(Duration),
    /// The reader of the upstream died.
    #[error("the read of the upstream was given up")]
    Abandoned,
}

/// What the upstream sends. Returns its connection to the pool when it has ended.
pub struct ResponseBody {
    incoming: Incoming,
    connection: Option<(http1::SendRequest<RequestBody>, Arc<Pool>)>,
    /// Given back with the connection.
    place: Option<Place>,
    limit: Duration,
    /// Made when the body first has to be waited for; most never are.
    idle: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl ResponseBody {
    /// What comes over a connection, which goes back to the pool; silence for `limit` ends it.
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        pool: &Arc<Pool>,
        limit: Duration,
    ) -> Self {
        let mut body = Self {
            incoming,
            connection: Some((connection.sender, Arc::clone(pool))),
            place: None,
            limit,
            idle: None,
        };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    /// Also a body that is empty from the start keeps its place until it is dropped: that of an
    /// upgrade is empty.
    pub(super) fn holding(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// For what goes on over the connection when the response has ended: an upgrade.
    pub fn take_place(&mut self) -> Option<Place> {
        self.place.take()
    }

    fn give_back(&mut self) {
        if let Some((sender, pool)) = self.connection.take() {
            pool.put(sender);
        }
        self.place = None;
    }

    fn break_off(&mut self) {
        self.connection = None;
        self.place = None;
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.incoming).poll_frame(cx) else {
            let limit = this.limit;
            let idle =
                this.idle.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
            ready!(idle.as_mut().poll(cx));
            this.break_off();
            return Poll::Ready(Some(Err(BodyError::Idle(limit))));
        };
        this.idle = None;
        match &frame {
            Some(Ok(_)) if !this.incoming.is_end_stream() => {}
            Some(Ok(_)) | None => this.give_back(),
            Some(Err(_)) => this.break_off(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
