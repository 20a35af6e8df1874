//! The client for the upstream: a pool of keep-alive connections, timeouts, and the retry rule.
//!
//! A request uses the connection that was used last. The upstream may have closed that one for
//! idleness, so a request that fails on a reused connection is sent again over a new one in two
//! cases:
//! - The connection handed the request back unsent. Then any request is sent again.
//! - The request was sent, but the exchange broke before a whole response head arrived, and nothing
//!   arrived that is not HTTP. Then it is sent again once, if its caller allows that, its method is
//!   safe and it has no body.
//!
//! A write that was sent is never repeated, nor is a login that belongs to its connection: `bound`
//! has those. An extension of a request, its [`ConnectionId`], names the client connection.

mod activity;
mod bound;
pub(crate) mod collector;
mod connect;
mod error;
mod expect;
mod health;
mod http2;
mod message_body;
pub(crate) mod metrics;
mod pool;
mod upload_end;

use std::{fmt, pin::pin, sync::Arc, time::Duration};

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
    activity::UploadActivity,
    bound::{BoundConnections, Login},
    connect::{Connector, UpstreamProtocol},
    error::{broken_error, timeout_error},
    expect::Expectation,
    health::Health,
    metrics::UpstreamMetrics,
    pool::{ConnectionHome, Pool, PooledConnection, RequestSender},
};
pub use self::{
    error::UpstreamError,
    message_body::{BodyError, RequestBody, ResponseBody, UploadError},
    upload_end::{UploadEnd, UploadOutcome},
};
use crate::{
    config::{self, Config, Endpoint, HEADERS_ON_STACK},
    limits::{GaugeGuard, Limit},
    observe::{events::Events, metrics::Registry},
    semantics::connection_auth::is_login,
    tls::{TlsError, TlsMetrics},
    transport::ConnectionId,
};

/// Shortest wait before an upload that has nearly used up its time is checked again.
const MIN_UPLOAD_CHECK: Duration = Duration::from_millis(50);

/// Whether a request may be sent twice. Its method alone does not decide this: a header may
/// override the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Not after it may have arrived.
    Never,
    /// If its method is safe and it has no body.
    OnceIfSafe,
}

/// The client for the upstream.
pub struct Upstream {
    connector: Connector,
    config: config::UpstreamConfig,
    http1: http1::Builder,
    pool: Arc<Pool>,
    bound: Arc<BoundConnections>,
    http2: hyper::client::conn::http2::Builder<TokioExecutor>,
    permits: Arc<Semaphore>,
    /// Permits to wait for a connection: `upstream.max_waiting`.
    wait_permits: Semaphore,
    health: Health,
    /// `server.min_upload_rate`.
    min_upload_rate: usize,
    metrics: Arc<UpstreamMetrics>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("connector", &self.connector)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// One of `upstream.max_connections`, held as long as an exchange uses its connection.
#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
pub struct ConnectionPermit(OwnedSemaphorePermit, GaugeGuard);

impl Upstream {
    /// Creates an empty pool. Does not connect yet.
    pub fn new(
        config: &Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, TlsError> {
        let metrics = Arc::new(UpstreamMetrics::register(registry));
        let tls = TlsMetrics::shared(registry);
        let connector = Connector::new(&config.upstream, config.tls_renew_interval, tls)?;
        let http1 = http1_builder(&config.server);
        let http2 = http2::builder(&config.server);
        let upload_rate = config.server.min_upload_rate;
        let config = config.upstream.clone();
        let pool = Arc::new(Pool::new(&config, metrics.connections.idle.clone()));
        let bound = Arc::new(BoundConnections::new(&config, &metrics.connections));
        let places = Arc::new(Semaphore::new(config.max_connections));
        let queue = Semaphore::new(config.max_waiting);
        let health = Health::new(metrics.up.clone(), events);
        Ok(Self {
            connector,
            config,
            http1,
            pool,
            bound,
            http2,
            permits: places,
            wait_permits: queue,
            health,
            min_upload_rate: upload_rate,
            metrics,
        })
    }

    /// The `host:port` that requests go to; `localhost` for a unix socket.
    pub fn authority(&self) -> &str {
        self.connector.authority()
    }

    /// Returns the metrics of this upstream.
    pub(crate) fn metrics(&self) -> &Arc<UpstreamMetrics> {
        &self.metrics
    }

    /// Checks that a connection can be made now.
    pub async fn probe(&self) -> Result<(), UpstreamError> {
        self.connector.connect(UpstreamProtocol::Http1).await.map(drop)
    }

    /// Sends a request in origin form and waits for the response head. The version of the request
    /// selects HTTP/1.1 or HTTP/2.
    pub async fn send(
        &self,
        mut request: Request<RequestBody>,
        repeat: RetryPolicy,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        announce_body(&mut request);
        let started = Instant::now();
        let protocol = match request.version() {
            Version::HTTP_2 => UpstreamProtocol::Http2,
            _ => UpstreamProtocol::Http1,
        };
        if protocol == UpstreamProtocol::Http2 {
            http2::to_absolute_form(&mut request, self.scheme(), self.authority());
        }
        let result = self.exchange(request, protocol, repeat).await;
        self.health.record(result.as_ref().err());
        if matches!(result, Err(UpstreamError::ClientSlow { .. })) {
            self.metrics.limits.count(Limit::UploadRate);
        }
        let outcome = match &result {
            Ok(_) => "answered",
            Err(error) => error.as_str(),
        };
        self.metrics.requests.inc([outcome]);
        if result.is_ok() {
            // A failed exchange says nothing about the time to a response head.
            self.metrics.record_response(started.elapsed());
        }
        result
    }

    async fn exchange(
        &self,
        mut request: Request<RequestBody>,
        protocol: UpstreamProtocol,
        repeat: RetryPolicy,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let permit = self.acquire_permit().await?;
        let client = request.extensions_mut().remove::<ConnectionId>();
        let login = if is_login(request.headers()) { Login::Present } else { Login::Absent };
        let mut connection = self.connection(client, login, protocol).await?;
        // At most two attempts: a connection made here is not a reused one.
        loop {
            // A login that moves to another connection is worth nothing there.
            let reused = connection.reused && login == Login::Absent;
            let may_repeat = reused && repeat == RetryPolicy::OnceIfSafe;
            let copy = may_repeat.then(|| retry_copy(&request)).flatten();
            let home = match &connection.home {
                ConnectionHome::Pool(pool) => ConnectionHome::Pool(Arc::clone(pool)),
                _ => ConnectionHome::NowhereNorClient,
            };
            match self.attempt(connection, request, client).await {
                Ok(response) => {
                    return Ok(response.map(|body| body.with_permit(permit)));
                }
                Err(AttemptError::Unsent(unsent)) if reused => request = *unsent,
                Err(AttemptError::Unsent(_)) => {
                    return Err(UpstreamError::Closed { upstream: self.authority().to_owned() });
                }
                Err(AttemptError::Sent(error)) => match copy {
                    Some(copy) if error.may_be_stale() => request = copy,
                    _ => return Err(error),
                },
            }
            debug!("stale upstream connection; sending the request again over a new one");
            self.metrics.retries.inc();
            connection = self.connect(protocol, home).await?;
        }
    }

    async fn acquire_permit(&self) -> Result<ConnectionPermit, UpstreamError> {
        let metrics = &self.metrics.connections;
        let in_use = |permit| ConnectionPermit(permit, GaugeGuard::increment(&metrics.in_use));
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(in_use(permit));
        }
        let limit = self.config.max_connections;
        self.metrics.limits.count(Limit::UpstreamConnections);
        let Ok(_wait_permit) = self.wait_permits.try_acquire() else {
            self.metrics.limits.count(Limit::UpstreamWaiting);
            return Err(UpstreamError::Busy { limit, waited: Duration::ZERO });
        };
        let _waiting_guard = GaugeGuard::increment(&metrics.waiting);
        let waited = self.config.connect_timeout;
        match timeout(waited, Arc::clone(&self.permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(in_use(permit)),
            // The semaphore is never closed, so this is the timeout.
            _ => Err(UpstreamError::Busy { limit, waited }),
        }
    }

    async fn attempt(
        &self,
        mut connection: PooledConnection,
        request: Request<RequestBody>,
        client: Option<ConnectionId>,
    ) -> Result<Response<ResponseBody>, AttemptError> {
        let activity = request.body().activity();
        let expectation = request.body().expectation();
        let response = match &mut connection.sender {
            RequestSender::Http1(sender) => {
                self.response_head(sender.try_send_request(request), activity).await?
            }
            RequestSender::Http2(sender) => {
                self.response_head(sender.try_send_request(request), activity).await?
            }
        };
        let unrequested = expectation.and_then(Expectation::response_started);
        let limit = self.config.body_timeout;
        connection.home = self.bound.home_after(connection.home, client, &response);
        let body = |body| ResponseBody::new(body, connection, limit, unrequested);
        Ok(response.map(body))
    }

    fn scheme(&self) -> Scheme {
        match self.config.endpoint() {
            Endpoint::Tls { .. } => Scheme::HTTPS,
            Endpoint::Tcp(_) | Endpoint::Unix(_) => Scheme::HTTP,
        }
    }

    /// Waits for the response head.
    async fn response_head(
        &self,
        sent: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
        activity: Option<Arc<UploadActivity>>,
    ) -> Result<Response<Incoming>, AttemptError> {
        let mut response = pin!(sent);
        let limit = self.config.response_timeout;
        let mut deadline = Instant::now() + limit;
        loop {
            let allowance = activity.as_ref().map(|activity| {
                activity
                    .allowance(self.min_upload_rate, limit, Instant::now())
                    .clamp(MIN_UPLOAD_CHECK.min(limit), limit)
            });
            let check_at = allowance.map_or(deadline, |left| deadline.min(Instant::now() + left));
            match tokio::time::timeout_at(check_at, &mut response).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(mut error)) => {
                    return Err(match error.take_message() {
                        Some(unsent) => AttemptError::Unsent(Box::new(unsent)),
                        None => AttemptError::Sent(broken_error(
                            error.into_error(),
                            activity.as_deref(),
                        )),
                    });
                }
                Err(_) if check_at < deadline => {
                    if self.is_too_slow(activity.as_deref()) {
                        let rate = self.min_upload_rate;
                        return Err(AttemptError::Sent(UpstreamError::ClientSlow { rate }));
                    }
                }
                // While an upload makes progress, the upstream has no reason to answer.
                Err(_) => {
                    match activity.as_ref().map(|activity| activity.last_progress() + limit) {
                        Some(extended) if extended > deadline => deadline = extended,
                        _ => {
                            return Err(AttemptError::Sent(timeout_error(
                                limit,
                                activity.as_deref(),
                            )));
                        }
                    }
                }
            }
        }
    }

    fn is_too_slow(&self, upload: Option<&UploadActivity>) -> bool {
        let rate = self.min_upload_rate;
        let patience = self.config.response_timeout;
        upload.is_some_and(|upload| upload.is_too_slow(rate, patience, Instant::now()))
    }

    async fn connect(
        &self,
        protocol: UpstreamProtocol,
        home: ConnectionHome,
    ) -> Result<PooledConnection, UpstreamError> {
        let io = TokioIo::new(self.connector.connect(protocol).await?);
        let sender = match protocol {
            UpstreamProtocol::Http1 => {
                let (sender, connection) =
                    self.http1.handshake(io).await.map_err(UpstreamError::Broken)?;
                tokio::spawn(drive(connection.with_upgrades()));
                RequestSender::Http1(sender)
            }
            UpstreamProtocol::Http2 => {
                let (sender, connection) =
                    self.http2.handshake(io).await.map_err(UpstreamError::Broken)?;
                tokio::spawn(drive(connection));
                RequestSender::Http2(sender)
            }
        };
        self.metrics.connections.opened.inc();
        Ok(PooledConnection { sender, reused: false, home })
    }
}

/// Drives a connection. Its errors also reach the request that uses it.
async fn drive(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        debug!(%error, "upstream connection ended");
    }
}

/// Configures HTTP/1 with the same limits for responses as for requests. Harmless defects of a
/// response are repaired: "A proxy [..] MUST remove any such whitespace" between a name and its
/// colon (RFC 9112 5.1), and may "replace each received obs-fold with one or more SP octets" (5.2).
fn http1_builder(limits: &config::ServerConfig) -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.buffer())
        // Field names reach the client in the upstream's spelling. Requests carry their own
        // spelling.
        .preserve_header_case(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    if limits.max_headers > HEADERS_ON_STACK {
        http1.max_headers(limits.max_headers);
    }
    http1
}

/// hyper omits the body of a GET or HEAD of unknown length unless a header announces it.
fn announce_body(request: &mut Request<RequestBody>) {
    if request.body().size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        request.headers_mut().insert(TRANSFER_ENCODING, chunked);
    }
}

enum AttemptError {
    /// The connection handed the request back: no part of it has left this process.
    Unsent(Box<Request<RequestBody>>),
    /// The upstream may have seen the request.
    Sent(UpstreamError),
}

/// Returns a copy of a request with a safe method and no body. RFC 9110 9.2.2: "A proxy MUST NOT
/// automatically retry non-idempotent requests"; only safe ones are repeated here.
fn retry_copy(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
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

/// Passes the informational (1xx) responses that precede the response to `sink`. A 100 for a client
/// that waits for it starts the upload instead; hyper then sends the client a 100.
pub fn relay_informational(
    request: &mut Request<RequestBody>,
    sink: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    let expectation = request.body().expectation();
    hyper::ext::on_informational(request, move |response| match &expectation {
        Some(expectation) if response.status() == StatusCode::CONTINUE => {
            expectation.allow_upload();
        }
        _ => sink(response.status(), response.headers()),
    });
}

/// Converts the head of a client's request for the upstream: its target, its `Host`, and the HTTP
/// version that the upstream is sent.
///
/// The target is in origin form (RFC 9112 3.2.1). RFC 9112 3.2.2: "When a proxy receives a request
/// with an absolute-form of request-target, the proxy MUST ignore the received Host header field
/// (if any) and instead replace it with the host information of the request-target"; HTTP/2 says
/// the same of `:authority`.
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
