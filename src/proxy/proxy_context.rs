//! The context of every step of a request under one configuration, and the exchange with the
//! upstream: it turns a client's request head into ours, sends it, and turns the upstream's response
//! head into ours.
//!
//! `headers` knows which fields are removed and added. `upstream` owns connections and timeouts.

use std::sync::Arc;

use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    http::{
        HeaderMap, HeaderValue,
        header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE},
        request::Parts,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use super::{
    body_rules::BodyInspector, framing, metrics::ProxyMetrics, push::Topics,
    route_advice::RouteAdvice,
};
use crate::{
    cache::Cache,
    config::{CacheMode, Config, SampleRate, ServerConfig},
    limits::Quota,
    observe::spans,
    semantics::{headers, route::Routes},
    service::Informational,
    transport::Peer,
    upstream::{
        self, Exchanged, RequestBody, RetryPolicy, Upstream, UpstreamError, to_origin_form,
    },
};

/// The client of a request, and its way for informational responses.
pub(super) struct Requester {
    pub(super) client: Peer,
    pub(super) informational: Informational,
}

/// The settings that the steps of a request use.
pub(super) struct ProxyConfig {
    pub(super) mode: CacheMode,
    /// Share of the hits that are also read from the upstream and compared.
    pub(super) verify: SampleRate,
    /// Size in bytes of the largest body that is stored.
    pub(super) max_body: usize,
    pub(super) access_log: bool,
    /// Whether a hit may be repeated on its connection. Access log and spans need each request.
    pub(super) repeats_hits: bool,
    pub(super) server: ServerConfig,
}

impl ProxyConfig {
    pub(super) fn of(Config { cache, log, server, traces, .. }: &Config) -> Self {
        Self {
            mode: cache.mode,
            verify: cache.verify,
            max_body: cache.limits.max_body,
            access_log: log.access,
            repeats_hits: server.repeat_fast_path && !log.access && traces.is_none(),
            server: server.clone(),
        }
    }
}

/// The parts that the steps of a request use under one configuration.
#[derive(Clone)]
pub(super) struct ProxyContext {
    pub(super) routes: Arc<Routes>,
    pub(super) config: Arc<ProxyConfig>,
    /// Cancelled before a reload puts other routes or rules into force: a write that finds it alive
    /// was answered before any read by the new rules.
    pub(super) superseded: CancellationToken,
    pub(super) cache: Arc<Cache>,
    pub(super) upstream: Arc<Upstream>,
    /// Writes and flights, which outlive the client that began them, and upgraded connections.
    pub(super) tasks: TaskTracker,
    /// Cancelled when the drain begins: a drain does not wait for comparisons.
    pub(super) draining: CancellationToken,
    /// Limits the comparisons that run in the background.
    pub(super) comparisons: Arc<Quota>,
    pub(super) inspector: Arc<BodyInspector>,
    pub(super) advice: Arc<RouteAdvice>,
    /// Clients that wait for jobs to change.
    pub(super) push: Arc<Topics>,
    pub(super) metrics: Arc<ProxyMetrics>,
}

impl ProxyContext {
    pub(super) fn is_shadow(&self) -> bool {
        self.config.mode == CacheMode::Shadow
    }

    /// Sends a request upstream in a span of its own, passes the trace context along, and records
    /// the result.
    pub(super) async fn send(
        &self,
        mut request: Request<RequestBody>,
        retry: RetryPolicy,
    ) -> Exchanged {
        let span = spans::upstream(&mut request, self.upstream.authority());
        let result = self.upstream.send(request, retry).instrument(span.clone()).await;
        let outcome = result.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        spans::record_exchange(&span, outcome);
        result
    }

    /// Sends a read, again if it may, and turns the response head into ours.
    pub(super) async fn exchange(&self, request: Request<RequestBody>) -> Exchanged {
        self.send(request, RetryPolicy::OnceIfSafe).await.and_then(prepare_response)
    }

    /// Returns a client's request as it goes upstream.
    pub(super) fn forward_request(
        &self,
        request: Request<Incoming>,
        requester: &Requester,
    ) -> Request<RequestBody> {
        let (mut head, body) = request.into_parts();
        let expects = headers::expects_continue(&mut head.headers, head.version);
        self.prepare_request(&mut head, requester.client);
        let body = RequestBody::from_client(body, expects);
        relay_informational(Request::from_parts(head, body), requester)
    }

    /// Returns the request that reads a job for every client that wants this representation.
    pub(super) fn fill_request(&self, head: &Parts, client: Peer) -> Request<RequestBody> {
        let mut head = head.clone();
        self.prepare_request(&mut head, client);
        headers::strip_for_fill(&mut head.headers);
        Request::from_parts(head, RequestBody::EMPTY)
    }

    /// Turns a client's request head into the head that goes upstream.
    pub(super) fn prepare_request(&self, head: &mut Parts, client: Peer) {
        let version = head.version;
        to_origin_form(head, self.upstream.authority());
        headers::strip_hop_by_hop(&mut head.headers, self.cache.fingerprinter().covered_headers());
        headers::restore_entity_tags(&mut head.headers, &head.method);
        headers::forward(&mut head.headers, client, version);
        if let Some(connection) = client.connection {
            head.extensions.insert(connection);
        }
    }
}

/// Passes the upstream's informational responses on to the client of this request. They are never
/// stored, and clients that join a flight get none.
pub(super) fn relay_informational(
    mut request: Request<RequestBody>,
    Requester { informational, .. }: &Requester,
) -> Request<RequestBody> {
    if request.body().is_held() || informational.is_accepted() {
        let informational = informational.clone();
        upstream::relay_informational(&mut request, move |status, headers| {
            let mut headers = headers.clone();
            headers::strip_hop_by_hop(&mut headers, &[]);
            informational.send(status, &headers);
        });
    }
    request
}

/// Turns the upstream's response head into ours.
///
/// "A server MUST NOT switch to a protocol that was not indicated by the client in the
/// corresponding request's Upgrade header field." RFC 9110 7.8. A response that does so is an
/// error.
pub(super) fn prepare_response<B>(response: Response<B>) -> Result<Response<B>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::UnrequestedUpgrade);
    }
    prepare_switch(response)
}

/// Turns the upstream's response head into ours, like [`prepare_response`]. The response may switch
/// protocols as the client asked.
pub(super) fn prepare_switch<B>(mut response: Response<B>) -> Result<Response<B>, UpstreamError> {
    if framing::stays_coded(response.headers()) {
        return Err(UpstreamError::TransferCoding);
    }
    let version = response.version();
    // "Transfer-Encoding overrides the Content-Length. [..] An intermediary that chooses to forward
    // the message MUST first remove the received Content-Length field" RFC 9112 6.3. This holds for
    // a response to HEAD too: a GET would not see that length.
    if response.headers().contains_key(TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    framing::unify_length(response.headers_mut());
    let switch = switched_protocol(&response);
    headers::strip_hop_by_hop(response.headers_mut(), &[]);
    if let Some(protocol) = switch {
        set_upgrade(response.headers_mut(), protocol);
    }
    headers::via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// Returns the protocol that a 101 switches to, which the client has to see.
pub(super) fn switched_protocol<B>(response: &Response<B>) -> Option<HeaderValue> {
    let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    response.headers().get(UPGRADE).filter(|_| is_switch).cloned()
}

/// Sets the header fields of an upgrade.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    let connection = if headers.contains_key(TE) { "upgrade, te" } else { "upgrade" };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    headers.insert(UPGRADE, protocol);
}
