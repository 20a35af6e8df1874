//! The actors other than sidecars, and the events of the server.

use std::rc::Rc;

use super::{
    scheduler::step,
    server::{FENCE, LEASE, Life, MAIN, META},
    world::{AckScope, World},
};

/// Steps before a partition begins, and (times four) steps while it lasts.
const PARTITION: usize = 16;
/// Steps that another client of Redis may take between its read and its use.
const READ_AHEAD: usize = 24;
/// Most values that another client writes, and most evictions.
const TIMES: usize = 3;

/// Commits elsewhere and announces it with a plain DEL.
pub(super) async fn third_party(world: Rc<World>) {
    step().await;
    let state = world.commit("other client");
    step().await;
    world.server.del(&[MAIN]);
    world.say("other client: DEL".to_owned());
    step().await;
    world.acknowledge("other client", 0, state, AckScope::Everywhere);
}

/// Like [`third_party`], but then SETs the bytes that it has deleted.
pub(super) async fn restorer(world: Rc<World>) {
    world.some_steps(READ_AHEAD).await;
    step().await;
    let state = world.commit("restorer");
    step().await;
    let body = world.server.get();
    world.server.del(&[MAIN]);
    world.say(format!("restorer: DEL {body:?}"));
    if world.chance(0.5) {
        step().await;
        world.acknowledge("restorer", 0, state, AckScope::Everywhere);
    }
    step().await;
    if let Some(body) = body {
        let life = [Life::Forever, Life::Seconds299][world.below(2)];
        world.server.set(&body, life);
        world.say(format!("restorer: SET {body}, {life:?}"));
    }
    step().await;
    world.acknowledge("restorer", 0, state, AckScope::Everywhere);
}

/// An in-application cache that was left on. It writes the same bytes as the sidecars, usually
/// those of the version before, which it read before the last write.
pub(super) async fn foreign_writer(world: Rc<World>) {
    for _ in 0..=world.below(TIMES) {
        world.some_steps(READ_AHEAD).await;
        step().await;
        let newest = usize::try_from(world.version()).expect("few versions");
        let before = (newest - 1).max(1);
        let version = if world.chance(0.75) { before } else { 1 + world.below(newest) };
        let life = [Life::Forever, Life::Seconds299, Life::Kept][world.below(3)];
        world.server.set(&world.body(version as u64, 0), life);
        world.say(format!("other client: SET {version}, {life:?}"));
    }
}

/// The server dies, and its successor lacks the last commands: a restart from a snapshot, or the
/// promotion of a lagging replica.
pub(super) async fn failover(world: Rc<World>) {
    world.some_steps(READ_AHEAD).await;
    step().await;
    let snapshot = world.server.dump();
    world.say("a snapshot is taken".to_owned());
    world.some_steps(READ_AHEAD).await;
    step().await;
    world.server.restore(&snapshot);
    world.end_epoch();
    world.break_all_links();
    world.say(format!("the snapshot is restored, in epoch {}", world.epoch()));
}

/// Expires or evicts placeholders, leases and entries, each key separately.
pub(super) async fn eviction(world: Rc<World>) {
    let keys = [MAIN, META, LEASE, FENCE];
    let evictable = if world.scenario.fences_are_evicted { 4 } else { 3 };
    for _ in 0..=world.below(TIMES) {
        step().await;
        let chosen = 1 + world.below((1 << evictable) - 1);
        let gone: Vec<&str> =
            (0..evictable).filter(|bit| chosen & (1 << bit) != 0).map(|bit| keys[bit]).collect();
        world.server.del(&gone);
        world.say(format!("evicted: {gone:?}"));
    }
}

/// Cuts sidecar 0 off from Redis for a while.
pub(super) async fn partition(world: Rc<World>) {
    if world.chance(0.5) {
        world.some_steps(PARTITION).await;
    }
    let link = world.link(0);
    world.break_link(0, &link);
    world.sidecars[0].is_cut_off.set(true);
    world.say("sidecar 0: cut off from Redis".to_owned());
    step().await;
    world.some_steps(4 * PARTITION).await;
    world.sidecars[0].is_cut_off.set(false);
    world.say("sidecar 0: reaches Redis again".to_owned());
}
