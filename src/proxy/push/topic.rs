//! Topics: what the waiters of one job and one identity share with the driver that reads for them.
//!
//! Waiters ask for looks, and the driver answers all that were asked for before it began. What it
//! finds on its own goes to all waiters. The two have channels of their own, so that a waiter that
//! arrives does not wake the others.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::{StatusCode, http::request::Parts};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::{
    cache::{entry::Entry, flight::CoalesceKey},
    limits::{GaugeGuard, Permit},
    store::Key,
    transport::Peer,
};

/// Versions that are kept for waiters that are slow to take them, and the bytes of their bodies. The
/// last one is always kept.
const MAX_VERSIONS: usize = 8;
const MAX_BYTES: usize = 64 << 10;

/// Job and identity of a topic.
pub(super) type TopicName = (Key, CoalesceKey);

/// The client that a topic reads for: any of its waiters, because all are of one identity.
#[derive(Clone)]
pub(super) struct TopicReader {
    pub(super) head: Arc<Parts>,
    pub(super) peer: Peer,
}

/// One state of the job, as the identity of the topic sees it.
#[derive(Debug)]
pub(super) struct Version {
    /// Position among the versions of the topic, from 1.
    number: u64,
    pub(super) entry: Arc<Entry>,
    /// Hash of status and body.
    pub(super) body_hash: u128,
    pub(super) source: VersionSource,
    /// When the news came that led to this version.
    pub(super) news_at: Option<Instant>,
}

/// Where a version came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VersionSource {
    Cache,
    Upstream,
}

impl Version {
    /// Whether an entry has the same status and body.
    pub(super) fn has_body_of(&self, entry: &Entry) -> bool {
        self.body_hash == body_hash(entry)
    }

    /// Whether an entry is the same state of the job.
    fn is_same(&self, entry: &Entry) -> bool {
        self.has_body_of(entry) && self.entry.etag() == entry.etag()
    }
}

fn body_hash(entry: &Entry) -> u128 {
    xxh3_128_with_seed(entry.body(), entry.status().as_u16().into())
}

/// How a read that asks for push goes on if push does not answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Unpushed {
    /// Like any other read: no version can be shared, or a drain has begun.
    Ordinary,
    /// Past the cache: the upstream has just refused the job to this identity.
    Refused,
}

/// Versions that a look accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// All that an ordinary read may get.
    Entries,
    /// Only responses of the upstream to a request that began after the look was asked for.
    Confirmed,
}

/// News for a waiter.
#[derive(Debug)]
pub(super) enum Update {
    Version(Arc<Version>),
    /// The upstream no longer gives the job to this identity.
    Refused(StatusCode),
    /// The topic has ended: a drain has begun, or other routes are in force.
    Over,
}

/// The updates of a topic.
#[derive(Debug, Default)]
struct Updates {
    /// The last versions, the oldest first.
    versions: VecDeque<Arc<Version>>,
    refused: Option<StatusCode>,
    is_over: bool,
}

impl Updates {
    fn forget_oldest(&mut self) {
        let bytes = |version: &Arc<Version>| version.entry.body().len();
        let mut total: usize = self.versions.iter().map(bytes).sum();
        while self.versions.len() > 1 && (self.versions.len() > MAX_VERSIONS || total > MAX_BYTES) {
            total -= self.versions.pop_front().as_ref().map_or(0, bytes);
        }
    }
}

/// The looks that have ended, and what the last one found.
#[derive(Debug, Default)]
struct Looks {
    ended: u64,
    found: Option<Arc<Version>>,
}

/// Numbers of the last look that was asked for, and of the last one that accepts no entry as it is.
#[derive(Clone, Copy, Debug, Default)]
struct AskedLooks {
    last: u64,
    confirmed: u64,
}

/// The waiters of one job and one identity, as their driver and they themselves see them.
pub(super) struct Topic {
    waiters: AtomicUsize,
    asked: Mutex<AskedLooks>,
    wake: Notify,
    looks: watch::Sender<Looks>,
    updates: watch::Sender<Updates>,
    reader: Mutex<TopicReader>,
    _counted: GaugeGuard,
}

impl Topic {
    /// `counted` counts the topic as long as it lives.
    pub(super) fn new(reader: TopicReader, counted: GaugeGuard) -> Self {
        Self {
            waiters: AtomicUsize::new(0),
            asked: Mutex::default(),
            wake: Notify::new(),
            looks: watch::Sender::default(),
            updates: watch::Sender::default(),
            reader: Mutex::new(reader),
            _counted: counted,
        }
    }

    /// Reads in the name of this client from now on. The last one to come has the credential that was
    /// proven last.
    pub(super) fn set_reader(&self, reader: TopicReader) {
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    pub(super) fn reader(&self) -> TopicReader {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Acquire) > 0
    }

    /// Waits until a look is asked for, or a waiter leaves.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Returns the number of the last look that was asked for, unless that one has ended.
    pub(super) fn asked(&self) -> Option<u64> {
        let asked = self.asked_looks().last;
        (asked > self.looks.borrow().ended).then_some(asked)
    }

    /// Asks for a look, and returns its number.
    fn ask(&self, accepts: Accepts) -> u64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.last += 1;
        if accepts == Accepts::Confirmed {
            asked.confirmed = asked.last;
        }
        asked.last
    }

    fn asked_looks(&self) -> AskedLooks {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the versions that all looks accept that have not ended.
    pub(super) fn accepts(&self) -> Accepts {
        let is_over = self.asked_looks().confirmed <= self.looks.borrow().ended;
        if is_over { Accepts::Entries } else { Accepts::Confirmed }
    }

    /// Answers all looks up to a number.
    pub(super) fn end_looks(&self, number: u64, found: Option<Arc<Version>>) {
        self.looks.send_replace(Looks { ended: number, found });
    }

    /// Returns the last version, unless the job was refused since.
    pub(super) fn last(&self) -> Option<Arc<Version>> {
        let updates = self.updates.borrow();
        updates.versions.back().filter(|_| updates.refused.is_none()).cloned()
    }

    /// Publishes what a read has found, and returns it as a version. It is an old one if it does not
    /// differ.
    pub(super) fn publish(
        &self,
        entry: Arc<Entry>,
        source: VersionSource,
        news_at: Option<Instant>,
    ) -> Arc<Version> {
        let (last, is_refused) = {
            let updates = self.updates.borrow();
            (updates.versions.back().cloned(), updates.refused.is_some())
        };
        let is_new = is_refused || last.as_ref().is_none_or(|last| !last.is_same(&entry));
        let number = last.map_or(0, |last| last.number) + u64::from(is_new);
        let body_hash = body_hash(&entry);
        let version = Arc::new(Version { number, entry, body_hash, source, news_at });
        let published = Arc::clone(&version);
        self.updates.send_if_modified(|updates| {
            if !is_new {
                // The entry that was read last has the current age.
                updates.versions.pop_back();
            }
            updates.versions.push_back(published);
            updates.forget_oldest();
            updates.refused = None;
            is_new
        });
        version
    }

    /// Tells the waiters that the upstream refuses the job.
    pub(super) fn refuse(&self, status: StatusCode) {
        self.updates.send_modify(|updates| updates.refused = Some(status));
    }

    /// Tells the waiters that no more will follow.
    pub(super) fn end(&self) {
        self.updates.send_modify(|updates| updates.is_over = true);
        self.looks.send_replace(Looks { ended: u64::MAX, found: None });
    }
}

/// A client that waits.
pub(super) struct Waiter {
    topic: Arc<Topic>,
    updates: watch::Receiver<Updates>,
    /// Number of the last version that was taken.
    seen: u64,
    #[expect(dead_code, reason = "held, not read")]
    permit: Permit,
}

impl Waiter {
    /// Joins a topic, under the lock of the topics: a topic without waiters is forgotten.
    pub(super) fn new(topic: &Arc<Topic>, permit: Permit) -> Self {
        topic.waiters.fetch_add(1, Ordering::AcqRel);
        let topic = Arc::clone(topic);
        Self { updates: topic.updates.subscribe(), topic, seen: u64::MAX, permit }
    }

    /// Asks for a read that begins after now, and returns what it finds; `None` if that cannot be
    /// shared. Everything found after that is an [`Update`].
    pub(super) async fn look(&mut self, accepts: Accepts) -> Option<Arc<Version>> {
        let mut looks = self.topic.looks.subscribe();
        let number = self.topic.ask(accepts);
        self.topic.wake.notify_one();
        let found = looks.wait_for(|looks| looks.ended >= number).await.ok()?.found.clone()?;
        self.seen = found.number;
        Some(found)
    }

    /// Waits for the next update after the last look or update.
    pub(super) async fn next(&mut self) -> Update {
        let seen = self.seen;
        let is_news = |updates: &Updates| {
            updates.is_over
                || updates.refused.is_some()
                || updates.versions.back().is_some_and(|last| last.number > seen)
        };
        let Ok(updates) = self.updates.wait_for(is_news).await else { return Update::Over };
        let next = updates.versions.iter().find(|version| version.number > seen);
        match (next, updates.refused) {
            (Some(next), _) => {
                self.seen = next.number;
                Update::Version(Arc::clone(next))
            }
            (None, Some(status)) => Update::Refused(status),
            (None, None) => Update::Over,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.topic.waiters.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.topic.wake.notify_one();
        }
    }
}
