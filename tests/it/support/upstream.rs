//! A jobs API on a real HTTP/1.1 server. It keeps versions, records every request, and can be
//! paused at the moment that a race needs.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::{Body, SOON, eventually, full, patience, soon};

/// Longest stored part of an upload; the rest is only counted.
const KEPT_BODY: usize = 64 * 1024;

/// Path of a gate that stops all requests.
const ANY: &str = "*";

/// Number of frames that a [`EventFeed`] buffers.
const FEED_DEPTH: usize = 8;

pub(crate) struct Upstream {
    url: String,
    state: Arc<State>,
    accept: JoinHandle<()>,
}

/// A request as it arrived, and the length of its body.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query, as sent.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body_len: u64,
}

/// Makes an answer from the headers and the body of a request.
type Script = Arc<dyn Fn(&HeaderMap, Bytes) -> Option<Response<Body>> + Send + Sync>;

#[derive(Default)]
struct State {
    jobs: Mutex<HashMap<String, Job>>,
    known: Mutex<Option<HashSet<String>>>,
    scripts: Mutex<HashMap<String, Script>>,
    gates: Mutex<Vec<Arc<GateState>>>,
    seen: Mutex<Vec<Seen>>,
    /// Time that each GET takes.
    delay: Mutex<Duration>,
    accepted: AtomicUsize,
    closed: AtomicUsize,
    /// Reads in progress and their peak, by path.
    open: Mutex<HashMap<String, Peak>>,
    /// Closes every open connection once it is idle.
    hang_up: Notify,
}

#[derive(Default)]
struct Job {
    version: u64,
    scripted: Option<(StatusCode, Bytes)>,
}

#[derive(Default)]
struct Peak {
    now: usize,
    most: usize,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// Starts a server with TLS.
    pub(crate) async fn start_tls(config: ServerConfig) -> Self {
        Self::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound listener");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(State::default());
        let accept = tokio::spawn(accept(listener, tls, Arc::clone(&state)));
        Self { url: format!("{scheme}://{address}"), state, accept }
    }

    /// Starts a server on a Unix socket.
    pub(crate) fn start_unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a free path");
        let state = Arc::new(State::default());
        let accept = tokio::spawn(accept_unix(listener, Arc::clone(&state)));
        Self { url: format!("unix:{}", path.display()), state, accept }
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// Answers reads of the job with this status and body from now on, without a new version.
    pub(crate) fn set(&self, id: &str, status: u16, body: impl Into<Bytes>) {
        let status = StatusCode::from_u16(status).expect("a status");
        lock(&self.state.jobs).entry(id.into()).or_default().scripted = Some((status, body.into()));
    }

    /// Acts like a write that bypasses the sidecars: the next read sees a new version.
    pub(crate) fn commit(&self, id: &str) {
        lock(&self.state.jobs).entry(id.into()).or_default().version += 1;
    }

    /// Answers 404 for all other jobs.
    pub(crate) fn only_known(&self, ids: &[&str]) {
        *lock(&self.state.known) = Some(ids.iter().map(ToString::to_string).collect());
    }

    /// Answers this exact path with the script's result for the request's body; `None` closes the
    /// connection without an answer.
    pub(crate) fn respond(
        &self,
        path: &str,
        script: impl Fn(Bytes) -> Option<Response<Body>> + Send + Sync + 'static,
    ) {
        lock(&self.state.scripts).insert(path.into(), Arc::new(move |_, body| script(body)));
    }

    /// Answers this exact path, or path and query, with the script's result for the request's headers.
    pub(crate) fn respond_to(
        &self,
        path: &str,
        script: impl Fn(&HeaderMap) -> Response<Body> + Send + Sync + 'static,
    ) {
        let script: Script = Arc::new(move |headers, _| Some(script(headers)));
        lock(&self.state.scripts).insert(path.into(), script);
    }

    /// Answers the next request of this path with these headers and a body that the test feeds.
    pub(crate) fn feed(&self, path: &str, headers: &[(&str, &str)]) -> Feed {
        let (frames, receiver) = mpsc::channel(FEED_DEPTH);
        let receiver = Mutex::new(Some(receiver));
        let headers: Vec<_> = headers.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        self.respond(path, move |_| {
            let mut receiver = lock(&receiver).take()?;
            let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
            let mut response = Response::builder();
            for (name, value) in &headers {
                response = response.header(name, value);
            }
            Some(response.body(BodyExt::boxed(StreamBody::new(frames))).expect("a valid head"))
        });
        Feed { frames }
    }

    /// Pauses matching requests before the version is read or incremented.
    pub(crate) fn hold(&self, method: Method, path: &str) -> Gate {
        self.gate(method, path, Moment::Before, usize::MAX)
    }

    /// Pauses the first `most` matching requests before the version is read or incremented.
    pub(crate) fn hold_first(&self, most: usize, method: Method, path: &str) -> Gate {
        self.gate(method, path, Moment::Before, most)
    }

    /// Takes this long for each GET from now on.
    pub(crate) fn slow_down(&self, time: Duration) {
        *lock(&self.state.delay) = time;
    }

    /// Pauses every GET before it is answered.
    pub(crate) fn hold_all(&self) -> Gate {
        self.gate(Method::GET, ANY, Moment::Before, usize::MAX)
    }

    /// Pauses matching requests after the version was read or incremented and before the answer.
    pub(crate) fn hold_after_read(&self, method: Method, path: &str) -> Gate {
        self.gate(method, path, Moment::After, usize::MAX)
    }

    /// Pauses the first matching request after the version was read or incremented.
    pub(crate) fn hold_first_after_read(&self, method: Method, path: &str) -> Gate {
        self.gate(method, path, Moment::After, 1)
    }

    /// Pauses matching requests before the first byte of their body is read.
    pub(crate) fn hold_upload(&self, method: Method, path: &str) -> Gate {
        self.gate(method, path, Moment::Upload, usize::MAX)
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget_requests(&self) {
        lock(&self.state.seen).clear();
        lock(&self.state.open).clear();
    }

    /// Returns the number of GETs of this exact path with any query, or of this path and query.
    pub(crate) fn reads(&self, path: &str) -> usize {
        self.count(&Method::GET, path)
    }

    pub(crate) fn count(&self, method: &Method, path: &str) -> usize {
        let is_it = |seen: &&Seen| {
            let is_there = seen.target == path || seen.target.split('?').next() == Some(path);
            seen.method == *method && is_there
        };
        lock(&self.state.seen).iter().filter(is_it).count()
    }

    /// Returns the largest number of GETs of this path that were open at the same time.
    pub(crate) fn peak_reads(&self, path: &str) -> usize {
        lock(&self.state.open).get(path).map_or(0, |peak| peak.most)
    }

    /// Returns the number of accepted connections.
    pub(crate) fn connections(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Closes every connection; all must be idle. Acts like a server after its keep-alive timeout.
    pub(crate) async fn close_idle(&self) {
        self.state.hang_up.notify_waiters();
        eventually(SOON, async || self.connections() == self.state.closed.load(Ordering::SeqCst))
            .await;
    }

    fn gate(&self, method: Method, path: &str, moment: Moment, most: usize) -> Gate {
        let state = Arc::new(GateState {
            method,
            path: path.into(),
            moment,
            most,
            arrived: watch::Sender::new(0),
            passes: Semaphore::new(0),
        });
        lock(&self.state.gates).push(Arc::clone(&state));
        Gate { state }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// The sending end of a response body.
pub(crate) struct Feed {
    frames: mpsc::Sender<io::Result<Frame<Bytes>>>,
}

impl Feed {
    pub(crate) async fn data(&self, bytes: &'static str) {
        self.send(Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))).await;
    }

    /// Ends the body with trailers.
    pub(crate) async fn trailers(self, trailers: HeaderMap) {
        self.send(Ok(Frame::trailers(trailers))).await;
    }

    /// Closes the connection in the middle of the body.
    pub(crate) async fn break_off(self) {
        self.send(Err(io::ErrorKind::ConnectionReset.into())).await;
    }

    /// Ends the body.
    pub(crate) fn end(self) {
        drop(self.frames);
    }

    /// Resolves when the body is no longer read.
    pub(crate) async fn abandoned(&self) {
        soon(self.frames.closed()).await;
    }

    /// Sends data until the body is no longer read: the sidecar learns of a client that is gone when it
    /// writes to it.
    pub(crate) async fn abandoned_under_way(&self) {
        let send = async {
            while self.frames.send(Ok(Frame::data(Bytes::from_static(b" ")))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(send).await;
    }

    async fn send(&self, frame: io::Result<Frame<Bytes>>) {
        soon(self.frames.send(frame)).await.expect("a reader of the body");
    }
}

/// Pauses requests at one moment of their life. Dropping the gate releases them.
pub(crate) struct Gate {
    state: Arc<GateState>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Upload,
    Before,
    After,
}

struct GateState {
    method: Method,
    path: String,
    moment: Moment,
    /// Number of requests that are paused. Later ones pass.
    most: usize,
    arrived: watch::Sender<usize>,
    passes: Semaphore,
}

impl Gate {
    /// Waits until `count` requests have arrived at the gate.
    pub(crate) async fn arrived(&self, count: usize) {
        let mut arrived = self.state.arrived.subscribe();
        let enough = arrived.wait_for(|now| *now >= count);
        if tokio::time::timeout(patience(SOON), enough).await.is_err() {
            let (method, path) = (&self.state.method, &self.state.path);
            panic!("{} of {count} arrived at the gate at {method} {path}", self.arrivals());
        }
    }

    pub(crate) fn arrivals(&self) -> usize {
        *self.state.arrived.borrow()
    }

    /// Lets one request through.
    pub(crate) fn release_one(&self) {
        self.state.passes.add_permits(1);
    }

    /// Lets all current and later requests through.
    pub(crate) fn release(&self) {
        self.state.passes.close();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.release();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.accepted.fetch_add(1, Ordering::SeqCst);
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        connections.spawn(async move {
            match tls {
                None => serve(stream, state).await,
                // A failed handshake is the client's problem.
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, state).await,
                    Err(_) => drop(state.closed.fetch_add(1, Ordering::SeqCst)),
                },
            }
        });
    }
}

async fn accept_unix(listener: UnixListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        state.accepted.fetch_add(1, Ordering::SeqCst);
        connections.spawn(serve(stream, Arc::clone(&state)));
    }
}

async fn serve<S>(stream: S, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(|request| answer(request, Arc::clone(&state)));
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    // Some tests break connections on purpose, so an error is ignored.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = state.hang_up.notified() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    state.closed.fetch_add(1, Ordering::SeqCst);
}

/// Runs the exchange independently of its connection: an upstream commits a write whether or not
/// the client still waits for the answer.
async fn answer(request: Request<Incoming>, state: Arc<State>) -> io::Result<Response<Body>> {
    let exchange = tokio::spawn(exchange(request, state));
    let response = exchange.await.map_err(io::Error::other)?;
    // An error makes hyper close the connection without an answer.
    response.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
}

async fn exchange(mut request: Request<Incoming>, state: Arc<State>) -> Option<Response<Body>> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let headers = request.headers().clone();
    let place = {
        let mut seen = lock(&state.seen);
        let headers = headers.clone();
        let target = target.clone();
        seen.push(Seen { method: method.clone(), target, headers, body_len: 0 });
        seen.len() - 1
    };
    let _open = (method == Method::GET).then(|| Open::new(Arc::clone(&state), path.clone()));
    if request.headers().contains_key(header::UPGRADE) {
        return Some(echo(&mut request));
    }
    let place_of_gates = [&*path, &*target];
    state.pass(&method, place_of_gates, Moment::Upload).await;
    let body = read(request.into_body(), |len| {
        if let Some(seen) = lock(&state.seen).get_mut(place) {
            seen.body_len = len;
        }
    })
    .await?;
    state.pass(&method, place_of_gates, Moment::Before).await;
    let delay = *lock(&state.delay);
    if method == Method::GET && !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let script = {
        let scripts = lock(&state.scripts);
        scripts.get(&target).or_else(|| scripts.get(&path)).cloned()
    };
    let response = match script {
        Some(script) => script(&headers, body),
        None => Some(state.job(&method, &path)),
    };
    state.pass(&method, place_of_gates, Moment::After).await;
    response
}

impl State {
    /// Waits at every matching gate of this moment. A gate may name the path, or path and query.
    async fn pass(&self, method: &Method, places: [&str; 2], moment: Moment) {
        let is_here = |gate: &&Arc<GateState>| {
            gate.method == *method
                && (places.contains(&&*gate.path) || gate.path == ANY)
                && gate.moment == moment
        };
        let gates: Vec<_> = lock(&self.gates).iter().filter(is_here).cloned().collect();
        for gate in gates {
            let mut is_held = true;
            gate.arrived.send_modify(|arrived| {
                *arrived += 1;
                is_held = *arrived <= gate.most;
            });
            if is_held && let Ok(pass) = gate.passes.acquire().await {
                pass.forget();
            }
        }
    }

    /// The jobs API itself.
    fn job(&self, method: &Method, path: &str) -> Response<Body> {
        let Some((id, below)) = job_of(path) else {
            return status(StatusCode::NOT_FOUND);
        };
        if lock(&self.known).as_ref().is_some_and(|known| !known.contains(&id)) {
            return status(StatusCode::NOT_FOUND);
        }
        let mut jobs = lock(&self.jobs);
        let job = jobs.entry(id.clone()).or_default();
        let is_read = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        if !is_read {
            job.version += 1;
        } else if !below && let Some((status, body)) = &job.scripted {
            return json(*status, body.clone());
        }
        json(StatusCode::OK, version(&id, job.version))
    }
}

/// Returns the body of the jobs API for a version; it is 0 before the first write.
pub(crate) fn version(id: &str, version: u64) -> String {
    format!(r#"{{"id":"{id}","version":{version},"status":"running"}}"#)
}

pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    let value = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// Returns a 200 with these headers, in this order.
pub(crate) fn with_headers(body: &'static str, headers: &[(&str, &str)]) -> Response<Body> {
    let mut response = Response::builder();
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(full(body)).expect("a valid head")
}

fn status(status: StatusCode) -> Response<Body> {
    json(status, r#"{"detail":"Not Found"}"#)
}

/// Returns the job that a lenient upstream finds in a path, and whether the path continues below
/// it.
fn job_of(path: &str) -> Option<(String, bool)> {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let mut segments = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let rest = segments.strip_prefix(&["api", "v1"]).unwrap_or(&segments);
    let (id, below) = rest.strip_prefix(&["jobs"])?.split_first()?;
    Some((id.to_ascii_lowercase(), !below.is_empty()))
}

/// Reads a body to its end and reports its growing length; returns `None` if the client
/// disconnects.
async fn read(mut body: Incoming, mut grown: impl FnMut(u64)) -> Option<Bytes> {
    let (mut kept, mut len) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            len += data.len() as u64;
            kept.extend_from_slice(&data[..data.len().min(KEPT_BODY - kept.len())]);
            grown(len);
        }
    }
    Some(kept.into())
}

/// Switches protocols and echoes every byte.
fn echo(request: &mut Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut *request);
    let protocol = request.headers()[header::UPGRADE].clone();
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.ok()?);
        let mut bytes = [0; 1024];
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => return Some(()),
                Ok(read) => stream.write_all(&bytes[..read]).await.ok()?,
            }
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::UPGRADE, protocol);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}

/// Counts a read while it is open.
struct Open {
    state: Arc<State>,
    path: String,
}

impl Open {
    fn new(state: Arc<State>, path: String) -> Self {
        {
            let mut open = lock(&state.open);
            let peak = open.entry(path.clone()).or_default();
            peak.now += 1;
            peak.most = peak.most.max(peak.now);
        }
        Self { state, path }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(peak) = lock(&self.state.open).get_mut(&self.path) {
            peak.now = peak.now.saturating_sub(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Returns an answer with this status and header field.
pub(crate) fn with_status(status: StatusCode, name: &str, value: &str) -> Response<Body> {
    let response = Response::builder().status(status).header(name, value);
    response.body(full("{}")).expect("a valid head")
}
