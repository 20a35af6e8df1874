//! The receipts of purges: what was found and voided.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Reply, Setup, redis::key, upstream::version};

const X: &str = "/jobs/x1";

async fn purge(setup: &Setup, body: Value) -> Reply {
    let request = setup.sidecar.admin.request(Method::POST, "/purge");
    request.body(body.to_string()).send().await
}

/// Returns the receipt of a confirmed purge of one job.
async fn receipt(setup: &Setup) -> Value {
    let reply = purge(setup, json!({ "job_id": "x1" })).await;
    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    let receipt = reply.json()["receipts"][0].clone();
    assert_eq!((&receipt["job"], &receipt["confirmed"]), (&"x1".into(), &true.into()));
    receipt
}

#[tokio::test]
async fn a_receipt_tells_of_the_entry_that_is_gone() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let told = setup.sidecar.admin.get("/explain/x1").await.json();

    let receipt = receipt(&setup).await;

    assert_eq!(receipt["entry"]["stored_size"], version("x1", 0).len());
    assert_eq!(receipt["entry"]["generation"], told["entry"]["generation"]);
    assert!(receipt["entry"]["age_ms"].as_i64().is_some_and(|ms| (0..60_000).contains(&ms)));
    assert_eq!(receipt["near_dropped"], told["near"], "{receipt}");
    assert_eq!((&receipt["fill_voided"], &receipt["flights_detached"]), (&false.into(), &0.into()));
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_receipt_tells_that_there_was_nothing() {
    let setup = Setup::new().await;
    let receipt = receipt(&setup).await;
    let nothing = json!({
        "job": "x1", "confirmed": true, "entry": null, "fill_voided": false,
        "flights_detached": 0, "near_dropped": false,
    });
    assert_eq!(receipt, nothing);
}

#[tokio::test]
async fn what_somebody_wrote_beside_a_value_fails_no_purge() {
    let setup = Setup::new().await;
    for meta in [&b"{\"stored_at_ms\":-9223372036854775808}"[..], b"{\"generation\":\"\xff\"}"] {
        for (name, value) in
            [(key("x1"), &b"theirs"[..]), (format!("{{{}}}:meta", key("x1")), meta)]
        {
            let _: () = setup.redis.run(redis::cmd("SET").arg(name).arg(value)).await;
        }
        let receipt = receipt(&setup).await;
        assert_eq!(
            (&receipt["entry"]["stored_size"], &receipt["entry"]["generation"]),
            (&6.into(), &Value::Null)
        );
    }
}

#[tokio::test]
async fn a_receipt_tells_of_a_fill_that_it_has_voided() {
    let setup = Setup::new().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let check = async {
        gate.arrived(1).await;
        let receipt = receipt(&setup).await;
        assert_eq!((&receipt["entry"], &receipt["fill_voided"]), (&Value::Null, &true.into()));
        assert_eq!(receipt["flights_detached"], 1);
        gate.release();
    };
    let (reply, ()) = tokio::join!(setup.get(X), check);
    assert_eq!(reply.cache_status(), "jobcache; fwd=miss");
    let told = setup.sidecar.admin.get("/explain/x1").await.json();
    let why = |what: &str| told["events"].as_array().unwrap().iter().find(|it| it["what"] == what);
    assert_eq!(why("fill-refused").unwrap()["why"], "revoked", "{told}");
}

#[tokio::test]
async fn a_value_of_somebody_elses_has_no_generation() {
    let setup = Setup::new().await;
    setup.redis.set(&key("x1"), b"its own").await;
    let entry = json!({ "stored_size": 7, "age_ms": null, "generation": null });
    assert_eq!(receipt(&setup).await["entry"], entry);
    let () = setup.redis.run(redis::cmd("LPUSH").arg(key("x1")).arg("a")).await;
    let meta = "{job_status:x1}:meta";
    let () = setup.redis.run(redis::cmd("LPUSH").arg(meta).arg("a")).await;
    assert_eq!(receipt(&setup).await["entry"]["generation"], Value::Null);
    assert!(!setup.redis.holds(&key("x1")).await && !setup.redis.holds(meta).await);
}

#[tokio::test]
async fn a_purge_that_is_not_confirmed_has_receipts_that_say_so() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    setup.redis.stop();
    let reply = purge(&setup, json!({ "job_ids": ["x1", "y1"] })).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    let receipts = reply.json()["receipts"].clone();
    let confirmed: Vec<_> = (0..2).map(|at| receipts[at]["confirmed"].clone()).collect();
    assert_eq!(confirmed, [false, false], "{reply:?}");
    setup.redis.cont();
}

#[tokio::test]
async fn a_purge_of_all_counts_what_it_has_voided() {
    let setup = Setup::new().await;
    setup.hit(X).await;
    let near = setup.sidecar.admin.get("/status").await.json()["near"]["entries"].clone();
    let gate = setup.upstream.hold(Method::GET, "/jobs/y1");
    let check = async {
        gate.arrived(1).await;
        let told = purge(&setup, json!({ "all": true })).await.json();
        assert_eq!((&told["purged"], &told["flights_detached"]), (&"all".into(), &1.into()));
        assert_eq!(told["near_dropped"], near, "{told}");
        gate.release();
    };
    tokio::join!(setup.get("/jobs/y1"), check);
}
