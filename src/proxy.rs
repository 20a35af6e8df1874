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

use hyper::{Request, body::Incoming};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, warn};

use self::{
    answer::{AccessLine, Answer, refuse_and_close, refuse_retryable},
    body::Body,
    metrics::ProxyMetrics,
    pass::Passes,
    proxy_context::{ProxyContext, Requester},
    read::Reads,
    repeat_hit::{RepeatHit, RepeatHits},
    stale_config::StaleConfig,
    verify::Comparisons,
    write::Writes,
};
use crate::{
    cache::Cache,
    config::{self, Config},
    limits::{Limit, Quota},
    observe::{
        events::{Events, HitSample},
        metrics::Registry,
        spans,
    },
    semantics::{
        headers,
        route::{Route, Routes},
    },
    service::{Answered, Informational},
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
    passes: Arc<Passes>,
    access_log: bool,
    /// Limits the requests that are being answered.
    requests: Arc<Quota>,
    limits: config::ServerConfig,
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
        // Before anything reads the headers: jobcache must distinguish callers by the same fields
        // that the upstream will see.
        if !client.is_trusted {
            headers::strip_forwarded(request.headers_mut());
        }
        if client.is_tls {
            headers::set_forwarded_proto(request.headers_mut(), client);
        }
        let access_line = self.access_log.then(|| AccessLine::of(&request));
        let sample = self.context.events.sample();
        let answer = if let Err(refusal) = framing::check(&request, &self.limits) {
            refusal.limit().inspect(|&limit| self.context.metrics.limits.count(limit));
            refuse_and_close(refusal, request.version())
        } else if let Some(_permit) = self.requests.take(1) {
            let requester = Requester { client, informational };
            self.answer(request, requester, sample.as_ref()).await
        } else {
            refuse_retryable("overloaded")
        };
        answer.report(&self.context.metrics.requests, access_line)
    }

    /// Answers a request according to its route. Everything except a hit in this process is boxed:
    /// the other futures are large and are moved several times before they are first polled, and a
    /// hit should not pay for that.
    async fn answer(
        &self,
        request: Request<Incoming>,
        requester: Requester,
        sample: Option<&HitSample>,
    ) -> Answer {
        match self.context.routes.classify(&request) {
            Route::Read(id, route) => {
                self.reads.answer((&id, route), request, requester, sample).await
            }
            Route::Write(scope) => Box::pin(self.writes.forward(scope, request, requester)).await,
            Route::Pass(why) => Box::pin(self.passes.forward(request, requester, why)).await,
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
        let unclaimed = Arc::clone(&writes.unclaimed);
        let passes = Arc::new(Passes { context: Arc::clone(&context), unclaimed });
        let reads = Reads {
            context: Arc::clone(&context),
            comparisons,
            repeat_hits,
            passes: Arc::clone(&passes),
        };
        Self {
            context,
            reads,
            writes: Arc::new(writes),
            passes,
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
}
