//! The grace after a restart or failover of Redis: no hit before every sidecar can have connected
//! again and repeated what Redis has not confirmed.

use std::{
    sync::{Arc, atomic::AtomicU16, atomic::Ordering},
    time::Duration,
};

use hyper::Method;
use jobcache::config::{Config, StoreUrl};

use crate::{
    history::link::Link,
    support::{
        Cluster, RedisServer, Reply, SOON, Setup, Upstream, eventually,
        redis::key,
        sidecar::{Sidecar, config},
        upstream::version,
    },
};

const X: &str = "/jobs/x1";
/// By how much one sidecar connects later than the other.
const LATE: Duration = Duration::from_millis(500);
/// Time for the late one on a busy machine. It is the default of the product otherwise.
const GRACE: Duration = Duration::from_secs(3);
/// Longer than a test.
const FOREVER: Duration = Duration::from_mins(1);

fn is_in_grace(reply: &Reply) -> bool {
    reply.cache_status().contains("detail=grace")
}

/// Polls until a hit, and asserts that it and everything before it has this body.
async fn only(sidecar: &Sidecar, body: &str) -> usize {
    let mut waited = 0;
    eventually(SOON, async || {
        let reply = sidecar.get(X).await;
        reply.assert(200, body);
        waited += usize::from(is_in_grace(&reply));
        if reply.is_hit() { Ok(()) } else { Err(reply) }
    })
    .await;
    waited
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Empty,
    Snapshot,
}

/// Redis restarts, and one sidecar connects half a second after the other, with an invalidation that
/// Redis has not confirmed.
#[tokio::test]
async fn who_connects_early_serves_nothing_that_another_has_yet_to_invalidate() {
    for data in [Data::Empty, Data::Snapshot] {
        let mut setup = Setup::with(|config| config.store.reconnect_grace = GRACE).await;
        let link = Link::open(Arc::new(AtomicU16::new(setup.redis.port()))).await;
        let mut behind: Config = setup.config().clone();
        behind.store.url = StoreUrl::Redis(link.url());
        let late = Sidecar::start(behind).await;
        late.warm().await;
        setup.hit(X).await.assert(200, &version("x1", 0));
        setup.redis.save().await;
        link.refuse();

        match data {
            Data::Empty => setup.redis.restart_empty().await,
            Data::Snapshot => setup.redis.restart_from_rdb().await,
        }
        // The early one is back, and has stored the older body in the new epoch.
        eventually(SOON, async || {
            let reply = setup.get(X).await;
            reply.assert(200, &version("x1", 0));
            if setup.redis.holds(&key("x1")).await && is_in_grace(&reply) {
                Ok(())
            } else {
                Err(reply)
            }
        })
        .await;
        let write = late.put(X).await;
        assert!(write.header("cache-status").contains("invalidation-pending"), "{write:?}");

        let heal = async {
            tokio::time::sleep(LATE).await;
            link.heal();
        };
        let newest = version("x1", 1);
        let (waited, ()) = tokio::join!(only(&setup.sidecar, &newest), heal);
        assert!(waited > 0, "{data:?}: nothing was held back");
        only(&late, &newest).await;
    }
}

#[tokio::test]
async fn during_the_grace_fills_go_on_and_explain_says_so() {
    let redis = RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.store.reconnect_grace = FOREVER).await;
    eventually(SOON, async || {
        let reply = setup.get(X).await;
        if is_in_grace(&reply) { Ok(()) } else { Err(reply) }
    })
    .await;
    eventually(SOON, async || setup.redis.holds(&key("x1")).await).await;
    for _ in 0..3 {
        let reply = setup.get(X).await;
        reply.assert(200, &version("x1", 0));
        assert!(is_in_grace(&reply), "{reply:?}");
    }
    let reads = setup.upstream.reads(X);
    let told = setup.sidecar.admin.get("/explain/x1").await.json();
    assert_eq!((&told["verdict"]["detail"], &told["value"]), (&"grace".into(), &"entry".into()));
    let head = setup.sidecar.client.request(Method::GET, X);
    let only_cached = head.header("cache-control", "only-if-cached").send().await;
    assert_eq!(only_cached.status, 504, "{only_cached:?}");
    assert_eq!(setup.upstream.reads(X), reads);
    setup.sidecar.put(X).await;
    assert!(!setup.redis.holds(&key("x1")).await);
    setup.get(X).await.assert(200, &version("x1", 1));
}

/// A reader that comes while another read runs may not share it: a write through a sidecar that has
/// not connected yet may have come in between.
#[tokio::test]
async fn during_the_grace_no_read_is_joined_that_began_before() {
    let redis = RedisServer::start().await;
    let setup = Setup::cold(redis, |config| config.store.reconnect_grace = FOREVER).await;
    eventually(SOON, async || is_in_grace(&setup.get("/jobs/y1").await)).await;
    let gate = setup.upstream.hold_after_read(Method::GET, X);
    let early = setup.sidecar.client.start(Method::GET, X, "").await;
    gate.arrived(1).await;
    setup.upstream.commit("x1");

    let late = setup.sidecar.client.start(Method::GET, X, "").await;
    setup.exchange().await;
    gate.release_one();

    assert_eq!(early.answer().await, (200, version("x1", 0)));
    gate.arrived(2).await;
    gate.release();
    assert_eq!(late.answer().await, (200, version("x1", 1)));
}

/// Waits until Redis has been up for so long that a start of jobcache has nothing to do with its own.
async fn old(redis: &RedisServer) {
    eventually(SOON, async || {
        let info: String = redis.run(redis::cmd("INFO").arg("server")).await;
        let uptime = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"));
        uptime.and_then(|uptime| uptime.trim().parse::<u64>().ok()).is_some_and(|uptime| uptime > 3)
    })
    .await;
}

#[tokio::test]
async fn at_a_redis_that_has_been_up_a_start_and_a_new_connection_wait_for_nothing() {
    let (redis, upstream) = (RedisServer::start().await, Upstream::start().await);
    old(&redis).await;
    let mut config = config(&redis, &upstream);
    config.store.reconnect_grace = Duration::from_secs(1);
    let link = Link::open(Arc::new(AtomicU16::new(redis.port()))).await;
    config.store.url = StoreUrl::Redis(link.url());
    let first = Sidecar::start(config.clone()).await;
    assert_eq!(only(&first, &version("x1", 0)).await, 0);
    assert!(redis.get("{job_status:}:epoch").await.is_some_and(|mark| mark.starts_with(b"0 ")));

    link.refuse();
    eventually(SOON, async || !first.get(X).await.is_hit()).await;
    link.heal();

    assert_eq!(only(&first, &version("x1", 0)).await, 0);
    assert_eq!(only(&Sidecar::start(config).await, &version("x1", 0)).await, 0);
}

/// A replica has been up for long, and is a new epoch all the same.
#[tokio::test]
async fn a_promoted_replica_is_waited_for() {
    // The replica is in sync at once.
    let master = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let (replica, upstream) = (RedisServer::start().await, Upstream::start().await);
    let mut follow = redis::cmd("REPLICAOF");
    follow.arg("127.0.0.1").arg(master.port());
    let () = replica.run(&follow).await;
    let target = Arc::new(AtomicU16::new(master.port()));
    let link = Link::open(Arc::clone(&target)).await;
    let mut config = config(&master, &upstream);
    config.store.reconnect_grace = Duration::from_secs(1);
    config.store.url = StoreUrl::Redis(link.url());
    let sidecar = Sidecar::start(config).await;
    only(&sidecar, &version("x1", 0)).await;
    old(&replica).await;
    eventually(SOON, async || replica.get("{job_status:}:epoch").await.is_some()).await;

    link.refuse();
    let () = replica.run(redis::cmd("REPLICAOF").arg("NO").arg("ONE")).await;
    target.store(replica.port(), Ordering::SeqCst);
    link.heal();

    assert!(only(&sidecar, &version("x1", 0)).await > 0);
}

#[tokio::test]
async fn each_master_of_a_cluster_has_a_grace_of_its_own() {
    let (cluster, upstream) = (Cluster::start().await, Upstream::start().await);
    let mut config = config(&RedisServer::absent(), &upstream);
    config.store.url = cluster.url().parse().expect("seeds");
    config.store.reconnect_grace = FOREVER;
    let sidecar = Sidecar::start(config).await;
    for master in 0..3 {
        let path = format!("/jobs/{}", cluster.job_of(master, "g").await);
        eventually(SOON, async || {
            let reply = sidecar.get(&path).await;
            if is_in_grace(&reply) { Ok(()) } else { Err(reply) }
        })
        .await;
    }
    let mut marks = 0;
    for node in &cluster.nodes {
        marks += node.keys("{job_status:*}:epoch").await.len();
    }
    assert!(marks >= 3, "{marks} marks");
}
