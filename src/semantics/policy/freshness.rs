//! How long a response may be served, by its head, the settings and the state of the job in its body.

use std::time::{Duration, SystemTime};

use hyper::{
    HeaderMap,
    header::{AGE, DATE, EXPIRES},
    http::response::Parts,
};

use crate::semantics::headers::PERSISTENT_AUTH;

use super::{
    NoStore, Policy,
    directives::{Directive, delta_seconds, directives, tokens},
    http_date,
    storable::{never_stored, storable, storable_headers, varies_by_caller},
};

/// How long a response may be served, and whether to every credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Time from the request for the response until it expires, less its age on arrival. Never zero.
    pub ttl: Duration,
    /// Age of the response on arrival (RFC 9111 4.2.3).
    pub age: Duration,
    /// Whether the response may be served to every credential.
    pub public: bool,
}

impl Freshness {
    /// Shortens the TTL to the limit for the state of the job that the body shows.
    #[must_use]
    pub fn limited_by_state(self, body: &[u8], policy: &Policy) -> Self {
        let limit = policy.state_ttls.as_ref().and_then(|states| states.ttl(body));
        Self { ttl: limit.map_or(self.ttl, |limit| limit.min(self.ttl)), ..self }
    }
}

/// Decides from its head whether and how long a response to a GET may be stored.
///
/// The caller still has to check the method, that the body is neither empty nor too large nor
/// truncated, and that there are no unannounced trailers.
///
/// # Errors
///
/// Returns the reason if the response may not be stored.
pub fn freshness(head: &Parts, policy: &Policy, now: SystemTime) -> Result<Freshness, NoStore> {
    storable(head, policy)?;
    let stated = stated_lifetimes(&head.headers, now)?.shared;
    // "A cache MUST NOT store a response to a request unless [...] the response contains at least one
    // of the following: [...] a status code that is defined as heuristically cacheable" RFC 9111 3.
    // 200 is such a status. So a configured lifetime is allowed, and it is needed for upstreams that
    // state none and are not to be changed.
    if stated.is_none() && policy.stated_only {
        return Err(NoStore::Unstated);
    }
    let age = age(&head.headers);
    // "apparent_age = max(0, response_time - date_value)"; "corrected_initial_age =
    // max(apparent_age, corrected_age_value)" RFC 9111 4.2.3
    //
    // The apparent age counts only against a lifetime that the upstream has stated: the configured one
    // counts from the request, and an upstream clock that runs behind must not disable the cache.
    let age = if stated.is_some() { age.max(apparent_age(&head.headers, now)) } else { age };
    // "corrected_age_value = age_value + response_delay" RFC 9111 4.2.3: the delay is included already,
    // because the TTL counts from the request.
    //
    // "response_is_fresh = (freshness_lifetime > current_age)" RFC 9111 4.2. "A cache MUST NOT generate
    // a stale response unless it is disconnected or doing so is explicitly permitted by the client or
    // origin server" 4.2.4: this cache never does, so must-revalidate and proxy-revalidate (5.2.2.2,
    // 5.2.2.8), which forbid it, change nothing.
    let configured = policy.ttl_of(head.status).unwrap_or(policy.ttl);
    let lifetime = stated.unwrap_or(configured).min(configured);
    let ttl = lifetime.saturating_sub(age);
    if ttl.is_zero() {
        Err(NoStore::Stale)
    } else {
        Ok(Freshness { ttl, age, public: is_public(&head.headers) })
    }
}

/// Returns whether a response that may not be stored for this reason may answer other requests of the
/// same caller that were waiting when it came.
///
/// "A cache can use a response that is stored or storable to satisfy multiple requests, provided that
/// it is allowed to reuse that response for the requests in question. This enables a cache to \"collapse
/// requests\"" RFC 9111 4. Storable is what is "heuristically cacheable" (RFC 9110 15.1) or states a
/// lifetime, whatever the configuration leaves out. Not shared, as not stored by any configuration, is
/// what says something about the request or the caller, or nothing about the job.
pub fn may_be_shared(head: &Parts, policy: &Policy, why: NoStore, now: SystemTime) -> bool {
    let is_heuristic =
        matches!(head.status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414);
    let is_reusable = || match stated_lifetimes(&head.headers, now) {
        Ok(StatedLifetimes { shared: Some(lifetime), .. }) => lifetime > age(&head.headers),
        Ok(_) => is_heuristic,
        Err(_) => false,
    };
    matches!(why, NoStore::Status | NoStore::Unstated | NoStore::Empty)
        && never_stored(head.status).is_none()
        && !head.headers.contains_key(PERSISTENT_AUTH)
        && matches!(storable_headers(head, policy), Ok(()) | Err(NoStore::Empty))
        && is_reusable()
}

/// Returns whether a response may be served to every credential.
///
/// "A shared cache MUST NOT use a cached response to a request with an Authorization header field
/// [..] to satisfy any subsequent request unless the response contains a Cache-Control field with a
/// response directive [..] that allows it to be stored by a shared cache [..]. In this specification,
/// the following response directives have such an effect: must-revalidate [..], public [..], and
/// s-maxage" RFC 9111 3.5
///
/// Without such a directive the response is only for the credentials that the upstream has served it
/// to. must-revalidate is not accepted as one: many upstreams send it to mean "always fresh" and not
/// "for everybody".
///
/// "When a cache receives a request that can be satisfied by a stored response and that stored
/// response contains a Vary header field (Section 12.5.5 of \[HTTP\]), the cache MUST NOT use that
/// stored response without revalidation unless all the presented request header fields nominated by
/// that Vary field value match" RFC 9111 4.1. So a response that varies by the caller is not public
/// either.
fn is_public(headers: &HeaderMap) -> bool {
    !varies_by_caller(headers)
        && directives(headers).is_ok_and(|directives| {
            directives
                .iter()
                .any(|directive| directive.is_bare("public") || directive.is("s-maxage"))
        })
}

/// The freshness lifetimes that a response states: for shared caches, and for the cache of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatedLifetimes {
    /// Lifetime in a shared cache such as this one.
    pub shared: Option<Duration>,
    /// Lifetime in the cache of one client, which takes no notice of `s-maxage`.
    pub private: Option<Duration>,
}

/// Returns both lifetimes that the response states, in the order of RFC 9111 4.2.1. `now` stands for a
/// missing `Date`.
///
/// # Errors
///
/// Returns the reason if the one for shared caches cannot be parsed.
pub fn stated_lifetimes(headers: &HeaderMap, now: SystemTime) -> Result<StatedLifetimes, NoStore> {
    let directives = directives(headers).map_err(|_| NoStore::Malformed)?;
    // Both are parsed although one of them decides, so that an invalid one is never ignored.
    let s_maxage = directive_seconds(&directives, "s-maxage")?;
    let max_age = directive_seconds(&directives, "max-age")?;
    // "If the cache is shared and the s-maxage response directive (Section 5.2.2.10) is present, use
    // its value, or If the max-age response directive (Section 5.2.2.1) is present, use its value"
    let private = match (max_age, expires(headers, now)) {
        (Some(_), _) => max_age,
        (None, Err(_)) if s_maxage.is_some() => Some(Duration::ZERO),
        (None, expires) => expires?,
    };
    Ok(StatedLifetimes { shared: s_maxage.or(private), private })
}

/// Returns the lifetime that `Expires` states, if it is present.
fn expires(headers: &HeaderMap, now: SystemTime) -> Result<Option<Duration>, NoStore> {
    // "or If the Expires response header field (Section 5.3) is present, use its value minus the
    // value of the Date response header field (using the time the message was received if it is not
    // present, as per Section 6.6.1 of [HTTP])"
    let mut lines = headers.get_all(EXPIRES).into_iter();
    let Some(first) = lines.next() else {
        return Ok(None);
    };
    let second = lines.next();
    // "A cache recipient MUST interpret invalid date formats, especially the value '0', as
    // representing a time in the past (i.e., 'already expired')." RFC 9111 5.3
    let expires = http_date(first).filter(|_| second.is_none()).ok_or(NoStore::Stale)?;
    let date = headers.get(DATE).and_then(http_date).unwrap_or(now);
    Ok(Some(expires.duration_since(date).unwrap_or_default()))
}

/// Returns the seconds of a directive, if it is present.
///
/// "When there is more than one value present for a given directive [..] either the first
/// occurrence should be used or the response should be considered stale. [..] Caches are encouraged
/// to consider responses that have invalid freshness information (e.g., a max-age directive with
/// non-integer content) to be stale." RFC 9111 4.2.1
///
/// The same value repeated does not count as a second value.
fn directive_seconds(
    directives: &[Directive<'_>],
    name: &str,
) -> Result<Option<Duration>, NoStore> {
    let mut value = None;
    for directive in directives.iter().filter(|directive| directive.is(name)) {
        let seconds = directive.seconds().map_err(|_| NoStore::Stale)?;
        if *value.get_or_insert(seconds) != seconds {
            return Err(NoStore::Stale);
        }
    }
    Ok(value)
}

/// Returns the value of `Age`, or zero.
///
/// "a cache encountering a message with a list-based Age field value SHOULD use the first member of
/// the field value, discarding subsequent ones. If the field value (after discarding additional
/// members, as per above) is invalid (e.g., it contains something other than a non-negative
/// integer), a cache SHOULD ignore the field." RFC 9111 5.1
fn age(headers: &HeaderMap) -> Duration {
    let first = tokens(headers, &AGE).next().and_then(Result::ok);
    first.and_then(delta_seconds).unwrap_or_default()
}

/// Returns the time since `Date` in whole seconds, because `Date` is no more precise.
fn apparent_age(headers: &HeaderMap, now: SystemTime) -> Duration {
    let date = headers.get(DATE).and_then(http_date);
    let age = date.and_then(|date| now.duration_since(date).ok()).unwrap_or_default();
    Duration::from_secs(age.as_secs())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use hyper::{Response, http::response::Parts};

    use super::{NoStore, Policy, freshness, may_be_shared};
    use crate::{config, semantics::json_pointer::JsonPointer};

    const POLICY: Policy = Policy {
        statuses: Vec::new(),
        ttl: Duration::from_mins(5),
        stated_only: false,
        max_body: 1 << 20,
        vary: Vec::new(),
        ignored: Vec::new(),
        state_ttls: None,
        cookies: Vec::new(),
        volatile: Vec::new(),
    };
    const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const MINUTE_AGO: &str = "Sun, 06 Nov 1994 08:48:37 GMT";
    const IN_A_MINUTE: &str = "Sun, 06 Nov 1994 08:50:37 GMT";

    fn head(lines: &[(&str, &str)]) -> Parts {
        let response = lines
            .iter()
            .fold(Response::builder(), |response, &(name, value)| response.header(name, value));
        response.body(()).unwrap().into_parts().0
    }

    fn at(date: &str) -> SystemTime {
        httpdate::parse_http_date(date).unwrap()
    }

    /// `want` is the TTL and the age, in seconds.
    #[track_caller]
    fn check(lines: &[(&str, &str)], want: (u64, u64)) {
        let ttl = Duration::from_secs(want.0);
        let age = Duration::from_secs(want.1);
        // A fraction of a second must not count, because `Date` has none.
        let now = at(NOW) + Duration::from_millis(900);
        let got = freshness(&head(lines), &POLICY, now).map(|fresh| (fresh.ttl, fresh.age));
        assert_eq!(got, Ok((ttl, age)), "{lines:?}");
    }

    #[track_caller]
    fn check_refused(lines: &[(&str, &str)], want: NoStore) {
        assert_eq!(freshness(&head(lines), &POLICY, at(NOW)), Err(want), "{lines:?}");
    }

    #[test]
    fn without_a_stated_lifetime_the_configured_one_counts() {
        check(&[], (300, 0));
        check(&[("cache-control", "public, must-revalidate, x=y")], (300, 0));
        check(&[("age", "100")], (200, 100));
        check_refused(&[("age", "300")], NoStore::Stale);
        // An upstream clock that runs behind does not disable the cache.
        check(&[("date", MINUTE_AGO)], (300, 0));
    }

    #[test]
    fn what_states_no_lifetime_may_be_left_out() {
        let policy = Policy { stated_only: true, ..POLICY };
        let check = |lines: &[(&str, &str)]| {
            freshness(&head(lines), &policy, at(NOW)).map(|fresh| fresh.ttl.as_secs())
        };
        assert_eq!(check(&[]), Err(NoStore::Unstated));
        assert_eq!(check(&[("cache-control", "public")]), Err(NoStore::Unstated));
        assert_eq!(check(&[("last-modified", MINUTE_AGO)]), Err(NoStore::Unstated));
        assert_eq!(check(&[("cache-control", "no-store")]), Err(NoStore::NoStore));
        assert_eq!(check(&[("cache-control", "max-age=60")]), Ok(60));
        assert_eq!(check(&[("expires", IN_A_MINUTE)]), Ok(60));
    }

    #[test]
    fn a_stated_lifetime_shortens_the_configured_one() {
        check(&[("cache-control", "max-age=60")], (60, 0));
        check(&[("cache-control", "MAX-AGE=\"60\"")], (60, 0));
        check(&[("cache-control", "max-age=3600")], (300, 0));
        check(&[("cache-control", "max-age=99999999999999999999")], (300, 0));
        check(&[("cache-control", "public"), ("cache-control", "max-age=60")], (60, 0));
        check(&[("cache-control", "max-age=60, max-age=60")], (60, 0));
        check_refused(&[("cache-control", "max-age=0")], NoStore::Stale);
    }

    #[test]
    fn the_shared_lifetime_wins_over_the_private_one_over_expires() {
        check(&[("cache-control", "max-age=9, s-maxage=60")], (60, 0));
        check_refused(&[("cache-control", "max-age=60, s-maxage=0")], NoStore::Stale);
        check(&[("cache-control", "max-age=9"), ("expires", IN_A_MINUTE)], (9, 0));
        check(&[("cache-control", "max-age=9"), ("expires", "0")], (9, 0));
        check(&[("expires", IN_A_MINUTE), ("date", NOW)], (60, 0));
        check(
            &[("expires", NOW), ("date", MINUTE_AGO), ("cache-control", "s-maxage=90")],
            (30, 60),
        );
    }

    #[test]
    fn a_lifetime_that_cannot_be_read_is_over() {
        for value in
            ["max-age=x", "max-age=-1", "max-age=1.5", "max-age", "max-age=", "max-age=6 0"]
        {
            check_refused(&[("cache-control", value)], NoStore::Stale);
        }
        check_refused(&[("cache-control", "max-age=60, max-age=61")], NoStore::Stale);
        check_refused(&[("cache-control", "s-maxage=60, max-age=x")], NoStore::Stale);
        check_refused(&[("cache-control", "max-age=60"), ("cache-control", "max-age=9")], {
            NoStore::Stale
        });
        check_refused(&[("expires", "0")], NoStore::Stale);
        check_refused(&[("expires", "-1")], NoStore::Stale);
        check_refused(&[("expires", IN_A_MINUTE), ("expires", IN_A_MINUTE)], NoStore::Stale);
        check_refused(&[("expires", NOW), ("date", NOW)], NoStore::Stale);
        check_refused(&[("expires", MINUTE_AGO)], NoStore::Stale);
    }

    #[test]
    fn age_is_taken_off() {
        check(&[("cache-control", "max-age=60"), ("age", "50")], (10, 50));
        check(&[("cache-control", "max-age=3600"), ("age", "100")], (200, 100));
        check_refused(&[("cache-control", "max-age=60"), ("age", "60")], NoStore::Stale);
        check(&[("cache-control", "max-age=60"), ("age", "5, 50")], (55, 5));
        check(&[("cache-control", "max-age=60"), ("age", "5"), ("age", "50")], (55, 5));
        check(&[("cache-control", "max-age=60"), ("age", "x")], (60, 0));
        check(&[("cache-control", "max-age=60"), ("age", "-5")], (60, 0));
    }

    #[test]
    fn a_date_in_the_past_ages_a_stated_lifetime() {
        check(&[("cache-control", "max-age=90"), ("date", MINUTE_AGO)], (30, 60));
        check(&[("cache-control", "max-age=90"), ("date", MINUTE_AGO), ("age", "80")], (10, 80));
        check_refused(&[("cache-control", "max-age=60"), ("date", MINUTE_AGO)], NoStore::Stale);
        check(&[("cache-control", "max-age=60"), ("date", IN_A_MINUTE)], (60, 0));
        check(&[("cache-control", "max-age=60"), ("date", NOW)], (60, 0));
        check(&[("cache-control", "max-age=60"), ("date", "yesterday")], (60, 0));
    }

    #[track_caller]
    fn check_public(value: &str, want: bool) {
        let fresh = freshness(&head(&[("cache-control", value)]), &POLICY, at(NOW)).unwrap();
        assert_eq!(fresh.public, want, "{value}");
    }

    #[test]
    fn public_and_the_shared_lifetime_waive_the_credential() {
        check_public("public", true);
        check_public("max-age=60, PUBLIC", true);
        check_public("s-maxage=60", true);
        for value in [
            "",
            "max-age=60",
            "must-revalidate",
            "proxy-revalidate",
            "x=\"public\"",
            "public=\"x\"",
        ] {
            check_public(value, false);
        }
        check_public("immutable, publicx", false);
    }

    #[test]
    fn no_number_of_seconds_is_too_large_to_reckon_with() {
        for huge in ["2147483648", "4294967296", "18446744073709551616", "9".repeat(50).as_str()] {
            let stated = format!("max-age={huge}");
            check(&[("cache-control", &stated)], (300, 0));
            check(&[("cache-control", &stated), ("age", "250")], (50, 250));
            check_refused(&[("age", huge)], NoStore::Stale);
            check_refused(&[("cache-control", &stated), ("age", huge)], NoStore::Stale);
        }
        let far = "Fri, 31 Dec 9999 23:59:59 GMT";
        check(&[("expires", far)], (300, 0));
        check(&[("expires", far), ("date", NOW)], (300, 0));
        check(&[("cache-control", "max-age=60"), ("date", far)], (60, 0));
        let first = "Thu, 01 Jan 1970 00:00:00 GMT";
        check_refused(&[("expires", first)], NoStore::Stale);
        check_refused(&[("cache-control", "max-age=60"), ("date", first)], NoStore::Stale);
    }

    #[test]
    fn a_date_has_three_forms() {
        for date in [
            "Sun, 06 Nov 1994 08:50:37 GMT",
            "Sunday, 06-Nov-94 08:50:37 GMT",
            "Sun Nov  6 08:50:37 1994",
        ] {
            check(&[("expires", date), ("date", NOW)], (60, 0));
        }
    }

    #[test]
    fn directives_about_stale_responses_change_nothing() {
        for value in [
            "must-revalidate",
            "proxy-revalidate",
            "immutable",
            "stale-while-revalidate=60",
            "stale-if-error=60",
            "must-understand",
        ] {
            check(&[("cache-control", value)], (300, 0));
            let with_lifetime = format!("{value}, max-age=60");
            check(&[("cache-control", &with_lifetime)], (60, 0));
        }
    }

    #[test]
    fn the_state_of_the_job_only_shortens_its_life() {
        let map = vec![("running".to_owned(), Duration::from_secs(10))];
        let pointer = JsonPointer::member("status");
        let policy = Policy { state_ttls: Some(config::StateTtlConfig { pointer, map }), ..POLICY };
        let check = |stated: &str, body: &[u8], want| {
            let head = head(&[("cache-control", stated)]);
            let fresh = freshness(&head, &policy, at(NOW)).unwrap().limited_by_state(body, &policy);
            assert_eq!(fresh.ttl, Duration::from_secs(want), "{stated}");
        };
        check("", br#"{"status":"running"}"#, 10);
        check("max-age=60", br#"{"status":"running"}"#, 10);
        check("max-age=5", br#"{"status":"running"}"#, 5);
        check("max-age=5", b"", 5);
    }

    #[test]
    fn what_may_not_be_stored_has_no_freshness() {
        check_refused(&[("cache-control", "max-age=60, no-store")], NoStore::NoStore);
    }

    #[test]
    fn what_is_about_the_request_or_the_caller_is_never_shared() {
        let check = |status: u16, lines: &[(&str, &str)], want: bool| {
            let mut head = head(lines);
            head.status = status.try_into().unwrap();
            let shared = may_be_shared(&head, &POLICY, NoStore::Status, at(NOW));
            assert_eq!(shared, want, "{status} {lines:?}");
        };
        let fresh = ("cache-control", "max-age=60");
        for status in [404, 410, 301] {
            check(status, &[], true);
            check(status, &[fresh], true);
            check(status, &[fresh, ("age", "60")], false);
            for forbidden in ["no-store", "private, max-age=60", "no-cache", "max-age=0"] {
                check(status, &[("cache-control", forbidden)], false);
            }
            check(status, &[("set-cookie", "a=b")], false);
            check(status, &[("vary", "*")], false);
        }
        for status in [202, 303, 400] {
            check(status, &[], false);
            check(status, &[fresh], true);
        }
        for status in [206, 304, 401, 403, 407, 408, 412, 416, 421, 425, 429, 500, 501, 503] {
            check(status, &[], false);
            check(status, &[fresh], false);
        }
    }
}
