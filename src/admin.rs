//! The admin listener: purge webhook, health, metrics, log filter, events and explanations.
//!
//! Health, metrics and `GET /log` are open to every client that can connect. Purges, `PUT /log` and
//! all pages that name jobs need the webhook secret if one is configured. The status page at `/` is
//! open because it contains no job; its script sends the secret when it fetches the data.

pub mod authorize;
mod body_limit;
mod csrf;
mod explain;
mod log_filter;
pub mod purge;
pub mod purge_request;
mod rate_limit;
pub mod reply;
pub mod signature;
mod sse;
mod status;
mod status_page;

use std::{fmt, sync::Arc, time::Duration};

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
    authorize::{AdminCaller, Authorizer, CallerLimits},
    explain::{Explainer, MAX_HEAD},
    log_filter::LogFilterPage,
    purge::PurgeWebhook,
    reply::{ReplyBody, json_reply, method_not_allowed},
    status::StatusConfig,
    status_page::StatusPage,
};
pub use self::{reply::Reply, status::outcome_reasons};
use crate::{
    cache::Cache,
    config::{self, Config},
    drain::Drain,
    limits::Quota,
    metrics::{Metrics, WebhookRefusal},
    proxy::route::Routes,
    spans,
    telemetry::LogFilter,
    transport::Peer,
    warm::Warmer,
};

/// Content type of `/metrics`, which Prometheus 2.5 and newer ask for.
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time limit for the body of `/explain`, which is the head of the request to explain.
const EXPLAIN_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Pages that name no job. They are served under every host name, because probes and scrapes use
/// names of their cluster.
const PUBLIC_PAGES: [&str; 4] = ["/", "/livez", "/readyz", "/metrics"];

/// The list of pages for the 404 answer.
const PAGES: &str = "/, /livez, /readyz, /metrics, /status, /history, /events, /log, /explain/<id>, \
                     and POST /purge and /purge/<id>";

/// The handler of all requests to the admin listener.
pub struct Admin {
    cache: Arc<Cache>,
    routes: Arc<Routes>,
    authorizer: Arc<Authorizer>,
    webhook: PurgeWebhook,
    log_filter: LogFilterPage,
    status_config: StatusConfig,
    /// Limits that a request under `/explain` is checked against.
    limits: config::ServerConfig,
    state: AdminState,
    status_page: StatusPage,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("mode", &self.status_config)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// State that is shared by all configurations and survives a reload.
#[derive(Clone)]
pub struct AdminState {
    /// Memory budget for the bodies of purges.
    pub body_quota: Arc<Quota>,
    /// Filter of the log, which `PUT /log` changes.
    pub filter: LogFilter,
    /// Reads jobs again after a purge with `"refresh": true`.
    pub warmer: Warmer,
    pub(crate) metrics: Arc<Metrics>,
    /// Turns true when a shutdown begins.
    pub drain: Drain,
    /// Rate limits and budgets of callers.
    pub caller_limits: Arc<CallerLimits>,
}

impl Admin {
    /// Creates the handler for the first configuration.
    pub fn new(
        cache: Arc<Cache>,
        routes: Arc<Routes>,
        config: &Config,
        lasting: AdminState,
    ) -> Self {
        let guard = Authorizer::new(config, &lasting);
        Self::with_authorizer(guard, cache, routes, config, lasting)
    }

    /// Creates the handler for the next configuration. It shares the state of this one.
    #[must_use]
    pub fn reconfigured(&self, cache: Arc<Cache>, routes: Arc<Routes>, config: &Config) -> Self {
        let guard = self.authorizer.reconfigured(config, &self.state);
        Self::with_authorizer(guard, cache, routes, config, self.state.clone())
    }

    fn with_authorizer(
        guard: Authorizer,
        cache: Arc<Cache>,
        routes: Arc<Routes>,
        config: &Config,
        state: AdminState,
    ) -> Self {
        let authorizer = Arc::new(guard);
        let jobs = (Arc::clone(&cache), Arc::clone(&routes));
        let webhook = PurgeWebhook::new(jobs, &state, Arc::clone(&authorizer), config);
        let log_filter = LogFilterPage::new(state.filter.clone(), Arc::clone(&authorizer));
        let status_config = StatusConfig::of(config);
        let status_page = StatusPage::new();
        let limits = config.server.clone();
        Self {
            cache,
            routes,
            authorizer,
            webhook,
            log_filter,
            status_config,
            limits,
            state,
            status_page,
        }
    }

    /// Answers one request. Only purges get a span.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, client: Peer) -> Reply {
        let Some(route) = self.purge_route(&request) else {
            return self.answer(request, client).await;
        };
        let span = spans::request(&request, "http", || Some(route));
        let answer = async {
            let reply = self.answer(request, client).await;
            spans::record_status(reply.status());
            reply
        };
        answer.instrument(span).await
    }

    /// Returns the route template of a purge. Other requests (probes, scrapes) are not worth a
    /// span.
    fn purge_route(&self, request: &Request<Incoming>) -> Option<&str> {
        let path = request.uri().path();
        match request.method().as_str() {
            "POST" if path == "/purge" => Some("/purge"),
            "POST" if path.starts_with("/purge/") => Some("/purge/{id}"),
            "PURGE" => self.webhook.route_template(path),
            _ => None,
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: Peer) -> Reply {
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        let read = method == Method::GET || method == Method::HEAD;
        if let Some(error) = csrf::ambiguous_field(&request) {
            self.state.metrics.webhook.count_refused(WebhookRefusal::Malformed);
            return json_reply(StatusCode::BAD_REQUEST, &json!({ "error": error }));
        }
        if let Some(refusal) = self.reject_cross_site(&request, read, client) {
            return refusal;
        }
        match path.as_str() {
            "/" if read => self.status_page.reply(),
            "/livez" if read => json_reply(StatusCode::OK, &json!({ "status": "alive" })),
            "/readyz" if read => self.ready(),
            "/metrics" if read => self.metrics_page(),
            "/status" if read => self.authorized(request.headers(), client, Self::status),
            "/history" if read => self.authorized(request.headers(), client, Self::history),
            "/events" if method == Method::GET => {
                let headers = request.headers();
                self.authorized(headers, client, |admin| admin.events(headers))
            }
            "/log" if read => self.log_filter.show(),
            "/log" if method == Method::PUT => self.log_filter.put(request, client).await,
            "/" | "/livez" | "/readyz" | "/metrics" | "/status" | "/history" => {
                method_not_allowed("GET, HEAD")
            }
            "/events" => method_not_allowed("GET"),
            "/log" => method_not_allowed("GET, HEAD, PUT"),
            _ if path.starts_with("/explain/") => self.explain(request, &path, client).await,
            _ => self.purge(request, &path, client).await,
        }
    }

    /// Handles the three forms of a purge, and answers 404 to all other paths.
    async fn purge(&self, request: Request<Incoming>, path: &str, client: Peer) -> Reply {
        let caller = AdminCaller::of(&request, client);
        let method = request.method();
        match path.strip_prefix("/purge/") {
            None if path == "/purge" && method == Method::POST => {
                self.webhook.purge_listed(request, caller).await
            }
            None if path == "/purge" => method_not_allowed("POST"),
            _ if method.as_str() == "PURGE" => self.webhook.purge_path(request, path, caller).await,
            Some(id) if method == Method::POST => self.webhook.purge_one(request, id, caller).await,
            Some(_) => method_not_allowed("POST"),
            None => {
                let error = format!("page {path:?} does not exist; the pages are {PAGES}");
                json_reply(StatusCode::NOT_FOUND, &json!({ "error": error }))
            }
        }
    }

    /// Refuses cross-site requests of browsers if no secret is configured. A client on a unix
    /// socket is not a browser.
    fn reject_cross_site<B>(
        &self,
        request: &Request<B>,
        read: bool,
        client: Peer,
    ) -> Option<Reply> {
        if !self.authorizer.is_open() {
            return None;
        }
        let is_public = read && PUBLIC_PAGES.contains(&request.uri().path());
        let refusal = if !read && csrf::is_cross_site(request) {
            cross_site_rejected()
        } else if client.ip.is_some() && !is_public {
            rebinding_rejected(&csrf::untrusted_host(request)?)
        } else {
            return None;
        };
        self.state.metrics.webhook.count_refused(WebhookRefusal::Origin);
        Some(refusal)
    }

    /// Answers with a page that names jobs, which needs the secret if one is configured.
    fn authorized(
        &self,
        headers: &HeaderMap,
        client: Peer,
        page: impl FnOnce(&Self) -> Reply,
    ) -> Reply {
        self.authorizer.reject_without_token(headers, client).unwrap_or_else(|| page(self))
    }

    fn status(&self) -> Reply {
        let draining = *self.state.drain.borrow();
        let body = status::status(&self.cache, &self.state.metrics, &self.status_config, draining);
        json_reply(StatusCode::OK, &body)
    }

    fn history(&self) -> Reply {
        json_reply(StatusCode::OK, &status::history(&self.state.metrics))
    }

    /// Explains a job. The body is the head of a client's request, or empty.
    async fn explain(&self, request: Request<Incoming>, path: &str, client: Peer) -> Reply {
        let (head, body) = request.into_parts();
        if head.method != Method::GET && head.method != Method::POST {
            return method_not_allowed("GET, POST");
        }
        if let Some(refusal) = self.authorizer.reject_without_token(&head.headers, client) {
            return refusal;
        }
        let read = timeout(EXPLAIN_BODY_TIMEOUT, Limited::new(body, MAX_HEAD).collect());
        let Ok(Ok(body)) = read.await else {
            return explain::bad_request(&format!(
                "cannot read the body; send the head of a request, at most {MAX_HEAD} bytes"
            ));
        };
        let body = body.to_bytes();
        let id = path.strip_prefix("/explain/").unwrap_or_default();
        let (cache, routes, limits) = (&self.cache, &self.routes, &self.limits);
        Explainer { cache, routes, mode: self.status_config.cache_mode(), limits }
            .explain(id, &body)
            .await
    }

    fn events(&self, headers: &HeaderMap) -> Reply {
        sse::event_stream(
            &self.state.metrics,
            headers,
            &self.state.drain,
            self.authorizer.secrets_replaced(),
        )
    }

    /// Answers `/readyz`. A sidecar without a store is ready, because it still forwards; a sidecar
    /// that drains is not.
    fn ready(&self) -> Reply {
        let draining = *self.state.drain.borrow();
        let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        let store = self.cache.store();
        json_reply(
            status,
            &json!({
                "status": if draining { "draining" } else { "ready" },
                "store": if store.is_up() { "up" } else { "down" },
                "pending_invalidations": store.pending(),
            }),
        )
    }

    fn metrics_page(&self) -> Reply {
        let mut response =
            Response::new(ReplyBody::Complete(self.state.metrics.exposition().into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS_TYPE));
        response
    }
}

/// Refuses a request to a host name that another site may have pointed at this listener.
fn rebinding_rejected(name: &str) -> Reply {
    let error = format!(
        "the host name {name:?} may belong to another site (DNS rebinding); use an IP address or \
         localhost, such as http://127.0.0.1:9090, or configure a webhook_secret"
    );
    json_reply(StatusCode::FORBIDDEN, &json!({ "error": error }))
}

fn cross_site_rejected() -> Reply {
    let error = "cross-site request rejected; use the status page of this listener, or configure a \
                 webhook_secret and send it";
    json_reply(StatusCode::FORBIDDEN, &json!({ "error": error }))
}
