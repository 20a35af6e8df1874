//! The admin listener: purge webhook, health, metrics, the filter of the log, and what happens and why.
//!
//! Health and metrics are anybody's who can connect. Whatever names a job asks for the webhook secret,
//! where there is one, as a purge does. The status page at `/` names none; its script asks.

mod explain;
mod front;
pub mod guard;
mod live;
mod log;
mod origin;
mod pace;
pub mod page;
pub mod proof;
pub mod purge;
mod status;
mod upload;
pub mod wanted;

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    http::{HeaderValue, header::CONTENT_TYPE},
};
use serde_json::json;
use tokio::time::timeout;
use tracing::Instrument as _;

use self::{
    explain::{MAX_HEAD, Sidecar},
    front::Front,
    guard::{Caller, Guard, Watch},
    log::Log,
    page::{Page, reply, wrong_method},
    purge::Webhook,
    status::Mode,
};
pub use self::{page::Reply, status::outcomes};
use crate::{
    cache::Cache,
    config::{self, Config},
    limits::Room,
    metrics::{Metrics, Refused},
    proxy::route::Routes,
    server::Drain,
    spans,
    telemetry::Filter,
    transport::Peer,
    warm::Warmer,
};

/// What `/metrics` is: Prometheus 2.5 and newer ask for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// For the head of a request that is to be explained.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What names no job, and is read under any name: probes and scrapes come by names of a cluster.
const ANYBODYS: [&str; 4] = ["/", "/livez", "/readyz", "/metrics"];

/// For who has asked for none of them.
const PAGES: &str = "/, /livez, /readyz, /metrics, /status, /history, /events, /log, /explain/<id>, \
                     and POST /purge and /purge/<id>";

/// Answers on the admin listener.
#[derive(Debug)]
pub struct Admin {
    cache: Arc<Cache>,
    routes: Arc<Routes>,
    guard: Arc<Guard>,
    webhook: Webhook,
    log: Log,
    mode: Mode,
    /// Of the requests that are to be explained.
    limits: config::ServerConfig,
    lasting: Lasting,
    front: Front,
}

/// What stays as it is whatever the configuration says.
#[derive(Clone, Debug)]
pub struct Lasting {
    /// For the bodies of purges.
    pub room: Arc<Room>,
    /// What passes to the log.
    pub filter: Filter,
    /// Who reads jobs anew after a purge.
    pub warmer: Warmer,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Whether the sidecar drains.
    pub leaving: Drain,
    /// What has been seen of callers.
    pub watch: Arc<Watch>,
}

impl Admin {
    /// Puts the parts together.
    pub fn new(cache: Arc<Cache>, routes: Arc<Routes>, config: &Config, lasting: Lasting) -> Self {
        let guard = Guard::new(config, &lasting);
        Self::guarded_by(guard, cache, routes, config, lasting)
    }

    /// The same under another configuration.
    #[must_use]
    pub fn revised(&self, cache: Arc<Cache>, routes: Arc<Routes>, config: &Config) -> Self {
        let guard = self.guard.revised(config, &self.lasting);
        Self::guarded_by(guard, cache, routes, config, self.lasting.clone())
    }

    fn guarded_by(
        guard: Guard,
        cache: Arc<Cache>,
        routes: Arc<Routes>,
        config: &Config,
        lasting: Lasting,
    ) -> Self {
        let guard = Arc::new(guard);
        let jobs = (Arc::clone(&cache), Arc::clone(&routes));
        let webhook = Webhook::new(jobs, &lasting, Arc::clone(&guard), config);
        let log = Log::new(lasting.filter.clone(), Arc::clone(&guard));
        let (mode, front, limits) = (Mode::of(config), Front::new(), config.server.clone());
        Self { cache, routes, guard, webhook, log, mode, limits, lasting, front }
    }

    /// Answers one request.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, client: Peer) -> Reply {
        let Some(route) = self.purges(&request) else { return self.answer(request, client).await };
        let span = spans::request(&request, "http", || Some(route));
        let answer = async {
            let reply = self.answer(request, client).await;
            spans::replied(reply.status());
            reply
        };
        answer.instrument(span).await
    }

    /// By which route a request purges. What else comes here (probes, scrapes) is worth no span.
    fn purges(&self, request: &Request<Incoming>) -> Option<&str> {
        let path = request.uri().path();
        match request.method().as_str() {
            "POST" if path == "/purge" => Some("/purge"),
            "POST" if path.starts_with("/purge/") => Some("/purge/{id}"),
            "PURGE" => self.webhook.route(path),
            _ => None,
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: Peer) -> Reply {
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        let read = method == Method::GET || method == Method::HEAD;
        if let Some(error) = origin::ambiguity(&request) {
            self.lasting.metrics.webhook.refused(Refused::Malformed);
            return reply(StatusCode::BAD_REQUEST, &json!({ "error": error }));
        }
        if let Some(refusal) = self.refuses_page(&request, read, client) {
            return refusal;
        }
        match path.as_str() {
            "/" if read => self.front.show(),
            "/livez" if read => reply(StatusCode::OK, &json!({ "status": "alive" })),
            "/readyz" if read => self.ready(),
            "/metrics" if read => self.exposition(),
            "/status" if read => self.guarded(request.headers(), client, Self::status),
            "/history" if read => self.guarded(request.headers(), client, Self::history),
            "/events" if method == Method::GET => {
                let headers = request.headers();
                self.guarded(headers, client, |admin| admin.events(headers))
            }
            "/log" if read => self.log.show(),
            "/log" if method == Method::PUT => self.log.put(request, client).await,
            "/" | "/livez" | "/readyz" | "/metrics" | "/status" | "/history" => {
                wrong_method("GET, HEAD")
            }
            "/events" => wrong_method("GET"),
            "/log" => wrong_method("GET, HEAD, PUT"),
            _ if path.starts_with("/explain/") => self.explain(request, &path, client).await,
            _ => self.purge(request, &path, client).await,
        }
    }

    /// Purges in any of three ways. What is none of them is no page.
    async fn purge(&self, request: Request<Incoming>, path: &str, client: Peer) -> Reply {
        let caller = Caller::of(&request, client);
        let method = request.method();
        match path.strip_prefix("/purge/") {
            None if path == "/purge" && method == Method::POST => {
                self.webhook.purge_listed(request, caller).await
            }
            None if path == "/purge" => wrong_method("POST"),
            _ if method.as_str() == "PURGE" => self.webhook.purge_path(request, path, caller).await,
            Some(id) if method == Method::POST => self.webhook.purge_one(request, id, caller).await,
            Some(_) => wrong_method("POST"),
            None => {
                let error = format!("there is no page {path:?}; there are {PAGES}");
                reply(StatusCode::NOT_FOUND, &json!({ "error": error }))
            }
        }
    }

    /// What is answered to a browser that another site's page makes call, where no secret keeps it out.
    /// Who comes by a unix socket is no browser.
    fn refuses_page<B>(&self, request: &Request<B>, read: bool, client: Peer) -> Option<Reply> {
        if !self.guard.is_open() {
            return None;
        }
        let for_anybody = read && ANYBODYS.contains(&request.uri().path());
        let refusal = if !read && origin::is_foreign(request) {
            forged()
        } else if client.ip.is_some() && !for_anybody {
            rebound(&origin::foreign_name(request)?)
        } else {
            return None;
        };
        self.lasting.metrics.webhook.refused(Refused::Origin);
        Some(refusal)
    }

    /// What names jobs is for who knows the secret, where there is one.
    fn guarded(
        &self,
        headers: &HeaderMap,
        client: Peer,
        page: impl FnOnce(&Self) -> Reply,
    ) -> Reply {
        self.guard.refuses(headers, client).unwrap_or_else(|| page(self))
    }

    fn status(&self) -> Reply {
        let draining = *self.lasting.leaving.borrow();
        let body = status::status(&self.cache, &self.lasting.metrics, &self.mode, draining);
        reply(StatusCode::OK, &body)
    }

    fn history(&self) -> Reply {
        reply(StatusCode::OK, &status::history(&self.lasting.metrics))
    }

    /// By the head of the client's request in the body of a POST.
    async fn explain(&self, request: Request<Incoming>, path: &str, client: Peer) -> Reply {
        let (head, body) = request.into_parts();
        if head.method != Method::GET && head.method != Method::POST {
            return wrong_method("GET, POST");
        }
        if let Some(refusal) = self.guard.refuses(&head.headers, client) {
            return refusal;
        }
        let read = timeout(HEAD_TIMEOUT, Limited::new(body, MAX_HEAD).collect());
        let Ok(Ok(body)) = read.await else {
            return explain::bad_request(&format!(
                "the body is the head of a request, of at most {MAX_HEAD} bytes"
            ));
        };
        let body = body.to_bytes();
        let id = path.strip_prefix("/explain/").unwrap_or_default();
        let (cache, routes, limits) = (&self.cache, &self.routes, &self.limits);
        Sidecar { cache, routes, mode: self.mode.cache(), limits }.explain(id, &body).await
    }

    fn events(&self, headers: &HeaderMap) -> Reply {
        live::stream(&self.lasting.metrics, headers, &self.lasting.leaving, self.guard.is_over())
    }

    /// Ready to serve clients: also without a store, but not once a shutdown has begun.
    fn ready(&self) -> Reply {
        let draining = *self.lasting.leaving.borrow();
        let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let store = self.cache.store();
        reply(
            status,
            &json!({
                "status": if draining { "draining" } else { "ready" },
                "store": if store.is_up() { "up" } else { "down" },
                "pending_invalidations": store.pending(),
            }),
        )
    }

    fn exposition(&self) -> Reply {
        let mut response = Response::new(Page::Whole(self.lasting.metrics.exposition().into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
        response
    }
}

/// The name may be of another site, which leads here to be answered as if it were ours.
fn rebound(name: &str) -> Reply {
    let error = format!(
        "this is asked of {name:?}, which may be the name of another site (DNS rebinding); ask by an \
         address or localhost, such as http://127.0.0.1:9090, or configure a webhook_secret"
    );
    reply(StatusCode::FORBIDDEN, &json!({ "error": error }))
}

fn forged() -> Reply {
    let error = "a page of another site has sent this; only the status page of this listener may, or \
                 who sends the webhook secret, where one is configured";
    reply(StatusCode::FORBIDDEN, &json!({ "error": error }))
}
