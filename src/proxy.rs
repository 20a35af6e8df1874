//! The story of one request.

pub mod again;
mod ahead;
mod answer;
pub mod body;
mod exchange;
pub mod framing;
pub mod headers;
mod lead;
mod reach;
mod read;
pub mod route;
pub mod shadow;
mod superseded;
pub mod upgrade;
mod verify;
mod write;

pub use ahead::{Outcome as ReadAhead, Unlisted};

use std::{future::Future, sync::Arc};

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
    config::{self, CacheMode, Config, SampleRate},
    events::Sample,
    interim::Interim,
    limits::Room,
    metrics::{Limit, Metrics},
    service::Answered,
    spans,
    transport::Peer,
    upstream::{Repeat, Upstream},
};

/// Answers requests.
///
/// A request is answered by one of these from its receipt to its end. One that is
/// [`revised`](Proxy::revised) shares with the first all but what its configuration says.
#[derive(Clone, Debug)]
pub struct Proxy {
    routes: Arc<Routes>,
    /// Whether others have come into force since.
    superseded: Superseded,
    cache: Arc<Cache>,
    upstream: Arc<Upstream>,
    /// Writes and flights, which outlive the client that began them.
    tasks: TaskTracker,
    inspector: Arc<Inspector>,
    mode: CacheMode,
    /// How many hits are compared with the upstream.
    verify: SampleRate,
    /// Such comparisons, and the judgement of those of shadow mode.
    trials: Arc<Room>,
    /// Told when the sidecar drains, which waits for no comparison.
    leaving: CancellationToken,
    access_log: bool,
    /// Whether spans are sent anywhere.
    traced: bool,
    /// Requests that are being answered.
    requests: Arc<Room>,
    limits: config::ServerConfig,
    metrics: Arc<Metrics>,
}

impl Proxy {
    /// Puts the parts together.
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
        let (access_log, limits) = (config.access_log, config.server.clone());
        let traced = config.traces.is_some();
        let (mode, verify, trials) = (config.mode, config.verify, verify::room(&metrics));
        let (most, used) = (limits.max_requests, metrics.limits.requests.clone());
        let requests = Room::new(most, used, metrics.limits.counter(Limit::Requests).clone());
        let (upstream, superseded) = (Arc::new(upstream), Superseded::default());
        Self {
            routes,
            superseded,
            cache,
            upstream,
            tasks,
            inspector,
            mode,
            verify,
            trials,
            leaving: CancellationToken::new(),
            access_log,
            traced,
            requests,
            limits,
            metrics,
        }
    }

    /// The same under another configuration of the same upstream. Routes other than its own it
    /// supersedes: writes that it still answers then count as changing every job.
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

    /// Waits for writes and flights that have outlived their clients, and for upgrades.
    pub async fn finish(&self, deadline: Instant) {
        self.tasks.close();
        self.leaving.cancel();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let tasks = self.tasks.len();
            warn!(tasks, "drain deadline passed; writes or upgrades are cut off");
        }
    }

    /// Answers one request. Whatever goes wrong becomes an answer.
    pub fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Peer,
        interim: Interim,
    ) -> impl Future<Output = Answered<Body, Recall>> + Send + 'static {
        let span = spans::request(&request, client.scheme(), || {
            self.routes.template(request.uri().path())
        });
        self.serve_within(request, client, interim).instrument(span)
    }

    async fn serve_within(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        interim: Interim,
    ) -> Answered<Body, Recall> {
        // First of all: what callers are told apart by must be what the upstream sees.
        if !client.is_trusted {
            headers::strip_forwarded(request.headers_mut());
        }
        if client.is_tls {
            headers::tell_scheme(request.headers_mut(), client);
        }
        let line = self.access_log.then(|| AccessLine::of(&request));
        let (mut recall, sample) = (None, self.metrics.events.sample());
        let answer = match (framing::check(&request, &self.limits), self.requests.take(1)) {
            (Err(why), _) => {
                why.limit().inspect(|&limit| self.metrics.limits.hit(limit));
                refuse_last(why.status(), why.as_str(), request.version())
            }
            (Ok(()), None) => refuse_for_now("overloaded"),
            (Ok(()), Some(_being_answered)) => {
                self.answer(request, client, interim, sample.as_ref(), &mut recall).await
            }
        };
        Answered { response: answer.report(&self.metrics, line), recall }
    }

    /// What is no hit in this process goes on in a box: its future is large, and is moved several
    /// times before it is first polled. A hit would pay for that.
    ///
    /// `recall` is set where the next request with the same fields can be answered by what was made of
    /// these.
    async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        client: Peer,
        interim: Interim,
        sample: Option<&Sample>,
        recall: &mut Option<Recall>,
    ) -> Answer {
        match self.routes.classify(&request) {
            // HTTP/2 needs no header to announce a body.
            Route::Read(id) if !request.body().is_end_stream() => {
                self.cache.passed(id.as_str(), Bypass::RequestBody);
                Box::pin(self.pass(request, client, interim, Bypass::RequestBody)).await
            }
            Route::Read(id) if self.cache.is_personal(request.headers()) => {
                self.cache.passed(id.as_str(), Bypass::Credentials);
                Box::pin(self.pass(request, client, interim, Bypass::Credentials)).await
            }
            Route::Read(_) if self.mode == CacheMode::Off => {
                Box::pin(self.pass(request, client, interim, Bypass::Off)).await
            }
            Route::Read(id) => {
                let from = (client, interim);
                self.answer_read(&id, request, from, sample, recall).await
            }
            Route::Write(scope) => Box::pin(self.write(scope, request, client, interim)).await,
            Route::Pass(_) if request.method() == Method::CONNECT => {
                refuse_last(StatusCode::METHOD_NOT_ALLOWED, "connect", request.version())
            }
            Route::Pass(why) => {
                // Neither of another path nor of another method is there a job to tell of.
                if let Some(id) = self.routes.job_at(request.uri().path())
                    && why != Bypass::Method
                {
                    self.cache.passed(id, why);
                }
                Box::pin(self.pass(request, client, interim, why)).await
            }
        }
    }

    /// Forwards what the cache has no part in, streaming both ways; unless the answer says that it
    /// has: a `POST /jobs` may name the job that it has changed.
    async fn pass(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        client: Peer,
        interim: Interim,
        why: Bypass,
    ) -> Answer {
        let upgrade = Upgrade::of(&mut request);
        let may_change = is_unsafe(&request);
        let overridden = overrides_method(request.headers());
        let mut request = self.forwarded(request, client, &interim);
        if let Some(upgrade) = &upgrade {
            upgrade.ask(request.headers_mut());
        }
        let target = may_change.then(|| Target::of(&request, self.upstream.authority()));
        let unclaimed = may_change.then(|| Unclaimed::new(self));
        let repeat = if overridden { Repeat::Never } else { Repeat::IfSafe };
        let switch = if upgrade.is_some() { Switch::Asked } else { Switch::Unasked };
        let sent = self.send(request, repeat).await;
        let mut response = match sent.and_then(|response| prepare_response(response, switch)) {
            Ok(response) => response,
            Err(error) => return refuse(&error),
        };
        if let Some(upgrade) = upgrade
            && response.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let place = response.body_mut().take_place();
            upgrade.tie(&mut response, place, &self.tasks);
        }
        let mut response = response.map(Body::Upstream);
        end_after_unasked(&mut response, &interim);
        let named = target.map(|target| self.routes.mentioned(&target, &response));
        let all = unclaimed.is_some_and(Unclaimed::answered);
        let jobs = named.unwrap_or_default();
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
