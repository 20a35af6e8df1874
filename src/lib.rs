//! jobcache: a transparent caching reverse proxy sidecar for job status polls.
//!
//! Frontends poll `GET /jobs/<id>` every few seconds, and each poll is a database query. jobcache
//! stands in front of the unchanged upstream, answers the polls from Redis (`job_status:<id>`) and
//! drops a job from the cache as soon as it changes.
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
//!    [`semantics::audience`].
//! 3. **Never in the way.** A cache fault never fails, truncates or alters a response. It costs a read
//!    at most one store budget, and a write one before it is forwarded and one for each end; while
//!    Redis stays down it costs nothing. Everything else streams through untouched, except bodies
//!    that an `[[invalidate]]` rule reads.
//! 4. **Never in the dark.** Every response says what happened to it and why (`Cache-Status`),
//!    except the 400 for input that is not HTTP. Every counter has a metric, and
//!    [`cache::forecast`] answers why a job is not cached.
//!
//! `docs/guarantee.md` has all limits.
//!
//! # Reading order
//!
//! Read [`store`] and [`proxy`] next. Imports run one way: `main -> demo -> lib -> {server, reload} ->
//! admin -> warm -> proxy -> {upstream, cache} -> store`. `cache` never imports `upstream`: it hands
//! `proxy` a [`LeaderRead`](cache::LeaderRead), and `proxy` reads the upstream.

pub mod admin;
pub mod cache;
pub mod clock;
pub mod config;
pub mod demo;
pub mod limits;
pub mod mutants;
pub mod observe;
pub mod proxy;
pub mod reload;
mod run_error;
pub mod semantics;
pub mod server;
pub mod service;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod transport;
pub mod upstream;
pub mod warm;

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{
    admin::{
        Admin, AdminState,
        admin_state::{AdminMetrics, StatusSources},
    },
    cache::Cache,
    config::{Config, LoadedConfig, PushMode},
    observe::{events::Events, metrics::Registry},
    proxy::Proxy,
    reload::{ConfigGeneration, Current, Reloads},
    semantics::route::Routes,
    server::{Server, ServerMetrics, listen::Listener},
    service::Drain,
    telemetry::{LogFilter, SpanExport},
    tls::{Renewed, TlsError},
    upstream::Upstream,
    warm::{WarmWorker, Warmer},
};

pub use run_error::RunError;

/// Time for a last attempt to confirm pending invalidations, after the drain.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to send the last spans, after everything else.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for requests to the admin listener to end, after the drain: they are short.
const ADMIN_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The sockets that a sidecar serves, bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// The listener for clients.
    pub proxy: Listener,
    /// The listener for operators and the purge webhook.
    pub admin: Listener,
}

/// Runs a sidecar until `shutdown` completes, then drains it.
pub async fn run(
    config: Config,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    run_reloading(config.into(), listeners, shutdown, Reloads::never()).await
}

/// Runs a sidecar that accepts new configurations from `reloads`.
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
    let mut registry = Registry::default();
    SpanExport::register(export.as_ref(), &mut registry);
    let exporter =
        export.map(|export| export.start(config.tls_renew_interval, &mut registry)).transpose()?;
    let (leave, leaving) = watch::channel(false);
    let warming = WarmWorker::new(&config, &mut registry);
    let filter = reloads.filter();
    let warmer = warming.warmer();
    let reload_counts = reload::register_counts(&mut registry);
    let metrics = Arc::new(ServerMetrics::register(&mut registry));
    let generation = build(&config, registry, &metrics, filter, warmer, &leaving)?;
    let live = Arc::new(Current::new(generation));
    let serving = Serving::begin(listeners, &config, &live, &metrics)?;
    let sampling = live.admin().recent().sample_every_second();
    let _samples = AbortOnDropHandle::new(tokio::spawn(sampling));
    let current = Arc::clone(&live);
    let warming = tokio::spawn(warming.run(move || current.proxy(), leaving));

    tokio::select! {
        () = shutdown => {}
        never = reloads.serve(loaded, &live, reload_counts) => match never {}
    }
    leave.send_replace(true);
    if !config.drain.delay.is_zero() {
        info!(drain_delay = ?config.drain.delay, "no longer ready, but accepting connections");
        sleep(config.drain.delay).await;
    }
    serving.drain(warming, config.drain.timeout, &live).await;
    if let Some(exporter) = exporter {
        exporter.finish(FLUSH_TIMEOUT).await;
    }
    info!("stopped");
    Ok(())
}

/// Builds everything that answers requests, from the initial configuration.
fn build(
    config: &Config,
    mut registry: Registry,
    server: &ServerMetrics,
    filter: LogFilter,
    warmer: Warmer,
    leaving: &Drain,
) -> Result<ConfigGeneration, RunError> {
    let events = Arc::<Events>::default();
    let routes = Arc::new(Routes::new(&config.api)?);
    let cache = Arc::new(Cache::open(config, &mut registry, Arc::clone(&events))?);
    let upstream = Upstream::new(config, &mut registry, Arc::clone(&events))?;
    let upstream_metrics = Arc::clone(upstream.metrics());
    let proxy =
        Proxy::new(Arc::clone(&routes), Arc::clone(&cache), upstream, config, &mut registry);
    let clients = server.connections.clone();
    let metrics = Arc::new(AdminMetrics::register(&mut registry));
    let lasting = AdminState {
        // Apart from the quota of writes, so that clients cannot keep out the pipeline's purges.
        body_quota: metrics.body_quota(config.cache.limits.max_inspected),
        filter,
        warmer,
        metrics,
        registry: Arc::new(registry),
        status: StatusSources::new(clients, &cache, proxy.metrics(), upstream_metrics, &events),
        events,
        drain: leaving.clone(),
        caller_limits: Arc::default(),
    };
    let admin = Admin::new(Arc::clone(&cache), Arc::clone(&routes), config, lasting);
    Ok(ConfigGeneration { routes, cache, proxy: Arc::new(proxy), admin: Arc::new(admin) })
}

/// Both listeners, while they are served.
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
        live: &Arc<Current>,
        metrics: &Arc<ServerMetrics>,
    ) -> Result<Self, TlsError> {
        let tls = config.tls.identity().map(|identity| {
            let files = vec![identity.cert.clone(), identity.key.clone()];
            Renewed::new(files, move || tls::server_config(&identity))
        });
        let tls = tls.transpose()?;
        info!(
            listen = address(&listeners.proxy),
            admin = address(&listeners.admin),
            upstream = config.upstream.url,
            store = %config.store.url,
            routes = config.api.routes().iter().map(|route| &*route.path).collect::<Vec<_>>().join(" "),
            push = (config.push.mode != PushMode::Off).then(|| config.push.mode.as_str()),
            "listening"
        );
        let interval = config.tls_renew_interval;
        let renewal = tls.as_ref().map(|tls| tls.spawn_renewal(interval, metrics.tls.clone()));
        let server = |listener| Server::new(listener, &config.server, Arc::clone(metrics));
        let clients = server(listeners.proxy).with_tls(tls);
        let operators = server(listeners.admin).without_proxy_protocol();
        let (start_drain, drain) = watch::channel(false);
        let (end_admin, admin_drain) = watch::channel(false);
        let clients = clients.run(drain, config.drain.timeout, Arc::clone(live));
        let current = Arc::clone(live);
        let answer = move |request, client, _| current.admin().serve(request, client);
        let operators = operators.run(admin_drain, ADMIN_DRAIN_TIMEOUT, answer);
        let clients = tokio::spawn(clients);
        let operators = tokio::spawn(operators);
        Ok(Self { clients, operators, start_drain, end_admin, renewal })
    }

    /// Drains the clients' listener, and then the admin listener, so that operators can watch the
    /// drain.
    async fn drain(self, warming: JoinHandle<()>, deadline: Duration, live: &Current) {
        info!("draining");
        live.proxy().release_waiters();
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
