//! The judge of held polls and streams.
//!
//! What they deliver is judged like every other read: not older than what was acknowledged before the
//! request, and for this caller. The answer to a poll whose time is over counts as a read from the end
//! of that time. This judge adds:
//!
//! - The versions of a stream rise, so none is older than the one before and none comes twice.
//! - Every acknowledged change reaches every client that waits for the job within a [bound](Bounds),
//!   as itself or as a later version.

use std::fmt;

use super::{
    callers::Caller,
    floors::Floor,
    judge::{recoveries, unsealed_floors},
    record::{History, Micros, Process},
    world::Plan,
};

/// Longest wait for the fence of a write, and a second for a busy machine.
const QUIET_MS: u64 = 8_000;
/// Reads that a change may have to wait for: the one that began before it, and its own.
const READS: u64 = 2;

/// How late a change may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// After the acknowledgement, if there was no fault around it.
    quiet_ms: u64,
    /// After the last fault that may have hidden it.
    troubled_ms: u64,
}

impl Bounds {
    /// Two seconds for a fence, six for a busy machine, and two reads of the upstream; `push.recheck` in
    /// addition if there was a fault.
    pub(super) fn of(plan: &Plan) -> Self {
        let quiet_ms = QUIET_MS + READS * plan.behaviour.longest_read_ms() + plan.staleness_ms;
        let recheck_ms = u64::try_from(plan.push.recheck.as_millis()).expect("a short time");
        Self { quiet_ms, troubled_ms: quiet_ms + recheck_ms }
    }

    pub(super) fn latest_ms(self) -> u64 {
        self.troubled_ms + 1_000
    }
}

/// A held poll or a stream, from its request to its end.
#[derive(Clone, Debug)]
pub(super) struct Subscription {
    pub(super) job: u16,
    pub(super) caller: Caller,
    pub(super) process: Process,
    pub(super) is_stream: bool,
    pub(super) start: Micros,
    pub(super) end: Micros,
    /// What the client had, and then what it was given.
    pub(super) versions: Vec<(Micros, u32)>,
    /// The error with which a stream ended, although the upstream never refuses a job.
    pub(super) error: Option<String>,
}

/// What the judge found.
#[derive(Debug, Default)]
pub(super) struct PushVerdict {
    /// The first few.
    pub(super) violations: Vec<String>,
    pub(super) wrong: usize,
    polls: usize,
    streams: usize,
    /// Versions that were delivered.
    pub(super) delivered: usize,
    /// Milliseconds from the acknowledgement of each change to its delivery, without and with a
    /// fault around it.
    quiet: Vec<u64>,
    troubled: Vec<u64>,
}

/// Judges all clients that waited.
pub(super) fn judge_push(history: &History, bounds: Bounds) -> PushVerdict {
    let troubles: Vec<_> = recoveries(&history.troubles).collect();
    let mut floors = unsealed_floors(history);
    floors.values_mut().for_each(super::floors::Floors::seal);
    let mut verdict = PushVerdict::default();
    for subscription in &history.subscriptions {
        *if subscription.is_stream { &mut verdict.streams } else { &mut verdict.polls } += 1;
        let known = usize::from(
            subscription.versions.first().is_some_and(|(at, _)| *at == subscription.start),
        );
        verdict.delivered += subscription.versions.len() - known;
        if let Some(wrong) = subscription.disorder() {
            verdict.add(subscription, &wrong);
        }
        let Some(floors) = floors.get(&subscription.job) else { continue };
        let mut least = 0;
        let mut binding: Vec<&Floor> = floors.binding(subscription.process).collect();
        binding.sort_by_key(|floor| floor.from);
        for floor in binding {
            if floor.version <= least {
                continue;
            }
            least = floor.version;
            let (deadline, is_quiet) = deadline(floor.from, bounds, &troubles);
            verdict.add_change(subscription, floor, deadline, is_quiet);
        }
    }
    verdict
}

/// Returns when a change that was acknowledged at this time must have been delivered, and whether no
/// fault was around it.
fn deadline(from: Micros, bounds: Bounds, troubles: &[(Micros, Micros)]) -> (Micros, bool) {
    let (since, until) = (from.minus_ms(bounds.troubled_ms), from.plus_ms(bounds.quiet_ms));
    if !troubles.iter().any(|(begin, end)| *begin <= until && since <= *end) {
        return (until, true);
    }
    let mut at = from;
    for (begin, end) in troubles {
        if *begin <= at.plus_ms(bounds.troubled_ms) {
            at = at.max(*end);
        }
    }
    (at.plus_ms(bounds.troubled_ms), false)
}

impl Subscription {
    /// Describes versions that do not rise. A poll may be answered with what the client has: its tag
    /// may be that of another form.
    fn disorder(&self) -> Option<String> {
        if let Some(error) = &self.error {
            return Some(format!("ended with {error}"));
        }
        let at = self.versions.windows(2).find(|pair| pair[0].1 >= pair[1].1)?;
        let ((_, before), (at, version)) = (at[0], at[1]);
        let is_wrong = self.is_stream || version < before;
        is_wrong.then(|| format!("was given version {version} after version {before} at {at}"))
    }

    /// Returns when the client first had this version or a later one.
    fn has_since(&self, version: u32) -> Option<Micros> {
        self.versions.iter().find(|(_, had)| *had >= version).map(|(at, _)| *at)
    }
}

impl PushVerdict {
    fn add(&mut self, subscription: &Subscription, wrong: &str) {
        self.wrong += 1;
        if self.violations.len() < 3 {
            self.violations.push(format!("{subscription} {wrong}"));
        }
    }

    fn add_change(&mut self, of: &Subscription, floor: &Floor, deadline: Micros, is_quiet: bool) {
        if floor.from < of.start || floor.from > of.end {
            return;
        }
        let since = of.has_since(floor.version);
        if since.unwrap_or(of.end) > deadline {
            let Floor { from, version, write, .. } = floor;
            let had = since.map_or_else(|| "never".to_owned(), |at| format!("not before {at}"));
            let wrong = format!(
                "was given version {version} {had}, although it stood from {from} ({:?} {:?} \
                 through {}) and was due at {deadline}",
                write.kind, write.outcome, write.process
            );
            self.add(of, &wrong);
        }
        if let Some(at) = since {
            let late = at.0.saturating_sub(floor.from.0) / 1000;
            if is_quiet { &mut self.quiet } else { &mut self.troubled }.push(late);
        }
    }
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { job, caller, process, is_stream, start, end, versions, .. } = self;
        let what = if *is_stream { "a stream" } else { "a held poll" };
        write!(f, "job {job}: {what} of caller {caller} through {process}, {start} to {end}, ")?;
        for (at, version) in &versions[versions.len().saturating_sub(6)..] {
            write!(f, "[{version} at {at}] ")?;
        }
        Ok(())
    }
}

impl fmt::Display for PushVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = |of: &[u64]| {
            let mut of = of.to_vec();
            of.sort_unstable();
            let at = |percent: usize| of.get((of.len() * percent / 100).min(of.len().max(1) - 1));
            let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).copied().unwrap_or(0));
            format!("{} changes p50 {p50}, p99 {p99}, max {max} ms", of.len())
        };
        write!(
            f,
            "  push: {} polls and {} streams were given {} versions; after the acknowledgement: {}; \
             around faults: {}",
            self.polls,
            self.streams,
            self.delivered,
            late(&self.quiet),
            late(&self.troubled)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            faults::Fault,
            record::{Commit, Kind, Outcome, Trouble, Write},
        },
        *,
    };

    const A: Process = Process { sidecar: 0, life: 0 };
    const BOUNDS: Bounds = Bounds { quiet_ms: 100, troubled_ms: 1_000 };

    /// Checks a stream that is open until 3 s, and version 7, which was acknowledged at 20 ms.
    #[track_caller]
    fn check(versions: &[(u64, u32)], fault: Option<Fault>, wrong: usize) {
        let ms = |ms: u64| Micros(ms * 1000);
        let (kind, outcome) = (Kind::Purge, Outcome::Acknowledged);
        let (start, end) = (ms(10), ms(20));
        let write = Write { number: 1, kind, start, end, job: 3, process: A, outcome };
        let commit =
            Commit { number: 1, job: 3, version: 7, at: ms(15), in_body: false, sent: None };
        let subscription = Subscription {
            job: 3,
            caller: 0,
            process: A,
            is_stream: true,
            start: ms(1),
            end: ms(3_000),
            versions: versions.iter().map(|(at, version)| (ms(*at), *version)).collect(),
            error: None,
        };
        let trouble = fault.map(|fault| Trouble { fault, start: ms(5), end: ms(12) });
        let history = History {
            writes: vec![write],
            commits: vec![commit],
            troubles: trouble.into_iter().collect(),
            subscriptions: vec![subscription],
            ..History::default()
        };
        assert_eq!(judge_push(&history, BOUNDS).wrong, wrong, "{versions:?}");
    }

    #[test]
    fn a_change_must_reach_who_waits_in_time() {
        check(&[(2, 6), (120, 7)], None, 0);
        check(&[(2, 6), (120, 8)], None, 0);
        check(&[(2, 6), (121, 7)], None, 1);
        check(&[(2, 6), (900, 7)], Some(Fault::ShortStop), 0);
        check(&[(2, 6), (2_900, 7)], Some(Fault::ShortStop), 1);
        check(&[(2, 6)], Some(Fault::ShortStop), 1);
    }

    #[test]
    fn the_versions_of_a_stream_must_rise() {
        check(&[(2, 8), (3, 9)], None, 0);
        check(&[(2, 8), (3, 8)], None, 1);
        check(&[(2, 9), (3, 8)], None, 1);
    }
}
