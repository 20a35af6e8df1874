//! A real Redis, a real upstream, a sidecar and a client, with the faults that a test requests.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    future::Future,
    io,
    net::TcpListener,
    panic::Location,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    time::Instant,
};

pub(crate) mod browser;
pub(crate) mod bus;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod collector;
pub(crate) mod load;
pub(crate) mod promql;
pub(crate) mod promtool;
pub(crate) mod python;
pub(crate) mod raw;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod sentinel;
pub(crate) mod sidecar;
pub(crate) mod tls;
pub(crate) mod transcript;
pub(crate) mod two_clients;
pub(crate) mod upstream;

pub(crate) use client::{Client, Reply};
pub(crate) use clock::steady_clock;
pub(crate) use cluster::Cluster;
pub(crate) use load::Load;
pub(crate) use redis::RedisServer;
pub(crate) use sidecar::{Process, Setup};
pub(crate) use upstream::Upstream;

/// Time limit for anything that must happen, by the [`steady_clock`]. It is no longer than the default
/// lease, linger and drain times, so that nothing passes that happens only when one of them expires.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Factor for time limits on a runtime of several threads, which uses the machine's clock.
const UNSTEADY: u32 = 3;

/// Interval between two looks of [`eventually`].
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A request or response body, streamed or whole.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// Returns a body of `size` zero bytes that is never held in memory as a whole.
pub(crate) fn zeros(size: u64) -> Body {
    static CHUNK: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut left = size;
    let chunks = futures_util::stream::poll_fn(move |_| {
        let next = left.min(CHUNK.len() as u64);
        left -= next;
        let chunk = usize::try_from(next).expect("no larger than a chunk");
        let data = hyper::body::Frame::data(Bytes::from_static(&CHUNK[..chunk]));
        std::task::Poll::Ready((chunk > 0).then_some(Ok(data)))
    });
    BodyExt::boxed(http_body_util::StreamBody::new(chunks))
}

/// Result of one look of [`eventually`]: the value, or the reason why there is none yet.
pub(crate) trait Look {
    type Found;
    fn found(self) -> Result<Self::Found, String>;
}

impl Look for bool {
    type Found = ();
    fn found(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".into()) }
    }
}

impl<T> Look for Option<T> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".into())
    }
}

impl<T, E: Debug> Look for Result<T, E> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// Looks repeatedly until something is found; panics at the caller's line after `deadline`. Apart
/// from gates, tests wait only through this function.
#[track_caller]
pub(crate) fn eventually<L: Look>(
    deadline: Duration,
    look: impl AsyncFnMut() -> L,
) -> impl Future<Output = L::Found> {
    let caller = Location::caller();
    async move {
        let found = within(deadline, look).await;
        found.unwrap_or_else(|last| panic!("{caller}: not within {deadline:?}; last: {last}"))
    }
}

/// Like [`eventually`] for conditions that may never hold: returns the last result after
/// `deadline`.
pub(crate) async fn within<L: Look>(
    deadline: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> Result<L::Found, String> {
    let end = Instant::now() + patience(deadline);
    let mut last = String::from("the first look did not end");
    loop {
        let Ok(look) = tokio::time::timeout_at(end, look()).await else { return Err(last) };
        match look.found() {
            Ok(found) => return Ok(found),
            Err(why) => last = why,
        }
        // `timeout_at` never fires for a look that is ready at once.
        if Instant::now() >= end {
            return Err(last);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns a deadline adapted to this runtime.
fn patience(deadline: Duration) -> Duration {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => deadline,
        _ => deadline * UNSTEADY,
    }
}

/// Awaits a future that must end [`SOON`]; panics at the caller's line otherwise.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        let Ok(output) = tokio::time::timeout(patience(SOON), future).await else {
            panic!("{caller}: did not end within {SOON:?}");
        };
        output
    }
}

/// Returns a port that was free a moment ago, for children that bind it themselves.
///
/// The port is below Linux's ephemeral range (32768 and up), so that no outgoing connection takes
/// it while a server is being restarted on it. Callers must retry on a clash with another process.
pub(crate) fn free_port() -> u16 {
    /// Ports already returned, because some are bound only a while later.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port))
        .expect("a free port")
}
