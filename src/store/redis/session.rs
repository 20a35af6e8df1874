//! One connection to a master: its commands, and the checks that the master can still be trusted.

mod job;

use std::{
    convert::Infallible,
    future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, stream::FuturesOrdered};
use redis::{
    Cmd, FromRedisValue, Pipeline, RedisResult, Script, ScriptInvocation, Value,
    aio::MultiplexedConnection,
};
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};

use super::{
    bulk_lane::{BulkLane, past_large},
    dial::Target,
    distance::Distance,
    lane::Lane,
    purge_token::PurgeTokens,
    server_info::{ServerEpoch, ServerInfo, claimed_epoch},
};
use crate::{
    clock,
    store::{
        Epoch, Redirect, Seen, StoreError, StoredValue,
        errors::{Result, StoreErrorKind},
        words::{now_ms, unix_ms},
    },
};

/// Number of consecutive timeouts after which the session is suspended.
const TIMEOUTS_IN_A_ROW: u32 = 5;
/// Together with the pause between two probes it stays below the second that the guarantee names.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Commands that are sent at once. Encoding them takes well below a millisecond.
const CHUNK: usize = 256;
/// `COUNT` of each SCAN.
const SCAN_STEP: usize = 500;

/// The connections to a master, for as long as it is a master.
pub(super) struct Session {
    pub(super) lane: Arc<Lane>,
    /// The connection for large values.
    pub(super) bulk: BulkLane,
    /// The server of this session.
    pub(super) target: Target,
    /// Whether the master is one of a cluster.
    pub(super) is_in_cluster: bool,
    pub(super) purge_tokens: Arc<PurgeTokens>,
    pub(super) server: ServerEpoch,
    /// Its name: the epoch in which an entry must have been stored to be trusted on this connection.
    pub(super) epoch: Epoch,
    /// The server's clock minus ours, in ms.
    pub(super) clock_ahead_ms: AtomicI64,
    pub(super) health: SessionHealth,
    pub(super) grace: Grace,
    /// Whether the server has evicted keys, as far as was asked.
    pub(super) has_evicted: AtomicBool,
}

/// The time after a new epoch in which nothing is a hit.
#[derive(Default)]
pub(super) struct Grace {
    end: Option<Instant>,
    is_on: AtomicBool,
}

impl Grace {
    /// Makes a grace that is on until this time; `None` for an epoch that has been known for longer.
    pub(super) fn until(end: Option<Instant>) -> Self {
        Self { end, is_on: AtomicBool::new(end.is_some()) }
    }

    /// Ends the grace when it is over; never returns.
    pub(super) async fn keep(&self) -> Infallible {
        if let Some(end) = self.end {
            sleep_until(end).await;
            self.is_on.store(false, Ordering::Release);
        }
        future::pending().await
    }
}

/// Whether a session can be used.
#[derive(Default)]
pub(super) struct SessionHealth {
    /// Operations in a row that have timed out.
    timeouts: AtomicU32,
    failed: AtomicBool,
    /// Whether it was given up because the node said that its cluster is down.
    pub(super) cluster_down: AtomicBool,
    /// Not used until a probe has shown whether the server hangs.
    suspended: AtomicBool,
    pub(super) distance: Distance,
}

impl Session {
    /// Whether the session has been given up.
    pub(super) fn has_failed(&self) -> bool {
        self.health.failed.load(Ordering::Relaxed)
    }

    /// Whether operations may use the session.
    pub(super) fn is_usable(&self) -> bool {
        !self.has_failed() && !self.is_suspended()
    }

    /// Whether the session is suspended, because several operations in a row have timed out.
    pub(super) fn is_suspended(&self) -> bool {
        self.health.suspended.load(Ordering::Relaxed)
    }

    /// Ends the suspension.
    pub(super) fn resume(&self) {
        self.health.timeouts.store(0, Ordering::Relaxed);
        self.health.suspended.store(false, Ordering::Relaxed);
    }

    /// Whether the epoch is too new for hits. Check it before a value is read: a value that was
    /// read during the grace does not count after the grace either.
    pub(super) fn is_in_grace(&self) -> bool {
        self.grace.is_on.load(Ordering::Acquire)
    }

    /// Fails if the session has been given up.
    pub(super) fn check_alive(&self) -> Result<()> {
        if self.has_failed() {
            return Err(StoreError::Lost("the session ended before the answer came".into()));
        }
        Ok(())
    }

    /// Gives up the session.
    pub(super) fn fail(&self) {
        self.health.failed.store(true, Ordering::Relaxed);
    }

    /// Updates the session from the result of an operation. Returns whether the session has ended
    /// with it, or is suspended until it is probed: a server that does not answer in time may hang,
    /// or may be far away.
    pub(super) fn ends_with<T>(&self, result: &Result<T>) -> bool {
        match result {
            Err(StoreError::Timeout | StoreError::Busy) if !self.health.distance.is_far() => {
                let timeouts = self.health.timeouts.fetch_add(1, Ordering::Relaxed) + 1;
                self.health.suspended.fetch_or(timeouts >= TIMEOUTS_IN_A_ROW, Ordering::Relaxed);
            }
            Err(StoreError::Redirected(Redirect::Down)) => {
                self.health.cluster_down.store(true, Ordering::Relaxed);
                self.fail();
            }
            Err(error) if matches!(error.kind(), StoreErrorKind::Lost | StoreErrorKind::Tls) => {
                self.fail();
            }
            Err(error) if error.kind() != StoreErrorKind::Refused => {}
            Ok(_) | Err(_) => self.health.timeouts.store(0, Ordering::Relaxed),
        }
        !self.is_usable()
    }

    /// The epoch as `shared_keys` marks it: without the config epoch of a cluster, which also
    /// changes with every slot that a master takes in.
    pub(super) fn marked_epoch(&self) -> String {
        if self.is_in_cluster { self.server.server() } else { self.epoch.as_str().to_owned() }
    }

    fn seen(&self, stored: Option<StoredValue>, purge_token: &[u8], in_grace: bool) -> Seen {
        let (epoch, now_ms) = (self.epoch.with_purge_token(purge_token), self.now_ms());
        Seen { stored, is_leased: false, epoch, now_ms, in_grace }
    }

    pub(super) fn now_ms(&self) -> i64 {
        now_ms() + self.clock_ahead_ms.load(Ordering::Relaxed)
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        self.send(async |requests| command.query_async(requests).await).await
    }

    /// Runs a pipeline.
    pub(super) async fn query_all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T> {
        self.send(async |requests| pipeline.query_async(requests).await).await
    }

    /// Runs a script.
    pub(super) async fn invoke<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T> {
        self.send(async |requests| script.invoke_async(requests).await).await
    }

    /// Makes a script known to the server.
    pub(super) async fn load(&self, script: &Script) -> Result<()> {
        self.send(async |requests| script.load_async(requests).await).await.map(drop)
    }

    /// Sends an operation over the common connection, in its turn: one that the lane did not count would
    /// make its answer look like that of another operation.
    async fn send<T>(
        &self,
        operation: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T> {
        let mut requests = self.lane.connection.requests.clone();
        self.lane.ask(async { Ok(operation(&mut requests).await?) }).await
    }

    /// Whether the server has evicted keys since it began to count.
    pub(super) async fn has_evicted(&self) -> Result<bool> {
        if !self.has_evicted.load(Ordering::Relaxed) {
            let info = self.query::<String>(redis::cmd("INFO").arg("stats")).await?;
            self.has_evicted.store(ServerInfo(info).has_evicted(), Ordering::Relaxed);
        }
        Ok(self.has_evicted.load(Ordering::Relaxed))
    }

    /// Runs commands in one round trip; each has its own result. There may be thousands: they are sent in
    /// chunks, without a wait for replies, and other tasks run in between.
    pub(super) async fn query_each(
        &self,
        mut commands: impl Iterator<Item = Cmd>,
    ) -> Result<Vec<Result<()>>> {
        let mut chunks = FuturesOrdered::new();
        let mut replies = Vec::new();
        loop {
            let mut pipeline = redis::pipe();
            for command in commands.by_ref().take(CHUNK) {
                pipeline.add_command(command);
            }
            if pipeline.is_empty() {
                break;
            }
            chunks.push_back(self.query_chunk(pipeline));
            tokio::select! {
                biased;
                Some(chunk) = chunks.next() => replies.extend(chunk?),
                () = yield_now() => {}
            }
        }
        while let Some(chunk) = chunks.next().await {
            replies.extend(chunk?);
        }
        Ok(replies)
    }

    async fn query_chunk(&self, mut commands: Pipeline) -> Result<Vec<Result<()>>> {
        let replies: Vec<RedisResult<Value>> = self.query_all(commands.ignore_errors()).await?;
        Ok(replies.into_iter().map(|reply| Ok(reply.map(drop)?)).collect())
    }

    /// Checks that the server is still the master with which the session was opened, and notes how
    /// long the answer took.
    pub(super) async fn probe(&self) -> Result<()> {
        let sent = clock::now();
        let turn = self.lane.turn();
        let calls = self.probe_over(Arc::clone(&self.lane));
        // Not behind a large value.
        let when = (&turn, PROBE_TIMEOUT / 4);
        let calls = past_large(&self.bulk, when, || true, calls, |lane| self.probe_over(lane));
        let ((info, time), claim) = timeout(PROBE_TIMEOUT, calls).await??;
        let info = ServerInfo(info);
        info.check_role()?;
        if *self.server.replid != *info.replid() {
            return Err(StoreError::Unusable(
                "the server has started a new replication history".into(),
            ));
        }
        if claim.is_some() && claim != self.server.term {
            return Err(StoreError::Unusable("the master has taken over slots".into()));
        }
        let known = self.clock_ahead_ms.load(Ordering::Relaxed);
        let ahead = refined_clock_ms(known, time, (sent, clock::now()));
        self.clock_ahead_ms.store(ahead, Ordering::Relaxed);
        Ok(())
    }

    async fn probe_over(&self, lane: Arc<Lane>) -> Result<((String, (i64, i64)), Option<u64>)> {
        let began = Instant::now();
        let mut requests = lane.connection.requests.clone();
        let mut pipeline = redis::pipe();
        pipeline.cmd("INFO").arg("replication").cmd("TIME");
        let reply = pipeline.query_async(&mut requests).await?;
        self.health.distance.note(began.elapsed());
        let mut claim = None;
        if self.is_in_cluster {
            let info =
                redis::cmd("CLUSTER").arg("INFO").query_async::<String>(&mut requests).await?;
            claim = Some(claimed_epoch(&info)?);
        }
        Ok((reply, claim))
    }

    /// Turns a timeout of an operation that began at this time into one that does not count, if the
    /// server is far away, has answered something meanwhile, or is sent a large value.
    pub(super) fn explain<T>(&self, began: Instant, result: Result<T>) -> Result<T> {
        match result {
            Err(StoreError::Timeout) if self.is_late_for_a_reason(began) => Err(StoreError::Spent),
            other => other,
        }
    }

    /// Whether there is a reason for a timeout other than that the server hangs.
    pub(super) fn is_late_for_a_reason(&self, began: Instant) -> bool {
        self.health.distance.is_far()
            || self.lane.connection.traffic.has_arrived_since(began)
            || self.bulk.is_missed()
    }

    /// Returns the next cursor, 0 at the end, and some of the names under the prefix. They are bytes: a
    /// foreign name need not be UTF-8.
    pub(super) async fn scan(&self, prefix: &str, cursor: u64) -> Result<(u64, Vec<Vec<u8>>)> {
        let pattern = format!("{}*", escape_glob(prefix));
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_STEP);
        self.query(&scan).await
    }
}

/// Name of a companion of a name that need not be UTF-8.
pub(super) fn companion(name: &[u8], role: &str) -> Vec<u8> {
    [b"{", name, b"}:", role.as_bytes()].concat()
}

/// The server's clock minus ours in ms, from its reply to `TIME` and the time of the request.
pub(super) fn clock_ahead_ms((seconds, micros): (i64, i64), sent: SystemTime) -> i64 {
    seconds * 1000 + micros / 1000 - unix_ms(sent)
}

/// Returns the server's clock minus ours in ms, from what is `known` and a reply to `TIME`. The server
/// has read its clock at some moment between the request and the reply, so a slow reply tells little.
fn refined_clock_ms(
    known: i64,
    time: (i64, i64),
    (sent, received): (SystemTime, SystemTime),
) -> i64 {
    let most = clock_ahead_ms(time, sent);
    let least = clock_ahead_ms(time, received).min(most);
    known.clamp(least, most)
}

/// Escapes the characters that are special in `SCAN MATCH`.
fn escape_glob(text: &str) -> String {
    let is_special = |c: &char| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-');
    let escape = |c| is_special(&c).then_some('\\').into_iter().chain([c]);
    text.chars().flat_map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_in_a_prefix_match_themselves_only() {
        assert_eq!(escape_glob("a*b[c]?\\:"), "a\\*b\\[c\\]\\?\\\\:");
        assert_eq!(escape_glob("job_status:"), "job_status:");
    }

    #[test]
    fn a_slow_reply_does_not_move_the_clock_and_a_step_of_the_clock_does() {
        let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let refined = |known, server_ms: i64, sent, received| {
            let time = (server_ms / 1000, server_ms % 1000 * 1000);
            refined_clock_ms(known, time, (at(sent), at(received)))
        };
        assert_eq!(refined(0, 5_400, 5_000, 5_401), 0, "the reply took 400 ms");
        assert_eq!(refined(400, 6_000, 6_000, 6_001), 0, "the first reply was slow");
        assert_eq!(refined(0, 9_000, 7_000, 7_001), 1_999, "the clocks differ");
        assert_eq!(refined(0, 6_000, 8_000, 8_001), -2_000);
        assert_eq!(refined(3, 5_000, 5_000, 4_000), 0, "our clock went back meanwhile");
    }
}
