//! The list of inputs in `tests/README.md`: what each input gets, what the upstream sees of it, and
//! what happens to a cached job. Each input is sent to a sidecar, and the list is compared with the
//! results. Inputs with longer explanations name a test, which must exist.

#![allow(clippy::print_stdout, reason = "the test prints its list")]

use std::fmt::Write as _;

use hyper::{HeaderMap, Method};

use crate::support::{Setup, client::split};

const README: &str = include_str!("../README.md");

/// Follows each input on the same connection. If the end of the input were misread, the upstream
/// would see something else, or never see this.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Inputs to the client listener: a request line without its version, and the lines after `Host:
/// a`.
const CLIENT: &[(&str, &[(&str, &str)])] = &[
    (
        "Where a message ends",
        &[
            (
                "POST /p",
                "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            ),
            ("POST /p", "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
            ("POST /p", "Content-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
            ("POST /p", "Content-Length: 2, 2\r\n\r\nab"),
            ("POST /p", "Content-Length: +2\r\n\r\nab"),
            ("POST /p", "Content-Length: 0x2\r\n\r\nab"),
            ("POST /p", "Content-Length : 2\r\n\r\nab"),
            ("POST /p", "Transfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding: chunked, identity\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding: \x0bchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding:\r\n chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding : chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ("POST /p", "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n"),
            ("GET /jobs/abc1", "Content-Length: 3\r\n\r\nabc"),
        ],
    ),
    (
        "Where it goes",
        &[
            ("GET /p", "Host: b\r\n\r\n"),
            ("GET http://u@b/p", "\r\n"),
            ("GET *", "\r\n"),
            ("GET b:80", "\r\n"),
            ("CONNECT b:80", "\r\n"),
        ],
    ),
    (
        "Header injection",
        &[
            ("GET /p", "X-A: b\rX-B: c\r\n\r\n"),
            ("GET /p", "X-A: b\0c\r\n\r\n"),
            ("GET /p", "X A: b\r\n\r\n"),
            ("GET /p", "X-A: b\r\n c\r\n\r\n"),
            ("GET /p\rX-A:b", "\r\n"),
            ("GET /p%0d%0aX-A:%20b", "\r\n"),
            ("GET /jobs/abc1%0d%0aX-A:%20b", "\r\n"),
        ],
    ),
    (
        "Paths of reads",
        &[
            ("GET /jobs/%61bc1", "\r\n"),
            ("GET /jobs%2Fabc1", "\r\n"),
            ("GET /jobs/x1/../abc1", "\r\n"),
            ("GET /jobs/x%2F..%2Fabc1", "\r\n"),
            ("GET //jobs//abc1", "\r\n"),
            ("GET /jobs/abc1;v=1", "\r\n"),
            ("GET /jobs/abc1%00", "\r\n"),
            ("GET /jobs/abc1\0", "\r\n"),
            ("GET /jobs/abc1/%E9", "\r\n"),
            ("GET /jobs/\u{e4}bc", "\r\n"),
            ("GET /jobs\\abc1", "\r\n"),
            ("GET /jobs/abc1?t=1", "\r\n"),
            ("GET /jobs/ABC1", "\r\n"),
            ("GET /jobs/abc1.json", "\r\n"),
            ("GET /jobs/.json", "\r\n"),
        ],
    ),
    (
        "Paths of writes",
        &[
            ("PUT /jobs/%2561bc1", "\r\n"),
            ("PUT /jobs%2Fabc1", "\r\n"),
            ("PUT /x%2F..%2Fjobs/abc1", "\r\n"),
            ("PUT //jobs//abc1", "\r\n"),
            ("PUT /x//..//jobs//..//jobs//abc1", "\r\n"),
            ("PUT /jobs/abc1;v=1", "\r\n"),
            ("PUT /jobs;v=1/abc1", "\r\n"),
            ("PUT /jobs/abc1/%00", "\r\n"),
            ("PUT /jobs/abc1/\u{e9}", "\r\n"),
            ("PUT /jobs\\abc1", "\r\n"),
            ("PUT http://a/x/..//jobs/abc1", "\r\n"),
            ("GET /jobs/abc1", "X-HTTP-Method-Override: DELETE\r\n\r\n"),
            ("POST /p", "X-Original-URL: /jobs/abc1\r\nContent-Length: 0\r\n\r\n"),
        ],
    ),
    (
        "Ids with bytes that mean something to Redis",
        &[
            ("GET /jobs/*", "\r\n"),
            ("GET /jobs/a1?c", "\r\n"),
            ("GET /jobs/[a]bc", "\r\n"),
            ("GET /jobs/{abc1}", "\r\n"),
            ("GET /jobs/abc1}:meta", "\r\n"),
            ("GET /jobs/a%20c", "\r\n"),
            ("GET /jobs/abc1%0d%0aDEL%20x", "\r\n"),
            ("PUT /jobs/*", "\r\n"),
            ("PUT /jobs/abc1}:meta", "\r\n"),
            ("PUT /jobs/abc1%0d%0aDEL%20x", "\r\n"),
        ],
    ),
];

/// Bodies of `POST /purge`.
const PURGES: &[&str] = &[
    r#"{"job_id":"abc1"}"#,
    r#"{"job_id":"*"}"#,
    r#"{"job_id":"{abc1}"}"#,
    r#"{"job_id":"abc1}:meta"}"#,
    r#"{"job_id":"abc1\r\nDEL x"}"#,
    r#"{"job_id":"abc1\u0000"}"#,
    r#"{"job_id":"../abc1"}"#,
    r#"{"job_id":""}"#,
    r#"{"job_ids":[]}"#,
    r#"{"job_id":"abc1","all":true}"#,
    r#"{"job_id":"x1","job_id":"abc1"}"#,
    r#"{"all":false}"#,
    "job_id=abc1",
];

/// Returns what the upstream saw before the request that follows each input.
fn seen(setup: &Setup) -> String {
    let requests = setup.upstream.requests();
    let mut seen = Vec::new();
    for request in requests.iter().filter(|request| request.target != "/next") {
        let body = match framing(&request.headers) {
            Some(framing) => format!(" ({} bytes, {framing})", request.body_len),
            None => String::new(),
        };
        seen.push(format!("{} {}{body}", request.method, request.target.escape_debug()));
    }
    if seen.is_empty() { "nothing".to_owned() } else { seen.join(", ") }
}

fn framing(headers: &HeaderMap) -> Option<&'static str> {
    if headers.contains_key("transfer-encoding") {
        return Some("chunked");
    }
    headers.contains_key("content-length").then_some("by length")
}

fn shown(line: &str, rest: &str) -> String {
    let rest = rest.strip_suffix("\r\n").filter(|rest| rest.is_empty()).unwrap_or(rest);
    format!("{} {}", line.escape_debug(), rest.escape_debug()).trim_end().to_owned()
}

/// Sends an input and returns the result.
async fn play(setup: &Setup, line: &str, rest: &str) -> String {
    setup.hit("/jobs/abc1").await;
    setup.upstream.forget_requests();
    let input = format!("{line} HTTP/1.1\r\nHost: a\r\n{rest}{NEXT}");
    let answer = setup.sidecar.client.raw(input.as_bytes()).await;

    let text = String::from_utf8_lossy(&answer).into_owned();
    let (status, _) = split(&answer);
    let status_line = text.lines().find_map(|line| line.strip_prefix("cache-status: "));
    let says = status_line.map_or(String::new(), |says| format!(", {}", without_ttl(says)));
    let seen = seen(setup);
    let followed = setup.upstream.reads("/next") == 1;
    let kept = if setup.get("/jobs/abc1").await.is_hit() { "kept" } else { "forgotten" };
    let end = if followed { "" } else { ", closed" };
    format!("{status}{says}{end} | upstream: {seen} | abc1 {kept}")
}

fn without_ttl(status: &str) -> String {
    let (before, ttl) = status.split_once("ttl=").unwrap_or((status, ""));
    if ttl.is_empty() { before.to_owned() } else { format!("{before}ttl=...") }
}

async fn purge(setup: &Setup, body: &'static str) -> String {
    setup.hit("/jobs/abc1").await;
    let reply = setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await;
    let purged = if reply.status == 200 {
        format!("purged {}", reply.json()["purged"])
    } else {
        reply.reason().split(';').next().unwrap_or_default().to_owned()
    };
    let kept = if setup.get("/jobs/abc1").await.is_hit() { "kept" } else { "forgotten" };
    format!("{}, {purged} | abc1 {kept}", reply.status.as_u16())
}

#[tokio::test]
async fn each_input_gets_what_the_list_in_the_readme_says() {
    let setup = Setup::new().await;
    let mut list = String::new();
    for (title, inputs) in CLIENT {
        let _ = writeln!(list, "== {title}");
        for (line, rest) in *inputs {
            let _ = writeln!(list, "{}", shown(line, rest));
            let _ = writeln!(list, "    {}", play(&setup, line, rest).await);
        }
    }
    let _ = writeln!(list, "== Purges");
    for body in PURGES {
        let _ = writeln!(list, "POST /purge {body}");
        let _ = writeln!(list, "    {}", purge(&setup, body).await);
    }
    // For runs with --nocapture; tests/README.md contains the same.
    println!("{list}");
    for (at, line) in list.lines().enumerate() {
        let near: Vec<_> = list.lines().skip(at.saturating_sub(1)).take(2).collect();
        assert!(README.lines().any(|there| there == line), "not in tests/README.md: {near:#?}");
    }
    assert!(README.contains(&list), "in another order in tests/README.md:\n{list}");
}

/// The sources of the tests that the second list names.
const SOURCES: &[&str] = &[
    include_str!("bound_connections.rs"),
    include_str!("framing.rs"),
    include_str!("half_close.rs"),
    include_str!("hostile.rs"),
    include_str!("invalidation.rs"),
    include_str!("limits.rs"),
    include_str!("peers.rs"),
    include_str!("proxying.rs"),
    include_str!("purge.rs"),
    include_str!("reads.rs"),
    include_str!("streams.rs"),
];

#[test]
fn each_test_that_the_readme_names_for_an_input_exists() {
    let (_, list) = README.split_once("| input | what it gets |").expect("the list");
    let rows = list.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut count = 0;
    for row in rows {
        let tests = row.trim_end_matches([' ', '|']).rsplit('|').next().expect("a last cell");
        for test in tests.split(',').map(|test| test.trim().trim_matches('`')) {
            let name = format!("fn {test}()");
            assert!(SOURCES.iter().any(|source| source.contains(&name)), "{test} in {row}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} tests");
}
