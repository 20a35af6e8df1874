//! Near entries: when an entry in this process may be served without asking Redis for it.
//!
//! A near entry has to meet the same conditions as an entry in Redis: the caller is in its audience,
//! its TTL has not run out, and the request's `Cache-Control` admits it. A near miss decides nothing:
//! the lookup goes on in Redis as if there were no near entries.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
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

/// Why there is no near hit; `None` if near entries were not looked at.
pub type NearMissReason = Option<&'static str>;

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
        let outcome = match &near {
            Ok(_) => Some("hit"),
            Err(absence) => {
                // Only a wait without a hit is charged: after a hit, nothing else needs the budget.
                budget.charge(lookup.waited());
                *absence
            }
        };
        if let Some(outcome) = outcome {
            self.state.metrics.near.count_lookup(outcome);
        }
        spans::record_result(&spans::current(), outcome.unwrap_or("unasked"));
        near.ok()
    }

    /// Polls a near lookup like [`CacheReader::lookup_near`], but neither counts it nor charges a budget.
    pub fn poll_lookup_near(
        &self,
        request: &LookupRequest,
        lookup: &mut NearLookup,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Arc<Entry>, i64), NearMissReason>> {
        let Some(layer) = &self.state.near else { return Poll::Ready(Err(None)) };
        if lookup.found.is_none() {
            let Ok(now_ms) = self.state.store.trust(&request.key) else {
                return Poll::Ready(Err(None));
            };
            let Some((entry, noted)) = self.near_hit(layer, request, now_ms) else {
                return Poll::Ready(Err(Some("miss")));
            };
            lookup.found = Some((entry, noted, now_ms));
        }
        if !mutants::is(Mutant::NearWithoutBarrier)
            && ready!(self.state.store.poll_barrier(
                &request.key,
                layer.max_staleness,
                &mut lookup.wait,
                cx
            ))
            .is_err()
        {
            return Poll::Ready(Err(Some("untracked")));
        }
        let Some((entry, noted, now_ms)) = lookup.found.take() else {
            return Poll::Ready(Err(None));
        };
        // A change that was reported during the wait may have evicted the entry.
        let current = layer.entries.is_current(noted);
        // The store may have restarted meanwhile, so that no entry counts any more.
        let again = || {
            self.state.store.trust(&request.key).ok()?;
            self.near_entry(layer, request, now_ms)
        };
        let entry = if current { Some(entry) } else { again() };
        Poll::Ready(entry.map(|entry| (entry, now_ms)).ok_or(Some("evicted")))
    }

    fn near_entry(
        &self,
        layer: &NearLayer,
        request: &LookupRequest,
        now_ms: i64,
    ) -> Option<Arc<Entry>> {
        self.near_hit(layer, request, now_ms).map(|(entry, _)| entry)
    }

    fn near_hit(
        &self,
        layer: &NearLayer,
        request: &LookupRequest,
        now_ms: i64,
    ) -> Option<(Arc<Entry>, Noted)> {
        let (entry, noted) = layer.entries.read(&request.key)?;
        let live = now_ms < entry.expires_at_ms();
        (live && self.is_hit(request, &entry, now_ms)).then_some((entry, noted))
    }
}
