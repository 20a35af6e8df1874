//! The client, jobcache and the upstream agree on where a message goes and where it ends. Messages
//! that could be read in two ways, or that exceed a limit, are rejected.

use crate::support::{
    SOON, eventually,
    raw::{Between, LAST_OK, OK, ok, request},
};

const X: &str = "/jobs/x1";

/// The upstream's view of ambiguous bytes: nothing, or one unambiguous request.
enum Seen {
    Nothing,
    /// The body, in the framing that jobcache chose.
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
        // If the end were misread, this would be a second request.
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
        assert!(
            !seen.contains("0\r\n\r\n"),
            "{broken:?}: the upstream got an end that was never sent: {seen:?}"
        );
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
    assert!(answer.ends_with("\r\n\r\nabc"), "the body does not end with the connection: {answer}");
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
async fn a_transfer_coding_that_there_is_not_says_nothing_of_an_answer() {
    let between = Between::start().await;
    let (mut client, mut upstream, _) =
        between.pass(request("GET", "/p", "Connection: close\r\n")).await;
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: a=b\r\n\r\nok".to_owned()).await;
    drop(upstream);
    let answer = client.rest().await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer:?}");
    assert!(answer.contains("\r\nok\r\n") && !answer.contains("a=b"), "{answer:?}");
}

/// Returns how many connections ended in an error of this kind.
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
