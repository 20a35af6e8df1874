//! The method and the target of a request, or those that a header or the query names instead.

use hyper::{
    HeaderMap, Method, Request,
    header::{HeaderName, HeaderValue},
};

use super::query_names::{is_named, parameters};

/// Headers by which frameworks let a client name another method (Symfony, Rack, Microsoft).
const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method", "x-http-method-override", "x-method-override"];

/// The parameter by which frameworks let a form or a query name another method (Rails, Laravel,
/// Spring, `WordPress`).
const METHOD_PARAMETER: &str = "_method";

/// Headers by which frameworks let a gateway name another URL (IIS, Symfony, Zend).
const URL_OVERRIDES: [&str; 2] = ["x-original-url", "x-rewrite-url"];

/// Whether a request may change something, by its method or by a method that a header or the query
/// names instead.
pub fn is_unsafe<B>(request: &Request<B>) -> bool {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
    !safe.contains(request.method())
        || overrides(request.uri().query(), request.headers()).any(|method| !is_safe(method))
}

/// Whether a header or the query names another method, whatever that is. The method of the request
/// then says nothing.
pub fn overrides_method<B>(request: &Request<B>) -> bool {
    overrides(request.uri().query(), request.headers()).next().is_some()
}

/// Returns the methods that the query and the headers name instead of that of the request.
pub(super) fn overrides<'r>(
    query: Option<&'r str>,
    headers: &'r HeaderMap,
) -> impl Iterator<Item = &'r [u8]> {
    let given = |(name, value)| is_named(name, &[METHOD_PARAMETER]).then_some(value);
    let in_query = query.into_iter().flat_map(parameters).filter_map(given).map(str::as_bytes);
    // One pass costs less than three lookups, which hash each name again.
    let in_headers = headers.iter().filter(|(name, _)| is_method_override(name));
    in_query.chain(in_headers.map(|(_, value)| value.as_bytes().trim_ascii()))
}

/// Whether a header names another method.
pub(super) fn is_method_override(name: &HeaderName) -> bool {
    METHOD_OVERRIDES.iter().any(|known| reads_as(name, known))
}

/// Whether a header names another URL.
pub(super) fn is_url_override(name: &HeaderName) -> bool {
    URL_OVERRIDES.iter().any(|known| reads_as(name, known))
}

/// Returns the URLs that headers name instead of, or beside, that of the request.
pub(super) fn other_urls<B>(request: &Request<B>) -> impl Iterator<Item = &HeaderValue> {
    // The second target of RFC 4918 10.3.
    let has_destination = matches!(request.method().as_str(), "MOVE" | "COPY");
    let is_other =
        move |name: &HeaderName| is_url_override(name) || has_destination && name == "destination";
    request.headers().iter().filter(move |(name, _)| is_other(name)).map(|(_, value)| value)
}

/// Whether a header has this name, or one that some servers read as the same: those that follow CGI
/// map every character that is no letter or digit to `_`.
fn reads_as(name: &HeaderName, known: &str) -> bool {
    let name = name.as_str().as_bytes();
    let is_same = |(&given, known): (&u8, u8)| {
        given == known || known == b'-' && !given.is_ascii_alphanumeric()
    };
    name.len() == known.len() && name.iter().zip(known.bytes()).all(is_same)
}

fn is_safe(method: &[u8]) -> bool {
    let safe = ["", "GET", "HEAD", "OPTIONS", "TRACE"];
    safe.iter().any(|safe| safe.as_bytes().eq_ignore_ascii_case(method))
}
