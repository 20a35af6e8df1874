//! A layer of the connection's byte stream, and the part that all layers have in common.
//!
//! A layer states only what it changes: what it does with bytes that arrive, what it writes before
//! the bytes of the layer above, and what it learns from a write. All else goes to the layer below.
//!
//! The lowest layer is here too: the time limit of a write, for a client that stops reading. On
//! HTTP/1 the connection shows it; the streams of an HTTP/2 connection have a limit of their own
//! (`http2_conn`). Either way the resources that such a client holds are released after
//! `server.write_timeout`.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// The result of polling a stream.
pub(super) type Polled<T = ()> = Poll<io::Result<T>>;

/// One layer between a client and hyper. `below` is the stream below it, nearer to the client.
pub(super) trait Layer<S: AsyncRead + AsyncWrite + Unpin>: Unpin {
    /// Reads bytes for the layer above.
    fn poll_read(&mut self, below: &mut S, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled {
        Pin::new(below).poll_read(cx, buf)
    }

    /// Writes what this layer has to write before any byte of the layer above, or its end.
    fn poll_before_write(&mut self, _below: &mut S, _cx: &mut Context<'_>) -> Polled {
        Poll::Ready(Ok(()))
    }

    /// Takes the result of a write and returns the result for the layer above.
    fn after_write(&mut self, _cx: &mut Context<'_>, written: Polled<usize>) -> Polled<usize> {
        written
    }

    fn poll_flush(&mut self, below: &mut S, cx: &mut Context<'_>) -> Polled {
        Pin::new(below).poll_flush(cx)
    }
}

/// A layer as the stream that the next layer is put on.
pub(super) struct Layered<L, S> {
    layer: L,
    below: S,
}

impl<L, S> Layered<L, S> {
    pub(super) fn new(layer: L, below: S) -> Self {
        Self { layer, below }
    }
}

impl<L: Layer<S>, S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Layered<L, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled {
        let Self { layer, below } = self.get_mut();
        layer.poll_read(below, cx, buf)
    }
}

impl<L: Layer<S>, S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Layered<L, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Polled<usize> {
        let Self { layer, below } = self.get_mut();
        ready!(layer.poll_before_write(below, cx))?;
        let written = Pin::new(below).poll_write(cx, bytes);
        layer.after_write(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Polled<usize> {
        let Self { layer, below } = self.get_mut();
        ready!(layer.poll_before_write(below, cx))?;
        let written = Pin::new(below).poll_write_vectored(cx, parts);
        layer.after_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.below.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Self { layer, below } = self.get_mut();
        layer.poll_flush(below, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Self { layer, below } = self.get_mut();
        ready!(layer.poll_before_write(below, cx))?;
        Pin::new(below).poll_shutdown(cx)
    }
}

/// A stream that fails when the client accepts nothing of a write for too long.
pub(super) type WriteTimeoutStream<S> = Layered<WriteTimeout, S>;

/// The layer of [`WriteTimeoutStream`].
pub(super) struct WriteTimeout {
    limit: Duration,
    /// Created when a write first has to wait; most never do.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, deadline: None }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer<S> for WriteTimeout {
    fn after_write(&mut self, cx: &mut Context<'_>, written: Polled<usize>) -> Polled<usize> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}
