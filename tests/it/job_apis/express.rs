//! Express with ids that have colons, and jobcache with the file of `docs/job-apis.md`.

use hyper::Method;
use serde_json::json;

use super::{
    deployed::{Deployed, Settings, Traffic, check_saved},
    recipes::recipe,
};
use crate::support::{SOON, eventually};

const APP: &str = "express_app.js";
const ALICE: &str = "Bearer alice";
const BOB: &str = "Bearer bob";
const WARM_UP: &str = "/jobs/rq:job:0";
/// `encodeURIComponent('rq:job:1')`, and the same id as other clients send it.
const SPELLINGS: [&str; 3] = ["/jobs/rq%3Ajob%3A1", "/jobs/rq:job:1", "/jobs/rq%3ajob:1"];
const JOB: &str = SPELLINGS[0];

async fn deployed() -> Deployed {
    let file = recipe("Express and other Node frameworks");
    let settings = Settings { file: &file, ..Settings::default() };
    Deployed::start(APP, &settings).await.warm(ALICE, WARM_UP).await
}

#[tokio::test]
async fn an_id_with_colons_is_one_job_however_it_is_encoded() {
    let deployed = deployed().await;
    for who in [ALICE, BOB] {
        // Each spelling asks once, because the path is a part of what an answer may depend on.
        for path in SPELLINGS {
            deployed.miss_then_hit(who, path, "running").await;
        }
        for path in SPELLINGS {
            deployed.hit(who, path, "running").await;
        }
    }
    assert_eq!(deployed.redis.keys("job_status:rq*1").await, ["job_status:rq:job:1"]);
    assert_eq!(deployed.app.reads("alice rq:job:1").await, 3);
    deployed.miss_then_hit(ALICE, "/jobs/celery-task-meta-7", "running").await;
    deployed.passes(BOB, "/jobs/celery-task-meta-7", 403, "detail=").await;
    deployed.passes("Bearer mallory", JOB, 401, "detail=").await;
    deployed.passes(ALICE, "/jobs/stats", 200, "detail=except").await;
    deployed.hit(ALICE, JOB, "running").await;
}

#[tokio::test]
async fn a_write_in_any_encoding_forgets_the_job_in_all_of_them() {
    let deployed = deployed().await;
    for path in SPELLINGS {
        let done = json!({ "status": format!("done by {path}") });
        for (method, path, body, status) in [
            (Method::PATCH, path.to_owned(), done, "done by"),
            (Method::POST, format!("{path}/retry"), json!({}), "queued"),
        ] {
            for path in SPELLINGS {
                deployed.get(ALICE, path).await;
                deployed.hit(ALICE, path, "status").await;
            }
            let reply = deployed.write(BOB, method, &path, &body).await;
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            for path in SPELLINGS {
                deployed.miss_then_hit(ALICE, path, status).await;
            }
        }
    }
    deployed.miss_then_hit(ALICE, "/jobs/rq:job:2", "running").await;
    assert_eq!(deployed.write(ALICE, Method::DELETE, JOB, &json!({})).await.status, 204);
    deployed.passes(ALICE, JOB, 404, "detail=").await;
    deployed.hit(ALICE, "/jobs/rq:job:2", "running").await;
}

#[tokio::test]
async fn a_purge_names_the_key_or_the_path_of_a_job() {
    let deployed = deployed().await;
    for status in ["one", "two", "three"] {
        for who in [ALICE, BOB] {
            deployed.get(who, JOB).await;
            deployed.hit(who, JOB, "status").await;
        }
        deployed.app.work("/worker/rq:job:1", &json!({ "status": status })).await;
        match status {
            "one" => deployed.purge(&json!({ "job_id": "rq:job:1" }), "rq:job:1").await,
            "two" => deployed.purge_path(SPELLINGS[0]).await,
            _ => deployed.purge_path(SPELLINGS[1]).await,
        }
        for who in [ALICE, BOB] {
            deployed.miss_then_hit(who, JOB, status).await;
        }
    }
    deployed.redis.del("job_status:rq:job:1").await;
    eventually(SOON, async || !deployed.get(ALICE, JOB).await.is_hit()).await;
}

#[tokio::test]
async fn nine_of_ten_polls_are_saved() {
    let file = recipe("Express and other Node frameworks");
    let settings = Settings { file: &file, ..Settings::default() };
    let traffic = Traffic {
        callers: [ALICE, BOB],
        jobs: &["/jobs/rq%3Ajob%3A1", "/jobs/rq%3Ajob%3A2"],
        changes: &[|job| (Method::PATCH, job.to_owned(), json!({ "status": "done" }))],
    };
    check_saved(APP, &settings, &traffic, WARM_UP, "[Express]").await;
}
