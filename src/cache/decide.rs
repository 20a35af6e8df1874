//! What a read gets, decided from facts alone.
//!
//! Pure: no wait, no clock, no store, and nothing is counted. Lookups of clients and of prefetches,
//! near entries, and the forecasts of `/explain` collect the facts in their own ways, ask here, and
//! act on the decision. So a forecast cannot differ from what a client gets.
//!
//! A lookup asks at most twice: with what the store shows ([`Seen`]), and, if the decision is to take
//! a lease, with what the store answers to that.
//!
//! [`Seen`]: crate::store::Seen

#[cfg(test)]
mod tests;

use super::entry::Reject;
use crate::semantics::{
    audience::Standing,
    policy::{Bypass, RequestDirectives},
};

/// What a read asks for, and what this process remembers about its job.
#[allow(clippy::struct_excessive_bools, reason = "the facts are independent of each other")]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// What the request says about caching.
    pub(super) directives: RequestDirectives,
    /// The response may be stored as far as the method is concerned: the request is a GET.
    pub(super) may_fill: bool,
    /// The request never waits for another request's upstream read.
    pub(super) is_solo: bool,
    /// A recent response to such a request could not be stored.
    pub(super) is_hit_for_miss: bool,
    /// Another program keeps storing values under the key.
    pub(super) yields_key: bool,
}

/// What the store showed, or why it showed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The store is not trusted for this key, or has not answered.
    Unconfirmed(Bypass),
    /// A value, or none, during the grace after a restart of the store.
    InGrace(Found),
    /// A value, or none.
    Found(Found),
    /// The lease was granted.
    Granted {
        /// The store has restarted since its value was read.
        is_of_other_epoch: bool,
    },
    /// Another reader holds the lease.
    Leased {
        /// It reads the same job of the same API by the same route, in the epoch of the value.
        is_same_read: bool,
        /// It is in this process, and the request may join it.
        is_joinable: bool,
        /// Waiting for its entry is of no use: that was tried before.
        is_hopeless: bool,
    },
    /// A write is in flight, or ended a moment ago.
    Fenced,
}

impl Sight {
    /// Whether it is an entry that is a hit, whatever the facts are.
    pub(super) fn is_hit(self) -> bool {
        matches!(self, Self::Found(Found::Entry(entry)) if entry.is_hit())
    }
}

/// The value under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none, or a placeholder.
    Nothing,
    /// A value that is not a valid entry for this request.
    Rejected(Reject),
    /// An entry of this job.
    Entry(EntryFacts),
}

/// An entry of this job, as one caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryFacts {
    /// Whether the caller belongs to the audience.
    pub(super) standing: Standing,
    /// The entry is young enough for the request, and lives long enough.
    pub(super) is_age_accepted: bool,
    /// The audience has no place for this caller, or the upstream answers each client differently.
    pub(super) is_closed: bool,
}

impl EntryFacts {
    /// Returns whether the entry is the answer.
    pub(super) fn is_hit(self) -> bool {
        self.standing == Standing::Included && self.is_age_accepted
    }
}

/// What a read gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The entry.
    Hit,
    /// The upstream's response, for itself only.
    Pass(Bypass),
    /// The upstream's response, shared only with reads that begin before it is asked for. It is not
    /// stored.
    Unconfirmed(Bypass),
    /// The same, but it is stored if a lease is granted.
    UnconfirmedWithLease(Bypass),
    /// The upstream's response, which may let the caller into the audience of the entry, or replace it.
    Revalidate(Option<Bypass>),
    /// Whatever the store answers to the request for a lease: ask again with that.
    Lease,
    /// The upstream's response, under the lease that was granted.
    Fill,
    /// The response that another reader in this process is getting.
    Join,
    /// The entry that another sidecar is about to store, if it comes soon.
    Await,
}

/// Decides a read.
pub(super) fn decide(facts: &Facts, sight: Sight) -> Decision {
    match sight {
        Sight::Unconfirmed(why) => unconfirmed(facts, why),
        Sight::InGrace(found) => in_grace(facts, found),
        Sight::Found(Found::Entry(entry)) => with_entry(facts, entry),
        Sight::Found(Found::Rejected(Reject::Foreign)) if facts.yields_key => {
            unconfirmed(facts, Bypass::Foreign)
        }
        Sight::Found(_) => fill_refusal(facts).map_or(Decision::Lease, Decision::Pass),
        Sight::Granted { is_of_other_epoch: true } => unconfirmed(facts, Bypass::Grace),
        Sight::Granted { is_of_other_epoch: false } => Decision::Fill,
        Sight::Leased { .. } if facts.directives.no_cache => unconfirmed(facts, Bypass::NoCache),
        // A read of another API or route, or in another epoch, is neither joined nor waited for.
        Sight::Leased { is_same_read: false, .. } => unconfirmed(facts, Bypass::Leased),
        Sight::Leased { is_joinable: true, .. } => Decision::Join,
        Sight::Leased { is_hopeless, .. } if is_hopeless || facts.is_solo => {
            Decision::Pass(pass_reason(facts, Bypass::Leased))
        }
        Sight::Leased { .. } => Decision::Await,
        Sight::Fenced => unconfirmed(facts, Bypass::Fenced),
    }
}

/// Decides a read that has waited for the entry of another reader, or that another value overtook
/// while it asked for a lease.
pub(super) fn decide_overtaken(facts: &Facts, sight: Sight) -> Decision {
    match sight {
        Sight::Found(Found::Rejected(Reject::Identity)) => unconfirmed(facts, Bypass::Leased),
        Sight::Found(Found::Rejected(_)) => unconfirmed(facts, Bypass::Foreign),
        Sight::InGrace(_) => unconfirmed(facts, Bypass::Grace),
        sight => decide(facts, sight),
    }
}

/// Decides a read without a confirmed lookup.
fn unconfirmed(facts: &Facts, why: Bypass) -> Decision {
    if never_coalesces(facts) {
        return Decision::Pass(pass_reason(facts, why));
    }
    Decision::Unconfirmed(why)
}

/// During the grace nothing is a hit, and nothing that the store shows proves when a read began. Fills
/// go on: what another sidecar still owes deletes them in time.
fn in_grace(facts: &Facts, found: Found) -> Decision {
    let is_taken = matches!(found, Found::Entry(_) | Found::Rejected(Reject::Foreign));
    match unconfirmed(facts, Bypass::Grace) {
        Decision::Unconfirmed(why) if !facts.is_hit_for_miss && !is_taken => {
            Decision::UnconfirmedWithLease(why)
        }
        decision => decision,
    }
}

fn with_entry(facts: &Facts, entry: EntryFacts) -> Decision {
    if entry.is_hit() {
        return Decision::Hit;
    }
    if let Some(why) = fill_refusal(facts) {
        return Decision::Pass(why);
    }
    if entry.is_closed {
        return Decision::Pass(Bypass::Audience);
    }
    Decision::Revalidate((!entry.is_age_accepted).then_some(Bypass::NoCache))
}

/// Returns why a request may not fill, if it may not.
fn fill_refusal(facts: &Facts) -> Option<Bypass> {
    if facts.directives.only_if_cached {
        return Some(Bypass::OnlyIfCached);
    }
    if facts.directives.no_store {
        return Some(Bypass::NoStore);
    }
    if !facts.may_fill {
        return Some(Bypass::Method);
    }
    facts.is_hit_for_miss.then_some(Bypass::Uncacheable)
}

/// Returns whether a request shares no upstream read when its lookup is not confirmed.
fn never_coalesces(facts: &Facts) -> bool {
    let RequestDirectives { no_store, only_if_cached, .. } = facts.directives;
    facts.is_solo || !facts.may_fill || no_store || only_if_cached
}

/// A request for a cached answer only never goes to the upstream.
fn pass_reason(facts: &Facts, why: Bypass) -> Bypass {
    if facts.directives.only_if_cached { Bypass::OnlyIfCached } else { why }
}
