//! Entries in the process, in front of Redis: served without reading them from Redis, and never
//! older than there.

use std::time::Duration;

use hyper::Method;
use jobcache::config::{NearMode, NearTracking};

use crate::support::{
    RedisServer, SOON, Setup, eventually,
    redis::key,
    upstream::{version, with_headers},
};

const X: &str = "/jobs/x1";

/// Long enough for a test to stay within it, and to check that it does.
const STALENESS: Duration = Duration::from_secs(20);

async fn bounded() -> Setup {
    Setup::with(|config| {
        config.cache.near.mode = NearMode::Bounded;
        config.cache.near.max_staleness = STALENESS;
    })
    .await
}

/// Returns a setup with tracking by keys.
async fn by_keys() -> Setup {
    Setup::with(|config| config.cache.near.tracking = NearTracking::Keys).await
}

async fn news(setup: &Setup) -> u64 {
    metric(setup, "jobcache_tracking_news_total").await
}

/// Returns the value of a metric.
async fn metric(setup: &Setup, name: &str) -> u64 {
    let text = setup.sidecar.admin.get("/metrics").await;
    let line = text.text().lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

async fn near_hits(setup: &Setup) -> u64 {
    metric(setup, "jobcache_near_lookups_total{outcome=\"hit\"}").await
}

/// Waits until a GET is answered from this process.
async fn near_hit(setup: &Setup, path: &str) {
    eventually(SOON, async || {
        let before = near_hits(setup).await;
        setup.get(path).await.is_hit() && near_hits(setup).await > before
    })
    .await;
}

/// Returns how often Redis has run a command.
async fn calls(redis: &RedisServer, command: &str) -> u64 {
    let info: String = redis.run(redis::cmd("INFO").arg("commandstats")).await;
    let prefix = format!("cmdstat_{command}:calls=");
    let line = info.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or("0,");
    line.split(',').next().and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn hits_fetch_nothing_from_redis() {
    let setup = Setup::new().await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    let (reads, before) = (calls(&setup.redis, "mget").await, near_hits(&setup).await);

    for _ in 0..50 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(reply.is_hit(), "{reply:?}");
    }

    assert_eq!(calls(&setup.redis, "mget").await, reads);
    assert_eq!(near_hits(&setup).await, before + 50);
    assert_eq!(setup.upstream.reads(X), 1);
}

#[tokio::test]
async fn a_del_by_a_third_party_shows_in_the_very_next_read() {
    shows_each_del(&Setup::new().await).await;
}

async fn shows_each_del(setup: &Setup) {
    let mut redis = setup.redis.connection().await;
    for v in 0..200 {
        setup.get(X).await;
        setup.hit(X).await;
        setup.get(X).await.assert(200, &version("x1", v));
        setup.upstream.commit("x1");
        let () = redis::cmd("DEL").arg(key("x1")).query_async(&mut redis).await.expect("Redis");
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", v + 1));
        assert!(!reply.is_hit(), "{reply:?}");
    }
    assert!(near_hits(setup).await >= 200);
}

#[tokio::test]
async fn a_write_through_another_sidecar_shows_in_the_very_next_read() {
    let setup = Setup::new().await;
    let other = setup.second().await;
    for v in 1..=50 {
        setup.get(X).await;
        setup.hit(X).await;
        setup.get(X).await;
        other.put(X).await;
        setup.get(X).await.assert(200, &version("x1", v));
        eventually(SOON, async || setup.get(X).await.is_hit()).await;
    }
}

#[tokio::test]
async fn a_purge_of_all_through_another_sidecar_shows_in_the_very_next_read() {
    shows_each_purge_of_all(&Setup::new().await).await;
}

#[tokio::test]
async fn by_keys_a_purge_of_all_through_another_sidecar_shows_in_the_very_next_read() {
    shows_each_purge_of_all(&by_keys().await).await;
}

/// Without the right to look for what a purge of all has voided, nothing is deleted afterwards.
async fn shows_each_purge_of_all(setup: &Setup) {
    let mut acl = redis::cmd("ACL");
    let () = setup.redis.run(acl.arg("SETUSER").arg("default").arg("-scan")).await;
    let other = setup.second().await;
    for number in 1..=20 {
        near_hit(setup, X).await;
        setup.upstream.commit("x1");
        let all = other.admin.request(Method::POST, "/purge").body(r#"{"all":true}"#);
        assert_eq!(all.send().await.status, 200);
        setup.get(X).await.assert(200, &version("x1", number));
    }
}

#[tokio::test]
async fn flushall_empties_the_process_too() {
    let setup = Setup::new().await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    setup.upstream.commit("x1");

    let () = setup.redis.run(&redis::cmd("FLUSHALL")).await;

    setup.get(X).await.assert(200, &version("x1", 1));
    assert_eq!(metric(&setup, "jobcache_near_entries").await, 0);
}

#[tokio::test]
async fn readers_share_the_rounds_of_the_barrier() {
    let setup = Setup::new().await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    let (rounds, waits) = (
        metric(&setup, "jobcache_barrier_rounds_total").await,
        metric(&setup, "jobcache_barrier_waits_total").await,
    );

    for _ in 0..20 {
        let crowd = (0..32).map(|_| setup.hit(X));
        futures_util::future::join_all(crowd).await;
    }

    let waited = metric(&setup, "jobcache_barrier_waits_total").await - waits;
    let rounds = metric(&setup, "jobcache_barrier_rounds_total").await - rounds;
    assert!(waited >= 10 * 32, "{waited}");
    assert!(rounds < waited / 2, "{rounds} rounds for {waited} readers");
}

#[tokio::test]
async fn a_cut_tracking_connection_costs_nothing_but_the_near_hits_until_it_is_back() {
    survives_cuts(&Setup::new().await).await;
}

async fn survives_cuts(setup: &Setup) {
    for v in 0..5 {
        setup.get(X).await;
        near_hit(setup, X).await;
        let id: Vec<u64> = tracking_ids(&setup.redis).await;
        assert_eq!(id.len(), 1);
        let () = setup.redis.run(redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id[0])).await;
        setup.upstream.commit("x1");
        setup.redis.del(&key("x1")).await;
        setup.get(X).await.assert(200, &version("x1", v + 1));
        eventually(SOON, async || setup.get(X).await.is_hit()).await;
    }
}

async fn tracking_ids(redis: &RedisServer) -> Vec<u64> {
    let list: String = redis.run(redis::cmd("CLIENT").arg("LIST")).await;
    let tracking = list.lines().filter(|line| line.contains(" name=jobcache-tracking "));
    tracking.filter_map(client_id).collect()
}

/// Returns the id in a line of `CLIENT LIST`.
fn client_id(line: &str) -> Option<u64> {
    line.strip_prefix("id=")?.split(' ').next()?.parse().ok()
}

#[tokio::test]
async fn while_redis_hangs_nothing_is_served_from_the_process() {
    let setup = Setup::with(|config| config.store.budget = Duration::from_millis(50)).await;
    setup.get(X).await;
    near_hit(&setup, X).await;

    setup.redis.stop();
    for _ in 0..10 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(!reply.is_hit(), "{reply:?}");
    }
    setup.redis.cont();

    near_hit(&setup, X).await;
}

#[tokio::test]
async fn a_redis_that_refuses_tracking_serves_hits_all_the_same() {
    let redis = RedisServer::start_with(&["--rename-command", "CLIENT", ""]).await;
    let setup = Setup::cold(redis, |_| {}).await;
    setup.sidecar.warm().await;
    setup.get(X).await;
    for _ in 0..5 {
        setup.hit(X).await;
    }
    assert_eq!(near_hits(&setup).await, 0);
    assert_eq!(metric(&setup, "jobcache_tracking_up").await, 0);
}

#[tokio::test]
async fn the_process_keeps_an_entry_no_longer_than_redis() {
    let setup = Setup::with(|config| config.cache.lifetimes.ttl = Duration::from_secs(1)).await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    setup.upstream.commit("x1");

    eventually(SOON, async || setup.get(X).await.text() == version("x1", 1)).await;
}

#[tokio::test]
async fn a_caller_whom_the_upstream_has_let_in_is_served_from_the_process_too() {
    let setup = Setup::new().await;
    for who in ["Bearer a", "Bearer b"] {
        eventually(SOON, async || {
            let before = near_hits(&setup).await;
            let request = setup.sidecar.client.request(Method::GET, X);
            let reply = request.header("authorization", who).send().await;
            reply.assert(200, &version("x1", 0));
            reply.is_hit() && near_hits(&setup).await > before
        })
        .await;
    }
    assert_eq!(setup.upstream.reads(X), 2, "not one read each");
}

#[tokio::test]
async fn a_lost_meta_does_not_matter_to_an_entry_in_the_process() {
    let setup = Setup::new().await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    setup.redis.del(&format!("{{{}}}:meta", key("x1"))).await;

    setup.hit(X).await.assert(200, &version("x1", 0));
}

#[tokio::test]
async fn within_its_bound_a_hit_waits_for_nothing() {
    let setup = bounded().await;
    setup.get(X).await;
    near_hit(&setup, X).await;
    let waits = metric(&setup, "jobcache_barrier_waits_total").await;

    for _ in 0..50 {
        setup.hit(X).await;
    }

    assert_eq!(metric(&setup, "jobcache_barrier_waits_total").await, waits);
}

#[tokio::test]
async fn within_its_bound_a_write_of_ones_own_shows_at_once() {
    let setup = bounded().await;
    for v in 1..=50 {
        setup.get(X).await;
        setup.hit(X).await;
        setup.sidecar.put(X).await;
        setup.get(X).await.assert(200, &version("x1", v));
        eventually(SOON, async || setup.get(X).await.is_hit()).await;
    }
}

#[tokio::test]
async fn within_its_bound_a_purge_of_ones_own_shows_at_once() {
    let setup = bounded().await;
    for v in 1..=50 {
        setup.get(X).await;
        setup.hit(X).await;
        setup.upstream.commit("x1");
        let purge = setup.sidecar.admin.request(Method::POST, "/purge/x1").send().await;
        assert_eq!(purge.status, 200);
        setup.get(X).await.assert(200, &version("x1", v));
    }
}

#[tokio::test]
async fn past_its_bound_a_hit_waits_for_the_news() {
    let setup = Setup::with(|config| {
        config.cache.near.mode = NearMode::Bounded;
        config.cache.near.max_staleness = Duration::from_millis(1);
    })
    .await;
    for v in 1..=20 {
        setup.get(X).await;
        near_hit(&setup, X).await;
        setup.upstream.commit("x1");
        setup.redis.del(&key("x1")).await;
        // The bound must pass.
        tokio::time::sleep(Duration::from_millis(2)).await;
        setup.get(X).await.assert(200, &version("x1", v));
    }
}

#[tokio::test]
async fn room_is_bounded_and_what_had_to_go_is_asked_of_redis() {
    let setup = Setup::with(|config| config.cache.near.max_bytes = 1 << 20).await;
    let body: &'static str = "x".repeat(100_000).leak();
    let paths: Vec<_> = (0..30).map(|id| format!("/jobs/{id}")).collect();
    for path in &paths {
        setup.upstream.respond(path, move |_| Some(with_headers(body, &[])));
    }
    for _ in 0..2 {
        for path in &paths {
            setup.get(path).await;
            setup.hit(path).await;
        }
    }
    assert!(metric(&setup, "jobcache_near_bytes").await <= 1 << 20);
    assert!(metric(&setup, "jobcache_near_evictions_total").await > 0);
    assert!(paths.iter().all(|path| setup.upstream.reads(path) == 1));
}

#[tokio::test]
async fn with_the_layer_off_each_hit_asks_redis() {
    let setup = Setup::with(|config| config.cache.near.mode = NearMode::Off).await;
    setup.get(X).await;
    let reads = calls(&setup.redis, "mget").await;
    for _ in 0..5 {
        setup.hit(X).await;
    }
    assert!(calls(&setup.redis, "mget").await >= reads + 5);
    assert!(tracking_ids(&setup.redis).await.is_empty());
}

#[tokio::test]
async fn by_keys_a_del_by_a_third_party_shows_in_the_very_next_read() {
    shows_each_del(&by_keys().await).await;
}

#[tokio::test]
async fn by_keys_a_write_through_another_sidecar_shows_in_the_very_next_read() {
    let setup = by_keys().await;
    let other = setup.second().await;
    for v in 1..=50 {
        setup.get(X).await;
        near_hit(&setup, X).await;
        other.put(X).await;
        setup.get(X).await.assert(200, &version("x1", v));
    }
}

#[tokio::test]
async fn by_keys_only_what_was_read_here_is_told() {
    for (tracking, told) in [(NearTracking::Keys, 0), (NearTracking::Broadcast, 100)] {
        let setup = Setup::with(|config| config.cache.near.tracking = tracking).await;
        setup.get(X).await;
        near_hit(&setup, X).await;
        let before = news(&setup).await;
        for id in 0..100 {
            let () = setup.redis.run(redis::cmd("SET").arg(key(&id.to_string())).arg("1")).await;
        }
        // This uses the same connection, after all of those.
        near_hit(&setup, X).await;
        assert_eq!(news(&setup).await - before, told, "{tracking:?}");
        setup.redis.del(&key("x1")).await;
        eventually(SOON, async || news(&setup).await == before + told + 1).await;
    }
}

#[tokio::test]
async fn by_keys_what_redis_forgets_for_want_of_room_is_not_served_from_the_process() {
    let setup = by_keys().await;
    let paths: Vec<_> = (0..50).map(|id| format!("/jobs/{id}")).collect();
    for path in &paths {
        setup.get(path).await;
        near_hit(&setup, path).await;
    }
    let limit = ["SET", "tracking-table-max-keys", "10"];
    let () = setup.redis.run(redis::cmd("CONFIG").arg(&limit)).await;
    eventually(SOON, async || metric(&setup, "jobcache_near_entries").await <= 10).await;
    for (id, path) in paths.iter().enumerate() {
        setup.upstream.commit(&id.to_string());
        setup.redis.del(&key(&id.to_string())).await;
        setup.get(path).await.assert(200, &version(&id.to_string(), 1));
    }
}

#[tokio::test]
async fn by_keys_a_cut_tracking_connection_costs_nothing_but_the_near_hits_until_it_is_back() {
    survives_cuts(&by_keys().await).await;
}

/// Notifications do not depend on the data connection: entries are read over it, but notifications
/// arrive over the other one.
#[tokio::test]
async fn by_keys_a_cut_data_connection_hides_no_change() {
    let setup = by_keys().await;
    for v in 0..5 {
        setup.get(X).await;
        near_hit(&setup, X).await;
        let list: String = setup.redis.run(redis::cmd("CLIENT").arg("LIST")).await;
        // The connection that lists clients runs `client`, and the scripts and probes use another
        // connection.
        let data =
            list.lines().filter(|line| line.contains(" name= ") && !line.contains("cmd=client"));
        let ids: Vec<u64> = data.filter_map(client_id).collect();
        assert!(!ids.is_empty(), "{list}");
        for id in ids {
            let kill = ["KILL".to_owned(), "ID".to_owned(), id.to_string()];
            let _: u64 = setup.redis.run(redis::cmd("CLIENT").arg(&kill)).await;
        }
        setup.upstream.commit("x1");
        setup.redis.del(&key("x1")).await;
        setup.get(X).await.assert(200, &version("x1", v + 1));
        eventually(SOON, async || setup.get(X).await.is_hit()).await;
    }
}
