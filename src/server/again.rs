//! Answers requests that repeat an earlier request of their connection, below hyper.
//!
//! A poller sends the same header fields again and again. Most of the cost of an answer from this
//! process's memory is to parse them, to build a map of them and to write another one. So this
//! module keeps the bytes of a head that hyper has parsed, and the state that the service made from
//! it (its `Repeat`). If all bytes of a later head after its request line are the same, its fields
//! are the same. Then only the request line is read, and the service is asked for an answer to its
//! path. Every other request, and every one that the service does not answer, goes to hyper
//! unchanged.
//!
//! A match requires that hyper waits for a head and holds no byte of one. Otherwise the bytes that
//! look like a head here could be the middle of something else there. hyper is in that state after
//! it has taken a request without a body from a read that ended in its only empty line, and has
//! sent the response. No other situation is trusted to lead to that state. A request that may
//! switch protocols ends it until the next ordinary request; if the protocol is switched, there is
//! no such request.
//!
//! A connection belongs to one client but not to one user: gateways send the requests of many users
//! over one connection. That is why all bytes of the fields are compared and none is skipped. The
//! module deliberately keeps a single head, and no large one. It does not answer a request that is
//! pipelined, split over several reads or followed by other bytes, nor any request while the
//! connection is to be closed.

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

/// Largest head that is kept, in bytes.
const HEAD_MAX: usize = 4 << 10;

/// The state that the stream and the service of a connection share. Only the task of the connection
/// uses it.
#[derive(Debug)]
pub(super) struct Desk<R> {
    turns: Arc<Turns>,
    /// Whether only a head can follow the last request that hyper has taken.
    plain: AtomicBool,
    /// The state that the service kept, with the number of its request.
    recall: Mutex<Option<(u64, R)>>,
    /// Whether there is such a state: most reads then take no lock.
    recalled: AtomicBool,
    /// Whether a request is being answered that hyper does not see.
    busy: AtomicBool,
    /// Whether the connection is to be closed.
    leaving: AtomicBool,
    /// Whether the next request that hyper takes is one that the service declined with something to
    /// report.
    declined: AtomicBool,
    /// The report.
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

    /// Records that hyper has taken a request. `may_switch` says whether the protocol may change
    /// after it. Returns what the fast path reports about the request.
    pub(super) fn take(&self, may_switch: bool) -> Option<Declined> {
        self.plain.store(!may_switch, Ordering::Relaxed);
        if !self.declined.load(Ordering::Relaxed) {
            return None;
        }
        self.declined.store(false, Ordering::Relaxed);
        Some(*self.told())
    }

    /// Records that the service declined the request that hyper takes next.
    fn decline(&self, miss: Declined) {
        let has_report = miss != Declined::default();
        if has_report {
            *self.told() = miss;
        }
        self.declined.store(has_report, Ordering::Relaxed);
    }

    /// Keeps the state that the service made from the request with this number.
    pub(super) fn keep(&self, number: u64, repeat: R) {
        *self.recall() = Some((number, repeat));
        self.recalled.store(true, Ordering::Release);
    }

    /// Ends the fast path: hyper takes all further requests.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether a request is being answered that hyper does not see.
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

/// A stream that answers repeated requests itself.
pub(super) struct Again<I, S: Service> {
    stream: I,
    service: S,
    desk: Arc<Desk<S::Recall>>,
    /// Largest head that is answered or kept, in bytes.
    limit: usize,
    memo: Option<Memo<S::Recall>>,
    /// The number of a request, or 0 for none, and its head as hyper got it.
    noted: (u64, Vec<u8>),
    /// If hyper has taken exactly this many requests, it holds no byte of another one. `None` if it
    /// may hold one.
    empty_at: Option<u64>,
    phase: Phase,
    /// Path of the request that is being answered.
    path: String,
    /// The declined request that hyper gets after all.
    returned: Vec<u8>,
    /// The response: its head, how much of the head is written, and the rest of the body.
    head: Vec<u8>,
    head_gone: usize,
    body: Bytes,
}

/// No field is pinned.
impl<I: Unpin, S: Service> Unpin for Again<I, S> {}

struct Memo<R> {
    head: Vec<u8>,
    /// Offset of the header fields in the head.
    fields_at: usize,
    recall: R,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for bytes.
    Listening,
    /// The service is asked for a response.
    Asking,
    /// The response is being written.
    Answering,
    /// hyper gets the request. Holds how many bytes of it hyper already has.
    Returning(usize),
}

impl<I, S: Service> Again<I, S> {
    /// Wraps a stream that hyper has read nothing from. Heads may have up to `limit` bytes.
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

    /// Whether hyper waits for a head and holds no byte of one.
    fn is_at_head(&self) -> bool {
        self.empty_at == Some(self.desk.turns.begun())
            && self.desk.turns.is_between()
            && self.desk.plain.load(Ordering::Relaxed)
    }

    /// Takes over the state that the service kept, if it belongs to the noted head.
    fn learn(&mut self) {
        if !self.desk.recalled.load(Ordering::Acquire) {
            return;
        }
        self.desk.recalled.store(false, Ordering::Relaxed);
        let Some((number, repeat)) = self.desk.recall().take() else { return };
        let (noted, head) = &mut self.noted;
        let line_end = head.iter().position(|byte| *byte == b'\n').filter(|_| *noted == number);
        if let Some(line_end) = line_end {
            let buffer = self.memo.take().map(|memo| memo.head).unwrap_or_default();
            let head = mem::replace(head, buffer);
            self.memo = Some(Memo { head, fields_at: line_end + 1, recall: repeat });
        }
        self.noted.0 = 0;
    }

    /// Begins to answer the request that was read, if it is the remembered head with another path.
    /// Returns whether it is.
    fn begin(&mut self, bytes: &[u8]) -> bool {
        let Some(memo) = &self.memo else { return false };
        if bytes.len() > self.limit
            || self.desk.leaving.load(Ordering::Relaxed)
            || !self.is_at_head()
        {
            return false;
        }
        let Some(line) = bytes.strip_suffix(&memo.head[memo.fields_at..]) else { return false };
        let Some(path) = path_of(line) else { return false };
        self.path.clear();
        self.path.push_str(path);
        self.desk.turns.begin_beneath();
        self.desk.busy.store(true, Ordering::Relaxed);
        self.phase = Phase::Asking;
        true
    }

    /// Asks the service for the response.
    fn poll_ask(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.desk.leaving.load(Ordering::Relaxed) {
            // hyper has to tell the client that the connection closes. The poll of `repeat` may be
            // unfinished, so it is dropped.
            self.give_back(Declined::default());
            self.memo = None;
            return Poll::Ready(());
        }
        // Always present: `begin` enters this phase only with a memo.
        let Some(memo) = &mut self.memo else { return Poll::Pending };
        self.head.clear();
        let (repeat, path) = (&mut memo.recall, &self.path);
        match ready!(self.service.poll_again(repeat, path, &mut self.head, cx)) {
            Ok(body) => {
                (self.head_gone, self.body) = (0, body);
                self.phase = Phase::Answering;
            }
            Err(miss) => self.give_back(miss),
        }
        Poll::Ready(())
    }

    /// Leaves the request to hyper.
    fn give_back(&mut self, miss: Declined) {
        self.desk.decline(miss);
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

    /// Gives hyper the declined request, as far as the buffer has space.
    fn put_back(&mut self, given: usize, buf: &mut ReadBuf<'_>) {
        let returned = mem::take(&mut self.returned);
        let rest = &returned[given..];
        let count = rest.len().min(buf.remaining());
        self.note(&rest[..count]);
        buf.put_slice(&rest[..count]);
        let all = count == rest.len();
        self.phase = if all { Phase::Listening } else { Phase::Returning(given + count) };
        self.returned = returned;
    }

    /// Notes bytes that hyper gets: the head, and whether hyper can hold a part of another one.
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
    /// Writes the rest of the response.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase != Phase::Answering {
            return Poll::Ready(Ok(()));
        }
        loop {
            let head = &self.head[self.head_gone..];
            let parts = [IoSlice::new(head), IoSlice::new(&self.body)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.head_gone += of_head;
            self.body.advance(written - of_head);
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
                Phase::Returning(given) => {
                    this.put_back(given, buf);
                    return Poll::Ready(Ok(()));
                }
                Phase::Listening => {
                    this.learn();
                    let start = buf.filled().len();
                    ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                    let bytes = &buf.filled()[start..];
                    if !this.begin(bytes) {
                        this.note(bytes);
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
