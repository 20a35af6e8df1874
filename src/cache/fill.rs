//! Turns an upstream response into an entry: shares it with the readers that wait, and stores it.

use std::sync::Arc;

use bytes::Bytes;
use hyper::http::response;
use tokio::task::spawn_blocking;
use tracing::{Span, debug};

use super::{
    Ask, Cache,
    audience::Pair,
    entry::Entry,
    flight::Leader,
    policy::{self, Bypass, Freshness, NoStore},
};
use crate::{
    clock,
    events::EventKind,
    limits::Quota,
    metrics::OutcomeLabels,
    store::{Fill, Key, Lease, Replacement, Seen, StoreError},
};

/// Held by a reader that reads the upstream for itself and all that join.
#[derive(Debug)]
pub struct Lead {
    leader: Leader,
    target: Target,
    why: Option<Bypass>,
    key: Key,
    pair: Pair,
    circle: Pair,
}

/// Where the response may be stored.
#[derive(Debug)]
pub(super) enum Target {
    /// Nowhere, because the lookup was not confirmed.
    Nowhere,
    /// Under a key that is leased.
    Lease(Lease),
    /// In place of an entry that was no hit for this reader. The audience is widened if the upstream
    /// gives this reader the same response; otherwise the entry is replaced.
    Entry(Box<Known>),
}

/// An entry that a reader has found, with the value that the store had for it.
#[derive(Debug)]
pub struct Known {
    pub(super) entry: Arc<Entry>,
    pub(super) seen: Seen,
}

/// A response that has been shared with its followers and can now be [stored](Cache::fill).
#[derive(Debug)]
pub struct Landed {
    /// The response as an entry.
    pub entry: Arc<Entry>,
    target: Target,
    freshness: Freshness,
    leader: Leader,
    key: Key,
    pair: Pair,
    refresh: bool,
}

/// Why a flight has no result that can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// The response may not be stored.
    Unstorable(NoStore),
    /// The upstream gave no response or an incomplete one.
    Unanswered,
    /// The upstream was not asked, because other routes or rules have come into force.
    Superseded,
}

impl Abandoned {
    /// Returns the word for events.
    fn as_str(self) -> &'static str {
        match self {
            Self::Unstorable(why) => why.as_str(),
            Self::Unanswered => "no-answer",
            Self::Superseded => "superseded",
        }
    }
}

impl Lead {
    pub(super) fn new(request: &Ask, leader: Leader, target: Target, why: Option<Bypass>) -> Self {
        let key = request.key.clone();
        Self { leader, target, why, key, pair: request.pair, circle: request.circle }
    }

    /// Returns why a confirmed lookup was not possible or not wanted, if so.
    pub fn why(&self) -> Option<Bypass> {
        self.why
    }

    /// Waits until the upstream may be read.
    pub async fn turn(&mut self) {
        self.leader.turn().await;
    }

    /// Sets the span of the read, for its followers.
    pub fn led_by(&self, span: &Span) {
        self.leader.led_by(span);
    }

    /// Releases the followers of this read, and prevents others from joining. The response may still
    /// be stored.
    pub fn vacate(&self) {
        self.leader.vacate();
    }
}

impl Cache {
    /// Decides from its head whether a response may be stored and shared.
    ///
    /// # Errors
    ///
    /// Returns the reason if it may not.
    pub fn storable(&self, head: &response::Parts) -> Result<Freshness, NoStore> {
        policy::freshness(head, &self.policy, clock::now())
    }

    /// Returns the size of the largest body that is stored, in bytes.
    pub fn max_body(&self) -> usize {
        self.policy.max_body
    }

    /// Returns the quota for the memory of responses that are being read into the cache.
    pub fn captured(&self) -> &Arc<Quota> {
        &self.captured
    }

    /// Shares a complete response with all followers.
    pub fn land(
        &self,
        lead: Lead,
        head: &response::Parts,
        body: Bytes,
        freshness: Freshness,
    ) -> Landed {
        let Lead { leader, target, key, pair: caller, why, .. } = lead;
        let freshness = freshness.with_body(&body, &self.policy);
        let asked_at_ms = match &target {
            Target::Nowhere => self.store.now_ms(),
            Target::Lease(lease) => lease.granted_at_ms(),
            Target::Entry(known) => known.seen.now_ms,
        };
        let entry = Arc::new(Entry::new(head, body, freshness, caller, asked_at_ms));
        leader.land(Arc::clone(&entry));
        let refresh = why == Some(Bypass::NoCache);
        Landed { entry, target, freshness, leader, key, pair: caller, refresh }
    }

    /// Stores a response that was shared. A store error is counted and logged, and has no other effect.
    pub async fn fill(&self, landed: Landed) -> Option<Fill> {
        let Landed { entry, target, freshness, leader, key, pair: caller, refresh } = landed;
        let stored = match &target {
            Target::Entry(known) if !refresh && known.entry.is_same_as(&entry) => {
                EventKind::Admitted
            }
            Target::Entry(_) => EventKind::Replaced,
            _ => EventKind::Fill,
        };
        let filled = match target {
            Target::Nowhere => return None,
            Target::Lease(lease) => {
                let compressed = self.compressed(&entry).await;
                let meta = entry.meta(lease.token(), lease.epoch(), compressed.as_ref());
                let body = compressed.as_ref().unwrap_or(entry.body());
                self.store.fill(lease, body, &meta, freshness.ttl).await
            }
            Target::Entry(known) if stored == EventKind::Admitted => {
                let generation = known.entry.generation();
                self.store.admit(&key, &known.seen, generation, &caller.to_hex()).await
            }
            Target::Entry(known) => self.replace(&key, &known, &entry, refresh).await,
        };
        // Until now, readers that have seen this token in the store could still join.
        drop(leader);
        let outcome = match &filled {
            Ok(Fill::Stored) => "stored",
            // The client of this read asked before the revoking write was answered, so it may have
            // this body. No later reader may.
            Ok(Fill::Revoked) => "revoked",
            Err(error) => {
                debug!(%error, "fill failed; the response was served uncached");
                "failed"
            }
        };
        self.count_fill(outcome);
        let (what, why) =
            if outcome == "stored" { (stored, "") } else { (EventKind::FillRefused, outcome) };
        self.metrics.events.record(key.main(), what, why);
        filled.ok()
    }

    async fn replace(
        &self,
        key: &Key,
        known: &Known,
        entry: &Arc<Entry>,
        refresh: bool,
    ) -> Result<Fill, StoreError> {
        if !refresh {
            self.replaced.add(key.clone());
        }
        let compressed = self.compressed(entry).await;
        let meta = entry.meta(&self.store.token(), &known.seen.epoch, compressed.as_ref());
        let body = compressed.as_ref().unwrap_or(entry.body());
        let new = Replacement { body, meta: &meta, expires_at_ms: entry.expires_at_ms() };
        self.store.replace(key, &known.seen, known.entry.generation(), new).await
    }

    /// Compresses a large body for the store, if that makes it smaller. Runs on the blocking pool: a
    /// megabyte takes milliseconds.
    async fn compressed(&self, entry: &Arc<Entry>) -> Option<Bytes> {
        let above = self.settings.compress_above?;
        if entry.body().len() <= above {
            return None;
        }
        let entry = Arc::clone(entry);
        // If the task fails, the body is stored uncompressed.
        spawn_blocking(move || entry.compressed()).await.ok().flatten()
    }

    /// Gives up a flight without a response that can be shared. If the reason lies in the response, the
    /// next readers do not queue (hit-for-miss).
    pub async fn abandon(&self, lead: Lead, why: Abandoned) {
        if let Abandoned::Unstorable(why) = why {
            // Memory may be free the next time.
            if why != NoStore::Memory {
                self.uncacheable.add((lead.key.clone(), lead.circle));
            }
            self.count_fill(why.as_str());
        }
        self.metrics.events.record(lead.key.main(), EventKind::FillRefused, why.as_str());
        drop(lead.leader);
        if let Target::Lease(lease) = lead.target {
            self.store.release(lease).await;
        }
    }

    fn count_fill(&self, outcome: &'static str) {
        self.metrics.fills.inc(OutcomeLabels { outcome });
    }
}
