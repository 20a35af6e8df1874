//! The tracking connection: news of every change, and the rounds of the read barrier.
//!
//! A connection of its own, RESP3 with `CLIENT TRACKING ON BCAST`, on which nothing travels but news
//! and `PING`. Both are applied in the order in which they come, by the one task that reads them, so
//! an answer to a `PING` proves that every change before it is known. (The server sends the news of a
//! command before the reply to who gave it, and takes a `PING` that is sent after that reply in a
//! later turn of its event loop.)
//!
//! With `near_tracking = "keys"` the server tells this connection only of keys that were read on it, each
//! once: then it is forgotten until it is read again. So whoever is about to read an entry for the layer
//! in this process first has its name read here, by a round that carries it ([`Tracked::follow`]), and
//! only then reads it over the data connection. What changes in between is told here, after the note that
//! the reader has taken before all that, and he does not keep what he reads. That it is this very
//! connection that the server tells is the point: with `REDIRECT` from the data connection the news would
//! end with that one, and the answers to `PING`s would not.
//!
//! It is written for this one use on bare sockets: a round is one `write` and one `read`, where a
//! general client wakes three tasks for it, and rounds are what a hit costs. Replies are decoded by
//! the codec of the `redis` crate.
//!
//! A server that refuses it (an ACL without `CLIENT TRACKING`) costs the layer in this process and
//! nothing else: hits then ask Redis.

mod question;
mod tracked;

use std::{convert::Infallible, io, pin::pin, time::Duration};

use bytes::{Buf as _, BytesMut};
use redis::{Cmd, FromRedisValue, PushKind, Value, ValueCodec, cmd, from_redis_value};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    runtime::Handle,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::Decoder as _;
use tracing::{info, warn};

pub(super) use self::tracked::Tracked;
use self::{
    question::{Question, no_answer},
    tracked::evict,
};
use super::{
    DETACHED_TIMEOUT,
    info::Info,
    keeper::{BACKOFF, Shared},
    session::Session,
};
use crate::{
    config::NearTracking,
    store::{Key, StoreError},
    transport::Stream,
};

/// Once it has not answered for so long it is given up.
const HUNG: Duration = Duration::from_secs(1);
/// Read at a time.
const BUFFER: usize = 16 << 10;

/// Tracks for as long as a session is served; never returns.
pub(super) async fn track(shared: &Shared, session: &Session, tracked: &Tracked) -> Infallible {
    let mut backoff = BACKOFF.0;
    loop {
        let connected = timeout(DETACHED_TIMEOUT, connect(shared, session, tracked.tracking));
        let error = match connected.await.unwrap_or(Err(StoreError::Timeout)) {
            Ok(wire) => {
                backoff = BACKOFF.0;
                info!("tracking the store; hits need not ask it");
                wire.follow(tracked).await
            }
            Err(error) => error,
        };
        if let (Some(part), StoreError::Redirected(redirect)) = (&shared.part, &error) {
            part.heed(redirect);
            // It may be no master any more: the session is looked at, too.
            shared.failed.notify_one();
        }
        if let Some(suppressed) = shared.warnings.tracking.admit(&error.to_string()) {
            warn!(%error, suppressed, "cannot track the store; each hit asks it");
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Connects, makes sure that it is the server of the session, and switches tracking on.
async fn connect(
    shared: &Shared,
    session: &Session,
    tracking: NearTracking,
) -> Result<Wire, StoreError> {
    let target = session.target();
    let hello = target.hello("jobcache-tracking").await?;
    let mut wire = Wire::new(target.open().await?);
    wire.call::<Value>(&hello).await?;
    let info: String = wire.call(&cmd("INFO")).await?;
    let info = Info::parse(&info);
    info.check()?;
    if !info.is_of(session.epoch()) {
        return Err(StoreError::Lost("the server is another than the session's".into()));
    }
    wire.pings = wire.pings_of(&info).await;
    if let Some(part) = &shared.part {
        info.check_slots_move_by_key()?;
        wire.question = Question::keyed(&part.slots, &shared.prefix)
            .ok_or_else(|| StoreError::Lost("the master owns no slot".into()))?;
    }
    let mut track = cmd("CLIENT");
    track.arg("TRACKING").arg("ON");
    if tracking == NearTracking::Broadcast {
        track.arg("BCAST").arg("PREFIX").arg(&shared.prefix);
    }
    wire.call::<Value>(&track).await?;
    Ok(wire)
}

struct Wire {
    stream: Stream,
    codec: ValueCodec,
    read: BytesMut,
    /// Whether the codec is amid a value.
    amid: bool,
    question: Question,
    /// `PING`s of a round, one after the other.
    pings: u32,
    /// Whether one thread does all the work.
    alone: bool,
    /// Keys that the round under way carries, and how they are read.
    carried: Vec<Key>,
    reads: Vec<u8>,
}

/// A round that has been sent.
#[derive(Clone, Copy, Debug)]
struct Flight {
    launched_at: Instant,
    /// Keys that it carries and that were not answered yet.
    unread: usize,
    /// `PING`s that are still to be sent, once the one before has been answered.
    left: u32,
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            codec: ValueCodec::default(),
            read: BytesMut::with_capacity(BUFFER),
            amid: false,
            question: Question::ping(),
            pings: 1,
            alone: Handle::current().metrics().num_workers() == 1,
            carried: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// How many `PING`s make a round. With threads for its replies a newer server may send an answer
    /// one turn of its event loop before the news that it should follow; the answer to a second
    /// `PING`, sent after that, cannot overtake it.
    async fn pings_of(&mut self, info: &Info) -> u32 {
        if !info.may_reorder() {
            return 1;
        }
        let threads = self.call::<Vec<String>>(cmd("CONFIG").arg("GET").arg("io-threads")).await;
        match threads.as_deref() {
            Ok([_, threads]) if threads == "1" => 1,
            _ => 2,
        }
    }

    async fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, StoreError> {
        self.send(&command.get_packed_command()).await?;
        loop {
            match self.next()? {
                Some(Value::Push { .. }) => {}
                Some(Value::ServerError(error)) => {
                    return Err(StoreError::Refused(error.to_string()));
                }
                Some(value) => {
                    return from_redis_value(value)
                        .map_err(|error| StoreError::Refused(error.to_string()));
                }
                None => self.fill().await?,
            }
        }
    }

    /// TLS may keep the last of it until it is told that there is no more.
    async fn send(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.stream.write_all(bytes).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// Reads more.
    async fn fill(&mut self) -> Result<(), StoreError> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) => Err(StoreError::Lost("the server has closed the tracking connection".into())),
            Ok(_) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// The next value that has been read whole.
    fn next(&mut self) -> Result<Option<Value>, StoreError> {
        if self.read.is_empty() {
            return Ok(None);
        }
        let value = self.codec.decode(&mut self.read);
        let value = value.map_err(|error| StoreError::Lost(error.to_string()))?;
        self.amid = value.is_none();
        Ok(value)
    }

    /// Whether the next value is an answer; takes it. Most are, and need no parser.
    fn take_answer(&mut self) -> bool {
        let answer = self.question.answer;
        let answered = !self.amid && self.read.starts_with(answer);
        if answered {
            self.read.advance(answer.len());
        }
        answered
    }

    /// Applies the news and runs rounds until the connection is lost; returns why it was.
    async fn follow(mut self, tracked: &Tracked) -> StoreError {
        // What was noted before tracking began is void.
        tracked.flush();
        tracked.raise();
        let _lost = Lost(tracked);
        let mut flight = None;
        let mut watchdog = pin!(sleep(tracked.patience));
        loop {
            let flying = flight.is_some();
            let result = tokio::select! {
                biased;
                filled = self.fill() => match filled {
                    Ok(()) => self.turn(tracked, &mut flight).await,
                    Err(error) => Err(error),
                },
                () = tracked.rounds.wanted(), if !flying => self.launch(tracked, &mut flight).await,
                () = &mut watchdog, if flying => {
                    let next = look_after(tracked, flight.as_ref());
                    next.map(|at| watchdog.as_mut().reset(at))
                }
            };
            if let Err(error) = result {
                return error;
            }
        }
    }

    /// Applies what has been read, and goes on to the next round.
    async fn turn(
        &mut self,
        tracked: &Tracked,
        flight: &mut Option<Flight>,
    ) -> Result<(), StoreError> {
        self.apply(tracked, flight).await?;
        self.launch(tracked, flight).await
    }

    /// Applies all that has been read.
    async fn apply(
        &mut self,
        tracked: &Tracked,
        flight: &mut Option<Flight>,
    ) -> Result<(), StoreError> {
        loop {
            let unread = flight.map_or(0, |flight| flight.unread);
            if unread == 0 && self.take_answer() {
                self.answered(tracked, flight).await?;
                continue;
            }
            match self.next()? {
                None => return Ok(()),
                Some(Value::Push { kind: PushKind::Invalidate, data }) => {
                    evict(tracked, &data);
                }
                Some(read) if unread > 0 && !matches!(read, Value::Push { .. }) => {
                    take_read(tracked, &self.carried, &read, flight);
                }
                Some(value) if self.question.is_answered_by(&value) => {
                    self.answered(tracked, flight).await?;
                }
                // LOADING, BUSY and the like: no answer.
                Some(other) => return Err(no_answer(&other)),
            }
        }
    }

    async fn answered(
        &mut self,
        tracked: &Tracked,
        flight: &mut Option<Flight>,
    ) -> Result<(), StoreError> {
        let Some(Flight { launched_at, unread: 0, left }) = *flight else {
            return Err(StoreError::Lost("a PONG that was not asked for".into()));
        };
        if left > 0 {
            *flight = Some(Flight { launched_at, unread: 0, left: left - 1 });
            return self.ping().await;
        }
        *flight = None;
        tracked.metrics.barrier_seconds.observe(launched_at.elapsed().as_secs_f64());
        if tracked.rounds.is_up() {
            tracked.rounds.answered(tracked.since_origin_us(launched_at));
        } else {
            // It hung and is back. The news has come in its order all the while: what is kept is good.
            tracked.raise();
        }
        Ok(())
    }

    /// Begins a round if one is wanted and none is under way.
    async fn launch(
        &mut self,
        tracked: &Tracked,
        flight: &mut Option<Flight>,
    ) -> Result<(), StoreError> {
        if flight.is_some() {
            return Ok(());
        }
        if self.alone {
            // All that is ready now gets aboard: whoever has been answered leaves, and whoever has
            // come is read first. Where others work, too, it would only set them looking for work.
            yield_now().await;
        }
        if tracked.rounds.launch(&mut self.carried).is_some() {
            tracked.metrics.barrier_rounds.inc();
            self.question.keep_apt();
            let unread = self.pack_reads();
            *flight = Some(Flight { launched_at: Instant::now(), unread, left: self.pings - 1 });
            if unread == 0 {
                return self.ping().await;
            }
            self.reads.extend_from_slice(&self.question.bytes);
            self.stream.write_all(&self.reads).await.map_err(lost)?;
            self.stream.flush().await.map_err(lost)?;
        }
        Ok(())
    }

    /// Packs a read of each key that the round carries; how many that are. Any command that reads would
    /// do: this one is answered in a few bytes, and lookups need it anyway, so that no ACL forbids it. The
    /// server remembers names, whatever database is chosen.
    fn pack_reads(&mut self) -> usize {
        self.reads.clear();
        self.carried.sort_unstable_by(|one, other| one.main().cmp(other.main()));
        self.carried.dedup();
        for key in &self.carried {
            cmd("PEXPIRETIME").arg(key.main()).write_packed_command(&mut self.reads);
        }
        self.carried.len()
    }

    /// Into an empty socket buffer: with one outstanding at a time this does not wait.
    async fn ping(&mut self) -> Result<(), StoreError> {
        self.stream.write_all(&self.question.bytes).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }
}

/// Takes the answer to the next read that the round under way carries. A server that refuses one, as a
/// master of a cluster does whose slot is on its way, does not tell of that key: whoever is about to read
/// it does not keep what he reads.
fn take_read(tracked: &Tracked, carried: &[Key], read: &Value, flight: &mut Option<Flight>) {
    let Some(Flight { unread, .. }) = flight else { return };
    if !matches!(read, Value::Int(_))
        && let Some(key) = carried.len().checked_sub(*unread).and_then(|at| carried.get(at))
    {
        tracked.watcher.evict(key.main().as_bytes());
    }
    *unread -= 1;
}

/// Looks after a round that has not been answered; says when to look again.
fn look_after(tracked: &Tracked, flight: Option<&Flight>) -> Result<Instant, StoreError> {
    let Some(flight) = flight else { return Ok(Instant::now() + tracked.patience) };
    let waited = flight.launched_at.elapsed();
    if waited < tracked.patience {
        return Ok(flight.launched_at + tracked.patience);
    }
    if waited >= HUNG {
        return Err(StoreError::Timeout);
    }
    tracked.lower();
    Ok(flight.launched_at + HUNG)
}

/// Empties the layer in this process when the connection goes, however it goes.
struct Lost<'t>(&'t Tracked);

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.0.lower();
        self.0.flush();
    }
}

#[allow(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn lost(error: io::Error) -> StoreError {
    StoreError::Lost(error.to_string())
}
