//! Faults of a cluster.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::sleep;

use super::{faults::Fault, world::World};
use crate::support::{Cluster, cluster::SLOTS};

/// Slots with jobs that move at a time.
const MOVED: usize = 8;

pub(super) async fn inflict_on_cluster(
    fault: Fault,
    world: &World,
    cluster: &mut Cluster,
    rng: &mut fastrand::Rng,
) {
    let masters = cluster.masters().await;
    let victim = masters[rng.usize(..masters.len())];
    match fault {
        Fault::SlotsMoved => move_slots(world, cluster, rng, &masters).await,
        Fault::ShardHandedOver => {
            let replica = cluster.replica_of(victim).await;
            cluster.hand_over(replica).await;
        }
        _ => {
            let replica = cluster.replica_of(victim).await;
            world.third_parties_paused.store(fault != Fault::ShardKilled, Ordering::SeqCst);
            match fault {
                Fault::ShardHung => cluster.nodes[victim].stop(),
                Fault::ShardCutOff => cluster.cut_off(&[victim]),
                _ => cluster.nodes[victim].kill(),
            }
            cluster.is_master(replica).await;
            sleep(Duration::from_millis(rng.u64(..300))).await;
            match fault {
                Fault::ShardHung => cluster.nodes[victim].cont(),
                Fault::ShardCutOff => cluster.heal(),
                _ => cluster.nodes[victim].restart_from_rdb().await,
            }
        }
    }
    cluster.settled().await;
    world.third_parties_paused.store(false, Ordering::SeqCst);
}

/// Each slot moves with the keys of its jobs one by one, and pauses half-way.
async fn move_slots(world: &World, cluster: &Cluster, rng: &mut fastrand::Rng, masters: &[usize]) {
    for _ in 0..MOVED {
        let id = world.ids.id(rng.u16(..world.plan.jobs));
        let slot = cluster.slot(&id).await;
        assert!(slot < SLOTS);
        let from = cluster.owner(&id).await;
        let others: Vec<usize> = masters.iter().copied().filter(|node| *node != from).collect();
        let to = others[rng.usize(..others.len())];
        cluster.begin_move(slot, from, to).await;
        for _ in 0..rng.u8(..5) {
            sleep(Duration::from_millis(rng.u64(..60))).await;
            cluster.move_keys(slot, from, to, 1).await;
        }
        sleep(Duration::from_millis(rng.u64(..60))).await;
        cluster.end_move(slot, from, to).await;
    }
}
