//! Decides how a read ([`LookupRequest`]) is answered, from facts alone.
//!
//! Pure: no wait, no clock, no store, and nothing is counted. Lookups of clients and of prefetches,
//! near entries, and the forecasts of `/explain` collect the facts in their own ways, ask here, and
//! act on the decision. There is one function for each answer of the store, and each returns only
//! the decisions that can follow from that answer.
//!
//! [`BeforeLookup`] decides whether a read is looked up at all. A lookup asks first with what the
//! store holds: [`with_entry`] or [`without_entry`]. If the decision is [`NoEntry::Lease`], it asks
//! again with what the store says to the request for a lease.

#[cfg(test)]
mod tests;

use super::{
    entry::{Entry, Reject},
    flight::CoalesceKey,
};
use crate::{
    semantics::{
        audience::{Caller, Standing, Variant},
        identity::Place,
        policy::{Bypass, RequestDirectives},
    },
    store::{IdentityHash, Key},
};

/// A read of a job, as the cache sees it.
#[derive(Clone)]
pub struct LookupRequest {
    pub(super) key: Key,
    pub(super) place: Place,
    /// Hash of the API, the route and the job.
    pub(super) identity: IdentityHash,
    pub(super) caller: Caller,
    /// Requests of one job with the same key may share an upstream read.
    pub(super) coalesce_key: CoalesceKey,
    pub(super) directives: RequestDirectives,
    /// The request is a GET.
    pub(super) may_fill: bool,
    /// The request never waits for another request's upstream read.
    pub(super) solo: bool,
    /// The request takes no entry as it is: the upstream shall confirm it.
    pub(super) rechecks: bool,
    pub(super) other_entries: OtherEntries,
    pub(super) variant: Variant,
}

/// Treatment of an entry of another route or API under the key of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OtherEntries {
    /// The response replaces it.
    #[default]
    Replaced,
    LeftAlone,
}

impl LookupRequest {
    /// Makes the request solo: it never has to wait for another request's upstream read. A lookup
    /// does not queue it for a turn, and it may ignore a [`Lookup::Join`](super::Lookup::Join).
    #[must_use]
    pub fn solo(self) -> Self {
        Self { solo: true, ..self }
    }

    /// Makes the upstream confirm an entry before it is the answer. Unlike with `no-cache`, the entry
    /// stays for its audience if it is confirmed.
    #[must_use]
    pub fn rechecking(self) -> Self {
        Self { rechecks: true, ..self }
    }

    /// Returns the lookup for all clients that wait for the job to change. It has the cache directives of
    /// none of them, and replaces no entry of another route or API, which may have waiting clients of its
    /// own.
    #[must_use]
    pub fn for_topic(self) -> Self {
        Self {
            directives: RequestDirectives::default(),
            other_entries: OtherEntries::LeftAlone,
            ..self
        }
    }

    /// Stores nothing, and takes no lease.
    #[must_use]
    pub fn without_fill(self) -> Self {
        Self { may_fill: false, ..self }
    }

    /// Whether the client accepts nothing but an entry (`only-if-cached`).
    pub fn is_for_entries_only(&self) -> bool {
        self.directives.only_if_cached
    }

    /// Whether the client accepts no entry that the upstream has not confirmed (`no-cache`).
    pub fn takes_no_entry(&self) -> bool {
        self.directives.no_cache
    }

    /// Whether the client accepts an entry of this age and lifetime.
    pub fn admits(&self, entry: &Entry, now_ms: i64) -> bool {
        self.directives.admit(entry.age(now_ms), entry.ttl(now_ms))
    }

    /// Returns the key of the job.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Returns the key by which reads of the job are shared.
    pub fn coalesce_key(&self) -> CoalesceKey {
        self.coalesce_key
    }

    pub(super) fn facts(&self, is_hit_for_miss: bool, yields_key: bool) -> Facts {
        let Self { directives, may_fill, solo: is_solo, rechecks, other_entries, .. } = *self;
        Facts {
            directives,
            may_fill,
            is_solo,
            rechecks,
            is_hit_for_miss,
            yields_key,
            other_entries,
        }
    }
}

/// The facts about a read of a job before the lookup.
#[allow(clippy::struct_excessive_bools, reason = "the facts are independent of each other")]
#[derive(Clone, Copy, Debug, Default)]
pub struct BeforeLookup {
    /// The request has a body.
    pub has_body: bool,
    /// The request has a credential, and those bypass the cache.
    pub has_barred_credential: bool,
    /// The upstream knows the user by the connection, so the fields do not say who is asking.
    pub is_bound: bool,
    /// The cache is off.
    pub is_off: bool,
    /// The job is left to an application that caches it itself.
    pub is_aside: bool,
}

impl BeforeLookup {
    /// Returns why the read bypasses the cache, if it does.
    pub fn bypass(self) -> Option<Bypass> {
        let reasons = [
            (self.has_body, Bypass::RequestBody),
            (self.has_barred_credential, Bypass::Credentials),
            (self.is_bound, Bypass::BoundConnection),
            (self.is_off, Bypass::Off),
            (self.is_aside, Bypass::Foreign),
        ];
        reasons.into_iter().find_map(|(applies, why)| applies.then_some(why))
    }
}

/// The wishes of a read, and the notes of this process about its job.
#[allow(clippy::struct_excessive_bools, reason = "the facts are independent of each other")]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// The directives of the request about caching.
    pub(super) directives: RequestDirectives,
    /// The request is a GET, so its response may be stored as far as the method is concerned.
    pub(super) may_fill: bool,
    /// The request never waits for another request's upstream read.
    pub(super) is_solo: bool,
    /// The request takes no entry as it is.
    pub(super) rechecks: bool,
    /// A recent response to such a request could not be stored.
    pub(super) is_hit_for_miss: bool,
    /// Another program keeps storing values under the key.
    pub(super) yields_key: bool,
    pub(super) other_entries: OtherEntries,
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

/// The answer to a read that gets no entry and no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uncached {
    /// The upstream's response, for this read only.
    Pass(Bypass),
    /// The upstream's response, shared only with reads that begin before the upstream is asked. It is
    /// not stored.
    Unconfirmed(Bypass),
}

/// The answer to a read if there is an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithEntry {
    /// The entry.
    Hit,
    /// The upstream's response, which may let the caller into the audience of the entry, or replace
    /// the entry.
    Revalidate(Option<Bypass>),
    Uncached(Uncached),
}

/// How a read goes on if there is no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoEntry {
    /// The read asks for the lease.
    Lease,
    /// Like [`Uncached::Unconfirmed`], but the response is stored if a lease is granted.
    UnconfirmedWithLease(Bypass),
    Uncached(Uncached),
}

/// How a read goes on if another reader holds the lease. `F` is the flight of that reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherLease<F> {
    /// The read shares the response that the other reader in this process is getting.
    Join(F),
    /// The upstream's response. It may let the caller into the audience of the entry that the other
    /// reader is about to store.
    Lead,
    /// The same, after a short wait for that entry, which this read may have as well.
    Wait,
    Uncached(Uncached),
}

/// The reader that holds the lease. `F` is its flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseHolder<F> {
    /// Whether it got the lease in the epoch that the store has shown.
    pub(super) is_of_epoch: bool,
    /// Whether it reads the same job of the same API by the same route, for the same caller.
    pub(super) is_same_reader: bool,
    /// The flight under its lease that is in this process and that the request may join.
    pub(super) flight: Option<F>,
    /// Whether that flight is late.
    pub(super) is_late: bool,
}

/// Decides a read if the store holds an entry of this job.
pub(super) fn with_entry(facts: &Facts, entry: EntryFacts, in_grace: bool) -> WithEntry {
    // During the grace nothing is a hit, and nothing that the store shows proves when a read began.
    if in_grace {
        return WithEntry::Uncached(unconfirmed(facts, Bypass::Grace));
    }
    if entry.is_hit() && !facts.rechecks {
        return WithEntry::Hit;
    }
    let refusal = fill_refusal(facts).or(entry.is_closed.then_some(Bypass::Audience));
    match refusal {
        Some(why) => WithEntry::Uncached(Uncached::Pass(why)),
        None => WithEntry::Revalidate((!entry.is_age_accepted).then_some(Bypass::NoCache)),
    }
}

/// Decides a read if the store holds no value, or one that is no valid entry for this request.
pub(super) fn without_entry(facts: &Facts, reject: Option<Reject>, in_grace: bool) -> NoEntry {
    let is_foreign = reject == Some(Reject::Foreign);
    let is_left_alone =
        reject == Some(Reject::Identity) && facts.other_entries == OtherEntries::LeftAlone;
    if in_grace {
        // Fills go on: what another sidecar still has to repeat deletes them in time.
        return match unconfirmed(facts, Bypass::Grace) {
            Uncached::Unconfirmed(why)
                if !facts.is_hit_for_miss && !is_foreign && !is_left_alone =>
            {
                NoEntry::UnconfirmedWithLease(why)
            }
            uncached => NoEntry::Uncached(uncached),
        };
    }
    if is_foreign && facts.yields_key {
        return NoEntry::Uncached(unconfirmed(facts, Bypass::Foreign));
    }
    if is_left_alone {
        return NoEntry::Uncached(unconfirmed(facts, Bypass::Leased));
    }
    match fill_refusal(facts) {
        Some(why) => NoEntry::Uncached(Uncached::Pass(why)),
        None => NoEntry::Lease,
    }
}

/// Decides a read that was granted the lease. Returns how it is answered if it may not fill, because
/// the store has restarted since its value was read.
pub(super) fn granted(facts: &Facts, is_of_other_epoch: bool) -> Option<Uncached> {
    is_of_other_epoch.then(|| unconfirmed(facts, Bypass::Grace))
}

/// Decides a read if another reader holds the lease.
pub(super) fn leased<F>(facts: &Facts, holder: LeaseHolder<F>) -> OtherLease<F> {
    if facts.directives.no_cache {
        return OtherLease::Uncached(unconfirmed(facts, Bypass::NoCache));
    }
    if !holder.is_of_epoch {
        return OtherLease::Uncached(unconfirmed(facts, Bypass::Leased));
    }
    match holder.flight {
        Some(flight) if !holder.is_late => OtherLease::Join(flight),
        _ if facts.is_solo => {
            OtherLease::Uncached(Uncached::Pass(pass_reason(facts, Bypass::Leased)))
        }
        // An entry that comes later may be too old for a request with limits.
        None if holder.is_same_reader && !facts.directives.limits_age() => OtherLease::Wait,
        _ => OtherLease::Lead,
    }
}

/// Decides a read if a value appeared that is no valid entry for this request: while the read asked
/// for a lease, or while it waited for the entry of another reader. The value is never replaced.
pub(super) fn overtaken(facts: &Facts, reject: Reject, in_grace: bool) -> Uncached {
    let why = match reject {
        _ if in_grace => Bypass::Grace,
        Reject::Identity => Bypass::Leased,
        _ => Bypass::Foreign,
    };
    unconfirmed(facts, why)
}

/// Decides a read without a confirmed lookup: the store is not trusted for the key or has not
/// answered, or a write is in flight or ended a moment ago.
pub(super) fn unconfirmed(facts: &Facts, why: Bypass) -> Uncached {
    if never_coalesces(facts) {
        return Uncached::Pass(pass_reason(facts, why));
    }
    Uncached::Unconfirmed(why)
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
