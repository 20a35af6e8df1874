//! Everybody who is not a sidecar, and what befalls the server.

use std::rc::Rc;

use super::{
    scheduler::step,
    server::{FENCE, LEASE, Life, MAIN, META},
    world::{Reach, World},
};

/// Steps before a partition begins, and while it lasts.
const PARTITION: usize = 16;
/// Steps that a third party takes with what it has read.
const READ_AHEAD: usize = 24;
/// Values that a third party writes, keys that are evicted.
const TIMES: usize = 3;

/// Commits elsewhere and says so by a plain DEL.
pub(super) async fn third_party(world: Rc<World>) {
    step().await;
    let state = world.commit("third party");
    step().await;
    world.server.del(&[MAIN]);
    world.say("third party: DEL".to_owned());
    step().await;
    world.acknowledge("third party", 0, state, Reach::Everywhere);
}

/// As [`third_party`], but then it SETs the very bytes again that it has deleted.
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
        world.acknowledge("restorer", 0, state, Reach::Everywhere);
    }
    step().await;
    if let Some(body) = body {
        let life = [Life::Forever, Life::Seconds299][world.below(2)];
        world.server.set(&body, life);
        world.say(format!("restorer: SET {body}, {life:?}"));
    }
    step().await;
    world.acknowledge("restorer", 0, state, Reach::Everywhere);
}

/// The cache inside the application, which nobody has switched off: writes the same bytes that the
/// sidecars do, most often those of the version before, read ahead of the last write.
pub(super) async fn foreign_writer(world: Rc<World>) {
    for _ in 0..=world.below(TIMES) {
        world.some_steps(READ_AHEAD).await;
        step().await;
        let newest = usize::try_from(world.version()).expect("few versions");
        let before = (newest - 1).max(1);
        let version = if world.chance(0.75) { before } else { 1 + world.below(newest) };
        let life = [Life::Forever, Life::Seconds299, Life::Kept][world.below(3)];
        world.server.set(&world.body(version as u64, 0), life);
        world.say(format!("third party: SET {version}, {life:?}"));
    }
}

/// The server dies, and what takes its place knows nothing of the last commands: a restart from a
/// snapshot, or the promotion of a replica that lagged.
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
    world.say(format!("the snapshot is back, in epoch {}", world.epoch()));
}

/// Placeholders, leases and entries that expire or are evicted, each key by itself.
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

/// Sidecar 0 cannot reach Redis for a while.
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
