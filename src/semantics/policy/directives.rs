//! `Cache-Control` (RFC 9111 5.2), parsed strictly: a field or argument that cannot be parsed
//! restricts caching.

use std::{fmt, time::Duration};

use hyper::{
    HeaderMap,
    header::{CACHE_CONTROL, HeaderName, PRAGMA},
};

use crate::semantics::headers::is_token;

/// "If a cache receives a delta-seconds value greater than the greatest integer it can represent,
/// or if any of its subsequent calculations overflows, the cache MUST consider the value to be
/// 2147483648 (2^31) or the greatest positive integer it can conveniently represent."
/// RFC 9111 1.2.2
const MAX_DELTA_SECONDS: u64 = 1 << 31;

/// One cache directive, with its name in the sender's case and its argument without quotes.
pub(super) struct Directive<'h> {
    name: &'h str,
    argument: Option<&'h str>,
}

/// A field that is not a list of directives.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Directive<'_> {
    /// "Cache directives are identified by a token, to be compared case-insensitively"
    /// RFC 9111 5.2
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Whether the directive has this name and no argument.
    pub(super) fn is_bare(&self, name: &str) -> bool {
        self.argument.is_none() && self.is(name)
    }

    /// Whether the argument is a lifetime of the response.
    pub(super) fn is_lifetime(&self) -> bool {
        self.is("max-age") || self.is("s-maxage")
    }

    /// Parses the argument as delta-seconds, "a non-negative integer, representing time in seconds".
    /// RFC 9111 1.2.2
    pub(super) fn seconds(&self) -> Result<Duration, Malformed> {
        self.argument.and_then(delta_seconds).ok_or(Malformed)
    }
}

impl fmt::Display for Directive<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.to_ascii_lowercase())?;
        self.argument.map_or(Ok(()), |argument| write!(f, "=\"{argument}\""))
    }
}

/// Parses the directives of all `Cache-Control` lines.
pub(super) fn directives(headers: &HeaderMap) -> Result<Vec<Directive<'_>>, Malformed> {
    let mut directives = Vec::new();
    for line in headers.get_all(CACHE_CONTROL) {
        let line = line.to_str().map_err(|_| Malformed)?;
        for member in members(line)? {
            directives.push(directive(member)?);
        }
    }
    Ok(directives)
}

/// Parses a number of seconds.
pub(super) fn delta_seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = text.parse().unwrap_or(MAX_DELTA_SECONDS);
    Some(Duration::from_secs(seconds.min(MAX_DELTA_SECONDS)))
}

/// Returns the trimmed members of all lines of a list field. The field must not use quoted strings.
pub(super) fn tokens<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = Result<&'h str, Malformed>> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|&b| b == b','))
        .map(|member| std::str::from_utf8(member.trim_ascii()).map_err(|_| Malformed))
        .filter(|member| *member != Ok(""))
}

/// Splits a line at the commas outside quoted strings (RFC 9110 5.6.1, 5.6.4).
fn members(line: &str) -> Result<Vec<&str>, Malformed> {
    let (mut members, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                members.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(Malformed);
    }
    members.push(&line[start..]);
    // "A recipient MUST parse and ignore a reasonable number of empty list elements"
    // RFC 9110 5.6.1.2
    members.retain(|member| !member.trim().is_empty());
    Ok(members)
}

fn directive(member: &str) -> Result<Directive<'_>, Malformed> {
    let (name, argument) = match member.split_once('=') {
        Some((name, argument)) => (name.trim(), Some(unquote(argument.trim()))),
        None => (member.trim(), None),
    };
    is_token(name.as_bytes()).then_some(Directive { name, argument }).ok_or(Malformed)
}

/// "For the directives defined below that define arguments, recipients ought to accept both forms,
/// even if a specific form is required for generation." RFC 9111 5.2
///
/// Escapes are kept: no argument that is used here needs them.
fn unquote(argument: &str) -> &str {
    argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(argument)
}

/// Cache directives of a request (RFC 9111 5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// Only a new read of the upstream is accepted. Set also by `max-age=0`, by a `Cache-Control` that
    /// cannot be parsed, and by `Pragma: no-cache` without a `Cache-Control`.
    pub no_cache: bool,
    /// No part of this request or its response may be stored.
    pub no_store: bool,
    /// Only a stored answer is wanted.
    pub only_if_cached: bool,
    /// Greatest age of the answer.
    pub max_age: Option<Duration>,
    /// Time for which the answer must stay fresh.
    pub min_fresh: Option<Duration>,
    // There is no `max_stale`. "The max-stale request directive indicates that the client will accept a
    // response that has exceeded its freshness lifetime." RFC 9111 5.2.1.2. That is a permission, and
    // there is never such a response here: an expired entry is gone.
}

impl RequestDirectives {
    /// Parses `Cache-Control` and `Pragma`. If a directive is repeated, the strictest one counts.
    pub fn of(headers: &HeaderMap) -> Self {
        if !headers.contains_key(CACHE_CONTROL) {
            // "When the Cache-Control header field is not present in a request, caches MUST
            // consider the no-cache request pragma-directive as having the same effect as if
            // 'Cache-Control: no-cache' were present" RFC 7234 5.4; deprecated by RFC 9111 5.4,
            // still sent by browsers on reload.
            let no_cache = tokens(headers, &PRAGMA)
                .any(|token| token.is_ok_and(|token| token.eq_ignore_ascii_case("no-cache")));
            return Self { no_cache, ..Self::default() };
        }
        Self::parse(headers).unwrap_or(Self { no_cache: true, no_store: true, ..Self::default() })
    }

    /// Drops the directives that need not be followed, for a cache that ignores its clients'
    /// `Cache-Control`.
    ///
    /// "They are advisory; caches MAY implement them, but are not required to." RFC 9111 5.2.1. Only
    /// only-if-cached is kept: no browser sends it by itself, it costs the upstream nothing, and a
    /// client that sends it prefers no answer to one that costs the upstream a read.
    #[must_use]
    pub fn without_advisory(self) -> Self {
        Self { only_if_cached: self.only_if_cached, ..Self::default() }
    }

    /// Returns whether the client accepts an entry of this age that stays fresh for `remaining`.
    pub fn admit(&self, age: Duration, remaining: Duration) -> bool {
        // "The max-age request directive indicates that the client prefers a response whose age is
        // less than or equal to the specified number of seconds." RFC 9111 5.2.1.1
        let young = self.max_age.is_none_or(|max_age| age <= max_age);
        // "The min-fresh request directive indicates that the client prefers a response whose
        // freshness lifetime is no less than its current age plus the specified time in seconds."
        // RFC 9111 5.2.1.3
        let lasting = self.min_fresh.is_none_or(|min_fresh| remaining >= min_fresh);
        !self.no_cache && young && lasting
    }

    /// Whether the age or the remaining lifetime of an answer matters.
    pub fn limits_age(&self) -> bool {
        self.max_age.is_some() || self.min_fresh.is_some()
    }

    fn parse(headers: &HeaderMap) -> Result<Self, Malformed> {
        let mut this = Self::default();
        for directive in directives(headers)? {
            if directive.is("no-cache") {
                // "The no-cache request directive indicates that the client prefers a stored
                // response not be used to satisfy the request without successful validation on the
                // origin server." RFC 9111 5.2.1.4
                this.no_cache = true;
            } else if directive.is("no-store") {
                // "The no-store request directive indicates that a cache MUST NOT store any part of
                // either this request or any response to it." RFC 9111 5.2.1.5. An entry that is
                // already stored may still be the answer.
                this.no_store = true;
            } else if directive.is("only-if-cached") {
                // "The only-if-cached request directive indicates that the client only wishes to
                // obtain a stored response. Caches that honor this request directive SHOULD, upon
                // receiving it, respond with either a stored response consistent with the other
                // constraints of the request or a 504 (Gateway Timeout) status code."
                // RFC 9111 5.2.1.7
                this.only_if_cached = true;
            } else if directive.is("max-age") {
                // Even if the number cannot be parsed, the client wants a young answer.
                let max_age = directive.seconds().unwrap_or(Duration::ZERO);
                this.max_age = Some(this.max_age.map_or(max_age, |other| other.min(max_age)));
            } else if directive.is("min-fresh") {
                let min_fresh = directive.seconds().unwrap_or(Duration::MAX);
                this.min_fresh = this.min_fresh.max(Some(min_fresh));
            }
        }
        this.no_cache |= this.max_age == Some(Duration::ZERO);
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::{
        HeaderMap,
        header::{CACHE_CONTROL, HeaderName, HeaderValue},
    };

    use super::{RequestDirectives, directives};

    const SECOND: Duration = Duration::from_secs(1);

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |&(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        lines.iter().map(line).collect()
    }

    #[track_caller]
    fn check_list(line: &str, want: Option<&str>) {
        let headers = headers(&[("cache-control", line)]);
        let got = directives(&headers).ok().map(|list| {
            let words: Vec<_> =
                list.iter().map(|d| format!("{}={}", d.name, d.argument.unwrap_or("-"))).collect();
            words.join(" ")
        });
        assert_eq!(got.as_deref(), want, "{line:?}");
    }

    #[test]
    fn directives_are_split_outside_quoted_strings() {
        check_list("", Some(""));
        check_list("no-store", Some("no-store=-"));
        check_list(" , Max-Age = 60 ,, x", Some("Max-Age=60 x=-"));
        check_list("private=\"a, b\", no-store", Some("private=a, b no-store=-"));
        check_list(r#"x="a\", no-store", y"#, Some(r#"x=a\", no-store y=-"#));
        check_list("max-age=\"60\"", Some("max-age=60"));
        check_list("x=\"a, no-store", None);
        check_list("a b", None);
        check_list("=60", None);
        check_list("no-störe", None);
    }

    #[track_caller]
    fn check(lines: &[(&'static str, &str)], want: RequestDirectives) {
        assert_eq!(RequestDirectives::of(&headers(lines)), want, "{lines:?}");
    }

    #[test]
    fn a_request_without_directives_asks_for_nothing() {
        check(&[], RequestDirectives::default());
        check(&[("cache-control", "")], RequestDirectives::default());
        check(&[("cache-control", "no-transform, x=1")], RequestDirectives::default());
        check(&[("pragma", "x")], RequestDirectives::default());
    }

    #[test]
    fn no_cache_has_several_spellings() {
        let want = RequestDirectives { no_cache: true, ..RequestDirectives::default() };
        check(&[("cache-control", "No-Cache")], want);
        check(&[("cache-control", "no-cache=\"x\"")], want);
        check(&[("cache-control", "foo"), ("cache-control", "a, no-cache")], want);
        check(&[("pragma", "no-cache")], want);
        check(&[("pragma", "x, NO-CACHE")], want);
        for value in ["max-age=0", "max-age=\"0\"", "max-age", "max-age=-1", "max-age=9, max-age=0"]
        {
            let want = RequestDirectives { max_age: Some(Duration::ZERO), ..want };
            check(&[("cache-control", value)], want);
        }
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let lines = [("pragma", "no-cache"), ("cache-control", "no-transform")];
        check(&lines, RequestDirectives::default());
    }

    #[test]
    fn a_field_that_cannot_be_read_restricts() {
        let want =
            RequestDirectives { no_cache: true, no_store: true, ..RequestDirectives::default() };
        check(&[("cache-control", "x=\"")], want);
        check(&[("cache-control", "é")], want);
    }

    #[test]
    fn arguments_are_seconds() {
        let none = RequestDirectives::default();
        let cache_control = |value| [("cache-control", value)];
        let max_age = |seconds| RequestDirectives { max_age: Some(SECOND * seconds), ..none };
        check(&cache_control("max-age=5"), max_age(5));
        check(&cache_control("max-age=9, MAX-AGE=5"), max_age(5));
        check(&cache_control("max-age=99999999999999999999"), max_age(1 << 31));
        let min_fresh = Some(9 * SECOND);
        check(&cache_control("min-fresh=9, min-fresh=5"), RequestDirectives { min_fresh, ..none });
        for permission in ["max-stale", "max-stale=5", "max-stale=x"] {
            check(&cache_control(permission), none);
        }
        let want = RequestDirectives { no_store: true, only_if_cached: true, ..none };
        check(&cache_control("only-if-cached, no-store"), want);
    }

    #[test]
    fn of_advice_that_is_not_taken_only_if_cached_is_left() {
        let none = RequestDirectives::default();
        let advice = "no-cache, no-store, max-age=0, min-fresh=9";
        for lines in
            [[("cache-control", advice)], [("pragma", "no-cache")], [("cache-control", "é")]]
        {
            assert_eq!(
                RequestDirectives::of(&headers(&lines)).without_advisory(),
                none,
                "{lines:?}"
            );
        }
        let lines = [("cache-control", "no-cache, only-if-cached")];
        let want = RequestDirectives { only_if_cached: true, ..none };
        assert_eq!(RequestDirectives::of(&headers(&lines)).without_advisory(), want);
    }

    #[track_caller]
    fn check_admit(value: &'static str, age: u32, remaining: u32, want: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(value));
        let directives = RequestDirectives::of(&headers);
        assert_eq!(directives.admit(SECOND * age, SECOND * remaining), want, "{value:?}");
    }

    #[test]
    fn an_entry_is_admitted_by_age_and_by_what_remains() {
        check_admit("", 500, 0, true);
        check_admit("max-age=10", 10, 5, true);
        check_admit("max-age=10", 11, 5, false);
        check_admit("min-fresh=10", 0, 10, true);
        check_admit("min-fresh=10", 0, 9, false);
        check_admit("min-fresh=x", 0, 300, false);
        check_admit("no-cache", 0, 300, false);
    }
}
