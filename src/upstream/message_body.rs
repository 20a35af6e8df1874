//! Bodies of requests to the upstream and of its responses.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    ConnectionPermit,
    activity::{UploadActivity, UploadState},
    expect::{Expectation, HeldUpload, UnrequestedUpload},
    pool::{ConnectionHome, PooledConnection},
    upload_end::{UploadEnd, UploadGuard},
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

/// Why an upload ended early.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The client broke it off.
    #[error(transparent)]
    Client(#[from] hyper::Error),
    /// The upload never began.
    #[error("the upstream answered without asking for the upload")]
    Unrequested,
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
                if !guard.is_broken_off() {
                    match ready!(Pin::new(&mut **body).poll_frame(cx)) {
                        Some(Err(UploadError::Client(error))) => guard.break_off(error),
                        frame => {
                            // hyper does not ask for more than the announced length.
                            if frame.is_none()
                                || matches!(frame, Some(Ok(_)) if body.is_end_stream())
                            {
                                guard.complete();
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

/// Why the body of a response ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection broke.
    #[error("the upstream's response was cut off: {0}")]
    Broken(#[from] hyper::Error),
    /// Nothing arrived for too long.
    #[error("the upstream sent nothing for {0:?}")]
    Idle(Duration),
    /// The task that read the upstream died.
    #[error("the read of the upstream was abandoned")]
    Abandoned,
}

/// The body of a response. Gives its connection to its home at its end.
pub struct ResponseBody {
    incoming: Incoming,
    /// Boxed, because bodies are moved often and the connection is not.
    connection: Option<Box<PooledConnection>>,
    ends_client: bool,
    /// Released together with the connection.
    permit: Option<ConnectionPermit>,
    /// The upload that the upstream has not asked for, until the connection is dropped for it.
    unrequested: Option<UnrequestedUpload>,
    upload_unrequested: bool,
    limit: Duration,
    /// Created when the body first has to wait; most bodies never do.
    idle: Option<Pin<Box<Sleep>>>,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl ResponseBody {
    /// Creates a body that gives its connection to its home. It fails if nothing arrives for
    /// `limit`.
    pub(super) fn new(
        incoming: Incoming,
        connection: PooledConnection,
        limit: Duration,
        unrequested: Option<UnrequestedUpload>,
    ) -> Self {
        let mut body = Self {
            incoming,
            ends_client: matches!(connection.home, ConnectionHome::NowhereNorClient),
            connection: Some(Box::new(connection)),
            permit: None,
            upload_unrequested: unrequested.is_some(),
            unrequested,
            limit,
            idle: None,
        };
        if body.incoming.is_end_stream() {
            body.release();
        }
        body
    }

    /// Keeps the permit until the end of the body. A body that is empty from the start keeps it
    /// until it is dropped, because the body of an upgrade is empty.
    pub(super) fn with_permit(mut self, permit: ConnectionPermit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// Takes the permit for an upgrade, which uses the connection after the response has ended.
    pub fn take_permit(&mut self) -> Option<ConnectionPermit> {
        self.permit.take()
    }

    /// Whether the client connection ends with this response, because it has lost the connection
    /// that its login belongs to.
    pub fn ends_client_connection(&self) -> bool {
        self.ends_client
    }

    /// Whether the upstream answered without asking for the upload that the client announced.
    pub fn upload_unrequested(&self) -> bool {
        self.upload_unrequested
    }

    fn release(&mut self) {
        if self.unrequested.is_some() {
            return self.drop_connection();
        }
        if let Some(connection) = self.connection.take() {
            connection.release();
        }
        self.permit = None;
    }

    fn drop_connection(&mut self) {
        self.unrequested = None;
        self.connection = None;
        self.permit = None;
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
            this.drop_connection();
            return Poll::Ready(Some(Err(BodyError::Idle(limit))));
        };
        this.idle = None;
        match &frame {
            Some(Ok(_)) if !this.incoming.is_end_stream() => {}
            Some(Ok(_)) | None => this.release(),
            Some(Err(_)) => this.drop_connection(),
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
