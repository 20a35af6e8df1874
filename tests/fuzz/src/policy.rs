//! Whether and for how long a response may be stored.
//!
//! Input: three bytes (seconds of the policy's TTL, switches, delay of a later check), header lines
//! of the response, an empty line, header lines of a request.

use std::time::{Duration, SystemTime};

use hyper::{
    HeaderMap, Response,
    header::{CACHE_CONTROL, ETAG, HeaderValue, IF_NONE_MATCH},
    http::response::Parts,
};
use jobcache::semantics::policy::{
    Freshness, NoStore, Policy, RequestDirectives, freshness, not_modified,
};

/// Sun, 06 Nov 1994 08:49:37 GMT, as in the RFC's examples.
const NOW: Duration = Duration::from_secs(784_111_777);

/// Checks one input.
pub fn run(data: &[u8]) {
    let Some((&[ttl, switches, later], text)) = data.split_first_chunk() else { return };
    let text = String::from_utf8_lossy(text);
    let (response, request) = text.split_once("\n\n").unwrap_or((&text, ""));
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers = super::headers(response);
    let policy = Policy {
        statuses: Vec::new(),
        ttl: Duration::from_secs(1 + u64::from(ttl)),
        stated_only: switches & 1 != 0,
        max_body: 1_000,
        vary: Vec::new(),
        ignored: Vec::new(),
        state_ttls: None,
        cookies: if switches & 2 != 0 { vec!["session".to_owned()] } else { Vec::new() },
        volatile: Vec::new(),
    };
    let now = SystemTime::UNIX_EPOCH + NOW;
    let fresh = freshness(&head, &policy, now);
    check_limits(&head.headers, &policy, fresh);
    check_later(&head, &policy, fresh, now + Duration::from_secs(later.into()));
    check_lines(&head, &policy, fresh, now);
    check_forbidden(head, &policy, now);
    check_request(&super::headers(request), later);
}

fn check_limits(headers: &HeaderMap, policy: &Policy, fresh: Result<Freshness, NoStore>) {
    let Ok(Freshness { ttl, age, public }) = fresh else { return };
    assert!(!ttl.is_zero() && ttl <= policy.ttl);
    assert!(ttl + age.min(policy.ttl) <= policy.ttl, "the age is not subtracted");
    let control = joined(headers);
    let Some(directives) = directives(&control) else { return };
    for (name, seconds) in &directives {
        assert!(!["no-store", "private", "no-cache"].contains(&name.as_str()), "{name} is stored");
        if name == "s-maxage"
            || name == "max-age" && !directives.iter().any(|(n, _)| n == "s-maxage")
        {
            // "If a cache receives a delta-seconds value greater than the greatest integer it can
            // represent [..], the cache MUST consider the value to be 2147483648 or the greatest
            // positive integer it can conveniently represent." RFC 9111 1.2.2
            let huge = !seconds.is_empty() && seconds.bytes().all(|b| b.is_ascii_digit());
            let seconds = seconds.parse().unwrap_or(if huge { u64::from(u32::MAX) } else { 0 });
            assert!(ttl <= Duration::from_secs(seconds), "{name}={seconds}, kept for {ttl:?}");
        }
    }
    let waives = |name: &str| name == "public" || name == "s-maxage";
    assert!(!public || directives.iter().any(|(name, _)| waives(name)));
    assert!(!headers.contains_key("set-cookie") || !policy.cookies.is_empty());
    for line in headers.get_all("vary") {
        let line = line.to_str().expect("a readable Cache-Control").to_lowercase();
        assert!(
            !["*", "cookie", "authorization"]
                .iter()
                .any(|name| line.split(',').any(|n| n.trim() == *name))
        );
    }
    let stated = ["s-maxage", "max-age"].iter().any(|name| control.contains(name));
    assert!(!policy.stated_only || stated || headers.contains_key("expires"));
}

/// A later response is not kept for longer.
fn check_later(
    head: &Parts,
    policy: &Policy,
    fresh: Result<Freshness, NoStore>,
    later: SystemTime,
) {
    match (fresh, freshness(head, policy, later)) {
        (Ok(first), Ok(second)) => assert!(second.ttl <= first.ttl),
        (Err(first), Ok(_)) => panic!("{first:?}, but stored later"),
        _ => {}
    }
}

/// "A recipient MAY combine multiple field lines within a field section that have the same field name
/// into one field line" RFC 9110 5.3; and the case of directives does not count.
fn check_lines(head: &Parts, policy: &Policy, fresh: Result<Freshness, NoStore>, now: SystemTime) {
    let control = joined(&head.headers);
    let readable = head.headers.get_all(CACHE_CONTROL).iter().all(|line| line.to_str().is_ok());
    if !readable || control.contains('"') || !head.headers.contains_key(CACHE_CONTROL) {
        return;
    }
    for text in [control.clone(), control.to_uppercase()] {
        let Ok(value) = HeaderValue::from_str(&text) else { return };
        let mut one = head.clone();
        one.headers.insert(CACHE_CONTROL, value);
        assert_eq!(freshness(&one, policy, now), fresh, "{text}");
    }
}

/// Directives that forbid storing win over all others.
fn check_forbidden(mut head: Parts, policy: &Policy, now: SystemTime) {
    for directive in ["no-store", "Private", "no-cache=\"x\""] {
        let mut forbidden = head.clone();
        forbidden.headers.append(CACHE_CONTROL, HeaderValue::from_static(directive));
        assert!(freshness(&forbidden, policy, now).is_err(), "{directive}");
    }
    head.headers.append("set-cookie", HeaderValue::from_static("session=1"));
    assert!(freshness(&head, policy, now).is_err());
}

fn check_request(headers: &HeaderMap, seconds: u8) {
    let directives = RequestDirectives::of(headers);
    let (age, remaining) = (Duration::from_secs(seconds.into()), Duration::from_secs(10));
    let admitted = directives.admit(age, remaining);
    assert!(!admitted || !directives.no_cache && directives.max_age.is_none_or(|most| age <= most));
    // A younger entry with a longer remaining life is accepted wherever an older one is.
    assert!(!admitted || directives.admit(Duration::ZERO, remaining * 2));
    if let Some(parsed) = self::directives(&joined(headers)) {
        let has = |name: &str| parsed.iter().any(|(n, _)| n == name);
        assert!(!has("no-cache") || directives.no_cache);
        assert!(!has("no-store") || directives.no_store);
    }
    // A listed tag matches; a tag that occurs nowhere does not.
    if let Some(etag) = headers.get(ETAG) {
        let listed =
            headers.get_all(IF_NONE_MATCH).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        let held = not_modified(headers, etag);
        let opaque = etag.as_bytes().strip_prefix(b"W/").unwrap_or(etag.as_bytes());
        let occurs = |line: &&[u8]| {
            line.trim_ascii() == b"*"
                || opaque.is_empty()
                || line.windows(opaque.len()).any(|part| part == opaque)
        };
        assert!(!held || listed.iter().any(occurs), "{listed:?} holds {etag:?}");
    }
}

fn joined(headers: &HeaderMap) -> String {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    lines.collect::<Vec<_>>().join(",").to_lowercase()
}

/// Returns names and arguments, or `None` if a quoted string makes commas ambiguous.
fn directives(control: &str) -> Option<Vec<(String, String)>> {
    let pair = |member: &str| {
        let (name, argument) = member.split_once('=').unwrap_or((member, ""));
        (name.trim().to_owned(), argument.trim().to_owned())
    };
    (!control.contains('"')).then(|| control.split(',').map(pair).collect())
}
