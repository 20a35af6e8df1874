//! The request pipeline: from a client's request to its answer.
//!
//! [`Proxy::serve`] takes every request through the same steps:
//!
//! 1. `headers` drops the forwarding fields of a peer that is not trusted, `framing` refuses a
//!    message that two readers could take differently, and the request takes a permit of the
//!    `server.max_requests` quota.
//! 2. [`route`](crate::semantics::route) classifies the request from its head alone: read, write or pass.
//! 3. `read` answers a read of a job from this process, from the store, or by one upstream read
//!    that all waiting clients share (`lead`). In shadow mode, `shadow` answers from the upstream
//!    and only compares.
//! 4. `write` fences the jobs that a write may change, forwards the write, and invalidates those
//!    jobs before it answers. `body_rules` finds the jobs that only a body names. `write_end`
//!    invalidates them again when the bodies have ended.
//! 5. Everything else passes: both bodies stream through.
//! 6. `answer` derives `Cache-Status`, the metrics and the access log from one verdict.
//!
//! The other parts support these steps. `exchange` turns a client's message into ours and back,
//! `body` streams and captures response bodies, and `upgrade` joins two connections. `repeat_hit`
//! answers a repeated request below hyper, `prefetch` reads a job before a client asks for it, and
//! `verify` checks hits against the upstream. `stale_config_guard` covers writes that are still
//! running when a reload changes the routes. `unclaimed` reports writes at the jobs that name none.
//!
//! Decided elsewhere: what may be stored and who may receive it (`cache`), connections, timeouts
//! and retries (`upstream`), sockets and HTTP parsing (`server`).

mod answer;
pub mod body;
mod body_rules;
mod comparison_metrics;
mod exchange;
pub(crate) mod framing;
mod lead;
pub(crate) mod metrics;
mod prefetch;
mod read;
pub mod repeat_hit;
pub mod shadow;
mod stale_config_guard;
mod unclaimed;
mod upgrade;
mod verify;
mod write;
mod write_end;

pub use prefetch::{JobListError, PrefetchOutcome};

use std::{fmt, future::Future, sync::Arc};

use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    http::Method,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, warn};

use self::{
    answer::{AccessLine, Answer, Verdict, refuse_and_close, refuse_retryable, upstream_failure},
    body::Body,
    body_rules::BodyInspector,
    exchange::{
        ProtocolSwitch, close_after_unread_upload, close_with_bound_connection, prepare_response,
    },
    metrics::ProxyMetrics,
    repeat_hit::RepeatHit,
    stale_config_guard::{StaleConfig, StaleConfigGuard},
    unclaimed::UnclaimedWrites,
    upgrade::Upgrade,
    write_end::{WriteInvalidation, track_upload},
};
use crate::{
    cache::{Cache, WriteOutcome},
    config::{self, CacheMode, Config, SampleRate},
    informational::Informational,
    limits::{Limit, Quota},
    observe::{
        events::{Events, HitSample},
        metrics::Registry,
        spans,
    },
    semantics::{
        headers,
        policy::Bypass,
        route::{Route, Routes, WriteTarget, is_unsafe, overrides_method},
    },
    service::Answered,
    transport::Peer,
    upstream::{ResponseBody, RetryPolicy, UploadEnd, Upstream, UpstreamError},
};

/// Answers the requests of clients under one configuration.
///
/// A request keeps its `Proxy` until it ends, so a reload never changes the rules in the middle of
/// a request. A [`revised`](Proxy::revised) proxy shares everything with the old one except what
/// its configuration sets.
#[derive(Clone)]
pub struct Proxy {
    routes: Arc<Routes>,
    /// Set when a reload puts other routes or rules into force.
    stale_config: StaleConfig,
    cache: Arc<Cache>,
    upstream: Arc<Upstream>,
    /// Writes and flights, which outlive the client that began them, and upgraded connections.
    tasks: TaskTracker,
    inspector: Arc<BodyInspector>,
    unclaimed: Arc<UnclaimedWrites>,
    mode: CacheMode,
    /// The share of hits that is compared with the upstream.
    verify: SampleRate,
    /// Limits the comparisons that run in the background, those of shadow mode included.
    comparisons: Arc<Quota>,
    /// Cancelled when the drain begins: a drain does not wait for comparisons.
    draining: CancellationToken,
    access_log: bool,
    /// Whether spans are exported.
    traced: bool,
    /// Limits the requests that are being answered.
    requests: Arc<Quota>,
    limits: config::ServerConfig,
    metrics: Arc<ProxyMetrics>,
    events: Arc<Events>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("mode", &self.mode)
            .field("cache", &self.cache)
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Assembles a proxy.
    pub fn new(
        routes: Arc<Routes>,
        cache: Arc<Cache>,
        upstream: Upstream,
        config: &Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Self {
        let metrics = Arc::new(ProxyMetrics::register(registry));
        let hits = &metrics.limits;
        let inspected = Quota::of(Limit::Inspected, config.max_inspected, &metrics.inspected, hits);
        let limits = config.server.clone();
        let requests = Quota::of(Limit::Requests, limits.max_requests, &metrics.in_flight, hits);
        Self {
            routes,
            stale_config: StaleConfig::default(),
            cache,
            upstream: Arc::new(upstream),
            tasks: TaskTracker::new(),
            inspector: Arc::new(BodyInspector::new(inspected, registry)),
            unclaimed: Arc::new(UnclaimedWrites::new(registry)),
            mode: config.mode,
            verify: config.verify,
            comparisons: verify::comparison_quota(&metrics),
            draining: CancellationToken::new(),
            access_log: config.access_log,
            traced: config.traces.is_some(),
            requests,
            limits,
            metrics,
            events,
        }
    }

    /// Returns the metrics of this proxy.
    pub(crate) fn metrics(&self) -> &Arc<ProxyMetrics> {
        &self.metrics
    }

    /// Returns this proxy under another configuration of the same upstream. New routes or rules
    /// supersede the old ones: a write that the old proxy is still answering then counts as one
    /// that changes every job.
    #[must_use]
    pub fn revised(&self, routes: Arc<Routes>, cache: Arc<Cache>, config: &Config) -> Self {
        let superseded = if Arc::ptr_eq(&routes, &self.routes) {
            self.stale_config.clone()
        } else {
            self.stale_config.mark();
            StaleConfig::default()
        };
        let Config { mode, verify, access_log, .. } = *config;
        let limits = config.server.clone();
        let stale_config = superseded;
        Self { routes, stale_config, cache, mode, verify, access_log, limits, ..self.clone() }
    }

    /// Waits until `deadline` for writes and flights that have outlived their clients, and for
    /// upgraded connections.
    pub async fn finish(&self, deadline: Instant) {
        self.tasks.close();
        self.draining.cancel();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let tasks = self.tasks.len();
            warn!(
                tasks,
                "drain deadline passed; unfinished writes, reads and upgrades are cut off"
            );
        }
    }

    /// Answers one request. Every failure becomes an answer.
    pub fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<Body, RepeatHit>> + Send + 'static {
        let span = spans::request(&request, client.scheme(), || {
            self.routes.route_of(request.uri().path())
        });
        self.serve_within(request, client, informational).instrument(span)
    }

    async fn serve_within(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> Answered<Body, RepeatHit> {
        // Before anything reads the headers: jobcache must distinguish callers by the same fields
        // that the upstream will see.
        if !client.is_trusted {
            headers::strip_forwarded(request.headers_mut());
        }
        if client.is_tls {
            headers::set_forwarded_proto(request.headers_mut(), client);
        }
        let access_line = self.access_log.then(|| AccessLine::of(&request));
        let mut repeat_hit = None;
        let sample = self.events.sample();
        let answer = match (framing::check(&request, &self.limits), self.requests.take(1)) {
            (Err(refusal), _) => {
                refusal.limit().inspect(|&limit| self.metrics.limits.count(limit));
                refuse_and_close(refusal.status(), refusal.as_str(), request.version())
            }
            (Ok(()), None) => refuse_retryable("overloaded"),
            (Ok(()), Some(_permit)) => {
                self.answer(request, client, informational, sample.as_ref(), &mut repeat_hit).await
            }
        };
        let response = answer.report(&self.metrics.requests, access_line);
        Answered { response, repeat: repeat_hit }
    }

    /// Answers a request according to its route. Everything except a hit in this process is boxed:
    /// the other futures are large and are moved several times before they are first polled, and a
    /// hit should not pay for that.
    ///
    /// `repeat_hit` is set when the next request with the same header fields can reuse what was
    /// derived from these.
    async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
        sample: Option<&HitSample>,
        repeat_hit: &mut Option<RepeatHit>,
    ) -> Answer {
        match self.routes.classify(&request) {
            Route::Read(id, route) => {
                let Some(why) = self.read_bypass(&request, client) else {
                    let requester = (client, informational);
                    return self
                        .answer_read((&id, route), request, requester, sample, repeat_hit)
                        .await;
                };
                if why != Bypass::Off {
                    self.cache.record_pass(id.as_str(), why);
                }
                Box::pin(self.pass(request, client, informational, why)).await
            }
            Route::Write(scope) => {
                Box::pin(self.write(scope, request, client, informational)).await
            }
            Route::Pass(_) if request.method() == Method::CONNECT => {
                refuse_and_close(StatusCode::METHOD_NOT_ALLOWED, "connect", request.version())
            }
            Route::Pass(why) => {
                // Events are recorded per job, so other paths have none. A method such as OPTIONS
                // says nothing about the job.
                if let Some(id) = self.routes.job_at(request.uri().path())
                    && why != Bypass::Method
                {
                    self.cache.record_pass(id, why);
                }
                Box::pin(self.pass(request, client, informational, why)).await
            }
        }
    }

    /// Returns why a read of a job bypasses the cache, if it does.
    fn read_bypass(&self, request: &Request<Incoming>, client: Peer) -> Option<Bypass> {
        // An HTTP/2 request can have a body without a header that announces it.
        if !request.body().is_end_stream() {
            return Some(Bypass::RequestBody);
        }
        if self.cache.must_bypass(request.headers()) {
            return Some(Bypass::Credentials);
        }
        // The upstream knows the user by the connection, so the fields do not say who is asking.
        if self.upstream.is_bound(client.connection) {
            return Some(Bypass::BoundConnection);
        }
        (self.mode == CacheMode::Off).then_some(Bypass::Off)
    }

    /// Forwards a request that the cache takes no part in, and streams both bodies. The answer may
    /// still concern the cache: a `POST /jobs` may name the job that it has changed.
    async fn pass(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        informational: Informational,
        why: Bypass,
    ) -> Answer {
        let upgrade = Upgrade::of(&mut request);
        let may_change = is_unsafe(&request);
        let overridden = overrides_method(request.headers());
        let mut request = self.forward_request(request, client, &informational);
        if let Some(upgrade) = &upgrade {
            upgrade.add_to(request.headers_mut());
        }
        let write = may_change.then(|| PassedWrite::of(self, &request));
        let retry = if overridden { RetryPolicy::Never } else { RetryPolicy::OnceIfSafe };
        let (request, upload) = track_upload(request, may_change);
        let sent = self.send(request, retry).await;
        let mut response = match sent.and_then(|sent| self.prepare_passed(sent, upgrade)) {
            Ok(response) => response.map(Body::Upstream),
            Err(error) => return upstream_failure(&error),
        };
        close_after_unread_upload(&mut response, &informational);
        close_with_bound_connection(&mut response);
        match write.and_then(|write| self.change_by(write, upload, &response)) {
            Some(change) => {
                let conclude = Arc::clone(self).conclude(change, WriteOutcome::Known, Ok(response));
                self.detached(conclude).await
            }
            None => Answer { response, verdict: Verdict::Pass(why) },
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
            upgrade.spawn_copy(&mut response, permit, &self.tasks);
        }
        Ok(response)
    }

    /// Returns what a write without jobs in its target has changed, if anything: the jobs that its
    /// answer names, or every job if a reload has changed the routes meanwhile.
    fn change_by(
        &self,
        write: PassedWrite,
        upload: Option<UploadEnd>,
        response: &Response<Body>,
    ) -> Option<WriteInvalidation> {
        let PassedWrite { method, target, stale_guard } = write;
        let jobs = self.routes.location_targets(&target, response);
        if jobs.is_empty() && response.status().is_success() {
            self.unclaimed.count(&self.routes, &method, &target);
        }
        let all = stale_guard.answered();
        if jobs.is_empty() && !all {
            return None;
        }
        let mut change = WriteInvalidation::new(self.cache.unfenced(), upload);
        change.all = all;
        change.note_status(response.status());
        self.cache.widen(&mut change.write, &jobs);
        Some(change)
    }
}

/// A write whose target names no job.
struct PassedWrite {
    method: Method,
    target: WriteTarget,
    stale_guard: StaleConfigGuard,
}

impl PassedWrite {
    fn of<B>(proxy: &Arc<Proxy>, request: &Request<B>) -> Self {
        Self {
            method: request.method().clone(),
            target: WriteTarget::of(request),
            stale_guard: StaleConfigGuard::new(proxy),
        }
    }
}
