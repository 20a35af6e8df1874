//! Compares jobcache with nginx, HAProxy, Varnish, Bloom and a bare hyper server in one run.
//!
//! All peers run all the time. In each round every peer is measured once under each load, so other
//! activity on the machine affects all peers alike, and the results are ratios within a round.
//! `benches/README.md` describes the method and the tables.
#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

mod api;
mod cell;
#[path = "../support/cost.rs"]
mod cost;
mod forward;
mod http;
#[path = "../support/interrupt.rs"]
mod interrupt;
#[path = "../support/nginx.rs"]
mod nginx;
#[path = "../support/peer_files.rs"]
mod peer_files;
#[path = "../support/plot.rs"]
mod plot;
#[path = "../support/process.rs"]
mod process;
mod promises;
mod purge;
#[path = "../support/report.rs"]
mod report;
mod roster;
mod round;
mod server;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/stats.rs"]
mod stats;
mod summary;
#[path = "../support/table.rs"]
mod table;
mod wrk;

use std::{error::Error, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::Parser;
use serde_json::{Map, Value, json};

use crate::{
    api::Api,
    cell::{CELLS, Cell, Work},
    forward::Client,
    interrupt::Interrupt,
    report::Report,
    roster::{Entrant, Peer, ROSTER, Stage, Started},
    summary::{RoundSample, Summary},
    wrk::Wrk,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Compares jobcache with its peers; flags go after `--`
#[derive(Debug, Parser)]
#[command(name = "cargo bench --bench peers --")]
struct Args {
    /// Number of rounds; the tables show their medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of load for each peer, load and round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Prefixes of peer names, such as `jobcache,haproxy`; all peers by default
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Kinds of work; all by default
    #[arg(long, value_delimiter = ',')]
    work: Vec<Work>,
    /// Number of jobs for the memory measurement; 0 skips it
    #[arg(long, default_value_t = 100_000)]
    jobs: usize,
    /// Binary to measure instead of this build's
    #[arg(long)]
    jobcache: Option<PathBuf>,
    /// Binary of an earlier build to compare with, as the peers `before-*`
    #[arg(long)]
    before: Option<PathBuf>,
    /// Count wrong answers of each peer instead of measuring costs
    #[arg(long)]
    promises: bool,
    /// Save the figures in benches/figures as well
    #[arg(long)]
    save: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Run the bare server
    #[arg(long, hide = true)]
    serve: Option<SocketAddr>,
    /// Run a bare proxy with this kind of connection pool
    #[arg(long, hide = true, requires = "addresses")]
    forward: Option<Client>,
    /// Listen address and upstream of the bare proxy
    #[arg(hide = true, num_args = 2)]
    addresses: Vec<SocketAddr>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ran = match (args.serve, args.forward, args.addresses.as_slice()) {
        (Some(address), ..) => server::serve(address),
        (_, Some(client), [listen, upstream]) => forward::serve(*listen, *upstream, client),
        _ if args.promises => judge(&args),
        _ => run(&args),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let mut wrk = Wrk::new(args.seconds, interrupt.clone())?;
    let (_upstream, upstream) = roster::start_hyper()?;
    let stage = stage(args, upstream);
    let machine = report::machine();
    let mut summary = Summary { jobs: args.jobs, ..Summary::default() };

    let mut entrants = entrants(args)?;
    entrants.retain(|entrant| entrant.has_costs());
    if args.jobs > 0 {
        weigh_all(&entrants, &stage, &interrupt, &mut summary)?;
    }
    let peers = start_all(&entrants, &stage)?;
    let cells: Vec<Cell> = CELLS
        .into_iter()
        .filter(|cell| args.work.is_empty() || args.work.contains(&cell.work))
        .collect();
    for round in 0..usize::try_from(args.rounds)? {
        for cell in &cells {
            println!("round {} of {}: {cell}", round + 1, args.rounds);
            // Rotate the order, so that no peer always runs after the same one.
            let takes_part = |peer: &&Peer| peer.entrant.takes_part_in(cell.work);
            let mut order: Vec<&Peer> = peers.iter().filter(takes_part).collect();
            let first = round % order.len().max(1);
            order.rotate_left(first);
            for peer in order {
                let name = peer.entrant.name;
                let sample = round::measure(peer, *cell, &stage, &mut wrk)
                    .map_err(|error| format!("{name}, {cell}: {error}"))?;
                let ours = peer.entrant.is_jobcache();
                summary.taken.push(RoundSample { round, cell: *cell, peer: name, ours, sample });
            }
        }
    }
    publish(args, &summary, &machine, &peers)
}

/// Tests each peer alone, in front of an API with changing jobs.
fn judge(args: &Args) -> Result<()> {
    let (interrupt, api) = (Interrupt::listen()?, Api::start()?);
    let stage = stage(args, api.address);
    let (machine, mut all, mut versions) = (report::machine(), Vec::new(), Map::new());
    for entrant in entrants(args)?.into_iter().filter(|entrant| entrant.caches()) {
        match entrant.start(&stage)? {
            Started::Running(peer) => {
                println!("{}", entrant.name);
                let judged = promises::judge(&peer, &api, &interrupt);
                all.push(judged.map_err(|error| format!("{}: {error}", entrant.name))?);
                versions.insert(entrant.name.to_owned(), entrant.version());
            }
            Started::Skipped(why) => println!("skipped {}: {why}", entrant.name),
        }
    }
    let table = promises::table(&all);
    print!("{table}");
    let figures = promises::json(&all)?;
    let figures = json!({ "machine": machine, "peers": versions, "figures": figures });
    Report::new("promises", args.save).write(&figures, &table, "Promises", &[])
}

fn stage(args: &Args, upstream: SocketAddr) -> Stage {
    let jobcache = servers::binary(args.jobcache.as_ref());
    Stage { jobcache, before: args.before.clone(), upstream }
}

/// Returns the selected peers.
fn entrants(args: &Args) -> Result<Vec<Entrant>> {
    let is_selected = |entrant: &Entrant| {
        let is_named = args.only.iter().any(|name| entrant.name.starts_with(name.as_str()));
        (is_named || args.only.is_empty()) && (args.before.is_some() || !entrant.is_before())
    };
    let entrants: Vec<Entrant> = ROSTER.into_iter().filter(is_selected).collect();
    if entrants.is_empty() {
        let names: Vec<&str> = ROSTER.iter().map(|entrant| entrant.name).collect();
        return Err(format!("--only matches no peer; the peers are {}", names.join(", ")).into());
    }
    Ok(entrants)
}

fn weigh_all(
    entrants: &[Entrant],
    stage: &Stage,
    interrupt: &Interrupt,
    summary: &mut Summary,
) -> Result<()> {
    for entrant in entrants {
        interrupt.check()?;
        println!("memory of {} with {} jobs", entrant.name, summary.jobs);
        if let Some(memory) = round::weigh(*entrant, summary.jobs, stage)
            .map_err(|error| format!("{}, memory: {error}", entrant.name))?
        {
            summary.memory.push((entrant.name, memory));
        }
    }
    Ok(())
}

fn start_all(entrants: &[Entrant], stage: &Stage) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for entrant in entrants {
        match entrant.start(stage)? {
            Started::Running(peer) => peers.push(*peer),
            Started::Skipped(why) => println!("skipped {}: {why}", entrant.name),
        }
    }
    if peers.is_empty() { Err("no peer can be started".into()) } else { Ok(peers) }
}

fn publish(args: &Args, summary: &Summary, machine: &Value, peers: &[Peer]) -> Result<()> {
    let tables = summary.tables();
    print!("{tables}");
    let versions: Map<String, Value> =
        peers.iter().map(|peer| (peer.entrant.name.to_owned(), peer.entrant.version())).collect();
    let run = json!({ "rounds": args.rounds, "seconds": args.seconds, "peers": versions });
    let figures = json!({ "machine": machine, "run": run, "figures": summary.json() });
    let title = format!("Peers: medians of {} rounds of {} s", args.rounds, args.seconds);
    Report::new("peers", args.save).write(&figures, &tables, &title, &summary.panels())
}
