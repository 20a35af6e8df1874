//! One HTTP/1 connection between hyper and the service: the state that the two sides share, and the
//! layers of the stream.
//!
//! One of these layers writes the informational (1xx) responses. hyper flushes its stream after
//! each poll of a connection, and its own buffer is empty by then. While a request is being
//! answered, that buffer holds no byte of its response. So the layer writes the queued responses in
//! that flush, and they land between two messages.

use std::{
    convert::Infallible,
    error::Error,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, Version,
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::either::Either;

use super::{
    connection_metrics::{ConnectionError, Result},
    layer::{Layer, Layered, Polled},
    progress_stream::{Progress, ProgressStream},
    repeat_fast_path::{RepeatIo, RepeatStream},
    request_progress::{FastPathState, RequestProgress},
    side_task::SideTask,
};
use crate::{
    config::{self, HEADERS_ON_STACK},
    semantics::policy::is_endless,
    service::{Answered, Drain, FirstRequest, Informational, InformationalQueue, Service},
    transport::Peer,
};

/// The settings of HTTP/1 connections.
pub(super) struct Http1Config {
    builder: http1::Builder,
    header_timeout: Duration,
    /// Largest request head, in bytes.
    max_head_bytes: usize,
}

impl Http1Config {
    pub(super) fn new(config: &config::ServerConfig) -> Self {
        let mut builder = http1::Builder::new();
        // hyper's own header timeout has a cost for every request. `request_progress` implements
        // one that has none.
        builder
            .header_read_timeout(None)
            // A client may close its half after its request: `progress_stream`.
            .half_close(true)
            .preserve_header_case(config.preserve_header_case)
            .max_buf_size(config.buffer())
            .max_header_size(config.max_header_bytes);
        // Even a call with the default value moves the parser's memory to the heap.
        if config.max_headers > HEADERS_ON_STACK {
            builder.max_headers(config.max_headers);
        }
        let config::ServerConfig { header_timeout, max_header_bytes: max_head_bytes, .. } = *config;
        Self { builder, header_timeout, max_head_bytes }
    }

    /// Serves a connection to its end.
    pub(super) async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        service: impl Service,
        drain: &mut Drain,
    ) -> Result<()> {
        let (conn, stream) = Http1Conn::new(stream, peer, service, self.max_head_bytes);
        let answer = service_fn(|request| conn.answer(request));
        let connection = self.builder.serve_connection(TokioIo::new(stream), answer);
        let mut connection = pin!(connection.with_upgrades());
        let mut overdue = pin!(conn.progress.header_overdue(self.header_timeout));
        let mut overdue = SideTask::new(overdue.as_mut());
        let mut may_close = pin!(conn.first_request.ready_to_close(drain));
        let mut may_close = SideTask::new(may_close.as_mut());
        let mut close_pending = false;
        poll_fn(|cx| {
            if overdue.poll(cx).is_some() {
                return Poll::Ready(Err(ConnectionError::Timeout(self.header_timeout)));
            }
            if may_close.poll(cx).is_some() {
                conn.fast_path.as_ref().inspect(|fast_path| fast_path.close());
                close_pending = true;
            }
            loop {
                // hyper does not see a request that the fast path is answering, and would cut it
                // off.
                if close_pending && !conn.is_answering_repeat() {
                    // Lets the request in flight end, and accepts no further ones.
                    connection.as_mut().graceful_shutdown();
                    close_pending = false;
                }
                let ended = connection.as_mut().poll(cx).map_err(ConnectionError::from);
                if ended.is_ready() || !close_pending || conn.is_answering_repeat() {
                    return ended;
                }
            }
        })
        .await
    }
}

/// The state of one HTTP/1 connection, between the layers below hyper and the service above it.
struct Http1Conn<S: Service> {
    open: OpenConnection<S>,
    informational: Arc<InformationalQueue>,
    progress: Arc<RequestProgress>,
    /// `None` if the service does not offer it: then its layer is missing too.
    fast_path: Option<Arc<FastPathState<S::Repeat>>>,
    first_request: FirstRequest,
}

/// The stream that hyper reads and writes, with and without the fast path.
type Http1Stream<I, S> = Either<RepeatStream<BelowFastPath<I>, S>, BelowFastPath<I>>;
type BelowFastPath<I> = InformationalStream<ProgressStream<I>>;

impl<S: Service> Http1Conn<S> {
    /// Puts the layers on a new stream. Request heads may have up to `max_head_bytes` bytes.
    fn new<I: AsyncRead + AsyncWrite + Unpin>(
        stream: I,
        peer: Peer,
        service: S,
        max_head_bytes: usize,
    ) -> (Self, Http1Stream<I, S>) {
        let progress = Arc::new(RequestProgress::new(max_head_bytes));
        let informational = Arc::new(InformationalQueue::default());
        let fast_path =
            service.is_offered().then(|| Arc::new(FastPathState::new(Arc::clone(&progress))));
        let stream = Layered::new(Progress::new(Arc::clone(&progress)), stream);
        let stream = Layered::new(InformationalIo::new(Arc::clone(&informational)), stream);
        let stream = match &fast_path {
            Some(state) => {
                let layer = RepeatIo::new(service.clone(), Arc::clone(state), max_head_bytes);
                Either::Left(Layered::new(layer, stream))
            }
            None => Either::Right(stream),
        };
        let peer = Peer { connection: service.open_connection(), ..peer };
        let open = OpenConnection { service, peer };
        let first_request = FirstRequest::default();
        (Self { open, informational, progress, fast_path, first_request }, stream)
    }

    /// Whether the fast path is answering a request, which hyper does not see.
    fn is_answering_repeat(&self) -> bool {
        self.fast_path.as_ref().is_some_and(|fast_path| fast_path.is_busy())
    }

    /// Passes a request to the service and returns its response.
    fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<
        Output = Result<
            Response<impl Body<Data = Bytes, Error: Error + Send + Sync> + use<S>>,
            Infallible,
        >,
    > + use<S> {
        self.first_request.mark_begun();
        let has_upload = !request.body().is_end_stream();
        let guard = self.progress.begin(has_upload);
        let progress = Arc::clone(&self.progress);
        let number = self.progress.begun();
        let fast_path = self.fast_path.clone();
        let may_switch = request.extensions().get::<OnUpgrade>().is_some();
        let miss = fast_path.as_ref().and_then(|fast_path| fast_path.request_taken(may_switch));
        if let Some(miss) = miss {
            request.extensions_mut().insert(miss);
        }
        // "a server MUST NOT send a 1xx response to an HTTP/1.0 client" RFC 9110 15.2
        let takes_informational = request.version() == Version::HTTP_11;
        let informational =
            if takes_informational { self.informational.open() } else { Informational::default() };
        let OpenConnection { service, peer } = &self.open;
        let answer = service.clone().serve(request, *peer, informational.clone());
        async move {
            let Answered { response, repeat } = answer.await;
            informational.close().await;
            if !has_upload && is_endless(response.headers()) {
                progress.begin_endless();
            }
            if let (Some(fast_path), Some(repeat)) = (fast_path, repeat) {
                fast_path.repeat.put((number, repeat));
            }
            // The closure holds the guard: hyper drops both with the body, after writing its end.
            let holding = move |error| {
                let _held = &guard;
                error
            };
            Ok(response.map(|body| body.map_err(holding)))
        }
    }
}

/// An open connection. The service learns of its end on drop, however the connection ends.
struct OpenConnection<S: Service> {
    service: S,
    peer: Peer,
}

impl<S: Service> Drop for OpenConnection<S> {
    fn drop(&mut self) {
        self.peer.connection.inspect(|&id| self.service.close_connection(id));
    }
}

/// A stream that writes the queued informational responses when it is flushed.
type InformationalStream<S> = Layered<InformationalIo, S>;

/// The layer of [`InformationalStream`].
struct InformationalIo {
    queue: Arc<InformationalQueue>,
    /// Part of the queue is written: the rest must follow before anything else.
    partly_written: bool,
    /// The waker that the queue has for the flushing task.
    waker: Waker,
}

impl InformationalIo {
    fn new(queue: Arc<InformationalQueue>) -> Self {
        Self { queue, partly_written: false, waker: Waker::noop().clone() }
    }

    fn poll_write_queue<S: AsyncWrite + Unpin>(
        &mut self,
        below: &mut S,
        cx: &mut Context<'_>,
    ) -> Polled {
        if !self.queue.has_bytes() {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.queue.lock();
        while !state.bytes.is_empty() {
            let count = ready!(Pin::new(&mut *below).poll_write(cx, &state.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.bytes.advance(count);
            self.partly_written = true;
        }
        self.partly_written = false;
        self.queue.mark_written(&state);
        // The answer may be waiting for the empty queue.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer<S> for InformationalIo {
    fn poll_before_write(&mut self, below: &mut S, cx: &mut Context<'_>) -> Polled {
        if self.partly_written { self.poll_write_queue(below, cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_flush(&mut self, below: &mut S, cx: &mut Context<'_>) -> Polled {
        if !self.waker.will_wake(cx.waker()) {
            self.waker.clone_from(cx.waker());
            // Register before looking at the queue: a response that is queued after the look wakes
            // this task.
            self.queue.register(cx.waker());
        }
        ready!(self.poll_write_queue(below, cx))?;
        Pin::new(below).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, sync::Arc};

    use hyper::{HeaderMap, StatusCode, header::HeaderValue};
    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, duplex};

    use super::{InformationalIo, InformationalQueue, InformationalStream};
    use crate::service::Informational;

    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    fn hint(informational: &Informational) {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static("</a>"));
        informational.send(StatusCode::EARLY_HINTS, &headers);
    }

    #[tokio::test]
    async fn an_interim_response_goes_out_with_the_next_flush_and_before_the_answer() {
        let (near, mut far) = duplex(1024);
        let queue = Arc::new(InformationalQueue::default());
        let mut io = InformationalStream::new(InformationalIo::new(Arc::clone(&queue)), near);
        let informational = queue.open();
        hint(&informational);

        io.flush().await.unwrap();
        informational.close().await;
        io.write_all(b"answer").await.unwrap();
        drop(io);

        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [HINT, b"answer"].concat());
    }

    #[tokio::test]
    async fn what_a_write_finds_half_written_is_ended_first() {
        let (near, mut far) = duplex(10);
        let queue = Arc::new(InformationalQueue::default());
        let mut io = InformationalStream::new(InformationalIo::new(Arc::clone(&queue)), near);
        hint(&queue.open());

        let begun = poll_fn(|cx| std::task::Poll::Ready(Pin::new(&mut io).poll_flush(cx)));
        assert!(begun.await.is_pending());
        let write = tokio::spawn(async move { io.write_all(b"continue").await });
        let mut read = vec![0; HINT.len() + b"continue".len()];
        far.read_exact(&mut read).await.unwrap();

        assert_eq!(read, [HINT, b"continue"].concat());
        write.await.unwrap().unwrap();
    }
}
