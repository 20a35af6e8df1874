//! Results of the plays: tables, bars, and the check of jobcache's promises.

use serde_json::{Value, json};

use crate::{
    Result,
    delays::Delays,
    play::{Form, Front, Identities, JOBS, Play},
    plot::{Bar, Panel},
    stats::real,
    table::{Table, number},
};

/// Reads allowed for each change if all clients have one identity: one, and a few by chance.
const READS_A_CHANGE: u64 = 2;
/// Goals for jobcache: time to the last client of a burst, and memory of a held client.
const GOAL_LAST_MS: f64 = 1_000.0;
const GOAL_KIB: f64 = 16.0;
/// Fewest clients that outweigh the memory that a process needs anyhow.
const MANY: usize = 1_000;

/// The result of one play.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) play: Play,
    pub(crate) usage: Usage,
    /// Changes one by one.
    pub(crate) steady: Delays,
    /// Changes of all jobs at once.
    pub(crate) burst: Delays,
}

/// Costs of a play while jobs change one by one.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) minutes: f64,
    pub(crate) requests: u64,
    /// Queries of the API.
    pub(crate) reads: u64,
    pub(crate) changes: u64,
    /// CPU seconds of the sidecar, or of the whole of Pushpin.
    pub(crate) front_cpu: f64,
    pub(crate) redis_cpu: f64,
    /// Memory without clients, with all of them, and after the burst.
    pub(crate) idle_mib: f64,
    pub(crate) held_mib: f64,
    pub(crate) peak_mib: f64,
    /// Connections of clients that failed.
    pub(crate) failed: u64,
}

impl Outcome {
    fn kib_a_client(&self) -> f64 {
        let mib = self.usage.held_mib - self.usage.idle_mib;
        mib * 1024.0 / real(self.play.clients as u64)
    }

    fn a_minute(&self, value: f64) -> f64 {
        value / self.usage.minutes
    }

    fn row(&self) -> Vec<String> {
        let Self { play, usage, steady, burst } = self;
        let is_ours = play.front == Front::Jobcache;
        vec![
            play.front.as_str().to_owned(),
            play.form.as_str().to_owned(),
            number(Some(real(play.clients as u64))),
            play.identities.as_str().to_owned(),
            number(Some(self.a_minute(real(usage.requests)))),
            number(Some(self.a_minute(real(usage.reads)))),
            number(Some(self.a_minute(usage.front_cpu))),
            number(is_ours.then(|| self.a_minute(usage.redis_cpu))),
            number(Some(usage.held_mib)),
            number(Some(self.kib_a_client())),
            delays(steady),
            delays(burst),
            (steady.missing + burst.missing).to_string(),
            usage.failed.to_string(),
        ]
    }

    fn json(&self) -> Value {
        let Self { play, usage, steady, burst } = self;
        json!({
            "server": play.front.as_str(), "form": play.form.as_str(), "clients": play.clients,
            "identities": play.identities.as_str(), "minutes": usage.minutes,
            "requests": usage.requests, "reads": usage.reads, "changes": usage.changes,
            "server_cpu_seconds": usage.front_cpu, "redis_cpu_seconds": usage.redis_cpu,
            "idle_mib": usage.idle_mib, "held_mib": usage.held_mib, "peak_mib": usage.peak_mib,
            "kib_a_client": self.kib_a_client(), "failed": usage.failed,
            "one_by_one": steady.json(), "burst": burst.json(),
        })
    }

    fn is_held(&self) -> bool {
        self.play.front == Front::Jobcache && self.play.form != Form::Poll
    }

    /// Returns the promises that this play has broken.
    fn faults(&self) -> Vec<String> {
        let Self { usage, steady, burst, .. } = self;
        let mut faults = Vec::new();
        if !self.is_held() {
            return faults;
        }
        let missing = steady.missing + burst.missing;
        if missing > 0 {
            faults.push(format!("{missing} changes have not reached a client"));
        }
        // A topic may be read once more without news.
        let reads = READS_A_CHANGE * usage.changes + JOBS as u64;
        if self.play.identities == Identities::Shared && usage.reads > reads {
            faults.push(format!("{} reads for {} changes", usage.reads, usage.changes));
        }
        faults
    }

    /// Returns the goals that this play has missed. The machine may be too busy for them.
    fn misses(&self) -> Vec<String> {
        let (last, kib) = (self.burst.last().unwrap_or_default(), self.kib_a_client());
        let mut misses = Vec::new();
        if !self.is_held() || self.play.clients < MANY {
            return misses;
        }
        if self.play.identities == Identities::Shared && last > GOAL_LAST_MS {
            misses.push(format!("{} ms to the last client", number(Some(last))));
        }
        if kib > GOAL_KIB {
            misses.push(format!("{} KiB a client", number(Some(kib))));
        }
        misses
    }
}

/// Renders one row for each play.
pub(crate) fn tables(outcomes: &[Outcome]) -> String {
    let mut table = Table::new(&[
        "server",
        "form",
        "clients",
        "identities",
        "requests/min",
        "API reads/min",
        "CPU-s/min",
        "Redis CPU-s/min",
        "MiB",
        "KiB a client",
        "one change: p50/p99/last ms",
        "20 at once: p50/p99/last ms",
        "missing",
        "failed",
    ]);
    for outcome in outcomes {
        table.row(outcome.row());
    }
    let misses = labelled(outcomes, Outcome::misses);
    let goals = if misses.is_empty() { "all met".to_owned() } else { misses.join("; ") };
    format!(
        "{JOBS} jobs, a change a second, then all at once. Goals ({GOAL_LAST_MS} ms, {GOAL_KIB} KiB): \
         {goals}\n\n{}",
        table.render()
    )
}

pub(crate) fn json(outcomes: &[Outcome]) -> Value {
    outcomes.iter().map(Outcome::json).collect()
}

/// Returns the bars of the largest size with one identity.
pub(crate) fn panels(outcomes: &[Outcome]) -> Vec<Panel> {
    let clients = outcomes.iter().map(|outcome| outcome.play.clients).max().unwrap_or_default();
    let panel = |title: &str, value: &dyn Fn(&Outcome) -> f64| {
        let shown = outcomes.iter().filter(|outcome| outcome.play.clients == clients);
        let bars = shown.map(|outcome| Bar {
            label: bar_label(&outcome.play),
            value: value(outcome),
            ours: outcome.play.front == Front::Jobcache,
        });
        Panel { title: title.to_owned(), bars: bars.collect() }
    };
    vec![
        panel("Requests a minute", &|outcome| outcome.a_minute(real(outcome.usage.requests))),
        panel("API reads a minute", &|outcome| outcome.a_minute(real(outcome.usage.reads))),
        panel("CPU seconds a minute, with Redis", &|outcome| {
            outcome.a_minute(outcome.usage.front_cpu + outcome.usage.redis_cpu)
        }),
        panel("KiB a client", &Outcome::kib_a_client),
        panel("One change: ms to the last client", &|outcome| {
            outcome.steady.last().unwrap_or_default()
        }),
        panel("20 changes at once: ms to the last client", &|outcome| {
            outcome.burst.last().unwrap_or_default()
        }),
    ]
}

fn bar_label(play: &Play) -> String {
    let identities = match play.identities {
        Identities::Shared => "",
        Identities::Own => ", own tokens",
    };
    format!("{}, {}{identities}", play.front.as_str(), play.form.as_str())
}

/// Returns an error that lists every broken promise.
pub(crate) fn judge(outcomes: &[Outcome]) -> Result<()> {
    let faults = labelled(outcomes, Outcome::faults);
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ").into()) }
}

fn labelled(outcomes: &[Outcome], texts: impl Fn(&Outcome) -> Vec<String>) -> Vec<String> {
    let label = |outcome: &Outcome| {
        let all = texts(outcome).join(", ");
        (!all.is_empty()).then(|| format!("{}: {all}", outcome.play.label()))
    };
    outcomes.iter().filter_map(label).collect()
}

fn delays(delays: &Delays) -> String {
    let all = [delays.p50(), delays.p99(), delays.last()];
    all.map(number).join("/")
}
