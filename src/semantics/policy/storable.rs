//! Which responses may be stored. `stored_head` says which of their headers.

use hyper::{
    HeaderMap, StatusCode,
    header::{
        CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SET_COOKIE,
        TRAILER, VARY,
    },
    http::response::Parts,
};

use super::{
    NoStore, Policy,
    directives::{directives, tokens},
};
use crate::semantics::{
    audience::{cookie_counts, is_variant_header},
    headers::PERSISTENT_AUTH,
};

/// Request headers besides those of the variant that a response may vary by in every configuration:
/// `Accept-Encoding`, which fills do not send, and those that only the preflight of a cross-origin
/// request carries, which is an OPTIONS. Spring MVC lists the latter in every answer.
const VARY_BY: [&str; 4] = [
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
];

/// Checks whether a response may be stored: by "A cache MUST NOT store a response to a request unless"
/// of RFC 9111 3, and by the configured limits.
///
/// # Errors
///
/// Returns the reason if it may not.
pub fn storable(head: &Parts, policy: &Policy) -> Result<(), NoStore> {
    let headers = &head.headers;
    if headers.contains_key(PERSISTENT_AUTH) {
        return Err(NoStore::BoundConnection);
    }
    // "the response status code is final" RFC 9111 3. Among the final codes, 200 carries the status of
    // a job; the configuration says which others do.
    //
    // Fills never ask for a range, so a 200 is complete even if it has `Content-Range`: "The
    // Content-Range header field has no meaning for status codes that do not explicitly describe its
    // semantic." RFC 9110 14.4
    if policy.ttl_of(head.status).is_none() {
        return Err(NoStore::Status);
    }
    storable_headers(head, policy)
}

/// Returns why a response with this status is stored under no configuration; `None` if it may be.
pub fn never_stored(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        100..=199 => Some("is not the end of an answer"),
        206 | 416 => Some("is an answer about a part"),
        304 | 412 => Some("is an answer about what the client has"),
        401 | 403 | 407 | 421 => Some("is an answer about who asks and how"),
        408 | 425 | 429 | 500..=599 => Some("says nothing about the job"),
        200..=499 => None,
        _ => Some("is no status of HTTP"),
    }
}

/// Checks everything but the status.
pub(super) fn storable_headers(head: &Parts, policy: &Policy) -> Result<(), NoStore> {
    let headers = &head.headers;
    // RFC 9111 7.3 leaves it to the server to forbid caching of cookies. Many servers do not, and a
    // cookie shared between clients is a session shared between users. A cookie that does not count,
    // such as a load balancer's, is left out of the entry.
    if headers
        .get_all(SET_COOKIE)
        .into_iter()
        .any(|value| sets_counted_cookie(value, &policy.cookies))
    {
        return Err(NoStore::SetCookie);
    }
    // "A cache MAY either store trailer fields separate from header fields or discard them." RFC 9111
    // 3.1. An entry cannot hold trailers, and without them a checksum would be missing from hits.
    if headers.contains_key(TRAILER) {
        return Err(NoStore::Trailers);
    }
    check_directives(headers)?;
    check_vary(headers, policy)?;
    check_representation(headers)?;
    check_content_length(head, policy)
}

/// Returns whether a `Set-Cookie` sets one of these cookies, or any cookie if `names` is empty. RFC
/// 6265 5.2: the name ends at the first '='. A value without '=' is not understood, and counts.
fn sets_counted_cookie(value: &HeaderValue, names: &[String]) -> bool {
    let value = value.as_bytes();
    let name = value.iter().position(|&b| b == b'=').map(|end| value[..end].trim_ascii());
    names.is_empty() || name.is_none_or(|name| cookie_counts(names, name))
}

/// Checks for directives that forbid storing a response or serving it without validation.
fn check_directives(headers: &HeaderMap) -> Result<(), NoStore> {
    for directive in directives(headers).map_err(|_| NoStore::Malformed)? {
        // "The no-store response directive indicates that a cache MUST NOT store any part of either
        // the immediate request or the response" RFC 9111 5.2.2.5
        if directive.is("no-store") {
            return Err(NoStore::NoStore);
        }
        // "The unqualified private response directive indicates that a shared cache MUST NOT store
        // the response (i.e., the response is intended for a single user)." RFC 9111 5.2.2.7, which
        // also says that many caches treat the qualified form as this one. This cache does so too.
        if directive.is("private") {
            return Err(NoStore::Private);
        }
        // "The no-cache response directive, in its unqualified form (without an argument),
        // indicates that the response MUST NOT be used to satisfy any other request without
        // forwarding it for validation" RFC 9111 5.2.2.4; likewise for the qualified form.
        if directive.is("no-cache") {
            return Err(NoStore::NoCache);
        }
    }
    Ok(())
}

/// Checks that every header in `Vary` is known. "A stored response with a Vary header field value
/// containing a member '*' always fails to match." RFC 9111 4.1. So would a response that varies by a
/// header that fingerprints do not cover.
fn check_vary(headers: &HeaderMap, policy: &Policy) -> Result<(), NoStore> {
    let known = |name: &str| {
        let is = |listed: &HeaderName| listed.as_str().eq_ignore_ascii_case(name);
        !policy.ignored.iter().any(is) && (is_variant(name) || policy.vary.iter().any(is))
    };
    let all = tokens(headers, &VARY).all(|name| name.is_ok_and(known));
    if all { Ok(()) } else { Err(NoStore::Vary) }
}

/// Returns whether a response varies by a header that is not of the variant, such as one of the
/// credential.
pub(super) fn varies_by_caller(headers: &HeaderMap) -> bool {
    !tokens(headers, &VARY).all(|name| name.is_ok_and(is_variant))
}

fn is_variant(name: &str) -> bool {
    is_variant_header(name) || VARY_BY.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Checks that the body is neither coded nor endless.
///
/// Fills do not ask for a content coding, and a client that did not ask for one may not understand it.
/// A response without `Content-Encoding` has none (RFC 9110 8.4), so it suits every client.
fn check_representation(headers: &HeaderMap) -> Result<(), NoStore> {
    let plain = |coding: &str| coding.eq_ignore_ascii_case("identity");
    if !tokens(headers, &CONTENT_ENCODING).all(|coding| coding.is_ok_and(plain)) {
        return Err(NoStore::Encoding);
    }
    if is_endless(headers) { Err(NoStore::EventStream) } else { Ok(()) }
}

/// Whether a body is a stream of events or parts, which ends only when there is nothing more to say.
pub fn is_endless(headers: &HeaderMap) -> bool {
    let is_endless_type = |value: &HeaderValue| {
        let media_type = value.as_bytes().split(|&b| b == b';').next().unwrap_or_default();
        let media_type = media_type.trim_ascii();
        media_type.eq_ignore_ascii_case(b"text/event-stream")
            || media_type.eq_ignore_ascii_case(b"multipart/x-mixed-replace")
    };
    headers.get_all(CONTENT_TYPE).into_iter().any(is_endless_type)
}

fn check_content_length(head: &Parts, policy: &Policy) -> Result<(), NoStore> {
    let Some(length) = head.headers.get(CONTENT_LENGTH) else {
        return Ok(());
    };
    // The HTTP parser refuses a length that is not a number; here it counts as too large.
    match length.to_str().ok().and_then(|length| length.parse::<usize>().ok()) {
        // A 200 without a body is not the status of a job.
        Some(0) if head.status == StatusCode::OK => Err(NoStore::Empty),
        Some(length) if length <= policy.max_body => Ok(()),
        _ => Err(NoStore::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::{Response, StatusCode};

    use super::{NoStore, Policy, storable, varies_by_caller};

    const POLICY: Policy = Policy {
        statuses: Vec::new(),
        ttl: Duration::from_mins(5),
        stated_only: false,
        max_body: 1000,
        vary: Vec::new(),
        ignored: Vec::new(),
        state_ttls: None,
        cookies: Vec::new(),
        volatile: Vec::new(),
    };

    #[track_caller]
    fn check(lines: &[(&str, &str)], want: Result<(), NoStore>) {
        check_status(200, lines, want);
    }

    #[track_caller]
    fn check_status(status: u16, lines: &[(&str, &str)], want: Result<(), NoStore>) {
        let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
        for &(name, value) in lines {
            response = response.header(name, value.as_bytes());
        }
        let (head, ()) = response.body(()).unwrap().into_parts();
        assert_eq!(storable(&head, &POLICY), want, "{status} {lines:?}");
    }

    #[test]
    fn a_plain_200_is_stored() {
        check(&[], Ok(()));
        check(&[("content-type", "application/json"), ("content-length", "1000")], Ok(()));
        check(&[("transfer-encoding", "chunked"), ("etag", "\"a\"")], Ok(()));
        check(&[("content-range", "bytes 0-1/2")], Ok(()));
        check(&[("cache-control", "public, no-transform, must-revalidate, no-storex")], Ok(()));
    }

    #[test]
    fn no_other_status_is_stored() {
        for status in [100, 201, 203, 204, 206, 301, 304, 404, 410, 500] {
            check_status(status, &[], Err(NoStore::Status));
        }
    }

    #[test]
    fn directives_that_forbid_storing_are_heeded() {
        for (value, why) in [
            ("no-store", NoStore::NoStore),
            ("NO-STORE", NoStore::NoStore),
            ("must-understand, no-store", NoStore::NoStore),
            ("no-store=1", NoStore::NoStore),
            ("private", NoStore::Private),
            ("max-age=60, Private=\"set-cookie, x\"", NoStore::Private),
            ("no-cache", NoStore::NoCache),
            ("public, no-cache=\"x\"", NoStore::NoCache),
            ("x=\"a, no-store", NoStore::Malformed),
            ("a b", NoStore::Malformed),
            ("é", NoStore::Malformed),
        ] {
            check(&[("cache-control", value)], Err(why));
            check(&[("cache-control", "public"), ("cache-control", value)], Err(why));
        }
        check(&[("cache-control", "x=\"no-store, private\"")], Ok(()));
    }

    #[test]
    fn vary_is_limited_to_what_entries_are_told_apart_by() {
        for value in ["", "Accept-Encoding", "origin, HOST", "Accept,Accept-Language"] {
            check(&[("vary", value)], Ok(()));
        }
        check(&[("vary", "X-Forwarded-Host, X-Forwarded-Proto, X-Forwarded-Port")], Ok(()));
        let preflight = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        check(&[("vary", preflight)], Ok(()));
        for value in [
            "*",
            "Accept, *",
            "Access-Control-Request",
            "Cookie",
            "Authorization, Accept",
            "X-Forwarded-For",
            "Forwarded",
            "é",
        ] {
            check(&[("vary", value)], Err(NoStore::Vary));
            check(&[("vary", "accept"), ("vary", value)], Err(NoStore::Vary));
        }
    }

    #[test]
    fn the_variant_is_not_the_caller() {
        let varies = |names: &str| {
            let response = Response::builder().header("vary", names).body(()).unwrap();
            varies_by_caller(response.headers())
        };
        for variant in ["Accept, Prefer", "accept-version", "X-Forwarded-Host", "accept-encoding"] {
            assert!(!varies(variant), "{variant}");
        }
        for caller in ["Authorization", "Accept, Cookie", "Forwarded", "*"] {
            assert!(varies(caller), "{caller}");
        }
    }

    #[test]
    fn coded_endless_and_personal_bodies_are_not_stored() {
        check(&[("content-encoding", "identity")], Ok(()));
        check(&[("content-encoding", "gzip")], Err(NoStore::Encoding));
        check(&[("content-encoding", "identity, br")], Err(NoStore::Encoding));
        check(&[("content-type", "Text/Event-Stream; charset=utf-8")], Err(NoStore::EventStream));
        let mixed = "multipart/x-mixed-replace;boundary=x";
        check(&[("content-type", mixed)], Err(NoStore::EventStream));
        check(&[("set-cookie", "a=b")], Err(NoStore::SetCookie));
        check(&[("trailer", "x-checksum")], Err(NoStore::Trailers));
    }

    #[test]
    fn a_cookie_that_does_not_count_may_be_set() {
        let policy = Policy { cookies: vec!["session".to_owned()], ..POLICY };
        let check = |values: &[&str], want| {
            let response = Response::builder();
            let response = values.iter().fold(response, |r, value| r.header("set-cookie", *value));
            let (head, ()) = response.body(()).unwrap().into_parts();
            assert_eq!(storable(&head, &policy), want, "{values:?}");
        };
        for value in ["AWSALB=1; Path=/", "sessio=1", "xsession=1; session=2", " lb =1", "lb="] {
            check(&[value], Ok(()));
        }
        for value in
            ["session=1", "Session.0=1", " session =1; Path=/", "session=", "session", "lb", ""]
        {
            check(&[value], Err(NoStore::SetCookie));
            check(&["lb=1", value], Err(NoStore::SetCookie));
        }
    }

    #[test]
    fn the_stated_length_is_checked() {
        check(&[("content-length", "0")], Err(NoStore::Empty));
        check(&[("content-length", "1001")], Err(NoStore::TooLarge));
        check(&[("content-length", "99999999999999999999999")], Err(NoStore::TooLarge));
        check(&[("content-length", "x")], Err(NoStore::TooLarge));
    }
}
