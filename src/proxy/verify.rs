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
    exchange::{ProtocolSwitch, prepare_response},
    metrics::ProxyMetrics,
};
use crate::{
    cache::{Comparison, ComparisonResult},
    config::SampleRate,
    limits::Quota,
    observe::spans,
    service::{FastPathMiss, SampleDecision},
    transport::Peer,
    upstream::{RequestBody, RetryPolicy},
};

/// Most comparisons in the background at a time. Past this number they are skipped, so that
/// `verify`, however large, loads the upstream no more than this many readers do.
const MAX_COMPARISONS: usize = 32;

/// Longest time to read the upstream's response to its end.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the quota for [`MAX_COMPARISONS`] comparisons. Skipped comparisons are counted by outcome, so the
/// counter of the quota is not registered.
pub(super) fn comparison_quota(metrics: &ProxyMetrics) -> Arc<Quota> {
    Quota::new(MAX_COMPARISONS, metrics.comparisons.under_way.clone(), Counter::default())
}

impl Proxy {
    /// Decides whether a hit is compared, if any are.
    pub(super) fn decide_sample(&self) -> SampleDecision {
        match self.verify.millionths() {
            0 => SampleDecision::Undecided,
            rate if fastrand::u32(..SampleRate::WHOLE) < rate => SampleDecision::Sampled,
            _ => SampleDecision::NotSampled,
        }
    }

    /// Whether this hit is compared. The repeat fast path may have decided that before.
    pub(super) fn is_sampled(&self, method: &Method, extensions: &Extensions) -> bool {
        if self.verify == SampleRate::default() || *method != Method::GET {
            return false;
        }
        let decision = match extensions.get() {
            None | Some(FastPathMiss { decision: SampleDecision::Undecided, .. }) => {
                self.decide_sample()
            }
            Some(FastPathMiss { decision, .. }) => *decision,
        };
        decision == SampleDecision::Sampled
    }

    /// Starts to compare a hit with what the upstream answers to this request.
    pub(super) fn verify(
        self: &Arc<Self>,
        comparison: Comparison,
        head: &request::Parts,
        client: Peer,
    ) {
        let Some(permit) = self.comparisons.take(1) else {
            return self.metrics.comparisons.count_verify(ComparisonResult::Skipped);
        };
        let proxy = Arc::clone(self);
        let mut request = self.fill_request(head, client.in_background());
        // The client's trace ends with its answer; this read is not part of it.
        spans::remove_trace_context(request.headers_mut());
        self.spawn_until_drain(async move {
            let outcome =
                match timeout(COMPARE_TIMEOUT, proxy.compare_hit(comparison, request)).await {
                    Ok(Some(comparison)) => proxy.cache.conclude_comparison(&comparison).await,
                    Ok(None) | Err(_) => ComparisonResult::Failed,
                };
            proxy.metrics.comparisons.count_verify(outcome);
            drop(permit);
        });
    }

    /// Feeds the comparison with the response of the upstream. Returns `None` if the upstream gives
    /// no whole response.
    async fn compare_hit(
        &self,
        mut comparison: Comparison,
        request: Request<RequestBody>,
    ) -> Option<Comparison> {
        let sent = self.send(request, RetryPolicy::OnceIfSafe).await;
        let response = prepare_response(sent.ok()?, ProtocolSwitch::NotRequested).ok()?;
        let (head, mut body) = response.into_parts();
        let mut matters = comparison.compare_head(&head, &self.cache);
        while matters && let Some(frame) = body.frame().await {
            matters = frame.ok()?.data_ref().is_none_or(|data| comparison.compare_body_part(data));
        }
        Some(comparison)
    }

    /// Spawns a background task that a drain cancels instead of waiting for it.
    pub(super) fn spawn_until_drain(&self, task: impl Future<Output = ()> + Send + 'static) {
        let draining = self.draining.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = draining.cancelled() => {}
            }
        });
    }
}
