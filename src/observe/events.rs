//! Recent events of each job and of the whole process.
//!
//! Metrics count and the log reports faults; neither can say why a job is not cached. This module
//! keeps the last events of each job for `/explain`, and publishes all events to the subscribers of
//! `/events`.
//!
//! A hit must cost almost nothing. Hits are therefore sampled so that about 1,000 a second are
//! recorded. A hit that is not sampled costs one random number, without a lock or an allocation.
//! Below that rate every hit is recorded. Other requests have asked Redis or the upstream, and a
//! lock is cheap compared with that.
//!
//! Events are not durable, not exact and not secret. [`jobs`] bounds what is kept, and [`feed`]
//! bounds what waits for a subscriber. An event consists of a job id, constant words, and the
//! initiator of a purge. It never contains a body, a header, a query or a credential, except the
//! `webhook-id` of a purge.

pub mod feed;
pub mod jobs;

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use prometheus_client::metrics::gauge::Gauge;

use self::{
    feed::{BusyJob, Event, EventFeed, Subscription},
    jobs::{JobEvent, JobHistories, JobHistory},
};
use crate::clock;

pub use self::feed::{EventKind, Initiator};

/// Approximate number of hits that are sampled per second.
const SAMPLED_HITS_PER_S: u64 = 1_000;
/// Most jobs of one purge or write that the feed publishes one by one. Of more jobs it publishes
/// only the number.
const MAX_SINGLE_EVENTS: usize = 10;
/// Most jobs of one purge or write that are added to the history. More would push out all other
/// jobs, so then only known jobs are recorded.
const MAX_NEW_JOBS: usize = jobs::MAX_JOBS / 8;
/// Time after a change by this process in which news of the key is attributed to that change.
const OWN_CHANGE_MS: i64 = 1_000;
/// The same for a purge of all, which scans the store in steps.
const OWN_PURGE_ALL_MS: i64 = 30_000;

/// A request that is recorded if it turns out to be a hit.
#[derive(Debug)]
pub struct HitSample {
    /// Number of hits that it represents.
    weight: u32,
    started: Instant,
}

impl HitSample {
    /// Returns the time since the request arrived.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the number of hits that it represents.
    pub fn weight(&self) -> u64 {
        u64::from(self.weight)
    }
}

/// An announced change of a key by this process, and the previous announcement.
#[derive(Clone, Copy, Debug)]
pub struct ExpectedChange {
    until_ms: i64,
    previous_ms: i64,
}

/// The recorder of events.
#[derive(Default)]
pub struct Events {
    /// Prefix of a key before the id.
    prefixes: OnceLock<Vec<String>>,
    histories: Mutex<JobHistories>,
    feed: EventFeed,
    /// One hit in this many is sampled; 0 counts as 1.
    one_in: AtomicU32,
    /// Time until which all news from the store is attributed to this process.
    all_own_until_ms: AtomicI64,
}

impl Events {
    /// Sets the prefixes of keys, once. Events show ids without them.
    pub fn set_key_prefixes(&self, prefixes: Vec<String>) {
        let _ = self.prefixes.set(prefixes);
    }

    /// Decides, when a request arrives, whether it is recorded if it is a hit.
    pub fn sample(&self) -> Option<HitSample> {
        let one_in = self.one_in.load(Ordering::Relaxed);
        if one_in > 1 && fastrand::u32(..one_in) != 0 {
            return None;
        }
        Some(HitSample { weight: one_in.max(1), started: Instant::now() })
    }

    /// Adapts the sampling to the number of hits in the last second.
    pub(crate) fn set_hit_rate(&self, hits: u64) {
        let one_in = u32::try_from(hits / SAMPLED_HITS_PER_S).unwrap_or(u32::MAX).max(1);
        self.one_in.store(one_in, Ordering::Relaxed);
    }

    /// Records `times` answered requests for a job. Subscribers get only the counts of each second.
    pub fn record_request(&self, key: &str, what: EventKind, why: &'static str, times: u64) {
        let now_ms = now_ms();
        self.lock_histories().record_request(key, JobEvent::new(what, why, None, now_ms), times);
    }

    /// Records and publishes another event of a job.
    pub fn record(&self, key: &str, what: EventKind, why: &'static str) {
        self.record_each([key].into_iter(), what, why, None);
    }

    /// Records and publishes the same event for several jobs.
    pub fn record_each<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k str>,
        what: EventKind,
        why: &'static str,
        by: Initiator,
    ) {
        let (now_ms, count) = (now_ms(), keys.len());
        let mut jobs = self.lock_histories();
        for key in keys {
            if count <= MAX_NEW_JOBS || jobs.knows(key) {
                jobs.record(key, JobEvent::new(what, why, by.clone(), now_ms));
                if what.changes_the_key() {
                    jobs.set_own_until(key, now_ms + OWN_CHANGE_MS);
                }
            }
            if count <= MAX_SINGLE_EVENTS {
                let job = Some(self.id(key).into());
                self.feed.publish(Event::new(what, why, by.clone(), now_ms).about(job, 1));
            }
        }
        if count > MAX_SINGLE_EVENTS {
            self.feed.publish(Event::new(what, why, by, now_ms).about(None, count));
        }
    }

    /// Publishes an event of all jobs or of the process.
    pub fn publish_global(&self, what: EventKind, why: &'static str, by: Initiator) {
        let now_ms = now_ms();
        let mut jobs = self.lock_histories();
        if what == EventKind::PurgeAll {
            jobs.set_all_purged(JobEvent::new(what, why, by.clone(), now_ms));
        }
        self.feed.publish(Event::new(what, why, by, now_ms));
    }

    /// Sets a gauge to 1 or 0, and publishes the event `up` or `down` if that changes it.
    pub fn set_state(&self, gauge: &Gauge, is_up: bool, (up, down): (EventKind, EventKind)) {
        let before = gauge.set(is_up.into());
        if before != i64::from(is_up) {
            self.publish_global(if is_up { up } else { down }, "", None);
        }
    }

    /// Announces that this process is about to change a key, so that news of that change is
    /// ignored.
    pub fn expect_own_change(&self, key: &str) -> ExpectedChange {
        let until_ms = now_ms() + OWN_CHANGE_MS;
        ExpectedChange { until_ms, previous_ms: self.lock_histories().set_own_until(key, until_ms) }
    }

    /// The same as [`Events::expect_own_change`] for several keys, which are certain to change.
    pub fn expect_own_changes<'k>(&self, keys: impl Iterator<Item = &'k str>) {
        let until_ms = now_ms() + OWN_CHANGE_MS;
        let mut jobs = self.lock_histories();
        for key in keys {
            jobs.set_own_until(key, until_ms);
        }
    }

    /// Withdraws an announcement, because the key was not changed. Announcements that others in
    /// this process have made meanwhile stay in force.
    pub fn withdraw_expected(&self, key: &str, expected: ExpectedChange) {
        let mut jobs = self.lock_histories();
        let now_ms = jobs.set_own_until(key, expected.previous_ms);
        if now_ms != expected.until_ms {
            jobs.set_own_until(key, now_ms);
        }
    }

    /// The same as [`Events::expect_own_change`] for every key.
    pub fn expect_own_purge_all(&self) {
        self.all_own_until_ms.store(now_ms() + OWN_PURGE_ALL_MS, Ordering::Relaxed);
    }

    /// Ends [`Events::expect_own_purge_all`] after all keys are changed. News that is already on its
    /// way is still ignored.
    pub fn end_own_purge_all(&self) {
        self.all_own_until_ms.store(now_ms() + OWN_CHANGE_MS, Ordering::Relaxed);
    }

    /// Handles news from the store that a key has changed. Only known jobs are recorded: other
    /// sidecars may have many jobs, and keys under the prefix can be any text.
    pub fn record_change(&self, key: &str) {
        let now_ms = now_ms();
        if now_ms < self.all_own_until_ms.load(Ordering::Relaxed) {
            return;
        }
        let mut jobs = self.lock_histories();
        if !jobs.record_change(key, JobEvent::new(EventKind::Changed, "", None, now_ms)) {
            return;
        }
        let job = Some(self.id(key).into());
        self.feed.publish(Event::new(EventKind::Changed, "", None, now_ms).about(job, 1));
    }

    /// Records that an entry was evicted from the memory of this process. If memory is short this
    /// is the most frequent event, so it is recorded only for known jobs and is not published.
    pub fn record_eviction(&self, key: &str) {
        self.lock_histories()
            .record_if_known(key, JobEvent::new(EventKind::Evicted, "", None, now_ms()));
    }

    /// Returns the history of a job, oldest event first.
    pub fn history(&self, key: &str) -> JobHistory {
        self.lock_histories().history(key)
    }

    /// Returns the jobs with the most requests in this minute and the one before.
    pub fn busiest(&self, limit: usize) -> Vec<BusyJob> {
        let mut busy = self.lock_histories().busiest(limit, now_ms());
        for job in &mut busy {
            job.job = self.id(&job.job).into();
        }
        busy
    }

    /// Subscribes to the events after the one with number `after`, including recent ones. Returns
    /// `None` if there are [`feed::MAX_SUBSCRIBERS`] subscribers.
    pub fn subscribe(&self, after: u64) -> Option<Subscription> {
        let _jobs = self.lock_histories();
        self.feed.subscribe(after)
    }

    /// Whether there are subscribers.
    pub(crate) fn has_subscribers(&self) -> bool {
        self.feed.has_subscribers()
    }

    /// Publishes the counts of the last second.
    pub(crate) fn publish_second(&self, counts: feed::SecondCounts) {
        self.feed.publish_second(now_ms(), counts);
    }

    fn id<'k>(&self, key: &'k str) -> &'k str {
        let mut prefixes = self.prefixes.get().into_iter().flatten();
        prefixes.find_map(|prefix| key.strip_prefix(prefix.as_str())).unwrap_or(key)
    }

    fn lock_histories(&self) -> MutexGuard<'_, JobHistories> {
        // Code that holds the lock does not panic in the middle of a change.
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
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
        assert_eq!(events.sample().unwrap().weight(), 1, "every hit at a low rate");
        events.set_hit_rate(50_000);
        let samples: Vec<_> = (0..100_000).filter_map(|_| events.sample()).collect();
        assert!((1_500..2_500).contains(&samples.len()), "{}", samples.len());
        assert!(samples.iter().all(|sample| sample.weight() == 50));
    }

    #[test]
    fn news_is_told_of_jobs_that_are_known_and_of_what_others_did() {
        let events = Events::default();
        events.set_key_prefixes(vec!["job_status:".to_owned()]);
        events.record_change("job_status:unknown");
        assert!(events.history("job_status:unknown").events.is_empty());

        let x = "job_status:x";
        let last = || events.history(x).events.last().unwrap().what;
        events.record(x, EventKind::Fill, "");
        events.record_change(x);
        assert_eq!(last(), EventKind::Fill, "this process changed it");
        events.lock_histories().set_own_until(x, 0);
        let withdrawn = events.expect_own_change(x);
        events.record_change(x);
        assert_eq!(last(), EventKind::Fill, "this process has announced a change");
        events.withdraw_expected(x, withdrawn);
        events.record_change(x);
        assert_eq!(last(), EventKind::Changed);

        events.record(x, EventKind::Evicted, "");
        let withdrawn = events.expect_own_change(x);
        events.record(x, EventKind::Fill, "");
        events.lock_histories().set_own_until(x, i64::MAX);
        events.withdraw_expected(x, withdrawn);
        events.record_change(x);
        assert_eq!(last(), EventKind::Fill, "the other announcement stays in force");
    }

    #[test]
    fn many_jobs_of_one_purge_are_one_event() {
        let events = Events::default();
        let keys: Vec<String> = (0..=MAX_SINGLE_EVENTS).map(|id| id.to_string()).collect();
        events.record_each(keys.iter().map(String::as_str), EventKind::Purge, "", None);
        let published = events.subscribe(0).unwrap().recent;
        assert_eq!(published.iter().map(|event| event.jobs).collect::<Vec<_>>(), [keys.len()]);
        assert_eq!(events.history("3").events.len(), 1);
    }
}
