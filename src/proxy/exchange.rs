//! The exchange with the upstream: a client's request made ours on its way there, and the answer on its
//! way back.
//!
//! Which fields come and go is known in `headers`, connections and timeouts in `upstream`.

use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    http::{
        HeaderValue,
        header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
        request::Parts,
    },
};
use tracing::Instrument as _;

use super::{Proxy, body::Body, framing, headers, upgrade};
use crate::{
    interim::Interim,
    spans,
    transport::Peer,
    upstream::{Repeat, RequestBody, ResponseBody, UpstreamError, relay_interim, to_origin_form},
};

impl Proxy {
    /// Sends a request upstream, and tells the upstream and the trace of it.
    pub(super) async fn send(
        &self,
        mut request: Request<RequestBody>,
        repeat: Repeat,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let span = spans::upstream(&mut request, self.upstream.authority());
        let result = self.upstream.send(request, repeat).instrument(span.clone()).await;
        let ended = result.as_ref().map(Response::status).map_err(UpstreamError::as_str);
        spans::exchanged(&span, ended);
        result
    }

    /// A client's request as it goes upstream.
    pub(super) fn forwarded(
        &self,
        request: Request<Incoming>,
        client: Peer,
        interim: &Interim,
    ) -> Request<RequestBody> {
        let (mut head, body) = request.into_parts();
        let expects = headers::expects_continue(&mut head.headers, head.version);
        self.prepare_request(&mut head, client);
        let mut request = Request::from_parts(head, RequestBody::of(body, expects));
        relay(&mut request, interim);
        request
    }

    /// Makes a client's request head ours.
    pub(super) fn prepare_request(&self, head: &mut Parts, client: Peer) {
        let version = head.version;
        to_origin_form(head, self.upstream.authority());
        headers::strip_hop_by_hop(&mut head.headers, self.cache.fingerprinted());
        headers::plain_tags(&mut head.headers, &head.method);
        headers::forward(&mut head.headers, client, version);
    }

    /// A request that reads a job for whoever asks for this representation of it.
    pub(super) fn for_fill(&self, head: &Parts, client: Peer) -> Request<RequestBody> {
        let mut head = head.clone();
        self.prepare_request(&mut head, client);
        headers::for_fill(&mut head.headers);
        Request::from_parts(head, RequestBody::Empty)
    }
}

/// Passes the upstream's interim responses on to the client that asked. None is ever stored, and
/// who joins a flight sees none.
pub(super) fn relay(request: &mut Request<RequestBody>, interim: &Interim) {
    if matches!(request.body(), RequestBody::Held(_)) || interim.is_taken() {
        let interim = interim.clone();
        relay_interim(request, move |status, headers| {
            let mut headers = headers.clone();
            headers::strip_hop_by_hop(&mut headers, &[]);
            interim.send(status, &headers);
        });
    }
}

/// A client whose upload nobody asked for may send it or not, so nothing can follow.
pub(super) fn end_after_unasked(response: &mut Response<Body>, interim: &Interim) {
    // HTTP/2 knows no such field, and ends the stream alone.
    if response.body().leaves_upload() && interim.is_taken() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Whether the upstream was asked to switch protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    Asked,
    Unasked,
}

/// Makes the upstream's response head ours.
///
/// "A server MUST NOT switch to a protocol that was not indicated by the client in the corresponding
/// request's Upgrade header field." RFC 9110 7.8: one that does is no answer.
pub(super) fn prepare_response<B>(
    mut response: Response<B>,
    asked: Switch,
) -> Result<Response<B>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && asked == Switch::Unasked {
        return Err(UpstreamError::UnaskedUpgrade);
    }
    if framing::stays_coded(response.headers()) {
        return Err(UpstreamError::TransferCoding);
    }
    let version = response.version();
    // "Transfer-Encoding overrides the Content-Length. [..] An intermediary that chooses to forward
    // the message MUST first remove the received Content-Length field" RFC 9112 6.3. Also of an
    // answer to HEAD: that length is not the one that a GET would see.
    if response.headers().contains_key(TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    framing::unify_length(response.headers_mut());
    let switch = upgrade::keep_switch(&response);
    headers::strip_hop_by_hop(response.headers_mut(), &[]);
    if let Some(protocol) = switch {
        upgrade::offer(response.headers_mut(), protocol);
    }
    headers::via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
