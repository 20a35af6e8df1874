//! The last events of each job and its request counts. This module reads no clock.
//!
//! Memory is bounded: at most [`JOBS`] jobs, of which the least recently touched is removed first,
//! with [`EVENTS`] events each, plus the last event of each kind in `What::is_kept` that was pushed
//! out. Without those, a minute of polls with alternating outcomes would push out the purge before
//! it. A name is at most a prefix and 128 bytes, and an event is about 100 bytes including its
//! initiator, which many events share. That is about 4 MiB if everything is full.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::{By, What};

/// Most jobs with a history.
pub const JOBS: usize = 2_048;
/// Recent events per job, of all kinds.
pub const EVENTS: usize = 12;
/// Length of the intervals in which requests are counted.
const MINUTE_MS: i64 = 60_000;

/// An event that happened once, or several times in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// The kind of the event.
    pub what: What,
    /// The reason, in the words of `Cache-Status`; may be empty.
    pub why: &'static str,
    /// The initiator, if known.
    pub by: By,
    /// Time of the first occurrence, in ms since 1970.
    pub first_ms: i64,
    /// Time of the last occurrence, in ms since 1970.
    pub last_ms: i64,
    /// Number of occurrences. Of many hits it is an estimate.
    pub times: u64,
}

impl Happening {
    pub(super) fn new(what: What, why: &'static str, by: By, now_ms: i64) -> Self {
        Self { what, why, by, first_ms: now_ms, last_ms: now_ms, times: 1 }
    }

    fn is_same_as(&self, other: &Self) -> bool {
        (self.what, self.why, &self.by) == (other.what, other.why, &other.by)
    }
}

/// The history of a job.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Events, oldest first: the kept ones that were pushed out of the ring, then the ring.
    pub happenings: Vec<Happening>,
    /// The last time that every job was purged.
    pub all_purged: Option<Happening>,
}

/// A job with recent requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Its key, or its id.
    pub job: String,
    /// Requests in this minute and the one before, estimated.
    pub requests: u64,
    /// Hits among them.
    pub hits: u64,
}

/// The histories of all known jobs.
#[derive(Default)]
pub(super) struct Jobs {
    slots: HashMap<Arc<str>, Slot>,
    /// The jobs in the order in which they were last touched.
    order: BTreeMap<u64, Arc<str>>,
    touches: u64,
    all_purged: Option<Happening>,
}

#[derive(Debug, Default)]
struct Slot {
    touched: u64,
    happenings: VecDeque<Happening>,
    /// Events that were pushed out and are kept: the last of each kind, oldest first.
    kept: Vec<Happening>,
    /// Time until which news of the key is attributed to this process.
    ours_until_ms: i64,
    this_minute: Minute,
    last_minute: Minute,
}

#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    number: i64,
    requests: u64,
    hits: u64,
}

impl Jobs {
    /// Records `times` answered requests.
    pub(super) fn request(&mut self, key: &str, happening: Happening, times: u64) {
        let number = happening.last_ms / MINUTE_MS;
        let hits = if happening.what == What::Hit { times } else { 0 };
        let slot = self.touch(key);
        if slot.this_minute.number != number {
            slot.last_minute = slot.this_minute;
            slot.this_minute = Minute { number, ..Minute::default() };
        }
        slot.this_minute.requests += times;
        slot.this_minute.hits += hits;
        slot.note(Happening { times, ..happening });
    }

    /// Records another event.
    pub(super) fn happened(&mut self, key: &str, happening: Happening) {
        self.touch(key).note(happening);
    }

    /// Records an event only if the job is known, without touching it.
    pub(super) fn note(&mut self, key: &str, happening: Happening) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.note(happening);
        }
    }

    /// Records a change of the key by another process. Returns false if the job is not known, or if
    /// the change is attributed to this process.
    pub(super) fn changed(&mut self, key: &str, happening: Happening) -> bool {
        let slot = self.slots.get_mut(key);
        let Some(slot) = slot.filter(|slot| slot.ours_until_ms < happening.last_ms) else {
            return false;
        };
        slot.note(happening);
        true
    }

    pub(super) fn knows(&self, key: &str) -> bool {
        self.slots.contains_key(key)
    }

    /// Attributes news of the key to this process until `until_ms`. Returns the previous value.
    pub(super) fn ours_until(&mut self, key: &str, until_ms: i64) -> i64 {
        let slot = self.slots.get_mut(key);
        slot.map_or(0, |slot| std::mem::replace(&mut slot.ours_until_ms, until_ms))
    }

    pub(super) fn all_purged(&mut self, happening: Happening) {
        self.all_purged = Some(happening);
    }

    pub(super) fn past(&self, key: &str) -> Past {
        let slot = self.slots.get(key);
        let happenings =
            slot.map(|slot| slot.kept.iter().chain(&slot.happenings).cloned().collect());
        Past { happenings: happenings.unwrap_or_default(), all_purged: self.all_purged.clone() }
    }

    pub(super) fn busiest(&self, limit: usize, now_ms: i64) -> Vec<Busy> {
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
        let named = |(job, requests, hits): (&Arc<str>, u64, u64)| Busy {
            job: job.as_ref().to_owned(),
            requests,
            hits,
        };
        busy.into_iter().map(named).collect()
    }

    /// Returns the slot of a job and makes it the most recently touched one.
    fn touch(&mut self, key: &str) -> &mut Slot {
        self.touches += 1;
        let touched = self.touches;
        let name = match self.slots.get(key) {
            Some(slot) => self.order.remove(&slot.touched),
            None => None,
        };
        let name = name.unwrap_or_else(|| {
            if self.slots.len() >= JOBS
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

impl Slot {
    /// Adds an event. A repetition of the last event only raises its count, so that a poller does
    /// not push out all others.
    fn note(&mut self, happening: Happening) {
        if let Some(last) = self.happenings.back_mut()
            && last.is_same_as(&happening)
        {
            last.last_ms = happening.last_ms;
            last.times += happening.times;
            return;
        }
        if self.happenings.len() >= EVENTS
            && let Some(oldest) = self.happenings.pop_front()
            && oldest.what.is_kept()
        {
            self.kept.retain(|kept| kept.what != oldest.what);
            self.kept.push(oldest);
        }
        self.happenings.push_back(happening);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(what: What, now_ms: i64) -> Happening {
        Happening::new(what, "", None, now_ms)
    }

    #[test]
    fn what_repeats_is_one_event_with_a_count() {
        let mut jobs = Jobs::default();
        jobs.happened("x", at(What::Fill, 1));
        for now_ms in 2..9 {
            jobs.request("x", at(What::Hit, now_ms), 10);
        }
        jobs.happened("x", at(What::Purge, 9));
        let past = jobs.past("x").happenings;
        let events: Vec<_> = past.iter().map(|one| (one.what, one.times, one.first_ms)).collect();
        assert_eq!(events, [(What::Fill, 1, 1), (What::Hit, 70, 2), (What::Purge, 1, 9)]);
        assert_eq!(past[1].last_ms, 8);
    }

    #[test]
    fn the_events_of_a_job_are_bounded_and_the_oldest_go_first() {
        let mut jobs = Jobs::default();
        for now_ms in 0..100 {
            let what = if now_ms % 2 == 0 { What::Fill } else { What::Miss };
            jobs.happened("x", at(what, now_ms));
        }
        let past = jobs.past("x").happenings;
        assert_eq!((past.len(), past[0].first_ms, past[EVENTS - 1].first_ms), (EVENTS, 88, 99));
    }

    #[test]
    fn what_changed_a_job_outlasts_its_polls_and_keeps_its_place() {
        let mut jobs = Jobs::default();
        let kinds = [What::WriteEnded, What::Write, What::Changed, What::FillRefused, What::Purge];
        for (now_ms, what) in (0..).zip(kinds.into_iter().chain(kinds)) {
            jobs.happened("x", at(what, now_ms));
        }
        for now_ms in (10..1_000).step_by(2) {
            jobs.request("x", at(What::Hit, now_ms), 1);
            jobs.request("x", at(What::Pass, now_ms + 1), 1);
        }
        let past = jobs.past("x").happenings;
        assert_eq!(past.len(), kinds.len() + EVENTS);
        let events: Vec<_> = past.iter().map(|one| (one.what, one.first_ms)).collect();
        assert_eq!(events[..5], kinds.into_iter().zip(5..).collect::<Vec<_>>(), "the last of each");
        assert_eq!(events[5..8], [(What::Hit, 988), (What::Pass, 989), (What::Hit, 990)]);
        assert!(past.is_sorted_by_key(|one| one.last_ms));
    }

    #[test]
    fn jobs_are_bounded_and_the_least_recently_touched_is_forgotten() {
        let mut jobs = Jobs::default();
        for id in 0..JOBS {
            jobs.happened(&id.to_string(), at(What::Fill, 1));
        }
        jobs.request("0", at(What::Hit, 2), 1);
        jobs.happened("one more", at(What::Fill, 3));
        assert!(jobs.past("1").happenings.is_empty());
        assert_eq!(jobs.past("0").happenings.len(), 2);
        assert_eq!((jobs.slots.len(), jobs.order.len()), (JOBS, JOBS));
    }

    #[test]
    fn the_busiest_are_told_by_the_last_two_minutes() {
        let mut jobs = Jobs::default();
        jobs.request("old", at(What::Hit, 0), 1_000);
        jobs.request("x", at(What::Hit, MINUTE_MS), 5);
        jobs.request("x", at(What::Miss, 2 * MINUTE_MS), 1);
        jobs.request("y", at(What::Hit, 2 * MINUTE_MS), 2);
        jobs.happened("quiet", at(What::Purge, 2 * MINUTE_MS));
        let busy = |job: &str, requests, hits| Busy { job: job.into(), requests, hits };
        assert_eq!(jobs.busiest(9, 2 * MINUTE_MS), [busy("x", 6, 5), busy("y", 2, 2)]);
        assert_eq!(jobs.busiest(1, 2 * MINUTE_MS), [busy("x", 6, 5)]);
    }
}
