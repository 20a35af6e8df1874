//! Open streams to the upstream (upgrades, event streams, answers that last) are counted apart:
//! however many there are, reads and writes still get a connection.

use hyper::{Method, StatusCode, body::Incoming};
use jobcache::config::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Reply, SOON, Setup, eventually, soon, upstream::Feed};

const X: &str = "/jobs/x1";
const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

fn one_connection(config: &mut Config) {
    config.upstream.max_connections = 1;
    config.upstream.connect_timeout = SOON;
}

async fn streams_are(setup: &Setup, want: u64) {
    eventually(SOON, async || {
        let admin = &setup.sidecar.admin;
        let streams = admin.metric("jobcache_upstream_streams").await;
        let in_use = admin.metric("jobcache_upstream_connections_in_use").await;
        if (streams, in_use) == (want, 0) { Ok(()) } else { Err((streams, in_use)) }
    })
    .await;
}

/// Begins a response and leaves it open.
async fn open(
    setup: &Setup,
    path: &str,
    headers: &[(&str, &str)],
) -> (Feed, hyper::Response<Incoming>) {
    let feed = setup.upstream.feed(path, headers);
    feed.data("data: 1\n\n").await;
    let response = setup.sidecar.client.request(Method::GET, path).open().await;
    assert_eq!(response.status(), StatusCode::OK, "{path}");
    (feed, response)
}

/// Asks to switch protocols, and returns the status.
async fn switch(setup: &Setup) -> (TcpStream, String) {
    let mut socket = setup.sidecar.client.connect().await;
    let head = b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    socket.write_all(head).await.expect("a head written");
    let mut status = [0; 12];
    soon(socket.read_exact(&mut status)).await.expect("an answer");
    (socket, String::from_utf8_lossy(&status[9..]).into_owned())
}

fn is_refused(reply: &Reply) {
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    assert_eq!(reply.header("retry-after"), "1");
    assert!(reply.text().contains("upstream-streams"), "{reply:?}");
}

#[tokio::test]
async fn streams_of_every_kind_leave_reads_and_writes_their_connections() {
    let setup = Setup::with(one_connection).await;
    let events = open(&setup, "/events", EVENTS).await;
    let (socket, status) = switch(&setup).await;
    assert_eq!(status, "101");
    streams_are(&setup, 2).await;
    // Nothing in the head of this answer says that it is a stream.
    let lines = open(&setup, "/lines", &[("content-type", "application/x-ndjson")]).await;
    streams_are(&setup, 3).await;

    assert_eq!(setup.get(X).await.status, StatusCode::OK);
    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);
    assert_eq!(setup.get("/other").await.status, StatusCode::NOT_FOUND);

    let status = setup.sidecar.admin.get("/status").await.json();
    assert_eq!(status["upstream"]["streams"], 3, "{status}");
    assert_eq!(setup.sidecar.admin.limit_hits("upstream.max_connections").await, 0);
    drop((socket, events, lines));
    streams_are(&setup, 0).await;
}

#[tokio::test]
async fn past_so_many_streams_a_new_one_is_refused_and_everything_else_is_not() {
    let setup = Setup::with(|config| config.upstream.max_streams = 1).await;
    let first = open(&setup, "/events", EVENTS).await;

    let before = setup.upstream.requests().len();
    assert_eq!(switch(&setup).await.1, "503");
    assert_eq!(setup.upstream.requests().len(), before, "refused before the API sees it");
    let _feed = setup.upstream.feed("/more", EVENTS);
    is_refused(&setup.get("/more").await);
    assert_eq!(setup.sidecar.admin.limit_hits("upstream.max_streams").await, 2);

    // A write has been done, so its answer is not refused.
    let feed = setup.upstream.feed("/tasks", EVENTS);
    feed.data("data: 1\n\n").await;
    let written = setup.sidecar.client.request(Method::POST, "/tasks").open().await;
    assert_eq!(written.status(), StatusCode::OK);
    // An answer that only lasts long is not broken off.
    let (lines, response) = open(&setup, "/lines", &[]).await;
    eventually(SOON, async || setup.sidecar.admin.limit_hits("upstream.max_streams").await == 4)
        .await;
    lines.end();
    let reply = Reply::read(response).await.expect("a complete body");
    assert_eq!(reply.text(), "data: 1\n\n");

    drop((first, written, feed));
    eventually(SOON, async || switch(&setup).await.1 == "101").await;
}

/// More answers last long than there are streams and connections.
#[tokio::test]
async fn past_so_many_streams_long_answers_leave_misses_and_writes_their_connections() {
    const LINES: &[(&str, &str)] = &[("content-type", "application/x-ndjson")];
    let setup = Setup::with(|config| {
        config.upstream.max_streams = 1;
        config.upstream.max_connections = 4;
        config.upstream.connect_timeout = SOON;
    })
    .await;
    let mut open_ones = Vec::new();
    // One after the other, so that each counts as a stream before the next one starts.
    for streams in 1..=3 {
        open_ones.push(open(&setup, "/lines", LINES).await);
        streams_are(&setup, streams).await;
    }
    let before = setup.upstream.requests().len();
    is_refused(&setup.get("/lines").await);
    assert_eq!(setup.upstream.requests().len(), before, "refused before the API sees it");

    assert_eq!(setup.get(X).await.status, StatusCode::OK);
    assert_eq!(setup.sidecar.put(X).await.status, StatusCode::OK);
    assert_eq!(setup.get(X).await.status, StatusCode::OK);
    assert_eq!(setup.sidecar.admin.limit_hits("upstream.max_connections").await, 0);

    open_ones.pop();
    streams_are(&setup, 2).await;
    open_ones.push(open(&setup, "/lines", LINES).await);
}
