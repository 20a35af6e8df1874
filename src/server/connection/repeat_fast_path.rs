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

mod request_bytes;

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

use self::request_bytes::{REQUEST_LINE, is_single_get, plain_get_path};
use super::{
    header_timeout::RequestProgress,
    layer::{Layer, Layered},
};
use crate::service::{FastPathMiss, Service};

/// Largest head that is kept, in bytes.
const HEAD_MAX: usize = 4 << 10;

/// The state that the stream and the service of a connection share. Only the task of the connection
/// uses it.
#[derive(Debug)]
pub(super) struct RepeatFastPath<R> {
    progress: Arc<RequestProgress>,
    /// Whether only a head can follow the last request that hyper has taken.
    only_head_follows: AtomicBool,
    /// The state that the service kept, with the number of its request.
    repeat: Mutex<Option<(u64, R)>>,
    /// Whether there is such a state: most reads then take no lock.
    has_repeat: AtomicBool,
    /// Whether a request is being answered that hyper does not see.
    busy: AtomicBool,
    /// Whether the connection is to be closed.
    closing: AtomicBool,
    /// Whether the next request that hyper takes is one that the service declined with something to
    /// report.
    has_miss: AtomicBool,
    /// The report.
    miss: Mutex<FastPathMiss>,
}

impl<R> RepeatFastPath<R> {
    pub(super) fn new(progress: Arc<RequestProgress>) -> Self {
        Self {
            progress,
            only_head_follows: AtomicBool::new(true),
            repeat: Mutex::new(None),
            has_repeat: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            has_miss: AtomicBool::new(false),
            miss: Mutex::default(),
        }
    }

    /// Records that hyper has taken a request. `may_switch` says whether the protocol may change
    /// after it. Returns what the fast path reports about the request.
    pub(super) fn request_taken(&self, may_switch: bool) -> Option<FastPathMiss> {
        self.only_head_follows.store(!may_switch, Ordering::Relaxed);
        if !self.has_miss.load(Ordering::Relaxed) {
            return None;
        }
        self.has_miss.store(false, Ordering::Relaxed);
        Some(*self.lock_miss())
    }

    /// Records that the service declined the request that hyper takes next.
    fn record_miss(&self, miss: FastPathMiss) {
        let has_report = miss != FastPathMiss::default();
        if has_report {
            *self.lock_miss() = miss;
        }
        self.has_miss.store(has_report, Ordering::Relaxed);
    }

    /// Keeps the state that the service made from the request with this number.
    pub(super) fn keep(&self, number: u64, repeat: R) {
        *self.lock_repeat() = Some((number, repeat));
        self.has_repeat.store(true, Ordering::Release);
    }

    /// Ends the fast path: hyper takes all further requests.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether a request is being answered that hyper does not see.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn lock_miss(&self) -> MutexGuard<'_, FastPathMiss> {
        self.miss.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_repeat(&self) -> MutexGuard<'_, Option<(u64, R)>> {
        self.repeat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that answers repeated requests itself.
pub(super) type RepeatStream<I, S> = Layered<RepeatIo<I, S>>;

/// The layer of [`RepeatStream`].
pub(super) struct RepeatIo<I, S: Service> {
    stream: I,
    service: S,
    shared: Arc<RepeatFastPath<S::Repeat>>,
    /// Largest head that is answered or kept, in bytes.
    max_head_bytes: usize,
    remembered: Option<RememberedHead<S::Repeat>>,
    /// The number of a request, or 0 for none, and its head as hyper got it.
    noted: (u64, Vec<u8>),
    /// If hyper has taken exactly this many requests, it holds no byte of another one. `None` if it
    /// may hold one.
    empty_after: Option<u64>,
    phase: RepeatPhase,
    /// Path of the request that is being answered.
    path: String,
    /// The declined request that hyper gets after all.
    returned: Vec<u8>,
    /// The response: its head, how much of the head is written, and the rest of the body.
    head: Vec<u8>,
    head_written: usize,
    body: Bytes,
}

/// No field is pinned.
impl<I: Unpin, S: Service> Unpin for RepeatIo<I, S> {}

struct RememberedHead<R> {
    head: Vec<u8>,
    /// Offset of the header fields in the head.
    fields_start: usize,
    repeat: R,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RepeatPhase {
    /// Waiting for bytes.
    Reading,
    /// The service is asked for a response.
    Polling,
    /// The response is being written.
    Writing,
    /// hyper gets the request. Holds how many bytes of it hyper already has.
    Returning(usize),
}

impl<I, S: Service> RepeatStream<I, S> {
    /// Wraps a stream that hyper has read nothing from. Heads may have up to `max_head_bytes` bytes.
    pub(super) fn new(
        stream: I,
        service: S,
        shared: Arc<RepeatFastPath<S::Repeat>>,
        limit: usize,
    ) -> Self {
        Layered(RepeatIo {
            stream,
            service,
            shared,
            max_head_bytes: limit.min(HEAD_MAX),
            remembered: None,
            noted: (0, Vec::new()),
            empty_after: Some(0),
            phase: RepeatPhase::Reading,
            path: String::new(),
            returned: Vec::new(),
            head: Vec::new(),
            head_written: 0,
            body: Bytes::new(),
        })
    }
}

impl<I, S: Service> RepeatIo<I, S> {
    /// Whether hyper waits for a head and holds no byte of one.
    fn is_at_head(&self) -> bool {
        self.empty_after == Some(self.shared.progress.begun())
            && self.shared.progress.is_between_requests()
            && self.shared.only_head_follows.load(Ordering::Relaxed)
    }

    /// Takes over the state that the service kept, if it belongs to the noted head.
    fn remember(&mut self) {
        if !self.shared.has_repeat.load(Ordering::Acquire) {
            return;
        }
        self.shared.has_repeat.store(false, Ordering::Relaxed);
        let Some((number, repeat)) = self.shared.lock_repeat().take() else { return };
        let (noted, head) = &mut self.noted;
        let line_end = head.iter().position(|byte| *byte == b'\n').filter(|_| *noted == number);
        if let Some(line_end) = line_end {
            let buffer = self.remembered.take().map(|memo| memo.head).unwrap_or_default();
            let head = mem::replace(head, buffer);
            self.remembered = Some(RememberedHead { head, fields_start: line_end + 1, repeat });
        }
        self.noted.0 = 0;
    }

    /// Begins to answer the request that was read, if it is the remembered head with another path.
    /// Returns whether it is.
    fn try_begin(&mut self, bytes: &[u8]) -> bool {
        let Some(memo) = &self.remembered else { return false };
        if bytes.len() > self.max_head_bytes
            || self.shared.closing.load(Ordering::Relaxed)
            || !self.is_at_head()
        {
            return false;
        }
        let Some(line) = bytes.strip_suffix(&memo.head[memo.fields_start..]) else { return false };
        let Some(path) = plain_get_path(line) else { return false };
        self.path.clear();
        self.path.push_str(path);
        self.shared.progress.begin_fast_path();
        self.shared.busy.store(true, Ordering::Relaxed);
        self.phase = RepeatPhase::Polling;
        true
    }

    /// Asks the service for the response.
    fn poll_service(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.closing.load(Ordering::Relaxed) {
            // hyper has to tell the client that the connection closes. The poll of `repeat` may be
            // unfinished, so it is dropped.
            self.return_request(FastPathMiss::default());
            self.remembered = None;
            return Poll::Ready(());
        }
        // Always present: `try_begin` enters this phase only with a memo.
        let Some(memo) = &mut self.remembered else { return Poll::Pending };
        self.head.clear();
        let (repeat, path) = (&mut memo.repeat, &self.path);
        match ready!(self.service.poll_repeat(repeat, path, &mut self.head, cx)) {
            Ok(body) => {
                (self.head_written, self.body) = (0, body);
                self.phase = RepeatPhase::Writing;
            }
            Err(miss) => self.return_request(miss),
        }
        Poll::Ready(())
    }

    /// Leaves the request to hyper.
    fn return_request(&mut self, miss: FastPathMiss) {
        self.shared.record_miss(miss);
        self.returned.clear();
        for part in [REQUEST_LINE.0, self.path.as_bytes(), REQUEST_LINE.1] {
            self.returned.extend_from_slice(part);
        }
        if let Some(memo) = &self.remembered {
            self.returned.extend_from_slice(&memo.head[memo.fields_start..]);
        }
        self.empty_after = Some(self.shared.progress.begun());
        self.end(RepeatPhase::Returning(0));
    }

    fn end(&mut self, next: RepeatPhase) {
        self.shared.progress.end_fast_path();
        self.shared.busy.store(false, Ordering::Relaxed);
        self.phase = next;
    }

    /// Gives hyper the declined request, as far as the buffer has space.
    fn copy_returned(&mut self, given: usize, buf: &mut ReadBuf<'_>) {
        let returned = mem::take(&mut self.returned);
        let rest = &returned[given..];
        let count = rest.len().min(buf.remaining());
        self.note_given(&rest[..count]);
        buf.put_slice(&rest[..count]);
        let all = count == rest.len();
        self.phase = if all { RepeatPhase::Reading } else { RepeatPhase::Returning(given + count) };
        self.returned = returned;
    }

    /// Notes bytes that hyper gets: the head, and whether hyper can hold a part of another one.
    fn note_given(&mut self, given: &[u8]) {
        let was_at_head = self.is_at_head();
        let next = self.shared.progress.begun() + 1;
        let alone = is_single_get(given);
        self.empty_after = alone.then_some(next);
        if was_at_head && alone && given.len() <= self.max_head_bytes {
            self.noted.0 = next;
            self.noted.1.clear();
            self.noted.1.extend_from_slice(given);
        } else {
            self.noted.0 = 0;
        }
    }
}

impl<I: AsyncWrite + Unpin, S: Service> RepeatIo<I, S> {
    /// Writes the rest of the response.
    fn poll_write_response(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase != RepeatPhase::Writing {
            return Poll::Ready(Ok(()));
        }
        loop {
            let head = &self.head[self.head_written..];
            let parts = [IoSlice::new(head), IoSlice::new(&self.body)];
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(head.len());
            self.head_written += of_head;
            self.body.advance(written - of_head);
            if self.head_written == self.head.len() && self.body.is_empty() {
                break;
            }
        }
        self.body = Bytes::new();
        self.empty_after = Some(self.shared.progress.begun());
        self.end(RepeatPhase::Reading);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, S: Service> Layer for RepeatIo<I, S> {
    type Below = I;

    fn below(&self) -> &I {
        &self.stream
    }

    fn below_mut(&mut self) -> Pin<&mut I> {
        Pin::new(&mut self.stream)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.phase {
                RepeatPhase::Polling => ready!(self.poll_service(cx)),
                RepeatPhase::Writing => ready!(self.poll_write_response(cx))?,
                RepeatPhase::Returning(given) => {
                    self.copy_returned(given, buf);
                    return Poll::Ready(Ok(()));
                }
                RepeatPhase::Reading => {
                    self.remember();
                    let start = buf.filled().len();
                    ready!(self.below_mut().poll_read(cx, buf))?;
                    let bytes = &buf.filled()[start..];
                    if !self.try_begin(bytes) {
                        self.note_given(bytes);
                        return Poll::Ready(Ok(()));
                    }
                    buf.set_filled(start);
                }
            }
        }
    }

    fn poll_before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_response(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_response(cx))?;
        self.below_mut().poll_shutdown(cx)
    }
}
