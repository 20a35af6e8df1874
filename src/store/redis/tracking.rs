//! The tracking connection: invalidation messages for every change, and the rounds of the read
//! barrier.
//!
//! This is a separate RESP3 connection with `CLIENT TRACKING ON BCAST`, which carries only
//! invalidation messages and the commands of barrier rounds, usually one `PING`. One task reads
//! both and applies them in order, so an answer to a `PING` proves that every earlier change is
//! known. (The server sends the invalidation message of a command before it replies to the client
//! that sent the command, and takes a `PING` that is sent after that reply in a later turn of its
//! event loop.)
//!
//! If `near_tracking = "keys"`, the server reports only keys that were read on this connection, and
//! each of them once; then it forgets the key until it is read again. So before an entry is read
//! for the near layer, its name is read here, by a round that carries it
//! ([`TrackingState::follow`]), and only then is the entry read over the data connection. A change
//! in between is reported here. The reader took its note before all that, sees the change, and does
//! not keep what it read. The name must be read on this very connection: with `REDIRECT` from the
//! data connection the messages would stop when that connection ends, and the answers to `PING`s
//! would not.
//!
//! The client is written for this one use, on bare sockets: a round is one `write` and one `read`,
//! where a general client wakes three tasks, and rounds are the cost of a hit. Replies are decoded
//! by the codec of the `redis` crate.
//!
//! If a server refuses tracking (an ACL without `CLIENT TRACKING`), only the near layer is lost:
//! hits then ask Redis.

pub(super) mod wire;

use std::{convert::Infallible, future, pin::pin, time::Duration};

use redis::{PushKind, Value, cmd};
use tokio::{
    runtime::Handle,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use self::wire::{Question, Wire, no_answer};
use super::{
    server_info::ServerInfo,
    session::Session,
    state::{ShardState, TrackingState},
};
use crate::{
    config::NearTracking,
    store::{
        Key, StoreError,
        errors::{BACKOFF, DETACHED_TIMEOUT, Result},
        slots::SlotSet,
    },
};

/// Time without an answer after which the connection is given up.
const HUNG_AFTER: Duration = Duration::from_secs(1);

/// Runs the tracking connection for as long as a session is served, if entries are kept in this
/// process: in another epoch its messages are not about our entries. Never returns.
pub(super) async fn track(shared: &ShardState, session: &Session) -> Infallible {
    let Some(tracked) = &shared.tracked else { return future::pending().await };
    let mut backoff = BACKOFF.0;
    loop {
        let connected = timeout(DETACHED_TIMEOUT, connect(shared, tracked, session));
        let error = match connected.await.unwrap_or(Err(StoreError::Timeout)) {
            Ok(connection) => {
                backoff = BACKOFF.0;
                info!("tracking the store; hits do not ask it");
                connection.follow().await
            }
            Err(error) => error,
        };
        if let StoreError::Redirected(redirect) = &error {
            shared.source.observe(redirect, &shared.context.metrics.cluster);
            // The server may no longer be a master, so the session is probed too.
            shared.failed.notify_one();
        }
        shared.refused.note(&error);
        // Reads of a far server pass, so entries near are of no use now.
        if !session.health.distance.is_far()
            && let Some(suppressed) =
                shared.context.problems.admit_in_session(&error, &shared.warnings.tracking)
        {
            warn!(%error, suppressed, "cannot track the store; each hit asks it");
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Connects, checks that this is the server of the session, and enables tracking.
async fn connect<'t>(
    shared: &ShardState,
    tracked: &'t TrackingState,
    session: &Session,
) -> Result<TrackingConnection<'t>> {
    let target = &session.target;
    let hello = target.hello("jobcache-tracking").await?;
    let mut wire = Wire::new(target.open().await?);
    wire.call::<Value>(&hello).await?;
    let info: String = wire.call(&cmd("INFO")).await?;
    let info = ServerInfo(info);
    info.check()?;
    if !info.epoch(None).is_of(&session.server) {
        return Err(StoreError::Unusable("this is not the server of the session".into()));
    }
    let pings = pings_per_round(&mut wire, &info).await;
    let prefix = &shared.context.config.prefix;
    let question = shared.source.question(prefix, &info)?;
    let mut track = cmd("CLIENT");
    track.arg("TRACKING").arg("ON");
    if tracked.mode == NearTracking::Broadcast {
        track.arg("BCAST");
        let tokens = shared.context.purge_tokens.beginnings();
        for prefix in shared.context.prefixes.iter().cloned().chain(tokens) {
            track.arg("PREFIX").arg(prefix);
        }
    }
    wire.call::<Value>(&track).await?;
    Ok(TrackingConnection {
        tracked,
        wire,
        question,
        pings,
        is_single_threaded: Handle::current().metrics().num_workers() == 1,
        flight: None,
        carried: Vec::new(),
        reads: Vec::new(),
        purged: None,
    })
}

/// The number of `PING`s in a round. A newer server with I/O threads may send an answer one turn of
/// its event loop before the invalidation messages that should precede it. The answer to a second
/// `PING`, sent after that, cannot overtake them.
async fn pings_per_round(wire: &mut Wire, info: &ServerInfo) -> u32 {
    if !info.may_reorder() {
        return 1;
    }
    let threads = wire.call::<Vec<String>>(cmd("CONFIG").arg("GET").arg("io-threads")).await;
    match threads.as_deref() {
        Ok([_, threads]) if threads == "1" => 1,
        _ => 2,
    }
}

struct TrackingConnection<'t> {
    tracked: &'t TrackingState,
    wire: Wire,
    question: Question,
    /// `PING`s of a round, sent one after the other.
    pings: u32,
    /// Whether the runtime has one worker thread.
    is_single_threaded: bool,
    /// The current round.
    flight: Option<PendingRound>,
    /// Keys that it carries, and the packed commands that read them.
    carried: Vec<Key>,
    reads: Vec<u8>,
    /// The slots of purge tokens that have changed, with entries that are still to be evicted. A purge of
    /// all in a cluster renews thousands, and each eviction looks at every entry.
    purged: Option<Box<SlotSet>>,
}

/// A round that has been sent.
#[derive(Clone, Copy, Debug)]
struct PendingRound {
    launched_at: Instant,
    /// Carried keys with unanswered reads.
    unread: usize,
    /// `PING`s still to be sent, each after the previous one has been answered.
    left: u32,
}

impl TrackingConnection<'_> {
    /// Applies invalidation messages and runs rounds until the connection is lost. Returns the
    /// reason.
    async fn follow(mut self) -> StoreError {
        let tracked = self.tracked;
        // Notes taken before tracking began are void.
        tracked.flush_untracked();
        tracked.raise();
        let _guard = Lost(tracked);
        let mut watchdog = pin!(sleep(tracked.patience));
        loop {
            let is_in_flight = self.flight.is_some();
            let result = tokio::select! {
                biased;
                filled = self.wire.fill() => match filled {
                    Ok(()) => self.apply_and_launch().await,
                    Err(error) => Err(error),
                },
                () = tracked.barrier.wanted(), if !is_in_flight => self.launch().await,
                () = &mut watchdog, if is_in_flight => {
                    self.check_round().map(|at| watchdog.as_mut().reset(at))
                }
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Applies everything that has been read, and starts the next round.
    async fn apply_and_launch(&mut self) -> Result<()> {
        loop {
            let unread = self.flight.map_or(0, |flight| flight.unread);
            if unread == 0 && self.wire.take_answer(self.question.answer) {
                self.answered().await?;
                continue;
            }
            match self.wire.next()? {
                None => {
                    self.evict_purged();
                    return self.launch().await;
                }
                Some(Value::Push { kind: PushKind::Invalidate, data }) => {
                    self.tracked.evict(&data, &mut self.purged);
                }
                Some(read) if unread > 0 && !matches!(read, Value::Push { .. }) => {
                    self.take_read(&read);
                }
                Some(value) if self.question.is_answered_by(&value) => self.answered().await?,
                // LOADING, BUSY and the like are not answers.
                Some(other) => return Err(no_answer(other)),
            }
        }
    }

    fn evict_purged(&mut self) {
        if let Some(purged) = self.purged.take() {
            self.tracked.evict_purged(&purged);
        }
    }

    async fn answered(&mut self) -> Result<()> {
        self.evict_purged();
        let Some(PendingRound { launched_at, unread: 0, left }) = self.flight else {
            return Err(StoreError::Lost("an answer came without a barrier round".into()));
        };
        if left > 0 {
            self.flight = Some(PendingRound { launched_at, unread: 0, left: left - 1 });
            return self.ping().await;
        }
        self.flight = None;
        let tracked = self.tracked;
        tracked.metrics().round_seconds.observe(launched_at.elapsed().as_secs_f64());
        if tracked.barrier.is_up() {
            tracked.barrier.answered(tracked.since_origin_us(launched_at));
        } else {
            // The server hung and is back. Its messages came in order all the time, so the near
            // entries are valid.
            tracked.raise();
        }
        Ok(())
    }

    /// Starts a round if one is wanted and none is in flight.
    async fn launch(&mut self) -> Result<()> {
        if self.flight.is_some() {
            return Ok(());
        }
        if self.is_single_threaded {
            // Let all ready tasks run first, so that this round serves more readers: those already
            // answered leave, and new requests are read. With several threads this would only make
            // the others look for work.
            yield_now().await;
        }
        if self.tracked.barrier.launch(&mut self.carried).is_some() {
            self.tracked.metrics().rounds.inc();
            self.question.keep_owned_name();
            let unread = self.pack_reads();
            let (launched_at, left) = (Instant::now(), self.pings - 1);
            self.flight = Some(PendingRound { launched_at, unread, left });
            if unread == 0 {
                return self.ping().await;
            }
            self.reads.extend_from_slice(&self.question.bytes);
            self.wire.send(&self.reads).await?;
        }
        Ok(())
    }

    /// Packs a read of each key that the round carries, and of its purge token, and returns their number.
    /// Any reading command would do; this one has a short reply, and scripts need it anyway, so that every
    /// ACL allows it. The server remembers key names regardless of the selected database.
    fn pack_reads(&mut self) -> usize {
        self.reads.clear();
        self.carried.sort_unstable_by(|a, b| a.main().cmp(b.main()));
        self.carried.dedup();
        for key in &self.carried {
            let token = self.tracked.purge_token_of(key);
            cmd("EXISTS").arg(key.main()).arg(&*token).write_packed_command(&mut self.reads);
        }
        self.carried.len()
    }

    /// The socket buffer is empty, because one `PING` is outstanding at a time, so this does not
    /// block.
    async fn ping(&mut self) -> Result<()> {
        self.wire.send(&self.question.bytes).await
    }

    /// Takes the answer to the next read that the round carries. A server that refuses the read,
    /// such as a master of a cluster while the slot migrates, does not track that key. The key is
    /// evicted, so that its reader does not keep what it reads.
    fn take_read(&mut self, read: &Value) {
        let Some(PendingRound { unread, .. }) = &mut self.flight else { return };
        if !matches!(read, Value::Int(_))
            && let Some(at) = self.carried.len().checked_sub(*unread)
            && let Some(key) = self.carried.get(at)
        {
            self.tracked.watcher.evict(key.main().as_bytes());
        }
        *unread -= 1;
    }

    /// Checks a round that has not been answered. Returns when to check again.
    fn check_round(&self) -> Result<Instant> {
        let patience = self.tracked.patience;
        let Some(flight) = self.flight else { return Ok(Instant::now() + patience) };
        let waited = flight.launched_at.elapsed();
        if waited < patience {
            return Ok(flight.launched_at + patience);
        }
        if waited >= HUNG_AFTER {
            return Err(StoreError::Timeout);
        }
        self.tracked.lower();
        Ok(flight.launched_at + HUNG_AFTER)
    }
}

/// Takes the barrier down and empties the near layer when the connection ends, for whatever reason.
struct Lost<'t>(&'t TrackingState);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.lower();
        self.0.flush_untracked();
    }
}
