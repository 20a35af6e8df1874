//! The judge: each GET with 200 must return at least the newest version that was acknowledged
//! before the GET began.
//!
//! Each such change gives a [`Floor`]. The documented limits are applied only here:
//!
//! - A write with `invalidation-pending` in its answer, or a purge answered 503, is a floor for the
//!   sidecar that gave the answer, while that process lives.
//! - A write that commits while its body streams cannot say so in its head. It counts like the
//!   above if Redis was in trouble, or if its end was held back for the whole budget.
//! - A write without an answer (hang-up, sidecar killed, connection broken) was not acknowledged.
//!   But it was fenced: from its commit on no reader gets the state before. So it is a floor from
//!   its commit, unless Redis was in trouble and may not have had the fence.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use super::{
    faults::Fault,
    record::{Commit, History, How, Kind, Micros, Outcome, Process, Read, Trouble, Write},
    second_judge::ReadGroup,
};

/// Time that a sidecar needs to find its store again, in addition to the backoff: to connect and to
/// replay.
const RECOVERY_MS: u64 = 300;
/// The longest backoff. It doubles, so it is no longer than the trouble, including earlier ones
/// from which sidecars had not recovered.
const BACKOFF_MS: u64 = 1000;
/// The store budget of the runs, less the inaccuracy of a clock.
const BUDGET_MS: u64 = 90;

/// The oldest version that may be read, from this time on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) from: Micros,
    pub(super) version: u32,
    write: Write,
    commit: Commit,
}

/// A GET that returned an older body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Violation {
    read: Read,
    floor: Floor,
}

/// Counts of what was judged, to show that a run was not vacuous.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) reads: usize,
    pub(super) hits: usize,
    pub(super) collapsed: usize,
    pub(super) stored: usize,
    pub(super) failed_reads: usize,
    pub(super) dropped_reads: usize,
    pub(super) puts: usize,
    pub(super) puts_in_body: usize,
    pub(super) purges: usize,
    pub(super) dels: usize,
    /// Writes without an answer that are floors nevertheless.
    pub(super) gone: usize,
    /// Exempt: floors for their own sidecar only.
    pub(super) unconfirmed: usize,
    pub(super) unsure_in_body: usize,
    /// Exempt: not floors.
    pub(super) gone_in_trouble: usize,
    pub(super) never_committed: usize,
    pub(super) faults: BTreeMap<Fault, usize>,
}

pub(super) struct Verdict {
    pub(super) counts: Counts,
    /// The first few, by start.
    pub(super) violations: Vec<Violation>,
    pub(super) total: usize,
    /// The groups of all violations.
    pub(super) groups: BTreeSet<ReadGroup>,
}

/// The floors of one job, for everyone and for single processes; each list is sorted, with rising
/// versions.
#[derive(Default)]
pub(super) struct Floors {
    all: Vec<Floor>,
    own: HashMap<Process, Vec<Floor>>,
}

impl Floors {
    /// Returns the floors for the readers of a process.
    pub(super) fn binding(&self, process: Process) -> impl Iterator<Item = &Floor> {
        self.all.iter().chain(self.own.get(&process).into_iter().flatten())
    }

    fn seal(&mut self) {
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
    fn under(&self, read: &Read, staleness_ms: u64) -> Option<&Floor> {
        let start = read.start.minus_ms(staleness_ms);
        let last = |floors: &'_ Vec<Floor>| {
            floors.partition_point(|floor| floor.from < start).checked_sub(1)
        };
        let all = last(&self.all).map(|at| &self.all[at]);
        let own = self.own.get(&read.process).and_then(|own| last(own).map(|at| &own[at]));
        all.into_iter().chain(own).max_by_key(|floor| floor.version)
    }
}

/// Judges a whole run.
pub(super) fn judge(history: &History, staleness_ms: u64) -> Verdict {
    let mut counts = Counts {
        reads: history.reads.len(),
        failed_reads: history.failed_reads,
        dropped_reads: history.dropped_reads,
        ..Counts::default()
    };
    for trouble in &history.troubles {
        *counts.faults.entry(trouble.fault).or_default() += 1;
    }
    let mut floors = floors(history, &mut counts);
    floors.values_mut().for_each(Floors::seal);
    let mut violations = Vec::new();
    for read in &history.reads {
        match read.how {
            How::Hit => counts.hits += 1,
            How::Collapsed => counts.collapsed += 1,
            How::Stored => counts.stored += 1,
            How::Miss | How::Pass => {}
        }
        if let Some(floor) =
            floors.get(&read.job).and_then(|floors| floors.under(read, staleness_ms))
            && read.version < floor.version
        {
            violations.push(Violation { read: *read, floor: *floor });
        }
    }
    let total = violations.len();
    let group = |Violation { read, .. }: &Violation| (read.job, read.process, read.version);
    let groups = violations.iter().map(group).collect();
    violations.sort_by_key(|violation| violation.read.start);
    violations.truncate(3);
    Verdict { counts, violations, total, groups }
}

fn floors(history: &History, counts: &mut Counts) -> HashMap<u16, Floors> {
    let commits: HashMap<u64, Commit> =
        history.commits.iter().map(|commit| (commit.number, *commit)).collect();
    let mut floors: HashMap<u16, Floors> = HashMap::new();
    for write in &history.writes {
        let Some(commit) = commits.get(&write.number).copied() else {
            counts.never_committed += 1;
            continue;
        };
        let floor = |from| Floor { from, version: commit.version, write: *write, commit };
        let of_job = floors.entry(write.job).or_default();
        match write.outcome {
            Outcome::Acknowledged if is_unsure(history, write, &commit) => {
                counts.unsure_in_body += 1;
                of_job.own.entry(write.process).or_default().push(floor(write.end));
            }
            Outcome::Acknowledged => {
                *match write.kind {
                    Kind::Put if commit.in_body => &mut counts.puts_in_body,
                    Kind::Put => &mut counts.puts,
                    Kind::Purge => &mut counts.purges,
                    Kind::Del => &mut counts.dels,
                } += 1;
                of_job.all.push(floor(write.end));
            }
            Outcome::Unconfirmed => {
                counts.unconfirmed += 1;
                of_job.own.entry(write.process).or_default().push(floor(write.end));
            }
            Outcome::Unknown | Outcome::HungUp if is_fenced(history, write, &commit) => {
                counts.gone += 1;
                of_job.all.push(floor(commit.at));
            }
            Outcome::Unknown | Outcome::HungUp => counts.gone_in_trouble += 1,
        }
    }
    floors
}

/// Returns the floors of each job, in no order.
pub(super) fn unsealed_floors(history: &History) -> HashMap<u16, Floors> {
    floors(history, &mut Counts::default())
}

/// Returns whether the second end of a write may be unconfirmed, which its head could not say.
fn is_unsure(history: &History, write: &Write, commit: &Commit) -> bool {
    let held_back = commit.sent.is_none_or(|sent| write.end >= sent.plus_ms(BUDGET_MS));
    commit.in_body && (held_back || is_troubled(history, write.start, write.end))
}

/// Returns whether a write without an answer was fenced when it committed, and still is.
fn is_fenced(history: &History, write: &Write, commit: &Commit) -> bool {
    // A commit during the body comes after the fence was lifted.
    write.kind == Kind::Put && !commit.in_body && !is_troubled(history, write.start, commit.at)
}

/// Returns whether a sidecar may have been without its store.
fn is_troubled(history: &History, from: Micros, to: Micros) -> bool {
    recoveries(&history.troubles).any(|(begin, end)| begin <= to && from <= end)
}

/// For each trouble in order, returns the period in which a sidecar may have been without its
/// store. A trouble before all have recovered from the last one makes the backoff longer still.
fn recoveries(troubles: &[Trouble]) -> impl Iterator<Item = (Micros, Micros)> {
    troubles.iter().scan(None, |last, trouble| {
        if trouble.fault == Fault::SidecarKilled {
            // The sidecar comes back at the end, and must then connect.
            return Some((trouble.end.minus_ms(500), trouble.end.plus_ms(1000)));
        }
        let went_on = last.filter(|(_, until)| trouble.start <= *until);
        let since = went_on.map_or(trouble.start, |(since, _)| since);
        let backoff = BACKOFF_MS.min((trouble.end.0 - since.0) / 1000);
        let until = trouble.end.plus_ms(backoff + RECOVERY_MS);
        *last = Some((since, until));
        Some((trouble.start.minus_ms(50), until))
    })
}

impl Violation {
    /// Returns the part of the history that shows the violation: the events of this job from
    /// shortly before the commit until the GET was answered.
    pub(super) fn explain(&self, history: &History) -> String {
        let (job, stale, floor) = (self.read.job, &self.read, &self.floor);
        let from = floor.commit.at.minus_ms(400);
        let to = stale.end();
        let mut lines: Vec<(Micros, String)> = Vec::new();
        let overlaps = |start: Micros, end: Micros| start <= to && end >= from;
        for Trouble { fault, start, end } in &history.troubles {
            if overlaps(start.minus_ms(2000), end.plus_ms(2000)) {
                lines.push((*start, format!("{start} to {end}  FAULT {fault:?}")));
            }
        }
        for commit in history.commits.iter().filter(|commit| commit.job == job) {
            if overlaps(commit.at, commit.at) {
                let Commit { version, number, at, .. } = commit;
                lines.push((
                    *at,
                    format!("{at}                committed {version} (write {number})"),
                ));
            }
        }
        for write in history.writes.iter().filter(|write| write.job == job) {
            if overlaps(write.start, write.end) {
                let Write { number, kind, start, end, process, outcome, .. } = write;
                let line =
                    format!("{start} to {end}  {process} {kind:?} {outcome:?} (write {number})");
                lines.push((*start, line));
            }
        }
        let reads = history.reads.iter().filter(|read| read.job == job);
        let mut reads: Vec<_> = reads
            .filter(|read| read.start <= stale.start && overlaps(read.start, read.end()))
            .collect();
        reads.sort_by_key(|read| read.start);
        // The last reads before it and the stale one itself; more may have begun while it lasted.
        for read in &reads[reads.len().saturating_sub(40)..] {
            let Read { start, process, version, how, .. } = read;
            let mark = if read.start == stale.start { "  <== STALE" } else { "" };
            let line = format!("{start} to {}  {process} GET {version} {how:?}{mark}", read.end());
            lines.push((*start, line));
        }
        lines.sort();
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        format!("{self}\n{}", lines.join("\n"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { read, floor } = self;
        let Write { kind, outcome, number, .. } = floor.write;
        write!(
            f,
            "job j{}: a GET through {} that began at {} returned version {}, but version {} stood \
             from {} ({kind:?} {outcome:?}, write {number})",
            read.job, read.process, read.start, read.version, floor.version, floor.from,
        )
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = 100 * self.hits / self.reads.max(1);
        writeln!(
            f,
            "  reads {} (hits {} = {ratio} %, collapsed {}, stored {}), failed {}, hung up {}",
            self.reads,
            self.hits,
            self.collapsed,
            self.stored,
            self.failed_reads,
            self.dropped_reads
        )?;
        writeln!(
            f,
            "  acknowledged: PUT {}, PUT in body {}, purge {}, DEL {}; unanswered but fenced {}",
            self.puts, self.puts_in_body, self.purges, self.dels, self.gone
        )?;
        writeln!(
            f,
            "  exempt: invalidation-pending or 503 {}, unsure in body {}, \
             unanswered in trouble {}; never committed {}",
            self.unconfirmed, self.unsure_in_body, self.gone_in_trouble, self.never_committed
        )?;
        write!(f, "  faults: {:?}", self.faults)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::second_judge::unexplained, *};

    const A: Process = Process { sidecar: 0, life: 0 };
    const B: Process = Process { sidecar: 1, life: 0 };

    /// Checks one write from 10 to 20 ms that committed version 7 at 15 ms, and one GET of version
    /// 6.
    #[track_caller]
    fn check(outcome: Outcome, process: Process, start_ms: u64, fault: Option<Fault>, bad: bool) {
        let ms = |ms: u64| Micros(ms * 1000);
        let (start, end, kind) = (ms(10), ms(20), Kind::Put);
        let write = Write { number: 1, kind, start, end, job: 3, process: A, outcome };
        let commit =
            Commit { number: 1, job: 3, version: 7, at: ms(15), in_body: false, sent: None };
        let (start, how) = (ms(start_ms), How::Hit);
        let read = Read { start, took_us: 10, version: 6, job: 3, process, how };
        let trouble = fault.map(|fault| Trouble { fault, start: ms(5), end: ms(12) });
        let history = History {
            reads: vec![read, Read { version: 7, ..read }, Read { job: 4, ..read }],
            writes: vec![write],
            commits: vec![commit],
            troubles: trouble.into_iter().collect(),
            ..History::default()
        };
        let verdict = judge(&history, 0);
        assert_eq!(verdict.total, usize::from(bad));
        assert_eq!(unexplained(&history, 0), verdict.groups);
        for violation in verdict.violations {
            let slice = violation.explain(&history);
            assert!(slice.contains("GET 6 Hit  <== STALE") && slice.contains("committed 7"));
        }
    }

    #[test]
    fn who_begins_after_the_acknowledgement_must_see_the_write() {
        check(Outcome::Acknowledged, B, 21, None, true);
        check(Outcome::Acknowledged, B, 20, None, false);
        check(Outcome::Acknowledged, B, 21, Some(Fault::ShortStop), true);
    }

    #[test]
    fn an_unconfirmed_write_binds_the_process_that_said_so() {
        check(Outcome::Unconfirmed, A, 21, None, true);
        check(Outcome::Unconfirmed, B, 21, None, false);
        check(Outcome::Unconfirmed, Process { life: 1, ..A }, 21, None, false);
    }

    #[test]
    fn a_write_that_nobody_was_told_of_binds_from_its_commit_if_it_was_fenced() {
        check(Outcome::HungUp, B, 16, None, true);
        check(Outcome::HungUp, B, 15, None, false);
        check(Outcome::Unknown, B, 16, Some(Fault::Held), false);
        check(Outcome::Unknown, B, 16, Some(Fault::SidecarKilled), false);
    }

    #[test]
    fn trouble_upon_trouble_makes_the_backoff_longer() {
        let ms = |ms: u64| Micros(ms * 1000);
        let until = |troubles: &[(u64, u64)]| {
            let trouble =
                |(start, end)| Trouble { fault: Fault::Refused, start: ms(start), end: ms(end) };
            let troubles: Vec<_> = troubles.iter().copied().map(trouble).collect();
            recoveries(&troubles).last().map(|(_, until)| until)
        };
        let (long, short, later) = ((1_000, 1_800), (2_400, 2_430), (3_000, 3_030));
        assert_eq!(until(&[short]), Some(ms(2_430 + 30 + RECOVERY_MS)));
        assert_eq!(until(&[long, short]), Some(ms(2_430 + BACKOFF_MS + RECOVERY_MS)));
        assert_eq!(until(&[long, later]), Some(ms(3_030 + 30 + RECOVERY_MS)));
    }
}
