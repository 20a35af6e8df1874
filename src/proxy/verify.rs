//! Verification of hits: some hits are also read from the upstream, in the background.
//!
//! Each hit is sampled on its own. The client already has its answer by then. The read is made from
//! the same request as a fill would be, with the same credentials, but it fills nothing and nobody
//! shares it: the response is compared with the entry and forgotten. The number and the duration of
//! these reads are limited.

use std::{future::Future, sync::Arc, time::Duration};

use http_body_util::BodyExt;
use hyper::{
    Method, Request,
    http::{Extensions, request},
};
use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;

use super::{
    Proxy,
    exchange::{Switch, prepare_response},
};
use crate::{
    cache::Trial,
    config::Share,
    limits::Room,
    metrics::{ComparisonResult, Metrics},
    service::{Declined, Lot},
    spans,
    transport::Peer,
    upstream::{RequestBody, RetryPolicy},
};

/// Most comparisons in the background at a time. Past this number they are skipped, so that
/// `verify`, however large, loads the upstream no more than this many readers do.
const TRIALS: usize = 32;

/// Longest time to read the upstream's response to its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the quota for [`TRIALS`] comparisons. Skipped comparisons are counted by outcome, so the
/// counter of the quota is not registered.
pub(super) fn room(metrics: &Metrics) -> Arc<Room> {
    Room::new(TRIALS, metrics.comparisons.under_way.clone(), Counter::default())
}

impl Proxy {
    /// Decides whether a hit is compared, if any are.
    pub(super) fn draw(&self) -> Lot {
        match self.verify.millionths() {
            0 => Lot::NotDrawn,
            rate if fastrand::u32(..Share::WHOLE) < rate => Lot::Drawn,
            _ => Lot::Lost,
        }
    }

    /// Whether this hit is compared. The repeat fast path may have decided that before.
    pub(super) fn is_drawn(&self, method: &Method, extensions: &Extensions) -> bool {
        if self.verify == Share::default() || *method != Method::GET {
            return false;
        }
        let decision = match extensions.get() {
            None | Some(Declined { lot: Lot::NotDrawn, .. }) => self.draw(),
            Some(Declined { lot: decision, .. }) => *decision,
        };
        decision == Lot::Drawn
    }

    /// Starts to compare a hit with what the upstream answers to this request.
    pub(super) fn verify(self: &Arc<Self>, comparison: Trial, head: &request::Parts, client: Peer) {
        let Some(permit) = self.trials.take(1) else {
            return self.metrics.comparisons.count_verify(ComparisonResult::Skipped);
        };
        let proxy = Arc::clone(self);
        let mut request = self.for_fill(head, client);
        // The client's trace ends with its answer; this read is not part of it.
        spans::remove_trace_context(request.headers_mut());
        self.aside(async move {
            let outcome = match timeout(PATIENCE, proxy.try_hit(comparison, request)).await {
                Ok(Some(comparison)) => proxy.cache.conclude(&comparison).await,
                Ok(None) | Err(_) => ComparisonResult::Failed,
            };
            proxy.metrics.comparisons.count_verify(outcome);
            drop(permit);
        });
    }

    /// Feeds the comparison with the response of the upstream. Returns `None` if the upstream gives
    /// no whole response.
    async fn try_hit(&self, mut comparison: Trial, request: Request<RequestBody>) -> Option<Trial> {
        let sent = self.send(request, RetryPolicy::OnceIfSafe).await;
        let response = prepare_response(sent.ok()?, Switch::Unasked).ok()?;
        let (head, mut body) = response.into_parts();
        let mut matters = comparison.head(&head, &self.cache);
        while matters && let Some(frame) = body.frame().await {
            matters = frame.ok()?.data_ref().is_none_or(|data| comparison.part(data));
        }
        Some(comparison)
    }

    /// Spawns a background task that a drain cancels instead of waiting for it.
    pub(super) fn aside(&self, task: impl Future<Output = ()> + Send + 'static) {
        let draining = self.leaving.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = draining.cancelled() => {}
            }
        });
    }
}
