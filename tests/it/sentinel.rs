//! A master named by sentinels: sidecars follow when it changes, and soon.

use std::time::Duration;

use jobcache::config::{Config, Flags, RawValue, StoreUrl};
use tokio::time::Instant;

use crate::support::{
    Process, RedisServer, Reply, SOON, Upstream, eventually,
    redis::key,
    sentinel::{Deployment, MASTER},
    sidecar::{Sidecar, config},
    tls::Authority,
    upstream::version,
};

const X: &str = "/jobs/x1";

/// How long a deposed master may be believed (promise 1, limit b).
const BELIEVED: Duration = Duration::from_secs(1);

/// Starts a sidecar that asks these sentinels for its master.
async fn sidecar(url: &str, upstream: &Upstream, change: impl FnOnce(&mut Config)) -> Sidecar {
    let mut config = config(&RedisServer::absent(), upstream);
    config.store.url = sentinels(url);
    change(&mut config);
    let sidecar = Sidecar::start(config).await;
    sidecar.warm().await;
    sidecar
}

/// Parses the URL as the command line does.
fn sentinels(url: &str) -> StoreUrl {
    let values = vec![("redis-url", RawValue::One(url.to_owned()))];
    let loaded = Config::load(Flags { config: None, values }, []).expect("a configuration");
    loaded.config.store.url
}

/// Returns whether a sidecar's tracking connection is at this server.
async fn is_tracked(redis: &RedisServer) -> bool {
    let clients: String = redis.run(redis::cmd("CLIENT").arg("LIST")).await;
    clients.contains("name=jobcache-tracking")
}

async fn hit(sidecar: &Sidecar) -> Reply {
    eventually(SOON, async || {
        let reply = sidecar.get(X).await;
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await
}

/// Kills the master, and waits for hits at its successor.
async fn follows_a_failover(sidecar: &Sidecar, redis: &mut Deployment) {
    let deposed = redis.master;
    redis.nodes[deposed].kill();
    redis.find_it_down().await;
    redis.failed_over().await;

    hit(sidecar).await;
    assert!(redis.master().holds(&key("x1")).await);
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_used_and_another_one_followed() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
    hit(&sidecar).await;
    assert!(redis.master().holds(&key("x1")).await);

    for is_frozen in [false, true] {
        let deposed = redis.master;
        if is_frozen {
            redis.master().stop();
        } else {
            redis.nodes[deposed].kill();
        }
        redis.find_it_down().await;
        // The write passes through, and is never an error.
        sidecar.put(X).await;
        let newest = sidecar.get(X).await.text().to_owned();
        redis.failed_over().await;

        hit(&sidecar).await;
        sidecar.get(X).await.assert(200, &newest);
        assert!(redis.master().holds(&key("x1")).await, "frozen: {is_frozen}");
        if is_frozen {
            redis.nodes[deposed].cont();
        } else {
            redis.nodes[deposed].restart_empty().await;
        }
        redis.follow(deposed).await;
        redis.settle().await;
    }
}

#[tokio::test]
async fn a_deposed_master_that_still_answers_is_believed_for_a_second_at_most() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
    let deposed = redis.master;
    eventually(SOON, async || is_tracked(redis.master()).await).await;

    redis.depose().await;
    redis.promoted().await;
    let named_at = Instant::now();
    let info: String = redis.nodes[deposed].run(redis::cmd("INFO").arg("replication")).await;
    assert!(info.contains("role:master"), "the deposed master is not a master any more: {info}");
    let mut slowest = Duration::ZERO;
    eventually(SOON, async || {
        let asked = Instant::now();
        let is_tracked = is_tracked(&redis.nodes[deposed]).await;
        slowest = slowest.max(asked.elapsed());
        !is_tracked
    })
    .await;
    let took = named_at.elapsed();

    // The sidecar queries sentinels and servers about ten times in that second. On a busy machine
    // each answer may take as long as the slowest one that the test has seen.
    assert!(took < BELIEVED + 10 * slowest, "{took:?}, answers within {slowest:?}");
    redis.failed_over().await;
    hit(&sidecar).await;
    assert!(redis.master().holds(&key("x1")).await);
    sidecar.put(X).await.assert(200, &version("x1", 1));
    sidecar.get(X).await.assert(200, &version("x1", 1));
}

/// A connection that was opened while the master hung is answered when it resumes.
#[tokio::test]
async fn a_master_that_hung_until_it_was_deposed_is_not_taken_for_one_again() {
    const LOST: &str = "jobcache_breaker_openings_total{error=\"lost\"}";
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let mut sidecars = Vec::new();
    for _ in 0..8 {
        let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
        let lost = sidecar.admin.metric(LOST).await;
        sidecars.push((sidecar, lost));
    }

    let hung = redis.master;
    redis.master().stop();
    redis.find_it_down().await;
    redis.promoted().await;
    redis.nodes[hung].cont();
    redis.failed_over().await;

    for (sidecar, lost) in &sidecars {
        hit(sidecar).await;
        assert_eq!(
            sidecar.admin.metric(LOST).await,
            *lost,
            "the deposed master was trusted and lost again"
        );
    }
}

/// The master in between has confirmed writes that the other one missed. Meanwhile the sentinels
/// leave the deposed master alone.
#[tokio::test]
async fn a_master_that_is_promoted_again_is_not_believed_what_it_held_before() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
    hit(&sidecar).await;
    let first = redis.master;

    redis.leave_deposed_masters_alone().await;
    redis.depose().await;
    redis.failed_over().await;
    eventually(SOON, async || is_tracked(redis.master()).await).await;
    let reply = sidecar.put(X).await;
    assert!(!reply.cache_status().contains("pending"), "{reply:?}");
    hit(&sidecar).await;
    assert!(redis.nodes[first].holds(&key("x1")).await, "the node has received the write");
    // Confirmations of the last three seconds are repeated anyway.
    tokio::time::sleep(Duration::from_millis(3200)).await;
    let other =
        (0..3).find(|node| *node != first && *node != redis.master).expect("the third node");
    redis.nodes[other].kill();
    let info: String = redis.nodes[first].run(redis::cmd("INFO").arg("replication")).await;
    assert!(info.contains("role:master"), "the node follows the other one: {info}");
    redis.depose().await;
    redis.failed_over().await;

    assert_eq!(redis.master, first);
    eventually(SOON, async || is_tracked(redis.master()).await).await;
    hit(&sidecar).await.assert(200, &version("x1", 1));
}

/// The sentinel names its configured master, without an epoch, while the others have moved on.
#[tokio::test]
async fn a_sentinel_that_has_missed_a_failover_is_not_believed() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
    hit(&sidecar).await;
    let first = redis.master;

    redis.sentinels[2].kill();
    redis.depose().await;
    redis.failed_over().await;
    let promoted = redis.master;
    eventually(SOON, async || is_tracked(redis.master()).await).await;
    sidecar.put(X).await;
    hit(&sidecar).await;
    sidecar.put(X).await;
    hit(&sidecar).await.assert(200, &version("x1", 2));
    for sentinel in &mut redis.sentinels[..2] {
        sentinel.kill();
    }
    redis.sentinels[2].restart().await;
    assert_eq!(redis.sentinels[2].named().await, Some(redis.nodes[first].port()));
    let until = Instant::now() + BELIEVED * 2;
    while Instant::now() < until {
        sidecar.get(X).await.assert(200, &version("x1", 2));
    }
    eventually(SOON, async || is_tracked(&redis.nodes[promoted]).await).await;
    assert!(!is_tracked(&redis.nodes[first]).await, "the sidecar went back to a deposed master");

    // Once that master has been gone for ten seconds, this one is the only one; its earlier
    // contents are purged.
    redis.nodes[promoted].kill();
    let until = Instant::now() + SOON * 3;
    while !is_tracked(&redis.nodes[first]).await {
        sidecar.get(X).await.assert(200, &version("x1", 2));
        assert!(Instant::now() < until, "the only named master is not used");
    }
    hit(&sidecar).await.assert(200, &version("x1", 2));
}

#[tokio::test]
async fn sentinels_that_are_gone_are_passed_over_and_others_are_learned_of() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let nobody = crate::support::free_port();
    let seed = redis.sentinels[2].port();
    let url = format!("redis-sentinel://127.0.0.1:{nobody},127.0.0.1:{seed}/{MASTER}");
    let sidecar = sidecar(&url, &upstream, |_| {}).await;
    hit(&sidecar).await;

    redis.sentinels[2].kill();
    follows_a_failover(&sidecar, &mut redis).await;
}

#[tokio::test]
async fn without_any_sentinel_the_master_goes_on_being_used() {
    let (mut redis, upstream) = (Deployment::start().await, Upstream::start().await);
    let sidecar = sidecar(&redis.url(), &upstream, |_| {}).await;
    for sentinel in &mut redis.sentinels {
        sentinel.kill();
    }
    let openings = sidecar.admin.metric("jobcache_breaker_openings_total{error=\"lost\"}").await;
    sidecar.put(X).await.assert(200, &version("x1", 1));
    hit(&sidecar).await;
    tokio::time::sleep(BELIEVED).await;
    assert!(sidecar.get(X).await.is_hit());
    let after = sidecar.admin.metric("jobcache_breaker_openings_total{error=\"lost\"}").await;
    assert_eq!(after, openings);
}

#[tokio::test]
async fn sentinels_may_speak_tls_where_redis_does_not() {
    let authority = Authority::new();
    let pair = authority.issue("sentinel", &["127.0.0.1"]);
    let (cert, own_key) = (pair.cert.unwrap(), pair.key.unwrap());
    let lines = format!(
        "tls-port TLS_PORT\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
         tls-auth-clients no",
        cert.display(),
        own_key.display(),
        authority.ca().display()
    );
    let mut redis = Deployment::start_with(&[], &lines).await;
    let upstream = Upstream::start().await;
    let hosts = redis.sentinels.iter().map(|each| format!("127.0.0.1:{}", each.tls_port()));
    let hosts = hosts.collect::<Vec<_>>().join(",");
    let sidecar = sidecar(&format!("redis-sentinel://{hosts}/{MASTER}"), &upstream, |config| {
        config.store.sentinel.tls = Some(true);
        config.store.tls.ca = Some(authority.ca());
    })
    .await;
    hit(&sidecar).await;

    follows_a_failover(&sidecar, &mut redis).await;
}

#[tokio::test]
async fn a_name_that_no_sentinel_knows_is_told() {
    let redis = Deployment::start().await;
    let url = redis.url().replace(MASTER, "nomaster");
    // On a busy machine no sentinel may answer in time, and `check` reports that first.
    let says = async |url: &str, what: &str| {
        eventually(SOON, async || {
            let (code, out, _) = Process::output(&["check", "--redis-url", url], &[]);
            assert_eq!(code, 0, "{out}");
            if out.contains(what) { Ok(()) } else { Err(out) }
        })
        .await;
    };
    says(&url, "No such master with that name").await;
    says(&redis.url(), &format!("/{MASTER}: reachable")).await;
}
