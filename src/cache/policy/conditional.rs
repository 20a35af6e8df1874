//! Conditional reads: whether a client that shows validators already has what it asks for.

use std::time::SystemTime;

use hyper::{
    HeaderMap,
    header::{HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH},
};

/// Whether a GET or HEAD with these headers is answered 304 by a representation with these
/// validators (RFC 9110 13.2.2, steps 3 and 4).
///
/// `If-Match` and `If-Unmodified-Since` are not read: such requests pass.
pub fn not_modified(
    request: &HeaderMap,
    etag: &HeaderValue,
    last_modified: Option<&HeaderValue>,
) -> bool {
    // "A recipient MUST ignore If-Modified-Since if the request contains an If-None-Match header
    // field" RFC 9110 13.1.3
    if request.contains_key(IF_NONE_MATCH) {
        return request.get_all(IF_NONE_MATCH).into_iter().any(|line| lists(line.as_bytes(), etag));
    }
    // "A recipient MUST ignore the If-Modified-Since header field if the received field value is
    // not a valid HTTP-date, the field value has more than one member, or if the request method is
    // neither GET nor HEAD." RFC 9110 13.1.3
    let mut lines = request.get_all(IF_MODIFIED_SINCE).into_iter();
    let (Some(since), None) = (lines.next(), lines.next()) else {
        return false;
    };
    // "If the selected representation's last modification date is earlier or equal to the date
    // provided in the field value, the condition is false." RFC 9110 13.1.3
    match (last_modified.and_then(http_date), http_date(since)) {
        (Some(modified), Some(since)) => modified <= since,
        _ => false,
    }
}

/// The date of a field, in any of the three forms of RFC 9110 5.6.7.
pub(super) fn http_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// Whether a line of `If-None-Match` lists `etag`.
fn lists(line: &[u8], etag: &HeaderValue) -> bool {
    // "If the field value is '*', the condition is false if the origin server has a current
    // representation for the target resource." RFC 9110 13.1.2
    line.trim_ascii() == b"*" || EntityTags(line).any(|tag| tag == opaque(etag.as_bytes()))
}

/// "A recipient MUST use the weak comparison function when comparing entity tags for If-None-Match"
/// RFC 9110 13.1.2
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The opaque tags of a list, with their quotes. A tag without quotes, which some upstreams send,
/// ends at the next comma.
struct EntityTags<'v>(&'v [u8]);

impl<'v> Iterator for EntityTags<'v> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        let start = self.0.iter().position(|&b| !matches!(b, b',' | b' ' | b'\t'))?;
        let rest = opaque(&self.0[start..]);
        let quoted = rest.strip_prefix(b"\"");
        // RFC 9110 8.8.3: an opaque tag may hold commas and knows no escapes.
        let end = match quoted.and_then(|tag| tag.iter().position(|&b| b == b'"')) {
            Some(end) => end + 2,
            None => rest.iter().position(|&b| b == b',').unwrap_or(rest.len()),
        };
        let (tag, rest) = rest.split_at(end);
        self.0 = rest;
        Some(tag.trim_ascii())
    }
}

#[cfg(test)]
mod tests {
    use hyper::{
        HeaderMap,
        header::{HeaderName, HeaderValue},
    };

    use super::not_modified;

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    #[track_caller]
    fn check(lines: &[(&'static str, &'static str)], want: bool) {
        check_against("\"a\"", Some(EARLY), lines, want);
    }

    #[track_caller]
    fn check_against(
        etag: &'static str,
        modified: Option<&'static str>,
        lines: &[(&'static str, &'static str)],
        want: bool,
    ) {
        let line = |&(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = lines.iter().map(line).collect();
        let modified = modified.map(HeaderValue::from_static);
        let got = not_modified(&headers, &HeaderValue::from_static(etag), modified.as_ref());
        assert_eq!(got, want, "{lines:?} against {etag} {modified:?}");
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
        check_against("W/\"a\"", None, &[("if-none-match", "\"a\"")], true);
        check_against("W/\"a\"", None, &[("if-none-match", "W/\"a\"")], true);
    }

    #[test]
    fn entity_tags_come_in_lists() {
        check(&[("if-none-match", "\"b\", \"a\"")], true);
        check(&[("if-none-match", "\"b\",W/\"a\" , \"c\"")], true);
        check(&[("if-none-match", "\"b\""), ("if-none-match", ", \"a\"")], true);
        check(&[("if-none-match", "\"b\", \"c\"")], false);
        check(&[("if-none-match", "\"b, \"a\"")], false);
        check_against("\"a,b\"", None, &[("if-none-match", "\"a,b\"")], true);
        check_against("\"a\"", None, &[("if-none-match", "\"b,\"a\"\"")], false);
        check_against("a", None, &[("if-none-match", "b, a ")], true);
    }

    #[test]
    fn a_star_matches_any_representation() {
        check(&[("if-none-match", "*")], true);
        check(&[("if-none-match", " * ")], true);
        check(&[("if-none-match", "\"*\"")], false);
        check(&[("if-none-match", "*, \"b\"")], false);
    }

    #[test]
    fn dates_count_only_without_entity_tags() {
        check(&[("if-modified-since", EARLY)], true);
        check(&[("if-modified-since", LATE)], true);
        check_against("\"a\"", Some(LATE), &[("if-modified-since", EARLY)], false);
        check_against("\"a\"", None, &[("if-modified-since", LATE)], false);
        check(&[("if-modified-since", LATE), ("if-none-match", "\"b\"")], false);
        check(&[("if-modified-since", LATE), ("if-modified-since", LATE)], false);
        check(&[("if-modified-since", "yesterday")], false);
        check(&[("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")], true);
        check_against("\"a\"", Some("yesterday"), &[("if-modified-since", LATE)], false);
    }
}
