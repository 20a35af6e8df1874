//! Cache directives of clients, and a sidecar that is configured to ignore them.

use hyper::{Method, StatusCode};
use jobcache::config::Config;

use crate::support::{
    Reply, Setup,
    redis::key,
    upstream::{version, with_headers},
};

const X: &str = "/jobs/x1";

fn ignoring(config: &mut Config) {
    config.cache.ignore_client_cache_control = true;
}

async fn ask(setup: &Setup, name: &'static str, value: &str) -> Reply {
    setup.sidecar.client.request(Method::GET, X).header(name, value).send().await
}

#[tokio::test]
async fn a_reload_of_the_browser_is_a_hit_where_clients_are_not_listened_to() {
    let setup = Setup::with(ignoring).await;
    setup.hit(X).await;
    for (name, value) in [
        ("cache-control", "no-cache"),
        ("cache-control", "max-age=0"),
        ("cache-control", "no-store"),
        ("cache-control", "min-fresh=100000"),
        ("cache-control", "x=\""),
        ("pragma", "no-cache"),
    ] {
        let reply = ask(&setup, name, value).await;
        assert!(reply.is_hit(), "{name}: {value}: {reply:?}");
    }
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_response_to_a_no_store_request_is_stored_only_where_clients_are_not_listened_to() {
    let setup = Setup::new().await;
    let reply = ask(&setup, "cache-control", "no-store").await;
    assert_eq!(reply.cache_status(), "jobcache; fwd=request; detail=no-store", "{reply:?}");
    assert!(!setup.redis.holds(&key("x1")).await);

    let ignoring = Setup::with(ignoring).await;
    assert!(ask(&ignoring, "cache-control", "no-store").await.is_stored());
}

#[tokio::test]
async fn who_only_wants_the_cache_is_heeded_even_where_clients_are_not_listened_to() {
    let setup = Setup::with(ignoring).await;
    let reply = ask(&setup, "cache-control", "only-if-cached, no-cache").await;
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(setup.upstream.reads(X), 0);
    setup.hit(X).await;
    assert!(ask(&setup, "cache-control", "only-if-cached, no-cache").await.is_hit());
}

#[tokio::test]
async fn what_the_upstream_forbids_stays_forbidden_where_clients_are_not_listened_to() {
    let setup = Setup::with(ignoring).await;
    let headers = [("cache-control", "no-store")];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
    for _ in 0..2 {
        assert!(ask(&setup, "cache-control", "no-cache").await.is_uncached());
    }
}

#[tokio::test]
async fn the_upstream_sees_what_the_client_asked() {
    let setup = Setup::with(ignoring).await;
    ask(&setup, "cache-control", "no-cache").await.assert(200, &version("x1", 0));
    let seen = setup.upstream.requests().pop().unwrap();
    assert_eq!(seen.headers["cache-control"], "no-cache");
}

#[tokio::test]
async fn an_entry_that_is_too_old_for_a_client_is_refreshed_for_it() {
    let setup = Setup::new().await;
    let headers = [("age", "100")];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
    setup.hit(X).await;
    assert!(ask(&setup, "cache-control", "max-age=200").await.is_hit());
    let reply = ask(&setup, "cache-control", "max-age=99").await;
    assert_eq!(reply.cache_status(), "jobcache; fwd=request; detail=no-cache", "{reply:?}");
    let reply = ask(&setup, "cache-control", "min-fresh=250").await;
    assert_eq!(reply.cache_status(), "jobcache; fwd=request; detail=no-cache", "{reply:?}");
    assert!(ask(&setup, "cache-control", "max-stale=10").await.is_hit());
}
