//! Entries are served exactly as they were stored.

use hyper::{
    Request,
    header::{self, DATE, HeaderName},
};

use super::{head::MAX_ADDED_HEADERS, *};
use crate::{
    config,
    semantics::{audience::Fingerprinter, identity::Identity, policy::Freshness},
    store::{CredentialKey, Epoch, Token},
};

#[track_caller]
fn check_date(now_ms: i64, lines: &[&str], want: &[&str]) {
    let mut response = Response::builder();
    for line in lines {
        response = response.header(DATE, *line);
    }
    let (head, ()) = response.body(()).unwrap().into_parts();
    let ttl = Duration::from_secs(1);
    let freshness = Freshness { ttl, age: Duration::ZERO, public: false };
    let request = Request::new(()).into_parts().0;
    let fingerprinter = Fingerprinter::new(&config::CredentialsConfig::default());
    let caller = fingerprinter.caller(&CredentialKey::new([7; 32]), &request.uri, &request.headers);
    let entry = Entry::new(
        StoredHead::of(&head, &[], now_ms),
        Bytes::from("{}"),
        freshness,
        caller,
        now_ms,
    );
    let served = entry.respond(&Method::GET, &HeaderMap::new(), now_ms);
    let dates: Vec<_> = served.headers().get_all(DATE).iter().collect();
    assert_eq!(dates, want, "{now_ms} {lines:?}");
}

fn map(lines: &[(HeaderName, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(lines.len() + MAX_ADDED_HEADERS);
    for (name, value) in lines {
        headers.append(name, value.parse().unwrap());
    }
    headers
}

/// An entry with the body `{}` that was one second old when it was stored.
fn entry(lines: &[(HeaderName, &str)]) -> Entry {
    entry_with(StatusCode::OK, lines)
}

fn entry_with(status: StatusCode, lines: &[(HeaderName, &str)]) -> Entry {
    let head = Head::new(HeadForm::Only, status, map(lines), 2, || digest(b"{}"));
    let audience = Audience { members: Box::default(), public: false };
    let (body, generation) = (Bytes::from("{}"), Box::default());
    let (stored_at_ms, age_ms, expires_at_ms) = (0, 1_000, 300_000);
    Entry {
        head,
        body,
        compressed: None,
        stored_at_ms,
        age_ms,
        expires_at_ms,
        audience,
        generation,
        change: None,
        identity: IdentityHash::default(),
    }
}

#[track_caller]
fn check_hit(lines: &[(HeaderName, &str)], request: &[(HeaderName, &str)], want: &[&str]) {
    let entry = entry(lines);
    let request = map(request);
    let hit = entry.hit(&Method::GET, &request, 86_001);
    let added = [AGE, VIA, CACHE_STATUS].into_iter().flat_map(|name| {
        hit.headers().get_all(&name).iter().map(|value| value.to_str().unwrap().to_owned())
    });
    assert_eq!(added.collect::<Vec<_>>(), want, "{lines:?} {request:?}");
    let plain = entry.respond(&Method::GET, &request, 86_001);
    let [hit, plain] = [hit, plain].map(|response| {
        let mut headers = response.headers().clone();
        for name in [CACHE_STATUS, VIA] {
            headers.remove(name);
        }
        headers
    });
    assert_eq!(hit, plain);
}

#[test]
fn a_hit_says_that_it_is_one_after_what_was_said_upstream() {
    let ours = "jobcache; hit; ttl=213";
    check_hit(&[], &[], &["87", "1.1 jobcache", ours]);
    check_hit(&[], &[(header::IF_NONE_MATCH, "*")], &["87", "1.1 jobcache", ours]);
    let theirs = [(VIA, "1.0 a"), (CACHE_STATUS, "a; hit"), (CACHE_STATUS, "b; fwd=miss")];
    let all = ["87", "1.0 a", "1.1 jobcache", "a; hit", "b; fwd=miss", ours];
    check_hit(&theirs, &[], &all);
}

/// Any program that can write to the store can write a meta.
#[test]
fn times_that_cannot_be_are_served_without_harm() {
    let audience = Audience { members: Box::default(), public: false };
    let head = Head::new(HeadForm::Only, StatusCode::OK, HeaderMap::new(), 0, || digest(b""));
    let (body, generation) = (Bytes::new(), Box::default());
    let (stored_at_ms, age_ms, expires_at_ms) = (i64::MIN, i64::MAX, i64::MIN);
    let coded = None;
    let entry = Entry {
        head,
        body,
        compressed: coded,
        stored_at_ms,
        age_ms,
        expires_at_ms,
        audience,
        generation,
        change: None,
        identity: IdentityHash::default(),
    };
    assert_eq!(entry.ttl(1), Duration::ZERO);
    assert_eq!(entry.age(1), duration(i64::MAX));
}

#[test]
fn a_response_without_a_date_is_given_the_time_of_its_read() {
    check_date(784_111_777_999, &[], &["Sun, 06 Nov 1994 08:49:37 GMT"]);
    check_date(0, &["Sun, 06 Nov 1994 08:49:37 GMT"], &["Sun, 06 Nov 1994 08:49:37 GMT"]);
    check_date(i64::MAX, &[], &["Fri, 31 Dec 9999 23:59:59 GMT"]);
    check_date(i64::MIN, &[], &["Thu, 01 Jan 1970 00:00:00 GMT"]);
}

/// The same body may have come with 202 before.
#[test]
fn only_a_200_is_given_an_etag_and_answered_with_304() {
    let request = [(IF_NONE_MATCH, HeaderValue::from_static("*"))].into_iter().collect();
    for status in [202, 203, 303, 404, 410] {
        let status = StatusCode::from_u16(status).unwrap();
        for lines in [&[][..], &[(header::ETAG, "\"a\"")]] {
            let response = entry_with(status, lines).respond(&Method::GET, &request, 0);
            assert_eq!((response.status(), &response.body()[..]), (status, &b"{}"[..]));
            let etag = response.headers().get(header::ETAG);
            let given = lines.first().map(|(_, text)| text.as_bytes());
            assert_eq!(etag.map(HeaderValue::as_bytes), given, "{status}");
        }
    }
}

#[test]
fn a_304_has_what_tells_of_the_response_and_the_same_told_of_a_hit() {
    let lines = [
        ("server", "a"),
        ("vary", "accept"),
        ("content-type", "application/json"),
        ("access-control-allow-origin", "*"),
        ("date", "d"),
        ("vary", "origin"),
        ("cache-control", "max-age=9"),
        ("last-modified", "l"),
    ];
    let lines = lines.map(|(name, value)| (HeaderName::from_static(name), value));
    let entry = entry(&lines);
    let request = [(IF_NONE_MATCH, HeaderValue::from_static("*"))].into_iter().collect();
    let list = |response: Response<Bytes>| -> Vec<String> {
        assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
        assert!(response.body().is_empty());
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        response.headers().iter().map(line).collect()
    };
    let etag = format!("etag: \"{}\"", digest(b"{}"));
    let kept = [
        "vary: accept",
        "vary: origin",
        "access-control-allow-origin: *",
        "date: d",
        "cache-control: max-age=9",
        &etag,
    ];
    let added = ["via: 1.1 jobcache", "age: 87", "cache-status: jobcache; hit; ttl=213"];
    assert_eq!(
        list(entry.respond(&Method::GET, &request, 86_001)),
        [&kept[..], &added[1..2]].concat()
    );
    assert_eq!(list(entry.hit(&Method::GET, &request, 86_001)), [&kept[..], &added[..]].concat());
}

/// The weight is the size of the parts and little more.
#[test]
fn an_entry_weighs_what_its_parts_take() {
    let entry = entry(&[(DATE, "Sun, 06 Nov 1994 08:49:37 GMT")]);
    let own = size_of::<Entry>() + entry.head.text.len() + entry.body.len();
    let weight = entry.weight();
    assert!(weight > own && weight < own + 160, "{weight} for {own}");
    assert!(size_of::<Entry>() <= 184, "{}", size_of::<Entry>());
}

const DATE_MS: i64 = 784_111_777_000;
const IN_A_MINUTE: &str = "Sun, 06 Nov 1994 08:50:37 GMT";

/// An answer with a TTL of `ttl_s` that was requested `at_s` after [`DATE_MS`].
fn answer(at_s: i64, ttl_s: u64, age_s: u64, lines: &[(&str, &str)]) -> Entry {
    let response = lines
        .iter()
        .fold(Response::builder(), |response, &(name, value)| response.header(name, value));
    let (head, ()) = response.body(()).unwrap().into_parts();
    let request = Request::new(()).into_parts().0;
    let fingerprinter = Fingerprinter::new(&config::CredentialsConfig::default());
    let key = CredentialKey::new([7; 32]);
    let caller = fingerprinter.caller(&key, &request.uri, &request.headers);
    let (ttl, age) = (Duration::from_secs(ttl_s), Duration::from_secs(age_s));
    let now_ms = DATE_MS + 1_000 * at_s;
    let head = StoredHead::of(&head, &[], now_ms);
    let freshness = Freshness { ttl, age, public: false };
    Entry::new(head, Bytes::from("{}"), freshness, caller, now_ms)
}

#[track_caller]
fn check_likeness(one: &Entry, later: &Entry, want: &Likeness) {
    assert_eq!(&one.likeness(later, &[]), want, "{one:?} {later:?}");
}

#[test]
fn lifetimes_are_compared_by_their_end() {
    let stated = |at_s, seconds: u64, age_s| {
        let control = format!("max-age={seconds}");
        answer(at_s, seconds - age_s, age_s, &[("cache-control", &control)])
    };
    check_likeness(&stated(0, 60, 0), &stated(9, 60, 0), &Likeness::Same);
    // The same answer from a cache in between, and one that counts its lifetime down.
    check_likeness(&stated(0, 60, 5), &stated(9, 60, 14), &Likeness::Same);
    check_likeness(&stated(0, 60, 0), &stated(9, 51, 0), &Likeness::Same);
    check_likeness(&stated(0, 60, 0), &stated(9, 49, 0), &Likeness::Same);
    check_likeness(&stated(0, 60, 0), &stated(9, 48, 0), &Likeness::ShorterLived);
    let end = |at_s, ttl_s| answer(at_s, ttl_s, 0, &[("expires", IN_A_MINUTE)]);
    check_likeness(&end(0, 60), &end(9, 51), &Likeness::Same);
}

#[test]
fn the_lifetime_for_clients_counts_past_the_ttl() {
    let stated = |control: &str| answer(0, 300, 0, &[("cache-control", control)]);
    let hour = stated("max-age=3600");
    check_likeness(&hour, &stated("max-age=3600"), &Likeness::Same);
    check_likeness(&hour, &stated("max-age=600"), &Likeness::ShorterLived);
    check_likeness(&stated("max-age=600"), &hour, &Likeness::Same);
    check_likeness(&hour, &stated(""), &Likeness::ShorterLived);
    check_likeness(&hour, &answer(0, 300, 0, &[]), &Likeness::ShorterLived);
    check_likeness(&answer(0, 300, 0, &[]), &answer(9, 300, 0, &[]), &Likeness::Same);
    let split = stated("s-maxage=3600, max-age=900");
    check_likeness(&split, &stated("s-maxage=3600, max-age=400"), &Likeness::ShorterLived);
    check_likeness(&split, &stated("max-age=900, s-maxage=3600"), &Likeness::Same);
}

#[test]
fn another_body_is_no_matter_of_headers() {
    let one = answer(0, 60, 0, &[("x", "1")]);
    let mut other = answer(0, 60, 0, &[("x", "2")]);
    check_likeness(&one, &other, &Likeness::OtherHeaders(vec!["x".parse().unwrap()]));
    other.body = Bytes::from("[]");
    check_likeness(&one, &other, &Likeness::OtherBody);
    let mut public = answer(0, 60, 0, &[("x", "1")]);
    public.audience.public = true;
    check_likeness(&one, &public, &Likeness::OtherHeaders(vec![CACHE_CONTROL]));
}

#[test]
fn a_dropped_modification_survives_the_store() {
    let now = [("date", "Sun, 06 Nov 1994 08:49:37 GMT"); 1];
    let lines = [now[0], ("last-modified", now[0].1)];
    let entry = answer(0, 60, 0, &lines);
    let (token, epoch) = (Token::named("t"), Epoch::named("e"));
    let version = EntryVersion { generation: &token, epoch: &epoch, change: None };
    let meta = entry.meta(&entry.audience().members, &Identity::default(), version, None);
    assert!(meta.contains("\"drops_last_modified\":true"), "{meta}");
    let meta = format!("{meta},\"expires_at_ms\":{}}}", entry.expires_at_ms);
    let decoded = Entry::from_meta(serde_json::from_str(&meta).unwrap(), Bytes::from("{}"));
    let older = answer(0, 60, 0, &[("last-modified", "Sun, 06 Nov 1994 07:49:37 GMT")]);
    check_likeness(&decoded.unwrap(), &older, &Likeness::Same);
}
