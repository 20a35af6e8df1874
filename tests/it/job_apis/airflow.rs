//! The paths, ids, methods and statuses of Airflow's REST API, and jobcache with variables.

use hyper::Method;
use serde_json::json;

use super::{
    deployed::{Deployed, Settings, Traffic, check_saved},
    recipes::recipe,
};

const APP: &str = "airflow_app.py";
const SETTINGS: Settings<'_> = Settings {
    flags: &[],
    variables: &[
        ("JOBCACHE_ROUTES", "/api/v1/dags/{dag}/dagRuns/{id}"),
        ("JOBCACHE_IDS", "opaque"),
    ],
    file: "",
};
/// `alice:x` and `bob:x`.
const ALICE: &str = "Basic YWxpY2U6eA==";
const BOB: &str = "Basic Ym9iOng=";
const RUNS: &str = "/api/v1/dags/etl/dagRuns";
const WARM_UP: &str = "/api/v1/dags/etl/dagRuns/manual__1";
const MANUAL: &str = "manual__2024-01-01T00:00:00+00:00";
/// The spellings of `MANUAL` in clients: Airflow's own, `encodeURIComponent` and Python's `quote`.
const SPELLINGS: [&str; 4] = [
    "manual__2024-01-01T00:00:00+00:00",
    "manual__2024-01-01T00%3A00%3A00%2B00%3A00",
    "manual__2024-01-01T00:00:00%2B00:00",
    "manual__2024-01-01T00%3a00%3a00%2b00%3a00",
];
const SCHEDULED: &str = "scheduled__2024-01-02T06%3A30%3A00%2B00%3A00";

async fn deployed() -> Deployed {
    Deployed::start(APP, &SETTINGS).await.warm(ALICE, WARM_UP).await
}

fn manual() -> String {
    format!("{RUNS}/{MANUAL}")
}

/// Asserts that a run was forgotten under every spelling, and leaves it warm. Each spelling asks the
/// application once, because the path is a part of what an answer may depend on.
async fn check_forgotten(deployed: &Deployed, state: &str) {
    for spelling in SPELLINGS {
        deployed.miss_then_hit(ALICE, &format!("{RUNS}/{spelling}"), state).await;
    }
}

#[tokio::test]
async fn every_encoding_of_an_id_is_one_run() {
    let deployed = deployed().await;
    check_forgotten(&deployed, MANUAL).await;
    for spelling in SPELLINGS {
        deployed.hit(ALICE, &format!("{RUNS}/{spelling}"), MANUAL).await;
    }
    deployed.miss_then_hit(BOB, &format!("{RUNS}/{}", SPELLINGS[1]), MANUAL).await;
    deployed.miss_then_hit(ALICE, &format!("{RUNS}/{SCHEDULED}"), "scheduled__").await;
    // The same run of another DAG is another job, which Bob may not read.
    let other = format!("/api/v1/dags/report/dagRuns/{MANUAL}");
    deployed.miss_then_hit(ALICE, &other, "report").await;
    deployed.passes(BOB, &other, 403, "detail=").await;
    deployed.passes("Basic bWFsbG9yeTp4", &other, 401, "detail=").await;
    for (name, reads) in [("alice etl", 4), ("bob etl", 1), ("alice report", 1)] {
        assert_eq!(deployed.app.reads(&format!("{name}:{MANUAL}")).await, reads, "{name}");
    }
    let mut keys = deployed.redis.keys("job_status:*__2*").await;
    keys.sort_unstable();
    let job = |dag: &str, run: &str| format!("job_status:{dag}:{run}");
    let scheduled = "scheduled__2024-01-02T06:30:00+00:00";
    assert_eq!(keys, [job("etl", MANUAL), job("etl", scheduled), job("report", MANUAL)]);
}

#[tokio::test]
async fn a_write_to_a_run_or_below_it_forgets_it_however_it_is_encoded() {
    let deployed = deployed().await;
    check_forgotten(&deployed, "running").await;
    let failed = json!({ "state": "failed" });
    let cleared = json!({ "dry_run": false });
    for spelling in SPELLINGS {
        let run = format!("{RUNS}/{spelling}");
        for (method, path, body, state) in [
            (Method::PATCH, run.clone(), &failed, "failed"),
            (Method::POST, format!("{run}/clear"), &cleared, "queued"),
            (Method::PATCH, format!("{run}/taskInstances/extract"), &json!({}), "running"),
        ] {
            let reply = deployed.write(BOB, method, &path, body).await;
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            check_forgotten(&deployed, state).await;
        }
    }
    let other = format!("{RUNS}/{SCHEDULED}");
    deployed.miss_then_hit(ALICE, &other, "running").await;
    assert_eq!(deployed.write(BOB, Method::DELETE, &manual(), &json!({})).await.status, 204);
    deployed.passes(ALICE, &manual(), 404, "detail=").await;
    deployed.hit(ALICE, &other, "running").await;
}

#[tokio::test]
async fn the_list_of_runs_and_the_tasks_of_a_run_pass() {
    let deployed = deployed().await;
    deployed.passes(ALICE, RUNS, 200, "detail=path").await;
    let task = format!("{}/taskInstances/extract", manual());
    deployed.passes(ALICE, &task, 200, "detail=path").await;
}

#[tokio::test]
async fn a_purge_names_the_key_or_the_path_of_a_run() {
    let deployed = deployed().await;
    let key = format!("etl:{MANUAL}");
    for state in ["success", "failed", "queued"] {
        for path in SPELLINGS.map(|spelling| format!("{RUNS}/{spelling}")) {
            deployed.get(ALICE, &path).await;
            deployed.hit(ALICE, &path, "state").await;
        }
        let work = format!("/scheduler/etl/{MANUAL}");
        deployed.app.work(&work, &json!({ "state": state })).await;
        match state {
            "success" => deployed.purge(&json!({ "job_id": key }), &key).await,
            "failed" => deployed.purge_path(&format!("{RUNS}/{}", SPELLINGS[1])).await,
            _ => deployed.purge_path(&manual()).await,
        }
        check_forgotten(&deployed, state).await;
        deployed.miss_then_hit(BOB, &manual(), state).await;
    }
}

#[tokio::test]
async fn tasks_that_are_cleared_forget_the_run_that_the_body_names() {
    let settings = Settings { file: &recipe("Airflow"), ..Settings::default() };
    let deployed = Deployed::start(APP, &settings).await.warm(ALICE, WARM_UP).await;
    let other = format!("{RUNS}/{SCHEDULED}");
    for path in [&manual(), &other] {
        deployed.miss_then_hit(ALICE, path, "running").await;
    }
    let body = json!({ "dag_run_id": MANUAL, "dry_run": false });
    let path = "/api/v1/dags/etl/clearTaskInstances";
    assert_eq!(deployed.write(ALICE, Method::POST, path, &body).await.status, 200);
    deployed.miss_then_hit(ALICE, &manual(), "queued").await;
    deployed.hit(ALICE, &other, "running").await;
    let body = json!({ "dag_run_id": MANUAL });
    let path = "/api/v1/dags/etl/updateTaskInstancesState";
    assert_eq!(deployed.write(ALICE, Method::POST, path, &body).await.status, 404);
    deployed.miss_then_hit(ALICE, &manual(), "queued").await;
}

#[tokio::test]
async fn nine_of_ten_polls_are_saved() {
    let (manual, scheduled) = (manual(), format!("{RUNS}/{SCHEDULED}"));
    let traffic = Traffic {
        callers: [ALICE, BOB],
        jobs: &[&manual, &scheduled],
        changes: &[
            |job| (Method::PATCH, job.to_owned(), json!({ "state": "success" })),
            |job| (Method::POST, format!("{job}/clear"), json!({ "dry_run": false })),
        ],
    };
    check_saved(APP, &SETTINGS, &traffic, WARM_UP, "[Airflow]").await;
}
