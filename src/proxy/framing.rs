//! Message framing: refuses requests that two readers could understand differently, by their
//! target or by where they end, requests past a limit, and CONNECT. What the upstream makes of such
//! a message must not be left to chance.
//!
//! hyper has refused most of these before: conflicting or non-numeric lengths, folded lines, space
//! before a colon, control characters, and a transfer coding after `chunked`.
//!
//! In a response, a transfer coding that would stay on the body is recognised, and a repeated length
//! is reduced to one.

use hyper::{
    HeaderMap, Method, Request, StatusCode, Version,
    header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING},
    http::uri::PathAndQuery,
};

use crate::{config, limits::Limit};

/// Why a request is refused before it is routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The `Host` field is missing, repeated or invalid.
    Host,
    /// The form of the request target does not fit the method.
    Target,
    /// The transfer coding is not a single `chunked`.
    TransferCoding,
    /// The method is CONNECT: jobcache does not open tunnels.
    Connect,
    /// The target is longer than `server.max_uri`.
    UriTooLong,
    /// There are more fields than `server.max_headers`. hyper enforces this limit itself only on
    /// HTTP/1 and only above its default.
    TooManyHeaders,
}

impl Refusal {
    /// Returns the reason for logs, metrics and headers.
    pub(crate) fn as_str(self) -> &'static str {
        self.terms().0
    }

    /// Returns the status of the answer.
    pub(crate) fn status(self) -> StatusCode {
        self.terms().1
    }

    /// Returns the limit that the request exceeds, if it exceeds one.
    pub(crate) fn limit(self) -> Option<Limit> {
        self.terms().2
    }

    fn terms(self) -> (&'static str, StatusCode, Option<Limit>) {
        match self {
            Self::Host => ("host", StatusCode::BAD_REQUEST, None),
            Self::Target => ("target", StatusCode::BAD_REQUEST, None),
            // "A server that receives a request message with a transfer coding it does not
            // understand SHOULD respond with 501 (Not Implemented)." RFC 9112 6.1
            Self::TransferCoding => ("transfer-coding", StatusCode::NOT_IMPLEMENTED, None),
            Self::Connect => ("connect", StatusCode::METHOD_NOT_ALLOWED, None),
            Self::UriTooLong => ("uri-too-long", StatusCode::URI_TOO_LONG, Some(Limit::Uri)),
            Self::TooManyHeaders => {
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                ("too-many-headers", status, Some(Limit::Headers))
            }
        }
    }
}

/// Checks a request head as the client sent it.
pub(crate) fn check<B>(request: &Request<B>, limits: &config::ServerConfig) -> Result<(), Refusal> {
    let target = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
    if target.len() > limits.max_uri {
        return Err(Refusal::UriTooLong);
    }
    if request.headers().len() > limits.max_headers {
        return Err(Refusal::TooManyHeaders);
    }
    if !has_one_host(request.headers(), request.version()) {
        return Err(Refusal::Host);
    }
    if !has_target_of_its_method(request) {
        return Err(Refusal::Target);
    }
    if !is_chunked_at_most(request.headers()) {
        return Err(Refusal::TransferCoding);
    }
    if *request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    Ok(())
}

/// "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request message that
/// lacks a Host header field and to any request message that contains more than one Host header
/// field line or a Host header field with an invalid field value." RFC 9112 3.2
fn has_one_host(headers: &HeaderMap, version: Version) -> bool {
    let mut hosts = headers.get_all(HOST).into_iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.as_bytes().iter().all(|&byte| is_of_host(byte)),
        (None, _) => version != Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
}

/// Whether a byte may stand in a host with a port (RFC 3986 3.2.2): no user, no path, no space.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
        || matches!(byte, b'!' | b'$' | b'&'..=b',' | b';' | b'=')
}

/// Whether the target has the form for its method. `*` is for OPTIONS, and `host:port` is for
/// CONNECT (RFC 9112 3.2.3, 3.2.4), which is refused later. Other methods with these forms would go
/// upstream as `/`, which is not what the client asked for.
fn has_target_of_its_method<B>(request: &Request<B>) -> bool {
    let uri = request.uri();
    match *request.method() {
        Method::CONNECT => true,
        Method::OPTIONS if uri.path() == "*" => true,
        _ => uri.path() != "*" && (uri.authority().is_none() || uri.scheme().is_some()),
    }
}

/// The registered transfer codings other than `chunked`, with their old names.
const CODINGS: [&[u8]; 5] = [b"compress", b"x-compress", b"deflate", b"gzip", b"x-gzip"];

/// Whether the body of a response is still coded after hyper has decoded `chunked` and the field is
/// removed. This is so if the field names another registered coding (RFC 9112 7.2), or `chunked`
/// twice. An unregistered word says nothing about the body and is ignored, as other proxies do.
pub(crate) fn stays_coded(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(TRANSFER_ENCODING).into_iter();
    let codings = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let mut chunked = 0;
    codings.map(<[u8]>::trim_ascii).any(|coding| {
        chunked += usize::from(coding.eq_ignore_ascii_case(b"chunked"));
        chunked > 1 || CODINGS.iter().any(|other| coding.eq_ignore_ascii_case(other))
    })
}

/// Whether a request has no transfer coding, or `chunked` once. hyper decodes that one. Any other
/// coding would stay on the body after the field is removed.
fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(TRANSFER_ENCODING).into_iter();
    match (lines.next(), lines.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Reduces repeated values of `Content-Length` in a response to one.
///
/// "if all the values are valid and the same, the recipient may replace the duplicated values with
/// a single valid Content-Length" RFC 9112 6.3. hyper has refused values that differ, except in a
/// response to HEAD, which has no body: there the field is removed.
pub(crate) fn unify_length(headers: &mut HeaderMap) {
    let lines = headers.get_all(CONTENT_LENGTH).into_iter();
    let lengths = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let mut lengths = lengths.map(<[u8]>::trim_ascii);
    let (Some(first), Some(second)) = (lengths.next(), lengths.next()) else { return };
    let same = second == first && lengths.all(|length| length == first);
    match HeaderValue::from_bytes(first) {
        Ok(length) if same => drop(headers.insert(CONTENT_LENGTH, length)),
        _ => drop(headers.remove(CONTENT_LENGTH)),
    }
}

#[cfg(test)]
mod tests {
    use hyper::{
        HeaderMap, Request, Version,
        header::{CONTENT_LENGTH, HOST, HeaderValue},
    };

    use super::{Refusal, TRANSFER_ENCODING, check, stays_coded, unify_length};
    use crate::config::ServerConfig;

    /// `head` is the method and target, then one header per line.
    #[track_caller]
    fn check_head(version: Version, head: &str, want: Result<(), Refusal>) {
        let mut lines = head.split('\n');
        let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(target).version(version);
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let request = request.body(()).unwrap();
        assert_eq!(check(&request, &ServerConfig::default()), want, "{head}");
    }

    #[test]
    fn a_request_has_one_host_that_is_one() {
        let expect = |head: &str, want| check_head(Version::HTTP_11, head, want);
        for host in ["a", "a:80", "[::1]:80", "10.0.0.1", "a_b.example", ""] {
            expect(&format!("GET /\nhost: {host}"), Ok(()));
        }
        for host in ["a b", "a/b", "u@a", "a\"", "a?b", "a\\b"] {
            expect(&format!("GET /\nhost: {host}"), Err(Refusal::Host));
        }
        expect("GET /", Err(Refusal::Host));
        expect("GET http://a/", Err(Refusal::Host));
        expect("GET /\nhost: a\nhost: a", Err(Refusal::Host));
        check_head(Version::HTTP_10, "GET /", Ok(()));
        check_head(Version::HTTP_10, "GET /\nhost: a\nhost: b", Err(Refusal::Host));
        check_head(Version::HTTP_2, "GET http://a/", Ok(()));
        let mut request = Request::new(());
        request.headers_mut().insert(HOST, HeaderValue::from_bytes(b"\xe9").unwrap());
        assert_eq!(check(&request, &ServerConfig::default()), Err(Refusal::Host));
    }

    #[test]
    fn a_target_has_the_form_that_its_method_takes() {
        let expect = |head: &str, want| {
            check_head(Version::HTTP_11, &format!("{head}\nhost: a"), want);
        };
        for head in ["GET /", "GET http://a/b", "OPTIONS *", "OPTIONS /", "FOO /?*"] {
            expect(head, Ok(()));
        }
        expect("CONNECT a:1", Err(Refusal::Connect));
        for head in ["GET *", "GET a", "GET a:80", "PUT *", "OPTIONS a:80"] {
            expect(head, Err(Refusal::Target));
        }
    }

    #[test]
    fn chunked_is_the_one_transfer_coding() {
        let expect = |codings: &str, want| {
            check_head(Version::HTTP_11, &format!("POST /\nhost: a{codings}"), want);
        };
        expect("\ntransfer-encoding: chunked", Ok(()));
        expect("\ntransfer-encoding: Chunked", Ok(()));
        for coding in ["gzip, chunked", "chunked, chunked", "identity", "", "xchunked"] {
            let line = format!("\ntransfer-encoding: {coding}");
            expect(&line, Err(Refusal::TransferCoding));
        }
        let twice = "\ntransfer-encoding: identity\ntransfer-encoding: chunked";
        expect(twice, Err(Refusal::TransferCoding));
    }

    #[test]
    fn an_answer_stays_coded_by_the_codings_that_there_are() {
        let check = |codings: &str, want| {
            let mut headers = HeaderMap::new();
            headers.insert(TRANSFER_ENCODING, codings.parse().unwrap());
            assert_eq!(stays_coded(&headers), want, "{codings:?}");
        };
        for plain in ["chunked", "Chunked", "identity", "a=b", "", "xchunked, chunked"] {
            check(plain, false);
        }
        for coded in ["gzip", "X-GZIP, chunked", "chunked, chunked", "deflate", "compress"] {
            check(coded, true);
        }
    }

    #[test]
    fn a_head_past_a_limit_is_refused() {
        let expect = |head: &str, want| check_head(Version::HTTP_2, head, want);
        let path = |len: usize| format!("GET /{}", "a".repeat(len - 1));
        expect(&path(8 << 10), Ok(()));
        expect(&path((8 << 10) + 1), Err(Refusal::UriTooLong));
        expect(&format!("GET /{}", "\nx: 1".repeat(100)), Ok(()));
        expect(&format!("GET /{}", "\nx: 1".repeat(101)), Err(Refusal::TooManyHeaders));
    }

    #[track_caller]
    fn check_lengths(lines: &[&'static str], want: Option<&str>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_LENGTH, HeaderValue::from_static(line));
        }
        unify_length(&mut headers);
        let got: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().collect();
        assert_eq!(got, want.into_iter().collect::<Vec<_>>(), "{lines:?}");
    }

    #[test]
    fn a_repeated_length_is_said_once() {
        check_lengths(&[], None);
        check_lengths(&["3"], Some("3"));
        check_lengths(&["3", "3"], Some("3"));
        check_lengths(&["3, 3"], Some("3"));
        check_lengths(&["3", "4"], None);
        check_lengths(&["3, 4"], None);
    }
}
