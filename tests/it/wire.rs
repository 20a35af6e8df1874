//! Passed messages arrive as if there were no proxy: checked byte by byte, with a client and an
//! upstream that use raw HTTP/1.

use std::time::Duration;

use hyper::Request;
use jobcache::config::InvalidateRule;
use tokio::time::Instant;

use crate::support::{
    Reply,
    client::HOST,
    full,
    raw::{Between, LAST_OK, OK, ok, request},
    soon,
};

const X: &str = "/jobs/x1";

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";

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
    assert!(
        hit.contains("cache-status: jobcache; hit"),
        "an informational response was stored: {hit}"
    );
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

        // The client's first response shows that jobcache has not sent a 100 of its own.
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
    let between = Between::with(|config| config.api.invalidate = vec![rule(&[], &["/id"])]).await;
    for (method, path) in [("POST", "/upload"), ("PUT", X), ("POST", RULED)] {
        for refusal in ["Content-Length: 0\r\n\r\n", "Content-Length: 5\r\n\r\nlarge"] {
            let (mut client, mut upstream, _) = between.pass(request(method, path, EXPECT)).await;

            upstream.send(format!("HTTP/1.1 413 Content Too Large\r\n{refusal}")).await;

            let answer = client.rest().await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
            assert!(answer.ends_with(refusal.rsplit('\n').next().unwrap_or("")), "{answer}");
            assert_eq!(upstream.rest().await, "", "{method}: the connection was not closed");
        }
    }
}

const RULED: &str = "/batch";

/// Returns a rule for the path [`RULED`].
fn rule(request: &[&str], response: &[&str]) -> InvalidateRule {
    let list = |items: &[&str]| items.iter().map(ToString::to_string).collect();
    let (request, response) = (list(request), list(response));
    InvalidateRule {
        path: RULED.to_owned(),
        request,
        response,
        max_body: 64,
        ..InvalidateRule::default()
    }
}

#[tokio::test]
async fn an_upload_that_a_rule_looks_into_is_asked_for_before_the_upstream_is() {
    let between = Between::with(|config| config.api.invalidate = vec![rule(&["/id"], &[])]).await;
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
    let between = Between::with(|config| config.api.invalidate = vec![rule(&["/id"], &[])]).await;
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
    let between = Between::with(|config| config.api.invalidate = vec![rule(&[], &["/id"])]).await;
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

/// A client that could switch the upstream to HTTP/2 would write past every invalidation.
#[tokio::test]
async fn a_tunnel_of_http_is_neither_offered_nor_opened() {
    let between = Between::start().await;
    let offers =
        "Connection: upgrade\r\nUpgrade: h2c\r\nUpgrade: chat, \"h2c\", HTTP/2.0, TLS/1.0\r\n";
    let (mut client, mut upstream, head) = between.pass(request("GET", "/ws", offers)).await;
    assert!(head.contains("\r\nupgrade: chat\r\n"), "{head}");
    upstream
        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 502 "));
    drop((client, upstream));

    let only_http = "Connection: upgrade\r\nUpgrade: h2c, HTTP/2.0\r\n";
    let (_, _, head) = between.pass(request("GET", "/ws", only_http)).await;
    assert!(!head.contains("upgrade"), "{head}");
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
async fn headers_keep_their_order_whatever_goes_from_between_them() {
    let between = Between::start().await;
    let hops = "Connection: X-Hop\r\nX-A: 1\r\nX-Hop: 2\r\nX-B: 3\r\nKeep-Alive: 5\r\nX-C: 4\r\nX-D: 5\r\n";
    let (mut client, mut upstream, head) = between.pass(request("GET", "/other", hops)).await;
    let order = |head: &str| {
        let names = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let names: Vec<_> = names.map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.into_iter().filter(|name| name.len() == 3 && name != "via").collect::<Vec<_>>()
    };
    assert_eq!(order(&head), ["x-a", "x-b", "x-c", "x-d"], "{head}");

    upstream.send(format!("HTTP/1.1 200 OK\r\n{hops}Content-Length: 0\r\n\r\n")).await;
    let answer = client.head().await;
    assert_eq!(order(&answer), ["x-a", "x-b", "x-c", "x-d"], "{answer}");
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

/// hyper decides with the head which trailers a chunked answer may have.
#[tokio::test]
async fn unannounced_trailers_are_left_out_for_a_client_of_http_1_and_its_answer_is_whole() {
    let between = Between::start().await;
    for path in ["/p", X] {
        let asks = "Connection: TE\r\nTE: trailers\r\n";
        let (mut client, mut upstream, _) = between.pass(request("GET", path, asks)).await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n";
        upstream.send(format!("{head}\r\n{TRAILERS}")).await;
        client.head().await;
        let without = TRAILERS.replace("x-sum: 7\r\n", "");
        assert_eq!(client.exactly(without.len()).await, without, "{path}");
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
