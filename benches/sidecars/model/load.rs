//! What a scenario asks of Redis, and what that costs it.

use super::{
    costs::{Costs, Op},
    scenario::{Near, Scenario},
};
use crate::Tracking;

/// Of one version of one job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Version {
    pub(crate) polls: f64,
    /// Reads of the entry in Redis.
    pub(crate) lookups: f64,
    pub(crate) leases: f64,
    pub(crate) fills: f64,
    pub(crate) ends: f64,
    /// Answered from a process.
    pub(crate) near: f64,
    /// Names that sidecars are told, where they are told of what they have read.
    pub(crate) told: f64,
    /// Sidecars that hold the version when it ends.
    pub(crate) holders: f64,
}

/// In a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) polls: f64,
    pub(crate) changes: f64,
    pub(crate) lookups: f64,
    pub(crate) scripts: f64,
    pub(crate) rounds: f64,
    pub(crate) probes: f64,
    /// Messages with news, if each change is told in a turn of its own.
    pub(crate) sends: f64,
    /// Names in one turn of the event loop, by which Redis stays within its thread.
    pub(crate) names_a_turn: f64,
    /// Cores of its main thread by what they are for.
    pub(crate) parts: [(&'static str, f64); 5],
    /// How long a turn takes, in seconds.
    pub(crate) turn: f64,
    /// To all sidecars.
    pub(crate) news_bytes: f64,
    pub(crate) redis_bytes: f64,
    pub(crate) tracked: f64,
    /// In one sidecar.
    pub(crate) near_bytes: f64,
    pub(crate) news_each: f64,
}

/// Of news in a broadcast: the frame of a message, and a name of it; and of the news of one key.
const FRAME_BYTES: f64 = 30.0;
const NAME_BYTES: f64 = 54.0;
/// What of its thread Redis can use before everything waits.
const ROOM: f64 = 0.9;
/// Names whose news a version makes: the purge, the lease's placeholder, the fill.
const NAMES: f64 = 3.0;
/// Bytes of an entry in a process (README, "memory of the near cache").
const NEAR_ENTRY_BYTES: f64 = 1_311.0;
const NEAR_MAX_BYTES: f64 = 128.0 * 1_048_576.0;
/// Between two probes of one sidecar, in seconds.
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
            (_, Tracking::Keys) => (0.0, version.told * changes),
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

    /// The thread of Redis. Operations are cheaper the busier it is; so the share is found in steps.
    fn spend(
        &mut self,
        scenario: &Scenario,
        version: &Version,
        costs: &Costs,
        names: f64,
        carried: f64,
    ) {
        let told = if names > 0.0 { 0.0 } else { self.sends * costs.key_send / 1e6 };
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
                ("news", told),
            ]
        };
        let one_by_one = names * scenario.sidecars * costs.send / 1e6;
        let busy = share(|busy| sum(&parts(busy)) + one_by_one);
        self.parts = parts(busy);
        // As many names in a turn as are needed for the rest to fit: each further one costs its bytes.
        let least = names * scenario.sidecars * costs.name / 1e6;
        let left = ROOM - sum(&self.parts);
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

    /// Cores of the main thread of Redis.
    pub(crate) fn cores(&self) -> f64 {
        sum(&self.parts)
    }

    /// Its memory: entries, connections (two of each sidecar), and what it remembers of readers.
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

    /// Whether a tenth of the thread is left without bunching the news.
    pub(crate) fn fits(&self) -> bool {
        self.names_a_turn <= 1.0 && self.cores() <= ROOM
    }

    /// The same where Redis never rests, and each name has a turn of its own.
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

    /// What gives way first, if anything does.
    pub(crate) fn breaks(&self) -> String {
        // Half of `store.budget`: then a round of the barrier is given up, and hits ask Redis instead.
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
            "-, news bunched".to_owned()
        } else {
            "-".to_owned()
        }
    }
}

fn sum(parts: &[(&str, f64)]) -> f64 {
    parts.iter().map(|(_, cores)| cores).sum()
}

/// The share of its thread that Redis is busy for, where that says how many cores its work takes: the
/// busier, the fewer. All of it where they are more than one even then.
fn share(cores: impl Fn(f64) -> f64) -> f64 {
    let (mut less, mut more) = (0.0, 1.0);
    for _ in 0..40 {
        let busy = f64::midpoint(less, more);
        *if cores(busy) > busy { &mut less } else { &mut more } = busy;
    }
    f64::midpoint(less, more)
}
