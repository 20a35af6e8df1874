//! FastAPI with two path variables and JWTs, and jobcache with the file of `docs/job-apis.md`.

use hyper::Method;
use serde_json::json;

use super::{
    deployed::{Deployed, Settings, Traffic, check_saved},
    recipes::recipe,
};

const APP: &str = "tenants_app.py";
const JOB: &str = "/t/acme/jobs/17";
const OTHER: &str = "/t/globex/jobs/17";

/// Alice works for both tenants, Bob for one.
struct Office {
    deployed: Deployed,
    alice: String,
    bob: String,
}

impl Office {
    async fn open() -> Self {
        let settings = Settings { file: &recipe("FastAPI and Starlette"), ..Settings::default() };
        let deployed = Deployed::start(APP, &settings).await;
        let alice = login(&deployed, "alice", &["acme", "globex"]).await;
        let bob = login(&deployed, "bob", &["acme"]).await;
        let deployed = deployed.warm(&alice, "/t/acme/jobs/1").await;
        Self { deployed, alice, bob }
    }
}

async fn login(deployed: &Deployed, user: &str, tenants: &[&str]) -> String {
    let who = json!({ "user": user, "tenants": tenants });
    let reply = deployed.write("", Method::POST, "/login", &who).await;
    format!("Bearer {}", reply.json()["token"].as_str().expect("a token"))
}

#[tokio::test]
async fn tenants_never_mix_and_who_has_no_rights_is_refused() {
    let Office { deployed, alice, bob } = Office::open().await;
    deployed.miss_then_hit(&alice, JOB, "\"acme\"").await;
    deployed.miss_then_hit(&alice, OTHER, "\"globex\"").await;
    deployed.miss_then_hit(&bob, JOB, "\"acme\"").await;
    deployed.passes(&bob, OTHER, 403, "detail=").await;
    deployed.hit(&alice, OTHER, "\"globex\"").await;
    deployed.passes(&alice, "/t/acme/jobs/latest", 200, "detail=").await;
    assert!(deployed.redis.holds("job_status:acme:17").await);
    assert!(deployed.redis.holds("job_status:globex:17").await);
    for (name, reads) in [("alice acme:17", 1), ("alice globex:17", 1), ("bob acme:17", 1)] {
        assert_eq!(deployed.app.reads(name).await, reads, "{name}");
    }
}

#[tokio::test]
async fn a_write_forgets_the_job_of_its_tenant_alone() {
    let Office { deployed, alice, bob } = Office::open().await;
    for path in [JOB, OTHER] {
        deployed.miss_then_hit(&alice, path, "running").await;
    }
    deployed.miss_then_hit(&bob, JOB, "running").await;
    let done = json!({ "status": "done" });
    assert_eq!(deployed.write(&bob, Method::PUT, JOB, &done).await.status, 200);
    deployed.hit(&alice, OTHER, "running").await;
    for who in [&alice, &bob] {
        deployed.miss_then_hit(who, JOB, "done").await;
    }
}

#[tokio::test]
async fn a_purge_names_the_key_or_the_path_of_a_job() {
    let Office { deployed, alice, bob } = Office::open().await;
    for (number, status) in ["one", "two", "three"].into_iter().enumerate() {
        for path in [JOB, OTHER] {
            deployed.get(&alice, path).await;
            deployed.hit(&alice, path, "id").await;
        }
        deployed.get(&bob, JOB).await;
        deployed.app.work("/worker/acme/17", &json!({ "status": status })).await;
        match number {
            0 => deployed.purge(&json!({ "job_id": "acme:17" }), "acme:17").await,
            1 => deployed.purge(&json!({ "path": JOB }), "acme:17").await,
            _ => deployed.purge_path(JOB).await,
        }
        deployed.hit(&alice, OTHER, "running").await;
        for who in [&alice, &bob] {
            deployed.miss_then_hit(who, JOB, status).await;
        }
    }
}

#[tokio::test]
async fn nine_of_ten_polls_are_saved() {
    let office = Office::open().await;
    let carol = login(&office.deployed, "carol", &["acme", "globex"]).await;
    let file = recipe("FastAPI and Starlette");
    let settings = Settings { file: &file, ..Settings::default() };
    let traffic = Traffic {
        callers: [&office.alice, &carol],
        jobs: &["/t/acme/jobs/17", "/t/acme/jobs/18", "/t/globex/jobs/17"],
        changes: &[|job| (Method::PUT, job.to_owned(), json!({ "status": "done" }))],
    };
    check_saved(APP, &settings, &traffic, "/t/acme/jobs/1", "FastAPI").await;
}
