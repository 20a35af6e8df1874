//! The supervisor: connects to a master, checks it, and publishes a session while it is available.
//!
//! Every sidecar has to connect within `store.reconnect_grace` (`shared_keys.rs`). So attempts to
//! connect begin at least every quarter of it, also while an earlier one hangs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{
    bulk_lane::BulkLane,
    distance,
    lane::Lane,
    master_source::MasterSource,
    purge_token::PurgeTokens,
    refusals::{check_serves_all, report_refusals},
    server_info::ServerInfo,
    session::{Grace, Session, SessionHealth, clock_ahead_ms},
    shared_keys::{grace_end, keep_record, share_credential_key},
    state::{SessionHandle, ShardState, StoreContext},
    tracking::track,
};
use crate::{
    clock,
    store::{
        FarStore, Redirect, StoreError,
        errors::{BACKOFF, DETACHED_TIMEOUT, Result},
    },
};

/// Keeps a session published while a master is available.
pub(super) async fn supervise(shard: Arc<ShardState>) {
    let _guard = SupervisorGuard(Arc::clone(&shard));
    let mut backoff = BACKOFF.0;
    let mut first_pause = Duration::ZERO;
    loop {
        let session = reconnect(&shard, first_pause, &mut backoff).await;
        let error = serve(&shard, &session, &mut backoff).await;
        shard.retract(&error);
        shard.requeue_recent().await;
        shard.refused.forget();
        let problems = &shard.context.problems;
        // Every master of a cluster says so when the cluster is down.
        let is_due = match error.diagnosis() {
            Some(diagnosis) if diagnosis.refuses_commands() => {
                problems.admit(&error, &shard.warnings.connect).is_some()
            }
            _ => true,
        };
        if is_due {
            warn!(store = shard.address, %error, "store is down; all requests go to the upstream");
        }
        first_pause = backoff;
    }
}

/// Withdraws the session if the supervisor panics, because nothing would watch it any more.
struct SupervisorGuard(Arc<ShardState>);

impl Drop for SupervisorGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.retract(&StoreError::Unusable("the store supervisor has panicked".into()));
        }
    }
}

/// Publishes the session, and fails it when it can no longer be trusted: from then on no
/// invalidation counts as confirmed, so `requeue_recent` misses none. Returns the reason.
async fn serve(shard: &ShardState, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
    info!(epoch = session.epoch.as_str(), "store is up");
    shard.publish(Arc::clone(session));
    *backoff = BACKOFF.0;
    let end = async {
        let error = tokio::select! {
            error = watch(shard, session) => error,
            error = shard.source.moved(session) => error,
        };
        // Before `track` is dropped: that clears what is near, and readers would ask this server
        // meanwhile.
        session.fail();
        error
    };
    tokio::select! {
        error = end => error,
        never = keep_record(shard, session) => match never {},
        never = session.grace.keep() => match never {},
        never = track(shard, session) => match never {},
        never = report_refusals(shard, session) => match never {},
        never = session.bulk.keep(&session.target, &session.server) => match never {},
    }
}

/// Returns the reason when the session can no longer be trusted.
async fn watch(shard: &ShardState, session: &Session) -> StoreError {
    let probe_interval = longest_pause(shard).min(PROBE_EVERY);
    let mut measured_at = Instant::now();
    loop {
        tokio::select! {
            _ = timeout(probe_interval, shard.failed.notified()) => {}
            () = session.lane.connection.closed.notified() => {
                return StoreError::Lost("the server closed the connection".into());
            }
        }
        if session.health.cluster_down.load(Ordering::Relaxed) {
            return StoreError::Redirected(Redirect::Down);
        }
        let too_many = || StoreError::Unusable("too many operations failed".into());
        if session.has_failed() {
            return too_many();
        }
        let probed = async {
            session.probe().await?;
            follow_distance(shard, session, &mut measured_at).await
        };
        if let Err(error) = probed.await {
            return error;
        }
        if session.is_suspended() {
            if !session.health.distance.is_far() {
                return too_many();
            }
            session.resume();
            shard.context.status_changed.notify_one();
            shard.context.retry_queue.changed.notify_one();
        }
    }
}

/// Interval between two probes of the server's role. A connection that is closed is noticed at
/// once; a server that is silent or no longer a master is not.
const PROBE_EVERY: Duration = Duration::from_millis(400);

/// Most attempts to connect that are under way at a time.
const MAX_ATTEMPTS: usize = 4;

/// Connects to the master, however long that takes, and opens a session. Waits for about
/// `first_pause` before the first attempt.
async fn reconnect(
    shard: &ShardState,
    first_pause: Duration,
    backoff: &mut Duration,
) -> SessionHandle {
    let mut attempts = FuturesUnordered::new();
    let mut next_at = Instant::now() + jittered(first_pause);
    loop {
        let has_room = attempts.len() < MAX_ATTEMPTS;
        let failed = tokio::select! {
            Some(dialled) = attempts.next() => {
                let open = async {
                    let (session, info) = dialled?;
                    open_session(shard, session, &info).await
                };
                match open.await {
                    Ok(session) => return session,
                    Err(error) => error.while_connecting(&shard.address, DETACHED_TIMEOUT),
                }
            }
            () = sleep_until(next_at), if has_room => {
                let context = &shard.context;
                let prefix = &context.config.prefix;
                attempts.push(connect_master(&shard.source, prefix, &context.purge_tokens));
                next_at = Instant::now() + longest_pause(shard);
                continue;
            }
        };
        shard.context.metrics.fail_to_connect(&failed);
        if failed.diagnosis().is_none() && !matches!(shard.source, MasterSource::Cluster(_)) {
            // What was wrong before is over: it failed in another way.
            shard.context.problems.clear();
        }
        if let Some(suppressed) = shard.context.problems.admit(&failed, &shard.warnings.connect) {
            let store = &shard.address;
            warn!(store, error = %failed, suppressed, "cannot connect to the store; retrying");
        }
        if attempts.is_empty() {
            next_at = Instant::now() + jittered(*backoff);
            *backoff = (*backoff * 2).min(longest_pause(shard));
        }
    }
}

/// The longest pause between two attempts to connect: a quarter of the grace.
fn longest_pause(shard: &ShardState) -> Duration {
    let grace = shard.context.config.reconnect_grace;
    if grace.is_zero() { BACKOFF.1 } else { (grace / 4).clamp(BACKOFF.0, BACKOFF.1) }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Connects to the master, checks that it is one and has a supported version, and takes its epoch.
/// Has no effect if it is cancelled.
pub(super) async fn connect_master(
    source: &MasterSource,
    prefix: &str,
    purge_tokens: &Arc<PurgeTokens>,
) -> Result<(Session, ServerInfo)> {
    let target = source.target().await?;
    let open = async {
        let connection = target.connect().await?;
        let (sent, began) = (clock::now(), Instant::now());
        let commands = redis::pipe().cmd("INFO").cmd("TIME").to_owned();
        let reply = commands.query_async(&mut connection.requests.clone()).await;
        let (info, time): (String, _) = target.first_reply(reply).await?;
        Ok::<_, StoreError>((connection, info, clock_ahead_ms(time, sent), began.elapsed()))
    };
    let opened = timeout(DETACHED_TIMEOUT, open).await.unwrap_or(Err(StoreError::Timeout));
    let (connection, info, clock_ahead_ms, round_trip) =
        opened.map_err(|error| error.while_connecting(&target, DETACHED_TIMEOUT))?;
    let info = ServerInfo(info);
    info.check()?;
    if info.is_in_cluster() && !matches!(source, MasterSource::Cluster(_)) {
        timeout(DETACHED_TIMEOUT, check_serves_all(&connection, prefix)).await??;
    }
    // The server may have hung until now, and may have been deposed meanwhile.
    let server = info.epoch(source.term(&target, &connection).await?);
    purge_tokens.set_by_slot(info.is_in_cluster());
    let health = SessionHealth::default();
    health.distance.note(round_trip);
    let session = Session {
        lane: Arc::new(Lane::new(connection)),
        bulk: BulkLane::new(),
        target,
        is_in_cluster: matches!(source, MasterSource::Cluster(_)),
        purge_tokens: Arc::clone(purge_tokens),
        epoch: server.name(),
        server,
        clock_ahead_ms: AtomicI64::new(clock_ahead_ms),
        health,
        grace: Grace::default(),
        has_evicted: AtomicBool::new(false),
    };
    Ok((session, info))
}

/// Connects once, and publishes the session.
pub(super) async fn connect_once(shard: &ShardState) -> Result<()> {
    let StoreContext { config, purge_tokens, .. } = &*shard.context;
    let (session, info) = connect_master(&shard.source, &config.prefix, purge_tokens).await?;
    shard.publish(open_session(shard, session, &info).await?);
    Ok(())
}

/// Prepares the session with a master.
async fn open_session(
    shard: &ShardState,
    mut session: Session,
    info: &ServerInfo,
) -> Result<SessionHandle> {
    if let Some(policy) = info.evicting_policy()
        && let Some(suppressed) = shard.warnings.eviction.admit(policy)
    {
        warn!(
            policy,
            suppressed,
            "this Redis may evict the fence of a write; set maxmemory-policy noeviction"
        );
    }
    if shard.source.take_behind() {
        shard.context.retry_queue.pending.add_all().await;
    }
    let (first, budget) = (session.health.distance.round_trip(), shard.context.config.budget);
    if let Some(far) = distance::measure(&session.lane.connection, first, budget).await? {
        set_far(shard, &session, &far);
    }
    session.grace = Grace::until(grace_end(shard, &session, info).await);
    if !shard.context.has_secret && shard.keeps_shared_keys() {
        share_credential_key(shard, &session).await?;
    }
    Ok(Arc::new(session))
}

/// Measures again after each probe, the round trip of which is noted. A far server is asked less
/// often.
async fn follow_distance(
    shard: &ShardState,
    session: &Session,
    measured_at: &mut Instant,
) -> Result<()> {
    let budget = shard.context.config.budget;
    if !session.health.distance.is_far() {
        let first = session.health.distance.round_trip();
        if let Some(far) = distance::measure(&session.lane.connection, first, budget).await? {
            set_far(shard, session, &far);
            *measured_at = Instant::now();
        }
        return Ok(());
    }
    if measured_at.elapsed() < distance::FAR_PROBE_INTERVAL {
        return Ok(());
    }
    let mut largest = Duration::ZERO;
    for _ in 0..distance::MEASUREMENTS {
        let Some(round_trip) = distance::ping(&session.lane.connection).await? else {
            return Ok(());
        };
        largest = largest.max(round_trip);
    }
    *measured_at = Instant::now();
    if FarStore::of(largest, budget).is_none() {
        session.health.distance.set_far(None);
        info!(store = shard.address, round_trip_ms = %millis_of(largest), "the store is near enough again");
        shard.context.status_changed.notify_one();
    }
    Ok(())
}

/// Lets reads pass.
fn set_far(shard: &ShardState, session: &Session, far: &FarStore) {
    session.health.distance.set_far(Some(far.round_trip));
    shard.context.status_changed.notify_one();
    if let Some(suppressed) = shard.warnings.far.admit("far") {
        warn!(
            store = shard.address,
            round_trip_ms = %millis_of(far.round_trip),
            budget_ms = %millis_of(far.budget),
            remedy = far.remedy(),
            suppressed,
            "Redis is too far away for store.budget; reads go to the API, and writes still invalidate"
        );
    }
}

fn millis_of(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
