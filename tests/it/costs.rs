//! The cost of one request: no target and no header makes the sidecar spend more than a little CPU on it
//! before it is forwarded, and clients that cannot be accepted cost a line in the log.

use std::{fmt::Write as _, process::Command, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Body, Process, RedisServer, SOON, Upstream, eventually, full, raw::End, soon,
};

const X: &str = "/jobs/x1";
/// Size of a head that is near the limit.
const LARGE: usize = 60_000;
/// Requests of each kind.
const REQUESTS: u32 = 20;
/// Most CPU of a request, before it is forwarded and after, as a multiple of that of a plain write. The
/// ratio hardly depends on the machine, its load and the optimization. The most that was seen
/// is 26 without optimization, and 16 with it.
const MOST: u32 = 40;
/// Attempts at a measurement: a busy machine makes single ones too large.
const ATTEMPTS: u32 = 3;

/// Rules and parameters that are looked up for every request.
const CONFIG: &str = r#"
[query]
ignore = ["_", "t"]
allow = ["fields"]
[[invalidate]]
path = "/batch/{name}"
query = ["id", "ids"]
[[invalidate]]
path = "/jobs/{id}/{verb}"
"#;

async fn sidecar() -> (RedisServer, Upstream, Process) {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), CONFIG).expect("a written file");
    let path = file.path().to_str().expect("a readable path");
    let (redis_url, upstream_url) = (redis.url(), upstream.url());
    let stores = ["--redis-url", &redis_url, "--upstream", &upstream_url];
    let args = [&stores[..], &["--config", path, "--settle", "0s"]].concat();
    let sidecar = Process::start(&args, &[("JOBCACHE_SERVER_MAX_URI", "63KiB")]).await;
    eventually(SOON, async || sidecar.client.get(X).await.is_hit()).await;
    (redis, upstream, sidecar)
}

/// Returns the CPU time that a process has used.
fn cpu(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(tasks.filter_map(of_task).sum())
}

/// Repeats a text up to the size of a large head.
fn large(part: &str) -> String {
    part.repeat(LARGE / part.len())
}

/// Numbers a text up to the size of a large head.
fn numbered(before: &str, after: &str) -> String {
    let mut text = String::new();
    for n in 0.. {
        if text.len() > LARGE {
            break;
        }
        let _ = write!(text, "{before}{n}{after}");
    }
    text
}

/// As many ids as one target may name, none of which was named before.
fn ids(length: usize) -> String {
    (1..=1_000)
        .map(|n| format!("{n:0>length$}"))
        .map(|id| format!("1{id}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn field(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

/// Lines of a head, for a read and for a write.
fn heads() -> Vec<(&'static str, String)> {
    let url = |value: String| field("X-Original-URL", &value);
    vec![
        ("another URL, encoded", url(format!("/jobs/{}", large("%252e7")))),
        ("another URL, dots", url(large("/jobs/7;a\\.."))),
        ("another URL, segments", field("X-Rewrite-URL", &format!("/jobs{}", large("/a1")))),
        ("another URL, suffixes", url(format!("/jobs/7{}", large(".a")))),
        ("another URL, words", url(format!("/jobs?{}", large("a,")))),
        ("another URL, ids", url(format!("/jobs?id={}", ids(8)))),
        (
            "many URLs",
            (0..90)
                .map(|n| field(&format!("X-{n}-Path"), &"/jobs/1%2e;2/b\\".repeat(40)))
                .collect(),
        ),
        ("connection options", field("Connection", &numbered("a", ","))),
        ("cache directives", field("Cache-Control", &numbered("a", "=1,"))),
        ("entity tags", field("If-None-Match", &numbered("\"", "\","))),
        ("cookies", field("Cookie", &numbered("a", "=b; "))),
        ("types", field("Accept", &numbered("a/b", ";q=0.5,"))),
        ("codings", field("Accept-Encoding", &numbered("a", ";q=0.5,"))),
        ("proxies", field("Forwarded", &numbered("for=1.2.3.4;host=a", ","))),
        ("proxies without pairs", field("Forwarded", &large("a,"))),
        ("options that are fields", {
            let fields: String = (0..80).map(|n| field(&format!("x{n}"), "v")).collect();
            field("Connection", &numbered("x", ",")) + &fields
        }),
        ("a field that is an option", {
            let half = LARGE / 2;
            let options = "forwarded,".repeat(half / 10);
            field("Forwarded", &"a,".repeat(half / 2)) + &field("Connection", &options)
        }),
        ("addresses", field("X-Forwarded-For", &numbered("1.2.3.", ","))),
        ("baggage", field("baggage", &numbered("sentry-a", "=b,"))),
        ("preferences", field("Prefer", &numbered("wait", "=1,"))),
        ("fields", (0..80).map(|n| field(&format!("x-{n}"), &"v".repeat(600))).collect()),
        ("a credential", field("Authorization", &format!("Bearer {}", large("x")))),
    ]
}

/// Methods and targets.
fn targets() -> Vec<(&'static str, &'static str, String)> {
    vec![
        ("a thousand ids", "DELETE", format!("/jobs?id={}", ids(4))),
        ("a thousand ids in a path", "DELETE", format!("/jobs/{}", ids(8))),
        ("a thousand ids that a rule names", "DELETE", format!("/batch/a?ids={}", ids(4))),
        ("a long target", "DELETE", format!("/jobs{}", large("/a1"))),
        ("a long target of nothing", "DELETE", format!("/jobs{}", large("/"))),
        ("a long target without names", "DELETE", format!("/jobs{}", large("/a"))),
        ("a thousand ids in three cases", "DELETE", {
            let ids: Vec<_> = (0..1_000).map(|n| format!("aBcDeF{n}")).collect();
            format!("/jobs/{}", ids.join(","))
        }),
        ("a long query of text", "DELETE", format!("/jobs?q={}", large("{a:[1,2,'7']},"))),
        ("a long target with dots", "DELETE", format!("/jobs{}", large("/7/.."))),
        ("a long query", "GET", format!("{X}?{}", numbered("_", "=1&"))),
        ("a long query of a write", "DELETE", format!("/jobs?{}", numbered("a", "=b&"))),
        ("a long query of words", "DELETE", format!("/jobs?{}", large("a,"))),
        ("a long query of nothing", "DELETE", format!("/jobs?{}", large("=&"))),
        ("a long query of dots", "DELETE", format!("/jobs?{}", large("."))),
        ("a long query for a rule", "DELETE", format!("/batch/a?{}", numbered("a", "=b&"))),
        ("an answer with a long Location", "POST", "/jobs/located".to_owned()),
        ("an answer with a long Vary", "POST", "/jobs/varied".to_owned()),
    ]
}

/// A sidecar, and a connection to it for each request head.
struct Meter {
    sidecar: Process,
}

impl Meter {
    /// Returns the CPU of one such request.
    async fn cost(&self, name: &str, request: &str) -> Duration {
        let mut client = End::new(self.sidecar.client.connect().await);
        let before = cpu(self.sidecar.pid());
        for _ in 0..REQUESTS {
            client.send(request).await;
            let (head, _) = client.answer().await;
            // The API knows no job at most targets.
            let is_forwarded = ["200", "201", "404"].contains(&&head[9..12]);
            assert!(is_forwarded, "{name}: {head}");
        }
        cpu(self.sidecar.pid()).saturating_sub(before) / REQUESTS
    }

    /// The CPU of a write of one job.
    async fn plain(&self) -> Duration {
        self.cost("a plain write", &head("PUT", X, "")).await
    }

    /// Asserts that such a request costs at most so much more than a plain write in the same minute.
    async fn check(&self, name: &str, request: &str) {
        for attempt in 1..=ATTEMPTS {
            let plain = self.plain().await;
            let each = self.cost(name, request).await;
            if is_cheap(name, each, plain) {
                return;
            }
            assert!(attempt < ATTEMPTS, "{name}: {each:?}, a plain write {plain:?}");
        }
    }
}

fn is_cheap(name: &str, each: Duration, plain: Duration) -> bool {
    eprintln!("{name}: {each:?}, {:.1} of a plain write", each.div_duration_f64(plain));
    each < plain * MOST
}

fn head(method: &str, target: &str, lines: &str) -> String {
    let body = if method == "GET" { "" } else { "Content-Length: 0\r\n" };
    format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{body}{lines}\r\n")
}

#[tokio::test]
async fn no_head_costs_more_than_a_little_cpu() {
    let (_redis, _upstream, sidecar) = sidecar().await;
    let meter = Meter { sidecar };
    for (name, lines) in heads() {
        for method in ["GET", "PUT"] {
            meter.check(&format!("{method} with {name}"), &head(method, X, &lines)).await;
        }
    }
}

#[tokio::test]
async fn no_target_and_no_answer_costs_more_than_a_little_cpu() {
    let (_redis, upstream, sidecar) = sidecar().await;
    let answer = |name: &'static str, value: String| {
        move |_| {
            let response = Response::builder().status(201).header(name, &value);
            Some(response.body(full("{}")).expect("a valid head"))
        }
    };
    upstream.respond("/jobs/located", answer("location", format!("/jobs{}", large("/a1"))));
    upstream.respond("/jobs/varied", answer("vary", numbered("x-", ",")));
    let meter = Meter { sidecar };
    for (name, method, target) in targets() {
        meter.check(name, &head(method, &target, "")).await;
    }
}

#[tokio::test]
async fn no_http2_head_costs_more_than_a_little_cpu() {
    let (_redis, _upstream, sidecar) = sidecar().await;
    let meter = Meter { sidecar };
    let mut client = meter.sidecar.client.http2().await;
    let heads = [
        ("X-Original-URL", format!("/jobs?id={}", ids(4))),
        ("X-Original-URL", format!("/jobs/7{}", ".a".repeat(6_000))),
        ("Cookie", "a=b; ".repeat(2_000)),
        ("Cache-Control", "a=1,".repeat(3_000)),
    ];
    for (name, value) in heads {
        let mut attempts = 0..ATTEMPTS;
        let mut is_within_bound = false;
        while !is_within_bound && attempts.next().is_some() {
            let plain = meter.plain().await;
            let before = cpu(meter.sidecar.pid());
            for _ in 0..REQUESTS {
                let request = Request::put(format!("http://a{X}")).header(name, &value);
                let body: Body = full("");
                let response = soon(client.send_request(request.body(body).expect("a head"))).await;
                let response = response.expect("an answer");
                assert_eq!(response.status(), 200, "{name}");
                soon(response.into_body().collect()).await.expect("a body");
            }
            let each = cpu(meter.sidecar.pid()).saturating_sub(before) / REQUESTS;
            is_within_bound = is_cheap(&format!("HTTP/2 with {name}"), each, plain);
        }
        assert!(is_within_bound, "{name}");
    }
}

/// The sidecar may open no further file: clients that are connected are served, and the log has one line
/// about those that wait.
#[tokio::test]
async fn without_a_file_for_another_client_the_others_are_served_and_the_log_has_one_line() {
    let (_redis, _upstream, sidecar) = sidecar().await;
    let mut connected = sidecar.client.connect().await;
    let mut hit = async || {
        connected
            .write_all(format!("GET {X} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut answer = [0; 4096];
        let length = connected.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    hit().await;
    let limited = Command::new("prlimit")
        .args(["--pid", &sidecar.pid().to_string(), "--nofile=8:8"])
        .status()
        .expect("prlimit is installed with setpriv");
    assert!(limited.success());

    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(sidecar.client.connect().await);
    }
    let says_so = || sidecar.stderr().matches("cannot accept a connection").count();
    eventually(SOON, async || says_so() > 0).await;
    for _ in 0..50 {
        let answer = hit().await;
        assert!(answer.contains("jobcache; hit"), "{answer}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    assert_eq!(says_so(), 1, "{}", sidecar.stderr());
}

/// More clients come than there may be open files: the operator, Redis and the API still get theirs.
#[tokio::test]
async fn clients_leave_files_for_the_operator_redis_and_the_upstream() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let (redis_url, upstream_url) = (redis.url(), upstream.url());
    let args = ["--redis-url", &redis_url, "--upstream", &upstream_url, "--settle", "0s"];
    let sidecar = Process::with_open_files(80, &args).await;
    eventually(SOON, async || sidecar.client.get(X).await.is_hit()).await;
    assert!(sidecar.stderr().contains("fewer client connections are accepted"));

    let mut connected = sidecar.client.connect().await;
    let mut others = Vec::new();
    for _ in 0..100 {
        others.push(sidecar.client.connect().await);
    }
    let admin = &sidecar.admin;
    eventually(SOON, async || admin.limit_hits("server.max_connections").await > 0).await;
    let miss = b"GET /jobs/y1 HTTP/1.1\r\nHost: a\r\n\r\n";
    connected.write_all(miss).await.unwrap();
    let mut answer = [0; 4096];
    let length = soon(connected.read(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("stored"), "{answer}");
    let purge = admin.request(Method::POST, "/purge").body(r#"{"all":true}"#).send().await;
    assert_eq!(purge.status, 200, "{purge:?}");
    assert!(!sidecar.stderr().contains("cannot accept a connection"), "{}", sidecar.stderr());
}
