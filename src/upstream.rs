//! The backend: a pool of keep-alive connections, timeouts, and the retry rule.
//!
//! A request goes over the connection that was used last. One that the connection handed back
//! unsent is sent again over a new one, whatever it is; one that was sent and got no whole head of
//! an answer, nor one that is no HTTP, is repeated once only if its caller allows it, and it is safe and has no body. Either only
//! over a connection that had been used before: the upstream may have closed it for idleness. A write
//! that was sent is never repeated.

mod activity;
mod body;
pub(crate) mod collector;
mod connect;
mod error;
mod expect;
mod health;
mod http2;
mod pool;

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::{
    HeaderMap, Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    client::conn::{TrySendError, http1},
    header::TRANSFER_ENCODING,
    http::{HeaderValue, Method, request, uri::Scheme},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tracing::debug;

use self::{
    activity::Activity,
    connect::{Connector, Protocol},
    error::{broken, late},
    expect::Expectation,
    health::Health,
    pool::{Connection, Pool, Sender},
};
pub use self::{
    body::{BodyError, RequestBody, ResponseBody, UploadError},
    error::UpstreamError,
};
use crate::{
    config::{self, Config, Endpoint, HEADERS_ON_STACK},
    limits::One,
    metrics::{Limit, Metrics, OutcomeLabels},
    tls::TlsError,
};

/// How soon an upload is looked at again that has nearly used up its time.
const LOOK: Duration = Duration::from_millis(50);

/// Whether a request may be sent twice. Its method alone does not tell: a header may name another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Not once it may have arrived.
    Never,
    /// If its method is safe and it has no body.
    IfSafe,
}

/// The backend.
#[derive(Debug)]
pub struct Upstream {
    connector: Connector,
    config: config::UpstreamConfig,
    http1: http1::Builder,
    pool: Arc<Pool>,
    http2: hyper::client::conn::http2::Builder<TokioExecutor>,
    places: Arc<Semaphore>,
    /// For a place: `upstream.max_waiting`.
    queue: Semaphore,
    health: Health,
    /// `server.min_upload_rate`.
    upload_rate: usize,
    metrics: Arc<Metrics>,
}

/// One of the `upstream.max_connections`, held for as long as an exchange uses its connection.
#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
pub struct Place(OwnedSemaphorePermit, One);

impl Upstream {
    /// Prepares a pool; connects to nothing yet.
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Result<Self, TlsError> {
        let connector = Connector::new(config, &metrics)?;
        let http1 = http1(&config.server);
        let http2 = http2::builder(&config.server);
        let upload_rate = config.server.min_upload_rate;
        let config = config.upstream.clone();
        let pool = Arc::new(Pool::new(&config, &metrics));
        let places = Arc::new(Semaphore::new(config.max_connections));
        let queue = Semaphore::new(config.max_waiting);
        let health = Health::new(Arc::clone(&metrics));
        Ok(Self {
            connector,
            config,
            http1,
            pool,
            http2,
            places,
            queue,
            health,
            upload_rate,
            metrics,
        })
    }

    /// Where requests go, as `host:port`; `localhost` where it has none, being a unix socket.
    pub fn authority(&self) -> &str {
        self.connector.authority()
    }

    /// Whether a connection can be made now.
    pub async fn probe(&self) -> Result<(), UpstreamError> {
        self.connector.connect(Protocol::Http1).await.map(drop)
    }

    /// Sends a request in origin form and waits for the response head. It goes over HTTP/2 where its
    /// version says so.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        repeat: Repeat,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        announce_body(&mut request);
        let started = Instant::now();
        let protocol = match request.version() {
            Version::HTTP_2 => Protocol::Http2,
            _ => Protocol::Http1,
        };
        if protocol == Protocol::Http2 {
            http2::to_absolute_form(&mut request, self.scheme(), self.authority());
        }
        let result = self.exchange(request, protocol, repeat).await;
        self.health.tell(result.as_ref().err());
        if matches!(result, Err(UpstreamError::ClientSlow { .. })) {
            self.metrics.limits.hit(Limit::UploadRate);
        }
        let outcome = match &result {
            Ok(_) => "answered",
            Err(error) => error.as_str(),
        };
        self.metrics.upstream_requests.inc(OutcomeLabels { outcome });
        if result.is_ok() {
            // What had no head says nothing of how long one takes.
            self.metrics.upstream_took(started.elapsed());
        }
        result
    }

    async fn exchange(
        &self,
        mut request: Request<RequestBody>,
        protocol: Protocol,
        repeat: Repeat,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let place = self.place().await?;
        let mut connection = match self.pool.take(protocol) {
            Some(connection) => connection,
            None => self.connect(protocol).await?,
        };
        // Twice at most: a connection made here is not a reused one.
        loop {
            let reused = connection.reused;
            let may_repeat = reused && repeat == Repeat::IfSafe;
            let spare = may_repeat.then(|| repeatable(&request)).flatten();
            match self.attempt(connection, request).await {
                Ok(response) => {
                    return Ok(response.map(|body| body.holding(place)));
                }
                Err(Failed::Unsent(unsent)) if reused => request = *unsent,
                Err(Failed::Unsent(_)) => {
                    return Err(UpstreamError::Closed { upstream: self.authority().to_owned() });
                }
                Err(Failed::Sent(error)) => match spare {
                    Some(spare) if error.may_be_stale() => request = spare,
                    _ => return Err(error),
                },
            }
            debug!("stale upstream connection; repeating the request over a new one");
            self.metrics.upstream.retries.inc();
            connection = self.connect(protocol).await?;
        }
    }

    async fn place(&self) -> Result<Place, UpstreamError> {
        let metrics = &self.metrics.upstream;
        let place = |permit| Place(permit, One::more(&metrics.in_use));
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place(permit));
        }
        let limit = self.config.max_connections;
        self.metrics.limits.hit(Limit::UpstreamConnections);
        let Ok(_waiting) = self.queue.try_acquire() else {
            self.metrics.limits.hit(Limit::UpstreamWaiting);
            return Err(UpstreamError::Busy { limit, waited: Duration::ZERO });
        };
        let _one = One::more(&metrics.waiting);
        let waited = self.config.connect_timeout;
        match timeout(waited, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(place(permit)),
            // The semaphore is never closed.
            _ => Err(UpstreamError::Busy { limit, waited }),
        }
    }

    async fn attempt(
        &self,
        mut connection: Connection,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let (activity, expectation) = (request.body().activity(), request.body().expectation());
        let response = match &mut connection.sender {
            Sender::Http1(sender) => self.head(sender.try_send_request(request), activity).await?,
            Sender::Http2(sender) => self.head(sender.try_send_request(request), activity).await?,
        };
        let unasked = expectation.and_then(Expectation::settle);
        let limit = self.config.body_timeout;
        let body = |body| ResponseBody::new(body, connection, &self.pool, limit, unasked);
        Ok(response.map(body))
    }

    fn scheme(&self) -> Scheme {
        match self.config.endpoint() {
            Endpoint::Tls { .. } => Scheme::HTTPS,
            Endpoint::Tcp(_) | Endpoint::Unix(_) => Scheme::HTTP,
        }
    }

    /// Waits for the head of an answer.
    async fn head(
        &self,
        sent: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
        activity: Option<Arc<Activity>>,
    ) -> Result<Response<Incoming>, Failed> {
        let mut answer = pin!(sent);
        let limit = self.config.response_timeout;
        let mut deadline = Instant::now() + limit;
        loop {
            let allowance = activity.as_ref().map(|activity| {
                activity
                    .allowance(self.upload_rate, limit, Instant::now())
                    .clamp(LOOK.min(limit), limit)
            });
            let look = allowance.map_or(deadline, |left| deadline.min(Instant::now() + left));
            match tokio::time::timeout_at(look, &mut answer).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(mut error)) => {
                    return Err(match error.take_message() {
                        Some(unsent) => Failed::Unsent(Box::new(unsent)),
                        None => Failed::Sent(broken(error.into_error(), activity.as_deref())),
                    });
                }
                Err(_) if look < deadline => {
                    if self.is_too_slow(activity.as_deref()) {
                        let rate = self.upload_rate;
                        return Err(Failed::Sent(UpstreamError::ClientSlow { rate }));
                    }
                }
                // While an upload makes progress the upstream has no reason to answer.
                Err(_) => match activity.as_ref().map(|activity| activity.last() + limit) {
                    Some(later) if later > deadline => deadline = later,
                    _ => return Err(Failed::Sent(late(limit, activity.as_deref()))),
                },
            }
        }
    }

    fn is_too_slow(&self, upload: Option<&Activity>) -> bool {
        let (rate, patience) = (self.upload_rate, self.config.response_timeout);
        upload.is_some_and(|upload| upload.is_too_slow(rate, patience, Instant::now()))
    }

    async fn connect(&self, protocol: Protocol) -> Result<Connection, UpstreamError> {
        let io = TokioIo::new(self.connector.connect(protocol).await?);
        let sender = match protocol {
            Protocol::Http1 => {
                let (sender, connection) =
                    self.http1.handshake(io).await.map_err(UpstreamError::Broken)?;
                tokio::spawn(until_it_ends(connection.with_upgrades()));
                Sender::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) =
                    self.http2.handshake(io).await.map_err(UpstreamError::Broken)?;
                tokio::spawn(until_it_ends(connection));
                Sender::Http2(sender)
            }
        };
        self.metrics.upstream_connects.inc();
        Ok(Connection { sender, reused: false })
    }
}

/// What goes wrong on a connection reaches the one who uses it.
async fn until_it_ends(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(%error, "upstream connection ended");
    }
}

/// Reads answers within the limits of requests. What is merely odd in one is put right: "A proxy
/// [..] MUST remove any such whitespace" between a name and its colon (RFC 9112 5.1), and may
/// "replace each received obs-fold with one or more SP octets" (5.2).
fn http1(limits: &config::ServerConfig) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer())
        // Names go to the client as the upstream spells them; requests carry their own spelling.
        .preserve_header_case(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    if limits.max_headers > HEADERS_ON_STACK {
        http1.max_headers(limits.max_headers);
    }
    http1
}

/// hyper leaves out the body of a GET or HEAD whose length is unknown, unless a header announces it.
fn announce_body(request: &mut Request<RequestBody>) {
    if request.body().size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

enum Failed {
    /// Handed back: nothing of it left this process.
    Unsent(Box<Request<RequestBody>>),
    /// The upstream may have seen it.
    Sent(UpstreamError),
}

/// A copy of a request that is safe by its method: RFC 9110 9.2.2, "A proxy MUST NOT automatically retry
/// non-idempotent requests"; we repeat safe ones only.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
    if !safe || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

/// Gives `sink` the interim responses (1xx) that come before the answer. A 100 to a client that
/// waits for it lets its upload begin instead, for which hyper sends the client one.
pub fn relay_interim(
    request: &mut Request<RequestBody>,
    sink: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    let expectation = request.body().expectation();
    hyper::ext::on_informational(request, move |response| match &expectation {
        Some(expectation) if response.status() == StatusCode::CONTINUE => expectation.meet(),
        _ => sink(response.status(), response.headers()),
    });
}

/// What a request upstream needs beside its headers, made from the head the client sent. Its version
/// is the one to be spoken upstream.
///
/// The target is in origin form (RFC 9112 3.2.1). RFC 9112 3.2.2: "When a proxy receives a request
/// with an absolute-form of request-target, the proxy MUST ignore the received Host header field (if
/// any) and instead replace it with the host information of the request-target"; HTTP/2 says the
/// same of `:authority`.
pub fn to_origin_form(head: &mut request::Parts, default_host: &str) {
    use hyper::http::{Uri, header::HOST, uri::PathAndQuery};
    let host = head.uri.authority().map(|authority| {
        let text = authority.as_str();
        text.rsplit_once('@').map_or(text, |(_, host)| host).to_owned()
    });
    let host = match host {
        Some(host) => Some(host),
        None if !head.headers.contains_key(HOST) => Some(default_host.to_owned()),
        None => None,
    };
    if let Some(value) = host.and_then(|host| HeaderValue::try_from(host).ok()) {
        head.headers.insert(HOST, value);
    }
    let target = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let mut parts = hyper::http::uri::Parts::default();
    parts.path_and_query = Some(target);
    // A path alone is always a valid target.
    head.uri = Uri::from_parts(parts).unwrap_or_default();
    head.version = if http2::is_needed(head) { Version::HTTP_2 } else { Version::HTTP_11 };
}
