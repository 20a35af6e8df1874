//! One HTTP/2 connection: hyper owns the stream, and each of its own streams has a time limit for a
//! window that the client leaves closed. The connection itself may be busy with other streams, so
//! the write timeout of its bytes does not notice.

use std::{
    convert::Infallible,
    error::Error,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    body::{Body, Frame, SizeHint},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    config,
    limits::{Limit, LimitHits},
    service::{Drain, FirstRequest, Informational, Service},
    transport::Peer,
};

/// Time limit for the answer to the ping that a client gets after it has sent nothing for
/// `server.header_timeout`.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of HTTP/2 connections.
pub(super) struct Http2Config {
    builder: http2::Builder<TokioExecutor>,
    write_timeout: Duration,
    max_streams: usize,
}

impl Http2Config {
    pub(super) fn new(config: &config::ServerConfig) -> Self {
        let limit = config.header_timeout;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(limit)
            .keep_alive_timeout(PING_TIMEOUT.min(limit))
            .max_concurrent_streams(u32::try_from(config.max_streams).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(config.max_pending_resets)
            .max_local_error_reset_streams(config.max_faulty_streams)
            .max_send_buf_size(config.buffer())
            .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX));
        let config::ServerConfig { write_timeout, max_streams, .. } = *config;
        Self { builder, write_timeout, max_streams }
    }

    /// Serves a connection to its end.
    pub(super) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        service: impl Service,
        drain: &mut Drain,
        limits: &Arc<LimitHits>,
    ) -> hyper::Result<()> {
        let begun = Arc::new(FirstRequest::default());
        let first_request = Arc::clone(&begun);
        let Self { max_streams, write_timeout, .. } = *self;
        let streams =
            Arc::new(OpenStreams { max_streams, write_timeout, hits: Arc::clone(limits) });
        let service = service_fn(move |request| {
            first_request.mark_begun();
            let stream = streams.open();
            let answer = service.clone().serve(request, peer, Informational::default());
            async move {
                let response = answer.await.response;
                Ok::<_, Infallible>(response.map(|body| WriteTimeoutBody::new(body, stream)))
            }
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = begun.ready_to_close(drain) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    }
}

/// The body of an HTTP/2 stream. hyper polls it only while the client's window is open, so the body
/// itself cannot notice that the client does not read. A separate task then drops what the body
/// holds.
struct WriteTimeoutBody<B> {
    shared: Arc<Mutex<WatchedBody<B>>>,
    /// Started by the first frame that is not the last one; most bodies have one frame.
    watchdog: Option<AbortOnDropHandle<()>>,
    stream: Arc<OpenStreams>,
}

/// State that the streams of one connection share. Each has a clone until its response has ended,
/// so the clones are the number of open streams.
struct OpenStreams {
    max_streams: usize,
    write_timeout: Duration,
    hits: Arc<LimitHits>,
}

impl OpenStreams {
    /// Counts one more stream. h2 refuses streams past the limit without reporting it, so the
    /// metric counts how often a client reaches the limit.
    fn open(self: &Arc<Self>) -> Arc<Self> {
        let stream = Arc::clone(self);
        // One clone is that of the connection.
        if Arc::strong_count(self) == self.max_streams + 1 {
            self.hits.count(Limit::Streams);
        }
        stream
    }
}

struct WatchedBody<B> {
    /// `None` after the client has not read it for too long.
    body: Option<B>,
    /// When the client was given the last frame. `None` while the server waits for the body.
    unread_since: Option<Instant>,
}

impl<B: Body + Send + Unpin + 'static> WriteTimeoutBody<B> {
    fn new(body: B, stream: Arc<OpenStreams>) -> Self {
        let shared = WatchedBody { body: Some(body), unread_since: None };
        Self { shared: Arc::new(Mutex::new(shared)), watchdog: None, stream }
    }
}

impl<B> Body for WriteTimeoutBody<B>
where
    B: Body<Error: Error + Send + Sync> + Send + Unpin + 'static,
{
    type Data = B::Data;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        let Some(body) = &mut shared.body else {
            let limit = this.stream.write_timeout;
            let why = format!("the client read nothing of the stream for {limit:?}");
            return Poll::Ready(Some(Err(why.into())));
        };
        let frame = Pin::new(&mut *body).poll_frame(cx);
        let more = matches!(frame, Poll::Ready(Some(Ok(_)))) && !body.is_end_stream();
        shared.unread_since = more.then(Instant::now);
        drop(shared);
        if more && this.watchdog.is_none() {
            let OpenStreams { write_timeout, hits, .. } = &*this.stream;
            let watch = drop_unread(Arc::clone(&this.shared), *write_timeout, Arc::clone(hits));
            this.watchdog = Some(AbortOnDropHandle::new(tokio::spawn(watch)));
        }
        frame.map_err(Self::Error::from)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.shared).body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.shared).body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// Drops the body when the client has not read for `limit`. Aborted when its [`WriteTimeoutBody`]
/// is dropped.
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
