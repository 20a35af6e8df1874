//! Promise 2 within promise 1: a client that a write has excluded is not admitted by a read from
//! before it.
//!
//! Alice polls with another query than Bob, so that a gate can hold Bob's read while Alice's reads
//! fill.

use hyper::{HeaderMap, Method, Response, StatusCode};

use crate::support::{
    Body, Reply, SOON, Setup, eventually,
    redis::key,
    sidecar::Sidecar,
    upstream::{json, version},
};

const X: &str = "/jobs/x1?of=bob";
const X_OF_ALICE: &str = "/jobs/x1?of=alice";
const ALICE: &str = "Bearer alice-0123456789";
const BOB: &str = "Bearer bob-9876543210";

async fn two_forms() -> Setup {
    Setup::with(|config| config.api.query.allow = vec!["of".to_owned()]).await
}

async fn get(sidecar: &Sidecar, path: &str, who: &str) -> Reply {
    sidecar.client.request(Method::GET, path).header("authorization", who).send().await
}

async fn warm(setup: &Setup, path: &str, who: &str) {
    eventually(SOON, async || get(&setup.sidecar, path, who).await.is_hit()).await;
}

fn who(headers: &HeaderMap) -> &str {
    headers.get("authorization").map_or("nobody", |value| value.to_str().unwrap())
}

/// The bytes stay the same: only Bob is rejected.
fn not_to_bob(headers: &HeaderMap) -> Response<Body> {
    match who(headers) {
        BOB => json(StatusCode::FORBIDDEN, "{}"),
        _ => json(StatusCode::OK, version("x1", 0)),
    }
}

fn for_each(headers: &HeaderMap) -> Response<Body> {
    json(StatusCode::OK, format!(r#"{{"for":"{}"}}"#, who(headers)))
}

/// Waits until the store has rejected a fill.
async fn refused(sidecar: &Sidecar) {
    eventually(SOON, async || {
        let metrics = sidecar.admin.get("/metrics").await;
        metrics.text().contains(r#"jobcache_fills_total{outcome="revoked"} 1"#)
    })
    .await;
}

/// Holds Bob's read, which the upstream has answered, during `invalidate` and until Alice's read
/// has filled the same bytes again.
async fn check_late(
    setup: &Setup,
    through: &Sidecar,
    header: (&'static str, &str),
    invalidate: impl AsyncFn(&Setup),
) {
    warm(setup, X_OF_ALICE, ALICE).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let late = through.client.request(Method::GET, X).header("authorization", BOB);
    let (late, ()) = tokio::join!(late.header(header.0, header.1).send(), async {
        gate.arrived(1).await;
        setup.upstream.respond_to(X, not_to_bob);
        setup.upstream.respond_to(X_OF_ALICE, not_to_bob);
        invalidate(setup).await;
        warm(setup, X_OF_ALICE, ALICE).await;
        gate.release();
    });
    assert_eq!(late.status, 200, "he asked before it");
    refused(through).await;
    for _ in 0..2 {
        assert_eq!(get(through, X, BOB).await.status, 403);
        assert_eq!(get(&setup.sidecar, X, BOB).await.status, 403);
    }
    assert!(get(&setup.sidecar, X_OF_ALICE, ALICE).await.is_hit());
}

const PLAIN: (&str, &str) = ("x-plain", "yes");
const REFRESH: (&str, &str) = ("cache-control", "no-cache");

async fn write(setup: &Setup) {
    setup.sidecar.put(X).await;
}

async fn del(setup: &Setup) {
    setup.redis.del(&key("x1")).await;
}

async fn del_and_set(setup: &Setup) {
    let body = setup.redis.get(&key("x1")).await.unwrap();
    setup.redis.del(&key("x1")).await;
    setup.redis.set(&key("x1"), &body).await;
}

#[tokio::test]
async fn a_read_from_before_a_write_admits_nobody_to_the_entry_after_it() {
    let setup = two_forms().await;
    check_late(&setup, &setup.sidecar, PLAIN, write).await;
}

#[tokio::test]
async fn a_read_from_before_a_write_through_another_sidecar_admits_nobody() {
    let setup = two_forms().await;
    let second = setup.second().await;
    check_late(&setup, &second, PLAIN, write).await;
}

#[tokio::test]
async fn a_read_from_before_a_plain_del_admits_nobody_to_the_entry_after_it() {
    let setup = two_forms().await;
    check_late(&setup, &setup.sidecar, PLAIN, del).await;
}

#[tokio::test]
async fn a_read_from_before_a_del_and_a_set_of_the_same_bytes_admits_nobody_after_it() {
    let setup = two_forms().await;
    check_late(&setup, &setup.sidecar, PLAIN, del_and_set).await;
}

#[tokio::test]
async fn a_refresh_from_before_an_invalidation_replaces_nothing_after_it() {
    for invalidate in [true, false] {
        let setup = two_forms().await;
        let run =
            async |setup: &Setup| if invalidate { write(setup).await } else { del(setup).await };
        check_late(&setup, &setup.sidecar, REFRESH, run).await;
    }
}

#[tokio::test]
async fn bytes_of_ones_own_from_before_a_write_replace_nothing_after_it() {
    let setup = two_forms().await;
    setup.upstream.respond_to(X, for_each);
    check_late(&setup, &setup.sidecar, PLAIN, write).await;
}

#[tokio::test]
async fn who_is_let_in_again_is_served_again() {
    let setup = two_forms().await;
    setup.upstream.respond_to(X, not_to_bob);
    warm(&setup, X, ALICE).await;
    assert_eq!(get(&setup.sidecar, X, BOB).await.status, 403);
    setup.upstream.respond_to(X, |_| json(StatusCode::OK, version("x1", 0)));
    write(&setup).await;
    get(&setup.sidecar, X, BOB).await.assert(200, &version("x1", 0));
}

/// Starts two polls of Bob's that share one read until its result is known.
async fn two_at_once(setup: &Setup) -> [Reply; 2] {
    let gate = setup.upstream.hold(Method::GET, X);
    let ask = || get(&setup.sidecar, X, BOB);
    let (first, second, ()) = tokio::join!(ask(), ask(), async {
        gate.arrived(1).await;
        setup.exchange().await;
        gate.release();
    });
    [first, second]
}

#[tokio::test]
async fn a_refusal_or_a_cookie_for_who_asks_to_be_let_in_reaches_nobody_else() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::OK] {
        let setup = two_forms().await;
        warm(&setup, X_OF_ALICE, ALICE).await;
        let count = std::sync::atomic::AtomicUsize::new(0);
        setup.upstream.respond_to(X, move |_| {
            let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut response = json(status, version("x1", 0));
            response.headers_mut().insert("set-cookie", number.into());
            response
        });

        let [first, second] = two_at_once(&setup).await;

        assert_eq!(setup.upstream.reads(X), 2, "each asks for itself");
        assert_eq!((first.status, second.status), (status, status));
        assert_ne!(first.header("set-cookie"), second.header("set-cookie"));
        assert!(!get(&setup.sidecar, X, BOB).await.is_hit());
        assert!(get(&setup.sidecar, X_OF_ALICE, ALICE).await.is_hit());
    }
}

/// An API with rate limits per user, which marks each user's answers with a header.
fn marked(name: &'static str) -> impl Fn(&HeaderMap) -> Response<Body> + Send + Sync {
    move |headers| {
        let mut response = json(StatusCode::OK, version("x1", 0));
        let mark = format!("\"{}\"", who(headers)).parse().unwrap();
        response.headers_mut().insert(name, mark);
        response
    }
}

#[tokio::test]
async fn the_rate_limit_of_one_user_is_told_to_no_other_and_in_no_hit() {
    let setup = two_forms().await;
    setup.upstream.respond_to(X, marked("x-ratelimit-remaining"));
    warm(&setup, X, ALICE).await;

    let replies = two_at_once(&setup).await;

    assert_eq!(setup.upstream.reads(X), 2, "one of Alice's, one of Bob's");
    let told = replies.iter().filter(|reply| reply.headers.contains_key("x-ratelimit-remaining"));
    assert_eq!(told.count(), 1, "{replies:?}");
    warm(&setup, X, BOB).await;
    for who in [ALICE, BOB] {
        let hit = get(&setup.sidecar, X, who).await;
        assert!(hit.is_hit() && !hit.headers.contains_key("x-ratelimit-remaining"), "{hit:?}");
    }
}

#[tokio::test]
async fn the_etag_of_one_user_is_given_to_no_other() {
    let setup = two_forms().await;
    setup.upstream.respond_to(X, marked("etag"));
    let etag = |who: &str| format!("\"{who}\"");
    for _ in 0..3 {
        for (who, other) in [(ALICE, BOB), (BOB, ALICE)] {
            assert_eq!(get(&setup.sidecar, X, who).await.header("etag"), etag(who));
            let request = setup.sidecar.client.request(Method::GET, X).header("authorization", who);
            let reply = request.header("if-none-match", &etag(other)).send().await;
            assert_eq!((reply.status.as_u16(), reply.header("etag")), (200, &etag(who)[..]));
        }
    }
}
