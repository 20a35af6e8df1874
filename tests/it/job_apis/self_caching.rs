//! An application that caches its jobs itself under the keys of jobcache, and fails when it finds the
//! placeholder there.

use hyper::Method;
use serde_json::json;

use super::deployed::{Deployed, Settings};
use crate::support::{SOON, eventually};

const APP: &str = "self_caching_app.py";

async fn deployed() -> Deployed {
    let deployed = Deployed::start(APP, &Settings::default()).await;
    deployed.connected().await;
    deployed
}

#[tokio::test]
async fn no_client_sees_that_the_application_fails_because_of_a_placeholder() {
    let deployed = deployed().await;

    deployed.get("", "/jobs/a1").await.assert(200, r#"{"id":"a1","version":0}"#);

    // The read was repeated, and its value is not ours, so from now on reads pass.
    assert_eq!(deployed.app.reads("a1").await, 2);
    for job in ["a1", "b1"] {
        for _ in 0..3 {
            let reply = deployed.get("", &format!("/jobs/{job}")).await;
            assert_eq!(reply.status, 200);
            assert!(reply.cache_status().contains("fwd=bypass; detail=foreign"), "{reply:?}");
        }
    }
    let explained = deployed.sidecar.admin.get("/explain/b1").await;
    assert_eq!(explained.json()["verdict"]["detail"], "foreign", "{explained:?}");
    let status = deployed.sidecar.admin.get("/status").await.json();
    assert_eq!(status["aside"][0]["prefix"], "job_status:", "{status}");
    let warnings = deployed.sidecar.stderr();
    assert_eq!(warnings.matches("switch off the application's own cache").count(), 1, "{warnings}");
}

#[tokio::test]
async fn a_write_still_deletes_what_the_application_has_cached() {
    let deployed = deployed().await;
    for _ in 0..2 {
        deployed.get("", "/jobs/a1").await.assert(200, r#"{"id":"a1","version":0}"#);
    }
    assert!(deployed.redis.holds("job_status:a1").await);

    let write = deployed.write("", Method::PUT, "/jobs/a1", &json!({})).await;

    assert_eq!(write.status, 200);
    assert!(!deployed.redis.holds("job_status:a1").await);
    deployed.get("", "/jobs/a1").await.assert(200, r#"{"id":"a1","version":1}"#);
}

/// The application of this test never meets a placeholder: other clients read it past jobcache.
#[tokio::test]
async fn values_of_three_jobs_that_are_not_ours_are_a_cache() {
    let deployed = deployed().await;
    for job in ["a1", "b1", "c1"] {
        deployed.redis.set(&format!("job_status:{job}"), br#"{"theirs":true}"#).await;
        deployed.get("", &format!("/jobs/{job}")).await;
    }
    eventually(SOON, async || {
        let reply = deployed.get("", "/jobs/d1").await;
        if reply.cache_status().contains("detail=foreign") { Ok(()) } else { Err(reply) }
    })
    .await;
}

#[tokio::test]
async fn an_application_that_only_reads_the_keys_fails_for_no_client() {
    let deployed = deployed().await;

    for n in 0..10 {
        let reply = deployed.get("", &format!("/jobs/unstored{n}")).await;
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    let reply = deployed.get("", "/jobs/unstored3").await;
    assert!(reply.cache_status().contains("fwd=bypass; detail=foreign"), "{reply:?}");
    let status = deployed.sidecar.admin.get("/status").await.json();
    assert_eq!(status["aside"][0]["prefix"], "job_status:", "{status}");
    let warnings = deployed.sidecar.stderr();
    assert_eq!(warnings.matches("set another store.prefix").count(), 1, "{warnings}");
    assert!(warnings.contains("fails at the placeholder"), "{warnings}");
    let metrics = deployed.sidecar.admin.get("/metrics").await;
    assert!(metrics.text().contains("jobcache_foreign_values_total 1\n"), "{}", metrics.text());
}
