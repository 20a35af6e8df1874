//! Comparisons of entries with what the upstream answers, for `verify` and in shadow mode.
//!
//! If `verify` is set, some hits are also read from the upstream, in the background. Each hit is
//! sampled on its own. The client already has its answer by then. The read is made from the same
//! request as a fill would be, with the same credentials, but it fills nothing and nobody shares it:
//! the response is compared with the entry and forgotten. The number and the duration of these reads
//! are limited.
//!
//! In shadow mode a client gets the upstream's response, which is compared on its way
//! ([`ComparedBody`]).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Method, Request,
    body::{Body as HttpBody, SizeHint},
    http::{Extensions, request},
};
use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;

use super::{
    metrics::{ComparisonMetrics, ProxyMetrics},
    proxy_context::ProxyContext,
};
use crate::{
    cache::{Comparison, ComparisonResult},
    config::SampleRate,
    limits::Quota,
    observe::{metrics::Counters, spans},
    service::{FastPathMiss, SampleDecision},
    transport::Peer,
    upstream::{BodyError, PolledFrame, RequestBody, ResponseBody},
};

/// Most comparisons in the background at a time. Past this number they are skipped, so that
/// `verify`, however large, loads the upstream no more than this many readers do.
const MAX_COMPARISONS: usize = 32;

/// Longest time to read the upstream's response to its end.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the quota of comparisons in the background. Those that it refuses are counted by result,
/// so its counter is not registered.
pub(super) fn quota(metrics: &ProxyMetrics) -> Arc<Quota> {
    Quota::new(MAX_COMPARISONS, metrics.comparisons.under_way.clone(), Counter::default())
}

/// Decides whether a hit is compared, if any are.
pub(super) fn decide_sample(rate: SampleRate) -> SampleDecision {
    match rate.millionths() {
        0 => SampleDecision::Undecided,
        rate if fastrand::u32(..SampleRate::WHOLE) < rate => SampleDecision::Sampled,
        _ => SampleDecision::NotSampled,
    }
}

/// Whether this hit is compared. The repeat fast path may have decided that before.
pub(super) fn is_sampled(rate: SampleRate, method: &Method, extensions: &Extensions) -> bool {
    if rate == SampleRate::default() || *method != Method::GET {
        return false;
    }
    let decision = match extensions.get().map(|miss: &FastPathMiss| miss.decision) {
        None | Some(SampleDecision::Undecided) => decide_sample(rate),
        Some(decision) => decision,
    };
    decision == SampleDecision::Sampled
}

/// Starts to compare a hit with what the upstream answers to this request.
pub(super) fn verify(
    context: &Arc<ProxyContext>,
    comparison: Comparison,
    head: &request::Parts,
    client: Peer,
) {
    let mut request = context.fill_request(head, client.in_background());
    // The client's trace ends with its answer; this read is not part of it.
    spans::remove_trace_context(request.headers_mut());
    let reader = Arc::clone(context);
    let compared = async move {
        timeout(COMPARE_TIMEOUT, compare_hit(&reader, comparison, request)).await.ok().flatten()
    };
    spawn_conclusion(context, |metrics| &metrics.verify, compared);
}

/// Feeds the comparison with the response of the upstream. Returns `None` if the upstream gives
/// no whole response.
async fn compare_hit(
    context: &ProxyContext,
    mut comparison: Comparison,
    request: Request<RequestBody>,
) -> Option<Comparison> {
    let (head, mut body) = context.exchange(request).await.ok()?.into_parts();
    let mut matters = context.cache.compare_head(&mut comparison, &head);
    while matters && let Some(frame) = body.frame().await {
        matters = frame.ok()?.data_ref().is_none_or(|data| comparison.compare_body_part(data));
    }
    Some(comparison)
}

/// Concludes a comparison when the response has ended. A result that needs the store is found
/// in the background while the client goes on.
pub(super) fn conclude_shadow(context: &Arc<ProxyContext>, comparison: Comparison) {
    match comparison.immediate_result() {
        Some(result) => context.metrics.comparisons.shadow.inc([result.as_str()]),
        None => spawn_conclusion(context, |metrics| &metrics.shadow, async { Some(comparison) }),
    }
}

/// Concludes a comparison in the background, and counts its result. A drain cancels it instead of
/// waiting for it.
fn spawn_conclusion(
    context: &Arc<ProxyContext>,
    counters: fn(&ComparisonMetrics) -> &Counters<1>,
    compared: impl Future<Output = Option<Comparison>> + Send + 'static,
) {
    let Some(permit) = context.comparisons.take(1) else {
        let skipped = ComparisonResult::Skipped.as_str();
        return counters(&context.metrics.comparisons).inc([skipped]);
    };
    let spawned = Arc::clone(context);
    let conclude = async move {
        let result = match compared.await {
            Some(comparison) => spawned.cache.invalidator.conclude(&comparison).await,
            None => ComparisonResult::Failed,
        };
        counters(&spawned.metrics.comparisons).inc([result.as_str()]);
        drop(permit);
    };
    context.tasks.spawn(context.draining.clone().run_until_cancelled_owned(conclude));
}

/// An upstream body that is compared with an entry while it streams.
pub(super) struct ComparedBody {
    pub(super) body: ResponseBody,
    /// The comparison, until the body has ended.
    pub(super) comparison: Option<Comparison>,
    pub(super) context: Arc<ProxyContext>,
}

impl ComparedBody {
    fn conclude(&mut self) {
        if let Some(comparison) = self.comparison.take() {
            conclude_shadow(&self.context, comparison);
        }
    }

    fn give_up(&mut self, result: ComparisonResult) {
        if self.comparison.take().is_some() {
            self.context.metrics.comparisons.shadow.inc([result.as_str()]);
        }
    }
}

impl HttpBody for ComparedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PolledFrame<BodyError> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(comparison), Some(data)) = (&mut self.comparison, frame.data_ref()) {
                    comparison.compare_body_part(data);
                }
                // hyper may not poll again after the last frame.
                if self.body.is_end_stream() {
                    self.conclude();
                }
            }
            None => self.conclude(),
            Some(Err(_)) => self.give_up(ComparisonResult::Failed),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ComparedBody {
    /// Dropped before its end, because the client has hung up: the comparison is incomplete.
    fn drop(&mut self) {
        self.give_up(ComparisonResult::Unchecked);
    }
}
