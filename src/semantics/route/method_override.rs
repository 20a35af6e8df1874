//! The method of a request, or the one that a header names instead.

use hyper::{
    HeaderMap, Method, Request,
    header::{HeaderName, HeaderValue},
};

/// Headers by which frameworks let a client name another method (Symfony, Rack, Microsoft).
pub(super) const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-method-override"),
];

/// Whether a request may change something, by its method or by a method that a header names
/// instead.
pub fn is_unsafe<B>(request: &Request<B>) -> bool {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
    !safe.contains(request.method()) || overrides_to_unsafe(request.headers())
}

/// Whether a header names another method, whatever that is. The method of the request then says
/// nothing.
pub fn overrides_method(headers: &HeaderMap) -> bool {
    METHOD_OVERRIDES.iter().any(|name| headers.contains_key(name))
}

/// Whether a header names a method that is unsafe or unknown.
fn overrides_to_unsafe(headers: &HeaderMap) -> bool {
    let is_safe = |value: &HeaderValue| {
        let method = value.as_bytes().trim_ascii();
        ["", "GET", "HEAD", "OPTIONS", "TRACE"]
            .iter()
            .any(|safe| safe.as_bytes().eq_ignore_ascii_case(method))
    };
    // One pass costs less than three lookups, which hash each name again.
    headers.iter().any(|(name, value)| METHOD_OVERRIDES.contains(name) && !is_safe(value))
}
