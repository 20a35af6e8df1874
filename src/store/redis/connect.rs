//! Connects to a master, checks it, and opens a session with it.

use std::sync::Arc;

use tokio::time::timeout;
use tracing::warn;

use super::{
    classify::DETACHED_TIMEOUT,
    dial::{RedisConnection, Target},
    grace::grace_end,
    master_source::MasterSource,
    record_keeper::live_records,
    sentinel::Term,
    server_info::ServerInfo,
    session::{Membership, Session, clock_ahead_ms},
    state::{SessionHandle, ShardState},
};
use crate::{
    clock,
    store::{
        errors::{Redirect, StoreError},
        words::{Epoch, unix_ms},
    },
};

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
