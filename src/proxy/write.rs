//! Writes: the jobs that a write may change are fenced before it is forwarded, and invalidated
//! before it is answered. `write_end` invalidates them again when its bodies have ended.

use std::sync::Arc;

use hyper::{Request, body::Incoming};
use tracing::Instrument as _;

use super::{
    answer::{Answer, close_if_spent, refuse_retryable, upstream_failure},
    body_rules::{InspectError, InspectedResponse, RuleFinding, misses_unknown_response},
    proxy_context::{ProxyContext, Requester, prepare_response},
    write_end::{WriteInvalidation, spawn_write},
};
use crate::{
    observe::spans,
    semantics::route::{WriteScope, WriteTarget},
    store::Write,
    upstream::{RequestBody, RetryPolicy, UpstreamError},
};

/// Forwards a write in a task of its own, and answers it once its jobs are invalidated.
pub(super) async fn forward(
    context: &Arc<ProxyContext>,
    scope: WriteScope,
    request: Request<Incoming>,
    requester: Requester,
) -> Answer {
    spawn_write(context, forward_write(Arc::clone(context), scope, request, requester)).await
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
    let (write, result) = forward_fenced(&context, &scope, Request::from_parts(head, body)).await;
    let mut invalidation = WriteInvalidation::new(&context, write, upload);
    invalidation.all = changes_all(&context, &scope, finding, &result);
    // Noted here, because a response that we reject below still answers the write.
    if result.as_ref().is_err_and(UpstreamError::may_have_arrived) {
        invalidation.note_unknown();
    }
    let result = result.map(|InspectedResponse { response, named }| {
        let mut jobs = named.jobs;
        jobs.extend(context.routes.location_targets(&target, &response));
        let is_claimed = !scope.rules.is_empty() || !scope.names_no_job() || !jobs.is_empty();
        if response.status().is_success() && !is_claimed {
            context.metrics.unclaimed.count(&context.routes, &method, &target);
        }
        context.cache.invalidator.widen(&mut invalidation.write, &jobs);
        invalidation.note_status(response.status());
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
    request: Request<RequestBody>,
) -> (Write, Result<InspectedResponse, UpstreamError>) {
    let invalidator = &context.cache.invalidator;
    let mut budget = context.cache.budget();
    let begin = invalidator.begin(&scope.jobs, &scope.elsewhere, &mut budget);
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
        context.inspector.count_fallback();
    }
    let is_success = |inspected: &InspectedResponse| inspected.response.status().is_success();
    let has_too_many = scope.too_many && result.as_ref().map_or(true, is_success);
    let has_all_rule = scope.rules.iter().any(|rule| rule.is_all());
    missed || has_too_many || has_all_rule || context.superseded.is_cancelled()
}
