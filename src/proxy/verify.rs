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
use tokio_util::sync::CancellationToken;

use super::proxy_context::ProxyContext;
use crate::{
    cache::{Comparison, ComparisonResult},
    config::SampleRate,
    limits::Quota,
    observe::spans,
    service::{FastPathMiss, SampleDecision},
    transport::Peer,
    upstream::RequestBody,
};

/// Most comparisons in the background at a time. Past this number they are skipped, so that
/// `verify`, however large, loads the upstream no more than this many readers do.
const MAX_COMPARISONS: usize = 32;

/// Longest time to read the upstream's response to its end.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// Compares hits with the upstream: for `verify`, and in shadow mode.
#[derive(Clone, Debug)]
pub(super) struct Comparisons {
    pub(super) context: Arc<ProxyContext>,
    /// The share of hits that is compared with the upstream.
    pub(super) verify: SampleRate,
    /// Limits the comparisons that run in the background, those of shadow mode included.
    pub(super) quota: Arc<Quota>,
    /// Cancelled when the drain begins: a drain does not wait for comparisons.
    pub(super) draining: CancellationToken,
}

impl Comparisons {
    pub(super) fn new(context: Arc<ProxyContext>, verify: SampleRate) -> Self {
        // Skipped comparisons are counted by outcome, so the counter of the quota is not registered.
        let under_way = context.metrics.comparisons.under_way.clone();
        let quota = Quota::new(MAX_COMPARISONS, under_way, Counter::default());
        Self { context, verify, quota, draining: CancellationToken::new() }
    }

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
        let Some(permit) = self.quota.take(1) else {
            return self.context.metrics.comparisons.count_verify(ComparisonResult::Skipped);
        };
        let comparisons = Arc::clone(self);
        let mut request = self.context.fill_request(head, client.in_background());
        // The client's trace ends with its answer; this read is not part of it.
        spans::remove_trace_context(request.headers_mut());
        self.spawn_until_drain(async move {
            let context = &comparisons.context;
            let outcome = match timeout(
                COMPARE_TIMEOUT,
                comparisons.compare_hit(comparison, request),
            )
            .await
            {
                Ok(Some(comparison)) => context.cache.comparer.conclude(&comparison).await,
                Ok(None) | Err(_) => ComparisonResult::Failed,
            };
            context.metrics.comparisons.count_verify(outcome);
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
        let (head, mut body) = self.context.exchange(request).await.ok()?.into_parts();
        let mut matters = comparison.compare_head(&head, &self.context.cache.comparer);
        while matters && let Some(frame) = body.frame().await {
            matters = frame.ok()?.data_ref().is_none_or(|data| comparison.compare_body_part(data));
        }
        Some(comparison)
    }

    /// Concludes a comparison when the response has ended. A result that needs the store is found
    /// in the background while the client goes on.
    pub(super) fn conclude_shadow(&self, comparison: Comparison) {
        if let Some(outcome) = comparison.immediate_result() {
            return self.context.metrics.comparisons.count_shadow(outcome);
        }
        let Some(permit) = self.quota.take(1) else {
            return self.context.metrics.comparisons.count_shadow(ComparisonResult::Skipped);
        };
        let context = Arc::clone(&self.context);
        self.spawn_until_drain(async move {
            let outcome = context.cache.comparer.conclude(&comparison).await;
            context.metrics.comparisons.count_shadow(outcome);
            drop(permit);
        });
    }

    /// Spawns a background task that a drain cancels instead of waiting for it.
    fn spawn_until_drain(&self, task: impl Future<Output = ()> + Send + 'static) {
        let draining = self.draining.clone();
        self.context.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = draining.cancelled() => {}
            }
        });
    }
}
