//! A second, independent judge of the same record: the linearizability checker of `todc-utils`.
//!
//! A job is a register, as each caller sees it. Its version grows by one, because the upstream commits one change after
//! another. A change is an operation that lasts from its start to the moment from which it binds
//! the reader (see [`Floor`](super::floors::Floor)); a change that never binds the reader never
//! ends. The guarantee is that of a regular register: two readers during one change may see it in
//! either order. So each read is checked on its own, together with the changes. The upstream's
//! first read of a version for a caller is an operation too, which must come between the change to
//! that version and the caller's read of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use todc_utils::linearizability::{
    WGLChecker,
    history::{Action, History as Operations},
};
use todc_utils::specifications::Specification;

use super::{
    callers::Caller,
    floors::Floors,
    judge::unsealed_floors,
    record::{History, Micros, Process, Read},
};

/// How long after a commit its time may be taken.
const RECORDED_WITHIN_MS: u64 = 200;

/// Names the reads of a version of a job by a caller through a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReadGroup {
    job: u16,
    process: Process,
    version: u32,
    caller: Caller,
    view: Option<Caller>,
}

impl ReadGroup {
    pub(super) fn of(read: &Read) -> Self {
        let Read { job, process, version, caller, view, .. } = *read;
        Self { job, process, version, caller, view }
    }
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    /// The upstream commits this version.
    Change(u32),
    /// The upstream reads this version for the caller.
    Serve(u32),
    /// A GET returns this version to the caller.
    Read { version: u32, is_own_view: bool },
}

/// The state of a job for one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Version {
    number: u32,
    is_served: bool,
}

/// A register. The first operation that counts is a change to any version.
struct Job;

impl Specification for Job {
    type State = Option<Version>;
    type Operation = Operation;

    fn init() -> Option<Version> {
        None
    }

    fn apply(operation: &Operation, state: &Option<Version>) -> (bool, Option<Version>) {
        let is_at = |number| state.is_some_and(|version| version.number == number);
        match *operation {
            Operation::Change(number) => {
                let follows = state.is_none_or(|version| version.number + 1 == number);
                (follows, Some(Version { number, is_served: false }))
            }
            Operation::Serve(number) => (is_at(number), Some(Version { number, is_served: true })),
            Operation::Read { version, is_own_view } => {
                let is_served = state.is_some_and(|version| version.is_served);
                (is_at(version) && is_served && is_own_view, *state)
            }
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

/// Returns the groups with a read that no order of the operations explains. Only two reads of a
/// group are checked: the last one to begin, because every change that binds an earlier one binds
/// it as well, and the first one to end, because what had been served to it had been to all.
pub(super) fn unexplained(history: &History, staleness_ms: u64) -> BTreeSet<ReadGroup> {
    let mut of_groups: BTreeMap<ReadGroup, [&Read; 2]> = BTreeMap::new();
    for read in &history.reads {
        let [last, first] = of_groups.entry(ReadGroup::of(read)).or_insert([read, read]);
        if read.start > last.start {
            *last = read;
        }
        if read.end() < first.end() {
            *first = read;
        }
    }
    let floors = unsealed_floors(history);
    let mut changes = HashMap::new();
    let mut groups = BTreeSet::new();
    for (group, reads) in of_groups {
        let ReadGroup { job, process, version, caller, .. } = group;
        let changes = changes
            .entry((job, process))
            .or_insert_with(|| changes_for(history, floors.get(&job), job, process));
        let served = history.served.get(&(job, version, caller)).copied();
        if !reads.iter().all(|read| is_explained(changes, served, read, staleness_ms)) {
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
fn is_explained(
    changes: &[Change],
    served: Option<Micros>,
    read: &Read,
    staleness_ms: u64,
) -> bool {
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
    for change in changes[from..].iter().take_while(|change| change.start <= read.end()) {
        let end = change.binds_from.unwrap_or(end_of_time);
        add(Operation::Change(change.version), change.start.min(end), end);
    }
    if let Some(served) = served.filter(|served| *served <= read.end()) {
        add(Operation::Serve(read.version), served, end_of_time);
    }
    let is_own_view = read.view.is_none_or(|view| view == read.caller);
    let of_read = Operation::Read { version: read.version, is_own_view };
    add(of_read, read.start.minus_ms(staleness_ms), read.end());
    actions.sort_by_key(|(at, rank, client, _)| (*at, *rank, *client));
    let actions = actions.into_iter().map(|(_, _, client, action)| (client, action)).collect();
    WGLChecker::<Job>::is_linearizable(Operations::from_actions(actions))
}
