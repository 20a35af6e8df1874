//! Finds the master through sentinels, and notices when the master changes.
//!
//! All known sentinels are asked at the same time, and the answer with the highest epoch counts.
//! After a failover the sentinel that led it knows first, and the others up to two seconds later; a
//! sentinel that was cut off names the deposed master until it hears of the new one. While a
//! session lasts, a connection to each sentinel is kept, and each is polled every [`POLL_EVERY`].
//! Events such as `+switch-master` come too late: they are published when the failover is over,
//! while the sentinel that leads it names the new master as soon as that is promoted.
//!
//! The sentinels are asked again when the master has answered for the first time: a master that
//! hung answers late, and may have been deposed meanwhile without knowing. The epoch under which it
//! is named then is part of the epoch of the store. A master that is deposed and promoted again,
//! before it has been made to follow the master in between, is the same server with the same
//! history, and still holds entries that were invalidated at the other master.
//!
//! An answer with a lower epoch than an earlier answer does not count: it comes from a sentinel
//! that has missed a failover. Only when the newest master has been lost for [`BEHIND`], and no
//! sentinel names it, are the sentinels taken for new ones; the entries of the master that they
//! name are then purged before use.
//!
//! If no sentinel can be reached, a session continues: other parts check that the master answers
//! and is a master. This module does not decide whether a server is fit to be the master.

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

use super::dial::{RedisAddress, RedisConnection, RedisLogin, Target, Tls};
use crate::{
    config::{Config, Sentinels},
    observe::throttle::Throttle,
    store::{
        errors::{StoreError, classify},
        words::Epoch,
    },
    tls::TlsMetrics,
};

/// Polling interval during a session. Together with [`PATIENCE`] it stays below the second that the
/// guarantee names.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Time limit for one sentinel to be connected to and to answer.
const PATIENCE: Duration = Duration::from_millis(400);
/// Number of polls between two discoveries of other sentinels.
const LEARN_EVERY: u32 = 40;
/// How long the newest master must be lost before sentinels with a lower epoch are trusted.
const BEHIND: Duration = Duration::from_secs(10);
/// Maximum number of known sentinels, far more than any deployment has.
const MAX_KNOWN: usize = 32;

type Seed = (String, u16);

/// The time for which a server is master: the config epoch of the sentinels in which it was
/// promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term(u64);

impl Term {
    /// The epoch of the data on a server in this term.
    pub(super) fn epoch(self, server: &Epoch) -> Epoch {
        Epoch(format!("{}-{}", server.as_str(), self.0).into())
    }
}

/// The known sentinels, and the logins there and at the master.
#[derive(Debug)]
pub(super) struct SentinelWatch {
    master: String,
    seeds: Vec<Seed>,
    /// Sentinels that are not seeds, as reported by other sentinels.
    learned: Mutex<Vec<Seed>>,
    newest: Mutex<Option<NewestReply>>,
    /// Set if the named master may hold entries that were invalidated at another master.
    is_behind: AtomicBool,
    at_sentinels: (Arc<RedisLogin>, Option<Arc<Tls>>),
    at_master: (Arc<RedisLogin>, Option<Arc<Tls>>),
    warnings: Throttle,
}

/// The reply of a sentinel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SentinelReply {
    /// Config epoch of the reply; the highest is the newest.
    epoch: u64,
    master: Seed,
}

/// The reply with the highest epoch.
#[derive(Clone, Debug)]
struct NewestReply {
    answer: SentinelReply,
    /// When it was last heard, or its master last known to be available.
    at: Instant,
}

/// State of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// Has a session with the master.
    Connected,
    /// Has no session.
    Searching,
}

/// Connections to sentinels that answer.
type SentinelConnections = HashMap<Seed, RedisConnection>;

/// Whether a sentinel is also asked for the other sentinels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Learn {
    Yes,
    No,
}

impl SentinelWatch {
    pub(super) fn new(
        sentinels: &Sentinels,
        config: &Config,
        metrics: &TlsMetrics,
    ) -> Result<Self, StoreError> {
        let at_sentinel = &config.store.sentinel;
        let is_tls = at_sentinel.tls.unwrap_or(sentinels.is_tls);
        let tls = Tls::new(is_tls || sentinels.is_tls, config, metrics)?;
        let login = if sentinels.login.is_some() { &sentinels.login } else { &config.store.login };
        let login = RedisLogin::new(login, sentinels.database.into());
        Ok(Self {
            master: sentinels.master.clone(),
            seeds: sentinels.hosts.clone(),
            learned: Mutex::default(),
            newest: Mutex::default(),
            is_behind: AtomicBool::new(false),
            at_sentinels: (
                Arc::new(RedisLogin::new(&at_sentinel.login, 0)),
                tls.clone().filter(|_| is_tls),
            ),
            at_master: (Arc::new(login), tls.filter(|_| sentinels.is_tls)),
            warnings: Throttle::default(),
        })
    }

    /// The master that the sentinels name. Its role is checked only after connecting to it.
    pub(super) async fn master(&self) -> Result<Target, StoreError> {
        let (answer, _) = self.ask_all(SentinelConnections::new(), Learn::Yes).await?;
        let (host, port) = self.observe(answer, Asker::Searching, Instant::now()).master;
        let (login, tls) = &self.at_master;
        Ok(Target::new(&host, port, Arc::clone(login), tls.clone()))
    }

    /// The term in which the sentinels name this master. Fails if they name another master by
    /// now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<Term, StoreError> {
        let (answer, _) = self.ask_all(SentinelConnections::new(), Learn::No).await?;
        let answer = self.observe(answer, Asker::Searching, Instant::now());
        if is_at(target, &answer.master).await {
            Ok(Term(answer.epoch))
        } else {
            Err(moved(target, &answer))
        }
    }

    /// Whether the master may hold entries that were invalidated at another master. Resets the
    /// flag.
    pub(super) fn take_behind(&self) -> bool {
        self.is_behind.swap(false, Ordering::Relaxed)
    }

    /// Compares an answer with earlier ones and returns the one that counts.
    fn observe(&self, answer: SentinelReply, asker: Asker, now: Instant) -> SentinelReply {
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
                "no sentinel names the newest master; an older one is used, and its entries are purged first"
            );
            self.is_behind.store(true, Ordering::Relaxed);
        }
        *newest = Some(NewestReply { answer: answer.clone(), at: now });
        answer
    }

    /// Returns once the sentinels name another master than `target`, or the same one in another
    /// term.
    pub(super) async fn moved(&self, target: &Target, Term(epoch): Term) -> StoreError {
        let mut polls = interval(POLL_EVERY);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connections = SentinelConnections::new();
        let mut round = 0_u32;
        loop {
            polls.tick().await;
            round = round.wrapping_add(1);
            let learn = if round.is_multiple_of(LEARN_EVERY) { Learn::Yes } else { Learn::No };
            match self.ask_all(std::mem::take(&mut connections), learn).await {
                Ok((answer, answering)) => {
                    let answer = self.observe(answer, Asker::Connected, Instant::now());
                    if answer.epoch != epoch || !is_at(target, &answer.master).await {
                        return moved(target, &answer);
                    }
                    connections = answering;
                }
                Err(error) => {
                    if let Some(suppressed) = self.warnings.admit(&error.to_string()) {
                        warn!(%error, suppressed, "no sentinel answers; a failover may go unnoticed");
                    }
                }
            }
        }
    }

    /// Asks all known sentinels. Returns the newest reply, and the connections that can be used
    /// again.
    async fn ask_all(
        &self,
        mut connections: SentinelConnections,
        learn: Learn,
    ) -> Result<(SentinelReply, SentinelConnections), StoreError> {
        let asked = join_all(self.known().into_iter().map(|seed| {
            let connection = connections.remove(&seed);
            async move {
                let asked = timeout(PATIENCE, self.ask(&seed, connection, learn)).await;
                (seed, asked.unwrap_or(Err(StoreError::Timeout)))
            }
        }));
        let mut newest: Option<SentinelReply> = None;
        let mut last = StoreError::Unusable("no sentinel is known".into());
        let mut answering = SentinelConnections::new();
        let mut reported = Vec::new();
        for (seed, asked) in asked.await {
            match asked {
                Ok((connection, answer, others)) => {
                    newest = newest.max(Some(answer));
                    reported.extend(others);
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
            self.learn(reported);
        }
        Ok((newest, answering))
    }

    async fn ask(
        &self,
        (host, port): &Seed,
        connection: Option<RedisConnection>,
        learn: Learn,
    ) -> Result<(RedisConnection, SentinelReply, Vec<Seed>), StoreError> {
        let (login, tls) = &self.at_sentinels;
        let target = Target::new(host, *port, Arc::clone(login), tls.clone());
        let mut connection = match connection {
            Some(connection) => connection,
            None => target.connect().await?,
        };
        let mut pipeline = redis::pipe();
        // The epoch first: if a failover ends between the commands, the new master is paired with
        // the old epoch, and the next poll notices.
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let (state, master): (HashMap<String, String>, Option<Seed>) =
            match pipeline.query_async(&mut connection.requests).await {
                Ok(reply) => reply,
                Err(error) => return Err(at(&target, target.explain_first_error(&error).await)),
            };
        let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let master = master.ok_or_else(|| {
            StoreError::Refused(format!(
                "the sentinel {target} does not know the master {:?}",
                self.master
            ))
        })?;
        let others =
            if learn == Learn::Yes { self.others(&mut connection).await? } else { Vec::new() };
        Ok((connection, SentinelReply { epoch, master }, others))
    }

    /// The other sentinels that this one knows of; none if it refuses to list them.
    async fn others(&self, connection: &mut RedisConnection) -> Result<Vec<Seed>, StoreError> {
        let mut others = redis::cmd("SENTINEL");
        others.arg("SENTINELS").arg(&self.master);
        let reply = others.query_async(&mut connection.requests).await;
        let reply: Vec<HashMap<String, String>> = match reply.map_err(|error| classify(&error)) {
            Ok(reply) => reply,
            Err(StoreError::Refused(error)) => {
                debug!(error, "a sentinel refuses to list the others");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let seed = |other: &HashMap<String, String>| {
            Some((other.get("ip")?.clone(), other.get("port")?.parse().ok()?))
        };
        Ok(reply.iter().filter_map(seed).collect())
    }

    fn known(&self) -> Vec<Seed> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        self.seeds.iter().chain(learned.iter()).cloned().collect()
    }

    /// Replaces the learned sentinels. Those that are no longer reported are dropped, so that the
    /// list stays short over years.
    fn learn(&self, mut reported: Vec<Seed>) {
        reported.sort_unstable();
        reported.dedup();
        reported.retain(|seed| !self.seeds.contains(seed));
        reported.truncate(MAX_KNOWN.saturating_sub(self.seeds.len()));
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if *learned != reported {
            debug!(told = ?reported, "sentinels that are not in the configuration");
            *learned = reported;
        }
    }
}

fn moved(
    from: &Target,
    SentinelReply { master: (host, port), epoch }: &SentinelReply,
) -> StoreError {
    info!(%from, to = %format!("{host}:{port}"), epoch, "the master has changed, or was promoted again");
    StoreError::Unusable("the sentinels name another master or epoch".into())
}

fn at(target: &Target, error: StoreError) -> StoreError {
    match error {
        StoreError::Refused(reason) => {
            StoreError::Refused(format!("the sentinel {target} says: {reason}"))
        }
        error => error,
    }
}

/// Whether two addresses are the same. One sentinel may announce a host name and another an IP
/// address.
async fn is_at(target: &Target, (host, port): &Seed) -> bool {
    let RedisAddress::Tcp(ours, our_port) = target.address() else { return false };
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
