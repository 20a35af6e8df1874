//! Requirements of HTTP for a shared cache beyond what polls of jobs need (RFC 9110 and 9111).

use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Method;

use crate::support::{RedisServer, Reply, Setup, upstream::with_headers};

const X: &str = "/jobs/x1";
const DATES: [&str; 2] = ["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"];

async fn get_as(setup: &Setup, who: &str) -> Reply {
    setup.sidecar.client.request(Method::GET, X).header("authorization", who).send().await
}

#[tokio::test]
async fn a_hit_has_the_date_of_the_read_that_it_repeats() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[("date", DATES[0])]));

    let miss = setup.get(X).await;
    let hit = setup.get(X).await;

    assert_eq!((miss.header("date"), miss.is_hit()), (DATES[0], false));
    assert_eq!((hit.header("date"), hit.is_hit()), (DATES[0], true));
    let client = &setup.sidecar.client;
    let held = client.request(Method::GET, X).header("if-none-match", hit.header("etag"));
    let not_modified = held.send().await;
    assert_eq!((not_modified.status.as_u16(), not_modified.header("date")), (304, DATES[0]));
}

#[tokio::test]
async fn two_reads_that_differ_in_their_date_alone_are_of_one_entry() {
    let setup = Setup::new().await;
    let reads = AtomicUsize::new(0);
    setup.upstream.respond_to(X, move |_| {
        let date = DATES[reads.fetch_add(1, Ordering::Relaxed)];
        with_headers("{}", &[("date", date)])
    });
    get_as(&setup, "alice").await;

    let bobs = get_as(&setup, "bob").await;

    assert_eq!((bobs.header("date"), bobs.is_hit()), (DATES[1], false));
    for who in ["alice", "bob"] {
        let hit = get_as(&setup, who).await;
        assert_eq!((hit.header("date"), hit.is_hit()), (DATES[0], true), "{who}");
    }
}

#[tokio::test]
async fn a_200_is_whole_whatever_content_range_it_carries() {
    let setup = Setup::new().await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[("content-range", "bytes 0-1/9")]));
    setup.get(X).await;

    let hit = setup.hit(X).await;

    hit.assert(200, "{}");
    assert_eq!(hit.header("content-range"), "bytes 0-1/9");
}

#[tokio::test]
async fn what_states_no_lifetime_is_stored_unless_the_operator_says_otherwise() {
    // Not `Setup::with`, because its warm-up job states no lifetime.
    let setup =
        Setup::cold(RedisServer::start().await, |c| c.cache.lifetimes.stated_only = true).await;
    let stated = [("cache-control", "max-age=60")];
    setup.upstream.respond_to("/jobs/stated1", move |_| with_headers("{}", &stated));

    setup.hit("/jobs/stated1").await;

    assert_eq!(setup.get(X).await.cache_status(), "jobcache; fwd=miss; detail=unstated");
    assert!(!setup.get(X).await.is_hit());
}

#[tokio::test]
async fn a_response_that_sets_a_cookie_that_does_not_count_is_stored_without_it() {
    let setup = Setup::with(|c| c.cache.credentials.cookies = vec!["session".into()]).await;
    setup.upstream.respond_to(X, |_| with_headers("{}", &[("set-cookie", "lb=1; Path=/")]));

    let miss = setup.get(X).await;
    let hit = setup.get(X).await;

    assert_eq!((miss.header("set-cookie"), miss.is_hit()), ("lb=1; Path=/", false));
    assert!(hit.is_hit() && !hit.headers.contains_key("set-cookie"), "{hit:?}");
    let client = &setup.sidecar.client;
    let balanced = client.request(Method::GET, X).header("cookie", "lb=1").send().await;
    assert!(balanced.is_hit(), "a client without a counted cookie is not anonymous");
    let known = client.request(Method::GET, X).header("cookie", "lb=1; session=1").send().await;
    assert!(!known.is_hit(), "{known:?}");
}
