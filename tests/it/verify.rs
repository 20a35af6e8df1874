//! Hits that are compared with the upstream in the background.

use hyper::{Method, StatusCode};
use jobcache::config::{Config, SampleRate};

use crate::support::{
    SOON, Setup, eventually,
    raw::End,
    redis::key,
    two_clients::{ALICE, BOB, get, not_to_bob},
    upstream::{json, version},
};

const X: &str = "/jobs/x1";

/// Limit of simultaneous comparisons.
const TRIALS: u64 = 32;

fn all() -> SampleRate {
    SampleRate::of_millionths(SampleRate::WHOLE)
}

/// Starts a sidecar that verifies every hit, and waits for the comparisons of its start.
async fn verifying() -> Setup {
    verifying_with(|_| {}).await
}

async fn verifying_with(change: impl FnOnce(&mut Config)) -> Setup {
    let setup = Setup::with(|config| {
        config.cache.verify = all();
        change(config);
    })
    .await;
    over(&setup).await;
    setup
}

async fn over(setup: &Setup) {
    eventually(SOON, async || setup.sidecar.admin.metric("jobcache_trials").await == 0).await;
}

async fn count(setup: &Setup, outcome: &str) -> u64 {
    let name = format!("jobcache_verify_total{{outcome=\"{outcome}\"}}");
    setup.sidecar.admin.metric(&name).await
}

async fn counted(setup: &Setup, outcome: &str, want: u64) {
    eventually(SOON, async || {
        let now = count(setup, outcome).await;
        if now == want { Ok(()) } else { Err(now) }
    })
    .await;
}

#[tokio::test]
async fn by_default_no_hit_is_verified() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    setup.hit(X).await;
    setup.exchange().await;
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_silent_change_is_found_and_the_entry_goes_everywhere() {
    let setup = verifying().await;
    let second = setup.second().await;
    setup.hit(X).await;
    eventually(SOON, async || second.get(X).await.is_hit()).await;
    over(&setup).await;
    setup.upstream.commit("x1");
    let reply = setup.get(X).await;
    assert!(reply.is_hit(), "{reply:?}");
    reply.assert(200, &version("x1", 0));
    counted(&setup, "different", 1).await;
    assert!(!setup.redis.holds(&key("x1")).await, "the comparison has filled the entry");
    let reply = second.get(X).await;
    assert!(reply.is_stored(), "{reply:?}");
    reply.assert(200, &version("x1", 1));
    setup.get(X).await.assert(200, &version("x1", 1));
}

/// An entry keeps no cookie, so the stored response does not show the difference.
#[tokio::test]
async fn an_answer_that_has_come_to_set_a_cookie_is_found() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    setup.upstream.respond_to(X, |_| {
        let mut response = json(StatusCode::OK, version("x1", 0));
        response.headers_mut().insert("set-cookie", "sid=alice".parse().unwrap());
        response
    });
    assert!(setup.get(X).await.is_hit());
    counted(&setup, "different", 1).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    assert!(!setup.get(X).await.is_stored());
}

#[tokio::test]
async fn the_hit_waits_for_nothing() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    let before = count(&setup, "same").await;
    let gate = setup.upstream.hold(Method::GET, X);
    assert!(setup.get(X).await.is_hit());
    gate.arrived(1).await;
    assert_eq!(count(&setup, "same").await, before);
    gate.release();
    counted(&setup, "same", before + 1).await;
}

#[tokio::test]
async fn the_upstream_sees_the_request_as_a_fill_would_make_it() {
    let setup = verifying().await;
    let ask = || {
        let request = setup.sidecar.client.request(Method::GET, X);
        let request = request.header("authorization", ALICE).header("cookie", "a=b");
        let request = request.header("x-forwarded-for", "192.0.2.7").header("via", "1.1 cdn");
        request.header("accept-encoding", "gzip").header("traceparent", "00-1-2-01").send()
    };
    eventually(SOON, async || ask().await.is_hit()).await;
    over(&setup).await;
    let seen = setup.upstream.requests();
    let [fill, verified] = &seen[..] else { panic!("{seen:?}") };
    // The comparison is not part of the client's trace, which ended with the answer.
    assert!(!verified.headers.contains_key("traceparent"));
    let mut filled = fill.headers.clone();
    assert_eq!(
        filled.remove("traceparent").as_ref().map(hyper::http::HeaderValue::as_bytes),
        Some(&b"00-1-2-01"[..])
    );
    assert_eq!(filled, verified.headers);
    assert_eq!(verified.headers["authorization"], ALICE);
    assert_eq!(verified.headers["x-forwarded-for"], "192.0.2.7, 127.0.0.1");
    assert_eq!(verified.headers.get_all("via").iter().count(), 2);
    assert!(!verified.headers.contains_key("accept-encoding"));
}

#[tokio::test]
async fn so_many_are_verified_at_a_time_and_no_more() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    let same = count(&setup, "same").await;
    let gate = setup.upstream.hold(Method::GET, X);
    for _ in 0..TRIALS + 5 {
        assert!(setup.get(X).await.is_hit());
    }
    assert_eq!(count(&setup, "skipped").await, 5);
    gate.release();
    counted(&setup, "same", same + TRIALS).await;
    over(&setup).await;
    assert!(setup.get(X).await.is_hit());
    counted(&setup, "same", same + TRIALS + 1).await;
}

#[tokio::test]
async fn a_credential_that_was_revoked_is_found() {
    let setup = verifying().await;
    eventually(SOON, async || get(&setup, BOB).await.is_hit()).await;
    over(&setup).await;
    setup.upstream.respond_to(X, not_to_bob);
    assert_eq!(get(&setup, BOB).await.status, 200, "the difference is already known");
    counted(&setup, "refused", 1).await;
    assert_eq!(get(&setup, BOB).await.status, 403);
    // The lease of a rejected read is released after its answer.
    eventually(SOON, async || {
        let reply = get(&setup, ALICE).await;
        if reply.is_stored() { Ok(()) } else { Err(reply) }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_fails_proves_nothing() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    for status in [500, 503, 429] {
        setup.upstream.set("x1", status, "{}");
        assert!(setup.get(X).await.is_hit(), "{status}");
        over(&setup).await;
    }
    let timed =
        async || setup.sidecar.admin.metric("jobcache_upstream_response_seconds_count").await;
    let before = timed().await;
    setup.upstream.respond(X, |_| None);
    assert!(setup.get(X).await.is_hit());
    over(&setup).await;
    assert_eq!(count(&setup, "failed").await, 4);
    assert_eq!(timed().await, before, "a request without a head was timed");
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn a_change_that_is_told_of_meanwhile_is_none_that_counts() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    let gate = setup.upstream.hold(Method::GET, X);
    assert!(setup.get(X).await.is_hit());
    gate.arrived(1).await;
    setup.sidecar.put(X).await;
    gate.release();
    counted(&setup, "changed", 1).await;
    assert_eq!(count(&setup, "different").await, 0);
}

async fn poll(end: &mut End) {
    end.send(format!("GET {X} HTTP/1.1\r\nHost: jobs.example\r\n\r\n")).await;
    let (head, body) = end.answer().await;
    assert!(head.contains("jobcache; hit") && body == version("x1", 0), "{head}{body}");
}

#[tokio::test]
async fn a_repeated_request_is_verified_like_any_other() {
    let setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    let (same, skipped) = (count(&setup, "same").await, count(&setup, "skipped").await);
    let mut end = End::new(setup.sidecar.client.connect().await);
    for _ in 0..50 {
        poll(&mut end).await;
    }
    over(&setup).await;
    let verified = count(&setup, "same").await - same;
    assert_eq!(verified + count(&setup, "skipped").await - skipped, 50);
    assert_eq!(setup.sidecar.admin.metric("jobcache_repeats_total").await, 0);
}

#[tokio::test]
async fn of_repeated_requests_a_share_is_verified_and_the_others_stay_cheap() {
    let setup =
        verifying_with(|config| config.cache.verify = SampleRate::of_millionths(500_000)).await;
    setup.hit(X).await;
    over(&setup).await;
    let same = count(&setup, "same").await;
    let mut end = End::new(setup.sidecar.client.connect().await);
    for _ in 0..400 {
        poll(&mut end).await;
        // One after the other, so that none is skipped.
        over(&setup).await;
    }
    let verified = count(&setup, "same").await - same;
    let repeats = setup.sidecar.admin.metric("jobcache_repeats_total").await;
    // Ten standard deviations of 10 each.
    assert!((100..=300).contains(&verified), "{verified} of 400");
    assert!(repeats >= 100, "{repeats} of 400");
    assert!(verified + repeats <= 400, "{verified} and {repeats}");
}

/// A request that is not a hit in this process takes another path, and is sampled once as well.
#[tokio::test]
async fn of_repeated_requests_that_redis_answers_no_more_are_verified() {
    let setup =
        verifying_with(|config| config.cache.verify = SampleRate::of_millionths(500_000)).await;
    let second = setup.second().await;
    setup.hit(X).await;
    over(&setup).await;
    let ask = async |end: &mut End, path: &str| {
        end.send(format!("GET {path} HTTP/1.1\r\nHost: jobs.example\r\n\r\n")).await;
        end.answer().await.0
    };
    let mut filling = End::new(second.client.connect().await);
    for job in 0..400 {
        ask(&mut filling, &format!("/jobs/{job}")).await;
    }
    let mut end = End::new(setup.sidecar.client.connect().await);
    // The request that the next ones repeat.
    poll(&mut end).await;
    over(&setup).await;
    let same = count(&setup, "same").await;
    for job in 0..400 {
        let head = ask(&mut end, &format!("/jobs/{job}")).await;
        assert!(head.contains("jobcache; hit"), "{head}");
        over(&setup).await;
    }
    let verified = count(&setup, "same").await - same;
    // Five standard deviations of 10 each. Two samples per request would give 300.
    assert!((150..=250).contains(&verified), "{verified} of 400");
}

#[tokio::test]
async fn a_drain_waits_for_no_comparison() {
    let mut setup = verifying().await;
    setup.hit(X).await;
    over(&setup).await;
    let gate = setup.upstream.hold(Method::GET, X);
    assert!(setup.get(X).await.is_hit());
    gate.arrived(1).await;
    // Far sooner than `drain_timeout`.
    setup.sidecar.shutdown().await.unwrap();
}
