//! The steps after a read of the upstream, modelled on `src/cache/fill.rs` and
//! `src/store/redis/shard.rs`.

use std::rc::Rc;

use jobcache::{mutants::Mutant, store::StoredValue};

use super::{
    Flaw,
    reader::{LOOKS, read},
    server::{Found, New},
    sidecar::{Flight, FlightSlot},
    world::World,
};

/// A reader that reads the upstream for others.
pub(super) struct Lead {
    pub(super) reader: String,
    pub(super) who: usize,
    pub(super) seat: FlightSlot,
    pub(super) flight: Flight,
    pub(super) target: Target,
}

/// Where a response may be stored.
pub(super) enum Target {
    Nowhere,
    Lease {
        token: String,
        epoch: u64,
    },
    /// In place of the entry that the holder of this lease stores.
    Held {
        token: String,
        epoch: u64,
    },
    Entry {
        known: Known,
        refresh: bool,
    },
}

/// An entry that a reader has seen.
pub(super) struct Known {
    pub(super) body: String,
    pub(super) stored: StoredValue,
    pub(super) generation: String,
    pub(super) epoch: u64,
    /// Whether the reader is the only one in the audience.
    pub(super) is_own: bool,
}

/// Runs as its own actor, because the client has already been answered.
pub(super) async fn store(world: Rc<World>, at: usize, lead: Lead, body: String) {
    let Lead { reader, who, seat, target, .. } = lead;
    let target = match target {
        Target::Held { token, epoch } => entry_of_holder(&world, at, who, (token, epoch)).await,
        target => target,
    };
    match target {
        Target::Nowhere | Target::Held { .. } => {}
        Target::Lease { token, epoch } => {
            fill(&world, at, New { body, generation: token, epoch, who }).await;
        }
        Target::Entry { known, refresh: false }
            if known.body == body || world.flaw == Flaw::AdmitWhateverIsRead =>
        {
            admit(&world, at, reader, who, known).await;
        }
        Target::Entry { known, refresh } => {
            if !(refresh && (known.is_own || known.body == body)) {
                *world.sidecars[at].replaced.borrow_mut().entry(who).or_default() += 1;
            }
            let (generation, epoch) = (format!("{reader}-new"), known.epoch);
            replace(&world, at, known, New { body, generation, epoch, who }).await;
        }
    }
    world.sidecars[at].flights.leave(&seat);
}

/// Looks for the entry that the holder of a lease has stored.
async fn entry_of_holder(
    world: &Rc<World>,
    at: usize,
    who: usize,
    (token, epoch): (String, u64),
) -> Target {
    for _ in 0..world.below(LOOKS) {
        let Ok((stored, of)) = read(world, at).await else { return Target::Nowhere };
        let Some(stored) = stored else { continue };
        let found = world.server.decode(&stored, of);
        let is_it = |found: &Found| {
            (found.generation == token || world.flaw == Flaw::HeldOfAnyGeneration)
                && of == epoch
                && !world.server.includes(found, who)
        };
        return found.filter(is_it).map_or(Target::Nowhere, |found| {
            let Found { body, generation, .. } = found;
            let known = Known { body, stored, generation, epoch, is_own: false };
            Target::Entry { known, refresh: false }
        });
    }
    Target::Nowhere
}

async fn fill(world: &Rc<World>, at: usize, mut new: New) {
    let token = new.generation.clone();
    let filled = world.call(at, move |world| {
        match world.flaw {
            Flaw::Of(Mutant::EpochAtFill) => new.epoch = world.epoch(),
            Flaw::Of(Mutant::NoEpoch) => {}
            _ if new.epoch != world.epoch() => return,
            _ => {}
        }
        let stored = world.server.fill(&new, world.expires_at_ms);
        world.say(format!("fill {new:?} -> {stored}"));
    });
    if filled.await.is_err() {
        release(Rc::clone(world), at, token).await;
    }
}

async fn admit(world: &Rc<World>, at: usize, reader: String, who: usize, known: Known) {
    let call = world.call(at, move |world| {
        let Some((stored, generation)) = compared(world, known, Flaw::AdmitOnWhatIsThere) else {
            return;
        };
        let admitted = world.server.admit(&stored, &generation, who);
        world.say(format!("{reader}: admit {who} to {generation} -> {admitted}"));
    });
    // A missing answer changes nothing.
    let _ = call.await;
}

async fn replace(world: &Rc<World>, at: usize, known: Known, mut new: New) {
    let call = world.call(at, move |world| {
        // The reads of two sidecars may get the same expiry.
        let expires_at_ms = world.expires_at_ms.unwrap_or(known.stored.expires_at_ms);
        let compared = if world.flaw == Flaw::ReplaceAcrossEpochs {
            new.epoch = world.epoch();
            Some((known.stored, known.generation))
        } else {
            compared(world, known, Flaw::ReplaceOnWhatIsThere)
        };
        let Some((stored, generation)) = compared else { return };
        let replaced = world.server.replace(&stored, &generation, &new, expires_at_ms);
        world.say(format!("replace {generation} with {new:?} -> {replaced}"));
    });
    let _ = call.await;
}

/// Returns the entry that a script compares: the one that was seen, on a connection of the same
/// epoch.
fn compared(world: &World, known: Known, on_what_is_there: Flaw) -> Option<(StoredValue, String)> {
    if world.flaw == on_what_is_there {
        return Some(world.server.now());
    }
    (known.epoch == world.epoch()).then_some((known.stored, known.generation))
}

pub(super) async fn release(world: Rc<World>, at: usize, token: String) {
    let call = world.call(at, move |world| {
        let released = world.server.release(&token);
        world.say(format!("release {token} -> {released}"));
    });
    // If the release is lost, the lease expires.
    let _ = call.await;
}
