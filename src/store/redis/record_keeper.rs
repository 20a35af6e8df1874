//! Keeps what sidecars record for each other in the server: the configuration, and the mark of the
//! epoch.

use std::{convert::Infallible, time::Duration};

use redis::Cmd;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{classify::DETACHED_TIMEOUT, grace::epoch_mark, session::Session, state::ShardState};
use crate::store::{errors::StoreError, words::millis};

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
                let (records, prefix) = (&shard.context.records, &shard.context.config.prefix);
                let ours = records.ours().text();
                let outdated = records.take_outdated();
                records.compare(&exchange_records(session, prefix, &ours, &outdated).await?);
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
async fn renew_epoch_mark(shard: &ShardState, session: &Session) -> Result<(), StoreError> {
    let Some(name) = epoch_mark(shard) else { return Ok(()) };
    let mark = format!("0 {}", shard.source.marked_epoch(session.epoch()));
    session.query::<redis::Value>(redis::cmd("SET").arg(name).arg(mark).arg("NX")).await?;
    Ok(())
}

/// Renews our record, removes outdated ones, and returns all that live.
async fn exchange_records(
    session: &Session,
    prefix: &str,
    ours: &str,
    outdated: &[String],
) -> Result<Vec<String>, StoreError> {
    let name = name(prefix);
    let now_ms = session.now_ms();
    let expires_at_ms = now_ms + millis(LIFE + RENEW_EVERY);
    let mut pipeline = redis::pipe();
    pipeline.cmd("ZREMRANGEBYSCORE").arg(&name).arg("-inf").arg(now_ms).ignore();
    if !outdated.is_empty() {
        pipeline.cmd("ZREM").arg(&name).arg(outdated).ignore();
    }
    pipeline.cmd("ZADD").arg(&name).arg(expires_at_ms).arg(ours).ignore();
    pipeline.cmd("PEXPIREAT").arg(&name).arg(expires_at_ms).ignore();
    pipeline.add_command(live_records(prefix, now_ms));
    let (records,) = session
        .call(|mut connection| async move {
            pipeline.query_async::<(Vec<String>,)>(&mut connection).await
        })
        .await?;
    Ok(records)
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
