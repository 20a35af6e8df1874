//! The last events of each job, and how often each is asked for. It reads no clock.
//!
//! Bounded: [`JOBS`] jobs, of which the one that nothing has happened to for longest is forgotten
//! first, times [`EVENTS`] events, and the last of each kind in `What::is_kept` that has left those: a
//! minute of polls that come to this and that by turns would else leave nothing of the purge before it.
//! A name is at most a prefix and 128 bytes, an event about 100 bytes with whoever caused it (which many
//! share): about 4 MiB if all are full.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::{By, What};

/// Jobs that are remembered.
pub const JOBS: usize = 2_048;
/// Events that are remembered of each, whatever they are.
pub const EVENTS: usize = 12;
/// Requests are counted by minutes.
const MINUTE_MS: i64 = 60_000;

/// Something that happened once, or several times in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// What it was.
    pub what: What,
    /// Why, in the words of `Cache-Status`; empty where there is nothing to add.
    pub why: &'static str,
    /// Who caused it, where that is known.
    pub by: By,
    /// When it happened first, in ms since 1970.
    pub first_ms: i64,
    /// When it happened last.
    pub last_ms: i64,
    /// How often; of hits about how often, where they are many.
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

/// What is known of a job.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Oldest first: the last that changed it or kept an answer out, then all of the last.
    pub happenings: Vec<Happening>,
    /// The last time that every job was purged.
    pub all_purged: Option<Happening>,
}

/// A job that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Its key, or its id.
    pub job: String,
    /// Requests in this minute and the one before, about.
    pub requests: u64,
    /// Hits among them.
    pub hits: u64,
}

/// The jobs.
#[derive(Default)]
pub(super) struct Jobs {
    slots: HashMap<Arc<str>, Slot>,
    /// The jobs by when something happened to them last, in touches.
    order: BTreeMap<u64, Arc<str>>,
    touches: u64,
    all_purged: Option<Happening>,
}

#[derive(Debug, Default)]
struct Slot {
    touched: u64,
    happenings: VecDeque<Happening>,
    /// What was pushed out of those: one of a kind, oldest first.
    kept: Vec<Happening>,
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
    /// A request was answered, which stands for so many.
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

    /// Something else happened.
    pub(super) fn happened(&mut self, key: &str, happening: Happening) {
        self.touch(key).note(happening);
    }

    /// What is told of a job that is known, and does not make it so.
    pub(super) fn note(&mut self, key: &str, happening: Happening) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.note(happening);
        }
    }

    /// Somebody has changed it; false if it is not known here, or that was us.
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

    /// Until when news of it is of what we do ourselves; says until when it was before.
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

    pub(super) fn busiest(&self, most: usize, now_ms: i64) -> Vec<Busy> {
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
        busy.truncate(most);
        let named = |(job, requests, hits): (&Arc<str>, u64, u64)| Busy {
            job: job.as_ref().to_owned(),
            requests,
            hits,
        };
        busy.into_iter().map(named).collect()
    }

    /// The slot of a job, which is the last to be forgotten now.
    fn touch(&mut self, key: &str) -> &mut Slot {
        self.touches += 1;
        let touched = self.touches;
        let name = match self.slots.get(key) {
            Some(slot) => self.order.remove(&slot.touched),
            None => None,
        };
        let name = name.unwrap_or_else(|| {
            if self.slots.len() >= JOBS
                && let Some((_, forgotten)) = self.order.pop_first()
            {
                self.slots.remove(&forgotten);
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
    /// Repeats of what happened last are counted, so that a poller does not push out the rest.
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
        let told: Vec<_> = past.iter().map(|one| (one.what, one.times, one.first_ms)).collect();
        assert_eq!(told, [(What::Fill, 1, 1), (What::Hit, 70, 2), (What::Purge, 1, 9)]);
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
        let matter = [What::WriteEnded, What::Write, What::Changed, What::FillRefused, What::Purge];
        for (now_ms, what) in (0..).zip(matter.into_iter().chain(matter)) {
            jobs.happened("x", at(what, now_ms));
        }
        for now_ms in (10..1_000).step_by(2) {
            jobs.request("x", at(What::Hit, now_ms), 1);
            jobs.request("x", at(What::Pass, now_ms + 1), 1);
        }
        let past = jobs.past("x").happenings;
        assert_eq!(past.len(), matter.len() + EVENTS);
        let told: Vec<_> = past.iter().map(|one| (one.what, one.first_ms)).collect();
        assert_eq!(told[..5], matter.into_iter().zip(5..).collect::<Vec<_>>(), "the last of each");
        assert_eq!(told[5..8], [(What::Hit, 988), (What::Pass, 989), (What::Hit, 990)]);
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
