//! From an upstream's response to an entry: who reads for others, and where it is stored.

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
    events::What,
    limits::Room,
    metrics::OutcomeLabels,
    store::{Fill, Key, Lease, Replacement, Seen, StoreError},
};

/// The part of a reader who reads the upstream for others.
#[derive(Debug)]
pub struct Lead {
    leader: Leader,
    target: Target,
    why: Option<Bypass>,
    key: Key,
    pair: Pair,
    circle: Pair,
}

/// Where what is read may be stored.
#[derive(Debug)]
pub(super) enum Target {
    /// The lookup was not confirmed.
    Nowhere,
    /// Under a lease.
    Lease(Lease),
    /// On an entry that was there and not for this reader: it is widened if the upstream gives this
    /// reader the same, else replaced.
    Entry(Box<Known>),
}

/// An entry that a reader has seen, and what it stood as in the store.
#[derive(Debug)]
pub struct Known {
    pub(super) entry: Arc<Entry>,
    pub(super) seen: Seen,
}

/// What may still follow an answer.
#[derive(Debug)]
pub struct Landed {
    /// What was read.
    pub entry: Arc<Entry>,
    target: Target,
    freshness: Freshness,
    leader: Leader,
    key: Key,
    pair: Pair,
    refresh: bool,
}

/// Why a flight brings nothing that can be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// The response may not be stored.
    Unstorable(NoStore),
    /// The upstream gave none, or none that was whole.
    Unanswered,
    /// The upstream was not asked: other routes or rules have come into force.
    Superseded,
}

impl Abandoned {
    /// The word for events.
    fn as_str(self) -> &'static str {
        match self {
            Self::Unstorable(why) => why.as_str(),
            Self::Unanswered => "no-answer",
            Self::Superseded => "superseded",
        }
    }
}

impl Lead {
    pub(super) fn new(ask: &Ask, leader: Leader, target: Target, why: Option<Bypass>) -> Self {
        let (key, pair, circle) = (ask.key.clone(), ask.pair, ask.circle);
        Self { leader, target, why, key, pair, circle }
    }

    /// Why the cache was not asked, if it was not.
    pub fn why(&self) -> Option<Bypass> {
        self.why
    }

    /// Waits until the upstream may be read.
    pub async fn turn(&mut self) {
        self.leader.turn().await;
    }

    /// Names the span of the read to those who join it.
    pub fn led_by(&self, flight: &Span) {
        self.leader.led_by(flight);
    }

    /// Nobody else is to wait for this read any longer. It may still be stored.
    pub fn vacate(&self) {
        self.leader.vacate();
    }
}

impl Cache {
    /// Whether a response may be stored and shared, from its head.
    pub fn storable(&self, head: &response::Parts) -> Result<Freshness, NoStore> {
        policy::freshness(head, &self.policy, clock::now())
    }

    /// Largest body that is stored, in bytes.
    pub fn max_body(&self) -> usize {
        self.policy.max_body
    }

    /// Where the bytes of responses on their way into the cache are counted.
    pub fn captured(&self) -> &Arc<Room> {
        &self.captured
    }

    /// Shares a complete response with everybody who joined.
    pub fn land(
        &self,
        lead: Lead,
        head: &response::Parts,
        body: Bytes,
        freshness: Freshness,
    ) -> Landed {
        let Lead { leader, target, key, pair, why, .. } = lead;
        let freshness = freshness.with_body(&body, &self.policy);
        let asked_at_ms = match &target {
            Target::Nowhere => self.store.now_ms(),
            Target::Lease(lease) => lease.granted_at_ms(),
            Target::Entry(known) => known.seen.now_ms,
        };
        let entry = Arc::new(Entry::new(head, body, freshness, pair, asked_at_ms));
        leader.land(Arc::clone(&entry));
        let refresh = why == Some(Bypass::NoCache);
        Landed { entry, target, freshness, leader, key, pair, refresh }
    }

    /// Stores what has landed. A store error is counted, logged and of no consequence.
    pub async fn fill(&self, landed: Landed) -> Option<Fill> {
        let Landed { entry, target, freshness, leader, key, pair, refresh } = landed;
        let stored = match &target {
            Target::Entry(known) if !refresh && known.entry.is_same_as(&entry) => What::Admitted,
            Target::Entry(_) => What::Replaced,
            _ => What::Fill,
        };
        let filled = match target {
            Target::Nowhere => return None,
            Target::Lease(lease) => {
                let compressed = self.compressed(&entry).await;
                let meta = entry.meta(lease.token(), lease.epoch(), compressed.as_ref());
                let body = compressed.as_ref().unwrap_or(entry.body());
                self.store.fill(lease, body, &meta, freshness.ttl).await
            }
            Target::Entry(known) if stored == What::Admitted => {
                let generation = known.entry.generation();
                self.store.admit(&key, &known.seen, generation, &pair.to_hex()).await
            }
            Target::Entry(known) => self.replace(&key, &known, &entry, refresh).await,
        };
        // Until here readers who were shown our token could still join.
        drop(leader);
        let outcome = match &filled {
            Ok(Fill::Stored) => "stored",
            // Our client asked before the write that revoked us was answered, so it may have this
            // body. No later reader may.
            Ok(Fill::Revoked) => "revoked",
            Err(error) => {
                debug!(%error, "fill failed; the response was served uncached");
                "failed"
            }
        };
        self.count_fill(outcome);
        let (what, why) =
            if outcome == "stored" { (stored, "") } else { (What::FillRefused, outcome) };
        self.metrics.events.tell(key.main(), what, why);
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
        let (body, expires_at_ms) =
            (compressed.as_ref().unwrap_or(entry.body()), entry.expires_at_ms());
        let new = Replacement { body, meta: &meta, expires_at_ms };
        self.store.replace(key, &known.seen, known.entry.generation(), new).await
    }

    /// What a large body is to be stored as. Not on a thread that serves: a megabyte takes milliseconds.
    async fn compressed(&self, entry: &Arc<Entry>) -> Option<Bytes> {
        let above = self.settings.compress_above?;
        if entry.body().len() <= above {
            return None;
        }
        let entry = Arc::clone(entry);
        // Without it the body is stored as it is.
        spawn_blocking(move || entry.compressed()).await.ok().flatten()
    }

    /// Gives up a flight whose response cannot be shared. Where the reason lies in the response the next
    /// readers need not queue.
    pub async fn abandon(&self, lead: Lead, why: Abandoned) {
        if let Abandoned::Unstorable(why) = why {
            // For want of room it was not stored now, and may be the next time.
            if why != NoStore::Memory {
                self.uncacheable.add((lead.key.clone(), lead.circle));
            }
            self.count_fill(why.as_str());
        }
        self.metrics.events.tell(lead.key.main(), What::FillRefused, why.as_str());
        drop(lead.leader);
        if let Target::Lease(lease) = lead.target {
            self.store.release(lease).await;
        }
    }

    fn count_fill(&self, outcome: &'static str) {
        self.metrics.fills.inc(OutcomeLabels { outcome });
    }
}
