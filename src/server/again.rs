//! Requests that repeat an earlier one on their connection, answered beneath hyper.
//!
//! A poller sends the same fields again and again, and parsing them, making a map of them and writing
//! another is most of what an answer from this process costs. Here the bytes of a head that hyper has
//! parsed are kept, with what the service recalls of it. A head that has the same bytes after its
//! request line, to the last, has the same fields; so only that line is read, and the service is asked
//! for an answer to its path. Whatever is not exactly that, or is not answered, goes to hyper as it
//! came.
//!
//! A match needs that hyper waits for a head and holds no byte of one, or what is a head here would be
//! the middle of something there. It does after it has taken a request without a body from a read that
//! ended in its only empty line, and has sent the answer; nothing else is believed to leave it so. A
//! request for another protocol ends it until the next such request: if the protocol is switched there
//! is none.
//!
//! A connection is one client but not one user: gateways send those of many over one. That is why the
//! fields are compared by all their bytes and nothing of them is skipped. It deliberately keeps one
//! head only, and none that is large; it does not answer what is pipelined, split over reads, or
//! followed by anything, nor while the connection is to be closed.

mod read;

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::read::{REQUEST_LINE, is_one_get, path_of};
use super::head::Turns;
use crate::service::{Declined, Service};

/// The largest head that is kept, in bytes.
const HEAD_MAX: usize = 4 << 10;

/// What the stream and the service of a connection tell each other. All of it is in one task.
#[derive(Debug)]
pub(super) struct Desk<R> {
    turns: Arc<Turns>,
    /// Whether nothing but a head can follow the last request that hyper has taken.
    plain: AtomicBool,
    /// What may be recalled, and of which request.
    recall: Mutex<Option<(u64, R)>>,
    /// Whether there is anything in there.
    recalled: AtomicBool,
    /// Whether a request is being answered that hyper does not know of.
    busy: AtomicBool,
    /// Whether the connection is to be closed.
    leaving: AtomicBool,
    /// Whether the service has declined the request that is handed to hyper, and there is more to say
    /// of it.
    declined: AtomicBool,
    /// That.
    told: Mutex<Declined>,
}

impl<R> Desk<R> {
    pub(super) fn new(turns: Arc<Turns>) -> Self {
        Self {
            turns,
            plain: AtomicBool::new(true),
            recall: Mutex::new(None),
            recalled: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            declined: AtomicBool::new(false),
            told: Mutex::default(),
        }
    }

    /// hyper has taken a request, after which the protocol may be another or not. Returns what has
    /// become of it here.
    pub(super) fn take(&self, may_switch: bool) -> Option<Declined> {
        self.plain.store(!may_switch, Ordering::Relaxed);
        if !self.declined.load(Ordering::Relaxed) {
            return None;
        }
        self.declined.store(false, Ordering::Relaxed);
        Some(*self.told())
    }

    /// The next request that hyper takes is one that the service has declined.
    fn decline(&self, declined: Declined) {
        let says_more = declined != Declined::default();
        if says_more {
            *self.told() = declined;
        }
        self.declined.store(says_more, Ordering::Relaxed);
    }

    /// Keeps what may be recalled of the request of this number.
    pub(super) fn keep(&self, turn: u64, recall: R) {
        *self.recall() = Some((turn, recall));
        self.recalled.store(true, Ordering::Release);
    }

    /// Lets hyper take what comes from now on.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether a request is being answered that hyper does not know of.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn told(&self) -> MutexGuard<'_, Declined> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self) -> MutexGuard<'_, Option<(u64, R)>> {
        self.recall.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that answers what it has seen before.
pub(super) struct Again<I, S: Service> {
    stream: I,
    service: S,
    desk: Arc<Desk<S::Recall>>,
    /// How long a head may be.
    limit: usize,
    memo: Option<Memo<S::Recall>>,
    /// A head that hyper was given, and the number of its request.
    noted: (u64, Vec<u8>),
    /// How many requests hyper has taken when it holds no byte of another.
    empty_at: Option<u64>,
    phase: Phase,
    /// Of the request that is being answered.
    path: String,
    /// What hyper is to have after all.
    returned: Vec<u8>,
    /// The answer, as far as it has not gone.
    head: Vec<u8>,
    head_gone: usize,
    body: Bytes,
}

/// Nothing in it is pinned.
impl<I: Unpin, S: Service> Unpin for Again<I, S> {}

struct Memo<R> {
    head: Vec<u8>,
    /// Where in it the fields begin.
    fields_at: usize,
    recall: R,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// For what comes.
    Listening,
    /// The service is asked.
    Asking,
    /// The answer goes.
    Answering,
    /// hyper gets what came; so much of it is gone.
    Returning(usize),
}

impl<I, S: Service> Again<I, S> {
    /// A stream of which nothing was given to hyper yet, which takes heads of `limit` bytes.
    pub(super) fn new(stream: I, service: S, desk: Arc<Desk<S::Recall>>, limit: usize) -> Self {
        Self {
            stream,
            service,
            desk,
            limit: limit.min(HEAD_MAX),
            memo: None,
            noted: (0, Vec::new()),
            empty_at: Some(0),
            phase: Phase::Listening,
            path: String::new(),
            returned: Vec::new(),
            head: Vec::new(),
            head_gone: 0,
            body: Bytes::new(),
        }
    }

    /// Whether hyper waits for a head and has no byte of it.
    fn is_at_head(&self) -> bool {
        self.empty_at == Some(self.desk.turns.begun())
            && self.desk.turns.is_between()
            && self.desk.plain.load(Ordering::Relaxed)
    }

    /// Takes what the service recalls, if it is of the head that was noted.
    fn learn(&mut self) {
        if !self.desk.recalled.load(Ordering::Acquire) {
            return;
        }
        self.desk.recalled.store(false, Ordering::Relaxed);
        let Some((turn, recall)) = self.desk.recall().take() else { return };
        let (noted, head) = &mut self.noted;
        let line_end = head.iter().position(|byte| *byte == b'\n').filter(|_| *noted == turn);
        if let Some(line_end) = line_end {
            let room = self.memo.take().map(|memo| memo.head).unwrap_or_default();
            let head = mem::replace(head, room);
            self.memo = Some(Memo { head, fields_at: line_end + 1, recall });
        }
        self.noted.0 = 0;
    }

    /// Begins to answer what came, if it is what is remembered but for its path.
    fn begin(&mut self, came: &[u8]) -> bool {
        let Some(memo) = &self.memo else { return false };
        if came.len() > self.limit
            || self.desk.leaving.load(Ordering::Relaxed)
            || !self.is_at_head()
        {
            return false;
        }
        let Some(line) = came.strip_suffix(&memo.head[memo.fields_at..]) else { return false };
        let Some(path) = path_of(line) else { return false };
        self.path.clear();
        self.path.push_str(path);
        self.desk.turns.begin_beneath();
        self.desk.busy.store(true, Ordering::Relaxed);
        self.phase = Phase::Asking;
        true
    }

    /// Asks the service for the answer.
    fn poll_ask(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.desk.leaving.load(Ordering::Relaxed) {
            // hyper tells the client that the connection ends. The recall is in the midst of it.
            self.give_back(Declined::default());
            self.memo = None;
            return Poll::Ready(());
        }
        // There is one: it was begun with it.
        let Some(memo) = &mut self.memo else { return Poll::Pending };
        self.head.clear();
        let (recall, path) = (&mut memo.recall, &self.path);
        match ready!(self.service.poll_again(recall, path, &mut self.head, cx)) {
            Ok(body) => {
                (self.head_gone, self.body) = (0, body);
                self.phase = Phase::Answering;
            }
            Err(declined) => self.give_back(declined),
        }
        Poll::Ready(())
    }

    /// Leaves what came to hyper.
    fn give_back(&mut self, declined: Declined) {
        self.desk.decline(declined);
        self.returned.clear();
        for part in [REQUEST_LINE.0, self.path.as_bytes(), REQUEST_LINE.1] {
            self.returned.extend_from_slice(part);
        }
        if let Some(memo) = &self.memo {
            self.returned.extend_from_slice(&memo.head[memo.fields_at..]);
        }
        self.empty_at = Some(self.desk.turns.begun());
        self.end(Phase::Returning(0));
    }

    fn end(&mut self, next: Phase) {
        self.desk.turns.end_beneath();
        self.desk.busy.store(false, Ordering::Relaxed);
        self.phase = next;
    }

    /// Gives hyper what came, as far as there is room.
    fn put_back(&mut self, gone: usize, buf: &mut ReadBuf<'_>) {
        let returned = mem::take(&mut self.returned);
        let left = &returned[gone..];
        let count = left.len().min(buf.remaining());
        self.note(&left[..count]);
        buf.put_slice(&left[..count]);
        let all = count == left.len();
        self.phase = if all { Phase::Listening } else { Phase::Returning(gone + count) };
        self.returned = returned;
    }

    /// Notes what hyper is given.
    fn note(&mut self, given: &[u8]) {
        let was_at_head = self.is_at_head();
        let next = self.desk.turns.begun() + 1;
        let alone = is_one_get(given);
        self.empty_at = alone.then_some(next);
        if was_at_head && alone && given.len() <= self.limit {
            self.noted.0 = next;
            self.noted.1.clear();
            self.noted.1.extend_from_slice(given);
        } else {
            self.noted.0 = 0;
        }
    }
}

impl<I: AsyncWrite + Unpin, S: Service> Again<I, S> {
    /// Writes what is left of an answer.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase != Phase::Answering {
            return Poll::Ready(Ok(()));
        }
        loop {
            let head = &self.head[self.head_gone..];
            let parts = [IoSlice::new(head), IoSlice::new(&self.body)];
            let gone = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?;
            if gone == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = gone.min(head.len());
            self.head_gone += of_head;
            self.body.advance(gone - of_head);
            if self.head_gone == self.head.len() && self.body.is_empty() {
                break;
            }
        }
        self.body = Bytes::new();
        self.empty_at = Some(self.desk.turns.begun());
        self.end(Phase::Listening);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, S: Service> AsyncRead for Again<I, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.phase {
                Phase::Asking => ready!(this.poll_ask(cx)),
                Phase::Answering => ready!(this.poll_rest(cx))?,
                Phase::Returning(gone) => {
                    this.put_back(gone, buf);
                    return Poll::Ready(Ok(()));
                }
                Phase::Listening => {
                    this.learn();
                    let start = buf.filled().len();
                    ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                    let came = &buf.filled()[start..];
                    if !this.begin(came) {
                        this.note(came);
                        return Poll::Ready(Ok(()));
                    }
                    buf.set_filled(start);
                }
            }
        }
    }
}

impl<I: AsyncWrite + Unpin, S: Service> AsyncWrite for Again<I, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_rest(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
