//! Attacks that try to exhaust a sidecar or to mislead it: each costs the attacker its own
//! connection or stream, and does not affect other clients.
//!
//! Ambiguous messages are in `framing.rs`, odd spellings of a write's path in `invalidation.rs`,
//! forged webhooks in `purge.rs`.

#![allow(clippy::print_stdout, reason = "the test prints its figures")]

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{Process, SOON, Setup, Upstream, eventually, full, soon, zeros};

const SHORT: Duration = Duration::from_millis(200);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of HTTP/2 frames (RFC 9113 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 7).
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Returns a header block: `GET path` of `http://a`, from the static table and literals (RFC 7541).
fn get_block(path: &str) -> Vec<u8> {
    let len = u8::try_from(path.len()).expect("a short path");
    [&[0x82, 0x86, 0x01, 1, b'a', 0x04, len], path.as_bytes()].concat()
}

fn get_frame(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get_block(path))
}

/// An HTTP/2 connection with frames that the test builds.
struct Frames(TcpStream);

impl Frames {
    async fn open(setup: &Setup) -> Self {
        let mut stream = setup.sidecar.client.connect().await;
        stream.write_all(PREFACE).await.expect("a preface written");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("settings written");
        Self(stream)
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        soon(self.0.write_all(bytes)).await.is_ok()
    }

    /// Returns the type, stream and payload of the next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        soon(self.0.read_exact(&mut head)).await.ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; usize::try_from(len).expect("a frame's length")];
        soon(self.0.read_exact(&mut payload)).await.ok()?;
        Some((head[3], stream, payload))
    }

    /// Returns the next frame of this type.
    async fn next_of(&mut self, kind: u8) -> Option<(u32, Vec<u8>)> {
        while let Some((found, stream, payload)) = self.next().await {
            if found == kind {
                return Some((stream, payload));
            }
        }
        None
    }
}

fn number_at(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"))
}

#[tokio::test]
async fn a_client_that_opens_more_streams_than_it_may_is_refused_those() {
    let setup = Setup::with(|config| config.server.max_streams = 2).await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let mut client = Frames::open(&setup).await;

    let (_, settings) = client.next_of(SETTINGS).await.expect("settings");
    let told = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("a limit");
    assert_eq!(number_at(told, 2), 2, "SETTINGS_MAX_CONCURRENT_STREAMS");

    for stream in [1, 3, 5] {
        client.send(&get_frame(stream, "/slow")).await;
    }
    let (stream, why) = client.next_of(RST_STREAM).await.expect("a refusal");
    assert_eq!((stream, number_at(&why, 0)), (5, REFUSED_STREAM));

    gate.release();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        answered.push(client.next_of(HEADERS).await.expect("an answer").0);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3]);
    assert_eq!(setup.sidecar.admin.limit_hits("server.max_streams").await, 1);
}

/// Waits until the connection is counted as ended by a flood, and then for a hit.
async fn flooded(setup: &Setup) {
    let flood = "jobcache_connection_errors_total{kind=\"flood\"}";
    eventually(SOON, async || setup.sidecar.admin.metric(flood).await == 1).await;
    setup.hit("/jobs/x1").await;
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let setup = Setup::new().await;
    setup.upstream.commit("x1");
    let mut client = Frames::open(&setup).await;
    let mut flood = Vec::new();
    for number in 0..5_000_u32 {
        let stream = 2 * number + 1;
        flood.extend(get_frame(stream, "/jobs/x1"));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }

    // The connection may end before everything is written.
    client.send(&flood).await;

    let (_, why) = client.next_of(GOAWAY).await.expect("a connection that ends with a reason");
    assert_eq!(number_at(&why, 4), ENHANCE_YOUR_CALM);
    flooded(&setup).await;
}

#[tokio::test]
async fn streams_that_are_faulty_again_and_again_end_their_connection() {
    let setup = Setup::with(|config| config.server.max_faulty_streams = 10).await;
    let mut client = Frames::open(&setup).await;
    for number in 0..20_u32 {
        // "Any message containing connection-specific header fields MUST be treated as malformed"
        // RFC 9113 8.2.2: a stream error.
        let block = [&get_block("/other")[..], b"\x00\x0aconnection\x05close"].concat();
        let flags = END_HEADERS | END_STREAM;
        client.send(&frame(HEADERS, flags, 2 * number + 1, &block)).await;
    }

    let (_, why) = client.next_of(GOAWAY).await.expect("a connection that ends with a reason");
    assert_eq!(number_at(&why, 4), ENHANCE_YOUR_CALM);
    flooded(&setup).await;
}

#[tokio::test]
async fn a_head_in_endless_continuations_ends_its_connection() {
    let setup = Setup::new().await;
    let mut client = Frames::open(&setup).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &get_block("/jobs/x1"))).await;
    // A literal field of 16 bytes without indexing, some hundreds per frame.
    let field = [&[0x00, 1, b'x', 16][..], &[b'a'; 16]].concat();
    let part = frame(CONTINUATION, 0, 1, &field.repeat(400));

    let mut sent = 0;
    while sent < 16 << 20 && client.send(&part).await {
        sent += part.len();
    }

    assert!(sent < 16 << 20, "{sent} bytes of one head were accepted");
    assert_eq!(setup.upstream.reads("/jobs/x1"), 0);
    flooded(&setup).await;
}

#[tokio::test]
async fn pings_whose_answers_nobody_reads_end_their_connection() {
    let setup = Setup::with(|config| config.server.write_timeout = SHORT).await;
    let mut client = Frames::open(&setup).await;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(4096);

    let flood = async { while client.0.write_all(&pings).await.is_ok() {} };
    soon(flood).await;

    setup.hit("/jobs/x1").await;
}

/// Larger than all buffers between the upstream and a client.
const HUGE: u64 = 64 << 20;

fn serve_huge(setup: &Setup, path: &str) {
    setup.upstream.respond(path, |_| Some(hyper::Response::new(crate::support::zeros(HUGE))));
}

/// Returns a setup with one upstream connection and a short write timeout.
async fn impatient() -> Setup {
    let setup = Setup::with(|config| {
        config.server.write_timeout = SHORT;
        config.upstream.max_connections = 1;
        config.upstream.connect_timeout = Duration::from_millis(50);
    })
    .await;
    serve_huge(&setup, "/huge");
    setup
}

async fn place_is_free(setup: &Setup) {
    eventually(SOON, async || {
        let reply = setup.get("/other").await;
        if reply.status == StatusCode::NOT_FOUND { Ok(()) } else { Err(reply) }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_stops_reading_does_not_keep_its_place_upstream() {
    let setup = impatient().await;
    let mut client = setup.sidecar.client.connect().await;
    client.write_all(b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("a request written");
    client.read_u8().await.expect("an answer that begins");
    assert_eq!(setup.get("/other").await.status, StatusCode::SERVICE_UNAVAILABLE);

    place_is_free(&setup).await;

    let mut rest = Vec::new();
    let _ = soon(client.read_to_end(&mut rest)).await;
    assert!((rest.len() as u64) < HUGE, "not cut off: {}", rest.len());
    assert_eq!(setup.sidecar.admin.limit_hits("server.write_timeout").await, 1);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_keep_its_place_upstream() {
    let setup = impatient().await;
    let mut sender = setup.sidecar.client.http2().await;
    let get = |path: &str| Request::get(format!("http://a{path}")).body(full("")).expect("a head");
    let unread = soon(sender.send_request(get("/huge"))).await.expect("an answer that begins");

    place_is_free(&setup).await;

    // The connection continues to serve; only that stream is reset.
    let other = soon(sender.send_request(get("/other"))).await.expect("an answer");
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    soon(unread.into_body().collect()).await.expect_err("a body that is cut off");
    assert_eq!(setup.sidecar.admin.limit_hits("server.write_timeout").await, 1);
}

#[tokio::test]
async fn a_stream_whose_upstream_is_slow_is_not_its_readers_fault() {
    let setup = Setup::with(|config| config.server.write_timeout = SHORT).await;
    let feed = setup.upstream.feed("/events", &[("content-type", "text/event-stream")]);
    let mut sender = setup.sidecar.client.http2().await;
    let get = Request::get("http://a/events").body(full("")).expect("a head");
    let mut events = soon(sender.send_request(get)).await.expect("an answer").into_body();
    for _ in 0..2 {
        feed.data("tick").await;
        let frame = soon(events.frame()).await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), "tick");
        // The test is about silence that is longer than the limit.
        tokio::time::sleep(3 * SHORT).await;
    }
    feed.end();
    soon(events.collect()).await.expect("a complete body");
}

#[tokio::test]
async fn past_so_many_that_wait_for_the_upstream_further_ones_are_answered_at_once() {
    let setup = Setup::with(|config| {
        config.upstream.max_connections = 1;
        config.upstream.max_waiting = 1;
        config.upstream.connect_timeout = SOON;
    })
    .await;
    let gate = setup.upstream.hold(Method::GET, "/slow");
    let first = setup.sidecar.client.start(Method::GET, "/slow", "").await;
    gate.arrived(1).await;
    let client = &setup.sidecar.client;

    // One of these waits, and the others are rejected.
    let [a, b, c] = ["/jobs/a1", "/jobs/b1", "/c"].map(|path| client.start(Method::GET, path, ""));
    let mut answers: tokio::task::JoinSet<_> = [a.await, b.await, c.await]
        .into_iter()
        .map(crate::support::client::Started::answer)
        .collect();
    for _ in 0..2 {
        let (status, answer) = soon(answers.join_next()).await.expect("one").expect("no panic");
        assert_eq!(status, 503, "{answer}");
        assert!(answer.contains("upstream-busy"), "{answer}");
    }
    assert_eq!(setup.sidecar.admin.limit_hits("upstream.max_waiting").await, 2);
    gate.release();
    assert_eq!(first.answer().await.0, 404);
    let (status, answer) = soon(answers.join_next()).await.expect("one").expect("no panic");
    assert_ne!(status, 503, "{answer}");
}

#[tokio::test]
async fn a_write_by_a_spelling_made_to_hide_its_job_forgets_it_all_the_same() {
    let setup = Setup::new().await;
    for odd in [
        "/jobs/abc1;v=1",
        "/jobs;v=1/abc1",
        "/jobs/%2561bc1",
        "/jobs%2Fabc1",
        "/jobs%5Cabc1",
        "/jobs\\abc1",
        "/jobs/./%2e/abc1",
        "/x%2F..%2Fjobs/abc1",
        "/jobs/abc1/..;/abc1",
        "/jobs/abc1/%00",
        "/jobs/abc1/\u{e9}",
        "/jobs/abc1/%E9%FF",
        "http://jobs.example/x/..//jobs/abc1",
    ] {
        setup.get("/jobs/abc1").await;
        setup.hit("/jobs/abc1").await;
        let target = format!("PUT {odd} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        setup.sidecar.client.raw(target.as_bytes()).await;
        let reply = setup.get("/jobs/abc1").await;
        assert!(!reply.is_hit(), "after {odd}: {reply:?}");
    }
}

#[tokio::test]
async fn what_redis_or_http_would_read_into_an_id_is_never_an_id() {
    let setup = Setup::new().await;
    setup.get("/jobs/abc1").await;
    setup.hit("/jobs/abc1").await;
    let odd =
        ["*", "a?c", "[a]bc", "{abc}", "abc}:meta", "a c", "abc\r\nDEL x", "abc\n", "a\0c", "é"];
    for id in odd {
        let body = serde_json::json!({ "job_id": id }).to_string();
        let path =
            percent_encoding::percent_encode(id.as_bytes(), percent_encoding::NON_ALPHANUMERIC);
        let named = setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await;
        let below = format!("/purge/{path}");
        let below = setup.sidecar.admin.request(Method::POST, &below).send().await;
        for reply in [named, below] {
            if reply.status == StatusCode::OK {
                // Cutting off a query or white space leaves a job's id; no other change happens.
                let purged = &reply.json()["purged"];
                assert!(["a", "abc"].iter().any(|id| *purged == serde_json::json!([id])), "{id:?}");
            } else {
                assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{id:?}: {reply:?}");
            }
        }
        setup.upstream.forget_requests();
        for _ in 0..2 {
            let reply = setup.get(&format!("/jobs/{path}")).await;
            assert!(!reply.is_hit() && !reply.is_stored(), "{path}: {reply:?}");
        }
        assert_eq!(setup.upstream.requests().len(), 2, "{path} passes");
    }
    setup.hit("/jobs/abc1").await;
}

/// Jobs that are requested at once, over connections with as many streams as allowed.
const IDS: usize = 20_000;
const STREAMS: usize = 200;

/// How long a request may wait for its place upstream, and for the answer. A debug build needs about
/// 20 s for all of them on two idle processors, and many times that on busy ones.
const PATIENCE: Duration = Duration::from_mins(20);

/// Memory limit of a debug build for all of them, in KiB: about 25 KiB each.
const PEAK_KIB: u64 = 512 << 10;

async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an end")
}

/// Returns the status and the body of an answer, or no status and the error.
async fn answered(answer: hyper::Result<Response<Incoming>>) -> (u16, String) {
    let read = async {
        let answer = answer?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        Ok::<_, hyper::Error>((status, String::from_utf8_lossy(&body).into_owned()))
    };
    read.await.unwrap_or_else(|error| (0, format!("{error:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_ids_at_once_on_a_slow_upstream_are_answered_in_bounded_memory() {
    let upstream = Upstream::start().await;
    let slow = upstream.hold_all();
    let args = ["--upstream", &upstream.url(), "--redis-url", "memory://"];
    let (places, waiting) = (100, 10_000);
    let patience = format!("{}s", PATIENCE.as_secs());
    let settings = [
        ("JOBCACHE_UPSTREAM_MAX_CONNECTIONS", "100"),
        ("JOBCACHE_UPSTREAM_CONNECT_TIMEOUT", patience.as_str()),
        ("JOBCACHE_UPSTREAM_RESPONSE_TIMEOUT", patience.as_str()),
    ];
    let process = Process::start(&args, &settings).await;

    let (told, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for connection in 0..IDS / STREAMS {
        let mut sender = process.client.http2().await;
        for stream in 0..STREAMS {
            let path = format!("http://a/jobs/{connection}-{stream}");
            let request = Request::get(path).body(full("")).expect("a head");
            patiently(sender.ready()).await.expect("room for a stream");
            let (answer, told) = (sender.send_request(request), told.clone());
            tokio::spawn(async move {
                let _ = told.send(answered(answer.await).await);
            });
        }
    }
    drop(told);

    // The allowed numbers are at the upstream and waiting; all others have been answered.
    let mut refused = 0;
    while refused < IDS - places - waiting {
        let (status, answer) = patiently(answers.recv()).await.expect("an answer");
        assert_eq!(status, 503, "although the upstream is held: {answer}");
        refused += 1;
    }
    let admin = &process.admin;
    for (metric, want) in [
        ("jobcache_upstream_connections_in_use", places),
        ("jobcache_upstream_waiting", waiting),
        ("jobcache_requests_in_flight", places + waiting),
        // The limit of flights; other requests that wait or are at the upstream read for
        // themselves.
        ("jobcache_flights", 10_000),
    ] {
        let name = metric;
        eventually(SOON, async || {
            let found = admin.metric(name).await;
            if found == want as u64 { Ok(()) } else { Err((name, found)) }
        })
        .await;
    }
    slow.release();
    let mut served = 0;
    while let Some((status, answer)) = patiently(answers.recv()).await {
        assert_eq!(status, 200, "{answer}");
        served += 1;
    }

    assert_eq!((served, refused), (places + waiting, IDS - places - waiting));
    let peak = process.peak_memory_kib();
    println!("{IDS} ids at once: {served} served, {refused} refused, peak RSS {} MiB", peak >> 10);
    assert!(peak < PEAK_KIB, "{peak} KiB");
    for metric in ["jobcache_requests_in_flight", "jobcache_flights", "jobcache_captured_bytes"] {
        eventually(SOON, async || admin.metric(metric).await == 0).await;
    }
}

#[tokio::test]
async fn who_reads_slowly_and_without_a_pause_is_not_cut_off() {
    let size = 4 << 20;
    let setup = Setup::with(|config| config.server.write_timeout = 2 * SHORT).await;
    setup.upstream.respond("/large", move |_| Some(Response::new(zeros(size))));
    let mut client = setup.sidecar.client.connect().await;
    client.write_all(b"GET /large HTTP/1.0\r\n\r\n").await.expect("a request written");

    // At a megabyte per second, a third of a buffer of several megabytes takes longer than the
    // limit.
    let (mut read, mut part) = (0, vec![0; 64 << 10]);
    loop {
        match soon(client.read(&mut part)).await.expect("no reset") {
            0 => break,
            count => read += count as u64,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    assert!(read > size, "{read} of {size} bytes and a head");
    assert_eq!(setup.sidecar.admin.limit_hits("server.write_timeout").await, 0);
}
