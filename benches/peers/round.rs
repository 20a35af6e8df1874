//! One measurement: a peer under one load, checked before, during and after.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    Result,
    cell::{Cell, Size, Work},
    cost::{cpu_seconds, memory_mib},
    http::{read_all, upstream_count},
    roster::{Entrant, Peer, Stage, Started},
    stats::real,
    wrk::{IDS, Load, Wrk},
};

/// Longest time until a peer serves hits. jobcache serves none during the grace after it has found
/// a new Redis (`store.reconnect_grace`).
const WARM_TIMEOUT: Duration = Duration::from_secs(20);
/// Accepted share of requests with another result than the load's.
const TOLERANCE: f64 = 0.01;
/// Attempts per measurement: on a busy machine Redis can be late, and jobcache then forwards by
/// design.
const ATTEMPTS: usize = 5;
/// Accepted share of failed requests.
const FAILURES: f64 = 0.001;

/// The figures of one measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU seconds per 100,000 requests, of the peer and its Redis.
    pub(crate) cpu: f64,
    /// The part of `cpu` that Redis used.
    pub(crate) cpu_redis: f64,
    /// Memory of the peer and its Redis after the load.
    pub(crate) memory_mib: f64,
}

/// Memory in MiB before and after a cache is filled with many jobs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) idle: f64,
    pub(crate) full: f64,
    pub(crate) redis_idle: f64,
    pub(crate) redis_full: f64,
}

/// Measures a peer once.
///
/// Fails if the peer does not do what the load is about: a cache that forwards hits, or answers
/// misses itself, is misconfigured, and its figures would be meaningless.
pub(crate) fn measure(peer: &Peer, cell: Cell, stage: &Stage, wrk: &mut Wrk) -> Result<Sample> {
    let mut attempt = 1;
    loop {
        match attempt_once(peer, cell, stage, wrk) {
            Ok(Ok(sample)) => return Ok(sample),
            Ok(Err(why)) if attempt == ATTEMPTS => return Err(why.into()),
            Ok(Err(why)) => println!("repeating {}: {why}", peer.entrant.name),
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

/// Returns a sample, or the reason why it does not count.
fn attempt_once(
    peer: &Peer,
    cell: Cell,
    stage: &Stage,
    wrk: &mut Wrk,
) -> Result<std::result::Result<Sample, String>> {
    if cell.work == Work::Hit {
        warm(peer, cell.size, stage)?;
    }
    let (before, forwarded_before) = (Cpu::of(peer), upstream_count(stage.upstream)?);
    let load = wrk.run(peer.address, cell)?;
    let (after, forwarded) = (Cpu::of(peer), upstream_count(stage.upstream)? - forwarded_before);
    if let Err(why) = judge(peer, cell, load, forwarded) {
        return Ok(Err(why));
    }
    let memory_mib = memory_mib(&pids(peer));
    if cell.work == Work::Miss {
        forget(peer)?;
    }
    let per_100k = |seconds: f64| seconds * 1e5 / real(load.requests);
    Ok(Ok(Sample {
        requests_per_second: load.per_second(),
        p50_ms: load.p50_ms(),
        p99_ms: load.p99_ms(),
        cpu: per_100k(after.own - before.own + after.redis - before.redis),
        cpu_redis: per_100k(after.redis - before.redis),
        memory_mib,
    }))
}

/// Measures the memory of a peer without jobs and with this many jobs of 600 B, each of which was
/// read twice.
pub(crate) fn weigh(entrant: Entrant, jobs: usize, stage: &Stage) -> Result<Option<Memory>> {
    if !entrant.takes_part_in(Work::Hit) {
        return Ok(None);
    }
    let Started::Running(peer) = entrant.start(stage)? else { return Ok(None) };
    let weights = || {
        let redis: Vec<u32> = peer.redis_pid().into_iter().collect();
        (memory_mib(&[peer.pid()]), memory_mib(&redis))
    };
    let (idle, redis_idle) = weights();
    for _ in 0..2 {
        read_all(peer.address, Size::Small, jobs)?;
    }
    let (full, redis_full) = weights();
    Ok(Some(Memory { idle, full, redis_idle, redis_full }))
}

/// Reads all ids until none of the reads reaches the upstream.
fn warm(peer: &Peer, size: Size, stage: &Stage) -> Result<()> {
    let start = Instant::now();
    let (mut rounds, mut forwarded) = (0, 0);
    while start.elapsed() < WARM_TIMEOUT {
        let before = upstream_count(stage.upstream)?;
        read_all(peer.address, size, IDS)?;
        forwarded = upstream_count(stage.upstream)? - before;
        // The first round may find everything cached, which proves nothing about the second.
        if rounds > 0 && forwarded == 0 {
            return Ok(());
        }
        rounds += 1;
    }
    Err(format!("serves no hits: forwarded {forwarded} of {IDS} warmed reads").into())
}

fn judge(peer: &Peer, cell: Cell, load: Load, forwarded: u64) -> std::result::Result<(), String> {
    let requests = real(load.requests);
    if load.requests == 0 || real(load.errors) > requests * FAILURES {
        return Err(format!("{} of {requests} requests failed", load.errors));
    }
    let expected = if cell.work == Work::Hit || !peer.entrant.forwards() { 0.0 } else { requests };
    // Requests in progress when wrk ends are answered but not counted.
    let slack = requests * TOLERANCE + f64::from(2 * cell.connections);
    if (real(forwarded) - expected).abs() > slack {
        return Err(format!("forwarded {forwarded} of {requests} requests"));
    }
    Ok(())
}

fn pids(peer: &Peer) -> Vec<u32> {
    [Some(peer.pid()), peer.redis_pid()].into_iter().flatten().collect()
}

/// CPU seconds used.
struct Cpu {
    own: f64,
    redis: f64,
}

impl Cpu {
    fn of(peer: &Peer) -> Self {
        let redis: Vec<u32> = peer.redis_pid().into_iter().collect();
        Self { own: cpu_seconds(&[peer.pid()]), redis: cpu_seconds(&redis) }
    }
}

/// Empties a peer's Redis of the entries that misses have left; the other caches are bounded.
fn forget(peer: &Peer) -> Result<()> {
    peer.redis.as_ref().map_or(Ok(()), |redis| flush(redis.address))
}

fn flush(redis: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(redis)?;
    stream.write_all(b"FLUSHALL\r\n")?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply)?;
    if reply == *b"+OK\r\n" { Ok(()) } else { Err("Redis rejects FLUSHALL".into()) }
}
