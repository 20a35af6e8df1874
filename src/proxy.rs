//! The request pipeline: from a client's request to its answer.
//!
//! [`Proxy::serve`] takes every request through the same steps:
//!
//! 1. `headers` drops the forwarding fields of a peer that is not trusted, `framing` refuses a
//!    message that two readers could take differently, and the request takes a permit of the
//!    `server.max_requests` quota.
//! 2. [`route`] classifies the request from its head alone: read, write or pass.
//! 3. `read` answers a read of a job from this process, from the store, or by one upstream read
//!    that all waiting clients share (`lead`). In shadow mode, `shadow` answers from the upstream
//!    and only compares.
//! 4. `write` fences the jobs that a write may change, forwards the write, and invalidates those
//!    jobs before it answers. `body_rules` finds the jobs that only a body names.
//! 5. Everything else passes: both bodies stream through.
//! 6. `answer` derives `Cache-Status`, the metrics and the access log from one verdict.
//!
//! The other parts support these steps. `exchange` turns a client's message into ours and back,
//! `body` streams and captures response bodies, and `upgrade` joins two connections. `repeat_hit`
//! answers a repeated request below hyper, `prefetch` reads a job before a client asks for it, and
//! `verify` checks hits against the upstream. `stale_config_guard` covers writes that are still
//! running when a reload changes the routes.
//!
//! Decided elsewhere: what may be stored and who may receive it (`cache`), connections, timeouts
//! and retries (`upstream`), sockets and HTTP parsing (`server`).

pub mod again;
mod ahead;
mod answer;
pub mod body;
mod exchange;
pub(crate) mod framing;
pub(crate) mod headers;
mod lead;
mod reach;
mod read;
pub mod route;
pub mod shadow;
mod superseded;
mod upgrade;
mod verify;
mod write;

pub use ahead::{Outcome as ReadAhead, Unlisted};

use std::{fmt, future::Future, sync::Arc};

use hyper::{
    Request, StatusCode,
    body::{Body as _, Incoming},
    http::Method,
};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, warn};

use self::{
    again::Recall,
    answer::{AccessLine, Answer, Verdict, refuse, refuse_for_now, refuse_last},
    body::Body,
    exchange::{Switch, end_after_unasked, prepare_response},
    reach::Inspector,
    route::{Route, Routes, Target, is_unsafe, overrides_method},
    superseded::{Superseded, Unclaimed},
    upgrade::Upgrade,
    write::Change,
};
use crate::{
    cache::{Cache, Outcome, policy::Bypass},
    config::{self, Config, Mode, Share},
    events::HitSample,
    interim::Interim,
    limits::Room,
    metrics::{Limit, Metrics},
    service::Answered,
    spans,
    transport::Peer,
    upstream::{RetryPolicy, Upstream},
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
    superseded: Superseded,
    cache: Arc<Cache>,
    upstream: Arc<Upstream>,
    /// Writes and flights, which outlive the client that began them, and upgraded connections.
    tasks: TaskTracker,
    inspector: Arc<Inspector>,
    mode: Mode,
    /// The share of hits that is compared with the upstream.
    verify: Share,
    /// Limits the comparisons that run in the background, those of shadow mode included.
    trials: Arc<Room>,
    /// Cancelled when the drain begins: a drain does not wait for comparisons.
    leaving: CancellationToken,
    access_log: bool,
    /// Whether spans are exported.
    traced: bool,
    /// Limits the requests that are being answered.
    requests: Arc<Room>,
    limits: config::Server,
    metrics: Arc<Metrics>,
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
    /// Assembles a proxy. `inspected` limits the memory for bodies that `[[invalidate]]` rules
    /// read.
    pub fn new(
        routes: Arc<Routes>,
        cache: Arc<Cache>,
        upstream: Upstream,
        inspected: Arc<Room>,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tasks = TaskTracker::new();
        let inspector = Arc::new(Inspector::new(inspected, Arc::clone(&metrics)));
        let limits = config.server.clone();
        let in_use = metrics.limits.requests.clone();
        let refused = metrics.limits.counter(Limit::Requests).clone();
        let requests = Room::new(limits.max_requests, in_use, refused);
        Self {
            routes,
            superseded: Superseded::default(),
            cache,
            upstream: Arc::new(upstream),
            tasks,
            inspector,
            mode: config.mode,
            verify: config.verify,
            trials: verify::room(&metrics),
            leaving: CancellationToken::new(),
            access_log: config.access_log,
            traced: config.traces.is_some(),
            requests,
            limits,
            metrics,
        }
    }

    /// Returns this proxy under another configuration of the same upstream. New routes or rules
    /// supersede the old ones: a write that the old proxy is still answering then counts as one
    /// that changes every job.
    #[must_use]
    pub fn revised(&self, routes: Arc<Routes>, cache: Arc<Cache>, config: &Config) -> Self {
        let superseded = if Arc::ptr_eq(&routes, &self.routes) {
            self.superseded.clone()
        } else {
            self.superseded.tell();
            Superseded::default()
        };
        let Config { mode, verify, access_log, .. } = *config;
        Self { routes, superseded, cache, mode, verify, access_log, ..self.clone() }
    }

    /// Waits until `deadline` for writes and flights that have outlived their clients, and for
    /// upgraded connections.
    pub async fn finish(&self, deadline: Instant) {
        self.tasks.close();
        self.leaving.cancel();
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
        informational: Interim,
    ) -> impl Future<Output = Answered<Body, Recall>> + Send + 'static {
        let span = spans::request(&request, client.scheme(), || {
            self.routes.template(request.uri().path())
        });
        self.serve_within(request, client, informational).instrument(span)
    }

    async fn serve_within(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        informational: Interim,
    ) -> Answered<Body, Recall> {
        // Before anything reads the headers: jobcache must distinguish callers by the same fields
        // that the upstream will see.
        if !client.is_trusted {
            headers::strip_forwarded(request.headers_mut());
        }
        if client.is_tls {
            headers::tell_scheme(request.headers_mut(), client);
        }
        let access_line = self.access_log.then(|| AccessLine::of(&request));
        let mut repeat_hit = None;
        let sample = self.metrics.events.sample();
        let answer = match (framing::check(&request, &self.limits), self.requests.take(1)) {
            (Err(refusal), _) => {
                refusal.limit().inspect(|&limit| self.metrics.limits.count_hit(limit));
                refuse_last(refusal.status(), refusal.as_str(), request.version())
            }
            (Ok(()), None) => refuse_for_now("overloaded"),
            (Ok(()), Some(_permit)) => {
                self.answer(request, client, informational, sample.as_ref(), &mut repeat_hit).await
            }
        };
        Answered { response: answer.report(&self.metrics, access_line), recall: repeat_hit }
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
        informational: Interim,
        sample: Option<&HitSample>,
        repeat_hit: &mut Option<Recall>,
    ) -> Answer {
        match self.routes.classify(&request) {
            // An HTTP/2 request can have a body without a header that announces it.
            Route::Read(id) if !request.body().is_end_stream() => {
                self.cache.passed(id.as_str(), Bypass::RequestBody);
                Box::pin(self.pass(request, client, informational, Bypass::RequestBody)).await
            }
            Route::Read(id) if self.cache.is_personal(request.headers()) => {
                self.cache.passed(id.as_str(), Bypass::Credentials);
                Box::pin(self.pass(request, client, informational, Bypass::Credentials)).await
            }
            Route::Read(_) if self.mode == Mode::Off => {
                Box::pin(self.pass(request, client, informational, Bypass::Off)).await
            }
            Route::Read(id) => {
                let requester = (client, informational);
                self.answer_read(&id, request, requester, sample, repeat_hit).await
            }
            Route::Write(scope) => {
                Box::pin(self.write(scope, request, client, informational)).await
            }
            Route::Pass(_) if request.method() == Method::CONNECT => {
                refuse_last(StatusCode::METHOD_NOT_ALLOWED, "connect", request.version())
            }
            Route::Pass(why) => {
                // An event belongs to a job. Other paths have none, and a method such as OPTIONS
                // says nothing about it.
                if let Some(id) = self.routes.job_at(request.uri().path())
                    && why != Bypass::Method
                {
                    self.cache.passed(id, why);
                }
                Box::pin(self.pass(request, client, informational, why)).await
            }
        }
    }

    /// Forwards a request that the cache takes no part in, and streams both bodies. The answer may
    /// still concern the cache: a `POST /jobs` may name the job that it has changed.
    async fn pass(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        informational: Interim,
        why: Bypass,
    ) -> Answer {
        let upgrade = Upgrade::of(&mut request);
        let may_change = is_unsafe(&request);
        let overridden = overrides_method(request.headers());
        let mut request = self.forwarded(request, client, &informational);
        if let Some(upgrade) = &upgrade {
            upgrade.ask(request.headers_mut());
        }
        let target = may_change.then(|| Target::of(&request, self.upstream.authority()));
        let stale_guard = may_change.then(|| Unclaimed::new(self));
        let retry = if overridden { RetryPolicy::Never } else { RetryPolicy::OnceIfSafe };
        let switch = if upgrade.is_some() { Switch::Asked } else { Switch::Unasked };
        let sent = self.send(request, retry).await;
        let mut response = match sent.and_then(|response| prepare_response(response, switch)) {
            Ok(response) => response,
            Err(error) => return refuse(&error),
        };
        if let Some(upgrade) = upgrade
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let permit = response.body_mut().take_permit();
            upgrade.tie(&mut response, permit, &self.tasks);
        }
        let mut response = response.map(Body::Upstream);
        end_after_unasked(&mut response, &informational);
        let named = target.map(|target| self.routes.mentioned(&target, &response));
        let jobs = named.unwrap_or_default();
        let all = stale_guard.is_some_and(Unclaimed::answered);
        if all || !jobs.is_empty() {
            let mut change = Change { write: self.cache.unfenced(), all };
            change.was_refused(response.status());
            self.cache.widen(&mut change.write, &jobs);
            let conclude = Arc::clone(self).conclude(change, Outcome::Known, Ok(response));
            return self.detached(conclude).await;
        }
        Answer { response, verdict: Verdict::Pass(why) }
    }
}
