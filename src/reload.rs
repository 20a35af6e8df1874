//! A new configuration for a sidecar that runs.
//!
//! What can change while it runs is one immutable snapshot: routes, rules, policy and secrets,
//! within the parts that judge by them. A request takes it once and is answered by it throughout,
//! and so is all that outlives the request: its flight, its write. What holds connections and memory
//! (store, near entries, flights, upstream) is shared by all snapshots. The current one stands behind
//! a lock that is held to count a reference, to put another pointer there, or to look into this process
//! for an entry, and for nothing else.
//! Lock and reference cost a request 17 to 34 ns, 31 to 54 ns with two threads that do nothing else,
//! of more than 10 us; `arc-swap` (1.9) cost as much, so no crate is brought in for it.
//!
//! A reload is all or nothing. What runs is always one configuration that was checked as a whole:
//! half of a new one may well be what the whole is not, such as an admin address that stays open to
//! the network while its secret goes. So one key that needs a restart refuses the rest too, and says
//! so, and a mistake anywhere leaves everything as it was.
//!
//! # Promise 1
//!
//! Other routes, query rules or `[[invalidate]]` rules change which writes are seen, and which reads
//! share an entry. So with them every entry is dropped, once they are in force and again after
//! `store.linger`; what a write under way counts for is told in `proxy::superseded`. The other
//! sidecars of the same store judge by the old rules until they reload too; the last one to do so
//! drops what was kept in the meantime.
//!
//! Another `mode` drops nothing. In each of them writes and purges invalidate alike, and what is stored
//! is stored under a lease, so what stands is as good as in service. A flight that was begun in shadow
//! mode may be joined in service: it is joined by what the store has just shown, as any other.
//!
//! An entry keeps the life that it was stored with: a shorter TTL is for what is stored from then on.
//! A write keeps the `settle` under which it began.

use std::{
    convert::Infallible,
    fmt,
    future::{self, Future},
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{Request, body::Incoming};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::{
    RunError,
    admin::Admin,
    cache::{Cache, Outcome as WriteOutcome},
    config::{Config, InvalidConfig, LoadedConfig, OverriddenChange, ReloadClass, SettingChange},
    interim::Interim,
    metrics::{Metrics, OutcomeLabels},
    proxy::{Proxy, again::Recall, body::Body, route::Routes},
    service::{Answered, Declined, Service},
    telemetry::{Export, Filter, Telemetry},
    transport::Peer,
};

/// Reloads that may wait for the one that runs; who asks for more waits to ask.
const QUEUE: usize = 1;

/// The keys that change which writes are seen, and which reads share an entry.
const JUDGING: [&str; 4] = ["routes", "query.allow", "query.ignore", "invalidate"];

/// What became of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every change is in force.
    Applied,
    /// There was none.
    Unchanged,
    /// Something needs a restart, so nothing has changed.
    Refused,
    /// It has mistakes, so nothing has changed.
    Invalid,
}

impl Outcome {
    const ALL: [Self; 4] = [Self::Applied, Self::Unchanged, Self::Refused, Self::Invalid];

    /// The word for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
            Self::Invalid => "invalid",
        }
    }
}

/// Makes a running sidecar read its configuration anew.
#[derive(Clone, Debug)]
pub struct Reloader(mpsc::Sender<oneshot::Sender<Outcome>>);

impl Reloader {
    /// Whether there is nothing to reload any more: the sidecar drains.
    pub fn is_gone(&self) -> bool {
        self.0.is_closed()
    }

    /// Returns when what was read is in force, or is known not to come into force. None from a
    /// sidecar that drains.
    pub async fn reload(&self) -> Option<Outcome> {
        let (done, outcome) = oneshot::channel();
        self.0.send(done).await.ok()?;
        outcome.await.ok()
    }
}

/// The end of a [`Reloader`] that belongs to the sidecar.
pub struct Reloads {
    asked: mpsc::Receiver<oneshot::Sender<Outcome>>,
    read: Read,
    filter: Filter,
    export: Option<Export>,
}

type Read = Box<dyn Fn() -> Result<LoadedConfig, InvalidConfig> + Send + Sync>;

/// Ties a sidecar to `read`, which gives its configuration as it stands now, and to what becomes of
/// what it logs and traces.
pub fn channel(
    read: impl Fn() -> Result<LoadedConfig, InvalidConfig> + Send + Sync + 'static,
    telemetry: Telemetry,
) -> (Reloader, Reloads) {
    let (ask, asked) = mpsc::channel(QUEUE);
    let Telemetry { filter, export } = telemetry;
    (Reloader(ask), Reloads { asked, read: Box::new(read), filter, export })
}

impl Reloads {
    /// For a sidecar that keeps the configuration it was started with.
    pub fn never() -> Self {
        let nothing = || Err(InvalidConfig { problems: Vec::new(), warnings: Vec::new() });
        channel(nothing, Telemetry::default()).1
    }

    /// The filter of the log, which others may change too.
    pub(crate) fn filter(&self) -> Filter {
        self.filter.clone()
    }

    /// The spans to be sent, if any; once.
    pub(crate) fn take_export(&mut self) -> Option<Export> {
        self.export.take()
    }

    /// Reloads whenever it is asked to, until it is dropped.
    pub(crate) async fn serve(
        mut self,
        mut running: LoadedConfig,
        live: &Live,
        metrics: &Metrics,
    ) -> Infallible {
        for outcome in Outcome::ALL {
            metrics.reloads.get_or_create(&labels(outcome)).inc_by(0);
        }
        while let Some(done) = self.asked.recv().await {
            let outcome = self.reload(&mut running, live).await;
            metrics.reloads.get_or_create(&labels(outcome)).inc();
            // Who asked may not care.
            let _ = done.send(outcome);
        }
        // Nobody is left who could ask.
        future::pending().await
    }

    async fn reload(&self, running: &mut LoadedConfig, live: &Live) -> Outcome {
        // Small files, as at the start, and this task serves nobody.
        let new = match (self.read)() {
            Ok(new) => new,
            Err(invalid) => return refuse_invalid(&invalid),
        };
        for warning in &new.warnings {
            warn!(warning, "look at the configuration");
        }
        for OverriddenChange { key, file, by } in new.overridden_changes(running) {
            warn!(key, %file, %by, "the file says something else now, and a flag or variable wins over it");
        }
        let changes = running.changes(&new);
        if changes.is_empty() {
            info!("the configuration was read again and has not changed");
            self.filter_as_configured(&new.config);
            *running = new;
            return Outcome::Unchanged;
        }
        if changes.iter().any(|change| change.applies == ReloadClass::AtStart) {
            return refuse(&changes, &running.config);
        }
        if let Err(error) = live.change(&changes, &new.config).await {
            error!(%error, "the new configuration cannot be used; nothing has changed");
            return Outcome::Invalid;
        }
        for SettingChange { key, old, new, .. } in &changes {
            info!(key, %old, %new, "a setting has changed");
        }
        // After those: a filter that lets less pass would hide them.
        self.filter_as_configured(&new.config);
        info!(settings = changes.len(), "the configuration was reloaded");
        *running = new;
        Outcome::Applied
    }

    /// Also where it says the same as before: an operator may have put another in its place.
    fn filter_as_configured(&self, config: &Config) {
        if let Err(error) = self.filter.set(&config.log) {
            error!(%error, "the filter of the log cannot be used and has not changed");
        }
    }
}

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloads").finish_non_exhaustive()
    }
}

fn labels(outcome: Outcome) -> OutcomeLabels {
    OutcomeLabels { outcome: outcome.as_str() }
}

/// All mistakes in one event, on one line.
fn refuse_invalid(invalid: &InvalidConfig) -> Outcome {
    let (mistakes, problems) = (invalid.problems.len(), invalid.problems.join("; "));
    let warnings = (!invalid.warnings.is_empty()).then(|| invalid.warnings.join("; "));
    error!(mistakes, problems, warnings, "the new configuration has mistakes; nothing has changed");
    Outcome::Invalid
}

fn refuse(changes: &[SettingChange], running: &Config) -> Outcome {
    let mend = if running.server.reuse_port {
        "put the old value back, restart, or start another jobcache beside this one and stop this one"
    } else {
        "put the old value back, or restart (with server.reuse_port another jobcache could take over)"
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
    Outcome::Refused
}

/// What a request takes once and is answered by throughout.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    routes: Arc<Routes>,
    cache: Arc<Cache>,
    proxy: Arc<Proxy>,
    admin: Arc<Admin>,
}

impl Snapshot {
    pub(crate) fn new(
        routes: Arc<Routes>,
        cache: Arc<Cache>,
        proxy: Arc<Proxy>,
        admin: Arc<Admin>,
    ) -> Self {
        Self { routes, cache, proxy, admin }
    }

    fn revised(&self, routes: Arc<Routes>, config: &Config) -> Self {
        let cache = Arc::new(self.cache.revised(config));
        let proxy = self.proxy.revised(Arc::clone(&routes), Arc::clone(&cache), config);
        let admin = self.admin.revised(Arc::clone(&cache), Arc::clone(&routes), config);
        Self::new(routes, cache, Arc::new(proxy), Arc::new(admin))
    }
}

/// The snapshot in force.
#[derive(Debug)]
pub(crate) struct Live(RwLock<Snapshot>);

impl Live {
    pub(crate) fn new(first: Snapshot) -> Self {
        Self(RwLock::new(first))
    }

    /// For a request of a client.
    pub(crate) fn proxy(&self) -> Arc<Proxy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).proxy)
    }

    /// For a request of an operator.
    pub(crate) fn admin(&self) -> Arc<Admin> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).admin)
    }

    /// Of the snapshot in force; all have the same store.
    pub(crate) fn cache(&self) -> Arc<Cache> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).cache)
    }

    async fn change(&self, changes: &[SettingChange], config: &Config) -> Result<(), RunError> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let judging = changes.iter().any(|change| JUDGING.contains(&change.key));
        let routes = if judging {
            Arc::new(Routes::configured::<RunError>(config)?)
        } else {
            Arc::clone(&current.routes)
        };
        let next = current.revised(routes, config);
        let cache = Arc::clone(&next.cache);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
        if judging {
            let dropped = cache.end_all(WriteOutcome::Unknown).await;
            info!(
                ?dropped,
                "other routes or rules: everything leaves the cache, now and once more"
            );
        }
        Ok(())
    }
}

impl Service for Arc<Live> {
    type Body = Body;
    type Recall = Recall;

    fn serve(
        self,
        request: Request<Incoming>,
        client: Peer,
        interim: Interim,
    ) -> impl Future<Output = Answered<Body, Recall>> + Send + 'static {
        self.proxy().serve(request, client, interim)
    }

    fn poll_again(
        &self,
        recall: &mut Recall,
        path: &str,
        head: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Declined>> {
        // The lock instead of a reference: this waits for nothing.
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.proxy.poll_again(recall, path, head, cx)
    }
}
