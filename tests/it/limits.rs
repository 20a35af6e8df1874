//! The effects of each limit and its metric: a client that reaches a limit does not affect others,
//! and if the cache lacks room clients still get the upstream's answer.

use std::time::{Duration, UNIX_EPOCH};

use hyper::{Method, StatusCode};
use jobcache::{
    clock,
    config::{Config, InvalidateRule, Secret},
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Reply, SOON, Setup, eventually,
    raw::{Between, LAST_OK, OK, ok, request},
    upstream::with_headers,
};

const X: &str = "/jobs/x1";
const SHORT: Duration = Duration::from_millis(200);

/// Waits until a metric has this value.
async fn metric_is(setup: &Setup, name: &str, want: u64) {
    eventually(SOON, async || {
        let value = setup.sidecar.admin.metric(name).await;
        if value == want { Ok(()) } else { Err((name, value)) }
    })
    .await;
}

async fn hits(setup: &Setup, setting: &str) -> u64 {
    setup.sidecar.admin.limit_hits(setting).await
}

#[tokio::test]
async fn past_so_many_requests_further_ones_are_answered_503_at_once() {
    let setup = Setup::with(|config| config.server.max_requests = 1).await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let first = setup.sidecar.client.start(Method::GET, "/slow", "").await;
    gate.arrived(1).await;
    assert_eq!(setup.sidecar.admin.metric("jobcache_requests_in_flight").await, 1);

    let refused = setup.get(X).await;

    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert_eq!(refused.cache_status(), "jobcache; detail=overloaded");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(hits(&setup, "server.max_requests").await, 1);
    gate.release();
    assert_eq!(first.answer().await.0, 404);
    assert!(setup.get(X).await.is_stored());
    metric_is(&setup, "jobcache_requests_in_flight", 0).await;
}

#[tokio::test]
async fn a_request_that_is_refused_by_its_head_is_not_one_of_so_many() {
    let setup = Setup::with(|config| config.server.max_requests = 1).await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let first = setup.sidecar.client.start(Method::GET, "/slow", "").await;
    gate.arrived(1).await;
    let mut stream = setup.sidecar.client.connect().await;

    stream.write_all(b"GET /no-host HTTP/1.1\r\n\r\n").await.expect("a request sent");

    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(hits(&setup, "server.max_requests").await, 0);
    gate.release();
    assert_eq!(first.answer().await.0, 404);
}

#[tokio::test]
async fn past_so_many_flights_a_reader_reads_for_itself_and_others_still_join() {
    let setup = Setup::with(|config| config.cache.limits.max_flights = 1).await;
    let gate = setup.upstream.hold(Method::GET, "/jobs/a1");
    let leader = setup.sidecar.client.start(Method::GET, "/jobs/a1", "").await;
    gate.arrived(1).await;
    assert_eq!(setup.sidecar.admin.metric("jobcache_flights").await, 1);

    for _ in 0..2 {
        let alone = setup.get(X).await;
        assert_eq!(alone.status, StatusCode::OK, "{alone:?}");
        assert_eq!(alone.cache_status(), "jobcache; fwd=bypass; detail=flights");
    }
    assert_eq!(hits(&setup, "max_flights").await, 2);
    let follower = setup.sidecar.client.start(Method::GET, "/jobs/a1", "").await;
    setup.exchange().await;

    gate.release();
    assert_eq!(leader.answer().await, follower.answer().await);
    assert_eq!(setup.upstream.reads("/jobs/a1"), 1);
    metric_is(&setup, "jobcache_flights", 0).await;
    assert!(setup.get(X).await.is_stored(), "the lease was not released");
}

#[tokio::test]
async fn without_redis_too_a_reader_past_so_many_flights_reads_for_itself() {
    let setup = Setup::with(|config| config.cache.limits.max_flights = 1).await;
    setup.redis.stop();
    let gate = setup.upstream.hold(Method::GET, "/jobs/a1");
    let leader = setup.sidecar.client.start(Method::GET, "/jobs/a1", "").await;
    gate.arrived(1).await;

    let alone = setup.get(X).await;

    assert_eq!(alone.status, StatusCode::OK, "{alone:?}");
    assert_eq!(alone.cache_status(), "jobcache; fwd=bypass; detail=flights");
    gate.release();
    assert_eq!(leader.answer().await.0, 200);
}

/// A body that is small enough to be stored, but larger than the available room.
const LARGE: &str = include_str!("limits.rs");

#[tokio::test]
async fn an_answer_that_there_is_no_room_for_streams_through_and_is_not_stored() {
    let setup = Setup::with(|config| config.cache.limits.max_captured = 2 << 10).await;
    let length = LARGE.len().to_string();
    setup.upstream.respond(X, move |_| Some(with_headers(LARGE, &[("content-length", &length)])));

    for met in 1..=2 {
        // The lease of the previous read may not have been released yet.
        eventually(SOON, async || {
            let reply = setup.get(X).await;
            reply.assert(200, LARGE);
            let says = reply.cache_status();
            if says == "jobcache; fwd=miss; detail=memory" { Ok(()) } else { Err(says.to_owned()) }
        })
        .await;
        assert_eq!(hits(&setup, "max_captured").await, met);
    }
    metric_is(&setup, "jobcache_captured_bytes", 0).await;
    setup.hit("/jobs/small1").await;
}

#[tokio::test]
async fn a_streamed_answer_that_there_is_no_room_for_goes_on_to_its_client_and_is_not_stored() {
    let setup = Setup::with(|config| config.cache.limits.max_captured = 2 << 10).await;
    let feed = setup.upstream.feed(X, &[]);
    feed.data(LARGE).await;
    feed.data("and so on").await;
    feed.end();

    setup.get(X).await.assert(200, &format!("{LARGE}and so on"));

    metric_is(&setup, "jobcache_fills_total{outcome=\"memory\"}", 1).await;
    metric_is(&setup, "jobcache_captured_bytes", 0).await;
    assert_eq!(hits(&setup, "max_captured").await, 1);
    setup.upstream.respond(X, |_| Some(with_headers("{}", &[])));
    setup.hit(X).await;
}

#[tokio::test]
async fn what_is_captured_takes_room_until_it_is_stored_or_breaks_off() {
    let setup = Setup::new().await;
    for headers in [&[][..], &[("content-length", "100")]] {
        let feed = setup.upstream.feed(X, headers);
        feed.data("half").await;
        let started = setup.sidecar.client.start(Method::GET, X, "").await;
        eventually(SOON, async || setup.sidecar.admin.metric("jobcache_captured_bytes").await > 4)
            .await;
        feed.break_off().await;
        started.answer().await;
        metric_is(&setup, "jobcache_captured_bytes", 0).await;
    }
}

fn ruled(config: &mut Config) {
    config.cache.limits.max_inspected = 100;
    config.api.invalidate = vec![InvalidateRule {
        path: "/batch".to_owned(),
        request: vec!["/id".to_owned()],
        ..InvalidateRule::default()
    }];
}

#[tokio::test]
async fn a_write_that_there_is_no_room_to_look_into_is_refused_and_not_forwarded() {
    let setup = Setup::with(ruled).await;

    let write = setup.sidecar.client.request(Method::POST, "/batch").body(r#"{"id":17}"#);
    let write = write.send().await;

    assert_eq!(write.status, StatusCode::SERVICE_UNAVAILABLE, "{write:?}");
    assert_eq!(write.cache_status(), "jobcache; detail=memory");
    assert_eq!(write.header("retry-after"), "1");
    assert_eq!(setup.upstream.count(&Method::POST, "/batch"), 0);
    assert_eq!(hits(&setup, "max_inspected").await, 1);
    metric_is(&setup, "jobcache_inspected_bytes", 0).await;
    // A body that no rule inspects needs no room.
    let other = setup.sidecar.client.request(Method::POST, "/other").body(LARGE).send().await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_purge_that_there_is_no_room_for_says_that_nothing_was_purged_but_the_secret_opens() {
    let secret = "a-secret-of-the-webhook";
    let setup = Setup::with(|config| {
        ruled(config);
        config.webhook.secrets = vec![Secret::new(secret)];
    })
    .await;
    // The first 8 KiB need no room.
    let body = format!(r#"{{"job_id":"x1"}}{}"#, " ".repeat(9000));
    let purge = || setup.sidecar.admin.request(Method::POST, "/purge").body(body.clone());
    let now = clock::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let signature = format!("v1,{}=", "A".repeat(43));
    let unknown = purge().header("webhook-id", "msg_1").header("webhook-signature", &signature);

    let stranger: Reply = unknown.header("webhook-timestamp", &now.to_string()).send().await;
    let known = purge().header("authorization", &format!("Bearer {secret}")).send().await;

    assert_eq!(stranger.status, StatusCode::SERVICE_UNAVAILABLE, "{stranger:?}");
    assert_eq!(stranger.header("retry-after"), "1");
    assert!(stranger.reason().contains("nothing was purged or queued"), "{stranger:?}");
    assert_eq!(known.status, StatusCode::OK, "{known:?}");
    metric_is(&setup, "jobcache_purges_bytes", 0).await;
}

/// Starts with a short response timeout and this minimum upload rate, which a slow drip does not
/// reach.
async fn dripped(rate: usize) -> Between {
    Between::with(|config| {
        config.upstream.response_timeout = SHORT;
        config.server.min_upload_rate = rate;
    })
    .await
}

#[tokio::test]
async fn an_upload_that_drips_is_a_408_and_gives_its_upstream_connection_back() {
    let between = dripped(1 << 20).await;
    let framings = ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"];
    for (met, (path, framing)) in (1..).zip([("/p", framings[0]), (X, framings[1])]) {
        let head = request("POST", path, framing);
        let (mut client, mut upstream, _) = between.pass(head).await;
        let drip = if framing.starts_with('C') { "x" } else { "1\r\nx\r\n" };

        let answer = {
            // Each byte comes long before the timeout for silence.
            let drips = async {
                loop {
                    tokio::time::sleep(SHORT / 10).await;
                    // The sidecar may have stopped reading.
                    client.try_send(drip).await;
                }
            };
            tokio::select! {
                () = drips => unreachable!("the drips never end"),
                seen = upstream.rest() => seen,
            }
        };

        assert!(answer.len() < 500, "cut off early: {}", answer.len());
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\"reason\":\"client-slow\""), "{answer}");
        let admin = &between.sidecar.admin;
        assert_eq!(admin.limit_hits("server.min_upload_rate").await, met);
        eventually(SOON, async || admin.metric("jobcache_upstream_connections_in_use").await == 0)
            .await;
    }
}

#[tokio::test]
async fn an_upload_that_keeps_the_least_rate_may_take_its_time() {
    let between = dripped(10).await;
    let head = request("POST", "/p", "Content-Length: 20\r\n");
    let (mut client, mut upstream, _) = between.pass(head).await;
    for _ in 0..20 {
        // About 25 bytes per second; the whole takes four times as long as an answer may.
        tokio::time::sleep(SHORT / 5).await;
        client.send("x").await;
    }
    assert_eq!(upstream.exactly(20).await, "x".repeat(20));
    upstream.send(OK).await;
    ok(&mut client).await;
}

#[tokio::test]
async fn an_upstream_is_down_after_three_failures_in_a_row_and_up_with_the_next_answer() {
    let between = Between::start().await;
    let admin = &between.sidecar.admin;
    assert_eq!(admin.metric("jobcache_upstream_up").await, 1);
    for up in [1, 1, 0] {
        let (mut client, upstream, _) = between.pass(request("POST", "/p", "")).await;
        drop(upstream);
        assert!(client.head().await.starts_with("HTTP/1.1 502 "));
        assert_eq!(admin.metric("jobcache_upstream_up").await, up);
    }
    let (mut client, mut upstream, _) = between.pass(request("GET", "/p", "")).await;
    upstream.send(OK).await;
    ok(&mut client).await;
    assert_eq!(admin.metric("jobcache_upstream_up").await, 1);
}

#[tokio::test]
async fn a_request_that_is_sent_again_over_a_new_connection_is_counted() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) = between.pass(request("GET", "/p", "")).await;
    upstream.send(OK).await;
    ok(&mut client).await;
    client.send(request("GET", "/p", "")).await;
    upstream.head().await;
    drop(upstream);

    let mut again = between.accept().await;
    again.head().await;
    again.send(OK).await;

    ok(&mut client).await;
    assert_eq!(between.sidecar.admin.metric("jobcache_upstream_retries_total").await, 1);
}

/// With one place upstream and one to wait in, both taken, a request that needed a place for its
/// repeat would get none.
#[tokio::test]
async fn a_request_that_is_sent_again_keeps_its_place_though_others_wait_for_one() {
    let between = Between::with(|config| {
        config.upstream.max_connections = 1;
        config.upstream.max_waiting = 1;
        config.upstream.connect_timeout = SOON;
    })
    .await;
    let waiting = async |want| {
        let waiting = "jobcache_upstream_waiting";
        eventually(SOON, async || between.sidecar.admin.metric(waiting).await == want).await;
    };
    for path in ["/p", "/jobs/x1"] {
        let (mut first, mut upstream, _) = between.pass(request("GET", "/p", "")).await;
        upstream.send(OK).await;
        ok(&mut first).await;
        first.send(request("GET", path, "")).await;
        upstream.head().await;
        let mut second = between.client(request("GET", "/second", "")).await;
        waiting(1).await;
        let mut third = between.client(request("GET", "/third", "")).await;
        let (head, _) = third.answer().await;
        assert!(head.starts_with("HTTP/1.1 503 "), "there is no room to wait: {head}");

        // The upstream closes the connection as if it had been idle for too long.
        drop(upstream);

        let mut again = between.accept().await;
        let head = again.head().await;
        assert!(head.starts_with(&format!("GET {path} ")), "{head}");
        waiting(1).await;
        again.send(OK).await;
        ok(&mut first).await;
        assert!(again.head().await.starts_with("GET /second "));
        again.send(LAST_OK).await;
        ok(&mut second).await;
    }
    assert_eq!(between.sidecar.admin.metric("jobcache_upstream_retries_total").await, 2);
}

#[tokio::test]
async fn the_connections_to_the_upstream_are_counted_as_in_use_waited_for_and_idle() {
    let setup = Setup::with(|config| {
        config.upstream.max_connections = 1;
        config.upstream.connect_timeout = SOON;
    })
    .await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let first = setup.sidecar.client.start(Method::GET, "/slow", "").await;
    gate.arrived(1).await;
    let second = setup.sidecar.client.start(Method::GET, "/other", "").await;

    metric_is(&setup, "jobcache_upstream_connections_in_use", 1).await;
    metric_is(&setup, "jobcache_upstream_waiting", 1).await;
    assert_eq!(hits(&setup, "upstream.max_connections").await, 1);
    gate.release();
    assert_eq!((first.answer().await.0, second.answer().await.0), (404, 404));
    metric_is(&setup, "jobcache_upstream_waiting", 0).await;
    metric_is(&setup, "jobcache_upstream_connections_in_use", 0).await;
    metric_is(&setup, "jobcache_upstream_connections_idle", 1).await;
}
