//! Clients that stop reading. On HTTP/1 the connection shows it; on HTTP/2 each stream has a window
//! of its own. Either way the resources that such a client holds are released after
//! `server.write_timeout`.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::observe::metrics::{Limit, Metrics};

/// A stream that fails when the client accepts nothing of a write for too long.
pub(super) struct WriteTimeoutStream<S> {
    stream: S,
    limit: Duration,
    /// Created when a write first has to wait; most never do.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeoutStream<S> {
    pub(super) fn new(limit: Duration, stream: S) -> Self {
        Self { stream, limit, deadline: None }
    }

    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeoutStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeoutStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

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
    metrics: Arc<Metrics>,
}

/// One open stream, counted until its response has ended.
pub(super) struct StreamGuard {
    open: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
}

impl StreamCounter {
    pub(super) fn new(limit: usize, metrics: &Arc<Metrics>) -> Self {
        Self { limit, open: Arc::default(), metrics: Arc::clone(metrics) }
    }

    /// Counts one more stream. h2 refuses streams past the limit without reporting it, so the
    /// metric counts how often a client reaches the limit.
    pub(super) fn open(&self) -> StreamGuard {
        if self.open.fetch_add(1, Ordering::Relaxed) + 1 == self.limit {
            self.metrics.limits.count_hit(Limit::Streams);
        }
        StreamGuard { open: Arc::clone(&self.open), metrics: Arc::clone(&self.metrics) }
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
            let metrics = Arc::clone(&this.stream.metrics);
            let watch = drop_unread(Arc::clone(&this.shared), this.limit, metrics);
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
async fn drop_unread<B>(
    shared: Arc<Mutex<WatchedBody<B>>>,
    limit: Duration,
    metrics: Arc<Metrics>,
) {
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
            metrics.limits.count_hit(Limit::WriteTimeout);
            return;
        }
    }
}

fn lock<B>(shared: &Mutex<WatchedBody<B>>) -> MutexGuard<'_, WatchedBody<B>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
