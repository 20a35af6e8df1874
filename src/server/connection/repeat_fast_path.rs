//! Answers requests that repeat an earlier request of their connection, below hyper.
//!
//! A poller sends the same header fields again and again. Most of the cost of an answer from this
//! process's memory is to parse them, to build a map of them and to write another one. So this
//! module keeps the bytes of a head that hyper has parsed, and the state that the service made from
//! it ([`RepeatFastPath::Repeat`]). If all bytes of a later head after its request line are the
//! same, its fields are the same. Then only the request line is read, and the service is asked for
//! an answer to its path. Every other request, and every one that the service does not answer, goes
//! to hyper unchanged.
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
//!
//! Only a plain GET that cannot be read in two ways is recognised in the raw bytes. Header fields
//! are not read here; hyper does that.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    layer::{Layer, Layered, Polled},
    request_progress::FastPathState,
};
use crate::service::{FastPathMiss, RepeatFastPath};

/// Largest head that is kept, in bytes.
const HEAD_MAX: usize = 4 << 10;

/// A stream that answers repeated requests itself.
pub(super) type RepeatStream<S, P> = Layered<RepeatIo<P>, S>;

/// The layer of [`RepeatStream`].
pub(super) struct RepeatIo<P: RepeatFastPath> {
    service: P,
    shared: Arc<FastPathState<P::Repeat>>,
    /// Largest head that is answered or kept, in bytes.
    max_head_bytes: usize,
    remembered: Option<RememberedHead<P::Repeat>>,
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
    response: RepeatResponse,
}

/// No field is pinned.
impl<P: RepeatFastPath> Unpin for RepeatIo<P> {}

/// A response that is being written: its head, how much of the head is written, and the rest of the
/// body.
#[derive(Default)]
struct RepeatResponse {
    head: Vec<u8>,
    head_written: usize,
    body: Bytes,
}

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

impl<P: RepeatFastPath> RepeatIo<P> {
    /// For a stream that hyper has read nothing from, with heads of up to `limit` bytes.
    pub(super) fn new(service: P, shared: Arc<FastPathState<P::Repeat>>, limit: usize) -> Self {
        Self {
            service,
            shared,
            max_head_bytes: limit.min(HEAD_MAX),
            remembered: None,
            noted: (0, Vec::new()),
            empty_after: Some(0),
            phase: RepeatPhase::Reading,
            path: String::new(),
            returned: Vec::new(),
            response: RepeatResponse::default(),
        }
    }

    /// Whether hyper waits for a head and holds no byte of one.
    fn is_at_head(&self) -> bool {
        self.empty_after == Some(self.shared.progress.begun()) && self.shared.hyper_waits_for_head()
    }

    /// Takes over the state that the service kept, if it belongs to the noted head.
    fn remember(&mut self) {
        let Some((number, repeat)) = self.shared.repeat.take() else { return };
        let (noted, head) = &mut self.noted;
        let line_end = head.iter().position(|byte| *byte == b'\n').filter(|_| *noted == number);
        if let Some(line_end) = line_end {
            let buffer = self.remembered.take().map(|last| last.head).unwrap_or_default();
            let head = mem::replace(head, buffer);
            self.remembered = Some(RememberedHead { head, fields_start: line_end + 1, repeat });
        }
        self.noted.0 = 0;
    }

    /// Begins to answer the request that was read, if it is the remembered head with another path.
    /// Returns whether it is.
    fn try_begin(&mut self, bytes: &[u8]) -> bool {
        let Some(remembered) = &self.remembered else { return false };
        if bytes.len() > self.max_head_bytes || self.shared.is_closing() || !self.is_at_head() {
            return false;
        }
        let Some(line) = bytes.strip_suffix(&remembered.head[remembered.fields_start..]) else {
            return false;
        };
        let Some(path) = plain_get_path(line) else { return false };
        self.path.clear();
        self.path.push_str(path);
        self.shared.begin();
        self.phase = RepeatPhase::Polling;
        true
    }

    /// Asks the service for the response.
    fn poll_service(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.is_closing() {
            // hyper has to tell the client that the connection closes. The poll of `repeat` may be
            // unfinished, so it is dropped.
            self.return_request(FastPathMiss::default());
            self.remembered = None;
            return Poll::Ready(());
        }
        // Always present: `try_begin` enters this phase only with a remembered head.
        let Some(remembered) = &mut self.remembered else { return Poll::Pending };
        let (repeat, path) = (&mut remembered.repeat, &self.path);
        let RepeatResponse { head, head_written, body } = &mut self.response;
        head.clear();
        match ready!(self.service.poll_repeat(repeat, path, head, cx)) {
            Ok(whole) => {
                (*head_written, *body) = (0, whole);
                self.phase = RepeatPhase::Writing;
            }
            Err(miss) => self.return_request(miss),
        }
        Poll::Ready(())
    }

    /// Leaves the request to hyper.
    fn return_request(&mut self, miss: FastPathMiss) {
        if miss != FastPathMiss::default() {
            self.shared.miss.put(miss);
        }
        self.returned.clear();
        for part in [REQUEST_LINE.0, self.path.as_bytes(), REQUEST_LINE.1] {
            self.returned.extend_from_slice(part);
        }
        if let Some(remembered) = &self.remembered {
            self.returned.extend_from_slice(&remembered.head[remembered.fields_start..]);
        }
        self.empty_after = Some(self.shared.progress.begun());
        self.end(RepeatPhase::Returning(0));
    }

    fn end(&mut self, next: RepeatPhase) {
        self.shared.end();
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

    /// Writes the rest of the response.
    fn poll_write_response<S: AsyncWrite + Unpin>(
        &mut self,
        below: &mut S,
        cx: &mut Context<'_>,
    ) -> Polled {
        if self.phase != RepeatPhase::Writing {
            return Poll::Ready(Ok(()));
        }
        let RepeatResponse { head, head_written, body } = &mut self.response;
        loop {
            let rest = &head[*head_written..];
            let parts = [IoSlice::new(rest), IoSlice::new(body)];
            let written = ready!(Pin::new(&mut *below).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(rest.len());
            *head_written += of_head;
            body.advance(written - of_head);
            if *head_written == head.len() && body.is_empty() {
                break;
            }
        }
        *body = Bytes::new();
        self.empty_after = Some(self.shared.progress.begun());
        self.end(RepeatPhase::Reading);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: RepeatFastPath> Layer<S> for RepeatIo<P> {
    fn poll_read(&mut self, below: &mut S, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Polled {
        loop {
            match self.phase {
                RepeatPhase::Polling => ready!(self.poll_service(cx)),
                RepeatPhase::Writing => ready!(self.poll_write_response(below, cx))?,
                RepeatPhase::Returning(given) => {
                    self.copy_returned(given, buf);
                    return Poll::Ready(Ok(()));
                }
                RepeatPhase::Reading => {
                    self.remember();
                    let start = buf.filled().len();
                    ready!(Pin::new(&mut *below).poll_read(cx, buf))?;
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

    fn poll_before_write(&mut self, below: &mut S, cx: &mut Context<'_>) -> Polled {
        self.poll_write_response(below, cx)
    }
}

/// The parts of a request line before and after the path.
pub(super) const REQUEST_LINE: (&[u8], &[u8]) = (b"GET ", b" HTTP/1.1\r\n");

/// Returns the path of a request line if every parser reads it the same way: it has no query and no
/// percent-encoding.
pub(super) fn plain_get_path(line: &[u8]) -> Option<&str> {
    let path = line.strip_prefix(REQUEST_LINE.0)?.strip_suffix(REQUEST_LINE.1)?;
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'/' | b'-');
    // No early exit, so that several bytes are checked at a time.
    let invalid = path.iter().fold(0, |invalid, byte| invalid | u8::from(!is_plain(*byte)));
    let path = path.starts_with(b"/").then_some(path).filter(|_| invalid == 0)?;
    std::str::from_utf8(path).ok()
}

/// Whether the bytes begin as a GET and end in the only empty line among them, whatever a parser
/// accepts as a line end.
pub(super) fn is_single_get(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_suffix(b"\r\n\r\n").filter(|rest| rest.starts_with(b"GET "))
    else {
        return false;
    };
    let equals = |byte: &u8, other: u8| u8::from(*byte == other);
    let next = rest.iter().skip(1).zip(rest.iter().skip(2));
    // Looks at each line feed and the two bytes after it. No early exit, as above.
    let empty = rest.iter().zip(next).fold(0, |empty, (end, (first, second))| {
        let line = equals(first, b'\n') | equals(first, b'\r') & equals(second, b'\n');
        empty | equals(end, b'\n') & line
    });
    empty == 0 && !rest.ends_with(b"\n")
}

#[cfg(test)]
mod tests {
    use super::{is_single_get, plain_get_path};

    #[test]
    fn a_path_is_read_from_one_form_of_a_request_line() {
        for (line, want) in [
            ("GET /jobs/7 HTTP/1.1\r\n", Some("/jobs/7")),
            ("GET /a.b_c~d-E//x HTTP/1.1\r\n", Some("/a.b_c~d-E//x")),
            ("GET /jobs/7?a HTTP/1.1\r\n", None),
            ("GET /jobs/%37 HTTP/1.1\r\n", None),
            ("GET /jobs/7#a HTTP/1.1\r\n", None),
            ("GET  /jobs/7 HTTP/1.1\r\n", None),
            ("GET /jobs/7  HTTP/1.1\r\n", None),
            ("GET /jobs/7 HTTP/1.0\r\n", None),
            ("GET /jobs/7 HTTP/1.1\n", None),
            ("GET /jobs/7 HTTP/1.1\r\nX: HTTP/1.1\r\n", None),
            ("\r\nGET /jobs/7 HTTP/1.1\r\n", None),
            ("HEAD /jobs/7 HTTP/1.1\r\n", None),
            ("get /jobs/7 HTTP/1.1\r\n", None),
            ("GET http://a/jobs/7 HTTP/1.1\r\n", None),
            ("GET * HTTP/1.1\r\n", None),
            ("GET  HTTP/1.1\r\n", None),
            ("GET /\u{e9} HTTP/1.1\r\n", None),
        ] {
            assert_eq!(plain_get_path(line.as_bytes()), want, "{line:?}");
        }
    }

    #[test]
    fn a_head_alone_ends_in_its_only_empty_line() {
        for (bytes, want) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nA: b\r\nC: d\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nA: b\n\r\n\r\n", false),
            ("GET / HTTP/1.1\n\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\n\r\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\n\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nA: b\r\n", false),
            ("GET / HTTP/1.1\r\n\n", false),
            ("POST / HTTP/1.1\r\n\r\n", false),
            ("T / HTTP/1.1\r\n\r\n", false),
            ("", false),
            ("\r\n\r\n", false),
        ] {
            assert_eq!(is_single_get(bytes.as_bytes()), want, "{bytes:?}");
        }
    }
}
