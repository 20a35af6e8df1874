//! Requests that are not cached reads pass through unchanged and streaming, in both directions.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http2::SendRequest,
    header::{HeaderName, HeaderValue},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{
    Body, Process, RedisServer, Reply, SOON, Setup, Upstream,
    client::HOST,
    eventually, full, soon,
    upstream::{version, with_headers},
    zeros,
};

const X: &str = "/jobs/x1";

const MIB: u64 = 1 << 20;

/// Size of a download and an upload that would be visible in the memory of a buffering process.
const HUGE: u64 = 50 * MIB;

/// Largest growth of the process while it streams [`HUGE`] bytes each way.
const GROWTH_KIB: u64 = 40 * 1024;

/// Most bytes that sockets and buffers between a client and a stalled upstream hold on Linux.
const SWALLOWED: u64 = 32 * MIB;

async fn process(upstream: &Upstream, redis: &RedisServer) -> Process {
    Process::start(&["--upstream", &upstream.url(), "--redis-url", &redis.url()], &[]).await
}

#[tokio::test]
async fn huge_bodies_stream_both_ways_in_little_memory() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    upstream.respond("/huge", |_| Some(Response::new(zeros(HUGE))));
    upstream.respond(X, |_| Some(Response::new(zeros(HUGE))));
    let process = process(&upstream, &redis).await;
    process.client.get("/jobs/warm-up1").await;
    let before = process.peak_memory_kib();

    for path in ["/huge", X] {
        let response = process.client.request(Method::GET, path).open().await;
        assert_eq!(drain(response).await, HUGE, "{path}");
    }
    for path in ["/upload", "/jobs/y1/input"] {
        process.client.request(Method::POST, path).stream(zeros(HUGE)).send().await;
        let seen = upstream.requests();
        assert_eq!(seen.last().expect("an upload").body_len, HUGE, "{path}");
    }

    let grown = process.peak_memory_kib() - before;
    assert!(grown < GROWTH_KIB, "memory grew by {grown} KiB");
}

/// Reads a body without keeping it; returns its length.
async fn drain(response: Response<Incoming>) -> u64 {
    let (mut body, mut len) = (response.into_body(), 0);
    while let Some(frame) = soon(body.frame()).await {
        len += frame.expect("an intact body").data_ref().map_or(0, |data| data.len() as u64);
    }
    len
}

#[tokio::test]
async fn a_body_passes_byte_for_byte_both_ways() {
    let setup = Setup::new().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    for path in ["/echo", "/jobs/x1/echo"] {
        setup.upstream.respond(path, |body| Some(Response::new(full(body))));
        let request = setup.sidecar.client.request(Method::POST, path);
        let reply = request.body(every_byte.clone()).send().await;
        assert_eq!(reply.body, every_byte, "{path}");
    }
}

#[tokio::test]
async fn an_upload_goes_no_faster_than_the_upstream_reads() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold_upload(Method::POST, "/upload");
    let mut stream = setup.sidecar.client.connect().await;
    let total = 2 * SWALLOWED;
    let head = format!("POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: {total}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("a head written");
    gate.arrived(1).await;

    let swallowed = write_until_stalled(&mut stream, total).await;

    assert!(swallowed < SWALLOWED, "{swallowed} bytes accepted while the upstream reads nothing");
    gate.release();
    let rest = write_until_stalled(&mut stream, total - swallowed).await;
    assert_eq!(swallowed + rest, total, "the upload is incomplete after the upstream has read");
}

/// Writes up to `limit` bytes; ends when the other side has accepted none for a while.
async fn write_until_stalled(stream: &mut TcpStream, limit: u64) -> u64 {
    const STALL: Duration = Duration::from_secs(1);
    let chunk = vec![0; 64 * 1024];
    let mut written = 0;
    while written < limit {
        let next = usize::try_from(limit - written).expect("a size").min(chunk.len());
        match tokio::time::timeout(STALL, stream.write(&chunk[..next])).await {
            Ok(count) => written += count.expect("an open connection") as u64,
            Err(_elapsed) => break,
        }
    }
    written
}

#[tokio::test]
async fn a_client_that_leaves_a_download_ends_it_upstream() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed("/events", &[("content-type", "text/event-stream")]);
    feed.data("data: 1\n\n").await;
    let response = setup.sidecar.client.request(Method::GET, "/events").open().await;

    drop(response);

    feed.abandoned().await;
}

#[tokio::test]
async fn the_upstream_is_told_who_asked_and_by_what_name() {
    let setup = Setup::new().await;
    for (path, known) in [("/other", false), (X, false), ("/other", true)] {
        let mut request = setup.sidecar.client.request(Method::GET, path);
        request = request.header("host", "jobs.example:81").header("traceparent", "00-a-b-01");
        if known {
            request = request.header("x-forwarded-for", "192.0.2.7");
            request = request.header("x-forwarded-proto", "https");
            request = request.header("x-forwarded-host", "public.example");
        }
        request.send().await;
        let seen = setup.upstream.requests().pop().expect("a request");
        let header =
            |name: &str| seen.headers.get(name).map_or("", |value| value.to_str().unwrap());
        assert_eq!(header("host"), "jobs.example:81", "{path}");
        assert_eq!(header("traceparent"), "00-a-b-01", "{path}");
        assert!(header("via").ends_with("1.1 jobcache"), "{path}: {seen:?}");
        let expected = if known {
            ["192.0.2.7, 127.0.0.1", "https", "public.example"]
        } else {
            ["127.0.0.1", "http", "jobs.example:81"]
        };
        let names = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
        assert_eq!(names.map(header), expected, "{path}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_request_end_here_and_credentials_never_do() {
    let setup = Setup::new().await;
    let request = setup.sidecar.client.request(Method::GET, "/other");
    let request = request
        .header("connection", "x-mine, authorization, host, x-forwarded-for")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("authorization", "Bearer a")
        .header("x-kept", "1");

    request.send().await;

    let seen = setup.upstream.requests().pop().expect("a request").headers;
    for gone in ["x-mine", "keep-alive", "proxy-connection"] {
        assert!(!seen.contains_key(gone), "{gone}: {seen:?}");
    }
    for kept in ["authorization", "host", "x-forwarded-for", "x-kept"] {
        assert!(seen.contains_key(kept), "{kept}: {seen:?}");
    }
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_response_end_here() {
    let setup = Setup::new().await;
    let headers = [
        ("connection", "x-mine"),
        ("x-mine", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("x-kept", "1"),
    ];
    for path in ["/other", X] {
        setup.upstream.respond(path, move |_| Some(with_headers("{}", &headers)));
    }

    for reply in [setup.get("/other").await, setup.get(X).await, setup.get(X).await] {
        for gone in ["x-mine", "keep-alive"] {
            assert!(!reply.headers.contains_key(gone), "{gone}: {reply:?}");
        }
        assert_eq!(reply.header("x-kept"), "1");
        assert_eq!(reply.header("via"), "1.1 jobcache", "{reply:?}");
    }
}

#[tokio::test]
async fn the_upstreams_own_cache_status_comes_first() {
    let setup = Setup::new().await;
    let headers = [("cache-status", "inner; hit")];
    setup.upstream.respond("/other", move |_| Some(with_headers("{}", &headers)));

    let reply = setup.get("/other").await;

    let all: Vec<_> = reply.headers.get_all("cache-status").iter().collect();
    let all = all.iter().map(|value| value.to_str().expect("text")).collect::<Vec<_>>().join(", ");
    assert!(all.starts_with("inner; hit, jobcache; fwd="), "{all}");
}

#[tokio::test]
async fn trailers_pass_in_responses() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed("/other", &[("trailer", "x-sum")]);
    feed.data("body").await;
    let sum = (HeaderName::from_static("x-sum"), HeaderValue::from_static("7"));
    feed.trailers(HeaderMap::from_iter([sum])).await;

    let reply = setup.sidecar.client.request(Method::GET, "/other").header("te", "trailers");
    let reply = reply.send().await;

    reply.assert(200, "body");
    assert_eq!(reply.trailers["x-sum"], "7");
}

async fn next(response: &mut Response<Incoming>) -> Bytes {
    let frame = soon(response.frame()).await.expect("an event").expect("an intact body");
    frame.into_data().expect("data")
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let setup = Setup::new().await;
    let feed = setup.upstream.feed("/events", &[("content-type", "text/event-stream")]);
    feed.data("data: 1\n\n").await;
    let mut response = setup.sidecar.client.request(Method::GET, "/events").open().await;
    assert_eq!(next(&mut response).await, "data: 1\n\n");

    for event in ["data: 2\n\n", "data: 3\n\n"] {
        feed.data(event).await;
        assert_eq!(next(&mut response).await, event);
    }

    feed.end();
    assert!(soon(response.frame()).await.is_none());
}

#[tokio::test]
async fn an_upgraded_connection_echoes_both_ways() {
    let setup = Setup::new().await;
    for path in ["/socket", X] {
        let mut stream = setup.sidecar.client.connect().await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n");
        let head = format!("{head}upgrade: websocket\r\nsec-websocket-key: dGVzdA==\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("a head written");
        let answer = read_head(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{path}: {answer}");
        let answer = answer.to_ascii_lowercase();
        assert!(answer.contains("\r\nupgrade: websocket\r\n"), "{path}: {answer}");
        assert!(answer.contains("\r\nconnection: upgrade\r\n"), "{path}: {answer}");

        for message in [&b"hello"[..], &[0, 255, 13, 10]] {
            stream.write_all(message).await.expect("a message written");
            let mut echo = vec![0; message.len()];
            soon(stream.read_exact(&mut echo)).await.expect("an echo");
            assert_eq!(echo, message, "{path}");
        }
    }
}

/// Reads to the empty line that ends a head, and no further.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.expect("a whole head"));
    }
    String::from_utf8(head).expect("a readable head")
}

#[tokio::test]
async fn an_upstream_that_is_down_is_a_502_that_says_so() {
    let setup = Setup::new().await;
    let down = Setup::with(|config| config.upstream.url = setup.upstream.url()).await;
    drop(setup);

    eventually(SOON, async || {
        let reply = down.get("/other").await;
        (reply.status == StatusCode::BAD_GATEWAY).then_some(reply)
    })
    .await
    .reason();
    for (method, path) in [(Method::GET, X), (Method::PUT, X), (Method::POST, "/other")] {
        let reply = down.sidecar.client.request(method.clone(), path).send().await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{method} {path}");
        reply.reason();
    }
}

#[tokio::test]
async fn a_hit_is_served_though_the_upstream_is_down() {
    let mut setup = Setup::new().await;
    setup.get(X).await;
    setup.hit(X).await;

    setup.upstream = Upstream::start().await;

    setup.get(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn an_upstream_that_is_silent_is_a_504_that_says_so() {
    let patience = Duration::from_millis(200);
    let setup = Setup::with(|config| config.upstream.response_timeout = patience).await;
    for (method, path) in [(Method::GET, "/other"), (Method::GET, X), (Method::PUT, X)] {
        let _gate = setup.upstream.hold(method.clone(), path);
        let reply = setup.sidecar.client.request(method.clone(), path).send().await;
        assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT, "{method} {path}");
        reply.reason();
    }
}

#[tokio::test]
async fn an_upstream_that_stalls_in_mid_body_is_a_broken_response() {
    let patience = Duration::from_millis(200);
    let setup = Setup::with(|config| config.upstream.body_timeout = patience).await;
    let feed = setup.upstream.feed("/other", &[("content-length", "100")]);
    feed.data("half").await;

    let response = setup.sidecar.client.request(Method::GET, "/other").open().await;

    assert!(Reply::read(response).await.is_err(), "a truncated body looks complete");
}

#[tokio::test]
async fn upstream_connections_are_kept_and_used_again() {
    let setup = Setup::new().await;
    setup.get("/other").await;
    let connections = setup.upstream.connections();

    for _ in 0..20 {
        setup.get("/other").await;
        setup.sidecar.put("/other").await;
    }

    assert_eq!(setup.upstream.connections(), connections);
}

#[tokio::test]
async fn an_upstream_that_closes_idle_connections_is_no_error() {
    let setup = Setup::new().await;
    for method in [Method::GET, Method::PUT, Method::POST, Method::GET] {
        for _ in 0..5 {
            let reply = setup.sidecar.client.request(method.clone(), X).body("").send().await;
            assert_eq!(reply.status, StatusCode::OK, "{method}");
            setup.upstream.close_idle().await;
        }
    }
}

#[tokio::test]
async fn a_client_may_speak_http2_from_the_first_byte() {
    let setup = Setup::new().await;
    let mut sender = setup.sidecar.client.http2().await;

    let miss = get_http2(&mut sender, HOST, X).await;
    let hit = eventually(SOON, async || {
        let reply = get_http2(&mut sender, HOST, X).await;
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await;

    assert!(miss.is_stored(), "{miss:?}");
    hit.assert(200, &version("x1", 0));
    assert_eq!(setup.upstream.requests()[0].headers["host"], HOST);
}

async fn get_http2(sender: &mut SendRequest<Body>, host: &str, path: &str) -> Reply {
    let request = Request::get(format!("http://{host}{path}")).body(full(""));
    let request = request.expect("a request");
    let response = soon(sender.send_request(request)).await.expect("an answer");
    Reply::read(response).await.expect("a whole body")
}

#[tokio::test]
async fn an_entry_belongs_to_the_name_it_was_read_under_however_a_client_says_it() {
    let setup = Setup::new().await;
    let client = &setup.sidecar.client;
    setup.get(X).await;
    setup.hit(X).await;
    let reads = setup.upstream.reads(X);

    let other = client.request(Method::GET, X).header("host", "other.example").send().await;
    let (status, _) = client.spelled("GET", "http://third.example/jobs/x1").await;
    let fourth = get_http2(&mut client.http2().await, "fourth.example", X).await;

    assert_eq!((other.is_hit(), status, fourth.is_hit()), (false, 200, false));
    let seen = setup.upstream.requests();
    let hosts: Vec<_> = seen[reads..].iter().map(|seen| &seen.headers["host"]).collect();
    assert_eq!(hosts, ["other.example", "third.example", "fourth.example"]);
}

#[tokio::test]
async fn connect_is_refused() {
    let setup = Setup::new().await;

    let (status, _) = setup.sidecar.client.spelled("CONNECT", "backend.example:443").await;

    assert!((400..600).contains(&status), "{status}");
    assert!(setup.upstream.requests().is_empty());
}

#[tokio::test]
async fn a_malformed_request_is_a_400_and_never_reaches_the_upstream() {
    let setup = Setup::new().await;
    for request in [
        "GET /jobs/x1 HTTP/1.1\r\nbad header\r\n\r\n",
        "POST /jobs/x1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "nonsense\r\n\r\n",
    ] {
        let answer = setup.sidecar.client.raw(request.as_bytes()).await;
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{request:?}: {answer:?}");
    }
    assert!(setup.upstream.requests().is_empty());
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let setup =
        Setup::with(|config| config.server.header_timeout = Duration::from_millis(200)).await;
    let mut stream = setup.sidecar.client.connect().await;
    stream.write_all(b"GET /jobs/x1 HTTP/1.1\r\nhost: ").await.expect("half a head written");

    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.expect("an orderly end");

    assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "), "{rest:?}");
}

#[tokio::test]
async fn a_shutdown_completes_what_is_in_flight_and_closes_the_rest() {
    let mut setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::PUT, X);
    let in_flight = setup.sidecar.client.start(Method::PUT, X, "{}").await;
    gate.arrived(1).await;
    let mut idle = setup.sidecar.client.connect().await;
    idle.write_all(b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a head written");
    read_head(&mut idle).await;

    setup.sidecar.begin_shutdown();

    eventually(SOON, async || setup.sidecar.refuses().await).await;
    soon(idle.read_to_end(&mut Vec::new())).await.expect("an orderly end");
    gate.release();
    assert_eq!(in_flight.answer().await, (200, version("x1", 1)));
    setup.sidecar.shutdown().await.expect("a clean end");
    assert!(!setup.redis.holds("job_status:x1").await);
}

#[tokio::test]
async fn a_shutdown_gives_up_on_a_request_at_its_deadline() {
    let mut setup = Setup::with(|config| config.drain.timeout = Duration::from_millis(200)).await;
    let gate = setup.upstream.hold(Method::GET, "/other");
    let _in_flight = setup.sidecar.client.start(Method::GET, "/other", "").await;
    gate.arrived(1).await;

    // This must end: `shutdown` has its own deadline.
    let _ = setup.sidecar.shutdown().await;
}
