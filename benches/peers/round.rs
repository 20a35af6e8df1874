//! One measurement: a peer under one kind of load, checked before, after and meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
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

/// Rounds of warming that a cache may need until it forwards nothing any more.
const WARMINGS: usize = 4;
/// The part of the requests that may end otherwise than the cell says.
const TOLERANCE: f64 = 0.01;
/// Measurements that may be thrown away because a busy machine made Redis late, upon which
/// jobcache forwards by design.
const ATTEMPTS: usize = 5;
/// The part of the requests that may fail.
const FAILURES: f64 = 0.001;

/// The figures of one measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Seconds a 100,000 requests, of the peer and its Redis.
    pub(crate) cpu: f64,
    /// The part of it that was Redis'.
    pub(crate) cpu_redis: f64,
    /// Of the peer and its Redis, afterwards.
    pub(crate) memory_mib: f64,
}

/// MiB before and after a cache has been given many jobs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Memory {
    pub(crate) idle: f64,
    pub(crate) full: f64,
    pub(crate) redis_idle: f64,
    pub(crate) redis_full: f64,
}

/// Measures a peer once.
///
/// Fails when the peer does not do what the cell is about: a cache that forwards hits, or answers
/// misses itself, is misconfigured, and its figures would say nothing.
pub(crate) fn measure(peer: &Peer, cell: Cell, stage: &Stage, wrk: &mut Wrk) -> Result<Sample> {
    let mut attempt = 1;
    loop {
        match attempt_once(peer, cell, stage, wrk) {
            Ok(Ok(sample)) => return Ok(sample),
            Ok(Err(why)) if attempt == ATTEMPTS => return Err(why.into()),
            Ok(Err(why)) => println!("once more: {}: {why}", peer.entrant.name),
            Err(error) => return Err(error),
        }
        attempt += 1;
    }
}

/// A sample, or why it does not count.
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

/// What a peer weighs without and with this many jobs of 600 B, each of which was read twice.
pub(crate) fn weigh(entrant: Entrant, jobs: usize, stage: &Stage) -> Result<Option<Memory>> {
    if !entrant.does(Work::Hit) {
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

/// Reads all ids until none of them reaches the upstream any more.
fn warm(peer: &Peer, size: Size, stage: &Stage) -> Result<()> {
    let mut forwarded = 0;
    for round in 0..=WARMINGS {
        let before = upstream_count(stage.upstream)?;
        read_all(peer.address, size, IDS)?;
        forwarded = upstream_count(stage.upstream)? - before;
        // The first round may find everything there, and then proves nothing of the second.
        if round > 0 && forwarded == 0 {
            return Ok(());
        }
    }
    Err(format!("serves no hits: forwarded {forwarded} of {IDS} warmed reads").into())
}

fn judge(peer: &Peer, cell: Cell, load: Load, forwarded: u64) -> std::result::Result<(), String> {
    let requests = real(load.requests);
    if load.requests == 0 || real(load.errors) > requests * FAILURES {
        return Err(format!("{} of {requests} requests failed", load.errors));
    }
    let expected = if cell.work == Work::Hit || !peer.entrant.forwards() { 0.0 } else { requests };
    // Requests under way when wrk ends are answered and not counted.
    let slack = requests * TOLERANCE + f64::from(2 * cell.connections);
    if (real(forwarded) - expected).abs() > slack {
        return Err(format!("forwarded {forwarded} of {requests} requests"));
    }
    Ok(())
}

fn pids(peer: &Peer) -> Vec<u32> {
    [Some(peer.pid()), peer.redis_pid()].into_iter().flatten().collect()
}

/// CPU seconds so far.
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

/// Empties a peer's Redis of what misses have left there: no other cache here grows without bound.
fn forget(peer: &Peer) -> Result<()> {
    peer.redis.as_ref().map_or(Ok(()), |redis| flush(redis.address))
}

fn flush(redis: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(redis)?;
    stream.write_all(b"FLUSHALL\r\n")?;
    let mut reply = [0; 5];
    stream.read_exact(&mut reply)?;
    if reply == *b"+OK\r\n" { Ok(()) } else { Err("Redis refuses FLUSHALL".into()) }
}
