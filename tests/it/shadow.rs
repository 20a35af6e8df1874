//! Shadow mode: nothing is served from the cache, and would-be hits are compared with the
//! upstream's answers. Also the cache switched off.

use std::fs;

use hyper::Method;
use jobcache::config::{CacheMode, Config};

use crate::support::{
    Process, RedisServer, Reply, SOON, Setup, Upstream, eventually,
    raw::End,
    redis::{FRESH_TTL_MS, key},
    two_clients::{ALICE, BOB, get, not_to_bob},
    upstream::{version, with_headers},
};

const X: &str = "/jobs/x1";

/// Starts a sidecar in shadow mode and waits until its cache works.
async fn shadow() -> Setup {
    shadow_with(|_| {}).await
}

async fn shadow_with(change: impl FnOnce(&mut Config)) -> Setup {
    let change = |config: &mut Config| {
        config.cache.mode = CacheMode::Shadow;
        change(config);
    };
    let setup = Setup::cold(RedisServer::start().await, change).await;
    would_hit(&setup, "/jobs/warm-up1").await;
    setup.upstream.forget_requests();
    setup
}

fn is_shadow_hit(reply: &Reply) -> bool {
    reply.cache_status() == "jobcache; fwd=bypass; detail=shadow-hit"
}

/// Polls until the cache would have answered.
async fn would_hit(setup: &Setup, path: &str) -> Reply {
    eventually(SOON, async || {
        let reply = setup.get(path).await;
        assert!(!reply.is_hit(), "{reply:?}");
        if is_shadow_hit(&reply) { Ok(reply) } else { Err(reply) }
    })
    .await
}

async fn count(setup: &Setup, outcome: &str) -> u64 {
    let name = format!("jobcache_shadow_total{{outcome=\"{outcome}\"}}");
    setup.sidecar.admin.metric(&name).await
}

/// Waits until one more than `before` was counted.
async fn counted(setup: &Setup, outcome: &str, before: u64) {
    eventually(SOON, async || {
        let now = count(setup, outcome).await;
        if now == before + 1 { Ok(()) } else { Err(now) }
    })
    .await;
}

async fn purge(setup: &Setup) {
    let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
    assert_eq!(purge.status, 200);
}

#[tokio::test]
async fn every_read_is_the_upstreams_and_what_would_be_a_hit_is_counted() {
    let setup = shadow().await;
    let before = count(&setup, "same").await;
    let first = setup.get(X).await;
    assert!(first.is_stored(), "{first:?}");
    for _ in 0..3 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(is_shadow_hit(&reply), "{reply:?}");
        assert_eq!(reply.header("age"), "");
        assert_eq!(reply.header("content-length"), version("x1", 0).len().to_string());
    }
    assert_eq!(setup.upstream.reads(X), 4);
    assert_eq!(count(&setup, "same").await, before + 3);
}

#[tokio::test]
async fn redis_is_left_as_in_service() {
    let setup = shadow().await;
    setup.get(X).await;
    let stored = setup.redis.get(&key("x1")).await;
    assert_eq!(stored.as_deref(), Some(version("x1", 0).as_bytes()));
    assert!(FRESH_TTL_MS.contains(&setup.redis.ttl_ms(&key("x1")).await));
    assert!(setup.redis.holds("{job_status:x1}:meta").await);

    setup.sidecar.put(X).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    assert!(setup.get(X).await.is_stored());
    let stored = setup.redis.get(&key("x1")).await;
    assert_eq!(stored.as_deref(), Some(version("x1", 1).as_bytes()));

    setup.upstream.set("gone1", 404, "{}");
    assert!(setup.get("/jobs/gone1").await.is_uncached());
    assert!(!setup.redis.holds(&key("gone1")).await);
}

#[tokio::test]
async fn a_silent_change_is_counted_once_for_each_who_would_have_got_it_and_the_entry_goes() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    setup.upstream.commit("x1");
    for _ in 0..3 {
        setup.get(X).await.assert(200, &version("x1", 1));
    }
    eventually(SOON, async || {
        let now = count(&setup, "different").await;
        if now == 3 { Ok(()) } else { Err(now) }
    })
    .await;
    assert_eq!(count(&setup, "changed").await, 0);
    let dropped = r#"jobcache_invalidations_total{source="evidence",outcome="confirmed"}"#;
    assert_eq!(setup.sidecar.admin.metric(dropped).await, 1);
    let reply = setup.get(X).await;
    assert!(reply.is_stored(), "{reply:?}");
    reply.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_change_that_is_told_of_before_the_answer_is_no_difference() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let (reply, ()) = tokio::join!(setup.get(X), async {
        gate.arrived(1).await;
        setup.upstream.commit("x1");
        purge(&setup).await;
        gate.release();
    });
    reply.assert(200, &version("x1", 1));
    assert!(is_shadow_hit(&reply), "{reply:?}");
    counted(&setup, "changed", 0).await;
    assert_eq!(count(&setup, "different").await, 0);
}

#[tokio::test]
async fn a_change_that_is_told_of_soon_after_the_answer_is_no_difference() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    setup.upstream.commit("x1");
    setup.get(X).await.assert(200, &version("x1", 1));
    setup.redis.del(&key("x1")).await;
    counted(&setup, "changed", 0).await;
    assert_eq!(count(&setup, "different").await, 0);
}

#[tokio::test]
async fn headers_are_compared_as_they_are_stored() {
    let setup = shadow().await;
    let answer = |lines: &'static [(&str, &str)]| {
        setup.upstream.respond(X, move |_| Some(with_headers("{}", lines)));
    };
    answer(&[("x-lines", "a"), ("x-lines", "b"), ("x-request-id", "1")]);
    would_hit(&setup, X).await;
    let same = count(&setup, "same").await;
    answer(&[("x-lines", "a"), ("x-lines", "b"), ("x-request-id", "2")]);
    setup.get(X).await;
    assert_eq!(count(&setup, "same").await, same + 1);
    answer(&[("x-lines", "a"), ("x-lines", "c")]);
    setup.get(X).await;
    counted(&setup, "different", 0).await;
}

#[tokio::test]
async fn who_is_turned_away_is_counted_apart() {
    let setup = shadow().await;
    eventually(SOON, async || is_shadow_hit(&get(&setup, BOB).await)).await;
    setup.upstream.respond_to(X, not_to_bob);
    assert_eq!(get(&setup, BOB).await.status, 403);
    counted(&setup, "refused", 0).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    assert_eq!(get(&setup, ALICE).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_fails_proves_nothing() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    setup.upstream.set("x1", 500, "{}");
    assert_eq!(setup.get(X).await.status, 500);
    counted(&setup, "failed", 0).await;
    setup.upstream.respond(X, |_| None);
    assert_eq!(setup.get(X).await.status, 502);
    counted(&setup, "failed", 1).await;
    let feed = setup.upstream.feed(X, &[("content-length", "9")]);
    let request = setup.sidecar.client.request(Method::GET, X).open();
    let (begun, ()) = tokio::join!(request, feed.data("{"));
    feed.break_off().await;
    let broken = Reply::read(begun).await;
    assert!(broken.is_err(), "{broken:?}");
    counted(&setup, "failed", 2).await;
    assert!(setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn what_is_not_heard_out_or_has_no_body_is_unchecked() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    let head = setup.sidecar.client.request(Method::HEAD, X).send().await;
    assert!(is_shadow_hit(&head), "{head:?}");
    assert_eq!(setup.upstream.count(&Method::HEAD, X), 1);
    counted(&setup, "unchecked", 0).await;
    let feed = setup.upstream.feed(X, &[]);
    let open = setup.sidecar.client.request(Method::GET, X).open().await;
    feed.data("{").await;
    drop(open);
    feed.abandoned_under_way().await;
    counted(&setup, "unchecked", 1).await;
}

#[tokio::test]
async fn nobody_waits_for_anothers_read() {
    let setup = shadow().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let release = async {
        gate.arrived(3).await;
        gate.release();
    };
    let (a, b, c, ()) = tokio::join!(setup.get(X), setup.get(X), setup.get(X), release);
    let replies = [a, b, c];
    assert_eq!(replies.iter().filter(|reply| reply.is_stored()).count(), 1, "{replies:?}");
    let alone = |reply: &&Reply| reply.cache_status() == "jobcache; fwd=bypass; detail=shadow";
    assert_eq!(replies.iter().filter(alone).count(), 2, "{replies:?}");
    assert_eq!(setup.upstream.peak_reads(X), 3);
    would_hit(&setup, X).await;
}

#[tokio::test]
async fn nobody_waits_for_a_refresh_either() {
    let setup = shadow().await;
    would_hit(&setup, X).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let fresh = || {
        let request = setup.sidecar.client.request(Method::GET, X);
        request.header("cache-control", "no-cache").send()
    };
    let release = async {
        gate.arrived(3).await;
        gate.release();
    };
    let (a, b, c, ()) = tokio::join!(fresh(), fresh(), fresh(), release);
    for reply in [a, b, c] {
        reply.assert(200, &version("x1", 0));
    }
}

#[tokio::test]
async fn with_redis_down_nobody_waits_either() {
    let mut setup = shadow().await;
    setup.redis.kill();
    eventually(SOON, async || setup.get(X).await.cache_status().ends_with("store-down")).await;
    let gate = setup.upstream.hold(Method::GET, X);
    let release = async {
        gate.arrived(3).await;
        gate.release();
    };
    tokio::join!(setup.get(X), setup.get(X), setup.get(X), release);
}

#[tokio::test]
async fn no_answer_is_made_by_the_cache() {
    let setup = shadow().await;
    let etag = format!("\"{:032x}\"", xxhash_rust::xxh3::xxh3_128(version("x1", 0).as_bytes()));
    for _ in 0..3 {
        let asked = setup.sidecar.client.request(Method::GET, X).header("if-none-match", &etag);
        let reply = asked.send().await;
        reply.assert(200, &version("x1", 0));
        assert_eq!(reply.header("etag"), "");
    }
    for path in [X, "/jobs/y1"] {
        let asked = setup.sidecar.client.request(Method::GET, path);
        let reply = asked.header("cache-control", "only-if-cached").send().await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

#[tokio::test]
async fn repeated_requests_are_the_upstreams_as_well() {
    let setup = shadow().await;
    let mut end = End::new(setup.sidecar.client.connect().await);
    for _ in 0..5 {
        end.send(format!("GET {X} HTTP/1.1\r\nHost: jobs.example\r\n\r\n")).await;
        assert_eq!(end.answer().await.1, version("x1", 0));
    }
    assert_eq!(setup.upstream.reads(X), 5);
    assert_eq!(setup.sidecar.admin.metric("jobcache_repeats_total").await, 0);
}

#[tokio::test]
async fn switched_off_it_passes_reads_and_still_invalidates() {
    let setup = Setup::with(|config| config.cache.mode = CacheMode::On).await;
    setup.get(X).await;
    let mut off = setup.config().clone();
    off.cache.mode = CacheMode::Off;
    let off = crate::support::sidecar::Sidecar::start(off).await;
    eventually(SOON, async || {
        off.admin.get("/readyz").await.text().contains("\"store\":\"up\"").then_some(())
    })
    .await;
    setup.upstream.forget_requests();
    for reads in 1..=3 {
        let reply = off.get(X).await;
        assert_eq!(reply.cache_status(), "jobcache; fwd=bypass; detail=off");
        assert_eq!(setup.upstream.reads(X), reads);
    }
    off.get("/jobs/y1").await;
    assert!(!setup.redis.holds(&key("y1")).await);
    off.put(X).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    setup.get(X).await.assert(200, &version("x1", 1));
}

/// The operator's steps: the binary, a file, SIGHUP.
#[tokio::test]
async fn a_hang_up_turns_shadow_into_service_and_back_and_a_difference_is_warned_of() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jobcache.toml");
    fs::write(&path, "mode = \"shadow\"\n").unwrap();
    let (redis_url, url) = (redis.url(), upstream.url());
    let envs =
        [("REDIS_URL", &*redis_url), ("UPSTREAM_URL", &url), ("JOBCACHE_STORE_BUDGET", "2s")];
    let process = Process::start(&["--config", path.to_str().unwrap()], &envs).await;
    eventually(SOON, async || is_shadow_hit(&process.client.get(X).await)).await;

    upstream.set("x1", 200, "{\"secret\":\"of a customer\"}");
    process.client.get(X).await;
    let warning = eventually(SOON, async || {
        let log = process.stderr();
        log.lines().find(|line| line.contains("differed from the API's answer")).map(str::to_owned)
    })
    .await;
    for part in ["WARN", "job=\"x1\"", "outcome=\"different\"", "status=200", "bytes=26"] {
        assert!(warning.contains(part), "{part} in {warning}");
    }
    assert!(!process.stderr().contains("customer"));

    let mut end = End::new(process.client.connect().await);
    let request = format!("GET {X} HTTP/1.1\r\nHost: jobs.example\r\n\r\n");
    for (mode, hits) in [("on", true), ("shadow", false), ("on", true), ("off", false)] {
        fs::write(&path, format!("mode = \"{mode}\"\n")).unwrap();
        process.hang_up();
        eventually(SOON, async || {
            end.send(&request).await;
            let (head, _) = end.answer().await;
            if head.contains("jobcache; hit") == hits { Ok(()) } else { Err(head) }
        })
        .await;
        upstream.forget_requests();
        for _ in 0..5 {
            end.send(&request).await;
            assert_eq!(end.answer().await.1, "{\"secret\":\"of a customer\"}");
        }
        assert_eq!(upstream.reads(X), if hits { 0 } else { 5 }, "{mode}");
    }
}
