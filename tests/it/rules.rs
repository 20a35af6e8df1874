//! The rules of `[[invalidate]]`: jobs that a write changes in addition to the job of its own path.

use bytes::Bytes;
use hyper::{Method, Response, StatusCode};
use jobcache::config::{InvalidateRule, OnMiss};

use crate::support::{
    Process, RedisServer, SOON, Setup, Upstream, eventually, free_port, full,
    redis::key,
    sidecar,
    upstream::{json, version},
    zeros,
};

/// A job that no path of the writes here names.
const JOB: &str = "/jobs/17";

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn rule(path: &str, request: &[&str], response: &[&str]) -> InvalidateRule {
    let (request, response) = (list(request), list(response));
    InvalidateRule { path: path.to_owned(), request, response, ..InvalidateRule::default() }
}

fn all(path: &str) -> InvalidateRule {
    InvalidateRule { path: path.to_owned(), all: true, ..InvalidateRule::default() }
}

/// Returns a setup with these rules.
async fn ruled(rules: Vec<InvalidateRule>) -> Setup {
    Setup::with(|config| config.api.invalidate = rules).await
}

/// Reads the path until it is a hit.
async fn fill(setup: &Setup, path: &str) {
    eventually(SOON, async || setup.get(path).await.is_hit()).await;
}

async fn misses(setup: &Setup, body: &str, reason: &str) -> usize {
    let metrics = setup.sidecar.admin.get("/metrics").await;
    let name = format!("jobcache_rule_misses_total{{body=\"{body}\",reason=\"{reason}\"}} ");
    let line = metrics.text().lines().find_map(|line| line.strip_prefix(&name).map(str::to_owned));
    line.map_or(0, |count| count.parse().expect("a count"))
}

/// Sends a write and asserts that it drops exactly these of the jobs 17 and 18.
async fn check_rule(
    setup: &Setup,
    path: &str,
    body: &'static str,
    answer: &'static str,
    dropped: &[&str],
) {
    for id in ["17", "18"] {
        fill(setup, &format!("/jobs/{id}")).await;
    }
    setup.upstream.respond(path, move |seen| {
        assert_eq!(seen, body);
        Some(json(StatusCode::OK, answer))
    });

    let write = setup.sidecar.client.request(Method::POST, path).body(body).send().await;

    write.assert(200, answer);
    for id in ["17", "18"] {
        let held = setup.redis.holds(&key(id)).await;
        assert_eq!(held, !dropped.contains(&id), "{path} {body} {answer}: {id}");
    }
}

#[tokio::test]
async fn a_rule_drops_the_job_of_its_path() {
    let setup = ruled(vec![rule("/t/{tenant}/uploads/{id}/finish", &[], &[])]).await;

    check_rule(&setup, "/t/18/uploads/17/finish", "x", "y", &["17"]).await;
    check_rule(&setup, "/t/18/uploads/017/finish/", "x", "y", &["17"]).await;
    check_rule(&setup, "/t/18/uploads/17", "x", "y", &[]).await;
}

#[tokio::test]
async fn a_rule_drops_the_jobs_that_a_request_names() {
    let setup = ruled(vec![rule("/batch", &["/job_id", "/jobs/*/id"], &[])]).await;

    check_rule(&setup, "/batch", r#"{"job_id":17}"#, "", &["17"]).await;
    check_rule(&setup, "/batch", r#"{"job_id":"018"}"#, "", &["18"]).await;
    check_rule(&setup, "/batch", r#"{"jobs":[{"id":"17"},{},{"id":18}]}"#, "", &["17", "18"]).await;
    check_rule(&setup, "/batch", r#"{"id":17}"#, r#"{"job_id":17}"#, &["17", "18"]).await;
    check_rule(&setup, "/batch", "", r#"{"job_id":17}"#, &[]).await;
    check_rule(&setup, "/other", r#"{"job_id":17}"#, "", &[]).await;
    assert_eq!(misses(&setup, "request", "not-found").await, 1);
}

#[tokio::test]
async fn a_rule_drops_the_jobs_that_an_answer_names_before_it_is_answered() {
    let setup = ruled(vec![rule("/batch", &[], &["/job/id", "/ids/*"])]).await;

    check_rule(&setup, "/batch", "", r#"{"job":{"id":17}}"#, &["17"]).await;
    check_rule(&setup, "/batch", "", r#"{"ids":[17,"18"]}"#, &["17", "18"]).await;
    check_rule(&setup, "/batch", r#"{"ids":[17]}"#, "", &[]).await;
    check_rule(&setup, "/batch", r#"{"ids":[17]}"#, "{}", &["17", "18"]).await;
    assert_eq!(misses(&setup, "response", "not-found").await, 1);
}

#[tokio::test]
async fn an_upstream_is_not_asked_to_compress_what_a_rule_looks_into() {
    let setup = ruled(vec![rule("/batch", &[], &["/id"])]).await;
    for path in ["/batch", "/other"] {
        let request = setup.sidecar.client.request(Method::POST, path);
        request.header("accept-encoding", "gzip").send().await;
    }

    let asked = |path: &str| {
        let seen = setup.upstream.requests();
        let seen = seen.iter().find(|seen| seen.target == path).expect("a request").headers.clone();
        seen.contains_key("accept-encoding")
    };
    assert_eq!((asked("/batch"), asked("/other")), (false, true));
}

#[tokio::test]
async fn a_rule_for_all_drops_every_job_and_voids_fills() {
    let setup = ruled(vec![InvalidateRule { methods: list(&["DELETE"]), ..all("/jobs") }]).await;
    let client = &setup.sidecar.client;
    fill(&setup, JOB).await;
    let gate = setup.upstream.hold_after_read(Method::GET, "/jobs/18");
    let reader = client.start(Method::GET, "/jobs/18", "").await;
    gate.arrived(1).await;
    setup.upstream.respond("/jobs", |_| Some(json(StatusCode::OK, "{}")));

    client.request(Method::POST, "/jobs").send().await;
    assert!(setup.get(JOB).await.is_hit());
    setup.upstream.commit("18");
    client.request(Method::DELETE, "/jobs").send().await.assert(200, "{}");

    assert!(!setup.redis.holds(&key("17")).await);
    gate.release();
    assert_eq!(reader.answer().await, (200, version("18", 0)));
    setup.hit("/jobs/18").await.assert(200, &version("18", 1));
}

#[tokio::test]
async fn a_write_that_the_upstream_has_never_seen_drops_nothing() {
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let setup = ruled(vec![all("/jobs")]).await;
    fill(&setup, JOB).await;
    let mut config = sidecar::config(&setup.redis, &setup.upstream);
    (config.upstream.url, config.api.invalidate) = (nowhere, vec![all("/jobs")]);
    let cut_off = sidecar::Sidecar::start(config).await;
    let ready = async || cut_off.admin.get("/readyz").await.json()["store"] == "up";
    eventually(SOON, ready).await;

    let reply = cut_off.client.request(Method::DELETE, "/jobs").send().await;

    assert_eq!(reply.status, 502);
    assert!(setup.redis.holds(&key("17")).await);
}

#[tokio::test]
async fn whoever_is_turned_away_cannot_drop_every_job() {
    let setup = ruled(vec![all("/jobs")]).await;
    let refusals = [401, 403, 405, 413, 415, 429].map(|status| (status, false));
    for (status, drops) in refusals.into_iter().chain([(409, true), (500, true)]) {
        fill(&setup, JOB).await;
        let status = StatusCode::from_u16(status).expect("a status");
        setup.upstream.respond("/jobs", move |_| Some(json(status, "{}")));

        setup.sidecar.client.request(Method::DELETE, "/jobs").send().await;

        assert_eq!(setup.redis.holds(&key("17")).await, !drops, "{status}");
    }
}

#[tokio::test]
async fn a_job_that_a_request_names_is_fenced_while_the_write_is_under_way() {
    let setup = ruled(vec![rule("/batch", &["/ids/*"], &[])]).await;
    fill(&setup, JOB).await;
    let gate = setup.upstream.hold(Method::POST, "/batch");
    let write = setup.sidecar.client.start(Method::POST, "/batch", r#"{"ids":[17]}"#).await;
    gate.arrived(1).await;

    for _ in 0..2 {
        let during = setup.get(JOB).await;
        assert!(during.cache_status().contains("detail=fenced"), "{during:?}");
        assert!(!setup.redis.holds(&key("17")).await);
    }

    setup.upstream.commit("17");
    gate.release();
    write.answer().await;
    setup.hit(JOB).await.assert(200, &version("17", 1));
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_keep_an_answer_from_dropping_what_it_names() {
    let setup = ruled(vec![rule("/batch", &[], &["/id"])]).await;
    setup.upstream.respond("/batch", |_| Some(json(StatusCode::OK, r#"{"id":17}"#)));
    fill(&setup, JOB).await;
    let gate = setup.upstream.hold(Method::POST, "/batch");
    let write = setup.sidecar.client.start(Method::POST, "/batch", "{}").await;
    gate.arrived(1).await;

    drop(write);
    setup.exchange().await;
    gate.release();

    eventually(SOON, async || !setup.redis.holds(&key("17")).await).await;
}

/// Returns a rule that may miss jobs.
fn lenient(rule: InvalidateRule) -> InvalidateRule {
    InvalidateRule { on_miss: OnMiss::Ignore, ..rule }
}

async fn fallbacks(setup: &Setup) -> u64 {
    setup.sidecar.admin.metric("jobcache_rule_fallbacks_total").await
}

/// Requests that name job 17 to some API, and not to a rule with the pointer `/id`: the body, a
/// header field, and the reason.
fn unreadable() -> Vec<(Vec<u8>, (&'static str, &'static str), &'static str)> {
    let plain = ("x-a", "b");
    let text = |text: &str| text.as_bytes().to_vec();
    let exactly = |size: usize| {
        let (before, after) = (r#"{"id":17,"pad":""#, r#""}"#);
        text(&format!("{before}{}{after}", "x".repeat(size - before.len() - after.len())))
    };
    vec![
        (exactly((64 << 10) + 1), plain, "too-large"),
        (text(r#"{"id":17,"progress":NaN}"#), plain, "not-json"),
        (text(r#"{"id":17,"name":"\ud800"}"#), plain, "not-json"),
        (b"{\"id\":17,\"name\":\"\xff\"}".to_vec(), plain, "not-json"),
        (text("{\"id\":17"), plain, "not-json"),
        (text("id=17"), plain, "not-json"),
        (text(&"[".repeat(200)), plain, "not-json"),
        (text(r#"{"id":17}"#), ("content-encoding", "gzip"), "encoded"),
        (
            text(r#"{"id":18,"a":"&id=17"}"#),
            ("content-type", "application/x-www-form-urlencoded"),
            { "content-type" },
        ),
        (text(r#"{"id":17,"id":18}"#), plain, "ambiguous"),
        (text(r#"{"id":[17]}"#), plain, "not-found"),
        (text(r#"{"id":null}"#), plain, "not-found"),
        (text(r#"{"Id":17}"#), plain, "not-found"),
        (text("{}"), plain, "not-found"),
    ]
}

#[tokio::test]
async fn a_request_that_cannot_be_looked_into_drops_every_job_if_it_is_accepted() {
    let setup = ruled(vec![rule("/batch", &["/id"], &[])]).await;
    for (at, (body, (name, value), reason)) in unreadable().into_iter().enumerate() {
        let text = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        for (status, drops) in [(StatusCode::ACCEPTED, true), (StatusCode::CONFLICT, false)] {
            fill(&setup, JOB).await;
            setup.upstream.respond("/batch", move |_| Some(json(status, "{}")));
            let before = misses(&setup, "request", reason).await;
            let request = setup.sidecar.client.request(Method::POST, "/batch");

            request
                .header(name, value)
                .body(body.clone())
                .send()
                .await
                .assert(status.as_u16(), "{}");

            assert_eq!(setup.redis.holds(&key("17")).await, !drops, "{status} {text}");
            assert_eq!(misses(&setup, "request", reason).await, before + 1, "{status} {text}");
        }
        assert_eq!(fallbacks(&setup).await, at as u64 + 1, "{text}");
    }
}

#[tokio::test]
async fn a_request_that_names_some_of_its_jobs_only_drops_every_job() {
    let setup = ruled(vec![rule("/batch", &["/jobs/*/id"], &[])]).await;

    let ids = r#"{"jobs":[{"id":18},{"id":{"$oid":"17"}}]}"#;
    check_rule(&setup, "/batch", ids, "", &["17", "18"]).await;
    let large = r#"{"jobs":[{"id":18},{"id":99999999999999999999}]}"#;
    check_rule(&setup, "/batch", large, "", &["17", "18"]).await;
    assert_eq!(misses(&setup, "request", "not-id").await, 2);
    let some = r#"{"jobs":[{"id":18},{"id":null},{}]}"#;
    check_rule(&setup, "/batch", some, "", &["18"]).await;
    assert_eq!(fallbacks(&setup).await, 2);
}

#[tokio::test]
async fn an_empty_body_names_nothing() {
    let setup = ruled(vec![rule("/batch", &["/id"], &["/id"])]).await;
    fill(&setup, JOB).await;
    setup.upstream.respond("/batch", |_| Some(json(StatusCode::OK, "")));
    for coding in ["identity", "gzip"] {
        let request = setup.sidecar.client.request(Method::POST, "/batch");
        request.header("content-encoding", coding).send().await.assert(200, "");
    }

    assert!(setup.redis.holds(&key("17")).await);
    assert_eq!(fallbacks(&setup).await, 0);
}

#[tokio::test]
async fn an_unreadable_write_without_an_answer_drops_every_job() {
    for rule in [rule("/batch", &["/id"], &[]), rule("/batch", &[], &["/id"])] {
        let setup = ruled(vec![rule]).await;
        fill(&setup, JOB).await;
        setup.upstream.respond("/batch", |_| None);

        let write = setup.sidecar.client.request(Method::POST, "/batch").body("{").send().await;

        assert_eq!(write.status, StatusCode::BAD_GATEWAY);
        assert!(!setup.redis.holds(&key("17")).await);
    }
}

#[tokio::test]
async fn a_lenient_rule_lets_an_unreadable_request_drop_nothing() {
    let setup = ruled(vec![lenient(rule("/batch", &["/id"], &[]))]).await;
    setup.upstream.respond("/batch", |_| Some(json(StatusCode::OK, "{}")));
    for (body, (name, value), reason) in unreadable() {
        fill(&setup, JOB).await;
        let before = misses(&setup, "request", reason).await;
        let request = setup.sidecar.client.request(Method::POST, "/batch");

        request.header(name, value).body(body).send().await.assert(200, "{}");

        assert_eq!(misses(&setup, "request", reason).await, before + 1, "{reason}");
        assert!(setup.get(JOB).await.is_hit(), "{reason}");
    }
    assert_eq!(fallbacks(&setup).await, 0);
}

#[tokio::test]
async fn a_request_that_cannot_be_looked_into_arrives_unharmed() {
    let setup = ruled(vec![InvalidateRule { max_body: 64, ..rule("/batch", &["/id"], &[]) }]).await;
    setup.upstream.respond("/batch", |body| Some(json(StatusCode::OK, body)));
    for body in [format!(r#"{{"id":17,"pad":"{}"}}"#, "x".repeat(4096)), "{\"id\":17".to_owned()] {
        let request = setup.sidecar.client.request(Method::POST, "/batch");

        request.body(body.clone()).send().await.assert(200, &body);
    }
}

#[tokio::test]
async fn a_large_upload_in_chunks_streams_past_a_rule() {
    let setup = ruled(vec![rule("/batch", &["/id"], &[])]).await;
    let size = 8 << 20;
    let request = setup.sidecar.client.request(Method::POST, "/batch").stream(zeros(size));

    request.send().await;

    let seen = setup.upstream.requests();
    let seen = seen.iter().find(|seen| seen.target == "/batch").expect("a request");
    assert_eq!(seen.body_len, size);
    assert_eq!(seen.headers["transfer-encoding"], "chunked");
    assert_eq!(misses(&setup, "request", "too-large").await, 1);
}

#[tokio::test]
async fn a_small_upload_in_chunks_is_looked_into() {
    let setup = ruled(vec![rule("/batch", &["/id"], &[])]).await;
    setup.upstream.respond("/batch", |body| Some(json(StatusCode::OK, body)));
    fill(&setup, JOB).await;
    let head = "POST /batch HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked";

    let chunks = "4\r\n{\"id\r\n5\r\n\":17}\r\n0\r\n\r\n";
    let answer = setup.sidecar.client.raw(format!("{head}\r\n\r\n{chunks}").as_bytes()).await;

    assert_eq!(crate::support::client::split(&answer), (200, r#"{"id":17}"#.to_owned()));
    assert!(!setup.redis.holds(&key("17")).await);
}

#[tokio::test]
async fn an_answer_that_cannot_be_looked_into_arrives_unharmed_and_drops_every_job() {
    let short = InvalidateRule { max_body: 64, ..rule("/batch", &[], &["/id"]) };
    check_unreadable_answers(short.clone(), false).await;
    check_unreadable_answers(lenient(short), true).await;
}

async fn check_unreadable_answers(rule: InvalidateRule, is_kept: bool) {
    let setup = ruled(vec![rule]).await;
    let large = format!(r#"{{"id":17,"pad":"{}"}}"#, "x".repeat(4096));
    for (body, coding, reason) in [
        (large.clone(), "identity", "too-large"),
        ("{\"id\":17".to_owned(), "identity", "not-json"),
        (r#"{"id":17}"#.to_owned(), "gzip", "encoded"),
        (r#"{"id":null}"#.to_owned(), "identity", "not-found"),
    ] {
        fill(&setup, JOB).await;
        let before = misses(&setup, "response", reason).await;
        let sent = Bytes::from(body.clone());
        setup.upstream.respond("/batch", move |_| {
            let response = Response::builder().header("content-encoding", coding);
            Some(response.body(full(sent.clone())).expect("a valid head"))
        });

        let write = setup.sidecar.client.request(Method::POST, "/batch").send().await;

        write.assert(200, &body);
        assert_eq!(write.header("content-length"), body.len().to_string());
        assert_eq!(misses(&setup, "response", reason).await, before + 1, "{reason}");
        assert_eq!(setup.redis.holds(&key("17")).await, is_kept, "{reason}");
    }
}

#[tokio::test]
async fn an_answer_of_unknown_length_that_is_too_large_streams_on() {
    let setup = ruled(vec![rule("/batch", &[], &["/id"])]).await;
    let size: u64 = 4 << 20;
    setup.upstream.respond("/batch", move |_| Some(Response::new(zeros(size))));

    let write = setup.sidecar.client.request(Method::POST, "/batch").send().await;

    assert_eq!(write.body.len() as u64, size);
    assert!(write.body.iter().all(|byte| *byte == 0));
    assert_eq!(misses(&setup, "response", "too-large").await, 1);
}

#[tokio::test]
async fn events_are_sent_on_as_they_come_whatever_the_rules() {
    let setup = ruled(vec![rule("/batch", &[], &["/id"])]).await;
    let feed = setup.upstream.feed("/batch", &[("content-type", "text/event-stream")]);

    fill(&setup, JOB).await;

    // The head arrives while the body is still open.
    let head = setup.sidecar.client.request(Method::POST, "/batch").open().await;

    assert_eq!(head.status(), StatusCode::OK);
    // The rule has not read the ids.
    assert!(!setup.redis.holds(&key("17")).await);
    assert_eq!(misses(&setup, "response", "event-stream").await, 1);
    feed.end();
}

#[tokio::test]
async fn an_error_that_names_no_job_is_not_counted() {
    let setup = ruled(vec![rule("/batch", &[], &["/id"])]).await;
    for (body, dropped) in [("{\"detail\":\"no\"}", false), ("{\"id\":17}", true)] {
        fill(&setup, JOB).await;
        setup.upstream.respond("/batch", move |_| Some(json(StatusCode::CONFLICT, body)));

        setup.sidecar.client.request(Method::POST, "/batch").send().await.assert(409, body);

        assert_eq!(setup.redis.holds(&key("17")).await, !dropped);
    }
    assert_eq!(misses(&setup, "response", "not-found").await, 0);
}

#[tokio::test]
async fn a_request_names_a_bounded_number_of_jobs_and_drops_the_others_too() {
    let rule = InvalidateRule { max_body: 1 << 20, ..rule("/batch", &["/*"], &[]) };
    check_many_jobs(rule.clone(), (false, false)).await;
    check_many_jobs(lenient(rule), (false, true)).await;
}

async fn check_many_jobs(rule: InvalidateRule, want: (bool, bool)) {
    let setup = ruled(vec![rule]).await;
    setup.upstream.respond("/batch", |_| Some(json(StatusCode::OK, "{}")));
    let mut ids: Vec<u32> = (1_000_000..1_000_999).collect();
    ids.extend([17, 18]);
    for id in ["17", "18"] {
        fill(&setup, &format!("/jobs/{id}")).await;
    }
    let body = serde_json::to_string(&ids).expect("a list of numbers");

    setup.sidecar.client.request(Method::POST, "/batch").body(body).send().await;

    let held = (setup.redis.holds(&key("17")).await, setup.redis.holds(&key("18")).await);
    assert_eq!(held, want);
    assert_eq!(misses(&setup, "request", "too-many").await, 1);
}

#[tokio::test]
async fn the_rules_of_the_file_are_in_force() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let rules = "[[invalidate]]\nmethods = [\"POST\"]\npath = \"/batch\"\nrequest = [\"/id\"]\n";
    std::fs::write(file.path(), rules).expect("a written file");
    let path = file.path().to_str().expect("a readable path");
    let args = ["--config", path, "--redis-url", &redis.url(), "--upstream", &upstream.url()];
    let sidecar = Process::start(&[&args[..], &["--settle", "0s"]].concat(), &[]).await;
    eventually(SOON, async || sidecar.client.get(JOB).await.is_hit()).await;

    sidecar.client.request(Method::POST, "/batch").body(r#"{"id":17}"#).send().await;

    assert!(!redis.holds(&key("17")).await);
    eventually(SOON, async || sidecar.client.get(JOB).await.is_hit()).await;
    sidecar.client.request(Method::POST, "/batch").body("no").send().await;
    let warned = || sidecar.stderr().contains("did not find every job that a write changes");
    eventually(SOON, async || warned()).await;
}
