//! HTTP caching policy: the rules of RFC 9110 and RFC 9111 that a shared cache of job status reads
//! needs. Each rule is quoted above the branch that implements it.
//!
//! The policy is pure: `now` is an argument, and there is no store, upstream or clock. It deliberately
//! does less than the RFCs allow: no heuristic freshness beyond the configured TTL, only complete 200
//! responses to GET, no stale entries, no `must-understand`.
//!
//! This file also decides whether a client with validators already has the current representation.

mod directives;
mod freshness;
mod reason;
mod storable;
mod stored_head;
mod volatile;

use std::time::{Duration, SystemTime};

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, HeaderValue, IF_NONE_MATCH},
};

pub use directives::RequestDirectives;
pub use freshness::{Freshness, StatedLifetimes, freshness, may_be_shared, stated_lifetimes};
pub use reason::{Bypass, NoStore};
pub(crate) use reason::{CacheStatus, Forward, cache_status};
pub use storable::{is_endless, never_stored, storable};
pub use stored_head::{LastModified, StoredHead};

use super::settings::StateTtlConfig;

/// Configured limits for storing responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Greatest age of an answer from the cache, and the lifetime of a response that states none.
    pub ttl: Duration,
    /// Final statuses that are stored besides 200, each with its greatest age.
    pub statuses: Vec<(StatusCode, Duration)>,
    /// Whether only responses that state a lifetime are stored.
    pub stated_only: bool,
    /// Size of the largest body, in bytes.
    pub max_body: usize,
    /// Request headers that fingerprints cover. A response may vary by them, and by those of the
    /// policy's own list.
    pub vary: Vec<HeaderName>,
    /// Request headers that the configuration ignores. A response that varies by them is not stored.
    pub ignored: Vec<HeaderName>,
    /// TTL limits by the state that the body shows.
    pub state_ttls: Option<StateTtlConfig>,
    /// Names of the cookies that count; if empty, all cookies count.
    pub cookies: Vec<String>,
    /// Configured names of response headers that are neither stored nor compared.
    pub volatile: Vec<HeaderName>,
}

impl Policy {
    /// Returns the greatest age of an answer with this status from the cache; `None` if it is not
    /// stored.
    pub fn ttl_of(&self, status: StatusCode) -> Option<Duration> {
        if status == StatusCode::OK {
            return Some(self.ttl);
        }
        self.statuses.iter().find(|(known, _)| *known == status).map(|(_, ttl)| *ttl)
    }
}

/// Returns whether a GET or HEAD with these headers is answered with 304 if the representation has
/// this entity tag (RFC 9110 13.2.2, step 3).
///
/// `If-Modified-Since` is ignored: such a request gets the body. "A Last-Modified time, when used as a
/// validator in a request, is implicitly weak unless it is possible to deduce that it is strong" RFC
/// 9110 8.8.2.2: a job that changes twice within a second keeps its date, and jobs do so. Clients can
/// use the entity tag instead, which every entry has. `If-Match` and `If-Unmodified-Since` are not
/// evaluated either: such requests bypass the cache.
pub fn not_modified(request: &HeaderMap, etag: &HeaderValue) -> bool {
    request.get_all(IF_NONE_MATCH).into_iter().any(|line| lists(line.as_bytes(), etag))
}

/// Parses the date of a field, in any of the three formats of RFC 9110 5.6.7.
fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// Returns whether a line of `If-None-Match` lists `etag`.
fn lists(line: &[u8], etag: &HeaderValue) -> bool {
    // "If the field value is '*', the condition is false if the origin server has a current
    // representation for the target resource." RFC 9110 13.1.2
    line.trim_ascii() == b"*" || entity_tags(line).any(|tag| tag == opaque_tag(etag.as_bytes()))
}

/// Strips the weakness prefix. "A recipient MUST use the weak comparison function when comparing
/// entity tags for If-None-Match" RFC 9110 13.1.2
pub(super) fn opaque_tag(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Returns the opaque tags of a list, with their quotes. A tag without quotes, which some upstreams
/// send, ends at the next comma.
fn entity_tags(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let start = list.iter().position(|&b| !matches!(b, b',' | b' ' | b'\t'))?;
        let rest = opaque_tag(&list[start..]);
        let quoted = rest.strip_prefix(b"\"");
        // RFC 9110 8.8.3: an opaque tag may contain commas, and it has no escapes.
        let end = match quoted.and_then(|tag| tag.iter().position(|&b| b == b'"')) {
            Some(end) => end + 2,
            None => rest.iter().position(|&b| b == b',').unwrap_or(rest.len()),
        };
        let (tag, rest) = rest.split_at(end);
        list = rest;
        Some(tag.trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use hyper::{
        HeaderMap,
        header::{HeaderName, HeaderValue},
    };

    use super::not_modified;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    #[track_caller]
    fn check(lines: &[(&'static str, &'static str)], want: bool) {
        check_against("\"a\"", lines, want);
    }

    #[track_caller]
    fn check_against(etag: &'static str, lines: &[(&'static str, &'static str)], want: bool) {
        let line = |&(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = lines.iter().map(line).collect();
        let got = not_modified(&headers, &HeaderValue::from_static(etag));
        assert_eq!(got, want, "{lines:?} against {etag}");
    }

    #[test]
    fn without_validators_the_body_is_sent() {
        check(&[], false);
        check(&[("if-match", "\"a\"")], false);
    }

    #[test]
    fn entity_tags_are_compared_weakly() {
        check(&[("if-none-match", "\"a\"")], true);
        check(&[("if-none-match", "W/\"a\"")], true);
        check(&[("if-none-match", "\"b\"")], false);
        check(&[("if-none-match", "w/\"a\"")], false);
        check(&[("if-none-match", "\"A\"")], false);
        check(&[("if-none-match", "a")], false);
        check(&[("if-none-match", "")], false);
        check_against("W/\"a\"", &[("if-none-match", "\"a\"")], true);
        check_against("W/\"a\"", &[("if-none-match", "W/\"a\"")], true);
    }

    #[test]
    fn entity_tags_come_in_lists() {
        check(&[("if-none-match", "\"b\", \"a\"")], true);
        check(&[("if-none-match", "\"b\",W/\"a\" , \"c\"")], true);
        check(&[("if-none-match", "\"b\""), ("if-none-match", ", \"a\"")], true);
        check(&[("if-none-match", "\"b\", \"c\"")], false);
        check(&[("if-none-match", "\"b, \"a\"")], false);
        check_against("\"a,b\"", &[("if-none-match", "\"a,b\"")], true);
        check_against("\"a\"", &[("if-none-match", "\"b,\"a\"\"")], false);
        check_against("a", &[("if-none-match", "b, a ")], true);
    }

    #[test]
    fn a_star_matches_any_representation() {
        check(&[("if-none-match", "*")], true);
        check(&[("if-none-match", " * ")], true);
        check(&[("if-none-match", "\"*\"")], false);
        check(&[("if-none-match", "*, \"b\"")], false);
    }

    #[test]
    fn a_date_tells_nothing() {
        check(&[("if-modified-since", DATE)], false);
        check(&[("if-modified-since", DATE), ("if-none-match", "\"b\"")], false);
        check(&[("if-modified-since", DATE), ("if-none-match", "\"a\"")], true);
    }
}
