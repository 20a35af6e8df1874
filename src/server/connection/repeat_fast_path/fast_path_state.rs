//! The state that the two ends of the fast path share: the stream below hyper, and the connection
//! that passes requests from hyper to the service.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::super::header_timeout::RequestProgress;
use crate::service::FastPathMiss;

/// The state that the stream and the service of a connection share. Only the task of the connection
/// uses it.
#[derive(Debug)]
pub(in super::super) struct FastPathState<R> {
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

impl<R> FastPathState<R> {
    pub(in super::super) fn new(progress: Arc<RequestProgress>) -> Self {
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
    pub(in super::super) fn request_taken(&self, may_switch: bool) -> Option<FastPathMiss> {
        self.only_head_follows.store(!may_switch, Ordering::Relaxed);
        if !self.has_miss.load(Ordering::Relaxed) {
            return None;
        }
        self.has_miss.store(false, Ordering::Relaxed);
        Some(*self.lock_miss())
    }

    /// Records that the service declined the request that hyper takes next.
    pub(super) fn record_miss(&self, miss: FastPathMiss) {
        let has_report = miss != FastPathMiss::default();
        if has_report {
            *self.lock_miss() = miss;
        }
        self.has_miss.store(has_report, Ordering::Relaxed);
    }

    /// Keeps the state that the service made from the request with this number.
    pub(in super::super) fn keep(&self, number: u64, repeat: R) {
        *self.lock_repeat() = Some((number, repeat));
        self.has_repeat.store(true, Ordering::Release);
    }

    /// Takes the state that was kept last, with the number of its request.
    pub(super) fn take_repeat(&self) -> Option<(u64, R)> {
        if !self.has_repeat.load(Ordering::Acquire) {
            return None;
        }
        self.has_repeat.store(false, Ordering::Relaxed);
        self.lock_repeat().take()
    }

    /// The number of heads that have arrived.
    pub(super) fn begun(&self) -> u64 {
        self.progress.begun()
    }

    /// Whether hyper has dealt with all requests that it has taken, and takes a head next.
    pub(super) fn hyper_waits_for_head(&self) -> bool {
        self.progress.is_between_requests() && self.only_head_follows.load(Ordering::Relaxed)
    }

    /// Records that the answer of a request begins that hyper does not see.
    pub(super) fn begin(&self) {
        self.progress.begin_fast_path();
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Records that this request is answered, or is left to hyper after all.
    pub(super) fn end(&self) {
        self.progress.end_fast_path();
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Ends the fast path: hyper takes all further requests.
    pub(in super::super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Whether a request is being answered that hyper does not see.
    pub(in super::super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn lock_miss(&self) -> MutexGuard<'_, FastPathMiss> {
        self.miss.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_repeat(&self) -> MutexGuard<'_, Option<(u64, R)>> {
        self.repeat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
