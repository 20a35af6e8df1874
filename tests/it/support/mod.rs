//! A real Redis, a real upstream, a sidecar and a client, each with the faults a test asks for.

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
pub(crate) mod sentinel;
pub(crate) mod sidecar;
pub(crate) mod tls;
pub(crate) mod two;
pub(crate) mod upstream;

pub(crate) use client::{Client, Reply};
pub(crate) use clock::steady_clock;
pub(crate) use cluster::Cluster;
pub(crate) use load::Load;
pub(crate) use redis::RedisServer;
pub(crate) use sidecar::{Process, Setup};
pub(crate) use upstream::Upstream;

/// How long anything that must happen may take, by the [`steady_clock`]. No longer than the defaults of the leases, the
/// lingers and the drain: what ends only with one of these has not happened soon.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How much longer it may take on several threads, where the clock is the machine's.
const UNSTEADY: u32 = 3;

/// Between two looks of [`eventually`].
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A body of either side, streamed or whole.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body of `size` zero bytes that is never held in memory as a whole.
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

/// What one look of [`eventually`] found: an answer, or why there is none yet.
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

/// Looks again and again until something is found; panics at the caller's line when `deadline`
/// passes first. Beside the gates this is the only way in which a test waits.
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

/// The same for what may never happen: what the last look found when `deadline` passes first.
pub(crate) async fn within<L: Look>(
    deadline: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> Result<L::Found, String> {
    let end = Instant::now() + patience(deadline);
    let mut last = String::from("the first look never ended");
    loop {
        let Ok(look) = tokio::time::timeout_at(end, look()).await else { return Err(last) };
        match look.found() {
            Ok(found) => return Ok(found),
            Err(why) => last = why,
        }
        // A look that waits for nothing is never too late for `timeout_at`.
        if Instant::now() >= end {
            return Err(last);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What a deadline comes to on this runtime.
fn patience(deadline: Duration) -> Duration {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => deadline,
        _ => deadline * UNSTEADY,
    }
}

/// Awaits something that must end [`SOON`]; panics at the caller's line when it does not.
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

/// A port that was free a moment ago, for children that bind it themselves.
///
/// Below Linux' ephemeral range (32768 and up), so that no outgoing connection takes it while a
/// server is being restarted on it. Whoever uses it retries on a clash with another process.
pub(crate) fn free_port() -> u16 {
    /// Some are only bound a while after they were found.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1_000)
        .map(|_| fastrand::u16(10_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok() && given.insert(*port))
        .expect("a free port")
}
