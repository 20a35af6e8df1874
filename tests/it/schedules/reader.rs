//! A GET through a sidecar, as `src/cache.rs` and `src/proxy.rs` have it.

use std::rc::Rc;

use jobcache::{mutants::Mutant, store::Stored};

use super::{
    Flaw,
    link::Unanswered,
    scheduler::step,
    server::{Leasing, Life},
    sidecar::{Flight, Ticket},
    world::World,
};

/// A client that sends `Cache-Control: no-cache`, a response that cannot be stored, a read of which
/// Redis executes the parts apart.
const SELDOM: f64 = 0.15;
/// A value of somebody else's is left alone after a few times; here now and then.
const LEFT_ALONE: f64 = 0.25;
/// Looks at another sidecar's fill before it is waited for in vain.
const LOOKS: usize = 4;

/// What a reader asks for.
struct Ask {
    /// Of the lease, if it comes to that.
    token: String,
    no_cache: bool,
}

enum Lookup {
    Hit(u64),
    Lead,
    LeadNext(u64, Flight),
    Join(Flight),
    Pass,
}

pub(super) async fn get(world: Rc<World>, at: usize) {
    let claim = world.claim(at);
    let version = if world.flaw == Flaw::CacheAside {
        cache_aside(&world, &claim.reader).await
    } else {
        answer(&world, at, &claim.reader).await
    };
    world.judge(&claim, version);
}

/// What an application does without a protocol.
async fn cache_aside(world: &World, reader: &str) -> u64 {
    step().await;
    if let Some(version) = world.server.get() {
        return version;
    }
    let version = world.read_upstream(reader).await;
    world.server.set(version, Life::Seconds299);
    world.say(format!("{reader}: SET {version}"));
    version
}

async fn answer(world: &Rc<World>, at: usize, reader: &str) -> u64 {
    let ask = Ask { token: format!("{reader}-lease"), no_cache: world.chance(SELDOM) };
    let flights = &world.sidecars[at].flights;
    match lookup(world, at, &ask).await {
        Lookup::Hit(version) => version,
        Lookup::Lead => {
            let flight = flights.lead(&ask.token);
            let version = world.read_upstream(reader).await;
            if world.chance(SELDOM) {
                flights.leave(&ask.token);
                flight.abandon();
                world.spawn(release(Rc::clone(world), at, ask.token));
            } else {
                flight.land(version);
                world.spawn(fill(Rc::clone(world), at, ask.token, version));
            }
            version
        }
        Lookup::LeadNext(number, flight) => {
            flights.turn(number).await;
            let version = world.read_upstream(reader).await;
            flight.land(version);
            flights.pass_on();
            version
        }
        Lookup::Join(flight) => match flight.landed().await {
            Some(version) => version,
            None => world.read_upstream(reader).await,
        },
        Lookup::Pass => world.read_upstream(reader).await,
    }
}

async fn lookup(world: &Rc<World>, at: usize, ask: &Ask) -> Lookup {
    // Whether the key is to be trusted is looked at when the reader comes, and only then.
    if world.sidecars[at].is_cut_off.get() || world.sidecars[at].pending.borrow().is_some() {
        return unconfirmed(world, at);
    }
    if world.flaw == Flaw::Of(Mutant::JoinBeforeLookup)
        && let Some(flight) = world.sidecars[at].flights.any()
    {
        return Lookup::Join(flight);
    }
    find(world, at, ask).await.unwrap_or_else(|_| unconfirmed(world, at))
}

async fn find(world: &Rc<World>, at: usize, ask: &Ask) -> Result<Lookup, Unanswered> {
    let stored = read(world, at).await?;
    if let Some(stored) = &stored {
        match world.server.hit(stored) {
            Some(version) if !ask.no_cache => return Ok(Lookup::Hit(version)),
            None if world.chance(LEFT_ALONE) => return Ok(unconfirmed(world, at)),
            _ => {}
        }
    }
    match lease(world, at, ask, stored.as_ref()).await? {
        Leasing::Granted => Ok(Lookup::Lead),
        Leasing::Fenced => Ok(unconfirmed(world, at)),
        Leasing::Stored(stored) => Ok(offer(world, at, ask, &stored)),
        Leasing::Leased(_) if ask.no_cache => Ok(unconfirmed(world, at)),
        Leasing::Leased(token) => follow(world, at, ask, &token).await,
    }
}

/// An entry that came meanwhile.
fn offer(world: &World, at: usize, ask: &Ask, stored: &Stored) -> Lookup {
    match world.server.hit(stored) {
        Some(version) if !ask.no_cache => Lookup::Hit(version),
        _ => unconfirmed(world, at),
    }
}

async fn follow(
    world: &Rc<World>,
    at: usize,
    ask: &Ask,
    token: &str,
) -> Result<Lookup, Unanswered> {
    let flights = &world.sidecars[at].flights;
    let ours = flights.join(token);
    let by_id = || flights.any().filter(|_| world.flaw == Flaw::Of(Mutant::JoinById));
    if let Some(flight) = ours.or_else(by_id) {
        return Ok(Lookup::Join(flight));
    }
    for _ in 0..world.below(LOOKS) {
        if let Some(stored) = read(world, at).await? {
            return Ok(offer(world, at, ask, &stored));
        }
    }
    Ok(Lookup::Pass)
}

/// Without a confirmed lookup only a read that starts after now will do.
fn unconfirmed(world: &World, at: usize) -> Lookup {
    let flights = &world.sidecars[at].flights;
    if world.flaw == Flaw::Of(Mutant::JoinRunning)
        && let Some(flight) = flights.running()
    {
        return Lookup::Join(flight);
    }
    match flights.next() {
        Ticket::Lead(number, flight) => Lookup::LeadNext(number, flight),
        Ticket::Join(flight) => Lookup::Join(flight),
    }
}

async fn read(world: &Rc<World>, at: usize) -> Result<Option<Stored>, Unanswered> {
    let ([body, meta], expires_at_ms) = if world.chance(SELDOM) {
        let values = world.call(at, |world| world.server.body_and_meta()).await?;
        (values, world.call(at, |world| world.server.expires_at_ms()).await?)
    } else {
        let both = |world: &World| (world.server.body_and_meta(), world.server.expires_at_ms());
        world.call(at, both).await?
    };
    Ok(body.filter(|body| !body.is_empty()).map(|body| Stored {
        body: body.into(),
        meta: meta.unwrap_or_default().into(),
        expires_at_ms,
    }))
}

async fn lease(
    world: &Rc<World>,
    at: usize,
    ask: &Ask,
    refused: Option<&Stored>,
) -> Result<Leasing, Unanswered> {
    let (token, refused) = (ask.token.clone(), refused.map(|stored| stored.expires_at_ms));
    let call = world.call(at, move |world| {
        let leasing = world.server.lease(&token, refused);
        world.say(format!("lease {token} (refused {refused:?}) -> {leasing:?}"));
        leasing
    });
    let leasing = call.await;
    if leasing.is_err() {
        // It may be granted yet.
        world.spawn(release(Rc::clone(world), at, ask.token.clone()));
    }
    leasing
}

/// Goes its own way: the client has been answered.
async fn fill(world: Rc<World>, at: usize, token: String, version: u64) {
    let name = token.clone();
    let filled = world.call(at, move |world| {
        let stored = world.server.fill(&name, version);
        world.say(format!("fill {name} with {version} -> {stored}"));
    });
    if filled.await.is_err() {
        release(Rc::clone(&world), at, token.clone()).await;
    }
    world.sidecars[at].flights.leave(&token);
}

async fn release(world: Rc<World>, at: usize, token: String) {
    let call = world.call(at, move |world| {
        let released = world.server.release(&token);
        world.say(format!("release {token} -> {released}"));
    });
    // Lost, the lease runs out by itself.
    let _ = call.await;
}
