//! The layer that writes the informational (1xx) responses of a connection.
//!
//! hyper flushes its stream after each poll of a connection, and its own buffer is empty by then.
//! While a request is being answered, that buffer holds no byte of its response. So this layer
//! writes the queued responses in that flush, and they land between two messages.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::layer::{Layer, Layered};
use crate::service::InformationalQueue;

/// A stream that writes the queued informational responses when it is flushed.
pub(super) type InformationalStream<S> = Layered<InformationalIo<S>>;

/// The layer of [`InformationalStream`].
pub(super) struct InformationalIo<S> {
    stream: S,
    queue: Arc<InformationalQueue>,
    /// Part of the queue is written: the rest must follow before anything else.
    partly_written: bool,
    /// The waker that the queue has for the flushing task.
    waker: Waker,
}

impl<S> InformationalStream<S> {
    pub(super) fn new(stream: S, queue: Arc<InformationalQueue>) -> Self {
        let waker = Waker::noop().clone();
        Self(InformationalIo { stream, queue, partly_written: false, waker })
    }
}

impl<S: AsyncWrite + Unpin> InformationalIo<S> {
    fn poll_write_queue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.queue.has_bytes() {
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
        self.queue.mark_written(&state);
        // The answer may be waiting for the empty queue.
        cx.waker().wake_by_ref();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer for InformationalIo<S> {
    type Below = S;

    fn below(&self) -> &S {
        &self.stream
    }

    fn below_mut(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.stream)
    }

    fn poll_before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.partly_written { self.poll_write_queue(cx) } else { Poll::Ready(Ok(())) }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waker.will_wake(cx.waker()) {
            self.waker.clone_from(cx.waker());
            // Register before looking at the queue: a response that is queued after the look wakes
            // this task.
            self.queue.register(cx.waker());
        }
        ready!(self.poll_write_queue(cx))?;
        self.below_mut().poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::Pin, sync::Arc};

    use hyper::{HeaderMap, StatusCode, header::HeaderValue};
    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _, duplex};

    use super::{InformationalQueue, InformationalStream};
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
        let mut io = InformationalStream::new(near, Arc::clone(&queue));
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
        let mut io = InformationalStream::new(near, Arc::clone(&queue));
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
