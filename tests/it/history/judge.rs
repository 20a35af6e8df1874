//! The judge: each GET with 200 must return at least the newest version that was acknowledged
//! before the GET began, and only what the upstream has read for this caller.
//!
//! Each acknowledged change gives a [`Floor`]. The documented limits are applied only here:
//!
//! - A write with `invalidation-pending` in its answer, or a purge answered 503, is a floor for the
//!   sidecar that gave the answer, while that process lives.
//! - A write that commits while its body streams cannot say so in its head. It counts like the
//!   above if Redis was in trouble, or if its end was held back for the whole budget.
//! - A write without an answer (hang-up, sidecar killed, connection broken) was not acknowledged.
//!   But it was fenced: from its commit on no reader gets the state before. So it is a floor from
//!   its commit, unless Redis was in trouble and may not have had the fence. Where only the answer
//!   names the job, or a rule cannot read it, there is no fence.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use super::{
    counts::Counts,
    faults::Fault,
    floors::{Floor, Floors},
    record::{Commit, History, Kind, Micros, Outcome, Process, Read, Trouble, Write},
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

/// A GET that returned a body that it may not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Violation {
    read: Read,
    wrong: Wrong,
}

#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// An older body.
    Stale(Floor),
    /// A body that the upstream had not read for this caller.
    Leaked,
}

#[derive(Default)]
pub(super) struct Verdict {
    pub(super) counts: Counts,
    /// The first few, by start.
    pub(super) violations: Vec<Violation>,
    pub(super) stale: usize,
    pub(super) leaked: usize,
    /// The changes that stale reads have missed.
    pub(super) missed: BTreeSet<Kind>,
    /// The groups of all violations.
    pub(super) groups: BTreeSet<ReadGroup>,
}

/// Judges a whole run.
pub(super) fn judge(history: &History, staleness_ms: u64) -> Verdict {
    let mut counts = Counts::of(history);
    let mut floors = floors(history, &mut counts);
    floors.values_mut().for_each(Floors::seal);
    let mut verdict = Verdict { counts, ..Verdict::default() };
    for read in &history.reads {
        verdict.counts.add_read(read, history.residents);
        let floor = floors.get(&read.job).and_then(|floors| floors.under(read, staleness_ms));
        if let Some(floor) = floor
            && read.version < floor.version
        {
            verdict.stale += 1;
            verdict.missed.insert(floor.write.kind);
            verdict.violations.push(Violation { read: *read, wrong: Wrong::Stale(*floor) });
        }
        if is_leaked(history, read) {
            verdict.leaked += 1;
            verdict.violations.push(Violation { read: *read, wrong: Wrong::Leaked });
        }
    }
    verdict.groups = verdict.violations.iter().map(|it| ReadGroup::of(&it.read)).collect();
    verdict.violations.sort_by_key(|violation| violation.read.start);
    verdict.violations.truncate(3);
    verdict
}

/// Returns whether the body names another caller, or the upstream has never read this version for
/// this caller.
fn is_leaked(history: &History, read: &Read) -> bool {
    let served = history.served.get(&(read.job, read.version, read.caller));
    let is_anothers = read.view.is_some_and(|view| view != read.caller);
    is_anothers || served.is_none_or(|at| *at > read.end())
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
                counts.add_acknowledged(write.kind, commit.in_body);
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
            Outcome::Unknown | Outcome::HungUp => counts.gone_unfenced += 1,
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
    // After the head of the answer a fence only stands for a limited time.
    let has_fence = matches!(write.kind, Kind::Put(spelling) if spelling.is_fenced());
    has_fence && !commit.in_body && !is_troubled(history, write.start, commit.at)
}

/// Returns whether a sidecar may have been without its store.
fn is_troubled(history: &History, from: Micros, to: Micros) -> bool {
    recoveries(&history.troubles).any(|(begin, end)| begin <= to && from <= end)
}

/// For each trouble in order, returns the period in which a sidecar may have been without its
/// store. A trouble before all have recovered from the last one makes the backoff longer still.
pub(super) fn recoveries(troubles: &[Trouble]) -> impl Iterator<Item = (Micros, Micros)> {
    troubles.iter().scan(None, |last, trouble| {
        if matches!(trouble.fault, Fault::SidecarKilled | Fault::Joined) {
            // The sidecar comes up at the end, and must then connect.
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
        let (job, stale) = (self.read.job, &self.read);
        let since = match &self.wrong {
            Wrong::Stale(floor) => floor.commit.at,
            Wrong::Leaked => stale.start,
        };
        let from = since.minus_ms(400);
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
            let Read { start, process, version, how, caller, .. } = read;
            let mark = match self.wrong {
                _ if read.start != stale.start => "",
                Wrong::Stale(_) => "  <== STALE",
                Wrong::Leaked => "  <== LEAKED",
            };
            let end = read.end();
            let line =
                format!("{start} to {end}  {process} GET {version} {how:?} by {caller}{mark}");
            lines.push((*start, line));
        }
        lines.sort();
        let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
        format!("{self}\n{}", lines.join("\n"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Read { job, process, start, version, caller, view, .. } = self.read;
        write!(f, "job {job}: a GET through {process} that began at {start} returned ")?;
        match self.wrong {
            Wrong::Stale(Floor { from, version: newer, write, .. }) => {
                let Write { kind, outcome, number, .. } = write;
                write!(
                    f,
                    "version {version}, but version {newer} stood from {from} ({kind:?} \
                     {outcome:?}, write {number})"
                )
            }
            Wrong::Leaked => write!(
                f,
                "version {version} (view of {view:?}) to caller {caller}, for whom the upstream \
                 had not read it"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{callers::ANONYMOUS, record::How, second_judge::unexplained, spelling::Spelling},
        *,
    };

    const A: Process = Process { sidecar: 0, life: 0 };
    const B: Process = Process { sidecar: 1, life: 0 };

    /// Checks one write from 10 to 20 ms that committed version 7 at 15 ms, and one GET of version
    /// 6.
    #[track_caller]
    fn check(outcome: Outcome, process: Process, start_ms: u64, fault: Option<Fault>, bad: bool) {
        let ms = |ms: u64| Micros(ms * 1000);
        let (start, end, kind) = (ms(10), ms(20), Kind::Put(Spelling::Plain));
        let write = Write { number: 1, kind, start, end, job: 3, process: A, outcome };
        let commit =
            Commit { number: 1, job: 3, version: 7, at: ms(15), in_body: false, sent: None };
        let (start, how) = (ms(start_ms), How::Hit);
        let (caller, view) = (ANONYMOUS, None);
        let read = Read { start, took_us: 10, version: 6, job: 3, process, how, caller, view };
        let trouble = fault.map(|fault| Trouble { fault, start: ms(5), end: ms(12) });
        let history = History {
            reads: vec![read, Read { version: 7, ..read }, Read { job: 4, ..read }],
            writes: vec![write],
            commits: vec![commit],
            served: [(3, 6), (3, 7), (4, 6)].map(|(job, v)| ((job, v, caller), ms(1))).into(),
            troubles: trouble.into_iter().collect(),
            ..History::default()
        };
        let verdict = judge(&history, 0);
        assert_eq!((verdict.stale, verdict.leaked), (usize::from(bad), 0));
        assert_eq!(unexplained(&history, 0), verdict.groups);
        for violation in verdict.violations {
            let slice = violation.explain(&history);
            assert!(slice.contains("Hit by 0  <== STALE") && slice.contains("committed 7"));
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

    /// Checks a read by caller 1, with the first read of the upstream for it at this time.
    #[track_caller]
    fn check_leak(served_ms: Option<u64>, view: Option<u8>, bad: bool) {
        let (start, how) = (Micros(20_000), How::Hit);
        let read =
            Read { start, took_us: 10, version: 0, job: 3, process: A, how, caller: 1, view };
        let served = served_ms.map(|ms| ((3, 0, 1), Micros(ms * 1000)));
        let of_another = ((3, 0, 2), Micros(0));
        let served = served.into_iter().chain([of_another]).collect();
        let history = History { reads: vec![read], served, ..History::default() };
        let verdict = judge(&history, 0);
        assert_eq!((verdict.stale, verdict.leaked), (0, usize::from(bad)));
        assert_eq!(unexplained(&history, 0), verdict.groups);
        for violation in verdict.violations {
            assert!(violation.explain(&history).contains("Hit by 1  <== LEAKED"));
        }
    }

    #[test]
    fn a_caller_gets_what_the_upstream_has_read_for_it() {
        check_leak(Some(10), None, false);
        check_leak(Some(10), Some(1), false);
        check_leak(Some(20), Some(1), false);
        check_leak(Some(10), Some(2), true);
        check_leak(Some(21), None, true);
        check_leak(None, None, true);
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
