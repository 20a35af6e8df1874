//! Credentials are checked with the upstream again: one of them expires without a write.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{Method, StatusCode};
use jobcache::config::{Config, StoreUrl};

use crate::support::{
    Reply, SOON, Setup, eventually,
    redis::key,
    upstream::{json, version, with_headers},
};

const X: &str = "/jobs/x1";
const Y: &str = "/jobs/y1";
const ALICE: &str = "Bearer alice-0123456789";
const BOB: &str = "Bearer bob-9876543210";

fn recheck(config: &mut Config) {
    config.cache.credentials.recheck = Some(Duration::from_secs(1));
}

async fn ask(setup: &Setup, method: Method, path: &str, who: &str) -> Reply {
    setup.sidecar.client.request(method, path).header("authorization", who).send().await
}

async fn get(setup: &Setup, who: &str) -> Reply {
    ask(setup, Method::GET, X, who).await
}

async fn warm(setup: &Setup, path: &str, who: &str) {
    eventually(SOON, async || ask(setup, Method::GET, path, who).await.is_hit()).await;
}

/// Polls until the answer comes from the upstream, and returns it.
async fn lapsed(setup: &Setup, path: &str, who: &str) -> Reply {
    eventually(SOON, async || {
        let reply = ask(setup, Method::GET, path, who).await;
        (!reply.is_hit()).then_some(reply)
    })
    .await
}

/// Makes the API reject Bob once the switch is set.
fn revocable(setup: &Setup) -> Arc<AtomicBool> {
    let revoked = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&revoked);
    setup.upstream.respond_to(X, move |headers| {
        if headers["authorization"] == BOB && switch.load(Ordering::SeqCst) {
            return json(StatusCode::UNAUTHORIZED, r#"{"detail":"expired"}"#);
        }
        json(StatusCode::OK, version("x1", 0))
    });
    revoked
}

/// Returns the metadata of the entry in Redis.
async fn meta(setup: &Setup) -> serde_json::Value {
    let meta = setup.redis.get(&format!("{{{}}}:meta", key("x1"))).await.expect("an entry");
    serde_json::from_slice(&meta).expect("JSON")
}

/// Returns when the upstream served the only member of the audience.
async fn served_at_ms(setup: &Setup) -> u64 {
    let meta = meta(setup).await;
    let [member] = &meta["audience"].as_array().expect("a list")[..] else {
        panic!("not one member: {meta}")
    };
    let (pair, ms) = member.as_str().and_then(|text| text.split_once('@')).expect("a time");
    assert_eq!(pair.len(), 64);
    ms.parse().expect("ms")
}

async fn check_revoked(change: impl FnOnce(&mut Config)) {
    let setup = Setup::with(|config| {
        recheck(config);
        change(config);
    })
    .await;
    let revoked = revocable(&setup);
    for who in [ALICE, BOB] {
        warm(&setup, X, who).await;
    }

    revoked.store(true, Ordering::SeqCst);

    let refused = eventually(SOON, async || {
        let reply = get(&setup, BOB).await;
        (reply.status == StatusCode::UNAUTHORIZED).then_some(reply)
    });
    assert_eq!(refused.await.text(), r#"{"detail":"expired"}"#);
    for _ in 0..3 {
        assert_eq!(get(&setup, BOB).await.status, 401);
        assert_eq!(ask(&setup, Method::HEAD, X, BOB).await.status, 401);
    }
    warm(&setup, X, ALICE).await;
    assert_eq!(get(&setup, BOB).await.status, 401, "Bob got Alice's entry");
}

#[tokio::test]
async fn a_token_that_is_revoked_without_a_write_is_refused_soon() {
    check_revoked(|_| {}).await;
}

#[tokio::test]
async fn a_token_that_is_revoked_is_refused_soon_by_the_embedded_store_too() {
    check_revoked(|config| config.store.url = StoreUrl::Memory).await;
}

#[tokio::test]
async fn a_refusal_costs_nobody_else_the_entry() {
    let setup = Setup::with(recheck).await;
    let revoked = revocable(&setup);
    for who in [ALICE, BOB] {
        warm(&setup, X, who).await;
    }
    let before = meta(&setup).await;
    revoked.store(true, Ordering::SeqCst);
    assert_eq!(lapsed(&setup, X, BOB).await.status, 401);
    warm(&setup, X, ALICE).await;
    let after = meta(&setup).await;
    for part in ["generation", "expires_at_ms", "stored_at_ms", "digest"] {
        assert_eq!(before[part], after[part], "{part}");
    }
    assert_eq!(after["audience"].as_array().map(Vec::len), Some(2), "{after}");
}

#[tokio::test]
async fn without_a_recheck_a_revoked_token_is_good_until_the_job_changes() {
    let setup = Setup::new().await;
    let revoked = revocable(&setup);
    warm(&setup, X, BOB).await;
    revoked.store(true, Ordering::SeqCst);
    assert!(get(&setup, BOB).await.is_hit());
    setup.redis.del(&key("x1")).await;
    assert_eq!(get(&setup, BOB).await.status, 401);
}

#[tokio::test]
async fn a_pair_that_is_served_again_is_renewed_in_its_place() {
    let setup = Setup::with(recheck).await;
    warm(&setup, X, ALICE).await;
    let (first, before) = (served_at_ms(&setup).await, meta(&setup).await);

    let reply = lapsed(&setup, X, ALICE).await;

    assert!(reply.is_stored(), "{reply:?}");
    warm(&setup, X, ALICE).await;
    let second = served_at_ms(&setup).await;
    assert!(second > first + 1_000, "{first} {second}");
    assert_eq!(meta(&setup).await["expires_at_ms"], before["expires_at_ms"]);
}

#[tokio::test]
async fn a_full_audience_renews_those_who_are_in_it() {
    let setup = Setup::with(|config| {
        recheck(config);
        config.cache.credentials.audience = 1;
    })
    .await;
    warm(&setup, X, ALICE).await;
    let stranger = get(&setup, BOB).await;
    assert!(stranger.cache_status().ends_with("detail=audience"), "{stranger:?}");
    assert!(lapsed(&setup, X, ALICE).await.is_stored());
    warm(&setup, X, ALICE).await;
}

#[tokio::test]
async fn what_is_public_needs_no_recheck() {
    let setup = Setup::with(recheck).await;
    let headers = [("cache-control", "public")];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
    warm(&setup, X, ALICE).await;
    warm(&setup, Y, ALICE).await;
    // The entry that was served to Alice later lapses first.
    lapsed(&setup, Y, ALICE).await;
    assert!(get(&setup, ALICE).await.is_hit());
    assert!(get(&setup, BOB).await.is_hit());
}

#[tokio::test]
async fn polls_of_one_lapsed_credential_share_the_read_that_renews_it() {
    let setup = Setup::with(recheck).await;
    warm(&setup, X, ALICE).await;
    setup.upstream.forget_requests();
    let gate = setup.upstream.hold(Method::GET, X);
    eventually(SOON, async || {
        // Hits are answered; the first lapsed read waits at the gate.
        let waits = setup.sidecar.client.start_as(Method::GET, X, ALICE).await;
        tokio::spawn(waits.answer());
        setup.exchange().await;
        setup.upstream.count(&Method::GET, X) > 0
    })
    .await;
    let polls = futures_util::future::join_all((0..20).map(|_| get(&setup, ALICE)));
    let (replies, ()) = tokio::join!(polls, async {
        setup.exchange().await;
        gate.release();
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(setup.upstream.reads(X), 1);
}
