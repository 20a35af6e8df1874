//! The time limit of a write: a client that stops reading. On HTTP/1 the connection shows it; the
//! streams of an HTTP/2 connection have a limit of their own (`stream_timeout`). Either way the
//! resources that such a client holds are released after `server.write_timeout`.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};

use super::layer::{Layer, Layered};

/// A stream that fails when the client accepts nothing of a write for too long.
pub(super) type WriteTimeoutStream<S> = Layered<WriteTimeout<S>>;

/// The layer of [`WriteTimeoutStream`].
pub(super) struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    /// Created when a write first has to wait; most never do.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeoutStream<S> {
    pub(super) fn new(limit: Duration, stream: S) -> Self {
        Self(WriteTimeout { stream, limit, deadline: None })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer for WriteTimeout<S> {
    type Below = S;

    fn below(&self) -> &S {
        &self.stream
    }

    fn below_mut(&mut self) -> Pin<&mut S> {
        Pin::new(&mut self.stream)
    }

    fn after_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.deadline.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}
