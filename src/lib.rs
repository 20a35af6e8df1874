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

pub mod throttle;

pub mod telemetry;

pub mod spans;

pub mod systemd;

use std::{future::Future, sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{
    admin::{Admin, Lasting},
    cache::Cache,
    config::{Config, LoadedConfig},
    limits::Room,
    metrics::{Limit, Metrics, recent},
    proxy::{Proxy, route::Routes},
    reload::{Live, Reloads, Snapshot},
    server::{Drain, Server, listen::Listener},
    store::StoreError,
    telemetry::{Export, Filter},
    tls::{Renewed, TlsError},
    upstream::Upstream,
    warm::{Warmer, Warming},
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
    loaded: LoadedConfig,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
    mut reloads: Reloads,
) -> Result<(), RunError> {
    let config = loaded.config.clone();
    let export = reloads.take_export();
    let spans = export.as_ref().map(Export::counts).unwrap_or_default();
    let metrics = Arc::new(Metrics::counting(spans));
    let exporting = export.map(|export| export.start(&metrics)).transpose()?;
    let (leave, leaving) = watch::channel(false);
    let warming = Warming::new(&config, &metrics);
    let (filter, warmer) = (reloads.filter(), warming.warmer());
    let live = Arc::new(Live::new(first(&config, &metrics, filter, warmer, &leaving)?));
    let serving = Serving::begin(listeners, &config, &live, &metrics)?;
    metrics.watch(admin::outcomes());
    let _samples = AbortOnDropHandle::new(tokio::spawn(recent::keep(Arc::clone(&metrics))));
    let reading = Arc::clone(&live);
    let warming = tokio::spawn(warming.run(move || reading.proxy(), leaving));

    tokio::select! {
        () = shutdown => {}
        never = reloads.serve(loaded, &live, &metrics) => match never {}
    }
    leave.send_replace(true);
    if !config.drain_delay.is_zero() {
        info!(drain_delay = ?config.drain_delay, "not ready any more; accepting for a while yet");
        sleep(config.drain_delay).await;
    }
    serving.drain(warming, config.drain_timeout, &live).await;
    if let Some(exporting) = exporting {
        exporting.finish(FLUSH_TIMEOUT).await;
    }
    info!("stopped");
    Ok(())
}

/// Puts together what answers, by the configuration that comes first.
fn first(
    config: &Config,
    metrics: &Arc<Metrics>,
    filter: Filter,
    warmer: Warmer,
    leaving: &Drain,
) -> Result<Snapshot, RunError> {
    let routes = Arc::new(Routes::configured::<RunError>(config)?);
    let cache = Arc::new(Cache::open(config, Arc::clone(metrics))?);
    let upstream = Upstream::new(config, Arc::clone(metrics))?;
    // Of its own for each, so that no client's writes keep the pipeline's purges out.
    let room = |used: &Gauge| {
        let met = metrics.limits.counter(Limit::Inspected).clone();
        Room::new(config.max_inspected, used.clone(), met)
    };
    let (inspected, room) = (room(&metrics.limits.inspected), room(&metrics.limits.purges));
    let (ways, jobs) = (Arc::clone(&routes), Arc::clone(&cache));
    let proxy = Proxy::new(ways, jobs, upstream, inspected, config, Arc::clone(metrics));
    let (metrics, leaving) = (Arc::clone(metrics), leaving.clone());
    let watch = Arc::default();
    let lasting = Lasting { room, filter, warmer, metrics, leaving, watch };
    let admin = Admin::new(Arc::clone(&cache), Arc::clone(&routes), config, lasting);
    Ok(Snapshot::new(routes, cache, Arc::new(proxy), Arc::new(admin)))
}

/// Both listeners, being served.
struct Serving {
    clients: JoinHandle<()>,
    operators: JoinHandle<()>,
    start_drain: watch::Sender<bool>,
    end_admin: watch::Sender<bool>,
    #[expect(dead_code, reason = "held, not read")]
    renewal: Option<AbortOnDropHandle<()>>,
}

impl Serving {
    fn begin(
        listeners: Listeners,
        config: &Config,
        live: &Arc<Live>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, TlsError> {
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
        let interval = config.tls_renew_interval;
        let renewal = tls.as_ref().map(|tls| tls.keep(interval, Arc::clone(metrics)));
        let server = |listener| Server::new(listener, &config.server, Arc::clone(metrics));
        let clients = server(listeners.proxy).with_tls(tls);
        let operators = server(listeners.admin).without_proxy_protocol();
        let (start_drain, drain) = watch::channel(false);
        let (end_admin, admin_drain) = watch::channel(false);
        let clients = clients.run(drain, config.drain_timeout, Arc::clone(live));
        let answering = Arc::clone(live);
        let answer = move |request, client, _| answering.admin().serve(request, client);
        let operators = operators.run(admin_drain, ADMIN_DRAIN_TIMEOUT, answer);
        let (clients, operators) = (tokio::spawn(clients), tokio::spawn(operators));
        Ok(Self { clients, operators, start_drain, end_admin, renewal })
    }

    /// Lets clients go and, once all that they have begun is over, operators: they see the drain from
    /// outside.
    async fn drain(self, warming: JoinHandle<()>, deadline: Duration, live: &Live) {
        info!("draining");
        let deadline_at = Instant::now() + deadline;
        self.start_drain.send_replace(true);
        let _ = (warming.await, self.clients.await);
        live.proxy().finish(deadline_at).await;
        live.cache().store().close(CLOSE_TIMEOUT).await;
        self.end_admin.send_replace(true);
        let _ = self.operators.await;
    }
}

fn address(listener: &Listener) -> String {
    listener.address().map_or_else(|error| error.to_string(), |address| address.to_string())
}
