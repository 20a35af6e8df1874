//! Invalidations that were confirmed a moment ago.
//!
//! A deposed master keeps confirming until the sidecar learns of the failover. Those confirmations
//! are worth nothing: the new master may have an entry that was filled before the write, or may be
//! filling one. So when a session ends, the invalidations that it confirmed within [`WINDOW`]
//! become pending again and are repeated in the next session. If the master is still the same, this
//! costs each of those jobs one more read.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::store::{Key, slots::SlotSet};

/// Longer than a deposed master is trusted, plus time for the session to end.
const WINDOW: Duration = Duration::from_secs(3);
/// Number of invalidations that are kept one by one. Above it, the slot of the oldest one counts as
/// purged as a whole.
const LIMIT: usize = 20_000;

#[derive(Default)]
pub(super) struct RecentlyConfirmed {
    ends: VecDeque<(Instant, Key)>,
    /// Slots that were purged as a whole, and the time of the last of these purges. They are
    /// copied, because they may belong to another master by the time they are used.
    slots: Option<(Instant, Box<SlotSet>)>,
}

impl RecentlyConfirmed {
    pub(super) fn note(&mut self, key: &Key, now: Instant) {
        while self.ends.front().is_some_and(|(at, _)| !is_recent(*at, now)) {
            self.ends.pop_front();
        }
        if self.ends.len() >= LIMIT
            && let Some((at, key)) = self.ends.pop_front()
        {
            self.note_slots(&SlotSet::of_name(key.main().as_bytes()), at, now);
        }
        self.ends.push_back((now, key.clone()));
    }

    /// Returns the keys and the whole slots that were confirmed within [`WINDOW`], and forgets
    /// everything.
    pub(super) fn take(&mut self, now: Instant) -> (Vec<Key>, Option<Box<SlotSet>>) {
        let Self { ends, slots } = std::mem::take(self);
        let ends = ends.into_iter().filter(|(at, _)| is_recent(*at, now));
        let slots = slots.filter(|(at, _)| is_recent(*at, now));
        (ends.map(|(_, key)| key).collect(), slots.map(|(_, slots)| slots))
    }

    /// Records that all entries of these slots were purged at this time. Earlier slots are kept for
    /// as long as these, which errs on the safe side.
    pub(super) fn note_slots(&mut self, slots: &SlotSet, at: Instant, now: Instant) {
        match &mut self.slots {
            Some((last, before)) if is_recent(*last, now) => {
                before.insert_all(slots);
                *last = at.max(*last);
            }
            kept => *kept = Some((at, Box::new(slots.clone()))),
        }
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.duration_since(at) <= WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_confirmed_lately_is_given_once() {
        let mut recent = RecentlyConfirmed::default();
        let start = Instant::now();
        let key = |id: &str| Key::new("p:", id);
        recent.note(&key("old"), start);
        recent.note(&key("new"), start + WINDOW);
        recent.note_slots(&SlotSet::ALL, start, start);

        let (keys, slots) = recent.take(start + WINDOW + Duration::from_millis(1));

        assert_eq!(keys, [key("new")]);
        assert_eq!(slots, None);
        assert!(recent.take(start + WINDOW).0.is_empty());
    }

    #[test]
    fn what_is_too_much_to_be_kept_one_by_one_is_kept_as_its_slot() {
        let mut recent = RecentlyConfirmed::default();
        let now = Instant::now();
        for id in 0..=LIMIT {
            recent.note(&Key::new("p:", &id.to_string()), now);
        }
        let (keys, slots) = recent.take(now);
        assert_eq!(keys.len(), LIMIT);
        assert_eq!(slots.as_deref(), Some(&SlotSet::of_name(b"p:0")));
    }

    #[test]
    fn of_a_purge_of_all_it_keeps_the_slots_that_it_was_of() {
        let mut recent = RecentlyConfirmed::default();
        let start = Instant::now();
        let slots = |first: u16| SlotSet::from_fn(|slot| (first..first + 10).contains(&slot));
        recent.note_slots(&slots(500), start, start);
        let later = start + WINDOW + Duration::from_secs(1);
        recent.note_slots(&slots(0), later, later);
        recent.note_slots(&slots(5), later + WINDOW, later + WINDOW);
        let (_, late) = recent.take(later + WINDOW + Duration::from_millis(1));
        assert_eq!(late.unwrap().ranges(), [(0, 14)], "the first is long ago");
    }
}
