//! The limit of a head, and of the silence before it, at no cost to a request.
//!
//! hyper's own limit (`header_read_timeout`) makes a timer for every head, and polls the connection
//! once more after every answer to set it: a tenth of what a hit cost. Here requests are counted, and
//! the one timer of a connection looks, a few times in a limit, whether it still waits for the same
//! head. So a head is late after a limit, or up to a quarter of it later.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop,
    time::sleep,
};

/// Looks in a limit.
const LOOKS: u32 = 4;

/// Where the exchange of a connection stands. All that changes it, and all that looks at it, is the
/// task of that connection.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Requests whose head has come.
    begun: AtomicU64,
    /// Requests whose answer has gone.
    ended: AtomicU64,
    /// Of the last request, whose body may come for longer than its answer goes.
    uploads: AtomicU64,
    /// Bytes that came.
    bytes: AtomicU64,
    /// More than a head can have, in bytes.
    past_head: u64,
    /// What was to be written last waits for the client: an answer whose body hyper has dropped may
    /// still be on its way.
    unsent: AtomicBool,
}

/// What a connection waits for: equal while it is the same.
type Awaited = (u64, u64);

impl Turns {
    /// Of a connection with heads of `head_limit` bytes at most.
    pub(super) fn within(head_limit: usize) -> Self {
        Self { past_head: head_limit as u64 + 1, ..Self::default() }
    }

    /// A head has come, of a request with or without a body.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool) -> Turn {
        bump(&self.begun);
        self.uploads.store(has_body.into(), Ordering::Relaxed);
        Turn(Arc::clone(self))
    }

    /// How many heads have come.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// A head has come of a request that hyper does not see.
    pub(super) fn begin_beneath(&self) {
        bump(&self.begun);
    }

    /// Its answer has gone, or it is left to hyper after all.
    pub(super) fn end_beneath(&self) {
        bump(&self.ended);
    }

    /// Whether the last request has come whole and its answer has gone.
    pub(super) fn is_between(&self) -> bool {
        let [begun, ended, uploads] =
            [&self.begun, &self.ended, &self.uploads].map(|count| count.load(Ordering::Relaxed));
        begun == ended && uploads == 0 && !self.unsent.load(Ordering::Relaxed)
    }

    /// Returns when a head has not come for `limit`.
    pub(super) async fn overdue(&self, limit: Duration) {
        let mut awaited = None;
        let mut looks = 0;
        loop {
            sleep(limit / LOOKS).await;
            let now = self.awaited();
            looks = if now.is_some() && now == awaited { looks + 1 } else { 0 };
            awaited = now;
            if looks >= LOOKS {
                return;
            }
        }
    }

    /// None while a request is answered, to the last byte. Where it may not have come whole, what comes
    /// may be its rest, and is a sign of life: more than a head at a time, or a head would last for ever
    /// by a byte now and then.
    fn awaited(&self) -> Option<Awaited> {
        let [begun, ended, uploads, bytes] = [&self.begun, &self.ended, &self.uploads, &self.bytes]
            .map(|count| count.load(Ordering::Relaxed));
        let answered = begun == ended && !self.unsent.load(Ordering::Relaxed);
        answered.then_some((begun, uploads * (bytes / self.past_head.max(1))))
    }

    fn note_write<T>(&self, written: &Poll<T>) {
        self.unsent.store(written.is_pending(), Ordering::Relaxed);
    }
}

fn bump(count: &AtomicU64) {
    add(count, 1);
}

/// Bytes that count as one more operation of a task.
const OPERATION: usize = 4 << 10;

/// Takes what was read off the budget of the task (`tokio::task::coop`), which counts a read as one
/// whatever it brings. hyper reads on for as long as there is something, and what it makes of it may be
/// nothing: the digits of a chunk's size have no end. A few clients that send them kept all others
/// waiting for most of a second.
fn pay(bytes: usize, cx: &mut Context<'_>) {
    for _ in 0..bytes / OPERATION {
        match coop::poll_proceed(cx) {
            Poll::Ready(operation) => operation.made_progress(),
            // It is spent, so the next read ends the turn of this task.
            Poll::Pending => return,
        }
    }
}

/// One writer, so nothing is lost.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// The answering of one request.
pub(super) struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        bump(&self.0.ended);
    }
}

/// A stream of which it is noted when something comes, and when something has to wait.
pub(super) struct Heard<S> {
    stream: S,
    turns: Arc<Turns>,
}

impl<S> Heard<S> {
    pub(super) fn new(stream: S, turns: Arc<Turns>) -> Self {
        Self { stream, turns }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let came = buf.filled().len() - filled;
        add(&self.turns.bytes, came as u64);
        pay(came, cx);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.turns.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.turns.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS takes what it is given, and has sent it only when it is flushed.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.turns.note_write(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The body of an answer. hyper drops it when it has written its end.
pub(super) struct Answering<B> {
    body: B,
    _turn: Turn,
}

impl<B> Answering<B> {
    pub(super) fn new(body: B, turn: Turn) -> Self {
        Self { body, _turn: turn }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_millis(80);

    async fn is_overdue(turns: &Turns) -> bool {
        timeout(3 * LIMIT, turns.overdue(LIMIT)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_late_only_while_one_is_waited_for() {
        let turns = Arc::new(Turns::default());
        assert!(is_overdue(&turns).await, "the first");
        let turn = turns.begin(false);
        assert!(!is_overdue(&turns).await);
        drop(turn);
        add(&turns.bytes, 1);
        assert!(is_overdue(&turns).await, "the second");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_yet_is_no_silence() {
        let turns = Arc::new(Turns::default());
        let (near, mut far) = duplex(16);
        let mut near = Heard::new(near, Arc::clone(&turns));
        drop(turns.begin(false));
        let answer = async { near.write_all(&[0; 17]).await };
        let answer = async {
            answer.await.unwrap();
            pending::<()>().await;
        };
        let taken = async {
            sleep(2 * LIMIT).await;
            far.read_exact(&mut [0; 17]).await.unwrap();
            sleep(LIMIT / 2).await;
        };
        tokio::select! {
            () = turns.overdue(LIMIT) => panic!("it was not sent whole before"),
            () = answer => unreachable!(),
            () = taken => {}
        }
        assert!(is_overdue(&turns).await, "there was silence after it");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_keep_a_connection_and_the_bytes_of_a_head_do_not() {
        let busy = async |talk: fn(&Arc<Turns>), has_body| {
            let turns = Arc::new(Turns::within(99));
            drop(turns.begin(has_body));
            let talk = async {
                loop {
                    sleep(LIMIT / 3).await;
                    talk(&turns);
                }
            };
            tokio::select! {
                overdue = is_overdue(&turns) => !overdue,
                () = talk => unreachable!(),
            }
        };
        assert!(busy(|turns| drop(turns.begin(false)), false).await);
        assert!(!busy(|turns| add(&turns.bytes, 100), false).await);
        assert!(busy(|turns| add(&turns.bytes, 100), true).await, "it may be an upload");
        assert!(!busy(|turns| add(&turns.bytes, 1), true).await, "it may be a head as well");
    }

    #[tokio::test]
    async fn who_sends_without_end_lets_others_have_their_turn() {
        let endless = tokio::io::repeat(b'0');
        let mut stream = Heard::new(endless, Arc::new(Turns::default()));
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
