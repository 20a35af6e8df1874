//! The admin listener: purge webhook, health, metrics, log filter, events and explanations.
//!
//! `admin_route` says what each request is and who may make it. [`Admin`] refuses what a page of
//! another site sends (`csrf`) and clients without the secret (`authorize`), in this order, and then
//! answers. Only a listed purge checks its caller itself: a signature covers its body.
//!
//! Health, metrics and `GET /log` are open to every client that can connect. Purges, `PUT /log` and
//! all pages that name jobs need the webhook secret if one is configured. The status page at `/` is
//! open because it contains no job; its script sends the secret when it fetches the data.

mod admin_route;
pub(crate) mod admin_state;
pub mod authorize;
mod caller_limits;
mod csrf;
mod explain;
mod purge;
pub mod purge_request;
mod recent;
pub mod reply;
pub mod signature;
mod status;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};

use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    http::{HeaderValue, header::CONTENT_TYPE},
};
use serde_json::json;
use tokio::time::timeout;
use tracing::{Instrument as _, warn};

use self::{
    admin_route::{Access, AdminRoute, NoRoute},
    admin_state::WebhookRefusal,
    authorize::{AdminCaller, Authorizer},
    caller_limits::BodyReader,
    recent::Recent,
    reply::{complete, error_reply, json_reply},
    status::{StatusConfig, StatusPage},
};
use crate::{
    cache::Cache,
    config::{self, Config},
    observe::spans,
    semantics::route::Routes,
    transport::Peer,
};

pub use self::{admin_state::AdminState, caller_limits::CallerLimits, reply::Reply};

/// Content type of `/metrics`, which Prometheus 2.5 and newer ask for.
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Longest filter of the log, in bytes.
const MAX_FILTER: usize = 4 << 10;
/// Time limit for the body with a filter.
const FILTER_TIMEOUT: Duration = Duration::from_secs(5);

/// The handler of all requests to the admin listener.
pub struct Admin {
    cache: Arc<Cache>,
    routes: Arc<Routes>,
    authorizer: Authorizer,
    body_reader: BodyReader,
    /// Purges per second.
    max_purges: usize,
    status_config: StatusConfig,
    /// Limits that a request under `/explain` is checked against.
    limits: config::ServerConfig,
    state: AdminState,
    status_page: StatusPage,
}

impl Admin {
    /// Creates the handler for the first configuration.
    pub fn new(cache: Arc<Cache>, routes: Arc<Routes>, config: &Config, state: AdminState) -> Self {
        let authorizer = Authorizer::new(config, &state);
        Self::with_authorizer(authorizer, cache, routes, config, state)
    }

    /// Creates the handler for the next configuration. It shares the state of this one.
    #[must_use]
    pub fn reconfigured(&self, cache: Arc<Cache>, routes: Arc<Routes>, config: &Config) -> Self {
        let authorizer = self.authorizer.reconfigured(config, &self.state);
        Self::with_authorizer(authorizer, cache, routes, config, self.state.clone())
    }

    fn with_authorizer(
        authorizer: Authorizer,
        cache: Arc<Cache>,
        routes: Arc<Routes>,
        config: &Config,
        state: AdminState,
    ) -> Self {
        let quota = Arc::clone(&state.body_quota);
        Self {
            cache,
            routes,
            authorizer,
            body_reader: BodyReader::new(
                quota,
                config.cache.limits.max_inspected,
                &state.caller_limits,
            ),
            max_purges: config.webhook.max_purges,
            status_config: StatusConfig::of(config),
            limits: config.server.clone(),
            state,
            status_page: StatusPage::new(),
        }
    }

    /// Returns the counts of the last ten minutes, which have to be sampled.
    pub(crate) fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.state.status.recent)
    }

    /// Answers one request. Only purges get a span.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, client: Peer) -> Reply {
        let path = request.uri().path().to_owned();
        let route = AdminRoute::of(request.method(), &path);
        let span_name = route.ok().and_then(|route| route.span_name(&self.routes));
        let Some(name) = span_name else {
            return self.check(request, route, client).await;
        };
        let span = spans::request(&request, "http", || Some(name));
        let answer = async {
            let reply = self.check(request, route, client).await;
            spans::record_status(reply.status());
            reply
        };
        answer.instrument(span).await
    }

    /// Answers a request if its client may make it.
    async fn check(
        &self,
        request: Request<Incoming>,
        route: Result<AdminRoute<'_>, NoRoute>,
        client: Peer,
    ) -> Reply {
        let refusals = &self.state.metrics;
        if let Some(error) = csrf::ambiguous_field(&request) {
            refusals.count_refused(WebhookRefusal::Malformed);
            return error_reply(StatusCode::BAD_REQUEST, &error);
        }
        // No page of another site knows a secret.
        if self.authorizer.is_open()
            && let Some(refusal) =
                csrf::reject(&request, route.ok().map(AdminRoute::access), client)
        {
            refusals.count_refused(WebhookRefusal::Origin);
            return refusal;
        }
        let route = match route {
            Ok(route) => route,
            Err(no_route) => return no_route.reply(request.uri().path()),
        };
        // A signature covers the body, which `PurgeListed` reads.
        if route.access() == Access::Token
            && let Some(refusal) = self.authorizer.reject_without_token(request.headers(), client)
        {
            return refusal;
        }
        self.answer(request, route, client).await
    }

    async fn answer(&self, request: Request<Incoming>, route: AdminRoute<'_>, peer: Peer) -> Reply {
        let caller = |request: &_| AdminCaller::of(request, peer);
        match route {
            AdminRoute::StatusPage => self.status_page.reply(),
            AdminRoute::Live => json_reply(StatusCode::OK, &json!({ "status": "alive" })),
            AdminRoute::Ready => self.ready(),
            AdminRoute::Metrics => self.metrics_page(),
            AdminRoute::Status => {
                let body = status::status(&self.cache, &self.state, &self.status_config);
                json_reply(StatusCode::OK, &body)
            }
            AdminRoute::History => {
                json_reply(StatusCode::OK, &status::history(&self.state.status.recent))
            }
            AdminRoute::Events => self.events(request.headers()),
            AdminRoute::ShowLogFilter => self.show_log_filter(),
            AdminRoute::SetLogFilter => self.set_log_filter(request.into_body()).await,
            AdminRoute::Explain(id) => self.explain(id, request.into_body()).await,
            // Boxed: the futures of purges are large, and other pages should not pay for moving them.
            AdminRoute::PurgeListed => {
                let caller = caller(&request);
                Box::pin(self.purge_listed(request, caller)).await
            }
            AdminRoute::PurgeOne(id) => Box::pin(self.purge_one(id, caller(&request))).await,
            AdminRoute::PurgePath(path) => Box::pin(self.purge_path(path, caller(&request))).await,
        }
    }

    fn events(&self, headers: &HeaderMap) -> Reply {
        reply::event_stream(
            &self.state.events,
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

    /// `GET /log`.
    fn show_log_filter(&self) -> Reply {
        match self.state.filter.text() {
            Some(log) => json_reply(StatusCode::OK, &json!({ "log": log })),
            None => no_log(),
        }
    }

    /// `PUT /log` with a filter as its body. A change lasts until a reload, which restores the
    /// configured filter, or a restart. It needs the webhook secret as a bearer token
    /// (`admin_route`), because `debug` shows job ids and slows down every request.
    async fn set_log_filter(&self, body: Incoming) -> Reply {
        let read = timeout(FILTER_TIMEOUT, Limited::new(body, MAX_FILTER).collect()).await;
        let changed = match read {
            Ok(Ok(body)) => self.change_log_filter(&body.to_bytes()),
            Ok(Err(error)) => {
                Err(format!("cannot read the filter ({MAX_FILTER} bytes at most): {error}"))
            }
            Err(_) => Err(format!("the body did not arrive within {FILTER_TIMEOUT:?}")),
        };
        match changed {
            Ok(Some((log, was))) => json_reply(StatusCode::OK, &json!({ "log": log, "was": was })),
            Ok(None) => no_log(),
            Err(reason) => error_reply(StatusCode::BAD_REQUEST, &reason),
        }
    }

    /// Sets the filter. Returns the new and the previous one, or `None` if there is no log.
    fn change_log_filter(&self, body: &Bytes) -> Result<Option<(String, String)>, String> {
        let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
        let log = config::log_filter(text.trim())?;
        // Logged first: the new filter might suppress it.
        warn!(log, "log filter changed through the admin listener");
        let was = self.state.filter.set(&log).map_err(|error| error.to_string())?;
        Ok(was.map(|was| (log, was)))
    }

    fn metrics_page(&self) -> Reply {
        let mut response = Response::new(complete(self.state.registry.exposition()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS_TYPE));
        response
    }
}

/// The answer if this process did not install the logger, as in tests.
fn no_log() -> Reply {
    error_reply(StatusCode::NOT_FOUND, "jobcache does not own the log here")
}
