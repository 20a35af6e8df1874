//! The boundary between `server` and the code that answers requests.
//!
//! A server knows nothing about what it serves, and a service knows nothing about connections. A
//! [`Service`] answers requests. Its part [`RepeatFastPath`] is for a request that repeats the
//! header fields of an earlier request and differs only in its path: then the service needs only
//! what it kept from the earlier fields. How the server finds out that the fields are the same is
//! the server's business; a service relies on it. Both sides know when a [`Drain`] has begun.
//!
//! Informational (1xx) responses on HTTP/1 pass here too, because hyper's server has no interface
//! for them. A service gets an [`Informational`] with each request and sends them to the queue of
//! the connection; a layer below hyper writes the queue (`server/connection/http1_conn.rs`). An
//! answer leaves only when the queue is empty, and nothing enters the queue for a request that was
//! already answered. On HTTP/2 nothing reads such a queue: an [`Informational`] ignores what it is
//! given there.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Incoming},
};
use tokio::{
    sync::{SetOnce, watch},
    time::{sleep, timeout},
};

use crate::transport::{ConnectionId, Peer};

/// A service that answers requests. A closure that answers requests is a service without the fast
/// path.
pub trait Service: RepeatFastPath + Clone + Send + Sync + 'static {
    /// The response body.
    type Body: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static;

    /// Answers one request.
    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<Self::Body, Self::Repeat>> + Send + 'static;

    /// Registers an HTTP/1 connection. Its requests follow one another, and their peer carries the
    /// id.
    fn open_connection(&self) -> Option<ConnectionId> {
        None
    }

    /// Ends what belongs to a connection that is now closed.
    fn close_connection(&self, _connection: ConnectionId) {}
}

/// Answers requests that repeat the header fields of an earlier request of their connection.
pub trait RepeatFastPath {
    /// The state that is kept from the header fields of a request.
    type Repeat: Send + 'static;

    /// Whether a connection that begins now gets the fast path. Otherwise all of its requests are
    /// served the ordinary way.
    fn is_offered(&self) -> bool;

    /// Answers a GET over HTTP/1.1 for `path`, which has no query. The request comes from the same
    /// peer and has exactly the header fields that `repeat` was made from. Writes the response head
    /// to `head` and returns the body. An error means that the request must be served the ordinary
    /// way; nothing was written then.
    ///
    /// After `Pending` the same task polls again for the same path, or drops `repeat`.
    fn poll_repeat(
        &self,
        repeat: &mut Self::Repeat,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>>;
}

/// An answer, and what to keep from its request.
#[derive(Debug)]
pub struct Answered<B, R> {
    /// The response to send.
    pub response: Response<B>,
    /// Set if a repeat of this request can be answered faster.
    pub repeat: Option<R>,
}

/// The result of a repeat that the fast path did not answer. It is also an extension of the request
/// if the request is then served the ordinary way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathMiss {
    /// How long the request has already waited for the store.
    pub waited: Duration,
    /// Whether the request was sampled for a comparison with the upstream.
    pub decision: SampleDecision,
}

/// Whether a request is sampled. The decision is made once per request, wherever the request is
/// answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SampleDecision {
    /// Not decided yet; it may never be.
    #[default]
    Undecided,
    /// The request is sampled.
    Sampled,
    /// The request is not sampled.
    NotSampled,
}

impl<F, A, B> Service for F
where
    F: Fn(Request<Incoming>, Peer, Informational) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    type Body = B;

    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<B, Infallible>> + Send + 'static {
        let answer = self(request, client, informational);
        async move { Answered { response: answer.await, repeat: None } }
    }
}

impl<F, A> RepeatFastPath for F
where
    F: Fn(Request<Incoming>, Peer, Informational) -> A,
{
    type Repeat = Infallible;

    fn is_offered(&self) -> bool {
        false
    }

    fn poll_repeat(
        &self,
        repeat: &mut Infallible,
        _path: &str,
        _head: &mut Vec<u8>,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>> {
        match *repeat {}
    }
}

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

/// Becomes true when servers must stop accepting connections.
pub type Drain = watch::Receiver<bool>;

/// Waits for the drain. Also returns when the sender is dropped.
pub(crate) async fn until_drain(drain: &mut Drain) {
    let _ = drain.wait_for(|is_draining| *is_draining).await;
}

/// Time that a drain gives a connection that has sent nothing yet. Its request may be on its way,
/// and a client that has just connected would see the close as an error.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// Returns when a drain has lasted so long that a connection that has sent nothing counts as idle.
pub(crate) async fn silent_during_drain(drain: &mut Drain) {
    until_drain(drain).await;
    sleep(FIRST_REQUEST_GRACE).await;
}

/// The first request of a connection.
#[derive(Debug, Default)]
pub(crate) struct FirstRequest(SetOnce<()>);

impl FirstRequest {
    /// Records that the connection has had a request.
    pub(crate) fn mark_begun(&self) {
        if !self.0.initialized() {
            let _ = self.0.set(());
        }
    }

    /// Returns when a drain has begun and the connection has had a request, or enough time for one.
    /// An earlier shutdown would make hyper close a connection that has had no request, even while
    /// it reads the first head.
    pub(crate) async fn ready_to_close(&self, drain: &mut Drain) {
        until_drain(drain).await;
        let _ = timeout(FIRST_REQUEST_GRACE, self.0.wait()).await;
    }
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
    async fn nothing_enters_the_queue_of_a_request_that_was_answered() {
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
