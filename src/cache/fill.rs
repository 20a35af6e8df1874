//! Turns an upstream response into an entry: shares it with the readers that wait, and stores it.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{StatusCode, http::response};
use tokio::task::spawn_blocking;
use tracing::debug;

use super::{
    cache_config::CacheConfig,
    entry::{Entry, Likeness},
    flight::{CoalesceKey, Leader},
    job_notes::JobNotes,
    lookup_request::LookupRequest,
    shared_state::SharedState,
    silent_changes::observed_entry::{ObservedEntry, StoredAs},
};
use crate::{
    clock,
    limits::Quota,
    observe::events::EventKind,
    semantics::{
        audience::Caller,
        identity::RouteIndex,
        policy::{self, Bypass, Freshness, NoStore, StoredHead},
    },
    store::{Fill, Key, Lease, Replacement, Seen, StoreError},
};

/// Held by a reader that reads the upstream for itself and all that join.
#[derive(Debug)]
pub struct LeaderRead {
    /// The flight of the read.
    pub leader: Leader,
    target: FillTarget,
    why: Option<Bypass>,
    key: Key,
    route: RouteIndex,
    caller: Caller,
    coalesce_key: CoalesceKey,
}

/// Where the response may be stored.
#[derive(Debug)]
pub(super) enum FillTarget {
    /// Nowhere, because the lookup was not confirmed.
    Nowhere,
    /// Under a key that is leased.
    Lease(Lease),
    /// In place of an entry that was no hit for this reader. The audience is widened if the upstream
    /// gives this reader the same response; otherwise the entry is replaced.
    Entry(Box<KnownEntry>),
}

/// Effect of a later response on a known entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryChange {
    /// The entry is kept, and the caller joins its audience.
    Admit,
    /// The entry is replaced, because the same response now lives shorter. The audience stays.
    Shorten,
    /// The entry is replaced, because the response differs.
    Replace,
    /// The entry is replaced, because the client asked for a new read.
    Refresh,
}

/// An entry that a reader has found, with the value that the store had for it.
#[derive(Debug)]
pub struct KnownEntry {
    pub(super) entry: Arc<Entry>,
    pub(super) seen: Seen,
}

/// A response that has been shared with its followers and can now be [stored](Filler::fill).
#[derive(Debug)]
pub struct PublishedRead {
    /// The response as an entry.
    pub entry: Arc<Entry>,
    target: FillTarget,
    freshness: Freshness,
    leader: Leader,
    job: (Key, RouteIndex),
    caller: Caller,
    is_refresh: bool,
}

/// The result of a shared read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillResult {
    /// It is in the store.
    Stored,
    /// The job changed during the read. The client of this read asked before the write was answered, so
    /// it may have this response. No later reader may.
    Revoked,
    /// The store did not take it.
    Failed,
    /// It was shared, but not to be stored: the lookup was not confirmed.
    Unconfirmed,
    /// It was not shared.
    Abandoned(AbandonReason),
}

/// Why a flight has no result that can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbandonReason {
    /// The response, with this status, may not be stored.
    Unstorable(NoStore, StatusCode),
    /// The upstream gave no response or an incomplete one.
    Unanswered,
    /// The upstream was not asked, because other routes or rules have come into force.
    Superseded,
}

impl FillResult {
    /// Returns the word for metrics, events and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Revoked => "revoked",
            Self::Failed => "failed",
            Self::Unconfirmed => "not-stored",
            Self::Abandoned(AbandonReason::Unstorable(why, _)) => why.as_str(),
            Self::Abandoned(AbandonReason::Unanswered) => "no-answer",
            Self::Abandoned(AbandonReason::Superseded) => "superseded",
        }
    }
}

impl From<Fill> for FillResult {
    fn from(fill: Fill) -> Self {
        match fill {
            Fill::Stored => Self::Stored,
            Fill::Revoked => Self::Revoked,
        }
    }
}

impl LeaderRead {
    pub(super) fn new(
        request: &LookupRequest,
        leader: Leader,
        target: FillTarget,
        why: Option<Bypass>,
    ) -> Self {
        let key = request.key.clone();
        Self {
            leader,
            target,
            why,
            key,
            route: request.route,
            caller: request.caller,
            coalesce_key: request.coalesce_key,
        }
    }

    /// Stores the response under this lease.
    pub(super) fn with_lease(self, lease: Lease) -> Self {
        Self { target: FillTarget::Lease(lease), ..self }
    }

    /// Returns why a confirmed lookup was not possible or not wanted, if so.
    pub fn why(&self) -> Option<Bypass> {
        self.why
    }
}

/// Shares and stores the responses of reads.
#[derive(Clone, Debug)]
pub struct Filler {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) notes: Arc<JobNotes>,
}

impl Filler {
    /// Decides from its head whether a response may be stored and shared.
    ///
    /// # Errors
    ///
    /// Returns the reason if it may not.
    pub fn freshness(&self, head: &response::Parts) -> Result<Freshness, NoStore> {
        policy::freshness(head, &self.config.policy, clock::now())
    }

    /// Returns the size of the largest body that is stored, in bytes.
    pub fn max_body(&self) -> usize {
        self.config.policy.max_body
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
        let LeaderRead { leader, target, key, route, caller, why, .. } = lead;
        let freshness = freshness.limited_by_state(&body, &self.config.policy);
        let asked_at_ms = match &target {
            FillTarget::Nowhere => self.state.store.now_ms(),
            FillTarget::Lease(lease) => lease.granted_at_ms(),
            FillTarget::Entry(known) => known.seen.now_ms,
        };
        let head = StoredHead::of(head, &self.config.policy.volatile, asked_at_ms);
        let entry = Arc::new(Entry::new(head, body, freshness, caller, asked_at_ms));
        leader.publish(Arc::clone(&entry));
        let is_refresh = why == Some(Bypass::NoCache);
        let job = (key, route);
        PublishedRead { entry, target, freshness, leader, job, caller, is_refresh }
    }

    /// Stores a response that was shared. A store error is counted and logged, and has no other effect.
    pub async fn fill(&self, published: PublishedRead) -> FillResult {
        let PublishedRead { entry, target, freshness, leader, job, caller, is_refresh } = published;
        let key = &job.0;
        let (stored, stored_as, filled) = match target {
            FillTarget::Nowhere => return FillResult::Unconfirmed,
            FillTarget::Lease(lease) => {
                let compressed = self.compressed(&entry).await;
                let identity = self.config.identity(key, job.1);
                let meta = entry.meta(&identity, lease.token(), lease.epoch(), compressed.as_ref());
                let body = compressed.as_ref().unwrap_or(entry.body());
                let stored_as = StoredAs::fill(&lease);
                let filled = self.state.store.fill(lease, body, &meta, freshness.ttl).await;
                (EventKind::Fill, stored_as, filled)
            }
            FillTarget::Entry(known) => {
                let change = self.change((key, caller), &known, &entry, is_refresh);
                let stored_as = match change {
                    EntryChange::Admit => StoredAs::admission(&known.entry),
                    _ => StoredAs::Replacement,
                };
                let (stored, filled) =
                    self.fill_known((&job, caller), &known, &entry, change).await;
                (stored, stored_as, filled)
            }
        };
        // Until now, readers that have seen this token in the store could still join.
        drop(leader);
        let result = match filled {
            Ok(fill) => {
                self.note_fill((&job, caller), &entry, stored_as, fill);
                fill.into()
            }
            Err(error) => {
                debug!(%error, "fill failed; the response was served uncached");
                FillResult::Failed
            }
        };
        self.count_fill(result);
        let (what, why) = match result {
            FillResult::Stored => (stored, ""),
            refused => (EventKind::FillRefused, refused.as_str()),
        };
        self.state.events.record(key.main(), what, why);
        result
    }

    /// Decides what a later response does to a known entry, and records why it does not admit its
    /// caller.
    fn change(
        &self,
        (key, caller): (&Key, Caller),
        known: &KnownEntry,
        later: &Entry,
        is_refresh: bool,
    ) -> EntryChange {
        if is_refresh {
            return EntryChange::Refresh;
        }
        match known.entry.likeness(later, &self.config.policy.volatile) {
            Likeness::Same => return EntryChange::Admit,
            Likeness::ShorterLived => return EntryChange::Shorten,
            Likeness::OtherHeaders(names) => {
                self.notes.differing_headers.record(key, self.config.id(key), &names);
            }
            Likeness::OtherBody => {}
        }
        self.notes.replacements.add(key, caller.credential());
        EntryChange::Replace
    }

    async fn fill_known(
        &self,
        ((key, route), caller): (&(Key, RouteIndex), Caller),
        known: &KnownEntry,
        entry: &Arc<Entry>,
        change: EntryChange,
    ) -> (EventKind, Result<Fill, StoreError>) {
        let (generation, seen) = (known.entry.generation(), &known.seen);
        if change == EntryChange::Admit {
            let admitted = self.state.store.admit(key, seen, generation, &caller.to_hex()).await;
            return (EventKind::Admitted, admitted);
        }
        // First, because Redis also reports this change, and the report must not count as a silent
        // change.
        self.state.silent_changes.forget(std::slice::from_ref(key));
        let compressed = self.compressed(entry).await;
        // The upstream has served this response to the old audience too.
        let members = match change {
            EntryChange::Shorten => known.entry.audience().joined_by(caller, seen.now_ms),
            _ => entry.audience().members.to_vec(),
        };
        let identity = self.config.identity(key, *route);
        let token = self.state.store.token(identity.hash());
        let meta = entry.meta_for(&members, &identity, &token, &seen.epoch, compressed.as_ref());
        let body = compressed.as_ref().unwrap_or(entry.body());
        let new = Replacement { body, meta: &meta, expires_at_ms: entry.expires_at_ms() };
        (EventKind::Replaced, self.state.store.replace(key, seen, generation, new).await)
    }

    /// Compresses a large body for the store, if that makes it smaller. Runs on the blocking pool: a
    /// megabyte takes milliseconds.
    async fn compressed(&self, entry: &Arc<Entry>) -> Option<Bytes> {
        let above = self.config.settings.compress_above?;
        if entry.body().len() <= above {
            return None;
        }
        let entry = Arc::clone(entry);
        // If the task fails, the body is stored uncompressed.
        spawn_blocking(move || entry.compress()).await.ok().flatten()
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
            self.count_fill(result);
        }
        self.state.events.record(lead.key.main(), EventKind::FillRefused, result.as_str());
        drop(lead.leader);
        if let FillTarget::Lease(lease) = lead.target {
            self.state.store.release(lease).await;
        }
        result
    }

    /// Tells the memory of silent changes what became of a response. A fill that was refused shows
    /// that the job has changed.
    fn note_fill(
        &self,
        ((key, route), caller): (&(Key, RouteIndex), Caller),
        entry: &Entry,
        stored: StoredAs,
        fill: Fill,
    ) {
        if fill == Fill::Revoked {
            return self.state.silent_changes.forget(std::slice::from_ref(key));
        }
        let now_ms = self.state.store.now_ms();
        let (expires_at_ms, generation) = match stored {
            StoredAs::Admission { expires_at_ms, generation } => (expires_at_ms, generation),
            StoredAs::Fill { generation, .. } => (entry.expires_at_ms(), generation),
            StoredAs::Replacement => (entry.expires_at_ms(), None),
        };
        let route = self.config.identity(key, *route).route;
        let observed =
            ObservedEntry { key, caller, route, entry, generation, expires_at_ms, now_ms };
        self.state.silent_changes.stored(observed, stored);
    }

    fn count_fill(&self, result: FillResult) {
        self.state.metrics.fills.inc([result.as_str()]);
    }
}
