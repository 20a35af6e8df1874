//! An exchange with the upstream: turns a client's request head into ours, sends it, and turns the
//! upstream's response head into ours.
//!
//! `headers` knows which fields are removed and added. `upstream` owns connections and timeouts.

use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    http::{
        header::{CONTENT_LENGTH, TRANSFER_ENCODING},
        request::Parts,
    },
};
use tracing::Instrument as _;

use super::{
    framing,
    proxy_context::{ProxyContext, Requester},
    upgrade,
};
use crate::{
    observe::spans,
    semantics::headers,
    transport::Peer,
    upstream::{self, RequestBody, ResponseBody, RetryPolicy, UpstreamError, to_origin_form},
};

impl ProxyContext {
    /// Sends a request upstream in a span of its own, passes the trace context along, and records
    /// the result.
    pub(super) async fn send(
        &self,
        mut request: Request<RequestBody>,
        retry: RetryPolicy,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let span = spans::upstream(&mut request, self.upstream.authority());
        let result = self.upstream.send(request, retry).instrument(span.clone()).await;
        let outcome = result.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        spans::record_exchange(&span, outcome);
        result
    }

    /// Sends a read, again if it may, and turns the response head into ours.
    pub(super) async fn exchange(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let response = self.send(request, RetryPolicy::OnceIfSafe).await?;
        prepare_response(response, ProtocolSwitch::NotRequested)
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
        let mut request = Request::from_parts(head, RequestBody::from_client(body, expects));
        relay_informational(&mut request, requester);
        request
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

    /// Returns the request that reads a job for every client that wants this representation.
    pub(super) fn fill_request(&self, head: &Parts, client: Peer) -> Request<RequestBody> {
        let mut head = head.clone();
        self.prepare_request(&mut head, client);
        headers::strip_for_fill(&mut head.headers);
        Request::from_parts(head, RequestBody::EMPTY)
    }
}

/// Passes the upstream's informational responses on to the client of this request. They are never
/// stored, and clients that join a flight get none.
pub(super) fn relay_informational(
    request: &mut Request<RequestBody>,
    Requester { informational, .. }: &Requester,
) {
    if request.body().is_held() || informational.is_accepted() {
        let informational = informational.clone();
        upstream::relay_informational(request, move |status, headers| {
            let mut headers = headers.clone();
            headers::strip_hop_by_hop(&mut headers, &[]);
            informational.send(status, &headers);
        });
    }
}

/// Whether the client asked the upstream to switch protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ProtocolSwitch {
    Requested,
    NotRequested,
}

/// Turns the upstream's response head into ours.
///
/// "A server MUST NOT switch to a protocol that was not indicated by the client in the
/// corresponding request's Upgrade header field." RFC 9110 7.8. A response that does so is an
/// error.
pub(super) fn prepare_response<B>(
    mut response: Response<B>,
    requested: ProtocolSwitch,
) -> Result<Response<B>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && requested == ProtocolSwitch::NotRequested
    {
        return Err(UpstreamError::UnrequestedUpgrade);
    }
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
    let switch = upgrade::switched_protocol(&response);
    headers::strip_hop_by_hop(response.headers_mut(), &[]);
    if let Some(protocol) = switch {
        upgrade::set_upgrade(response.headers_mut(), protocol);
    }
    headers::via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
