//! Informational (1xx) responses on HTTP/1. hyper's server has no interface for them.
//!
//! hyper flushes its stream after each poll of a connection, and its own buffer is empty by then.
//! While a request is being answered, that buffer holds no byte of its response. So this module
//! writes the queued informational responses of a connection in that flush, and they land between
//! two messages. An answer leaves only when the queue is empty, and nothing enters the queue for a
//! request that was already answered.
//!
//! On HTTP/2 there is no such point: an [`Informational`] ignores what it is given there.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BytesMut};
use hyper::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest size of the queue, in bytes, for a client that does not read. A response that begins
/// below it is queued as a whole.
const MAX_QUEUED_BYTES: usize = 64 * 1024;

/// Sends the informational responses to one request.
#[derive(Clone, Debug, Default)]
pub struct Informational(Option<(Arc<InformationalQueue>, u64)>);

impl Informational {
    /// Queues an informational response. Drops it if the final response has been given, if the
    /// client accepts none, or if the queue is full.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        if let Some((queue, number)) = &self.0 {
            queue.send(*number, status, headers);
        }
    }

    /// Whether the client accepts informational responses.
    pub fn is_accepted(&self) -> bool {
        self.0.is_some()
    }

    /// Closes the queue for this request and waits until everything in it is written.
    pub(crate) async fn close(self) {
        let Some((queue, number)) = self.0 else { return };
        std::future::poll_fn(|_| queue.poll_close(number)).await;
    }
}

/// The queue of informational responses of one connection, which answers its requests one after the
/// other. Most requests have none, and take no lock.
#[derive(Debug, Default)]
pub(crate) struct InformationalQueue {
    /// Number of the request that is being answered. Only the connection changes it.
    current: AtomicU64,
    /// Number of the last request that was answered.
    last_answered: AtomicU64,
    /// Whether the queue may hold bytes. Most flushes look at nothing else.
    has_bytes: AtomicBool,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    bytes: BytesMut,
    /// The task that flushes the stream.
    waker: Option<Waker>,
}

impl InformationalQueue {
    /// Opens the queue for the next request.
    pub(crate) fn open(self: &Arc<Self>) -> Informational {
        let number = self.current.load(Ordering::Relaxed) + 1;
        self.current.store(number, Ordering::Relaxed);
        Informational(Some((Arc::clone(self), number)))
    }

    fn send(&self, number: u64, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.lock();
        // `poll_close` uses the opposite order: either this call sees that the queue is closed, or
        // the closing side sees that bytes wait and blocks on the lock held here.
        self.has_bytes.store(true, Ordering::SeqCst);
        let open = self.last_answered.load(Ordering::SeqCst) < number;
        if open && state.bytes.len() <= MAX_QUEUED_BYTES {
            encode(&mut state.bytes, status, headers);
        }
        self.has_bytes.store(!state.bytes.is_empty(), Ordering::SeqCst);
        if let Some(connection) = &state.waker {
            connection.wake_by_ref();
        }
    }

    /// The task that flushes polls this, and polls again after each flush.
    fn poll_close(&self, number: u64) -> Poll<()> {
        self.last_answered.store(number, Ordering::SeqCst);
        if self.has_bytes.load(Ordering::SeqCst) && !self.lock().bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(bytes: &mut BytesMut, status: StatusCode, headers: &HeaderMap) {
    let reason = status.canonical_reason().unwrap_or_default();
    bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
}

/// A stream that writes the queued informational responses when it is flushed.
pub(crate) struct InformationalIo<S> {
    stream: S,
    queue: Arc<InformationalQueue>,
    /// Part of the queue is written: the rest must follow before anything else.
    partly_written: bool,
    /// The waker that the queue has for the flushing task.
    waker: Waker,
}

impl<S> InformationalIo<S> {
    pub(crate) fn new(stream: S, queue: Arc<InformationalQueue>) -> Self {
        Self { stream, queue, partly_written: false, waker: Waker::noop().clone() }
    }
}

impl<S: AsyncWrite + Unpin> InformationalIo<S> {
    fn poll_write_queue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.queue.has_bytes.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.queue.lock();
        while !state.bytes.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &state.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.bytes.advance(count);
            self.partly_written = true;
        }
        self.partly_written = false;
        self.queue.has_bytes.store(false, Ordering::SeqCst);
        // The answer may be waiting for the empty queue.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_write_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.partly_written { self.poll_write_queue(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InformationalIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InformationalIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_rest(cx))?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.waker.will_wake(cx.waker()) {
            this.waker.clone_from(cx.waker());
            // Register before looking at the queue: a response that is queued after the look wakes
            // this task.
            this.queue.lock().waker = Some(cx.waker().clone());
        }
        ready!(this.poll_write_queue(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_write_rest(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S> fmt::Debug for InformationalIo<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InformationalIo").field("queue", &self.queue).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, sync::Arc};

    use hyper::{HeaderMap, StatusCode, header::HeaderValue};
    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, duplex};

    use super::{Informational, InformationalIo, InformationalQueue, MAX_QUEUED_BYTES};

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
        let mut io = InformationalIo::new(near, Arc::clone(&queue));
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
        let mut io = InformationalIo::new(near, Arc::clone(&queue));
        hint(&queue.open());

        let begun = poll_fn(|cx| std::task::Poll::Ready(Pin::new(&mut io).poll_flush(cx)));
        assert!(begun.await.is_pending());
        let write = tokio::spawn(async move { io.write_all(b"continue").await });
        let mut read = vec![0; HINT.len() + b"continue".len()];
        far.read_exact(&mut read).await.unwrap();

        assert_eq!(read, [HINT, b"continue"].concat());
        write.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_enters_the_lane_of_a_request_that_was_answered() {
        let queue = Arc::new(InformationalQueue::default());
        let first = queue.open();
        first.clone().close().await;
        hint(&first);
        let _second = queue.open();
        hint(&first);

        assert!(queue.lock().bytes.is_empty());
    }

    #[test]
    fn a_client_that_reads_nothing_is_kept_little_for() {
        let queue = Arc::new(InformationalQueue::default());
        let informational = queue.open();
        for _ in 0..2 * MAX_QUEUED_BYTES / HINT.len() {
            hint(&informational);
        }

        assert!(queue.lock().bytes.len() <= MAX_QUEUED_BYTES + HINT.len());
    }
}
