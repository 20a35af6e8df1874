//! A write or a purge through a sidecar, modelled on `src/cache.rs` and `src/store/redis.rs`.

use std::rc::Rc;

use jobcache::mutants::Mutant;

use super::{
    Flaw,
    link::Unanswered,
    scenario::Begins,
    scheduler::{step, until},
    server::MAIN,
    sidecar::{Pending, Sidecar},
    world::{AckScope, World},
};

/// Longer than a schedule; an actor ends it.
const LINGER_MS: i64 = 60_000;
/// Probability that a long write renews its fence.
const RENEWS: f64 = 0.1;
/// Steps before something is repeated, or has expired.
const LATER: usize = 8;

/// The fate of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The upstream answers after it has committed.
    Answered,
    /// The upstream commits after the head of its response: while it reads the upload, or while it
    /// streams the response.
    Streamed,
    /// The sidecar dies after the commit and before the end.
    Crashed,
    /// The upstream does not answer, and commits after the client has been told so.
    Unknown,
}

/// The known state of a fence; `Unconfirmed` if the begin was sent without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Confirmed,
    Unconfirmed,
    NotSent,
}

pub(super) async fn write(world: Rc<World>, at: usize, fate: Fate) {
    let write = world.name("w");
    step().await;
    if world.flaw == Flaw::CacheAside {
        return write_aside(&world, &write, fate).await;
    }
    let flights = &world.sidecars[at].flights;
    flights.detach();
    let (begun, epoch) = begin(&world, at, &write).await;
    world.say(format!("{write}: forwarded by sidecar {at}, begin {begun:?}, fate {fate:?}"));
    if begun == Begun::Confirmed && world.chance(RENEWS) {
        let _ = world.call(at, begins(&write)).await;
    }
    if fate == Fate::Unknown {
        step().await;
        let ended = end(&world, at, &write, begun, LINGER_MS).await;
        world.say(format!("{write}: answered 504"));
        step().await;
        let version = world.commit(&write);
        world.leave_unacknowledged(version, ended || begun == Begun::Confirmed);
        return;
    }
    let linger_ms = if world.chance(0.5) { 0 } else { LINGER_MS };
    if fate == Fate::Streamed {
        // The end before the head is answered keeps the fence.
        let kept_ms = if world.flaw == Flaw::HeadLiftsFence { 0 } else { LINGER_MS };
        end(&world, at, &write, begun, kept_ms).await;
    }
    let version = world.commit(&write);
    // A server that took over may not have the fence.
    let stands = begun == Begun::Confirmed && epoch == world.epoch();
    if fate == Fate::Streamed && stands && !world.scenario.fences_are_evicted {
        // The bodies have not ended, and no older body may be served all the same.
        world.leave_unacknowledged(version, true);
    }
    step().await;
    let fenced = stands && epoch == world.epoch();
    if fate == Fate::Crashed {
        world.say(format!("{write}: CRASH"));
        world.leave_unacknowledged(version, fenced);
        return;
    }
    let ended = end(&world, at, &write, begun, linger_ms).await;
    // While its fence stands no older body is served, whether or not the end is confirmed.
    let fenced = fenced && epoch == world.epoch();
    let reach = if ended || fenced { AckScope::Everywhere } else { AckScope::Here };
    step().await;
    world.acknowledge(&write, at, version, reach);
    if ended && linger_ms > 0 {
        world.some_steps(LATER).await;
        world.server.run_out(&write);
        world.say(format!("{write}: its linger runs out"));
    }
    if world.chance(0.5) {
        // The upstream's body has ended.
        end(&world, at, &write, begun, 0).await;
    }
}

async fn write_aside(world: &World, write: &str, fate: Fate) {
    let version = world.commit(write);
    step().await;
    if fate == Fate::Crashed {
        return;
    }
    world.server.del(&[MAIN]);
    world.say(format!("{write}: DEL"));
    step().await;
    world.acknowledge(write, 0, version, AckScope::Everywhere);
}

/// The webhook, for a write that bypassed the sidecars.
pub(super) async fn purge(world: Rc<World>, at: usize) {
    let purge = world.name("p");
    step().await;
    if world.flaw == Flaw::CacheAside {
        return write_aside(&world, &purge, Fate::Answered).await;
    }
    let version = world.commit(&purge);
    step().await;
    let confirmed = end(&world, at, &purge, Begun::Confirmed, 0).await;
    step().await;
    // An unconfirmed purge is answered 503 and binds no other sidecar, but this one still bypasses
    // the entry.
    let reach = if confirmed { AckScope::Everywhere } else { AckScope::Here };
    world.acknowledge(&purge, at, version, reach);
}

/// Begins a write. Returns the epoch of the connection as well.
async fn begin(world: &Rc<World>, at: usize, write: &str) -> (Begun, u64) {
    loop {
        let sent = if world.scenario.begins == Begins::MayBeLost {
            world.call(at, begins(write)).await
        } else {
            world.call_patiently(at, begins(write)).await
        };
        match sent {
            Ok(epoch) => return (Begun::Confirmed, epoch),
            Err(Unanswered::NotSent) => return (Begun::NotSent, world.epoch()),
            Err(Unanswered::Sent) if world.scenario.begins == Begins::MayBeLost => {
                return (Begun::Unconfirmed, world.epoch());
            }
            Err(Unanswered::Sent) => {}
        }
    }
}

fn begins(write: &str) -> impl FnOnce(&World) -> u64 + 'static {
    let write = write.to_owned();
    move |world| {
        world.server.begin(&write);
        world.say(format!("begin {write}"));
        world.epoch()
    }
}

/// Ends a write and returns whether the end is confirmed. It is pending if not, or if the begin was
/// sent and may still arrive.
async fn end(world: &Rc<World>, at: usize, write: &str, begun: Begun, linger_ms: i64) -> bool {
    let confirmed = world.call(at, ends(write, linger_ms)).await.is_ok();
    relax(&world.sidecars[at], write, linger_ms);
    if !confirmed || begun == Begun::Unconfirmed {
        remember(world, at, write, linger_ms);
    }
    world.sidecars[at].flights.detach();
    confirmed
}

fn ends(write: &str, linger_ms: i64) -> impl FnOnce(&World) + 'static {
    let write = write.to_owned();
    move |world| {
        let there = world.server.end(&write, linger_ms);
        world.say(format!("end {write}, linger {linger_ms} -> {there}"));
    }
}

/// Applies the linger of an end to the earlier ends of the same write that are pending.
fn relax(sidecar: &Sidecar, write: &str, linger_ms: i64) {
    if let Some(now) = sidecar.pending.borrow_mut().as_mut().filter(|now| now.write == write) {
        now.linger_ms = linger_ms.max(now.others_ms);
    }
}

fn remember(world: &Rc<World>, at: usize, write: &str, linger_ms: i64) {
    if world.flaw == Flaw::Of(Mutant::NoPending) {
        return;
    }
    let sidecar = &world.sidecars[at];
    let mut pending = sidecar.pending.borrow_mut();
    let before = pending.as_ref().map_or(0, |now| now.addition);
    let others_ms = pending
        .as_ref()
        .map_or(0, |now| if now.write == write { now.others_ms } else { now.linger_ms });
    *pending = Some(Pending {
        write: write.to_owned(),
        linger_ms: linger_ms.max(others_ms),
        others_ms,
        addition: before + 1,
    });
    world.say(format!("sidecar {at}: the end of {write} is pending"));
    if !sidecar.is_repeating.replace(true) {
        world.spawn(repeat(Rc::clone(world), at));
    }
}

/// Repeats the pending invalidation until it is confirmed.
async fn repeat(world: Rc<World>, at: usize) {
    let sidecar = &world.sidecars[at];
    let pending = || sidecar.pending.borrow().clone();
    while let Some(item) = pending() {
        until(|| !sidecar.is_cut_off.get()).await;
        world.some_steps(LATER).await;
        // This end covers everything acknowledged before it is sent.
        let covered = sidecar.unconfirmed.get();
        if world.call_patiently(at, ends(&item.write, item.linger_ms)).await.is_err() {
            continue;
        }
        world.confirm(covered);
        if pending().is_some_and(|now| now.addition == item.addition) {
            world.say(format!("sidecar {at}: nothing is pending"));
            *sidecar.pending.borrow_mut() = None;
        }
    }
    sidecar.is_repeating.set(false);
}
