//! The events that may happen in a schedule, and the run of one schedule from its seed to its
//! verdict.

use std::rc::Rc;

use super::{
    Flaw, others,
    reader::get,
    scheduler::Scheduler,
    server::{FENCE, LEASE, MAIN, META, New, Server},
    world::{Answer, Stale, World},
    writer::{Fate, purge, write},
};

/// More steps than any schedule takes; beyond this the model is in a loop.
const MOST_STEPS: u64 = 100_000;
/// Readers arrive while a schedule has taken fewer steps than this.
const LAST_READER: u64 = 120;
const READER_COMES: f64 = 0.06;

/// Whether the begin of a write is always confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begins {
    Confirmed,
    MayBeLost,
}

/// The sidecars that write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writers {
    Any,
    /// Not the sidecar that is cut off, so that every acknowledgement binds both.
    SidecarOne,
}

#[expect(clippy::struct_excessive_bools, reason = "each stands for one actor")]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// Probability that a command is late or lost.
    pub(super) slow: f64,
    pub(super) begins: Begins,
    /// Probability that a write is answered before its response body has ended.
    streamed: f64,
    /// Probability that a client sends `Cache-Control: no-cache`.
    pub(super) no_cache: f64,
    /// Whether Redis may evict a fence, under a policy that reaches it. Nothing then protects a
    /// write if its end is not confirmed or its sidecar dies, so this excludes both.
    pub(super) fences_are_evicted: bool,
    /// Whether several credentials read, and writes change which of them may.
    pub(super) is_shared: bool,
    /// Whether one of the credentials gets its own bytes.
    pub(super) personal: bool,
    /// Largest audience of an entry.
    pub(super) audience: usize,
    writers: Writers,
    purge: bool,
    third_party: bool,
    restorer: bool,
    pub(super) failover: bool,
    foreign_writer: bool,
    eviction: bool,
    crash: bool,
    unknown: bool,
    partition: bool,
}

const WRITE: Scenario = Scenario {
    name: "write",
    slow: 0.0,
    begins: Begins::Confirmed,
    streamed: 0.25,
    no_cache: 0.15,
    fences_are_evicted: false,
    is_shared: false,
    personal: false,
    audience: 256,
    writers: Writers::Any,
    purge: false,
    third_party: false,
    restorer: false,
    failover: false,
    foreign_writer: false,
    eviction: false,
    crash: false,
    unknown: false,
    partition: false,
};

const EVERYTHING: Scenario = Scenario {
    name: "everything",
    slow: 0.1,
    purge: true,
    third_party: true,
    foreign_writer: true,
    eviction: true,
    crash: true,
    unknown: true,
    ..WRITE
};

const SHARED: Scenario = Scenario { name: "admit+revoke", is_shared: true, ..WRITE };

pub(super) static SCENARIOS: [Scenario; 24] = [
    WRITE,
    Scenario { name: "write+purge+3rdDEL", purge: true, third_party: true, ..WRITE },
    Scenario {
        name: "write+expiry/eviction",
        third_party: true,
        eviction: true,
        fences_are_evicted: true,
        ..WRITE
    },
    Scenario { name: "3rdSET", third_party: true, foreign_writer: true, purge: true, ..WRITE },
    Scenario { name: "crash+unknown", crash: true, unknown: true, ..WRITE },
    Scenario { name: "redis timeouts", slow: 0.15, third_party: true, ..WRITE },
    Scenario {
        name: "lost begin",
        slow: 0.15,
        begins: Begins::MayBeLost,
        third_party: true,
        crash: true,
        ..WRITE
    },
    Scenario { name: "late commands", slow: 0.5, purge: true, third_party: true, ..WRITE },
    Scenario { name: "partition of sidecar 0", partition: true, ..WRITE },
    Scenario {
        name: "down-next",
        partition: true,
        third_party: true,
        writers: Writers::SidecarOne,
        ..WRITE
    },
    EVERYTHING,
    Scenario {
        name: "everything, cut off",
        begins: Begins::MayBeLost,
        partition: true,
        ..EVERYTHING
    },
    Scenario { name: "fail-over", failover: true, third_party: true, purge: true, ..WRITE },
    SHARED,
    Scenario { name: "admit+3rdDEL", third_party: true, purge: true, ..SHARED },
    Scenario { name: "admit+DEL+SET", restorer: true, ..SHARED },
    Scenario { name: "replace", no_cache: 0.5, third_party: true, ..SHARED },
    Scenario { name: "admit+replace", personal: true, ..SHARED },
    Scenario {
        name: "admit+replace+DEL+SET",
        personal: true,
        third_party: true,
        restorer: true,
        foreign_writer: true,
        ..SHARED
    },
    Scenario { name: "audience of two", audience: 2, third_party: true, ..SHARED },
    Scenario {
        name: "admit, late commands",
        slow: 0.5,
        personal: true,
        third_party: true,
        ..SHARED
    },
    Scenario {
        name: "admit, fail-over",
        personal: true,
        failover: true,
        third_party: true,
        restorer: true,
        ..SHARED
    },
    Scenario {
        name: "admit, everything",
        is_shared: true,
        personal: true,
        restorer: true,
        ..EVERYTHING
    },
    Scenario {
        name: "admit, cut off",
        is_shared: true,
        personal: true,
        restorer: true,
        begins: Begins::MayBeLost,
        partition: true,
        ..EVERYTHING
    },
];

/// Scenarios in which a flaw that is rare in the others shows soon.
pub(super) static STREAMED: Scenario =
    Scenario { name: "streamed", streamed: 1.0, slow: 0.3, third_party: true, ..WRITE };
pub(super) static REFRESHED: Scenario =
    Scenario { name: "refreshed", no_cache: 0.8, third_party: true, ..SHARED };

/// The result of a schedule.
pub(super) struct Outcome {
    pub(super) stale: Stale,
    pub(super) steps: u64,
    pub(super) log: Vec<String>,
}

pub(super) fn run(
    server: &Rc<Server>,
    scenario: &'static Scenario,
    flaw: Flaw,
    seed: u64,
) -> Outcome {
    let world = World::new(Rc::clone(server), scenario, flaw, seed);
    server.del(&[MAIN, META, LEASE, FENCE]);
    if world.chance(0.5) {
        fill_before(&world);
    }
    let mut scheduler = Scheduler::new(&world.rng);
    populate(&world);
    let mut steps = drain(&world, &mut scheduler, 0);
    // Finally, the state that is left must be fresh as well.
    for at in 0..world.sidecars.len() {
        world.spawn(get(Rc::clone(&world), at));
        steps += drain(&world, &mut scheduler, LAST_READER);
    }
    for sidecar in &world.sidecars {
        assert!(sidecar.pending.borrow().is_none(), "an invalidation is still pending at the end");
    }
    let (stale, log) = world.finish();
    Outcome { stale, steps, log }
}

fn fill_before(world: &World) {
    let Answer::Body(body) = world.serve(0) else { return };
    world.server.lease("before", None);
    let new = New { body, generation: "before".to_owned(), epoch: world.epoch(), who: 0 };
    world.server.fill(&new, world.expires_at_ms);
    world.say("an entry exists".to_owned());
}

fn populate(world: &Rc<World>) {
    let scenario = world.scenario;
    let anywhere = || world.below(world.sidecars.len());
    for _ in 0..2 + world.below(4) {
        world.spawn(get(Rc::clone(world), anywhere()));
    }
    for _ in 0..=world.below(2) {
        let at = if scenario.writers == Writers::SidecarOne { 1 } else { anywhere() };
        let fate =
            if world.chance(1.0 - scenario.streamed) { Fate::Answered } else { Fate::Streamed };
        world.spawn(write(Rc::clone(world), at, fate));
    }
    if scenario.purge {
        world.spawn(purge(Rc::clone(world), anywhere()));
    }
    if scenario.third_party {
        world.spawn(others::third_party(Rc::clone(world)));
    }
    if scenario.restorer {
        world.spawn(others::restorer(Rc::clone(world)));
    }
    if scenario.failover {
        world.spawn(others::failover(Rc::clone(world)));
    }
    if scenario.foreign_writer {
        world.spawn(others::foreign_writer(Rc::clone(world)));
    }
    if scenario.crash {
        world.spawn(write(Rc::clone(world), 0, Fate::Crashed));
    }
    if scenario.unknown {
        world.spawn(write(Rc::clone(world), 0, Fate::Unknown));
    }
    if scenario.eviction {
        world.spawn(others::eviction(Rc::clone(world)));
    }
    if scenario.partition {
        world.spawn(others::partition(Rc::clone(world)));
    }
}

/// Runs all actors to their end, while further readers arrive. Returns the number of steps.
fn drain(world: &Rc<World>, scheduler: &mut Scheduler, age: u64) -> u64 {
    let mut steps = 0;
    loop {
        for actor in world.take_spawned() {
            scheduler.add(actor, &world.rng);
        }
        if scheduler.is_idle() {
            return steps;
        }
        if !scheduler.turn(&world.rng) {
            continue;
        }
        steps += 1;
        assert!(
            steps < MOST_STEPS,
            "the actors are in a loop: {}/{}",
            world.scenario.name,
            world.seed
        );
        if age + steps < LAST_READER && world.chance(READER_COMES) {
            world.spawn(get(Rc::clone(world), world.below(world.sidecars.len())));
        }
    }
}
