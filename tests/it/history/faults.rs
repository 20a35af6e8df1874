//! The faults of a history: a schedule drawn from its seed.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    record::{Trouble, Write},
    shards, workload,
    world::{Machinery, World},
};
use crate::support::{SOON, eventually};

/// Writes in flight through a sidecar that is killed. Their jobs stay fenced for long.
const WRITES_DURING_KILL: u16 = 3;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Fault {
    /// Redis hangs for 20 to 200 ms.
    ShortStop,
    /// Redis hangs for 1 s or more.
    LongStop,
    /// Redis is killed and comes back empty.
    RestartEmpty,
    /// Redis is killed and comes back with slightly older data, live leases included.
    RestartOld,
    /// The replica takes over, without the last commands.
    Promotion,
    /// A sidecar's connections to Redis are cut and refused.
    Refused,
    /// A sidecar's bytes to and from Redis are held back, and arrive late.
    Held,
    /// A sidecar is killed during writes and started again.
    SidecarKilled,
    /// Redis is killed and comes back, empty or with older data, and at once another sidecar joins.
    Joined,
    /// The master is killed, and sentinels promote a replica.
    MasterKilled,
    /// The master hangs until sentinels have promoted a replica, and comes back as a master.
    MasterHung,
    /// Sentinels promote a replica although the master is well and still answers.
    MasterDeposed,
    /// A master of a cluster is killed, and its replica is promoted; it comes back as a replica.
    ShardKilled,
    /// A master of a cluster hangs, and comes back believing that it is still the master.
    ShardHung,
    /// A master of a cluster is cut off from all nodes, but not from its clients, until its replica
    /// is promoted.
    ShardCutOff,
    /// A master of a cluster hands over to its replica.
    ShardHandedOver,
    /// Slots move from one master of a cluster to another, key by key and with pauses.
    SlotsMoved,
}

impl Fault {
    /// Every kind without sentinels or a cluster.
    pub(super) const ALL: [Self; 9] = [
        Self::ShortStop,
        Self::LongStop,
        Self::RestartEmpty,
        Self::RestartOld,
        Self::Promotion,
        Self::Refused,
        Self::Held,
        Self::SidecarKilled,
        Self::Joined,
    ];
}

/// Faults of a cluster.
impl Fault {
    /// All faults of a cluster; slots move as often as everything else together.
    pub(super) const CLUSTER: [Self; 9] = [
        Self::ShardKilled,
        Self::SlotsMoved,
        Self::ShardCutOff,
        Self::SlotsMoved,
        Self::ShardHung,
        Self::SlotsMoved,
        Self::ShardHandedOver,
        Self::SlotsMoved,
        Self::SidecarKilled,
    ];

    pub(super) fn needs_cluster(self) -> bool {
        matches!(
            self,
            Self::ShardKilled
                | Self::ShardHung
                | Self::ShardCutOff
                | Self::ShardHandedOver
                | Self::SlotsMoved
        )
    }
}

/// Faults with sentinels.
impl Fault {
    /// Faults after which no client believes the deposed master.
    pub(super) const FAILOVERS: [Self; 2] = [Self::MasterKilled, Self::MasterHung];

    pub(super) fn needs_sentinels(self) -> bool {
        matches!(self, Self::MasterKilled | Self::MasterHung | Self::MasterDeposed)
    }
}

/// The kinds of faults, and the pauses between them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) kinds: &'static [Fault],
    pub(super) peace_ms: (u64, u64),
    /// Longest time that Redis hangs.
    pub(super) hang_ms: u64,
}

/// Inflicts the faults, each once per round and in random order, until the run is over.
pub(super) async fn run_faults(
    world: &Arc<World>,
    machinery: &mut Machinery,
) -> (Vec<Trouble>, Vec<Write>) {
    let Faults { kinds, peace_ms, .. } = world.plan.faults;
    let mut rng = fastrand::Rng::with_seed(world.plan.seed ^ 0xfa17);
    let (mut troubles, mut writes) = (Vec::new(), Vec::new());
    let mut round: Vec<Fault> = Vec::new();
    let mut joins = 0;
    while !kinds.is_empty() {
        sleep(Duration::from_millis(rng.u64(peace_ms.0..=peace_ms.1))).await;
        if world.is_over() {
            break;
        }
        if round.is_empty() {
            round = new_round(kinds, &mut rng);
        }
        let Some(fault) = round.pop() else { break };
        if fault == Fault::Promotion {
            await_replica(machinery).await;
        }
        machinery.guest_stays_or_leaves(world, &mut rng).await;
        if fault == Fault::Joined {
            joins += 1;
            troubles.extend(restart_and_join(world, machinery, &mut rng, joins).await);
            continue;
        }
        let start = world.clock.now();
        inflict(fault, world, machinery, &mut rng, &mut writes).await;
        troubles.push(Trouble { fault, start, end: world.clock.now() });
    }
    (troubles, writes)
}

/// Returns the faults of a round, the last one first. Sidecars join in the first half, so that they
/// have some time.
fn new_round(kinds: &[Fault], rng: &mut fastrand::Rng) -> Vec<Fault> {
    let mut round = kinds.to_vec();
    rng.shuffle(&mut round);
    let half = round.len() / 2;
    if let Some(join) = round[..half].iter().position(|fault| *fault == Fault::Joined) {
        round.swap(join, join + half);
    }
    round
}

/// A restarted master is only just being copied.
async fn await_replica(machinery: &Machinery) {
    let replica = 1 - machinery.master;
    eventually(SOON, async || machinery.is_in_sync(replica).await).await;
}

/// Restarts Redis and starts another sidecar. Gives the two their own times.
async fn restart_and_join(
    world: &Arc<World>,
    machinery: &mut Machinery,
    rng: &mut fastrand::Rng,
    join: u8,
) -> [Trouble; 2] {
    let fault = if rng.bool() { Fault::RestartEmpty } else { Fault::RestartOld };
    let start = world.clock.now();
    inflict(fault, world, machinery, rng, &mut Vec::new()).await;
    let restart = Trouble { fault, start, end: world.clock.now() };
    [restart, machinery.join(world, join).await]
}

async fn inflict(
    fault: Fault,
    world: &Arc<World>,
    machinery: &mut Machinery,
    rng: &mut fastrand::Rng,
    writes: &mut Vec<Write>,
) {
    let mut ms = |range: std::ops::Range<u64>| Duration::from_millis(rng.u64(range));
    match fault {
        Fault::ShortStop | Fault::LongStop => {
            let long = fault == Fault::LongStop;
            let longest = world.plan.faults.hang_ms;
            let hang = if long { ms(1000..longest) } else { ms(20..200) };
            machinery.master().stop();
            sleep(hang).await;
            machinery.master().cont();
        }
        Fault::RestartEmpty => machinery.master().restart_empty().await,
        Fault::RestartOld => {
            machinery.master().save().await;
            sleep(ms(20..300)).await;
            machinery.master().restart_from_rdb().await;
        }
        Fault::Promotion => {
            machinery.replication.refuse();
            sleep(ms(20..300)).await;
            machinery.promote().await;
        }
        Fault::MasterKilled | Fault::MasterHung | Fault::MasterDeposed => {
            machinery.fail_over(fault).await;
        }
        Fault::ShardKilled
        | Fault::ShardHung
        | Fault::ShardCutOff
        | Fault::ShardHandedOver
        | Fault::SlotsMoved => {
            if let Some(cluster) = &mut machinery.cluster {
                shards::inflict_on_cluster(fault, world, cluster, rng).await;
            }
        }
        Fault::Refused | Fault::Held => {
            let link = &machinery.links[rng.usize(..machinery.links.len())];
            if fault == Fault::Held {
                link.hold();
            } else {
                link.refuse();
            }
            sleep(Duration::from_millis(rng.u64(100..1500))).await;
            link.heal();
        }
        // It is made of two that have their own times.
        Fault::Joined => {}
        Fault::SidecarKilled => {
            let victim = rng.usize(..machinery.sidecars.len());
            let amid: Vec<_> = (0..WRITES_DURING_KILL)
                .map(|_| rng.u16(..world.plan.jobs))
                .map(|job| tokio::spawn(workload::put_once(Arc::clone(world), victim, job, 250)))
                .collect();
            sleep(Duration::from_millis(120)).await;
            machinery.kill(victim);
            // The others continue in the meantime.
            sleep(Duration::from_millis(rng.u64(700..1500))).await;
            machinery.restart(world, victim).await;
            for write in amid {
                writes.extend(write.await.expect("a write"));
            }
        }
    }
}
