//! A second, independent judge of the same record: the linearizability checker of `todc-utils`.
//!
//! A job is a register. Its version grows by one, because the upstream commits one change after
//! another. A change is an operation that lasts from its start to the moment from which it binds
//! the reader (see [`Floor`](super::judge::Floor)); a change that never binds the reader never
//! ends. The guarantee is that of a regular register: two readers during one change may see it in
//! either order. So each read is checked on its own, together with the changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use todc_utils::linearizability::{
    WGLChecker,
    history::{Action, History as Operations},
};
use todc_utils::specifications::Specification;

use super::{
    judge::{Floors, unsealed_floors},
    record::{History, Micros, Process, Read},
};

/// How long after a commit its time may be taken.
const RECORDED_WITHIN_MS: u64 = 200;

/// Names the reads of a version of a job through a process.
pub(super) type ReadGroup = (u16, Process, u32);

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// The upstream commits this version.
    Change(u32),
    /// A GET returns this version.
    Read(u32),
}

/// A register. The first operation that counts is a change to any version.
struct Job;

impl Specification for Job {
    type State = Option<u32>;
    type Operation = Operation;

    fn init() -> Option<u32> {
        None
    }

    fn apply(operation: &Operation, state: &Option<u32>) -> (bool, Option<u32>) {
        match *operation {
            Operation::Change(to) => (state.is_none_or(|version| version + 1 == to), Some(to)),
            Operation::Read(version) => (*state == Some(version), *state),
        }
    }
}

/// A change as the readers of one process must see it.
#[derive(Clone, Copy)]
struct Change {
    version: u32,
    start: Micros,
    /// `None` if it never binds them.
    binds_from: Option<Micros>,
}

/// Returns the groups with a read that no order of the operations explains. Only the last read of
/// a group to begin is checked: every change that binds an earlier one binds it as well.
pub(super) fn unexplained(history: &History, staleness_ms: u64) -> BTreeSet<ReadGroup> {
    let mut last: BTreeMap<ReadGroup, &Read> = BTreeMap::new();
    for read in &history.reads {
        let of_group = last.entry((read.job, read.process, read.version)).or_insert(read);
        if read.start > of_group.start {
            *of_group = read;
        }
    }
    let floors = unsealed_floors(history);
    let mut changes = HashMap::new();
    let mut groups = BTreeSet::new();
    for (group, read) in last {
        let (job, process, _) = group;
        let changes = changes
            .entry((job, process))
            .or_insert_with(|| changes_for(history, floors.get(&job), job, process));
        if !is_explained(changes, read, staleness_ms) {
            groups.insert(group);
        }
    }
    groups
}

/// Returns the changes of a job in the order of their versions.
fn changes_for(
    history: &History,
    floors: Option<&Floors>,
    job: u16,
    process: Process,
) -> Vec<Change> {
    let binds_from = |version| {
        let binding = floors?.binding(process).filter(|floor| floor.version == version);
        binding.map(|floor| floor.from).min()
    };
    let commits = history.commits.iter().filter(|commit| commit.job == job);
    let mut changes: Vec<_> = commits
        .map(|commit| Change {
            version: commit.version,
            start: commit.at.minus_ms(RECORDED_WITHIN_MS),
            binds_from: binds_from(commit.version),
        })
        .collect();
    changes.sort_by_key(|change| change.version);
    changes
}

/// Whether the read fits into some order of the changes. Changes before the version that was read
/// cannot matter, because versions only grow.
fn is_explained(changes: &[Change], read: &Read, staleness_ms: u64) -> bool {
    let mut actions = Vec::new();
    let end_of_time = Micros(u64::MAX);
    let mut add = |operation, start: Micros, end: Micros| {
        let client = actions.len();
        // At the same microsecond a call precedes a response: the operations overlap.
        actions.push((start, 0, client, Action::Call(operation)));
        actions.push((end, 1, client, Action::Response(operation)));
    };
    let from = changes.partition_point(|change| change.version < read.version);
    if changes.get(from).is_none_or(|change| change.version > read.version) {
        // The job had this version before the run.
        add(Operation::Change(read.version), Micros(0), Micros(0));
    }
    for change in changes[from..].iter().filter(|change| change.start <= read.end()) {
        let end = change.binds_from.unwrap_or(end_of_time);
        add(Operation::Change(change.version), change.start.min(end), end);
    }
    add(Operation::Read(read.version), read.start.minus_ms(staleness_ms), read.end());
    actions.sort_by_key(|(at, rank, client, _)| (*at, *rank, *client));
    let actions = actions.into_iter().map(|(_, _, client, action)| (client, action)).collect();
    WGLChecker::<Job>::is_linearizable(Operations::from_actions(actions))
}
