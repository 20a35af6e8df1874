//! The method and the target of a request, or those that a header or the query names instead: many
//! frameworks obey the latter, so a `GET` may be a write.

use hyper::{
    HeaderMap, Method, Request,
    header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue},
};

use percent_encoding::percent_decode_str;

use super::id_parts::{is_named, parameters};

/// Headers by which frameworks let a client name another method (Symfony, Rack, Microsoft). They do
/// so whatever their value is.
const METHOD_OVERRIDES: [&str; 3] =
    ["x-http-method", "x-http-method-override", "x-method-override"];

/// The parameter by which frameworks let a form or a query name another method (Rails, Laravel,
/// Spring, `WordPress`). It does so whatever its value is.
const METHOD_PARAMETER: &str = "_method";

/// Parts of the name of any other header or parameter that names another method (`$httpMethod`,
/// `_HttpMethod`, `X-Verb`). It does so if its value is an unsafe method: a `Payment-Method: card`
/// does not.
const METHOD_PARTS: [&str; 2] = ["method", "verb"];

/// Unsafe methods that mean little else as values. In capitals they count under any name of a header.
const UNSAFE_METHODS: [&str; 3] = ["PUT", "PATCH", "DELETE"];

/// Unsafe methods in capitals only, because they are ordinary words too (`delivery_method=post`).
const UNSAFE_CAPITALS: [&str; 11] = [
    "POST",
    "MERGE",
    "COPY",
    "MOVE",
    "LINK",
    "UNLINK",
    "LOCK",
    "UNLOCK",
    "MKCOL",
    "PROPPATCH",
    "UPDATE",
];

/// Parts of the name of any other header that names another URL (`X-Override-URL`, `X-Forwarded-Uri`).
/// It does so if its value has a slash.
const URL_PARTS: [&str; 3] = ["path", "uri", "url"];

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
    let in_query = query.into_iter().flat_map(parameters).filter(|(name, value)| {
        let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
        is_named(name, &[METHOD_PARAMETER])
            || is_unsafe_method(decoded(value).as_bytes())
                && has_part(&decoded(name), &METHOD_PARTS)
    });
    // One pass costs less than three lookups, which hash each name again.
    let in_headers = headers
        .iter()
        .filter(|(name, value)| is_method_override(name) || names_unsafe_method(name, value));
    let in_query = in_query.map(|(_, value)| value.as_bytes());
    in_query.chain(in_headers.map(|(_, value)| value.as_bytes().trim_ascii()))
}

/// Whether a header names another method, whatever its value is.
pub(super) fn is_method_override(name: &HeaderName) -> bool {
    METHOD_OVERRIDES.iter().any(|known| reads_as(name, known))
}

/// Whether a header that is not known names an unsafe method.
fn names_unsafe_method(name: &HeaderName, value: &HeaderValue) -> bool {
    let value = value.as_bytes().trim_ascii();
    // The value first: it decides for nearly every header, and costs less.
    is_unsafe_method(value)
        && (UNSAFE_METHODS.iter().any(|method| method.as_bytes() == value)
            || has_part(name.as_str(), &METHOD_PARTS))
        && !is_of_preflight(name)
}

/// Whether a header names a method that may be unsafe: one in capitals that is not known (`X-Method:
/// CANCEL`).
pub(super) fn names_unknown_method(name: &HeaderName, value: &HeaderValue) -> bool {
    let value = value.as_bytes().trim_ascii();
    value.len() > 2
        && value.iter().all(|&byte| byte.is_ascii_uppercase() || byte == b'-')
        && !is_safe(value)
        && has_part(name.as_str(), &METHOD_PARTS)
        && !is_of_preflight(name)
}

/// Whether a header belongs to a preflight (CORS). Its method is that of a later request.
fn is_of_preflight(name: &HeaderName) -> bool {
    *name == ACCESS_CONTROL_REQUEST_METHOD
}

fn is_unsafe_method(value: &[u8]) -> bool {
    UNSAFE_METHODS.iter().any(|method| method.as_bytes().eq_ignore_ascii_case(value))
        || UNSAFE_CAPITALS.iter().any(|method| method.as_bytes() == value)
}

fn has_part(name: &str, parts: &[&str]) -> bool {
    let lower = name.to_ascii_lowercase();
    parts.iter().any(|part| lower.contains(part))
}

/// Whether a header names another URL.
pub(super) fn is_url_override(name: &HeaderName) -> bool {
    URL_OVERRIDES.iter().any(|known| reads_as(name, known))
}

/// Returns the URLs that headers name instead of that of the request, or in addition to it.
pub(super) fn other_urls<B>(request: &Request<B>) -> impl Iterator<Item = &HeaderValue> {
    // The second target of RFC 4918 10.3.
    let has_destination = matches!(request.method().as_str(), "MOVE" | "COPY");
    let is_other = move |(name, value): &(&HeaderName, &HeaderValue)| {
        is_url_override(name)
            || has_destination && *name == "destination"
            || value.as_bytes().contains(&b'/') && has_part(name.as_str(), &URL_PARTS)
    };
    request.headers().iter().filter(is_other).map(|(_, value)| value)
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

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::{is_unsafe, overrides_method};

    #[track_caller]
    fn check(target: &str, header: Option<(&str, &str)>, unsafe_: bool, overridden: bool) {
        let request =
            header.into_iter().fold(Request::get(target), |r, (name, v)| r.header(name, v));
        let request = request.body(()).unwrap();
        let got = (is_unsafe(&request), overrides_method(&request));
        assert_eq!(got, (unsafe_, overridden), "{target} {header:?}");
    }

    #[test]
    fn a_known_override_counts_whatever_its_value_is() {
        for name in ["X-HTTP-Method", "X-Http-Method-Override", "x_method_override"] {
            check("/jobs/7", Some((name, "FROB")), true, true);
            check("/jobs/7", Some((name, " get ")), false, true);
        }
        check("/jobs/7?_method=frob", None, true, true);
        check("/jobs/7?%5Fmethod=GET", None, false, true);
    }

    #[test]
    fn any_other_name_with_method_in_it_counts_if_its_value_is_an_unsafe_method() {
        for name in ["X-Method", "Method", "X-Original-Method", "x_http_verb_method", "MethodName"]
        {
            check("/jobs/7", Some((name, " Delete")), true, true);
            check("/jobs/7", Some((name, "GET")), false, false);
            check("/jobs/7", Some((name, "card")), false, false);
        }
        for query in
            ["$httpMethod=PATCH", "_HttpMethod=patch", "a=b&%6Dethod=delete", "method=POST"]
        {
            check(&format!("/jobs/7?{query}"), None, true, true);
        }
        for query in ["method=fast&a=DELETE", "delivery_method=post", "method=Link"] {
            check(&format!("/jobs/7?{query}"), None, false, false);
        }
        check("/jobs/7", Some(("Access-Control-Request-Method", "PUT")), false, false);
        check("/jobs/7", Some(("X-Metho", "put")), false, false);
        check("/jobs/7", Some(("X-Metho", "PUT")), true, true);
        check("/jobs/7", Some(("X-Http-Verb", "post")), false, false);
        check("/jobs/7", Some(("X-Http-Verb", "POST")), true, true);
    }
}
