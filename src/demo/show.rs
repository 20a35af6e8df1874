//! Output of the demo: what to try, one line of figures, and a summary.
//!
//! On a terminal the line is rewritten in place every second. Elsewhere a new line is written every
//! five seconds.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt::Write as _,
    io::{self, IsTerminal, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::{
    api::{self, SampleJobs},
    figures::{DemoTotals, Figures, Quantiles},
    side_by_side::{HEADING, SideBySide},
};

/// Interval between two updates: on a terminal, where lines are rewritten, and elsewhere.
const REWRITE_EVERY: Duration = Duration::from_secs(1);
const APPEND_EVERY: Duration = Duration::from_secs(5);
/// Rates are averages over this window.
const WINDOW: Duration = Duration::from_mins(1);
/// Addresses and sizes of the demo.
pub(super) struct DemoSetup {
    pub(super) api: SocketAddr,
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Default addresses that were taken, each with the one used instead.
    pub(super) moved: Vec<(SocketAddr, SocketAddr)>,
    /// Jobs of a group of clients.
    pub(super) jobs: usize,
    /// Whether a second group of clients keeps streams open instead of polling.
    pub(super) has_push: bool,
    /// URL of the store, if it is Redis.
    pub(super) redis: Option<String>,
    /// Whether the webhook requires a secret.
    pub(super) needs_secret: bool,
    pub(super) pollers: u16,
    pub(super) every: Duration,
}

/// Writes to standard output.
pub(super) struct Show {
    out: io::Stdout,
    rewrites: bool,
    introduction: String,
    figures: Arc<Figures>,
    jobs: Arc<SampleJobs>,
    started: Instant,
    /// Readings of the last minute, oldest first.
    window: VecDeque<Reading>,
    /// The figures of polling and push, if both are shown.
    both: Option<SideBySide>,
}

/// The counters at one moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Duration,
    totals: DemoTotals,
    reads: u64,
}

impl Show {
    pub(super) fn new(setup: &DemoSetup, figures: Arc<Figures>, jobs: Arc<SampleJobs>) -> Self {
        let out = io::stdout();
        let rewrites = out.is_terminal();
        let window = VecDeque::from([Reading {
            at: Duration::ZERO,
            totals: DemoTotals::default(),
            reads: 0,
        }]);
        let introduction = setup.introduction();
        let both =
            || SideBySide::new(setup.pollers, setup.jobs, Arc::clone(&jobs), Arc::clone(&figures));
        let both = setup.has_push.then(both);
        Self { out, rewrites, introduction, figures, jobs, started: Instant::now(), window, both }
    }

    /// Prints the introduction and starts the clock.
    pub(super) fn open(&mut self) -> io::Result<()> {
        self.started = Instant::now();
        self.out.write_all(self.introduction.as_bytes())?;
        self.out.flush()
    }

    /// Prints the figures until standard output fails.
    pub(super) async fn follow(&mut self) -> io::Result<Infallible> {
        let every = if self.rewrites { REWRITE_EVERY } else { APPEND_EVERY };
        let mut ticks = interval_at(Instant::now() + every, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.tick()?;
        }
    }

    /// Prints the summary.
    pub(super) fn close(&mut self) -> io::Result<()> {
        let now = self.read();
        let gap = if self.rewrites { "\n\n" } else { "\n" };
        let text = match &self.both {
            Some(both) => both.summary(now.at),
            None => summary(&now, self.figures.latencies()),
        };
        write!(self.out, "{gap}{text}")?;
        self.out.flush()
    }

    fn tick(&mut self) -> io::Result<()> {
        let now = self.read();
        while self.window.len() > 1 && now.at > self.window[0].at + WINDOW {
            self.window.pop_front();
        }
        let line = match &self.both {
            Some(both) => both.line(now.at),
            None => line(&self.window[0], &now, self.figures.latencies()),
        };
        self.window.push_back(now);
        if self.rewrites {
            // Line wrapping is off (`?7l`): half of a wrapped line would stay on the screen.
            write!(self.out, "\r\x1b[?7l{line}\x1b[K\x1b[?7h")?;
        } else {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn read(&self) -> Reading {
        let at = self.started.elapsed();
        Reading { at, totals: self.figures.totals(), reads: self.jobs.reads(0..self.jobs.count()) }
    }
}

impl DemoSetup {
    fn introduction(&self) -> String {
        let Self { api, proxy, .. } = self;
        let store = if self.redis.is_some() { "Redis" } else { "embedded, memory://" };
        let mut text = String::from("\n");
        // Writing to a `String` cannot fail.
        for (taken, used) in &self.moved {
            let _ = writeln!(text, "{taken} is in use; listening on {used} instead.");
        }
        let _ = writeln!(
            text,
            "{}\n\n  \
             clients -> jobcache http://{proxy} -> sample jobs API http://{api}\n  \
             store: {store}\n\n\
             Each job changes every 10 to 30 s; the pipeline then calls the purge webhook.\n\
             Commands to try:\n",
            self.crowd(),
        );
        for (command, effect) in self.hints() {
            let _ = writeln!(text, "  # {effect}\n  {command}");
        }
        text.push_str("\nCtrl-C ends the demo with a summary. ");
        text.push_str(if self.has_push {
            "Delay is the median time from a change\nin the database to a client that has seen the version before.\n\n"
        } else {
            "Rates cover the last minute;\ntimes are p50/p99.\n\n"
        });
        if self.has_push {
            text.push_str(HEADING);
        }
        text
    }

    /// Describes the clients.
    fn crowd(&self) -> String {
        let Self { pollers, jobs, .. } = self;
        let every = humantime::format_duration(self.every);
        let mut text = format!("{pollers} pollers read {jobs} jobs, each poller every {every}");
        if self.has_push {
            let _ = write!(
                text,
                ";\n{pollers} clients follow {jobs} others by streams of events (SSE)"
            );
        }
        text.push(':');
        text
    }

    /// Commands to try, and what each of them shows.
    fn hints(&self) -> Vec<(String, &'static str)> {
        let Self { proxy, admin, .. } = self;
        let job = api::id(0);
        let secret = if self.needs_secret {
            " -H \"Authorization: Bearer ${JOBCACHE_WEBHOOK_SECRET%% *}\""
        } else {
            ""
        };
        let mut hints = vec![
            (format!("curl -i http://{proxy}/jobs/{job}"), "hit or miss: see Cache-Status and Age"),
            (
                format!("curl -iX POST http://{proxy}/jobs/{job}/restart"),
                "a write; the next GET shows it",
            ),
            (format!("curl -X POST{secret} http://{admin}/purge/{job}"), "the purge webhook"),
            (format!("http://{admin}/"), "the status page, in a browser"),
            (format!("curl http://{admin}/readyz"), "health"),
            (format!("curl http://{admin}/metrics"), "metrics"),
        ];
        if self.has_push {
            hints.push((
                format!(
                    "curl -N -H 'Accept: text/event-stream' http://{proxy}/jobs/{}",
                    api::id(self.jobs)
                ),
                "the events of a job",
            ));
        }
        if let Some(url) = &self.redis {
            // A password belongs neither on the screen nor in the shell history.
            let url = if url.contains('@') { "\"$REDIS_URL\"" } else { url };
            let redis = |command| format!("redis-cli -u {url} {command} job_status:{job}");
            hints.extend([
                (redis("GET"), "the stored body; \"\" while it is being read"),
                (redis("TTL"), "seconds until it expires"),
                (redis("DEL"), "invalidates like the webhook"),
            ]);
        }
        hints
    }
}

/// The figures between two readings, in one line of fewer than 120 columns.
fn line(then: &Reading, now: &Reading, [hit, miss]: [Option<Quantiles>; 2]) -> String {
    let (polls, reads) = (now.totals.polls - then.totals.polls, now.reads - then.reads);
    let time = now.at.saturating_sub(then.at);
    let seconds = now.at.as_secs();
    let mut line = format!(
        "{:02}:{:02}  {:.0} polls/min -> {:.0} reads/min, {} saved, {} stale | {} hits in {}, \
         misses in {}",
        seconds / 60,
        seconds % 60,
        per_minute(polls, time),
        per_minute(reads, time),
        reduction(polls, reads),
        now.totals.stale,
        now.totals.hits - then.totals.hits,
        latency(hit),
        latency(miss),
    );
    let DemoTotals { failed, purges_refused, .. } = now.totals;
    for (count, label) in [(failed, "failed"), (purges_refused, "purges refused")] {
        if count > 0 {
            let _ = write!(line, ", {count} {label}");
        }
    }
    line
}

fn summary(now: &Reading, [hit, miss]: [Option<Quantiles>; 2]) -> String {
    let DemoTotals { polls, hits, failed, stale, purges, purges_refused } = now.totals;
    let reads = now.reads;
    let saved = reduction(polls, reads);
    let time = humantime::format_duration(Duration::from_secs(now.at.as_secs()));
    let mut text = format!(
        "In {time}:
  polls           {polls:>8}   queries without jobcache
  upstream reads  {reads:>8}   queries with it
  reduction       {saved:>8}
  hits            {hits:>8}   p50/p99 {}
  misses          {:>8}   p50/p99 {}
  purges          {purges:>8}   acknowledged to the pipeline
  stale answers   {stale:>8}   older than a purge acknowledged before the poll\n",
        latency(hit),
        polls - hits - failed,
        latency(miss),
    );
    if failed > 0 {
        let _ = writeln!(text, "  failed polls    {failed:>8}   without a usable answer");
    }
    if purges_refused > 0 {
        let _ =
            writeln!(text, "  purges refused  {purges_refused:>8}   repeated until acknowledged");
    }
    text
}

/// Share of the polls that did not cost the API a read.
fn reduction(polls: u64, reads: u64) -> String {
    if polls == 0 {
        return "-".to_owned();
    }
    let saved = polls.saturating_sub(reads);
    format!("{:.1} %", 100.0 * ratio(saved, polls))
}

fn per_minute(count: u64, time: Duration) -> f64 {
    let minutes = time.as_secs_f64() / 60.0;
    if minutes > 0.0 { ratio(count, 1) / minutes } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "counts of a demo are far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn latency(quantiles: Option<Quantiles>) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    quantiles.map_or_else(
        || "-".to_owned(),
        |Quantiles { p50, p99 }| format!("{:.1}/{:.1} ms", ms(p50), ms(p99)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(seconds: u64, polls: u64, reads: u64) -> Reading {
        let totals = DemoTotals { polls, hits: polls - reads, ..DemoTotals::default() };
        Reading { at: Duration::from_secs(seconds), totals, reads }
    }

    fn quantiles(p50: u64, p99: u64) -> Quantiles {
        let [p50, p99] = [p50, p99].map(Duration::from_micros);
        Quantiles { p50, p99 }
    }

    #[test]
    fn a_line_tells_the_rates_since_the_earlier_reading() {
        let latencies = [quantiles(310, 1_240), quantiles(6_100, 9_000)].map(Some);
        assert_eq!(
            line(&reading(5, 100, 25), &reading(65, 1_300, 85), latencies),
            "01:05  1200 polls/min -> 60 reads/min, 95.0 % saved, 0 stale | 1140 hits in 0.3/1.2 ms, \
             misses in 6.1/9.0 ms"
        );
    }

    #[test]
    fn a_line_names_failures_only_where_there_are_any() {
        let mut now = reading(1, 0, 0);
        now.totals.failed = 3;
        let line = line(&reading(0, 0, 0), &now, [None, None]);
        assert!(line.ends_with("- saved, 0 stale | 0 hits in -, misses in -, 3 failed"), "{line}");
    }

    #[test]
    fn more_reads_than_polls_are_no_reduction() {
        assert_eq!(reduction(10, 20), "0.0 %");
    }
}
