//! The upstream of the histories: it holds the true versions, and may be slow at every step.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::sleep};

use super::record::{Clock, Commit};
use crate::support::{
    Body,
    upstream::{json, version},
};

/// Names the write of a PUT.
pub(super) const WRITE: &str = "x-write";
/// Requests a delay of this many ms before the commit.
pub(super) const SLOW: &str = "x-slow";

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

pub(super) struct Truth {
    clock: Clock,
    seed: u64,
    behaviour: UpstreamBehaviour,
    versions: Vec<AtomicU32>,
    commits: Mutex<Vec<Commit>>,
    exchanges: AtomicU64,
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
    pub(super) fn new(clock: Clock, seed: u64, jobs: u16, behaviour: UpstreamBehaviour) -> Self {
        let versions = (0..jobs).map(|_| AtomicU32::new(0)).collect();
        let (commits, exchanges) = (Mutex::default(), AtomicU64::new(0));
        Self { clock, seed, behaviour, versions, commits, exchanges }
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
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let version = self.versions[usize::from(job)].fetch_add(1, Ordering::SeqCst) + 1;
        commits.push(Commit { number, job, version, at: self.clock.now(), in_body, sent: None });
        version
    }

    pub(super) fn commits(&self) -> Vec<Commit> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn current(&self, job: u16) -> u32 {
        self.versions[usize::from(job)].load(Ordering::SeqCst)
    }

    async fn exchange(self: Arc<Self>, request: Request<Incoming>) -> Option<Response<Body>> {
        let count = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let mut rng = fastrand::Rng::with_seed(self.seed ^ count.wrapping_mul(0x9e37_79b9));
        let job: u16 = request.uri().path().strip_prefix("/jobs/j")?.parse().ok()?;
        let number = |name| {
            request.headers().get(name).and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        };
        let (write, slow) = (number(WRITE).unwrap_or(0), number(SLOW));
        let method = request.method().clone();
        // A write with an incomplete body does not count.
        request.into_body().collect().await.ok()?;
        self.step(&mut rng).await;
        if method == Method::GET {
            let read = self.current(job);
            self.step(&mut rng).await;
            return Some(self.respond(&mut rng, body(job, read)));
        }
        if let Some(ms) = slow {
            sleep(Duration::from_millis(ms)).await;
        }
        if percent(&mut rng, self.behaviour.commit_in_body) {
            return Some(self.commit_in_body(rng, job, write));
        }
        let version = self.commit(job, write, false);
        self.step(&mut rng).await;
        if percent(&mut rng, self.behaviour.broken) {
            return None;
        }
        Some(self.respond(&mut rng, body(job, version)))
    }

    /// Sends the head at once, and commits while the body streams.
    fn commit_in_body(
        self: Arc<Self>,
        mut rng: fastrand::Rng,
        job: u16,
        write: u64,
    ) -> Response<Body> {
        let (frames, response) = stream();
        tokio::spawn(async move {
            let _ = frames.send(b"\n"[..].into()).await;
            self.step(&mut rng).await;
            let version = self.commit(job, write, true);
            self.step(&mut rng).await;
            self.sent(write);
            let _ = frames.send(body(job, version)).await;
        });
        response
    }

    fn sent(&self, write: u64) {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(commit) = commits.iter_mut().rev().find(|commit| commit.number == write) {
            commit.sent = Some(self.clock.now());
        }
    }

    fn respond(&self, rng: &mut fastrand::Rng, body: Bytes) -> Response<Body> {
        if !percent(rng, self.behaviour.pieces) {
            return json(hyper::StatusCode::OK, body);
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
            n if n < self.behaviour.very_slow => rng.u64(200..900),
            n if n < self.behaviour.very_slow + self.behaviour.slow => rng.u64(5..60),
            n if n < 60 => 0,
            _ => rng.u64(..4),
        };
        Duration::from_millis(ms)
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
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    (frames, response)
}

fn body(job: u16, read: u32) -> Bytes {
    version(&format!("j{job}"), u64::from(read)).into()
}

fn percent(rng: &mut fastrand::Rng, chance: u32) -> bool {
    rng.u32(..100) < chance
}
