//! The simulation: every poller, one job after another.
//!
//! Jobs share nothing but Redis, so a few hundred of them represent all. The random numbers are
//! seeded, so every run gives the same result.

use std::{cmp::Reverse, collections::BinaryHeap};

use fastrand::Rng;

use super::{
    load::Version,
    scenario::{Balance, Near, Scenario},
};

/// Number of simulated jobs, and seconds of each in real time, of which the first are not counted.
const JOBS: usize = 400;
const LASTS: f64 = 240.0;
const WARM: f64 = 60.0;
/// Largest deviation of a poll from its time, as a part of the interval.
const JITTER: f64 = 0.1;
/// Interval before the second look at another sidecar's fill; each further one doubles.
const STEP: f64 = 0.005;
const SEED: u64 = 8;

/// An event and its time in nanoseconds, because whole numbers have a total order.
type Event = Reverse<(u64, EventKind)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum EventKind {
    Change,
    Fill,
    /// A watcher polls.
    Poll(usize),
    /// A sidecar looks for another one's fill, after this many looks.
    Look(usize, u32),
}

/// The state of the job in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Nothing,
    /// A placeholder of this sidecar.
    Leased(usize),
    There,
}

struct Job<'s> {
    scenario: &'s Scenario,
    rng: Rng,
    events: BinaryHeap<Event>,
    entry: Entry,
    /// Sidecars that hold the job, and sidecars that Redis remembers as its readers.
    holds: Vec<bool>,
    follows: Vec<bool>,
    /// Sidecar of each watcher, for sticky balancing.
    homes: Vec<usize>,
    counts: Version,
    versions: f64,
    now: f64,
}

/// Returns the mean counts of a version.
pub(crate) fn version(scenario: &Scenario) -> Version {
    let mut sum = Version::default();
    let mut versions = 0.0;
    for job in 0..JOBS {
        let job = Job::new(scenario, SEED + job as u64).run();
        let Version { polls, lookups, leases, fills, ends, near, notified, holders } = job.counts;
        sum.polls += polls;
        sum.lookups += lookups;
        sum.leases += leases;
        sum.fills += fills;
        sum.ends += ends;
        sum.near += near;
        sum.notified += notified;
        sum.holders += holders;
        versions += job.versions;
    }
    Version {
        polls: sum.polls / versions,
        lookups: sum.lookups / versions,
        leases: sum.leases / versions,
        fills: sum.fills / versions,
        ends: sum.ends / versions,
        near: sum.near / versions,
        notified: sum.notified / versions,
        holders: sum.holders / versions,
    }
}

impl<'s> Job<'s> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
    fn new(scenario: &'s Scenario, seed: u64) -> Self {
        let (sidecars, watchers) = (scenario.sidecars as usize, scenario.watchers as usize);
        let mut rng = Rng::with_seed(seed);
        let homes = (0..watchers).map(|_| rng.usize(..sidecars)).collect();
        let mut job = Self {
            scenario,
            rng,
            events: BinaryHeap::new(),
            entry: Entry::Nothing,
            holds: vec![false; sidecars],
            follows: vec![false; sidecars],
            homes,
            counts: Version::default(),
            versions: 0.0,
            now: 0.0,
        };
        for watcher in 0..watchers {
            let first = job.rng.f64() * scenario.poll_every();
            job.at(first, EventKind::Poll(watcher));
        }
        let first = job.rng.f64() * scenario.stage().1;
        job.at(first, EventKind::Change);
        job
    }

    fn run(mut self) -> Self {
        let (warm, lasts) = (WARM / self.scenario.speed, LASTS / self.scenario.speed);
        let mut counting = false;
        while let Some(Reverse((at, what))) = self.events.pop() {
            self.now = seconds(at);
            if self.now > lasts {
                break;
            }
            if !counting && self.now > warm {
                counting = true;
                (self.counts, self.versions) = (Version::default(), 0.0);
            }
            match what {
                EventKind::Change => self.change(),
                EventKind::Fill => self.fill(),
                EventKind::Poll(watcher) => self.poll(watcher),
                EventKind::Look(sidecar, looks) => self.look_again(sidecar, looks),
            }
        }
        self
    }

    fn at(&mut self, after: f64, what: EventKind) {
        self.events.push(Reverse((nanos(self.now + after), what)));
    }

    /// Changes and purges the job, through any sidecar.
    fn change(&mut self) {
        self.versions += 1.0;
        self.counts.ends += 1.0;
        self.counts.holders +=
            self.holds.iter().map(|holds| f64::from(u8::from(*holds))).sum::<f64>();
        if self.entry != Entry::Nothing {
            self.tell();
        }
        self.entry = Entry::Nothing;
        let (shortest, longest) = self.scenario.stage();
        let stays = shortest + self.rng.f64() * (longest - shortest);
        self.at(stays, EventKind::Change);
    }

    /// Announces a change: all holders drop the job, and every remembered reader is notified and
    /// forgotten.
    fn tell(&mut self) {
        let readers = self.follows.iter().filter(|follows| **follows).count();
        self.counts.notified += crate::outcome::count(readers);
        self.follows.fill(false);
        self.holds.fill(false);
    }

    fn fill(&mut self) {
        self.counts.fills += 1.0;
        // Otherwise a purge has voided the lease.
        if matches!(self.entry, Entry::Leased(_)) {
            self.tell();
            self.entry = Entry::There;
        }
    }

    fn poll(&mut self, watcher: usize) {
        let jitter = 1.0 + JITTER * (2.0 * self.rng.f64() - 1.0);
        self.at(self.scenario.poll_every() * jitter, EventKind::Poll(watcher));
        self.counts.polls += 1.0;
        let sidecar = match self.scenario.balance {
            Balance::Random => self.rng.usize(..self.holds.len()),
            Balance::Sticky => self.homes[watcher],
        };
        if self.holds[sidecar] {
            self.counts.near += 1.0;
            return;
        }
        self.look(sidecar);
        match self.entry {
            Entry::There => {}
            Entry::Nothing => {
                self.counts.leases += 1.0;
                self.entry = Entry::Leased(sidecar);
                // The placeholder is a change as well.
                self.tell();
                self.at(self.scenario.fill_takes, EventKind::Fill);
            }
            Entry::Leased(holder) => {
                self.counts.leases += 1.0;
                if holder != sidecar {
                    self.at(STEP, EventKind::Look(sidecar, 1));
                }
            }
        }
    }

    fn look(&mut self, sidecar: usize) {
        self.counts.lookups += 1.0;
        if self.scenario.near != Near::Off {
            self.follows[sidecar] = true;
            self.holds[sidecar] = self.entry == Entry::There;
        }
    }

    /// Looks again for another sidecar's fill.
    fn look_again(&mut self, sidecar: usize, looks: u32) {
        self.look(sidecar);
        if matches!(self.entry, Entry::Leased(_)) {
            self.at(STEP * f64::from(1 << looks.min(6)), EventKind::Look(sidecar, looks + 1));
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "minutes, in nanoseconds"
)]
fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn seconds(nanos: u64) -> f64 {
    crate::stats::real(nanos) / 1e9
}
