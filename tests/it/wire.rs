//! What passes through comes out as if nobody stood between: checked byte by byte, with a client
//! and an upstream that speak raw HTTP/1.

use std::time::{Duration, Instant};

use jobcache::config::{Config, Rule, StoreUrl};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{sidecar::Sidecar, soon};

const X: &str = "/jobs/x";

/// A sidecar with its own store, before an upstream that a test plays itself.
struct Between {
    sidecar: Sidecar,
    upstream: TcpListener,
}

/// One end of a connection.
struct End(TcpStream);

impl Between {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let upstream = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let mut config = Config { settle: Duration::ZERO, ..Config::default() };
        config.store.url = StoreUrl::Memory;
        config.upstream.url = format!("http://{}", upstream.local_addr().expect("an address"));
        change(&mut config);
        Self { sidecar: Sidecar::start(config).await, upstream }
    }

    /// A client's connection, with this written to it.
    async fn client(&self, bytes: impl AsRef<[u8]>) -> End {
        let mut client = End(self.sidecar.client.connect().await);
        client.send(bytes).await;
        client
    }

    /// The next connection that the sidecar makes.
    async fn accept(&self) -> End {
        End(soon(self.upstream.accept()).await.expect("a connection").0)
    }

    /// A client that has written this, and the upstream's end once its head is there.
    async fn pass(&self, bytes: impl AsRef<[u8]>) -> (End, End, String) {
        let client = self.client(bytes).await;
        let mut upstream = self.accept().await;
        let head = upstream.head().await;
        (client, upstream, head)
    }
}

impl End {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.0.write_all(bytes.as_ref())).await.expect("bytes written");
    }

    /// The next head, with its empty line.
    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = soon(self.0.read_u8()).await;
            head.push(byte.unwrap_or_else(|error| panic!("{error} after {head:?}")));
        }
        String::from_utf8(head).expect("a readable head")
    }

    async fn exactly(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len];
        soon(self.0.read_exact(&mut bytes)).await.expect("so many bytes");
        String::from_utf8(bytes).expect("readable bytes")
    }

    /// What still comes until the other side closes.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = soon(self.0.read_to_end(&mut bytes)).await;
        String::from_utf8(bytes).expect("readable bytes")
    }
}

fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: jobs.example\r\n{more}\r\n")
}

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
/// Closes the upstream connection, so that the next exchange has its own.
const LAST_OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads a final answer with the body `ok`.
async fn ok(client: &mut End) -> String {
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(client.exactly(2).await, "ok");
    head
}

#[tokio::test]
async fn an_interim_response_reaches_the_client_before_the_answer_is_known() {
    let between = Between::start().await;
    for (method, path) in [("GET", "/other"), ("GET", X), ("PUT", X)] {
        let close = OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let (mut client, mut upstream, _) = between.pass(request(method, path, "")).await;

        for status in ["103 Early Hints", "102 Processing"] {
            let sent = format!("HTTP/1.1 {status}\r\nX-A: 1\r\nX-Hop: 2\r\nConnection: X-Hop\r\n");
            upstream.send(format!("{sent}\r\n")).await;
            let seen = client.head().await;
            assert_eq!(seen, format!("HTTP/1.1 {status}\r\nx-a: 1\r\n\r\n"), "{method} {path}");
        }

        upstream.send(close).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn an_interim_response_that_comes_along_with_the_answer_is_not_lost() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) = between.pass(request("GET", X, "")).await;

    upstream.send(format!("{HINT}{HINT}{OK}")).await;

    assert_eq!(client.head().await, HINT);
    assert_eq!(client.head().await, HINT);
    ok(&mut client).await;
    client.send(request("GET", X, "")).await;
    let hit = ok(&mut client).await;
    assert!(hit.contains("cache-status: jobcache; hit"), "nothing interim is stored: {hit}");
}

#[tokio::test]
async fn interim_responses_keep_their_place_among_pipelined_requests() {
    let between = Between::start().await;
    let both = request("GET", "/a", "") + &request("GET", "/b", "");
    let (mut client, mut upstream, a) = between.pass(both).await;
    assert!(a.starts_with("GET /a "), "{a}");

    upstream.send(format!("{HINT}{OK}")).await;
    let b = upstream.head().await;
    assert!(b.starts_with("GET /b "), "{b}");
    upstream.send(format!("{HINT}{OK}")).await;

    for _ in 0..2 {
        assert_eq!(client.head().await, HINT);
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_sent_no_interim_response() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) = between.pass("GET /other HTTP/1.0\r\n\r\n").await;

    upstream.send(format!("{HINT}{OK}")).await;

    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}

const EXPECT: &str = "Content-Length: 4\r\nExpect: 100-continue\r\n";

#[tokio::test]
async fn a_client_is_asked_for_its_upload_when_the_upstream_asks_for_it() {
    let between = Between::start().await;
    for (method, path) in [("POST", "/upload"), ("PUT", X)] {
        let (mut client, mut upstream, head) = between.pass(request(method, path, EXPECT)).await;
        assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");

        // The first that the client hears shows that nobody else has asked it.
        upstream.send(HINT).await;
        assert_eq!(client.head().await, HINT);
        upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("body").await;
        assert_eq!(upstream.exactly(4).await, "body");

        upstream.send(OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn an_upload_that_the_upstream_declines_is_never_asked_for() {
    let between = Between::with(|config| config.invalidate = vec![rule(&[], &["/id"])]).await;
    for (method, path) in [("POST", "/upload"), ("PUT", X), ("POST", RULED)] {
        for refusal in ["Content-Length: 0\r\n\r\n", "Content-Length: 5\r\n\r\nlarge"] {
            let (mut client, mut upstream, _) = between.pass(request(method, path, EXPECT)).await;

            upstream.send(format!("HTTP/1.1 413 Content Too Large\r\n{refusal}")).await;

            let answer = client.rest().await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            assert!(answer.ends_with(refusal.rsplit('\n').next().unwrap_or("")), "{answer}");
            assert_eq!(upstream.rest().await, "", "{method}: the connection is given up");
        }
    }
}

const RULED: &str = "/batch";

/// A rule for what goes to [`RULED`].
fn rule(request: &[&str], response: &[&str]) -> Rule {
    let list = |items: &[&str]| items.iter().map(ToString::to_string).collect();
    let (request, response) = (list(request), list(response));
    Rule { path: RULED.to_owned(), request, response, max_body: 64, ..Rule::default() }
}

#[tokio::test]
async fn an_upload_that_a_rule_looks_into_is_asked_for_before_the_upstream_is() {
    let between = Between::with(|config| config.invalidate = vec![rule(&["/id"], &[])]).await;
    let (mut client, mut upstream, _) = between.pass(request("GET", "/jobs/17", "")).await;
    upstream.send(LAST_OK).await;
    ok(&mut client).await;
    let upload = r#"{"id":17}"#;
    for framing in ["Content-Length: 9\r\n", "Transfer-Encoding: chunked\r\n"] {
        let head = format!("{framing}Expect: 100-continue\r\n");
        let mut writer = between.client(request("POST", RULED, &head)).await;

        assert_eq!(writer.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        let chunked = format!("9\r\n{upload}\r\n0\r\n\r\n");
        let sent = if framing.starts_with('C') { upload } else { &chunked };
        writer.send(sent).await;

        let mut upstream = between.accept().await;
        let head = upstream.head().await;
        assert!(!head.contains("expect"), "{head}");
        assert_eq!(upstream.exactly(sent.len()).await, sent);
        upstream.send(LAST_OK).await;
        ok(&mut writer).await;
    }
    client.send(request("GET", "/jobs/17", "")).await;
    between.accept().await.head().await;
}

#[tokio::test]
async fn an_upload_that_a_rule_cannot_look_into_is_left_to_the_upstream_to_ask_for() {
    let between = Between::with(|config| config.invalidate = vec![rule(&["/id"], &[])]).await;
    for why in ["Content-Length: 65\r\n", "Content-Length: 4\r\nContent-Encoding: gzip\r\n"] {
        let head = format!("{why}Expect: 100-continue\r\n");
        let (mut client, mut upstream, head) = between.pass(request("POST", RULED, &head)).await;
        assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");

        upstream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n").await;

        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
}

#[tokio::test]
async fn the_connection_ends_after_a_declined_upload_though_a_rule_has_read_of_the_answer() {
    let between = Between::with(|config| config.invalidate = vec![rule(&[], &["/id"])]).await;
    let (mut client, mut upstream, _) = between.pass(request("POST", RULED, EXPECT)).await;

    let head = "HTTP/1.1 413 Content Too Large\r\nTransfer-Encoding: chunked\r\n\r\n";
    upstream.send(format!("{head}41\r\n{}\r\n", "x".repeat(65))).await;

    let answer = client.head().await;
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    upstream.send("0\r\n\r\n").await;
    assert!(client.rest().await.ends_with("\r\n0\r\n\r\n"));
}

#[tokio::test]
async fn an_upload_begins_after_a_second_if_the_upstream_says_nothing() {
    let between = Between::with(|config| {
        config.upstream.response_timeout = Duration::from_millis(500);
    })
    .await;
    let started = Instant::now();
    let (mut client, mut upstream, _) = between.pass(request("POST", "/upload", EXPECT)).await;

    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    client.send("body").await;
    assert_eq!(upstream.exactly(4).await, "body");
    upstream.send(OK).await;
    ok(&mut client).await;
}

#[tokio::test]
async fn an_expectation_of_http_1_0_is_ignored() {
    let between = Between::start().await;
    let head = format!("POST /upload HTTP/1.0\r\nHost: jobs.example\r\n{EXPECT}\r\nbody");
    let (mut client, mut upstream, head) = between.pass(head).await;

    assert!(!head.contains("expect"), "{head}");
    assert_eq!(upstream.exactly(4).await, "body");
    upstream.send(OK).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}
