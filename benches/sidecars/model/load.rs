//! Load of a scenario on Redis, and its cost.

use super::{
    costs::{Costs, Op},
    scenario::{Near, Scenario},
};
use crate::Tracking;

/// Counts for one version of one job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Version {
    pub(crate) polls: f64,
    /// Reads of the entry in Redis.
    pub(crate) lookups: f64,
    pub(crate) leases: f64,
    pub(crate) fills: f64,
    pub(crate) ends: f64,
    /// Polls answered from process memory.
    pub(crate) near: f64,
    /// Key notifications to sidecars, with tracking by keys.
    pub(crate) notified: f64,
    /// Sidecars that hold the version when it ends.
    pub(crate) holders: f64,
}

/// Load per second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) polls: f64,
    pub(crate) changes: f64,
    pub(crate) lookups: f64,
    pub(crate) scripts: f64,
    pub(crate) rounds: f64,
    pub(crate) probes: f64,
    /// Notification messages, if each change takes an event loop turn of its own.
    pub(crate) sends: f64,
    /// Names per event loop turn at which Redis stays within its thread.
    pub(crate) names_a_turn: f64,
    /// Cores of the main thread, by purpose.
    pub(crate) parts: [(&'static str, f64); 5],
    /// Duration of an event loop turn, in seconds.
    pub(crate) turn: f64,
    /// Bytes of notifications to all sidecars.
    pub(crate) news_bytes: f64,
    pub(crate) redis_bytes: f64,
    pub(crate) tracked: f64,
    /// Bytes of entries in one sidecar.
    pub(crate) near_bytes: f64,
    pub(crate) news_each: f64,
}

/// Bytes of a broadcast: the frame of a message, and each name in it. [`Load::new`] uses them for
/// the messages about single keys as well.
const FRAME_BYTES: f64 = 30.0;
const NAME_BYTES: f64 = 54.0;
/// Share of its thread that Redis can use before everything queues.
const USABLE_SHARE: f64 = 0.9;
/// Names announced per version: the purge, the lease's placeholder and the fill.
const NAMES: f64 = 3.0;
/// Bytes of an entry in a process ("memory of the near cache" in benches/README.md).
const NEAR_ENTRY_BYTES: f64 = 1_311.0;
const NEAR_MAX_BYTES: f64 = 128.0 * 1_048_576.0;
/// Interval between two probes of one sidecar, in seconds.
const PROBE_EVERY: f64 = 0.4;

impl Load {
    pub(crate) fn new(scenario: &Scenario, version: &Version, costs: &Costs) -> Self {
        let changes = scenario.changes();
        let waits = version.near * changes;
        let carried = match scenario.tracking {
            Tracking::Keys if scenario.near != Near::Off => version.lookups * changes,
            _ => 0.0,
        };
        let rounds = match scenario.near {
            Near::Strict => scenario.rounds(waits + carried),
            Near::Bounded => scenario.rounds(carried) + scenario.nudges(waits),
            Near::Off => 0.0,
        };
        let (names, sends) = match (scenario.near, scenario.tracking) {
            (Near::Off, _) => (0.0, 0.0),
            (_, Tracking::Broadcast) => (NAMES * changes, NAMES * changes * scenario.sidecars),
            (_, Tracking::Keys) => (0.0, version.notified * changes),
        };
        let holders = if scenario.near == Near::Off { 0.0 } else { version.holders };
        let mut load = Self {
            polls: version.polls * changes,
            changes,
            lookups: version.lookups * changes,
            scripts: (version.leases + version.fills + version.ends) * changes,
            rounds,
            probes: scenario.sidecars / PROBE_EVERY,
            sends,
            names_a_turn: 1.0,
            parts: [("", 0.0); 5],
            turn: 0.0,
            news_bytes: sends * (FRAME_BYTES + NAME_BYTES),
            redis_bytes: 0.0,
            tracked: 0.0,
            near_bytes: (scenario.jobs() * holders / scenario.sidecars * NEAR_ENTRY_BYTES)
                .min(NEAR_MAX_BYTES),
            news_each: sends / scenario.sidecars,
        };
        load.spend(scenario, version, costs, names, carried);
        load.keep(scenario, holders, costs);
        load
    }

    /// Computes the use of the Redis thread. Operations are cheaper the busier Redis is, so the
    /// share is found iteratively.
    fn spend(
        &mut self,
        scenario: &Scenario,
        version: &Version,
        costs: &Costs,
        names: f64,
        carried: f64,
    ) {
        let notifications = if names > 0.0 { 0.0 } else { self.sends * costs.key_send / 1e6 };
        let parts = |busy: f64| {
            let scripts = version.leases * costs.lease.at(busy)
                + version.fills * costs.fill.at(busy)
                + version.ends * costs.end.at(busy);
            let lookups = self.lookups * costs.lookup.at(busy) + carried * costs.remember;
            [
                ("PINGs", self.rounds * costs.ping.at(busy) / 1e6),
                ("lookups", lookups / 1e6),
                ("scripts", self.changes * scripts / 1e6),
                ("probes", self.probes * costs.probe.at(busy) / 1e6),
                ("news", notifications),
            ]
        };
        let one_by_one = names * scenario.sidecars * costs.send / 1e6;
        let busy = share(|busy| sum(&parts(busy)) + one_by_one);
        self.parts = parts(busy);
        // Batch as many names per turn as the rest needs to fit; each further name costs only its
        // bytes.
        let least = names * scenario.sidecars * costs.name / 1e6;
        let left = USABLE_SHARE - sum(&self.parts);
        if names > 0.0 && one_by_one > left {
            self.names_a_turn =
                if left > least { (one_by_one - least) / (left - least) } else { f64::INFINITY };
        }
        self.parts[4].1 += (one_by_one - least) / self.names_a_turn + least;
        if names > 0.0 {
            let further = (self.names_a_turn - 1.0) * costs.name;
            self.turn = scenario.sidecars * (costs.send + further) / 1e6;
        }
    }

    /// Returns the cores used by the main thread of Redis.
    pub(crate) fn cores(&self) -> f64 {
        sum(&self.parts)
    }

    /// Computes the memory of Redis: entries, connections (two per sidecar) and the tracking table.
    fn keep(&mut self, scenario: &Scenario, holders: f64, costs: &Costs) {
        if scenario.tracking == Tracking::Keys {
            self.tracked = scenario.jobs() * holders;
        }
        let more = costs.lone_item_bytes - costs.item_bytes;
        let table = self.tracked * costs.item_bytes + (self.tracked.min(scenario.jobs()) * more);
        self.redis_bytes = scenario.jobs() * costs.entry_bytes
            + 2.0 * scenario.sidecars * costs.client_bytes
            + table;
    }

    /// Returns whether a tenth of the thread is idle without batching notifications.
    pub(crate) fn fits(&self) -> bool {
        self.names_a_turn <= 1.0 && self.cores() <= USABLE_SHARE
    }

    /// Returns the load if Redis never sleeps and each name takes a turn of its own.
    pub(crate) fn together(scenario: &Scenario, version: &Version, costs: &Costs) -> Self {
        let together = |op: Op| Op { alone: op.together, together: op.together };
        let costs = Costs {
            ping: together(costs.ping),
            lookup: together(costs.lookup),
            lease: together(costs.lease),
            fill: together(costs.fill),
            end: together(costs.end),
            probe: together(costs.probe),
            ..*costs
        };
        let mut load = Self::new(scenario, version, &costs);
        let send = if scenario.tracking == Tracking::Keys { costs.key_send } else { costs.send };
        load.parts[4].1 = load.sends * send / 1e6;
        load
    }

    /// Returns the resource that fails first, or a dash.
    pub(crate) fn breaks(&self) -> String {
        // Half of `store.budget`: after this time a round of the barrier is given up, and hits ask
        // Redis instead.
        const PATIENCE: f64 = 0.025;
        let (part, _) = self
            .parts
            .iter()
            .fold(("", 0.0), |most, part| if part.1 > most.1 { *part } else { most });
        if self.cores() > 1.0 {
            format!("Redis' thread: {part}")
        } else if self.turn > PATIENCE {
            "the barrier: turns > 25 ms".to_owned()
        } else if self.names_a_turn > 1.0 {
            "-, notifications batched".to_owned()
        } else {
            "-".to_owned()
        }
    }
}

fn sum(parts: &[(&str, f64)]) -> f64 {
    parts.iter().map(|(_, cores)| cores).sum()
}

/// Returns the utilisation of the Redis thread. `cores` gives the cores that the work needs at a
/// utilisation; it falls as the utilisation rises. Returns about one if even then more than one
/// core is needed.
fn share(cores: impl Fn(f64) -> f64) -> f64 {
    let (mut less, mut more) = (0.0, 1.0);
    for _ in 0..40 {
        let busy = f64::midpoint(less, more);
        *if cores(busy) > busy { &mut less } else { &mut more } = busy;
    }
    f64::midpoint(less, more)
}
