//! Jobs that the answer to a write names in `Location` or `Content-Location`.

use std::time::Duration;

use hyper::{Method, Response};

use crate::support::{Body, SOON, Setup, eventually, full, redis::key, upstream::version};

/// A job that no path of the writes here names.
const JOB: &str = "/jobs/17";

/// Reads the path until it is a hit.
async fn fill(setup: &Setup, path: &str) {
    eventually(SOON, async || setup.get(path).await.is_hit()).await;
}

fn created(status: u16, name: &'static str, value: &str) -> Response<Body> {
    let response = Response::builder().status(status).header(name, value);
    response.body(full(r#"{"ok":true}"#)).expect("a valid head")
}

/// Asserts whether an answer to `POST <path>` with this header drops the entry of job 17.
async fn check_answer(
    setup: &Setup,
    path: &str,
    status: u16,
    header: [&'static str; 2],
    drops: bool,
) {
    let [name, value] = header;
    fill(setup, JOB).await;
    setup.upstream.respond(path, move |_| Some(created(status, name, value)));

    let write = setup.sidecar.client.request(Method::POST, path).body("{}").send().await;

    assert_eq!((write.status.as_u16(), write.text()), (status, r#"{"ok":true}"#));
    assert_eq!(write.header(name), value);
    assert_eq!(setup.redis.holds(&key("17")).await, !drops, "{path} {status} {name}: {value}");
}

#[tokio::test]
async fn a_job_that_an_answer_names_is_dropped_before_it_is_answered() {
    let setup = Setup::new().await;
    for name in ["location", "content-location"] {
        for value in
            [JOB, "/jobs/17?full=1", "/api/v1/jobs/017", "http://jobs.example/jobs/17/status"]
        {
            check_answer(&setup, "/jobs", 201, [name, value], true).await;
        }
        check_answer(&setup, "/jobs/", 201, [name, "17"], true).await;
        check_answer(&setup, "/jobs/9/restart", 303, [name, "../17"], true).await;
    }
    check_answer(&setup, "/jobs", 202, ["location", "https://jobs.example/jobs/17"], true).await;
    let upstream: &'static str = format!("{}/jobs/17", setup.upstream.url()).leak();
    check_answer(&setup, "/jobs", 201, ["location", upstream], true).await;
}

#[tokio::test]
async fn the_origin_and_a_prefix_of_a_named_job_are_ignored() {
    let setup = Setup::new().await;
    for value in [
        "https://api.example.com/jobs/17",
        "//other.example/jobs/17",
        "http://jobs.example:81/jobs/17",
        "/backend/jobs/17",
        "https://api.example.com/v2/backend/jobs/17/steps/9?x#y",
        "/jobs/17:result",
    ] {
        check_answer(&setup, "/jobs", 201, ["location", value], true).await;
    }
}

#[tokio::test]
async fn a_job_that_an_error_or_another_path_names_is_not_dropped() {
    let setup = Setup::new().await;
    check_answer(&setup, "/jobs", 201, ["location", "/elsewhere/17"], false).await;
    for status in [400, 409, 500] {
        check_answer(&setup, "/jobs", status, ["location", JOB], false).await;
    }
}

#[tokio::test]
async fn a_read_whose_answer_names_a_job_drops_nothing() {
    let setup = Setup::new().await;
    fill(&setup, JOB).await;
    setup.upstream.respond("/jobs/latest/show", |_| Some(created(302, "location", JOB)));

    setup.get("/jobs/latest/show").await;

    assert!(setup.get(JOB).await.is_hit());
}

#[tokio::test]
async fn a_fill_that_began_before_a_job_was_named_is_discarded() {
    let setup = Setup::new().await;
    setup.upstream.respond("/jobs", |_| Some(created(201, "location", JOB)));
    let gate = setup.upstream.hold_after_read(Method::GET, JOB);
    let reader = setup.sidecar.client.start(Method::GET, JOB, "").await;
    gate.arrived(1).await;

    setup.upstream.commit("17");
    setup.sidecar.client.request(Method::POST, "/jobs").send().await;
    let later = setup.sidecar.client.start(Method::GET, JOB, "").await;
    gate.arrived(2).await;
    gate.release();

    assert_eq!(reader.answer().await, (200, version("17", 0)));
    assert_eq!(later.answer().await, (200, version("17", 1)));
    setup.hit(JOB).await.assert(200, &version("17", 1));
}

#[tokio::test]
async fn nothing_is_stored_while_a_named_job_settles() {
    let setup = Setup::with(|config| config.cache.settle = Duration::from_mins(1)).await;
    setup.upstream.respond("/jobs", |_| Some(created(201, "location", JOB)));

    setup.sidecar.client.request(Method::POST, "/jobs").send().await;

    for _ in 0..2 {
        assert!(setup.get(JOB).await.cache_status().contains("detail=fenced"));
    }
}
