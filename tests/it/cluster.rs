//! A Redis Cluster as the store: three masters and three replicas, which the tests start.

mod pending;

use std::time::Duration;

use hyper::Method;
use jobcache::config::{Config, NearMode, NearTracking, Secret, StoreLogin};
use tokio::time::Instant;

use crate::{
    acl, store_tls,
    support::{
        Cluster, RedisServer, Reply, SOON, Upstream, cluster::FAILOVER, eventually, redis::key,
        sidecar::Sidecar, tls::Authority,
    },
};

/// Time limit for a sidecar to learn of a new owner from any of a few nodes: one topology refresh
/// to connect to them, and one to ask them.
const OWNER_KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// A cluster, an upstream, and the sidecars of a test.
struct Setup {
    cluster: Cluster,
    upstream: Upstream,
}

impl Setup {
    async fn new() -> Self {
        let (cluster, upstream) = tokio::join!(Cluster::start(), Upstream::start());
        Self { cluster, upstream }
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.cache.settle = Duration::ZERO;
        config.store.budget = Duration::from_secs(2);
        config.store.reconnect_grace = Duration::ZERO;
        // A master that hands over holds commands back, so a fence may be set after the end of its
        // write. It then stands for this time and ten seconds more.
        config.upstream.response_timeout = Duration::from_secs(10);
        config.store.url = self.cluster.url().parse().expect("seeds");
        config.upstream.url = self.upstream.url();
        config
    }

    /// Starts a sidecar and waits until it serves hits from all masters.
    async fn sidecar(&self) -> Sidecar {
        self.trusted(self.config()).await
    }

    /// Like [`sidecar`](Self::sidecar), with this mode of tracking.
    async fn with_tracking(&self, tracking: NearTracking) -> Sidecar {
        let mut config = self.config();
        config.cache.near.tracking = tracking;
        self.trusted(config).await
    }

    /// Like [`with_tracking`](Self::with_tracking), as a user with only the rights that jobcache needs.
    async fn user(&self, tracking: NearTracking) -> Sidecar {
        let mut config = self.config();
        config.cache.near.tracking = tracking;
        as_user(&mut config);
        self.trusted(config).await
    }

    async fn trusted(&self, config: Config) -> Sidecar {
        let sidecar = Sidecar::start(config).await;
        metric(&sidecar, "jobcache_store_up 1").await;
        if !self.cluster.hands_over_whole().await {
            metric(&sidecar, "jobcache_tracking_up 1").await;
        }
        sidecar
    }
}

/// Waits until the metrics contain this line.
async fn metric(sidecar: &Sidecar, line: &str) {
    eventually(FAILOVER, async || {
        let metrics = sidecar.admin.get("/metrics").await;
        let metrics = metrics.text();
        let is_there = metrics.lines().any(|it| it == line);
        let store = metrics.lines().filter(|line| line.starts_with("jobcache_store_s"));
        if is_there { Ok(()) } else { Err(store.collect::<Vec<_>>().join("\n")) }
    })
    .await;
}

fn path(id: &str) -> String {
    format!("/jobs/{id}")
}

/// Polls until a job is answered from the cache.
async fn hit(sidecar: &Sidecar, id: &str) -> Reply {
    eventually(SOON, async || {
        let reply = sidecar.get(&path(id)).await;
        if reply.is_hit() { Ok(reply) } else { Err(reply) }
    })
    .await
}

fn version(reply: &Reply) -> u64 {
    reply.json()["version"].as_u64().expect("a version")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_all_masters_are_cached_and_forgotten() {
    let setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.with_tracking(NearTracking::Keys).await);
    for master in 0..3 {
        let id = setup.cluster.job_of(master, "x1").await;
        assert_eq!(setup.cluster.owner(&id).await, master);
        hit(&a, &id).await;
        hit(&b, &id).await;
        assert_eq!(setup.cluster.get(&id).await, Some(a.get(&path(&id)).await.body.to_vec()));
        // The second hit comes from the near cache of each sidecar.
        assert!(a.get(&path(&id)).await.is_hit() && b.get(&path(&id)).await.is_hit());
        for write in 1..=3 {
            match write {
                1 => assert!(a.put(&path(&id)).await.status.is_success()),
                2 => {
                    setup.upstream.commit(&id);
                    let purge = a.admin.request(Method::POST, &format!("/purge/{id}"));
                    assert_eq!(purge.send().await.status, 200);
                }
                _ => {
                    setup.upstream.commit(&id);
                    assert_eq!(setup.cluster.del(&id).await, 1);
                }
            }
            assert_eq!(version(&b.get(&path(&id)).await), write);
            assert_eq!(version(&a.get(&path(&id)).await), write);
            hit(&b, &id).await;
            hit(&a, &id).await;
        }
    }
}

/// Returns a job of each master, polled until it is a hit in all sidecars.
async fn one_of_each(setup: &Setup, sidecars: &[&Sidecar]) -> [String; 3] {
    let mut ids = [String::new(), String::new(), String::new()];
    for (master, id) in ids.iter_mut().enumerate() {
        *id = setup.cluster.job_of(master, "x1").await;
        for sidecar in sidecars {
            hit(sidecar, id).await;
        }
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_master_costs_its_own_slots_their_cache_until_a_replica_has_taken_over() {
    let mut setup = Setup::new().await;
    let a = setup.sidecar().await;
    let ids = one_of_each(&setup, &[&a]).await;
    setup.cluster.nodes[3].kill();
    setup.cluster.nodes[0].kill();
    metric(&a, "jobcache_store_shards{state=\"down\"} 1").await;
    metric(&a, "jobcache_store_shards{state=\"up\"} 2").await;
    metric(&a, "jobcache_store_up 0").await;
    let told = a.admin.get("/status").await.json();
    let nodes = told["store"]["nodes"].as_array().expect("the masters");
    let up = nodes.iter().filter(|node| node["up"] == true).count();
    assert_eq!((nodes.len(), up), (3, 2), "{told}");
    let reply = a.get(&path(&ids[0])).await;
    assert!(reply.cache_status().contains("detail=store-down"), "{reply:?}");
    // Its write is answered and its invalidation is pending; jobs of other masters are not
    // affected.
    let write = a.put(&path(&ids[0])).await;
    assert!(write.cache_status().contains("invalidation-pending"), "{write:?}");
    assert_eq!(version(&a.get(&path(&ids[0])).await), 1);
    for id in &ids[1..] {
        assert!(a.get(&path(id)).await.is_hit());
        assert!(!a.put(&path(id)).await.cache_status().contains("pending"));
        assert_eq!(version(&a.get(&path(id)).await), 1);
        hit(&a, id).await;
    }
    assert_eq!(a.admin.metric("jobcache_pending_invalidations").await, 1);
    setup.cluster.nodes[3].restart_from_rdb().await;
    metric(&a, "jobcache_store_up 1").await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    assert_eq!(version(&hit(&a, &ids[0]).await), 1);
}

/// The promoted replica still holds an entry, because it has not received the `DEL`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_takes_over_is_not_believed_what_it_held_before() {
    let mut setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.sidecar().await);
    let [id, ..] = one_of_each(&setup, &[&a, &b]).await;
    setup.cluster.settled().await;
    let body = setup.cluster.get(&id).await;
    setup.cluster.nodes[3].stop();
    let mut cut = redis::cmd("CLIENT");
    cut.arg("KILL").arg("TYPE").arg("replica");
    assert_eq!(setup.cluster.nodes[0].run::<i64>(&cut).await, 1);
    setup.upstream.commit(&id);
    assert_eq!(setup.cluster.nodes[0].try_run(redis::cmd("DEL").arg(key(&id))).await, Ok(1));
    setup.cluster.nodes[0].kill();
    setup.cluster.nodes[3].cont();
    setup.cluster.is_master(3).await;
    assert_eq!(
        setup.cluster.nodes[3].get(&key(&id)).await,
        body,
        "the replica has received the DEL"
    );
    for sidecar in [&a, &b] {
        metric(sidecar, "jobcache_store_up 1").await;
        assert_eq!(version(&sidecar.get(&path(&id)).await), 1);
    }
    assert_eq!(version(&hit(&b, &id).await), 1);
}

/// Both sidecars can reach the master that has lost the majority, and its replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_cut_off_from_the_others_is_left_for_its_replica() {
    let setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.sidecar().await);
    let [id, other, _] = one_of_each(&setup, &[&a, &b]).await;
    setup.cluster.settled().await;

    setup.cluster.cut_off(&[0]);
    setup.cluster.is_master(3).await;
    setup.upstream.commit(&id);
    let () = setup.cluster.nodes[3].run(redis::cmd("DEL").arg(key(&id))).await;
    assert_eq!(version(&b.get(&path(&id)).await), 1);
    assert!(b.get(&path(&other)).await.is_hit(), "an entry of another master was lost");
    for sidecar in [&a, &b] {
        metric(sidecar, "jobcache_store_up 1").await;
    }
    hit(&a, &id).await;
    assert_eq!(version(&b.put(&path(&id)).await), 2);
    assert_eq!(version(&a.get(&path(&id)).await), 2);

    setup.cluster.heal();
    setup.cluster.settled().await;
    hit(&b, &id).await;
    assert_eq!(version(&hit(&a, &id).await), 2);
}

/// All masters are well and see each other, but do not know the new masters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_take_over_on_the_other_side_of_a_split_are_found() {
    let setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.sidecar().await);
    let [id, ..] = one_of_each(&setup, &[&a, &b]).await;
    setup.cluster.settled().await;

    setup.cluster.cut_off(&[3, 4, 5]);
    for replica in 3..6 {
        let mut take_over = redis::cmd("CLUSTER");
        take_over.arg("FAILOVER").arg("TAKEOVER");
        let () = setup.cluster.nodes[replica].run(&take_over).await;
        setup.cluster.is_master(replica).await;
    }
    let seen = Instant::now();
    let mut slowest = Duration::ZERO;
    for sidecar in [&a, &b] {
        eventually(SOON, async || {
            let asked = Instant::now();
            let explained = sidecar.admin.get(&format!("/explain/{id}")).await.json();
            slowest = slowest.max(asked.elapsed());
            let port = format!(":{}", setup.cluster.nodes[3].port());
            explained["store"]["node"].as_str().is_some_and(|node| node.ends_with(&port))
        })
        .await;
    }
    // On a busy machine the answers of the nodes take as long as those of the sidecars.
    assert!(
        seen.elapsed() < OWNER_KNOWN_WITHIN + 10 * slowest,
        "{:?}, answers within {slowest:?}",
        seen.elapsed()
    );
    assert_eq!(version(&a.put(&path(&id)).await), 1);
    // Longer than the time after which sidecars consult nodes with an old view.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(version(&b.get(&path(&id)).await), 1);
    }
    assert_eq!(version(&hit(&b, &id).await), 1);
    setup.cluster.heal();
    setup.cluster.settled().await;
    assert_eq!(version(&hit(&a, &id).await), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_hands_over_to_its_replica_leaves_nothing_stale() {
    let setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.sidecar().await);
    let [id, ..] = one_of_each(&setup, &[&a, &b]).await;
    setup.cluster.settled().await;
    for (expected, taker) in [(1, 3), (2, 0)] {
        setup.cluster.hand_over(taker).await;
        eventually(FAILOVER, async || {
            let reply = a.put(&path(&id)).await;
            let version = version(&reply);
            let seen = b.get(&path(&id)).await;
            assert!(self::version(&seen) >= version || reply.cache_status().contains("pending"));
            (!reply.cache_status().contains("pending")).then_some(())
        })
        .await;
        assert!(version(&b.get(&path(&id)).await) >= expected);
        hit(&b, &id).await;
        hit(&a, &id).await;
        setup.cluster.settled().await;
    }
}

/// Creates the user of `docs/redis.md` for a cluster at one of its nodes.
async fn give_rights(node: &RedisServer) {
    let mut words = acl::documented("jobcache");
    let more = acl::REDIS_PAGE.lines().find(|line| line.starts_with("+asking "));
    let more = more.expect("the further rights in a cluster");
    words.extend(more.split_whitespace().map(str::to_owned));
    acl::set_user(node, &words).await;
}

fn as_user(config: &mut Config) {
    let password = Some(Secret::new(acl::PASSWORD));
    config.store.login =
        StoreLogin { username: Some("jobcache".into()), password, password_file: None };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_spoken_to_over_tls() {
    let (authority, upstream) = (Authority::new(), Upstream::start().await);
    let pair = authority.issue("redis", &["127.0.0.1"]);
    let (port, args) = store_tls::tls_args(&authority, &pair, "no");
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--tls-cluster", "yes"]).collect();
    let node = Cluster::of_one(&args).await;
    let mut config = Config::default();
    config.cache.settle = Duration::ZERO;
    config.store.reconnect_grace = Duration::ZERO;
    config.store.budget = Duration::from_secs(2);
    config.store.url = format!("rediss-cluster://127.0.0.1:{port}").parse().expect("a seed");
    config.store.tls.ca = Some(authority.ca());
    config.upstream.url = upstream.url();
    let a = Sidecar::start(config).await;
    hit(&a, "x1").await;
    upstream.commit("x1");
    node.del(&key("x1")).await;
    assert_eq!(version(&a.get("/jobs/x1").await), 1);
    let told = a.admin.get("/explain/x1").await.json();
    assert_eq!(told["store"]["node"], format!("127.0.0.1:{port}"));
}

/// Keys of a job that have moved while its slot is being migrated.
#[derive(Clone, Copy, Debug)]
enum Moved {
    Nothing,
    Main,
    Meta,
    All,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_slot_is_on_its_way_writes_and_purges_are_confirmed_and_nothing_is_stale() {
    let setup = Setup::new().await;
    for node in &setup.cluster.nodes {
        give_rights(node).await;
    }
    let (a, b) = (setup.user(NearTracking::Broadcast).await, setup.user(NearTracking::Keys).await);
    for (n, moved) in [Moved::Nothing, Moved::Main, Moved::Meta, Moved::All].into_iter().enumerate()
    {
        let id = setup.cluster.job_of(0, &format!("half-{n}")).await;
        let slot = setup.cluster.slot(&id).await;
        let mut expected = 0;
        for change in 0..4 {
            hit(&a, &id).await;
            hit(&b, &id).await;
            setup.cluster.begin_move(slot, 0, 1).await;
            let (main, meta) = (key(&id), format!("{{{}}}:meta", key(&id)));
            match moved {
                Moved::Nothing => {}
                Moved::Main => setup.cluster.move_names(&[main], 0, 1).await,
                Moved::Meta => setup.cluster.move_names(&[meta], 0, 1).await,
                Moved::All => while setup.cluster.move_keys(slot, 0, 1, 9).await > 0 {},
            }
            let told = match change {
                0 => a.put(&path(&id)).await,
                1 => {
                    setup.upstream.commit(&id);
                    a.admin.request(Method::POST, &format!("/purge/{id}")).send().await
                }
                2 => {
                    setup.upstream.commit(&id);
                    purge_all(&a).await
                }
                _ => {
                    setup.upstream.commit(&id);
                    setup.cluster.del(&id).await;
                    a.get("/exchange").await
                }
            };
            expected += 1;
            assert!(told.status == 200 || change == 3, "{moved:?} {change}: {told:?}");
            assert!(!told.cache_status().contains("pending"), "{moved:?} {change}: {told:?}");
            for sidecar in [&b, &a] {
                let seen = version(&sidecar.get(&path(&id)).await);
                assert_eq!(seen, expected, "{moved:?} {change}, half-way");
            }
            setup.cluster.end_move(slot, 0, 1).await;
            for sidecar in [&b, &a] {
                let seen = version(&sidecar.get(&path(&id)).await);
                assert_eq!(seen, expected, "{moved:?} {change}, arrived");
                assert_eq!(version(&hit(sidecar, &id).await), expected);
            }
            // Move the slot back with its keys.
            setup.cluster.begin_move(slot, 1, 0).await;
            setup.cluster.end_move(slot, 1, 0).await;
            for sidecar in [&a, &b] {
                assert_eq!(version(&hit(sidecar, &id).await), expected);
            }
        }
    }
    assert!(a.admin.metric("jobcache_store_redirections_total{kind=\"moved\"}").await > 0);
    for node in &setup.cluster.nodes {
        let mut refused = acl::refused(node).await;
        // Only Redis 8 and Valkey check this right, and jobcache does not need it.
        refused.retain(|command| command != "config|get");
        assert_eq!(refused, <[String; 0]>::default());
    }
}

async fn purge_all(sidecar: &Sidecar) -> Reply {
    sidecar.admin.request(Method::POST, "/purge").body(r#"{"all":true}"#).send().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seed_that_answers_is_enough_to_find_all_masters() {
    let setup = Setup::new().await;
    let mut config = setup.config();
    let replica = setup.cluster.nodes[4].port();
    let seeds = format!("redis-cluster://127.0.0.1:1,127.0.0.1:{replica},127.0.0.1:2");
    config.store.url = seeds.parse().expect("seeds");
    let a = Sidecar::start(config).await;
    metric(&a, "jobcache_store_shards{state=\"up\"} 3").await;
    one_of_each(&setup, &[&a]).await;
}

/// A master that hands over to its replica holds back writes and answers reads, and other clients
/// may already delete at the new master.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_holds_back_writes_answers_no_hit() {
    let setup = Setup::new().await;
    let mut config = setup.config();
    config.cache.near.mode = NearMode::Off;
    config.store.budget = Duration::from_millis(200);
    let sidecar = Sidecar::start(config).await;
    let id = setup.cluster.job_of(0, "x1").await;
    hit(&sidecar, &id).await;
    let master = &setup.cluster.nodes[0];
    let () = master.run(redis::cmd("CLIENT").arg("PAUSE").arg(600_000).arg("WRITE")).await;
    let stored: Option<Vec<u8>> = master.run(redis::cmd("GET").arg(key(&id))).await;
    assert!(stored.is_some(), "the master still answers reads");
    assert!(!sidecar.get(&path(&id)).await.is_hit());
    let () = master.run(redis::cmd("CLIENT").arg("UNPAUSE")).await;
    hit(&sidecar, &id).await;
}
