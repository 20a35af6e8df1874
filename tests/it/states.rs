//! The TTL of a job by the state in its body.

use std::time::Duration;

use jobcache::config::{Config, StoreUrl};

use crate::support::{
    Reply, SOON, Setup, eventually,
    redis::{FRESH_TTL_MS, key},
    upstream::with_headers,
};

const X: &str = "/jobs/x1";

fn states(config: &mut Config) {
    let ttl = |(state, seconds): (&str, u64)| (state.to_owned(), Duration::from_secs(seconds));
    config.cache.lifetimes.states.map =
        [("completed", 300), ("running", 10), ("paused", 60)].map(ttl).to_vec();
}

fn says(setup: &Setup, body: &'static str) {
    setup.upstream.set("x1", 200, body);
}

/// Fills the key again, and returns its TTL in Redis and that of a hit, in seconds.
async fn ttls(setup: &Setup) -> (i64, i64) {
    setup.redis.del(&key("x1")).await;
    assert!(setup.get(X).await.is_stored());
    let redis = setup.redis.ttl_ms(&key("x1")).await;
    (redis / 1_000, ttl(&setup.hit(X).await))
}

fn ttl(hit: &Reply) -> i64 {
    let ttl = hit.cache_status().strip_prefix("jobcache; hit; ttl=").expect("a hit with its TTL");
    ttl.parse().expect("seconds")
}

/// Asserts that both TTLs are at most this many seconds, and not much less.
#[track_caller]
fn about(ttls: (i64, i64), seconds: i64, body: &str) {
    let expected = seconds - 6..=seconds;
    assert!(expected.contains(&ttls.0) && expected.contains(&ttls.1), "{ttls:?}: {body}");
}

#[tokio::test]
async fn each_state_is_kept_for_its_time_and_an_unknown_one_for_the_shortest() {
    let setup = Setup::with(states).await;
    for (body, seconds) in [
        (r#"{"status":"running"}"#, 10),
        (r#"{"id":"x1","log":[{"status":"running"}],"status":"completed"}"#, 300),
        (r#"{"status":"paused"}"#, 60),
        (r#"{"status":"cancelling"}"#, 10),
        (r#"{"state":"completed"}"#, 10),
        (r#"{"status":"completed""#, 10),
        ("completed", 10),
    ] {
        says(&setup, body);
        about(ttls(&setup).await, seconds, body);
    }
}

#[tokio::test]
async fn of_state_and_response_the_shorter_time_counts() {
    let setup = Setup::with(states).await;
    for (cache_control, status, seconds) in [
        ("max-age=7", r#"{"status":"running"}"#, 7),
        ("max-age=100", r#"{"status":"running"}"#, 10),
        ("max-age=100", r#"{"status":"completed"}"#, 100),
        ("max-age=1000", r#"{"status":"completed"}"#, 300),
    ] {
        let headers = [("cache-control", cache_control)];
        setup.upstream.respond(X, move |_| Some(with_headers(status, &headers)));
        about(ttls(&setup).await, seconds, cache_control);
    }
}

#[tokio::test]
async fn a_running_job_is_read_again_soon_though_no_purge_came() {
    let setup = Setup::with(|config| {
        config.cache.lifetimes.states.map = vec![
            ("completed".to_owned(), Duration::from_mins(5)),
            ("running".to_owned(), Duration::from_secs(1)),
        ];
    })
    .await;
    says(&setup, r#"{"status":"running"}"#);
    setup.get(X).await;
    says(&setup, r#"{"status":"completed"}"#);
    eventually(SOON, async || setup.get(X).await.text().contains("completed")).await;
    let ttl_ms = setup.redis.ttl_ms(&key("x1")).await;
    assert!(FRESH_TTL_MS.contains(&ttl_ms), "{ttl_ms}");
}

#[tokio::test]
async fn an_entry_that_is_replaced_gets_the_time_of_its_new_state() {
    let setup = Setup::with(states).await;
    says(&setup, r#"{"status":"completed"}"#);
    setup.hit(X).await;
    says(&setup, r#"{"status":"running"}"#);
    let fresh = setup.sidecar.client.request(hyper::Method::GET, X);
    fresh.header("cache-control", "no-cache").send().await.assert(200, r#"{"status":"running"}"#);
    eventually(SOON, async || setup.redis.ttl_ms(&key("x1")).await <= 10_000).await;
    assert!(ttl(&setup.hit(X).await) <= 10);
}

#[tokio::test]
async fn the_embedded_store_keeps_to_it_too() {
    let setup = Setup::with(|config| {
        states(config);
        config.store.url = StoreUrl::Memory;
    })
    .await;
    says(&setup, r#"{"status":"running"}"#);
    assert!(ttl(&setup.hit(X).await) <= 10);
}

#[tokio::test]
async fn without_a_map_the_state_does_not_matter() {
    let setup = Setup::new().await;
    says(&setup, r#"{"status":"running"}"#);
    about(ttls(&setup).await, 300, "");
}
