//! The figures of polling and push, next to each other, within 80 columns.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use super::{
    api::SampleJobs,
    figures::{DemoGroup, Figures, Quantiles},
};

/// The two groups, each with jobs of its own, so that the reads of the API have a cause.
pub(super) struct SideBySide {
    clients: u16,
    jobs_each: usize,
    jobs: Arc<SampleJobs>,
    figures: Arc<Figures>,
}

/// The figures of one group since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GroupTotals {
    requests: u64,
    reads: u64,
    changes: u64,
    delay: Option<Quantiles>,
    failed: u64,
    stale: u64,
}

impl SideBySide {
    pub(super) fn new(
        clients: u16,
        jobs_each: usize,
        jobs: Arc<SampleJobs>,
        figures: Arc<Figures>,
    ) -> Self {
        Self { clients, jobs_each, jobs, figures }
    }

    /// The figures in one line under [`HEADING`].
    pub(super) fn line(&self, at: Duration) -> String {
        line(at, &self.totals())
    }

    /// The closing table.
    pub(super) fn summary(&self, at: Duration) -> String {
        summary(at, self.clients, self.figures.totals().purges, &self.totals())
    }

    fn totals(&self) -> [GroupTotals; 2] {
        let (polls, streams) = (self.figures.totals(), self.figures.streams());
        let (changes, delay) = self.figures.changes(DemoGroup::Polling);
        let polling = GroupTotals {
            requests: polls.polls,
            reads: self.jobs.reads(0..self.jobs_each),
            changes,
            delay,
            failed: polls.failed,
            stale: polls.stale,
        };
        let (changes, delay) = self.figures.changes(DemoGroup::Push);
        let push = GroupTotals {
            requests: streams.requests,
            reads: self.jobs.reads(self.jobs_each..2 * self.jobs_each),
            changes,
            delay,
            failed: streams.failed,
            stale: streams.stale,
        };
        [polling, push]
    }
}

/// The heading of [`SideBySide::line`].
pub(super) const HEADING: &str = concat!(
    "       --------- polling ----------  ------ push (streams) -------\n",
    " time   requests    reads     delay   requests    reads     delay\n",
);

fn line(at: Duration, [polling, push]: &[GroupTotals; 2]) -> String {
    let seconds = at.as_secs();
    let mut line = format!("{:02}:{:02}", seconds / 60, seconds % 60);
    for group in [polling, push] {
        let GroupTotals { requests, reads, delay, .. } = group;
        let _ = write!(line, "  {requests:>9} {reads:>8} {:>9}", time(delay.map(|it| it.p50)));
    }
    for (count, label) in
        [(polling.stale + push.stale, "stale"), (polling.failed + push.failed, "failed")]
    {
        if count > 0 {
            let _ = write!(line, " {count} {label}");
        }
    }
    line
}

fn summary(at: Duration, clients: u16, purges: u64, groups: &[GroupTotals; 2]) -> String {
    let at = humantime::format_duration(Duration::from_secs(at.as_secs()));
    let title = format!("In {at}:");
    let mut text = format!("{title:<16} {:>10}   {:>10}\n", "polling", "push");
    let mut row = |name: &str, [polling, push]: [String; 2], meaning: &str| {
        let line = format!("  {name:<14} {polling:>10}   {push:>10}   {meaning}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    let counts = |count: fn(&GroupTotals) -> u64| groups.each_ref().map(|it| count(it).to_string());
    let times = |part: fn(Quantiles) -> Duration| groups.map(|it| time(it.delay.map(part)));
    row("clients", [clients, clients].map(|n| n.to_string()), "");
    row("requests", counts(|it| it.requests), "of the clients");
    row("upstream reads", counts(|it| it.reads), "queries of the API");
    row("changes seen", counts(|it| it.changes), "by one client each");
    row("median delay", times(|it| it.p50), "from a change to the client");
    row("p99 delay", times(|it| it.p99), "");
    row("stale answers", counts(|it| it.stale), "older than an earlier purge");
    if groups.iter().any(|it| it.failed > 0) {
        row("failed", counts(|it| it.failed), "without a usable answer");
    }
    let _ = writeln!(text, "  {:<14} {purges:>10}   {:>10}   for both", "purges", "");
    text
}

fn time(time: Option<Duration>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| match time.as_secs_f64() {
            seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
            seconds => format!("{:.1} ms", seconds * 1_000.0),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(requests: u64, reads: u64, delay_ms: u64) -> GroupTotals {
        let delay = Duration::from_millis(delay_ms);
        let delay = Some(Quantiles { p50: delay, p99: delay * 2 });
        GroupTotals { requests, reads, changes: 7, delay, failed: 0, stale: 0 }
    }

    #[test]
    fn both_groups_stand_under_their_headings_within_80_columns() {
        let mut groups = [group(120_000_000, 12_345_678, 2_510), group(10_000, 98, 7)];
        groups[1].failed = 12;
        let (at, last) = (Duration::from_secs(5_999), HEADING.lines().next_back().unwrap());
        let line = line(at, &groups);
        assert_eq!(
            line,
            "99:59  120000000 12345678    2.51 s      10000       98    7.0 ms 12 failed"
        );
        for (end, word) in [(16, "requests"), (25, "reads"), (35, "delay"), (65, "delay")] {
            assert!(last[..end].ends_with(word), "{word} in {last:?}");
        }
        let summary = summary(at, 10_000, 3, &groups);
        for line in summary.lines().chain(HEADING.lines()).chain([&*line]) {
            assert!(line.len() <= 80, "{} columns: {line}", line.len());
        }
        assert!(summary.contains("\n  median delay       2.51 s       7.0 ms   from"), "{summary}");
    }

    #[test]
    fn a_group_that_has_seen_no_change_has_no_delay() {
        let none = GroupTotals { delay: None, ..group(1, 1, 0) };
        assert!(line(Duration::ZERO, &[none, none]).ends_with("        1         -"));
    }
}
