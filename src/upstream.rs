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
//! A write that was sent is never repeated, nor is a login that belongs to its connection: `pool`
//! has those. An extension of a request, its [`ConnectionId`], names the client connection.

mod addresses;
pub(crate) mod collector;
mod connect;
mod error;
pub(crate) mod metrics;
mod permits;
mod pool;
mod request_body;
mod response_body;
mod upload;

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::{Request, Response, Version, body::Incoming, client::conn::TrySendError};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use self::{
    connect::{Connector, HttpVersions, UpstreamProtocol, to_absolute_form},
    error::{broken_error, timeout_error},
    metrics::UpstreamMetrics,
    permits::{Permits, RequestSafety},
    pool::{BoundConnections, ConnectionChoice, ConnectionHome, Login, Pool, PooledConnection},
    request_body::{announce_body, retry_copy},
    upload::{Expectation, UploadActivity},
};
use crate::{
    config::{self, Config},
    observe::{events::Events, metrics::Registry},
    semantics::headers::is_login,
    tls::{TlsError, TlsMetrics},
    transport::ConnectionId,
};

pub use self::{
    connect::to_origin_form,
    error::{BodyError, PolledFrame, UploadError, UpstreamError},
    permits::{ConnectionPermit, PassedRead},
    request_body::{BodyOutcome, RequestBody, UploadEnd, relay_informational},
    response_body::ResponseBody,
};

/// The result of an exchange with the upstream.
pub type Exchanged = Result<Response<ResponseBody>, UpstreamError>;

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
    versions: HttpVersions,
    pool: Arc<Pool>,
    /// The client connections, and what is bound to them.
    pub(crate) bound: Arc<BoundConnections>,
    permits: Permits,
    /// `server.min_upload_rate`.
    min_upload_rate: usize,
    metrics: Arc<UpstreamMetrics>,
}

impl Upstream {
    /// Creates an empty pool. Does not connect yet.
    pub fn new(
        config: &Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, TlsError> {
        let metrics = Arc::new(UpstreamMetrics::register(registry, events));
        let tls = TlsMetrics::shared(registry);
        let Config { upstream, server, .. } = config;
        Ok(Self {
            connector: Connector::new(upstream, config.tls_renew_interval, tls)?,
            config: upstream.clone(),
            versions: HttpVersions::new(server),
            pool: Arc::new(Pool::new(upstream, metrics.connections.idle.clone())),
            bound: Arc::new(BoundConnections::new(upstream, &metrics.connections)),
            permits: Permits::new(upstream, &metrics),
            min_upload_rate: server.min_upload_rate,
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
    pub async fn send(&self, mut request: Request<RequestBody>, repeat: RetryPolicy) -> Exchanged {
        announce_body(&mut request);
        let started = Instant::now();
        let protocol = match request.version() {
            Version::HTTP_2 => UpstreamProtocol::Http2,
            _ => UpstreamProtocol::Http1,
        };
        if protocol == UpstreamProtocol::Http2 {
            to_absolute_form(&mut request, self.connector.scheme(), self.authority());
        }
        let result = self.exchange(request, protocol, repeat).await;
        self.metrics.record(&result, started.elapsed());
        result
    }

    async fn exchange(
        &self,
        mut request: Request<RequestBody>,
        protocol: UpstreamProtocol,
        repeat: RetryPolicy,
    ) -> Exchanged {
        let stream = self.permits.stream_of(&mut request)?;
        let permit = self.permits.acquire().await?;
        let is_safe = repeat == RetryPolicy::OnceIfSafe && request.method().is_safe();
        let safety = if is_safe { RequestSafety::Safe } else { RequestSafety::Unsafe };
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
                ConnectionHome::Pool { pool, .. } => pool.home(),
                _ => ConnectionHome::NowhereNorClient,
            };
            match self.attempt(connection, request, client).await {
                Ok(response) => {
                    self.permits.count_answer(&permit, stream, &response, safety)?;
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

    /// Returns the connection for a request.
    async fn connection(
        &self,
        client: Option<ConnectionId>,
        login: Login,
        protocol: UpstreamProtocol,
    ) -> Result<PooledConnection, UpstreamError> {
        let mut choice = self.bound.choose(client, login);
        if let ConnectionChoice::Bound(connection) = &mut choice {
            // The connection may still send a request body that the upstream did not wait for.
            let ready = timeout(self.config.connect_timeout, connection.sender.ready());
            if ready.await != Ok(true) {
                choice = self.bound.choose(client, login);
            }
        }
        match choice {
            ConnectionChoice::Bound(connection) => Ok(connection),
            ConnectionChoice::New(home) => self.connect(protocol, home).await,
            ConnectionChoice::Pooled => match self.pool.take(protocol) {
                Some(connection) => Ok(connection),
                None => self.connect(protocol, self.pool.home()).await,
            },
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
        let sent = connection.sender.try_send(request);
        let response = self.response_head(sent, activity.as_deref()).await?;
        let unrequested = expectation.and_then(Expectation::response_started);
        let limit = self.config.body_timeout;
        connection.home = self.bound.home_after(connection.home, client, &response);
        let body = |body| ResponseBody::new(body, connection, limit, unrequested);
        Ok(response.map(body))
    }

    /// Waits for the response head.
    async fn response_head(
        &self,
        sent: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>,
        upload: Option<&UploadActivity>,
    ) -> Result<Response<Incoming>, AttemptError> {
        let mut response = pin!(sent);
        let (rate, limit) = (self.min_upload_rate, self.config.response_timeout);
        let mut deadline = Instant::now() + limit;
        let error = loop {
            let allowance = upload.map(|upload| {
                let left = upload.allowance(rate, limit, Instant::now());
                left.clamp(MIN_UPLOAD_CHECK.min(limit), limit)
            });
            let check_at = allowance.map_or(deadline, |left| deadline.min(Instant::now() + left));
            match timeout_at(check_at, &mut response).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(mut error)) => match error.take_message() {
                    Some(unsent) => return Err(AttemptError::Unsent(Box::new(unsent))),
                    None => break broken_error(error.into_error(), upload),
                },
                Err(_) if check_at < deadline => {
                    if upload.is_some_and(|upload| upload.is_too_slow(rate, limit, Instant::now()))
                    {
                        break UpstreamError::ClientSlow { rate };
                    }
                }
                // While an upload makes progress, the upstream has no reason to answer.
                Err(_) => match upload.map(|upload| upload.last_progress() + limit) {
                    Some(extended) if extended > deadline => deadline = extended,
                    _ => break timeout_error(limit, upload),
                },
            }
        };
        Err(AttemptError::Sent(error))
    }

    async fn connect(
        &self,
        protocol: UpstreamProtocol,
        home: ConnectionHome,
    ) -> Result<PooledConnection, UpstreamError> {
        let stream = self.connector.connect(protocol).await?;
        let handshake = self.versions.handshake(stream, protocol);
        let sender = handshake.await.map_err(UpstreamError::Broken)?;
        self.metrics.connections.opened.inc();
        Ok(PooledConnection { sender, reused: false, home })
    }
}

enum AttemptError {
    /// The connection handed the request back: no part of it has left this process.
    Unsent(Box<Request<RequestBody>>),
    /// The upstream may have seen the request.
    Sent(UpstreamError),
}
