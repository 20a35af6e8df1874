//! The target of a request to the upstream, in the form of its HTTP version.

use hyper::{
    Request, Uri, Version,
    header::{CONNECTION, HOST, HeaderValue},
    http::{
        request,
        uri::{self, Authority, PathAndQuery, Scheme},
    },
};

use super::http2;

/// Converts the head of a client's request for the upstream: its target, its `Host`, and the HTTP
/// version that the upstream is sent.
///
/// The target is in origin form (RFC 9112 3.2.1). RFC 9112 3.2.2: "When a proxy receives a request
/// with an absolute-form of request-target, the proxy MUST ignore the received Host header field
/// (if any) and instead replace it with the host information of the request-target"; HTTP/2 says
/// the same of `:authority`.
pub fn to_origin_form(head: &mut request::Parts, default_host: &str) {
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
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(target);
    // A path alone is always a valid target.
    head.uri = Uri::from_parts(parts).unwrap_or_default();
    head.version = if http2::is_needed(head) { Version::HTTP_2 } else { Version::HTTP_11 };
}

/// Converts a request in origin form to HTTP/2, where the target includes scheme and authority.
///
/// "An intermediary that converts a request from another HTTP version [..] MUST" build the
/// authority from `Host`, and sending both would state the same twice (RFC 9113 8.3.1): `Host` is
/// removed.
pub(super) fn to_absolute_form<B>(request: &mut Request<B>, scheme: Scheme, default_host: &str) {
    let host = request.headers_mut().remove(HOST);
    request.headers_mut().remove(CONNECTION);
    let authority = host
        .and_then(|host| Authority::try_from(host.as_bytes()).ok())
        .or_else(|| default_host.parse().ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(scheme);
    parts.authority = authority;
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // Always valid, because it is complete.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}
