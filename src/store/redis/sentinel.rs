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
        Mutex, PoisonError,
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

use super::dial::{RedisAddress, RedisConnection, Target, Tls};
use crate::{
    config::{Config, Sentinels},
    observe::throttle::Throttle,
    store::{
        Diagnosis, NodeAddress, StoreError,
        errors::{Result, StoreErrorKind},
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

/// The known sentinels, and the logins there and at the master.
#[derive(Debug)]
pub(super) struct SentinelWatch {
    master: String,
    seeds: Vec<NodeAddress>,
    /// Sentinels that are not seeds, as reported by other sentinels.
    learned: Mutex<Vec<NodeAddress>>,
    /// The reply with the highest epoch, and when it was last heard, or its master last known to be
    /// available.
    newest: Mutex<Option<(SentinelReply, Instant)>>,
    /// Set if the named master may hold entries that were invalidated at another master.
    pub(super) is_behind: AtomicBool,
    at_sentinels: Target,
    at_master: Target,
    warnings: Throttle,
}

/// The reply of a sentinel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct SentinelReply {
    /// Config epoch of the reply; the highest is the newest.
    epoch: u64,
    master: NodeAddress,
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
type SentinelConnections = HashMap<NodeAddress, RedisConnection>;

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
    ) -> Result<Self> {
        let at_sentinel = &config.store.sentinel;
        let is_tls = at_sentinel.tls.unwrap_or(sentinels.is_tls);
        let tls = Tls::new(is_tls || sentinels.is_tls, config, metrics)?;
        let login = if sentinels.login.is_some() { &sentinels.login } else { &config.store.login };
        let seed = |(host, port): &(String, u16)| NodeAddress::new(host, *port);
        let at_sentinels = Target::anywhere(&at_sentinel.login, 0, tls.clone().filter(|_| is_tls));
        let tls = tls.filter(|_| sentinels.is_tls);
        Ok(Self {
            master: sentinels.master.clone(),
            seeds: sentinels.hosts.iter().map(seed).collect(),
            learned: Mutex::default(),
            newest: Mutex::default(),
            is_behind: AtomicBool::new(false),
            at_sentinels,
            at_master: Target::anywhere(login, sentinels.database.into(), tls).named(config),
            warnings: Throttle::default(),
        })
    }

    /// The master that the sentinels name. Its role is checked only after connecting to it.
    pub(super) async fn master(&self) -> Result<Target> {
        let (answer, _) = self.ask_all(SentinelConnections::new(), Learn::Yes).await?;
        let answer = self.observe(answer, Asker::Searching, Instant::now());
        Ok(self.at_master.at(&answer.master))
    }

    /// The config epoch in which the sentinels name this master. Fails if they name another master
    /// by now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<u64> {
        let (answer, _) = self.ask_all(SentinelConnections::new(), Learn::No).await?;
        let answer = self.observe(answer, Asker::Searching, Instant::now());
        if is_at(target, &answer.master).await {
            Ok(answer.epoch)
        } else {
            Err(moved(target, &answer))
        }
    }

    /// Compares an answer with earlier ones and returns the one that counts.
    fn observe(&self, answer: SentinelReply, asker: Asker, now: Instant) -> SentinelReply {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, at)) = newest.as_mut().filter(|(known, _)| answer.epoch < known.epoch) {
            if asker == Asker::Connected {
                *at = now;
            }
            if now.duration_since(*at) <= BEHIND {
                return known.clone();
            }
            warn!(
                master = %answer.master, epoch = answer.epoch, known = known.epoch,
                "no sentinel names the newest master; an older one is used, and its entries are purged first"
            );
            self.is_behind.store(true, Ordering::Relaxed);
        }
        *newest = Some((answer.clone(), now));
        answer
    }

    /// Returns once the sentinels name another master than `target`, or the same one in another
    /// epoch.
    pub(super) async fn moved(&self, target: &Target, epoch: u64) -> StoreError {
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
    ) -> Result<(SentinelReply, SentinelConnections)> {
        let asked = join_all(self.known().into_iter().map(|seed| {
            let connection = connections.remove(&seed);
            async move {
                let asked = timeout(PATIENCE, self.ask(&seed, connection, learn)).await;
                let asked = asked.unwrap_or(Err(StoreError::Timeout));
                let asked = asked.map_err(|error| error.while_connecting(&seed, PATIENCE));
                (seed, asked)
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
                    debug!(%error, host = &*seed.host, port = seed.port, "a sentinel does not answer");
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
        sentinel: &NodeAddress,
        connection: Option<RedisConnection>,
        learn: Learn,
    ) -> Result<(RedisConnection, SentinelReply, Vec<NodeAddress>)> {
        let target = self.at_sentinels.at(sentinel);
        let mut connection = match connection {
            Some(connection) => connection,
            None => target.connect().await.map_err(|error| at(&target, error))?,
        };
        let mut pipeline = redis::pipe();
        // The epoch first: if a failover ends between the commands, the new master is paired with
        // the old epoch, and the next poll notices.
        pipeline.cmd("SENTINEL").arg("MASTER").arg(&self.master);
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        let reply = pipeline.query_async(&mut connection.requests).await;
        let (state, master): (HashMap<String, String>, Option<(String, u16)>) =
            target.first_reply(reply).await.map_err(|error| at(&target, error))?;
        let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        let (host, port) = master.ok_or_else(|| {
            StoreError::Refused(format!(
                "the sentinel {target} does not know the master {:?}",
                self.master
            ))
        })?;
        let others =
            if learn == Learn::Yes { self.others(&mut connection).await? } else { Vec::new() };
        let master = NodeAddress::new(&host, port);
        Ok((connection, SentinelReply { epoch, master }, others))
    }

    /// The other sentinels that this one knows of; none if it refuses to list them.
    async fn others(&self, connection: &mut RedisConnection) -> Result<Vec<NodeAddress>> {
        let mut others = redis::cmd("SENTINEL");
        others.arg("SENTINELS").arg(&self.master);
        let reply = others.query_async(&mut connection.requests).await;
        let reply: Vec<HashMap<String, String>> = match reply.map_err(StoreError::from) {
            Ok(reply) => reply,
            Err(error) if error.kind() == StoreErrorKind::Refused => {
                debug!(%error, "a sentinel refuses to list the others");
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        let seed = |other: &HashMap<String, String>| {
            Some(NodeAddress::new(other.get("ip")?, other.get("port")?.parse().ok()?))
        };
        Ok(reply.iter().filter_map(seed).collect())
    }

    fn known(&self) -> Vec<NodeAddress> {
        let learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        self.seeds.iter().chain(learned.iter()).cloned().collect()
    }

    /// Replaces the learned sentinels. Those that are no longer reported are dropped, so that the
    /// list stays short over years.
    fn learn(&self, mut reported: Vec<NodeAddress>) {
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

fn moved(from: &Target, SentinelReply { master, epoch }: &SentinelReply) -> StoreError {
    info!(%from, to = %master, epoch, "the master has changed, or was promoted again");
    StoreError::Unusable("the sentinels name another master or epoch".into())
}

/// Says which sentinel it was, and gives the remedies of sentinels.
fn at(target: &Target, error: StoreError) -> StoreError {
    let words = |said: String| format!("the sentinel {target} says: {said}");
    match error {
        StoreError::Refused(said) => StoreError::Refused(words(said)),
        // The second look has found a sentinel that answers.
        StoreError::Denied(Diagnosis::Sentinel, _) => {
            StoreError::Lost(format!("the sentinel {target} closed the connection"))
        }
        StoreError::Denied(diagnosis, said) if !diagnosis.is_unreachable() => {
            let diagnosis = match diagnosis {
                Diagnosis::NoLogin | Diagnosis::WrongLogin | Diagnosis::NoPassword => {
                    Diagnosis::SentinelLogin
                }
                Diagnosis::UnknownCommand => Diagnosis::NoSentinel,
                other => other,
            };
            StoreError::Denied(diagnosis, words(said))
        }
        error => error,
    }
}

/// Whether two addresses are the same. One sentinel may announce a host name and another an IP
/// address.
async fn is_at(target: &Target, theirs: &NodeAddress) -> bool {
    let RedisAddress::Tcp(ours) = &target.address else { return false };
    if ours == theirs || ours.port != theirs.port {
        return ours == theirs;
    }
    let addresses = async |host: &str| {
        let found = timeout(PATIENCE, lookup_host((host, 0))).await;
        found.ok().and_then(Result::ok).map(Iterator::collect::<Vec<_>>).unwrap_or_default()
    };
    let (ours, theirs) = (addresses(&ours.host).await, addresses(&theirs.host).await);
    ours.iter().any(|address| theirs.contains(address))
}
