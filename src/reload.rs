//! Reloads: a new configuration for a running sidecar.
//!
//! All that can change at run time is in one immutable generation: routes, rules, policy and
//! secrets, inside the parts that judge by them. A request takes the generation once and is
//! answered by it throughout, and so is everything that outlives the request: its flight, its
//! write. All generations share what holds connections and memory (store, near entries, flights,
//! upstream). The current generation is behind a lock. The lock is held to count a reference, to
//! swap the pointer, or to look up a near entry, and for nothing else. Lock and reference cost a
//! request 17 to 34 ns, or 31 to 54 ns with two threads that do nothing else, of more than 10 us;
//! `arc-swap` (1.9) cost as much, so it is not worth a dependency.
//!
//! A reload is all or nothing. The running configuration was always checked as a whole, and half of
//! a new one may be what the whole is not: for example an admin address that stays open to the
//! network while its secret is removed. So one key that needs a restart refuses all changes, with a
//! message, and a mistake anywhere leaves everything as it was.
//!
//! # Promise 1
//!
//! Other routes, query rules or `[[invalidate]]` rules change which writes are seen, and which
//! reads share an entry. So they drop every entry, once they are in force and again after
//! `store.linger`. The module `proxy::pass` says what becomes of a write under way.
//! The other sidecars of the same store judge by the old rules until they reload too; the last one
//! to reload drops what was stored meanwhile.
//!
//! Another `mode` drops nothing. Writes and purges invalidate alike in every mode, and every entry
//! is stored under a lease, so the entries are as good as in service. A flight that began in shadow
//! mode may be joined in service: the joining request has just read the store, as for any other
//! flight.
//!
//! An entry keeps the TTL that it was stored with: a shorter TTL applies to entries stored from
//! then on. A write keeps the `settle` that it began with.

use std::{
    convert::Infallible,
    future::{self, Future},
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{Request, body::Incoming};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::{
    admin::Admin,
    cache::{Cache, RELOAD_WAIT, WriteOutcome},
    config::{Config, InvalidConfig, LoadedConfig, OverriddenChange, ReloadClass, SettingChange},
    observe::metrics::{Counters, Registry},
    proxy::{Proxy, body::Body, repeat_hit::RepeatHit},
    run_error::RunError,
    semantics::{labels::labels, route::Routes},
    service::{Answered, FastPathMiss, Informational, RepeatFastPath, Service},
    telemetry::{LogFilter, SpanExport, Telemetry},
    transport::{ConnectionId, Peer},
};

/// Reloads that may wait for the running one; further callers wait to queue theirs.
const MAX_WAITING_RELOADS: usize = 1;

/// The settings that change which writes are seen, which reads are cached, and which of them share an
/// entry.
const INVALIDATING_SETTINGS: [&str; 8] =
    ["routes", "route", "ids", "statuses", "except", "query.allow", "query.ignore", "invalidate"];

labels! {
    /// The result of a reload.
    pub enum ReloadOutcome {
        /// Every change is in force.
        Applied = "applied",
        /// There was no change.
        Unchanged = "unchanged",
        /// Something needs a restart, so nothing has changed.
        Refused = "refused",
        /// The new configuration has mistakes, so nothing has changed.
        Invalid = "invalid",
    }
}

/// Makes a running sidecar reload its configuration.
#[derive(Clone, Debug)]
pub struct Reloader(mpsc::Sender<oneshot::Sender<ReloadOutcome>>);

impl Reloader {
    /// Whether the sidecar drains and no longer reloads.
    pub fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Reloads, and returns when the configuration is in force or was rejected. Returns `None` if
    /// the sidecar drains.
    pub async fn reload(&self) -> Option<ReloadOutcome> {
        let (done, outcome) = oneshot::channel();
        self.0.send(done).await.ok()?;
        outcome.await.ok()
    }
}

/// The receiving end of a [`Reloader`], for the sidecar.
pub struct Reloads {
    requests: mpsc::Receiver<oneshot::Sender<ReloadOutcome>>,
    read: ReadConfig,
    filter: LogFilter,
    export: Option<SpanExport>,
}

type ReadConfig = Box<dyn Fn() -> Result<LoadedConfig, InvalidConfig> + Send + Sync>;

/// Creates a connected pair. `read` loads the configuration as it is now, and `telemetry` is the
/// log filter and the span export that reloads apply to.
pub fn channel(
    read: impl Fn() -> Result<LoadedConfig, InvalidConfig> + Send + Sync + 'static,
    telemetry: Telemetry,
) -> (Reloader, Reloads) {
    let (sender, asked) = mpsc::channel(MAX_WAITING_RELOADS);
    let Telemetry { filter, export } = telemetry;
    (Reloader(sender), Reloads { requests: asked, read: Box::new(read), filter, export })
}

impl Reloads {
    /// For a sidecar that keeps its first configuration.
    pub fn never() -> Self {
        let no_config = || Err(InvalidConfig { problems: Vec::new(), warnings: Vec::new() });
        channel(no_config, Telemetry::default()).1
    }

    /// The log filter, which others may change too.
    pub(crate) fn filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Takes the exporter of spans, if there is one.
    pub(crate) fn take_export(&mut self) -> Option<SpanExport> {
        self.export.take()
    }

    /// Reloads on each request, until it is dropped.
    pub(crate) async fn serve(
        mut self,
        mut running: LoadedConfig,
        live: &Current,
        counts: Counters<1>,
    ) -> Infallible {
        while let Some(done) = self.requests.recv().await {
            let outcome = self.reload(&mut running, live).await;
            counts.inc([outcome.as_str()]);
            // The caller may have stopped waiting.
            let _ = done.send(outcome);
        }
        // Every `Reloader` is gone.
        future::pending().await
    }

    async fn reload(&self, running: &mut LoadedConfig, live: &Current) -> ReloadOutcome {
        // Blocking reads are fine, as at startup: the files are small, and this task serves no
        // request.
        let new = match (self.read)() {
            Ok(new) => new,
            Err(invalid) => return refuse_invalid(&invalid),
        };
        for warning in &new.warnings {
            warn!(warning, "configuration warning");
        }
        for OverriddenChange { key, file, by } in new.overridden_changes(running) {
            warn!(key, %file, %by, "the file has changed, but a flag or variable overrides it");
        }
        let changes = running.changes(&new);
        if changes.is_empty() {
            info!("the configuration was read again and has not changed");
            self.apply_log_filter(&new.config);
            *running = new;
            return ReloadOutcome::Unchanged;
        }
        if changes.iter().any(|change| change.applies == ReloadClass::AtStart) {
            return refuse_restart(&changes, &running.config);
        }
        if let Err(error) = live.apply(&changes, &new.config).await {
            error!(%error, "the new configuration cannot be used; nothing has changed");
            return ReloadOutcome::Invalid;
        }
        for SettingChange { key, old, new, .. } in &changes {
            info!(key, %old, %new, "a setting has changed");
        }
        // Set after these messages, because a stricter filter would hide them.
        self.apply_log_filter(&new.config);
        info!(settings = changes.len(), "the configuration was reloaded");
        *running = new;
        ReloadOutcome::Applied
    }

    /// Sets the configured filter even if it has not changed: an operator may have replaced it.
    fn apply_log_filter(&self, config: &Config) {
        if let Err(error) = self.filter.set(&config.log.filter) {
            error!(%error, "the log filter cannot be used and has not changed");
        }
    }
}

/// Registers the counts of reloads by outcome.
pub(crate) fn register_counts(registry: &mut Registry) -> Counters<1> {
    registry.counters_by(
        "outcome",
        "config_reloads",
        "Reloads of the configuration by outcome",
        ReloadOutcome::WORDS,
    )
}

/// Logs all mistakes in one event, on one line.
fn refuse_invalid(invalid: &InvalidConfig) -> ReloadOutcome {
    let mistakes = invalid.problems.len();
    let problems = invalid.problems.join("; ");
    let warnings = (!invalid.warnings.is_empty()).then(|| invalid.warnings.join("; "));
    error!(mistakes, problems, warnings, "the new configuration has mistakes; nothing has changed");
    ReloadOutcome::Invalid
}

fn refuse_restart(changes: &[SettingChange], running: &Config) -> ReloadOutcome {
    let mend = if running.server.reuse_port {
        "put the old value back, restart, or start a second jobcache and then stop this one"
    } else {
        "put the old value back, or restart (a second one can take over with server.reuse_port)"
    };
    for SettingChange { key, old, new, applies } in changes {
        match applies {
            ReloadClass::AtStart => {
                error!(key, %old, %new, mend, "a setting cannot change while jobcache runs");
            }
            ReloadClass::OnReload => {
                warn!(key, %old, %new, "a setting has not changed, because another one cannot");
            }
        }
    }
    error!("the new configuration needs a restart; nothing has changed");
    ReloadOutcome::Refused
}

/// The parts that a request takes once and is answered by throughout.
#[derive(Clone)]
pub(crate) struct ConfigGeneration {
    pub(crate) routes: Arc<Routes>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) admin: Arc<Admin>,
}

impl ConfigGeneration {
    fn revised(&self, routes: Arc<Routes>, config: &Config) -> Self {
        let cache = Arc::new(self.cache.reconfigured(config));
        let proxy = self.proxy.revised(Arc::clone(&routes), Arc::clone(&cache), config);
        let admin = self.admin.reconfigured(Arc::clone(&cache), Arc::clone(&routes), config);
        Self { routes, cache, proxy: Arc::new(proxy), admin: Arc::new(admin) }
    }
}

/// The current generation.
pub(crate) struct Current(RwLock<ConfigGeneration>);

impl Current {
    pub(crate) fn new(initial: ConfigGeneration) -> Self {
        Self(RwLock::new(initial))
    }

    /// The proxy, for a request of a client.
    pub(crate) fn proxy(&self) -> Arc<Proxy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).proxy)
    }

    /// The admin interface, for a request of an operator.
    pub(crate) fn admin(&self) -> Arc<Admin> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).admin)
    }

    /// The cache. Every generation has the same store.
    pub(crate) fn cache(&self) -> Arc<Cache> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).cache)
    }

    async fn apply(&self, changes: &[SettingChange], config: &Config) -> Result<(), RunError> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let judging = changes.iter().any(|change| INVALIDATING_SETTINGS.contains(&change.key));
        let routes =
            if judging { Arc::new(Routes::new(&config.api)?) } else { Arc::clone(&current.routes) };
        let next = current.revised(routes, config);
        let cache = Arc::clone(&next.cache);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        if judging {
            let dropped = cache.invalidator.end_all(WriteOutcome::Unknown, RELOAD_WAIT).await;
            info!(
                dropped = dropped.as_str(),
                "routes or rules have changed: all entries are dropped, now and after store.linger"
            );
        }
        Ok(())
    }
}

impl Service for Arc<Current> {
    type Body = Body;

    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        informational: Informational,
    ) -> impl Future<Output = Answered<Body, RepeatHit>> + Send + 'static {
        self.proxy().serve(request, client, informational)
    }

    fn open_connection(&self) -> Option<ConnectionId> {
        Some(self.proxy().open_connection())
    }

    fn close_connection(&self, connection: ConnectionId) {
        self.proxy().close_connection(connection);
    }
}

impl RepeatFastPath for Arc<Current> {
    type Repeat = RepeatHit;

    fn is_offered(&self) -> bool {
        self.proxy().repeat_hits().is_offered()
    }

    fn poll_repeat(
        &self,
        repeat: &mut RepeatHit,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FastPathMiss>> {
        // Holds the lock instead of counting a reference, because this call never waits.
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.proxy.repeat_hits().poll_repeat(repeat, path, head, cx)
    }
}
