//! Django REST framework on gunicorn, and jobcache with a flag.

use hyper::Method;
use serde_json::json;

use super::deployed::{Deployed, Settings, Traffic, check_saved};
use crate::support::transcript::Transcript;

const APP: &str = "django_app.py";
const SETTINGS: Settings<'_> =
    Settings { flags: &["--route", "/jobs/{id}/"], variables: &[], file: "" };
const ALICE: &str = "Token token-of-alice";
const BOB: &str = "Token token-of-bob";
const JOB: &str = "/jobs/17/";
const WARM_UP: &str = "/jobs/1/";

async fn deployed() -> Deployed {
    Deployed::start(APP, &SETTINGS).await.warm(ALICE, WARM_UP).await
}

#[tokio::test]
async fn each_caller_reads_a_job_once_until_a_write_changes_it() {
    let deployed = deployed().await;
    for who in [ALICE, BOB] {
        deployed.miss_then_hit(who, JOB, "running").await;
    }
    let whole = json!({ "status": "paused", "note": "" });
    let part = json!({ "status": "done" });
    let empty = json!({});
    for (method, path, body, status) in [
        (Method::PUT, JOB, &whole, "paused"),
        (Method::PATCH, JOB, &part, "done"),
        (Method::POST, "/jobs/17/cancel/", &empty, "cancelled"),
    ] {
        let reply = deployed.write(ALICE, method, path, body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        for who in [ALICE, BOB] {
            deployed.miss_then_hit(who, JOB, status).await;
        }
    }
    for who in ["alice", "bob"] {
        assert_eq!(deployed.app.reads(&format!("{who} 17")).await, 4, "{who}");
    }
    assert_eq!(deployed.write(BOB, Method::DELETE, JOB, &empty).await.status, 204);
    for who in [ALICE, BOB] {
        deployed.passes(who, JOB, 404, "detail=").await;
    }
}

#[tokio::test]
async fn what_is_no_job_passes_and_who_may_not_read_one_is_refused() {
    let deployed = deployed().await;
    deployed.passes(ALICE, "/jobs/", 200, "detail=path").await;
    deployed.passes(ALICE, "/jobs/17/cancel/", 405, "detail=path").await;
    deployed.passes(ALICE, "/jobs/17", 301, "detail=spelling; setting=\"routes\"").await;
    deployed.passes(ALICE, "/jobs/017/", 200, "detail=spelling").await;
    deployed.miss_then_hit(ALICE, "/jobs/20/", "running").await;
    deployed.passes(BOB, "/jobs/20/", 403, "detail=").await;
    deployed.passes("Token forged", "/jobs/20/", 401, "detail=").await;
    deployed.hit(ALICE, "/jobs/20/", "running").await;
    assert_eq!(deployed.app.reads("alice 20").await, 1);
}

#[tokio::test]
async fn a_write_without_the_slash_forgets_the_job() {
    let deployed = deployed().await;
    deployed.miss_then_hit(ALICE, JOB, "running").await;
    // Django redirects it, and other frameworks carry it out.
    let reply = deployed.write(ALICE, Method::PUT, "/jobs/17", &json!({})).await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (301, JOB));
    deployed.miss_then_hit(ALICE, JOB, "running").await;
}

#[tokio::test]
async fn a_purge_names_the_key_or_the_path_of_a_job() {
    let deployed = deployed().await;
    for who in [ALICE, BOB] {
        deployed.miss_then_hit(who, JOB, "running").await;
    }
    deployed.purge(&json!({ "job_id": 17 }), "17").await;
    deployed.miss_then_hit(ALICE, JOB, "running").await;
    deployed.purge(&json!({ "path": JOB }), "17").await;
    deployed.miss_then_hit(ALICE, JOB, "running").await;
    deployed.purge_path(JOB).await;
    for who in [ALICE, BOB] {
        deployed.miss_then_hit(who, JOB, "running").await;
    }
}

#[tokio::test]
async fn nine_of_ten_polls_are_saved() {
    let traffic = Traffic {
        callers: [ALICE, BOB],
        jobs: &["/jobs/17/", "/jobs/18/", "/jobs/19/"],
        changes: &[|job| (Method::PATCH, job.to_owned(), json!({ "status": "done" }))],
    };
    check_saved(APP, &SETTINGS, &traffic, WARM_UP, "Django REST framework").await;
}

#[tokio::test]
async fn the_transcript_of_a_django_application() {
    let deployed = deployed().await;
    let mut transcript = Transcript::default();
    let note = |transcript: &mut Transcript, who: &str, what: &str, reply| {
        let who = if who == ALICE { "alice" } else { "bob" };
        transcript.note(who, what, &reply, &["location"]);
    };
    for (who, path) in [
        (ALICE, JOB),
        (ALICE, JOB),
        (BOB, JOB),
        (BOB, JOB),
        (BOB, "/jobs/20/"),
        (ALICE, "/jobs/17"),
    ] {
        note(&mut transcript, who, &format!("GET {path}"), deployed.get(who, path).await);
    }
    let done = json!({ "status": "done" });
    for (method, path, body) in
        [(Method::PATCH, JOB, &done), (Method::POST, "/jobs/17/cancel/", &json!({}))]
    {
        let what = format!("{method} {path}");
        note(&mut transcript, ALICE, &what, deployed.write(ALICE, method, path, body).await);
        for who in [ALICE, BOB, ALICE, BOB] {
            note(&mut transcript, who, &format!("GET {JOB}"), deployed.get(who, JOB).await);
        }
    }
    deployed.purge_path(JOB).await;
    transcript.line("worker  PURGE /jobs/17/");
    for who in [ALICE, ALICE] {
        note(&mut transcript, who, &format!("GET {JOB}"), deployed.get(who, JOB).await);
    }
    let gone = deployed.write(ALICE, Method::DELETE, JOB, &json!({})).await;
    note(&mut transcript, ALICE, &format!("DELETE {JOB}"), gone);
    note(&mut transcript, BOB, &format!("GET {JOB}"), deployed.get(BOB, JOB).await);
    // For runs with --nocapture.
    print!("{}", transcript.0);
    assert_eq!(transcript.0.matches("jobcache; hit").count(), 7, "{}", transcript.0);
    assert!(transcript.0.contains("404  jobcache; fwd=miss"), "{}", transcript.0);
}
