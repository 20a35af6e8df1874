//! The floors of a job: what its readers may no longer be given.

use std::collections::HashMap;

use super::record::{Commit, Micros, Process, Read, Write};

/// The oldest version that may be read, from this time on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) from: Micros,
    pub(super) version: u32,
    pub(super) write: Write,
    pub(super) commit: Commit,
}

/// The floors of one job, for everyone and for single processes; each list is sorted, with rising
/// versions.
#[derive(Default)]
pub(super) struct Floors {
    pub(super) all: Vec<Floor>,
    pub(super) own: HashMap<Process, Vec<Floor>>,
}

impl Floors {
    /// Returns the floors for the readers of a process.
    pub(super) fn binding(&self, process: Process) -> impl Iterator<Item = &Floor> {
        self.all.iter().chain(self.own.get(&process).into_iter().flatten())
    }

    pub(super) fn seal(&mut self) {
        for floors in self.own.values_mut().chain([&mut self.all]) {
            floors.sort_by_key(|floor| floor.from);
            for at in 1..floors.len() {
                let (before, now) = (floors[at - 1], floors[at]);
                if before.version > now.version {
                    floors[at] = Floor { from: now.from, ..before };
                }
            }
        }
    }

    /// Returns the highest floor that stood `staleness_ms` before a read began.
    pub(super) fn under(&self, read: &Read, staleness_ms: u64) -> Option<&Floor> {
        let start = read.start.minus_ms(staleness_ms);
        let last = |floors: &'_ Vec<Floor>| {
            floors.partition_point(|floor| floor.from < start).checked_sub(1)
        };
        let all = last(&self.all).map(|at| &self.all[at]);
        let own = self.own.get(&read.process).and_then(|own| last(own).map(|at| &own[at]));
        all.into_iter().chain(own).max_by_key(|floor| floor.version)
    }
}
