//! The log: its contents, its format, and who may change it at run time.

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::support::{Process, Reply, SOON, Upstream, eventually};

const X: &str = "/jobs/x1";
const SECRET: &str = "0123456789abcdef";

async fn process(args: &[&str], envs: &[(&str, &str)]) -> (Process, Upstream) {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = [&["--upstream", &url, "--redis-url", "memory://"], args].concat();
    (Process::start(&args, envs).await, upstream)
}

/// Returns the fields of the first line of the access log.
async fn first_access(process: &Process) -> Value {
    eventually(SOON, async || {
        let log = process.stderr();
        let all = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON alone"));
        all.into_iter().find(|line| line["message"] == "request").ok_or(log)
    })
    .await
}

#[tokio::test]
async fn a_json_log_is_one_object_a_line_with_the_fields_of_the_human_one() {
    let (json, _one) = process(&["--access-log", "--log-format", "json"], &[]).await;
    json.client.get("/jobs/x1?token=hunter2").await;
    let line = first_access(&json).await;
    assert_eq!(
        (&line["level"], &line["method"], &line["path"]),
        (&"INFO".into(), &"GET".into(), &X.into())
    );
    assert_eq!((&line["status"], &line["outcome"]), (&200.into(), &"pass".into()), "{line}");
    assert_eq!(line["reason"], "query", "{line}");
    assert!(line["took_ms"].is_f64() && line["timestamp"].is_string(), "{line}");
    assert!(line.get("trace_id").is_none(), "{line}");
    assert!(!json.stderr().contains("hunter2"));

    let (human, _two) = process(&["--access-log", "--log-format", "human"], &[]).await;
    human.client.get(X).await;
    let line = eventually(SOON, async || {
        let log = human.stderr();
        log.lines().find(|line| line.contains(": request ")).map(str::to_owned).ok_or(log)
    })
    .await;
    for field in ["method=", "path=", "status=", "outcome=", "reason=", "took_ms="] {
        assert!(line.contains(field), "{line} lacks {field}");
    }
}

async fn put(process: &Process, filter: &'static str, secret: Option<&str>) -> Reply {
    let request = process.admin.request(Method::PUT, "/log").body(filter);
    match secret {
        Some(secret) => request.header("authorization", &format!("Bearer {secret}")).send().await,
        None => request.send().await,
    }
}

#[tokio::test]
async fn an_operator_changes_the_filter_until_the_next_reload() {
    let (process, _upstream) = process(&["--access-log", "--log", "warn"], &[]).await;
    assert_eq!(process.admin.get("/log").await.text(), "{\"log\":\"warn\"}\n");
    process.client.get(X).await;

    let reply = put(&process, "info,h2=off", None).await;

    assert_eq!(reply.text(), "{\"log\":\"info,h2=off\",\"was\":\"warn\"}\n");
    process.client.get("/jobs/y1").await;
    eventually(SOON, async || process.stderr().contains("/jobs/y1")).await;
    assert!(!process.stderr().contains(X), "{}", process.stderr());
    process.hang_up();
    eventually(SOON, async || process.admin.get("/log").await.text().contains("warn")).await;
}

#[tokio::test]
async fn a_filter_that_is_none_changes_nothing_and_is_told_why() {
    let (process, _upstream) = process(&[], &[]).await;
    for (filter, says) in [
        ("verbose", "is not a level"),
        ("jobcache=loud", "jobcache=loud\\\" is not a filter"),
        ("", "must be one of off, error"),
    ] {
        let reply = put(&process, filter, None).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{filter}");
        assert!(reply.text().contains(says), "{filter}: {reply:?}");
    }
    let long: &'static str = Box::leak("a".repeat(5000).into_boxed_str());
    assert_eq!(put(&process, long, None).await.status, StatusCode::BAD_REQUEST);
    let other = process.admin.request(Method::POST, "/log").send().await;
    assert_eq!(other.headers["allow"], "GET, HEAD, PUT");
    assert_eq!(process.admin.get("/log").await.text(), "{\"log\":\"info\"}\n");
}

#[tokio::test]
async fn the_filter_takes_the_secret_of_the_webhook_to_change() {
    let (process, _upstream) = process(&[], &[("JOBCACHE_WEBHOOK_SECRET", SECRET)]).await;

    assert_eq!(put(&process, "debug", None).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(put(&process, "debug", Some("another secret")).await.status, 401);
    assert_eq!(process.admin.get("/log").await.text(), "{\"log\":\"info\"}\n");
    assert_eq!(put(&process, "debug", Some(SECRET)).await.status, StatusCode::OK);
}
