//! What happened lately, to each job and to the process as a whole.
//!
//! Metrics count and the log tells of faults; neither can say why a job is not cached. So the last
//! events of each job are kept here for `/explain`, and all are told to whoever listens to `/events`.
//!
//! A hit must cost nothing. So hits are sampled, one in so many that about 1,000 a second are
//! looked at: what is none costs a random number, and nothing is locked or allocated for it. As many
//! as there are up to that are all counted. Whatever is no hit has asked Redis or the upstream, beside
//! which a lock is nothing.
//!
//! Nothing here is durable, exact or secret. What is kept is bounded in [`jobs`], what waits for a
//! listener in [`feed`]. No body, header, query or credential is ever given to it: an event is made of
//! a job's id, words of ours, and who asked for a purge.

pub mod feed;
pub mod jobs;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use self::{
    feed::{Event, Feed, Listener},
    jobs::{Busy, Happening, Jobs, Past},
};
use crate::clock;

/// Hits that are looked at in a second, about.
const SAMPLES: u64 = 1_000;
/// Jobs of one purge or write that the feed tells of one by one; of more it tells the number.
const TOLD_EACH: usize = 10;
/// Jobs of one purge or write that are remembered if they were not known: more would push out the rest.
const KNOWN_ONLY: usize = jobs::JOBS / 8;
/// How long news of a change may come after we have asked for it, and still be ours.
const OURS_FOR_MS: i64 = 1_000;
/// The same for a purge of all, which the store walks through in steps.
const ALL_OURS_FOR_MS: i64 = 30_000;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A request was answered from the cache.
    Hit,
    /// A request was answered by a read of the upstream, for everybody who waited.
    Miss,
    /// A request went past the cache.
    Pass,
    /// A request was answered by jobcache itself, with an error.
    Error,
    /// An answer was stored.
    Fill,
    /// An answer was not stored.
    FillRefused,
    /// Another client was let in to the entry, as the upstream gave it the same.
    Admitted,
    /// The entry was replaced: the upstream gave a client something else.
    Replaced,
    /// A write through this sidecar began.
    Write,
    /// A write through this sidecar has ended.
    WriteEnded,
    /// It was purged on request.
    Purge,
    /// Every job was purged.
    PurgeAll,
    /// Another sidecar or a third party has changed it in Redis.
    Changed,
    /// All keys have left Redis at once.
    Flushed,
    /// It left this process for want of room.
    Evicted,
    /// An invalidation that was pending is confirmed.
    Confirmed,
    /// The store is trusted: the breaker is closed.
    StoreUp,
    /// The store is not trusted: the breaker is open.
    StoreDown,
    /// Changes in the store are tracked.
    TrackingUp,
    /// They are not, and each hit asks the store.
    TrackingDown,
    /// The upstream answers.
    UpstreamUp,
    /// It does not.
    UpstreamDown,
}

impl What {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Pass => "pass",
            Self::Error => "error",
            Self::Fill => "fill",
            Self::FillRefused => "fill-refused",
            Self::Admitted => "admitted",
            Self::Replaced => "replaced",
            Self::Write => "write",
            Self::WriteEnded => "write-ended",
            Self::Purge => "purge",
            Self::PurgeAll => "purge-all",
            Self::Changed => "changed",
            Self::Flushed => "flushed",
            Self::Evicted => "evicted",
            Self::Confirmed => "confirmed",
            Self::StoreUp => "store-up",
            Self::StoreDown => "store-down",
            Self::TrackingUp => "tracking-up",
            Self::TrackingDown => "tracking-down",
            Self::UpstreamUp => "upstream-up",
            Self::UpstreamDown => "upstream-down",
        }
    }

    /// Whether the last one of it is remembered longer than what came after: without it nobody could
    /// tell that a job was changed and we were told, or why its answers are not stored.
    fn is_kept(self) -> bool {
        use What::{Changed, FillRefused, Purge, Write, WriteEnded};
        matches!(self, Changed | FillRefused | Purge | Write | WriteEnded)
    }

    /// Whether the store sends news of it, which may come later than we tell of it.
    fn changes_the_key(self) -> bool {
        use What::{Confirmed, Fill, Purge, Replaced, Write, WriteEnded};
        matches!(self, Confirmed | Fill | Purge | Replaced | Write | WriteEnded)
    }
}

/// Whoever caused an event, in words of ours.
pub type By = Option<Arc<str>>;

/// A hit that is looked at.
#[derive(Debug)]
pub struct Sample {
    /// How many hits it stands for.
    weight: u32,
    started: Instant,
}

impl Sample {
    /// How long its request has been here.
    pub fn took(&self) -> Duration {
        self.started.elapsed()
    }

    /// How many hits it stands for.
    pub fn weight(&self) -> u64 {
        u64::from(self.weight)
    }
}

/// What was expected of a key, and what had been before.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    until_ms: i64,
    before_ms: i64,
}

/// What happened lately.
#[derive(Default)]
pub struct Events {
    /// What stands before an id in the name of its key.
    prefix: OnceLock<Box<str>>,
    jobs: Mutex<Jobs>,
    feed: Feed,
    /// One hit in so many is looked at; 0 counts as 1.
    one_in: AtomicU32,
    /// Until when all news is of what we did ourselves.
    all_ours_until_ms: AtomicI64,
}

impl Events {
    /// Says what stands before an id in the name of its key, once.
    pub fn strip(&self, prefix: &str) {
        let _ = self.prefix.set(prefix.into());
    }

    /// Decides when a request comes whether it is looked at, should it be a hit.
    pub fn sample(&self) -> Option<Sample> {
        let one_in = self.one_in.load(Ordering::Relaxed);
        if one_in > 1 && fastrand::u32(..one_in) != 0 {
            return None;
        }
        Some(Sample { weight: one_in.max(1), started: Instant::now() })
    }

    /// So many hits came in the last second.
    pub(crate) fn pace(&self, hits: u64) {
        let one_in = u32::try_from(hits / SAMPLES).unwrap_or(u32::MAX).max(1);
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    /// A request for a job was answered. Listeners are told how many there were in each second.
    pub fn answered(&self, key: &str, what: What, why: &'static str, times: u64) {
        let now_ms = now_ms();
        self.jobs().request(key, Happening::new(what, why, None, now_ms), times);
    }

    /// Something else happened to a job.
    pub fn tell(&self, key: &str, what: What, why: &'static str) {
        self.tell_each([key].into_iter(), what, why, None);
    }

    /// The same to some jobs at once.
    pub fn tell_each<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k str>,
        what: What,
        why: &'static str,
        by: By,
    ) {
        let (now_ms, count) = (now_ms(), keys.len());
        let mut jobs = self.jobs();
        for key in keys {
            if count <= KNOWN_ONLY || jobs.knows(key) {
                jobs.happened(key, Happening::new(what, why, by.clone(), now_ms));
            }
            if what.changes_the_key() {
                jobs.ours_until(key, now_ms + OURS_FOR_MS);
            }
            if count <= TOLD_EACH {
                let job = Some(self.id(key).into());
                self.feed.tell(Event::new(what, why, by.clone(), now_ms).of(job, 1));
            }
        }
        if count > TOLD_EACH {
            self.feed.tell(Event::new(what, why, by, now_ms).of(None, count));
        }
    }

    /// Something happened to every job, or to the process.
    pub fn tell_all(&self, what: What, why: &'static str, by: By) {
        let now_ms = now_ms();
        let mut jobs = self.jobs();
        if what == What::PurgeAll {
            jobs.all_purged(Happening::new(what, why, by.clone(), now_ms));
        }
        self.feed.tell(Event::new(what, why, by, now_ms));
    }

    /// Something of ours went up or down, as a gauge tells that had this value before.
    pub fn turned(&self, before: i64, now: i64, (up, down): (What, What)) {
        if before != now {
            self.tell_all(if now == 1 { up } else { down }, "", None);
        }
    }

    /// We are about to change a key in the store: news of that is no news.
    pub fn expect(&self, key: &str) -> Expected {
        let until_ms = now_ms() + OURS_FOR_MS;
        Expected { until_ms, before_ms: self.jobs().ours_until(key, until_ms) }
    }

    /// We have not changed it after all. What others here expect of it stands.
    pub fn unexpect(&self, key: &str, expected: Expected) {
        let mut jobs = self.jobs();
        let now_ms = jobs.ours_until(key, expected.before_ms);
        if now_ms != expected.until_ms {
            jobs.ours_until(key, now_ms);
        }
    }

    /// The same as [`Events::expect`] for every key.
    pub fn expect_all(&self) {
        self.all_ours_until_ms.store(now_ms() + ALL_OURS_FOR_MS, Ordering::Relaxed);
    }

    /// Every key has been changed.
    pub fn expect_no_more(&self) {
        self.all_ours_until_ms.store(now_ms() + OURS_FOR_MS, Ordering::Relaxed);
    }

    /// The store tells that a key has changed. Only what is known here is told of: others' jobs are
    /// many, and keys under the prefix that are nobody's job are any text.
    pub fn changed(&self, key: &str) {
        let now_ms = now_ms();
        if now_ms < self.all_ours_until_ms.load(Ordering::Relaxed) {
            return;
        }
        let mut jobs = self.jobs();
        if !jobs.changed(key, Happening::new(What::Changed, "", None, now_ms)) {
            return;
        }
        let job = Some(self.id(key).into());
        self.feed.tell(Event::new(What::Changed, "", None, now_ms).of(job, 1));
    }

    /// A key left this process for want of room. Where there is none that is what happens most, so it
    /// is told of known jobs alone, and not to listeners.
    pub fn evicted(&self, key: &str) {
        self.jobs().note(key, Happening::new(What::Evicted, "", None, now_ms()));
    }

    /// What happened to the job of a key, oldest first.
    pub fn past(&self, key: &str) -> Past {
        self.jobs().past(key)
    }

    /// The jobs that were asked for most in this minute and the one before.
    pub fn busiest(&self, most: usize) -> Vec<Busy> {
        let mut busy = self.jobs().busiest(most, now_ms());
        for job in &mut busy {
            job.job = self.id(&job.job).into();
        }
        busy
    }

    /// Listens to what happens from now on, after what happened just before; none where as many listen
    /// as may.
    pub fn listen(&self, after: u64) -> Option<Listener> {
        let _jobs = self.jobs();
        self.feed.listen(after)
    }

    /// Whether anybody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.feed.is_heard()
    }

    /// Tells listeners what there was in the last second.
    pub(crate) fn second(&self, counts: feed::Counts) {
        self.feed.second(now_ms(), counts);
    }

    fn id<'k>(&self, key: &'k str) -> &'k str {
        let prefix = self.prefix.get().map_or("", |prefix| prefix);
        key.strip_prefix(prefix).unwrap_or(key)
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // No code that holds the lock panics half-way through a change.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_ms() -> i64 {
    let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_sampled_so_that_their_number_can_be_told() {
        let events = Events::default();
        assert_eq!(events.sample().unwrap().weight(), 1, "all, while they are few");
        events.pace(50_000);
        let samples: Vec<_> = (0..100_000).filter_map(|_| events.sample()).collect();
        assert!((1_500..2_500).contains(&samples.len()), "{}", samples.len());
        assert!(samples.iter().all(|sample| sample.weight() == 50));
    }

    #[test]
    fn news_is_told_of_jobs_that_are_known_and_of_what_others_did() {
        let events = Events::default();
        events.strip("job_status:");
        events.changed("job_status:unknown");
        assert!(events.past("job_status:unknown").happenings.is_empty());

        let x = "job_status:x";
        let last = || events.past(x).happenings.last().unwrap().what;
        events.tell(x, What::Fill, "");
        events.changed(x);
        assert_eq!(last(), What::Fill, "it was us");
        events.jobs().ours_until(x, 0);
        let in_vain = events.expect(x);
        events.changed(x);
        assert_eq!(last(), What::Fill, "it will have been us");
        events.unexpect(x, in_vain);
        events.changed(x);
        assert_eq!(last(), What::Changed);

        events.tell(x, What::Evicted, "");
        let in_vain = events.expect(x);
        events.tell(x, What::Fill, "");
        events.jobs().ours_until(x, i64::MAX);
        events.unexpect(x, in_vain);
        events.changed(x);
        assert_eq!(last(), What::Fill, "what another expects stands");
    }

    #[test]
    fn many_jobs_of_one_purge_are_one_event() {
        let events = Events::default();
        let keys: Vec<String> = (0..=TOLD_EACH).map(|id| id.to_string()).collect();
        events.tell_each(keys.iter().map(String::as_str), What::Purge, "", None);
        let told = events.listen(0).unwrap().before;
        assert_eq!(told.iter().map(|event| event.jobs).collect::<Vec<_>>(), [keys.len()]);
        assert_eq!(events.past("3").happenings.len(), 1);
    }
}
