//! What an answer says of an entry, whichever pieces it comes in.

use bytes::Bytes;
use hyper::{HeaderMap, Request, Response, header::CONTENT_TYPE};

use super::*;
use crate::{
    cache::{audience::Prints, policy::Freshness},
    config,
    store::CredentialKey,
};

const BODY: &str = "{\"status\":\"running\"}";

fn headers(kind: &str, date: &str) -> HeaderMap {
    let response = Response::builder().header(CONTENT_TYPE, kind).header("date", date);
    response.body(()).unwrap().into_parts().0.headers
}

fn trial() -> Trial {
    let mut head = Response::new(()).into_parts().0;
    head.headers = headers("application/json", "Sun, 06 Nov 1994 08:49:37 GMT");
    let freshness = Freshness { ttl: GRACE, age: Duration::ZERO, public: false };
    let asked = Request::new(()).into_parts().0;
    let prints = Prints::new(&config::CredentialsConfig::default());
    let pair = prints.pair(&CredentialKey::new([7; 32]), &asked.uri, &asked.headers);
    let entry = Entry::new(&head, Bytes::from(BODY), freshness, pair, 0);
    Trial::of(Key::new("job_status:", "x"), Arc::new(entry))
}

fn policy() -> Policy {
    Policy {
        ttl: GRACE,
        stated_only: false,
        max_body: 1 << 20,
        vary: Vec::new(),
        states: None,
        cookies: vec!["sid".into()],
    }
}

fn answer(status: u16, headers: HeaderMap) -> response::Parts {
    let mut head = Response::new(()).into_parts().0;
    (head.status, head.headers) = (StatusCode::from_u16(status).unwrap(), headers);
    head
}

#[track_caller]
fn check(status: u16, kind: &str, parts: &[&str], want: Evidence) {
    let mut trial = trial();
    let headers = headers(kind, "Mon, 07 Nov 1994 08:49:37 GMT");
    let mut matters = trial.weigh(&answer(status, headers), &policy());
    for part in parts {
        matters = matters && trial.part(part.as_bytes());
    }
    assert_eq!(trial.found(), want, "{status} {kind} {parts:?}");
    let is_plain = matches!(want, Evidence::Same | Evidence::Failed);
    assert_eq!(trial.plain(), is_plain.then_some(want));
}

#[test]
fn an_answer_is_compared_in_its_headers_and_every_byte() {
    const JSON: &str = "application/json";
    check(200, JSON, &[BODY], Evidence::Same);
    check(200, JSON, &[&BODY[..5], "", &BODY[5..]], Evidence::Same);
    check(200, "text/plain", &[BODY], Evidence::Different);
    check(200, JSON, &[], Evidence::Different);
    check(200, JSON, &[&BODY[..5]], Evidence::Different);
    check(200, JSON, &[BODY, " "], Evidence::Different);
    check(200, JSON, &["{\"status\":\"RUNNING\"}"], Evidence::Different);
    check(200, JSON, &[&BODY[1..], "{"], Evidence::Different);
}

#[test]
fn an_answer_that_is_none_proves_nothing_and_a_refusal_is_told_apart() {
    for status in [500, 502, 503, 504, 408, 429, 304] {
        check(status, "text/plain", &[], Evidence::Failed);
    }
    for status in [301, 302, 401, 403, 404, 410] {
        check(status, "text/plain", &[], Evidence::Refused);
    }
    for status in [202, 204] {
        check(status, "text/plain", &[], Evidence::Different);
    }
}

#[test]
fn no_more_is_read_than_tells() {
    let mut trial = trial();
    assert!(!trial.weigh(&answer(403, HeaderMap::new()), &policy()));
    assert!(trial.weigh(&answer(200, HeaderMap::new()), &policy()));
    assert!(trial.part(BODY.as_bytes()), "there may be more");
    assert!(!trial.part(b" "), "there is more");
}

/// What makes it so is no part of an entry, and so in no list of headers that differ.
#[test]
fn the_same_body_for_one_client_alone_is_not_the_same() {
    let with = |name: &'static str, value: &'static str| {
        let mut trial = trial();
        let mut headers = headers("application/json", "Mon, 07 Nov 1994 08:49:37 GMT");
        headers.insert(name, value.parse().unwrap());
        trial.weigh(&answer(200, headers), &policy());
        trial.part(BODY.as_bytes());
        (trial.headers.is_empty(), trial.found())
    };
    assert_eq!(with("set-cookie", "sid=1"), (true, Evidence::Different));
    assert_eq!(with("set-cookie", "lb=1"), (true, Evidence::Same), "a cookie that does not count");
    assert_eq!(with("trailer", "x"), (true, Evidence::Different));
    for forbids in ["private", "no-store", "no-cache"] {
        assert_eq!(with("cache-control", forbids), (false, Evidence::Different), "{forbids}");
    }
}
