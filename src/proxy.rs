//! The story of one request.

pub mod again;
mod ahead;
mod answer;
pub mod body;
pub mod framing;
pub mod headers;
mod lead;
mod reach;
pub mod route;
pub mod shadow;
mod superseded;
pub mod upgrade;
mod verify;
mod write;

pub use ahead::{Outcome as ReadAhead, Unlisted};

use std::{future::Future, sync::Arc};

use hyper::{
    HeaderMap, Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    http::{
        HeaderValue, Method,
        header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
        request::Parts,
    },
};
use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, warn};

use self::{
    again::Recall,
    answer::{
        AccessLine, Answer, Stored, Verdict, refuse, refuse_for_now, refuse_last, refuse_with,
    },
    body::Body,
    lead::LeadTask,
    reach::Inspector,
    route::{Route, Routes, Target, is_unsafe, overrides_method},
    superseded::{Superseded, Unclaimed},
    upgrade::Upgrade,
    write::Change,
};
use crate::{
    cache::{
        Abandoned, Ask, Cache, Lead, Lookup, Outcome, Trial, entry::Entry, key::JobId,
        policy::Bypass,
    },
    config::{self, Config, Mode, Share},
    events::{Sample, What},
    interim::Interim,
    limits::Room,
    metrics::{Limit, Metrics},
    service::{Answered, Declined},
    spans,
    store::Budget,
    transport::Peer,
    upstream::{
        Repeat, RequestBody, ResponseBody, Upstream, UpstreamError, relay_interim, to_origin_form,
    },
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
    mode: Mode,
    /// How many hits are compared with the upstream.
    verify: Share,
    /// Such comparisons, and the judgement of those of shadow mode.
    trials: Arc<Room>,
    /// Told when the sidecar drains, which waits for no comparison.
    leaving: CancellationToken,
    access_log: bool,
    /// Whether spans are sent anywhere.
    traced: bool,
    /// Requests that are being answered.
    requests: Arc<Room>,
    limits: config::Server,
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
            Route::Read(_) if self.mode == Mode::Off => {
                Box::pin(self.pass(request, client, interim, Bypass::Off)).await
            }
            Route::Read(id) => {
                let (ask, mut budget) = self.ask(&id, &request);
                if self.mode == Mode::Shadow {
                    let (ask, head) = (ask.alone(), request.into_parts().0);
                    let shadow = self.shadow(&ask, head, (client, interim), budget);
                    let answer = Box::pin(shadow).await;
                    let (what, why) = answer.verdict.event();
                    self.cache.answered(&ask, what, why, sample);
                    return answer;
                }
                let look = self.cache.near(&ask, &mut budget);
                if let Some(found) = look.instrument(spans::lookup("near")).await {
                    self.cache.answered(&ask, What::Hit, "", sample);
                    return self.near_hit(found, ask, request, client, recall);
                }
                let head = request.into_parts().0;
                let answer = Box::pin(self.read(&ask, head, (client, interim), budget)).await;
                let (what, why) = answer.verdict.event();
                self.cache.answered(&ask, what, why, sample);
                answer
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

    /// What a read asks for, and what it may wait for the store.
    fn ask(&self, id: &JobId, request: &Request<Incoming>) -> (Ask, Budget) {
        let ask = self.cache.ask(id, request.method(), request.uri(), request.headers());
        let mut budget = self.cache.budget();
        // Beneath hyper, for such a hit, in vain.
        if let Some(Declined { waited, .. }) = request.extensions().get() {
            budget.charge(*waited);
        }
        (ask, budget)
    }

    /// Answers from an entry in this process.
    fn near_hit(
        self: &Arc<Self>,
        (entry, now_ms): (Arc<Entry>, i64),
        ask: Ask,
        request: Request<Incoming>,
        client: Peer,
        recall: &mut Option<Recall>,
    ) -> Answer {
        let answer = hit(&entry, request.method(), request.headers(), now_ms);
        let drawn = self.is_drawn(request.method(), request.extensions());
        let trial = drawn.then(|| Trial::new(&ask, entry));
        *recall = self.recall(&request, ask);
        if let Some(trial) = trial {
            self.verify(trial, &request.into_parts().0, client);
        }
        answer
    }

    /// Answers a cacheable read that is not near.
    ///
    /// A store that is down or slow costs the client at most the store budget and a trip upstream,
    /// never an error.
    async fn read(
        self: &Arc<Self>,
        ask: &Ask,
        head: Parts,
        (client, interim): (Peer, Interim),
        mut budget: Budget,
    ) -> Answer {
        let span = spans::lookup("store");
        let lookup = self.cache.lookup(ask, &mut budget).instrument(span.clone()).await;
        spans::result(&span, lookup.as_str());
        drop(span);
        match lookup {
            Lookup::Hit(entry) => {
                let now_ms = self.cache.store().now_ms();
                let answer = hit(&entry, &head.method, &head.headers, now_ms);
                if self.is_drawn(&head.method, &head.extensions) {
                    self.verify(Trial::new(ask, entry), &head, client);
                }
                answer
            }
            Lookup::Lead(lead) => self.lead(*lead, head, (client, interim), budget).await,
            Lookup::Join(flight, why) => match flight.landed().await {
                Some(entry) => {
                    let verdict = Verdict::Miss { stored: Stored::Unsaid, collapsed: true, why };
                    self.metrics.flights_joined.inc();
                    let now_ms = self.cache.store().now_ms();
                    Answer { response: entry_response(&entry, &head, now_ms), verdict }
                }
                None => self.pass_read(head, client, interim, Bypass::Alone).await,
            },
            Lookup::Pass(Bypass::OnlyIfCached) => {
                refuse_with(StatusCode::GATEWAY_TIMEOUT, Bypass::OnlyIfCached.as_str())
            }
            Lookup::Pass(why) => self.pass_read(head, client, interim, why).await,
        }
    }

    /// Reads the upstream for everybody who waits for this job. The read is a task of its own: the
    /// client that began it may hang up, and the others get their answer all the same.
    async fn lead(
        self: &Arc<Self>,
        lead: Lead,
        head: Parts,
        (client, interim): (Peer, Interim),
        budget: Budget,
    ) -> Answer {
        let why = lead.why();
        if self.superseded.is_told() {
            // It may be read for others by rules that no longer hold. One that is told later has its
            // lease from before the purge that comes with them.
            self.cache.abandon(lead, Abandoned::Superseded).await;
            return self.pass_read(head, client, interim, why.unwrap_or(Bypass::Alone)).await;
        }
        let mut request = self.for_fill(&head, client);
        relay(&mut request, &interim);
        let flight = spans::flight();
        lead.led_by(&flight);
        let (task, answered) = LeadTask::new(self, lead, head.clone(), budget);
        self.tasks.spawn(task.run(request).instrument(flight));
        match answered.await {
            Ok(answer) => answer,
            // The leader died. Reading once more is safe.
            Err(_) => self.pass_read(head, client, interim, why.unwrap_or(Bypass::Alone)).await,
        }
    }

    /// Forwards a read that the cache cannot answer, for this client alone.
    async fn pass_read(
        &self,
        mut head: Parts,
        client: Peer,
        interim: Interim,
        why: Bypass,
    ) -> Answer {
        self.prepare_request(&mut head, client);
        let mut request = Request::from_parts(head, RequestBody::Empty);
        relay(&mut request, &interim);
        let sent = self.send(request, Repeat::IfSafe).await;
        match sent.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => {
                Answer { response: response.map(Body::Upstream), verdict: Verdict::Pass(why) }
            }
            Err(error) => refuse(&error),
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

    /// Sends a request upstream, and tells the upstream and the trace of it.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
        repeat: Repeat,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let span = spans::upstream(&mut request, self.upstream.authority());
        let result = self.upstream.send(request, repeat).instrument(span.clone()).await;
        spans::exchanged(&span, &result);
        result
    }

    /// A client's request as it goes upstream.
    fn forwarded(
        &self,
        request: Request<Incoming>,
        client: Peer,
        interim: &Interim,
    ) -> Request<RequestBody> {
        let (mut head, body) = request.into_parts();
        let expects = headers::expects_continue(&mut head.headers, head.version);
        self.prepare_request(&mut head, client);
        let mut request = Request::from_parts(head, RequestBody::of(body, expects));
        relay(&mut request, interim);
        request
    }

    /// Makes a client's request head ours.
    fn prepare_request(&self, head: &mut Parts, client: Peer) {
        let version = head.version;
        to_origin_form(head, self.upstream.authority());
        headers::strip_hop_by_hop(&mut head.headers, self.cache.fingerprinted());
        headers::plain_tags(&mut head.headers, &head.method);
        headers::forward(&mut head.headers, client, version);
    }

    /// A request that reads a job for whoever asks for this representation of it.
    fn for_fill(&self, head: &Parts, client: Peer) -> Request<RequestBody> {
        let mut head = head.clone();
        self.prepare_request(&mut head, client);
        headers::for_fill(&mut head.headers);
        Request::from_parts(head, RequestBody::Empty)
    }
}

fn hit(entry: &Entry, method: &Method, headers: &HeaderMap, now_ms: i64) -> Answer {
    let response = entry.hit(method, headers, now_ms).map(Body::from);
    Answer { response, verdict: Verdict::Hit }
}

/// Answers from an entry that has just been read for it, with 304 where the client has it already.
fn entry_response(entry: &Entry, head: &Parts, now_ms: i64) -> Response<Body> {
    let mut response = entry.respond(&head.method, &head.headers, now_ms).map(Body::from);
    headers::via(response.headers_mut(), Version::HTTP_11);
    response
}

/// Passes the upstream's interim responses on to the client that asked. None is ever stored, and
/// who joins a flight sees none.
fn relay(request: &mut Request<RequestBody>, interim: &Interim) {
    if matches!(request.body(), RequestBody::Held(_)) || interim.is_taken() {
        let interim = interim.clone();
        relay_interim(request, move |status, headers| {
            let mut headers = headers.clone();
            headers::strip_hop_by_hop(&mut headers, &[]);
            interim.send(status, &headers);
        });
    }
}

/// A client whose upload nobody asked for may send it or not, so nothing can follow.
fn end_after_unasked(response: &mut Response<Body>, interim: &Interim) {
    // HTTP/2 knows no such field, and ends the stream alone.
    if response.body().leaves_upload() && interim.is_taken() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Whether the upstream was asked to switch protocols.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Switch {
    Asked,
    Unasked,
}

/// Makes the upstream's response head ours.
///
/// "A server MUST NOT switch to a protocol that was not indicated by the client in the corresponding
/// request's Upgrade header field." RFC 9110 7.8: one that does is no answer.
fn prepare_response<B>(
    mut response: Response<B>,
    asked: Switch,
) -> Result<Response<B>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS && asked == Switch::Unasked {
        return Err(UpstreamError::UnaskedUpgrade);
    }
    if framing::stays_coded(response.headers()) {
        return Err(UpstreamError::TransferCoding);
    }
    let version = response.version();
    // "Transfer-Encoding overrides the Content-Length. [..] An intermediary that chooses to forward
    // the message MUST first remove the received Content-Length field" RFC 9112 6.3. Also of an
    // answer to HEAD: that length is not the one that a GET would see.
    if response.headers().contains_key(TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    framing::unify_length(response.headers_mut());
    let switch = upgrade::keep_switch(&response);
    headers::strip_hop_by_hop(response.headers_mut(), &[]);
    if let Some(protocol) = switch {
        upgrade::offer(response.headers_mut(), protocol);
    }
    headers::via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
