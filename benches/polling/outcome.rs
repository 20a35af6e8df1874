//! Results of the plays: table, bars, and the check of jobcache's promises.

use serde_json::{Value, json};

use crate::{
    Result,
    figures::{Counts, Latencies},
    plot::{Bar, Panel},
    scenario::{Callers, Front, Notice, PUBLISHED_READS, PUBLISHED_REDUCTION, Play, SCENARIO},
    stats::real,
    table::{Table, number},
};

/// Reads allowed per change of a job if users share them: one, plus a few by chance.
const READS_A_CHANGE: f64 = 1.5;
/// Largest accepted share of polls that find the store late; above it the machine was too busy for
/// a result.
const LATE: f64 = 0.001;

/// The result of one play.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) play: Play,
    /// Minutes of the scenario, not of the clock.
    pub(crate) minutes: f64,
    /// Queries of the API.
    pub(crate) reads: u64,
    /// Changes of jobs.
    pub(crate) changes: u64,
    /// CPU seconds of all sidecars and their Redis.
    pub(crate) cpu_seconds: f64,
    /// Memory of all sidecars at the end.
    pub(crate) memory_mib: f64,
    /// Stale answers before the measurement; they count as a fault, but not for the percentage.
    pub(crate) stale_before: u64,
    pub(crate) counts: Counts,
}

/// The results of all plays.
#[derive(Debug)]
pub(crate) struct Outcomes {
    /// The requested minutes of each play.
    pub(crate) minutes: u32,
    pub(crate) all: Vec<Outcome>,
}

impl Outcome {
    fn reads_a_minute(&self) -> f64 {
        real(self.reads) / self.minutes
    }

    fn polls_a_minute(&self) -> f64 {
        real(self.counts.polls) / self.minutes
    }

    /// Returns the percentage of polls that cost no read.
    pub(crate) fn reduction(&self) -> f64 {
        100.0 * (1.0 - real(self.reads) / real(self.counts.polls.max(1)))
    }

    /// Returns the percentage of polls with a stale answer.
    pub(crate) fn stale_percent(&self) -> f64 {
        let stale = self.counts.stale - self.stale_before;
        100.0 * real(stale) / real(self.counts.polls.max(1))
    }

    fn reads_a_change(&self) -> f64 {
        real(self.reads) / real(self.changes.max(1))
    }

    /// Returns the CPU seconds per 100,000 polls, or `None` without a sidecar.
    fn cpu_per_100k(&self) -> Option<f64> {
        let spent = (self.play.front != Front::Nothing).then_some(self.cpu_seconds)?;
        Some(spent * 1e5 / real(self.counts.polls.max(1)))
    }

    /// Returns the memory of one sidecar, or `None` without a sidecar.
    fn sidecar_mib(&self) -> Option<f64> {
        match self.play.front {
            Front::Nothing | Front::Microcache => None,
            Front::Sidecars(count) => Some(self.memory_mib / f64::from(count)),
        }
    }

    fn row(&self) -> Vec<String> {
        let Self { play, counts, .. } = self;
        vec![
            number(Some(f64::from(play.users))),
            play.jobs.to_string(),
            play.callers.as_str().to_owned(),
            play.front(),
            format!("x{}", play.factor),
            number(Some(self.polls_a_minute())),
            number(Some(self.reads_a_minute())),
            percent(self.reduction()),
            number(Some(self.reads_a_change())),
            pair(&counts.hit),
            pair(&counts.miss),
            pair(&counts.purge),
            number(self.cpu_per_100k()),
            number(self.sidecar_mib()),
            counts.late.to_string(),
            counts.stale.to_string(),
            counts.failed.to_string(),
        ]
    }

    pub(crate) fn json(&self) -> Value {
        let Self { play, minutes, reads, changes, counts, .. } = self;
        json!({
            "users": play.users, "jobs": play.jobs, "callers": play.callers.as_str(),
            "sidecars": play.front(), "notice": play.notice.as_str(), "ttl_s": play.ttl.as_secs(),
            "factor": play.factor, "minutes": minutes, "polls": counts.polls, "reads": reads,
            "changes": changes, "reads_a_minute": self.reads_a_minute(),
            "reduction_percent": self.reduction(), "reads_a_change": self.reads_a_change(),
            "hit": latency(&counts.hit), "miss": latency(&counts.miss), "purge": latency(&counts.purge),
            "purges": counts.purges, "purges_refused": counts.purges_refused,
            "late": counts.late, "stale": counts.stale, "stale_percent": self.stale_percent(),
            "failed": counts.failed, "cpu_seconds": self.cpu_seconds, "sidecar_mib": self.sidecar_mib(),
        })
    }

    /// Returns the label among the plays of 100 users.
    fn callers(&self) -> String {
        match (self.play.front, self.play.callers) {
            (Front::Nothing, _) => "no cache".to_owned(),
            (_, Callers::Anonymous) => "jobcache".to_owned(),
            (_, callers) => format!("jobcache, {}", callers.as_str()),
        }
    }

    fn size(&self) -> String {
        format!("{} users, sidecars: {}", number(Some(self.play.users.into())), self.play.front())
    }

    /// Returns the promises that this play has broken.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.counts.stale > 0 && self.play.notice != Notice::Nothing {
            faults.push(format!("{} stale answers", self.counts.stale));
        }
        if self.play.shares() && !self.is_late() && self.reads_a_change() > READS_A_CHANGE {
            faults.push(format!("{} reads per change", number(Some(self.reads_a_change()))));
        }
        faults
    }

    /// Returns whether the machine was too busy: every late poll may then cost a read, by design.
    fn is_late(&self) -> bool {
        real(self.counts.late) > LATE * real(self.counts.polls)
    }
}

impl Outcomes {
    /// Renders one row per play, and the published figures for comparison.
    pub(crate) fn tables(&self) -> String {
        let mut table = Table::new(&[
            "users",
            "jobs",
            "callers",
            "sidecars",
            "speed",
            "polls/min",
            "API reads/min",
            "fewer",
            "reads/change",
            "hit p50/p99 ms",
            "miss p50/p99 ms",
            "purge p50/p99 ms",
            "CPU-s/100k",
            "MiB each",
            "late",
            "stale",
            "failed",
        ]);
        for outcome in &self.all {
            table.row(outcome.row());
        }
        let (reads, reduction) = (number(Some(PUBLISHED_READS)), percent(PUBLISHED_REDUCTION));
        let busy = if self.all.iter().any(Outcome::is_late) {
            "\nIn some plays Redis was often late (`late`): the machine was too busy to measure \
             the reads of these sizes.\n"
        } else {
            ""
        };
        format!(
            "{} min each; the in-application cache, as published for 100 \
             users: about {reads} reads/min, {reduction} fewer\n\n{}{busy}",
            self.minutes,
            table.render()
        )
    }

    /// Returns all figures.
    pub(crate) fn json(&self, machine: &Value) -> Value {
        let plays: Vec<Value> = self.all.iter().map(Outcome::json).collect();
        let published = json!({
            "reads_a_minute": PUBLISHED_READS, "reduction_percent": PUBLISHED_REDUCTION,
        });
        json!({ "machine": machine, "published_in_app_cache": published, "plays": plays })
    }

    /// Returns the bars: the scenario itself, then larger sizes.
    pub(crate) fn panels(&self) -> Vec<Panel> {
        let bar = |outcome: &Outcome, label: String| Bar {
            label,
            value: outcome.reads_a_minute(),
            ours: outcome.play.front != Front::Nothing,
        };
        let published =
            Bar { label: "in-app cache".to_owned(), value: PUBLISHED_READS, ours: false };
        let scenario = self.all.iter().filter(|outcome| {
            outcome.play.users == SCENARIO.users && outcome.play.jobs == SCENARIO.jobs
        });
        let mut scenario: Vec<Bar> =
            scenario.map(|outcome| bar(outcome, outcome.callers())).collect();
        scenario.insert(1.min(scenario.len()), published);
        let growth = self.all.iter().filter(|outcome| {
            let Play { jobs, callers, front, .. } = outcome.play;
            let anonymous = callers == Callers::Anonymous;
            front != Front::Nothing && anonymous && jobs == SCENARIO.jobs
        });
        let growth = growth.map(|outcome| bar(outcome, outcome.size())).collect();
        vec![
            Panel { title: "100 users, 1,200 polls a minute".to_owned(), bars: scenario },
            Panel { title: "More users and sidecars".to_owned(), bars: growth },
        ]
    }

    /// Returns an error that lists every broken promise.
    pub(crate) fn judge(&self) -> Result<()> {
        let faults: Vec<String> = self
            .all
            .iter()
            .flat_map(|outcome| {
                let Play { jobs, callers, notice, .. } = outcome.play;
                let (size, callers, notice) = (outcome.size(), callers.as_str(), notice.as_str());
                let label = format!("{size}, {jobs} jobs ({callers}, notice: {notice})");
                outcome.faults().into_iter().map(move |fault| format!("{label}: {fault}"))
            })
            .collect();
        if faults.is_empty() { Ok(()) } else { Err(faults.join("; ").into()) }
    }
}

pub(crate) fn percent(percent: f64) -> String {
    // If nothing is saved, rounding makes -0.0.
    format!("{:.1} %", percent.max(0.0))
}

fn latency(latencies: &Latencies) -> Value {
    match latencies.quantiles() {
        Some((p50, p99)) => json!({ "count": latencies.count(), "p50_ms": p50, "p99_ms": p99 }),
        None => json!({ "count": 0 }),
    }
}

fn pair(latencies: &Latencies) -> String {
    match latencies.quantiles() {
        Some((p50, p99)) => format!("{}/{}", number(Some(p50)), number(Some(p99))),
        None => "-".to_owned(),
    }
}
