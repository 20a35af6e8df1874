//! Entries in the store.
//!
//! Input: a line of three numbers (time of the read, expiry, age), header lines, an empty line, and
//! the body. The rest of the input is also decoded as metadata, and stands for metadata changed by
//! somebody else.

use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, Method, Request, Response, http::response::Parts};
use jobcache::{
    cache::entry::{Entry, EntryVersion, Likeness, Reject},
    config::CredentialsConfig,
    semantics::{
        audience::Fingerprinter,
        identity::Identity,
        policy::{Freshness, StoredHead},
    },
    store::{CredentialKey, Epoch, Seen, StoredValue, Token},
};
use serde_json::Value;

/// Checks one input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (numbers, rest) = super::line(&text);
    let (lines, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
    let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0_i64);
    let (now_ms, expires_at_ms, age) = (number(), number(), number());

    let (mut head, ()) = Response::new(()).into_parts();
    head.headers = super::headers(lines);
    let entry = made(&head, body, now_ms, age);
    let meta = made_meta(&entry);
    let meta = format!("{meta},\"expires_at_ms\":{expires_at_ms}}}");
    check_round(&entry, &meta, expires_at_ms, now_ms);
    check_change(&meta, body, expires_at_ms);
    check_tampered(&meta, lines, body, now_ms);
    // Arbitrary metadata must not cause a panic.
    let _ = Entry::decode(&seen(Bytes::from(rest.to_owned()), body, expires_at_ms, "e"));
}

fn made_meta(entry: &Entry) -> String {
    let (generation, epoch) = (&Token::named("g"), &Epoch::named("e"));
    let version = EntryVersion { generation, epoch, change: None };
    entry.meta(&entry.audience().members, &Identity::default(), version, None)
}

fn made(head: &Parts, body: &str, now_ms: i64, age: i64) -> Entry {
    let age = Duration::from_millis(age.unsigned_abs());
    let freshness = Freshness { ttl: Duration::from_mins(5), age, public: age.is_zero() };
    let (asked, ()) = Request::new(()).into_parts();
    let fingerprinter = Fingerprinter::new(&CredentialsConfig::default());
    let caller = fingerprinter.caller(&CredentialKey::new([7; 32]), &asked.uri, &asked.headers);
    Entry::new(
        StoredHead::of(head, &[], now_ms),
        Bytes::from(body.to_owned()),
        freshness,
        caller,
        now_ms,
    )
}

fn seen(meta: Bytes, body: &str, expires_at_ms: i64, epoch: &str) -> Seen {
    let stored = StoredValue { body: Bytes::from(body.to_owned()), meta, expires_at_ms };
    Seen {
        stored: Some(stored),
        is_leased: false,
        epoch: Epoch::named(epoch),
        now_ms: 0,
        in_grace: false,
    }
}

fn decoded(meta: &str, body: &str, expires_at_ms: i64, epoch: &str) -> Result<Entry, Reject> {
    let meta = Bytes::from(meta.to_owned());
    Entry::decode(&seen(meta, body, expires_at_ms, epoch)).expect("a storable response")
}

/// A stored response is served unchanged.
fn check_round(entry: &Entry, meta: &str, expires_at_ms: i64, now_ms: i64) {
    let body = std::str::from_utf8(entry.body()).expect("a body of text");
    let again = decoded(meta, body, expires_at_ms, "e").expect("valid metadata");
    let likeness = again.likeness(entry, &[]);
    assert!(matches!(likeness, Likeness::Same | Likeness::ShorterLived), "{likeness:?}");
    assert_eq!(again.audience(), entry.audience());
    assert_eq!(again.generation(), "g");
    assert_eq!(again.expires_at_ms(), expires_at_ms);
    for method in [Method::GET, Method::HEAD] {
        let none = HeaderMap::new();
        let [one, other] = [entry, &again].map(|entry| entry.respond(&method, &none, now_ms));
        assert_eq!(one.headers(), other.headers());
        assert_eq!(one.body(), other.body());
        assert!(method != Method::HEAD || one.body().is_empty());
    }
    for secret in ["set-cookie", "connection", "transfer-encoding"] {
        assert!(!meta.contains(&format!("[\"{secret}\",")), "{secret} is stored");
    }
}

/// A changed or extended entry, or one of another epoch or expiry, is not a hit.
fn check_change(meta: &str, body: &str, expires_at_ms: i64) {
    let reject = |body: &str, at, epoch| decoded(meta, body, at, epoch).expect_err("no hit");
    assert_eq!(reject(&format!("{body} "), expires_at_ms, "e"), Reject::Foreign);
    let mut bytes = body.to_owned().into_bytes();
    if let Some(last) = bytes.last_mut().filter(|last| last.is_ascii()) {
        *last ^= 1;
        let changed = String::from_utf8(bytes).expect("one ASCII character became another");
        assert_eq!(reject(&changed, expires_at_ms, "e"), Reject::Foreign);
    }
    assert_eq!(reject(body, expires_at_ms.wrapping_add(1), "e"), Reject::Foreign);
    assert_eq!(reject(body, expires_at_ms, "f"), Reject::Epoch);
}

/// Metadata with other members is decoded or rejected, and served without harm.
fn check_tampered(meta: &str, lines: &str, body: &str, now_ms: i64) {
    let Ok(mut value) = serde_json::from_str::<Value>(meta) else {
        panic!("the metadata is not JSON")
    };
    for line in lines.split('\n') {
        if let Some((key, new)) = line.split_once(": ")
            && let Ok(new) = serde_json::from_str::<Value>(new)
        {
            value[key] = new;
        }
    }
    let expires_at_ms = value["expires_at_ms"].as_i64().unwrap_or(0);
    if let Ok(entry) = decoded(&value.to_string(), body, expires_at_ms, "e") {
        let _ = (entry.ttl(now_ms), entry.age(now_ms));
        let _ = entry.respond(&Method::GET, &HeaderMap::new(), now_ms);
        let (asked, ()) = Request::new(()).into_parts();
        let credentials = CredentialsConfig {
            recheck: Some(Duration::from_secs(1)),
            ..CredentialsConfig::default()
        };
        let fingerprinter = Fingerprinter::new(&credentials);
        let caller = fingerprinter.caller(&CredentialKey::new([7; 32]), &asked.uri, &asked.headers);
        let _ = fingerprinter.standing(entry.audience(), caller, now_ms);
    }
}
