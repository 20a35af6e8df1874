//! Requests that the cache takes no part in: both bodies stream through.

use std::sync::Arc;

use hyper::{
    Request, Response,
    body::Incoming,
    http::{Method, request::Parts},
};

use super::{
    answer::{Answer, Verdict, close_if_spent, upstream_failure},
    body::Body,
    exchange::{ProtocolSwitch, prepare_response, relay_informational},
    proxy_context::{ProxyContext, Requester},
    stale_config::StaleConfigGuard,
    unclaimed::UnclaimedWrites,
    upgrade::Upgrade,
    write_end::{WriteInvalidation, spawn_write, track_upload},
};
use crate::{
    semantics::{
        policy::Bypass,
        route::{WriteTarget, is_unsafe, overrides_method},
    },
    upstream::{RequestBody, ResponseBody, RetryPolicy, UploadEnd, UpstreamError},
};

/// Forwards requests past the cache.
#[derive(Debug)]
pub(super) struct Passes {
    pub(super) context: Arc<ProxyContext>,
    pub(super) unclaimed: Arc<UnclaimedWrites>,
}

impl Passes {
    /// Forwards the head of a read that the cache cannot answer, for this client only.
    pub(super) async fn forward_read(
        &self,
        mut head: Parts,
        requester: Requester,
        why: Bypass,
    ) -> Answer {
        self.context.prepare_request(&mut head, requester.client);
        let mut request = Request::from_parts(head, RequestBody::EMPTY);
        relay_informational(&mut request, &requester);
        match self.context.exchange(request).await {
            Ok(response) => Answer::new(response.map(Body::Upstream), Verdict::Pass(why)),
            Err(error) => upstream_failure(&error),
        }
    }

    /// Forwards a request, and streams both bodies. The answer may still concern the cache: a
    /// `POST /jobs` may name the job that it has changed.
    pub(super) async fn forward(
        &self,
        mut request: Request<Incoming>,
        requester: Requester,
        why: Bypass,
    ) -> Answer {
        // Events are recorded per job. A method such as OPTIONS says nothing about the job, nor does
        // the mode.
        if !matches!(why, Bypass::Method | Bypass::Off)
            && let Some(id) = self.context.routes.job_at(request.uri().path())
        {
            self.context.cache.record_pass(id, why);
        }
        let upgrade = Upgrade::of(&mut request);
        let may_change = is_unsafe(&request);
        let overridden = overrides_method(&request);
        let mut request = self.context.forward_request(request, &requester);
        if let Some(upgrade) = &upgrade {
            upgrade.add_to(request.headers_mut());
        }
        let write = may_change.then(|| PassedWrite::of(&self.context, &request));
        let retry = if overridden { RetryPolicy::Never } else { RetryPolicy::OnceIfSafe };
        let (request, upload) = track_upload(request, may_change);
        let sent = self.context.send(request, retry).await;
        let mut response = match sent.and_then(|sent| self.prepare_passed(sent, upgrade)) {
            Ok(response) => response.map(Body::Upstream),
            Err(error) => return upstream_failure(&error),
        };
        close_if_spent(&mut response, &requester);
        match write.and_then(|write| self.invalidation(write, upload, &response)) {
            Some(invalidation) => {
                let context = Arc::clone(&self.context);
                spawn_write(&self.context, invalidation.conclude(context, Ok(response))).await
            }
            None => Answer::new(response, Verdict::Pass(why)),
        }
    }

    /// Prepares the response to a request that passes. Joins the two connections if both ends
    /// switch protocols.
    fn prepare_passed(
        &self,
        response: Response<ResponseBody>,
        upgrade: Option<Upgrade>,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let upgrade = upgrade.filter(|upgrade| upgrade.admits(&response));
        let switch = if upgrade.is_some() {
            ProtocolSwitch::Requested
        } else {
            ProtocolSwitch::NotRequested
        };
        let mut response = prepare_response(response, switch)?;
        if let Some(upgrade) = upgrade {
            let permit = response.body_mut().take_permit();
            upgrade.spawn_copy(&mut response, permit, &self.context.tasks);
        }
        Ok(response)
    }

    /// Returns the invalidation due for a write without jobs in its target, if one is: of the jobs
    /// that its answer names, or of every job if a reload has changed the routes meanwhile.
    fn invalidation(
        &self,
        write: PassedWrite,
        upload: Option<UploadEnd>,
        response: &Response<Body>,
    ) -> Option<WriteInvalidation> {
        let PassedWrite { method, target, stale_guard } = write;
        let jobs = self.context.routes.location_targets(&target, response);
        if jobs.is_empty() && response.status().is_success() {
            self.unclaimed.count(&self.context.routes, &method, &target);
        }
        let all = stale_guard.answered();
        if jobs.is_empty() && !all {
            return None;
        }
        let invalidator = &self.context.cache.invalidator;
        let mut invalidation = WriteInvalidation::new(invalidator.unfenced(), upload);
        invalidation.all = all;
        invalidation.note_status(response.status());
        invalidator.widen(&mut invalidation.write, &jobs);
        Some(invalidation)
    }
}

/// A write that names no job in its target.
struct PassedWrite {
    method: Method,
    target: WriteTarget,
    stale_guard: StaleConfigGuard,
}

impl PassedWrite {
    fn of<B>(context: &ProxyContext, request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            target: WriteTarget::of(request),
            stale_guard: context.stale_config.guard(&context.cache, &context.tasks),
        }
    }
}
