//! Interim responses (1xx) on HTTP/1, for which hyper's server has no interface.
//!
//! hyper flushes the stream after each poll of a connection, and by then its own buffer is empty.
//! While a request is being answered nothing of its response is in there. So what waits in the
//! lane of a connection is written by that flush, and lands between two messages. An answer
//! leaves only when its lane is empty, and nothing enters the lane of a request that was answered.
//!
//! HTTP/2 has no such seam: there an [`Interim`] takes nothing.

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

/// Interim responses that wait for a client that does not read, in bytes.
const QUEUE_MAX: usize = 64 * 1024;

/// Takes the interim responses to one request.
#[derive(Clone, Debug, Default)]
pub struct Interim(Option<(Arc<Lane>, u64)>);

impl Interim {
    /// Sends an interim response, unless the final one has been given or the client takes none.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        if let Some((lane, turn)) = &self.0 {
            lane.send(*turn, status, headers);
        }
    }

    /// Whether the client takes interim responses at all.
    pub fn is_taken(&self) -> bool {
        self.0.is_some()
    }

    /// Takes nothing from now on, and resolves when all that was sent is written.
    pub(crate) async fn close(self) {
        let Some((lane, turn)) = self.0 else { return };
        std::future::poll_fn(|_| lane.poll_close(turn)).await;
    }
}

/// The interim responses of one connection, which answers its requests one after the other. Most
/// requests have none: for them no lock is taken.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// The number of the request that is being answered. Only the connection changes it.
    turn: AtomicU64,
    /// The last request that was answered.
    closed: AtomicU64,
    /// Whether there may be something in the queue: all that most flushes look at.
    waiting: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: BytesMut,
    /// The task that flushes.
    connection: Option<Waker>,
}

impl Lane {
    /// Opens the lane for the next request.
    pub(crate) fn open(self: &Arc<Self>) -> Interim {
        let turn = self.turn.load(Ordering::Relaxed) + 1;
        self.turn.store(turn, Ordering::Relaxed);
        Interim(Some((Arc::clone(self), turn)))
    }

    fn send(&self, turn: u64, status: StatusCode, headers: &HeaderMap) {
        let mut queue = self.queue();
        // In this order, and the other way round where the lane is closed: either we see that it is,
        // or who closes it sees that something waits, and waits for the lock that we hold.
        self.waiting.store(true, Ordering::SeqCst);
        let open = self.closed.load(Ordering::SeqCst) < turn;
        if open && queue.bytes.len() <= QUEUE_MAX {
            encode(&mut queue.bytes, status, headers);
        }
        self.waiting.store(!queue.bytes.is_empty(), Ordering::SeqCst);
        if let Some(connection) = &queue.connection {
            connection.wake_by_ref();
        }
    }

    /// Polled by the task that flushes, which polls again after it has flushed.
    fn poll_close(&self, turn: u64) -> Poll<()> {
        self.closed.store(turn, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) && !self.queue().bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A stream whose flush writes what waits in the lane.
pub(crate) struct Wire<S> {
    stream: S,
    lane: Arc<Lane>,
    /// A part of the queue is written: nothing else may be before the rest is.
    begun: bool,
    /// The task that flushes, as the lane knows it.
    task: Waker,
}

impl<S> Wire<S> {
    pub(crate) fn new(stream: S, lane: Arc<Lane>) -> Self {
        Self { stream, lane, begun: false, task: Waker::noop().clone() }
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.lane.waiting.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let mut queue = self.lane.queue();
        while !queue.bytes.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &queue.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            queue.bytes.advance(count);
            self.begun = true;
        }
        self.begun = false;
        self.lane.waiting.store(false, Ordering::SeqCst);
        // The answer may wait for this.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.begun { self.poll_queue(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.task.will_wake(cx.waker()) {
            this.task.clone_from(cx.waker());
            // Before the look: what is sent after it wakes us.
            this.lane.queue().connection = Some(cx.waker().clone());
        }
        ready!(this.poll_queue(cx))?;
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
        ready!(this.poll_rest(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S> fmt::Debug for Wire<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("lane", &self.lane).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, sync::Arc};

    use hyper::{HeaderMap, StatusCode, header::HeaderValue};
    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, duplex};

    use super::{Interim, Lane, QUEUE_MAX, Wire};

    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    fn hint(interim: &Interim) {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static("</a>"));
        interim.send(StatusCode::EARLY_HINTS, &headers);
    }

    #[tokio::test]
    async fn an_interim_response_goes_out_with_the_next_flush_and_before_the_answer() {
        let (near, mut far) = duplex(1024);
        let lane = Arc::new(Lane::default());
        let mut wire = Wire::new(near, Arc::clone(&lane));
        let interim = lane.open();
        hint(&interim);

        wire.flush().await.unwrap();
        interim.close().await;
        wire.write_all(b"answer").await.unwrap();
        drop(wire);

        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [HINT, b"answer"].concat());
    }

    #[tokio::test]
    async fn what_a_write_finds_half_written_is_ended_first() {
        let (near, mut far) = duplex(10);
        let lane = Arc::new(Lane::default());
        let mut wire = Wire::new(near, Arc::clone(&lane));
        hint(&lane.open());

        let begun = poll_fn(|cx| std::task::Poll::Ready(Pin::new(&mut wire).poll_flush(cx)));
        assert!(begun.await.is_pending());
        let write = tokio::spawn(async move { wire.write_all(b"continue").await });
        let mut read = vec![0; HINT.len() + b"continue".len()];
        far.read_exact(&mut read).await.unwrap();

        assert_eq!(read, [HINT, b"continue"].concat());
        write.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_enters_the_lane_of_a_request_that_was_answered() {
        let lane = Arc::new(Lane::default());
        let first = lane.open();
        first.clone().close().await;
        hint(&first);
        let _second = lane.open();
        hint(&first);

        assert!(lane.queue().bytes.is_empty());
    }

    #[test]
    fn a_client_that_reads_nothing_is_kept_little_for() {
        let lane = Arc::new(Lane::default());
        let interim = lane.open();
        for _ in 0..2 * QUEUE_MAX / HINT.len() {
            hint(&interim);
        }

        assert!(lane.queue().bytes.len() <= QUEUE_MAX + HINT.len());
    }
}
