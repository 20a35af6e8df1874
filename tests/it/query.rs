//! Reads with a query, and parameters that are configured as irrelevant.

use hyper::Method;

use crate::support::{Setup, redis::key, upstream::version};

const X: &str = "/jobs/x1";

async fn setup() -> Setup {
    Setup::with(|config| config.api.query.ignore = vec!["_".to_owned(), "t".to_owned()]).await
}

#[tokio::test]
async fn polls_with_a_cache_buster_share_the_entry_of_those_without() {
    let setup = setup().await;
    let miss = setup.get("/jobs/x1?_=1718000000").await;
    miss.assert(200, &version("x1", 0));
    assert!(miss.is_stored(), "{miss:?}");
    for path in [X, "/jobs/x1?_=1718000005", "/jobs/x1?t=2&%5F=3", "/jobs/x1?t"] {
        assert!(setup.get(path).await.is_hit(), "{path}");
    }
    assert_eq!(setup.upstream.reads(X), 1);
    assert!(setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn an_ignored_parameter_reaches_the_upstream_as_it_is() {
    let setup = setup().await;
    setup.get("/jobs/x1?%5F=1&t=a%2Fb").await;
    assert_eq!(setup.upstream.requests().pop().unwrap().target, "/jobs/x1?%5F=1&t=a%2Fb");
}

#[tokio::test]
async fn any_other_parameter_passes_every_time() {
    let setup = setup().await;
    setup.hit(X).await;
    let paths =
        ["/jobs/x1?fields=a", "/jobs/x1?_=1&fields=a", "/jobs/x1?", "/jobs/x1?_=1;fields=a"];
    for path in paths {
        let reply = setup.get(path).await;
        assert_eq!(reply.cache_status(), "jobcache; fwd=bypass; detail=query", "{path}");
    }
    assert_eq!(setup.upstream.reads(X), 1 + paths.len());
}

#[tokio::test]
async fn a_write_forgets_what_a_poll_with_a_cache_buster_has_stored() {
    let setup = setup().await;
    setup.hit("/jobs/x1?_=1").await;
    setup.sidecar.put("/jobs/x1?_=2").await.assert(200, &version("x1", 1));
    setup.get("/jobs/x1?_=3").await.assert(200, &version("x1", 1));
}

#[tokio::test]
async fn polls_with_differing_cache_busters_share_one_read() {
    let setup = setup().await;
    let gate = setup.upstream.hold(Method::GET, X);
    let mut readers = Vec::new();
    for n in 0..20 {
        let path = format!("/jobs/x1?_={n}");
        readers.push(setup.sidecar.client.start(Method::GET, &path, "").await);
    }
    gate.arrived(1).await;
    setup.exchange().await;
    gate.release();
    for reader in readers {
        assert_eq!(reader.answer().await, (200, version("x1", 0)));
    }
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn without_the_knob_every_query_passes() {
    let setup = Setup::new().await;
    for path in ["/jobs/x1?_=1", "/jobs/x1?"] {
        assert!(setup.get(path).await.is_uncached(), "{path}");
        assert!(setup.get(path).await.is_uncached(), "{path}");
    }
    assert!(!setup.redis.holds(&key("x1")).await);
}

#[tokio::test]
async fn an_allowed_query_is_cached_for_itself_and_forgotten_with_its_job() {
    let setup = Setup::with(|config| {
        config.api.query.allow = vec!["view".to_owned()];
        config.api.query.ignore = vec!["_".to_owned()];
    })
    .await;
    let queries = ["/jobs/x1?view=long", "/jobs/x1?view=short", "/jobs/x1?_=7&view=tiny"];
    for query in queries {
        assert!(!setup.get(query).await.is_hit(), "{query} was answered without the upstream");
        setup.hit(query).await.assert(200, &version("x1", 0));
    }
    assert!(setup.get("/jobs/x1?view=tiny&_=8").await.is_hit());

    setup.sidecar.put(X).await;

    for query in queries {
        setup.get(query).await.assert(200, &version("x1", 1));
    }
    let other = setup.get("/jobs/x1?view=long&t=1").await;
    assert_eq!(other.cache_status(), "jobcache; fwd=bypass; detail=query");
}
