//! Clients and upstreams that misbehave: silent, stalled, cut off, or violating the protocol.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::support::{
    Process, RedisServer, SOON, Setup, client::split, eventually, free_port, soon,
    upstream::with_headers,
};

const X: &str = "/jobs/x1";

/// A limit that a test waits out.
const SHORT: Duration = Duration::from_millis(200);

/// Reads until the other side ends the connection; fails if it does not.
async fn ended(mut stream: TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    rest
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_cut_off() {
    let setup = Setup::with(|config| config.server.header_timeout = SHORT).await;
    for said in [&b""[..], b"P", b"PRI * ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut stream = setup.sidecar.client.connect().await;
        stream.write_all(said).await.expect("half a preface written");
        ended(stream).await;
    }
}

#[tokio::test]
async fn silent_peers_do_not_keep_others_out() {
    let setup = Setup::with(|config| {
        config.server.header_timeout = SHORT;
        config.server.max_connections = 3;
    })
    .await;
    let mut silent = Vec::new();
    for said in [&b""[..], b"", b"PRI * ", b"P", b""] {
        let mut stream = setup.sidecar.client.connect().await;
        stream.write_all(said).await.expect("half a preface written");
        silent.push(stream);
    }

    let answer = setup.sidecar.client.start(Method::GET, "/other", "").await;

    assert_eq!(answer.answer().await.0, 404, "answered by the upstream");
}

#[tokio::test]
async fn a_dead_http2_peer_is_cut_off() {
    let setup = Setup::with(|config| config.server.header_timeout = SHORT).await;
    let mut stream = setup.sidecar.client.connect().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("a preface written");
    // An empty SETTINGS frame; the pings are never answered.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("a frame written");

    ended(stream).await;
}

#[tokio::test]
async fn a_preface_may_come_byte_by_byte() {
    let setup = Setup::new().await;
    let mut stream = setup.sidecar.client.connect().await;
    for byte in b"PUT /other HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.expect("a byte written");
        stream.flush().await.expect("a byte sent");
    }
    assert_eq!(split(&ended(stream).await).0, 404);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_a_silent_peer() {
    let mut setup = Setup::new().await;
    let stream = setup.sidecar.client.connect().await;
    setup.exchange().await;

    let started = Instant::now();
    setup.sidecar.shutdown().await.expect("a clean end");

    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    ended(stream).await;
}

#[tokio::test]
async fn a_write_behind_a_safe_method_is_never_sent_twice() {
    let setup = Setup::new().await;
    for path in [X, "/other"] {
        setup.upstream.respond(path, |_| None);
        setup.exchange().await;
        let connections = setup.upstream.connections();

        let request = setup.sidecar.client.request(Method::GET, path);
        let reply = request.header("x-http-method-override", "DELETE").send().await;

        assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{path}");
        assert_eq!(setup.upstream.connections(), connections, "{path}: not over a kept connection");
        assert_eq!(setup.upstream.reads(path), 1, "{path}");
    }
}

#[tokio::test]
async fn a_miss_has_every_header_of_the_upstream() {
    let setup = Setup::new().await;
    let sent = [
        ("x-request-id", "r1"),
        ("server-timing", "db;dur=1"),
        ("x-ratelimit-remaining", "9"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("cache-status", "inner; hit"),
        ("via", "1.1 inner"),
        ("content-length", "2"),
    ];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &sent)));

    let reply = setup.get(X).await;

    reply.assert(200, "{}");
    for (name, value) in sent {
        assert_eq!(reply.header(name), value, "{name}: {reply:?}");
    }
    assert!(!reply.headers.contains_key("age"), "{reply:?}");
    let via: Vec<_> = reply.headers.get_all("via").iter().collect();
    assert_eq!(via, ["1.1 inner", "1.1 jobcache"], "{reply:?}");
    let hit = setup.hit(X).await;
    assert!(
        !hit.headers.contains_key("x-request-id"),
        "the request id of another request: {hit:?}"
    );
    assert_eq!(hit.header("etag"), reply.header("etag"), "the miss had another ETag");

    setup.redis.del("job_status:x1").await;
    let request = setup.sidecar.client.request(Method::GET, X);
    let reply = request.header("if-none-match", hit.header("etag")).send().await;
    assert_eq!(reply.status, StatusCode::NOT_MODIFIED, "{reply:?}");
}

/// An upstream that handles every connection in the given way, and counts them.
struct Raw {
    url: String,
    accepted: Arc<AtomicUsize>,
}

impl Raw {
    /// Answers each connection's first request with these bytes, and closes it.
    async fn answering(answer: &'static str) -> Self {
        Self::start(move |mut stream| async move {
            let mut bytes = [0; 4096];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await
    }

    /// Closes each connection at once.
    async fn closing() -> Self {
        Self::start(|stream| async move { drop(stream) }).await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("a bound listener"));
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream));
            }
        });
        Self { url, accepted }
    }

    /// Starts a sidecar in front of this upstream.
    async fn setup(&self) -> Setup {
        let redis = RedisServer::start().await;
        Setup::cold(redis, |config| config.upstream.url.clone_from(&self.url)).await
    }
}

#[tokio::test]
async fn an_upstream_that_closes_every_connection_is_a_502_at_once() {
    let raw = Raw::closing().await;
    let setup = raw.setup().await;
    for asked in 1..=200 {
        let reply = setup.sidecar.put("/other").await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY);
        let accepted = raw.accepted.load(Ordering::SeqCst);
        assert!(accepted <= asked, "{accepted} connections for {asked} requests");
    }
}

#[tokio::test]
async fn a_content_length_beside_chunks_does_not_count() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
                  a\r\n0123456789\r\n0\r\n\r\n";
    let raw = Raw::answering(answer).await;
    let setup = raw.setup().await;
    for path in ["/other", X, X] {
        setup.get(path).await.assert(200, "0123456789");
    }
    setup.sidecar.put(X).await.assert(200, "0123456789");
    let head = setup.sidecar.client.request(Method::HEAD, "/other").send().await;
    assert!(!head.headers.contains_key("content-length"), "{head:?}");
}

#[tokio::test]
async fn a_date_alone_does_not_tell_that_a_client_has_an_entry() {
    let setup = Setup::new().await;
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &[("last-modified", date)])));
    setup.get(X).await;
    setup.hit(X).await;

    let request = setup.sidecar.client.request(Method::GET, X);
    let reply = request.header("if-modified-since", date).send().await;

    assert!(reply.is_hit(), "{reply:?}");
    reply.assert(200, "{}");
}

/// Writes the head and half of the body of a request.
async fn half_an_upload(setup: &Setup, method: &str, path: &str) -> TcpStream {
    let mut stream = setup.sidecar.client.connect().await;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf.");
    stream.write_all(head.as_bytes()).await.expect("half an upload written");
    stream
}

#[tokio::test]
async fn an_upload_that_stalls_is_a_408() {
    let setup = Setup::with(|config| config.upstream.response_timeout = SHORT).await;
    for (method, path) in [("POST", "/other"), ("PUT", X)] {
        let mut stream = half_an_upload(&setup, method, path).await;
        let mut status = [0; 12];
        soon(stream.read_exact(&mut status)).await.expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 408", "{method} {path}");
    }
}

async fn metrics(setup: &Setup) -> String {
    setup.sidecar.admin.get("/metrics").await.text().to_owned()
}

#[tokio::test]
async fn an_upload_that_its_client_breaks_off_is_not_the_upstreams_fault() {
    let setup = Setup::new().await;
    for (method, path) in [("POST", "/other"), ("PUT", X)] {
        let stream = half_an_upload(&setup, method, path).await;
        let seen = async || setup.upstream.requests().iter().any(|seen| seen.target == path);
        eventually(SOON, seen).await;
        drop(stream);
    }
    let is = |metrics: &str, outcome: &str, count: u32| {
        let line = format!("jobcache_upstream_requests_total{{outcome=\"{outcome}\"}} {count}");
        metrics.lines().any(|known| known == line)
    };
    eventually(SOON, async || {
        let metrics = metrics(&setup).await;
        if is(&metrics, "client-gone", 2) { Ok(()) } else { Err(metrics) }
    })
    .await;
    assert!(is(&metrics(&setup).await, "upstream-broken", 0));
}

#[tokio::test]
async fn a_read_whose_body_stalls_is_a_504() {
    let setup = Setup::with(|config| config.upstream.body_timeout = SHORT).await;
    let feed = setup.upstream.feed(X, &[("content-length", "100")]);
    feed.data("half").await;

    let reply = setup.get(X).await;

    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT, "{reply:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_does_not_make_its_job_uncacheable() {
    let setup = Setup::new().await;
    for headers in [&[][..], &[("content-length", "100")]] {
        setup.redis.del("job_status:x1").await;
        let feed = setup.upstream.feed(X, headers);
        feed.data("half").await;
        let started = setup.sidecar.client.start(Method::GET, X, "").await;
        eventually(SOON, async || setup.upstream.reads(X) > 0).await;
        feed.break_off().await;
        started.answer().await;

        setup.upstream.respond(X, |_| Some(with_headers("{}", &[("content-length", "2")])));
        setup.upstream.forget_requests();
        // Before the hit-for-miss mark of a job expires; the lease may not have been released yet.
        eventually(SOON / 2, async || {
            let reply = setup.get(X).await;
            if reply.is_hit() { Ok(()) } else { Err((headers, reply)) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_streamed_body_that_is_too_large_is_counted_as_such() {
    let setup = Setup::with(|config| config.cache.limits.max_body = 100).await;
    let feed = setup.upstream.feed(X, &[]);
    let large = "0123456789".repeat(11);
    feed.data(large.clone().leak()).await;
    feed.end();

    setup.get(X).await.assert(200, &large);

    eventually(SOON, async || {
        let metrics = metrics(&setup).await;
        if metrics.contains("{outcome=\"too-large\"} 1") { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_that_nobody_asked_for_is_a_502() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    let raw = Raw::answering(answer).await;
    let setup = raw.setup().await;
    for (method, path) in [(Method::GET, "/other"), (Method::GET, X), (Method::PUT, X)] {
        let reply = setup.sidecar.client.request(method.clone(), path).send().await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{method} {path}: {reply:?}");
    }
}

#[tokio::test]
async fn a_shutdown_closes_what_its_deadline_finds_open() {
    let mut setup = Setup::with(|config| config.drain.timeout = SHORT).await;
    let gate = setup.upstream.hold(Method::GET, "/other");
    let in_flight = setup.sidecar.client.start(Method::GET, "/other", "").await;
    gate.arrived(1).await;

    setup.sidecar.shutdown().await.expect("a clean end");

    assert_eq!(in_flight.answer().await.0, 0, "cut off");
}

#[tokio::test]
async fn a_shutdown_gives_operators_no_second_deadline() {
    let drain = Duration::from_secs(6);
    let mut setup = Setup::with(|config| config.drain.timeout = drain).await;
    let mut operator = setup.sidecar.admin.connect().await;
    operator.write_all(b"GET /livez HTTP/1.1\r\nhost: ").await.expect("half a head written");
    setup.sidecar.admin.get("/livez").await;

    let started = Instant::now();
    setup.sidecar.shutdown().await.expect("a clean end");

    assert!(started.elapsed() < drain / 2, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_route_that_cannot_be_served_is_a_bad_configuration() {
    for route in ["/jobs/{job_id}", "//jobs/{id}", "/j%6Fbs/{id}", "/../{id}"] {
        let (code, stdout, stderr) = Process::output(&["check", "--route", route], &[]);
        assert_eq!(code, 78, "{route}: {stdout}{stderr}");
    }
}

#[tokio::test]
async fn what_was_never_forwarded_does_not_say_that_it_was() {
    let setup = Setup::new().await;
    let request = setup.sidecar.client.request(Method::GET, X);
    let reply = request.header("cache-control", "only-if-cached").send().await;
    assert_eq!(reply.cache_status(), "jobcache; detail=only-if-cached", "{reply:?}");
}

#[tokio::test]
async fn no_more_than_so_many_upstream_connections_are_in_use() {
    let setup = Setup::with(|config| {
        config.upstream.max_connections = 2;
        config.upstream.connect_timeout = SHORT;
    })
    .await;
    let gates =
        [setup.upstream.hold(Method::GET, "/a"), setup.upstream.hold(Method::PUT, "/jobs/b1")];
    let first = setup.sidecar.client.start(Method::GET, "/a", "").await;
    let second = setup.sidecar.client.start(Method::PUT, "/jobs/b1", "{}").await;
    for gate in &gates {
        gate.arrived(1).await;
    }
    // The write continues without its client.
    drop(second);

    for path in ["/other", X] {
        let reply = setup.get(path).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(reply.header("retry-after"), "1", "{path}");
    }

    drop(gates);
    assert_eq!(first.answer().await.0, 404);
    for path in ["/other", X, "/other", X, "/jobs/y1", "/jobs/z1"] {
        let free = async || setup.get(path).await.status != StatusCode::SERVICE_UNAVAILABLE;
        eventually(SOON, free).await;
    }
}

#[tokio::test]
async fn an_upstream_that_is_down_is_one_warning_not_one_a_request() {
    let down = format!("http://127.0.0.1:{}", free_port());
    let args = ["--upstream", &down, "--redis-url", "memory://", "--access-log"];
    let process = Process::start(&args, &[]).await;

    for _ in 0..10 {
        assert_eq!(process.client.get("/other").await.status, StatusCode::BAD_GATEWAY);
    }

    // Each request has a line with its duration as a number.
    let time = |line: &str| line.split("took_ms=").nth(1)?.split(' ').next()?.parse::<f64>().ok();
    eventually(SOON, async || {
        let log = process.stderr();
        if log.lines().filter_map(time).count() == 10 { Ok(()) } else { Err(log) }
    })
    .await;
    let log = process.stderr();
    assert_eq!(log.lines().filter(|line| line.contains(" WARN ")).count(), 1, "{log}");
}
