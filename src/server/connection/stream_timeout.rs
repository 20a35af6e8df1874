//! The time limit of an HTTP/2 stream whose window the client leaves closed. The connection itself
//! may be busy with other streams, so the write timeout of its bytes does not notice.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use crate::limits::{Limit, LimitHits};

/// Why the body of an HTTP/2 stream ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError<E> {
    /// The client's window stayed closed.
    #[error("the client read nothing of the stream for {0:?}")]
    Unread(Duration),
    /// The body's own error.
    #[error(transparent)]
    Body(E),
}

/// The body of an HTTP/2 stream. hyper polls it only while the client's window is open, so the body
/// itself cannot notice that the client does not read. A separate task then drops what the body
/// holds.
pub(super) struct WriteTimeoutBody<B> {
    shared: Arc<Mutex<WatchedBody<B>>>,
    limit: Duration,
    /// Started by the first frame that is not the last one; most bodies have one frame.
    watchdog: Option<AbortOnDropHandle<()>>,
    stream: StreamGuard,
}

/// Counts the open streams of one connection.
pub(super) struct StreamCounter {
    limit: usize,
    open: Arc<AtomicUsize>,
    hits: Arc<LimitHits>,
}

/// One open stream, counted until its response has ended.
pub(super) struct StreamGuard {
    open: Arc<AtomicUsize>,
    hits: Arc<LimitHits>,
}

impl StreamCounter {
    pub(super) fn new(limit: usize, hits: &Arc<LimitHits>) -> Self {
        Self { limit, open: Arc::default(), hits: Arc::clone(hits) }
    }

    /// Counts one more stream. h2 refuses streams past the limit without reporting it, so the
    /// metric counts how often a client reaches the limit.
    pub(super) fn open(&self) -> StreamGuard {
        if self.open.fetch_add(1, Ordering::Relaxed) + 1 == self.limit {
            self.hits.count(Limit::Streams);
        }
        StreamGuard { open: Arc::clone(&self.open), hits: Arc::clone(&self.hits) }
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct WatchedBody<B> {
    /// `None` after the client has not read it for too long.
    body: Option<B>,
    /// When the client was given the last frame. `None` while the server waits for the body.
    unread_since: Option<Instant>,
}

impl<B: Body + Send + Unpin + 'static> WriteTimeoutBody<B> {
    pub(super) fn new(limit: Duration, body: B, stream: StreamGuard) -> Self {
        let shared = WatchedBody { body: Some(body), unread_since: None };
        Self { shared: Arc::new(Mutex::new(shared)), limit, watchdog: None, stream }
    }
}

impl<B: Body + Send + Unpin + 'static> Body for WriteTimeoutBody<B> {
    type Data = B::Data;
    type Error = StreamError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        let Some(body) = &mut shared.body else {
            return Poll::Ready(Some(Err(StreamError::Unread(this.limit))));
        };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        let more = matches!(frame, Poll::Ready(Some(Ok(_)))) && !body.is_end_stream();
        shared.unread_since = more.then(Instant::now);
        drop(shared);
        if more && this.watchdog.is_none() {
            let hits = Arc::clone(&this.stream.hits);
            let watch = drop_unread(Arc::clone(&this.shared), this.limit, hits);
            this.watchdog = Some(AbortOnDropHandle::new(tokio::spawn(watch)));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(StreamError::Body)))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.shared).body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.shared).body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// Drops the body when the client has not read for `limit`. Aborted when its [`WriteTimeoutBody`] is dropped.
async fn drop_unread<B>(shared: Arc<Mutex<WatchedBody<B>>>, limit: Duration, hits: Arc<LimitHits>) {
    let mut deadline = Instant::now() + limit;
    loop {
        sleep_until(deadline).await;
        let mut shared = lock(&shared);
        let now = Instant::now();
        deadline = shared.unread_since.unwrap_or(now) + limit;
        if deadline <= now {
            let unread = shared.body.take();
            drop(shared);
            drop(unread);
            hits.count(Limit::WriteTimeout);
            return;
        }
    }
}

fn lock<B>(shared: &Mutex<WatchedBody<B>>) -> MutexGuard<'_, WatchedBody<B>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
