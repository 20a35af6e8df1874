//! The main use case of jobcache: 100 users poll `GET /jobs/<id>` every 5 seconds, and a pipeline
//! moves the jobs through their stages and purges them. Measures the reads that the API is spared.
//!
//! The scenario runs faster than real time, without jobcache, behind one to four sidecars, and with
//! up to a hundred times as many users. The benchmark fails if an answer is stale, or if the reads
//! of the API grow with the number of users. `--microcache` compares with nginx instead.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

#[path = "../support/client.rs"]
mod client;
mod comparison;
#[path = "../support/cost.rs"]
mod cost;
mod crowd;
#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/interrupt.rs"]
mod interrupt;
mod jobs;
#[path = "../support/nginx.rs"]
mod nginx;
mod outcome;
#[path = "../support/peer_files.rs"]
mod peer_files;
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
use fastrand::Rng;
use futures_util::future::try_join_all;
use tokio::task::JoinSet;

use crate::{
    cost::{cpu_seconds, memory_mib},
    crowd::Stage,
    figures::Figures,
    interrupt::Interrupt,
    jobs::Jobs,
    nginx::{MICROCACHE, Nginx},
    outcome::{Outcome, Outcomes},
    report::Report,
    scenario::{Callers, Front, PLAYS, POLL_EVERY, Play},
    servers::{Redis, Sidecar},
    staging::{raise_file_limit, wait},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Open files of this process other than those of the users.
const FILES: u64 = 1_000;
/// Seed of all random numbers of a play.
const SEED: u64 = 19;
/// Text in front of the line of the microcache that gives each token entries of its own.
const OWN_TOKENS: &str = "# 6, if callers have tokens: ";

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
    /// Compare with an nginx microcache instead, at real speed
    #[arg(long)]
    microcache: bool,
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
    let args = Args::parse();
    let ran = if args.microcache { compare(&args) } else { run(&args) };
    match ran {
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
        let Play { users, jobs, callers, .. } = play;
        let (callers, front) = (callers.as_str(), play.front());
        let title = format!("{users} users ({callers}), {jobs} jobs, sidecars: {front}");
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

/// Plays the comparison with a microcache, all plays at once: they are at real speed, and together
/// they hardly load a machine.
fn compare(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let machine = report::machine();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!("{} plays at once: {} min", comparison::plays().count(), args.minutes);
    let plays = comparison::plays().map(|play| perform(args, play, &interrupt));
    let all = runtime.block_on(try_join_all(plays))?;
    let table = comparison::table(&all, args.minutes);
    print!("\n{table}");
    let figures = comparison::json(&all, &machine);
    Report::new("microcache", args.save).write(&figures, &table, "Microcache", &[])?;
    Outcomes { minutes: args.minutes, all }.judge()
}

/// Plays one size of the scenario. Must run on the main thread, because the servers end with it.
async fn perform(args: &Args, play: Play, interrupt: &Interrupt) -> Result<Outcome> {
    let (mut api, mut crowd) = (JoinSet::new(), JoinSet::new());
    let mut rng = Rng::with_seed(SEED);
    let jobs = Arc::new(Jobs::new(play.jobs, &mut rng));
    let upstream = jobs::serve(&mut api, &jobs).await?;
    let servers = Servers::start(&servers::binary(args.jobcache.as_ref()), play, upstream)?;
    let (fronts, webhooks) = servers.addresses(upstream);
    let figures = Figures::default();
    let stage = Arc::new(Stage { play, jobs: Arc::clone(&jobs), figures, fronts, webhooks });
    stage.warm().await?;
    stage.start(&mut crowd, &mut rng);
    // Afterwards every user has connected and polled once at its own pace.
    wait(play.compressed(2 * POLL_EVERY), interrupt).await?;
    let stale_before = stage.figures.counts().stale;
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
        stale_before,
        counts: stage.figures.counts(),
    })
}

/// The cache of one play: sidecars and their Redis, or nginx.
#[derive(Default)]
struct Servers {
    redis: Option<Redis>,
    sidecars: Vec<Sidecar>,
    nginx: Option<Nginx>,
}

impl Servers {
    fn start(binary: &Path, play: Play, upstream: SocketAddr) -> Result<Self> {
        match play.front {
            Front::Nothing => Ok(Self::default()),
            Front::Sidecars(count) => Self::start_sidecars(binary, play, count, upstream),
            Front::Microcache => Self::start_microcache(play, upstream),
        }
    }

    fn start_sidecars(binary: &Path, play: Play, count: u8, upstream: SocketAddr) -> Result<Self> {
        let redis = Redis::start()?;
        let flags = [
            format!("--upstream=http://{upstream}"),
            format!("--redis-url={}", redis.url()),
            format!("--ttl={}ms", play.compressed(play.ttl).as_millis()),
        ];
        let mode = play.callers.mode();
        let connections = u64::from(play.users) + FILES;
        let settings = format!(
            "[server]\nmax_connections = {connections}\n[credentials]\nmode = \"{mode}\"\n"
        );
        let sidecars = (0..count).map(|_| Sidecar::start(binary, &flags, &settings));
        Ok(Self { sidecars: sidecars.collect::<Result<_>>()?, redis: Some(redis), nginx: None })
    }

    fn start_microcache(play: Play, upstream: SocketAddr) -> Result<Self> {
        let config = match play.callers {
            Callers::Partitioned => MICROCACHE.replace(OWN_TOKENS, ""),
            Callers::Anonymous | Callers::Shared => MICROCACHE.to_owned(),
        };
        let nginx = Nginx::start(&config, upstream)?;
        let nginx = nginx.ok_or("nginx is missing: apt-get install nginx")?;
        Ok(Self { nginx: Some(nginx), ..Self::default() })
    }

    /// Returns the addresses for users, and the purge webhooks.
    fn addresses(&self, upstream: SocketAddr) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        if self.sidecars.is_empty() {
            let front = self.nginx.as_ref().map_or(upstream, |nginx| nginx.files.listen);
            return (vec![front], Vec::new());
        }
        self.sidecars.iter().map(|sidecar| (sidecar.listen, sidecar.admin)).unzip()
    }

    fn sidecar_pids(&self) -> Vec<u32> {
        self.sidecars.iter().map(|sidecar| sidecar.process.pid()).collect()
    }

    fn pids(&self) -> Vec<u32> {
        let redis = self.redis.iter().map(|redis| redis.process.pid());
        let nginx = self.nginx.iter().map(|nginx| nginx.process.pid());
        redis.chain(nginx).chain(self.sidecar_pids()).collect()
    }
}
