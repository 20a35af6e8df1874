//! Permits for exchanges: each takes one of `upstream.max_connections`, or, once its answer is a
//! stream, one of `upstream.max_streams`. So streams, which may stay open for hours, never keep a
//! read or a write from the API.
//!
//! A stream is an upgrade, an event stream, or an answer with a body that is still open
//! [`LONG_ANSWER`] after its head. The first two are known in time: past the limit they are refused,
//! unless the answer is that of a write, which has been done. An answer that only lasts longer than
//! others is never broken off, and counts as a stream past the limit too. There it takes the place of
//! a request that could last as long: while there are half as many such answers as
//! `upstream.max_connections`, no request starts that the cache takes no part in and that changes nothing.
//! So misses and writes get their connections.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use hyper::{Request, Response, StatusCode, body::Body, header::UPGRADE};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};

use super::{error::UpstreamError, metrics::UpstreamMetrics};
use crate::{
    config::UpstreamConfig,
    limits::{GaugeGuard, Limit, Permit, Quota},
    semantics::policy::is_endless,
};

/// Time after its head from which an answer that still has a body to come is a stream.
const LONG_ANSWER: Duration = Duration::from_secs(1);
/// Shortest time between two looks at the answers that have lasted too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The permits of the exchanges with one upstream.
pub(super) struct Permits {
    connections: Arc<Semaphore>,
    max_connections: usize,
    /// Permits to wait for a connection: `upstream.max_waiting`.
    waiting: Semaphore,
    connect_timeout: Duration,
    streams: Arc<Quota>,
    max_streams: usize,
    /// Number of streams from which no [`PassedRead`] starts.
    most_streams: usize,
    answers: Arc<OpenAnswers>,
    metrics: Arc<UpstreamMetrics>,
}

/// Whether a request may have changed something (RFC 9110 9.2.1), so that its response must be
/// passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestSafety {
    Safe,
    Unsafe,
}

/// An extension of a request that changes nothing and that the cache takes no part in.
#[derive(Clone, Copy, Debug)]
pub struct PassedRead;

/// The permit of one exchange, held as long as it uses its connection.
#[derive(Debug)]
pub struct ConnectionPermit(Mutex<Held>);

#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Held {
    Connection(OwnedSemaphorePermit, GaugeGuard),
    Stream(Permit),
}

impl ConnectionPermit {
    /// Counts the exchange as a stream from now on.
    fn become_stream(&self, stream: Permit) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Held::Stream(stream);
    }
}

impl Permits {
    pub(super) fn new(config: &UpstreamConfig, metrics: &Arc<UpstreamMetrics>) -> Self {
        let open = &metrics.connections.streams;
        let UpstreamConfig { max_streams, max_connections, .. } = *config;
        let streams = Quota::of(Limit::UpstreamStreams, max_streams, open, &metrics.limits);
        Self {
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections,
            waiting: Semaphore::new(config.max_waiting),
            connect_timeout: config.connect_timeout,
            // Those that run when the last place is taken may all last long.
            answers: OpenAnswers::new(&streams, max_streams + 2 * max_connections),
            streams,
            max_streams,
            most_streams: max_streams + (max_connections / 2).max(1),
            metrics: Arc::clone(metrics),
        }
    }

    /// Takes the permit of an exchange, and waits for it within `upstream.connect_timeout`.
    pub(super) async fn acquire(&self) -> Result<Arc<ConnectionPermit>, UpstreamError> {
        let metrics = &self.metrics.connections;
        let in_use = |permit| {
            let held = Held::Connection(permit, GaugeGuard::increment(&metrics.in_use));
            Arc::new(ConnectionPermit(Mutex::new(held)))
        };
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            return Ok(in_use(permit));
        }
        let limit = self.max_connections;
        self.metrics.limits.count(Limit::UpstreamConnections);
        let Ok(_wait_permit) = self.waiting.try_acquire() else {
            self.metrics.limits.count(Limit::UpstreamWaiting);
            return Err(UpstreamError::Busy { limit, waited: Duration::ZERO });
        };
        let _waiting_guard = GaugeGuard::increment(&metrics.waiting);
        let waited = self.connect_timeout;
        match timeout(waited, Arc::clone(&self.connections).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(in_use(permit)),
            // The semaphore is never closed, so this is the timeout.
            _ => Err(UpstreamError::Busy { limit, waited }),
        }
    }

    /// Takes the permit for the stream that a request asks for, if it asks to switch protocols. It
    /// is refused before the upstream sees it, as is a [`PassedRead`] while too many answers last long.
    pub(super) fn stream_of<B>(
        &self,
        request: &mut Request<B>,
    ) -> Result<Option<Permit>, UpstreamError> {
        let is_passed = request.extensions_mut().remove::<PassedRead>().is_some();
        if is_passed && self.streams.used() >= self.most_streams {
            self.metrics.limits.count(Limit::UpstreamStreams);
            return Err(self.too_many_streams());
        }
        let asks = request.headers().contains_key(UPGRADE);
        asks.then(|| self.streams.take(1).ok_or_else(|| self.too_many_streams())).transpose()
    }

    /// Counts an exchange as a stream or not, from the head of its answer on. `stream` is the permit for
    /// the stream that the request asked for. Past the limit, only the answer of a safe request is
    /// refused.
    pub(super) fn count_answer<B: Body>(
        &self,
        permit: &Arc<ConnectionPermit>,
        stream: Option<Permit>,
        response: &Response<B>,
        safety: RequestSafety,
    ) -> Result<(), UpstreamError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(stream) = stream {
                permit.become_stream(stream);
            }
            return Ok(());
        }
        drop(stream);
        if response.body().is_end_stream() {
            return Ok(());
        }
        match is_endless(response.headers()).then(|| self.streams.take(1)) {
            Some(Some(stream)) => permit.become_stream(stream),
            Some(None) if safety == RequestSafety::Safe => return Err(self.too_many_streams()),
            Some(None) => {}
            None => self.answers.watch(permit),
        }
        Ok(())
    }

    fn too_many_streams(&self) -> UpstreamError {
        UpstreamError::TooManyStreams { limit: self.max_streams }
    }
}

/// The answers that had a body to come at their head, oldest first. Those that have ended are
/// removed as soon as nothing older is open.
struct OpenAnswers {
    answers: Mutex<Watched>,
    streams: Arc<Quota>,
    /// Number of streams from which an answer that lasts long keeps its connection permit.
    most_streams: usize,
}

#[derive(Default)]
struct Watched {
    answers: VecDeque<(Instant, Weak<ConnectionPermit>)>,
    /// A task looks at the answers until none is left.
    has_task: bool,
}

impl OpenAnswers {
    fn new(streams: &Arc<Quota>, most_streams: usize) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::default(), streams: Arc::clone(streams), most_streams })
    }

    fn watch(self: &Arc<Self>, permit: &Arc<ConnectionPermit>) {
        let mut watched = self.lock();
        while let Some((_, oldest)) = watched.answers.front()
            && oldest.strong_count() == 0
        {
            watched.answers.pop_front();
        }
        watched.answers.push_back((Instant::now(), Arc::downgrade(permit)));
        if !watched.has_task {
            watched.has_task = true;
            tokio::spawn(Arc::clone(self).count_long_ones());
        }
    }

    /// Counts each answer that lasts long as a stream, until there is no answer left.
    async fn count_long_ones(self: Arc<Self>) {
        while let Some(due) = self.count_due() {
            sleep_until(due.max(Instant::now() + LOOK_INTERVAL)).await;
        }
    }

    /// Counts the answers that are due, and returns when the next one is.
    fn count_due(&self) -> Option<Instant> {
        let mut watched = self.lock();
        let now = Instant::now();
        while let Some((since, permit)) = watched.answers.front() {
            let open = permit.upgrade();
            let due = *since + LONG_ANSWER;
            if open.is_some() && due > now {
                return Some(due);
            }
            watched.answers.pop_front();
            if let Some(open) = open
                && let Some(stream) = self.stream()
            {
                open.become_stream(stream);
            }
        }
        watched.has_task = false;
        None
    }

    /// Returns the permit for one more stream, past the limit too.
    fn stream(&self) -> Option<Permit> {
        self.streams.take(1).or_else(|| {
            let forced = self.streams.empty_permit();
            forced.force_grow(1);
            (self.streams.used() <= self.most_streams).then_some(forced)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    fn permit(connections: &Arc<Semaphore>) -> Arc<ConnectionPermit> {
        let permit = Arc::clone(connections).try_acquire_owned().unwrap();
        let held = Held::Connection(permit, GaugeGuard::increment(&Gauge::default()));
        Arc::new(ConnectionPermit(Mutex::new(held)))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_lasts_a_second_frees_its_connection_while_there_is_a_stream() {
        let connections = Arc::new(Semaphore::new(4));
        let streams = Quota::new(1, Gauge::default(), Counter::default());
        let answers = OpenAnswers::new(&streams, 2);
        let [short, first, second, third] = [(), (), (), ()].map(|()| permit(&connections));
        for permit in [&short, &first, &second, &third] {
            answers.watch(permit);
        }
        drop(short);
        assert_eq!(connections.available_permits(), 1);

        tokio::time::sleep(LONG_ANSWER / 2).await;
        assert_eq!(connections.available_permits(), 1, "too soon");
        tokio::time::sleep(LONG_ANSWER).await;
        assert_eq!(connections.available_permits(), 3, "one is a stream, one more past the limit");

        drop((first, second, third));
        assert_eq!(connections.available_permits(), 4);
        assert!(streams.take(1).is_some());
        assert!(!answers.lock().has_task);
        answers.watch(&permit(&connections));
        assert!(answers.lock().has_task);
    }
}
