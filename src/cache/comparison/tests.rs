//! Results of comparisons, for every way in which the response can arrive in pieces.

use bytes::Bytes;
use hyper::{HeaderMap, Request, Response, header::CONTENT_TYPE};

use super::*;
use crate::{
    config,
    semantics::{audience::Fingerprinter, policy::Freshness},
    store::CredentialKey,
};

const BODY: &str = "{\"status\":\"running\"}";

fn headers(kind: &str, date: &str) -> HeaderMap {
    let response = Response::builder().header(CONTENT_TYPE, kind).header("date", date);
    response.body(()).unwrap().into_parts().0.headers
}

fn comparison() -> Comparison {
    let mut head = Response::new(()).into_parts().0;
    head.headers = headers("application/json", "Sun, 06 Nov 1994 08:49:37 GMT");
    let freshness = Freshness { ttl: PURGE_GRACE, age: Duration::ZERO, public: false };
    let request = Request::new(()).into_parts().0;
    let fingerprinter = Fingerprinter::new(&config::CredentialsConfig::default());
    let caller = fingerprinter.caller(&CredentialKey::new([7; 32]), &request.uri, &request.headers);
    let entry = Entry::new(StoredHead::of(&head, &[], 0), Bytes::from(BODY), freshness, caller, 0);
    Comparison::of_key(Key::new("job_status:", "x"), RouteIndex::default(), Arc::new(entry))
}

fn policy() -> Policy {
    Policy {
        statuses: Vec::new(),
        ttl: PURGE_GRACE,
        stated_only: false,
        max_body: 1 << 20,
        vary: Vec::new(),
        ignored: Vec::new(),
        state_ttls: None,
        cookies: vec!["sid".into()],
        volatile: Vec::new(),
    }
}

fn answer(status: u16, headers: HeaderMap) -> Parts {
    let mut head = Response::new(()).into_parts().0;
    (head.status, head.headers) = (StatusCode::from_u16(status).unwrap(), headers);
    head
}

#[track_caller]
fn check(status: u16, kind: &str, parts: &[&str], want: ComparisonResult) {
    let mut comparison = comparison();
    let headers = headers(kind, "Mon, 07 Nov 1994 08:49:37 GMT");
    let mut matters = comparison.compare_head(&answer(status, headers), &policy(), 0);
    for part in parts {
        matters = matters && comparison.compare_body_part(part.as_bytes());
    }
    assert_eq!(comparison.result(), want, "{status} {kind} {parts:?}");
    let is_plain = matches!(want, ComparisonResult::Same | ComparisonResult::Failed);
    assert_eq!(comparison.immediate_result(), is_plain.then_some(want));
}

#[test]
fn an_answer_is_compared_in_its_headers_and_every_byte() {
    const JSON: &str = "application/json";
    check(200, JSON, &[BODY], ComparisonResult::Same);
    check(200, JSON, &[&BODY[..5], "", &BODY[5..]], ComparisonResult::Same);
    check(200, "text/plain", &[BODY], ComparisonResult::Different);
    check(200, JSON, &[], ComparisonResult::Different);
    check(200, JSON, &[&BODY[..5]], ComparisonResult::Different);
    check(200, JSON, &[BODY, " "], ComparisonResult::Different);
    check(200, JSON, &["{\"status\":\"RUNNING\"}"], ComparisonResult::Different);
    check(200, JSON, &[&BODY[1..], "{"], ComparisonResult::Different);
}

#[test]
fn an_answer_that_is_none_proves_nothing_and_a_refusal_is_told_apart() {
    for status in [500, 502, 503, 504, 408, 429, 304] {
        check(status, "text/plain", &[], ComparisonResult::Failed);
    }
    for status in [301, 302, 401, 403, 404, 410] {
        check(status, "text/plain", &[], ComparisonResult::Refused);
    }
    for status in [202, 204] {
        check(status, "text/plain", &[], ComparisonResult::Different);
    }
}

#[test]
fn no_more_is_read_than_tells() {
    let mut comparison = comparison();
    assert!(!comparison.compare_head(&answer(403, HeaderMap::new()), &policy(), 0));
    assert!(comparison.compare_head(&answer(200, HeaderMap::new()), &policy(), 0));
    assert!(comparison.compare_body_part(BODY.as_bytes()), "there may be more");
    assert!(!comparison.compare_body_part(b" "), "there is more");
}

/// The headers that make a response personal are not part of an entry, so they are not listed among
/// the headers that differ.
#[test]
fn the_same_body_for_one_client_alone_is_not_the_same() {
    let with = |name: &'static str, value: &'static str| {
        let mut comparison = comparison();
        let mut headers = headers("application/json", "Mon, 07 Nov 1994 08:49:37 GMT");
        headers.insert(name, value.parse().unwrap());
        comparison.compare_head(&answer(200, headers), &policy(), 0);
        comparison.compare_body_part(BODY.as_bytes());
        (comparison.differing_headers.is_empty(), comparison.result())
    };
    assert_eq!(with("set-cookie", "sid=1"), (true, ComparisonResult::Different));
    assert_eq!(
        with("set-cookie", "lb=1"),
        (true, ComparisonResult::Same),
        "a cookie that does not count"
    );
    assert_eq!(with("trailer", "x"), (true, ComparisonResult::Different));
    for forbids in ["private", "no-store", "no-cache"] {
        assert_eq!(
            with("cache-control", forbids),
            (false, ComparisonResult::Different),
            "{forbids}"
        );
    }
}

#[test]
fn the_digest_of_another_body_covers_what_was_equal_too() {
    let other = "{\"status\":\"done\"}";
    for at in [0, 1, 11, 13] {
        let mut comparison = comparison();
        for part in [&other[..at], &other[at..]] {
            comparison.compare_body_part(part.as_bytes());
        }
        let digest = comparison.other_body.map(|digest| format!("{:032x}", digest.digest128()));
        assert_eq!(digest, Some(entry::digest(other.as_bytes())), "{at}");
    }
}
