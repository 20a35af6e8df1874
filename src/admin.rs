//! The admin listener: purge webhook, health and metrics.

pub mod purge;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    http::{
        HeaderValue,
        header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
    },
};
use serde_json::{Value, json};

use self::purge::Webhook;
use crate::{
    cache::Cache, config::Config, limits::Room, metrics::Metrics, proxy::route::Routes,
    server::Drain,
};

/// What `/metrics` is: Prometheus 2.5 and newer ask for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on the admin listener.
#[derive(Debug)]
pub struct Admin {
    cache: Arc<Cache>,
    webhook: Webhook,
    room: Arc<Room>,
    metrics: Arc<Metrics>,
    leaving: Drain,
}

/// A complete answer.
pub type Reply = Response<Full<Bytes>>;

impl Admin {
    /// Puts the parts together.
    pub fn new(
        cache: Arc<Cache>,
        routes: Arc<Routes>,
        room: Arc<Room>,
        config: &Config,
        metrics: Arc<Metrics>,
        leaving: Drain,
    ) -> Self {
        let secret = config.webhook_secret.as_ref();
        let webhook = Webhook::new(Arc::clone(&cache), routes, Arc::clone(&room), secret);
        Self { cache, webhook, room, metrics, leaving }
    }

    /// The same under another configuration.
    #[must_use]
    pub fn revised(&self, cache: Arc<Cache>, routes: Arc<Routes>, config: &Config) -> Self {
        let (room, metrics) = (Arc::clone(&self.room), Arc::clone(&self.metrics));
        Self::new(cache, routes, room, config, metrics, self.leaving.clone())
    }

    /// Answers one request.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let method = request.method().clone();
        let read = method == Method::GET || method == Method::HEAD;
        match path.as_str() {
            "/livez" if read => reply(StatusCode::OK, &json!({ "status": "alive" })),
            "/readyz" if read => self.ready(),
            "/metrics" if read => self.exposition(),
            "/purge" if method == Method::POST => self.webhook.purge_listed(request).await,
            "/livez" | "/readyz" | "/metrics" => wrong_method("GET, HEAD"),
            "/purge" => wrong_method("POST"),
            _ if method.as_str() == "PURGE" => self.webhook.purge_path(request, &path).await,
            _ => match path.strip_prefix("/purge/") {
                Some(id) if method == Method::POST => self.webhook.purge_one(request, id).await,
                Some(_) => wrong_method("POST"),
                None => reply(StatusCode::NOT_FOUND, &json!({ "error": "no such page" })),
            },
        }
    }

    /// Ready to serve clients: also without a store, but not once a shutdown has begun.
    fn ready(&self) -> Reply {
        let draining = *self.leaving.borrow();
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
        let mut response = Response::new(Full::new(self.metrics.exposition().into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
        response
    }
}

/// A JSON answer.
fn reply(status: StatusCode, body: &Value) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn wrong_method(allowed: &'static str) -> Reply {
    let error = format!("this page takes {allowed}");
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
