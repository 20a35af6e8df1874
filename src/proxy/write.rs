//! Writes: the jobs that a write may change are fenced before it is forwarded, invalidated before its
//! response head is passed on, and invalidated again after its bodies end. `pass` ends a write here
//! too if only the response names the jobs.
//!
//! An upstream may answer before an upload ends and commit afterwards, or commit while it sends
//! its response. So the end before the head drops the entry and keeps the fence, and a last end
//! lifts it when request and response have ended. The client gets the head at once. It sees the end
//! of the response only after an end that has dropped the entry again.
//!
//! The fence stands for at most `upstream.response_timeout` after the head. The bodies of an event
//! stream may last for days, so its fence is lifted with the head, as it is if the status says
//! that nothing was done. Whenever the fence has fallen before the bodies ended, the last end still
//! drops what was stored meanwhile.
//!
//! The begin and all ends together wait for the store for two budgets at most.

use std::{pin::Pin, sync::Arc, time::Instant};

use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
};
use tracing::{Instrument as _, Span, error};

use super::{
    answer::{Answer, Verdict, close_if_spent, refuse_retryable, refuse_with, upstream_failure},
    body::{Body, BodyEndFuture, InvalidatingBody},
    body_rules::{InspectError, InspectedResponse, RuleFinding, misses_unknown_response},
    proxy_context::{ProxyContext, Requester, prepare_response},
};
use crate::{
    cache::{EndStage, FenceEnd, InvalidationSource, WriteOutcome},
    mutants::{self, Mutant},
    observe::spans,
    semantics::{
        job_id::JobId,
        policy::is_endless,
        route::{WriteScope, WriteTarget, invalidation_rules::RuleMatch},
    },
    store::{Ended, Write, WriteBudget},
    upstream::{BodyOutcome, RequestBody, RetryPolicy, UploadEnd, UpstreamError},
};

/// Forwards a write in a task of its own, and answers it once its jobs are invalidated.
pub(super) async fn forward(
    context: &Arc<ProxyContext>,
    scope: WriteScope,
    request: Request<Incoming>,
    requester: Requester,
) -> Answer {
    let write = forward_write(Arc::clone(context), scope, request, requester);
    spawn_write(context, Box::pin(write)).await
}

async fn forward_write(
    context: Arc<ProxyContext>,
    mut scope: WriteScope,
    request: Request<Incoming>,
    requester: Requester,
) -> Answer {
    let request = context.forward_request(request, &requester);
    let target = WriteTarget::of(&request);
    let method = request.method().clone();
    let (mut head, body) = request.into_parts();
    let (body, finding) = match context.inspector.request(&mut scope, &mut head, body).await {
        Ok(inspected) => inspected,
        Err(InspectError::Broken(error)) => return upstream_failure(&error),
        Err(InspectError::NoRoom) => return refuse_retryable("memory"),
    };
    let (body, upload) = body.tracked();
    let mut budget = context.cache.write_budget();
    let request = Request::from_parts(head, body);
    let (write, result) = forward_fenced(&context, &scope, &mut budget, request).await;
    let mut invalidation = WriteInvalidation::new(&context, write, budget, upload);
    invalidation.all = changes_all(&context, &scope, finding, &result);
    // Noted here, because a response that we reject below still answers the write.
    if result.as_ref().is_err_and(UpstreamError::may_have_arrived) {
        invalidation.note_unknown();
    }
    let result = result.map(|InspectedResponse { response, named }| {
        let mut jobs = named.jobs;
        let located = context.routes.location_targets(&target, &response);
        jobs.extend(located.all_jobs());
        invalidation.all |= located.changes_unlisted();
        // A job that is named elsewhere may be a limit (`?limit=10`). `count` looks closer.
        let is_claimed =
            !scope.rules.is_empty() || scope.names_job_at_its_place() || !located.names_no_job();
        if response.status().is_success() && !is_claimed {
            context.metrics.unclaimed.count(&context.routes, &method, &target);
        }
        invalidation.note_response(response.status(), &jobs);
        response
    });
    let mut result = result.and_then(prepare_response);
    if let Ok(response) = &mut result {
        close_if_spent(response, &requester);
    }
    invalidation.conclude(result).await
}

/// Fences the jobs that a write may change, and forwards the write.
async fn forward_fenced(
    context: &ProxyContext,
    scope: &WriteScope,
    budget: &mut WriteBudget,
    request: Request<RequestBody>,
) -> (Write, Result<InspectedResponse, UpstreamError>) {
    let invalidator = &context.cache.invalidator;
    let begin = invalidator.begin(&scope.jobs, &scope.elsewhere, budget);
    let write = begin.instrument(spans::fence()).await;
    let exchange = async {
        let response = context.send(request, RetryPolicy::Never).await?;
        context.inspector.response(&scope.rules, response).await
    };
    let result = tokio::select! {
        result = exchange => result,
        never = invalidator.keep_fenced(&write) => match never {},
    };
    (write, result)
}

/// Whether a write counts as one that changes every job, unless its status refuses it.
fn changes_all(
    context: &ProxyContext,
    scope: &WriteScope,
    request: RuleFinding,
    result: &Result<InspectedResponse, UpstreamError>,
) -> bool {
    let missed = match result {
        // The upstream never saw the write. If such writes counted, an upstream outage would
        // empty the cache.
        Err(error) if !error.may_have_arrived() => return false,
        Err(_) => request == RuleFinding::Incomplete || misses_unknown_response(&scope.rules),
        // Any client can send a body that no rule can read. Only a body that the upstream accepts
        // may cost the others their entries.
        Ok(InspectedResponse { response, named }) => {
            let is_accepted = response.status().is_success() || response.status().is_redirection();
            is_accepted && [request, named.finding].contains(&RuleFinding::Incomplete)
        }
    };
    if missed {
        context.inspector.fallbacks.inc();
    }
    let status = result.as_ref().ok().map(|inspected| inspected.response.status());
    // Any client can send a list that is too long. Only one that the upstream accepts may cost the others
    // their entries.
    let has_too_many = scope.too_many && status.is_none_or(|status| status.is_success());
    let has_unlisted = scope.has_unlisted && status.is_none_or(|status| !status.is_client_error());
    let has_all_rule = scope.rules.iter().any(RuleMatch::is_all);
    missed || has_too_many || has_unlisted || has_all_rule || context.superseded.is_cancelled()
}

/// The invalidations still due for a write.
pub(super) struct WriteInvalidation {
    context: Arc<ProxyContext>,
    /// The span of the request, which the later invalidations outlive.
    span: Span,
    write: Write,
    /// What its begin and its ends may still wait for the store.
    budget: WriteBudget,
    /// Whether the write changes every job.
    pub(super) all: bool,
    /// Outcome of the write as far as it has shown itself.
    outcome: WriteOutcome,
    /// Decided once, with the fence: a body over HTTP/2 may end at any time.
    response_has_ended: bool,
    /// The end of the upload, if it may still be under way.
    upload: Option<UploadEnd>,
}

impl WriteInvalidation {
    pub(super) fn new(
        context: &Arc<ProxyContext>,
        write: Write,
        budget: WriteBudget,
        upload: Option<UploadEnd>,
    ) -> Self {
        Self {
            context: Arc::clone(context),
            span: spans::current(),
            write,
            budget,
            all: false,
            outcome: WriteOutcome::Known,
            response_has_ended: true,
            upload,
        }
    }

    /// Invalidates what a write has changed, then answers it. Must run in [`spawn_write`], so that
    /// nothing cancels it.
    pub(super) async fn conclude(mut self, sent: Result<Response<Body>, UpstreamError>) -> Answer {
        let fence = if let Ok(response) = &sent {
            self.fence_at_head(response)
        } else {
            self.upload = None;
            FenceEnd::Now(self.outcome)
        };
        let ended = self.invalidate(fence, InvalidationSource::Write).await;
        let pending = ended == Ended::Pending;
        match sent {
            Ok(response) => {
                let response = response.map(|body| self.invalidate_at_ends(body, fence));
                Answer::new(response, Verdict::Write { pending })
            }
            Err(error) => upstream_failure(&error),
        }
    }

    /// Invalidates again when the bodies have ended, and before the client sees the end of the
    /// response.
    fn invalidate_at_ends(self, body: Body, fence: FenceEnd) -> Body {
        if self.response_has_ended {
            self.spawn_end_after_upload();
            return body;
        }
        let tasks = self.context.tasks.clone();
        let on_end = move |end| tasks.spawn(self.end_after_response(end, fence));
        Body::watched(InvalidatingBody::new(body, on_end))
    }

    /// Invalidates when the response has ended. If the upload has not, the fence is kept.
    async fn end_after_response(mut self, end: BodyEndFuture, fence: FenceEnd) {
        self.note_end(end.await);
        self.response_has_ended = true;
        self.check_upload();
        let kept = self.upload.is_some().then_some(fence);
        self.end_again(kept).await;
        self.spawn_end_after_upload();
    }

    /// Invalidates when the upload has ended, if it is still under way after the response.
    fn spawn_end_after_upload(mut self) {
        let Some(upload) = self.upload.take() else { return };
        let tasks = self.context.tasks.clone();
        tasks.spawn(async move {
            self.note_end(upload.outcome().await);
            self.end_again(None).await;
        });
    }

    /// Invalidates again, and lifts the fence unless it is kept.
    async fn end_again(&mut self, kept: Option<FenceEnd>) {
        self.all |= self.context.superseded.is_cancelled();
        let fence = kept.unwrap_or(FenceEnd::Now(self.outcome));
        self.invalidate(fence, InvalidationSource::WriteBody).await;
    }

    /// Notes the jobs that the response names, and whether its status says that nothing was done.
    /// Then no other job is dropped, and the fence is lifted at once: a client without permission to
    /// write must be able neither to purge everything nor to keep a job uncached.
    pub(super) fn note_response(&mut self, status: StatusCode, named: &[JobId]) {
        self.context.cache.invalidator.widen(&mut self.write, named);
        if matches!(status.as_u16(), 401 | 403 | 405 | 413 | 415 | 429) {
            self.outcome = WriteOutcome::Refused;
            self.all = false;
        }
    }

    /// Notes that the upstream may still commit the write, unless its status says that nothing was
    /// done.
    pub(super) fn note_unknown(&mut self) {
        if self.outcome == WriteOutcome::Known {
            self.outcome = WriteOutcome::Unknown;
        }
    }

    /// Notes how a body ended. The upstream may act on the part of an upload that has arrived.
    fn note_end(&mut self, outcome: BodyOutcome) {
        if outcome == BodyOutcome::Truncated {
            self.note_unknown();
        }
    }

    /// Forgets an upload that has ended, and notes how.
    fn check_upload(&mut self) {
        if let Some(outcome) = self.upload.as_mut().and_then(UploadEnd::try_outcome) {
            self.upload = None;
            self.note_end(outcome);
        }
    }

    /// Decides when the fence falls, and which ends are still to come.
    fn fence_at_head(&mut self, response: &Response<Body>) -> FenceEnd {
        if response.body().upstream().is_some_and(|body| body.upload_unrequested)
            || mutants::is(Mutant::EndOnce)
        {
            self.upload = None;
        }
        self.check_upload();
        self.response_has_ended = response.body().is_end_stream() || mutants::is(Mutant::EndOnce);
        let ends_with_head = self.outcome == WriteOutcome::Refused
            || is_endless(response.headers())
            || response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.stage() == EndStage::Last || ends_with_head {
            FenceEnd::Now(self.outcome)
        } else {
            FenceEnd::WithBodies(Instant::now())
        }
    }

    /// Whether another end follows.
    fn stage(&self) -> EndStage {
        let is_over = self.response_has_ended && self.upload.is_none();
        if is_over { EndStage::Last } else { EndStage::Early }
    }

    /// Invalidates the jobs of the write, or every job, in a span of its own.
    async fn invalidate(&mut self, fence: FenceEnd, source: InvalidationSource) -> Ended {
        let invalidator = &self.context.cache.invalidator;
        let stage = self.stage();
        let span = spans::invalidate(&self.span, source.as_str());
        let end = async {
            let when = (fence, stage);
            let ended = invalidator.end(&self.write, &mut self.budget, when, source).await;
            if !self.all {
                return ended;
            }
            let outcome = match fence {
                FenceEnd::Now(outcome) => outcome,
                FenceEnd::WithBodies(_) => WriteOutcome::Known,
            };
            let started = tokio::time::Instant::now();
            let all = invalidator.end_all(outcome, self.budget.next_step().left()).await;
            self.budget.charge(started.elapsed());
            match all {
                Ended::Confirmed { .. } => ended,
                Ended::Pending => Ended::Pending,
            }
        };
        let ended = end.instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
        ended
    }
}

/// Runs a write in a task of its own: a client that hangs up cancels neither the write nor the
/// invalidation that must follow it.
///
/// The write is boxed: its future is large and is moved several times before it is first polled.
pub(super) async fn spawn_write(
    context: &ProxyContext,
    write: Pin<Box<dyn Future<Output = Answer> + Send>>,
) -> Answer {
    match context.tasks.spawn(write.instrument(spans::current())).await {
        Ok(answer) => answer,
        Err(error) => {
            error!(%error, "a write task died");
            refuse_with(StatusCode::INTERNAL_SERVER_ERROR, "internal")
        }
    }
}
