//! The body of a response.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    error::{BodyError, PolledFrame},
    permits::ConnectionPermit,
    pool::{ConnectionHome, PooledConnection},
    upload::UnrequestedUpload,
};

/// The body of a response. Gives its connection to its home at its end.
pub struct ResponseBody {
    incoming: Incoming,
    /// Boxed, because bodies are moved often and the connection is not.
    connection: Option<Box<PooledConnection>>,
    /// Whether the client connection ends with this response, because it has lost the connection
    /// that its login belongs to.
    pub(crate) ends_client: bool,
    /// Released together with the connection. An upgrade takes it, because it uses the connection
    /// after the response has ended.
    pub(crate) permit: Option<Arc<ConnectionPermit>>,
    /// The upload that the upstream has not asked for, until the connection is dropped for it.
    unrequested: Option<UnrequestedUpload>,
    /// Whether the upstream answered without asking for the upload that the client announced.
    pub(crate) upload_unrequested: bool,
    limit: Duration,
    /// Created when the body first has to wait; most bodies never do.
    idle: Option<Pin<Box<Sleep>>>,
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
    pub(super) fn with_permit(mut self, permit: Arc<ConnectionPermit>) -> Self {
        self.permit = Some(permit);
        self
    }

    fn release(&mut self) {
        if self.unrequested.is_none()
            && let Some(connection) = self.connection.take()
        {
            connection.release();
        }
        self.drop_connection();
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

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<BodyError> {
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
