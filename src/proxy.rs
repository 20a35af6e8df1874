//! The request pipeline: from a client's request to its answer.
//!
//! [`Proxy::serve`] takes every request through the same steps:
//!
//! 1. `headers` drops the forwarding fields of a peer that is not trusted, `framing` refuses a
//!    message that two readers could take differently, and any other request takes a permit of the
//!    `server.max_requests` quota until its response begins.
//! 2. [`route`](crate::semantics::route) classifies the request from its head alone: read, write or
//!    pass.
//! 3. `read` answers a read of a job from this process, from the store, or by one upstream read
//!    that all waiting clients share (`lead`). In shadow mode it answers from the upstream and only
//!    compares. `push` holds a read until the job changes, if the client asks for that.
//! 4. `write` fences the jobs that a write may change, forwards the write, and invalidates those
//!    jobs before it answers, and again when the bodies have ended. `body_rules` finds the jobs that
//!    only a body names.
//! 5. Everything else passes: `pass` streams both bodies through.
//! 6. `answer` derives `Cache-Status`, the metrics and the access log from one verdict.
//!
//! The other parts support these steps. `proxy_context` has what every step needs, and turns a
//! client's message into ours and back. `body` streams and captures response bodies. `repeat_hit`
//! answers a repeated request below hyper, past step 1 and without a permit: it reads only this
//! process. `prefetch` reads a job before a client asks for it, `verify` checks hits against the
//! upstream, and `route_advice` notes which reads pass because of the routes, for the log.
//!
//! Decided elsewhere: what may be stored and who may receive it (`cache`), connections, timeouts
//! and retries (`upstream`), sockets and HTTP parsing (`server`).

mod answer;
pub mod body;
mod body_rules;
pub(crate) mod framing;
mod lead;
pub(crate) mod metrics;
mod pass;
mod prefetch;
mod proxy_context;
mod push;
mod read;
pub mod repeat_hit;
mod route_advice;
mod verify;
mod write;

pub use prefetch::{JobListError, PrefetchOutcome};

use std::sync::Arc;

use hyper::{Request, body::Incoming};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, warn};

use self::{
    answer::{AccessLine, Answer, refuse_and_close, refuse_retryable},
    body::Body,
    body_rules::BodyInspector,
    metrics::ProxyMetrics,
    proxy_context::{ProxyConfig, ProxyContext, Requester},
    push::Topics,
    read::Arrival,
    repeat_hit::RepeatHit,
};
use crate::{
    cache::Cache,
    config::Config,
    limits::{Limit, Quota},
    observe::{metrics::Registry, spans},
    semantics::{
        headers,
        route::{Route, Routes},
    },
    service::{Answered, Informational, RepeatFastPath},
    transport::{ConnectionId, Peer},
    upstream::Upstream,
};

/// Answers the requests of clients under one configuration.
///
/// A request keeps its `Proxy` until it ends, so a reload never changes the rules in the middle of
/// a request. A [`revised`](Proxy::revised) proxy shares connections, flights, quotas, metrics and
/// tasks with the old one.
pub struct Proxy {
    context: Arc<ProxyContext>,
    /// Limits the requests that are being answered.
    requests: Arc<Quota>,
}

impl Proxy {
    /// Answers one request. Every failure becomes an answer.
    pub fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<Body, RepeatHit>> + Send + 'static {
        let span = spans::request(&request, client.scheme(), || {
            self.context.routes.route_of(request.uri().path())
        });
        self.serve_within(request, client, informational).instrument(span)
    }

    async fn serve_within(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> Answered<Body, RepeatHit> {
        // Before anything decides by the headers: jobcache must distinguish callers by the same
        // fields that the upstream will see.
        if !client.is_trusted {
            headers::strip_forwarded(request.headers_mut());
        }
        if client.is_tls {
            headers::set_forwarded_proto(request.headers_mut(), client);
        }
        let ProxyContext { config, cache, metrics, .. } = &*self.context;
        let access_line = config.access_log.then(|| AccessLine::of(&request));
        // Whether this request becomes an event if it is a hit.
        let hit_sample = cache.events().sample();
        let answer = if let Err(refusal) = framing::check(&request, &config.server) {
            if let Some(limit) = refusal.limit() {
                metrics.limits.count(limit);
            }
            refuse_and_close(refusal, request.version())
        } else if let Some(permit) = self.requests.take(1) {
            let requester = Requester { client, informational };
            let arrival = Arrival { sample: hit_sample.as_ref(), permit: &permit };
            self.dispatch(request, requester, arrival).await
        } else {
            refuse_retryable("overloaded")
        };
        answer.report(&metrics.requests, access_line)
    }

    /// Answers a request according to its route. Everything except a hit in this process is boxed:
    /// the other futures are large and are moved several times before they are first polled, and a
    /// hit should not pay for that.
    async fn dispatch(
        &self,
        request: Request<Incoming>,
        requester: Requester,
        arrival: Arrival<'_>,
    ) -> Answer {
        match self.context.routes.classify(&request) {
            Route::Read(job) => read::serve(&self.context, &job, request, requester, arrival).await,
            Route::Write(scope) => {
                Box::pin(write::forward(&self.context, scope, request, requester)).await
            }
            Route::Pass(why) => {
                Box::pin(pass::forward(&self.context, request, requester, why)).await
            }
        }
    }
}

/// Assembly, reload and drain.
impl Proxy {
    /// Assembles a proxy.
    pub fn new(
        routes: Arc<Routes>,
        cache: Arc<Cache>,
        upstream: Upstream,
        config: &Config,
        registry: &mut Registry,
    ) -> Self {
        let metrics = ProxyMetrics::register(registry);
        let quota = |limit, max, used| Quota::of(limit, max, used, &metrics.limits);
        let inspected =
            quota(Limit::Inspected, config.cache.limits.max_inspected, &metrics.inspected);
        let requests = quota(Limit::Requests, config.server.max_requests, &metrics.in_flight);
        let push_metrics = Arc::clone(&metrics.push);
        let push = Topics::new(config, push_metrics, &metrics.limits, CancellationToken::new());
        let push = Arc::new(push);
        let context = ProxyContext {
            routes,
            config: Arc::new(ProxyConfig::of(config)),
            superseded: CancellationToken::new(),
            cache,
            upstream: Arc::new(upstream),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            comparisons: verify::quota(&metrics),
            inspector: Arc::new(BodyInspector::new(inspected, registry)),
            advice: Arc::default(),
            push,
            metrics: Arc::new(metrics),
        };
        Self { context: Arc::new(context), requests }
    }

    /// Returns the routes of the jobs.
    pub fn routes(&self) -> &Arc<Routes> {
        &self.context.routes
    }

    /// Returns this proxy under another configuration of the same upstream. New routes or rules
    /// supersede the old ones: a write that the old proxy is still answering then counts as one
    /// that changes every job.
    #[must_use]
    pub fn revised(&self, routes: Arc<Routes>, cache: Arc<Cache>, config: &Config) -> Self {
        let old = &*self.context;
        let superseded = if Arc::ptr_eq(&routes, &old.routes) {
            old.superseded.clone()
        } else {
            old.superseded.cancel();
            CancellationToken::new()
        };
        let push = Arc::new(old.push.revised(config, &old.metrics.limits));
        let config = Arc::new(ProxyConfig::of(config));
        let context = ProxyContext { routes, config, superseded, cache, push, ..old.clone() };
        Self { context: Arc::new(context), requests: Arc::clone(&self.requests) }
    }

    /// Returns the metrics of this proxy.
    pub(crate) fn metrics(&self) -> &Arc<ProxyMetrics> {
        &self.context.metrics
    }

    /// Returns the fast path for requests that repeat the header fields of a hit.
    pub(crate) fn repeat_hits(&self) -> &impl RepeatFastPath<Repeat = RepeatHit> {
        &*self.context
    }

    /// Registers an open client connection, to which a login may bind an upstream connection. Its
    /// requests must follow one another.
    pub(crate) fn open_connection(&self) -> ConnectionId {
        self.context.upstream.bound.open()
    }

    /// Closes the upstream connection that is bound to a client connection, which is now closed.
    pub(crate) fn close_connection(&self, connection: ConnectionId) {
        self.context.upstream.bound.close(connection);
    }

    /// Answers the held polls, and ends the streams of events: a drain begins.
    pub fn release_waiters(&self) {
        self.context.push.release();
    }

    /// Waits until `deadline` for writes and flights that have outlived their clients, and for
    /// upgraded connections.
    pub async fn finish(&self, deadline: Instant) {
        self.context.tasks.close();
        self.context.draining.cancel();
        if timeout_at(deadline, self.context.tasks.wait()).await.is_err() {
            let tasks = self.context.tasks.len();
            warn!(
                tasks,
                "drain deadline passed; unfinished writes, reads and upgrades are cut off"
            );
        }
    }
}
