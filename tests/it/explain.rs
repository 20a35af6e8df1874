//! `/explain/<id>`: the prediction for a request is what the request then gets.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    future::Future,
    time::{Duration, UNIX_EPOCH},
};

use hyper::{Method, StatusCode};
use jobcache::config::{CacheMode, Config, Secret};
use serde_json::Value;

use crate::support::{
    Reply, SOON, Setup,
    client::HOST,
    eventually,
    raw::End,
    redis::{RedisServer, key},
    sidecar::{Sidecar, config},
    upstream::{Gate, json, with_headers},
};

const X: &str = "/jobs/x1";
const SECRET: &str = "a-secret-of-the-test";

type Fields<'f> = &'f [(&'static str, &'f str)];

/// Returns the head of a request as an operator would copy it.
fn head(method: &str, path: &str, fields: Fields<'_>) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n");
    for (name, value) in fields {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head
}

async fn explain(setup: &Setup, id: &str, head: String) -> Value {
    let path = format!("/explain/{id}");
    let reply = setup.sidecar.admin.request(Method::POST, &path).body(head).send().await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.header("cache-control"), "no-store");
    reply.json()
}

/// Returns the keys in Redis with their values and expiries, without the records of sidecars, which
/// are renewed all the time.
async fn dump(setup: &Setup) -> BTreeMap<String, (Vec<u8>, i64)> {
    let mut all = BTreeMap::new();
    let names = setup.redis.keys("*").await;
    for name in names.into_iter().filter(|name| !name.ends_with(":sidecars")) {
        let value = setup.redis.run(redis::cmd("DUMP").arg(&name)).await;
        let expires = setup.redis.run(redis::cmd("PEXPIRETIME").arg(&name)).await;
        all.insert(name, (value, expires));
    }
    all
}

/// Returns [`dump`] and [`counters`] once earlier requests have had their effects.
async fn rest(setup: &Setup) -> (BTreeMap<String, (Vec<u8>, i64)>, Vec<String>) {
    let mut last = (dump(setup).await, counters(setup).await);
    eventually(SOON, async || {
        let now = (dump(setup).await, counters(setup).await);
        let before = std::mem::replace(&mut last, now.clone());
        (now == before).then_some(now)
    })
    .await
}

/// Returns the counters that a request increases.
async fn counters(setup: &Setup) -> Vec<String> {
    let metrics = setup.sidecar.admin.get("/metrics").await;
    let counted = ["requests_total", "fills", "near_lookups", "store_operation_seconds_count"];
    let counts = |line: &&str| counted.iter().any(|name| line[..].contains(name));
    metrics.text().lines().filter(counts).map(ToOwned::to_owned).collect()
}

/// Returns the number of requests by outcome.
async fn outcomes(setup: &Setup) -> BTreeMap<String, u64> {
    let metrics = setup.sidecar.admin.get("/metrics").await;
    let mut all = BTreeMap::new();
    for line in metrics.text().lines() {
        let Some(rest) = line.strip_prefix("jobcache_requests_total{outcome=\"") else { continue };
        let (outcome, rest) = rest.split_once('"').expect("a label");
        let count: u64 = rest.split_once("} ").expect("a value").1.parse().expect("a number");
        *all.entry(outcome.to_owned()).or_default() += count;
    }
    all
}

/// Asserts that the prediction matches the request, by its `Cache-Status` and by the metric. It
/// must be the only request in the meantime.
async fn same(setup: &Setup, told: &Value, request: impl Future<Output = Reply>) {
    let before = outcomes(setup).await;
    let real = request.await;
    assert_same(told, real.cache_status());
    assert_outcome(setup, told, &before).await;
}

async fn assert_outcome(setup: &Setup, told: &Value, before: &BTreeMap<String, u64>) {
    let risen: Vec<_> = outcomes(setup)
        .await
        .into_iter()
        .filter(|(outcome, count)| before.get(outcome).copied().unwrap_or_default() < *count)
        .map(|(outcome, _)| outcome)
        .collect();
    assert_eq!(risen, [told["verdict"]["outcome"].as_str().expect("text")], "{told}");
}

#[track_caller]
fn assert_same(told: &Value, is: &str) {
    let verdict = &told["verdict"];
    let said = verdict["cache_status"].as_str().expect("text");
    let strip = |status: &str| status.split("; ttl=").next().unwrap_or_default().to_owned();
    let is = is.replace("; stored", "").replace("; collapsed", "");
    assert_eq!(strip(said).replace("; collapsed", ""), strip(&is), "{told}");
    let detail = is.split("detail=").nth(1).and_then(|rest| rest.split(';').next());
    assert_eq!(verdict["detail"].as_str(), detail, "{told}");
    assert!(verdict["why"].as_str().is_some_and(|why| why.starts_with("would ")), "{told}");
}

/// Explains a request while Redis answers, asserts that this changes nothing, and then sends the
/// request.
async fn check(setup: &Setup, path: &str, fields: Fields<'_>) -> Value {
    check_as(setup, Method::GET, path, fields).await
}

async fn check_as(setup: &Setup, method: Method, path: &str, fields: Fields<'_>) -> Value {
    let before = rest(setup).await;
    let told = explain(setup, "x1", head(method.as_str(), path, fields)).await;
    assert_eq!(
        (dump(setup).await, counters(setup).await),
        before,
        "explaining had side effects: {told}"
    );
    same(setup, &told, send(setup, method, path, fields)).await;
    told
}

/// Explains a request, and then sends it.
async fn check_served(setup: &Setup, method: Method, fields: Fields<'_>) -> Value {
    let told = explain(setup, "x1", head(method.as_str(), X, fields)).await;
    same(setup, &told, send(setup, method, X, fields)).await;
    told
}

/// Like [`check_served`] for the second upstream read in progress, which is then released.
async fn check_held(setup: &Setup, gate: &Gate, fields: Fields<'_>) -> Value {
    let told = explain(setup, "x1", head("GET", X, fields)).await;
    let release = async {
        gate.arrived(2).await;
        gate.release();
    };
    tokio::join!(same(setup, &told, send(setup, Method::GET, X, fields)), release);
    told
}

/// Like [`check_served`] for a raw request.
async fn check_raw(setup: &Setup, head: &str) -> Value {
    let told = explain(setup, "x1", head.to_owned()).await;
    let before = outcomes(setup).await;
    let mut end = End::new(setup.sidecar.client.connect().await);
    end.send(head).await;
    let (real, _) = end.answer().await;
    let is = real.lines().find_map(|line| line.strip_prefix("cache-status: "));
    assert_same(&told, is.unwrap_or_else(|| panic!("{real}")));
    assert_outcome(setup, &told, &before).await;
    told
}

async fn send(setup: &Setup, method: Method, path: &str, fields: Fields<'_>) -> Reply {
    let mut request = setup.sidecar.client.request(method, path);
    for (name, value) in fields {
        request = request.header(name, value);
    }
    request.send().await
}

#[tokio::test]
async fn a_job_that_was_never_seen_would_be_read_and_stored() {
    let setup = Setup::new().await;
    let told = check(&setup, X, &[]).await;
    assert_eq!((&told["value"], &told["verdict"]["outcome"]), (&"none".into(), &"miss".into()));
    assert_eq!(told["events"], Value::Array(Vec::new()));
}

#[tokio::test]
async fn a_mode_that_answers_nothing_from_the_cache_is_told() {
    for (mode, detail) in [(CacheMode::Shadow, "shadow-hit"), (CacheMode::Off, "off")] {
        let redis = RedisServer::start().await;
        let setup = Setup::cold(redis, |config| config.cache.mode = mode).await;
        eventually(SOON, async || {
            let reply = send(&setup, Method::GET, X, &[]).await;
            reply.cache_status().ends_with(detail)
        })
        .await;
        let told = check_served(&setup, Method::GET, &[]).await;
        assert_eq!(told["verdict"]["detail"], detail);
    }
}

#[tokio::test]
async fn a_hit_is_told_with_all_that_there_is_to_the_entry_and_its_past() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    setup.hit(X).await;
    let told = check(&setup, X, &[]).await;
    assert_eq!((&told["value"], &told["near"]), (&"entry".into(), &true.into()), "{told}");
    let entry = &told["entry"];
    assert!(entry["ttl_s"].as_u64().is_some_and(|ttl| (290..=300).contains(&ttl)), "{told}");
    assert!(entry["age_s"].as_u64().is_some_and(|age| age < 10), "{told}");
    assert_eq!((&entry["audience"], &entry["size"]), (&1.into(), &42.into()), "{told}");
    assert_eq!(entry["stored_size"], 42, "{told}");
    assert!(entry["generation"].as_str().is_some_and(|token| !token.is_empty()), "{told}");
    let events = told["events"].as_array().expect("a list");
    let what: Vec<_> = events.iter().map(|event| event["what"].as_str().expect("text")).collect();
    assert_eq!(what, ["fill", "miss", "hit"], "{told}");
    assert!(events[2]["times"].as_u64() >= Some(2), "{told}");
    let time = |time: &Value| {
        let time = humantime::parse_rfc3339(time.as_str().expect("text")).expect("RFC 3339");
        time.duration_since(UNIX_EPOCH).expect("later").as_millis()
    };
    assert_eq!(Some(time(&events[2]["at"])), events[2]["at_ms"].as_u64().map(u128::from));
    assert!(time(&told["now"]) >= time(&events[2]["at"]), "{told}");
}

#[tokio::test]
async fn a_purge_and_a_write_are_still_told_after_many_polls_of_either_kind() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    setup.sidecar.put(X).await;
    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, StatusCode::OK);
    for _ in 0..12 {
        setup.get("/jobs/x1?t=1").await;
        setup.get(X).await;
    }
    let told = explain(&setup, "x1", String::new()).await;
    let events = told["events"].as_array().expect("a list");
    let what: Vec<_> = events.iter().map(|event| event["what"].as_str().expect("text")).collect();
    let place = |of: &str| what.iter().position(|what| *what == of);
    assert!(place("write").is_some() && place("write") < place("write-ended"), "{told}");
    assert!(place("write-ended") < place("purge") && place("purge") < place("pass"), "{told}");
    assert!(events.is_sorted_by_key(|event| event["at_ms"].as_i64()), "{told}");
}

#[tokio::test]
async fn another_credential_would_ask_the_api_and_is_told_so() {
    let setup = Setup::new().await;
    let me = [("authorization", "Bearer me")];
    send(&setup, Method::GET, X, &me).await;
    assert_eq!(check(&setup, X, &me).await["entry"]["standing"], "included");
    let told = check(&setup, X, &[("authorization", "Bearer another")]).await;
    assert_eq!(told["entry"]["standing"], "outside");
    assert!(told["verdict"]["why"].as_str().unwrap().contains("not in the audience"), "{told}");
    // The other credential is admitted now.
    check(&setup, X, &[("authorization", "Bearer another")]).await;
    let told = check(&setup, X, &[("authorization", "Bearer me"), ("accept", "text/x")]).await;
    assert!(told["verdict"]["why"].as_str().unwrap().contains("for another variant"), "{told}");
}

#[tokio::test]
async fn without_a_host_the_form_is_taken_for_that_of_the_entry() {
    let setup = Setup::new().await;
    let me = [("authorization", "Bearer me"), ("accept", "text/x")];
    send(&setup, Method::GET, X, &me).await;
    let told = explain(&setup, "x1", "Authorization: Bearer me".into()).await;
    assert_eq!(told["verdict"]["outcome"], "hit", "{told}");
    assert_eq!(told["request"]["form_assumed"], true);
    let told = explain(&setup, "x1", "Authorization: Bearer another".into()).await;
    assert_eq!(told["verdict"]["outcome"], "miss", "{told}");
    // A GET explains an anonymous request, whatever headers it has itself.
    let request = setup.sidecar.admin.request(Method::GET, "/explain/x1");
    let told = request.header("authorization", "Bearer me").send().await.json();
    assert_eq!(told["verdict"]["outcome"], "miss", "{told}");
}

#[tokio::test]
async fn a_fence_is_told_with_what_is_left_of_it() {
    let setup = Setup::with(|config| config.cache.settle = Duration::from_mins(1)).await;
    setup.hit(X).await;
    setup.sidecar.put(X).await;
    for cache_control in ["only-if-cached", "no-store", "no-cache"] {
        check(&setup, X, &[("cache-control", cache_control)]).await;
    }
    check_as(&setup, Method::HEAD, X, &[]).await;
    let told = check(&setup, X, &[]).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["verdict"]["outcome"]),
        (&"fenced".into(), &"miss".into())
    );
    assert!(why(&told).contains("ms left") && why(&told).contains("(settle)"), "{told}");
    assert!(told["fence"]["left_ms"].as_i64().is_some_and(|ms| ms > 50_000), "{told}");
    let ended = |event: &Value| event["what"] == "write-ended" && event["why"] == "confirmed";
    assert!(told["events"].as_array().expect("a list").iter().any(ended), "{told}");
}

#[tokio::test]
async fn another_sidecars_lease_is_told() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let check = async {
        gate.arrived(1).await;
        let told = check_held(&setup, &gate, &[]).await;
        assert_eq!(
            (&told["verdict"]["detail"], &told["value"]),
            (&"leased".into(), &"placeholder".into())
        );
        assert!(told["verdict"]["why"].as_str().unwrap().contains("250 ms"), "{told}");
        assert!(told["lease"]["left_ms"].as_i64().is_some_and(|ms| ms > 0), "{told}");
    };
    tokio::join!(second.get(X), check);
}

#[tokio::test]
async fn another_callers_lease_is_told_and_not_waited_for() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let other = setup.sidecar.client.start_as(Method::GET, X, "alice").await;
    gate.arrived(1).await;

    let told = check_held(&setup, &gate, &[]).await;

    assert_eq!(told["verdict"]["detail"], "leased", "{told}");
    assert!(!told["verdict"]["why"].as_str().unwrap().contains("250 ms"), "{told}");
    assert_eq!(other.answer().await.0, 200);
}

#[tokio::test]
async fn who_wants_no_cache_waits_for_no_other_sidecar() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let check = async {
        gate.arrived(1).await;
        let told = check_held(&setup, &gate, &[("cache-control", "no-cache")]).await;
        assert_eq!(told["verdict"]["outcome"], "miss", "{told}");
        assert_eq!(told["verdict"]["detail"], "no-cache");
    };
    tokio::join!(second.get(X), check);
}

/// In shadow mode no request is rejected, waits or joins.
#[tokio::test]
async fn what_shadow_mode_does_otherwise_is_told() {
    let redis = RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.cache.mode = CacheMode::Shadow).await;
    let is_connected = async || send(&setup, Method::GET, "/jobs/y1", &[]).await.is_stored();
    eventually(SOON, async || {
        setup.redis.del(&key("y1")).await;
        is_connected().await
    })
    .await;
    let only = [("cache-control", "only-if-cached")];
    let told = check_served(&setup, Method::GET, &only).await;
    assert_eq!(told["verdict"]["detail"], "only-if-cached");
    assert!(told["verdict"]["why"].as_str().unwrap().contains("with mode on"), "{told}");
    let second = Sidecar::start(config(&setup.redis, &setup.upstream)).await;
    eventually(SOON, async || second.get("/jobs/y1").await.is_hit()).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let check = async {
        gate.arrived(1).await;
        let told = check_held(&setup, &gate, &[]).await;
        assert_eq!(told["verdict"]["detail"], "leased");
        assert!(
            !told["verdict"]["why"].as_str().unwrap().contains("would wait at most 250 ms for")
        );
    };
    tokio::join!(second.get(X), check);
    eventually(SOON, async || setup.get(X).await.cache_status().contains("shadow-hit")).await;
    for fields in [&only[..], &[]] {
        assert_eq!(
            check_served(&setup, Method::GET, fields).await["verdict"]["detail"],
            "shadow-hit"
        );
    }
    check_served(&setup, Method::HEAD, &[]).await;
    check_served(&setup, Method::GET, &[("cache-control", "no-cache")]).await;
}

#[tokio::test]
async fn what_is_refused_before_anything_is_made_of_it_is_told() {
    let setup = Setup::with(|config| config.server.max_headers = 20).await;
    let long = "a".repeat(9_000);
    let many = "a: b\r\n".repeat(30);
    for (head, detail) in [
        ("GET /jobs/x1 HTTP/1.1\r\n\r\n", "host"),
        ("GET /jobs/x1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "host"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "connect"),
        (&format!("GET /jobs/x1?{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "uri-too-long"),
        (&format!("GET /jobs/x1 HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "too-many-headers"),
        (
            "PUT /jobs/x1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "transfer-coding",
        ),
    ] {
        let told = check_raw(&setup, head).await;
        assert_eq!(told["verdict"]["detail"], detail, "{told}");
        assert_eq!(told["verdict"]["outcome"], "error", "{told}");
    }
}

#[tokio::test]
async fn what_is_no_read_of_a_job_is_told() {
    let setup = Setup::new().await;
    for (line, outcome, detail) in [
        ("GET /other HTTP/1.1", "pass", "path".into()),
        ("POST /jobs HTTP/1.1", "pass", "path".into()),
        ("GET /jobs/a:b HTTP/1.1", "pass", "spelling".into()),
        ("OPTIONS * HTTP/1.1", "pass", "method".into()),
        ("OPTIONS /jobs/x1 HTTP/1.1", "pass", "method".into()),
        ("get /jobs/x1 HTTP/1.1", "write", Value::Null),
        ("GET /jobs/x1 HTTP/1.0", "miss", Value::Null),
    ] {
        let told = check_raw(&setup, &format!("{line}\r\nHost: {HOST}\r\n\r\n")).await;
        assert_eq!(
            (&told["verdict"]["outcome"], &told["verdict"]["detail"]),
            (&outcome.into(), &detail),
            "{line}"
        );
    }
}

#[tokio::test]
async fn what_curl_shows_is_explained_and_the_verdict_comes_first() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let shown = format!(
        "*   Trying 127.0.0.1:80...\n> GET {X} HTTP/1.1\n> Host: {HOST}\n> Accept: */*\n>\n< HTTP/1.1 \
         200 OK\n< age: 3\n"
    );
    let post = setup.sidecar.admin.request(Method::POST, "/explain/x1").body(shown);
    let reply = post.send().await;
    assert!(reply.text().starts_with("{\"verdict\":{\"outcome\":\"miss\""), "{}", reply.text());
    assert_eq!(reply.json()["request"]["form_assumed"], false);
}

#[tokio::test]
async fn a_read_under_way_here_would_be_joined() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let check = async {
        gate.arrived(1).await;
        let told = explain(&setup, "x1", head("GET", X, &[])).await;
        assert_eq!(told["verdict"]["cache_status"], "jobcache; fwd=miss; collapsed", "{told}");
        let release = async {
            setup.exchange().await;
            gate.release();
        };
        tokio::join!(setup.get(X), release);
    };
    tokio::join!(setup.get(X), check);
}

#[tokio::test]
async fn a_pending_invalidation_is_told_while_redis_hangs() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    setup.hit(X).await;
    setup.redis.stop();
    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, StatusCode::SERVICE_UNAVAILABLE);
    let began = tokio::time::Instant::now();
    let told = explain(&setup, "x1", head("GET", X, &[])).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(
        (&told["verdict"]["detail"], &told["store"]["pending"]),
        (&"pending".into(), &true.into())
    );
    assert_eq!(told["verdict"]["outcome"], "miss", "{told}");
    same(&setup, &told, setup.get(X)).await;
    // Another job is not pending.
    let told = explain(&setup, "y1", head("GET", "/jobs/y1", &[])).await;
    assert_eq!(told["store"]["pending"], false, "{told}");
    setup.redis.cont();
}

#[tokio::test]
async fn a_store_that_hangs_and_one_that_is_down_are_told() {
    let mut setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    setup.redis.stop();
    let told = explain(&setup, "x1", head("GET", X, &[])).await;
    assert_eq!(told["verdict"]["detail"], "store-timeout", "{told}");
    assert_eq!((&told["store"]["answered"], &told["entry"]), (&false.into(), &Value::Null));
    setup.redis.kill();
    eventually(SOON, async || setup.sidecar.admin.get("/readyz").await.json()["store"] == "down")
        .await;
    let told = explain(&setup, "x1", head("GET", X, &[])).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["store"]["error"]),
        (&"store-down".into(), &"down".into())
    );
    same(&setup, &told, setup.get(X)).await;
}

#[tokio::test]
async fn values_of_the_application_are_told() {
    let setup = Setup::new().await;
    for _ in 0..3 {
        setup.redis.set(&key("x1"), b"its own").await;
        let told = check(&setup, X, &[]).await;
        assert_eq!(
            (&told["value"], &told["verdict"]["outcome"]),
            (&"foreign".into(), &"miss".into())
        );
    }
    setup.redis.set(&key("x1"), b"its own").await;
    let told = check(&setup, X, &[]).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["marks"]["foreign"]),
        (&"foreign".into(), &3.into())
    );
    setup.redis.del(&key("x1")).await;
    let () = setup.redis.run(redis::cmd("LPUSH").arg(key("x1")).arg("a list")).await;
    assert_eq!(check(&setup, X, &[]).await["verdict"]["detail"], "store-error");
}

/// The head names the caller alone, so the variant is assumed.
#[tokio::test]
async fn what_another_caller_was_refused_says_nothing_about_this_one() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let is_refused = headers.get("authorization").is_some_and(|token| token == "Bearer bad");
        json(if is_refused { StatusCode::FORBIDDEN } else { StatusCode::OK }, "{}")
    });
    send(&setup, Method::GET, X, &[("authorization", "Bearer bad")]).await;
    for (token, is_uncacheable) in [("bad", true), ("good", false)] {
        let told = explain(&setup, "x1", format!("Authorization: Bearer {token}")).await;
        assert_eq!(told["marks"]["uncacheable"], is_uncacheable, "{told}");
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_with_the_reason_in_its_past() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[("cache-control", "private")]));
    setup.get(X).await;
    let told = check(&setup, X, &[]).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["marks"]["uncacheable"]),
        (&"uncacheable".into(), &true.into())
    );
    let refused = |event: &Value| event["what"] == "fill-refused" && event["why"] == "private";
    assert!(told["events"].as_array().expect("a list").iter().any(refused), "{told}");
    assert!(why(&told).ends_with("could not be stored (private)"), "{told}");
}

#[tokio::test]
async fn a_client_without_a_head_is_told_what_most_requests_came_to() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let told = explain(&setup, "x1", String::new()).await;
    assert!(why(&told).starts_with("a request without headers would "), "{told}");
    assert!(!why(&told).contains("its last requests"), "{told}");
    for _ in 0..20 {
        setup.get("/jobs/x1?t=1").await;
    }
    let told = explain(&setup, "x1", String::new()).await;
    assert!(
        why(&told).contains("; but its last requests bypassed the cache: query (20 of "),
        "{told}"
    );
    let told = explain(&setup, "x1", head("GET", X, &[])).await;
    assert!(why(&told).starts_with("would ") && !why(&told).contains("but its last"), "{told}");
}

#[tokio::test]
async fn a_job_that_too_many_clients_poll_is_told_apart() {
    let setup = Setup::with(|config| config.cache.credentials.audience = 1).await;
    send(&setup, Method::GET, X, &[("authorization", "Bearer me")]).await;
    let told = check(&setup, X, &[("authorization", "Bearer you")]).await;
    assert_eq!(told["verdict"]["detail"], "audience", "{told}");
    assert!(why(&told).contains("more clients poll this job than"), "{told}");
}

#[track_caller]
fn why(told: &Value) -> &str {
    told["verdict"]["why"].as_str().expect("text")
}

#[tokio::test]
async fn what_the_request_itself_asks_for_is_told() {
    let setup = Setup::new().await;
    check(&setup, X, &[("cache-control", "only-if-cached")]).await;
    check_as(&setup, Method::HEAD, X, &[]).await;
    check(&setup, X, &[("cache-control", "no-store")]).await;
    setup.hit(X).await;
    check(&setup, X, &[("cache-control", "no-cache")]).await;
    check(&setup, X, &[("cache-control", "only-if-cached")]).await;
    check_as(&setup, Method::HEAD, X, &[]).await;
    check(&setup, X, &[("range", "bytes=0-1")]).await;
    check(&setup, X, &[("if-match", "\"a\"")]).await;
    let told = check(&setup, "/jobs/x1?t=1", &[]).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["request"]["path"]),
        (&"query".into(), &X.into())
    );
    assert_eq!(check_as(&setup, Method::PUT, X, &[]).await["verdict"]["outcome"], "write");
    check(&setup, X, &[]).await;
}

#[tokio::test]
async fn clients_that_are_each_answered_differently_are_told() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |headers| {
        let mine = headers.get("authorization").is_some_and(|who| who == "Bearer me");
        with_headers(
            if mine { "mine" } else { "yours" },
            &[("content-length", if mine { "4" } else { "5" })],
        )
    });
    let turns = ["Bearer me", "Bearer you"].into_iter().cycle();
    for who in turns.take(7) {
        assert_eq!(check(&setup, X, &[("authorization", who)]).await["verdict"]["outcome"], "miss");
    }
    let told = check(&setup, X, &[("authorization", "Bearer you")]).await;
    assert_eq!(
        (&told["verdict"]["detail"], &told["marks"]["replaced"]),
        (&"audience".into(), &3.into())
    );
    assert!(why(&told).contains("it answers each client differently"), "{told}");
}

#[tokio::test]
async fn the_embedded_store_is_explained_as_well() {
    let setup = Setup::with(|config| config.store.url = jobcache::config::StoreUrl::Memory).await;
    check(&setup, X, &[]).await;
    assert_eq!(check(&setup, X, &[]).await["verdict"]["outcome"], "hit");
    let gate = setup.upstream.hold(Method::PUT, X);
    let check = async {
        gate.arrived(1).await;
        let told = check(&setup, X, &[]).await;
        assert!(told["fence"]["left_ms"].as_i64().is_some_and(|ms| ms > 0), "{told}");
        assert!(why(&told).contains("a write has been in flight for "), "{told}");
        gate.release();
    };
    tokio::join!(setup.sidecar.put(X), check);
}

#[tokio::test]
async fn what_cannot_be_explained_is_refused_with_the_reason() {
    let setup = Setup::new().await;
    let admin = &setup.sidecar.admin;
    for (path, says) in [
        ("/explain/", "is not a job id"),
        ("/explain/a%20b", "is not a job id"),
        ("/explain/007", "\"7\""),
        ("/explain/..", "is not a job id"),
    ] {
        let reply = admin.get(path).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(reply.reason().contains(says), "{path}: {}", reply.reason());
    }
    for (body, says) in [
        ("GET /jobs/y1 HTTP/1.1".to_owned(), "path of another job"),
        ("Cookie".to_owned(), "line 1"),
        ("Host: a\nCookie".to_owned(), "write one field per line"),
        ("a: b\n".repeat(20_000), "at most"),
    ] {
        let reply = admin.request(Method::POST, "/explain/x1").body(body).send().await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{says}");
        assert!(reply.reason().contains(says), "{says}: {}", reply.reason());
    }
    assert_eq!(admin.put("/explain/x1").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_explanation_needs_the_secret_and_shows_none() {
    let secret = |config: &mut Config| config.webhook.secrets = vec![Secret::new(SECRET)];
    let setup = Setup::with(secret).await;
    let fields = [("authorization", "Bearer the-clients-own"), ("cookie", "sid=crumb")];
    send(&setup, Method::GET, X, &fields).await;
    send(&setup, Method::GET, "/jobs/x1?q=hidden", &fields).await;
    let post = || setup.sidecar.admin.request(Method::POST, "/explain/x1");
    let refused = post().body(head("GET", X, &fields)).send().await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);

    let bearer = format!("Bearer {SECRET}");
    for path in [X, "/jobs/x1?q=hidden"] {
        let reply = post().header("authorization", &bearer).body(head("GET", path, &fields));
        let reply = reply.send().await;
        assert_eq!(reply.status, StatusCode::OK);
        for hidden in ["the-clients-own", "crumb", "hidden", SECRET, "version"] {
            assert!(!reply.text().contains(hidden), "{hidden} in {}", reply.text());
        }
    }
}
