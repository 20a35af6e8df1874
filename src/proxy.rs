//! The request pipeline: from a client's request to its answer.
//!
//! [`Proxy::serve`] takes every request through the same steps:
//!
//! 1. `headers` drops the forwarding fields of a peer that is not trusted, `framing` refuses a
//!    message that two readers could take differently, and any other request takes a permit of the
//!    `server.max_requests` quota.
//! 2. [`route`](crate::semantics::route) classifies the request from its head alone: read, write or
//!    pass.
//! 3. `read` answers a read of a job from this process, from the store, or by one upstream read
//!    that all waiting clients share (`lead`). In shadow mode, `shadow` answers from the upstream
//!    and only compares.
//! 4. `write` fences the jobs that a write may change, forwards the write, and invalidates those
//!    jobs before it answers. `body_rules` finds the jobs that only a body names. `write_end`
//!    invalidates them again when the bodies have ended.
//! 5. Everything else passes: `pass` streams both bodies through.
//! 6. `answer` derives `Cache-Status`, the metrics and the access log from one verdict.
//!
//! The other parts support these steps. `proxy_context` has what every step needs. `exchange` turns
//! a client's message into ours and back, `body` streams and captures response bodies, and
//! `upgrade` joins two connections. `repeat_hit` answers a repeated request below hyper, `prefetch`
//! reads a job before a client asks for it, and `verify` checks hits against the upstream.
//! `stale_config` covers writes that are still running when a reload changes the routes.
//! `unclaimed` reports writes at the jobs that name none.
//!
//! Decided elsewhere: what may be stored and who may receive it (`cache`), connections, timeouts
//! and retries (`upstream`), sockets and HTTP parsing (`server`).

mod answer;
pub mod body;
mod body_rules;
pub mod compared_body;
mod comparison_metrics;
mod exchange;
pub(crate) mod framing;
mod lead;
pub(crate) mod metrics;
mod pass;
mod prefetch;
mod proxy_context;
mod read;
pub mod repeat_hit;
mod shadow;
mod stale_config;
mod unclaimed;
mod upgrade;
mod verify;
mod write;
mod write_end;

pub use prefetch::{JobListError, PrefetchOutcome};

use std::{future::Future, sync::Arc};

use hyper::{
    Request,
    body::{Body as _, Incoming},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, warn};

use self::{
    answer::{AccessLine, Answer, refuse_and_close, refuse_retryable},
    body::Body,
    metrics::ProxyMetrics,
    proxy_context::{ProxyContext, Requester},
    read::Reads,
    repeat_hit::{RepeatHit, RepeatHits},
    stale_config::StaleConfig,
    verify::Comparisons,
    write::Writes,
};
use crate::{
    cache::Cache,
    config::{self, CacheMode, Config},
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
        route::{Route, Routes},
    },
    service::Answered,
    transport::{ConnectionId, Peer},
    upstream::Upstream,
};

/// Answers the requests of clients under one configuration.
///
/// A request keeps its `Proxy` until it ends, so a reload never changes the rules in the middle of
/// a request. A [`revised`](Proxy::revised) proxy shares everything with the old one except what
/// its configuration sets.
#[derive(Debug)]
pub struct Proxy {
    context: Arc<ProxyContext>,
    reads: Reads,
    writes: Arc<Writes>,
    access_log: bool,
    /// Limits the requests that are being answered.
    requests: Arc<Quota>,
    limits: config::ServerConfig,
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
        let max_requests = config.server.max_requests;
        let requests = Quota::of(Limit::Requests, max_requests, &metrics.in_flight, hits);
        let context = Arc::new(ProxyContext {
            routes,
            stale_config: StaleConfig::default(),
            cache,
            upstream: Arc::new(upstream),
            tasks: TaskTracker::new(),
            mode: config.mode,
            metrics,
            events,
        });
        let comparisons = Comparisons::new(Arc::clone(&context), config.verify);
        let writes = Writes::new(context, inspected, registry);
        Self::of_parts(comparisons, writes, requests, config)
    }

    /// Returns the metrics of this proxy.
    pub(crate) fn metrics(&self) -> &Arc<ProxyMetrics> {
        &self.context.metrics
    }

    /// Returns this proxy under another configuration of the same upstream. New routes or rules
    /// supersede the old ones: a write that the old proxy is still answering then counts as one
    /// that changes every job.
    #[must_use]
    pub fn revised(&self, routes: Arc<Routes>, cache: Arc<Cache>, config: &Config) -> Self {
        let old = &*self.context;
        let stale_config = if Arc::ptr_eq(&routes, &old.routes) {
            old.stale_config.clone()
        } else {
            old.stale_config.mark();
            StaleConfig::default()
        };
        let mode = config.mode;
        let context = ProxyContext { routes, stale_config, cache, mode, ..old.clone() };
        let context = Arc::new(context);
        let comparisons = Comparisons {
            context: Arc::clone(&context),
            verify: config.verify,
            ..Comparisons::clone(&self.reads.comparisons)
        };
        let writes = Writes { context, ..Writes::clone(&self.writes) };
        Self::of_parts(comparisons, writes, Arc::clone(&self.requests), config)
    }

    fn of_parts(
        comparisons: Comparisons,
        writes: Writes,
        requests: Arc<Quota>,
        config: &Config,
    ) -> Self {
        let context = Arc::clone(&writes.context);
        let comparisons = Arc::new(comparisons);
        let repeat_hits = Arc::new(RepeatHits::new(Arc::clone(&comparisons), config));
        Self {
            reads: Reads { context: Arc::clone(&context), comparisons, repeat_hits },
            context,
            writes: Arc::new(writes),
            access_log: config.access_log,
            requests,
            limits: config.server.clone(),
        }
    }

    /// Answers requests that repeat the header fields of a hit.
    pub(crate) fn repeat_hits(&self) -> &RepeatHits {
        &self.reads.repeat_hits
    }

    /// Registers an open client connection. Its requests follow one another.
    pub(crate) fn open_connection(&self) -> ConnectionId {
        self.context.upstream.open_client()
    }

    /// Closes what belongs to a client connection that is now closed.
    pub(crate) fn close_connection(&self, connection: ConnectionId) {
        self.context.upstream.close_client(connection);
    }

    /// Waits until `deadline` for writes and flights that have outlived their clients, and for
    /// upgraded connections.
    pub async fn finish(&self, deadline: Instant) {
        self.context.tasks.close();
        self.reads.comparisons.draining.cancel();
        if timeout_at(deadline, self.context.tasks.wait()).await.is_err() {
            let tasks = self.context.tasks.len();
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
        let sample = self.context.events.sample();
        let answer = if let Err(refusal) = framing::check(&request, &self.limits) {
            refusal.limit().inspect(|&limit| self.context.metrics.limits.count(limit));
            refuse_and_close(refusal, request.version())
        } else if let Some(_permit) = self.requests.take(1) {
            let requester = Requester { client, informational };
            self.answer(request, requester, sample.as_ref(), &mut repeat_hit).await
        } else {
            refuse_retryable("overloaded")
        };
        Answered {
            response: answer.report(&self.context.metrics.requests, access_line),
            repeat: repeat_hit,
        }
    }

    /// Answers a request according to its route. Everything except a hit in this process is boxed:
    /// the other futures are large and are moved several times before they are first polled, and a
    /// hit should not pay for that.
    ///
    /// `repeat_hit` is set when the next request with the same header fields can reuse what was
    /// derived from these.
    async fn answer(
        &self,
        request: Request<Incoming>,
        requester: Requester,
        sample: Option<&HitSample>,
        repeat_hit: &mut Option<RepeatHit>,
    ) -> Answer {
        match self.context.routes.classify(&request) {
            Route::Read(id, route) => {
                let Some(why) = self.read_bypass(&request, requester.client) else {
                    let job = (&id, route);
                    return self.reads.answer(job, request, requester, sample, repeat_hit).await;
                };
                if why != Bypass::Off {
                    self.context.cache.record_pass(id.as_str(), why);
                }
                Box::pin(self.pass(request, requester, why)).await
            }
            Route::Write(scope) => Box::pin(self.writes.forward(scope, request, requester)).await,
            Route::Pass(why) => {
                // Events are recorded per job, so other paths have none. A method such as OPTIONS
                // says nothing about the job.
                if let Some(id) = self.context.routes.job_at(request.uri().path())
                    && why != Bypass::Method
                {
                    self.context.cache.record_pass(id, why);
                }
                Box::pin(self.pass(request, requester, why)).await
            }
        }
    }

    /// Returns why a read of a job bypasses the cache, if it does.
    fn read_bypass(&self, request: &Request<Incoming>, client: Peer) -> Option<Bypass> {
        // An HTTP/2 request can have a body without a header that announces it.
        if !request.body().is_end_stream() {
            return Some(Bypass::RequestBody);
        }
        if self.context.cache.fingerprinter().must_bypass(request.headers()) {
            return Some(Bypass::Credentials);
        }
        // The upstream knows the user by the connection, so the fields do not say who is asking.
        if self.context.upstream.is_bound(client.connection) {
            return Some(Bypass::BoundConnection);
        }
        (self.context.mode == CacheMode::Off).then_some(Bypass::Off)
    }
}
