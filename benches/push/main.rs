//! Three ways for 100 to 10,000 clients to learn of changes of 20 jobs: a poll every 5 s, a long poll
//! that is sent again at once, and a stream of events. Measures requests, API reads, CPU, memory, and
//! the time from an acknowledged purge to the clients.
//!
//! The clients are processes of their own: the benchmark starts itself once more for them. Pushpin takes
//! part where it is installed. The benchmark fails if a change does not reach a held client, or if the
//! reads of the API grow with the number of clients of one identity.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod api;
#[path = "../support/client.rs"]
mod client;
#[path = "../support/cost.rs"]
mod cost;
mod crowd;
mod crowds;
mod delays;
#[path = "../support/interrupt.rs"]
mod interrupt;
mod outcome;
#[path = "../support/peer_files.rs"]
mod peer_files;
mod perform;
mod play;
#[path = "../support/plot.rs"]
mod plot;
#[path = "../support/process.rs"]
mod process;
mod pushpin;
#[path = "../support/report.rs"]
mod report;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/staging.rs"]
mod staging;
#[path = "../support/stats.rs"]
mod stats;
#[path = "../support/table.rs"]
mod table;
mod wire;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;
use serde_json::json;

use crate::{interrupt::Interrupt, play::Front, report::Report, staging::raise_file_limit};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Open files of this process other than those of the clients.
const FILES: u64 = 2_000;

/// Compares polls, long polls and streams; flags go after `--`
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench push --")]
struct Args {
    /// Seconds with a change each, for each play; 8 by default, 4 with `--quick`
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Only 1,000 clients of one identity
    #[arg(long)]
    quick: bool,
    /// Skip sizes with more clients
    #[arg(long, default_value_t = 10_000)]
    max_clients: usize,
    /// Only plays with this text in their name, such as `SSE, 10000`
    #[arg(long, default_value = "")]
    only: String,
    /// Binary to measure instead of this build's
    #[arg(long)]
    jobcache: Option<PathBuf>,
    /// Save the figures in benches/figures as well
    #[arg(long)]
    save: bool,
    /// Passed by this benchmark to its processes of clients
    #[arg(long, hide = true)]
    crowd: Option<String>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.quick { 4 } else { 8 })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ran = match &args.crowd {
        Some(assignment) => crowd::run(assignment),
        None => run(&args),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("push: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let machine = report::machine();
    let files = raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut outcomes = Vec::new();
    for play in play::plays(args.quick, args.max_clients) {
        let label = play.label();
        if !label.contains(&args.only) {
            continue;
        }
        if play.clients as u64 + FILES > files {
            println!("skipped {label}: raise the limit of open files (ulimit -n)");
            continue;
        }
        if play.front == Front::Pushpin && !pushpin::is_installed() {
            println!("skipped {label}: apt-get install pushpin");
            continue;
        }
        println!("{label}");
        match runtime.block_on(perform::perform(args, play, &interrupt)) {
            // A peer that cannot take the load costs its row only.
            Err(error) if play.front == Front::Pushpin => println!("no figures: {error}"),
            outcome => outcomes.push(outcome?),
        }
        interrupt.check()?;
    }
    let tables = outcome::tables(&outcomes);
    print!("\n{tables}");
    let figures = json!({
        "machine": machine, "pushpin": pushpin::release(), "plays": outcome::json(&outcomes),
    });
    let clients = outcomes.iter().map(|outcome| outcome.play.clients).max().unwrap_or_default();
    let title = format!("{clients} clients wait for changes of {} jobs", play::JOBS);
    Report::new("push", args.save).write(&figures, &tables, &title, &outcome::panels(&outcomes))?;
    outcome::judge(&outcomes)
}
