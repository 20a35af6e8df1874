//! Jobs that the target of a write names in any of its parts, and writes that name none.

use hyper::{Method, StatusCode};
use jobcache::config::InvalidateRule;

use crate::support::{
    Process, SOON, Setup, Upstream, eventually,
    redis::key,
    sidecar::Sidecar,
    upstream::{json, version},
};

const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

/// Changes a job by a write with this target, then asserts that both sidecars serve the new
/// version.
async fn check_write(both: (&Setup, &Sidecar), method: &str, target: &str, id: &str) {
    let (setup, second) = both;
    let path = format!("/jobs/{id}");
    eventually(SOON, async || setup.get(&path).await.is_hit()).await;
    eventually(SOON, async || second.get(&path).await.is_hit()).await;
    let written = target.split('?').next().unwrap_or_default();
    setup.upstream.respond(written, |_| Some(json(StatusCode::OK, "{}")));
    let before = setup.get(&path).await.text().to_owned();

    setup.upstream.commit(&id.to_ascii_lowercase());
    let (status, _) = setup.sidecar.client.spelled(method, target).await;

    assert_eq!(status, 200, "{method} {target}");
    for sidecar in [&setup.sidecar, second] {
        assert_ne!(sidecar.get(&path).await.text(), before, "{method} {target}: {id} is stale");
    }
}

#[tokio::test]
async fn every_part_of_a_target_may_name_a_job() {
    let setup = Setup::new().await;
    let second = setup.second().await;
    let both = (&setup, &second);
    for (method, target, id) in [
        ("POST", "/jobs/7:cancel", "7"),
        ("POST", "/jobs/7%3Acancel", "7"),
        ("DELETE", "/jobs/7,8", "7"),
        ("DELETE", "/jobs/7,8", "8"),
        ("DELETE", "/jobs/7|8", "8"),
        ("DELETE", "/jobs/7~8", "8"),
        ("DELETE", "/jobs?id=7", "7"),
        ("DELETE", "/jobs/?ids=6,7&x", "7"),
        ("DELETE", "/jobs?id=%37", "7"),
        ("POST", "/jobs/batch?jobs[]=6&jobs[]=8", "8"),
        ("POST", "/jobs('7')", "7"),
        ("POST", "/Jobs(id=7)/Default.Cancel", "7"),
        ("POST", "/api/v1/jobs;id=7", "7"),
        ("POST", "/jobs/cancel/7", "7"),
        ("POST", "/jobs/cancel/7,8", "8"),
        ("PUT", "/jobs/ABC1", "abc1"),
        ("PUT", "/jobs/abd2", "ABD2"),
        ("DELETE", "/jobs?id=Job-A1", "job-a1"),
        ("POST", "/jobs/1/../7", "1"),
        ("DELETE", "/jobs?id=urn:uuid:0F8FAD5BD9CB469FA16570867728950E", UUID),
    ] {
        check_write(both, method, target, id).await;
    }
}

#[tokio::test]
async fn a_job_named_elsewhere_is_fenced_while_the_write_runs_and_not_for_the_settle_time() {
    let setup = Setup::with(|config| config.cache.settle = std::time::Duration::from_mins(1)).await;
    let job = "/jobs/7";
    let gate = setup.upstream.hold(Method::DELETE, "/jobs");
    setup.upstream.respond("/jobs", |_| Some(json(StatusCode::OK, "{}")));
    let write = setup.sidecar.client.start(Method::DELETE, "/jobs?id=7", "").await;
    gate.arrived(1).await;
    assert!(setup.get(job).await.cache_status().contains("detail=fenced"));
    gate.release();
    assert_eq!(write.answer().await.0, 200);

    eventually(SOON, async || setup.get(job).await.is_hit()).await;

    let named = setup.sidecar.client.request(Method::PUT, job).send().await;
    assert_eq!(named.status, 200);
    assert!(setup.get(job).await.cache_status().contains("detail=fenced"));
}

#[tokio::test]
async fn a_job_named_elsewhere_is_forgotten_again_after_the_settle_time() {
    let setup = Setup::with(|config| config.cache.settle = std::time::Duration::from_secs(2)).await;
    setup.upstream.respond("/jobs", |_| Some(json(StatusCode::OK, "{}")));

    setup.sidecar.client.request(Method::DELETE, "/jobs?id=7").send().await;
    // A lagging replica still shows the old row, which is stored.
    eventually(SOON, async || setup.get("/jobs/7").await.is_hit()).await;
    setup.upstream.commit("7");

    eventually(SOON, async || setup.get("/jobs/7").await.text() == version("7", 1)).await;
}

#[tokio::test]
async fn a_job_that_a_path_only_passes_is_not_kept_uncached() {
    let setup = Setup::with(|config| config.cache.settle = std::time::Duration::from_mins(1)).await;
    let path = (1..32).fold(String::from("/jobs/0"), |path, id| path + &format!("/../{id}"));

    setup.sidecar.client.spelled("POST", &path).await;

    assert!(setup.get("/jobs/31").await.cache_status().contains("detail=fenced"));
    for id in [1, 16, 30] {
        eventually(SOON, async || setup.get(&format!("/jobs/{id}")).await.is_hit()).await;
    }
}

/// Sends a write that names `count` jobs, with this answer. Returns whether job 5000, which it does
/// not name, is still cached.
async fn keeps_others(setup: &Setup, count: usize, status: StatusCode) -> bool {
    let ids: Vec<_> = (1..=count).map(|id| id.to_string()).collect();
    eventually(SOON, async || setup.get("/jobs/5000").await.is_hit()).await;
    eventually(SOON, async || setup.get("/jobs/9").await.is_hit()).await;
    setup.upstream.respond("/jobs", move |_| Some(json(status, "{}")));
    let target = format!("/jobs?ids={}", ids.join(","));
    setup.sidecar.client.request(Method::DELETE, &target).send().await;
    assert!(!setup.redis.holds(&key("9")).await, "{count}");
    setup.redis.holds(&key("5000")).await
}

#[tokio::test]
async fn a_target_that_names_more_than_a_thousand_jobs_counts_for_all() {
    let setup = Setup::new().await;
    assert!(keeps_others(&setup, 1000, StatusCode::OK).await);
    // Any client can send such a list. Only one that the API accepts may cost the others their entries.
    for status in [StatusCode::CONFLICT, StatusCode::SEE_OTHER] {
        assert!(keeps_others(&setup, 1001, status).await, "{status}");
    }
    assert!(!keeps_others(&setup, 1001, StatusCode::OK).await);
}

#[tokio::test]
async fn a_target_that_is_too_long_to_be_read_in_every_way_counts_for_all() {
    let setup = Setup::new().await;
    setup.upstream.respond("/other", |_| Some(json(StatusCode::OK, "{}")));
    let long = "a".repeat(60_000);
    for headers in [
        vec![("x-original-url", format!("/%6aobs/7;{long}"))],
        vec![("x-1-path", format!("/x;{long}")), ("x-original-url", "/jobs/7/".to_owned())],
        vec![("x-1-path", format!("/x;\\{long}")), ("x-2-path", "/x/..%2Fjobs/7".to_owned())],
    ] {
        eventually(SOON, async || setup.get("/jobs/7").await.is_hit()).await;
        let before = setup.get("/jobs/7").await.text().to_owned();
        setup.upstream.commit("7");
        let mut write = setup.sidecar.client.request(Method::PUT, "/other");
        for (name, value) in &headers {
            write = write.header(name, value);
        }
        assert_eq!(write.send().await.status, StatusCode::OK);
        assert_ne!(setup.get("/jobs/7").await.text(), before, "{headers:.40?}");
    }
}

/// The variables after `{id}` of the jobs that a write above them changes are not in its path.
#[tokio::test]
async fn a_write_above_a_variable_changes_all_jobs_and_one_at_a_job_that_job_whatever_the_answer() {
    const RUN: &str = "/flows/7/runs/3";
    let setup = Setup::with(|config| {
        config.api.paths.push("/flows/{id}/runs/{run}".to_owned());
    })
    .await;
    for (method, path, status) in [
        (Method::PUT, RUN, 200),
        (Method::PUT, RUN, 303),
        (Method::PUT, RUN, 409),
        (Method::PUT, RUN, 500),
        (Method::PUT, "/Flows/7/Runs/3/", 409),
        (Method::DELETE, "/flows/7", 200),
        (Method::POST, "/flows/7/cancel", 303),
        (Method::POST, "/flows/7/cancel", 500),
    ] {
        let said = format!("{method} {path} {status}");
        setup.upstream.respond(RUN, |_| Some(json(StatusCode::OK, "\"old\"")));
        setup.redis.del(&key("7:3")).await;
        setup.hit(RUN).await;
        let gate = setup.upstream.hold(method.clone(), path);
        let request = setup.sidecar.client.request(method, path);
        let (written, ()) = tokio::join!(request.send(), async {
            gate.arrived(1).await;
            let status = StatusCode::from_u16(status).expect("a status");
            let script = move |_| Some(json(status, "\"new\""));
            setup.upstream.respond(path, script);
            setup.upstream.respond(RUN, |_| Some(json(StatusCode::OK, "\"new\"")));
            if path == RUN {
                setup.upstream.respond(RUN, script);
            }
            gate.release();
        });
        assert_eq!(written.status, status, "{said}");
        setup.upstream.respond(RUN, |_| Some(json(StatusCode::OK, "\"new\"")));
        assert_eq!(setup.get(RUN).await.text(), "\"new\"", "{said}");
    }
}

#[tokio::test]
async fn a_segment_without_a_digit_is_not_a_job() {
    let setup = Setup::new().await;
    for word in ["stats", "latest", "next"] {
        for _ in 0..2 {
            let read = setup.get(&format!("/jobs/{word}")).await;
            assert!(read.cache_status().contains("fwd=bypass; detail=word"), "{read:?}");
        }
        assert!(!setup.redis.holds(&key(word)).await);
    }
    let told = setup.sidecar.admin.get("/explain/stats").await;
    assert_eq!(told.json()["verdict"]["detail"], "word", "{told:?}");
}

fn rule(path: &str, query: &[&str]) -> InvalidateRule {
    let query = query.iter().map(ToString::to_string).collect();
    InvalidateRule { path: path.to_owned(), query, ..InvalidateRule::default() }
}

#[tokio::test]
async fn a_rule_may_have_text_around_the_id_and_take_ids_from_a_query() {
    let rules = vec![rule("/ops/{id}:cancel", &[]), rule("/ops", &["id", "ids"])];
    let setup = Setup::with(|config| config.api.invalidate = rules).await;
    let second = setup.second().await;
    for (target, id) in [
        ("/ops/7:cancel", "7"),
        ("/ops/7%3Acancel", "7"),
        ("/ops?id=7", "7"),
        ("/ops?ids=6,7&ids=8", "8"),
        ("/ops?ids[]=6&ids[]=7", "7"),
    ] {
        check_write((&setup, &second), "POST", target, id).await;
    }
    eventually(SOON, async || setup.get("/jobs/7").await.is_hit()).await;
    setup.sidecar.client.spelled("POST", "/ops/7:stop").await;
    setup.sidecar.client.spelled("POST", "/ops?page=7").await;
    assert!(setup.get("/jobs/7").await.is_hit());
}

async fn unclaimed(process: &Process) -> usize {
    let metrics = process.admin.get("/metrics").await.text().to_owned();
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("jobcache_unclaimed_writes_total "));
    line.expect("the metric").parse().expect("a count")
}

#[tokio::test]
async fn a_write_at_the_jobs_that_names_none_is_counted_and_reported_once() {
    let upstream = Upstream::start().await;
    let url = upstream.url();
    let args = ["--upstream", &url, "--redis-url", "memory://", "--log-format", "json"];
    let process = Process::start(&args, &[]).await;
    let post = async |path: &str| process.client.request(Method::POST, path).send().await.status;
    for path in ["/jobs", "/jobs/cancel-all", "/", "/jobs/", "/uploads"] {
        upstream.respond(path, |_| Some(json(StatusCode::OK, "{}")));
    }

    for path in ["/jobs", "/jobs/", "/jobs/cancel-all", "/jobs/cancel-all?limit=10", "/"] {
        assert_eq!(post(path).await, 200);
    }
    assert_eq!(unclaimed(&process).await, 5);

    for path in ["/uploads", "/jobs/7", "/jobs?id=7"] {
        post(path).await;
    }
    upstream.respond("/jobs", |_| Some(json(StatusCode::CONFLICT, "{}")));
    post("/jobs").await;
    let created = |_| {
        let response = hyper::Response::builder().status(201).header("location", "/jobs/17");
        Some(response.body(crate::support::full("{}")).expect("a valid head"))
    };
    upstream.respond("/jobs", created);
    post("/jobs").await;
    assert_eq!(unclaimed(&process).await, 5);

    let log = process.stderr();
    let warned: Vec<serde_json::Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &serde_json::Value| line["rule"].is_string())
        .collect();
    let paths: Vec<_> = warned.iter().map(|line| line["path"].clone()).collect();
    assert_eq!(paths, ["/jobs", "/jobs/cancel-all", "/"], "{log}");
    let rule = |path: &str, jobs: &str| {
        format!("[[invalidate]]\nmethods = [\"POST\"]\npath = \"{path}\"\n{jobs}")
    };
    let created = "response = [\"/id\"]\non_miss = \"ignore\"";
    assert_eq!(warned[0]["rule"], rule("/jobs", created));
    assert_eq!(warned[1]["rule"], rule("/jobs/cancel-all", "all = true"));
}
