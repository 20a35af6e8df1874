//! Pending invalidations of a lost master, or of a slot without an owner: they affect only its own
//! jobs.

use redis::cmd;

use super::{Setup, hit, metric, one_of_each, path, purge_all, version};
use crate::support::{Reply, SOON, eventually, sidecar::Sidecar};

/// Commits changes of jobs, as a client does that then purges everything.
fn commit<'i>(setup: &Setup, ids: impl IntoIterator<Item = &'i String>) {
    ids.into_iter().for_each(|id| setup.upstream.commit(id));
}

/// Asserts that a job is read from the upstream and then is a hit again, so it is not pending.
async fn cached_again(sidecar: &Sidecar, id: &str, expected: u64) {
    let reply = sidecar.get(&path(id)).await;
    assert!(!reply.cache_status().contains("pending"), "{reply:?}");
    assert_eq!(version(&reply), expected);
    assert_eq!(version(&hit(sidecar, id).await), expected);
}

async fn assert_pending(sidecar: &Sidecar, id: &str) {
    let reply = sidecar.get(&path(id)).await;
    assert!(reply.cache_status().contains("detail=pending"), "{reply:?}");
    let told = sidecar.admin.get(&format!("/explain/{id}")).await.json();
    assert_eq!(told["store"]["pending"], true, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_all_is_confirmed_by_each_master_for_its_own_jobs() {
    let mut setup = Setup::new().await;
    let (a, b) = (setup.sidecar().await, setup.sidecar().await);
    let ids = one_of_each(&setup, &[&a, &b]).await;
    commit(&setup, &ids);
    assert_eq!(purge_all(&a).await.status, 200);
    for id in &ids {
        assert_eq!(version(&b.get(&path(id)).await), 1);
        hit(&b, id).await;
    }
    setup.cluster.nodes[5].kill();
    setup.cluster.nodes[2].kill();
    metric(&a, "jobcache_store_shards{state=\"down\"} 1").await;
    commit(&setup, &ids);
    assert_eq!(purge_all(&a).await.status, 503);
    assert_pending(&a, &ids[2]).await;
    for id in &ids[..2] {
        cached_again(&a, id, 2).await;
        assert_eq!(version(&hit(&b, id).await), 2);
    }
    assert_eq!(a.admin.metric("jobcache_pending_invalidations").await, 1);
    setup.cluster.nodes[5].restart_from_rdb().await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    for id in &ids {
        assert_eq!(version(&hit(&b, id).await), 2);
        assert_eq!(version(&hit(&a, id).await), 2);
    }
}

/// Its confirmations are in doubt; those of the others are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_dies_right_after_a_purge_of_all_costs_only_its_own_jobs_their_cache() {
    let mut setup = Setup::new().await;
    let a = setup.sidecar().await;
    let ids = one_of_each(&setup, &[&a]).await;
    setup.cluster.nodes[3].kill();
    commit(&setup, &ids);
    assert_eq!(purge_all(&a).await.status, 200);
    setup.cluster.nodes[0].kill();
    metric(&a, "jobcache_pending_invalidations 1").await;
    assert_pending(&a, &ids[0]).await;
    for id in &ids[1..] {
        cached_again(&a, id, 1).await;
    }
    setup.cluster.nodes[3].restart_from_rdb().await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    cached_again(&a, &ids[0], 1).await;
}

/// The former owner still holds the entry, and gets the slot back in the same epoch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_without_an_owner_keeps_nobody_elses_jobs_pending() {
    let setup = Setup::new().await;
    let a = setup.sidecar().await;
    let ids = one_of_each(&setup, &[&a]).await;
    let lost = setup.cluster.job_of(2, "lost1").await;
    hit(&a, &lost).await;
    let slot = setup.cluster.slot(&lost).await;
    for node in [2, 0, 1, 3, 4, 5] {
        let node = &setup.cluster.nodes[node];
        // A replica may already know it.
        let _ = node.try_run::<()>(cmd("CLUSTER").arg("DELSLOTS").arg(slot)).await;
    }
    metric(&a, "jobcache_store_slots_unowned 1").await;

    commit(&setup, ids.iter().chain([&lost]));
    assert_eq!(purge_all(&a).await.status, 503);
    assert_pending(&a, &lost).await;
    for id in &ids {
        cached_again(&a, id, 1).await;
    }

    let () = setup.cluster.nodes[2].run(cmd("CLUSTER").arg("ADDSLOTS").arg(slot)).await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    cached_again(&a, &lost, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_a_lost_master_past_the_limit_take_no_room_in_the_cache_of_others() {
    let mut setup = Setup::new().await;
    let mut config = setup.config();
    config.pending.limit = 2;
    let a = setup.trusted(config).await;
    let ids = one_of_each(&setup, &[&a]).await;
    let mut written = Vec::new();
    for n in 0..4 {
        written.push(setup.cluster.job_of(0, &format!("w{n}")).await);
        hit(&a, &written[n]).await;
    }
    setup.cluster.settled().await;
    setup.cluster.nodes[3].kill();
    setup.cluster.nodes[0].kill();
    metric(&a, "jobcache_store_shards{state=\"down\"} 1").await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    for id in &written {
        let write: Reply = a.put(&path(id)).await;
        assert!(write.cache_status().contains("invalidation-pending"), "{write:?}");
    }
    assert!(a.admin.metric("jobcache_pending_overflows_total").await > 0);
    for id in &written {
        assert_pending(&a, id).await;
    }
    let reply = a.get(&path(&ids[0])).await;
    assert!(reply.cache_status().contains("detail=store-down"), "{reply:?}");
    for id in &ids[1..] {
        assert!(a.get(&path(id)).await.is_hit());
    }
    // The jobs of the other masters are not checked for it.
    eventually(SOON, async || {
        (a.admin.metric("jobcache_pending_invalidations").await == 3).then_some(())
    })
    .await;
    assert!(setup.cluster.get(&ids[1]).await.is_some());
    setup.cluster.nodes[3].restart_from_rdb().await;
    metric(&a, "jobcache_pending_invalidations 0").await;
    for id in &written {
        assert_eq!(version(&hit(&a, id).await), 1);
    }
}
