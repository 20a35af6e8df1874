//! Rows of the HTTP table that are visible only on the wire.

use hyper::Method;

use crate::support::{Setup, upstream::with_headers};

const X: &str = "/jobs/x1";

#[tokio::test]
async fn what_other_caches_say_stays_in_front_of_our_word_and_is_not_replayed() {
    let setup = Setup::new().await;
    let headers = [("cache-status", "origin; hit; ttl=7")];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));

    let miss = setup.get(X).await;

    let list: Vec<_> = miss.headers.get_all("cache-status").iter().collect();
    assert_eq!(list, ["origin; hit; ttl=7", "jobcache; fwd=miss; stored"]);
    let hit = setup.hit(X).await;
    assert_eq!(hit.headers.get_all("cache-status").iter().count(), 1, "{hit:?}");
}

#[tokio::test]
async fn a_client_that_holds_what_a_miss_brings_gets_its_304() {
    let setup = Setup::new().await;
    let etag = setup.hit(X).await.header("etag").to_owned();
    for held in [etag.clone(), format!("W/{etag}"), format!("\"other\", {etag}"), "*".to_owned()] {
        setup.redis.del("job_status:x1").await;
        let request = setup.sidecar.client.request(Method::GET, X);
        let reply = request.header("if-none-match", &held).send().await;
        reply.assert(304, "");
        assert!(reply.is_stored(), "{held}: {reply:?}");
        assert_eq!(reply.header("etag"), etag);
    }
}

#[tokio::test]
async fn the_age_on_arrival_is_passed_on_and_taken_off() {
    let setup = Setup::new().await;
    for (age, least, most) in [("100", 100, 105), ("7, 100", 7, 12), ("x", 0, 5)] {
        setup.redis.del("job_status:x1").await;
        let headers = [("age", age)];
        setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
        let hit = setup.hit(X).await;
        let told: u64 = hit.header("age").parse().expect("seconds");
        assert!((least..=most).contains(&told), "{age}: {hit:?}");
        let ttl = hit.cache_status().rsplit("ttl=").next().map(str::parse::<u64>);
        let ttl = ttl.expect("a ttl").expect("seconds");
        assert!((290 - least..=300 - least).contains(&ttl), "{age}: {hit:?}");
    }
}

#[tokio::test]
async fn a_head_with_a_validator_is_answered_304() {
    let setup = Setup::new().await;
    let etag = setup.hit(X).await.header("etag").to_owned();
    let request = setup.sidecar.client.request(Method::HEAD, X);
    let reply = request.header("if-none-match", &etag).send().await;
    reply.assert(304, "");
    assert!(reply.is_hit(), "{reply:?}");
}

#[tokio::test]
async fn a_date_alone_gets_the_body_also_from_a_hit() {
    let setup = Setup::new().await;
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let headers = [("last-modified", date)];
    setup.upstream.respond(X, move |_| Some(with_headers("{}", &headers)));
    setup.hit(X).await;
    let request = setup.sidecar.client.request(Method::GET, X);
    let reply = request.header("if-modified-since", date).send().await;
    reply.assert(200, "{}");
    assert!(reply.is_hit(), "{reply:?}");
    assert_eq!(reply.header("last-modified"), date);
}
