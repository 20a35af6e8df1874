//! The part of a response's head that an entry keeps, and how two of them are compared.
//!
//! Four kinds of headers are left out, and so are neither replayed nor compared: those of the
//! connection, those for one client, those that jobcache makes for every answer, and
//! [volatile](super::volatile) ones. `Last-Modified` is left out if it is the time of the answer.
//! Lifetimes are compared elsewhere, as times and not as text.

use std::time::{Duration, SystemTime};

use hyper::{
    HeaderMap, StatusCode,
    header::{CACHE_CONTROL, DATE, EXPIRES, HeaderName, HeaderValue, LAST_MODIFIED},
    http::response::Parts,
};

use super::{
    directives::{Directive, directives},
    http_date,
    volatile::is_volatile,
};

/// The end of the year 9999, the last time that `Date` can express.
const LAST_DATE_MS: i64 = 253_402_300_799_000;
/// Capacity for the headers that answers add to the stored ones.
const SPARE: usize = 8;
/// Greatest difference of `Last-Modified` and `Date` with which the former is the time of the answer.
const SAME_TIME: Duration = Duration::from_secs(1);

/// Status and headers of a response as an entry keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredHead {
    /// Status of the response.
    pub status: StatusCode,
    /// Headers that are stored, always with `Date`.
    pub headers: HeaderMap,
    /// Whether `Last-Modified` is kept.
    pub last_modified: LastModified,
}

/// Whether the `Last-Modified` of a response is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastModified {
    /// Stored, if there was one.
    Kept,
    /// Left out, because it is the time of the answer.
    Dropped,
}

/// Returns whether a response header is part of an entry. `volatile` has the configured names.
///
/// `Date` is stored, because `Date` and `Age` show how old an answer is, but it is not compared.
fn is_stored(name: &HeaderName, volatile: &[HeaderName]) -> bool {
    let text = name.as_str();
    let belongs_elsewhere = matches!(
        text,
        // RFC 9110 7.6.1 and RFC 9111 3.1: for the next hop only.
        "connection" | "keep-alive" | "proxy-authenticate" | "proxy-authentication-info"
            | "proxy-authorization" | "proxy-connection" | "te" | "trailer"
            | "transfer-encoding" | "upgrade"
        // For one client only.
            | "set-cookie"
        // Generated for every answer. The length is that of the body.
            | "age" | "cache-status" | "content-length" | "via"
    );
    !belongs_elsewhere && !is_volatile(text) && !volatile.contains(name)
}

impl StoredHead {
    /// Takes what is stored from the head of a response. `now_ms` is the time of the request for it, in
    /// ms since 1970.
    pub fn of(head: &Parts, volatile: &[HeaderName], now_ms: i64) -> Self {
        let last_modified = last_modified(&head.headers, now_ms);
        let is_kept = |name: &HeaderName| {
            let is_dropped = last_modified == LastModified::Dropped && *name == LAST_MODIFIED;
            is_stored(name, volatile) && !is_dropped
        };
        let mut headers = HeaderMap::with_capacity(head.headers.len() + SPARE);
        for (name, value) in head.headers.iter().filter(|(name, _)| is_kept(name)) {
            headers.append(name, value.clone());
        }
        // "A recipient with a clock that receives a response message without a Date header field MUST
        // record the time it was received and append a corresponding Date header field to the message's
        // header section if it is cached or forwarded downstream." RFC 9110 6.6.1
        headers.entry(DATE).or_insert_with(|| date_value(now_ms));
        Self { status: head.status, headers, last_modified }
    }

    /// Returns the names of the headers in which `later` differs, apart from lifetimes.
    ///
    /// Both may hold headers that have been volatile only since they were stored.
    pub fn differing_headers(&self, later: &Self, volatile: &[HeaderName]) -> Vec<HeaderName> {
        let only_later = later.headers.keys().filter(|name| !self.headers.contains_key(*name));
        let names = self.headers.keys().chain(only_later);
        let has_no_date =
            [self, later].iter().any(|head| head.last_modified == LastModified::Dropped);
        let compared = names.filter(|name| {
            let is_time =
                **name == DATE || **name == EXPIRES || has_no_date && **name == LAST_MODIFIED;
            !is_time && is_stored(name, volatile)
        });
        compared.filter(|name| !self.agrees(later, name)).cloned().collect()
    }

    fn agrees(&self, later: &Self, name: &HeaderName) -> bool {
        let (own, other) = (self.headers.get_all(name), later.headers.get_all(name));
        own.iter().eq(other.iter())
            || *name == CACHE_CONTROL && has_same_directives(&self.headers, &later.headers)
    }
}

/// Returns whether two `Cache-Control` differ in the numbers of `max-age` and `s-maxage` alone. One that
/// cannot be parsed equals no other.
fn has_same_directives(one: &HeaderMap, other: &HeaderMap) -> bool {
    let (Ok(one), Ok(other)) = (directives(one), directives(other)) else { return false };
    let texts = |list: &[Directive<'_>]| -> Vec<String> {
        list.iter().filter(|directive| !directive.is_lifetime()).map(ToString::to_string).collect()
    };
    texts(&one) == texts(&other)
}

/// Decides whether `Last-Modified` is kept. Some frameworks give it the time of the answer, like `Date`.
/// Such a date says nothing about the job.
fn last_modified(headers: &HeaderMap, now_ms: i64) -> LastModified {
    let Some(modified) = headers.get(LAST_MODIFIED).and_then(http_date) else {
        return LastModified::Kept;
    };
    let is_time_of_answer = match headers.get(DATE).and_then(http_date) {
        Some(date) => {
            let distance = date.duration_since(modified).unwrap_or_else(|error| error.duration());
            distance <= SAME_TIME
        }
        // The time of the answer is not known, but it is after the request.
        None => modified + SAME_TIME >= time(now_ms),
    };
    if is_time_of_answer { LastModified::Dropped } else { LastModified::Kept }
}

fn time(ms: i64) -> SystemTime {
    let ms = u64::try_from(ms.min(LAST_DATE_MS)).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

/// Formats a time in the only format that may be sent (RFC 9110 5.6.7).
fn date_value(ms: i64) -> HeaderValue {
    let date = httpdate::fmt_http_date(time(ms));
    // Conversion never fails: the date has only letters, digits, spaces, a comma and colons.
    HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use hyper::Response;

    use super::*;

    const DATE_TEXT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const DATE_MS: i64 = 784_111_777_000;

    fn parts(lines: &[(&str, &str)]) -> Parts {
        let response = lines
            .iter()
            .fold(Response::builder(), |response, &(name, value)| response.header(name, value));
        response.body(()).unwrap().into_parts().0
    }

    fn stored(lines: &[(&str, &str)]) -> StoredHead {
        StoredHead::of(&parts(lines), &[HeaderName::from_static("x-pod")], DATE_MS)
    }

    #[track_caller]
    fn check(one: &[(&str, &str)], other: &[(&str, &str)], want: &[&str]) {
        let volatile = [HeaderName::from_static("x-pod")];
        assert_eq!(
            stored(one).differing_headers(&stored(other), &volatile),
            want,
            "{one:?} {other:?}"
        );
        let mut back = stored(other).differing_headers(&stored(one), &volatile);
        back.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        assert_eq!(back, want, "{other:?} {one:?}");
    }

    #[test]
    fn headers_of_one_exchange_or_hop_are_not_part_of_an_entry() {
        let check = |name: &str, want| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            assert_eq!(is_stored(&name, &[HeaderName::from_static("x-pod")]), want, "{name}");
        };
        for name in ["Content-Type", "ETag", "Last-Modified", "Cache-Control", "Vary", "Link"] {
            check(name, true);
        }
        for name in ["Date", "Expires", "X-Job-State", "Access-Control-Allow-Origin", "X-Pods"] {
            check(name, true);
        }
        for name in ["Connection", "Transfer-Encoding", "Keep-Alive", "Upgrade", "Trailer", "TE"] {
            check(name, false);
        }
        for name in ["Set-Cookie", "Age", "Via", "Cache-Status", "Content-Length", "X-Pod"] {
            check(name, false);
        }
        for name in ["X-Request-ID", "X-Correlation-Id", "CF-Ray", "X-RateLimit-Remaining"] {
            check(name, false);
        }
    }

    #[test]
    fn a_modification_at_the_time_of_the_answer_is_left_out() {
        let check = |lines: &[(&str, &str)], want: bool| {
            let stored = stored(lines);
            assert_eq!(stored.last_modified == LastModified::Dropped, want, "{lines:?}");
            let is_there = lines.iter().any(|(name, _)| *name == "last-modified");
            assert_eq!(stored.headers.contains_key(LAST_MODIFIED), is_there && !want, "{lines:?}");
        };
        check(&[], false);
        check(&[("date", DATE_TEXT), ("last-modified", "x")], false);
        for (modified, want) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", true),
            ("Sun, 06 Nov 1994 08:49:36 GMT", true),
            ("Sun, 06 Nov 1994 08:49:38 GMT", true),
            ("Sun, 06 Nov 1994 08:49:35 GMT", false),
        ] {
            check(&[("date", DATE_TEXT), ("last-modified", modified)], want);
            check(&[("last-modified", modified)], want);
        }
        // A slow API without a clock in its answers.
        let later = ("last-modified", "Sun, 06 Nov 1994 08:49:47 GMT");
        check(&[later], true);
        check(&[("date", DATE_TEXT), later], false);
    }

    #[test]
    fn heads_differ_in_what_says_something_about_the_job() {
        check(&[], &[], &[]);
        check(&[("x", "1"), ("y", "2")], &[("y", "2"), ("x", "1")], &[]);
        check(&[("x", "1"), ("x", "2")], &[("x", "2"), ("x", "1")], &["x"]);
        check(&[("x", "1")], &[], &["x"]);
        check(&[("x", "")], &[], &["x"]);
        check(&[("etag", "\"1\"")], &[("etag", "\"2\"")], &["etag"]);
        check(&[("date", DATE_TEXT)], &[("date", "Sun, 06 Nov 1994 09:49:37 GMT")], &[]);
        check(&[("expires", "a"), ("via", "b"), ("age", "1")], &[], &[]);
        check(&[("x-pod", "a"), ("cf-ray", "b")], &[("x-pod", "c")], &[]);
    }

    #[test]
    fn a_header_that_has_become_volatile_is_not_compared() {
        let old = StoredHead::of(&parts(&[("x-pod", "a")]), &[], DATE_MS);
        assert!(old.headers.contains_key("x-pod"));
        assert!(
            old.differing_headers(&stored(&[]), &[HeaderName::from_static("x-pod")]).is_empty()
        );
        assert_eq!(old.differing_headers(&stored(&[]), &[]), ["x-pod"]);
    }

    #[test]
    fn directives_other_than_lifetimes_are_compared_as_text() {
        let control = |value| [("cache-control", value)];
        let same = |one, other| check(&control(one), &control(other), &[]);
        let differ = |one, other| check(&control(one), &control(other), &["cache-control"]);
        same("max-age=60", "max-age=59");
        same("public, max-age=60", "s-maxage=9 , public");
        check(&control("max-age=60"), &[], &[]);
        differ("public, max-age=60", "max-age=60");
        differ("max-age=60, must-revalidate", "max-age=60");
        differ("stale-if-error=60", "stale-if-error=61");
        differ("x=\"", "max-age=60, x=\"");
    }

    #[test]
    fn a_dropped_modification_is_compared_with_nothing() {
        let now = [("date", DATE_TEXT), ("last-modified", DATE_TEXT)];
        let old = [("date", DATE_TEXT), ("last-modified", "Sun, 06 Nov 1994 07:00:00 GMT")];
        let older = [("date", DATE_TEXT), ("last-modified", "Sun, 06 Nov 1994 06:00:00 GMT")];
        check(&now, &old, &[]);
        check(&now, &[], &[]);
        check(&old, &older, &["last-modified"]);
        check(&old, &[], &["last-modified"]);
    }
}
