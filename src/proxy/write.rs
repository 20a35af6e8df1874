//! Writes: the jobs that a write may change are fenced before it is forwarded, and invalidated
//! before it is answered. `write_end` invalidates them again when its bodies have ended.

use std::sync::Arc;

use hyper::{Request, body::Incoming};
use tracing::Instrument as _;

use super::{
    answer::{Answer, close_if_spent, refuse_retryable, upstream_failure},
    body_rules::{
        BodyInspector, InspectError, InspectedResponse, RuleFinding, misses_unknown_response,
    },
    exchange::{ProtocolSwitch, prepare_response},
    proxy_context::{ProxyContext, Requester},
    unclaimed::UnclaimedWrites,
    write_end::{WriteInvalidation, spawn_write},
};
use crate::{
    limits::Quota,
    observe::{metrics::Registry, spans},
    semantics::route::{WriteScope, WriteTarget},
    store::Write,
    upstream::{RequestBody, RetryPolicy, UpstreamError},
};

/// Forwards writes.
#[derive(Clone, Debug)]
pub(super) struct Writes {
    pub(super) context: Arc<ProxyContext>,
    pub(super) inspector: Arc<BodyInspector>,
    pub(super) unclaimed: Arc<UnclaimedWrites>,
}

impl Writes {
    /// `inspected` limits the memory for bodies that `[[invalidate]]` rules read.
    pub(super) fn new(
        context: Arc<ProxyContext>,
        inspected: Arc<Quota>,
        registry: &mut Registry,
    ) -> Self {
        let inspector = Arc::new(BodyInspector::new(inspected, registry));
        let unclaimed = Arc::new(UnclaimedWrites::new(registry));
        Self { context, inspector, unclaimed }
    }

    /// Forwards a write in a task of its own, and answers it once its jobs are invalidated.
    pub(super) async fn forward(
        self: &Arc<Self>,
        scope: WriteScope,
        request: Request<Incoming>,
        requester: Requester,
    ) -> Answer {
        let write = Arc::clone(self).forward_write(scope, request, requester);
        spawn_write(&self.context, write).await
    }

    async fn forward_write(
        self: Arc<Self>,
        mut scope: WriteScope,
        request: Request<Incoming>,
        requester: Requester,
    ) -> Answer {
        let request = self.context.forward_request(request, &requester);
        let target = WriteTarget::of(&request);
        let method = request.method().clone();
        let (mut head, body) = request.into_parts();
        let inspected = match self.inspector.request(&mut scope, &mut head, body).await {
            Ok(inspected) => inspected,
            Err(InspectError::Broken(error)) => return upstream_failure(&error),
            Err(InspectError::NoRoom) => return refuse_retryable("memory"),
        };
        let (body, upload) = inspected.body.tracked();
        let (write, result) = self.forward_fenced(&scope, Request::from_parts(head, body)).await;
        let mut invalidation = WriteInvalidation::new(write, upload);
        invalidation.all = self.changes_all(&scope, inspected.finding, &result);
        // Noted here, because a response that we reject below still answers the write.
        if result.as_ref().is_err_and(UpstreamError::may_have_arrived) {
            invalidation.note_unknown();
        }
        let result = result.map(|InspectedResponse { response, named }| {
            let mut jobs = named.jobs;
            jobs.extend(self.context.routes.location_targets(&target, &response));
            let is_claimed = !scope.rules.is_empty() || !scope.names_no_job() || !jobs.is_empty();
            if response.status().is_success() && !is_claimed {
                self.unclaimed.count(&self.context.routes, &method, &target);
            }
            self.context.cache.invalidator.widen(&mut invalidation.write, &jobs);
            invalidation.note_status(response.status());
            response
        });
        let mut result =
            result.and_then(|response| prepare_response(response, ProtocolSwitch::NotRequested));
        if let Ok(response) = &mut result {
            close_if_spent(response, &requester);
        }
        invalidation.conclude(Arc::clone(&self.context), result).await
    }

    /// Whether a write counts as one that changes every job, unless its status refuses it.
    fn changes_all(
        &self,
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
                let is_accepted =
                    response.status().is_success() || response.status().is_redirection();
                is_accepted && [request, named.finding].contains(&RuleFinding::Incomplete)
            }
        };
        if missed {
            self.inspector.count_fallback();
        }
        let is_success = |inspected: &InspectedResponse| inspected.response.status().is_success();
        let has_too_many = scope.too_many && result.as_ref().map_or(true, is_success);
        let has_all_rule = scope.rules.iter().any(|rule| rule.is_all());
        missed || has_too_many || has_all_rule || self.context.stale_config.is_stale()
    }

    /// Fences the jobs that a write may change, and forwards the write.
    async fn forward_fenced(
        &self,
        scope: &WriteScope,
        request: Request<RequestBody>,
    ) -> (Write, Result<InspectedResponse, UpstreamError>) {
        let mut budget = self.context.cache.budget();
        let begin =
            self.context.cache.invalidator.begin_named(&scope.jobs, &scope.elsewhere, &mut budget);
        let write = begin.instrument(spans::fence()).await;
        let exchange = async {
            let response = self.context.send(request, RetryPolicy::Never).await?;
            self.inspector.response(&scope.rules, response).await
        };
        let result = tokio::select! {
            result = exchange => result,
            never = self.context.cache.invalidator.keep_fenced(&write) => match never {},
        };
        (write, result)
    }
}
