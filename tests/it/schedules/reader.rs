//! A GET through a sidecar, modelled on `src/cache.rs` and `src/proxy.rs`.

use std::rc::Rc;

use jobcache::{mutants::Mutant, store::StoredValue};

use super::{
    Flaw,
    fill::{Known, Lead, Target, release, store},
    link::Unanswered,
    scheduler::step,
    server::{Found, Leasing, Life},
    sidecar::{Flight, FlightRole, JobVersion},
    world::{Answer, Claim, World},
};

/// Probability of a response that cannot be stored, and of a read in two separate steps at Redis.
const SELDOM: f64 = 0.15;
/// Probability that a reader leaves another program's value alone; the product does so after a few
/// attempts.
const LEFT_ALONE: f64 = 0.25;
/// Most looks at the fill of the reader that holds the lease.
pub(super) const LOOKS: usize = 4;
/// Number of replacements for one client after which the bodies count as specific to it. There are
/// fewer clients than may have replacements.
const REPLACEMENTS: u32 = 3;

/// A reader's lookup request.
struct LookupRequest {
    reader: String,
    who: usize,
    /// The token of the lease, if there will be one.
    token: String,
    no_cache: bool,
}

enum Lookup {
    Hit(String),
    Lead(Lead),
    Join(Flight),
    Pass,
}

pub(super) async fn get(world: Rc<World>, at: usize) {
    let claim = world.claim(at);
    let answer = if world.flaw == Flaw::CacheAside {
        cache_aside(&world, &claim).await
    } else {
        answer(&world, at, &claim).await
    };
    world.judge(&claim, &answer);
}

/// The behaviour of an application without a protocol.
async fn cache_aside(world: &World, claim: &Claim) -> Answer {
    step().await;
    if let Some(body) = world.server.get() {
        return Answer::Body(body);
    }
    let answer = world.read_upstream(&claim.reader, claim.who).await;
    if let Answer::Body(body) = &answer {
        world.server.set(body, Life::Seconds299);
        world.say(format!("{}: SET {body}", claim.reader));
    }
    answer
}

async fn answer(world: &Rc<World>, at: usize, claim: &Claim) -> Answer {
    let Claim { reader, who, .. } = claim;
    let token = format!("{reader}-lease");
    let no_cache = world.chance(world.scenario.no_cache);
    let request = LookupRequest { reader: reader.clone(), who: *who, token, no_cache };
    match lookup(world, at, &request).await {
        Lookup::Hit(body) => Answer::Body(body),
        Lookup::Lead(lead) => read_for_all(world, at, lead).await,
        Lookup::Join(flight) => match flight.ready().await {
            Some(body) => Answer::Body(body),
            None => world.read_upstream(reader, *who).await,
        },
        Lookup::Pass => world.read_upstream(reader, *who).await,
    }
}

/// Reads the upstream for all that join, and stores what may be stored.
async fn read_for_all(world: &Rc<World>, at: usize, mut lead: Lead) -> Answer {
    let flights = &world.sidecars[at].flights;
    flights.turn(&lead.seat).await;
    if let Some(body) = wait_for_holder(world, at, &mut lead).await {
        lead.flight.land(&body);
        flights.leave(&lead.seat);
        return Answer::Body(body);
    }
    let answer = world.read_upstream(&lead.reader, lead.who).await;
    match &answer {
        Answer::Body(body) if !world.chance(SELDOM) => {
            lead.flight.land(body);
            world.spawn(store(Rc::clone(world), at, lead, body.clone()));
        }
        _ => {
            lead.flight.abandon();
            flights.leave(&lead.seat);
            if let Target::Lease { token, .. } = lead.target {
                world.spawn(release(Rc::clone(world), at, token));
            }
        }
    }
    answer
}

async fn lookup(world: &Rc<World>, at: usize, request: &LookupRequest) -> Lookup {
    // Whether the key can be trusted is checked only when the reader arrives.
    if world.sidecars[at].is_cut_off.get() || world.sidecars[at].pending.borrow().is_some() {
        return unconfirmed(world, at, request);
    }
    if world.flaw == Flaw::Of(Mutant::JoinBeforeLookup)
        && let Some(flight) = world.sidecars[at].flights.find(|of| of.who == request.who)
    {
        return Lookup::Join(flight);
    }
    find(world, at, request).await.unwrap_or_else(|_| unconfirmed(world, at, request))
}

async fn find(world: &Rc<World>, at: usize, request: &LookupRequest) -> Result<Lookup, Unanswered> {
    let (stored, epoch) = read(world, at).await?;
    if let Some(stored) = &stored {
        match world.server.decode(stored, epoch) {
            Some(found) => return Ok(offer(world, at, request, (found, stored.clone(), epoch))),
            None if world.chance(LEFT_ALONE) => return Ok(unconfirmed(world, at, request)),
            None => {}
        }
    }
    let (leasing, epoch) = lease(world, at, request, stored.as_ref()).await?;
    match leasing {
        Leasing::Granted => {
            let target = Target::Lease { token: request.token.clone(), epoch };
            Ok(share(world, at, request, request.token.clone(), target, epoch))
        }
        Leasing::Fenced => Ok(unconfirmed(world, at, request)),
        Leasing::StoredValue(stored) => Ok(met(world, at, request, stored, epoch)),
        Leasing::Leased(_) if request.no_cache => Ok(unconfirmed(world, at, request)),
        Leasing::Leased(token) => {
            Ok(follow(world, at, request, JobVersion { token, epoch, who: request.who }))
        }
    }
}

/// Handles a value that has appeared in the meantime.
fn met(
    world: &World,
    at: usize,
    request: &LookupRequest,
    stored: StoredValue,
    epoch: u64,
) -> Lookup {
    match world.server.decode(&stored, epoch) {
        Some(found) => offer(world, at, request, (found, stored, epoch)),
        None => unconfirmed(world, at, request),
    }
}

/// An entry is a hit for its audience. Everyone else reads the upstream, and may be admitted to the
/// entry by that read.
fn offer(
    world: &World,
    at: usize,
    request: &LookupRequest,
    seen: (Found, StoredValue, u64),
) -> Lookup {
    let (found, stored, epoch) = seen;
    let is_included = world.server.includes(&found, request.who);
    if is_included && !request.no_cache {
        return Lookup::Hit(found.body);
    }
    let sidecar = &world.sidecars[at];
    let is_full = found.audience() >= world.scenario.audience;
    if sidecar.replaced_by(request.who) >= REPLACEMENTS || is_full && !is_included {
        return Lookup::Pass;
    }
    let is_own = is_included && found.audience() == 1;
    let Found { body, generation, .. } = found;
    let known = Known { body, stored, generation: generation.clone(), epoch, is_own };
    let target = Target::Entry { known, refresh: request.no_cache };
    if request.no_cache {
        return led(request, sidecar.flights.next(request.who), target);
    }
    share(world, at, request, generation, target, epoch)
}

fn share(
    world: &World,
    at: usize,
    request: &LookupRequest,
    token: String,
    target: Target,
    epoch: u64,
) -> Lookup {
    let shown = JobVersion { token, epoch, who: request.who };
    led(request, world.sidecars[at].flights.share(shown), target)
}

fn led(request: &LookupRequest, role: FlightRole, target: Target) -> Lookup {
    let (reader, who) = (request.reader.clone(), request.who);
    match role {
        FlightRole::Lead(seat, flight) => Lookup::Lead(Lead { reader, who, seat, flight, target }),
        FlightRole::Join(flight) => Lookup::Join(flight),
    }
}

fn follow(world: &Rc<World>, at: usize, request: &LookupRequest, shown: JobVersion) -> Lookup {
    let serves = |of: &JobVersion| {
        (of.token == shown.token || world.flaw == Flaw::Of(Mutant::JoinById))
            && (of.epoch == shown.epoch || world.flaw == Flaw::Of(Mutant::JoinAcrossEpochs))
            && (of.who == shown.who || world.flaw == Flaw::AnyCaller)
    };
    if let Some(flight) = world.sidecars[at].flights.find(serves) {
        return Lookup::Join(flight);
    }
    let target = Target::Held { token: shown.token.clone(), epoch: shown.epoch };
    led(request, world.sidecars[at].flights.share(shown), target)
}

/// Looks for the entry of the reader that holds the lease, and takes the lease if it is free. The
/// entry may also come while the upstream is read, which makes no difference to the answer.
async fn wait_for_holder(world: &Rc<World>, at: usize, lead: &mut Lead) -> Option<String> {
    for look in 0..world.below(LOOKS) {
        let Target::Held { .. } = lead.target else { return None };
        let (stored, epoch) = read(world, at).await.ok()?;
        if let Some(stored) = stored {
            let found = world.server.decode(&stored, epoch)?;
            return world.server.includes(&found, lead.who).then_some(found.body);
        }
        let (reader, who) = (lead.reader.clone(), lead.who);
        let token = format!("{reader}-lease-{look}");
        let request = LookupRequest { reader, who, token: token.clone(), no_cache: false };
        if let (Leasing::Granted, of) = lease(world, at, &request, None).await.ok()? {
            if of == epoch {
                let shown = JobVersion { token: token.clone(), epoch, who };
                world.sidecars[at].flights.refile(&lead.seat, shown, &lead.flight);
                lead.target = Target::Lease { token, epoch };
            } else {
                world.spawn(release(Rc::clone(world), at, token));
            }
        }
    }
    None
}

/// Without a confirmed lookup only a read that starts after this point is good enough.
fn unconfirmed(world: &World, at: usize, request: &LookupRequest) -> Lookup {
    let flights = &world.sidecars[at].flights;
    if world.flaw == Flaw::Of(Mutant::JoinRunning)
        && let Some(flight) = flights.running(request.who)
    {
        return Lookup::Join(flight);
    }
    led(request, flights.next(request.who), Target::Nowhere)
}

/// Reads an entry. Returns it with the epoch of the connection.
pub(super) async fn read(
    world: &Rc<World>,
    at: usize,
) -> Result<(Option<StoredValue>, u64), Unanswered> {
    let values = |world: &World| (world.server.body_and_meta(), world.epoch());
    let (([body, meta], epoch), expires_at_ms) = if world.chance(SELDOM) {
        let values = world.call(at, values).await?;
        let (expires_at_ms, epoch) =
            world.call(at, |world| (world.server.expires_at_ms(), world.epoch())).await?;
        if epoch != values.1 {
            // The connection broke in between.
            return Err(Unanswered::Sent);
        }
        (values, expires_at_ms)
    } else {
        world.call(at, move |world| (values(world), world.server.expires_at_ms())).await?
    };
    let stored = body.filter(|body| !body.is_empty()).map(|body| StoredValue {
        body: body.into(),
        meta: meta.unwrap_or_default().into(),
        expires_at_ms,
    });
    Ok((stored, epoch))
}

async fn lease(
    world: &Rc<World>,
    at: usize,
    request: &LookupRequest,
    refused: Option<&StoredValue>,
) -> Result<(Leasing, u64), Unanswered> {
    let (token, refused) = (request.token.clone(), refused.map(|stored| stored.expires_at_ms));
    let call = world.call(at, move |world| {
        let leasing = world.server.lease(&token, refused);
        world.say(format!("lease {token} (refused {refused:?}) -> {leasing:?}"));
        (leasing, world.epoch())
    });
    let leasing = call.await;
    if leasing.is_err() {
        // The lease may still be granted.
        world.spawn(release(Rc::clone(world), at, request.token.clone()));
    }
    leasing
}
