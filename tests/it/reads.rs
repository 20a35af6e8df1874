//! Reads: storing, serving again, audiences, and passing through.

use std::time::Duration;

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{HeaderName, HeaderValue},
};
use jobcache::config::NearMode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    RedisServer, Reply, SOON, Setup, eventually,
    redis::{FRESH_TTL_MS, key},
    soon,
    upstream::{Feed, json, version, with_headers},
};

const X: &str = "/jobs/x1";

/// More clients than any pool keeps connections for.
const HERD: usize = 100;

#[tokio::test]
async fn a_miss_fetches_once_and_fills_the_key_with_the_very_body() {
    let setup = Setup::new().await;

    let miss = setup.get(X).await;

    miss.assert(200, &version("x1", 0));
    assert_eq!(miss.cache_status(), "jobcache; fwd=miss; stored");
    setup.hit(X).await;
    assert_eq!(setup.upstream.reads(X), 1);
    assert_eq!(setup.redis.get(&key("x1")).await, Some(version("x1", 0).into_bytes()));
    let ttl_ms = setup.redis.ttl_ms(&key("x1")).await;
    assert!(FRESH_TTL_MS.contains(&ttl_ms), "{ttl_ms}");
}

#[tokio::test]
async fn a_hit_does_not_reach_the_upstream_and_tells_its_age_and_ttl() {
    let setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;
    let reads = setup.upstream.reads(X);

    let hit = setup.get(X).await;

    hit.assert(200, &version("x1", 0));
    assert_eq!(setup.upstream.reads(X), reads);
    assert_eq!(hit.header("content-type"), "application/json");
    assert!(hit.header("age").parse::<u64>().is_ok_and(|age| age <= 5), "{hit:?}");
    let ttl = hit.cache_status().strip_prefix("jobcache; hit; ttl=").expect("a hit with its TTL");
    assert!((295..=300).contains(&ttl.parse::<u64>().expect("seconds")), "{ttl}");
    let etag = hit.header("etag");
    assert!(
        etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"'),
        "not a strong ETag: {etag}"
    );
}

#[tokio::test]
async fn the_upstreams_own_etag_is_kept() {
    let setup = Setup::new().await;
    setup.upstream.respond(X, |_| Some(with_headers("{}", &[("etag", "W/\"v7\"")])));

    assert_eq!(setup.get(X).await.header("etag"), "W/\"v7\"");
    assert_eq!(setup.hit(X).await.header("etag"), "W/\"v7\"");
}

#[tokio::test]
async fn a_hit_replays_repeated_headers_in_order_and_odd_bytes() {
    let setup = Setup::new().await;
    let values = [&b"first"[..], b"caf\xe9", b"a, b", b"first"];
    setup.upstream.respond(X, move |_| {
        let mut response = json(StatusCode::OK, "{}");
        for value in values {
            let value = HeaderValue::from_bytes(value).expect("a header value");
            response.headers_mut().append("x-note", value);
        }
        response.headers_mut().append("x-empty", HeaderValue::from_static(""));
        Some(response)
    });

    let (miss, hit) = (setup.get(X).await, setup.hit(X).await);

    for reply in [miss, hit] {
        let notes: Vec<_> =
            reply.headers.get_all("x-note").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(notes, values, "{reply:?}");
        assert_eq!(reply.headers["x-empty"], "");
    }
}

#[tokio::test]
async fn a_matching_if_none_match_is_answered_304_without_a_body() {
    let setup = Setup::new().await;
    setup.get(X).await;
    let etag = setup.hit(X).await.header("etag").to_owned();
    let reads = setup.upstream.reads(X);

    for matching in [etag.clone(), format!("\"other\", {etag}"), format!("W/{etag}"), "*".into()] {
        let request = setup.sidecar.client.request(Method::GET, X);
        let reply = request.header("if-none-match", &matching).send().await;
        reply.assert(304, "");
        assert_eq!(reply.header("etag"), etag);
        assert!(reply.is_hit(), "{reply:?}");
    }
    let request = setup.sidecar.client.request(Method::GET, X);
    request.header("if-none-match", "\"other\"").send().await.assert(200, &version("x1", 0));
    assert_eq!(setup.upstream.reads(X), reads);
}

#[tokio::test]
async fn a_head_is_answered_from_the_entry_without_a_body() {
    let setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;

    let head = setup.sidecar.client.request(Method::HEAD, X).send().await;

    head.assert(200, "");
    assert!(head.is_hit(), "{head:?}");
    assert_eq!(head.header("content-length"), version("x1", 0).len().to_string());
    assert_eq!(setup.upstream.count(&Method::HEAD, X), 0);
}

#[tokio::test]
async fn a_head_never_fills() {
    let setup = Setup::new().await;

    let head = setup.sidecar.client.request(Method::HEAD, X).send().await;

    head.assert(200, "");
    assert!(head.is_uncached(), "{head:?}");
    assert!(!setup.redis.holds(&key("x1")).await);
    assert!(setup.get(X).await.is_stored());
}

#[tokio::test]
async fn a_hundred_cold_reads_are_one_upstream_read() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let mut readers = Vec::new();
    for _ in 0..HERD {
        readers.push(setup.sidecar.client.start(Method::GET, X, "").await);
    }
    gate.arrived(1).await;
    setup.exchange().await;

    gate.release();

    for reader in readers {
        assert_eq!(reader.answer().await, (200, version("x1", 0)));
    }
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn the_client_that_led_a_flight_may_hang_up_without_harm() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let leader = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;
    let follower = setup.sidecar.client.start(Method::GET, X, "").await;
    setup.exchange().await;

    drop(leader);
    gate.release();

    assert_eq!(follower.answer().await, (200, version("x1", 0)));
    setup.hit(X).await.assert(200, &version("x1", 0));
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_follower_may_hang_up_without_harm() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let leader = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;
    let follower = setup.sidecar.client.start(Method::GET, X, "").await;
    setup.exchange().await;

    drop(follower);
    gate.release();

    assert_eq!(leader.answer().await, (200, version("x1", 0)));
    setup.hit(X).await;
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_fill_happens_though_every_client_hung_up() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let only = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;

    drop(only);
    gate.release();

    eventually(SOON, async || setup.redis.holds(&key("x1")).await).await;
    assert!(setup.get(X).await.is_hit());
    assert_eq!(setup.upstream.reads(X), 1);
}

/// Sends the request twice: both must reach the upstream and neither may leave an entry behind.
#[track_caller]
fn check_passes<'s>(
    setup: &'s Setup,
    method: Method,
    path: &'s str,
    headers: &'s [(&'static str, &'static str)],
) -> impl Future<Output = ()> + 's {
    let caller = std::panic::Location::caller();
    async move {
        let before = setup.upstream.requests().len();
        for turn in 1..=2 {
            let mut request = setup.sidecar.client.request(method.clone(), path);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let reply = request.send().await;
            assert!(reply.is_uncached(), "{caller}: {method} {path}: {reply:?}");
            assert_eq!(setup.upstream.requests().len() - before, turn, "{caller}: {method} {path}");
        }
    }
}

#[tokio::test]
async fn what_is_not_a_plain_read_of_a_job_passes_every_time() {
    let setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;
    for path in ["/jobs/x1?verbose=1", "/jobs/x1?", "/jobs/x1/logs", "/jobs", "/jobs/", "/health"] {
        check_passes(&setup, Method::GET, path, &[]).await;
    }
    for path in ["/jobsite/x", "/jobs/x1/", "//jobs/x1", "/jobs/%78", "/jobs/../jobs/x1"] {
        check_passes(&setup, Method::GET, path, &[]).await;
    }
    check_passes(&setup, Method::OPTIONS, X, &[]).await;
    check_passes(&setup, Method::GET, X, &[("range", "bytes=0-3")]).await;
    check_passes(&setup, Method::GET, X, &[("if-match", "\"v\"")]).await;
    assert!(setup.get(X).await.is_hit(), "a pass has dropped the entry");
}

#[tokio::test]
async fn a_read_with_a_body_passes_with_it() {
    let setup = Setup::new().await;

    for _ in 0..2 {
        let reply = setup.sidecar.client.request(Method::GET, X).body("filter").send().await;
        assert!(reply.is_uncached(), "{reply:?}");
    }

    let seen = setup.upstream.requests();
    assert_eq!(seen.iter().map(|seen| seen.body_len).collect::<Vec<_>>(), [6, 6]);
}

/// Asserts that the upstream's answer arrives unchanged, twice, and is not stored.
#[track_caller]
fn check_never_stored<'s>(
    setup: &'s Setup,
    status: u16,
    headers: &'static [(&'static str, &'static str)],
) -> impl Future<Output = ()> + 's {
    let caller = std::panic::Location::caller();
    async move {
        setup.upstream.respond(X, move |_| {
            let mut response = with_headers("{}", headers);
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            Some(response)
        });
        let before = setup.upstream.reads(X);
        for turn in 1..=2 {
            let reply = setup.get(X).await;
            assert_eq!(reply.status, status, "{caller}");
            assert_eq!(reply.text(), "{}", "{caller}");
            assert!(reply.is_uncached(), "{caller}: {reply:?}");
            for (name, value) in headers {
                assert_eq!(reply.header(name), *value, "{caller}");
            }
            assert_eq!(setup.upstream.reads(X) - before, turn, "{caller}");
        }
        assert!(!setup.redis.holds(&key("x1")).await, "{caller}");
    }
}

#[tokio::test]
async fn what_must_not_be_stored_arrives_unchanged_and_is_not() {
    let setup = Setup::new().await;
    for status in [201, 404, 410, 429, 500, 503] {
        check_never_stored(&setup, status, &[]).await;
    }
    check_never_stored(&setup, 200, &[("cache-control", "no-store")]).await;
    check_never_stored(&setup, 200, &[("cache-control", "private")]).await;
    check_never_stored(&setup, 200, &[("cache-control", "no-cache")]).await;
    check_never_stored(&setup, 200, &[("cache-control", "max-age=0")]).await;
    check_never_stored(&setup, 200, &[("set-cookie", "session=secret")]).await;
    check_never_stored(&setup, 200, &[("vary", "user-agent")]).await;
    check_never_stored(&setup, 200, &[("vary", "*")]).await;
    check_never_stored(&setup, 200, &[("content-encoding", "gzip")]).await;
}

#[tokio::test]
async fn what_must_not_be_stored_is_not_shared_between_those_who_wait() {
    let setup = Setup::new().await;
    let served = std::sync::atomic::AtomicUsize::new(0);
    setup.upstream.respond(X, move |_| {
        let number = served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let mut response = json(StatusCode::OK, number.to_string());
        let cookie = HeaderValue::from_static("session=secret");
        response.headers_mut().insert("set-cookie", cookie);
        Some(response)
    });
    let gate = setup.upstream.hold(Method::GET, X);
    let mut readers = Vec::new();
    for _ in 0..5 {
        readers.push(setup.sidecar.client.start(Method::GET, X, "").await);
    }
    gate.arrived(1).await;
    setup.exchange().await;

    gate.release();

    let mut answers = Vec::new();
    for reader in readers {
        answers.push(reader.answer().await.1);
    }
    answers.sort_unstable();
    assert_eq!(answers, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_stored_and_a_larger_one_is_not() {
    let setup = Setup::with(|config| config.cache.limits.max_body = 100).await;
    setup.upstream.set("x1", 200, "a".repeat(100));
    setup.upstream.set("y1", 200, "a".repeat(101));

    assert!(setup.get(X).await.is_stored());
    for _ in 0..2 {
        let reply = setup.get("/jobs/y1").await;
        reply.assert(200, &"a".repeat(101));
        assert!(reply.is_uncached(), "{reply:?}");
    }

    assert_eq!(setup.upstream.reads("/jobs/y1"), 2);
    assert!(!setup.redis.holds(&key("y1")).await);
}

#[tokio::test]
async fn an_empty_body_is_not_stored() {
    let setup = Setup::new().await;
    setup.upstream.set("x1", 200, "");

    for _ in 0..2 {
        let reply = setup.get(X).await;
        reply.assert(200, "");
        assert!(reply.is_uncached(), "{reply:?}");
    }

    assert_eq!(setup.upstream.reads(X), 2);
}

#[tokio::test]
async fn a_complete_chunked_body_is_stored_as_one() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed(X, &[("content-type", "application/json")]);
    feed.data(r#"{"a":"#).await;
    feed.data("1}").await;
    feed.end();

    setup.get(X).await.assert(200, r#"{"a":1}"#);
    let hit = setup.hit(X).await;

    hit.assert(200, r#"{"a":1}"#);
    assert_eq!(hit.header("content-length"), "7");
    assert_eq!(setup.redis.get(&key("x1")).await, Some(br#"{"a":1}"#.to_vec()));
}

#[tokio::test]
async fn a_body_with_trailers_is_not_stored() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed(X, &[("trailer", "x-sum")]);
    feed.data("{}").await;
    let sum = (HeaderName::from_static("x-sum"), HeaderValue::from_static("7"));
    feed.trailers(HeaderMap::from_iter([sum])).await;

    setup.get(X).await.assert(200, "{}");

    assert!(!setup.redis.holds(&key("x1")).await);
}

/// Breaks the body off after its first half; the client must notice and nothing may be stored.
async fn check_truncated(setup: &Setup, feed: Feed) {
    feed.data(r#"{"half":"#).await;
    let client = &setup.sidecar.client;
    let (reply, ()) = tokio::join!(client.request(Method::GET, X).try_send(), feed.break_off());

    // If the upstream breaks off before the client has the head, the answer is a 502. Otherwise the
    // client gets a broken body.
    if let Ok(reply) = reply {
        assert_eq!(
            reply.status,
            StatusCode::BAD_GATEWAY,
            "a truncated body looks complete: {reply:?}"
        );
    }
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_to_the_client_and_never_stored() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed(X, &[("content-length", "100")]);
    check_truncated(&setup, feed).await;
    let feed = setup.upstream.feed(X, &[]);
    check_truncated(&setup, feed).await;

    setup.upstream.respond(X, |_| Some(json(StatusCode::OK, "{}")));
    setup.get(X).await.assert(200, "{}");
}

#[tokio::test]
async fn an_event_stream_under_a_job_is_streamed_and_not_stored() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed(X, &[("content-type", "text/event-stream")]);

    feed.data("data: 1\n\n").await;
    let mut response = setup.sidecar.client.request(Method::GET, X).open().await;
    let first = next(&mut response).await;
    feed.data("data: 2\n\n").await;
    let second = next(&mut response).await;
    feed.end();

    assert_eq!((first.as_str(), second.as_str()), ("data: 1\n\n", "data: 2\n\n"));
    assert!(!setup.redis.holds(&key("x1")).await);
}

async fn next(response: &mut Response<hyper::body::Incoming>) -> String {
    use http_body_util::BodyExt as _;
    let frame = soon(response.frame()).await.expect("an event").expect("an intact body");
    String::from_utf8_lossy(&frame.into_data().expect("data")).into_owned()
}

#[tokio::test]
async fn a_fill_does_not_ask_for_a_coding_and_a_client_that_accepts_one_gets_the_hit() {
    let setup = Setup::new().await;
    for _ in 0..2 {
        let request = setup.sidecar.client.request(Method::GET, X);
        request.header("accept-encoding", "gzip, br").send().await.assert(200, &version("x1", 0));
    }

    let seen = setup.upstream.requests();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let asked = seen[0].headers.get("accept-encoding");
    assert!(asked.is_none_or(|coding| coding == "identity"), "{asked:?}");
}

#[tokio::test]
async fn a_fill_does_not_forward_the_clients_validators() {
    let setup = Setup::new().await;
    let request = setup.sidecar.client.request(Method::GET, X);

    request.header("if-none-match", "\"v\"").send().await.assert(200, &version("x1", 0));

    assert!(!setup.upstream.requests()[0].headers.contains_key("if-none-match"));
}

#[tokio::test]
async fn the_responses_own_lifetime_shortens_the_ttl_and_never_lengthens_it() {
    let setup = Setup::new().await;
    for (id, lifetime, ttl_ms) in [
        ("a1", "max-age=60", 55_000..=60_000),
        ("b1", "max-age=9, s-maxage=120", 115_000..=120_000),
        ("c1", "max-age=86400", FRESH_TTL_MS),
    ] {
        let path = format!("/jobs/{id}");
        setup
            .upstream
            .respond(&path, move |_| Some(with_headers("{}", &[("cache-control", lifetime)])));
        assert_eq!(setup.get(&path).await.header("cache-control"), lifetime);
        setup.hit(&path).await;
        let ttl = setup.redis.ttl_ms(&key(id)).await;
        assert!(ttl_ms.contains(&ttl), "{lifetime}: {ttl}");
    }
}

#[tokio::test]
async fn an_entry_expires_with_its_ttl() {
    let setup = Setup::with(|config| config.cache.lifetimes.ttl = Duration::from_secs(1)).await;
    setup.get(X).await;
    setup.upstream.commit("x1");

    eventually(SOON, async || setup.get(X).await.text() == version("x1", 1)).await;
}

#[tokio::test]
async fn what_somebody_else_set_in_the_key_is_never_served() {
    let setup = Setup::new().await;
    for foreign in [b"foo".to_vec(), version("x1", 0).into_bytes()] {
        setup.redis.set(&key("x1"), &foreign).await;
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(!reply.is_hit(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_value_set_over_an_entry_is_never_served_even_with_its_bytes() {
    let setup = Setup::new().await;
    for foreign in ["foo".to_owned(), version("x1", 0)] {
        setup.get(X).await;
        setup.hit(X).await;
        setup.redis.set(&key("x1"), foreign.as_bytes()).await;
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(!reply.is_hit(), "{foreign}: {reply:?}");
    }
}

#[tokio::test]
async fn a_lost_or_corrupted_meta_is_no_hit_and_heals_itself() {
    // Entries in the process were verified when they were read.
    let setup = Setup::with(|config| config.cache.near.mode = NearMode::Off).await;
    let meta = format!("{{{}}}:meta", key("x1"));
    for damage in [None, Some("not json"), Some("{}")] {
        setup.get(X).await;
        setup.hit(X).await;
        match damage {
            None => setup.redis.del(&meta).await,
            Some(damage) => setup.redis.set(&meta, damage.as_bytes()).await,
        }
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(!reply.is_hit(), "{damage:?}: {reply:?}");
        setup.hit(X).await.assert(200, &version("x1", 0));
    }
}

#[tokio::test]
async fn a_key_of_the_wrong_type_passes() {
    let setup = Setup::new().await;
    let () = setup.redis.run(redis::cmd("HSET").arg(key("x1")).arg("field").arg("value")).await;

    for _ in 0..2 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(!reply.is_hit(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_client_that_asks_for_a_fresh_answer_gets_one_and_refreshes_the_entry() {
    let setup = Setup::new().await;
    for directive in ["no-cache", "max-age=0"] {
        setup.get(X).await;
        setup.hit(X).await;
        setup.upstream.commit("x1");
        let request = setup.sidecar.client.request(Method::GET, X);
        let fresh = request.header("cache-control", directive).send().await;
        assert!(!fresh.is_hit(), "{directive}: {fresh:?}");
        assert_eq!(setup.hit(X).await.text(), fresh.text(), "{directive}");
    }
}

#[tokio::test]
async fn a_client_that_only_wants_the_cache_gets_504_on_a_miss() {
    let setup = Setup::new().await;
    let request = || {
        let request = setup.sidecar.client.request(Method::GET, X);
        request.header("cache-control", "only-if-cached").send()
    };

    assert_eq!(request().await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(setup.upstream.reads(X), 0);
    setup.get(X).await;
    setup.hit(X).await;
    request().await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn a_job_id_of_any_allowed_spelling_is_cached_under_itself() {
    let setup = Setup::new().await;
    for id in ["7", "1a.b", "a~b_c-d1", "0b54a0de-2b2b-4f86-9d58-3f7c33bf3a2e"] {
        let path = format!("/jobs/{id}");
        assert!(setup.get(&path).await.is_stored(), "{id}");
        setup.hit(&path).await.assert(200, &version(id, 0));
        assert!(setup.redis.holds(&key(id)).await, "{id}");
    }
    setup.get("/api/v1/jobs/seven1").await;
    setup.hit("/api/v1/jobs/seven1").await.assert(200, &version("seven1", 0));
}

#[tokio::test]
async fn an_unknown_job_stays_unknown_only_until_it_exists() {
    let setup = Setup::new().await;
    setup.upstream.only_known(&["other1"]);
    assert_eq!(setup.get(X).await.status, StatusCode::NOT_FOUND);

    setup.upstream.only_known(&["x1"]);

    setup.get(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn a_second_sidecar_serves_what_the_first_has_stored() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    setup.get(X).await;
    setup.hit(X).await;

    let reply = second.get(X).await;

    reply.assert(200, &version("x1", 0));
    assert!(reply.is_hit(), "{reply:?}");
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn nobody_waits_for_a_body_that_streams_on_for_somebody_else() {
    for redis_is_up in [true, false] {
        let setup = Setup::new().await;
        if !redis_is_up {
            setup.redis.stop();
            eventually(SOON, async || {
                setup.get("/jobs/other1").await.cache_status().contains("store-down")
            })
            .await;
        }
        let feed = setup.upstream.feed(X, &[("content-type", "application/x-ndjson")]);
        let first = setup.sidecar.client.request(Method::GET, X).open().await;
        feed.data("{}\n").await;
        setup.upstream.respond(X, |_| Some(with_headers("whole", &[])));

        let second = setup.get(X).await;

        assert_eq!(second.text(), "whole", "redis up: {redis_is_up}");
        feed.end();
        assert_eq!(Reply::read(first).await.unwrap().text(), "{}\n");
    }
}

/// Starts an upstream that ends its body by closing the connection, like HTTP/1.0 and a killed
/// worker.
async fn closing_upstream() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"id\":1,\"sta")
                .await;
        }
    });
    url
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_not_stored() {
    let url = closing_upstream().await;
    let redis = RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.upstream.url = url).await;
    eventually(SOON, async || {
        setup.get(X).await.cache_status().ends_with("fwd=miss; detail=unframed")
    })
    .await;
    assert!(!setup.redis.holds(&key("x1")).await);
}
