//! Costs of many sidecars on one Redis, measured with up to sixteen sidecars and modelled for up to
//! a thousand.
//!
//! There are three parts. **Stages** run jobcache processes on one Redis, with pollers that a load
//! balancer sends to random sidecars and a pipeline that purges through any of them. **Primitives**
//! measure the cost of each sidecar operation on a bare Redis. **Model** is a closed form and a
//! simulation; both are compared with the stages and then applied to sizes that no small machine
//! can run.
//!
//! The benchmark fails if an answer is stale, or if the reads of the API grow with the number of
//! sidecars.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod api;
#[path = "../support/client.rs"]
mod client;
#[path = "../support/cost.rs"]
mod cost;
mod crowd;
#[path = "../support/figures.rs"]
mod figures;
#[path = "../support/interrupt.rs"]
mod interrupt;
mod model;
mod observe;
mod outcome;
#[path = "../support/plot.rs"]
mod plot;
mod primitives;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/report.rs"]
mod report;
#[path = "../support/servers.rs"]
mod servers;
mod stage;
#[path = "../support/staging.rs"]
mod staging;
#[path = "../support/stats.rs"]
mod stats;
#[path = "../support/table.rs"]
mod table;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use serde_json::json;

use crate::{
    interrupt::Interrupt, model::costs::Costs, outcome::Outcomes, report::Report, stage::Size,
    staging::raise_file_limit,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Sidecars of a stage, and callers with different credentials.
const SIZES: [(usize, usize); 6] = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (16, 2)];

/// Measures many sidecars on one Redis; flags go after `--`
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench sidecars --")]
struct Args {
    /// Measurements of each size
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Duration of each measurement, in seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Skip sizes with more sidecars
    #[arg(long, default_value_t = 16)]
    max_sidecars: usize,
    /// Parts to run; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How sidecars learn of changes; all modes by default
    #[arg(long, value_enum, value_delimiter = ',')]
    tracking: Vec<Tracking>,
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

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Real sidecars
    Stages,
    /// Costs of a bare Redis
    Primitives,
    /// Sizes beyond this machine
    Model,
}

/// How sidecars learn of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Tracking {
    /// Every sidecar hears of every change
    Broadcast,
    /// Each sidecar hears of the keys it has read
    Keys,
}

impl Tracking {
    fn as_str(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::Keys => "keys",
        }
    }
}

impl Args {
    fn runs(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn tracking(&self) -> Vec<Tracking> {
        if self.tracking.is_empty() {
            vec![Tracking::Broadcast, Tracking::Keys]
        } else {
            self.tracking.clone()
        }
    }

    fn sizes(&self) -> Vec<Size> {
        let within = |(sidecars, _): &&(usize, usize)| *sidecars <= self.max_sidecars;
        let sizes = SIZES.iter().filter(within);
        let tracked = |(sidecars, credentials): &(usize, usize)| {
            let (sidecars, credentials) = (*sidecars, *credentials);
            let size = move |tracking| Size { sidecars, credentials, tracking };
            self.tracking().into_iter().map(size).collect::<Vec<_>>()
        };
        sizes.flat_map(tracked).collect()
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sidecars: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let machine = report::machine();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut costs = Costs::default();
    let mut tables = String::new();
    if args.runs(Part::Primitives) {
        let measured = runtime.block_on(primitives::measure(args.rounds, &interrupt))?;
        tables += &measured.tables();
        costs = measured.costs();
    }
    let mut outcomes = Outcomes::default();
    if args.runs(Part::Stages) {
        for round in 1..=args.rounds {
            for size in args.sizes() {
                println!("round {round}: {size:?}");
                let sample = runtime.block_on(stage::perform(args, size, &interrupt))?;
                outcomes.add(size, sample);
            }
        }
        tables += &outcomes.tables();
    }
    if args.runs(Part::Model) {
        tables += &model::tables(&costs, &outcomes);
    }
    print!("\n{tables}");
    let figures = json!({
        "machine": machine, "stages": outcomes.json(), "costs": costs.json(),
        "model": model::json(&costs),
    });
    Report::new("sidecars", args.save).write(&figures, &tables, "Many sidecars", &[])?;
    outcomes.judge()
}
