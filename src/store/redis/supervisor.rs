//! The supervisor: connects to a master, checks it, and publishes a session while it is available.
//!
//! Every sidecar has to connect within `store.reconnect_grace` (`shared_keys.rs`). So attempts to connect
//! begin at least every quarter of it, also while an earlier one hangs.

use std::{sync::Arc, thread, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use super::{
    dial::{RedisConnection, Target},
    master_source::MasterSource,
    sentinel::Term,
    server_info::ServerInfo,
    session::{Membership, Session, clock_ahead_ms},
    shared_keys::{grace_end, keep_record, live_records},
    state::{SessionHandle, ShardState},
    tracking::track,
};
use crate::{
    clock,
    store::{
        errors::{BACKOFF, DETACHED_TIMEOUT, Redirect, StoreError},
        words::{Epoch, unix_ms},
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
        // Before `requeue_recent`: from here on no invalidation counts as confirmed, so it misses
        // none.
        session.fail();
        shard.retract(&error);
        shard.requeue_recent().await;
        warn!(store = shard.address, %error, "store is down; all requests go to the upstream");
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

/// Publishes the session. Returns the reason when it can no longer be trusted.
async fn serve(shard: &ShardState, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
    info!(epoch = session.epoch().as_str(), "store is up");
    shard.publish(Arc::clone(session));
    *backoff = BACKOFF.0;
    tokio::select! {
        error = watch(shard, session) => error,
        error = shard.source.moved(session.target(), session.term()) => {
            session.fail();
            error
        }
        never = keep_record(shard, session) => match never {},
        never = session.end_grace() => match never {},
        never = track(shard, session) => match never {},
    }
}

/// Returns the reason when the session can no longer be trusted.
async fn watch(shard: &ShardState, session: &Session) -> StoreError {
    loop {
        tokio::select! {
            _ = timeout(probe_interval(shard), shard.failed.notified()) => {}
            () = session.closed() => {
                return StoreError::Lost("the server closed the connection".into());
            }
        }
        if session.has_failed() {
            return StoreError::Unusable("too many operations failed".into());
        }
        if let Err(error) = session.probe().await {
            session.fail();
            return error;
        }
    }
}

/// Interval between two probes of the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);

/// Most attempts to connect that are under way at a time.
const MAX_ATTEMPTS: usize = 4;

/// Connects to the master, however long that takes, and opens a session.
/// Waits for about `first_pause` before the first attempt.
pub(super) async fn reconnect(
    shard: &ShardState,
    first_pause: Duration,
    backoff: &mut Duration,
) -> SessionHandle {
    let mut attempts = FuturesUnordered::new();
    let mut next_at = Instant::now() + jittered(first_pause);
    loop {
        let has_room = attempts.len() < MAX_ATTEMPTS;
        let failed = tokio::select! {
            Some(dialled) = attempts.next() => match dialled {
                Ok(dialled) => match open_session(shard, dialled).await {
                    Ok(session) => return session,
                    Err(error) => error,
                },
                Err(error) => error,
            },
            () = sleep_until(next_at), if has_room => {
                attempts.push(connect_master(&shard.source));
                next_at = Instant::now() + longest_pause(shard);
                continue;
            }
        };
        warn_of_failed_attempt(shard, &failed);
        if attempts.is_empty() {
            next_at = Instant::now() + jittered(*backoff);
            *backoff = (*backoff * 2).min(longest_pause(shard));
        }
    }
}

fn warn_of_failed_attempt(shard: &ShardState, error: &StoreError) {
    shard.context.metrics.breaker.fail(error);
    if let Some(suppressed) = shard.warnings.connect.admit(&error.to_string()) {
        let store = &shard.address;
        warn!(store, %error, suppressed, "cannot connect to the store; retrying");
    }
}

/// The longest pause between two attempts to connect: a quarter of the grace.
fn longest_pause(shard: &ShardState) -> Duration {
    let grace = shard.context.config.reconnect_grace;
    if grace.is_zero() { BACKOFF.1 } else { (grace / 4).clamp(BACKOFF.0, BACKOFF.1) }
}

/// The interval between two probes of the server. A connection that is closed is noticed at once;
/// a server that is silent or no longer a master is not.
pub(super) fn probe_interval(shard: &ShardState) -> Duration {
    longest_pause(shard).min(PROBE_EVERY)
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// A connection to a server that is a master and has a supported version.
pub(super) struct VerifiedMaster {
    connection: RedisConnection,
    target: Target,
    info: ServerInfo,
    /// The server's clock minus ours, in ms.
    clock_ahead_ms: i64,
    epoch: Epoch,
    term: Option<Term>,
}

impl VerifiedMaster {
    /// Returns the records of the sidecars; none if they cannot be read.
    pub(super) async fn records(mut self, prefix: &str) -> Vec<String> {
        let now_ms = unix_ms(clock::now()) + self.clock_ahead_ms;
        let read = live_records(prefix, now_ms);
        let records = timeout(DETACHED_TIMEOUT, read.query_async(&mut self.connection.requests));
        records.await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// Connects to the master, checks it, and takes its epoch. Has no effect if it is cancelled.
pub(super) async fn connect_master(source: &MasterSource) -> Result<VerifiedMaster, StoreError> {
    let target = source.target().await?;
    let open = async {
        let mut connection = target.connect().await?;
        let sent = clock::now();
        let commands = redis::pipe().cmd("INFO").cmd("TIME").to_owned();
        let (info, time): (String, (i64, i64)) =
            match commands.query_async(&mut connection.requests).await {
                Ok(reply) => reply,
                Err(error) => return Err(target.explain_first_error(&error).await),
            };
        Ok((connection, info, clock_ahead_ms(time, sent)))
    };
    let opened = timeout(DETACHED_TIMEOUT, open).await;
    let (mut connection, info, clock_ahead_ms) = opened.unwrap_or(Err(StoreError::Timeout))?;
    let info = ServerInfo::parse(&info);
    info.check()?;
    // The server may have hung until now, and may have been deposed meanwhile.
    let (epoch, term) = source.epoch(&target, &mut connection, &info).await?;
    Ok(VerifiedMaster { connection, target, info, clock_ahead_ms, epoch, term })
}

/// Connects once, and publishes the session.
pub(super) async fn connect_once(shard: &ShardState) -> Result<(), StoreError> {
    let session = open_session(shard, connect_master(&shard.source).await?).await?;
    shard.publish(session);
    Ok(())
}

/// Opens a session with a master.
pub(super) async fn open_session(
    shard: &ShardState,
    master: VerifiedMaster,
) -> Result<SessionHandle, StoreError> {
    let VerifiedMaster { mut connection, target, info, clock_ahead_ms, epoch, term } = master;
    if let Some(policy) = info.evicting_policy() {
        warn_of_eviction(shard, policy);
    }
    if shard.source.take_behind() {
        shard.context.retry_queue.pending.add_all().await;
    }
    let grace_end = grace_end(shard, &mut connection.requests, &info, &epoch).await;
    let membership = if shard.source.is_cluster() { Membership::Master } else { Membership::None };
    let reached = (target, term, membership);
    let session = Session::new(connection, reached, epoch, clock_ahead_ms, grace_end);
    if !shard.context.has_secret && shard.keeps_shared_keys() {
        share_credential_key(shard, &session).await?;
    }
    Ok(Arc::new(session))
}

/// Fetches the fingerprint key that all sidecars share. If the server refuses, this sidecar
/// keeps its own key: its callers then get entries of other sidecars only after the upstream
/// has accepted them.
async fn share_credential_key(shard: &ShardState, session: &Session) -> Result<(), StoreError> {
    match session.credential_key(&shard.context.config.prefix).await {
        Ok(key) => {
            shard.context.set_credential_key(key);
            Ok(())
        }
        // `ASK` means that the slot is migrating and lacks the key; the next session tries
        // again.
        Err(error @ (StoreError::Refused(_) | StoreError::Redirected(Redirect::Ask(_)))) => {
            if let Some(suppressed) = shard.warnings.key.admit(&error.to_string()) {
                warn!(%error, suppressed, "cannot share the fingerprint key");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn warn_of_eviction(shard: &ShardState, policy: &str) {
    if let Some(suppressed) = shard.warnings.eviction.admit(policy) {
        warn!(
            policy,
            suppressed,
            "this Redis may evict the fence of a write; set maxmemory-policy noeviction"
        );
    }
}
