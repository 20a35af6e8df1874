//! The fence of a write stands until the bodies of request and response have ended.

use std::time::Duration;

use hyper::{Method, StatusCode};
use jobcache::config::Config;

use crate::support::{
    Reply, SOON, Setup, eventually,
    raw::{Between, End, request},
    redis::key,
    upstream::{json, version},
};

const X: &str = "/jobs/x1";
const RUN: &str = "/jobs/x1/run";

/// Returns a setup with version 0 of `x` in the cache.
async fn filled_with(change: impl FnOnce(&mut Config)) -> Setup {
    let setup = Setup::with(change).await;
    setup.get(X).await;
    setup.hit(X).await.assert(200, &version("x1", 0));
    setup
}

/// Reads the job as the API still shows it. Nothing of it may be stored.
async fn pass(setup: &Setup, want: u64) {
    for _ in 0..2 {
        let read = setup.get(X).await;
        read.assert(200, &version("x1", want));
        assert!(read.cache_status().contains("detail=fenced"), "{read:?}");
    }
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_job_stays_fenced_until_the_response_of_its_write_has_ended() {
    let setup = filled_with(|_| {}).await;
    let feed = setup.upstream.feed(RUN, &[]);
    feed.data("started\n").await;
    let head = setup.sidecar.client.request(Method::POST, RUN).open().await;
    pass(&setup, 0).await;

    setup.upstream.commit("x1");

    // Committed, and the client has only seen the head: no older body is there to be served.
    pass(&setup, 1).await;
    feed.end();
    Reply::read(head).await.expect("a whole body").assert(200, "started\n");
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_job_that_location_names_is_fenced_until_the_response_has_ended() {
    let setup = filled_with(|_| {}).await;
    let feed = setup.upstream.feed("/uploads", &[("location", X)]);
    feed.data("started\n").await;
    let head = setup.sidecar.client.request(Method::POST, "/uploads").open().await;

    pass(&setup, 0).await;

    setup.upstream.commit("x1");
    feed.end();
    Reply::read(head).await.expect("a whole body").assert(200, "started\n");
    setup.hit(X).await.assert(200, &version("x1", 1));
}

/// An upload in two parts that is answered after the first one. `framing` is a field of its head.
async fn check_upload(framing: &str, parts: [&str; 2], answer: &str) {
    let between = Between::start().await;
    let (mut reader, mut upstream, _) = between.pass(request("GET", X, "")).await;
    job(&mut upstream, "old").await;
    assert_eq!(reader.answer().await.1, "old");
    let head = request("PUT", X, &format!("{framing}\r\n"));
    let (mut writer, mut upload, _) = between.pass(head).await;
    writer.send(parts[0]).await;
    upload.exactly(parts[0].len()).await;

    upload.send(answer).await;

    // The client has the whole response before it has sent the upload.
    writer.answer().await;
    read_past(&between, &mut reader, "old").await;
    // The API commits on the last byte.
    writer.send(parts[1]).await;
    upload.exactly(parts[1].len()).await;
    // Nobody answers a read over this connection, which is idle now.
    drop(upload);
    eventually(SOON, async || {
        reader.send(request("GET", X, "")).await;
        let api = async {
            let mut upstream = between.accept().await;
            upstream.head().await;
            job(&mut upstream, "new").await;
            std::future::pending().await
        };
        let (head, body) = tokio::select! {
            answer = reader.answer() => answer,
            answer = api => answer,
        };
        assert_eq!(body, "new");
        head.contains("jobcache; hit")
    })
    .await;
}

/// Answers a read over a connection that is not used again.
async fn job(upstream: &mut End, body: &str) {
    let length = body.len();
    upstream
        .send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n{body}"
        ))
        .await;
}

/// Reads the job from the API twice: nothing is stored.
async fn read_past(between: &Between, reader: &mut End, body: &str) {
    for _ in 0..2 {
        reader.send(request("GET", X, "")).await;
        let mut upstream = between.accept().await;
        upstream.head().await;
        job(&mut upstream, body).await;
        let (head, read) = reader.answer().await;
        assert_eq!(read, body);
        assert!(head.contains("detail=fenced"), "{head}");
    }
}

#[tokio::test]
async fn a_job_stays_fenced_until_its_upload_has_ended() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let empty = "HTTP/1.1 204 No Content\r\n\r\n";
    for answer in [answer, empty] {
        check_upload("Content-Length: 6", ["abc", "def"], answer).await;
        let chunks = ["3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n"];
        check_upload("Transfer-Encoding: chunked", chunks, answer).await;
    }
}

#[tokio::test]
async fn the_fence_falls_some_time_after_the_head_and_the_end_of_the_body_forgets_the_job() {
    let limit = Duration::from_millis(300);
    let setup = filled_with(|config| config.upstream.response_timeout = limit).await;
    let feed = setup.upstream.feed(RUN, &[]);
    feed.data("started\n").await;
    let head = setup.sidecar.client.request(Method::POST, RUN).open().await;

    setup.hit(X).await.assert(200, &version("x1", 0));
    setup.upstream.commit("x1");
    feed.end();
    Reply::read(head).await.expect("a whole body").assert(200, "started\n");

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn an_event_stream_ends_the_fence_with_its_head_and_forgets_the_job_at_its_end() {
    let setup = filled_with(|_| {}).await;
    let feed = setup.upstream.feed(RUN, &[("content-type", "text/event-stream")]);
    feed.data("data: 1\n\n").await;
    let head = setup.sidecar.client.request(Method::POST, RUN).open().await;

    setup.hit(X).await.assert(200, &version("x1", 0));
    setup.upstream.commit("x1");
    feed.end();
    Reply::read(head).await.expect("a whole body").assert(200, "data: 1\n\n");

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_write_that_is_turned_away_does_not_keep_its_job_uncached() {
    // Longer than the test: with `settle` no read would be stored.
    let setup = filled_with(|config| config.cache.settle = Duration::from_mins(1)).await;
    for status in [401, 403, 405, 413, 415, 429] {
        let status = StatusCode::from_u16(status).expect("a status");
        setup.upstream.respond(RUN, move |_| Some(json(status, "{}")));

        let write = setup.sidecar.client.request(Method::POST, RUN).body("{}").send().await;

        assert_eq!(write.status, status);
        assert!(setup.get(X).await.is_stored(), "{status}");
        assert!(setup.get(X).await.is_hit(), "{status}");
    }
}

#[tokio::test]
async fn a_write_that_is_turned_away_during_its_upload_does_not_keep_its_job_uncached() {
    let between = Between::with(|config| config.cache.settle = Duration::from_mins(1)).await;
    let head = request("PUT", X, "Content-Length: 6\r\n");
    let (mut writer, mut upload, _) = between.pass(head).await;
    upload.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
    writer.answer().await;

    let (mut reader, mut upstream, _) = between.pass(request("GET", X, "")).await;
    job(&mut upstream, "old").await;
    assert_eq!(reader.answer().await.1, "old");
    reader.send(request("GET", X, "")).await;

    let (head, _) = reader.answer().await;
    assert!(head.contains("jobcache; hit"), "{head}");
}

/// Breaks off the upload of a write that the API turns away a moment later. Returns whether the job
/// can be stored after that.
async fn is_stored_after_a_broken_off_write(between: &Between) -> bool {
    let head = request("PUT", X, "Content-Length: 6\r\n");
    let (mut writer, mut upload, _) = between.pass(head).await;
    writer.send("abc").await;
    upload.exactly(3).await;
    drop(writer);
    // Nothing shows when jobcache has noticed that. On a busy machine this may come too late.
    tokio::time::sleep(Duration::from_millis(20)).await;
    upload.try_send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno").await;
    upload.rest().await;

    let (mut reader, mut upstream, _) = between.pass(request("GET", X, "")).await;
    job(&mut upstream, "old").await;
    let (head, body) = reader.answer().await;
    assert_eq!(body, "old");
    head.contains("stored")
}

#[tokio::test]
async fn a_write_that_is_broken_off_and_turned_away_does_not_keep_its_job_uncached() {
    let change = |config: &mut Config| {
        (config.cache.settle, config.store.linger) =
            (Duration::from_mins(1), Duration::from_secs(2));
    };
    let between = Between::with(change).await;
    eventually(SOON, async || is_stored_after_a_broken_off_write(&between).await).await;
}

#[tokio::test]
async fn a_response_that_is_broken_off_leaves_the_outcome_unknown() {
    let setup = filled_with(|_| {}).await;
    let feed = setup.upstream.feed(RUN, &[]);
    feed.data("started\n").await;
    let head = setup.sidecar.client.request(Method::POST, RUN).open().await;

    feed.break_off().await;

    assert!(Reply::read(head).await.is_err());
    pass(&setup, 0).await;
}
