//! The main use case of jobcache: 100 users poll `GET /jobs/<id>` every 5 seconds, and a pipeline
//! moves the jobs through their stages and purges them. Measures the reads that the API is spared.
//!
//! The scenario runs faster than real time, without jobcache, behind one to four sidecars, and with
//! up to a hundred times as many users. The benchmark fails if an answer is stale, or if the reads
//! of the API grow with the number of users.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../support/client.rs"]
mod client;
#[path = "../support/cost.rs"]
mod cost;
mod crowd;
#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/interrupt.rs"]
mod interrupt;
mod jobs;
mod outcome;
#[path = "../support/plot.rs"]
mod plot;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/report.rs"]
mod report;
mod scenario;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/staging.rs"]
mod staging;
#[path = "../support/stats.rs"]
mod stats;
#[path = "../support/table.rs"]
mod table;

use std::{
    error::Error,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use tokio::task::JoinSet;

use crate::{
    cost::{cpu_seconds, memory_mib},
    crowd::Stage,
    figures::Figures,
    interrupt::Interrupt,
    jobs::Jobs,
    outcome::{Outcome, Outcomes},
    report::Report,
    scenario::{Front, PLAYS, POLL_EVERY, Play, TTL},
    servers::{Redis, Sidecar},
    staging::{raise_file_limit, wait},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Open files of this process other than those of the users.
const FILES: u64 = 1_000;

/// Plays the polling scenario; flags go after `--`
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench polling --")]
struct Args {
    /// Minutes of the scenario for each size
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    minutes: u32,
    /// Skip sizes with more users
    #[arg(long, default_value_t = 10_000)]
    max_users: u32,
    /// Binary to measure instead of this build's
    #[arg(long)]
    jobcache: Option<PathBuf>,
    /// Save the figures in benches/figures as well
    #[arg(long)]
    save: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polling: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let machine = report::machine();
    let files = raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut outcomes = Outcomes { minutes: args.minutes, all: Vec::new() };
    for play in PLAYS.into_iter().filter(|play| play.users <= args.max_users) {
        let (users, callers) = (play.users, play.callers.as_str());
        let title = format!("{users} users ({callers}), sidecars: {}", play.front());
        if u64::from(play.users) + FILES > files {
            println!("skipped {title}: raise the limit of open files (ulimit -n)");
            continue;
        }
        println!("{title}: {} min at {} times the speed", args.minutes, play.factor);
        outcomes.all.push(runtime.block_on(perform(args, play, &interrupt))?);
    }
    let tables = outcomes.tables();
    print!("\n{tables}");
    Report::new("polling", args.save).write(
        &outcomes.json(&machine),
        &tables,
        "API reads per minute",
        &outcomes.panels(),
    )?;
    outcomes.judge()
}

/// Plays one size of the scenario. Must run on the main thread, because the servers end with it.
async fn perform(args: &Args, play: Play, interrupt: &Interrupt) -> Result<Outcome> {
    let (mut api, mut crowd) = (JoinSet::new(), JoinSet::new());
    let jobs = Arc::new(Jobs::new());
    let upstream = jobs::serve(&mut api, &jobs).await?;
    let servers = Servers::start(&servers::binary(args.jobcache.as_ref()), play, upstream)?;
    let (fronts, webhooks) = servers.addresses(upstream);
    let figures = Figures::default();
    let stage = Arc::new(Stage { play, jobs: Arc::clone(&jobs), figures, fronts, webhooks });
    stage.warm().await?;
    stage.start(&mut crowd);
    // Afterwards every user has connected and polled once at its own pace.
    wait(play.compressed(2 * POLL_EVERY), interrupt).await?;
    stage.figures.reset();
    let (reads, changes, started) = (jobs.reads(), jobs.changes(), Instant::now());
    let spent = cpu_seconds(&servers.pids());
    wait(play.compressed(Duration::from_mins(args.minutes.into())), interrupt).await?;
    Ok(Outcome {
        play,
        minutes: started.elapsed().as_secs_f64() * f64::from(play.factor) / 60.0,
        reads: jobs.reads() - reads,
        changes: jobs.changes() - changes,
        cpu_seconds: cpu_seconds(&servers.pids()) - spent,
        memory_mib: memory_mib(&servers.sidecar_pids()),
        counts: stage.figures.counts(),
    })
}

/// The sidecars of one play, and their Redis.
struct Servers {
    redis: Option<Redis>,
    sidecars: Vec<Sidecar>,
}

impl Servers {
    fn start(binary: &Path, play: Play, upstream: SocketAddr) -> Result<Self> {
        let Front::Sidecars(count) = play.front else {
            return Ok(Self { redis: None, sidecars: Vec::new() });
        };
        let redis = Redis::start()?;
        let flags = [
            format!("--upstream=http://{upstream}"),
            format!("--redis-url={}", redis.url()),
            format!("--ttl={}ms", play.compressed(TTL).as_millis()),
        ];
        let mode = play.callers.mode();
        let connections = u64::from(play.users) + FILES;
        let settings = format!(
            "[server]\nmax_connections = {connections}\n[credentials]\nmode = \"{mode}\"\n"
        );
        let sidecars = (0..count).map(|_| Sidecar::start(binary, &flags, &settings));
        Ok(Self { sidecars: sidecars.collect::<Result<_>>()?, redis: Some(redis) })
    }

    /// Returns the addresses for users, and the purge webhooks.
    fn addresses(&self, upstream: SocketAddr) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        if self.sidecars.is_empty() {
            return (vec![upstream], Vec::new());
        }
        self.sidecars.iter().map(|sidecar| (sidecar.listen, sidecar.admin)).unzip()
    }

    fn sidecar_pids(&self) -> Vec<u32> {
        self.sidecars.iter().map(|sidecar| sidecar.process.pid()).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let redis = self.redis.iter().map(|redis| redis.process.pid());
        redis.chain(self.sidecar_pids()).collect()
    }
}
