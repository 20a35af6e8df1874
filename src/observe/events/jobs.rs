//! The last events of each job and its request counts. This module reads no clock.
//!
//! Memory is bounded: at most [`MAX_JOBS`] jobs, of which the least recently touched is removed
//! first, with [`MAX_EVENTS`] events each, plus the last event of each kind in
//! `EventKind::outlives_ring` that was pushed out. Without those, a minute of polls with alternating
//! outcomes would push out the purge before it. A name is at most a prefix and 128 bytes, and an
//! event is about 100 bytes including its initiator, which many events share. That is about 4 MiB if
//! everything is full.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::feed::{BusyJob, EventKind, Initiator};

/// Most jobs with a history.
pub const MAX_JOBS: usize = 2_048;
/// Recent events per job, of all kinds.
pub const MAX_EVENTS: usize = 12;
/// Length of the intervals in which requests are counted.
const MINUTE_MS: i64 = 60_000;

/// An event that happened once, or several times in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    /// The kind of the event.
    pub what: EventKind,
    /// The reason, in the words of `Cache-Status`; may be empty.
    pub why: &'static str,
    /// The initiator, if known.
    pub by: Initiator,
    /// Time of the first occurrence, in ms since 1970.
    pub first_ms: i64,
    /// Time of the last occurrence, in ms since 1970.
    pub last_ms: i64,
    /// Number of occurrences. Of many hits it is an estimate.
    pub times: u64,
}

impl JobEvent {
    pub(super) fn new(what: EventKind, why: &'static str, by: Initiator, now_ms: i64) -> Self {
        Self { what, why, by, first_ms: now_ms, last_ms: now_ms, times: 1 }
    }

    fn is_same_as(&self, other: &Self) -> bool {
        (self.what, self.why, &self.by) == (other.what, other.why, &other.by)
    }
}

/// The history of a job.
#[derive(Clone, Debug, Default)]
pub struct JobHistory {
    /// Events, oldest first: the kept ones that were pushed out of the ring, then the ring.
    pub events: Vec<JobEvent>,
    /// The last time that every job was purged.
    pub all_purged: Option<JobEvent>,
}

/// The histories of all known jobs.
#[derive(Default)]
pub(super) struct JobHistories {
    slots: HashMap<Arc<str>, JobSlot>,
    /// The jobs in the order in which they were last touched.
    order: BTreeMap<u64, Arc<str>>,
    touches: u64,
    all_purged: Option<JobEvent>,
}

#[derive(Debug, Default)]
struct JobSlot {
    touched: u64,
    recent: VecDeque<JobEvent>,
    /// Events that were pushed out and are kept: the last of each kind, oldest first.
    kept: Vec<JobEvent>,
    /// Time until which news of the key is attributed to this process.
    own_until_ms: i64,
    this_minute: MinuteCounts,
    last_minute: MinuteCounts,
}

#[derive(Clone, Copy, Debug, Default)]
struct MinuteCounts {
    number: i64,
    requests: u64,
    hits: u64,
}

impl JobHistories {
    /// Records `times` answered requests.
    pub(super) fn record_request(&mut self, key: &str, happening: JobEvent, times: u64) {
        let number = happening.last_ms / MINUTE_MS;
        let hits = if happening.what == EventKind::Hit { times } else { 0 };
        let slot = self.touch(key);
        if slot.this_minute.number != number {
            slot.last_minute = slot.this_minute;
            slot.this_minute = MinuteCounts { number, ..MinuteCounts::default() };
        }
        slot.this_minute.requests += times;
        slot.this_minute.hits += hits;
        slot.record(JobEvent { times, ..happening });
    }

    /// Records another event.
    pub(super) fn record(&mut self, key: &str, happening: JobEvent) {
        self.touch(key).record(happening);
    }

    /// Records an event only if the job is known, without touching it.
    pub(super) fn record_if_known(&mut self, key: &str, happening: JobEvent) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.record(happening);
        }
    }

    /// Records a change of the key by another process. Returns false if the job is not known, or if
    /// the change is attributed to this process.
    pub(super) fn record_change(&mut self, key: &str, happening: JobEvent) -> bool {
        let slot = self.slots.get_mut(key);
        let Some(slot) = slot.filter(|slot| slot.own_until_ms < happening.last_ms) else {
            return false;
        };
        slot.record(happening);
        true
    }

    pub(super) fn knows(&self, key: &str) -> bool {
        self.slots.contains_key(key)
    }

    /// Attributes news of the key to this process until `until_ms`. Returns the previous value.
    pub(super) fn set_own_until(&mut self, key: &str, until_ms: i64) -> i64 {
        let slot = self.slots.get_mut(key);
        slot.map_or(0, |slot| std::mem::replace(&mut slot.own_until_ms, until_ms))
    }

    pub(super) fn set_all_purged(&mut self, happening: JobEvent) {
        self.all_purged = Some(happening);
    }

    pub(super) fn history(&self, key: &str) -> JobHistory {
        let slot = self.slots.get(key);
        let happenings = slot.map(|slot| slot.kept.iter().chain(&slot.recent).cloned().collect());
        JobHistory { events: happenings.unwrap_or_default(), all_purged: self.all_purged.clone() }
    }

    pub(super) fn busiest(&self, limit: usize, now_ms: i64) -> Vec<BusyJob> {
        let number = now_ms / MINUTE_MS;
        let mut busy: Vec<(&Arc<str>, u64, u64)> = self
            .slots
            .iter()
            .map(|(job, slot)| {
                let minutes = [slot.this_minute, slot.last_minute];
                let recent = minutes.iter().filter(|minute| number - minute.number <= 1);
                let (requests, hits) = recent.fold((0, 0), |(requests, hits), minute| {
                    (requests + minute.requests, hits + minute.hits)
                });
                (job, requests, hits)
            })
            .filter(|(_, requests, _)| *requests > 0)
            .collect();
        busy.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        busy.truncate(limit);
        let named = |(job, requests, hits): (&Arc<str>, u64, u64)| BusyJob {
            job: job.as_ref().to_owned(),
            requests,
            hits,
        };
        busy.into_iter().map(named).collect()
    }

    /// Returns the slot of a job and makes it the most recently touched one.
    fn touch(&mut self, key: &str) -> &mut JobSlot {
        self.touches += 1;
        let touched = self.touches;
        let name = match self.slots.get(key) {
            Some(slot) => self.order.remove(&slot.touched),
            None => None,
        };
        let name = name.unwrap_or_else(|| {
            if self.slots.len() >= MAX_JOBS
                && let Some((_, evicted)) = self.order.pop_first()
            {
                self.slots.remove(&evicted);
            }
            key.into()
        });
        self.order.insert(touched, Arc::clone(&name));
        let slot = self.slots.entry(name).or_default();
        slot.touched = touched;
        slot
    }
}

impl JobSlot {
    /// Adds an event. A repetition of the last event only raises its count, so that a poller does
    /// not push out all others.
    fn record(&mut self, happening: JobEvent) {
        if let Some(last) = self.recent.back_mut()
            && last.is_same_as(&happening)
        {
            last.last_ms = happening.last_ms;
            last.times += happening.times;
            return;
        }
        if self.recent.len() >= MAX_EVENTS
            && let Some(oldest) = self.recent.pop_front()
            && oldest.what.outlives_ring()
        {
            self.kept.retain(|kept| kept.what != oldest.what);
            self.kept.push(oldest);
        }
        self.recent.push_back(happening);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(what: EventKind, now_ms: i64) -> JobEvent {
        JobEvent::new(what, "", None, now_ms)
    }

    #[test]
    fn what_repeats_is_one_event_with_a_count() {
        let mut jobs = JobHistories::default();
        jobs.record("x", at(EventKind::Fill, 1));
        for now_ms in 2..9 {
            jobs.record_request("x", at(EventKind::Hit, now_ms), 10);
        }
        jobs.record("x", at(EventKind::Purge, 9));
        let past = jobs.history("x").events;
        let events: Vec<_> = past.iter().map(|one| (one.what, one.times, one.first_ms)).collect();
        assert_eq!(
            events,
            [(EventKind::Fill, 1, 1), (EventKind::Hit, 70, 2), (EventKind::Purge, 1, 9)]
        );
        assert_eq!(past[1].last_ms, 8);
    }

    #[test]
    fn the_events_of_a_job_are_bounded_and_the_oldest_go_first() {
        let mut jobs = JobHistories::default();
        for now_ms in 0..100 {
            let what = if now_ms % 2 == 0 { EventKind::Fill } else { EventKind::Miss };
            jobs.record("x", at(what, now_ms));
        }
        let past = jobs.history("x").events;
        assert_eq!(
            (past.len(), past[0].first_ms, past[MAX_EVENTS - 1].first_ms),
            (MAX_EVENTS, 88, 99)
        );
    }

    #[test]
    fn what_changed_a_job_outlasts_its_polls_and_keeps_its_place() {
        let mut jobs = JobHistories::default();
        let kinds = [
            EventKind::WriteEnded,
            EventKind::Write,
            EventKind::Changed,
            EventKind::FillRefused,
            EventKind::Purge,
        ];
        for (now_ms, what) in (0..).zip(kinds.into_iter().chain(kinds)) {
            jobs.record("x", at(what, now_ms));
        }
        for now_ms in (10..1_000).step_by(2) {
            jobs.record_request("x", at(EventKind::Hit, now_ms), 1);
            jobs.record_request("x", at(EventKind::Pass, now_ms + 1), 1);
        }
        let past = jobs.history("x").events;
        assert_eq!(past.len(), kinds.len() + MAX_EVENTS);
        let events: Vec<_> = past.iter().map(|one| (one.what, one.first_ms)).collect();
        assert_eq!(events[..5], kinds.into_iter().zip(5..).collect::<Vec<_>>(), "the last of each");
        assert_eq!(
            events[5..8],
            [(EventKind::Hit, 988), (EventKind::Pass, 989), (EventKind::Hit, 990)]
        );
        assert!(past.is_sorted_by_key(|one| one.last_ms));
    }

    #[test]
    fn jobs_are_bounded_and_the_least_recently_touched_is_forgotten() {
        let mut jobs = JobHistories::default();
        for id in 0..MAX_JOBS {
            jobs.record(&id.to_string(), at(EventKind::Fill, 1));
        }
        jobs.record_request("0", at(EventKind::Hit, 2), 1);
        jobs.record("one more", at(EventKind::Fill, 3));
        assert!(jobs.history("1").events.is_empty());
        assert_eq!(jobs.history("0").events.len(), 2);
        assert_eq!((jobs.slots.len(), jobs.order.len()), (MAX_JOBS, MAX_JOBS));
    }

    #[test]
    fn the_busiest_are_told_by_the_last_two_minutes() {
        let mut jobs = JobHistories::default();
        jobs.record_request("old", at(EventKind::Hit, 0), 1_000);
        jobs.record_request("x", at(EventKind::Hit, MINUTE_MS), 5);
        jobs.record_request("x", at(EventKind::Miss, 2 * MINUTE_MS), 1);
        jobs.record_request("y", at(EventKind::Hit, 2 * MINUTE_MS), 2);
        jobs.record("quiet", at(EventKind::Purge, 2 * MINUTE_MS));
        let busy = |job: &str, requests, hits| BusyJob { job: job.into(), requests, hits };
        assert_eq!(jobs.busiest(9, 2 * MINUTE_MS), [busy("x", 6, 5), busy("y", 2, 2)]);
        assert_eq!(jobs.busiest(1, 2 * MINUTE_MS), [busy("x", 6, 5)]);
    }
}
