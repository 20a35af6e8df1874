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
    answer::{Answer, Verdict, refuse, refuse_for_now, refuse_with},
    body::{Body, Ending, Finish, Finishing},
    exchange::{Switch, end_after_unasked, prepare_response},
    reach::{Inspected, Unread},
    route::{Scope, Target},
};
use crate::{
    cache::{Cache, Outcome},
    interim::Interim,
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
        scope: Scope,
        request: Request<Incoming>,
        client: Peer,
        informational: Interim,
    ) -> Answer {
        self.detached(Arc::clone(self).carry_out(scope, request, client, informational)).await
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

    async fn carry_out(
        self: Arc<Self>,
        mut scope: Scope,
        request: Request<Incoming>,
        client: Peer,
        informational: Interim,
    ) -> Answer {
        let request = self.forwarded(request, client, &informational);
        let target = Target::of(&request, self.upstream.authority());
        let (mut head, body) = request.into_parts();
        let body = match self.inspector.request(&mut scope, &mut head, body).await {
            Ok(body) => body,
            Err(Unread::Broken(error)) => return refuse(&error),
            Err(Unread::NoRoom) => return refuse_for_now("memory"),
        };
        let (write, result) = self.forward_fenced(&scope, Request::from_parts(head, body)).await;
        // A response that we reject still answers the write.
        let outcome = match &result {
            Err(error) if error.may_have_arrived() => Outcome::Unknown,
            _ => Outcome::Known,
        };
        let all = scope.rules.iter().any(|rule| rule.is_all()) || self.superseded.is_told();
        let mut change = Change { write, all };
        if result.as_ref().is_err_and(|error| !error.may_have_arrived()) {
            // The upstream never saw the write. Otherwise attempts while the upstream is down would
            // empty the cache.
            change.all = false;
        }
        let result = result.map(|Inspected { response, mut jobs }| {
            jobs.extend(self.routes.mentioned(&target, &response));
            self.cache.widen(&mut change.write, &jobs);
            change.was_refused(response.status());
            response
        });
        let mut result = result.and_then(|response| prepare_response(response, Switch::Unasked));
        if let Ok(response) = &mut result {
            end_after_unasked(response, &informational);
        }
        self.conclude(change, outcome, result).await
    }

    /// Fences the jobs that a write may change, and forwards the write.
    async fn forward_fenced(
        &self,
        scope: &Scope,
        request: Request<RequestBody>,
    ) -> (Write, Result<Inspected, UpstreamError>) {
        let mut budget = self.cache.budget();
        let fence = self.cache.begin(&scope.jobs, &mut budget).instrument(spans::fence());
        let write = fence.await;
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
        change: Change,
        outcome: Outcome,
        result: Result<Response<Body>, UpstreamError>,
    ) -> Answer {
        let span = spans::invalidate(&spans::current(), "write");
        let ended = change.end(&self.cache, outcome).instrument(span.clone()).await;
        spans::record_result(&span, ended.as_str());
        let pending = ended == Ended::Pending;
        match result {
            Ok(response) => {
                let response = response.map(|body| self.end_again(body, change));
                Answer { response, verdict: Verdict::Write { pending } }
            }
            Err(error) => refuse(&error),
        }
    }

    /// Invalidates again when the upstream's body has ended.
    fn end_again(self: &Arc<Self>, body: Body, change: Change) -> Body {
        if body.is_end_stream() || mutants::is(Mutant::EndOnce) {
            return body;
        }
        let proxy = Arc::clone(self);
        let parent = spans::current();
        let end = move |finishing: Finishing| {
            let tasks = proxy.tasks.clone();
            let mut change = change;
            tasks.spawn(async move {
                let outcome = match finishing.await {
                    Finish::Whole => Outcome::Known,
                    Finish::Cut => Outcome::Unknown,
                };
                change.all |= proxy.superseded.is_told();
                let span = spans::invalidate(&parent, "write-body");
                let ended = change.end_again(&proxy.cache, outcome).instrument(span.clone()).await;
                spans::record_result(&span, ended.as_str());
            })
        };
        Body::Ending(Box::new(Ending::new(body, Box::new(end))))
    }
}

/// The invalidation that a write under way owes.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) write: Write,
    /// Whether the write changes every job.
    pub(super) all: bool,
}

impl Change {
    /// Invalidates before the write is answered.
    async fn end(&self, cache: &Arc<Cache>, outcome: Outcome) -> Ended {
        let ended = cache.end(&self.write, outcome).await;
        self.end_all(cache, outcome, ended).await
    }

    /// Invalidates again, when the response body has ended.
    async fn end_again(&self, cache: &Arc<Cache>, outcome: Outcome) -> Ended {
        let ended = cache.end_again(&self.write, outcome).await;
        self.end_all(cache, outcome, ended).await
    }

    /// Spares the other jobs if the status says that nothing was done. A client that may not purge
    /// everything must not be able to do so with writes that are refused.
    pub(super) fn was_refused(&mut self, status: StatusCode) {
        let refusals = [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::METHOD_NOT_ALLOWED,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        self.all &= !refusals.contains(&status);
    }

    async fn end_all(&self, cache: &Arc<Cache>, outcome: Outcome, ended: Ended) -> Ended {
        if !self.all {
            return ended;
        }
        match cache.end_all(outcome).await {
            Ended::Confirmed { .. } => ended,
            Ended::Pending => Ended::Pending,
        }
    }
}
