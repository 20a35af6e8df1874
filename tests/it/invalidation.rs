//! Writes: after an answer no reader sees the earlier state, whatever races there are.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use jobcache::config::Config;

use crate::support::{
    Process, RedisServer, SOON, Setup, Upstream, eventually,
    redis::key,
    upstream::{json, version},
};

const X: &str = "/jobs/x1";

/// Returns a setup with version 0 of `x` in the cache.
async fn filled() -> Setup {
    filled_with(|_| {}).await
}

async fn filled_with(change: impl FnOnce(&mut Config)) -> Setup {
    let setup = Setup::with(change).await;
    setup.get(X).await;
    setup.hit(X).await.assert(200, &version("x1", 0));
    setup
}

#[tokio::test]
async fn every_unsafe_method_drops_the_entry_before_it_is_answered() {
    let setup = Setup::new().await;
    let client = &setup.sidecar.client;
    for (method, path) in [
        ("PUT", X),
        ("POST", X),
        ("PATCH", X),
        ("DELETE", X),
        ("POST", "/jobs/x1/cancel"),
        ("DELETE", "/jobs/x1/logs/7"),
        ("PUT", "/jobs/x1?force=1"),
        ("FROBNICATE", X),
    ] {
        setup.get(X).await;
        let before = setup.hit(X).await;
        let method: Method = method.parse().expect("a method");

        let write = client.request(method.clone(), path).send().await;

        assert_eq!(write.status, StatusCode::OK, "{method} {path}");
        assert!(!setup.redis.holds(&key("x1")).await, "{method} {path}");
        assert_ne!(setup.get(X).await.text(), before.text(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_write_leaves_other_jobs_alone() {
    let setup = filled().await;

    setup.sidecar.put("/jobs/y1").await;
    setup.sidecar.put("/jobs").await;
    setup.sidecar.put("/jobsite/x").await;

    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn a_write_under_one_route_drops_the_entry_of_the_other() {
    let setup = filled().await;

    setup.sidecar.put("/api/v1/jobs/x1").await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_method_override_is_a_write() {
    for (name, query) in
        [("x-http-method-override", ""), ("x-verb", ""), ("accept", "?httpMethod=PUT")]
    {
        let setup = filled().await;
        let request = setup.sidecar.client.request(Method::GET, &format!("{X}{query}"));

        request.header(name, "PUT").send().await;

        assert!(!setup.redis.holds(&key("x1")).await, "{name} {query}");
    }
}

#[tokio::test]
async fn a_write_that_the_upstream_refuses_drops_the_entry_too() {
    let setup = Setup::new().await;
    for status in [400, 404, 409, 500] {
        setup.get(X).await;
        setup.hit(X).await;
        setup.upstream.respond("/jobs/x1/cancel", move |_| {
            Some(json(StatusCode::from_u16(status).expect("a status"), "{}"))
        });

        let write = setup.sidecar.put("/jobs/x1/cancel").await;

        assert_eq!(write.status, status);
        assert!(!setup.redis.holds(&key("x1")).await, "{status}");
    }
}

#[tokio::test]
async fn a_write_that_times_out_drops_the_entry_and_keeps_the_fence() {
    let patience = Duration::from_millis(200);
    let setup = filled_with(|config| config.upstream.response_timeout = patience).await;
    let gate = setup.upstream.hold(Method::PUT, X);

    let write = setup.sidecar.put(X).await;

    assert_eq!(write.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(!setup.redis.holds(&key("x1")).await);
    // The upstream may still commit, and here it does: no earlier state may be stored until then.
    setup.get(X).await.assert(200, &version("x1", 0));
    assert!(!setup.redis.holds(&key("x1")).await);
    gate.release();
    eventually(SOON, async || setup.get(X).await.text() == version("x1", 1)).await;
}

#[tokio::test]
async fn a_write_whose_connection_breaks_drops_the_entry_and_keeps_the_fence() {
    let setup = filled().await;
    setup.upstream.respond("/jobs/x1/cancel", |_| None);

    let write = setup.sidecar.put("/jobs/x1/cancel").await;

    assert_eq!(write.status, StatusCode::BAD_GATEWAY);
    assert!(!setup.redis.holds(&key("x1")).await);
    assert!(setup.get(X).await.is_uncached());
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_write_is_never_sent_twice() {
    let setup = Setup::new().await;
    setup.upstream.respond("/jobs/x1/cancel", |_| None);

    setup.sidecar.put("/jobs/x1/cancel").await;

    assert_eq!(setup.upstream.count(&Method::PUT, "/jobs/x1/cancel"), 1);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_neither_the_write_nor_its_end() {
    let setup = filled().await;
    let gate = setup.upstream.hold_after_read(Method::PUT, X);
    let write = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;

    drop(write);
    gate.release();

    // Only `end` lifts the fence within this time, because the fence lasts as long as the write
    // timeout.
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_client_that_hangs_up_before_the_commit_does_not_leave_the_old_body_behind() {
    let setup = filled().await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let write = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;
    drop(write);
    setup.get(X).await.assert(200, &version("x1", 0));

    gate.release();

    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_read_during_a_write_passes_and_does_not_fill() {
    let setup = filled().await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let write = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;

    for _ in 0..2 {
        let during = setup.get(X).await;
        during.assert(200, &version("x1", 0));
        assert!(during.is_uncached(), "{during:?}");
        assert!(!setup.redis.holds(&key("x1")).await);
    }

    gate.release();
    assert_eq!(write.answer().await, (200, version("x1", 1)));
    setup.get(X).await.assert(200, &version("x1", 1));
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_second_write_keeps_the_fence_of_the_first_standing() {
    let setup = filled().await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let held = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;

    setup.sidecar.client.request(Method::POST, "/jobs/x1/cancel").send().await;

    assert!(setup.get(X).await.is_uncached());
    assert!(!setup.redis.holds(&key("x1")).await);
    gate.release();
    assert_eq!(held.answer().await, (200, version("x1", 2)));
    setup.hit(X).await.assert(200, &version("x1", 2));
}

/// The event that makes a body old during its fill.
#[derive(Clone, Copy, Debug)]
enum Invalidation {
    Write,
    WriteElsewhere,
    Webhook,
    PlainDel,
}

/// Holds a read that has already seen version 0, commits version 1 and invalidates, and then
/// releases the read. Version 0 may reach the reader that waited, and no later one.
async fn check_race(invalidation: Invalidation) {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let reader = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;

    match invalidation {
        Invalidation::Write => assert_eq!(setup.sidecar.put(X).await.status, 200),
        Invalidation::WriteElsewhere => assert_eq!(second.put(X).await.status, 200),
        Invalidation::Webhook => {
            setup.upstream.commit("x1");
            let purge = second.admin.request(Method::POST, "/purge/x1").send().await;
            assert_eq!(purge.status, StatusCode::OK, "{purge:?}");
        }
        Invalidation::PlainDel => {
            setup.upstream.commit("x1");
            setup.redis.del(&key("x1")).await;
        }
    }

    // These start after the invalidation was acknowledged, while the old read is still held.
    let later = setup.sidecar.client.start(Method::GET, X, "").await;
    let elsewhere = second.client.start(Method::GET, X, "").await;
    gate.arrived(3).await;
    gate.release();
    assert_eq!(reader.answer().await, (200, version("x1", 0)), "{invalidation:?}");
    for later in [later, elsewhere] {
        assert_eq!(later.answer().await, (200, version("x1", 1)), "{invalidation:?}");
    }
    for sidecar in [&setup.sidecar, &second] {
        sidecar.get(X).await.assert(200, &version("x1", 1));
    }
    setup.hit(X).await.assert(200, &version("x1", 1));
    second.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_write_during_a_fill_discards_the_fill() {
    check_race(Invalidation::Write).await;
}

#[tokio::test]
async fn a_write_through_another_sidecar_during_a_fill_discards_the_fill() {
    check_race(Invalidation::WriteElsewhere).await;
}

#[tokio::test]
async fn a_purge_during_a_fill_discards_the_fill() {
    check_race(Invalidation::Webhook).await;
}

#[tokio::test]
async fn a_plain_del_during_a_fill_discards_the_fill() {
    check_race(Invalidation::PlainDel).await;
}

#[tokio::test]
async fn a_fill_under_way_holds_an_empty_placeholder_in_the_key() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let reader = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;

    assert_eq!(setup.redis.get(&key("x1")).await, Some(Vec::new()));

    gate.release();
    assert_eq!(reader.answer().await, (200, version("x1", 0)));
}

#[tokio::test]
async fn a_write_through_one_sidecar_drops_the_entry_of_every_other() {
    let setup = filled().await;
    let second = setup.second().await;
    assert!(second.get(X).await.is_hit());

    setup.sidecar.put(X).await;

    second.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_plain_del_drops_the_entry_of_every_sidecar() {
    let setup = filled().await;
    let second = setup.second().await;
    assert!(second.get(X).await.is_hit());
    setup.upstream.commit("x1");

    setup.redis.del(&key("x1")).await;

    setup.get(X).await.assert(200, &version("x1", 1));
    second.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn an_emptied_redis_drops_every_entry() {
    let setup = filled().await;
    setup.upstream.commit("x1");

    let () = setup.redis.run(&redis::cmd("FLUSHALL")).await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_sidecar_killed_in_mid_write_leaves_no_old_body_behind() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let (redis_url, upstream_url) = (redis.url(), upstream.url());
    let args = ["--redis-url", &redis_url, "--upstream", &upstream_url, "--settle", "0s"];
    let mut writer = Process::start(&args, &[]).await;
    let reader = Process::start(&args, &[]).await;
    eventually(SOON, async || reader.client.get(X).await.is_hit()).await;
    let gate = upstream.hold(Method::PUT, X);
    let _write = writer.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;

    writer.kill();

    reader.client.get(X).await.assert(200, &version("x1", 0));
    assert!(!redis.holds(&key("x1")).await, "stored although the outcome is unknown");
    gate.release();
    eventually(SOON, async || reader.client.get(X).await.text() == version("x1", 1)).await;
}

const UUID: &str = "0b54a0de-2b2b-4f86-9d58-3f7c33bf3a2e";

/// Asserts that an odd spelling of a path, which a lenient upstream reads as the canonical one, is
/// not cached and invalidates.
async fn check_spelling(setup: &Setup, id: &str, odd: &str) {
    let path = format!("/jobs/{id}");
    setup.get(&path).await;
    setup.hit(&path).await;
    let arrived = setup.upstream.requests().len();

    for turn in 1..=2 {
        setup.sidecar.client.spelled("GET", odd).await;
        assert_eq!(setup.upstream.requests().len() - arrived, turn, "{odd} must not be cached");
    }
    let (status, body) = setup.sidecar.client.spelled("PUT", odd).await;

    assert_eq!(status, 200, "{odd}: {body}");
    assert!(!setup.redis.holds(&key(id)).await, "{odd} must invalidate {id}");
    setup.get(&path).await.assert(200, &body);
}

#[tokio::test]
async fn an_odd_spelling_is_never_cached_and_invalidates_the_job_it_may_mean() {
    let setup = Setup::new().await;
    for odd in [
        "/jobs/%61bc1",
        "/jobs/ab%631",
        "/%6aobs/abc1",
        "//jobs/abc1",
        "/jobs//abc1",
        "/x/../jobs/abc1",
        "/jobs/./abc1",
        "/jobs/abc1/",
        "/jobs/abc1%2Fcancel",
        "/x/%2e%2e/jobs/abc1",
    ] {
        check_spelling(&setup, "abc1", odd).await;
    }
    check_spelling(&setup, UUID, &format!("/jobs/{}", UUID.to_uppercase())).await;
}

#[tokio::test]
async fn a_path_reaches_the_upstream_as_it_was_spelled() {
    let setup = Setup::new().await;
    for odd in ["/jobs/%61bc1", "//jobs/abc1", "/x/../jobs/abc1", "/jobs/abc%2Fcancel?a=%20&b"] {
        setup.sidecar.client.spelled("PUT", odd).await;
        let seen = setup.upstream.requests();
        assert_eq!(seen.last().expect("a request").target, odd);
    }
}

#[tokio::test]
async fn an_absolute_request_target_invalidates_too() {
    let setup = filled().await;

    setup.sidecar.client.spelled("PUT", "http://backend.example/jobs/x1").await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn nothing_is_stored_while_a_write_settles() {
    let settle = Duration::from_secs(1);
    let setup = filled_with(|config| config.cache.settle = settle).await;

    // Redis uses the machine's clock, so this test does too.
    let asked = Instant::now();
    setup.sidecar.put(X).await;

    // The entry is observed no earlier than it is stored, and the settle time began after the write
    // was sent, so a slow machine can only hide an early fill. Redis counts in whole milliseconds.
    let seen_stored = eventually(SOON, async || {
        setup.get(X).await.assert(200, &version("x1", 1));
        setup.redis.holds(&key("x1")).await.then(|| asked.elapsed())
    })
    .await;
    assert!(seen_stored + Duration::from_millis(2) >= settle, "stored after {seen_stored:?}");
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_write_whose_response_streams_is_ended_again_when_the_body_is() {
    let setup = filled().await;
    let feed = setup.upstream.feed("/jobs/x1/run", &[]);
    feed.data("started\n").await;
    let head = setup.sidecar.client.request(Method::POST, "/jobs/x1/run").open().await;
    setup.get(X).await.assert(200, &version("x1", 0));

    // The upstream commits while it streams, and only then ends its response.
    setup.upstream.commit("x1");
    feed.end();
    let run = crate::support::Reply::read(head).await.expect("a whole body");

    run.assert(200, "started\n");
    eventually(SOON, async || setup.get(X).await.text() == version("x1", 1)).await;
}
