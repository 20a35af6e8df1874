//! One connection to a master: its commands, and the checks that the master can still be trusted.

mod job;

use std::{
    convert::Infallible,
    fmt, future,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use redis::{Cmd, FromRedisValue, RedisResult, aio::MultiplexedConnection};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    dial::{self, ClusterReplies, RedisConnection, Target},
    sentinel::Term,
    server_info::{ServerInfo, SlotClaim},
};
use crate::{
    clock,
    store::{
        errors::{DETACHED_TIMEOUT, Redirect, StoreError, classify},
        words::{CredentialKey, Epoch, Seen, StoredValue, unix_ms},
    },
};

/// Number of consecutive timeouts after which the session is given up.
const TIMEOUTS_IN_A_ROW: u32 = 5;
/// Together with the pause between two probes it stays below the second that the guarantee names.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// `COUNT` of each SCAN.
const SCAN_STEP: usize = 500;

/// A connection to a master, for as long as it is a master.
pub(super) struct Session {
    connection: RedisConnection,
    target: Target,
    term: Option<Term>,
    membership: Membership,
    epoch: Epoch,
    /// The server's clock minus ours, in ms.
    clock_ahead_ms: AtomicI64,
    timeouts: AtomicU32,
    failed: AtomicBool,
    /// When the grace of a new epoch is over; `None` if there is none.
    grace_end: Option<Instant>,
    in_grace: AtomicBool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("target", &self.target)
            .field("epoch", &self.epoch)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// Whether a server belongs to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// A standalone server.
    None,
    /// A master of a cluster.
    Master,
}

/// Effect of an operation on its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEffect {
    /// The session continues.
    Continue,
    /// The session ends.
    End,
}

impl Session {
    /// Wraps a connection to a server that has passed the checks.
    pub(super) fn new(
        connection: RedisConnection,
        (target, term, membership): (Target, Option<Term>, Membership),
        epoch: Epoch,
        clock_ahead_ms: i64,
        grace_end: Option<Instant>,
    ) -> Self {
        Self {
            grace_end,
            in_grace: AtomicBool::new(grace_end.is_some()),
            connection,
            target,
            term,
            membership,
            epoch,
            clock_ahead_ms: AtomicI64::new(clock_ahead_ms),
            timeouts: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// The server of this session.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The term of the master, if sentinels name it.
    pub(super) fn term(&self) -> Option<Term> {
        self.term
    }

    /// The epoch in which an entry must have been stored to be trusted on this connection.
    pub(super) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Whether the session has been given up.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the epoch is too new for hits. It is asked before a value is, because what the value
    /// was when the grace was not over does not count later either.
    pub(super) fn is_in_grace(&self) -> bool {
        self.in_grace.load(Ordering::Acquire)
    }

    /// Ends the grace when it is over; never returns.
    pub(super) async fn end_grace(&self) -> Infallible {
        if let Some(end) = self.grace_end {
            sleep_until(end).await;
            self.in_grace.store(false, Ordering::Release);
        }
        future::pending().await
    }

    /// Returns when the connection was closed.
    pub(super) async fn closed(&self) {
        self.connection.closed.notified().await;
    }

    /// Gives up the session.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Updates the session from the result of an operation. Returns whether this ends the session.
    pub(super) fn judge<T>(&self, result: &Result<T, StoreError>) -> SessionEffect {
        let timeouts = match result {
            Ok(_) | Err(StoreError::Refused(_)) => {
                self.timeouts.store(0, Ordering::Relaxed);
                0
            }
            Err(StoreError::Timeout) => self.timeouts.fetch_add(1, Ordering::Relaxed) + 1,
            Err(
                StoreError::Unreachable(_)
                | StoreError::Lost(_)
                | StoreError::Unusable(_)
                | StoreError::Tls(_)
                | StoreError::Redirected(Redirect::Down),
            ) => TIMEOUTS_IN_A_ROW,
            Err(
                StoreError::Down
                | StoreError::Pending
                | StoreError::Grace
                | StoreError::Spent
                | StoreError::Redirected(_)
                | StoreError::Journal { .. },
            ) => 0,
        };
        if timeouts < TIMEOUTS_IN_A_ROW {
            return SessionEffect::Continue;
        }
        self.fail();
        SessionEffect::End
    }

    fn seen(&self, stored: Option<StoredValue>, in_grace: bool) -> Seen {
        Seen { stored, epoch: self.epoch.clone(), now_ms: self.now_ms(), in_grace }
    }

    pub(super) fn now_ms(&self) -> i64 {
        unix_ms(clock::now()) + self.clock_ahead_ms.load(Ordering::Relaxed)
    }

    pub(super) async fn call<T, F>(
        &self,
        operation: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = RedisResult<T>>,
    {
        operation(self.connection.requests.clone()).await.map_err(|error| classify(&error))
    }

    /// The fingerprint key that all sidecars share. The first sidecar creates it.
    pub(super) async fn credential_key(&self, prefix: &str) -> Result<CredentialKey, StoreError> {
        let name = credential_key_name(prefix);
        let mut get = redis::cmd("GET");
        get.arg(&name);
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(CredentialKey::random().bytes()).arg("NX");
        let call = self.call(|mut connection| async move {
            let present: Option<Vec<u8>> = get.query_async(&mut connection).await?;
            if let Some(key) = present {
                return Ok(key);
            }
            let _: redis::Value = set.query_async(&mut connection).await?;
            get.query_async(&mut connection).await
        });
        let bytes = timeout(DETACHED_TIMEOUT, call).await.unwrap_or(Err(StoreError::Timeout))?;
        let bytes = bytes.try_into().map_err(|_| {
            StoreError::Refused(format!(
                "{name} does not hold 32 bytes; delete it, and a new one is created"
            ))
        })?;
        Ok(CredentialKey::new(bytes))
    }

    /// Checks that the server is still the master with which the session was opened.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        let sent = clock::now();
        let calls = async {
            let reply = self.call(|mut connection| async move {
                let mut pipeline = redis::pipe();
                pipeline.cmd("INFO").arg("replication").cmd("TIME");
                pipeline.query_async::<(String, (i64, i64))>(&mut connection).await
            });
            Ok((reply.await?, self.claim().await?))
        };
        let ((info, time), claim) = match timeout(PROBE_TIMEOUT, calls).await {
            Ok(reply) => reply?,
            Err(_) => return Err(StoreError::Timeout),
        };
        let info = ServerInfo::parse(&info);
        info.check_role()?;
        if !self.epoch.as_str().contains(&info.replid) {
            return Err(StoreError::Unusable(
                "the server has started a new replication history".into(),
            ));
        }
        if claim.is_some_and(|claim| !claim.matches(&self.epoch)) {
            return Err(StoreError::Unusable("the master has taken over slots".into()));
        }
        self.clock_ahead_ms.store(clock_ahead_ms(time, sent), Ordering::Relaxed);
        Ok(())
    }

    /// The claim of a master in its cluster; `None` for a standalone server.
    async fn claim(&self) -> Result<Option<SlotClaim>, StoreError> {
        if self.membership == Membership::None {
            return Ok(None);
        }
        let info: String = self.query(redis::cmd("CLUSTER").arg("INFO")).await?;
        SlotClaim::parse(&info).map(Some)
    }

    /// The node's view of the cluster.
    pub(super) async fn cluster_replies(&self) -> Result<ClusterReplies, StoreError> {
        dial::cluster_replies(self.connection.requests.clone()).await
    }

    /// Runs one command on a key in a slot that is migrating to this node.
    pub(super) async fn asking<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        dial::asking(self.connection.requests.clone(), command).await
    }

    /// Runs one command.
    pub(in crate::store) async fn query<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        self.call(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// Returns the next cursor, 0 at the end, and some of the names under the prefix.
    pub(in crate::store) async fn scan(
        &self,
        prefix: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
        let pattern = format!("{}*", escape_glob(prefix));
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_STEP);
        self.query(&scan).await
    }

    /// Deletes entries with their companions. Names are bytes: a foreign key under our prefix need
    /// not be UTF-8.
    pub(in crate::store) async fn delete(&self, names: &[Vec<u8>]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let mut pipeline = redis::pipe();
        for name in names {
            let [meta, lease] = ["meta", "lease"].map(|role| companion(name, role));
            pipeline.cmd("DEL").arg(name).arg(meta).arg(lease);
        }
        self.call(|mut connection| async move {
            pipeline.query_async::<Vec<i64>>(&mut connection).await.map(drop)
        })
        .await
    }
}

/// Name of a companion of a name that need not be UTF-8.
pub(in crate::store) fn companion(name: &[u8], role: &str) -> Vec<u8> {
    [b"{", name, b"}:", role.as_bytes()].concat()
}

/// Name of the key that holds the fingerprint key.
pub(super) fn credential_key_name(prefix: &str) -> String {
    format!("{{{prefix}}}:credential-key")
}

/// The server's clock minus ours in ms, from its reply to `TIME` and the time of the request.
pub(super) fn clock_ahead_ms((seconds, micros): (i64, i64), sent: SystemTime) -> i64 {
    seconds * 1000 + micros / 1000 - unix_ms(sent)
}

/// Escapes the characters that are special in `SCAN MATCH`.
fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_in_a_prefix_match_themselves_only() {
        assert_eq!(escape_glob("a*b[c]?\\:"), "a\\*b\\[c\\]\\?\\\\:");
        assert_eq!(escape_glob("job_status:"), "job_status:");
    }
}
