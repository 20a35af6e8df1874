//! The story of one request.

mod answer;
pub mod body;
pub mod headers;
mod lead;
pub mod route;
pub mod upgrade;

use std::sync::Arc;

use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body as _, Incoming},
    http::{
        Method,
        header::{CONTENT_LENGTH, TRANSFER_ENCODING},
        request::Parts,
    },
};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::{
    answer::{AccessLine, Answer, Stored, Verdict, refuse, refuse_with},
    body::{Body, Ending, Finish, Finishing},
    headers::Client,
    lead::LeadTask,
    route::{Route, Routes, overrides_method},
    upgrade::Upgrade,
};
use crate::{
    cache::{Cache, Lead, Lookup, Outcome, entry::Entry, key::JobId, policy::Bypass},
    config::Config,
    metrics::Metrics,
    mutants::{self, Mutant},
    store::{Budget, Ended, Write},
    upstream::{Repeat, RequestBody, ResponseBody, Upstream, UpstreamError, to_origin_form},
};

/// Answers requests.
#[derive(Debug)]
pub struct Proxy {
    routes: Arc<Routes>,
    cache: Arc<Cache>,
    upstream: Upstream,
    /// Writes and flights, which outlive the client that began them.
    tasks: TaskTracker,
    access_log: bool,
    metrics: Arc<Metrics>,
}

impl Proxy {
    /// Puts the parts together.
    pub fn new(
        routes: Arc<Routes>,
        cache: Arc<Cache>,
        upstream: Upstream,
        config: &Config,
        metrics: Arc<Metrics>,
    ) -> Self {
        let tasks = TaskTracker::new();
        Self { routes, cache, upstream, tasks, access_log: config.access_log, metrics }
    }

    /// Waits for writes and flights that have outlived their clients, and for upgrades.
    pub async fn finish(&self, deadline: Instant) {
        self.tasks.close();
        if timeout_at(deadline, self.tasks.wait()).await.is_err() {
            let tasks = self.tasks.len();
            warn!(tasks, "drain deadline passed; writes or upgrades are cut off");
        }
    }

    /// Answers one request. Whatever goes wrong becomes an answer.
    pub async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Client,
    ) -> Response<Body> {
        let line = self.access_log.then(|| AccessLine::of(&request));
        let answer = match self.routes.classify(&request) {
            // HTTP/2 needs no header to announce a body.
            Route::Read(_) if !request.body().is_end_stream() => {
                self.pass(request, client, Bypass::RequestBody).await
            }
            Route::Read(_) if self.cache.is_personal(request.headers()) => {
                self.pass(request, client, Bypass::Credentials).await
            }
            Route::Read(id) => self.read(id, request.into_parts().0, client).await,
            Route::Write(ids) => self.write(ids, request, client).await,
            Route::Pass(_) if request.method() == Method::CONNECT => {
                refuse_with(StatusCode::METHOD_NOT_ALLOWED, "connect")
            }
            Route::Pass(why) => self.pass(request, client, why).await,
        };
        answer.report(&self.metrics, line)
    }

    /// Answers a cacheable read.
    ///
    /// A store that is down or slow costs the client at most the store budget and a trip upstream,
    /// never an error.
    async fn read(self: &Arc<Self>, id: JobId, head: Parts, client: Client) -> Answer {
        let mut budget = self.cache.budget();
        let ask = self.cache.ask(&id, &head);
        match self.cache.lookup(&ask, &mut budget).await {
            Lookup::Hit(entry) => self.hit(&entry, &head),
            Lookup::Lead(lead) => self.lead(*lead, head, client, budget).await,
            Lookup::Join(flight, why) => match flight.landed().await {
                Some(entry) => {
                    let verdict = Verdict::Miss { stored: Stored::Unsaid, collapsed: true, why };
                    self.metrics.flights_joined.inc();
                    let now_ms = self.cache.store().now_ms();
                    Answer { response: entry_response(&entry, &head, now_ms), verdict }
                }
                None => self.pass_read(head, client, Bypass::Alone).await,
            },
            Lookup::Pass(Bypass::OnlyIfCached) => {
                refuse_with(StatusCode::GATEWAY_TIMEOUT, Bypass::OnlyIfCached.as_str())
            }
            Lookup::Pass(why) => self.pass_read(head, client, why).await,
        }
    }

    fn hit(&self, entry: &Entry, head: &Parts) -> Answer {
        let now_ms = self.cache.store().now_ms();
        let response = entry_response(entry, head, now_ms);
        Answer { response, verdict: Verdict::Hit { ttl: entry.ttl(now_ms) } }
    }

    /// Reads the upstream for everybody who waits for this job. The read is a task of its own: the
    /// client that began it may hang up, and the others get their answer all the same.
    async fn lead(
        self: &Arc<Self>,
        lead: Lead,
        head: Parts,
        client: Client,
        budget: Budget,
    ) -> Answer {
        let why = lead.why();
        let request = self.for_fill(&head, client);
        let (task, answered) = LeadTask::new(self, lead, head.clone(), budget);
        self.tasks.spawn(task.run(request));
        match answered.await {
            Ok(answer) => answer,
            // The leader died. Reading once more is safe.
            Err(_) => self.pass_read(head, client, why.unwrap_or(Bypass::Alone)).await,
        }
    }

    /// Forwards a read that the cache cannot answer, for this client alone.
    async fn pass_read(&self, mut head: Parts, client: Client, why: Bypass) -> Answer {
        self.prepare_request(&mut head, client);
        let request = Request::from_parts(head, RequestBody::Empty);
        let sent = self.upstream.send(request, Repeat::IfSafe).await;
        match sent.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => {
                Answer { response: response.map(Body::Upstream), verdict: Verdict::Pass(why) }
            }
            Err(error) => refuse(&error),
        }
    }

    /// Forwards what the cache has no part in, streaming both ways.
    async fn pass(&self, mut request: Request<Incoming>, client: Client, why: Bypass) -> Answer {
        let upgrade = Upgrade::of(&mut request);
        let overridden = overrides_method(request.headers());
        let (mut head, body) = request.into_parts();
        self.prepare_request(&mut head, client);
        if let Some(upgrade) = &upgrade {
            upgrade.ask(&mut head.headers);
        }
        let request = Request::from_parts(head, RequestBody::of(body));
        let repeat = if overridden { Repeat::Never } else { Repeat::IfSafe };
        let switch = if upgrade.is_some() { Switch::Asked } else { Switch::Unasked };
        let sent = self.upstream.send(request, repeat).await;
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
        Answer { response: response.map(Body::Upstream), verdict: Verdict::Pass(why) }
    }

    /// Forwards a write. It is a task of its own: a client that hangs up cancels neither the write
    /// nor the invalidation that has to follow it.
    async fn write(
        self: &Arc<Self>,
        ids: Vec<JobId>,
        request: Request<Incoming>,
        client: Client,
    ) -> Answer {
        let write = Arc::clone(self).carry_out(ids, request, client);
        match self.tasks.spawn(write).await {
            Ok(answer) => answer,
            Err(error) => {
                warn!(%error, "a write died");
                refuse_with(StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        }
    }

    async fn carry_out(
        self: Arc<Self>,
        ids: Vec<JobId>,
        request: Request<Incoming>,
        client: Client,
    ) -> Answer {
        let write = self.cache.begin(&ids, &mut self.cache.budget()).await;
        let (mut head, body) = request.into_parts();
        self.prepare_request(&mut head, client);
        let request = Request::from_parts(head, RequestBody::of(body));
        let result = tokio::select! {
            result = self.upstream.send(request, Repeat::Never) => result,
            never = self.cache.keep_fenced(&write) => match never {},
        };
        // An answer that we refuse is an answer to the write all the same.
        let outcome = match &result {
            Err(error) if error.may_have_arrived() => Outcome::Unknown,
            _ => Outcome::Known,
        };
        let ended = self.cache.end(&write, outcome).await;
        let pending = ended == Ended::Pending;
        match result.and_then(|response| prepare_response(response, Switch::Unasked)) {
            Ok(response) => {
                let response = response.map(|body| self.end_again(body, write));
                Answer { response, verdict: Verdict::Write { pending } }
            }
            Err(error) => refuse(&error),
        }
    }

    /// Invalidates once more when the upstream's body has ended.
    fn end_again(self: &Arc<Self>, body: ResponseBody, write: Write) -> Body {
        if body.is_end_stream() || mutants::is(Mutant::EndOnce) {
            return Body::Upstream(body);
        }
        let proxy = Arc::clone(self);
        let end = move |finishing: Finishing| {
            let tasks = proxy.tasks.clone();
            tasks.spawn(async move {
                let outcome = match finishing.await {
                    Finish::Whole => Outcome::Known,
                    Finish::Cut => Outcome::Unknown,
                };
                proxy.cache.end_again(&write, outcome).await;
            })
        };
        Body::Ending(Box::new(Ending::new(body, Box::new(end))))
    }

    /// Makes a client's request head ours.
    fn prepare_request(&self, head: &mut Parts, client: Client) {
        let version = head.version;
        to_origin_form(head, self.upstream.authority());
        headers::strip_hop_by_hop(&mut head.headers, self.cache.fingerprinted());
        headers::forward(&mut head.headers, client, version);
    }

    /// A request that reads a job for whoever asks for this representation of it.
    fn for_fill(&self, head: &Parts, client: Client) -> Request<RequestBody> {
        let mut head = head.clone();
        self.prepare_request(&mut head, client);
        headers::for_fill(&mut head.headers);
        Request::from_parts(head, RequestBody::Empty)
    }
}

/// Answers from an entry, with 304 where the client has it already.
fn entry_response(entry: &Entry, head: &Parts, now_ms: i64) -> Response<Body> {
    let mut response = entry.respond(&head.method, &head.headers, now_ms).map(Body::from);
    headers::via(response.headers_mut(), Version::HTTP_11);
    response
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
    let version = response.version();
    // "Transfer-Encoding overrides the Content-Length. [..] An intermediary that chooses to forward
    // the message MUST first remove the received Content-Length field" RFC 9112 6.3. Also of an
    // answer to HEAD: that length is not the one that a GET would see.
    if response.headers().contains_key(TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    let switch = upgrade::keep_switch(&response);
    headers::strip_hop_by_hop(response.headers_mut(), &[]);
    if let Some(protocol) = switch {
        upgrade::offer(response.headers_mut(), protocol);
    }
    headers::via(response.headers_mut(), version);
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}
