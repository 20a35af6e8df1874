//! Operations on one job: plain reads, and scripts that use all keys of a job at once.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use redis::{
    Cmd, Pipeline, RedisError, RedisResult, Script, ScriptInvocation, Value, from_redis_value,
};
use sha1_smol::Sha1;
use tokio::time::timeout;

use super::{super::purge_token::PurgeTokens, Session, companion};
use crate::{
    mutants,
    store::redis::lane::Lane,
    store::{
        EntryChange, Fill, Grant, Key, KeyReceipt, KeyState, Lease, LeaseState, RemovedEntry, Seen,
        StoreError, StoredValue, Token,
        errors::{DETACHED_TIMEOUT, Result},
        slots::slot_of_key,
        words::{LeaseGuard, millis},
        write::{KeyOp, WriteStep},
    },
};

/// Reply of `PTTL` for a missing key.
const ABSENT: i64 = -2;

static LEASE: LazyLock<Script> =
    LazyLock::new(|| script("lease", include_str!("../../lua/lease.lua")));
static FILL: LazyLock<Script> =
    LazyLock::new(|| script("fill", include_str!("../../lua/fill.lua")));
static ADMIT: LazyLock<Script> =
    LazyLock::new(|| script("admit", include_str!("../../lua/admit.lua")));
static REPLACE: LazyLock<Script> =
    LazyLock::new(|| script("replace", include_str!("../../lua/replace.lua")));
static RELEASE: LazyLock<Script> =
    LazyLock::new(|| script("release", include_str!("../../lua/release.lua")));
static BEGIN: LazyLock<Script> =
    LazyLock::new(|| script("begin", include_str!("../../lua/begin.lua")));
static SWEEP: LazyLock<Script> =
    LazyLock::new(|| script("sweep", include_str!("../../lua/sweep.lua")));
static END: LazyLock<Script> = LazyLock::new(|| script("end", include_str!("../../lua/end.lua")));

/// Replies to `MGET main meta purge-token` and `PEXPIRETIME main`.
type ReadReply = ([Option<Vec<u8>>; 3], i64);

/// The same, with the type of the main key, the lease, and the remaining times of lease and fence
/// in ms.
type InspectReply = ([Option<Vec<u8>>; 3], i64, String, Option<Vec<u8>>, i64, i64);

/// The part of a reply of `end.lua` about one job, after the number of the job.
type EndReply = (bool, usize, bool, String, String, String);
/// The number of its fields.
const FOUND_FIELDS: usize = 6;

impl Session {
    /// Reads the value of a key: one round trip, no script.
    pub(crate) async fn read(&self, lane: &Lane, key: &Key) -> Result<Seen> {
        let mut pipeline = self.read_of(key);
        if self.is_in_cluster {
            // A master that is handing over to its replica (`CLUSTER FAILOVER`) answers writes only
            // after the handover, and then with `MOVED`. So the answer proves that nobody else was
            // the master when the value was read. It changes nothing: no expiry is before 1 ms.
            pipeline.cmd("PEXPIREAT").arg(key.main()).arg(1).arg("GT").ignore();
        }
        let in_grace = self.is_in_grace();
        let mut requests = lane.connection.requests.clone();
        let reply = pipeline.query_async::<ReadReply>(&mut requests).await?;
        Ok(self.seen_in(reply, in_grace))
    }

    fn read_of(&self, key: &Key) -> Pipeline {
        let mut pipeline = redis::pipe();
        let purge_token = self.purge_tokens.of_key(key);
        pipeline.cmd("MGET").arg(key.main()).arg(key.companion("meta")).arg(&*purge_token);
        pipeline.cmd("PEXPIRETIME").arg(key.main());
        pipeline
    }

    /// A placeholder is not a value: it has neither a body nor meta.
    fn seen_in(
        &self,
        ([body, meta, purge_token], expires_at_ms): ReadReply,
        in_grace: bool,
    ) -> Seen {
        let (body, meta) = (body.map(Bytes::from), Bytes::from(meta.unwrap_or_default()));
        let is_placeholder = |body: &Bytes| body.is_empty() && meta.is_empty();
        let is_leased = body.as_ref().is_some_and(is_placeholder);
        let body = body.filter(|_| !is_leased);
        let stored = body.map(|body| StoredValue { body, meta, expires_at_ms });
        Seen { is_leased, ..self.seen(stored, &purge_token.unwrap_or_default(), in_grace) }
    }

    /// Reads all keys of a job: one round trip, no script.
    pub(crate) async fn inspect(&self, key: &Key) -> Result<KeyState> {
        let (lease, fence) = (key.companion("lease"), key.companion("fence"));
        let mut pipeline = self.read_of(key);
        pipeline.cmd("TYPE").arg(key.main());
        // Only the existence of the fence counts, whatever its type, as in `lease.lua`.
        pipeline.cmd("GET").arg(&lease).cmd("PTTL").arg(&lease).cmd("PTTL").arg(&fence);
        let in_grace = self.is_in_grace();
        let (read, expires_at_ms, kind, lease, lease_left_ms, fence_left_ms) =
            self.query_all::<InspectReply>(&pipeline).await?;
        // A lease from before a purge of all counts as absent, as in `lease.lua`.
        let lease = lease.and_then(|lease| {
            let at = lease.iter().position(|byte| *byte == b' ')?;
            let token = Token(String::from_utf8_lossy(&lease[..at]).into());
            let is_current = read[2].as_deref() == lease.get(at + 1..);
            is_current.then_some(LeaseState { token, left_ms: lease_left_ms })
        });
        Ok(KeyState {
            seen: self.seen_in((read, expires_at_ms), in_grace),
            is_alien: kind != "string" && kind != "none",
            lease,
            fence_left_ms: (fence_left_ms != ABSENT).then_some(fence_left_ms),
        })
    }

    /// Requests the lease for which `hold` was made.
    pub(crate) async fn lease(
        &self,
        (key, token, hold): (Key, Token, LeaseGuard),
        lease: Duration,
        refused: Option<&StoredValue>,
    ) -> Result<Grant> {
        let granted_at_ms = self.now_ms();
        let mut invocation = on_all_keys(&LEASE, &key);
        invocation.key(&*self.purge_tokens.of_key(&key));
        invocation.arg(token.as_str()).arg(millis(lease));
        invocation.arg(refused.map(|stored| stored.expires_at_ms.to_string()).unwrap_or_default());
        invocation.arg(PurgeTokens::random());
        let in_grace = self.is_in_grace();
        let reply: Vec<Value> = self.invoke(&invocation).await?;
        let epoch = self.epoch.clone();
        self.grant(&reply, Lease { key, token, epoch, granted_at_ms, hold }, in_grace)
    }

    pub(crate) async fn fill(
        &self,
        lane: Arc<Lane>,
        lease: &Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
        lease_time: Duration,
    ) -> Result<Fill> {
        let key = &lease.key;
        let mut invocation = FILL.key(key.main());
        invocation.key(key.companion("meta")).key(key.companion("lease"));
        invocation.key(&*self.purge_tokens.of_key(key));
        invocation.arg(lease.token.as_str()).arg(&body[..]).arg(meta);
        invocation.arg(millis(ttl)).arg(millis(lease_time));
        let mut requests = lane.connection.requests.clone();
        Ok(filled(invocation.invoke_async(&mut requests).await?))
    }

    /// Takes one step of a write. Its end returns what was stored under the key.
    pub(crate) async fn run(&self, op: KeyOp<'_>) -> Result<KeyReceipt> {
        let mut receipts = self.run_all(&[op]).await?;
        // There is one for each step.
        receipts.pop().flatten().unwrap_or_else(|| Ok(KeyReceipt::default()))
    }

    /// Takes the same step of a write on several keys in one round trip; each has its own result. It is
    /// `None` where the step has to be taken by itself to know its result. On a cluster the keys are
    /// ordered by slot.
    pub(crate) async fn run_all(
        &self,
        ops: &[KeyOp<'_>],
    ) -> Result<Vec<Option<Result<KeyReceipt>>>> {
        let Some(first) = ops.first() else { return Ok(Vec::new()) };
        // A script may use keys of one slot. A script for each key would cost this process several
        // times as much as one for all of them.
        let is_together = |one: &KeyOp<'_>, next: &KeyOp<'_>| {
            !self.is_in_cluster || slot_of_key(one.key) == slot_of_key(next.key)
        };
        let groups: Vec<&[KeyOp<'_>]> = ops.chunk_by(is_together).collect();
        let script = script_of(first.step);
        let mut pipeline = redis::pipe();
        for group in &groups {
            pipeline.add_command(step_command(script, group));
        }
        let pipeline = pipeline.ignore_errors();
        let mut replies: Vec<RedisResult<Value>> = self.query_all(pipeline).await?;
        if replies.first().is_some_and(|reply| reply.as_ref().is_err_and(is_unknown_script)) {
            self.load(script).await?;
            replies = self.query_all(pipeline).await?;
        }
        let mut receipts = Vec::with_capacity(ops.len());
        for (group, reply) in groups.into_iter().zip(replies) {
            match reply {
                Ok(reply) => receipts.extend(self.receipts(group, reply).into_iter().map(Some)),
                Err(error) => receipts.extend(failures(group, error.into())),
            }
        }
        Ok(receipts)
    }

    fn receipts(&self, ops: &[KeyOp<'_>], reply: Value) -> Vec<Result<KeyReceipt>> {
        let mut receipts: Vec<_> = ops.iter().map(|_| Ok(KeyReceipt::default())).collect();
        let Value::Array(found) = reply else { return receipts };
        let mut found = found.into_iter();
        while let Some(number) = found.next() {
            let fields = Value::Array(found.by_ref().take(FOUND_FIELDS).collect());
            let place = from_redis_value::<usize>(number).ok().and_then(|at| at.checked_sub(1));
            if let Some(receipt) = place.and_then(|at| receipts.get_mut(at)) {
                *receipt = self.receipt(fields);
            }
        }
        receipts
    }

    fn receipt(&self, fields: Value) -> Result<KeyReceipt> {
        let (exists, size, filling, generation, stored_at_ms, age_ms): EndReply =
            from_redis_value(fields).map_err(RedisError::from)?;
        let times = [stored_at_ms, age_ms].map(|time| time.parse().ok());
        let entry = || RemovedEntry::new(size, &generation, times, self.now_ms());
        Ok(KeyReceipt { entry: exists.then(entry), filling })
    }

    pub(crate) async fn release(&self, key: &Key, token: &Token) {
        let mut invocation = RELEASE.key(key.main());
        invocation.key(key.companion("lease")).arg(token.as_str());
        // If the release is lost, the lease expires on its own.
        let _ = timeout(DETACHED_TIMEOUT, self.invoke::<i64>(&invocation)).await;
    }

    /// Changes an entry, if it is still the very entry that was seen.
    pub(crate) async fn change(
        &self,
        lane: Arc<Lane>,
        key: &Key,
        stored: &StoredValue,
        generation: &str,
        seen_at_ms: i64,
        change: EntryChange<'_>,
    ) -> Result<Fill> {
        let script = match change {
            EntryChange::Admit(_) => &ADMIT,
            EntryChange::Replace { .. } => &REPLACE,
        };
        let mut invocation = script.key(key.main());
        invocation.key(key.companion("meta")).key(key.companion("fence"));
        invocation.key(&*self.purge_tokens.of_key(key));
        invocation.arg(Sha1::from(&stored.body).digest().to_string());
        invocation.arg(stored.expires_at_ms).arg(generation);
        match change {
            EntryChange::Admit(caller) => invocation.arg(caller).arg(seen_at_ms),
            EntryChange::Replace { body, meta, expires_at_ms } => {
                invocation.arg(&body[..]).arg(meta).arg(expires_at_ms)
            }
        };
        let mut requests = lane.connection.requests.clone();
        Ok(filled(invocation.invoke_async(&mut requests).await?))
    }

    /// Deletes what lies under this name if a purge of all has voided it. The name need not be that of
    /// a job.
    pub(crate) async fn sweep(&self, name: &[u8], purge_token: &str) -> Result<()> {
        let mut invocation = SWEEP.key(name);
        invocation.key(companion(name, "meta")).key(companion(name, "lease")).key(purge_token);
        self.invoke::<i64>(&invocation).await?;
        Ok(())
    }

    fn grant(&self, reply: &[Value], mut lease: Lease, in_grace: bool) -> Result<Grant> {
        let bytes = |at: usize| match reply.get(at) {
            Some(Value::BulkString(value)) => Bytes::copy_from_slice(value),
            _ => Bytes::new(),
        };
        if &bytes(0)[..] == b"granted" {
            lease.epoch = lease.epoch.with_purge_token(&bytes(1));
            return Ok(Grant::Lease(lease));
        }
        lease.hold.spend();
        match &bytes(0)[..] {
            b"fenced" => Ok(Grant::Fenced),
            b"leased" => {
                let token = Token(String::from_utf8_lossy(&bytes(1)).into());
                Ok(Grant::Leased(token, lease.epoch.with_purge_token(&bytes(2))))
            }
            b"stored" => {
                let Some(Value::Int(expires_at_ms)) = reply.get(3) else {
                    return Err(StoreError::Refused("lease.lua returned no expiry".into()));
                };
                let expires_at_ms = *expires_at_ms;
                let stored = StoredValue { body: bytes(1), meta: bytes(2), expires_at_ms };
                Ok(Grant::Stored(self.seen(Some(stored), &bytes(4), in_grace)))
            }
            other => Err(StoreError::Refused(format!("lease.lua answered {other:?}"))),
        }
    }
}

/// The companions of a job that scripts are given after its main key.
const COMPANIONS: [&str; 3] = ["meta", "lease", "fence"];
/// Length of the longest text around the name of a companion.
const LONGEST_COMPANION: usize = "{}:lease".len();

fn script_of(step: WriteStep) -> &'static Script {
    match step {
        WriteStep::Begin => &BEGIN,
        WriteStep::End => &END,
    }
}

/// The command for a step of a write on several keys.
fn step_command(script: &Script, ops: &[KeyOp<'_>]) -> Cmd {
    let names = ops.iter().map(|op| op.key.main().len() + LONGEST_COMPANION);
    let mut command = Cmd::with_capacity(5 + 4 * ops.len(), 128 + 4 * names.sum::<usize>());
    command.arg("EVALSHA").arg(script.get_hash()).arg(4 * ops.len());
    let mut name = String::new();
    for op in ops {
        command.arg(op.key.main());
        for role in COMPANIONS {
            op.key.write_companion(role, &mut name);
            command.arg(&name);
        }
    }
    if let Some(KeyOp { write, fence, .. }) = ops.first() {
        command.arg(write.as_str()).arg(millis(*fence));
    }
    command
}

/// Returns the results of steps whose script was refused. If its keys are to blame, one may be to blame
/// for all, so each step is taken by itself. A begin is not, unless its slot is moving: a server that
/// refuses a script would cost a command for each key before the write is forwarded. A begin that is not
/// confirmed is made up for by its end.
fn failures(ops: &[KeyOp<'_>], error: StoreError) -> Vec<Option<Result<KeyReceipt>>> {
    let is_begin = ops.iter().all(|op| op.step == WriteStep::Begin);
    match ops {
        [_] => vec![Some(Err(error))],
        _ if is_begin && !matches!(error, StoreError::Redirected(_)) => {
            ops.iter().map(|_| Some(Err(error.of_another_key()))).collect()
        }
        _ => ops.iter().map(|_| None).collect(),
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.code() == Some("NOSCRIPT")
}

fn on_all_keys<'s>(script: &'s Script, key: &Key) -> ScriptInvocation<'s> {
    let mut invocation = script.key(key.main());
    for role in COMPANIONS {
        invocation.key(key.companion(role));
    }
    invocation
}

fn filled(reply: i64) -> Fill {
    if reply == 1 { Fill::Stored } else { Fill::Revoked }
}

fn script(name: &str, source: &str) -> Script {
    Script::new(&mutants::mutated_script(name, source))
}
