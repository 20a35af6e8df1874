//! Writes: the jobs that a write may change are fenced before it is forwarded, and invalidated
//! before it is answered and again when its response body has ended.

use std::{future::Future, sync::Arc};

use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
};
use tracing::{Instrument as _, error};

use super::{
    Proxy,
    answer::{Answer, Verdict, refuse_retryable, refuse_with, upstream_failure},
    body::{Body, BodyEnd, BodyEndFuture, InvalidatingBody},
    body_rules::{InspectError, InspectedResponse},
    exchange::{ProtocolSwitch, close_after_unread_upload, prepare_response},
    route::{WriteScope, WriteTarget},
};
use crate::{
    cache::{Cache, WriteOutcome},
    informational::Informational,
    mutants::{self, Mutant},
    spans,
    store::{Ended, Write},
    transport::Peer,
    upstream::{RequestBody, RetryPolicy, UpstreamError},
};

impl Proxy {
    /// Forwards a write in a task of its own: a client that hangs up cancels neither the write nor
    /// the invalidation that must follow it.
    pub(super) async fn write(
        self: &Arc<Self>,
        scope: WriteScope,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> Answer {
        self.detached(Arc::clone(self).forward_write(scope, request, client, informational)).await
    }

    pub(super) async fn detached(
        &self,
        write: impl Future<Output = Answer> + Send + 'static,
    ) -> Answer {
        match self.tasks.spawn(write.instrument(spans::current())).await {
            Ok(answer) => answer,
            Err(error) => {
                error!(%error, "a write task died");
                refuse_with(StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        }
    }

    async fn forward_write(
        self: Arc<Self>,
        mut scope: WriteScope,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> Answer {
        let request = self.forward_request(request, client, &informational);
        let target = WriteTarget::of(&request);
        let method = request.method().clone();
        let (mut head, body) = request.into_parts();
        let body = match self.inspector.request(&mut scope, &mut head, body).await {
            Ok(body) => body,
            Err(InspectError::Broken(error)) => return upstream_failure(&error),
            Err(InspectError::NoRoom) => return refuse_retryable("memory"),
        };
        let (write, result) = self.forward_fenced(&scope, Request::from_parts(head, body)).await;
        // A response that we reject still answers the write.
        let outcome = match &result {
            Err(error) if error.may_have_arrived() => WriteOutcome::Unknown,
            _ => WriteOutcome::Known,
        };
        let all = scope.rules.iter().any(|rule| rule.is_all())
            || self.stale_config.is_stale()
            || scope.too_many && changes_too_many(outcome, result.as_ref().ok());
        let mut change = WriteInvalidation { write, all };
        if result.as_ref().is_err_and(|error| !error.may_have_arrived()) {
            // The upstream never saw the write. Otherwise attempts while the upstream is down would
            // empty the cache.
            change.all = false;
        }
        let result = result.map(|InspectedResponse { response, mut jobs }| {
            jobs.extend(self.routes.location_targets(&target, &response));
            let is_claimed = !scope.rules.is_empty() || !scope.names_no_job() || !jobs.is_empty();
            if response.status().is_success() && !is_claimed {
                self.unclaimed.count(&self.routes, &method, &target);
            }
            self.cache.widen(&mut change.write, &jobs);
            change.spare_if_refused(response.status());
            response
        });
        let mut result =
            result.and_then(|response| prepare_response(response, ProtocolSwitch::NotRequested));
        if let Ok(response) = &mut result {
            close_after_unread_upload(response, &informational);
        }
        self.conclude(change, outcome, result).await
    }

    /// Fences the jobs that a write may change, and forwards the write.
    async fn forward_fenced(
        &self,
        scope: &WriteScope,
        request: Request<RequestBody>,
    ) -> (Write, Result<InspectedResponse, UpstreamError>) {
        let mut budget = self.cache.budget();
        let begin = self.cache.begin_named(&scope.jobs, &scope.elsewhere, &mut budget);
        let write = begin.instrument(spans::fence()).await;
        let exchange = async {
            let response = self.send(request, RetryPolicy::Never).await?;
            self.inspector.response(&scope.rules, response).await
        };
        let result = tokio::select! {
            result = exchange => result,
            never = self.cache.keep_fenced(&write) => match never {},
        };
        (write, result)
    }

    /// Invalidates what a write has changed, then answers it. Must run in a task that nothing
    /// cancels.
    pub(super) async fn conclude(
        self: Arc<Self>,
        change: WriteInvalidation,
        outcome: WriteOutcome,
        result: Result<Response<Body>, UpstreamError>,
    ) -> Answer {
        let span = spans::invalidate(&spans::current(), "write");
        let ended = change.run(&self.cache, outcome).instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
        let pending = ended == Ended::Pending;
        match result {
            Ok(response) => {
                let response = response.map(|body| self.invalidate_at_body_end(body, change));
                Answer { response, verdict: Verdict::Write { pending } }
            }
            Err(error) => upstream_failure(&error),
        }
    }

    /// Invalidates again when the upstream's body has ended.
    fn invalidate_at_body_end(self: &Arc<Self>, body: Body, change: WriteInvalidation) -> Body {
        if body.is_end_stream() || mutants::is(Mutant::EndOnce) {
            return body;
        }
        let proxy = Arc::clone(self);
        let parent = spans::current();
        let end = move |finishing: BodyEndFuture| {
            let tasks = proxy.tasks.clone();
            let mut change = change;
            tasks.spawn(async move {
                let outcome = match finishing.await {
                    BodyEnd::Complete => WriteOutcome::Known,
                    BodyEnd::Truncated => WriteOutcome::Unknown,
                };
                change.all |= proxy.stale_config.is_stale();
                let span = spans::invalidate(&parent, "write-body");
                let ended = change.run_again(&proxy.cache, outcome).instrument(span.clone()).await;
                spans::record_result(&span, ended.as_str());
            })
        };
        Body::Invalidating(Box::new(InvalidatingBody::new(body, Box::new(end))))
    }
}

/// Whether a write that names more jobs than are invalidated one by one counts as one that changes
/// every job.
fn changes_too_many(outcome: WriteOutcome, response: Option<&InspectedResponse>) -> bool {
    outcome == WriteOutcome::Unknown
        || response.is_some_and(|inspected| inspected.response.status().is_success())
}

/// The invalidation that a write under way owes.
#[derive(Debug)]
pub(super) struct WriteInvalidation {
    pub(super) write: Write,
    /// Whether the write changes every job.
    pub(super) all: bool,
}

impl WriteInvalidation {
    /// Invalidates before the write is answered.
    async fn run(&self, cache: &Arc<Cache>, outcome: WriteOutcome) -> Ended {
        let ended = cache.end(&self.write, outcome).await;
        self.run_all(cache, outcome, ended).await
    }

    /// Invalidates again, when the response body has ended.
    async fn run_again(&self, cache: &Arc<Cache>, outcome: WriteOutcome) -> Ended {
        let ended = cache.end_after_body(&self.write, outcome).await;
        self.run_all(cache, outcome, ended).await
    }

    /// Spares the other jobs if the status says that nothing was done. A client that may not purge
    /// everything must not be able to do so with writes that are refused.
    pub(super) fn spare_if_refused(&mut self, status: StatusCode) {
        let refusals = [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        self.all &= !refusals.contains(&status);
    }

    async fn run_all(&self, cache: &Arc<Cache>, outcome: WriteOutcome, ended: Ended) -> Ended {
        if !self.all {
            return ended;
        }
        match cache.end_all(outcome).await {
            Ended::Confirmed { .. } => ended,
            Ended::Pending => Ended::Pending,
        }
    }
}
