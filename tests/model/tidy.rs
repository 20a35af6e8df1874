//! Makes states equal that behave alike, so that the checker explores them once.
//!
//! Only three things are done. Fields that no later step reads get a fixed value. Versions are
//! numbered without gaps in the same order: steps compare them and never use their distance. All
//! epochs that have ended become one: no session has any of them again.

use super::{
    faults::Fault,
    flaws::Flaw,
    keys::{Epoch, Main, Version},
    run::Run,
    state::{Behind, Purge, PurgePhase, Reader, ReaderPhase, State, Target, Write, WritePhase},
};

/// Any epoch that has ended.
const PAST: Epoch = Epoch { run: 0, replication: 0 };

impl Run<'_> {
    pub(super) fn tidy(&mut self) {
        let uses_other = self.scope.may(&self.state, Fault::RestartFromSnapshot)
            || self.scope.may(&self.state, Fault::Promotion);
        if !uses_other {
            self.state.other = None;
        }
        self.state.readers.iter_mut().for_each(Reader::tidy);
        self.state.tidy_writes();
        if self.scope.flaw != Some(Flaw::EpochIsRunId) {
            let now = self.state.epoch;
            self.state.each_epoch(|epoch| {
                if *epoch != now {
                    *epoch = PAST;
                }
            });
        }
        self.state.number_versions();
    }
}

impl Reader {
    /// A leader gets a response that is read after it came, so that what it expects is met, and it
    /// needs no more of its request than the target.
    fn tidy(&mut self) {
        let leads = matches!(
            self.phase,
            ReaderPhase::Reading
                | ReaderPhase::Queued
                | ReaderPhase::Answered
                | ReaderPhase::Storing
                | ReaderPhase::LateFill
        );
        if leads {
            self.acknowledged = 0;
            self.fenced = 0;
            self.no_cache = false;
            if self.target == Target::Nowhere {
                self.epoch = PAST;
            }
        }
        if self.target != Target::Held {
            self.held = None;
        }
        if self.phase != ReaderPhase::Lease && self.behind != Behind::LateLease {
            self.refused = None;
        }
    }
}

impl State {
    /// Forgets what is over and leaves nothing behind.
    fn tidy_writes(&mut self) {
        let fences = self.fences | self.keys.fence | self.other.map_or(0, |(keys, _)| keys.fence);
        let pending = self.sidecars.map(|sidecar| sidecar.pending.map(|item| item.write));
        for (number, write) in (0_u8..).zip(&mut self.writes) {
            let is_over = write.phase == WritePhase::Done
                || write.phase == WritePhase::Orphaned && write.version > 0;
            let is_known = fences & (1 << number) != 0 || pending.contains(&Some(number));
            if is_over && !is_known && !write.late_begin && write.late_ends == [false; 2] {
                *write = Write { phase: WritePhase::Done, ..Write::IDLE };
            }
        }
        if self.purge.phase == PurgePhase::Done && !self.purge.late_end {
            self.purge = Purge { at: 0, version: 0, ..self.purge };
        }
    }

    fn each_epoch(&mut self, mut change: impl FnMut(&mut Epoch)) {
        self.readers.iter_mut().for_each(|one| change(&mut one.epoch));
        self.keys.meta.iter_mut().for_each(|meta| change(&mut meta.epoch));
        if let Some((keys, _)) = &mut self.other {
            keys.meta.iter_mut().for_each(|meta| change(&mut meta.epoch));
        }
    }

    fn number_versions(&mut self) {
        // Version 0 means none in some places, and stays.
        let mut used: u8 = 1;
        self.each_version(|version| used |= 1 << *version);
        if used.trailing_ones() + used.leading_zeros() == u8::BITS {
            return;
        }
        self.each_version(|version| {
            let before = used & ((1 << *version) - 1);
            *version = Version::try_from(before.count_ones()).expect("few versions");
        });
    }

    fn each_version(&mut self, mut change: impl FnMut(&mut Version)) {
        change(&mut self.version);
        for one in &mut self.readers {
            change(&mut one.acknowledged);
            change(&mut one.fenced);
            change(&mut one.version);
            one.seen.iter_mut().for_each(|(version, _)| change(version));
        }
        for sidecar in &mut self.sidecars {
            sidecar.near.iter_mut().for_each(&mut change);
            change(&mut sidecar.acknowledged);
            change(&mut sidecar.unconfirmed);
        }
        for write in &mut self.writes {
            change(&mut write.version);
            change(&mut write.answered);
        }
        change(&mut self.purge.version);
        self.third_party.version().into_iter().for_each(&mut change);
        let others = self.other.iter_mut().map(|(keys, _)| keys);
        for keys in others.chain([&mut self.keys]) {
            if let Main::Body { version, .. } = &mut keys.main {
                change(version);
            }
            keys.meta.iter_mut().for_each(|meta| change(&mut meta.version));
        }
    }
}
