//! Turns an upstream response into an entry: shares it with the readers that wait, and stores it.
//!
//! Where it may be stored depends on the lookup ([`FillTarget`]): under a lease, next to the entry of
//! another reader ([`held_fill`](super::held_fill)), in place of a known entry, or nowhere.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::http::response;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::debug;

use super::{
    entry::{Entry, EntryVersion, Likeness},
    fill_result::{AbandonReason, FillResult},
    flight::{CoalesceKey, FlightFailure, Leader},
    held_lease::{ENTRY_WAIT, HeldLease, LeaseEnd},
    job_notes::JobNotes,
    shared_state::{CacheConfig, SharedState},
    silent_changes::ObservedEntry,
};
use crate::{
    clock,
    limits::Quota,
    observe::events::EventKind,
    semantics::{
        audience::{AudienceMember, Caller, Standing},
        identity::{Identity, Place, RouteIndex},
        policy::{self, Bypass, Freshness, NoStore, Policy, StoredHead},
    },
    store::{EntryChange, Fill, Key, Lease, ReaderHash, Seen, StoreError},
};

/// Held by a reader that reads the upstream for itself and all that join.
pub struct LeaderRead {
    /// The flight of the read.
    pub leader: Leader,
    /// Why a confirmed lookup was not possible or not wanted, if so.
    pub why: Option<Bypass>,
    pub(super) target: FillTarget,
    pub(super) key: Key,
    pub(super) place: Place,
    pub(super) caller: Caller,
    pub(super) coalesce_key: CoalesceKey,
}

impl LeaderRead {
    /// Returns the route of the read.
    pub fn route(&self) -> RouteIndex {
        self.place.route
    }

    /// Returns whether another reader holds the lease.
    pub fn is_held_by_other(&self) -> bool {
        matches!(self.target, FillTarget::Held(_))
    }
}

/// Where the response may be stored.
pub(super) enum FillTarget {
    /// Nowhere, because the lookup was not confirmed.
    Nowhere,
    /// Under a key that is leased.
    Lease(Lease),
    /// Nowhere, because another reader holds the lease. The caller joins the audience of the entry that
    /// the other reader stores, if the upstream gives both the same response; otherwise the entry is
    /// replaced.
    Held(Box<HeldLease>),
    /// In place of an entry that was no hit for this reader. The audience is widened if the upstream
    /// gives this reader the same response; otherwise the entry is replaced.
    Entry(Box<KnownEntry>),
}

/// A response on its way into the store.
struct FilledRead<'a> {
    key: &'a Key,
    identity: Identity<'a>,
    policy: &'a Policy,
    caller: Caller,
    reader: ReaderHash,
    entry: &'a Arc<Entry>,
}

/// An entry that a reader has found, with the value that the store had for it.
pub(super) struct KnownEntry {
    pub(super) entry: Arc<Entry>,
    pub(super) seen: Seen,
}

/// A response that has been shared with its followers and can now be [stored](Filler::fill).
pub struct PublishedRead {
    /// The response as an entry.
    pub entry: Arc<Entry>,
    ttl: Duration,
    lead: LeaderRead,
}

/// Shares and stores the responses of reads.
pub struct Filler {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) notes: Arc<JobNotes>,
}

/// Purpose of a read of a job with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// To join the audience of the entry.
    Join,
    /// A newer response.
    Refresh,
}

impl Filler {
    /// Decides from its head whether a response may be stored and shared.
    ///
    /// # Errors
    ///
    /// Returns the reason if it may not.
    pub fn freshness(
        &self,
        head: &response::Parts,
        route: RouteIndex,
    ) -> Result<Freshness, NoStore> {
        policy::freshness(head, self.config.policy(route), clock::now())
    }

    /// Returns whether a response that may not be stored for this reason may answer the readers that
    /// wait for it.
    pub fn may_be_shared(&self, head: &response::Parts, route: RouteIndex, why: NoStore) -> bool {
        policy::may_be_shared(head, self.config.policy(route), why, clock::now())
    }

    /// Returns the quota for the memory of responses that are being read into the cache.
    pub fn capture_quota(&self) -> &Arc<Quota> {
        &self.state.capture_quota
    }

    /// Shares a complete response with all followers.
    pub fn publish(
        &self,
        lead: LeaderRead,
        head: &response::Parts,
        body: Bytes,
        freshness: Freshness,
    ) -> PublishedRead {
        let policy = self.config.policy(lead.place.route);
        let freshness = freshness.limited_by_state(&body, policy);
        let asked_at_ms = match &lead.target {
            FillTarget::Nowhere => self.state.store.now_ms(),
            FillTarget::Lease(lease) => lease.granted_at_ms,
            FillTarget::Held(lease) => lease.seen_at_ms,
            FillTarget::Entry(known) => known.seen.now_ms,
        };
        let head = StoredHead::of(head, &policy.volatile, asked_at_ms);
        let entry = Arc::new(Entry::new(head, body, freshness, lead.caller, asked_at_ms));
        lead.leader.publish(Arc::clone(&entry));
        PublishedRead { entry, ttl: freshness.ttl, lead }
    }

    /// Stores a response that was shared. A store error is counted and logged, and has no other effect.
    pub async fn fill(&self, published: PublishedRead) -> FillResult {
        let PublishedRead { entry, ttl, lead } = published;
        let LeaderRead { leader, target, why, key, place, caller, coalesce_key } = lead;
        let identity = self.config.identity(&key, &place);
        let policy = self.config.policy(place.route);
        let reader = coalesce_key.reader_hash();
        let read = FilledRead { key: &key, identity, policy, caller, reader, entry: &entry };
        let (stored, filled) = match target {
            FillTarget::Nowhere => return FillResult::Unconfirmed,
            FillTarget::Lease(lease) => {
                self.state.notes.foreign_caches.note_success(self.config.prefix_of(&key));
                (EventKind::Fill, self.fill_leased(&read, lease, ttl).await)
            }
            FillTarget::Held(held) => match self.entry_to_join(&read, &place, *held).await {
                Some(known) => self.fill_known(&read, &known, Aim::Join).await,
                None => return FillResult::Unconfirmed,
            },
            FillTarget::Entry(known) => {
                let aim = if why == Some(Bypass::NoCache) { Aim::Refresh } else { Aim::Join };
                self.fill_known(&read, &known, aim).await
            }
        };
        // Until now, readers that have seen this token in the store could still join.
        drop(leader);
        let result = match filled {
            Ok(Fill::Stored) => FillResult::Stored,
            Ok(Fill::Revoked) => {
                // A fill that was refused shows that the job has changed.
                self.state.silent_changes.forget(std::slice::from_ref(&key));
                FillResult::Revoked
            }
            Err(error) => {
                debug!(%error, "fill failed; the response was served uncached");
                FillResult::Failed
            }
        };
        let (what, why) = match result {
            FillResult::Stored => (stored, ""),
            refused => (EventKind::FillRefused, refused.as_str()),
        };
        self.state.metrics.fills.inc([result.as_str()]);
        self.state.events.record(key.main(), what, why);
        result
    }

    /// Waits for the entry that the holder of a lease stores. Returns it if the caller may join its
    /// audience: it is of the version that the store showed before the upstream was asked.
    async fn entry_to_join(
        &self,
        read: &FilledRead<'_>,
        place: &Place,
        held: HeldLease,
    ) -> Option<KnownEntry> {
        let end = self.state.lease_end(&self.config, (read.key, place));
        let Ok(LeaseEnd::Entry(entry, seen)) = timeout(ENTRY_WAIT, end).await else { return None };
        let standing =
            self.config.fingerprinter.standing(entry.audience(), read.caller, seen.now_ms);
        let is_of_version =
            entry.generation() == held.version.token.as_str() && seen.epoch == held.version.epoch;
        // The upstream has served the caller since then, and not since the entry was seen.
        let seen = Seen { now_ms: held.seen_at_ms, ..*seen };
        (is_of_version && standing != Standing::Included).then_some(KnownEntry { entry, seen })
    }

    async fn fill_leased(
        &self,
        read: &FilledRead<'_>,
        lease: Lease,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        let (entry, token, granted_at_ms) = (read.entry, lease.token.clone(), lease.granted_at_ms);
        let compressed = self.compressed(entry).await;
        let members = &entry.audience().members;
        let version = EntryVersion { generation: &token, epoch: &lease.epoch, change: None };
        let meta = entry.meta(members, &read.identity, version, compressed.as_ref());
        let body = entry.stored_body(compressed.as_ref());
        let filled = self.state.store.fill(lease, body, &meta, ttl).await?;
        if filled == Fill::Stored {
            self.state.silent_changes.filled(&self.observed(read, entry), &token, granted_at_ms);
        }
        Ok(filled)
    }

    /// Decides what a later response does to a known entry, and notes why it does not admit its caller.
    /// Returns the audience of the entry that replaces the known one. `None` means that the response is
    /// the same: the known entry stays, and the caller joins its audience.
    fn audience_of_replacement(
        &self,
        &FilledRead { key, policy, caller, entry, .. }: &FilledRead<'_>,
        known: &KnownEntry,
        aim: Aim,
    ) -> Option<Vec<AudienceMember>> {
        let own = entry.audience().members.to_vec();
        let audience = known.entry.audience();
        match known.entry.likeness(entry, &policy.volatile) {
            // The client asked for a new read: its response replaces the entry even if it is the same.
            Likeness::Same | Likeness::ShorterLived if aim == Aim::Refresh => return Some(own),
            Likeness::Same => return None,
            // The upstream has served this response to the old audience too.
            Likeness::ShorterLived => return Some(audience.joined_by(caller, known.seen.now_ms)),
            Likeness::OtherHeaders(names) if aim == Aim::Join => {
                let warnings = &self.state.notes.differing_header_warnings;
                self.notes.note_differing(warnings, (key, self.config.id(key)), names);
            }
            Likeness::OtherHeaders(_) | Likeness::OtherBody => {}
        }
        // A client may renew what is its own as often as it likes.
        if !(aim == Aim::Refresh && audience.is_own_of(caller)) {
            self.notes.add_replacement(key, caller.credential());
        }
        Some(own)
    }

    async fn fill_known(
        &self,
        read: &FilledRead<'_>,
        known: &KnownEntry,
        aim: Aim,
    ) -> (EventKind, Result<Fill, StoreError>) {
        let SharedState { store, silent_changes, .. } = &*self.state;
        let &FilledRead { key, identity, caller, reader, entry, .. } = read;
        let (generation, seen) = (known.entry.generation(), &known.seen);
        let Some(members) = self.audience_of_replacement(read, known, aim) else {
            let caller = caller.to_hex();
            let admitted = store.change(key, seen, generation, EntryChange::Admit(&caller)).await;
            if let Ok(Fill::Stored) = admitted {
                silent_changes.seen(&self.observed(read, &known.entry));
            }
            return (EventKind::Admitted, admitted);
        };
        // First, because Redis also reports this change, and the report must not count as a silent
        // change.
        silent_changes.forget(std::slice::from_ref(key));
        let compressed = self.compressed(entry).await;
        let token = store.token(reader);
        let change = known.entry.change();
        let version =
            EntryVersion { generation: &token, epoch: &seen.epoch, change: Some(&change) };
        let meta = entry.meta(&members, &identity, version, compressed.as_ref());
        let body = entry.stored_body(compressed.as_ref());
        let expires_at_ms = entry.expires_at_ms();
        let new = EntryChange::Replace { body, meta: &meta, expires_at_ms };
        let replaced = store.change(key, seen, generation, new).await;
        if let Ok(Fill::Stored) = replaced {
            silent_changes.replaced(&self.observed(read, entry));
        }
        (EventKind::Replaced, replaced)
    }

    fn observed<'a>(&self, read: &FilledRead<'a>, entry: &'a Entry) -> ObservedEntry<'a> {
        let &FilledRead { key, caller, identity, .. } = read;
        ObservedEntry {
            key,
            caller,
            route: identity.route,
            entry,
            now_ms: self.state.store.now_ms(),
        }
    }

    /// Compresses a large body for the store, if that makes it smaller. Runs on the blocking pool: a
    /// megabyte takes milliseconds.
    async fn compressed(&self, entry: &Arc<Entry>) -> Option<Bytes> {
        let above = self.config.compress_above?;
        if !entry.is_job() || entry.body().len() <= above {
            return None;
        }
        let entry = Arc::clone(entry);
        // If the task fails, the body is stored uncompressed.
        spawn_blocking(move || entry.compress()).await.ok().flatten()
    }

    /// Shares a response that may not be stored with the readers that wait for it, and gives up the
    /// flight.
    pub async fn share(
        &self,
        lead: LeaderRead,
        head: &response::Parts,
        body: Bytes,
        why: NoStore,
    ) -> FillResult {
        let now_ms = self.state.store.now_ms();
        let head = StoredHead::of(head, &self.config.policy(lead.route()).volatile, now_ms);
        let result = FillResult::Abandoned(AbandonReason::Unstorable(why, head.status));
        let fresh = Freshness { ttl: Duration::ZERO, age: Duration::ZERO, public: false };
        lead.leader.publish(Arc::new(Entry::new(head, body, fresh, lead.caller, now_ms)));
        self.state.metrics.fills.inc([result.as_str()]);
        self.end_flight(lead, result).await
    }

    /// Gives up a flight without a response that can be shared. If the reason lies in the response, the
    /// next readers do not queue (hit-for-miss).
    pub async fn abandon(&self, lead: LeaderRead, why: AbandonReason) -> FillResult {
        let result = FillResult::Abandoned(why);
        if let AbandonReason::Unstorable(why, _) = why {
            // Memory may be free the next time.
            if why != NoStore::Memory {
                self.notes.hit_for_miss.add((lead.key.clone(), lead.coalesce_key));
            }
            self.state.metrics.fills.inc([result.as_str()]);
        }
        match why {
            AbandonReason::Unanswered => lead.leader.leave_unanswered(),
            AbandonReason::Unstorable(_, status) if status.is_server_error() => {
                lead.leader.fail(FlightFailure::ServerError);
            }
            AbandonReason::Unstorable(..) | AbandonReason::Superseded => {}
        }
        self.end_flight(lead, result).await
    }

    async fn end_flight(&self, lead: LeaderRead, result: FillResult) -> FillResult {
        self.state.events.record(lead.key.main(), EventKind::FillRefused, result.as_str());
        drop(lead.leader);
        if let FillTarget::Lease(lease) = lead.target {
            self.state.store.release(lease).await;
        }
        result
    }
}
