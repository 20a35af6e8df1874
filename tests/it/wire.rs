//! What passes through comes out as if nobody stood between: checked byte by byte, with a client
//! and an upstream that speak raw HTTP/1.

use std::time::{Duration, Instant};

use hyper::Request;
use jobcache::config::{Config, Rule, StoreUrl};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{Reply, SOON, client::HOST, eventually, full, sidecar::Sidecar, soon};

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
        let (mut client, mut upstream, _) = between.pass(request(method, path, "")).await;

        for status in ["103 Early Hints", "102 Processing"] {
            let sent = format!("HTTP/1.1 {status}\r\nX-A: 1\r\nX-Hop: 2\r\nConnection: X-Hop\r\n");
            upstream.send(format!("{sent}\r\n")).await;
            let seen = client.head().await;
            assert_eq!(seen, format!("HTTP/1.1 {status}\r\nx-a: 1\r\n\r\n"), "{method} {path}");
        }

        upstream.send(LAST_OK).await;
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

        upstream.send(LAST_OK).await;
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

/// What the upstream sees of bytes that could be read in two ways: nothing, or one request that
/// cannot.
enum Seen {
    Nothing,
    /// Its body, in the framing that we chose.
    Body(&'static str),
}

const CHUNKED: &str = "3\r\nabc\r\n0\r\n\r\n";

#[tokio::test]
async fn no_framing_means_one_thing_to_us_and_another_to_the_upstream() {
    use Seen::{Body, Nothing};
    let te = |value: &str| format!("Transfer-Encoding: {value}\r\n\r\n{CHUNKED}");
    let chunks = |body: &str| format!("Transfer-Encoding: chunked\r\n\r\n{body}");
    let table = [
        (
            format!("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}"),
            Body(CHUNKED),
        ),
        (
            format!("Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n{CHUNKED}"),
            Body(CHUNKED),
        ),
        ("Content-Length: 2\r\nContent-Length: 2\r\n\r\nab".into(), Body("ab")),
        ("Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc".into(), Nothing),
        ("Content-Length: 2, 2\r\n\r\nab".into(), Nothing),
        ("Content-Length: +2\r\n\r\nab".into(), Nothing),
        ("Content-Length: -2\r\n\r\nab".into(), Nothing),
        ("Content-Length: 0x2\r\n\r\nab".into(), Nothing),
        ("Content-Length: 2 2\r\n\r\nab".into(), Nothing),
        ("Content-Length:\r\n\r\nab".into(), Nothing),
        ("Content-Length: 18446744073709551616\r\n\r\nab".into(), Nothing),
        ("Content-Length : 2\r\n\r\nab".into(), Nothing),
        (te("xchunked"), Nothing),
        (te("chunked, identity"), Nothing),
        (te("identity, chunked"), Nothing),
        (te("gzip, chunked"), Nothing),
        (te("chunked, chunked"), Nothing),
        (te("chunked;q=1"), Nothing),
        (te("\"chunked\""), Nothing),
        (te("\x0bchunked"), Nothing),
        (te("\r\n chunked"), Nothing),
        (te("chunked\r\nTransfer-Encoding: identity"), Nothing),
        (te("identity\r\nTransfer-Encoding: chunked"), Nothing),
        (format!("Transfer-Encoding : chunked\r\n\r\n{CHUNKED}"), Nothing),
        ("X-A: b\r\n c\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
        ("X-A: b\rContent-Length: 2\r\n\r\nab".into(), Nothing),
        ("X-A: b\0c\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
        ("X\0A: b\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
        ("X A: b\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
        (": b\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
        ("X-A: b\nContent-Length: 2\n\nab".into(), Body("ab")),
        (chunks("3;a=b\r\nabc\r\n0\r\n\r\n"), Body(CHUNKED)),
        (chunks("003\r\nabc\r\n000\r\n\r\n"), Body(CHUNKED)),
        ("Host: other.example\r\nContent-Length: 2\r\n\r\nab".into(), Nothing),
    ];
    let between = Between::start().await;
    for (rest, seen) in table {
        let sent = format!("POST /p HTTP/1.1\r\nHost: jobs.example\r\n{rest}");
        // Were the end of it misread, this would be a second request to somebody.
        let mut client = between.client(sent.clone() + &request("GET", "/smuggled", "")).await;
        match seen {
            Seen::Nothing => {
                let answer = client.rest().await;
                let refused =
                    ["HTTP/1.1 400 ", "HTTP/1.1 501 "].iter().any(|it| answer.starts_with(it));
                assert!(refused, "{sent:?}: {answer:?}");
                assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{sent:?}: {answer:?}");
            }
            Seen::Body(body) => {
                let mut upstream = between.accept().await;
                let head = upstream.head().await.to_ascii_lowercase();
                assert!(head.starts_with("post /p http/1.1\r\n"), "{sent:?}: {head:?}");
                let length = head.matches("\r\ncontent-length: ").count();
                let coding = head.matches("\r\ntransfer-encoding: chunked\r\n").count();
                let want = if body == CHUNKED { (0, 1) } else { (1, 0) };
                assert_eq!((length, coding), want, "{sent:?}: {head:?}");
                assert_eq!(upstream.exactly(body.len()).await, body, "{sent:?}");
                upstream.send(LAST_OK).await;
                drop(upstream);
                ok(&mut client).await;
                if rest.contains("Content-Length") && body == CHUNKED {
                    // "the server MUST close the connection after responding" RFC 9112 6.1
                    assert_eq!(client.rest().await, "", "{sent:?}");
                    continue;
                }
                let mut next = between.accept().await;
                let head = next.head().await;
                assert!(head.starts_with("GET /smuggled HTTP/1.1\r\n"), "{sent:?}: {head:?}");
                next.send(LAST_OK).await;
                ok(&mut client).await;
            }
        }
    }
}

#[tokio::test]
async fn chunks_that_are_none_end_the_exchange_on_both_sides() {
    let between = Between::start().await;
    for broken in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3;a\nabc\r\n0\r\n\r\n",
    ] {
        let head = request("POST", "/p", "Transfer-Encoding: chunked\r\n");
        let mut client = between.client(format!("{head}1\r\na\r\n")).await;
        let mut upstream = between.accept().await;
        upstream.head().await;
        assert_eq!(upstream.exactly(6).await, "1\r\na\r\n");

        client.send(broken.to_owned() + &request("GET", "/smuggled", "")).await;

        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{broken:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{broken:?}: {answer:?}");
        let seen = upstream.rest().await;
        assert!(!seen.contains("0\r\n\r\n"), "{broken:?}: no end that was never sent: {seen:?}");
    }
}

#[tokio::test]
async fn a_request_that_names_no_host_or_two_is_refused() {
    let between = Between::start().await;
    for (head, reason) in [
        ("GET /p HTTP/1.1\r\n\r\n", "host"),
        ("GET http://a.example/p HTTP/1.1\r\n\r\n", "host"),
        ("GET /p HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "host"),
        ("GET /p HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "host"),
        ("GET /p HTTP/1.1\r\nHost: a@b\r\n\r\n", "host"),
        ("GET /p HTTP/1.1\r\nHost: a b\r\n\r\n", "host"),
        ("GET p HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
        ("GET p.example:80 HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "target"),
    ] {
        let answer = between.client(head).await.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer:?}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{head:?}: {answer:?}");
        let status = format!("\r\ncache-status: jobcache; detail={reason}\r\n");
        assert!(answer.contains(&status), "{head:?}: {answer:?}");
        assert!(answer.contains(&format!("\"reason\":\"{reason}\"")), "{head:?}: {answer:?}");
    }
}

#[tokio::test]
async fn connect_is_refused_and_what_follows_it_is_not_read_as_http() {
    let between = Between::start().await;
    let tunnel = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";

    let mut client = between.client(tunnel.to_owned() + &request("GET", "/smuggled", "")).await;

    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert!(answer.contains("\r\nallow: GET, HEAD, "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn targets_and_methods_reach_the_upstream_as_they_are() {
    let between = Between::start().await;
    for (sent, seen) in [
        ("GET http://a.example/p?q HTTP/1.1", "GET /p?q HTTP/1.1\r\nhost: a.example\r\n"),
        ("GET http://u:p@a.example/p HTTP/1.1", "GET /p HTTP/1.1\r\nhost: a.example\r\n"),
        ("GET http://a.example HTTP/1.1", "GET / HTTP/1.1\r\nhost: a.example\r\n"),
        ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("TRACE /p HTTP/1.1", "TRACE /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("FOO /p HTTP/1.1", "FOO /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("get /p HTTP/1.1", "get /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("PROPFIND /p HTTP/1.1", "PROPFIND /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("QUERY /p HTTP/1.1", "QUERY /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        ("M-SEARCH /p HTTP/1.1", "M-SEARCH /p HTTP/1.1\r\nhost: jobs.example\r\n"),
        (
            "GET //p/../%2e/[x]|{}\\^?a=[]{}|^ HTTP/1.1",
            "GET //p/../%2e/[x]|{}\\^?a=[]{}|^ HTTP/1.1\r\n",
        ),
    ] {
        let sent = format!("{sent}\r\nHost: jobs.example\r\n\r\n");
        let (mut client, mut upstream, head) = between.pass(sent).await;
        assert!(head.starts_with(seen), "{head}");
        upstream.send(LAST_OK).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn a_read_of_unknown_length_keeps_its_body() {
    let between = Between::start().await;
    for (method, path) in [("GET", "/p"), ("QUERY", "/p"), ("GET", X), ("DELETE", X)] {
        let sent = request(method, path, "Transfer-Encoding: chunked\r\n") + CHUNKED;
        let (mut client, mut upstream, head) = between.pass(sent).await;
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{method} {path}: {head}");
        assert_eq!(upstream.exactly(CHUNKED.len()).await, CHUNKED, "{method} {path}");
        upstream.send(LAST_OK).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks_and_may_keep_its_connection() {
    let between = Between::start().await;
    let old = "GET /p HTTP/1.0\r\nHost: jobs.example\r\nConnection: keep-alive\r\n\r\n";
    let (mut client, mut upstream, _) = between.pass(old).await;
    upstream.send(OK).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: keep-alive\r\n"), "{head}");
    assert_eq!(client.exactly(2).await, "ok");

    client.send(old).await;
    upstream.head().await;
    upstream.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}")).await;

    let answer = client.rest().await;
    assert!(!answer.contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nabc"), "the end of the connection ends it: {answer}");
}

#[tokio::test]
async fn an_answer_that_could_be_read_in_two_ways_is_a_502() {
    let between = Between::start().await;
    for (sent, reason) in [
        (
            "Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "upstream-transfer-coding",
        ),
        ("Transfer-Encoding: gzip\r\n\r\nabc", "upstream-transfer-coding"),
        ("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "upstream-malformed"),
        ("Content-Length: +3\r\n\r\nabc", "upstream-malformed"),
        ("X\0: b\r\nContent-Length: 3\r\n\r\nabc", "upstream-malformed"),
    ] {
        let (mut client, mut upstream, _) =
            between.pass(request("GET", "/p", "Connection: close\r\n")).await;
        upstream.send(format!("HTTP/1.1 200 OK\r\n{sent}")).await;
        drop(upstream);
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{sent:?}: {answer:?}");
        assert!(answer.contains(&format!("\"reason\":\"{reason}\"")), "{sent:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_merely_odd_is_passed_on_in_order() {
    let between = Between::start().await;
    let close = "Connection: close\r\n";
    for (method, sent, seen) in [
        ("GET", "Content-Length: 2, 2\r\n\r\nok", "\r\ncontent-length: 2\r\n"),
        ("GET", "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", "\r\ncontent-length: 2\r\n"),
        ("HEAD", "Content-Length: 2\r\nContent-Length: 2\r\n\r\n", "\r\ncontent-length: 2\r\n"),
        ("GET", "X-A: b\r\n  c\r\nContent-Length: 2\r\n\r\nok", "\r\nx-a: b c\r\n"),
        ("GET", "X-A : b\r\nContent-Length: 2\r\n\r\nok", "\r\nx-a: b\r\n"),
    ] {
        let (mut client, mut upstream, _) = between.pass(request(method, "/p", close)).await;
        upstream.send(format!("HTTP/1.1 200 OK\r\n{close}{sent}")).await;
        let answer = client.rest().await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{sent:?}: {answer:?}");
        assert!(answer.contains(seen), "{sent:?}: {answer:?}");
        assert_eq!(answer.matches("content-length").count(), 1, "{sent:?}: {answer:?}");
    }
}

#[tokio::test]
async fn the_two_ends_are_tied_together_only_after_the_upstreams_101() {
    let between = Between::start().await;
    let asks = request("GET", "/ws", "Connection: upgrade\r\nUpgrade: chat\r\n");
    let (mut client, mut upstream, _) = between.pass(asks.clone() + "early").await;
    upstream.send(OK).await;
    ok(&mut client).await;
    drop((client, upstream));

    let (mut client, mut upstream, head) = between.pass(asks + "early").await;
    assert!(head.contains("\r\nupgrade: chat\r\n"), "{head}");
    upstream
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: upgrade\r\n\r\n")
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(upstream.exactly(5).await, "early");
    upstream.send("late").await;
    assert_eq!(client.exactly(4).await, "late");
}

#[tokio::test]
async fn events_are_sent_on_as_they_come() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) = between.pass(request("GET", X, "")).await;
    let head =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n";
    upstream.send(format!("{head}\r\n")).await;
    assert!(client.head().await.contains("\r\nContent-Type: text/event-stream\r\n"));
    for event in ["9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n"] {
        upstream.send(event).await;
        assert_eq!(client.exactly(event.len()).await, event);
    }
}

/// How many connections ended in an error of this kind.
async fn errors(between: &Between, kind: &str) -> u64 {
    let metrics = between.sidecar.admin.get("/metrics").await;
    let name = format!("jobcache_connection_errors_total{{kind=\"{kind}\"}} ");
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(&name)).map(str::to_owned);
    line.map_or(0, |count| count.parse().expect("a count"))
}

#[tokio::test]
async fn a_request_past_a_limit_is_answered_and_counted() {
    let between = Between::with(|config| {
        config.server.max_headers = 120;
        config.server.max_header_bytes = 16 << 10;
    })
    .await;
    let fields = |count: usize| request("GET", "/p", &"X-A: 1\r\n".repeat(count - 1));
    let bytes = |count: usize| request("GET", "/p", &format!("X-A: {}\r\n", "a".repeat(count)));
    for (sent, status, kind) in [
        (fields(121), 431, "head-too-large"),
        (bytes(16 << 10), 431, "head-too-large"),
        (request("GET", "/<", ""), 400, "malformed"),
    ] {
        let before = errors(&between, kind).await;
        let answer = between.client(sent).await.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        eventually(SOON, async || errors(&between, kind).await == before + 1).await;
    }
    let answer = between.client(request("GET", &"/".repeat(8193), "")).await.rest().await;
    assert!(answer.starts_with("HTTP/1.1 414 "), "{answer}");
    assert!(answer.contains("cache-status: jobcache; detail=uri-too-long\r\n"), "{answer}");

    for sent in [fields(120), bytes(15 << 10), request("GET", &"/".repeat(8192), "")] {
        let (mut client, mut upstream, _) = between.pass(sent).await;
        upstream.send(LAST_OK).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn an_answer_past_a_limit_is_a_502_that_says_so() {
    let between = Between::with(|config| config.server.max_header_bytes = 16 << 10).await;
    for (field, count, status) in [
        ("X-A: 1\r\n".to_owned(), 98, 200),
        ("X-A: 1\r\n".to_owned(), 101, 502),
        (format!("X-A: {}\r\n", "a".repeat(15 << 10)), 1, 200),
        (format!("X-A: {}\r\n", "a".repeat(16 << 10)), 1, 502),
    ] {
        let (mut client, mut upstream, _) =
            between.pass(request("GET", "/p", "Connection: close\r\n")).await;
        let close = "Content-Length: 0\r\nConnection: close\r\n\r\n";
        upstream.send(format!("HTTP/1.1 200 OK\r\n{}{close}", field.repeat(count))).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{count}: {answer}");
        let says = answer.contains("\"reason\":\"upstream-head-too-large\"");
        assert_eq!(says, status == 502, "{count}: {answer}");
    }
}

#[tokio::test]
async fn a_header_keeps_its_name_its_value_and_its_place_among_its_like() {
    for (preserve, names) in
        [(true, ["X-FoO", "x-BaR", "X-fOO"]), (false, ["x-foo", "x-bar", "x-foo"])]
    {
        let between = Between::with(|config| config.server.preserve_header_case = preserve).await;
        let sent = request("GET", "/p", "X-FoO: 1\r\nx-BaR:  a  b \r\nX-fOO: \"\u{e9}\"\r\n");
        let (mut client, mut upstream, seen) = between.pass(sent).await;
        let [a, b, c] = names;
        let want = format!("\r\n{a}: 1\r\n{c}: \"\u{e9}\"\r\n{b}: a  b\r\n");
        assert!(seen.contains(&want), "{seen}");

        let sent = "X-WeIrD: 1\r\nSet-Cookie: a=1\r\nETag: x\r\nset-cookie: b=2\r\nX-Empty:\r\n";
        upstream.send(format!("HTTP/1.1 200 Fine\r\n{sent}Content-Length: 2\r\n\r\nok")).await;

        let head = ok(&mut client).await;
        let want = "X-WeIrD: 1\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nETag: x\r\nX-Empty: \r\n";
        assert!(head.starts_with(&format!("HTTP/1.1 200 Fine\r\n{want}")), "{head}");
    }
}

#[tokio::test]
async fn the_first_answer_of_a_fill_is_spelled_as_the_upstream_spells_it_and_a_hit_in_lower_case() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) = between.pass(request("GET", X, "")).await;
    upstream.send("HTTP/1.1 200 OK\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok").await;
    let miss = ok(&mut client).await;
    assert!(miss.contains("\r\nX-Kept: 1\r\n"), "{miss}");

    client.send(request("GET", X, "")).await;

    let hit = ok(&mut client).await;
    assert!(hit.contains("\r\nx-kept: 1\r\n"), "{hit}");
}

const TRAILERS: &str = "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";

#[tokio::test]
async fn trailers_of_an_upload_reach_the_upstream() {
    let between = Between::start().await;
    for (method, path) in [("POST", "/p"), ("PUT", X), ("GET", "/p")] {
        let announced = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n";
        let sent = request(method, path, announced) + TRAILERS;
        let (mut client, mut upstream, head) = between.pass(sent).await;
        assert!(head.contains("\r\ntrailer: X-Sum\r\n"), "{head}");
        assert_eq!(upstream.exactly(TRAILERS.len()).await, TRAILERS, "{method} {path}");
        upstream.send(LAST_OK).await;
        ok(&mut client).await;
    }
}

#[tokio::test]
async fn trailers_of_an_answer_reach_a_client_that_takes_them() {
    let between = Between::start().await;
    let without = TRAILERS.replace("x-sum: 7\r\n", "");
    for path in ["/p", X] {
        for (asks, asked, want) in [
            ("Connection: TE\r\nTE: trailers\r\n", true, TRAILERS),
            ("TE: gzip;q=0.5, trailers\r\n", true, TRAILERS),
            ("", false, without.as_str()),
        ] {
            let (mut client, mut upstream, head) = between.pass(request("GET", path, asks)).await;
            assert_eq!(head.contains("\r\nte: trailers\r\n"), asked, "{head}");
            assert_eq!(head.contains("\r\nconnection: te\r\n"), asked, "{head}");
            let announced = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n";
            upstream.send(format!("HTTP/1.1 200 OK\r\n{announced}\r\n{TRAILERS}")).await;
            let head = client.head().await;
            assert!(head.contains("\r\nTrailer: X-Sum\r\n"), "{head}");
            assert_eq!(client.exactly(want.len()).await, want, "{path} {asks:?}");
        }
    }
}

#[tokio::test]
async fn trailers_reach_a_client_of_http_2_announced_or_not() {
    let between = Between::start().await;
    let mut sender = between.sidecar.client.http2().await;
    for announced in ["Trailer: X-Sum\r\n", ""] {
        let request = Request::get(format!("http://{HOST}/p")).body(full("")).expect("a request");
        let answer = tokio::spawn(sender.send_request(request));
        let mut upstream = between.accept().await;
        upstream.head().await;
        let head = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{announced}");
        upstream.send(format!("{head}Connection: close\r\n\r\n{TRAILERS}")).await;

        let answer = soon(answer).await.expect("no panic").expect("an answer");
        let reply = Reply::read(answer).await.expect("a whole body");

        reply.assert(200, "abc");
        assert_eq!(reply.trailers["x-sum"], "7", "{announced:?}");
    }
}
