//! The upstream of the histories: it holds the true versions, and may be slow at every step.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_TYPE, HeaderValue, LOCATION},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::sleep};

use super::{
    callers::{Caller, caller, is_personal},
    ids::Ids,
    record::{Clock, Commit, Served},
    spelling::Understood,
};
use crate::support::{
    Body,
    upstream::{json, version},
};

/// Names a write. Its second job has the next number.
pub(super) const WRITE: &str = "x-write";
/// Requests a delay of this many ms before the commit.
pub(super) const SLOW: &str = "x-slow";
/// Requests an answer before the end of the upload, at which the write is committed.
pub(super) const EARLY: &str = "x-early";

/// Behaviour of the upstream, in percent of its exchanges.
#[derive(Clone, Copy, Debug)]
pub(super) struct UpstreamBehaviour {
    /// A step that takes 5 to 60 ms; others take up to 3 ms.
    pub(super) slow: u32,
    /// A step that takes 200 to 900 ms.
    pub(super) very_slow: u32,
    /// A body that is sent in pieces.
    pub(super) pieces: u32,
    /// A write that commits while its answer streams.
    pub(super) commit_in_body: u32,
    /// A write that commits and then breaks the connection.
    pub(super) broken: u32,
}

/// Longest slow and very slow step, in milliseconds.
const SLOW_MS: u64 = 60;
const VERY_SLOW_MS: u64 = 900;

impl UpstreamBehaviour {
    /// Returns the longest time of a read: two steps, and a pause within the body.
    pub(super) const fn longest_read_ms(&self) -> u64 {
        let step = if self.very_slow > 0 { VERY_SLOW_MS } else { SLOW_MS };
        3 * step
    }
}

pub(super) struct Truth {
    clock: Clock,
    seed: u64,
    ids: Ids,
    behaviour: UpstreamBehaviour,
    versions: Vec<AtomicU32>,
    log: Mutex<Log>,
    exchanges: AtomicU64,
}

/// What has happened, in the order in which it did.
#[derive(Default)]
struct Log {
    commits: Vec<Commit>,
    served: Served,
}

/// A write that was understood.
struct Change {
    number: u64,
    understood: Understood,
}

/// Serves the truth until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    accept: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Truth {
    pub(super) fn new(
        clock: Clock,
        seed: u64,
        (jobs, ids): (u16, Ids),
        behaviour: UpstreamBehaviour,
    ) -> Self {
        let versions = (0..jobs).map(|_| AtomicU32::new(0)).collect();
        let (log, exchanges) = (Mutex::default(), AtomicU64::new(0));
        Self { clock, seed, ids, behaviour, versions, log, exchanges }
    }

    pub(super) async fn serve(self: &Arc<Self>) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let truth = Arc::clone(self);
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let truth = Arc::clone(&truth);
                let service = service_fn(move |request| answer(Arc::clone(&truth), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Server { address, accept }
    }

    /// Makes a new version; reads after the return see it.
    pub(super) fn commit(&self, job: u16, number: u64, in_body: bool) -> u32 {
        let mut log = self.log();
        let version = self.versions[usize::from(job)].fetch_add(1, Ordering::SeqCst) + 1;
        let at = self.clock.now();
        log.commits.push(Commit { number, job, version, at, in_body, sent: None });
        version
    }

    pub(super) fn version(&self, job: u16) -> u32 {
        self.versions[usize::from(job)].load(Ordering::SeqCst)
    }

    /// Returns the commits, and what was served.
    pub(super) fn observed(&self) -> (Vec<Commit>, Served) {
        let log = self.log();
        (log.commits.clone(), log.served.clone())
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a job for a caller.
    fn read(&self, job: u16, caller: Caller) -> Option<Bytes> {
        let mut log = self.log();
        let version = self.versions.get(usize::from(job))?.load(Ordering::SeqCst);
        let now = self.clock.now();
        log.served.entry((job, version, caller)).or_insert(now);
        let view = is_personal(job).then_some(caller);
        Some(self.body(job, version, view))
    }

    async fn exchange(self: Arc<Self>, request: Request<Incoming>) -> Option<Response<Body>> {
        let count = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let mut rng = fastrand::Rng::with_seed(self.seed ^ count.wrapping_mul(0x9e37_79b9));
        let (head, body) = request.into_parts();
        let number = |name| {
            head.headers.get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        };
        let write = number(WRITE).unwrap_or(0);
        if number(EARLY).is_some() {
            let understood = Understood::of(self.ids, &head.uri, b"")?;
            let change = Change { number: write, understood };
            return Some(self.commit_in_body(rng, change, Some(body)));
        }
        // A write with an incomplete body does not count.
        let body = body.collect().await.ok()?.to_bytes();
        let understood = Understood::of(self.ids, &head.uri, &body)?;
        self.step(&mut rng).await;
        if head.method == Method::GET {
            let read = self.read(understood.jobs[0], caller(&head.headers))?;
            self.step(&mut rng).await;
            return Some(self.respond(&mut rng, read));
        }
        if let Some(ms) = number(SLOW) {
            sleep(Duration::from_millis(ms)).await;
        }
        let change = Change { number: write, understood };
        if percent(&mut rng, self.behaviour.commit_in_body) {
            return Some(self.commit_in_body(rng, change, None));
        }
        let answer = self.commit_all(&change, false);
        self.step(&mut rng).await;
        if percent(&mut rng, self.behaviour.broken) {
            return None;
        }
        Some(change.located(self.respond(&mut rng, answer)))
    }

    /// Commits a write, and returns the body of its answer.
    fn commit_all(&self, change: &Change, in_body: bool) -> Bytes {
        let numbered = change.understood.jobs.iter().zip(change.number..);
        let committed = numbered.map(|(job, number)| (*job, self.commit(*job, number, in_body)));
        let (job, version) = committed.last().expect("a job");
        self.body(job, version, None)
    }

    /// Sends the head at once, and commits while the body streams. If there is an upload, the commit
    /// comes at its end.
    fn commit_in_body(
        self: Arc<Self>,
        mut rng: fastrand::Rng,
        change: Change,
        upload: Option<Incoming>,
    ) -> Response<Body> {
        let (frames, response) = stream();
        let response = change.located(response);
        tokio::spawn(async move {
            let _ = frames.send(b"\n"[..].into()).await;
            if let Some(upload) = upload
                && upload.collect().await.is_err()
            {
                return;
            }
            self.step(&mut rng).await;
            let answer = self.commit_all(&change, true);
            self.step(&mut rng).await;
            self.sent(&change);
            let _ = frames.send(answer).await;
        });
        response
    }

    fn sent(&self, change: &Change) {
        let now = self.clock.now();
        let mut log = self.log();
        for (_, number) in change.understood.jobs.iter().zip(change.number..) {
            if let Some(commit) = log.commits.iter_mut().rev().find(|it| it.number == number) {
                commit.sent = Some(now);
            }
        }
    }

    fn respond(&self, rng: &mut fastrand::Rng, body: Bytes) -> Response<Body> {
        if !percent(rng, self.behaviour.pieces) {
            return json(StatusCode::OK, body);
        }
        let (frames, response) = stream();
        let pause = self.draw(rng);
        tokio::spawn(async move {
            let half = body.len() / 2;
            let _ = frames.send(body.slice(..half)).await;
            sleep(pause).await;
            let _ = frames.send(body.slice(half..)).await;
        });
        response
    }

    async fn step(&self, rng: &mut fastrand::Rng) {
        let pause = self.draw(rng);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> Duration {
        let ms = match rng.u32(..100) {
            n if n < self.behaviour.very_slow => rng.u64(200..VERY_SLOW_MS),
            n if n < self.behaviour.very_slow + self.behaviour.slow => rng.u64(5..SLOW_MS),
            n if n < 60 => 0,
            _ => rng.u64(..4),
        };
        Duration::from_millis(ms)
    }

    fn body(&self, job: u16, read: u32, view: Option<Caller>) -> Bytes {
        let body = version(&self.ids.id(job), u64::from(read));
        let Some(caller) = view else { return body.into() };
        let open = body.strip_suffix('}').expect("an object");
        format!(r#"{open},"caller":{caller}}}"#).into()
    }
}

impl Change {
    fn located(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(location) = &self.understood.location {
            *response.status_mut() = StatusCode::CREATED;
            let location = HeaderValue::from_str(location).expect("a target");
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

/// Runs the exchange independently of its connection: an upstream commits a write whether or not
/// the client still waits for the answer.
async fn answer(truth: Arc<Truth>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let exchange = tokio::spawn(truth.exchange(request));
    exchange.await.map_err(io::Error::other)?.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
}

fn stream() -> (mpsc::Sender<Bytes>, Response<Body>) {
    let (frames, mut receiver) = mpsc::channel::<Bytes>(2);
    let frames_out = futures_util::stream::poll_fn(move |cx| {
        receiver.poll_recv(cx).map(|frame| Some(Ok::<_, Infallible>(Frame::data(frame?))))
    });
    let body = StreamBody::new(frames_out).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (frames, response)
}

fn percent(rng: &mut fastrand::Rng, chance: u32) -> bool {
    rng.u32(..100) < chance
}
