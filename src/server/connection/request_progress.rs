//! The progress of the requests on an HTTP/1 connection. The time limit of a head follows from it,
//! at no cost per request, and the repeat fast path learns from it what hyper waits for
//! (`FastPathState`). The layer that records it is `progress_stream`.
//!
//! hyper's own limit (`header_read_timeout`) creates a timer for every head, and polls the
//! connection once more after every response to set it: a tenth of the cost of a hit. Here requests
//! are counted. A connection has one timer, which checks a few times per limit whether the
//! connection still waits for the same head. So a head times out after the limit, or up to a
//! quarter of it later.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::time::sleep;

use crate::service::FastPathMiss;

/// Checks per limit.
const CHECKS_PER_LIMIT: u32 = 4;

/// The progress of the requests on a connection. Only the task of the connection reads or changes
/// it.
#[derive(Debug, Default)]
pub(super) struct RequestProgress {
    /// Requests with a head that has arrived.
    begun: AtomicU64,
    /// Requests with a response that is complete.
    ended: AtomicU64,
    /// 1 if the last request has a body, which may arrive for longer than its response takes.
    has_upload: AtomicU64,
    /// Bytes received.
    received_bytes: AtomicU64,
    /// One byte more than the largest head.
    over_max_head: u64,
    /// Whether the last write waits for the client. A response may still be on its way after hyper
    /// has dropped its body.
    unsent: AtomicBool,
    /// Whether the response is a stream of events, which may have nothing to say for hours.
    is_endless: AtomicBool,
}

/// The request that a connection waits for; equal while that is the same.
type AwaitedHead = (u64, u64);

impl RequestProgress {
    /// For a connection with heads of up to `head_limit` bytes.
    pub(super) fn new(head_limit: usize) -> Self {
        Self { over_max_head: head_limit as u64 + 1, ..Self::default() }
    }

    /// Records that a head has arrived, for a request with or without a body.
    pub(super) fn begin(self: &Arc<Self>, has_body: bool) -> RequestGuard {
        bump(&self.begun);
        self.has_upload.store(has_body.into(), Ordering::Relaxed);
        RequestGuard(Arc::clone(self))
    }

    /// Records bytes that have arrived.
    pub(super) fn record_received(&self, bytes: usize) {
        add(&self.received_bytes, bytes as u64);
    }

    /// Whether the response that is being sent is a stream of events.
    pub(super) fn is_endless(&self) -> bool {
        self.is_endless.load(Ordering::Relaxed)
    }

    /// Records that the response is a stream of events.
    pub(super) fn begin_endless(&self) {
        self.is_endless.store(true, Ordering::Relaxed);
    }

    /// The number of heads that have arrived.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether the last request has arrived as a whole and its response is complete.
    pub(super) fn is_between_requests(&self) -> bool {
        let [begun, ended, uploads] =
            [&self.begun, &self.ended, &self.has_upload].map(|count| count.load(Ordering::Relaxed));
        begun == ended && uploads == 0 && !self.unsent.load(Ordering::Relaxed)
    }

    /// Returns when a head has not arrived for `limit`.
    pub(super) async fn header_overdue(&self, limit: Duration) {
        let mut awaited = None;
        let mut checks = 0;
        loop {
            sleep(limit / CHECKS_PER_LIMIT).await;
            let now = self.awaited();
            checks = if now.is_some() && now == awaited { checks + 1 } else { 0 };
            awaited = now;
            if checks >= CHECKS_PER_LIMIT {
                return;
            }
        }
    }

    /// Returns `None` while a request is being answered, up to the last byte. After a request with
    /// a body, received bytes may be the rest of that body, so they count as progress. They count
    /// in units of more than a head: otherwise a byte now and then would keep a head alive for
    /// ever.
    fn awaited(&self) -> Option<AwaitedHead> {
        let [begun, ended, uploads, bytes] =
            [&self.begun, &self.ended, &self.has_upload, &self.received_bytes]
                .map(|count| count.load(Ordering::Relaxed));
        let answered = begun == ended && !self.unsent.load(Ordering::Relaxed);
        answered.then_some((begun, uploads * (bytes / self.over_max_head.max(1))))
    }

    pub(super) fn record_write<T>(&self, written: &Poll<T>) {
        self.unsent.store(written.is_pending(), Ordering::Relaxed);
    }
}

fn bump(count: &AtomicU64) {
    add(count, 1);
}

/// A load and a store suffice, because there is only one writer.
fn add(count: &AtomicU64, more: u64) {
    count.store(count.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// Records the end of one response when it is dropped.
pub(super) struct RequestGuard(Arc<RequestProgress>);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        bump(&self.0.ended);
        self.0.is_endless.store(false, Ordering::Relaxed);
    }
}

/// The state that the stream and the service of a connection share about the repeat fast path. Only
/// the task of the connection uses it.
#[derive(Debug)]
pub(super) struct FastPathState<R> {
    pub(super) progress: Arc<RequestProgress>,
    /// Whether the protocol may change after the last request that hyper has taken. Otherwise only
    /// a head can follow.
    may_switch: AtomicBool,
    /// The state that the service made from a request, with the number of the request.
    pub(super) repeat: Slot<(u64, R)>,
    /// Whether the fast path is answering a request, which hyper does not see.
    busy: AtomicBool,
    /// Whether the connection is to be closed.
    closing: AtomicBool,
    /// The report about the request that hyper takes next.
    pub(super) miss: Slot<FastPathMiss>,
}

impl<R> FastPathState<R> {
    pub(super) fn new(progress: Arc<RequestProgress>) -> Self {
        Self {
            progress,
            may_switch: AtomicBool::new(false),
            repeat: Slot::default(),
            busy: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            miss: Slot::default(),
        }
    }

    /// Records that hyper has taken a request. `may_switch` says whether the protocol may change
    /// after it. Returns what the fast path reports about the request.
    pub(super) fn request_taken(&self, may_switch: bool) -> Option<FastPathMiss> {
        self.may_switch.store(may_switch, Ordering::Relaxed);
        self.miss.take()
    }

    /// Whether hyper has dealt with all requests that it has taken, and takes a head next.
    pub(super) fn hyper_waits_for_head(&self) -> bool {
        self.progress.is_between_requests() && !self.may_switch.load(Ordering::Relaxed)
    }

    /// Records that the fast path begins to answer a request, which hyper does not see.
    pub(super) fn begin(&self) {
        bump(&self.progress.begun);
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Records that this request is answered, or is left to hyper after all.
    pub(super) fn end(&self) {
        bump(&self.progress.ended);
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Ends the fast path: hyper takes all further requests.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether the fast path is answering a request, which hyper does not see.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }
}

/// A place for a value that is rarely present: most reads take no lock.
#[derive(Debug)]
pub(super) struct Slot<T> {
    is_full: AtomicBool,
    value: Mutex<Option<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { is_full: AtomicBool::new(false), value: Mutex::new(None) }
    }
}

impl<T> Slot<T> {
    pub(super) fn put(&self, value: T) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        self.is_full.store(true, Ordering::Release);
    }

    pub(super) fn take(&self) -> Option<T> {
        if !self.is_full.load(Ordering::Acquire) {
            return None;
        }
        self.is_full.store(false, Ordering::Relaxed);
        self.value.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::{
        super::progress_stream::{Progress, ProgressStream},
        *,
    };

    const LIMIT: Duration = Duration::from_millis(80);

    async fn is_overdue(turns: &RequestProgress) -> bool {
        timeout(3 * LIMIT, turns.header_overdue(LIMIT)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_late_only_while_one_is_waited_for() {
        let turns = Arc::new(RequestProgress::default());
        assert!(is_overdue(&turns).await, "the first");
        let turn = turns.begin(false);
        assert!(!is_overdue(&turns).await);
        drop(turn);
        add(&turns.received_bytes, 1);
        assert!(is_overdue(&turns).await, "the second");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_yet_is_no_silence() {
        let turns = Arc::new(RequestProgress::default());
        let (server, mut client) = duplex(16);
        let mut server = ProgressStream::new(Progress::new(Arc::clone(&turns)), server);
        drop(turns.begin(false));
        let send = async { server.write_all(&[0; 17]).await };
        let send = async {
            send.await.unwrap();
            pending::<()>().await;
        };
        let read = async {
            sleep(2 * LIMIT).await;
            client.read_exact(&mut [0; 17]).await.unwrap();
            sleep(LIMIT / 2).await;
        };
        tokio::select! {
            () = turns.header_overdue(LIMIT) => panic!("the response is not sent yet"),
            () = send => unreachable!(),
            () = read => {}
        }
        assert!(is_overdue(&turns).await, "after the response the client is silent");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_keep_a_connection_and_the_bytes_of_a_head_do_not() {
        let busy = async |act: fn(&Arc<RequestProgress>), has_body| {
            let turns = Arc::new(RequestProgress::new(99));
            drop(turns.begin(has_body));
            let act = async {
                loop {
                    sleep(LIMIT / 3).await;
                    act(&turns);
                }
            };
            tokio::select! {
                overdue = is_overdue(&turns) => !overdue,
                () = act => unreachable!(),
            }
        };
        assert!(busy(|turns| drop(turns.begin(false)), false).await);
        assert!(!busy(|turns| add(&turns.received_bytes, 100), false).await);
        assert!(busy(|turns| add(&turns.received_bytes, 100), true).await, "it may be an upload");
        assert!(
            !busy(|turns| add(&turns.received_bytes, 1), true).await,
            "it may be a head as well"
        );
    }
}
