//! Requests that the cache takes no part in: both bodies stream through. If both ends switch
//! protocols, their byte streams are joined.
//!
//! A reload may add a route or a rule that covers a write already under way here. Nothing was fenced
//! for that write, and the jobs that its path or body names are no longer known. Meanwhile reads by
//! the new routes fill the cache with what the write is about to change. So from the reload on, such
//! a write counts as one that changes every job, as under a rule with `all = true`: every entry is
//! dropped before the write is answered. The reload itself also drops every entry, at once and again
//! after `store.linger`, for writes that were answered or given up just before.
//!
//! Not covered: a write that was passed on, had its response head sent before the reload, and
//! commits only at the end of its body, after the reload.

use std::sync::Arc;

use hyper::{
    Request, Response, Version,
    body::Incoming,
    http::{HeaderValue, Method, request::Parts},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tracing::debug;

use super::{
    answer::{Answer, Verdict, close_if_spent, upstream_failure},
    body::Body,
    proxy_context::{
        ProxyContext, Requester, prepare_response, prepare_switch, relay_informational,
        set_upgrade, switched_protocol,
    },
    write::{WriteInvalidation, spawn_write},
};
use crate::{
    cache::{RELOAD_WAIT, WriteOutcome},
    semantics::{
        headers,
        policy::Bypass,
        route::{WriteTarget, is_unsafe, overrides_method},
    },
    upstream::{Exchanged, PassedRead, RequestBody, ResponseBody, RetryPolicy, UploadEnd},
};

/// Forwards the head of a read that the cache cannot answer, for this client only.
pub(super) async fn forward_read(
    context: &ProxyContext,
    mut head: Parts,
    requester: &Requester,
    why: Bypass,
) -> Answer {
    context.prepare_request(&mut head, requester.client);
    let request = Request::from_parts(head, RequestBody::EMPTY);
    match context.exchange(relay_informational(request, requester)).await {
        Ok(response) => {
            Answer::new(response.map(Body::Upstream), Verdict::Pass { why, setting: None })
        }
        Err(error) => upstream_failure(&error),
    }
}

/// Forwards a request, and streams both bodies. The answer may still concern the cache: a
/// `POST /jobs` may name the job that it has changed.
pub(super) async fn forward(
    context: &Arc<ProxyContext>,
    mut request: Request<Incoming>,
    requester: Requester,
    why: Bypass,
) -> Answer {
    // Events are recorded per job. A method such as OPTIONS says nothing about the job, nor does
    // the mode.
    if !matches!(why, Bypass::Method | Bypass::Off)
        && let Some(job) = context.routes.job_at(request.uri().path())
    {
        context.cache.record_pass(&job, why);
    }
    let setting = advised_setting(context, &request, why);
    let upgrade = Upgrade::of(&mut request);
    let may_change = is_unsafe(&request);
    let retry =
        if overrides_method(&request) { RetryPolicy::Never } else { RetryPolicy::OnceIfSafe };
    let mut request = context.forward_request(request, &requester);
    if let Some(upgrade) = &upgrade {
        set_upgrade(request.headers_mut(), upgrade.protocols.clone());
    }
    let write = may_change.then(|| PassedWrite {
        context: Arc::clone(context),
        method: request.method().clone(),
        target: WriteTarget::of(&request),
        is_answered: false,
    });
    let (head, body) = request.into_parts();
    let (body, upload) = if may_change { body.tracked() } else { (body, None) };
    let mut request = Request::from_parts(head, body);
    if !may_change {
        request.extensions_mut().insert(PassedRead);
    }
    let sent = context.send(request, retry).await;
    let mut response = match sent.and_then(|sent| prepare_passed(context, sent, upgrade)) {
        Ok(response) => response.map(Body::Upstream),
        Err(error) => return upstream_failure(&error),
    };
    close_if_spent(&mut response, &requester);
    let Some(invalidation) = write.and_then(|write| write.invalidation(upload, &response)) else {
        return Answer::new(response, Verdict::Pass { why, setting });
    };
    spawn_write(context, Box::pin(invalidation.conclude(Ok(response)))).await
}

/// Returns the setting with which a request would be cached, and lets the log propose it.
fn advised_setting<B>(
    context: &ProxyContext,
    request: &Request<B>,
    why: Bypass,
) -> Option<&'static str> {
    let path = request.uri().path();
    let setting = context.routes.setting_for(path, why);
    if *request.method() == Method::GET {
        let totals = || context.metrics.requests.totals();
        context.advice.note(&context.routes, (path, why, setting), totals);
    }
    setting
}

/// A write that names no job in its target. If the client or the upstream gives up before there is
/// an answer, the outcome is unknown.
struct PassedWrite {
    context: Arc<ProxyContext>,
    method: Method,
    target: WriteTarget,
    is_answered: bool,
}

impl PassedWrite {
    /// Returns the invalidation due for the write now that it has an answer, if one is: of the jobs
    /// that the answer names, or of every job if a reload has changed the routes meanwhile.
    fn invalidation(
        mut self,
        upload: Option<UploadEnd>,
        response: &Response<Body>,
    ) -> Option<WriteInvalidation> {
        self.is_answered = true;
        let ProxyContext { routes, cache, metrics, superseded, .. } = &*self.context;
        let named = routes.location_targets(&self.target, response);
        let jobs = named.all_jobs();
        if jobs.is_empty() && response.status().is_success() {
            metrics.unclaimed.count(routes, &self.method, &self.target);
        }
        let all = superseded.is_cancelled() || named.changes_unlisted();
        if jobs.is_empty() && !all {
            return None;
        }
        let unfenced = cache.invalidator.unfenced();
        let budget = cache.write_budget();
        let mut invalidation = WriteInvalidation::new(&self.context, unfenced, budget, upload);
        invalidation.all = all;
        invalidation.note_response(response.status(), &jobs);
        Some(invalidation)
    }
}

impl Drop for PassedWrite {
    fn drop(&mut self) {
        let ProxyContext { cache, tasks, superseded, .. } = &*self.context;
        if !self.is_answered && superseded.is_cancelled() {
            let cache = Arc::clone(cache);
            let outcome = WriteOutcome::Unknown;
            tasks.spawn(async move { cache.invalidator.end_all(outcome, RELOAD_WAIT).await });
        }
    }
}

/// A client's request to switch protocols.
struct Upgrade {
    client: OnUpgrade,
    protocols: HeaderValue,
}

impl Upgrade {
    /// Returns the upgrade that a request asks for, if it is one that we pass on.
    fn of(request: &mut Request<Incoming>) -> Option<Self> {
        // "A server MUST ignore an Upgrade header field that is received in an HTTP/1.0 request."
        // RFC 9110 7.8
        if request.version() != Version::HTTP_11 {
            return None;
        }
        let protocols = headers::offered_protocols(request.headers())?;
        Some(Self { client: hyper::upgrade::on(request), protocols })
    }
}

/// Prepares the response to a request that passes. Joins the two connections if both ends switch
/// protocols: then the upstream connection keeps its permit until the end of the copy.
fn prepare_passed(
    context: &ProxyContext,
    response: Response<ResponseBody>,
    upgrade: Option<Upgrade>,
) -> Exchanged {
    // A switch to a protocol that was not forwarded is an error.
    let protocol = switched_protocol(&response);
    let is_granted = |Upgrade { protocols, .. }: &Upgrade| {
        protocol.is_some_and(|protocol| headers::is_offered(protocols, &protocol))
    };
    let Some(Upgrade { client, .. }) = upgrade.filter(is_granted) else {
        return prepare_response(response);
    };
    let mut response = prepare_switch(response)?;
    let permit = response.body_mut().permit.take();
    let upstream = hyper::upgrade::on(&mut response);
    context.tasks.spawn(async move {
        let _permit = permit;
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(ends) => ends,
            Err(error) => return debug!(%error, "an upgrade failed"),
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        if let Err(error) = copy_bidirectional(&mut client, &mut upstream).await {
            debug!(%error, "an upgraded connection broke");
        }
    });
    Ok(response)
}
