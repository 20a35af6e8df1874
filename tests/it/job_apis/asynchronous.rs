//! An API that answers 404, 202 with `Retry-After`, 303 with `Location` and 410, and jobcache with flags.

use std::time::Duration;

use futures_util::future::join_all;
use hyper::Method;
use serde_json::json;

use super::deployed::{Deployed, Settings, Traffic, check_saved};
use crate::support::{Reply, SOON, eventually, redis::key, transcript::Transcript};

/// Polls of one caller at once.
const POLLS: u64 = 8;

const APP: &str = "async_app.py";
/// The lifetimes are longer than in the documents, so that nothing expires on a busy machine.
const SETTINGS: Settings<'_> = Settings {
    flags: &["--statuses", "202=300s,303=300s,404=300s,410=300s"],
    variables: &[],
    file: "",
};
const ALICE: &str = "Bearer alice";
const BOB: &str = "Bearer bob";
const JOB: &str = "/jobs/e17";
const WARM_UP: &str = "/jobs/e1";

async fn deployed() -> Deployed {
    Deployed::start(APP, &SETTINGS).await.warm(ALICE, WARM_UP).await
}

/// Asserts that both callers read this from the application and then from the cache, with everything that
/// a client acts on, and that an application that reads the key finds an empty string.
async fn check_stored(deployed: &Deployed, status: u16) {
    for who in [ALICE, BOB] {
        let first = deployed.get(who, JOB).await;
        assert!(first.status == status && first.is_stored(), "{status}: {first:?}");
        let second = deployed.get(who, JOB).await;
        assert!(second.status == status && second.is_hit(), "{status}: {second:?}");
        assert_eq!(second.body, first.body, "{status}");
        for name in ["location", "retry-after", "content-type", "content-length"] {
            assert_eq!(second.header(name), first.header(name), "{status} {name}");
        }
        let held = deployed.sidecar.client.request(Method::GET, JOB).header("authorization", who);
        let held = held.header("if-none-match", "*").send().await;
        assert_eq!((held.status.as_u16(), held.is_hit()), (status, true), "{held:?}");
        assert_eq!(second.header("retry-after"), if status == 202 { "5" } else { "" });
        assert_eq!(second.header("location"), if status == 303 { "/results/e17" } else { "" });
    }
    let value = deployed.redis.get(&key("e17")).await;
    assert_eq!(value.as_deref(), Some(&b""[..]), "{status}");
    let ttl = deployed.redis.ttl_ms(&key("e17")).await;
    assert!((1..=300_000).contains(&ttl), "{status}: {ttl}");
}

#[tokio::test]
async fn each_status_is_stored_and_replayed_until_a_write_changes_it() {
    let deployed = deployed().await;
    check_stored(&deployed, 404).await;
    // The answer names the job in `Location`.
    let created = deployed.write(ALICE, Method::POST, "/jobs", &json!({ "id": "e17" })).await;
    assert_eq!((created.status.as_u16(), created.header("location")), (202, JOB));
    check_stored(&deployed, 202).await;
    let done = deployed.write(ALICE, Method::PUT, "/jobs/e17/done", &json!({})).await;
    assert_eq!(done.status, 200);
    check_stored(&deployed, 303).await;
    assert_eq!(deployed.write(ALICE, Method::DELETE, JOB, &json!({})).await.status, 204);
    check_stored(&deployed, 410).await;
    for who in ["alice", "bob"] {
        assert_eq!(deployed.app.reads(&format!("{who} e17")).await, 4, "{who}");
    }
}

#[tokio::test]
async fn a_purge_or_a_del_brings_the_new_status_with_the_next_poll() {
    let deployed = deployed().await;
    check_stored(&deployed, 404).await;
    deployed.app.work("/worker/e17/running", &json!({})).await;
    deployed.purge(&json!({ "job_id": "e17" }), "e17").await;
    check_stored(&deployed, 202).await;
    deployed.app.work("/worker/e17/done", &json!({})).await;
    deployed.purge_path(JOB).await;
    check_stored(&deployed, 303).await;
    deployed.app.work("/worker/e17/gone", &json!({})).await;
    deployed.redis.del(&key("e17")).await;
    eventually(SOON, async || deployed.get(ALICE, JOB).await.status == 410).await;
}

#[tokio::test]
async fn each_status_has_its_own_lifetime() {
    let flags = ["--statuses", "202=5s,303=300s,404=2s,410=300s"];
    let settings = Settings { flags: &flags, ..Settings::default() };
    let deployed = Deployed::start(APP, &settings).await.warm(ALICE, WARM_UP).await;
    for (status, work, longest) in
        [(404, "", 2), (202, "running", 5), (303, "done", 300), (410, "gone", 300)]
    {
        if !work.is_empty() {
            deployed.app.work(&format!("/worker/e17/{work}"), &json!({})).await;
            deployed.purge(&json!({ "job_id": "e17" }), "e17").await;
        }
        let reply = deployed.get(ALICE, JOB).await;
        assert!(reply.status == status && reply.is_stored(), "{reply:?}");
        let ttl = deployed.redis.ttl_ms(&key("e17")).await;
        let longest = Duration::from_secs(longest).as_millis();
        assert!(ttl <= i64::try_from(longest).unwrap(), "{status}: {ttl}");
    }
    // Nothing tells jobcache that the job is there.
    assert_eq!(deployed.get(ALICE, "/jobs/e18").await.status, 404);
    deployed.app.work("/worker/e18/running", &json!({})).await;
    eventually(SOON, async || deployed.get(ALICE, "/jobs/e18").await.status == 202).await;
}

/// The answers to eight polls of one caller that wait at the same time.
async fn poll_at_once(deployed: &Deployed) -> Vec<Reply> {
    let gate = async |closed: bool| {
        deployed.app.work("/gate", &json!({ "closed": closed })).await;
    };
    let looked_up = "jobcache_store_operation_seconds_count{op=\"lease\"}";
    let before = deployed.sidecar.admin.metric(looked_up).await;
    gate(true).await;
    let polls = join_all((0..POLLS).map(|_| deployed.get(ALICE, JOB)));
    let open = async {
        // A poll that learns of the lease of another one joins it at once.
        eventually(SOON, async || {
            let leases = deployed.sidecar.admin.metric(looked_up).await;
            if leases >= before + POLLS { Ok(()) } else { Err(leases) }
        })
        .await;
        gate(false).await;
    };
    tokio::join!(polls, open).0
}

#[tokio::test]
async fn without_statuses_the_polls_of_one_caller_that_wait_for_a_404_share_reads() {
    let deployed = Deployed::start(APP, &Settings::default()).await;
    deployed.connected().await;
    for round in 1..=2 {
        let replies = poll_at_once(&deployed).await;
        for reply in &replies {
            assert_eq!((reply.status.as_u16(), reply.is_uncached()), (404, true), "{reply:?}");
            assert_eq!(reply.body, replies[0].body);
        }
        let said: Vec<_> = replies.iter().map(Reply::cache_status).collect();
        // On a busy machine a poll may learn of the lease too late to join, and reads for itself.
        let reads = deployed.app.reads("alice e17").await;
        assert!(reads <= round * POLLS / 2, "{reads}: {said:?}");
        // The lease is given back after the answers. A poll before that reads for itself.
        let leases = async || deployed.redis.keys("*e17*:lease").await.is_empty();
        eventually(SOON, leases).await;
    }
    // The next poll asks the application again.
    deployed.app.work("/worker/e17/running", &json!({})).await;
    assert_eq!(deployed.get(ALICE, JOB).await.status, 202);
    assert!(!deployed.redis.holds(&key("e17")).await);
}

/// Some APIs answer 404 to a caller who may not read a job.
#[tokio::test]
async fn a_404_of_a_stranger_is_never_that_of_the_owner() {
    let deployed = deployed().await;
    for _ in 0..20 {
        for (who, status) in [(ALICE, 202), (ALICE, 202), (BOB, 404), (BOB, 404)] {
            let reply = deployed.get(who, "/jobs/alices1").await;
            assert_eq!(reply.status, status, "{who}: {reply:?}");
        }
    }
    let (alice, bob) =
        (deployed.app.reads("alice alices1").await, deployed.app.reads("bob alices1").await);
    println!("of 40 polls each, Alice's reach the application {alice} times and Bob's {bob}");
    assert!(alice <= 20, "{alice}");
}

#[tokio::test]
async fn nine_of_ten_polls_are_saved() {
    let traffic = Traffic {
        callers: [ALICE, BOB],
        jobs: &["/jobs/e17", "/jobs/e18"],
        changes: &[
            |job| (Method::POST, "/jobs".to_owned(), json!({ "id": job.replace("/jobs/", "") })),
            |job| (Method::PUT, format!("{job}/done"), json!({})),
            |job| (Method::DELETE, job.to_owned(), json!({})),
        ],
    };
    check_saved(APP, &SETTINGS, &traffic, WARM_UP, "[202, 303, 404 and 410]").await;
}

#[tokio::test]
async fn the_transcript_of_an_asynchronous_application() {
    let deployed = deployed().await;
    let mut transcript = Transcript::default();
    let note = |transcript: &mut Transcript, who: &str, what: &str, reply: &Reply| {
        let who = who.trim_start_matches("Bearer ");
        transcript.note(who, what, reply, &["retry-after", "location"]);
    };
    for (writer, method, path) in [
        ("", Method::GET, ""),
        (ALICE, Method::POST, "/jobs"),
        (ALICE, Method::PUT, "/jobs/e17/done"),
        ("worker", Method::PUT, "/worker/e17/gone"),
    ] {
        let body = json!({ "id": "e17" });
        match writer {
            "" => {}
            "worker" => {
                deployed.app.work(path, &body).await;
                deployed.purge(&json!({ "job_id": "e17" }), "e17").await;
                transcript
                    .line("worker  deletes e17 past jobcache, and purges {\"job_id\":\"e17\"}");
            }
            _ => {
                let what = format!("{method} {path}");
                let reply = deployed.write(writer, method, path, &body).await;
                note(&mut transcript, writer, &what, &reply);
            }
        }
        for who in [ALICE, ALICE, BOB, BOB] {
            note(&mut transcript, who, &format!("GET {JOB}"), &deployed.get(who, JOB).await);
        }
        let value = deployed.redis.get(&key("e17")).await.expect("a value");
        let value = String::from_utf8(value).expect("text");
        transcript.line(&format!("redis   GET job_status:e17 -> {value:?}"));
    }
    // For runs with --nocapture.
    print!("{}", transcript.0);
    assert_eq!(transcript.0.matches("jobcache; hit").count(), 8, "{}", transcript.0);
    assert_eq!(transcript.0.matches("job_status:e17 -> \"\"\n").count(), 4, "{}", transcript.0);
}
