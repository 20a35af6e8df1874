//! The purge webhook: its requests, its callers and its answers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::{Method, StatusCode};
use jobcache::{clock, config::Secret};
use standardwebhooks::Webhook;

use crate::support::{
    Reply, SOON, Setup, client::split, eventually, redis::key, upstream::version,
};

const X: &str = "/jobs/x1";

/// A Standard Webhooks secret: base64 after its prefix.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Older than the five minutes that the specification suggests as tolerance.
const STALE: Duration = Duration::from_mins(6);

async fn fill(setup: &Setup, ids: &[&str]) {
    for id in ids {
        let path = format!("/jobs/{id}");
        setup.get(&path).await;
        setup.hit(&path).await;
    }
}

async fn purge(setup: &Setup, body: impl Into<bytes::Bytes>) -> Reply {
    setup.sidecar.admin.request(Method::POST, "/purge").body(body).send().await
}

/// Fills, purges with this request, and asserts that exactly these jobs are reported and gone.
async fn check_purges(setup: &Setup, method: &str, path: &str, body: &'static str, ids: &[&str]) {
    fill(setup, &["x1", "y1", "z1"]).await;
    let method: Method = method.parse().expect("a method");

    let reply = setup.sidecar.admin.request(method, path).body(body).send().await;

    assert_eq!(reply.status, StatusCode::OK, "{path} {body}: {reply:?}");
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.json()["purged"], serde_json::json!(ids), "{path} {body}");
    for id in ["x1", "y1", "z1"] {
        let is_kept = !ids.contains(&id);
        assert_eq!(setup.redis.holds(&key(id)).await, is_kept, "{path} {body}: {id}");
        assert_eq!(
            setup.get(&format!("/jobs/{id}")).await.is_hit(),
            is_kept,
            "{path} {body}: {id}"
        );
    }
}

#[tokio::test]
async fn every_form_purges_what_it_names_and_says_so() {
    let setup = Setup::new().await;
    check_purges(&setup, "POST", "/purge", r#"{"job_id":"x1"}"#, &["x1"]).await;
    check_purges(&setup, "POST", "/purge", r#"{"job_ids":["x1","y1"]}"#, &["x1", "y1"]).await;
    check_purges(&setup, "POST", "/purge/x1", "", &["x1"]).await;
    check_purges(&setup, "PURGE", X, "", &["x1"]).await;
    check_purges(&setup, "PURGE", "/api/v1/jobs/x1", "", &["x1"]).await;
}

#[tokio::test]
async fn a_purge_of_what_is_not_there_is_a_success() {
    let setup = Setup::new().await;

    assert_eq!(purge(&setup, r#"{"job_id":"never-seen1"}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_purge_makes_the_next_read_fresh() {
    let setup = Setup::new().await;
    fill(&setup, &["x1"]).await;
    setup.upstream.commit("x1");

    purge(&setup, r#"{"job_id":"x1"}"#).await;

    setup.get(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_purge_of_all_drops_every_job_and_no_neighbour() {
    let setup = Setup::new().await;
    fill(&setup, &["x1", "y1"]).await;
    for neighbour in ["other:x", "job_statusX", "x:job_status:x1"] {
        setup.redis.set(neighbour, b"kept").await;
    }

    let reply = purge(&setup, r#"{"all":true}"#).await;

    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    assert_eq!(reply.json()["purged"], "all");
    eventually(SOON, async || setup.redis.keys("job_status:*").await.is_empty()).await;
    for neighbour in ["other:x", "job_statusX", "x:job_status:x1"] {
        assert!(setup.redis.holds(neighbour).await, "{neighbour}");
    }
    assert!(!setup.get(X).await.is_hit());
}

#[tokio::test]
async fn a_purge_of_all_takes_the_prefix_literally() {
    let setup = Setup::with(|config| config.store.prefix = "j[a]*:".into()).await;
    fill(&setup, &["x1"]).await;
    setup.redis.set("jab:x", b"kept").await;
    setup.redis.set("ja:x", b"kept").await;

    assert_eq!(purge(&setup, r#"{"all":true}"#).await.status, StatusCode::OK);

    assert!(!setup.redis.holds("j[a]*:x").await);
    assert!(setup.redis.holds("jab:x").await && setup.redis.holds("ja:x").await);
}

#[tokio::test]
async fn a_malformed_purge_is_refused_with_the_reason_and_purges_nothing() {
    let setup = Setup::new().await;
    fill(&setup, &["x1"]).await;
    let too_many: Vec<_> = (0..10_001).map(|id| id.to_string()).collect();
    let too_many = serde_json::json!({ "job_ids": too_many }).to_string();
    let too_long = serde_json::json!({ "job_id": "a1".repeat(129) }).to_string();
    for body in [
        "",
        "x",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"job_id":null}"#,
        r#"{"job_id":["x"]}"#,
        r#"{"job_id":""}"#,
        r#"{"job_id":".."}"#,
        r#"{"job_id":"a b"}"#,
        r#"{"job_ids":"x"}"#,
        r#"{"job_ids":[]}"#,
        r#"{"job_ids":["x1",null]}"#,
        r#"{"all":false}"#,
        r#"{"all":"true"}"#,
        r#"{"job_id":"x1","all":true}"#,
        r#"{"job_id":"x1","job_ids":["x1"]}"#,
        r#"{"job_id":"x1","why":"unknown field"}"#,
        &too_many,
        &too_long,
    ] {
        let reply = purge(&setup, body.to_owned()).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{shown}");
        reply.reason();
    }
    for (method, path) in [("POST", "/purge/a%20b"), ("POST", "/purge/"), ("PURGE", "/other/x")] {
        let request = setup.sidecar.admin.request(method.parse().expect("a method"), path);
        let reply = request.send().await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{method} {path}");
        reply.reason();
    }
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn an_oversized_purge_is_refused_unread() {
    let setup = Setup::new().await;
    let size = 20 << 20;
    let mut request = b"POST /purge HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".to_vec();
    request.extend_from_slice(format!("content-length: {size}\r\n\r\n").as_bytes());
    request.resize(request.len() + size, b' ');

    let (status, reason) = split(&setup.sidecar.admin.raw(&request).await);

    assert_eq!(status, 413, "{reason}");
    assert!(reason.contains("\"error\""), "{reason}");
}

async fn guarded() -> Setup {
    let setup = Setup::with(|config| config.webhook.secrets = vec![Secret::new(SECRET)]).await;
    fill(&setup, &["x1"]).await;
    setup
}

#[tokio::test]
async fn a_purge_without_the_secret_is_refused() {
    let setup = guarded().await;
    for (name, value) in [
        ("x-nothing", ""),
        ("authorization", "Bearer wrong"),
        ("authorization", "Bearer "),
        ("authorization", "Basic d2hzZWM6eA=="),
        ("webhook-signature", "v1,AAAA"),
    ] {
        for (method, path, body) in [
            ("POST", "/purge", r#"{"job_id":"x1"}"#),
            ("POST", "/purge", r#"{"all":true}"#),
            ("POST", "/purge/x1", ""),
            ("PURGE", X, ""),
        ] {
            let request = setup.sidecar.admin.request(method.parse().expect("a method"), path);
            let reply = request.header(name, value).body(body).send().await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{name}: {value}: {method} {path}");
            reply.reason();
        }
    }
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn the_bearer_secret_opens_every_form() {
    let setup = guarded().await;
    let bearer = format!("Bearer {SECRET}");
    for (method, path, body) in [
        ("POST", "/purge", r#"{"job_id":"x1"}"#),
        ("POST", "/purge/x1", ""),
        ("PURGE", X, ""),
        ("POST", "/purge", r#"{"all":true}"#),
    ] {
        fill(&setup, &["x1"]).await;
        let request = setup.sidecar.admin.request(method.parse().expect("a method"), path);
        let reply = request.header("authorization", &bearer).body(body).send().await;
        assert_eq!(reply.status, StatusCode::OK, "{method} {path}: {reply:?}");
        assert!(!setup.redis.holds(&key("x1")).await, "{method} {path}");
    }
}

/// Sends a purge of `x`, signed as Standard Webhooks prescribes.
async fn signed(setup: &Setup, id: &str, at: SystemTime, sent: &'static str) -> Reply {
    const SIGNED: &str = r#"{"job_id":"x1"}"#;
    let seconds = at.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let timestamp = i64::try_from(seconds).expect("a date");
    let webhook = Webhook::new(SECRET).expect("a secret");
    let signature = webhook.sign(id, timestamp, SIGNED.as_bytes()).expect("a signature");
    let request = setup.sidecar.admin.request(Method::POST, "/purge").body(sent);
    let request = request.header("webhook-id", id).header("webhook-signature", &signature);
    request.header("webhook-timestamp", &timestamp.to_string()).send().await
}

#[tokio::test]
async fn a_standard_webhooks_signature_opens_and_a_repeated_delivery_is_applied_again() {
    let setup = guarded().await;
    for _ in 0..2 {
        fill(&setup, &["x1"]).await;
        let reply = signed(&setup, "msg_1", clock::now(), r#"{"job_id":"x1"}"#).await;
        assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
        assert!(!setup.redis.holds(&key("x1")).await);
    }
}

#[tokio::test]
async fn a_stale_or_forged_signature_is_refused() {
    let setup = guarded().await;
    let now = clock::now();
    for (at, sent) in [
        (now - STALE, r#"{"job_id":"x1"}"#),
        (now + STALE, r#"{"job_id":"x1"}"#),
        (now, r#"{"all":true}"#),
    ] {
        let reply = signed(&setup, "msg_1", at, sent).await;
        assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{reply:?}");
    }
    assert!(setup.get(X).await.is_hit());
}

#[tokio::test]
async fn a_purge_that_redis_cannot_confirm_says_so_and_is_applied_when_it_can() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    fill(&setup, &["x1"]).await;
    setup.redis.stop();

    let reply = purge(&setup, r#"{"job_id":"x1"}"#).await;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reply.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    reply.reason();
    setup.upstream.commit("x1");
    setup.get(X).await.assert(200, &version("x1", 1));
    setup.redis.cont();
    eventually(SOON, async || {
        let held = setup.redis.get(&key("x1")).await.unwrap_or_default();
        held != version("x1", 0).into_bytes()
    })
    .await;
    setup.hit(X).await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn a_purge_of_all_that_redis_cannot_confirm_is_applied_when_it_can() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    fill(&setup, &["x1", "y1"]).await;
    setup.redis.stop();

    let reply = purge(&setup, r#"{"all":true}"#).await;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    for id in ["x1", "y1"] {
        setup.upstream.commit(id);
        setup.get(&format!("/jobs/{id}")).await.assert(200, &version(id, 1));
    }
    setup.redis.cont();
    for id in ["x1", "y1"] {
        setup.hit(&format!("/jobs/{id}")).await.assert(200, &version(id, 1));
    }
}

#[tokio::test]
async fn a_purge_reaches_an_entry_that_a_snapshot_brings_back() {
    let mut setup = Setup::new().await;
    fill(&setup, &["x1"]).await;
    setup.redis.save().await;
    setup.redis.kill();

    let reply = purge(&setup, r#"{"job_id":"x1"}"#).await;

    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
    setup.upstream.commit("x1");
    setup.redis.restart_from_rdb().await;
    setup.hit(X).await.assert(200, &version("x1", 1));
}

/// The snapshot restores a lease while its flight is still pending in this process. Its fill is
/// rejected because of its epoch, so no other read may join it.
#[tokio::test]
async fn a_lease_that_a_snapshot_brings_back_is_nobodys_to_join() {
    let mut setup = Setup::new().await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let sidecar = &setup.sidecar;
    let check = async {
        gate.arrived(1).await;
        setup.redis.save().await;
        setup.upstream.commit("x1");
        setup.redis.del(&key("x1")).await;
        setup.redis.restart_from_rdb().await;
        sidecar.warm().await;

        let leases = "jobcache_store_operation_seconds_count{op=\"lease\"}";
        let before = sidecar.admin.metric(leases).await;
        let after = sidecar.get(X);
        let release = async {
            // If the flaw is present, this read joins as soon as its lookup is over, and does not
            // arrive at the gate.
            eventually(SOON, async || sidecar.admin.metric(leases).await > before).await;
            gate.release();
        };
        tokio::join!(after, release).0.assert(200, &version("x1", 1));
    };
    tokio::join!(sidecar.get(X), check);
}

/// Returns a purge of this many jobs.
fn of_many(jobs: usize) -> String {
    let ids: Vec<_> = (0..jobs).map(|id| format!("job-{id}")).collect();
    serde_json::json!({ "job_ids": ids }).to_string()
}

/// Blocks Redis for 25 ms at a time; never returns.
async fn keep_busy(mut redis: redis::aio::MultiplexedConnection) {
    let script = "local function now() local t = redis.call('TIME') return t[1] * 1e6 + t[2] end \
                  local begun = now() while now() < begun + 25e3 do end";
    loop {
        let busy = redis::cmd("EVAL").arg(script).arg(0).query_async(&mut redis).await;
        let () = busy.expect("Redis");
    }
}

/// The budget applies to each chunk; otherwise a large purge would never be confirmed.
#[tokio::test]
async fn a_large_purge_is_confirmed_though_it_takes_longer_than_the_budget() {
    let budget = Duration::from_millis(400);
    let setup = Setup::with(|config| config.store.budget = budget).await;
    // On a busy machine a chunk may be late; a single budget for all of them is always too short.
    eventually(SOON, async || {
        fill(&setup, &["job-0", "job-1535"]).await;
        let (request, redis) = (of_many(1536), setup.redis.connection().await);
        let start = std::time::Instant::now();
        let reply = tokio::select! {
            reply = purge(&setup, request) => reply,
            () = keep_busy(redis) => unreachable!("the load never ends"),
        };
        assert!(start.elapsed() > budget, "{:?}", start.elapsed());
        if reply.status != StatusCode::OK {
            return Err(reply.status);
        }
        assert_eq!(reply.json()["entries"], 2);
        assert!(setup.redis.keys("job_status:job-*").await.is_empty());
        Ok(())
    })
    .await;
}

/// A purge with the largest number of ids is queued, and confirmed once Redis is back.
#[tokio::test]
async fn the_largest_purge_is_queued_at_once_when_redis_hangs() {
    // This many are confirmed within a second or two, and on a busy machine somewhat later.
    let patience = 6 * SOON;
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    let late = "jobcache_store_errors_total{op=\"end\",error=\"timeout\"}";

    // The purge waits for one of its chunks and gives up the rest. If it waited for each, it would
    // do so until the store counts as down, which then ends it; on a busy machine that may come
    // first.
    eventually(patience, async || {
        fill(&setup, &["job-0", "job-9999"]).await;
        let before = setup.sidecar.admin.metric(late).await;
        setup.redis.stop();
        let reply = purge(&setup, of_many(10_000)).await;
        setup.redis.cont();

        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        eventually(patience, async || {
            let pending = pending(&setup).await;
            if pending == 0 { Ok(()) } else { Err(pending) }
        })
        .await;
        assert!(!setup.redis.holds(&key("job-9999")).await);
        setup.sidecar.admin.metric(late).await == before + 1
    })
    .await;
}

/// Returns the number of pending invalidations.
async fn pending(setup: &Setup) -> serde_json::Value {
    setup.sidecar.admin.get("/readyz").await.json()["pending_invalidations"].clone()
}

#[tokio::test]
async fn a_purge_whose_caller_hangs_up_while_redis_hangs_is_queued_all_the_same() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(500)).await;
    fill(&setup, &["x1"]).await;
    setup.redis.stop();

    let caller = setup.sidecar.admin.start(Method::POST, "/purge/x1", "").await;
    assert_eq!(pending(&setup).await, 0, "the invalidation is already pending");
    drop(caller);

    eventually(SOON, async || pending(&setup).await == 1).await;
    setup.redis.cont();
    eventually(SOON, async || pending(&setup).await == 0).await;
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn a_key_that_is_no_text_does_not_stop_a_purge_of_all() {
    let setup = Setup::new().await;
    fill(&setup, &["x1"]).await;
    let foreign: &[u8] = b"job_status:\xff";
    let () = setup.redis.run(redis::cmd("SET").arg(foreign).arg("x")).await;

    let reply = purge(&setup, r#"{"all":true}"#).await;

    assert_eq!(reply.status, StatusCode::OK, "{reply:?}");
    eventually(SOON, async || {
        let left: Option<Vec<u8>> = setup.redis.run(redis::cmd("GET").arg(foreign)).await;
        left.is_none()
    })
    .await;
    setup.hit(X).await;
}

/// Any program may write the key of the purge token, by mistake or because it has the same name.
#[tokio::test]
async fn a_purge_token_that_is_none_is_made_anew_and_voids_what_is_older() {
    const TOKEN: &str = "{job_status:}:purge-token";
    let setup = Setup::new().await;
    let list = || redis::cmd("LPUSH").arg(TOKEN).arg("a").to_owned();
    let words = || redis::cmd("SET").arg(TOKEN).arg("two \"words\"").to_owned();
    for spoil in [list(), words()] {
        fill(&setup, &["x1"]).await;
        setup.redis.del(TOKEN).await;
        let _: redis::Value = setup.redis.run(&spoil).await;

        let reply = setup.get(X).await;
        assert!(!reply.is_hit() && reply.cache_status().contains("stored"), "{reply:?}");
        let token = setup.redis.get(TOKEN).await.expect("a new token");
        assert!(token.iter().all(u8::is_ascii_hexdigit), "{token:?}");
        assert!(setup.get(X).await.is_hit());
    }
    // While it is none, a fill that is under way fails, and a purge of all mends it.
    let gate = setup.upstream.hold(Method::GET, "/jobs/y1");
    let read = setup.sidecar.client.start(Method::GET, "/jobs/y1", "").await;
    gate.arrived(1).await;
    setup.redis.del(TOKEN).await;
    let _: redis::Value = setup.redis.run(&list()).await;
    gate.release();
    assert_eq!(read.answer().await.0, 200);
    assert!(purge(&setup, r#"{"all":true}"#).await.status.is_success());
    fill(&setup, &["x1", "y1"]).await;
}

#[tokio::test]
async fn keys_of_the_prefix_that_are_of_another_type_are_replaced() {
    let grace = Duration::from_millis(100);
    let setup = Setup::with(|config| config.store.reconnect_grace = grace).await;
    for (key, command) in [("{job_status:}:epoch", "LPUSH"), ("{job_status:}:sidecars", "LPUSH")] {
        setup.redis.del(key).await;
        let _: redis::Value = setup.redis.run(redis::cmd(command).arg(key).arg("a")).await;
    }
    let second = setup.second().await;
    eventually(SOON, async || second.get(X).await.is_hit()).await;
    let kind = |key| redis::cmd("TYPE").arg(key).to_owned();
    let epoch: String = setup.redis.run(&kind("{job_status:}:epoch")).await;
    assert_eq!(epoch, "string");
    // A record is renewed every ten seconds.
    eventually(SOON + Duration::from_secs(10), async || {
        let sidecars: String = setup.redis.run(&kind("{job_status:}:sidecars")).await;
        if sidecars == "zset" { Ok(()) } else { Err(sidecars) }
    })
    .await;
}
