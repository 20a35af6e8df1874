//! Near entries: when an entry in this process may be served without asking Redis for it.
//!
//! A near entry has to meet the same conditions as an entry in Redis: the caller is in its audience,
//! its TTL has not run out, and the request's `Cache-Control` admits it. A near miss decides nothing:
//! the lookup goes on in Redis as if there were no near entries.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{
    entry::Entry, lookup::CacheReader, lookup_request::LookupRequest, near_layer::NearLayer,
};
use crate::{
    mutants::{self, Mutant},
    observe::spans,
    store::{BarrierWait, Budget, near::Noted},
};

/// State of a near lookup, which may have to wait for the barrier. Each request needs a new one.
#[derive(Debug, Default)]
pub struct NearLookup {
    /// Entry that was found and waits for the barrier, with the time of the look in ms since 1970 by
    /// the store's clock.
    found: Option<(Arc<Entry>, Noted, i64)>,
    wait: BarrierWait,
}

/// Why there is no near hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NearMiss {
    /// Near entries were not looked at: there are none, or the store is not trusted for the key.
    Unasked,
    /// There is no entry that is a hit for the request.
    NoEntry,
    /// The barrier is down, so changes are not known here.
    Untracked,
    /// The entry was changed while the request waited for the barrier.
    Evicted,
}

impl NearMiss {
    /// Returns the word for metrics and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::NoEntry => "miss",
            Self::Untracked => "untracked",
            Self::Evicted => "evicted",
        }
    }
}

impl NearLookup {
    /// Returns how long the lookup has waited for the barrier.
    pub fn waited(&self) -> Duration {
        self.wait.lasted()
    }
}

impl CacheReader {
    /// Looks up a near entry that is a hit for this request. Returns it with the current time in ms
    /// since 1970 by the store's clock, and records the result in the current span.
    pub async fn lookup_near(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Option<(Arc<Entry>, i64)> {
        let mut lookup = NearLookup::default();
        let near = poll_fn(|cx| self.poll_lookup_near(request, &mut lookup, cx)).await;
        let outcome = near.as_ref().map_or_else(|miss| miss.as_str(), |_| "hit");
        if near.is_err() {
            // Only a wait without a hit is charged: after a hit, nothing else needs the budget.
            budget.charge(lookup.waited());
        }
        if !matches!(near, Err(NearMiss::Unasked)) {
            self.state.metrics.near.count_lookup(outcome);
        }
        spans::record_result(&spans::current(), outcome);
        near.ok()
    }

    /// Polls a near lookup like [`CacheReader::lookup_near`], but neither counts it nor charges a budget.
    pub fn poll_lookup_near(
        &self,
        request: &LookupRequest,
        lookup: &mut NearLookup,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Arc<Entry>, i64), NearMiss>> {
        let Some(layer) = &self.state.near else { return Poll::Ready(Err(NearMiss::Unasked)) };
        let (entry, noted, now_ms) = if let Some(found) = lookup.found.take() {
            found
        } else {
            let Ok(now_ms) = self.state.store.trust(&request.key) else {
                return Poll::Ready(Err(NearMiss::Unasked));
            };
            let Some((entry, noted)) = self.near_hit(layer, request, now_ms) else {
                return Poll::Ready(Err(NearMiss::NoEntry));
            };
            (entry, noted, now_ms)
        };
        if !mutants::is(Mutant::NearWithoutBarrier) {
            let (store, staleness) = (&self.state.store, layer.max_staleness);
            match store.poll_barrier(&request.key, staleness, &mut lookup.wait, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(NearMiss::Untracked)),
                Poll::Pending => {
                    lookup.found = Some((entry, noted, now_ms));
                    return Poll::Pending;
                }
            }
        }
        // A change that was reported during the wait may have evicted the entry.
        let current = layer.entries.is_current(noted);
        // The store may have restarted meanwhile, so that no entry counts any more.
        let again = || {
            self.state.store.trust(&request.key).ok()?;
            self.near_hit(layer, request, now_ms).map(|(entry, _)| entry)
        };
        let entry = if current { Some(entry) } else { again() };
        Poll::Ready(entry.map(|entry| (entry, now_ms)).ok_or(NearMiss::Evicted))
    }

    fn near_hit(
        &self,
        layer: &NearLayer,
        request: &LookupRequest,
        now_ms: i64,
    ) -> Option<(Arc<Entry>, Noted)> {
        let (entry, noted) = layer.entries.read(&request.key)?;
        let is_hit = now_ms < entry.expires_at_ms()
            && entry.identity() == request.identity
            && self.entry_facts(request, &entry, now_ms).is_hit();
        is_hit.then_some((entry, noted))
    }
}
