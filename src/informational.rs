//! Informational (1xx) responses on HTTP/1. hyper's server has no interface for them.
//!
//! A service gets an [`Informational`] with each request and sends them to the queue of the
//! connection; a layer below hyper writes the queue (`server/connection/http1_conn.rs`). An
//! answer leaves only when the queue is empty, and nothing enters the queue for a request that was
//! already answered.
//!
//! On HTTP/2 nothing reads such a queue: an [`Informational`] ignores what it is given there.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
};

use bytes::BytesMut;
use hyper::{HeaderMap, StatusCode};

/// Largest size of the queue, in bytes, for a client that does not read. A response that begins
/// below it is queued as a whole.
const MAX_QUEUED_BYTES: usize = 64 * 1024;

/// Sends the informational responses to one request.
#[derive(Clone, Debug, Default)]
pub struct Informational(Option<(Arc<InformationalQueue>, u64)>);

impl Informational {
    /// Queues an informational response. Drops it if the final response has been given, if the
    /// client accepts none, or if the queue is full.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        if let Some((queue, number)) = &self.0 {
            queue.send(*number, status, headers);
        }
    }

    /// Whether the client accepts informational responses.
    pub fn is_accepted(&self) -> bool {
        self.0.is_some()
    }

    /// Closes the queue for this request and waits until everything in it is written.
    pub(crate) async fn close(self) {
        let Some((queue, number)) = self.0 else { return };
        std::future::poll_fn(|_| queue.poll_close(number)).await;
    }
}

/// The queue of informational responses of one connection, which answers its requests one after the
/// other. Most requests have none, and take no lock.
#[derive(Debug, Default)]
pub(crate) struct InformationalQueue {
    /// Number of the request that is being answered. Only the connection changes it.
    current: AtomicU64,
    /// Number of the last request that was answered.
    last_answered: AtomicU64,
    /// Whether the queue may hold bytes. Most flushes look at nothing else.
    has_bytes: AtomicBool,
    state: Mutex<QueueState>,
}

/// The bytes of a queue, while it is locked.
#[derive(Debug, Default)]
pub(crate) struct QueueState {
    pub(crate) bytes: BytesMut,
    /// The task that flushes the stream.
    waker: Option<Waker>,
}

impl InformationalQueue {
    /// Opens the queue for the next request.
    pub(crate) fn open(self: &Arc<Self>) -> Informational {
        let number = self.current.load(Ordering::Relaxed) + 1;
        self.current.store(number, Ordering::Relaxed);
        Informational(Some((Arc::clone(self), number)))
    }

    fn send(&self, number: u64, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.lock();
        // `poll_close` uses the opposite order: either this call sees that the queue is closed, or
        // the closing side sees that bytes wait and blocks on the lock held here.
        self.has_bytes.store(true, Ordering::SeqCst);
        let open = self.last_answered.load(Ordering::SeqCst) < number;
        if open && state.bytes.len() <= MAX_QUEUED_BYTES {
            encode(&mut state.bytes, status, headers);
        }
        self.has_bytes.store(!state.bytes.is_empty(), Ordering::SeqCst);
        if let Some(connection) = &state.waker {
            connection.wake_by_ref();
        }
    }

    /// The task that flushes polls this, and polls again after each flush.
    fn poll_close(&self, number: u64) -> Poll<()> {
        self.last_answered.store(number, Ordering::SeqCst);
        if self.has_bytes.load(Ordering::SeqCst) && !self.lock().bytes.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether the queue may hold bytes.
    pub(crate) fn has_bytes(&self) -> bool {
        self.has_bytes.load(Ordering::Acquire)
    }

    /// Records that the queue is written: `state` is locked and holds no bytes.
    pub(crate) fn mark_written(&self, state: &QueueState) {
        debug_assert!(state.bytes.is_empty());
        self.has_bytes.store(false, Ordering::SeqCst);
    }

    /// Wakes `waker` for each response that is queued from now on.
    pub(crate) fn register(&self, waker: &Waker) {
        self.lock().waker = Some(waker.clone());
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper::{HeaderMap, StatusCode, header::HeaderValue};

    use super::{Informational, InformationalQueue, MAX_QUEUED_BYTES};

    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    fn hint(informational: &Informational) {
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static("</a>"));
        informational.send(StatusCode::EARLY_HINTS, &headers);
    }

    #[tokio::test]
    async fn nothing_enters_the_lane_of_a_request_that_was_answered() {
        let queue = Arc::new(InformationalQueue::default());
        let first = queue.open();
        first.clone().close().await;
        hint(&first);
        let _second = queue.open();
        hint(&first);

        assert!(queue.lock().bytes.is_empty());
    }

    #[test]
    fn a_client_that_reads_nothing_is_kept_little_for() {
        let queue = Arc::new(InformationalQueue::default());
        let informational = queue.open();
        for _ in 0..2 * MAX_QUEUED_BYTES / HINT.len() {
            hint(&informational);
        }

        assert!(queue.lock().bytes.len() <= MAX_QUEUED_BYTES + HINT.len());
    }
}
