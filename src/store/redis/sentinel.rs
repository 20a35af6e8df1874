//! Sentinels: who is asked where the master is, and who tells that it is another one.
//!
//! All that are known are asked at a time, and the answer of the highest epoch counts: after a failover
//! the sentinel that led it knows first, the others up to two seconds later, and one that was cut off
//! goes on naming the deposed master until it hears of the new one. A connection to each is kept while a
//! session lasts, and each is asked every [`POLL_EVERY`]: an event such as `+switch-master` is
//! published only when the failover is over, while the one who leads it names the new master as soon as
//! that has been promoted.
//!
//! They are asked again when the master has answered for the first time: one that hung answers late, and
//! may have been deposed meanwhile without knowing. The epoch under which it is named then is part of the
//! epoch of the store: a master that was deposed and is promoted again, before anybody had it follow the
//! one in between, is the same server with the same history, and holds what was invalidated there.
//!
//! No answer of a lower epoch than one that was heard before counts: it is that of a sentinel which has
//! missed a failover. Only when the newest master has been lost for [`BEHIND`], and nobody else is
//! named, are the sentinels taken for new ones; what their master holds is then purged before it is used.
//!
//! With no sentinel to be reached a session goes on: that the master answers, and is one, is watched
//! elsewhere. It does not decide whether a server is fit to be a master's.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    net::lookup_host,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, info, warn};

use super::{
    connect::{Connection, Login, Place, Target, Tls},
    session::classify,
};
use crate::{
    config::{Config, Sentinels},
    metrics::Metrics,
    store::StoreError,
    throttle::Throttle,
};

/// Between two looks while a session lasts. With [`PATIENCE`] below the second that the guarantee names.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// For one sentinel to be connected to and to answer.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two looks at which other sentinels there are, in polls.
const LEARN_EVERY: u32 = 40;
/// For which nobody may have heard of the newest master before those count who have not either.
const BEHIND: Duration = Duration::from_secs(10);
/// Sentinels that are kept in mind; nobody has as many.
const MAX_KNOWN: usize = 32;

type Seed = (String, u16);

/// What is known of the sentinels, and how to speak to them and to the master.
#[derive(Debug)]
pub(super) struct Watch {
    master: String,
    seeds: Vec<Seed>,
    /// Beside the seeds: those that a sentinel has told of.
    learned: Mutex<Vec<Seed>>,
    newest: Mutex<Option<Newest>>,
    /// The master that is named may hold what was invalidated at another.
    is_behind: AtomicBool,
    at_sentinels: (Arc<Login>, Option<Arc<Tls>>),
    at_master: (Arc<Login>, Option<Arc<Tls>>),
    warnings: Throttle,
}

/// What a sentinel says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    /// Of the configuration that it goes by: the highest is the newest.
    epoch: u64,
    master: Seed,
}

/// The answer of the highest epoch.
#[derive(Clone, Debug)]
struct Newest {
    answer: Answer,
    /// When it was heard last, or its master was known to be there.
    at: Instant,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// Has a session with the master.
    Connected,
    /// Has none.
    Searching,
}

/// Connections to sentinels that answer.
type Kept = HashMap<Seed, Connection>;

/// Whether the other sentinels are asked for as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learn {
    Yes,
    No,
}

impl Watch {
    pub(super) fn new(
        sentinels: &Sentinels,
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let at_sentinel = &config.store.sentinel;
        let is_tls = at_sentinel.tls.unwrap_or(sentinels.is_tls);
        let tls = (is_tls || sentinels.is_tls).then(|| Tls::new(config, metrics)).transpose();
        let tls = tls.map_err(|error| StoreError::Tls(error.to_string()))?;
        let login = if sentinels.login.is_some() { &sentinels.login } else { &config.store.login };
        let login = Login::new(login, sentinels.database.into());
        Ok(Self {
            master: sentinels.master.clone(),
            seeds: sentinels.hosts.clone(),
            learned: Mutex::default(),
            newest: Mutex::default(),
            is_behind: AtomicBool::new(false),
            at_sentinels: (
                Arc::new(Login::new(&at_sentinel.login, 0)),
                tls.clone().filter(|_| is_tls),
            ),
            at_master: (Arc::new(login), tls.filter(|_| sentinels.is_tls)),
            warnings: Throttle::default(),
        })
    }

    /// Where the sentinels say that the master is. Whether it is one shows when it is connected to.
    pub(super) async fn master(&self) -> Result<Target, StoreError> {
        let (answer, _) = self.ask_all(Kept::new(), Learn::Yes).await?;
        let (host, port) = self.heed(answer, Asker::Searching, Instant::now()).master;
        let (login, tls) = &self.at_master;
        Ok(Target::new(&host, port, Arc::clone(login), tls.clone()))
    }

    /// The epoch under which they name this master; fails if they name another by now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<u64, StoreError> {
        let (answer, _) = self.ask_all(Kept::new(), Learn::No).await?;
        let answer = self.heed(answer, Asker::Searching, Instant::now());
        if is_at(target, &answer.master).await {
            Ok(answer.epoch)
        } else {
            Err(moved(target, &answer))
        }
    }

    /// Whether the master may hold what was invalidated at another; asked once.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind.swap(false, Ordering::Relaxed)
    }

    /// What an answer comes to, in the light of those before it.
    fn heed(&self, answer: Answer, asker: Asker, now: Instant) -> Answer {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = newest.as_mut().filter(|known| answer.epoch < known.answer.epoch) {
            if asker == Asker::Connected {
                known.at = now;
            }
            if now.duration_since(known.at) <= BEHIND {
                return known.answer.clone();
            }
            let (host, port) = &answer.master;
            warn!(
                master = %format!("{host}:{port}"), epoch = answer.epoch, known = known.answer.epoch,
                "the sentinels know of no later master; all that it holds is purged"
            );
            self.is_behind.store(true, Ordering::Relaxed);
        }
        *newest = Some(Newest { answer: answer.clone(), at: now });
        answer
    }

    /// Returns once they name another master than `target`, or the same under a later epoch.
    pub(super) async fn moved(&self, target: &Target, epoch: u64) -> StoreError {
        let mut polls = interval(POLL_EVERY);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept = Kept::new();
        let mut round = 0_u32;
        loop {
            polls.tick().await;
            round = round.wrapping_add(1);
            let learn = if round.is_multiple_of(LEARN_EVERY) { Learn::Yes } else { Learn::No };
            match self.ask_all(std::mem::take(&mut kept), learn).await {
                Ok((answer, answering)) => {
                    let answer = self.heed(answer, Asker::Connected, Instant::now());
                    if answer.epoch != epoch || !is_at(target, &answer.master).await {
                        return moved(target, &answer);
                    }
                    kept = answering;
                }
                Err(error) => {
                    if let Some(suppressed) = self.warnings.admit(&error.to_string()) {
                        warn!(%error, suppressed, "no sentinel answers; a failover may go unnoticed");
                    }
                }
            }
        }
    }

    /// Asks all that are known, and gives the newest answer and the connections that can be used again.
    async fn ask_all(&self, mut kept: Kept, learn: Learn) -> Result<(Answer, Kept), StoreError> {
        let asked = join_all(self.known().into_iter().map(|seed| {
            let connection = kept.remove(&seed);
            async move {
                let asked = timeout(PATIENCE, self.ask(&seed, connection, learn)).await;
                (seed, asked.unwrap_or(Err(StoreError::Timeout)))
            }
        }));
        let mut newest: Option<Answer> = None;
        let mut last = StoreError::Lost("no sentinel is known".into());
        let (mut answering, mut told) = (Kept::new(), Vec::new());
        for (seed, asked) in asked.await {
            match asked {
                Ok((connection, answer, others)) => {
                    newest = newest.max(Some(answer));
                    told.extend(others);
                    answering.insert(seed, connection);
                }
                Err(error) => {
                    debug!(%error, host = seed.0, port = seed.1, "a sentinel does not answer");
                    last = error;
                }
            }
        }
        let Some(newest) = newest else { return Err(last) };
        if learn == Learn::Yes {
            self.learn(told);
        }
        Ok((newest, answering))
    }

    async fn ask(
        &self,
        (host, port): &Seed,
        connection: Option<Connection>,
        learn: Learn,
    ) -> Result<(Connection, Answer, Vec<Seed>), StoreError> {
        let (login, tls) = &self.at_sentinels;
        let target = Target::new(host, *port, Arc::clone(login), tls.clone());
        let mut connection = match connection {
            Some(connection) => connection,
            None => target.connect().await?,
        };
        let mut pipeline = redis::pipe();
        // The epoch first: should a failover end in between, the new master counts for the old epoch.
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let (state, master): (HashMap<String, String>, Option<Seed>) =
            match pipeline.query_async(&mut connection.requests).await {
                Ok(told) => told,
                Err(error) => return Err(at(&target, target.first(&error).await)),
            };
        let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let master = master.ok_or_else(|| {
            StoreError::Refused(format!("the sentinel {target} knows no master {:?}", self.master))
        })?;
        let others =
            if learn == Learn::Yes { self.others(&mut connection).await? } else { Vec::new() };
        Ok((connection, Answer { epoch, master }, others))
    }

    /// Which sentinels this one knows of. One that may not tell has no others.
    async fn others(&self, connection: &mut Connection) -> Result<Vec<Seed>, StoreError> {
        let mut others = redis::cmd("SENTINEL");
        others.arg("SENTINELS").arg(&self.master);
        let told = others.query_async(&mut connection.requests).await;
        let told: Vec<HashMap<String, String>> = match told.map_err(|error| classify(&error)) {
            Ok(told) => told,
            Err(StoreError::Refused(error)) => {
                debug!(error, "a sentinel does not tell of the others");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let seed = |other: &HashMap<String, String>| {
            Some((other.get("ip")?.clone(), other.get("port")?.parse().ok()?))
        };
        Ok(told.iter().filter_map(seed).collect())
    }

    fn known(&self) -> Vec<Seed> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        self.seeds.iter().chain(learned.iter()).cloned().collect()
    }

    /// Those that nobody tells of any more are forgotten, so that it may go on for years.
    fn learn(&self, mut told: Vec<Seed>) {
        told.sort_unstable();
        told.dedup();
        told.retain(|seed| !self.seeds.contains(seed));
        told.truncate(MAX_KNOWN.saturating_sub(self.seeds.len()));
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if *learned != told {
            debug!(?told, "sentinels beside those that were configured");
            *learned = told;
        }
    }
}

fn moved(from: &Target, Answer { master: (host, port), epoch }: &Answer) -> StoreError {
    info!(%from, to = %format!("{host}:{port}"), epoch, "the master is another, or made one anew");
    StoreError::Lost("the sentinels name another master".into())
}

fn at(target: &Target, error: StoreError) -> StoreError {
    match error {
        StoreError::Refused(why) => {
            StoreError::Refused(format!("the sentinel {target} says: {why}"))
        }
        error => error,
    }
}

/// Whether the two are one address. One sentinel may announce a name and another an address.
async fn is_at(target: &Target, (host, port): &Seed) -> bool {
    let Place::Tcp(ours, our_port) = target.place() else { return false };
    if our_port != port {
        return false;
    }
    if ours == host {
        return true;
    }
    let addresses = |host: String| async move {
        let found = timeout(PATIENCE, lookup_host((host, 0))).await;
        found.ok().and_then(Result::ok).map(Iterator::collect::<Vec<_>>).unwrap_or_default()
    };
    let (ours, theirs) = (addresses(ours.clone()).await, addresses(host.clone()).await);
    ours.iter().any(|address| theirs.contains(address))
}
