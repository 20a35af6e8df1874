//! What one request may cost: no target and no header makes the sidecar spend more than a little CPU on it
//! before it is forwarded, and clients that cannot be accepted cost a line in the log.

use std::{fmt::Write as _, process::Command, time::Duration};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Process, RedisServer, SOON, Upstream, eventually, raw::End};

const X: &str = "/jobs/x1";
/// Size of a head that is near the limit.
const LARGE: usize = 60_000;
/// Requests of each kind.
const REQUESTS: u32 = 40;
/// Most CPU of a request: without optimization 20 ms were seen, with it less than 1.5 ms.
const MOST: Duration = Duration::from_millis(if cfg!(debug_assertions) { 80 } else { 4 });

async fn sidecar() -> (RedisServer, Upstream, Process) {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let (redis_url, upstream_url) = (redis.url(), upstream.url());
    let args = ["--redis-url", &redis_url, "--upstream", &upstream_url, "--settle", "0s"];
    let sidecar = Process::start(&args, &[]).await;
    eventually(SOON, async || sidecar.client.get(X).await.is_hit()).await;
    (redis, upstream, sidecar)
}

/// Returns the CPU time that a process has used.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("its statistics");
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    assert!(!stat.is_empty());
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

/// Lines of a head, for a read and for a write.
fn heads() -> Vec<(&'static str, String)> {
    let field = |name: &str, value: String| format!("{name}: {value}\r\n");
    vec![
        ("another URL, encoded", field("X-Original-URL", format!("/jobs/{}", large("%252e7")))),
        ("another URL, dots", field("X-Original-URL", large("/jobs/7;a\\.."))),
        ("another URL, segments", field("X-Rewrite-URL", format!("/jobs{}", large("/a1")))),
        (
            "many URLs",
            (0..90).map(|n| field(&format!("X-{n}-Path"), "/jobs/1%2e;2/b\\".repeat(40))).collect(),
        ),
        ("connection options", field("Connection", numbered("a", ","))),
        ("cache directives", field("Cache-Control", numbered("a", "=1,"))),
        ("entity tags", field("If-None-Match", numbered("\"", "\","))),
        ("cookies", field("Cookie", numbered("a", "=b; "))),
        ("types", field("Accept", numbered("a/b", ";q=0.5,"))),
        ("codings", field("Accept-Encoding", numbered("a", ";q=0.5,"))),
        ("proxies", field("Forwarded", numbered("for=1.2.3.4;host=a", ","))),
        ("addresses", field("X-Forwarded-For", numbered("1.2.3.", ","))),
        ("baggage", field("baggage", numbered("sentry-a", "=b,"))),
        ("preferences", field("Prefer", numbered("wait", "=1,"))),
        ("fields", (0..80).map(|n| field(&format!("x-{n}"), "v".repeat(600))).collect()),
        ("a credential", field("Authorization", format!("Bearer {}", large("x")))),
    ]
}

#[tokio::test]
async fn no_head_costs_more_than_a_little_cpu() {
    let (_redis, _upstream, sidecar) = sidecar().await;
    for (name, lines) in heads() {
        for (method, body) in [("GET", ""), ("PUT", "Content-Length: 0\r\n")] {
            let mut client = End::new(sidecar.client.connect().await);
            let request = format!("{method} {X} HTTP/1.1\r\nHost: a\r\n{body}{lines}\r\n");
            let before = cpu(sidecar.pid());
            for _ in 0..REQUESTS {
                client.send(&request).await;
                let (head, _) = client.answer().await;
                assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}");
            }
            let each = cpu(sidecar.pid()).saturating_sub(before) / REQUESTS;
            eprintln!("{method} with {name}: {each:?}");
            assert!(each < MOST, "{method} with {name}: {each:?}");
        }
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
