//! Many sidecars on one Redis: what it costs, measured with up to sixteen, and modelled to a thousand.
//!
//! Three parts. **Stages**: processes of jobcache on one Redis, pollers who are sent to a random one of
//! them as by a load balancer, and a pipeline that purges through any. **Primitives**: what a bare
//! Redis spends on each thing that sidecars ask of it. **Model**: a closed form and a simulation of
//! both, held against the stages, and then taken to sizes that no small machine can play.
//!
//! It fails when an answer is stale, or when reads of the API grow with the sidecars.
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

/// Sidecars of a stage, and callers with a credential of their own.
const SIZES: [(usize, usize); 6] = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (16, 2)];

/// Measures many sidecars; flags go after `--`.
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench sidecars --")]
struct Args {
    /// Times that each size has its turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Seconds of each turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Leaves out sizes with more sidecars
    #[arg(long, default_value_t = 16)]
    max_sidecars: usize,
    /// Which parts to run; all of them if none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How the sidecars are told of changes; each in its turn if none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    tracking: Vec<Tracking>,
    /// Binary to measure in place of this build's
    #[arg(long)]
    jobcache: Option<PathBuf>,
    /// Keep the figures in benches/figures, too
    #[arg(long)]
    save: bool,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Real sidecars
    Stages,
    /// What a bare Redis spends
    Primitives,
    /// Larger than life
    Model,
}

/// How sidecars are told of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Tracking {
    /// Each of every change
    Broadcast,
    /// Each of what it has read
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
