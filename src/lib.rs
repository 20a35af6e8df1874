//! jobcache: a transparent caching reverse proxy sidecar for job status polls.
//!
//! Frontends poll `GET /jobs/<id>` every few seconds and each poll is a database query. jobcache
//! stands in front of the unchanged backend, answers the polls from Redis (`job_status:<id>`) and
//! forgets a job the moment it changes.
//!
//! # Promises
//!
//! Every test serves one of them.
//!
//! 1. **Never stale.** Once a write through any sidecar, a purge, or a third party's plain
//!    `DEL job_status:<id>` is acknowledged, no GET that starts later, through any sidecar, returns
//!    an older body. The stated limits are in [`store`].
//! 2. **Never leaked.** A credential only ever receives bytes that the upstream itself served to
//!    that credential since the job last changed, or bytes identical to those. See
//!    [`cache::audience`].
//! 3. **Never in the way.** A cache fault never fails, truncates or alters a response and costs at
//!    most the store budget; with Redis down for long it costs nothing. What is not a cached read
//!    passes through untouched, streaming.
//! 4. **Never in the dark.** Every response says what happened to it and why (`Cache-Status`), every
//!    counter has a metric, and who asks why a job is not cached is told ([`cache::explain`]).
//!
//! # Reading order
//!
//! Imports run one way: `main -> lib -> {server, admin, reload, demo} -> warm -> proxy -> {upstream,
//! cache} -> store`. `cache` never imports `upstream`: it hands `proxy` a lease, and `proxy` fetches.

pub mod config;

pub mod server;

pub mod transport;

pub mod service;

pub mod tls;

pub mod interim;

pub mod proxy;

pub mod upstream;

pub mod cache;

pub mod store;

pub mod admin;

pub mod reload;

pub mod warm;

pub mod demo;

pub mod metrics;

pub mod events;

pub mod limits;

pub mod clock;

pub mod pointer;

pub mod mutants;

pub mod telemetry;

pub mod spans;

pub mod systemd;

use std::{future::Future, sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{
    admin::{Admin, Shared},
    cache::Cache,
    config::{Config, Loaded},
    limits::Room,
    metrics::{Limit, Metrics, recent},
    proxy::Proxy,
    reload::{Live, Reloads, Snapshot},
    server::{Server, listen::Listener},
    store::StoreError,
    telemetry::Export,
    tls::{Renewed, TlsError},
    upstream::Upstream,
    warm::Warming,
};

/// For a last try to confirm what is pending, after the drain.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// For the last spans to be sent, after everything else.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// For operators, after the drain: their requests are short.
const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The sockets that a sidecar serves, bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// For clients.
    pub proxy: Listener,
    /// For operators and the purge webhook.
    pub admin: Listener,
}

/// Why a sidecar could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A route template.
    #[error(transparent)]
    Route(#[from] proxy::route::BadTemplate),
    /// A rule of `[[invalidate]]`.
    #[error(transparent)]
    Rule(#[from] proxy::route::rules::BadRule),
    /// The store's URL.
    #[error("cannot open the store: {0}")]
    Store(#[from] StoreError),
    /// Certificates and keys.
    #[error("cannot speak TLS: {0}")]
    Tls(#[from] TlsError),
}

/// Runs a sidecar until `shutdown`, then drains it.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    run_reloading(config.into(), listeners, shutdown, Reloads::never()).await
}

/// Runs a sidecar that takes another configuration when it is asked to.
///
/// `shutdown` is not polled before clients are served.
pub async fn run_reloading(
    loaded: Loaded,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
    mut reloads: Reloads,
) -> Result<(), RunError> {
    let config = loaded.config.clone();
    let export = reloads.take_export();
    let spans = export.as_ref().map(Export::counts).unwrap_or_default();
    let metrics = Arc::new(Metrics::counting(spans));
    let exporting = export.map(|export| export.start(&metrics)).transpose()?;
    let routes = reload::routes(&config)?;
    let cache = Arc::new(Cache::open(&config, Arc::clone(&metrics))?);
    let upstream = Upstream::new(&config, Arc::clone(&metrics))?;
    let tls = config.tls.identity().map(|identity| {
        let files = vec![identity.cert.clone(), identity.key.clone()];
        Renewed::new(files, move || tls::server(&identity))
    });
    let tls = tls.transpose()?;
    info!(
        listen = address(&listeners.proxy),
        admin = address(&listeners.admin),
        upstream = config.upstream.url,
        store = %config.store.url,
        "listening"
    );
    // Of its own for each, so that no client's writes keep the pipeline's purges out.
    let room = |used: &Gauge| {
        let met = metrics.limits.counter(Limit::Inspected).clone();
        Room::new(config.max_inspected, used.clone(), met)
    };
    let (inspected, purges) = (room(&metrics.limits.inspected), room(&metrics.limits.purges));
    let proxy = Arc::new(Proxy::new(
        Arc::clone(&routes),
        Arc::clone(&cache),
        upstream,
        inspected,
        &config,
        Arc::clone(&metrics),
    ));
    let (start_drain, drain) = watch::channel(false);
    let (leave, leaving) = watch::channel(false);
    let warming = Warming::new(&config, &metrics);
    let admin = Admin::new(
        Arc::clone(&cache),
        Arc::clone(&routes),
        Shared {
            room: purges,
            filter: reloads.filter(),
            warmer: warming.warmer(),
            watch: Arc::default(),
        },
        &config,
        Arc::clone(&metrics),
        leaving.clone(),
    );
    let first = Snapshot::new(routes, Arc::clone(&cache), Arc::clone(&proxy), Arc::new(admin));
    let live = Arc::new(Live::new(first));

    let interval = config.tls_renew_interval;
    let _renewal = tls.as_ref().map(|tls| tls.keep(interval, Arc::clone(&metrics)));
    let clients = Server::new(listeners.proxy, &config.server, Arc::clone(&metrics)).with_tls(tls);
    let operators =
        Server::new(listeners.admin, &config.server, Arc::clone(&metrics)).without_proxy_protocol();
    let deadline = config.drain_timeout;
    let clients = tokio::spawn(clients.run(drain.clone(), deadline, Arc::clone(&live)));
    // Operators see the drain from outside; they are let go when it is over.
    let (end_admin, admin_drain) = watch::channel(false);
    let serving = Arc::clone(&live);
    let operators =
        tokio::spawn(operators.run(admin_drain, ADMIN_DRAIN_TIMEOUT, move |request, client, _| {
            serving.admin().serve(request, client)
        }));
    let _samples = AbortOnDropHandle::new(tokio::spawn(recent::keep(Arc::clone(&metrics))));
    let warmed = Arc::clone(&live);
    let warming = tokio::spawn(warming.run(move || warmed.proxy(), leaving));

    tokio::select! {
        () = shutdown => {}
        never = reloads.serve(loaded, &live, &metrics) => match never {}
    }
    leave.send_replace(true);
    if !config.drain_delay.is_zero() {
        info!(drain_delay = ?config.drain_delay, "not ready any more; accepting for a while yet");
        sleep(config.drain_delay).await;
    }
    info!("draining");
    let deadline_at = Instant::now() + deadline;
    start_drain.send_replace(true);
    let _ = (warming.await, clients.await);
    proxy.finish(deadline_at).await;
    cache.store().close(CLOSE_TIMEOUT).await;
    end_admin.send_replace(true);
    let _ = operators.await;
    if let Some(exporting) = exporting {
        exporting.finish(FLUSH_TIMEOUT).await;
    }
    info!("stopped");
    Ok(())
}

fn address(listener: &Listener) -> String {
    listener.address().map_or_else(|error| error.to_string(), |address| address.to_string())
}
