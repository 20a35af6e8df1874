//! The keys that sidecars share, apart from those of jobs: their configurations, the key of the
//! fingerprints, and the mark of the epoch, which tells how much of the grace is left.
//!
//! After a restart or failover every sidecar has to connect, and to repeat the invalidations that
//! the server has not confirmed, before the first hit. `store.reconnect_grace` is the time for
//! that. It counts from the first sidecar that connects, by the server's clock: that sidecar sets a
//! mark with the new epoch (`lua/epoch.lua`).
//!
//! If the mark can be neither read nor set, the whole grace is waited for.

use std::{convert::Infallible, sync::LazyLock, time::Duration};

use redis::{Cmd, Script, Value};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{server_info::ServerInfo, session::Session, state::ShardState};
use crate::store::{
    CredentialKey, Redirect, StoreError,
    errors::{DETACHED_TIMEOUT, Result, StoreErrorKind},
    words::millis,
};

/// Interval between two renewals of a record.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How long a record outlives its sidecar, at least.
const LIFE: Duration = Duration::from_mins(1);
/// Most records that are read. There is one for each configuration.
const MAX_RECORDS: usize = 32;

/// Renews our record, and warns about others, for as long as a session lasts; never returns. The
/// first time is right after the session was opened.
pub(super) async fn keep_record(shard: &ShardState, session: &Session) -> Infallible {
    loop {
        let exchange = async {
            renew_epoch_mark(shard, session).await?;
            if shard.keeps_shared_keys() {
                exchange_records(shard, session).await?;
            }
            Ok::<_, StoreError>(())
        };
        // Nothing depends on it: the next round tries again.
        if let Ok(Err(error)) = timeout(DETACHED_TIMEOUT, exchange).await {
            debug!(%error, "cannot record the configuration in the store");
        }
        sleep(RENEW_EVERY).await;
    }
}

/// Sets the mark of the epoch if it is gone: without it, a replica that is promoted later would
/// look like a server that jobcache has never used.
async fn renew_epoch_mark(shard: &ShardState, session: &Session) -> Result<()> {
    let mark = shard.source.epoch_mark(&shard.context.config);
    let Some(name) = mark else { return Ok(()) };
    let mark = format!("0 {}", session.marked_epoch());
    session.query::<Value>(redis::cmd("SET").arg(name).arg(mark).arg("NX")).await?;
    Ok(())
}

/// Renews our record, removes our outdated ones, and compares it with those of others.
async fn exchange_records(shard: &ShardState, session: &Session) -> Result<()> {
    let (records, prefix) = (&shard.context.records, &shard.context.config.prefix);
    let outdated = records.take_outdated();
    let name = name(prefix);
    let now_ms = session.now_ms();
    let expires_at_ms = now_ms + millis(LIFE + RENEW_EVERY);
    let mut pipeline = redis::pipe();
    pipeline.cmd("ZREMRANGEBYSCORE").arg(&name).arg("-inf").arg(now_ms).ignore();
    if !outdated.is_empty() {
        pipeline.cmd("ZREM").arg(&name).arg(&outdated).ignore();
    }
    pipeline.cmd("ZADD").arg(&name).arg(expires_at_ms).arg(records.ours().text()).ignore();
    pipeline.cmd("PEXPIREAT").arg(&name).arg(expires_at_ms).ignore();
    pipeline.add_command(live_records(prefix, now_ms));
    let live = session.query_all::<(Vec<String>,)>(&pipeline).await;
    if live.as_ref().is_err_and(|error| error.kind() == StoreErrorKind::Refused) {
        delete_alien(session, &name).await?;
    }
    let (live,) = live?;
    records.compare(&live);
    Ok(())
}

/// Deletes what a third party has written in place of the records. The next round records ours.
async fn delete_alien(session: &Session, name: &str) -> Result<()> {
    let kind: String = session.query(redis::cmd("TYPE").arg(name)).await?;
    if kind != "zset" && kind != "none" {
        session.query::<Value>(redis::cmd("DEL").arg(name)).await?;
    }
    Ok(())
}

/// The command that reads the records which have not expired.
pub(super) fn live_records(prefix: &str, now_ms: i64) -> Cmd {
    let mut read = redis::cmd("ZRANGE");
    read.arg(name(prefix)).arg(now_ms).arg("+inf").arg("BYSCORE");
    read.arg("LIMIT").arg(0).arg(MAX_RECORDS);
    read
}

fn name(prefix: &str) -> String {
    format!("{{{prefix}}}:sidecars")
}

/// `uptime_in_seconds` is rounded, by this much at most.
const UPTIME_ERROR_SECS: u64 = 1;

static EPOCH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/epoch.lua")));

/// Returns when the grace of the epoch of a session is over; `None` if that is now.
pub(super) async fn grace_end(
    shard: &ShardState,
    session: &Session,
    info: &ServerInfo,
) -> Option<Instant> {
    let name = shard.source.epoch_mark(&shard.context.config)?;
    let grace = shard.context.config.reconnect_grace;
    let is_new = info.uptime_secs() <= grace.as_secs() + 1 + UPTIME_ERROR_SECS;
    let mut script = EPOCH.key(name);
    script.arg(session.marked_epoch()).arg(if is_new { "new" } else { "old" });
    let known = timeout(DETACHED_TIMEOUT, session.invoke::<i64>(&script)).await;
    let known = known.unwrap_or(Err(StoreError::Timeout));
    let known = known.inspect_err(|error| debug!(%error, "cannot note the epoch of the store"));
    let known_ms = u64::try_from(known.unwrap_or(0)).unwrap_or(0);
    let left = grace.checked_sub(Duration::from_millis(known_ms))?;
    (!left.is_zero()).then(|| {
        info!(
            left_ms = millis(left),
            "the store is in a new epoch; no hits until it is known everywhere"
        );
        // The reply took some time, so this is later than by the server's clock.
        Instant::now() + left
    })
}

/// Fetches the fingerprint key that all sidecars share; the first one creates it. If the server
/// refuses, this sidecar keeps its own key: its callers then get entries of other sidecars only
/// after the upstream has accepted them.
pub(super) async fn share_credential_key(shard: &ShardState, session: &Session) -> Result<()> {
    match timeout(DETACHED_TIMEOUT, credential_key(shard, session)).await? {
        Ok(key) => shard.context.set_credential_key(key),
        // `ASK` means that the slot is migrating and lacks the key; the next session tries
        // again.
        Err(error)
            if error.kind() == StoreErrorKind::Refused
                || matches!(error, StoreError::Redirected(Redirect::Ask(_))) =>
        {
            let problems = &shard.context.problems;
            shard.refused.note(&error);
            if let Some(suppressed) = problems.admit_in_session(&error, &shard.warnings.key) {
                warn!(%error, suppressed, "cannot share the fingerprint key");
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn credential_key(shard: &ShardState, session: &Session) -> Result<CredentialKey> {
    let name = shard.context.credential_key_name();
    let mut get = redis::cmd("GET");
    get.arg(&name);
    let mut bytes: Option<Vec<u8>> = session.query(&get).await?;
    if bytes.is_none() {
        let new = CredentialKey::random();
        session.query::<Value>(redis::cmd("SET").arg(&name).arg(new.bytes()).arg("NX")).await?;
        bytes = session.query(&get).await?;
    }
    let bytes = bytes.unwrap_or_default().try_into().map_err(|_| {
        StoreError::Refused(format!(
            "{name} does not hold 32 bytes; delete it, and a new one is created"
        ))
    })?;
    Ok(CredentialKey::new(bytes))
}
