//! The layer that records when bytes arrive and when a write has to wait.
//!
//! The records are those of `request_progress.rs`, which decides about timeouts. The layer also charges
//! received bytes to the budget of the task, and notices that the client of a stream of events has left.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
};

use super::{
    layer::{Layer, Layered, Polled},
    request_progress::RequestProgress,
};

/// Bytes that are read at most while a stream of events is sent.
const EARLY_BYTES: usize = 1 << 10;

/// Bytes that count as one more operation of a task.
const BYTES_PER_OPERATION: usize = 4 << 10;

/// Charges received bytes to the budget of the task (`tokio::task::coop`), which counts a read as
/// one operation whatever its size. hyper reads on as long as there are bytes, and they may lead to
/// nothing: the digits of a chunk's size have no end. A few clients that sent such digits delayed
/// all others by most of a second.
fn charge_budget(bytes: usize, cx: &mut Context<'_>) {
    for _ in 0..bytes / BYTES_PER_OPERATION {
        match coop::poll_proceed(cx) {
            Poll::Ready(operation) => operation.made_progress(),
            // The budget is spent, so the next read ends this turn of the task.
            Poll::Pending => return,
        }
    }
}

/// A stream that records when bytes arrive and when a write has to wait.
pub(super) type ProgressStream<S> = Layered<Progress, S>;

/// The layer of [`ProgressStream`].
///
/// A client may close its half of the connection after its request and still gets its answer: hyper
/// reads nothing while it answers (`half_close`). Whether the client is gone shows when a write to it
/// fails. A stream of events may have nothing to write, so a client that closes its half ends it.
pub(super) struct Progress {
    state: Arc<RequestProgress>,
    /// Bytes that arrived during a stream of events.
    early: Vec<u8>,
}

impl Progress {
    pub(super) fn new(state: Arc<RequestProgress>) -> Self {
        Self { state, early: Vec::new() }
    }

    /// Fails if the client has closed its half during a stream of events. Registers for its end.
    fn check_end<S: AsyncRead + Unpin>(
        &mut self,
        below: &mut S,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if !self.state.is_endless() || !self.early.is_empty() {
            return Ok(());
        }
        let mut bytes = [0; EARLY_BYTES];
        let mut buf = ReadBuf::new(&mut bytes);
        match Pin::new(below).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Poll::Ready(Ok(())) => self.early.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {}
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Layer<S> for Progress {
    fn poll_read(&mut self, below: &mut S, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled {
        let filled = buf.filled().len();
        let read = if self.early.is_empty() {
            Pin::new(below).poll_read(cx, buf)
        } else {
            let count = self.early.len().min(buf.remaining());
            buf.put_slice(&self.early[..count]);
            self.early.drain(..count);
            Poll::Ready(Ok(()))
        };
        let received = buf.filled().len() - filled;
        self.state.record_received(received);
        charge_budget(received, cx);
        read
    }

    fn after_write(&mut self, _cx: &mut Context<'_>, written: Polled<usize>) -> Polled<usize> {
        self.state.record_write(&written);
        written
    }

    fn poll_flush(&mut self, below: &mut S, cx: &mut Context<'_>) -> Polled {
        // TLS accepts all bytes at once, and has sent them only after a flush.
        let flushed = Pin::new(&mut *below).poll_flush(cx);
        self.state.record_write(&flushed);
        ready!(flushed)?;
        Poll::Ready(self.check_end(below, cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_sends_without_end_lets_others_have_their_turn() {
        let endless = tokio::io::join(tokio::io::repeat(b'0'), tokio::io::sink());
        let mut stream = ProgressStream::new(Progress::new(Arc::default()), endless);
        let mut part = vec![0; 64 << 10];
        let read_in_a_turn = tokio::spawn(async move {
            std::future::poll_fn(|cx| {
                let mut read = 0;
                loop {
                    let mut buf = ReadBuf::new(&mut part);
                    match Pin::new(&mut stream).poll_read(cx, &mut buf) {
                        Poll::Ready(_) => read += buf.filled().len(),
                        Poll::Pending => return Poll::Ready(read),
                    }
                }
            })
            .await
        });
        let read = read_in_a_turn.await.unwrap();
        assert!(read <= 1 << 20, "{read} bytes");
    }
}
